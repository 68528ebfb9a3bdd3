"""Deciding again runs whose time was over, or that were stopped, at any moment of the starts of their agents."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent
from orchestration.test_replay_supervision import Seen, same
from runtime.test_any_moment import MANY, LateJournal, SlowJournal, begun
from toka.events.lifecycle import RunStatus
from toka.journal.poke import poke
from toka.orchestration.replay import Terms, replay
from toka.testing import ManualClock, MemoryJournal

OVER = "the run took longer than 1m"


@pytest.fixture
def seen() -> Seen:
    return []


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=[MemoryJournal, SlowJournal, LateJournal])
def timed(tmp_path: Path, request: pytest.FixtureRequest, seen: Seen, clock: ManualClock) -> Team:
    def made(_: Path, clock: Any) -> MemoryJournal:
        seen.append(request.param(clock))
        return seen[-1]

    return Team(tmp_path, journal=made, clock=clock, execution={"run_timeout_s": 60.0, "grace_s": 0.0})


def team_of(more: dict[str, Any]) -> list[Any]:
    return [agent(tasks=["a", "b"], **more), agent("two", dependencies={"required": ["one"]}), agent("three")]


@pytest.mark.parametrize("more", [{}, MANY], ids=["one", "many"])
@pytest.mark.parametrize("turns", range(0, 96, 2))
async def test_the_end_of_a_runs_time_in_the_middle_of_starts_is_decided_the_same(
    timed: Team, clock: ManualClock, seen: Seen, turns: int, more: dict[str, Any]
) -> None:
    async with timed.open() as runtime:
        session = await timed.start(runtime, *team_of(more))
        run = asyncio.create_task(session.run())
        await begun(session, turns)
        clock.jump(60.0)
        await session.team.expire(OVER)
        await run
        await session.context.recorder.close()
    await asyncio.to_thread(same, [timed], seen)


@pytest.mark.parametrize("more", [{}, MANY], ids=["one", "many"])
@pytest.mark.parametrize("turns", range(0, 96, 4))
async def test_a_process_that_begins_after_the_end_of_the_time_is_decided_the_same(
    timed: Team, clock: ManualClock, seen: Seen, turns: int, more: dict[str, Any]
) -> None:
    async with timed.open() as runtime:
        session = await timed.start(runtime, *team_of(more))
        run = asyncio.create_task(session.run())
        await begun(session, turns)
        await session.shutdown(0.0)
        await run
        await session.context.recorder.close()
        if not session.context.recorder.state.ended:
            clock.jump(60.0)
            session = await timed.resume(runtime, session.context.id)
            assert (await session.run()).status in (RunStatus.FAILED, RunStatus.COMPLETED)
            await session.context.recorder.close()
    await asyncio.to_thread(same, [timed], seen)


@pytest.mark.parametrize("asked", [False, True], ids=["deadline", "stop"])
async def test_a_process_that_died_while_it_ended_agents_is_replayed_in_silence(
    timed: Team, clock: ManualClock, seen: Seen, asked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with timed.open() as runtime:
        session = await timed.start(runtime, *team_of(MANY))
        run = asyncio.create_task(session.run())
        await begun(session, 40)
        if asked:
            await runtime.journal.submit(session.context.id, "stop", agent="", arguments={}, by=("ada", "enough"))
            poke(runtime.state, session.context.id)
        else:
            clock.jump(60.0)
            await session.team.expire(OVER)
        await run
        await session.context.recorder.close()
    (journal,) = seen
    records = journal.read(session.context.id)
    for end in range(3, len(records)):
        found = await asyncio.to_thread(replay, records[:end], journal.blob, Terms())
        assert found.same, (end, found.divergences)
    gc.collect()
    assert not caplog.records


# --- what must not be called the same ------------------------------------------------------------------------------


async def test_agents_that_were_ended_before_the_end_of_the_time_are_told(
    timed: Team, clock: ManualClock, seen: Seen
) -> None:
    async with timed.open() as runtime:
        session = await timed.start(runtime, *team_of({}))
        run = asyncio.create_task(session.run())
        await begun(session, 20)
        clock.jump(59.0)
        await session.team.expire(OVER)
        await run
        await session.context.recorder.close()
    (journal,) = seen
    assert not (await asyncio.to_thread(replay, journal.read(session.context.id), journal.blob, Terms())).same
