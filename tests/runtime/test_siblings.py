"""Tasks of one agent that run side by side do not end each other's steps."""

from __future__ import annotations

import asyncio

import pytest

from harness import Team, agent, eventually
from toka.events.event import StepFailed, TaskStateChanged
from toka.events.lifecycle import AgentStatus, TaskStatus
from toka.testing import ManualClock


@pytest.mark.slow
async def test_a_task_that_times_out_leaves_its_siblings_alone(team: Team) -> None:
    team.execution = {"max_concurrent_tasks": 3}
    team.__post_init__()
    tasks = [
        {"id": "x", "description": "x", "run": "sleep 20", "timeout": "500ms"},
        {"id": "y", "description": "y", "run": "sleep 1; echo y"},
        {"id": "z", "description": "z", "run": "sleep 1; echo z"},
    ]
    result = await team.run(agent("par", tasks=tasks))
    state = result.state.agents["par"]
    assert state.status is AgentStatus.FAILED
    assert {t.id: t.status for t in state.tasks.values()} == {
        "x": TaskStatus.FAILED,
        "y": TaskStatus.SUCCEEDED,
        "z": TaskStatus.SUCCEEDED,
    }
    assert state.tasks["x"].reason == "timed out after 0.5 s"
    assert [e.step for e in team.events(StepFailed)] == ["x/1/1/run/0"]


@pytest.mark.slow
async def test_the_time_a_task_has_left_counts_earlier_executions(team: Team) -> None:
    """The first executor leaves after the task's first attempt; the second has only the rest of the timeout."""
    clock = ManualClock()
    team.clock = clock
    team.execution = {"task_retries": 5, "retry_base_s": 8.0, "retry_cap_s": 8.0}
    team.script = {"default": [{"report": {"status": "failed", "summary": "not yet"}, "repeat": True}]}
    team.__post_init__()
    config = agent("one", tasks=[{"id": "t", "description": "t", "timeout": "20s"}])
    async with team.open() as runtime:
        session = await team.start(runtime, config)
        run = asyncio.create_task(session.run())
        await eventually(
            lambda: team.events(TaskStateChanged) and team.events(TaskStateChanged)[-1].state == "RETRY_WAIT"
        )
        await clock.advance(7.5)
        await eventually(lambda: len(team.model.requests) >= 1)
        await clock.advance(8)
        await eventually(lambda: len(team.model.requests) >= 2)
        await session.shutdown(0)
        await run
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        rest = asyncio.create_task(again.run())
        for _ in range(20):
            await clock.advance(1)
            await asyncio.sleep(0.03)  # the journal's thread is real
            if rest.done():
                break
        result = await asyncio.wait_for(rest, 20)
        await again.context.recorder.close()
    task = result.state.agents["one"].tasks["t"]
    assert task.reason == "timed out after 20 s"
    assert clock.monotonic() < 36, "the second executor did not start the clock anew"
