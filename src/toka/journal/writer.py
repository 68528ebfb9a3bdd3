"""The writer thread: all writes of a process in few transactions, each synced to disk once.

One statement writes many rows, because every SQLite call lets go of Python's lock and must win it back from a busy
event loop: the number of calls in a transaction, not of rows, decides how long a commit waits.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from toka.core.clock import Clock
from toka.errors import JournalError, JournalGone, StaleEpoch, TokaError
from toka.events.event import Event
from toka.events.record import Record, encode
from toka.journal.database import OpenFile, connect, failure
from toka.journal.holder import taken_over
from toka.journal.journal import GENESIS, Lease, Timing, chain

BATCH_EVENTS: Final = 2_000
"""A transaction takes no more than about this many events."""
_ROWS: Final = (256, 64, 16, 4, 1)
"""Rows of one INSERT: few sizes, so that their compiled statements stay cached."""
UNSTORABLE: Final = (RecursionError, TypeError, ValueError)
"""What encoding or binding a value raises that has no stored form. It is refused; the thread goes on."""
_PASSING: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
"""What a disk answers that may take the same write later. A lock is waited for where a transaction begins."""
_AGAIN_S: Final = 0.1
"""Between two attempts to write to it."""
T = TypeVar("T")


@dataclass(slots=True)
class Append:
    """One append on its way: to be written whole or not at all."""

    lease: Lease
    stream: str
    epoch: int
    events: Sequence[Event]
    done: Callable[[list[Record] | TokaError], None]
    records: list[Record] | None = None


@dataclass(slots=True)
class Call:
    """Another write, run by itself in a transaction of its own."""

    body: Callable[[sqlite3.Connection], Any]
    done: Callable[[Any], None]


@dataclass(slots=True)
class _Head:
    id: int
    epoch: int
    seq: int
    hash: bytes


OnBatch = Callable[[Sequence[Append]], None]


class Writer:
    """Owns the one writing connection. `put` may be called from any thread.

    It reaches for the database at least every `renew_s`, whether it has anything to write or not. So when more than
    `lease_s` lie between two commits, the database could not be reached, or this process was frozen; others may have
    fared alike, and a lease that ran out meanwhile says nothing about its holder: see `patience`.
    """

    def __init__(self, file: OpenFile, clock: Clock, on_batch: OnBatch, timing: Timing) -> None:
        """Starts the thread. `on_batch` is called in it after each commit, with what was committed, in order."""
        self._file = file
        self._timing = timing
        self._stalled: float | None = None
        self._hurried: set[str] = set()
        self._gone = False
        self._clock = clock
        self._on_batch = on_batch
        self._queue: queue.SimpleQueue[Append | Call | None] = queue.SimpleQueue()
        self._heads: dict[tuple[str, str], _Head] = {}
        self._leases: dict[str, Lease] = {}
        self._until: dict[str, float] = {}
        self._renewed = 0.0
        self._reached = clock.boottime()
        self._patient_until = 0.0
        self._connection = connect(file.path, anywhere=True)
        self._thread = threading.Thread(target=self._loop, name="toka-journal", daemon=True)
        self._thread.start()

    def put(self, item: Append | Call) -> None:
        """Queues a write."""
        self._queue.put(item)

    def holds(self, lease: Lease, now: float) -> bool:
        """Whether the lease had not run out at `now`, in boot time, by the latest renewal that was committed."""
        latest = self._leases.get(lease.run)
        return latest is not None and latest.token == lease.token and now < self._until.get(lease.run, 0.0)

    def hurry(self, run: str) -> None:
        """This run waits no longer for a disk that takes nothing. What cannot be written is refused once none does."""
        self._hurried.add(run)

    def close(self) -> None:
        """Writes what is queued and ends the thread."""
        self._hurried.update(list(self._leases))
        self._queue.put(None)
        self._thread.join()
        self._connection.close()

    # What follows runs in the writer thread.

    def patience(self, now: float) -> float:
        """Seconds from `now`, in boot time, for which a lease that ran out is to be left alone; 0.0: none.

        One lease, from the moment on which the database could be reached again: its holder renews it before that, if
        it lives. Only valid in a transaction.
        """
        return max(0.0, self._patient_until - now)

    def adopt(self, lease: Lease, until: float) -> None:
        """Appends under this lease are accepted from here, and it is renewed; it lasts `until`, in boot time."""
        self._leases[lease.run] = lease
        self._hurried.discard(lease.run)
        self._until[lease.run] = until
        self._forget(lease.run)

    def drop(self, run: str) -> None:
        """The lease is given up."""
        self._leases.pop(run, None)
        self._until.pop(run, None)
        self._forget(run)

    def set_epoch(self, run: str, stream: str, epoch: int) -> None:
        """The stream's epoch was raised in the database."""
        if head := self._heads.get((run, stream)):
            head.epoch = epoch

    def _forget(self, run: str) -> None:
        for key in [k for k in self._heads if k[0] == run]:
            del self._heads[key]

    def _loop(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=self._timing.renew_s)
            except queue.Empty:
                self._renew_alone()
                continue
            batch: list[Append] = []
            while True:
                if isinstance(item, Append):
                    batch.append(item)
                else:
                    self._write(batch)
                    batch = []
                    if item is None:
                        return
                    self._call(item)
                if len(batch) >= BATCH_EVENTS:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            self._write(batch)

    def _call(self, call: Call) -> None:
        try:
            result = self._patiently(lambda: self._called(call))
        except (sqlite3.Error, TokaError, *UNSTORABLE) as e:
            result = self._refusal(e, "a value")
        call.done(result)

    def _called(self, call: Call) -> Any:
        self._begin()
        try:
            result = call.body(self._connection)
            self._commit()
        except BaseException:
            self._rollback()
            self._heads.clear()
            raise
        return result

    def _write(self, batch: list[Append]) -> None:
        if not batch:
            return
        try:
            self._patiently(lambda: self._transaction(batch))
        except (sqlite3.Error, TokaError, *UNSTORABLE) as e:
            if len(batch) > 1:
                for append in batch:
                    self._write([append])
                return
            batch[0].done(self._refusal(e, "an event"))
            return
        self._on_batch(batch)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """What a transaction returns, attempted again while the disk takes nothing."""
        while True:
            try:
                return attempt()
            except sqlite3.Error as e:
                if not self._waits(e):
                    raise

    def _waits(self, error: sqlite3.Error) -> bool:
        """Waits a moment when the same write may succeed later; False: it is time to refuse it."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _PASSING:
            return False
        self._file.check()  # one that is gone will take nothing any more
        now = time.monotonic()
        self._stalled = now if self._stalled is None else self._stalled
        if now - self._stalled >= self._timing.stall_s or self._hurried.issuperset(self._leases):
            return False
        time.sleep(min(_AGAIN_S, self._timing.stall_s))
        return True

    def _refusal(self, error: Exception, what: str) -> TokaError:
        if isinstance(error, TokaError):
            return error
        if not isinstance(error, sqlite3.Error):
            return JournalError(f"{what} cannot be stored: {error}")
        try:
            self._file.check()
        except JournalGone as gone:
            return gone  # whatever SQLite says about it
        return failure(error, self._file.path)

    def _transaction(self, batch: list[Append]) -> None:
        """Writes a batch or nothing. The heads in memory advance only after the commit."""
        self._begin()
        try:
            self._fence(batch)
            heads: dict[tuple[str, str], _Head] = {}
            rows: list[Any] = []
            placed = [self._place(append, heads, rows) for append in batch]
            first = self._insert(rows)
            self._advance(heads)
            renewed = self._renew(self._clock.boottime())
            self._commit()
        except BaseException:
            self._rollback()
            raise
        self._heads.update(heads)
        self._note_renewal(renewed)
        for append, events, at in placed:
            append.records = [
                Record(first + i, append.lease.run, append.stream, seq, append.epoch, at, event)
                for i, (seq, event) in enumerate(events)
            ]
            first += len(events)

    def _fence(self, batch: list[Append]) -> None:
        runs = {a.lease.run: a.lease.token for a in batch}
        marks = ",".join("?" * len(runs))
        row: tuple[str | None] = self._connection.execute(
            f"SELECT group_concat(run || ' ' || token) FROM leases WHERE until>0 AND run IN ({marks})",
            tuple(runs),
        ).fetchone()
        tokens = {run: token for run, _, token in (pair.partition(" ") for pair in (row[0] or "").split(","))}
        for append in batch:
            run, token = append.lease.run, append.lease.token
            if tokens.get(run) != str(token):
                raise taken_over(self._connection, append.lease)

    def _place(
        self, append: Append, heads: dict[tuple[str, str], _Head], rows: list[Any]
    ) -> tuple[Append, list[tuple[int, Event]], float]:
        """Gives an append its sequence numbers and hashes, and adds its rows."""
        run, stream = append.lease.run, append.stream
        old = heads.get((run, stream)) or self._head(run, stream, append.epoch)
        if old.epoch != append.epoch:
            raise StaleEpoch(f"agent {stream or '(run)'} of {run} is in epoch {old.epoch}, not {append.epoch}")
        seq, link = old.seq, old.hash
        at = round(self._clock.now(), 6)
        events: list[tuple[int, Event]] = []
        for event in append.events:
            seq += 1
            body = encode(event, run, stream, seq, append.epoch, at)
            link = chain(link, body)
            kind = event.KIND if event.KIND != "unknown" else event.kind  # type: ignore[union-attr]
            rows += (old.id, seq, kind, body, link)
            events.append((seq, event))
        heads[run, stream] = _Head(old.id, old.epoch, seq, link)
        return append, events, at

    def _head(self, run: str, stream: str, epoch: int) -> _Head:
        """The stream's head, from memory, else from the database, else a new stream's."""
        if known := self._heads.get((run, stream)):
            return known
        row = self._connection.execute(
            "SELECT id, epoch, head_seq, head FROM streams WHERE run=? AND name=?", (run, stream)
        ).fetchone()
        if row:
            return _Head(*row)
        cursor = self._connection.execute(
            "INSERT INTO streams(run, name, epoch, head_seq, head) VALUES (?,?,?,0,?)", (run, stream, epoch, GENESIS)
        )
        return _Head(cursor.lastrowid or 0, epoch, 0, GENESIS)

    def _insert(self, rows: list[Any]) -> int:
        """Inserts rows of five values each; returns the id of the first."""
        total, done, first = len(rows) // 5, 0, 0
        while done < total:
            count = next(n for n in _ROWS if n <= total - done)
            cursor = self._connection.execute(_INSERT[count], rows[done * 5 : (done + count) * 5])
            if not first:
                first = (cursor.lastrowid or 0) - count + 1
            done += count
        return first

    def _advance(self, heads: dict[tuple[str, str], _Head]) -> None:
        values = [v for h in heads.values() for v in (h.id, h.seq, h.hash)]
        total, done = len(values) // 3, 0
        while done < total:
            count = next(n for n in _ROWS if n <= total - done)
            self._connection.execute(_ADVANCE[count], values[done * 3 : (done + count) * 3])
            done += count

    def _renew(self, now: float) -> dict[str, float]:
        """Renews all leases that are still ours, in the open transaction; returns until when each then lasts."""
        if now - self._renewed < self._timing.renew_s or not self._leases:
            return {}
        until = now + self._timing.lease_s
        update = "UPDATE leases SET until=? WHERE run=? AND token=?"
        return {
            lease.run: until
            for lease in self._leases.values()
            if self._connection.execute(update, (until, lease.run, lease.token)).rowcount
        }

    def _note_renewal(self, renewed: dict[str, float]) -> None:
        if renewed:
            self._renewed = max(renewed.values()) - self._timing.lease_s
            self._until.update(renewed)

    def _renew_alone(self) -> None:
        try:
            self._begin()
            renewed = self._renew(self._clock.boottime())
            self._commit()
            self._note_renewal(renewed)
        except (sqlite3.Error, JournalGone):
            self._rollback()  # the next round tries again; a lease that ran out is noticed by the fence

    def _begin(self) -> None:
        """Begins a transaction. Raises JournalGone: there is no journal any more to write to."""
        if self._gone:
            raise self._file.gone()
        end = time.monotonic() + self._timing.stall_s
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError as e:
                code = getattr(e, "sqlite_errorcode", 0) & 0xFF
                if code != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
        now = self._clock.boottime()
        if now - self._reached > self._timing.lease_s:
            self._patient_until = now + self._timing.lease_s

    def _commit(self) -> None:
        """Commits the transaction. Raises JournalGone: nobody will find what was committed."""
        self._connection.execute("COMMIT")
        self._reached = self._clock.boottime()
        self._stalled = None
        try:
            self._file.check()
        except JournalGone:
            self._gone = True
            raise

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # a failed commit has rolled back by itself


_INSERT: Final = {
    n: "INSERT INTO events(stream, seq, kind, body, hash) VALUES " + ",".join(["(?,?,?,?,?)"] * n) for n in _ROWS
}
_ADVANCE: Final = {
    n: "WITH v(i, s, h) AS (VALUES " + ",".join(["(?,?,?)"] * n) + ") "
    "UPDATE streams SET head_seq=v.s, head=v.h FROM v WHERE streams.id=v.i"
    for n in _ROWS
}
