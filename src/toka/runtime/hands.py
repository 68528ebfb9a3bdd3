"""An agent's hands: its sandbox, started when it is first needed, recorded, and closed with the agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

from toka.core.ids import AgentName
from toka.events.event import SandboxReady
from toka.journal.recorder import Recorder
from toka.runtime.context import StartSandbox
from toka.sandbox.host import Sandbox
from toka.sandbox.policy import SandboxPolicy


class LazyHands:
    """See Hands. One sandbox for all tasks of the agent."""

    def __init__(
        self, agent: AgentName, workspace: Path, policy: SandboxPolicy, start: StartSandbox, recorder: Recorder
    ) -> None:
        self._agent = agent
        self._workspace = workspace
        self._policy = policy
        self._start = start
        self._recorder = recorder
        self._lock = asyncio.Lock()
        self._sandbox: Sandbox | None = None

    async def sandbox(self) -> Sandbox:
        """See Hands."""
        async with self._lock:
            if self._sandbox is None:
                self._sandbox = await self._start(self._workspace, self._policy)
                notes = list(self._sandbox.notes)
                await self._recorder.record(self._agent, SandboxReady(self._policy.to_json(), notes))
            return self._sandbox

    async def close(self) -> None:
        """Ends everything that runs in the sandbox."""
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            await sandbox.close()
