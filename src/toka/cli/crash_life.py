"""One process's life in a crash test: it begins a run or goes on with it, and is killed at a write of the journal.

What is done outside Toka's record is noted in a file of its own: each command that is started and each model call, by
the key of its step. No crash takes a line of it away, since a killed process leaves what it wrote.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn, cast

from toka.app import Parts, open_runtime
from toka.cli.check import check_specs
from toka.cli.run import absolute_model
from toka.config.agent import AgentConfig
from toka.config.inputs import Inputs
from toka.config.settings import Settings
from toka.core.clock import Clock, SystemClock
from toka.errors import TokaError
from toka.llm.model import Model, ModelReply, ModelRequest
from toka.llm.scripted import ScriptedModel
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.preflight import preflight
from toka.orchestration.request import RunRequest
from toka.runtime.context import Runtime, StartSandbox
from toka.sandbox import kernel
from toka.sandbox.command import CommandResult
from toka.sandbox.host import Sandbox
from toka.sandbox.selftest import SelfTest
from toka.sandbox.shield import Order
from toka.testing import DyingJournal, dying_journal

WORK: Final = "work"
STATE: Final = "state"
SCRIPTED: Final = "scripted:"
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a test."""
NEVER: Final = (0, False)
"""The kill of a process that is not killed."""

Kill = tuple[int, bool]
"""At which write of the journal, from 1, and whether before it rather than as soon as it is durable."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is tested.

    Attributes:
        paths: its specs, absolute.
        workspace: the directory whose copies the agents work on, absolute.
        settings: of this command.
        script: the model's answers, for all agents; None: each spec names its own.
        enabled: conditional task groups that are switched on.
        inputs: values of its inputs; None: none were given.
    """

    paths: tuple[Path, ...]
    workspace: Path
    settings: Settings
    script: Path | None = None
    enabled: tuple[str, ...] = ()
    inputs: Inputs | None = None

    @property
    def model(self) -> str | None:
        """The model of all agents; None when each spec names its own."""
        return None if self.script is None else f"{SCRIPTED}{self.script}"

    def within(self, folder: Path) -> list[Path]:
        """The specs, those that lie in the workspace in its copy there: agents find them protected as usual."""
        inside = (p.relative_to(self.workspace) if p.is_relative_to(self.workspace) else None for p in self.paths)
        return [p if at is None else folder / WORK / at for p, at in zip(self.paths, inside, strict=True)]

    def configs(self, folder: Path) -> tuple[AgentConfig, ...]:
        """Its agents. Errors in the specs were told before: they are not looked at again."""
        configs, _ = check_specs(self.within(folder), self.settings, self.inputs)
        return tuple(c.model_copy(update={"model": absolute_model(c.model)}) if c.model else c for c in configs)

    def models(self, configs: Sequence[AgentConfig]) -> list[str]:
        """The model strings that its tasks ask for, each once."""
        asking = [c for c in configs if any(task.run is None for task in c.task_list(self.enabled))]
        return list(dict.fromkeys(self.model or c.model or self.settings.model for c in asking))


class NoWait:
    """A clock by which scripted answers come at once; all else is the machine's."""

    def __init__(self) -> None:
        """Takes the machine's clock."""
        self._clock = SystemClock()

    def __getattr__(self, name: str) -> Any:
        """See Clock."""
        return getattr(self._clock, name)

    async def sleep(self, seconds: float) -> None:  # noqa: ARG002
        """Lets others run, and no more."""
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class NotedModel:
    """Answers from the script, after it noted who asked."""

    inner: ScriptedModel
    ledger: Path

    @property
    def name(self) -> str:
        """See Model."""
        return self.inner.name

    async def request(self, request: ModelRequest) -> ModelReply:
        """See Model."""
        note(self.ledger, f"ask {request.key}")
        return await self.inner.request(request)

    async def aclose(self) -> None:
        """See Model."""


@dataclass(slots=True)
class NotedSandbox:
    """A sandbox that notes each command before it is started."""

    inner: Sandbox
    ledger: Path
    keys: set[str] = field(default_factory=set[str])

    async def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **how: Any) -> CommandResult:
        """See Sandbox. A step of several commands is noted once for each process that takes it."""
        key = (env or {}).get("TOKA_IDEMPOTENCY_KEY")
        if key is not None and key not in self.keys:
            self.keys.add(key)
            note(self.ledger, f"run {key}")
        return await self.inner.run(argv, env=env, **how)

    def __getattr__(self, name: str) -> Any:
        """See Sandbox."""
        return getattr(self.inner, name)


def note(ledger: Path, line: str) -> None:
    """Adds a line in one write."""
    descriptor = os.open(ledger, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def begin_life(target: Target, folder: Path, number: int, kill: Kill) -> int:
    """Starts a process that begins the run of a folder, or goes on with it, and is killed where `kill` says.

    Before its end it writes `life-NUMBER.json`: {"writes", "exit"}, or {"error", "hint", "code"}. What it did outside
    is in `ledger-NUMBER`, what it printed in `log-NUMBER`. Not to be called while this process has threads.

    Returns:
        Its process id.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # what is raised in the hooks of a fork gets lost
    pid = os.fork()
    if not pid:
        _child(target, folder, number, kill)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return pid


def _child(target: Target, folder: Path, number: int, kill: Kill) -> NoReturn:
    """The process itself. Nothing gets past its end."""
    code = 70
    try:
        for each in ENDING:  # whoever started it ends it
            signal.signal(each, signal.SIG_IGN if each == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        os.setsid()
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # also when that one is killed
        log = os.open(folder / f"log-{number}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        said = asyncio.run(_live(target, folder, number, kill))
        (folder / f"life-{number}.json").write_text(json.dumps(said))
        code = 0
    except BaseException:  # noqa: BLE001 - it goes to the log, and the exit code says so
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


async def _live(target: Target, folder: Path, number: int, kill: Kill) -> dict[str, Any]:
    ledger = folder / f"ledger-{number}"
    journals: list[DyingJournal] = []

    def journal(state: Path, clock: Clock) -> DyingJournal:
        journals.append(dying_journal(state, clock, kill[0], before=kill[1]))
        return journals[0]

    settings = replace(target.settings, state=folder / STATE, channels={})  # what goes out would go out each time
    configs = target.configs(folder)
    clock = cast("Clock", NoWait())
    models: dict[str, Model] = {
        name: NotedModel(ScriptedModel.from_file(Path(name.removeprefix(SCRIPTED)), clock=clock), ledger)
        for name in target.models(configs)
    }
    try:
        async with open_runtime(settings, Parts(journal=journal, models=models)) as runtime:
            noted = replace(runtime, start_sandbox=_noted(runtime.start_sandbox, ledger))
            code = await _run(noted, target, folder, configs)
        return {"writes": journals[0].writes, "exit": code}
    except TokaError as e:
        return {"error": e.message, "hint": e.hint, "code": e.exit_code}


async def _run(runtime: Runtime, target: Target, folder: Path, configs: Sequence[AgentConfig]) -> int:
    engine = OrchestrationEngine(runtime)
    known = runtime.journal.runs()
    if known:
        session = await engine.resume(known[0], author="crash-test")
    else:
        request = RunRequest(configs, folder / WORK, target.enabled, target.model)
        engine.check(request)
        await preflight(runtime, request)
        session = await engine.start(request)
    try:
        return (await session.run()).exit_code
    finally:
        await session.context.recorder.close()


def _noted(start: StartSandbox, ledger: Path) -> StartSandbox:
    async def started(order: Order) -> tuple[Sandbox, SelfTest | None]:
        sandbox, test = await start(order)
        return cast("Sandbox", NotedSandbox(sandbox, ledger)), test

    return started
