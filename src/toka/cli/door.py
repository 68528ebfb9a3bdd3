"""The light way in for commands that only read: settings and the journal, without the runtime and the model layer."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from toka.cli.ids import find_run
from toka.config.settings import Settings, load_settings
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import JournalCorrupt, NotFound, TokaError
from toka.events.event import RunCreated
from toka.events.fold import fold_all
from toka.events.lifecycle import RunStatus
from toka.events.record import Record
from toka.events.state import RunState
from toka.journal.database import FILE
from toka.journal.journal import LeaseView, Reader
from toka.journal.sqlite import SqliteReader

ANY_PATH: Final = click.Path(path_type=Path, readable=False)
"""A path that is not looked at while the command line is parsed: whoever opens it says what is wrong with it."""
PAGE: Final = 500
"""Records that are read at one time."""
F = TypeVar("F", bound=Callable[..., Any])


def agents_of(reader: Reader, run: RunId) -> tuple[list[str], str | None]:
    """The run's agents, and the model that was asked for; None when each spec named its own. Raises JournalError."""
    record = reader.last_of(run, "", RunCreated.KIND)
    created = record.event if record is not None and isinstance(record.event, RunCreated) else None
    names = [*(created.agents if created else ()), *(name for name in reader.heads(run) if name)]
    return list(dict.fromkeys(names)), created.model if created else None


def state_option(command: F) -> F:
    """Adds `--state DIR`."""
    return click.option("--state", metavar="DIR", type=ANY_PATH, help="Where runs are recorded.")(command)


def read_settings(state: Path | None = None, flags: Mapping[str, object] | None = None) -> Settings:
    """The settings of this process, with `--state` when it is given. Raises ConfigError."""
    given = None if state is None else str(state)
    return load_settings(Path.cwd(), os.environ, {"state": given, **(flags or {})})


@contextmanager
def open_journal(settings: Settings) -> Generator[SqliteReader | None]:
    """The journal for reading; None when nothing was ever recorded in the state directory, which is not made.

    Raises:
        JournalError: the directory or the database cannot be used.
    """
    try:
        (settings.state / FILE).stat()
    except FileNotFoundError:
        yield None
        return
    except OSError:
        pass  # the reader says what is wrong
    reader = SqliteReader(settings.state, SystemClock())
    try:
        yield reader
    finally:
        reader.close()


@contextmanager
def open_run(state: Path | None, text: str) -> Generator[tuple[SqliteReader, RunId]]:
    """The journal and the run that `text` names.

    Raises:
        NotFound, UsageError: see `find_run`.
        ConfigError, JournalError: settings or journal cannot be read.
    """
    settings = read_settings(state)
    with open_journal(settings) as reader:
        if reader is None:
            raise NotFound(f"no runs are recorded in {settings.state}", hint="start one: toka run SPEC, or toka demo")
        yield reader, find_run(reader, text)


def pages(reader: Reader, run: RunId, after: int = 0) -> Generator[list[Record]]:
    """A run's records in pages of at most `PAGE`, so that no command holds a long run in memory.

    Args:
        reader: the journal.
        run: whose records.
        after: only records with a greater id.

    Raises:
        JournalError: the record cannot be read.
    """
    while records := reader.read(run, after=after, limit=PAGE):
        yield records
        after = records[-1].id


def again(state: Path | None) -> str:
    """What a command that is shown for copying needs at its end, so that it finds the same runs."""
    return "" if state is None else f" --state {shlex.quote(str(state))}"


def folded(run: RunId, records: Iterable[Record]) -> RunState:
    """A run's state. Raises JournalCorrupt when a record does not say what its kind should."""
    try:
        return fold_all(run, records)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise unreadable(run, e) from e


def unreadable(run: str, error: Exception) -> JournalCorrupt:
    """What to say of a record that is none."""
    said = wrong_in_record(error)
    return JournalCorrupt(f"run {run} cannot be read: {said}", hint=f"see which record it is: toka audit verify {run}")


def wrong_in_record(error: Exception) -> str:
    """Why a record cannot be read, without Python's own words."""
    if isinstance(error, TokaError):
        return error.message
    if isinstance(error, KeyError):
        return f"a record lacks {error.args[0]!r}"
    return "a record does not say what its kind should"


def standing(status: RunStatus, lease: LeaseView | None) -> RunStatus:
    """How a run stands: as recorded, unless it should be executed and no living process holds its lease."""
    going = status in (RunStatus.CREATED, RunStatus.RUNNING)
    return RunStatus.INTERRUPTED if going and (lease is None or not lease.alive) else status
