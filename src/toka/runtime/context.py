"""What the runtime works with: frozen bundles of ports. `app.py` fills them; nothing in here does anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig
from toka.config.settings_tables import ChannelSink
from toka.config.settings_tools import Toolchain
from toka.core.capability import Capability
from toka.core.clock import Clock
from toka.core.ids import AgentName, RunId
from toka.core.limits import Limits
from toka.core.operator import OperatorPolicy
from toka.events.workspace import BranchReturned, WorkspaceMade
from toka.journal.journal import Journal
from toka.journal.recorder import Recorder
from toka.llm.gateway import LlmGateway
from toka.runtime.capability import CapabilityValidator
from toka.runtime.control import AgentControl
from toka.runtime.resource import ResourceManager, Scope
from toka.runtime.step import Steps
from toka.runtime.values import Values
from toka.sandbox.host import Sandbox
from toka.sandbox.level import Level
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.selftest import SelfTest
from toka.sandbox.shield import Order
from toka.tools.builtin import Toolbox
from toka.tools.tool import Mask, Tool, unmasked
from toka.workspace.checkpoints import Checkpoints

StartSandbox = Callable[[Order], Awaitable[tuple[Sandbox, SelfTest | None]]]
"""Starts a sandbox; see `Shield.start`."""

ResolveModel = Callable[[str], Awaitable[str]]
"""A model string as written -> the one to call. Raises ModelUnavailable, UsageError."""


class Hands(Protocol):
    """An agent's sandbox, started when it is first needed."""

    async def sandbox(self) -> Sandbox:
        """The running sandbox. Raises SandboxUnavailable, SandboxError."""
        ...


KeepWorkspace = Callable[[Path, ExecutionConfig], Checkpoints | None]
"""A workspace and the settings of a run -> its checkpoints; None when they are off."""


def _not_kept(workspace: Path, execution: ExecutionConfig) -> Checkpoints | None:  # noqa: ARG001 - see KeepWorkspace
    """Nothing is kept."""
    return None


def _as_it_is(value: Any) -> Any:
    """There are no keys."""
    return value


@dataclass(frozen=True, slots=True)
class Runtime:
    """The ports of one process.

    Attributes:
        state: the state directory; None when the journal is not on disk.
        journal: the record.
        clock: all time.
        random: uniform in [0, 1), for jitter.
        randbelow: a random integer in [0, n), for ids.
        gateway: all model calls.
        model: the settings' model string, for specs that name none.
        resolve_model: which model a spec's `model` means.
        start_sandbox: where hands work.
        tools: all there are; an agent has those that its grant has a use for, and each call is checked against it.
        execution: concurrency, retries, timeouts.
        capabilities: presets that settings define.
        policy: the operator's rules over what specs ask.
        run_limits: bounds of each run as a whole.
        channels: where reports to a channel also go, by its name.
        spawn: starts a coroutine that may run until the runtime closes, and no longer.
        level: how strongly `start_sandbox` confines, for the record.
        secrets: what `${secret:NAME}` stands for, by name.
        unset_secrets: why a secret that the settings name is not there, by name.
        redact: takes the operator's keys for hosts out of a JSON value: what comes from a sandbox goes through it.
        mask: the same for a text, before it is cut; also for one that was cut.
        secret_files: files that hold such keys.
        toolchains: folders of programs that the settings have sandboxes show.
        keep: keeps a workspace under an execution's settings; None = nothing is kept.
        private: makes the private workspaces of agents; None = as they are made in the state directory.
    """

    state: Path | None
    journal: Journal
    clock: Clock
    random: Callable[[], float]
    randbelow: Callable[[int], int]
    gateway: LlmGateway
    model: str
    resolve_model: ResolveModel
    start_sandbox: StartSandbox
    tools: Toolbox
    execution: ExecutionConfig
    capabilities: Mapping[str, tuple[Capability, ...]]
    policy: OperatorPolicy
    run_limits: Limits
    channels: Mapping[str, ChannelSink]
    spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
    level: Level = "full"
    secrets: Mapping[str, str] = field(default_factory=dict[str, str])
    unset_secrets: Mapping[str, str] = field(default_factory=dict[str, str])
    redact: Callable[[Any], Any] = _as_it_is
    mask: Mask = unmasked
    secret_files: tuple[Path, ...] = ()
    toolchains: tuple[Toolchain, ...] = ()
    keep: KeepWorkspace = _not_kept
    private: PrivateWorkspaces | None = None


class PrivateWorkspaces(Protocol):
    """Where agents work that have a workspace of their own."""

    async def make(self, run: RunContext, config: AgentConfig) -> WorkspaceMade:
        """Makes that of an agent, unless it is there. Raises UsageError: it cannot be made."""
        ...

    def need(self, run: RunContext, made: WorkspaceMade, agent: AgentName) -> None:
        """Raises UsageError when it is gone."""
        ...

    async def bring_back(self, run: RunContext, made: WorkspaceMade, agent: AgentName) -> BranchReturned:
        """Brings the branch of an agent that is done into the user's repository, and says what became of it."""
        ...


@dataclass(frozen=True, slots=True)
class RunContext:
    """One run in this process.

    Attributes:
        id: the run.
        workspace: the directory its agents work on, absolute.
        runtime: the process's ports.
        recorder: the run's only writer.
        resources: its limits.
        execution: settings of this run (the runtime's, as they were when the run was made).
        enabled: conditional task groups that are switched on.
        model: what was asked for on the command line; None leaves it to each spec.
        capabilities: presets that the settings defined when the run was made: a later change grants nothing.
        gateway: the runtime's, or the caller's own.
        protected: files of the workspace that no agent changes: the specs of this run.
        hidden: folders of the workspace that no agent sees: Toka's own state.
        toolchains: those of the settings when the run was made.
        checkpoints: keep the workspace as it was before steps that may change it; None = nothing is kept.
    """

    id: RunId
    workspace: Path
    runtime: Runtime
    recorder: Recorder
    resources: ResourceManager
    execution: ExecutionConfig
    enabled: tuple[str, ...]
    model: str | None
    capabilities: Mapping[str, tuple[Capability, ...]]
    gateway: LlmGateway
    protected: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    toolchains: tuple[str, ...] = ()
    checkpoints: Checkpoints | None = None


@dataclass(frozen=True, slots=True)
class AgentContext:
    """One agent of a run, while it is being executed.

    Attributes:
        run: its run.
        name: its name.
        config: its spec.
        validator: decides tool calls under its grant.
        steps: its journaled steps.
        control: its gate; its timeouts stand still while it rests.
        policy: what its sandbox lets through.
        scope: its limits.
        hands: its sandbox.
        tools: those its grant gives, by name, in the order shown to the model.
        model: the model string to call; None when no task of it needs one.
        system: its system prompt; empty when no task needs a model.
        values: what the references of its spec stand for.
        checkpoints: keep the workspace in which it works as it was before steps that may change it; None = nothing is
            kept.
    """

    run: RunContext
    name: AgentName
    config: AgentConfig
    validator: CapabilityValidator
    steps: Steps
    control: AgentControl
    policy: SandboxPolicy
    scope: Scope
    hands: Hands
    tools: Mapping[str, Tool]
    model: str | None
    system: str
    values: Values = field(default_factory=Values)
    checkpoints: Checkpoints | None = None
