"""What a plan says of a team before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import agent
from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig
from toka.core.capability import Capability
from toka.core.ids import AgentName
from toka.core.operator import OperatorPolicy, parse_rule
from toka.errors import ConfigError
from toka.orchestration.enforce import NO_QUOTA
from toka.orchestration.plan import AgentPlan, Plan, make_plan, mermaid
from toka.orchestration.rights import Terms
from toka.sandbox.cgroup_find import Hierarchies, Place
from toka.sandbox.enforcement import WITHOUT

COMMAND = {"description": "run it", "run": "make all"}
MACHINE = Hierarchies({"memory": [Place(2, Path("/nowhere"))]}, {"cpu": "not today", "pids": "nor this"})
"""A machine that can hold memory and nothing else."""
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


def test_the_plan_says_what_the_operator_takes_out_and_compiles_the_rest() -> None:
    rules = [parse_rule(text)[0] for text in ("filesystem-write: docs/secret", "git-access", "run_command(rm*)")]
    terms = Terms(policy=OperatorPolicy(deny=tuple(rules)), protected=("one.yaml",), hidden=("state",))
    config = agent("one", grant=[{"filesystem-write": {"paths": ["docs"]}}, "git-access", "telepathy"])
    found = only(make_plan([config], terms=terms))
    assert [t.text for t in found.taken] == [
        "filesystem-write: docs/secret (policy: deny filesystem-write: docs/secret)",
        "git-access (policy: deny git-access)",
    ]
    assert [c.name for c in found.grant.capabilities] == ["filesystem-read", "filesystem-write"]
    assert found.policy.protected == ("docs/secret", "one.yaml")
    assert found.policy.hidden == ("state",)
    assert not found.policy.git
    assert found.to_json()["taken_out"][1] == {"name": "git-access", "rule": "policy: deny git-access"}
    assert "nobody defines telepathy; it grants nothing" in found.warnings


def limited(**security: Any) -> AgentConfig:
    limits = {"max_memory": "64MB", "max_cpu": "50%", "max_disk_usage": "1GB", "max_network_bandwidth": "1Mbps"}
    return agent("one", security={"resource_limits": limits, **security})


def test_the_plan_says_how_limits_are_held_on_this_machine() -> None:
    found = only(make_plan([limited()], machine=MACHINE))
    assert [(e.limit, e.how, e.strict, why) for e, why in found.held] == [
        ("memory", "cgroup v2", True, ""),
        ("cpu", WITHOUT["cpu"], False, "not today"),
        ("disk", "counted while commands run; RLIMIT_FSIZE for one file", False, NO_QUOTA),
        ("network", "the proxy", True, ""),
    ]
    assert found.to_json()["enforcement"][1] == {
        "limit": "cpu", "how": WITHOUT["cpu"], "strict": False, "why": "not today",
    }  # fmt: skip
    assert not [w for w in found.warnings if "max_" in w], "best effort is told, not warned of"
    assert only(make_plan([limited()])).held == ()
    processes = only(make_plan([agent("one", limits={"max_processes": 5})], machine=MACHINE)).held
    assert [(e.limit, e.how, e.strict) for e, _ in processes] == [("processes", "RLIMIT_NPROC", True)]


def test_strict_limits_that_no_run_would_get_are_warned_of() -> None:
    said = [w for w in only(make_plan([limited(enforcement="strict")], machine=MACHINE)).warnings if "strict" in w]
    assert [w.partition("and ")[2].partition(" (")[0] for w in said] == [
        "max_cpu 50% is best effort",
        "max_disk_usage 1GB is best effort",
    ]
    assert said[0].endswith(": not today")


def test_limits_of_the_settings_count_and_the_usual_ones_are_not_told() -> None:
    execution = ExecutionConfig(workstream_timeout_s=60.0)
    found = only(make_plan([agent("one", limits={"timeout": "5m"})], terms=Terms(execution=execution)))
    assert found.to_json()["limits"] == {"wall_s": 60.0}
    small = ExecutionConfig(output_bytes=1_000)
    assert only(make_plan([agent("one")], terms=Terms(execution=small))).limits.output_bytes == 1_000


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
