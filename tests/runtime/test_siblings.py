"""Tasks of one agent that run side by side do not end each other's steps."""

from __future__ import annotations

import pytest

from harness import Team, agent
from toka.events.event import StepFailed
from toka.events.lifecycle import AgentStatus, TaskStatus


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
