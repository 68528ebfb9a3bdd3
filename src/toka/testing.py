"""Fakes for tests, yours too: the model, the clock, randomness, and a journal in memory.

Each fake passes the same contract tests as the real thing. Everything else in a test is better real: SQLite on a
temporary directory, subprocesses, the sandbox.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from toka.core.clock import Clock, Countdown, Timer
from toka.core.ids import RunId
from toka.events.event import Event
from toka.events.record import Record
from toka.journal.journal import Command, Journal, Lease, LeaseView, OnCommit
from toka.journal.memory import MemoryJournal
from toka.journal.sqlite import SqliteJournal
from toka.llm.scripted import ScriptedModel

__all__ = ["DyingJournal", "ManualClock", "MemoryJournal", "ScriptedModel", "dying_journal"]

T = TypeVar("T")


class ManualClock:
    """Time that moves only when told to. Sleepers and timeouts wake in the order of their times."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        """Starts at `now`, wall-clock seconds; monotonic and boot time start at 0."""
        self._wall = now
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timeouts: list[tuple[float, int, asyncio.Timeout]] = []
        self._count = 0

    def now(self) -> float:
        """See Clock."""
        return self._wall

    def monotonic(self) -> float:
        """See Clock."""
        return self._elapsed

    def boottime(self) -> float:
        """See Clock."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self._elapsed + seconds, self._count, future))
        await future

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Timer]:
        """See Clock."""
        return Countdown(asyncio.timeout(None)) if seconds is None else self._timeout(seconds)

    @asynccontextmanager
    async def _timeout(self, seconds: float) -> AsyncGenerator[Timer]:
        async with asyncio.timeout(None) as real:
            timer = _ManualTimer(self, real, seconds)
            timer.go_on()
            try:
                yield timer
            finally:
                timer.hold()

    def schedule(self, seconds: float, real: asyncio.Timeout) -> tuple[float, int, asyncio.Timeout]:
        """Notes that a timeout is up in `seconds`; returns its entry."""
        self._count += 1
        entry = (self._elapsed + seconds, self._count, real)
        heapq.heappush(self._timeouts, entry)
        return entry

    def forget(self, entry: tuple[float, int, asyncio.Timeout]) -> float:
        """Takes an entry back; returns how many seconds were left."""
        self._timeouts.remove(entry)
        heapq.heapify(self._timeouts)
        return max(0.0, entry[0] - self._elapsed)

    def sleeping(self) -> list[float]:
        """How many seconds each sleeper has left, the next to wake first."""
        return [when - self._elapsed for when, _, _ in sorted(self._sleepers)]

    async def advance(self, seconds: float) -> None:
        """Lets time pass: everything that was due in between wakes, in order, and runs until it waits again."""
        goal = self._elapsed + seconds
        while (due := self._next_due()) is not None and due <= goal:
            self._wall += due - self._elapsed
            self._elapsed = due
            self._wake(due)
            await settle()
        self._wall += goal - self._elapsed
        self._elapsed = goal
        await settle()

    def jump(self, seconds: float) -> None:
        """Moves the wall clock alone, as when somebody sets it."""
        self._wall += seconds

    def _next_due(self) -> float | None:
        waiting = [when for when, _, real in self._timeouts if real.when() is None]
        waiting += [self._sleepers[0][0]] if self._sleepers else []
        return min(waiting, default=None)

    def _wake(self, due: float) -> None:
        while self._sleepers and self._sleepers[0][0] <= due:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)
        loop = asyncio.get_running_loop()
        for when, _, real in self._timeouts:
            if when <= due and real.when() is None:
                real.reschedule(loop.time())


class _ManualTimer:
    """See Timer."""

    def __init__(self, clock: ManualClock, real: asyncio.Timeout, seconds: float) -> None:
        self._clock = clock
        self._real = real
        self._left = seconds
        self._entry: tuple[float, int, asyncio.Timeout] | None = None

    def hold(self) -> None:
        if self._entry is not None:
            self._left = self._clock.forget(self._entry)
            self._entry = None

    def go_on(self) -> None:
        if self._entry is None:
            self._entry = self._clock.schedule(self._left, self._real)


async def settle(turns: int = 20) -> None:
    """Lets the event loop turn until what can run has run; enough for chains of up to `turns` awaits."""
    for _ in range(turns):
        await asyncio.sleep(0)


class Died(BaseException):
    """A DyingJournal reached its write. A BaseException, so that nothing mistakes it for a failure to handle."""


class DyingJournal:
    """A journal whose process dies at its write number `at`.

    Every write counts, from 1 and in the order in which they are asked for: append, put_blob, acquire, release, bump
    and submit. What the inner journal writes of its own accord, such as the renewal of a lease, does not.

    Attributes:
        writes: how many were asked for so far.
    """

    def __init__(
        self, inner: Journal, at: int, *, before: bool = False, die: Callable[[], object] | None = None
    ) -> None:
        """Wraps a journal.

        Args:
            inner: where writes go.
            at: which write is the last, from 1; a number that is never reached means that nobody dies.
            before: die before that write is handed on instead of as soon as it is durable.
            die: what dying is; None kills this process with SIGKILL.
        """
        self._inner = inner
        self._at = at
        self._before = before
        self._die = die or _kill
        self.writes = 0

    async def _counted(self, write: Callable[[], Awaitable[T]]) -> T:
        self.writes += 1
        number = self.writes
        if number == self._at and self._before:
            self._die()
        result = await write()
        if number >= self._at:  # above it only when that write failed, or nobody waited for it any more
            self._die()
        return result

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        """See Journal."""
        return await self._counted(lambda: self._inner.append(lease, stream, epoch, events))

    def runs(self) -> list[RunId]:
        """See Reader."""
        return self._inner.runs()

    def read(self, run: RunId, *, after: int = 0, stream: str | None = None, limit: int | None = None) -> list[Record]:
        """See Reader."""
        return self._inner.read(run, after=after, stream=stream, limit=limit)

    def last_of(self, run: RunId, stream: str, kind: str) -> Record | None:
        """See Reader."""
        return self._inner.last_of(run, stream, kind)

    def lease(self, run: RunId) -> LeaseView | None:
        """See Reader."""
        return self._inner.lease(run)

    def commands(self, run: RunId, after: int = 0) -> list[Command]:
        """See Reader."""
        return self._inner.commands(run, after)

    def blob(self, digest: str) -> bytes:
        """See Reader."""
        return self._inner.blob(digest)

    def stored(self, run: RunId) -> Iterator[tuple[int, str, str, bytes]]:
        """See Reader."""
        return self._inner.stored(run)

    def heads(self, run: RunId) -> Mapping[str, tuple[int, bytes]]:
        """See Reader."""
        return self._inner.heads(run)

    def close(self) -> None:
        """See Reader."""
        self._inner.close()

    async def acquire(self, run: RunId) -> Lease:
        """See Journal."""
        return await self._counted(lambda: self._inner.acquire(run))

    def hurry(self, lease: Lease) -> None:
        """See Journal."""
        self._inner.hurry(lease)

    async def release(self, lease: Lease) -> None:
        """See Journal."""
        await self._counted(lambda: self._inner.release(lease))

    def holds(self, lease: Lease) -> bool:
        """See Journal."""
        return self._inner.holds(lease)

    async def bump(self, lease: Lease, stream: str) -> int:
        """See Journal."""
        return await self._counted(lambda: self._inner.bump(lease, stream))

    async def put_blob(self, data: bytes) -> str:
        """See Journal."""
        return await self._counted(lambda: self._inner.put_blob(data))

    async def submit(
        self, run: RunId, verb: str, *, agent: str, arguments: Mapping[str, Any], by: tuple[str, str]
    ) -> int:
        """See Journal."""
        return await self._counted(lambda: self._inner.submit(run, verb, agent=agent, arguments=arguments, by=by))

    def on_commit(self, run: RunId, callback: OnCommit | None) -> None:
        """See Journal."""
        self._inner.on_commit(run, callback)

    async def aclose(self) -> None:
        """See Journal."""
        await self._inner.aclose()


def _kill() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def dying_journal(state: Path, clock: Clock, at: int, *, before: bool = False) -> DyingJournal:
    """The journal of a state directory, whose process is killed at its write number `at`; see `DyingJournal`.

    Args:
        state: the directory.
        clock: all time.
        at: which write is the last, from 1; 0: nobody dies.
        before: die before that write instead of as soon as it is durable.

    Raises:
        JournalError: the directory cannot be used.
    """
    return DyingJournal(SqliteJournal(state, clock), at or sys.maxsize, before=before)
