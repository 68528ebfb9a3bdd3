"""Objectives: claimed on the agent's word, verified by a check, repaired for a few rounds when a check fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toka.config.agent import Check
from toka.core.effect import Effect
from toka.core.ids import StepKey, TaskId
from toka.events.event import ObjectiveChanged
from toka.events.lifecycle import ObjectiveStatus, TaskStatus
from toka.llm.prompts import repair_prompt
from toka.runtime.act import StepFailure
from toka.runtime.command import run_line, tail, verdict
from toka.runtime.context import AgentContext
from toka.runtime.task import TaskExecutor, TaskOutcome


@dataclass(frozen=True, slots=True)
class _Failed:
    number: int
    title: str
    command: str
    exit: int | None
    output: str
    reason: str


class ObjectiveVerifier:
    """Runs the checks of one agent. A check that passes is the only way to `verified`."""

    def __init__(self, agent: AgentContext, tasks: TaskExecutor, *, can_repair: bool) -> None:
        """`can_repair`: the agent has a model that a failing check can be handed to."""
        self._agent = agent
        self._tasks = tasks
        self._can_repair = can_repair

    async def verify(self) -> TaskOutcome:
        """Checks all objectives, with at most `repair_rounds` repairs between.

        Returns:
            SUCCEEDED when no objective that has a check is unverified, else FAILED or waiting for a person,
            with the reason.

        Raises:
            JournalError: the record cannot be written.
        """
        await self._claim()
        rounds = _rounds(self._agent) if self._can_repair else 0
        before = self._tries() * (rounds + 1)  # rounds of earlier tries have numbers of their own
        for number in range(rounds + 1):
            failed = await self._check_all(before + number)
            if not failed:
                return TaskOutcome(TaskStatus.SUCCEEDED)
            if number == rounds:
                reason = "; ".join(f"objective {f.number} is not met: {f.reason}" for f in failed)
                return TaskOutcome(TaskStatus.FAILED, None, reason, "check_failed")
            outcome = await self._repair(failed, (number + 1, rounds), before + number + 1)
            if outcome.status is not TaskStatus.SUCCEEDED:
                return TaskOutcome(outcome.status, None, f"repair {number + 1}: {outcome.reason}", outcome.why)
        raise AssertionError("unreachable: the last round returns")

    async def _claim(self) -> None:
        config = self._agent.config
        claims = [(o.description, o.check is not None) for o in config.objectives]
        claims += [(line, False) for lines in config.success_criteria.values() for line in lines]
        for number, (title, checked) in enumerate(claims, 1):
            if not checked:
                await self._change(number, ObjectiveStatus.CLAIMED, title)

    async def _check_all(self, round_: int) -> list[_Failed]:
        found: list[_Failed] = []
        for number, objective in enumerate(self._agent.config.objectives, 1):
            if objective.check is not None:
                failed = await self._check(number, objective.description, objective.check, round_)
                if failed is not None:
                    found.append(failed)
        return found

    async def _check(self, number: int, title: str, check: Check, round_: int) -> _Failed | None:
        timeout = check.timeout or self._agent.run.execution.command_timeout_s
        key = StepKey(TaskId(f"objective-{number}"), round_ + 1, 1, "check")
        try:
            result = await run_line(self._agent, key, check.run, Effect.PURE, timeout)
            value: dict[str, Any] = result.value
        except StepFailure as e:
            value = {"exit": None, "ended": "lost", "output": str(e), "dropped": 0}
        passed = value["ended"] == "exited" and value["exit"] == check.expect_exit
        shown = self._agent.values.command(check.run)
        reason = verdict(value, shown, timeout)
        evidence = {"command": shown, "exit": value["exit"], "ended": value["ended"], "output": tail(value)}
        status = ObjectiveStatus.VERIFIED if passed else ObjectiveStatus.FAILED
        await self._change(number, status, title, round_, evidence)
        return None if passed else _Failed(number, title, shown, value["exit"], evidence["output"], reason)

    def _tries(self) -> int:
        agent = self._agent.run.recorder.state.agents.get(self._agent.name)
        return agent.tries if agent else 0

    async def _repair(self, failed: list[_Failed], of: tuple[int, int], number: int) -> TaskOutcome:
        def prompt() -> str:
            parts = [repair_prompt(f.title, f.command, -1 if f.exit is None else f.exit, f.output, *of) for f in failed]
            return "\n\n".join(parts)

        title = f"repair what the check of objective {', '.join(str(f.number) for f in failed)} found"
        return await self._tasks.repair(TaskId(f"repair-{number}"), title, prompt)

    async def _change(
        self, number: int, status: ObjectiveStatus, title: str, round_: int = 0, evidence: dict[str, Any] | None = None
    ) -> None:
        agent = self._agent.run.recorder.state.agents.get(self._agent.name)
        known = agent.objectives.get(number) if agent else None
        if known is not None and (known.round > round_ or (known.status, known.round) == (status, round_)):
            return  # an earlier process recorded it
        event = ObjectiveChanged(number, status.value, title, round_, evidence)
        await self._agent.run.recorder.record(self._agent.name, event)


def _rounds(agent: AgentContext) -> int:
    """How often a failing check goes back to the model."""
    flow = agent.config.flow
    return agent.run.execution.repair_rounds if flow is None or flow.repairs is None else flow.repairs
