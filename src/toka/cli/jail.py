"""`toka jail`: the sandbox that agents get, for a person and a command."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from toka.cli.door import ANY_PATH, read_settings, state_option
from toka.cli.level import at_level
from toka.cli.output import coloured, say
from toka.cli.render_jail import MOST, Jailed, before, ending, refused
from toka.cli.render_layers import layers, unseen, wider
from toka.cli.text import line_of, painter
from toka.config.diagnostics import closest
from toka.config.settings import Settings
from toka.core.capability import Capability, CapabilityError, Grant, normal_path
from toka.core.catalogue import ALIASES, COMMAND_EXECUTION, FILESYSTEM_READ, FILESYSTEM_WRITE, known_names
from toka.core.clock import SystemClock
from toka.core.limits import LEAST_MEMORY, Limits
from toka.core.operator import CallRule, parse_rule
from toka.core.units import UnitError, format_bytes, parse_bytes, parse_count, parse_cpu, parse_duration, parse_rate
from toka.errors import CapabilityDenied, LimitExceeded, SandboxError, UsageError
from toka.orchestration.toolchains import check_toolchains
from toka.sandbox.command import CommandResult
from toka.sandbox.egress_link import Attempt
from toka.sandbox.level import Level
from toka.sandbox.observe import Observer, watch
from toka.sandbox.policy import Place, SandboxPolicy, compile_policy
from toka.sandbox.refusal import Refusal
from toka.sandbox.shield import Order, Shield
from toka.sandbox.terminal import Streams
from toka.sandbox.trusted import named_trusted

LIMITS: Final[dict[str, tuple[str, Any]]] = {
    "memory": ("memory_bytes", parse_bytes),
    "cpu": ("cpu_cores", parse_cpu),
    "processes": ("processes", parse_count),
    "timeout": ("wall_s", parse_duration),
    "disk": ("disk_bytes", parse_bytes),
    "network": ("network_bps", parse_rate),
}
"""Kinds of --limit: the field of Limits, and what reads the value."""
GRACE_S: Final = 3.0
"""Seconds that a command gets to end after it was asked to; a second Ctrl-C within them kills it."""
LINE_S: Final = 0.05
"""Seconds that a command without a terminal gets to end its own line about a refusal."""
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_TERMINAL_VARIABLES: Final = ("TERM", "COLORTERM")


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", metavar="COMMAND [ARGS]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--grant", "grants", multiple=True, metavar="CAPABILITY", help="What else it may do. Repeatable.")
@click.option("--limit", "limits", multiple=True, metavar="KIND=VALUE", help="What it may use. Repeatable.")
@click.option("--workspace", type=ANY_PATH, help="The directory it sees as /workspace. Default: here.")
@click.option("--explain", is_flag=True, help="Say what is in force, what was refused, and what would allow it.")
@click.option("--dangerously-no-sandbox", "no_sandbox", is_flag=True, help="Run it without any confinement.")
@state_option
def jail(
    command: Sequence[str],
    grants: Sequence[str],
    limits: Sequence[str],
    workspace: Path | None,
    state: Path | None,
    **flags: bool,
) -> int:
    """Run a command in the sandbox that agents get: toka jail -- bash

    It may read the workspace and run any program of the system, and nothing else. A CAPABILITY is written as in the
    settings' [policy]: 'filesystem-write: src', 'network-access: *.example.org', python-execution. One that names
    programs, or paths to read, takes the place of that default. The settings' [policy] and sandbox hold here, too.

    KIND is memory, cpu, processes, timeout, disk or network: memory=512MB, cpu=75%, timeout=10m, network=1Mbps.

    On a terminal the command gets one of its own; Ctrl-] three times kills it. Exits as the command does.
    """
    settings = read_settings(state)
    grant = read_grant(grants, settings)
    bounds = read_limits(limits)
    place = (workspace or Path.cwd()).absolute()
    if not place.is_dir():
        raise UsageError(f"the workspace {place} is not a directory", hint="make it, or name another: --workspace DIR")
    if place.is_symlink():
        raise UsageError(f"the workspace {place} is a symbolic link", hint=f"name the folder itself: {place.resolve()}")
    check_toolchains(settings.tools.toolchains, place)
    named = [path for text in grants for path in _paths_to_write(text)]
    policy = bound_policy(grant, bounds, settings, place, named)
    for path in (*policy.reads, *policy.writes):
        if (place / path).is_symlink() or not (place / path).exists():
            raise UsageError(f"--grant: {path} is not there, or is a link", hint=f"grants are paths below {place}")
    level: Level = at_level(settings, no_sandbox=flags["no_sandbox"]).sandbox
    jailed = Jailed(tuple(command), place, policy, bounds.wall_s, settings.policy, grant, flags["explain"], level)
    for line in before(jailed, Path.home()):
        say(f"toka: {line}")
    _fill_streams()
    return asyncio.run(_Jail(jailed).run())


def read_grant(texts: Iterable[str], settings: Settings) -> Grant:
    """What the command may do, before the operator's rules.

    Raises:
        UsageError: nobody knows a capability, or an item of it is malformed.
    """
    found: list[Capability] = []
    defaults = {FILESYSTEM_READ, COMMAND_EXECUTION}
    for text in texts:
        try:
            rules = parse_rule(text, settings.capabilities, takes_away=False)
        except CapabilityError as error:
            name, known = text.partition(":")[0].strip(), {*known_names(), *settings.capabilities}
            if not name:
                raise UsageError(
                    "--grant says nothing", hint="write it as in --grant 'filesystem-write: src'"
                ) from None
            near = closest(name, known)
            hint = f"did you mean {near}?" if near else "known are " + ", ".join(known_names())
            shown = None if name in known else hint
            raise UsageError(f"--grant {line_of(text, 80)}: {error}", hint=shown) from None
        given = [rule for rule in rules if not isinstance(rule, CallRule)]
        if len(given) < len(rules):
            raise UsageError(f"--grant {line_of(text, 80)}: a rule about calls is no capability")
        names = {capability.name for capability in given}
        defaults -= names - ({FILESYSTEM_READ} if FILESYSTEM_WRITE in names else set())
        found += given
    return Grant((*found, *(Capability(name) for name in sorted(defaults))))


def _paths_to_write(text: str) -> list[str]:
    """The paths that a grant names for writing, also those that another one of them includes."""
    name, _, items = text.partition(":")
    if ALIASES.get(name.strip(), name.strip()) != FILESYSTEM_WRITE:
        return []
    return [normal_path(item.strip()) for item in items.split(",") if item.strip()]


def read_limits(texts: Iterable[str]) -> Limits:
    """What the command may use.

    Raises:
        UsageError: the kind is unknown, or the value malformed.
    """
    limits = Limits()
    for text in texts:
        kind, equals, value = text.partition("=")
        if kind not in LIMITS or not equals:
            raise UsageError(
                f"--limit {line_of(text, 80)}: write KIND=VALUE, such as memory=512MB",
                hint=f"did you mean {near}?" if (near := closest(kind, LIMITS)) else "KIND is " + ", ".join(LIMITS),
            )
        field, parse = LIMITS[kind]
        try:
            amount = parse(value)
        except UnitError as error:
            raise UsageError(f"--limit {kind}: {error}") from None
        if not amount:
            raise UsageError(f"--limit {kind}: nothing runs with {value}", hint="write more than zero")
        if kind == "memory" and amount < LEAST_MEMORY:
            raise UsageError(
                f"--limit memory: {value} is too little for a sandbox",
                hint=f"write at least {format_bytes(LEAST_MEMORY)}",
            )
        limits = limits.tighten(replace(Limits(), **{field: amount}))
    return limits


def bound_policy(
    grant: Grant, limits: Limits, settings: Settings, workspace: Path, named: Iterable[str] = ()
) -> SandboxPolicy:
    """The sandbox, as far as the operator's rules allow it. `named`: paths of which writing was granted by name.

    Raises:
        CapabilityDenied: they let no program run.
    """
    state = settings.state.absolute().parent.resolve() / settings.state.name
    real = workspace.resolve()
    hidden = (state.relative_to(real).as_posix(),) if state != real and state.is_relative_to(real) else ()
    toolchains = tuple(toolchain.path for toolchain in settings.tools.toolchains)
    around = Place((), hidden, toolchains, named_trusted(named))
    policy = compile_policy(settings.policy.bound(grant), limits, denied=settings.policy.denied, place=around)
    if policy.programs == ():
        raise CapabilityDenied(
            "the settings' [policy] lets no program run", rule="[policy]", hint="see [policy] in your config.toml"
        )
    return policy


class _Jail:
    """One command, from the start of its sandbox to the exit code."""

    def __init__(self, jailed: Jailed) -> None:
        self._jailed = jailed
        self._attempts: list[Attempt] = []
        self._refused: list[Refusal] = []
        self._already = 0
        """How many refusals have been told."""
        self._watched = False
        self._streams: Streams | None = None
        self._task: asyncio.Task[Any] | None = None
        self._asked = 0
        """The signal that told us to end, 0 = none did."""
        self._last = 0
        self._last_at = -math.inf

    async def run(self) -> int:
        """Runs it. Raises SandboxUnavailable, SandboxError."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in _ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and background jobs want it
                loop.add_signal_handler(number, self._end, number)
        try:
            result, table = await self._confined()
        except asyncio.CancelledError:
            if not self._asked:
                raise
            return 128 + self._asked
        return self._told(result, table)

    async def _confined(self) -> tuple[CommandResult, list[str]]:
        """Starts the sandbox, runs the command and closes everything; with the table of layers."""
        job = self._jailed
        order = Order(job.workspace, job.policy, ("jail", str(os.getpid())), self._attempted)
        sandbox, test = await Shield(SystemClock(), level=job.level).start(order)
        try:
            table = layers(job, sandbox, test) if job.explain else []
            self._streams = streams = Streams(sandbox.host_uid())
            observer: Observer | None = None
            try:
                if streams.terminal:
                    self._follow_terminal(streams)
                if job.level == "full":
                    observer = watch(sandbox, job.workspace, streams, self._saw, self._lose)
                env = {n: v for n in _TERMINAL_VARIABLES if (v := os.environ.get(n)) and v.isprintable()}
                timeout_s = math.inf if job.timeout_s is None else job.timeout_s
                result = await sandbox.attach(
                    job.command, streams, env=env if streams.terminal else {}, timeout_s=timeout_s
                )
                problem = await streams.finish()
                if observer is not None:
                    await observer.finish()
                    self._watched = observer.seen > 0
            finally:
                streams.close()
                if observer is not None:
                    observer.stop()
        finally:
            await sandbox.close()
        if problem:
            _tell(f"toka: not all output could be written: {problem}")
        return result, table

    @property
    def _terminal(self) -> bool:
        return self._streams is not None and self._streams.terminal

    def _saw(self, refusal: Refusal) -> None:
        """Tells a refusal after the line that the command says of it; at the end when it has a terminal."""
        self._refused.append(refusal)
        if not self._terminal and len(self._refused) <= MOST:
            asyncio.get_running_loop().call_later(LINE_S, self._tell_refusals)

    def _tell_refusals(self) -> None:
        for refusal in self._refused[self._already : MOST]:
            _tell(f"toka: {refused(self._jailed, refusal)}")
        self._already = len(self._refused)

    def _lose(self) -> None:
        """Nobody can watch any more: what would be asked about does not work any more either."""
        assert self._streams is not None
        self._tell_meanwhile("the watch over the command broke off, so it is ended")
        self._streams.lifeline.cut()

    def _attempted(self, attempt: Attempt) -> None:
        if not attempt.allowed:
            self._attempts.append(attempt)
            if self._jailed.explain:
                self._tell_meanwhile(f"the proxy refused: {line_of(attempt.reason)}")

    def _tell_meanwhile(self, text: str) -> None:
        """Says something while the command may have the terminal."""
        edge = "\r" if self._streams is not None and self._streams.is_raw else ""
        _tell(f"{edge}toka: {text}{edge}")

    def _told(self, result: CommandResult, table: Sequence[str]) -> int:
        """Says what is known about the end; returns the exit code."""
        job = self._jailed
        if result.ended == "lost":
            raise SandboxError("the sandbox died, and the command with it", hint="`toka doctor` tests the sandbox")
        killed = result.ended == "killed" or result.exit_code == -signal.SIGKILL  # by us, or by the kernel
        limited = result.ended == "timeout" or (killed and result.exceeded is not None)
        code = 126 if result.exit_code is None else result.exit_code
        code = 128 - code if code < 0 else code
        if result.ended == "killed" or self._asked:
            code = 128 + (self._asked or self._last or signal.SIGKILL)
        if limited:
            code = LimitExceeded.exit_code
        already, self._already = self._already, len(self._refused)  # a timer may still fire while the loop winds down
        for line in ending(job, result, self._attempts, self._refused, already):
            _tell(f"toka: {line}")
        if job.explain:
            paint = painter(coloured(sys.stderr))
            why = unseen(job, watched=self._watched)
            more = wider(job, paint, watched=self._watched) if code else ()
            for line in (*table, *([why] if why else ()), *more):
                _tell(line)
        return code

    def _follow_terminal(self, streams: Streams) -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            streams.leave()
            os.kill(os.getpid(), signal.SIGSTOP)

        def go_on() -> None:
            streams.enter()
            streams.resize()

        loop.add_signal_handler(signal.SIGWINCH, streams.resize)
        loop.add_signal_handler(signal.SIGTSTP, stop)
        loop.add_signal_handler(signal.SIGCONT, go_on)

    def _end(self, number: int) -> None:
        """Before the command: gives up. Then: hands the signal on, and kills when it comes again or does not help."""
        loop = asyncio.get_running_loop()
        if self._streams is None:
            self._asked = number
            assert self._task is not None
            self._task.cancel()
            return
        again = loop.time() - self._last_at < GRACE_S
        self._last, self._last_at = number, loop.time()
        if number != signal.SIGINT:
            self._asked = number
            self._streams.hurry()
            loop.call_later(GRACE_S, self._streams.lifeline.cut)
        if again:
            self._streams.hurry()
            self._streams.lifeline.cut()
        else:
            self._streams.signal(number)


def _tell(text: str) -> None:
    """As `say`; a terminal that went away takes it along."""
    try:
        if sys.stderr is not None:
            say(text)
    except OSError:
        sys.stderr = None  # or the interpreter tries to flush it at its end


def _fill_streams() -> None:
    """A closed standard stream becomes an empty one, so that nothing of ours takes its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
