"""`toka crash-test`: kills a team's run at the writes of its record, and says whether it ends as if nobody had."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from toka.cli.check import warn_of
from toka.cli.crash_case import CrashTest, Outcome, Whole, places
from toka.cli.crash_life import ENDING, SCRIPTED, Target
from toka.cli.door import ANY_PATH, read_settings
from toka.cli.output import emit, emit_json, say
from toka.cli.rows import listed
from toka.cli.run import read_team
from toka.cli.team_options import folder_of, inputs_option, workspace_option
from toka.cli.text import line_of, some, span
from toka.config.agent import AgentConfig
from toka.config.inputs import Inputs
from toka.core.catalogue import NETWORK_ACCESS
from toka.errors import UsageError
from toka.llm.script_file import read_script
from toka.orchestration.request import check_groups
from toka.sandbox.spawn import find_bwrap

SAMPLE: Final = 30
"""Kills when nobody says how many."""
TELL_S: Final = 5.0
"""How often it is said how far the test is, in seconds."""
TOLD: Final = 5
"""Differences of one kill that are printed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a test is made.

    Attributes:
        kills: how many; None: before and after every write.
        seed: draws the sample.
        as_json: print JSON lines.
    """

    kills: int | None
    seed: int
    as_json: bool


@click.command("crash-test")
@click.argument("paths", nargs=-1, required=True, type=ANY_PATH)
@workspace_option
@inputs_option
@click.option("--script", metavar="FILE", type=ANY_PATH, help="The model's answers, in place of the specs' models.")
@click.option("--enable", multiple=True, metavar="NAME", help="Switch on a conditional task group. Repeatable.")
@click.option("--every-write", is_flag=True, help="Kill before and after every write, not only at a sample.")
@click.option("--kills", type=click.IntRange(min=1), help=f"How many kills the sample has. Default: {SAMPLE}.")
@click.option("--seed", type=int, default=0, help="Draws the sample. Default: 0.")
@click.option("--network", is_flag=True, help="Also agents that may reach the network: each run does it again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one for each kill.")
def crash_test(paths: tuple[Path, ...], workspace: Path | None, inputs: Inputs, **options: Any) -> int:
    """Kill a team's run at the writes of its record, resume it, and compare the end with an undisturbed run.

    Everything is real but the model, which a script answers for, and happens in copies of the workspace. Exits 0 when
    every run ended as if it had not been killed, or asks about a step that must not run twice; else 1.
    """
    if options["every_write"] and options["kills"] is not None:
        raise UsageError("--every-write and --kills exclude each other")
    settings = read_settings(None)
    warn_of(settings.findings)
    script: Path | None = options["script"]
    if script is not None:
        read_script(script)  # before anything else is done
    configs = read_team(paths, settings, inputs)
    check_groups(configs, options["enable"])
    folder = folder_of(workspace, configs)
    target = Target(
        tuple(path.resolve() for path in paths),
        folder.resolve(),
        settings,
        None if script is None else script.resolve(),
        tuple(options["enable"]),
        inputs,
    )
    _check(target, configs, network=options["network"])
    kills = None if options["every_write"] else options["kills"] or SAMPLE
    return crash(target, Plan(kills, options["seed"], options["as_json"]))


def _check(target: Target, configs: Sequence[AgentConfig], *, network: bool) -> None:
    """Refuses what would cost money or act outside the copies, once for each kill. Raises UsageError."""
    real = [model for model in target.models(configs) if not model.startswith(SCRIPTED)]
    if real:
        raise UsageError(
            f"a crash test asks no model, and tasks of this team ask {listed(real)}: each kill would ask it again",
            hint="write down its answers and name the file: --script FILE (docs/specs.md says what is in it)",
        )
    outside = [str(c.name) for c in configs if c.grant(target.settings.capabilities).named(NETWORK_ACCESS)]
    if outside and not network:
        raise UsageError(
            f"{listed(outside)} may reach the network, which no copy stands for: each kill would act there again",
            hint="if that does no harm: --network",
        )


def crash(target: Target, plan: Plan) -> int:
    """Makes a crash test and prints what comes of it. Returns the exit code, that of a signal that ended it as well."""
    find_bwrap()  # without it nothing is copied
    try:
        with _ending(), _scratch() as scratch, closing(CrashTest(target, scratch.folder)) as test:
            whole = test.whole()
            kills = places(whole.writes, plan.kills, plan.seed)
            if not plan.as_json:
                for line in _whole_lines(whole, len(kills)):
                    say(line)
            outcomes: list[Outcome] = []
            told = time.monotonic()
            for outcome in test.kills(whole, kills):
                outcomes.append(outcome)
                scratch.kept = scratch.kept or outcome.folder is not None
                if plan.as_json:
                    emit_json(_json(outcome))
                elif not outcome.right:
                    for line in _wrong_lines(outcome):
                        say(line)
                if not plan.as_json and time.monotonic() - told >= TELL_S:
                    told = time.monotonic()
                    say(f"{len(outcomes)} of {len(kills)} done, {sum(o.right for o in outcomes)} as they should be")
            return _finish(whole, outcomes, plan)
    except _Ended as end:
        say(f"toka: ended by {end.signal.name}; the crash test came to no result")
        return 128 + end.signal


class _Ended(BaseException):
    """A signal ends the test."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)


@contextmanager
def _ending() -> Generator[None]:
    """Lets signals end what is inside as Ctrl-C does, so that it can tidy up; one that was ignored stays so."""

    def end(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # tidying up is short
        raise _Ended(number)

    before = {each: held for each in ENDING[1:] if (held := signal.getsignal(each)) != signal.SIG_IGN}
    for each in before:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each, held in before.items():
            signal.signal(each, held)


@dataclass(slots=True)
class _Scratch:
    folder: Path
    kept: bool = False


@contextmanager
def _scratch() -> Generator[_Scratch]:
    """A folder for the test, removed at its end unless something in it is to be looked at."""
    scratch = _Scratch(Path(tempfile.mkdtemp(prefix="toka-crash-")))
    try:
        yield scratch
    finally:
        if not scratch.kept:
            shutil.rmtree(scratch.folder, ignore_errors=True)


def _whole_lines(whole: Whole, kills: int) -> Iterator[str]:
    status = whole.left.status
    yield f"undisturbed: {status}, {some(whole.writes, 'write')} of the record in {span(whole.wall_s)}"
    if whole.loose:
        names = listed([line_of(fact, 80) for fact in sorted(whole.loose)])
        yield f"not compared, since two undisturbed runs differ there: {names}"
    yield f"killing it at {some(kills, 'place')}, resuming each"


def _wrong_lines(outcome: Outcome) -> Iterator[str]:
    at, before = outcome.kill
    where = f"killed {'before' if before else 'after'} write {at}" if outcome.killed else "not killed"
    for text in outcome.differences[:TOLD]:
        yield f"{where}: {line_of(text, 200)}"
    if len(outcome.differences) > TOLD:
        yield f"{where}: and {len(outcome.differences) - TOLD} more"
    for key in outcome.repeated[:TOLD]:
        yield f"{where}: the step with the key {key} was taken again, although it must not be"
    if outcome.folder is not None:
        yield f"kept: {outcome.folder}; look further: toka show @last --state {outcome.folder}/state"


def _finish(whole: Whole, outcomes: Sequence[Outcome], plan: Plan) -> int:
    killed = [o for o in outcomes if o.killed]
    asks = [o for o in killed if o.right and o.asks]
    same = [o for o in killed if o.right and not o.asks]
    repeated = sum(len(o.repeated) for o in outcomes)
    wrong = [o for o in outcomes if not o.right]
    if plan.as_json:
        emit_json(
            {
                "type": "done",
                "kills": len(killed),
                "identical": len(same),
                "asks": len(asks),
                "different": len([o for o in outcomes if o.differences]),
                "repeated": repeated,
                "again": sum(len(o.again) for o in outcomes),
                "writes": whole.writes,
                "state": whole.left.status,
                "not_compared": sorted(whole.loose),
            }
        )
        return 1 if wrong else 0
    if asks:
        tasks = listed(sorted({task for o in asks for task in o.asks}))
        say(f"{some(len(asks), 'run')} ended with a question to a person: a step that must not run twice was in flight")
        say(f"  {tasks}; `effect: idempotent` on a task says that its command may run again")
    emit(result_line(outcomes))
    return 1 if wrong else 0


def result_line(outcomes: Sequence[Outcome]) -> str:
    """What came of all kills, each of them counted once: `8 kills, 6 identical results, 1 question and 1 differing`."""
    killed = [o for o in outcomes if o.killed]
    asks = sum(o.right and bool(o.asks) for o in killed)
    wrong = sum(not o.right for o in killed)
    parts = [some(sum(o.right and not o.asks for o in killed), "identical result")]
    parts += [some(asks, "question")] if asks else []
    parts += [f"{wrong} differing"] if wrong else []
    ends = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    repeated = some(sum(len(o.repeated) for o in outcomes), "repeated effect")
    more = sum(not o.right and not o.killed for o in outcomes)
    unkilled = f", {more} differing that no kill met" if more else ""
    return f"{some(len(killed), 'kill')}, {ends}, {repeated}{unkilled}"


def _json(outcome: Outcome) -> dict[str, Any]:
    return {
        "type": "kill",
        "write": outcome.kill[0],
        "before": outcome.kill[1],
        "killed": outcome.killed,
        "identical": outcome.right and not outcome.asks,
        "differences": list(outcome.differences),
        "asks": list(outcome.asks),
        "repeated": list(outcome.repeated),
        "again": list(outcome.again),
        "folder": None if outcome.folder is None else str(outcome.folder),
    }
