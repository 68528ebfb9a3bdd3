"""Records of a run as they come, read from the journal whatever process writes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, Literal

from toka.cli.door import PAGE
from toka.core.ids import RunId
from toka.events.event import RunStateChanged
from toka.events.lifecycle import RUN_ENDS, RunStatus
from toka.events.record import Record
from toka.journal.journal import Reader

POLL_S: Final = 0.2
"""How often a run is looked at, in seconds."""
PATIENCE: Final = 2
"""Looks in a row that find no living executor before it is given up."""

End = Literal["ended", "waiting", "gone"]


class Follower:
    """Yields the records of a run in order, without gaps, until the run has ended or nobody executes it any more.

    Attributes:
        status: as last recorded.
        end: why it stopped: the run `ended`, is `waiting` for a person, or its executor is `gone`; None before that.
    """

    def __init__(
        self, reader: Reader, run: RunId, after: int = 0, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Starts after the record with id `after`. `pause` sleeps so many seconds."""
        self._reader = reader
        self._run = run
        self._after = after
        self._pause = pause
        last = reader.last_of(run, "", RunStateChanged.KIND)
        self.status = _status(last, RunStatus.CREATED)
        self.end: End | None = None

    def page(self) -> Iterator[list[Record]]:
        """What is there now, in pages."""
        while records := self._reader.read(self._run, after=self._after, limit=PAGE):
            self._after = records[-1].id
            for record in records:
                if not record.stream:
                    self.status = _status(record, self.status)
            yield records

    def follow(self) -> Iterator[list[Record]]:
        """What is there, and what comes, in pages."""
        dead = 0
        while True:
            lease = self._reader.lease(self._run)
            alive = lease is not None and lease.alive
            yield from self.page()  # after the look at the lease: what a process wrote before it went is not missed
            dead = 0 if alive else dead + 1
            if self.status in RUN_ENDS:
                self.end = "ended"
            elif dead >= PATIENCE:
                self.end = "waiting" if self.status is RunStatus.WAITING else "gone"
            if self.end is not None:
                return
            self._pause(POLL_S)


def _status(record: Record | None, otherwise: RunStatus) -> RunStatus:
    if record is None or not isinstance(record.event, RunStateChanged):
        return otherwise
    known = record.event.state in RunStatus.__members__
    return RunStatus(record.event.state) if known else otherwise


def end_text(run: RunId, follower: Follower, options: str = "") -> str:
    """Why following stopped, and what to do about it; `options` ends the command shown."""
    match follower.end:
        case "waiting":
            return f"run {run} waits for a person; see why: toka show {run}{options}"
        case "gone":
            return f"nobody executes run {run} any more; go on with: toka resume {run}{options}"
        case _:
            return f"run {run} has ended: {follower.status.value}"
