"""Agents that are there once for each element, and conditions: by whole runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness import Team, agent, ask, eventually, succeed
from toka.config.agent import AgentConfig
from toka.config.flow import MAX_INSTANCES
from toka.errors import StaleEpoch
from toka.events.event import AgentStateChanged, CommandApplied
from toka.events.flow import InstancesMade
from toka.events.lifecycle import AgentStatus

WRITE = ["filesystem-write"]
NEEDS_SURVEY = {"required": {"survey": {}}}


def survey(line: str = "printf 'a\\nb b\\nc;$(id)\\n'", kind: str = "lines") -> AgentConfig:
    outputs = {"names": {"source": "stdout", "type": kind}}
    return agent("survey", tasks=[{"run": line}], grant=WRITE, flow={"outputs": outputs})


def each(line: str = "printf '%s|' ${item} >> got", effect: str = "workspace", **more: Any) -> AgentConfig:
    flow = {"for_each": "${survey.names}", "max_parallel": 1, **more}
    return agent("fix", tasks=[{"run": line, "effect": effect}], grant=WRITE, dependencies=NEEDS_SURVEY, flow=flow)


def after(line: str, **edges: Any) -> AgentConfig:
    needs = {"required": {"fix": edges}}
    return agent("ship", tasks=[{"run": line}], grant=WRITE, dependencies=needs, flow={})


def ends(result: Any) -> dict[str, str]:
    return {name: state.status.value for name, state in result.state.agents.items()}


async def test_there_is_one_instance_for_each_element(team: Team) -> None:
    line = "echo ${fix.total} ${fix.completed} ${fix.status} > total"
    result = await team.run(survey(), each(), after(line))
    assert result.exit_code == 0, result.reason
    assert ends(result) == dict.fromkeys(["survey", "fix", "fix[1]", "fix[2]", "fix[3]", "ship"], "COMPLETED")
    assert (team.work / "got").read_text() == "a|b b|c;$(id)|"
    assert (team.work / "total").read_text() == "3 3 completed\n"
    (made,) = team.events(InstancesMade)
    assert made.items == ["a", "b b", "c;$(id)"]


async def test_outputs_of_instances_are_a_list(team: Team) -> None:
    out = {"said": {"source": "stdout"}}
    result = await team.run(survey(), each("echo ${item}", outputs=out), after("printf '%s' ${fix.said} > all"))
    assert result.exit_code == 0, result.reason
    assert (team.work / "all").read_text() == '["a","b b","c;$(id)"]'


async def test_no_more_work_at_one_time_than_may(team: Team) -> None:
    line = "mkdir l${item}; ls -d l* | wc -l >> most; sleep 0.2; rmdir l${item}"
    result = await team.run(survey("seq 6", "lines"), each(line, max_parallel=2, effect="idempotent"))
    assert result.exit_code == 0, result.reason
    assert max(map(int, (team.work / "most").read_text().split())) == 2


async def test_an_instance_that_fails_fails_its_agent_and_not_its_siblings(team: Team) -> None:
    result = await team.run(survey(), each("test ${item} != a"), after("true"))
    assert ends(result) | {"ship": ""} == {
        "survey": "COMPLETED", "fix": "FAILED", "fix[1]": "FAILED", "fix[2]": "COMPLETED", "fix[3]": "COMPLETED",
        "ship": "",
    }  # fmt: skip
    assert result.state.agents["fix"].reason.startswith("1 of 3 instances failed: fix[1]: task task-1: `test a != a`")
    assert result.state.agents["ship"].status is AgentStatus.SKIPPED
    assert result.exit_code == 1


async def test_keys_of_an_element_are_values_too(team: Team) -> None:
    line = """echo '[{"path": "x y", "n": 1}, {"path": "z", "n": 2}]'"""
    result = await team.run(survey(line, "list"), each("echo ${item.n} > ${item.path}"))
    assert result.exit_code == 0, result.reason
    assert {p.name for p in team.work.iterdir()} == {"x y", "z"}
    result = await team.run(survey("""echo '["x"]'""", "list"), each("echo ${item.path}"))
    assert "${item.path} has no value" in result.state.agents["fix[1]"].reason


async def test_an_empty_list_is_nothing_to_do(team: Team) -> None:
    result = await team.run(survey("true"), each(), after("true"))
    assert ends(result) == {"survey": "COMPLETED", "fix": "SKIPPED", "ship": "SKIPPED"}
    assert result.state.agents["fix"].reason == "for_each: ${survey.names} is empty"
    assert (result.exit_code, result.state.agents["ship"].why) == (0, "empty")


@pytest.mark.parametrize(
    ("line", "kind", "reason"),
    [
        (f"seq {MAX_INSTANCES + 1}", "lines", f"has {MAX_INSTANCES + 1} elements; at most {MAX_INSTANCES} are taken"),
        ("echo '{}'", "json", "${survey.names} is {}, which is no list"),
    ],
)
async def test_what_cannot_be_gone_through_fails_the_agent(team: Team, line: str, kind: str, reason: str) -> None:
    result = await team.run(survey(line, kind), each())
    assert ends(result) == {"survey": "COMPLETED", "fix": "FAILED"}
    assert reason in result.state.agents["fix"].reason


async def test_whoever_wants_it_verified_looks_at_every_instance(team: Team) -> None:
    team.script = {"agents": {"fix[2]": {"task-1": [succeed()]}}, "default": [{**succeed(), "repeat": True}]}
    team.__post_init__()
    objectives = [{"description": "done", "check": {"run": "test ${item} != never"}}, {"description": "claimed"}]
    fix = agent(
        "fix", grant=WRITE, dependencies=NEEDS_SURVEY, objectives=objectives, flow={"for_each": "${survey.names}"}
    )
    result = await team.run(survey(), fix, after("true", verified=True))
    assert ends(result)["fix"] == "COMPLETED"
    assert "only claimed" in result.state.agents["ship"].reason


async def test_instances_of_a_model_are_told_their_element(team: Team) -> None:
    fix = agent(
        "fix",
        tasks=["Mend ${item}"],
        dependencies=NEEDS_SURVEY,
        flow={"for_each": "${survey.names}", "max_parallel": 1},
    )
    assert (await team.run(survey(), fix)).exit_code == 0
    assert [r.messages[1].text.splitlines()[0] for r in team.model.requests] == [
        "Task 1 of 1: Mend a", "Task 1 of 1: Mend b b", "Task 1 of 1: Mend c;$(id)",
    ]  # fmt: skip
    assert [r.agent for r in team.model.requests] == ["fix[1]", "fix[2]", "fix[3]"]


# ---- conditions


def flag(value: str) -> AgentConfig:
    outputs = {"ready": {"source": "stdout", "type": "boolean"}}
    return agent("survey", tasks=[{"run": f"echo {value}"}], flow={"outputs": outputs})


@pytest.mark.parametrize(
    ("value", "when", "runs"),
    [
        ("true", "${survey.ready}", True),
        ("false", "${survey.ready}", False),
        ("false", "not ${survey.ready}", True),
        ("true", "model.available", True),
        ("true", "not model.available", False),
    ],
)
async def test_a_condition_decides_whether_an_agent_starts(team: Team, value: str, when: str, runs: bool) -> None:
    one = agent("one", tasks=[{"run": "touch done"}], grant=WRITE, dependencies=NEEDS_SURVEY, flow={"when": [when]})
    two = agent("two", tasks=[{"run": "true"}], dependencies={"required": {"one": {}}})
    result = await team.run(flag(value), one, two)
    assert (team.work / "done").exists() is runs
    assert result.exit_code == 0, "nobody failed"
    if not runs:
        assert (result.state.agents["one"].why, result.state.agents["two"].why) == ("when", "when")
        assert result.state.agents["one"].reason == f"when: {when} does not hold"


async def test_all_conditions_must_hold_and_inputs_are_some(team: Team) -> None:
    flow = {"when": ["${survey.ready}", "${inputs.deploy}"], "inputs": {"deploy": False}}
    one = agent("one", tasks=[{"run": "true"}], dependencies=NEEDS_SURVEY, flow=flow)
    assert ends(await team.run(flag("true"), one)) == {"survey": "COMPLETED", "one": "SKIPPED"}


async def test_a_condition_that_is_no_truth_fails(team: Team) -> None:
    one = agent("one", tasks=[{"run": "true"}], dependencies=NEEDS_SURVEY, flow={"when": ["${survey.names}"]})
    result = await team.run(survey('echo "[1]"', "json"), one)
    assert "which is neither true nor false" in result.state.agents["one"].reason


async def test_no_instance_begins_that_was_stopped_with_its_agent_while_nobody_executed_it(team: Team) -> None:
    team.execution = {**team.execution, "max_concurrent_agents": 2}
    team.__post_init__()
    found = await stopped_meanwhile(team, "fix")
    assert {name: state for name, state in found.items() if name != "survey"} == dict.fromkeys(
        ("fix", "fix[1]", "fix[2]", "fix[3]"), "STOPPED"
    )


async def stopped_meanwhile(team: Team, *names: str) -> dict[str, str]:
    """How the agents of a run end of which some were stopped while nobody executed it."""
    async with team.open() as runtime:
        line = "[ ${item} != 1 ] || sleep 30"
        session = await team.start(runtime, survey("seq 3"), each(line, effect="idempotent"))
        running = asyncio.create_task(session.run())
        await eventually(lambda: "fix[1]" in session.context.recorder.state.agents)
        await session.shutdown(0.0)
        await running
        await session.context.recorder.close()
        for name in names:
            await ask(team, session.context.id, ("stop", name))
        again = await team.resume(runtime, session.context.id)
        return ends(await again.run())


async def test_an_instance_that_was_stopped_while_nobody_executed_it_is_stopped(team: Team) -> None:
    found = await stopped_meanwhile(team, "fix[1]", "fix[3]")
    assert (found["fix[1]"], found["fix[2]"], found["fix[3]"]) == ("STOPPED", "COMPLETED", "STOPPED")


@pytest.mark.parametrize("writes", [1, 2, 3])
async def test_a_retry_of_an_instance_goes_on_wherever_its_process_died(
    team: Team, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    team.execution = {**team.execution, "task_retries": 0}
    team.__post_init__()
    async with team.open() as runtime:
        session = await team.start(runtime, survey("seq 2"), each("[ ${item} = 1 ] || [ -e good ]"))
        assert ends(await session.run())["fix"] == "FAILED"
        await session.context.recorder.close()
        (team.work / "good").touch()
        await ask(team, session.context.id, ("retry", "fix[2]"))
        dying = await team.resume(runtime, session.context.id)
        recorder, left = dying.context.recorder, [writes]
        record = recorder.record

        async def dies(stream: str, *events: Any) -> Any:
            if any(isinstance(e, CommandApplied | AgentStateChanged) for e in events):
                left[0] -= 1
                if left[0] < 0:
                    raise StaleEpoch("gone")
            return await record(stream, *events)

        monkeypatch.setattr(recorder, "record", dies)
        with pytest.raises(StaleEpoch):
            await dying.run()
        await recorder.close()
        again = await team.resume(runtime, session.context.id)
        found = ends(await again.run())
    assert {found[name] for name in ("fix", "fix[1]", "fix[2]")} == {"COMPLETED"}


async def test_stopping_an_agent_stops_its_instances(team: Team) -> None:
    async with team.open() as runtime:
        session = await team.start(runtime, survey("seq 5"), each("sleep 30", max_parallel=2), after("true"))
        running = asyncio.create_task(session.run())
        await eventually(
            lambda: sum(s.status is AgentStatus.RUNNING for s in session.context.recorder.state.agents.values()) >= 3
        )
        await ask(team, session.context.id, ("stop", "fix"))
        result = await running
    found = ends(result)
    assert found["fix"] == "STOPPED"
    assert {found[f"fix[{n}]"] for n in (1, 2, 3, 4, 5)} == {"STOPPED"}
    assert found["ship"] == "SKIPPED"
    assert [e for e in team.events(AgentStateChanged) if e.state == "FAILED"] == []
