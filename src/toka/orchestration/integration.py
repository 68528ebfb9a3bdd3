"""RuntimeIntegration: an orchestrator of any kind hands single agents to the runtime."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from toka.config.agent import AgentConfig
from toka.config.parts import Dependencies
from toka.core.ids import NAME, AgentName, RunId
from toka.errors import UsageError
from toka.llm.gateway import LlmGateway
from toka.orchestration.request import RunRequest
from toka.orchestration.result import RunResult
from toka.orchestration.session import RunSession
from toka.runtime.context import Runtime
from toka.runtime.progress import Progress

StartRun = Callable[[RunRequest, LlmGateway | None], Awaitable[RunSession]]
"""Makes a run that is ready to be executed."""


class RunningAgent:
    """One agent that was started by itself: a run with a single agent."""

    def __init__(self, name: AgentName, session: RunSession, task: asyncio.Task[RunResult]) -> None:
        self._name = name
        self._session = session
        self._task = task

    @property
    def run_id(self) -> RunId:
        """The run it is recorded under."""
        return self._session.context.id

    async def wait(self) -> RunResult:
        """How it ended. Cancelling the caller does not cancel the agent.

        Raises:
            JournalError: the record could not be written any more; the run can be resumed.
        """
        return await asyncio.shield(self._task)

    async def pause(self, reason: str = "") -> None:
        """No new step starts until `resume`; survives a restart."""
        await self._session.manager.pause(self._name, reason)

    async def resume(self, reason: str = "") -> None:
        """Lifts a pause."""
        await self._session.manager.resume(self._name, reason)

    async def stop(self, reason: str = "") -> None:
        """Ends the agent for good; returns when nothing of it runs any more."""
        await self._session.manager.stop(self._name, reason)

    def progress(self) -> Progress:
        """How far it is."""
        return self._session.reporter.progress(self._name)


class RuntimeIntegration:
    """Connects an orchestrator to the runtime. The caller decides the order: dependencies are not looked at."""

    def __init__(self, start: StartRun, runtime: Runtime, gateway: LlmGateway | None) -> None:
        self._start = start
        self._runtime = runtime
        self._gateway = gateway

    async def start_agent_execution(
        self, config: AgentConfig, agent_id: str | None = None, *, workspace: Path | None = None
    ) -> RunningAgent:
        """Starts one agent and returns once it is running (or has ended already).

        Args:
            config: its spec.
            agent_id: its name in the record; None keeps the spec's.
            workspace: the directory it works on; None is the current one.

        Raises:
            ConfigError, UsageError, JournalError: see OrchestrationEngine.start.
        """
        alone = config.model_copy(update={"dependencies": Dependencies()})
        if agent_id is not None and agent_id != alone.name:
            if not NAME.fullmatch(agent_id):
                raise UsageError(f"{agent_id!r} cannot be an agent's name", hint="letters, digits, '.', '_' and '-'")
            alone = alone.model_copy(update={"metadata": alone.metadata.model_copy(update={"name": agent_id})})
        session = await self._start(RunRequest([alone], workspace or Path.cwd()), self._gateway)
        task = self._runtime.spawn(_executed(session))
        running = session.manager.running(alone.name)
        waiter = asyncio.create_task(running.wait())
        await asyncio.wait({waiter, task}, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        return RunningAgent(alone.name, session, task)


class OrchestrationRuntimeExt(Protocol):
    """What an orchestrator offers to be connected to a runtime. `OrchestrationEngine` does; yours may."""

    def create_runtime_integration(self, runtime: Runtime, llm_gateway: LlmGateway | None = None) -> RuntimeIntegration:
        """Connects agents one by one to the runtime; None: the runtime's own gateway."""
        ...


async def _executed(session: RunSession) -> RunResult:
    try:
        return await session.run()
    finally:
        await session.context.recorder.close()
