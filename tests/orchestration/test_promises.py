"""What a run began with is what it goes on with; what did not run is never reported as done."""

from __future__ import annotations

import asyncio

import pytest

from harness import Team, agent
from toka.config.agent import AgentConfig
from toka.errors import ModelUnavailable, UsageError
from toka.events.event import SandboxReady
from toka.events.lifecycle import AgentStatus, RunStatus
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest


def presets(team: Team, paths: str) -> None:
    (team.folder / "toka.toml").write_text(
        f'[capabilities.docs-editing]\nfilesystem-write = {{ paths = ["{paths}"] }}\n'
    )


@pytest.mark.slow
async def test_a_resumed_run_keeps_the_capabilities_it_was_made_with(team: Team) -> None:
    presets(team, "docs")
    config = agent(
        "one",
        tasks=[{"id": "t", "description": "t", "run": "true"}],
        security={"capabilities_required": ["docs-editing"]},
    )
    async with team.open() as runtime:
        session = await team.start(runtime, config)
        await session.context.recorder.close()
    presets(team, ".")
    async with team.open() as runtime:
        again = await team.resume(runtime, session.context.id)
        await again.run()
        await again.context.recorder.close()
    (ready,) = team.events(SandboxReady)
    assert ready.policy["writes"] == ["docs"]


async def test_a_task_that_waits_for_a_group_that_is_off_refuses_the_run(team: Team) -> None:
    config = AgentConfig.parse(
        """
metadata: {name: one}
spec: {name: One}
tasks:
  default: [{id: deploy, description: deploy, depends_on: [extra]}]
  conditional: {more: [{id: extra, description: extra}]}
"""
    )
    async with team.open() as runtime:
        engine = OrchestrationEngine(runtime)
        with pytest.raises(UsageError, match="deploy waits for extra"):
            await engine.start(RunRequest([config], team.work))
        assert runtime.journal.runs() == []
        assert list(engine.check(RunRequest([config], team.work, ("more",)))) == ["one"]


async def test_a_run_in_which_nothing_ran_is_not_done(team: Team) -> None:
    async def nothing(model: str) -> str:
        raise ModelUnavailable("no model found", tried=["nobody"])

    async with team.open() as runtime:
        object.__setattr__(runtime, "resolve_model", nothing)
        session = await team.start(runtime, agent("one"))
        result = await session.run()
        await session.context.recorder.close()
    assert result.state.agents["one"].status is AgentStatus.SKIPPED
    assert (result.status, result.exit_code) == (RunStatus.FAILED, 4)
    assert "no model" in result.reason


async def test_malformed_calls_of_one_reply_are_one_chance_to_learn(team: Team) -> None:
    bad = {"name": "read_file", "arguments": "{"}
    team.script = {
        "default": [{"raw_calls": [bad, bad]}, {"report": {"status": "succeeded", "summary": "learnt"}}],
    }
    team.__post_init__()
    result = await team.run(agent("one", grant=["filesystem-read"]))
    assert result.status is RunStatus.COMPLETED


@pytest.mark.slow
async def test_a_model_call_cut_off_by_a_timeout_is_charged_at_its_reservation(team: Team) -> None:
    team.script = {"default": [{"report": {"status": "succeeded", "summary": "late"}, "delay": "20s"}]}
    team.__post_init__()
    result = await asyncio.wait_for(
        team.run(agent("one", tasks=[{"id": "t", "description": "t", "timeout": "300ms"}])), 10
    )
    assert result.state.agents["one"].usage.calls == 1
    assert result.state.agents["one"].usage.output_tokens > 0
