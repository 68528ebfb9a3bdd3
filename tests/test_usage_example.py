"""The usage example of the architecture, as it is written there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import toka
from harness import MODEL, Team
from toka import AgentConfig, OrchestrationEngine

PROJECT = Path(__file__).resolve().parents[1]
SPEC = "agents/v0.3.0/workstreams/build-system-stabilization.yaml"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    """A copy of the shipped specs as the current directory, and a model in place of the one that `auto` finds."""
    shutil.copytree(PROJECT / "agents", tmp_path / "agents")
    monkeypatch.chdir(tmp_path)
    return Team(tmp_path)


async def test_the_usage_example_works_as_written(project: Team) -> None:
    async with project.open() as runtime:
        llm_gateway, agent_id = runtime.gateway, "build-7"
        # --- the example
        orchestration = OrchestrationEngine(runtime)
        config = AgentConfig.load_from_file("agents/v0.3.0/workstreams/build-system-stabilization.yaml")
        integration = orchestration.create_runtime_integration(runtime, llm_gateway)
        execution = await integration.start_agent_execution(config, agent_id)  # returns once the agent is running
        assert execution.progress().status in ("RUNNING", "COMPLETED")
        result = await execution.wait()  # also .pause() .resume() .stop() .progress()
        # ---
        assert result.exit_code == 0
        assert list(result.state.agents) == ["build-7"]
        tasks = config.task_list()
        assert [r.task for r in project.model.requests] == [t.id for t in tasks]
        assert execution.progress().done == execution.progress().total == len(tasks)
        assert {o.status.value for o in result.state.agents["build-7"].objectives.values()} == {"claimed"}
        await execution.stop()
        await execution.pause()
        await execution.resume()
        assert execution.progress().status == "COMPLETED"


async def test_the_runtime_of_the_example_opens_with_the_settings_of_the_process(
    project: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKA_STATE", str(project.folder / "elsewhere"))
    monkeypatch.setenv("TOKA_MODEL", MODEL)
    async with toka.open_runtime() as runtime:
        assert runtime.state == project.folder / "elsewhere"
        assert OrchestrationEngine(runtime).create_runtime_integration(runtime, runtime.gateway)
