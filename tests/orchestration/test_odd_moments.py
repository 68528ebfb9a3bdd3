"""How runs and agents end when requests, losses and crashes come at an odd moment, as the simulation found them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, call, eventually, memory, pass_time, succeed
from runtime.test_process import ONE, Door, with_door
from toka.core.ids import AgentName
from toka.errors import StaleEpoch
from toka.events.event import ExecutorAttached
from toka.events.lifecycle import AgentStatus, TaskStatus
from toka.events.steps import StepDone, StepIntent
from toka.orchestration.session import RunSession
from toka.runtime.context import Runtime
from toka.testing import ManualClock, MemoryJournal, settle


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def slow_motion(tmp_path: Path, clock: ManualClock) -> Team:
    return Team(tmp_path, journal=memory, clock=clock)


async def test_an_agent_that_is_stopped_between_two_starts_leaves_no_task_and_no_step_open(
    slow_motion: Team, clock: ManualClock
) -> None:
    with_door(slow_motion, Door(breaks=99))
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(tasks=["a", "b"]))
        run = asyncio.create_task(session.run())
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.BACKOFF)
        await session.manager.stop(ONE)
        await run
        one = session.manager.state(ONE)
    assert one.status is AgentStatus.STOPPED
    assert not any(task.in_flight for task in one.tasks.values())
    assert [task.status for task in one.tasks.values()] == [TaskStatus.CANCELLED, TaskStatus.SKIPPED]


async def test_a_process_that_lost_its_run_while_all_its_agents_rest_ends(
    slow_motion: Team, clock: ManualClock
) -> None:
    door = Door()
    with_door(slow_motion, door)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        await session.manager.pause(ONE)
        door.open.set()
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        journal = runtime.journal
        assert isinstance(journal, MemoryJournal)
        journal._held.pop(session.context.id)
        theirs = await journal.acquire(session.context.id)  # as another process does that takes it over
        await journal.append(theirs, "", theirs.epochs[""], [ExecutorAttached("elsewhere", 7, theirs.token)])
        try:
            async with asyncio.timeout(5):
                with pytest.raises(StaleEpoch):
                    await asyncio.shield(run)
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)


async def test_an_agent_ends_after_its_instances(slow_motion: Team, clock: ManualClock) -> None:
    door = Door()
    with_door(slow_motion, door, grace_s=0.2)
    many = agent("many", ["a"], flow={"for_each": ["x", "y"]})
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, many)
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside == 2)
        await runtime.journal.submit(session.context.id, "stop", agent="many", arguments={}, by=("ada", "enough"))
        await pass_time(clock, lambda: session.manager.state(AgentName("many")).ended)
        ended = [session.manager.state(AgentName(f"many[{n}]")).ended for n in (1, 2)]
        await run
    assert ended == [True, True], "whoever dies in between leaves the instances for ever"


async def test_nothing_is_recorded_after_the_end_of_the_run(slow_motion: Team, clock: ManualClock) -> None:
    door = Door()
    with_door(slow_motion, door)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        await _ask_at_the_end(runtime, session)
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        door.open.set()
        await run
        await settle()
    assert slow_motion.records[-1].event.KIND == "run_state"  # type: ignore[union-attr]


async def _ask_at_the_end(runtime: Runtime, session: RunSession) -> None:
    """Leaves a request at the moment at which the run's end is being written, and has it looked for then."""
    journal, append = runtime.journal, runtime.journal.append

    async def slowly(lease: Any, stream: str, epoch: int, events: Any) -> Any:
        records = await append(lease, stream, epoch, events)
        if not stream and getattr(events[0], "state", "") in ("COMPLETED", "FAILED"):
            await journal.submit(session.context.id, "pause", agent="", arguments={}, by=("ada", "late"))
            await asyncio.sleep(0.7)
        return records

    journal.append = slowly  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("other", ["a tool", "a command"])
async def test_nobody_writes_where_a_step_that_may_be_put_back_is_at_work(team: Team, other: str) -> None:
    """What another wrote meanwhile would be put back with it, although it is recorded as done."""
    writes = {"grant": ["filesystem-write"]}
    team.script = {"default": [call("write_file", path="theirs", content="x"), succeed()]}
    team.__post_init__()
    began = "until [ -e began ]; do sleep 0.02; done"
    work = ["Write."] if other == "a tool" else [{"run": "echo x > theirs", "effect": "idempotent"}]
    tasks = [{"run": began, "effect": "pure"}, *work]
    slow = agent("slow", tasks=[{"run": "touch began; sleep 1; ! ls theirs"}], **writes)
    result = await team.run(slow, agent("quick", tasks=tasks, **writes))
    assert result.exit_code == 0, result.reason
    done = next(r.id for r in team.records if r.stream == "slow" and isinstance(r.event, StepDone))
    acts = [r for r in team.records if r.stream == "quick" and isinstance(r.event, StepIntent)]
    (act,) = [r for r in acts if r.event.what in ("write_file", "echo x > theirs")]
    assert act.id > done
