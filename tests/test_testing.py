"""The fakes that Toka offers to everybody's tests."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

from toka.core.clock import Clock, SystemClock
from toka.core.ids import RunId
from toka.events.event import HoldPlaced
from toka.journal.journal import Journal, Lease
from toka.journal.memory import MemoryJournal
from toka.testing import Died, DyingJournal, ManualClock, settle

RUN = RunId("20300101-000000-aaaaaa")
OTHER = RunId("20300101-000000-bbbbbb")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


async def test_sleepers_wake_in_the_order_of_their_times_and_see_them(clock: ManualClock) -> None:
    woke: list[tuple[str, float, float]] = []

    async def sleeper(name: str, seconds: float, again: float = 0.0) -> None:
        await clock.sleep(seconds)
        woke.append((name, clock.monotonic(), clock.now()))
        if again:
            await sleeper(name, again)

    tasks = [asyncio.create_task(sleeper(*args)) for args in (("late", 9.0), ("twice", 2.0, 3.0), ("soon", 1.0))]
    await settle()
    await clock.advance(0.5)
    assert woke == []
    await clock.advance(10.0)
    assert [(name, at) for name, at, _ in woke] == [("soon", 1.0), ("twice", 2.0), ("twice", 5.0), ("late", 9.0)]
    assert all(wall == 1000.0 + at for _, at, wall in woke)
    assert clock.monotonic() == clock.boottime() == 10.5
    await asyncio.gather(*tasks)


async def test_a_timeout_expires_at_its_time_and_not_before(clock: ManualClock) -> None:
    async def body() -> str:
        try:
            async with clock.timeout(5.0):
                await asyncio.Event().wait()
        except TimeoutError:
            return f"late at {clock.monotonic():g}"
        return "in time"

    task = asyncio.create_task(body())
    await settle()
    await clock.advance(4.9)
    assert not task.done()
    await clock.advance(60.0)
    assert await task == "late at 5"


async def test_time_never_goes_back_while_what_expired_still_unwinds(clock: ManualClock) -> None:
    seen: list[float] = []

    async def body() -> None:
        try:
            async with clock.timeout(5.0):
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.shield(clock.sleep(10.0))
        except TimeoutError:
            seen.append(clock.monotonic())

    async def watcher() -> None:
        while clock.monotonic() < 20.0:
            seen.append(clock.monotonic())
            await clock.sleep(1.0)

    tasks = [asyncio.create_task(body()), asyncio.create_task(watcher())]
    await settle()
    await asyncio.wait_for(clock.advance(7.0), 5)
    await asyncio.wait_for(clock.advance(30.0), 5)
    await asyncio.gather(*tasks)
    assert seen == sorted(seen) and 15.0 in seen


async def test_setting_the_wall_clock_wakes_nobody(clock: ManualClock) -> None:
    task = asyncio.create_task(clock.sleep(5.0))
    await settle()
    clock.jump(30 * 86400.0)
    clock.jump(-3600.0)
    await settle()
    assert not task.done() and clock.monotonic() == 0.0
    assert clock.now() == 1000.0 + 30 * 86400.0 - 3600.0
    await clock.advance(5.0)
    assert task.done()


async def test_a_cancelled_sleeper_is_forgotten(clock: ManualClock) -> None:
    task = asyncio.create_task(clock.sleep(1.0))
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await clock.advance(2.0)
    assert clock.monotonic() == 2.0


@pytest.mark.parametrize("made", [ManualClock, SystemClock])
async def test_every_clock_keeps_the_same_promises(made: type[Clock]) -> None:
    clock = made()
    before = clock.monotonic()
    await clock.sleep(0.0)
    await clock.sleep(-1.0)
    async with clock.timeout(None):
        await asyncio.sleep(0)
    async with clock.timeout(60.0):
        await asyncio.sleep(0)
    assert clock.monotonic() >= before and clock.boottime() >= 0.0 and clock.now() > 0.0


async def write(journal: Journal, name: str, lease: Lease) -> object:
    """One write of a kind."""
    match name:
        case "append":
            return await journal.append(lease, "a", 1, [HoldPlaced("person")])
        case "put_blob":
            return await journal.put_blob(b"data")
        case "acquire":
            return await journal.acquire(OTHER)
        case "release":
            return await journal.release(lease)
        case "bump":
            return await journal.bump(lease, "a")
        case "submit":
            return await journal.submit(RUN, "pause", agent="a", arguments={}, by=("ada", "lunch"))
        case _:
            raise AssertionError(f"how is {name} called?")


def written(journal: MemoryJournal, lease: Lease) -> dict[str, object]:
    """What each write leaves behind."""
    return {
        "append": len(journal.read(RUN)),
        "put_blob": len(journal._blobs),
        "acquire": journal.lease(OTHER) is not None,
        "release": journal.holds(lease),
        "bump": dict(journal._epochs[RUN]),
        "submit": len(journal.commands(RUN)),
    }


WRITES = sorted(
    name for name, value in vars(Journal).items() if inspect.iscoroutinefunction(value) and name != "aclose"
)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", WRITES)
async def test_a_dying_journal_dies_at_any_kind_of_write_on_the_side_it_was_told(name: str, before: bool) -> None:
    def die() -> None:
        raise Died

    inner = MemoryJournal(SystemClock())
    lease = await inner.acquire(RUN)
    await inner.append(lease, "a", 1, [HoldPlaced("person")])
    journal = DyingJournal(inner, 2, before=before, die=die)
    await journal.submit(OTHER, "pause", agent="", arguments={}, by=("ada", ""))
    earlier = written(inner, lease)
    with pytest.raises(Died):
        await write(journal, name, lease)
    assert journal.writes == 2
    later = written(inner, lease)
    assert [each for each in later if later[each] != earlier[each]] == ([] if before else [name])


async def test_a_dying_journal_dies_at_its_own_write_when_several_are_on_their_way() -> None:
    def die() -> None:
        raise Died

    journal = DyingJournal(MemoryJournal(SystemClock()), 3, die=die)
    lease = await journal.acquire(RUN)
    outcomes = await asyncio.gather(*(write(journal, "append", lease) for _ in range(3)), return_exceptions=True)
    assert [type(o) for o in outcomes] == [list, Died, Died], "nobody goes on after it, and everybody before it did"


async def test_a_dying_journal_dies_at_the_next_write_when_nobody_waits_for_its_own() -> None:
    dead: list[int] = []
    journal = DyingJournal(MemoryJournal(SystemClock()), 2, die=lambda: dead.append(journal.writes))
    lease = await journal.acquire(RUN)
    given_up = asyncio.create_task(write(journal, "append", lease))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    assert dead == []
    await write(journal, "append", lease)
    assert dead == [3]


def test_a_dying_journal_offers_all_that_a_journal_does(tmp_path: Path) -> None:
    wanted = {n for n in dir(MemoryJournal) if not n.startswith("_")}
    assert wanted <= {n for n in dir(DyingJournal) if not n.startswith("_")}
