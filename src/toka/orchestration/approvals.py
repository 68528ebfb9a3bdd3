"""Answers of people to agents' questions, and questions whose time ran out: each is settled once, the first counts."""

from __future__ import annotations

import asyncio
from typing import Final

from toka.core.ids import AgentName
from toka.events.flow import ApprovalAnswered
from toka.events.state import AgentState
from toka.journal.journal import Command
from toka.runtime.context import RunContext

VERBS: Final = {"approve": "approved", "deny": "denied"}
"""Requests that answer questions, and what they answer."""


class Approvals:
    """Settles the questions of one run's agents."""

    def __init__(self, run: RunContext) -> None:
        """Looks at what the run's record says."""
        self._run = run
        self._settling = asyncio.Lock()  # from looking whether a question is open until its answer is recorded

    async def answer(self, command: Command) -> bool:
        """Records a person's answer to the questions that it names, as far as they are open.

        An answer counts by the time at which it was given: nobody may have been there to take it up.

        Returns:
            Whether one was settled by it.

        Raises:
            JournalError: the record cannot be written.
        """
        now = self._run.runtime.clock.now()
        given = command.arguments.get("at")
        at = min(now, given) if isinstance(given, int | float) else now
        named = command.arguments.get("approvals")
        settled = False
        async with self._settling:
            for each in self._agent(command.agent).asking:
                if isinstance(named, list) and each.id in named and (each.expires_at is None or at < each.expires_at):
                    answered = ApprovalAnswered(each.id, VERBS[command.verb], command.author, command.reason)
                    await self._run.recorder.record(command.agent, answered)
                    settled = True
        return settled

    async def expire(self) -> list[AgentName]:
        """Records that nobody answered the questions whose time is over; returns whose they were.

        Raises:
            JournalError: the record cannot be written.
        """
        now = self._run.runtime.clock.now()
        out: list[AgentName] = []
        async with self._settling:
            for agent in tuple(self._run.recorder.state.agents.values()):
                for each in agent.asking if agent.approvals else ():
                    if each.expires_at is not None and now >= each.expires_at:
                        await self._run.recorder.record(agent.name, ApprovalAnswered(each.id, "unanswered"))
                        out.append(AgentName(agent.name))
        return out

    def _agent(self, name: str) -> AgentState:
        return self._run.recorder.state.agents.get(name) or AgentState(name)
