"""The specs that the project was made for run to their end, together, under a scripted model.

They are not part of the project: the tests are skipped where they are absent, and nothing of their text is in here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import Team, call, memory, succeed
from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.events.event import StepDenied, StepIntent
from toka.events.lifecycle import AgentStatus
from toka.llm.model import ModelRequest
from toka.llm.script import ScriptedReply
from toka.orchestration.result import RunResult

SPECS = Path(__file__).resolve().parents[2] / "shared" / "specs"
ROOT = "build-system-stabilization"


@pytest.fixture
def specs() -> tuple[AgentConfig, ...]:
    if not SPECS.is_dir():
        pytest.skip("the original specs are not on this machine")
    return AgentConfig.load_directory(SPECS)


def answer(request: ModelRequest) -> ScriptedReply:
    """Each agent's first task tries a command and a file, then reports; all others report at once."""
    if request.task == "task-1" and request.messages[-1].role == "user":
        write = json.dumps({"path": f"{request.agent}.txt", "content": "made by an agent\n"})
        return ScriptedReply(calls=(("run_command", '{"command": "id"}'), ("write_file", write)))
    report = {"status": "succeeded", "summary": f"{request.agent} did {request.task}"}
    return ScriptedReply(calls=(("report", json.dumps(report)),))


@pytest.fixture
async def ran(tmp_path: Path, specs: tuple[AgentConfig, ...]) -> tuple[Team, RunResult]:
    team = Team(tmp_path, answer)
    return team, await team.run(*specs)


def by_name(specs: tuple[AgentConfig, ...], name: str) -> AgentConfig:
    return next(c for c in specs if c.name == name)


@pytest.mark.slow
async def test_all_specs_run_to_their_end_together(ran: tuple[Team, RunResult], specs: tuple[AgentConfig, ...]) -> None:
    team, result = ran
    assert result.exit_code == 0 and len(specs) >= 4
    assert {n: a.status for n, a in result.state.agents.items()} == {c.name: AgentStatus.COMPLETED for c in specs}
    for config in specs:
        state = result.state.agents[config.name]
        assert list(state.tasks) == [r.id for r in sorted(config.task_list(), key=lambda t: t.priority)]
        assert {t.report["summary"] for t in state.tasks.values() if t.report} == {
            f"{config.name} did {t.id}" for t in config.task_list()
        }
        claims = len(config.objectives) + sum(len(lines) for lines in config.success_criteria.values())
        assert [o.status.value for o in state.objectives.values()] == ["claimed"] * claims
        assert (team.work / f"{config.name}.txt").read_text() == "made by an agent\n"


@pytest.mark.slow
async def test_dependents_start_after_what_they_need_has_completed(
    ran: tuple[Team, RunResult], specs: tuple[AgentConfig, ...]
) -> None:
    _, result = ran
    agents = result.state.agents
    edges = [(c.name, on) for c in specs for on in (*c.dependencies.required, *c.dependencies.optional) if on in agents]
    assert sum(on == ROOT for _, on in edges) >= 3
    for name, on in edges:
        ended, started = agents[on].ended_at, agents[name].started_at
        assert ended is not None and started is not None and ended <= started


@pytest.mark.slow
async def test_prompts_hold_the_directives_the_criteria_the_extensions_and_earlier_reports(
    ran: tuple[Team, RunResult], specs: tuple[AgentConfig, ...]
) -> None:
    team, _ = ran
    for config in specs:
        first = next(r for r in team.model.requests if r.agent == config.name)
        system, prompt = first.messages[0].text, first.messages[1].text
        wanted = [
            line
            for lines in (*config.behavioral_directives.values(), *config.success_criteria.values())
            for line in lines
        ]
        wanted += [o.description for o in config.objectives] + list(config.capabilities.primary)
        missing = [line for line in wanted if " ".join(line.split()) not in system]
        assert not missing
        for name, value in config.extensions.items():
            assert f"({name})>" in system, name
            assert all(leaf in system for leaf in leaves(value))
        assert config.task_list()[0].description in prompt or first.task != "task-1"
        for on in config.dependencies.required:
            assert f"{on}: completed" in prompt and f"{on} did task-1" in prompt


def leaves(value: Any) -> list[str]:
    """The texts in a JSON value as JSON writes them, as far as sections are shown in full."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in [key, *leaves(item)]]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [json.dumps(value, ensure_ascii=False)]


@pytest.mark.slow
async def test_names_that_grant_nothing_are_denied_with_the_reason_and_the_rest_goes_on(
    ran: tuple[Team, RunResult], specs: tuple[AgentConfig, ...]
) -> None:
    team, result = ran
    name = AgentName("kernel-events-enhancement")
    asked = {r.name for r in by_name(specs, name).security.capabilities_required}
    assert "kernel-modification" in asked
    assert not any(c.name == "kernel-modification" for c in by_name(specs, name).grant().capabilities)
    for config in specs:
        may = bool(config.grant().named("command-execution"))
        ran_it = [e for e in team.events(StepIntent, config.name) if e.what == "run_command"]
        denied = team.events(StepDenied, config.name)
        assert len(denied) + len(ran_it) == 1
        assert may or denied
        assert result.state.agents[config.name].denied == len(denied)
        assert team.kinds(config.name).count("tool_denied") == len(denied)


async def test_an_agent_that_has_only_an_unknown_capability_can_run_nothing(
    tmp_path: Path, specs: tuple[AgentConfig, ...]
) -> None:
    config = by_name(specs, "kernel-events-enhancement")
    only = [r for r in config.security.capabilities_required if r.name == "kernel-modification"]
    security = config.security.model_copy(update={"capabilities_required": tuple(only)})
    alone = config.model_copy(update={"security": security, "dependencies": type(config.dependencies)()})
    script = {"default": [call("run_command", command="touch made"), {**succeed(), "repeat": True}]}
    team = Team(tmp_path, script, journal=memory)
    result = await team.run(alone)
    tasks = len(alone.task_list())
    assert (result.exit_code, result.state.agents[alone.name].denied) == (0, tasks)
    assert {e.rule for e in team.events(StepDenied)} == {"no command-execution"}
    assert [t.name for t in team.model.requests[0].tools] == ["report"], "and no tool is even shown"
    assert not list(team.work.iterdir())


@pytest.mark.slow
async def test_progress_tells_of_every_task(ran: tuple[Team, RunResult], specs: tuple[AgentConfig, ...]) -> None:
    team, result = ran
    for config in specs:
        kinds = [k for k in team.kinds(config.name) if k != "tool_denied"]
        claims = len(config.objectives) + sum(len(lines) for lines in config.success_criteria.values())
        told = ["task_started", "task_succeeded"] * len(config.task_list())
        assert kinds == ["agent_started", *told, *["objective_claimed"] * claims, "agent_completed"]
    done = result.to_json()
    assert done["state"] == "COMPLETED" and done["agents"].keys() == {c.name for c in specs}
    assert all(a["error"] is None and a["attention"] == [] for a in done["agents"].values())
