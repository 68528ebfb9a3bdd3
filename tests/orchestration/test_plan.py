"""What a plan says of a team before anything runs."""

from __future__ import annotations

import json

import pytest

from harness import agent
from toka.core.capability import Capability
from toka.core.ids import AgentName
from toka.errors import ConfigError
from toka.orchestration.plan import AgentPlan, Plan, make_plan, mermaid

COMMAND = {"description": "run it", "run": "make all"}
ONE, TWO, THREE = map(AgentName, ("one", "two", "three"))


def only(plan: Plan) -> AgentPlan:
    (found,) = plan.agents.values()
    return found


def test_waves_are_counted_from_one_and_need_what_is_required() -> None:
    plan = make_plan(
        [
            agent("three", dependencies={"required": ["two"], "optional": ["one", "absent"]}),
            agent("two", dependencies={"required": ["one"]}),
            agent("one"),
            agent("alone", priority="critical"),
        ]
    )
    assert plan.waves == (("alone", "one"), ("two",), ("three",))
    assert plan.critical_path == ("one", "two", "three")
    assert {name: a.wave for name, a in plan.agents.items()} == {"alone": 1, "one": 1, "two": 2, "three": 3}
    three = plan.agents[THREE]
    assert (three.needs, three.after) == (("two",), ("one",)), "what is absent orders nothing"
    assert (plan.agents[AgentName("alone")].priority, plan.agents[ONE].priority) == ("critical", "medium")


def test_tasks_are_told_by_what_they_do() -> None:
    found = only(
        make_plan([agent("one", tasks=[COMMAND, "Think."], conditional={"nightly": ["More."]})], enabled=["nightly"])
    )
    assert found.tasks == (
        ("task-1", "make all", True),
        ("task-2", "Think.", False),
        ("nightly-1", "More.", False),
    )
    assert len(only(make_plan([agent("one", conditional={"nightly": ["More."]})])).tasks) == 1


def test_an_agent_of_commands_needs_no_model_and_is_offered_no_tools() -> None:
    worker = only(make_plan([agent("one", tasks=[COMMAND], grant=["filesystem-read"])]))
    assert (worker.needs_model, worker.tools) == (False, ())
    thinker = only(make_plan([agent("one", grant=["filesystem-read"], model="openai:x")]))
    assert (thinker.needs_model, thinker.model) == (True, "openai:x")
    assert "read_file" in [t.name for t in thinker.tools]
    assert "write_file" not in [t.name for t in thinker.tools]
    nightly = [agent("one", tasks=[COMMAND], conditional={"nightly": ["Think."]})]
    assert [only(make_plan(nightly, enabled=e)).needs_model for e in ((), ("nightly",))] == [False, True]


def test_what_is_granted_is_what_the_sandbox_is_told() -> None:
    found = only(make_plan([agent("one", grant=[{"filesystem-write": {"paths": ["docs"]}}])]))
    assert [c.text for c in found.grant.capabilities] == ["filesystem-read: docs", "filesystem-write: docs"]
    assert found.to_json()["grant"] == [
        {"name": "filesystem-read", "paths": ["docs"]},
        {"name": "filesystem-write", "paths": ["docs"]},
    ]
    assert found.to_json()["sandbox"] == found.policy.to_json()
    presets = {"deploy": (Capability("command-execution", programs=("kubectl",)),)}
    deployer = agent("one", grant=["deploy"])
    assert only(make_plan([deployer], capabilities=presets)).grant.capabilities == presets["deploy"]
    assert only(make_plan([deployer])).grant.capabilities == ()


def test_warnings_say_what_will_not_hold() -> None:
    config = agent(
        "one",
        grant=["telepathy", "network-access"],
        limits={"max_cpu": "50%", "max_processes": 5},
    )
    said = "\n".join(only(make_plan([config])).warnings)
    for part in ("nobody defines telepathy", "max_cpu", "network-access opens nothing"):
        assert part in said
    assert "max_processes" not in said
    assert "max_processes does not bind root" in "\n".join(only(make_plan([config], root=True)).warnings)


@pytest.mark.parametrize(
    ("objectives", "edge", "warned"),
    [
        ([], "required", False),
        (["beautiful"], "required", True),
        (["beautiful", {"description": "works", "check": "true"}], "required", False),
        (["beautiful"], "optional", False),
    ],
)
def test_a_dependency_that_rests_on_claims_is_warned_of(objectives: list[object], edge: str, warned: bool) -> None:
    plan = make_plan([agent("one", objectives=objectives), agent("two", dependencies={edge: ["one"]})])
    said = "rests on claims: no objective of one has a check"
    assert (said in plan.agents[TWO].warnings) == warned
    assert said not in plan.agents[ONE].warnings


def test_the_plan_as_data_holds_only_the_limits_that_are_set() -> None:
    config = agent(
        "one", limits={"max_tokens": "2k", "timeout": "5m"}, objectives=["a", {"description": "b", "check": "true"}]
    )
    plan = make_plan([config])
    data = plan.to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["waves"] == [["one"]]
    one = data["agents"]["one"]
    assert one["limits"] == {"tokens": 2_000, "wall_s": 300.0}
    assert one["objectives"] == {"checked": 1, "total": 2}
    assert one["title"] == "One"
    assert one["tasks"] == [{"id": "task-1", "what": "Do it.", "deterministic": False}]


def test_what_cannot_be_ordered_has_no_plan() -> None:
    with pytest.raises(ConfigError, match="absent"):
        make_plan([agent("one", dependencies={"required": ["absent"]})])
    with pytest.raises(ConfigError, match=r"one -> two -> one|two -> one -> two"):
        make_plan([agent("one", dependencies={"required": ["two"]}), agent("two", dependencies={"required": ["one"]})])


def test_the_graph_has_dotted_edges_for_optional_dependencies() -> None:
    plan = make_plan(
        [
            agent("one"),
            agent("two", dependencies={"required": ["one"]}),
            agent("three", dependencies={"optional": ["one"]}),
        ]
    )
    lines = mermaid(plan).splitlines()
    assert lines[0] == "flowchart LR"
    ids = {line.partition('["')[2].removesuffix('"]'): line.split("[")[0].strip() for line in lines if "[" in line}
    assert ids.keys() == {"one", "two", "three"}
    assert f"  {ids['one']} --> {ids['two']}" in lines
    assert f"  {ids['one']} -.-> {ids['three']}" in lines
