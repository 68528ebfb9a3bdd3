"""The journal in one SQLite file: WAL, synchronous=FULL, group commit by one writer thread."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from toka.core.clock import Clock
from toka.core.ids import RunId
from toka.errors import JournalCorrupt, JournalError, NotFound, RunBusy, TokaError
from toka.events.event import Event
from toka.events.record import Record, decode
from toka.journal.database import OpenFile, connect, failure, prepare
from toka.journal.holder import holder_lives, taken_over, this_holder
from toka.journal.journal import QUEUE_EVENTS, Command, Holder, Lease, LeaseView, OnCommit, Timing
from toka.journal.poke import sweep
from toka.journal.writer import Append, Call, Writer

T = TypeVar("T")


class SqliteReader:
    """Reads a journal that any number of processes may be writing."""

    def __init__(self, state: Path, clock: Clock) -> None:
        """Opens the journal in the state directory, making an empty one when there is none. Raises JournalError."""
        self.path = prepare(state)
        self._clock = clock
        self._file = OpenFile(self.path)
        self._db = connect(self.path, readonly=True)

    def runs(self) -> list[RunId]:
        """See Reader."""
        return [RunId(r) for (r,) in self._all("SELECT run FROM streams WHERE name='' AND head_seq>0 ORDER BY id")]

    def read(self, run: RunId, *, after: int = 0, stream: str | None = None, limit: int | None = None) -> list[Record]:
        """See Reader."""
        where, values = "s.run=? AND e.id>?", [run, after]
        if stream is not None:
            where, values = where + " AND s.name=?", [*values, stream]
        rows = self._all(
            f"SELECT e.id, e.body FROM streams s JOIN events e ON e.stream=s.id WHERE {where} ORDER BY e.id LIMIT ?",
            [*values, -1 if limit is None else limit],
        )
        return [self._decoded(id_, body) for id_, body in rows]

    def last_of(self, run: RunId, stream: str, kind: str) -> Record | None:
        """See Reader."""
        rows = self._all(
            "SELECT e.id, e.body FROM streams s JOIN events e ON e.stream=s.id "
            "WHERE s.run=? AND s.name=? AND e.kind=? ORDER BY e.seq DESC LIMIT 1",
            (run, stream, kind),
        )
        return self._decoded(*rows[0]) if rows else None

    def lease(self, run: RunId) -> LeaseView | None:
        """See Reader. Raises JournalGone, as `commands` does: these two are asked again and again."""
        self._file.check()
        rows = self._all("SELECT host, boot, pidns, pid, started, taken, until FROM leases WHERE run=?", (run,))
        return view(rows[0], self._clock.boottime()) if rows and rows[0][6] > 0 else None

    def commands(self, run: RunId, after: int = 0) -> list[Command]:
        """See Reader."""
        self._file.check()
        rows = self._all(
            "SELECT id, verb, agent, arguments, author, reason FROM commands WHERE run=? AND id>? ORDER BY id",
            (run, after),
        )
        return [Command(i, run, verb, agent, json.loads(a), author, why) for i, verb, agent, a, author, why in rows]

    def blob(self, digest: str) -> bytes:
        """See Reader."""
        rows = self._all("SELECT data FROM blobs WHERE digest=?", (digest,))
        if not rows:
            raise NotFound(f"no blob {digest} in {self.path}")
        data = rows[0][0]
        if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != digest:
            hint = "toka audit verify names every record that needs it"
            raise JournalCorrupt(f"journal {self.path}: blob {digest} was changed", hint=hint)
        return data

    def damage(self) -> str:
        """What SQLite finds wrong with the file as a whole, its first finding; empty when it finds nothing."""
        try:
            found = str(self._all("PRAGMA quick_check(1)")[0][0])
        except JournalError as e:
            return e.message
        return "" if found == "ok" else " ".join(found.split())

    def stored(self, run: RunId) -> Iterator[tuple[int, str, str, bytes]]:
        """See Reader."""
        for stream, name in self._all("SELECT id, name FROM streams WHERE run=? ORDER BY id", (run,)):
            for id_, body, link in self._stream(stream):
                yield id_, name, body, link

    def heads(self, run: RunId) -> Mapping[str, tuple[int, bytes]]:
        """See Reader."""
        rows = self._all("SELECT name, head_seq, head FROM streams WHERE run=? ORDER BY id", (run,))
        return {name: (seq, bytes(head)) for name, seq, head in rows}

    def close(self) -> None:
        """See Reader."""
        self._db.close()

    def _stream(self, stream: int) -> Iterator[tuple[Any, ...]]:
        """(id, body, hash) of a stream's records, along the index, up to one that cannot be read, which raises."""
        last = 0
        rows = "SELECT seq, id, body, hash FROM events WHERE stream=? AND seq>? ORDER BY seq"
        try:
            for row in self._db.execute(rows, (stream, last)):
                last = row[0]
                yield row[1:]
        except sqlite3.Error:  # the cursor steps ahead: the row before the bad one is lost with it
            while found := self._all(f"{rows} LIMIT 1", (stream, last)):
                last = found[0][0]
                yield found[0][1:]

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as e:
            raise failure(e, self.path) from e

    def _decoded(self, id_: int, body: str) -> Record:
        try:
            return decode(id_, body)
        except ValueError as e:
            raise JournalCorrupt(f"journal {self.path}: {e}", hint="toka audit verify names every bad record") from e


def view(row: tuple[Any, ...], now: float) -> LeaseView:
    """A row (host, boot, pidns, pid, started, taken, until) of the leases table as others see it."""
    holder = Holder(*row[:5])
    taken, until = row[5], row[6]
    lives = holder_lives(holder)
    same_boot = holder.boot == this_holder().boot
    alive = lives is not False and same_boot and until > now
    return LeaseView(holder, until, max(0.0, now - taken), alive)


def _left(db: sqlite3.Connection, run: RunId) -> bool:
    """Whether the process that executed a run last is dead for certain; who gave its lease back may well live."""
    row = db.execute("SELECT host, boot, pidns, pid, started FROM leases WHERE run=?", (run,)).fetchone()
    return row is not None and holder_lives(Holder(*row)) is False


class SqliteJournal(SqliteReader):
    """The journal of a process that executes runs. Belongs to the event loop it was made in."""

    def __init__(self, state: Path, clock: Clock, timing: Timing | None = None) -> None:
        """Opens the journal and starts its writer thread. `timing` None: everybody's. Raises JournalError."""
        super().__init__(state, clock)
        self._timing = timing or Timing()
        self._loop = asyncio.get_running_loop()
        self._publish: dict[str, OnCommit] = {}
        self._pending = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._writer = Writer(self._file, clock, self._batch_written, self._timing)
        self._closed = False

    async def acquire(self, run: RunId) -> Lease:
        """See Journal."""
        while not isinstance(taken := await self._call(lambda db: self._take(db, run)), Lease):
            # Not all of it at once: whoever renews meanwhile need not be waited for any longer.
            await self._clock.sleep(min(taken, self._timing.renew_s))
        return taken

    def _take(self, db: sqlite3.Connection, run: RunId) -> Lease | float:
        """Takes a run's lease in an open transaction; or says how many seconds to wait before another attempt."""
        now, me = self._clock.boottime(), this_holder()
        row = db.execute(
            "SELECT host, boot, pidns, pid, started, taken, until, token FROM leases WHERE run=?", (run,)
        ).fetchone()
        if row and row[6] > 0:
            old = view(row[:7], now)
            if old.alive:
                raise RunBusy(
                    f"run {run} is being executed by process {old.holder.pid} on {old.holder.host}, "
                    f"since {old.age_s:.0f} s",
                    hint=f"follow it: toka events {run} --follow",
                )
            if (wait := self._writer.patience(now)) and holder_lives(old.holder) is not False:
                return wait
        token, until = row[7] + 1 if row else 1, now + self._timing.lease_s
        db.execute(
            "INSERT OR REPLACE INTO leases VALUES (?,?,?,?,?,?,?,?,?)",
            (run, token, me.host, me.boot, me.pidns, me.pid, me.started, now, until),
        )
        db.execute("UPDATE streams SET epoch=epoch+1 WHERE run=?", (run,))
        lease = Lease(run, token, dict(db.execute("SELECT name, epoch FROM streams WHERE run=?", (run,))))
        sweep(self.path.parent, lambda other: _left(db, other))
        self._writer.adopt(lease, until)
        return lease

    def hurry(self, lease: Lease) -> None:
        """See Journal."""
        self._writer.hurry(lease.run)

    async def release(self, lease: Lease) -> None:
        """See Journal."""

        def body(db: sqlite3.Connection) -> None:
            db.execute("UPDATE leases SET until=0 WHERE run=? AND token=?", (lease.run, lease.token))
            self._writer.drop(lease.run)

        self.hurry(lease)
        await self._call(body)

    def holds(self, lease: Lease) -> bool:
        """See Journal."""
        return self._writer.holds(lease, self._clock.boottime())

    async def bump(self, lease: Lease, stream: str) -> int:
        """See Journal."""

        def body(db: sqlite3.Connection) -> int:
            held = db.execute(
                "SELECT 1 FROM leases WHERE run=? AND token=? AND until>0", (lease.run, lease.token)
            ).fetchone()
            if held is None:
                raise taken_over(db, lease)
            db.execute("UPDATE streams SET epoch=epoch+1 WHERE run=? AND name=?", (lease.run, stream))
            row = db.execute("SELECT epoch FROM streams WHERE run=? AND name=?", (lease.run, stream)).fetchone()
            if row is None:
                raise NotFound(f"run {lease.run} has no stream {stream!r}")
            self._writer.set_epoch(lease.run, stream, row[0])
            return row[0]

        return await self._call(body)

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        """See Journal."""
        while self._pending >= QUEUE_EVENTS and not self._closed:
            room: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(room)
            await room
        if self._closed:
            raise JournalError("the journal is closed")
        future: asyncio.Future[list[Record]] = self._loop.create_future()
        self._pending += len(events)

        def done(outcome: list[Record] | TokaError) -> None:
            if isinstance(outcome, TokaError):
                self._loop.call_soon_threadsafe(self._refused, future, outcome, len(events))
            elif not future.done():
                future.set_result(outcome)

        self._writer.put(Append(lease, stream, epoch, events, done))
        return await future

    async def put_blob(self, data: bytes) -> str:
        """See Journal."""
        digest = hashlib.sha256(data).hexdigest()

        def body(db: sqlite3.Connection) -> str:
            db.execute("INSERT OR IGNORE INTO blobs VALUES (?,?)", (digest, data))
            return digest

        return await self._call(body)

    async def submit(
        self, run: RunId, verb: str, *, agent: str, arguments: Mapping[str, Any], by: tuple[str, str]
    ) -> int:
        """See Journal."""

        def body(db: sqlite3.Connection) -> int:
            cursor = db.execute(
                "INSERT INTO commands(run, verb, agent, arguments, author, reason, at) VALUES (?,?,?,?,?,?,?)",
                (run, verb, agent, json.dumps(dict(arguments)), *by, self._clock.now()),
            )
            return cursor.lastrowid or 0

        return await self._call(body)

    def on_commit(self, run: RunId, callback: OnCommit | None) -> None:
        """See Journal."""
        if callback is None:
            self._publish.pop(run, None)
        else:
            self._publish[run] = callback

    async def aclose(self) -> None:
        """See Journal."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._writer.close)
            self.close()

    async def _call(self, body: Callable[[sqlite3.Connection], T]) -> T:
        if self._closed:
            raise JournalError("the journal is closed")
        future: asyncio.Future[Any] = self._loop.create_future()

        def deliver(outcome: Any) -> None:
            if future.done():
                return
            if isinstance(outcome, TokaError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        def done(outcome: Any) -> None:
            self._loop.call_soon_threadsafe(deliver, outcome)

        self._writer.put(Call(body, done))
        return await future

    def _batch_written(self, batch: Sequence[Append]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, batch)

    def _deliver(self, batch: Sequence[Append]) -> None:
        """One callback for a whole commit: publish every record in order, then wake the appenders."""
        for append in batch:
            if publish := self._publish.get(append.lease.run):
                publish(append.records or [])
        for append in batch:
            append.done(append.records or [])
            self._pending -= len(append.events)
        self._make_room()

    def _refused(self, future: asyncio.Future[list[Record]], error: TokaError, events: int) -> None:
        self._pending -= events
        if not future.done():
            future.set_exception(error)
        self._make_room()

    def _make_room(self) -> None:
        while self._waiting and self._pending < QUEUE_EVENTS:
            room = self._waiting.popleft()
            if not room.done():
                room.set_result(None)
