"""Who could not reach the database for longer than a lease takes over nothing that may still be alive."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from journal.conftest import RUN, Python, event, hear
from toka.core.clock import SystemClock
from toka.errors import JournalError, RunBusy, StaleEpoch
from toka.events.event import RunStateChanged
from toka.journal.database import FILE
from toka.journal.journal import LEASE_S, RENEW_S, Lease, Timing
from toka.journal.sqlite import SqliteJournal
from toka.testing import ManualClock

Open = Callable[..., SqliteJournal]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def opened(state: Path, clock: ManualClock) -> AsyncIterator[Open]:
    """Opens journals as processes of their own do, that share the machine's clock and give up on a lock at once."""
    async with AsyncExitStack() as stack:

        def opens(renew_s: float = RENEW_S) -> SqliteJournal:
            journal = SqliteJournal(state, clock, Timing(renew_s=renew_s, stall_s=0.0))
            journal._writer._connection.execute("PRAGMA busy_timeout=1")
            stack.push_async_callback(journal.aclose)
            return journal

        yield opens


@asynccontextmanager
async def locked(state: Path) -> AsyncIterator[None]:
    """Nobody can write meanwhile."""
    with closing(sqlite3.connect(state / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def turns(journal: SqliteJournal) -> None:
    """Returns when the writer has done what was asked of it so far."""
    await journal.put_blob(b"")
    await asyncio.sleep(0)


async def live_on(journal: SqliteJournal, clock: ManualClock, seconds: float) -> None:
    """Lets time pass in a process that reaches for its journal as often as it should."""
    whole, rest = divmod(seconds, RENEW_S)
    for step in [RENEW_S] * int(whole) + [rest]:
        await clock.advance(step)
        await turns(journal)


async def waits(journal: SqliteJournal, taking: asyncio.Task[Lease]) -> bool:
    """Whether an attempt to take a run still waits, now that the writer has looked at it."""
    for _ in range(5):
        await turns(journal)
    return not taking.done()


async def test_a_lease_that_ran_out_while_nobody_could_renew_is_left_alone_for_another(
    state: Path, clock: ManualClock, opened: Open
) -> None:
    executor, other = opened(), opened()
    lease = await executor.acquire(RUN)
    await executor.append(lease, "a", 1, [event("before")])
    async with locked(state):
        await clock.advance(LEASE_S + 0.1)
        with pytest.raises(JournalError, match="locked"):
            await other.acquire(RUN)
    assert (seen := other.lease(RUN)) is not None and not seen.alive, "it has run out"
    taking = asyncio.create_task(other.acquire(RUN))
    assert await waits(other, taking)
    await executor.append(lease, "a", 1, [event("went on")])
    await clock.advance(RENEW_S)
    with pytest.raises(RunBusy):
        await asyncio.wait_for(taking, 10)
    assert executor.holds(lease)


async def test_a_lease_that_is_not_renewed_in_that_time_is_taken(state: Path, clock: ManualClock, opened: Open) -> None:
    executor, other = opened(), opened()
    lost = await executor.acquire(RUN)
    await executor.append(lost, "", 1, [RunStateChanged("RUNNING")])
    async with locked(state):
        await clock.advance(LEASE_S + 0.1)
    taking = asyncio.create_task(other.acquire(RUN))
    assert await waits(other, taking)
    await live_on(other, clock, LEASE_S - 0.2)
    assert await waits(other, taking), "not a moment before"
    await live_on(other, clock, 0.3)
    lease = await taking
    assert lease.token == lost.token + 1 and dict(lease.epochs) == {"": 2}
    with pytest.raises(StaleEpoch):
        await executor.append(lost, "", 1, [RunStateChanged("WAITING")])


async def test_a_disk_that_takes_nothing_is_not_within_reach(clock: ManualClock, opened: Open) -> None:
    executor, other = opened(), opened()
    await executor.acquire(RUN)
    connection = other._writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")
    for _ in range(4):
        await clock.advance(RENEW_S)
        with pytest.raises(JournalError, match="full"):
            await other.put_blob(b"x" * 100_000)
    connection.execute("PRAGMA max_page_count=1000000")
    taking = asyncio.create_task(other.acquire(RUN))
    assert await waits(other, taking)
    await live_on(other, clock, LEASE_S + 0.1)
    assert (await taking).token == 2


async def test_who_could_reach_the_database_all_the_time_takes_it_at_once(clock: ManualClock, opened: Open) -> None:
    executor, other = opened(), opened()
    await executor.acquire(RUN)
    await live_on(other, clock, LEASE_S + 0.1)
    assert (await asyncio.wait_for(other.acquire(RUN), 10)).token == 2


async def test_who_came_after_it_takes_it_at_once(clock: ManualClock, opened: Open) -> None:
    executor = opened()
    await executor.acquire(RUN)
    await clock.advance(LEASE_S + 0.1)
    assert (await asyncio.wait_for(opened().acquire(RUN), 10)).token == 2


async def test_an_idle_process_reaches_for_the_database_too(clock: ManualClock, opened: Open) -> None:
    executor, idle = opened(0.001), opened(0.001)
    await executor.acquire(RUN)
    executor._writer.drop(RUN)  # it is frozen: it renews no more
    for _ in range(4):
        await clock.advance(RENEW_S)
        now = clock.boottime()
        async with asyncio.timeout(10):
            while idle._writer._reached < now:
                await asyncio.sleep(0.001)
    assert (await asyncio.wait_for(idle.acquire(RUN), 10)).token == 2


@pytest.mark.parametrize("free", ["released", "new"])
async def test_what_nobody_holds_is_taken_at_once(clock: ManualClock, opened: Open, free: str) -> None:
    executor, other = opened(), opened()
    if free == "released":
        await executor.release(await executor.acquire(RUN))
    await clock.advance(LEASE_S + 0.1)
    assert (await asyncio.wait_for(other.acquire(RUN), 10)).run == RUN


@pytest.mark.slow
async def test_what_a_dead_process_held_is_taken_at_once(clock: ManualClock, opened: Open, python: Python) -> None:
    other = opened()
    holder = python("await journal.acquire(run)\nsay(os.getpid())\nlisten()")
    pid = int(await hear(holder))
    os.kill(pid, signal.SIGKILL)
    holder.wait()
    await clock.advance(LEASE_S + 0.1)
    assert (await asyncio.wait_for(other.acquire(RUN), 10)).token == 2


class SleepyClock(SystemClock):
    """The machine's clock, of a machine that slept for an hour, and again during each wait that `naps` tells."""

    def __init__(self, *naps: float) -> None:
        self.ahead = 0.0
        self.waited = 0.0
        self._naps = list(naps)

    def boottime(self) -> float:
        return super().boottime() + self.ahead

    async def sleep(self, seconds: float) -> None:
        self.waited += seconds
        self.ahead += seconds + (self._naps.pop(0) if self._naps else 0.0)


@pytest.mark.parametrize(
    ("naps", "wait"), [((), LEASE_S), ((0.0, 3600.0), 2 * RENEW_S + LEASE_S), ((1.0, 1.0), LEASE_S - 2.0)]
)
async def test_after_the_machine_slept_the_wait_is_one_lease(state: Path, naps: tuple[float, ...], wait: float) -> None:
    clock = SleepyClock(*naps)
    executor, other = SqliteJournal(state, clock), SqliteJournal(state, clock)
    await executor.acquire(RUN)
    clock.ahead = 3600.0
    lease = await asyncio.wait_for(other.acquire(RUN), 10)
    assert lease.token == 2 and clock.waited == pytest.approx(wait, abs=0.5)
    await executor.aclose()
    await other.aclose()
