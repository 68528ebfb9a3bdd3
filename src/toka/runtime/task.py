"""TaskExecutor: one task from its first attempt to its end: attempts, retries, timeouts, the report."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from toka.config.agent import TaskSpec
from toka.core.ids import StepKey, TaskId
from toka.core.message import ToolSpec
from toka.errors import LimitExceeded
from toka.events.event import TaskStateChanged
from toka.events.lifecycle import TASK_ENDS, TaskStatus, Trigger, task_may
from toka.events.state import TaskState
from toka.llm.prompts import REPORT_TOOL, retry_note
from toka.runtime.act import InDoubt, StepFailure
from toka.runtime.approval import AwaitsApproval
from toka.runtime.command import BY_WORD, by_word, met, run_line, tail, verdict
from toka.runtime.context import AgentContext
from toka.runtime.conversation import Conversation, Report, opening_messages
from toka.runtime.health import Stuck
from toka.runtime.outputs import last_talk, report_of


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How a task ended, or that it waits for a person.

    Attributes:
        status: an end, NEEDS_ATTENTION or AWAITING_APPROVAL; RUNNING when it got nowhere and its agent is held.
        report: what was reported; None when nothing was.
        reason: the error, or the question for a person; empty on success.
        why: the cause as a word: reported, exit, timeout, limit, malformed ...
    """

    status: TaskStatus
    report: dict[str, Any] | None = None
    reason: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Work:
    """What an attempt does: `attempt(number, last error)` returns the report of a success or raises StepFailure."""

    task: TaskId
    title: str
    retries: int
    timeout_s: float | None
    attempt: Callable[[int, str], Awaitable[dict[str, Any]]]


class _Reported(StepFailure):
    """The agent itself reported that the task failed or is blocked; only the former is worth another attempt."""

    def __init__(self, report: Report) -> None:
        super().__init__(report.status, report.summary, retryable=report.status == "failed")
        self.report = report.data


class TaskExecutor:
    """Executes the tasks of one agent, whatever they are made of. Every change of status is recorded before it counts.

    Every change is legal by the transition table, and nobody else changes the status of this agent's tasks. A task that
    an earlier process left goes on in the attempt it was in; its recorded steps are not run again.
    """

    def __init__(self, agent: AgentContext) -> None:
        self._agent = agent
        self._tools = tuple(ToolSpec(t.name, t.description, t.parameters) for t in agent.tools.values())
        self._report = report_of(agent)
        self._written: dict[str, TaskStatus] = {}  # ahead of the folded state while a record is being committed

    async def run(self, task: TaskSpec, prompt: Callable[[], str]) -> TaskOutcome:
        """Executes a task of the spec.

        Args:
            task: what to do; with `run` it is deterministic and needs no model.
            prompt: makes the first message for the model; called when an attempt starts afresh.

        Raises:
            JournalError: the record cannot be written.
        """
        execution = self._agent.run.execution
        timeout = task.timeout_s or execution.task_timeout_s
        if task.run is not None:

            async def command(number: int, last: str) -> dict[str, Any]:  # noqa: ARG001 - a command takes no advice
                return await self._command(task, task.run or "", number, timeout)

            title = self._agent.values.command(task.description) if task.description == task.run else task.description
            return await self._execute(_Work(task.id, title, task.retries or 0, timeout, command))
        retries = execution.task_retries if task.retries is None else task.retries
        report = self._report if task.id == last_talk(self._agent) else REPORT_TOOL
        talk = self._talk(task.id, prompt, report)
        return await self._execute(_Work(task.id, task.description, retries, timeout, talk))

    async def repair(self, task: TaskId, title: str, prompt: Callable[[], str]) -> TaskOutcome:
        """Lets the model mend what a check found. One attempt: the check after it is the judge."""
        timeout = self._agent.run.execution.task_timeout_s
        talk = self._talk(task, prompt, self._report)
        return await self._execute(_Work(task, title, 0, timeout, talk))

    async def skip(self, task: TaskSpec, reason: str, by: Trigger = Trigger.WORK) -> None:
        """Records that a task is not going to be executed, or not any more: SKIPPED, or CANCELLED once it had begun."""
        status = self._status(task.id)
        if status not in TASK_ENDS:
            end = TaskStatus.SKIPPED if task_may(status, TaskStatus.SKIPPED) else TaskStatus.CANCELLED
            await self._change(TaskStateChanged(task.id, end.value, 0, reason, title=task.description), by)

    async def cancel_open(self, status: TaskStatus, reason: str, limit: LimitExceeded | None = None) -> None:
        """Ends every task that was being executed. Its acts are over when this is called."""
        await self._agent.steps.abandon(status.lower(), reason, limit=limit)
        state = self._agent.run.recorder.state.agents.get(self._agent.name)
        for task in {**(state.tasks if state else {}), **self._written}:
            if self._status(task) not in TASK_ENDS and self._status(task) is not TaskStatus.QUEUED:
                by = Trigger.PERSON if status is TaskStatus.CANCELLED else Trigger.LIMIT if limit else Trigger.WORK
                await self._change(TaskStateChanged(task, status.value, self._state(task).attempt, reason), by)

    async def _execute(self, work: _Work) -> TaskOutcome:
        known = self._state(work.task)
        if known.status in TASK_ENDS:
            return TaskOutcome(known.status, known.report, known.reason, known.why)
        try:
            async with self._agent.control.timeout(self._left(work, known)):
                outcome = await self._attempts(work, known)
        except TimeoutError:
            reason = f"timed out after {work.timeout_s or 0:g} s"
            limit = work.timeout_s or 0
            over = LimitExceeded(f"time of task {work.task}", limit, limit, "seconds")
            await self._agent.steps.abandon("timeout", reason, work.task, over)
            outcome = TaskOutcome(TaskStatus.FAILED, None, reason, "timeout")
        if outcome.status is self._status(work.task):  # it still waits for the same answer
            return outcome
        attempt = self._state(work.task).attempt
        await self._change(
            TaskStateChanged(work.task, outcome.status.value, attempt, outcome.reason, outcome.report, why=outcome.why)
        )
        return outcome

    def _left(self, work: _Work, known: TaskState) -> float | None:
        """Seconds the task may still take: its timeout less what earlier executions of it took."""
        agent = self._agent.run.recorder.state.agents.get(self._agent.name)
        if work.timeout_s is None or agent is None or known.began_s is None or agent.stint_at is None:
            return work.timeout_s
        now = agent.active_s + max(0.0, self._agent.run.runtime.clock.now() - agent.stint_at)
        return max(0.0, work.timeout_s - max(0.0, now - known.began_s))

    async def _attempts(self, work: _Work, known: TaskState) -> TaskOutcome:
        number, last = max(1, known.attempt), known.reason
        if known.status is TaskStatus.RETRY_WAIT:
            number += 1
        while True:
            if self._state(work.task).attempt < number or self._answered(work.task):
                said = self._agent.steps.last_answer(work.task) if self._answered(work.task) else ""
                await self._change(
                    TaskStateChanged(work.task, TaskStatus.RUNNING.value, number, last, title=work.title, why=said)
                )
            try:
                return TaskOutcome(TaskStatus.SUCCEEDED, await work.attempt(number, last))
            except StepFailure as failure:
                if not failure.retryable or number - self._state(work.task).fresh > work.retries:
                    report = failure.report if isinstance(failure, _Reported) else None
                    return TaskOutcome(TaskStatus.FAILED, report, failure.message, failure.error)
                last = failure.message
            except InDoubt as doubt:
                return TaskOutcome(TaskStatus.NEEDS_ATTENTION, None, doubt.question, "in_doubt")
            except Stuck as report:
                return TaskOutcome(TaskStatus.RUNNING, None, str(report), "stuck")
            except AwaitsApproval as waits:
                return TaskOutcome(TaskStatus.AWAITING_APPROVAL, None, waits.question, "approval")
            if self._status(work.task) in (
                TaskStatus.AWAITING_APPROVAL,
                TaskStatus.NEEDS_ATTENTION,
            ):  # it went on all the same
                await self._change(TaskStateChanged(work.task, TaskStatus.RUNNING.value, number, last))
            await self._change(TaskStateChanged(work.task, TaskStatus.RETRY_WAIT.value, number, last))
            await self._agent.run.runtime.clock.sleep(self._backoff(number))
            number += 1

    def _answered(self, task: str) -> bool:
        """Whether a task that waited for a person waits no more."""
        agent, known = self._agent.run.recorder.state.agents.get(self._agent.name), self._state(task)
        if known.status is TaskStatus.AWAITING_APPROVAL:
            return agent is None or all(each.task != task for each in agent.asking)
        return known.status is TaskStatus.NEEDS_ATTENTION and not known.question

    def _talk(
        self, task: TaskId, prompt: Callable[[], str], report_tool: ToolSpec
    ) -> Callable[[int, str], Awaitable[dict[str, Any]]]:
        agent = self._agent

        async def attempt(number: int, last: str) -> dict[str, Any]:
            text = prompt() if number == 1 else f"{prompt()}\n\n{retry_note(number, last)}"
            scope = agent.run.resources.task(agent.scope, task)
            conversation = Conversation(agent, task, number, scope, self._tools, report_tool)
            report = await conversation.run(opening_messages(agent.system, text))
            if report.status == "succeeded":
                return report.data
            raise _Reported(report)

        return attempt

    async def _command(self, task: TaskSpec, line: str, number: int, timeout_s: float | None) -> dict[str, Any]:
        result = await run_line(self._agent, StepKey(task.id, number, 1, "run"), line, task.effect, timeout_s)
        end = verdict(result.value, self._agent.values.command(line), timeout_s)
        output = tail(result.value)
        if result.failed:
            over = met(result.value)
            why = "timeout" if result.value["ended"] == "timeout" else "exit" if over is None else "limit"
            raise StepFailure(why, f"{end}\n{output}".rstrip())
        summary = BY_WORD if by_word(result.value) else f"{end}\n{output}".rstrip()
        return {"status": "succeeded", "summary": summary, "exit": result.value["exit"]}

    def _backoff(self, attempt: int) -> float:
        """Equal jitter: half of the wait is certain, half is random; it doubles with each attempt up to a cap."""
        execution = self._agent.run.execution
        wait = min(execution.retry_cap_s, execution.retry_base_s * 2 ** (attempt - 1))
        return wait / 2 + wait / 2 * self._agent.run.runtime.random()

    def _state(self, task: str) -> TaskState:
        agent = self._agent.run.recorder.state.agents.get(self._agent.name)
        return (agent.tasks.get(task) if agent else None) or TaskState(task)

    def _status(self, task: str) -> TaskStatus:
        return self._written.get(task) or self._state(task).status

    async def _change(self, event: TaskStateChanged, by: Trigger = Trigger.WORK) -> None:
        """Records a change of a task's status: all of them go through here."""
        old, new = self._status(event.task), TaskStatus(event.state)
        if not task_may(old, new, by):
            raise AssertionError(f"task {event.task}: {old.value} -> {new.value} by {by.value} is no legal transition")
        self._written[event.task] = new
        await self._agent.run.recorder.record(self._agent.name, replace(event, by=by.value))
