"""AgentExecutor: interprets one agent's configuration: its tasks in order, then its objectives."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from toka.config.agent import TaskSpec
from toka.core.ids import StepKey, TaskId
from toka.errors import LimitExceeded
from toka.events.lifecycle import AgentStatus, TaskStatus, Trigger
from toka.llm.prompts import task_prompt
from toka.runtime.approval import AwaitsApproval, answer_to, before_start
from toka.runtime.context import AgentContext
from toka.runtime.conversation import report_text
from toka.runtime.objective import ObjectiveVerifier
from toka.runtime.outputs import collect
from toka.runtime.task import TaskExecutor, TaskOutcome
from toka.runtime.values import ValueMissing

WAITS: Final = (TaskStatus.NEEDS_ATTENTION, TaskStatus.AWAITING_APPROVAL, TaskStatus.RUNNING)
"""How a task stands that waits for a person; one that is RUNNING got nowhere, and its agent is held."""


@dataclass(frozen=True, slots=True)
class AgentOutcome:
    """How an agent's execution ended.

    Attributes:
        status: COMPLETED, FAILED, SKIPPED, STOPPED; or WAITING when a person must answer, CRASH_LOOP or QUARANTINED
            when one must let it go on.
        reason: the error or the question; empty when completed.
        why: the cause as a word: task_failed, check_failed, timeout, limit, in_doubt, approval ...
    """

    status: AgentStatus
    reason: str = ""
    why: str = ""


class AgentExecutor:
    """Executes one agent once. What an earlier process finished is taken from the record."""

    def __init__(self, agent: AgentContext, results: Mapping[str, tuple[str, str]] | None = None) -> None:
        """Prepares an execution.

        Args:
            agent: the agent.
            results: what the agents it depends on reported: name -> (status, text).
        """
        self._agent = agent
        self._results = dict(results or {})
        self._list = agent.config.task_list(agent.run.enabled)
        self._tasks = TaskExecutor(agent)
        self._outcomes: dict[TaskId, TaskOutcome] = {}

    async def run(self) -> AgentOutcome:
        """Executes all tasks, then verifies the objectives. A failed task ends it: the tasks left are skipped.

        Where the spec wants a person to agree, nothing of this happens before they did.

        Raises:
            JournalError: the record cannot be written.
        """
        if (refused := await self._asked()) is not None:
            return refused
        bad = await self._run_tasks()
        if bad is not None:
            return await self._give_up(bad)
        verifier = ObjectiveVerifier(self._agent, self._tasks, can_repair=self._agent.model is not None)
        outcome = await verifier.verify()
        if outcome.status is TaskStatus.SUCCEEDED:
            return await self._leave()
        return _ended(outcome)

    async def _asked(self) -> AgentOutcome | None:
        """How it ends, or that it waits, when a person has not agreed to it; None when it may begin."""
        ask = before_start(self._agent, self._list)
        if ask is None:
            return None
        try:
            known = await answer_to(self._agent, ask)
        except AwaitsApproval as waits:
            return AgentOutcome(AgentStatus.WAITING, waits.question, "approval")
        if known.answer == "approved":
            return None
        reason = known.in_words
        for task in self._list:
            await self._tasks.skip(task, reason)
        denied = known.answer == "denied"
        return AgentOutcome(AgentStatus.STOPPED if denied else AgentStatus.FAILED, reason, known.answer)

    async def _leave(self) -> AgentOutcome:
        """The last thing: the values for the agents that build on this one."""
        recorder, name = self._agent.run.recorder, self._agent.name
        state = recorder.state.agents.get(name)
        if state is None or state.outputs is None:
            try:
                outputs = await collect(self._agent, self._stdout, self._reported())
            except ValueMissing as problem:
                return AgentOutcome(AgentStatus.FAILED, str(problem), "output")
            if outputs is not None:
                await recorder.record(name, outputs)
        return AgentOutcome(AgentStatus.COMPLETED)

    def _stdout(self) -> str | None:
        """What the last command task printed, as it is recorded. Raises ValueMissing when that is not all."""
        task = next((t for t in reversed(self._list) if t.run is not None), None)
        state = self._agent.run.recorder.state.agents.get(self._agent.name)
        if task is None or state is None or task.id not in state.tasks:
            return None
        key = StepKey(task.id, state.tasks[task.id].attempt, 1, "run")
        known = self._agent.steps.recorded(key)
        if known is not None and (missing := known.value.get("stdout_missing")):
            kept = len(known.value["stdout"].encode())
            raise ValueMissing(f"is not whole: {kept + missing:,} bytes were printed, and only {kept:,} are kept")
        return None if known is None else known.value.get("stdout")

    def _reported(self) -> dict[str, Any]:
        """The values of the reports: those of a repair replace those of the task."""
        state = self._agent.run.recorder.state.agents.get(self._agent.name)
        out: dict[str, Any] = {}
        for task in state.tasks.values() if state is not None else ():
            out.update((task.report or {}).get("outputs") or {})
        return out

    async def cancelled(self, status: TaskStatus, reason: str, limit: LimitExceeded | None = None) -> None:
        """Records the end of an execution that was cancelled: what ran has `status`, what did not is skipped.

        Args:
            status: FAILED or CANCELLED.
            reason: for people.
            limit: for which it was cancelled, if it was for one.
        """
        await self._tasks.cancel_open(status, reason, limit)
        for task in self._list:
            await self._tasks.skip(task, reason, Trigger.PERSON if status is TaskStatus.CANCELLED else Trigger.WORK)

    async def _run_tasks(self) -> TaskSpec | None:
        """Runs tasks as their dependencies allow; returns the first that did not succeed."""
        limit = self._agent.run.execution.max_concurrent_tasks
        waiting = sorted(enumerate(self._list), key=lambda item: (item[1].priority, item[0]))
        queue = [task for _, task in waiting]
        running: dict[asyncio.Task[TaskOutcome], TaskSpec] = {}
        bad: TaskSpec | None = None
        try:
            while queue or running:
                while bad is None and len(running) < limit and (task := self._next(queue)) is not None:
                    queue.remove(task)
                    if limit == 1:
                        bad = self._note(task, await self._run_task(task))
                    else:
                        running[asyncio.create_task(self._run_task(task))] = task
                if not running:
                    if queue and bad is None:
                        raise AssertionError(f"tasks that can never start: {', '.join(t.id for t in queue)}")
                    break
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for finished in done:
                    spec = running.pop(finished)
                    bad = self._note(spec, finished.result()) or bad
        finally:
            for left in running:
                left.cancel()
            if running:
                await asyncio.gather(*running, return_exceptions=True)
        return bad

    def _next(self, queue: list[TaskSpec]) -> TaskSpec | None:
        """The most urgent task whose dependencies have succeeded."""
        return next((t for t in queue if all(d in self._outcomes for d in t.depends_on)), None)

    def _note(self, task: TaskSpec, outcome: TaskOutcome) -> TaskSpec | None:
        self._outcomes[task.id] = outcome
        return None if outcome.status is TaskStatus.SUCCEEDED else task

    async def _run_task(self, task: TaskSpec) -> TaskOutcome:
        return await self._tasks.run(task, lambda: self._prompt(task))

    def _prompt(self, task: TaskSpec) -> str:
        number = self._list.index(task) + 1
        previous = [
            (t.description, self._outcomes[t.id].status.lower(), report_text(self._outcomes[t.id].report or {}))
            for t in self._list
            if t.id in self._outcomes
        ]
        others = [(name, status, text) for name, (status, text) in sorted(self._results.items())]
        beside = self._agent.values.given_below(task.description)
        return task_prompt(task.description, number, len(self._list), previous, others, beside)

    async def _give_up(self, bad: TaskSpec) -> AgentOutcome:
        outcome = self._outcomes[bad.id]
        if outcome.status not in WAITS:
            await self._agent.steps.abandon("cancelled", f"task {bad.id} did not succeed")
            for task in self._list:
                if task.id not in self._outcomes or self._outcomes[task.id].status in WAITS:
                    await self._tasks.skip(task, f"task {bad.id} did not succeed")
        ended = _ended(outcome)
        return AgentOutcome(ended.status, f"task {bad.id}: {ended.reason}", ended.why or "task_failed")


def _ended(outcome: TaskOutcome) -> AgentOutcome:
    status = AgentStatus.WAITING if outcome.status in WAITS else AgentStatus.FAILED
    if outcome.status is TaskStatus.RUNNING:
        status = AgentStatus.QUARANTINED
    return AgentOutcome(status, outcome.reason, outcome.why)


def agent_report(tasks: Mapping[str, Any]) -> str:
    """What an agent's tasks reported, for the agents that depend on it: one paragraph a task."""
    parts = [f"{t.title or t.id}: {report_text(t.report)}" for t in tasks.values() if t.report]
    return "\n".join(parts)
