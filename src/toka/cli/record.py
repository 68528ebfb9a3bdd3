"""`toka events` and `toka audit`: the record itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import click

from toka.cli.door import ANY_PATH, again, agents_of, open_journal, open_run, pages, read_settings, state_option
from toka.cli.follow import Follower, end_text
from toka.cli.heads import CAN, Noted, compare, heads_json, read_heads
from toka.cli.ids import find_run, match_name
from toka.cli.output import emit, say
from toka.cli.render_event import event_line
from toka.cli.tally import is_scripted
from toka.cli.text import json_line, line_of, some
from toka.cli.view import models_of
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import JournalCorrupt, JournalError, NotFound, UsageError
from toka.events.event import KINDS
from toka.events.record import Record, payload
from toka.journal.audit import Problem, Verdict, verify
from toka.journal.database import FILE, failure
from toka.journal.sqlite import SqliteReader


@click.command()
@click.argument("run_id", metavar="RUN")
@state_option
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended or nobody executes it.")
@click.option("--after", metavar="ID", type=click.IntRange(min=0), default=0, help="Only events with a greater id.")
@click.option("--agent", metavar="NAME", help="Only events of one agent.")
@click.option("--kind", metavar="KIND", help="Only events of one kind, such as task_state.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def events(run_id: str, state: Path | None, agent: str | None, kind: str | None, **how: int) -> int:
    """Print the recorded events of a run.

    RUN is an id, the beginning of one, or @last. With --follow, exits 0 when the run has ended or waits for a person,
    75 when the process that executed it is gone.
    """
    with open_run(state, run_id) as (reader, run):
        wanted = _filter(reader, run, agent, kind)
        show: Callable[[Record], str] = (lambda r: json_line(r.to_json())) if how["as_json"] else event_line
        follower = Follower(reader, run, how["after"])
        asked, scripted = agents_of(reader, run)[1], False
        for page in follower.follow() if how["follow"] else follower.page():
            if not scripted and is_scripted(models_of(asked, page)):
                scripted = True
                say("SCRIPTED: a script answered in place of a model")
            if lines := [show(record) for record in page if wanted(record)]:
                emit("\n".join(lines))
        if how["follow"]:
            say(end_text(run, follower, again(state)))
        return JournalError.exit_code if follower.end == "gone" else 0


def _filter(reader: SqliteReader, run: RunId, agent: str | None, kind: str | None) -> Callable[[Record], bool]:
    stream = None
    if agent is not None:
        stream = match_name(set(agents_of(reader, run)[0]), agent)
    if kind is not None:
        kind = match_name(KINDS, kind, "kind")

    def wanted(record: Record) -> bool:
        return stream in (None, record.stream) and kind in (None, payload(record.event)[0])

    return wanted


@click.group(epilog=CAN)
def audit() -> None:
    """Verify runs' records, and note their heads elsewhere."""


@audit.command("verify")
@click.argument("run_id", metavar="[RUN]", required=False)
@state_option
@click.option("--all", "every", is_flag=True, help="Verify every run.")
@click.option("--heads", metavar="FILE", type=ANY_PATH, help="Compare with heads noted before.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one for each run.")
def audit_verify(run_id: str | None, state: Path | None, every: bool, heads: Path | None, as_json: bool) -> int:  # noqa: FBT001
    """Verify the hash chains of a run, or of all runs; names the first bad record of each stream.

    The database file as a whole is looked at, too.

    Exits 0 when nothing is wrong, else 70.
    """
    noted = _read_noted(heads)
    if noted is not None and run_id is None and not every:
        run_id = noted.run
    if every == (run_id is not None):
        raise UsageError("name one run, or write --all")
    settings = read_settings(state)
    bad = False
    with open_journal(settings) as reader:
        if reader is None:
            raise NotFound(f"no runs are recorded in {settings.state}")
        runs = reader.runs() if every else [find_run(reader, run_id or "")]
        if noted is not None and noted.run not in runs:
            raise UsageError(f"the noted heads are of run {line_of(noted.run, 60)}, which is not verified here")
        for run in runs:
            verdict = _verified(reader, run, noted if noted is not None and noted.run == run else None)
            bad = bad or bool(verdict.problems)
            emit(json_line(_verdict_json(verdict)) if as_json else "\n".join(_verdict_lines(verdict)))
            if not as_json and not verdict.problems and _is_scripted(reader, run):
                say(f"SCRIPTED: in run {run} a script answered in place of a model")
        if damage := reader.damage():
            bad = True
            emit(json_line({"type": "audit_file", "ok": False, "what": damage}) if as_json else f"{FILE}: {damage}")
            say(f"help: copy {reader.path} away, and what can be read of it: sqlite3 FILE .recover")
    if not as_json and not bad:
        say(CAN if noted is None else "the noted heads are part of the record: it was not rewritten before them")
    return JournalCorrupt.exit_code if bad else 0


def _is_scripted(reader: SqliteReader, run: RunId) -> bool:
    """Whether a script answered a model call of the run."""
    asked = agents_of(reader, run)[1]
    return any(is_scripted(models_of(asked, page)) for page in pages(reader, run))


@audit.command("heads")
@click.argument("run_id", metavar="RUN")
@state_option
def audit_heads(run_id: str, state: Path | None) -> int:
    """Print the heads of a run's chains, as JSON, to be kept where nobody can change them with the record."""
    with open_run(state, run_id) as (reader, run):
        emit(json_line(heads_json(run, reader.heads(run), SystemClock().now())))
    return 0


def _read_noted(file: Path | None) -> Noted | None:
    if file is None:
        return None
    try:
        return read_heads(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read {file}: {getattr(e, 'strerror', None) or e}") from e


def _verified(reader: SqliteReader, run: RunId, noted: Noted | None) -> Verdict:
    """Verifies the chains and, when they are sound, compares them with what was noted. Raises JournalError."""
    try:
        verdict = verify(reader, run)
        if noted is None or verdict.problems:
            return verdict
        return Verdict(run, verdict.records, tuple(compare(noted, reader.stored(run))), verdict.heads)
    except sqlite3.Error as e:
        raise failure(e, reader.path) from e


def _verdict_json(verdict: Verdict) -> dict[str, object]:
    return {
        "type": "audit",
        "run_id": verdict.run,
        "ok": not verdict.problems,
        "records": verdict.records,
        "heads": dict(verdict.heads),
        "problems": [_problem_json(p) for p in verdict.problems],
    }


def _problem_json(problem: Problem) -> dict[str, object]:
    return {"agent": problem.stream, "seq": problem.seq, "id": problem.record, "what": problem.what}


def _verdict_lines(verdict: Verdict) -> list[str]:
    head = f"run {line_of(verdict.run, 60)}: {some(verdict.records, 'record')} in {some(len(verdict.heads), 'stream')}"
    if not verdict.problems:
        return [f"{head}, no contradiction"]
    return [f"{head}, {some(len(verdict.problems), 'bad stream')}", *map(_problem_line, verdict.problems)]


def _problem_line(problem: Problem) -> str:
    where = f"agent {line_of(problem.stream, 100)}" if problem.stream else "the run's own stream"
    which = f"id {problem.record}" if problem.record is not None else "missing"
    return f"  {where}, record {problem.seq} ({which}): {line_of(problem.what, 200)}"
