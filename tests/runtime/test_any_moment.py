"""What comes while agents start: the end of a run's time, and a stop, at every moment; also when writes take time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import BOUND_S, MODEL, Team, agent
from toka.core.ids import AgentName
from toka.events.event import Event
from toka.events.lifecycle import AGENT_ENDS, TASK_ENDS, RunStatus, TaskStatus
from toka.events.record import Record
from toka.journal.journal import Lease
from toka.testing import MemoryJournal, settle

ONE = AgentName("one")
ENDED = (RunStatus.FAILED, RunStatus.COMPLETED, RunStatus.STOPPED)
MANY = {"flow": {"for_each": ["x", "y", "z"]}}


class SlowJournal(MemoryJournal):
    """Writes some turns of the loop after it was asked to, whoever waits for that."""

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        """See Journal."""

        async def later() -> list[Record]:
            await settle(7)
            return await MemoryJournal.append(self, lease, stream, epoch, events)

        return await asyncio.shield(asyncio.ensure_future(later()))

    async def bump(self, lease: Lease, stream: str) -> int:
        """See Journal. Comes after what was asked before."""
        await settle(7)
        return await super().bump(lease, stream)


class LateJournal(MemoryJournal):
    """Writes at once; whoever waits for that hears of it some turns later."""

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        """See Journal."""
        records = await super().append(lease, stream, epoch, events)
        await settle(9 if not stream else 2)
        return records


@pytest.fixture(params=[MemoryJournal, SlowJournal, LateJournal])
def any_journal(tmp_path: Path, request: pytest.FixtureRequest) -> Team:
    return Team(tmp_path, journal=lambda _, clock: request.param(clock))


async def begun(session: Any, turns: int) -> None:
    """Returns some turns after the first agent was launched, or its instances were recorded."""
    for _ in range(10_000):
        if session.team.executes(ONE) or session.manager.state(ONE).made is not None:
            break
        await asyncio.sleep(0)
    await settle(turns)


def all_ended(session: Any) -> bool:
    agents = session.context.recorder.state.agents.values()
    tasks = [task for agent in agents for task in agent.tasks.values()]
    return all(a.status in AGENT_ENDS for a in agents) and all(
        task.status in TASK_ENDS and not task.in_flight for task in tasks if task.status is not TaskStatus.QUEUED
    )


@pytest.mark.parametrize("more", [{}, MANY], ids=["one", "many"])
@pytest.mark.parametrize("turns", range(72))
async def test_the_end_of_a_runs_time_at_any_moment_of_a_start_ends_it_legally(
    any_journal: Team, turns: int, more: dict[str, Any]
) -> None:
    async with any_journal.open() as runtime:
        session = await any_journal.start(
            runtime, agent(tasks=["a", "b"], **more), agent("two", dependencies={"required": ["one"]})
        )
        run = asyncio.create_task(session.run())
        await begun(session, turns)
        await asyncio.wait_for(session.team.expire("the run took longer than 1m"), BOUND_S)
        assert (await asyncio.wait_for(run, BOUND_S)).status in ENDED
        assert all_ended(session)


async def test_the_end_of_a_runs_time_while_a_model_is_looked_for_starts_nobody(any_journal: Team) -> None:
    asked, found = asyncio.Event(), asyncio.Event()

    async def resolve(_: str) -> str:
        asked.set()
        await found.wait()
        return MODEL

    async with any_journal.open() as runtime:
        runtime = replace(runtime, resolve_model=resolve)
        session = await any_journal.start(runtime, agent(flow={"when": ["model.available"]}))
        run = asyncio.create_task(session.run())
        await asyncio.wait_for(asked.wait(), BOUND_S)
        await session.team.expire("the run took longer than 1m")
        found.set()
        assert (await asyncio.wait_for(run, BOUND_S)).status in ENDED
        assert all_ended(session)


@pytest.mark.parametrize("turns", range(48))
async def test_a_stop_at_any_moment_of_a_slow_start_ends_it_legally(any_journal: Team, turns: int) -> None:
    any_journal.execution = {"grace_s": 0.0}
    async with any_journal.open() as runtime:
        session = await any_journal.start(runtime, agent(tasks=["a", "b"]))
        run = asyncio.create_task(session.run())
        await begun(session, turns)
        await asyncio.wait_for(session.manager.stop(ONE, "enough"), BOUND_S)
        assert (await asyncio.wait_for(run, BOUND_S)).status in ENDED
        assert all_ended(session)


@pytest.mark.parametrize("later", [0, 3, 6])
@pytest.mark.parametrize("turns", range(0, 48, 2))
async def test_the_end_of_a_runs_time_in_the_middle_of_a_stop_ends_it_legally(
    any_journal: Team, turns: int, later: int
) -> None:
    any_journal.execution = {"grace_s": 0.0}
    async with any_journal.open() as runtime:
        session = await any_journal.start(runtime, agent(tasks=["a", "b"]))
        run = asyncio.create_task(session.run())
        await begun(session, turns)
        stop = asyncio.create_task(session.manager.stop(ONE, "enough"))
        await settle(later)
        await asyncio.wait_for(session.team.expire("the run took longer than 1m"), BOUND_S)
        await asyncio.wait_for(stop, BOUND_S)
        assert (await asyncio.wait_for(run, BOUND_S)).status in ENDED
        assert all_ended(session)
