"""`toka resume` on a run that another process executes, or that has ended: ask, follow, tell the end."""

from __future__ import annotations

import getpass
import os
from dataclasses import dataclass

from toka.cli.follow import Follower
from toka.cli.output import emit_json, say
from toka.cli.render_change import confinement
from toka.cli.rows import event_line
from toka.cli.summary import Details, details_of, done_json, summary_lines
from toka.cli.text import line_of
from toka.core.ids import RunId
from toka.errors import JournalError, UsageError
from toka.events.fold import fold
from toka.events.lifecycle import TASK_ENDS, RunStatus
from toka.events.record import Record
from toka.events.state import RunState
from toka.journal.journal import LeaseView
from toka.journal.sqlite import SqliteReader
from toka.orchestration.result import EXIT_PERSON, RunResult
from toka.runtime.progress import progress_event


@dataclass(frozen=True, slots=True)
class Display:
    """What to print.

    Attributes:
        as_json: JSON lines on stdout instead of a view.
        quiet: no view; the summary and errors only.
        options: what commands about the run need besides its id, such as ` --state DIR`.
    """

    as_json: bool
    quiet: bool
    options: str = ""


def author() -> str:
    """The login name of whoever runs this command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def reason_of(text: str) -> str:
    """What a person says why. Raises UsageError when it is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("--reason is no text in UTF-8", hint="write it again, or leave it out") from None
    return text


def follow(reader: SqliteReader, state: RunState, lease: LeaseView, shown: Display) -> int:
    """Prints what happens in a run that another process executes, until it ends; returns the exit code.

    Args:
        reader: the journal.
        state: the run so far: only what comes after it is printed.
        lease: who executes it.
        shown: how to print.

    Raises:
        JournalError: the record cannot be read any more.
    """
    run, pid = RunId(state.id), lease.holder.pid
    if shown.as_json:
        where = {"state_dir": str(reader.path.parent), "executor": pid, "sandbox": state.weakest}
        emit_json({"type": "launch", "run_id": run, **where})
    else:
        weak = confinement(state.weakest)
        head = f"run {run} is being executed by process {pid} on {line_of(lease.holder.host, 60)}"
        since = f"since {lease.age_s:.0f} s" + (f" ({weak})" if weak else "")
        say(f"{head}, {since}; following it (Ctrl-C leaves it running)")
    follower = Follower(reader, run, state.last)
    try:
        for records in follower.follow():
            for record in records:
                state = fold(state, record)
                _show(record, state, shown)
    except JournalError as e:
        if shown.as_json:
            emit_json(done_json(RunResult(run, RunStatus.INTERRUPTED, state, e.message), Details()))
        raise
    if follower.end == "ended":
        return already_ended(reader, state, shown, launched=True)
    waits = follower.end == "waiting"
    status = RunStatus.WAITING if waits else RunStatus.INTERRUPTED
    reason = state.reason if waits else f"process {pid} is gone"
    _print_end(reader, RunResult(run, status, state, reason), shown)
    if not waits:
        say(f"toka: process {pid} is gone; go on with: toka resume {run}{shown.options}")
    return EXIT_PERSON if waits else JournalError.exit_code


def already_ended(reader: SqliteReader, state: RunState, shown: Display, *, launched: bool = False) -> int:
    """Prints the end of a run that has ended; returns its exit code."""
    run = RunId(state.id)
    if not launched:
        if shown.as_json:
            emit_json({"type": "launch", "run_id": run})
        else:
            say(f"run {run} has ended; there is nothing to resume")
            if state.status is RunStatus.FAILED:
                say(f"to have what failed tried again: toka retry {run}{shown.options}")
    result = RunResult(run, state.status, state, state.reason)
    _print_end(reader, result, shown)
    return result.exit_code


def _print_end(reader: SqliteReader, result: RunResult, shown: Display) -> None:
    details = details_of(reader, result.run, result.state)
    if shown.as_json:
        emit_json(done_json(result, details))
        return
    for line in summary_lines(result, options=shown.options, details=details):
        say(line)


def _show(record: Record, state: RunState, shown: Display) -> None:
    if shown.as_json:
        emit_json(record.to_json())
    elif not shown.quiet and (event := progress_event(record)) is not None:
        tasks = [task for agent in state.agents.values() for task in agent.tasks.values()]
        done = sum(1 for task in tasks if task.status in TASK_ENDS)
        say(event_line(event, done, len(tasks), max(map(len, state.agents), default=0)))
