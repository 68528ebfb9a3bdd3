"""The journal port of a simulated process: a MemoryJournal that all of them share, behind a writer of one's own.

What a MemoryJournal leaves out comes from here: leases that run out and are taken over, commits that take time and
come in groups, writes that fail, and processes that die at a write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toka.core.ids import RunId
from toka.errors import JournalError, RunBusy, StaleEpoch
from toka.events.event import Event
from toka.events.record import Record
from toka.journal.journal import LEASE_S, RENEW_S, Command, Lease, LeaseView, OnCommit
from toka.journal.memory import MemoryJournal

if TYPE_CHECKING:
    from torture.simulation.world import Life, World


def at_once(coro: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine that waits for nothing but a turn of the loop."""
    while True:
        try:
            coro.send(None)
        except StopIteration as end:
            return end.value


@dataclass
class Row:
    """Who holds a run: as the leases table has it."""

    life: Life
    token: int
    until: float


@dataclass
class Store:
    """What is on disk.

    Attributes:
        memory: the records.
        leases: who holds each run; a released lease is none.
    """

    memory: MemoryJournal
    leases: dict[str, Row] = field(default_factory=dict[str, Row])


@dataclass
class _Write:
    body: Callable[[], Any]
    done: asyncio.Future[Any]
    counted: bool


class SimJournal:
    """See Journal. One for each simulated process."""

    def __init__(self, world: World, life: Life) -> None:
        self._world = world
        self._life = life
        self._store = world.store
        self._memory = world.store.memory
        self._loop = world.loop
        self._queue: list[_Write] = []
        self._busy = False
        self._until: dict[str, float] = {}
        self._tokens: dict[str, int] = {}
        self._publish: dict[str, OnCommit] = {}
        self._closed = False
        self.writes = 0

    # --- reading -----------------------------------------------------------------------------------------------------

    def runs(self) -> list[RunId]:
        return self._memory.runs()

    def read(self, run: RunId, *, after: int = 0, stream: str | None = None, limit: int | None = None) -> list[Record]:
        if self._world.hits(self._world.faults.read_fails):
            raise JournalError("the simulated database cannot be read just now")
        return self._world.read(run, after=after, stream=stream, limit=limit)

    def last_of(self, run: RunId, stream: str, kind: str) -> Record | None:
        return self._memory.last_of(run, stream, kind)

    def lease(self, run: RunId) -> LeaseView | None:
        return self._memory.lease(run)

    def commands(self, run: RunId, after: int = 0) -> list[Command]:
        if self._world.hits(self._world.faults.read_fails):
            raise JournalError("the simulated database cannot be read just now")
        return self._memory.commands(run, after)

    def blob(self, digest: str) -> bytes:
        return self._memory.blob(digest)

    def stored(self, run: RunId) -> Iterator[tuple[int, str, str, bytes]]:
        return self._memory.stored(run)  # type: ignore[return-value]

    def heads(self, run: RunId) -> Mapping[str, tuple[int, bytes]]:
        return self._memory.heads(run)

    def close(self) -> None:
        pass

    # --- leases ------------------------------------------------------------------------------------------------------

    async def acquire(self, run: RunId) -> Lease:
        return await self._written(lambda: self._take(run))

    def _take(self, run: RunId) -> Lease:
        row, now = self._store.leases.get(run), self._loop.time()
        if row is not None and not row.life.dead and row.until > now:
            raise RunBusy(f"run {run} is being executed by simulated process {row.life.number}")
        self._memory._held.pop(run, None)
        lease: Lease = at_once(self._memory.acquire(run))
        self._store.leases[run] = Row(self._life, lease.token, now + LEASE_S)
        self._until[run], self._tokens[run] = now + LEASE_S, lease.token
        self._world.rules.taken(self._life, lease)
        self._loop.call_later(RENEW_S, self._renew, run)
        return lease

    def _renew(self, run: str) -> None:
        if self._closed or run not in self._tokens:
            return
        row = self._store.leases.get(run)
        if row is not None and row.token == self._tokens[run] and not self._world.hits(self._world.faults.write_fails):
            row.until = self._until[run] = self._loop.time() + LEASE_S
        self._loop.call_later(RENEW_S, self._renew, run)

    def hurry(self, lease: Lease) -> None:
        """Nothing is waited for."""

    async def release(self, lease: Lease) -> None:
        def body() -> None:
            at_once(self._memory.release(lease))
            row = self._store.leases.get(lease.run)
            if row is not None and row.token == lease.token:
                del self._store.leases[lease.run]
            self._until.pop(lease.run, None)
            self._tokens.pop(lease.run, None)

        await self._written(body)

    def holds(self, lease: Lease) -> bool:
        mine = self._tokens.get(lease.run) == lease.token
        return mine and self._loop.time() < self._until.get(lease.run, 0.0)

    async def bump(self, lease: Lease, stream: str) -> int:
        def body() -> int:
            epoch: int = at_once(self._memory.bump(lease, stream))
            self._world.rules.bumped(stream, epoch)
            return epoch

        return await self._written(body)

    # --- writing -----------------------------------------------------------------------------------------------------

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        def body() -> list[Record]:
            records = self._memory._append(lease, stream, epoch, events)
            self._world.committed(self._life, records)
            return records

        return await self._written(body, counted=True)

    async def put_blob(self, data: bytes) -> str:
        return await self._written(lambda: at_once(self._memory.put_blob(data)))

    async def submit(
        self, run: RunId, verb: str, *, agent: str, arguments: Mapping[str, Any], by: tuple[str, str]
    ) -> int:
        return await self._written(
            lambda: at_once(self._memory.submit(run, verb, agent=agent, arguments=arguments, by=by))
        )

    def on_commit(self, run: RunId, callback: OnCommit | None) -> None:
        if callback is None:
            self._publish.pop(run, None)
        else:
            self._publish[run] = callback

    async def aclose(self) -> None:
        self._closed = True

    async def _written(self, body: Callable[[], Any], *, counted: bool = False) -> Any:
        """Queues a write for the next commit. Who is cancelled in it cancels the wait only."""
        if self._closed:
            raise JournalError("the journal is closed")
        done: asyncio.Future[Any] = self._loop.create_future()
        self._queue.append(_Write(body, done, counted))
        if not self._busy:
            self._busy = True
            self._loop.call_later(self._world.commit_delay(), self._commit)
        return await done

    def _commit(self) -> None:
        """One group commit: durable here, told to the loop a moment later."""
        batch, self._queue = self._queue, []
        told: list[tuple[_Write, Any, BaseException | None]] = []
        for write in batch:
            self.writes += 1
            if self._life.dies(self.writes, before=True):
                return
            try:
                if write.counted and self._world.hits(self._world.faults.write_fails):
                    raise JournalError("the simulated disk is full")
                told.append((write, write.body(), None))
            except (JournalError, StaleEpoch, RunBusy) as e:
                told.append((write, None, e))
            if self._life.dies(self.writes, before=False):
                return
        self._loop.call_later(self._world.rng.random() * 0.001, self._deliver, told)

    def _deliver(self, told: list[tuple[_Write, Any, BaseException | None]]) -> None:
        for write, result, _ in told:
            if write.counted and result:
                publish = self._publish.get(result[0].run)
                if publish is not None:
                    publish(result)
        for write, result, error in told:
            if not write.done.done():
                if error is not None:
                    write.done.set_exception(error)
                else:
                    write.done.set_result(result)
        if self._queue:
            self._loop.call_later(self._world.commit_delay(), self._commit)
        else:
            self._busy = False
