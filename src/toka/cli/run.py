"""`toka run` and `toka resume`."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from toka.app import open_runtime, read_settings, submit_command
from toka.cli.attach import Display, already_ended, author, follow, reason_of
from toka.cli.check import check_server, check_specs, warn_of
from toka.cli.door import ANY_PATH, again, folded, open_run
from toka.cli.ids import match_name
from toka.cli.level import at_level
from toka.cli.live import Lines, LiveView
from toka.cli.output import EXIT_BROKEN_PIPE, ReaderGone, emit_json, live, say
from toka.cli.rows import listed
from toka.cli.stream import EventPrinter
from toka.cli.summary import Details, details_of, done_json, summary_lines
from toka.cli.tally import is_scripted
from toka.cli.team_options import folder_of, inputs_option, workspace_option
from toka.config.agent import AgentConfig
from toka.config.inputs import Inputs
from toka.config.settings import Settings
from toka.core.ids import RunId
from toka.errors import ConfigError, JournalError, RunBusy, TokaError, UsageError
from toka.events.lifecycle import RETRIED, RunStatus
from toka.events.state import RunState, with_unbegun
from toka.journal.mounted import network_filesystem
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.preflight import preflight
from toka.orchestration.request import RunRequest
from toka.orchestration.result import RunResult
from toka.orchestration.session import RunSession
from toka.runtime.context import Runtime
from toka.sandbox.level import NO_SANDBOX

LAST_LINE_S: Final = 1.0
"""How long the last line may take to reach its reader when a second signal ends the process."""
FILES: Final = 16_384
"""Files and connections that this process may have open at one time, where the system allows as many."""
NO_SANDBOX_OPTION: Final = click.option(
    "--dangerously-no-sandbox", "no_sandbox", is_flag=True, help="Run without any confinement. Recorded."
)
"""Only a person can say it, and each time anew: no setting and no variable stands for it."""


@click.command()
@click.argument("paths", nargs=-1, required=True, type=ANY_PATH)
@workspace_option
@inputs_option
@click.option("--state", type=ANY_PATH, help="Where runs are recorded.")
@click.option("--model", help="PROVIDER:MODEL, auto, or scripted:FILE; overrides the specs.")
@click.option("--base-url", help="A server that speaks the provider's protocol.")
@click.option("--deadline", metavar="DURATION", help="End the run when it takes longer, interruptions included: 2h.")
@click.option("--enable", multiple=True, metavar="NAME", help="Switch on a conditional task group. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.option("--quiet", "-q", is_flag=True, help="Print only errors and the end.")
@NO_SANDBOX_OPTION
def run(
    paths: Sequence[Path],
    workspace: Path | None,
    state: Path | None,
    model: str | None,
    base_url: str | None,
    enable: Sequence[str],
    **flags: Any,
) -> int:
    """Run the agents of the given team files, specs and directories of them as one team.

    Every step is recorded: a run that is interrupted goes on with `toka resume`.

    Exits 0 when all is done, 1 when an agent failed, 3 for a spec with errors, 4 when something is missing, 6 when a
    limit was met, 7 while it waits for a person, 8 when a person stopped it; 130 and 143 after a signal.

    How a script looks, `toka explain TK6101` says.
    """
    model = absolute_model(model) if model else None
    settings = read_settings(
        {"state": _text(state), "model": model, "base_url": base_url, "execution.run_timeout": flags["deadline"]}
    )
    warn_of(settings.findings)
    configs = read_team(paths, settings, flags["inputs"])
    check_server(settings, configs, model)
    options = {"model": absolute_model(settings.model), "base_url": settings.base_url}
    request = RunRequest(configs, folder_of(workspace, configs), tuple(enable), model, options)
    shown = Display(flags["as_json"], flags["quiet"], again(state))
    return asyncio.run(execute(settings, request, shown, no_sandbox=flags["no_sandbox"]))


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("agent", required=False)
@click.option("--state", type=ANY_PATH, help="Where runs are recorded.")
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
@click.option("--quiet", "-q", is_flag=True, help="Print only errors and the end.")
@NO_SANDBOX_OPTION
def resume(run_id: str, agent: str | None, state: Path | None, reason: str, **flags: bool) -> int:
    """Go on with a run: lift a pause and, when no process executes it, execute it here; else follow it.

    RUN is an id, the beginning of one, or @last. With AGENT, the pause of that agent alone is lifted.
    """
    settings = read_settings({"state": _text(state)})
    warn_of(settings.findings)
    reason_of(reason)
    shown = Display(flags["as_json"], flags["quiet"], again(state))
    while True:
        with open_run(state, run_id) as (reader, run):
            recorded = with_unbegun(folded(run, reader.read(run)), agent or "")
            if recorded.ended:
                return already_ended(reader, recorded, shown)
            only = match_name(recorded.agents, agent) if agent is not None else ""
            if only and recorded.agents[only].ended:
                raise UsageError(f"agent {only} has ended ({recorded.agents[only].status.value}); it cannot go on")
            lease = reader.lease(run)
            if lease is not None and lease.alive:
                asyncio.run(submit_command(settings, run, "resume", agent=only, by=(author(), reason)))
                return follow(reader, recorded, lease, shown)
        asked = (reason, only, flags["no_sandbox"])
        code = asyncio.run(go_on(as_recorded(settings, recorded), run, asked, shown))
        if code is not None:
            return code
        run_id = run  # another process was faster; by now @last may mean another run


def as_recorded(settings: Settings, run: RunState) -> Settings:
    """The settings to go on with: the model and the server are those that the run was made with."""
    options = run.created.options if run.created else {}
    model, base_url = options.get("model"), options.get("base_url")
    return replace(settings, model=model or settings.model, base_url=base_url or settings.base_url)


def absolute_model(model: str) -> str:
    """A model string that means the same from everywhere: a resume may come from another directory."""
    kind, colon, path = model.partition(":")
    return f"{kind}:{Path(path).absolute()}" if colon and kind == "scripted" else model


def read_team(paths: Sequence[Path], settings: Settings, inputs: Inputs | None = None) -> tuple[AgentConfig, ...]:
    """The agents at `paths`; warnings are printed. Raises ConfigError with every finding."""
    configs, findings = check_specs(paths, settings, inputs)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise ConfigError(f"{count}; nothing was started", findings)
    for finding in findings:
        if finding.severity == "warning":
            say(finding.text)
    return tuple(c.model_copy(update={"model": absolute_model(c.model)}) if c.model else c for c in configs)


def allow_connections() -> None:
    """Raises this process's own limit of open files to what the system allows it: one per agent that waits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def leave_libraries_alone() -> None:
    """Takes what is loaded by now out of the garbage collector's rounds: libraries stay until the process ends."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _runtime(settings: Settings, *, no_sandbox: bool) -> AsyncGenerator[Runtime]:
    """The runtime of this process; without sandboxes only if a person said so, who is told what that means."""
    async with open_runtime(at_level(settings, no_sandbox=no_sandbox)) as runtime:
        yield runtime


def _warn_unsandboxed(settings: Settings, configs: Iterable[AgentConfig]) -> None:
    """Says which agents run without a sandbox because their specs ask for that and the settings allow it."""
    names = [str(c.name) for c in configs if not c.security.sandbox]
    if names and settings.allow_unsandboxed:
        say(f"toka: {NO_SANDBOX}: {listed(names)} (`sandbox: false`, and allow_unsandboxed is set)")


async def execute(settings: Settings, request: RunRequest, shown: Display, *, no_sandbox: bool = False) -> int:
    """Makes a run, executes it to its end, prints what happens. Returns the exit code."""
    allow_connections()
    async with _runtime(settings, no_sandbox=no_sandbox) as runtime:
        engine = OrchestrationEngine(runtime)
        engine.check(request)
        _warn_unsandboxed(settings, request.configs)
        for warning in await preflight(runtime, request):
            say(f"toka: {warning}")
        if settings.state.resolve().is_relative_to(request.workspace.resolve()):
            say("toka: the state directory lies inside the workspace: who may write there can change the record")
        if kind := network_filesystem(settings.state):
            say(f"toka: the state directory lies on {kind}, a network file system: no other machine may use it now")
        leave_libraries_alone()
        session = await engine.start(request)
        return await _executed(settings, session, shown, after=0)


async def go_on(settings: Settings, run: RunId, asked: tuple[str, str, bool], shown: Display) -> int | None:
    """Goes on with a run. None: another process was faster, and has it now or has brought it to its end.

    `asked` is why, whose pause is lifted (empty: everybody's), and whether without a sandbox.
    """
    reason, only, no_sandbox = asked
    taken: list[RunSession] = []

    async def ready(session: RunSession) -> None:
        taken.append(session)
        await _check_rest(session)

    allow_connections()
    async with _runtime(settings, no_sandbox=no_sandbox) as runtime:
        try:
            after = max((r.id for r in runtime.journal.read(run)), default=0)
            engine = OrchestrationEngine(runtime)
            session = await engine.resume(run, author=author(), reason=reason, agent=only, ready=ready)
        except RunBusy:
            return None
        except UsageError:
            if not taken and folded(run, runtime.journal.read(run)).ended:
                return None
            raise
        _warn_unsandboxed(settings, session.plan.graph.configs.values())
        return await _executed(settings, session, shown, after=after)


async def _check_rest(session: RunSession) -> None:
    """Checks what the agents that have not ended need of this machine, before one of them goes on."""
    run, states = session.context, session.context.recorder.state.agents
    asked = run.runtime.journal.commands(run.id, max(run.recorder.state.commands, default=0))
    again = {command.agent for command in asked if command.verb == "retry"}
    tried = {n for n, s in states.items() if s.status in RETRIED and again & {"", n, n.partition("[")[0]}}
    configs = session.plan.graph.configs
    rest = [config for name, config in configs.items() if name in tried or not states[name].ended]
    started = {name for name, state in states.items() if state.started_at is not None}
    request = RunRequest(rest, run.workspace, run.enabled, run.model, toolchains=run.toolchains)
    for warning in await preflight(run.runtime, request, started):
        say(f"toka: {warning}")
    leave_libraries_alone()


async def _executed(settings: Settings, session: RunSession, shown: Display, *, after: int) -> int:
    """Executes a session with its views and signals."""
    run = session.context.id
    loop = asyncio.get_running_loop()
    signals = _Signals(session, run, shown)
    printer: EventPrinter | None = None
    broken: TokaError | None = None
    view: Lines | LiveView | None = None
    if shown.as_json:
        emit_json(_launch(settings, session))

        def on_broken() -> None:
            loop.call_soon_threadsafe(signals.broken)

        printer = signals.printer = EventPrinter(settings.state, run, after, on_broken)
        notify = printer.notify
        session.context.recorder.subscribe(lambda _: notify())
    elif not shown.quiet:
        view = LiveView() if live() else Lines()
        session.reporter.subscribe(view.on_event)
        say(f"run {run} in {session.context.workspace}")
        if is_scripted(session.models):
            say("SCRIPTED: a script answers in place of a model")
        view.start(session)
    try:
        with signals:
            result = await session.run()
    except TokaError as e:
        broken = e
        result = RunResult(run, RunStatus.INTERRUPTED, session.context.recorder.state, e.message)
    finally:
        if view is not None:
            view.stop()
        if printer is not None:
            await asyncio.to_thread(printer.close)
            if printer.failure is not None:
                say(f"toka: not all events were printed: {printer.failure.message}")
        for problem in session.problems:
            say(f"toka: {problem}")
        with suppress(JournalError):  # a lease that cannot be given back runs out
            await session.context.recorder.close()
    if broken is not None:
        if shown.as_json:
            emit_json(done_json(result, Details()))
        raise broken
    details = details_of(session.context.runtime.journal, run, result.state)
    return _finish(result, signals, shown, details)


def _finish(result: RunResult, signals: _Signals, shown: Display, details: Details) -> int:
    """The last lines, and the exit code."""
    if signals.is_broken:
        return EXIT_BROKEN_PIPE
    if shown.as_json:
        emit_json(done_json(result, details))
    else:
        for line in summary_lines(result, options=shown.options, details=details):
            say(line)
    if result.status is RunStatus.INTERRUPTED:
        say(f"toka: interrupted; nothing recorded is lost. Go on with: toka resume {result.run}{shown.options}")
        return 128 + signals.received
    return result.exit_code


class _Signals:
    """First SIGINT or SIGTERM: graceful shutdown. Second: now."""

    def __init__(self, session: RunSession, run: RunId, shown: Display) -> None:
        self._session = session
        self._run = run
        self._shown = shown
        self._task: asyncio.Task[None] | None = None
        self.received = 0
        self.is_broken = False
        self.printer: EventPrinter | None = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    def broken(self) -> None:
        """Whoever read our output went away: stop as if asked to."""
        self.is_broken = True
        self._shut_down(signal.SIGPIPE)

    def _on_signal(self, number: int) -> None:
        if self.received:
            say(f"toka: ended at once. Go on with: toka resume {self._run}{self._shown.options}")
            if self.printer is not None:
                last = threading.Thread(target=self._last_line, args=(self.printer,), daemon=True)
                last.start()
                last.join(LAST_LINE_S)  # a reader that does not read cannot hold the end up
            os._exit(128 + number)  # sandboxes die with this process; the record is durable up to the last commit
        say("toka: finishing the steps in flight; press Ctrl-C again to end at once")
        self._shut_down(number)

    def _last_line(self, printer: EventPrinter) -> None:
        """The `done` record of a run that is left as it stands."""
        printer.stop_at_once(LAST_LINE_S)
        state = self._session.context.recorder.state
        result = RunResult(self._run, RunStatus.INTERRUPTED, state, "ended at once by a second signal")
        with suppress(ReaderGone):
            emit_json(done_json(result, Details(models=self._session.models)))

    def _shut_down(self, number: int) -> None:
        self.received = self.received or number
        if self._task is None:
            self._task = asyncio.create_task(self._session.shutdown())


def _launch(settings: Settings, session: RunSession) -> dict[str, Any]:
    return {
        "type": "launch",
        "run_id": session.context.id,
        "state_dir": str(settings.state),
        "workspace": str(session.context.workspace),
        "agents": list(session.plan.graph.order),
        "pid": os.getpid(),
        "scripted": is_scripted(session.models),
        "sandbox": session.context.runtime.level,
    }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
