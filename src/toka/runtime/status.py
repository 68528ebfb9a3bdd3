"""The one writer of agents' statuses: every change is one event, legal by the transition table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from toka.core.ids import AgentName
from toka.events.event import AgentStateChanged, Event
from toka.events.lifecycle import AGENT_ENDS, AgentStatus, Trigger, agent_may
from toka.events.state import AgentState
from toka.journal.recorder import Recorder
from toka.runtime.executor import AgentOutcome


class Statuses:
    """The statuses of one run's agents.

    Invariant: between the reading of a status and the record of its change nobody else changes it.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._turns: dict[AgentName, asyncio.Lock] = {}

    def state(self, name: AgentName) -> AgentState:
        """The agent's state as recorded."""
        return self._recorder.state.agents.get(name) or AgentState(name)

    def turn(self, name: AgentName) -> asyncio.Lock:
        """Held from reading an agent's status until its change is recorded: requests and the agent itself do both."""
        return self._turns.setdefault(name, asyncio.Lock())

    async def change(
        self,
        name: AgentName,
        by: Trigger,
        *path: AgentStatus,
        reason: str = "",
        why: str = "",
        also: Sequence[Event] = (),
    ) -> None:
        """Takes an agent along some statuses, all in one record; nothing happens when it is there, or has ended.

        Args:
            name: the agent.
            by: what brings it about.
            path: the statuses, the last one with `reason` and `why`.
            reason: for people.
            why: the cause as a word.
            also: what is recorded together with it.
        """
        async with self.turn(name):
            await self.change_now(name, by, *path, reason=reason, why=why, also=also)

    async def change_now(
        self,
        name: AgentName,
        by: Trigger,
        *path: AgentStatus,
        reason: str = "",
        why: str = "",
        also: Sequence[Event] = (),
    ) -> None:
        """As `change`, for a caller that has the turn."""
        state = self.state(name)
        old, goal = state.status, path[-1]
        if old is goal or (old in AGENT_ENDS and goal is not AgentStatus.READY):
            return
        if old is AgentStatus.STOPPING and goal is not AgentStatus.STOPPED:  # the stop came first: it wins
            path, by, reason, why, also = (AgentStatus.STOPPED,), Trigger.PERSON, state.reason, "stopped", ()
        events: list[Event] = []
        for status in path:
            if not agent_may(old, status, by):
                raise AssertionError(
                    f"agent {name}: {old.value} -> {status.value} by {by.value} is no legal transition"
                )
            last = status is path[-1]
            events.append(AgentStateChanged(status.value, reason, why if last else "", by.value))
            old = status
        await self._whole(name, [*events, *also])

    def starter(self, name: AgentName) -> Trigger:
        """What starts an agent: the schedule, or the process that took it over."""
        legal = agent_may(self.state(name).status, AgentStatus.STARTING, Trigger.SCHEDULE)
        return Trigger.SCHEDULE if legal else Trigger.RECOVERY

    async def begin(self, name: AgentName) -> bool:
        """Has an agent start and run, in one record; False when it has ended meanwhile."""
        async with self.turn(name):
            if self.state(name).ended:
                return False
            starting = AgentStateChanged(AgentStatus.STARTING.value, by=self.starter(name).value)
            running = AgentStateChanged(AgentStatus.RUNNING.value, by=Trigger.WORK.value)
            await self._whole(name, [starting, running])
        return True

    async def _whole(self, name: AgentName, events: Sequence[Event]) -> None:
        """Records, and returns when that is folded, also when cancelled: nobody may see a status half made."""
        writing = asyncio.ensure_future(self._recorder.record(name, *events))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})
            if not writing.cancelled():
                writing.exception()  # whoever takes the agent's next step meets the same error
            raise

    async def end(self, name: AgentName, outcome: AgentOutcome, by: Trigger = Trigger.WORK) -> AgentOutcome:
        """Records how an agent ended, or what it waits for. Returns it as recorded.

        A stop that came first wins. Who has not begun when its time is over is skipped: it did not fail.
        """
        async with self.turn(name):
            old, goal = self.state(name).status, outcome.status
            path = [goal]
            if goal is AgentStatus.STOPPED:
                by = Trigger.PERSON
                if not agent_may(old, AgentStatus.STOPPED, by):
                    path.insert(0, AgentStatus.STOPPING)
            elif outcome.why == "limit" and agent_may(old, AgentStatus.SKIPPED, Trigger.LIMIT):
                path, by = [AgentStatus.SKIPPED], Trigger.LIMIT
            await self.change_now(name, by, *path, reason=outcome.reason, why=outcome.why)
        ended = self.state(name)
        return AgentOutcome(ended.status, ended.reason, ended.why)
