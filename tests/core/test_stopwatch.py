from __future__ import annotations

import asyncio

import pytest

from harness import eventually
from toka.core.clock import SystemClock
from toka.core.stopwatch import Stopwatch
from toka.testing import ManualClock


async def outlast(watch: Stopwatch, seconds: float, done: asyncio.Event) -> str:
    try:
        async with watch.timeout(seconds):
            await done.wait()
    except TimeoutError:
        return "timeout"
    return "done"


async def test_seconds_count_only_while_it_is_not_held() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    await clock.advance(2)
    watch.hold()
    watch.hold()
    await clock.advance(5)
    assert (watch.held, watch.elapsed(), watch.stood()) == (True, 2, 5)
    watch.go_on()
    watch.go_on()
    await clock.advance(3)
    assert (watch.held, watch.elapsed(), watch.stood()) == (False, 5, 5)


async def test_a_timeout_stands_still_while_it_is_held_and_has_the_rest_afterwards() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    waiting = asyncio.create_task(outlast(watch, 10, asyncio.Event()))
    await clock.advance(0)
    await clock.advance(4)
    for _ in range(3):
        watch.hold()
        await clock.advance(100)
        watch.go_on()
    assert not waiting.done()
    await clock.advance(5.75)
    assert not waiting.done()
    await clock.advance(0.5)
    assert await waiting == "timeout"


async def test_a_timeout_begun_while_it_is_held_has_its_whole_time() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    watch.hold()
    waiting = asyncio.create_task(outlast(watch, 10, asyncio.Event()))
    await clock.advance(50)
    watch.go_on()
    await clock.advance(9)
    assert not waiting.done()
    await clock.advance(2)
    assert await waiting == "timeout"


async def test_a_body_that_ends_in_time_or_fails_is_left_alone() -> None:
    watch, done = Stopwatch(ManualClock()), asyncio.Event()
    waiting = asyncio.create_task(outlast(watch, 10, done))
    await asyncio.sleep(0)
    done.set()
    assert await waiting == "done"
    with pytest.raises(LookupError):
        async with watch.timeout(1):
            raise LookupError
    assert len(asyncio.all_tasks()) <= 2, "what counted for it is going"


async def test_the_machines_clock_runs_it_out() -> None:
    assert await outlast(Stopwatch(SystemClock()), 0.01, asyncio.Event()) == "timeout"
    assert await outlast(Stopwatch(SystemClock()), 0.0, asyncio.Event()) == "timeout"


async def test_who_waits_for_it_goes_on_with_it() -> None:
    watch = Stopwatch(ManualClock())
    watch.hold()
    waiting = asyncio.create_task(watch.wait_going())
    await asyncio.sleep(0)
    assert not waiting.done()
    watch.go_on()
    await eventually(waiting.done)
