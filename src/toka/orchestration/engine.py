"""OrchestrationEngine: turns specs into runs, and picks interrupted runs up again."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig
from toka.core.capability import Capability
from toka.core.ids import AgentName, RunId, new_run_id
from toka.core.limits import Limits
from toka.errors import ConfigError, JournalError, TokaError, UsageError
from toka.events.event import ExecutorAttached, RunCreated, RunStateChanged
from toka.events.lifecycle import RunStatus
from toka.journal.holder import this_holder
from toka.journal.recorder import Recorder
from toka.llm.gateway import LlmGateway
from toka.orchestration.enforce import strict_refusal, unenforced
from toka.orchestration.integration import RuntimeIntegration
from toka.orchestration.plan import make_plan
from toka.orchestration.request import RunRequest, check_groups
from toka.orchestration.result import RunResult
from toka.orchestration.session import RunSession
from toka.orchestration.settled import recorded_execution
from toka.orchestration.unmet import inside, spec_places
from toka.runtime.context import RunContext, Runtime
from toka.runtime.resource import ResourceManager
from toka.version import __version__

Ready = Callable[[RunSession], Awaitable[None]]
"""Raises TokaError when a session cannot go on here."""


class OrchestrationEngine:
    """A session over many agents: the process's door to running teams."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def create_runtime_integration(self, runtime: Runtime, llm_gateway: LlmGateway | None = None) -> RuntimeIntegration:
        """Connects agents one by one to the runtime; see RuntimeIntegration. None: the runtime's own gateway."""
        return RuntimeIntegration(self.start, runtime, llm_gateway)

    def check(self, request: RunRequest) -> dict[AgentName, AgentConfig]:
        """What can be said of a request without the machine: its agents by name.

        Raises:
            ConfigError: there are no agents, or two have one name.
            UsageError: the workspace is no directory, or an enabled group exists nowhere.
            MissingError: an agent asks for strict limits that can only be best effort here.
        """
        configs = _unique(request.configs)
        for config in request.configs:
            _check_tasks(config, request.enabled)
            if config.security.enforcement == "strict" and (gaps := unenforced(config, level=self._runtime.level)):
                raise strict_refusal(config, gaps)
        check_groups(request.configs, request.enabled)
        if not request.workspace.is_dir():
            raise UsageError(f"workspace {request.workspace} is not a directory", hint="name one with --workspace DIR")
        return configs

    async def start(self, request: RunRequest, gateway: LlmGateway | None = None) -> RunSession:
        """Makes a run; its first records are durable when this returns. Nothing runs before `RunSession.run`.

        Raises:
            ConfigError: dependencies are missing or circular, or there are no agents.
            UsageError: the workspace is no directory, or an enabled group exists nowhere.
            JournalError: the record cannot be written.
        """
        configs = self.check(request)
        plan = make_plan(request.configs, enabled=request.enabled, capabilities=self._runtime.capabilities)
        runtime = self._runtime
        run = new_run_id(runtime.clock.now(), runtime.randbelow)
        specs = json.dumps([c.to_json() for c in configs.values()], ensure_ascii=False, separators=(",", ":"))
        protected = list(inside(request.workspace, spec_places(_sources(configs))))
        lease = await runtime.journal.acquire(run)
        recorder = Recorder(runtime.journal, lease)
        created = RunCreated(
            agents=list(configs),
            specs=await recorder.put_blob(specs.encode()),
            workspace=str(request.workspace.resolve()),
            enabled=list(request.enabled),
            model=request.model,
            options={**request.options, "execution": asdict(runtime.execution), **_recorded(runtime, protected)},
            toka=__version__,
        )
        me = this_holder()
        attached = ExecutorAttached(me.host, me.pid, lease.token, runtime.level, _rules(runtime))
        await recorder.record("", created, attached, RunStateChanged(RunStatus.RUNNING.value))
        context = self._context(run, created, recorder, runtime.execution, gateway)
        return RunSession(context, plan, configs)

    async def resume(
        self, run: RunId, *, author: str = "", reason: str = "", agent: str | None = "", ready: Ready | None = None
    ) -> RunSession:
        """Takes a run over that no live process executes.

        Args:
            run: the run.
            author, reason: who asks for it, and why.
            agent: whose holds of a person and of health `RunSession.run` lifts, with its instances; empty: those of
                all; None: nobody's, for a session that only settles.
            ready: looks at the session before anything is recorded; what it raises leaves the run as it stands.

        Raises:
            RunBusy: a live process executes it.
            UsageError: it has ended, or its workspace is gone.
            TokaError: what `ready` raises.
            JournalError: its record cannot be read or written.
        """
        runtime = self._runtime
        lease = await runtime.journal.acquire(run)
        try:
            recorder = Recorder(runtime.journal, lease)
            if agent is not None:
                _need_workspace(recorder.state.created)
            session = await self._attached(recorder, ready)
            if agent is not None:
                session.lifting = (author, reason, agent)
        except TokaError:
            runtime.journal.on_commit(run, None)
            await runtime.journal.release(lease)
            raise
        return session

    async def reopened(self, run: RunId) -> Recorder:
        """The record of a run that no live process executes, for something that is noted in it; close it afterwards.

        Raises:
            RunBusy: a live process executes it.
            JournalError: its record cannot be read or written.
        """
        return Recorder(self._runtime.journal, await self._runtime.journal.acquire(run))

    async def _attached(self, recorder: Recorder, ready: Ready | None) -> RunSession:
        """A session that goes on with what is recorded."""
        lease, created = recorder.lease, recorder.state.created
        run = lease.run
        if created is None:
            raise JournalError(f"run {run} has no first record", hint="it was killed before it began; start it again")
        asked = self._runtime.journal.commands(run, max(recorder.state.commands, default=0))
        if recorder.state.ended and all(command.verb != "retry" for command in asked):
            raise UsageError(f"run {run} has ended: {recorder.state.status.value}")
        specs = json.loads(recorder.blob(created.specs))
        configs = _unique([AgentConfig.from_json(s) for s in specs])
        plan = make_plan(configs.values(), enabled=created.enabled, capabilities=_capabilities(created))
        session = RunSession(self._context(run, created, recorder, recorded_execution(created), None), plan, configs)
        if ready is not None:
            await ready(session)
        me = this_holder()
        attached = ExecutorAttached(me.host, me.pid, lease.token, self._runtime.level, _rules(self._runtime))
        await recorder.record("", attached, RunStateChanged(RunStatus.RUNNING.value, "resumed"))
        return session

    async def run(self, request: RunRequest) -> RunResult:
        """Makes a run and executes it to its end: `start`, then `RunSession.run`."""
        session = await self.start(request)
        try:
            return await session.run()
        finally:
            await session.context.recorder.close()

    def _context(
        self,
        run: RunId,
        created: RunCreated,
        recorder: Recorder,
        execution: ExecutionConfig,
        gateway: LlmGateway | None,
    ) -> RunContext:
        workspace = Path(created.workspace)
        resources = ResourceManager(self._runtime.run_limits)
        for agent in recorder.state.agents.values():  # also of those that have ended: the run's limits are over all
            calls = agent.tool_calls + agent.denied
            resources.agent(agent.name, Limits(), used=agent.usage, cost_usd=agent.cost_usd, tool_calls=calls)
        return RunContext(
            id=run,
            workspace=workspace,
            runtime=self._runtime,
            recorder=recorder,
            resources=resources,
            execution=execution,
            enabled=tuple(created.enabled),
            model=created.model,
            capabilities=_capabilities(created),
            gateway=gateway or self._runtime.gateway,
            toolchains=tuple(created.options.get("toolchains") or ()),
            protected=tuple(created.options.get("protected") or ()),
            checkpoints=self._runtime.keep(workspace, execution),
            hidden=inside(workspace, [self._runtime.state] if self._runtime.state else []),
        )


def _sources(configs: Mapping[AgentName, AgentConfig]) -> list[Path]:
    """The files of the specs, as far as they are known."""
    return list(dict.fromkeys(file for config in configs.values() for file in config.origin.files))


def _need_workspace(created: RunCreated | None) -> None:
    if created is not None and not Path(created.workspace).is_dir():
        raise UsageError(
            f"the workspace {created.workspace} is gone",
            hint="put it back and resume the run again; nothing of the record is lost",
        )


def _check_tasks(config: AgentConfig, enabled: Collection[str]) -> None:
    tasks = config.task_list(enabled)
    known = {task.id for task in tasks}
    for task in tasks:
        for needed in task.depends_on:
            if needed not in known:
                raise UsageError(
                    f"agent {config.name}: task {task.id} waits for {needed}, which is not among the tasks of this run",
                    hint="switch its group on with --enable NAME, or remove it from depends_on",
                )


def _recorded(runtime: Runtime, protected: list[str]) -> dict[str, Any]:
    """What a resume takes from the record, so that a change of settings, or of place, grants nothing."""
    presets = {name: [c.to_json() for c in each] for name, each in runtime.capabilities.items()}
    toolchains = [toolchain.path for toolchain in runtime.toolchains]
    found = (("capabilities", presets), ("toolchains", toolchains), ("protected", protected))
    return {k: v for k, v in found if v}


def _rules(runtime: Runtime) -> dict[str, Any]:
    """What a resume takes from its own settings: recorded for whoever decides the run once more."""
    limits = {kind: bound for kind, bound in asdict(runtime.run_limits).items() if bound is not None}
    return {"policy": runtime.policy.to_json(), "limits": limits}


def _capabilities(created: RunCreated) -> dict[str, tuple[Capability, ...]]:
    """The presets as they were when the run was made: whoever resumes it elsewhere changes no grant."""
    recorded: dict[str, list[dict[str, Any]]] = created.options.get("capabilities") or {}
    return {name: tuple(Capability.from_json(c) for c in each) for name, each in recorded.items()}


def _unique(configs: Sequence[AgentConfig]) -> dict[AgentName, AgentConfig]:
    if not configs:
        raise ConfigError("there is no agent to run", hint="name a spec file, or a directory that holds some")
    out: dict[AgentName, AgentConfig] = {}
    for config in configs:
        if config.name in out:
            raise ConfigError(f"two agents are called {config.name}", hint="rename one: metadata.name")
        out[config.name] = config
    return out
