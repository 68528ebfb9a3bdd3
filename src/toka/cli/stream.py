"""Recorded events as JSON lines on stdout, printed at the reader's pace by a thread of its own.

The runtime is never slowed down by a reader: the thread reads the journal, and holds no more than one page of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from toka.cli.door import PAGE
from toka.cli.output import ReaderGone, emit_json
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import JournalError
from toka.journal.sqlite import SqliteReader


class EventPrinter:
    """Prints a run's events, in order and without gaps, until it is closed; then the rest.

    Attributes:
        failure: why it stopped printing before that: the record could not be read; None: it did not.
    """

    def __init__(self, state: Path, run: RunId, after: int, on_broken: Callable[[], None]) -> None:
        """Starts the thread.

        Args:
            state: the state directory.
            run: whose events.
            after: print only events with a greater id.
            on_broken: called in the thread when whoever read stdout went away; nothing is printed from then on.
        """
        self._state = state
        self._run = run
        self._after = after
        self._on_broken = on_broken
        self._news = threading.Event()
        self._closing = False
        self._line = threading.Lock()
        self.failure: JournalError | None = None
        self._thread = threading.Thread(target=self._loop, name="toka-events", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """There are new events."""
        self._news.set()

    def stop_at_once(self, seconds: float) -> None:
        """Prints nothing more. A line that is being printed may take `seconds` to reach its reader."""
        self._line.acquire(timeout=seconds)  # and never given back

    def close(self) -> None:
        """Prints what is left and ends the thread."""
        self._closing = True
        self._news.set()
        self._thread.join()

    def _loop(self) -> None:
        try:
            with closing(SqliteReader(self._state, SystemClock())) as reader:
                while True:
                    is_last = self._closing
                    self._news.clear()
                    self._print_all(reader)
                    if is_last:
                        return
                    self._news.wait()
        except ReaderGone:
            self._on_broken()
        except JournalError as e:
            self.failure = e

    def _print_all(self, reader: SqliteReader) -> None:
        while records := reader.read(self._run, after=self._after, limit=PAGE):
            for record in records:
                with self._line:
                    emit_json(record.to_json())
            self._after = records[-1].id
