"""When a crashed agent is started again, and when it is not any more. Pure, but for the pace of starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig
from toka.core.clock import Clock
from toka.events.state import AgentState

Policy = Literal["never", "on_failure", "always"]
"""Whether an agent is started again: never, after a crash, or also after it failed."""
CAP_S: Final = 300.0
"""The longest wait before a restart, in seconds."""
STARTS_PER_S: Final = 50.0
"""Starts of agents in one second, as long as agents crash."""
ALERT_S: Final = 60.0
"""How long after a crash starts are paced, in seconds."""


def policy_of(config: AgentConfig, execution: ExecutionConfig) -> Policy:
    """The spec's, else the settings'."""
    return config.restart or execution.restart


def delay(crashes: int, random: float) -> float:
    """Seconds before the restart after so many crashes in a row: half is certain, half random; it doubles to a cap."""
    wait = min(CAP_S, 2.0 ** min(crashes - 1, 30))
    return wait / 2 + wait / 2 * random


def refusal(
    state: AgentState, now: float, agents: Mapping[str, AgentState], execution: ExecutionConfig, *, failed: bool = False
) -> tuple[str, bool] | None:
    """Why an agent that crashed is not started again, and whether that is because of too many in a row; None: it is.

    Args:
        state: the agent before its crash is recorded.
        now: wall-clock seconds.
        agents: all agents of the run.
        execution: bounds.
        failed: its work failed; it did not crash.
    """
    crashes = in_a_row(state, now, failed=failed)
    if crashes > execution.max_restarts:
        told = "failed {} times in a row without a newly completed task" if failed else ""
        return (told or "crashed {} times in a row without a new step").format(crashes), True
    return (told, False) if (told := used_up(agents, execution.run_restarts)) else None


def in_a_row(state: AgentState, now: float, *, failed: bool) -> int:
    """How many crashes in a row one at `now` would make, or how many failures."""
    return state.failures_now if failed else state.crashes_at(now)


def used_up(agents: Mapping[str, AgentState], for_each: int) -> str:
    """Says that the restarts of a run are used up, of which there are so many for each agent; empty: they are not."""
    budget = for_each * len(agents)
    if not budget or sum(each.restarts for each in agents.values()) < budget:
        return ""
    return f"the {budget} restarts of this run are used up"


class Pace:
    """Keeps starts apart while agents crash, so that a broken machine is not kept busy with starting."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._alert_until = float("-inf")
        self._next = float("-inf")

    def crashed(self) -> None:
        """An agent crashed just now."""
        self._alert_until = self._clock.monotonic() + ALERT_S

    async def wait(self) -> None:
        """Returns when the next agent may start."""
        now = self._clock.monotonic()
        if now >= self._alert_until:
            return
        due = max(now, self._next)
        self._next = due + 1 / STARTS_PER_S
        if due > now:
            await self._clock.sleep(due - now)
