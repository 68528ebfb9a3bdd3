"""A team file stands for one spec an agent: what each key becomes, and where its parts stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toka.config.agent import AgentConfig
from toka.config.check import check_paths
from toka.config.source import Source
from toka.config.team_keys import AGENT, DEFAULTS, GRANTS, LIMITS
from toka.config.team_parts import CAPABILITIES
from toka.config.written import spec_data
from toka.errors import ConfigError


def team(text: str, **inputs: object) -> dict[str, AgentConfig]:
    """The agents of a sound team file."""
    reading = AgentConfig.read([Source("team.yaml", text)], inputs)
    assert [f.text for f in reading.findings if f.severity == "error"] == []
    return {str(c.name): c for c in reading.configs}


def agent(body: str, head: str = "") -> AgentConfig:
    """The agent `a` of a team; its body is indented here."""
    lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
    return team(f"toka: 1\n{head}agents:\n  a:\n{lines}")["a"]


def spec(text: str) -> AgentConfig:
    return AgentConfig.parse("metadata: {name: a}\n" + text)


WORK = "tasks: [{run: make}]\n"
NEEDED = "spec: {}\n" + WORK
SAME: dict[str, tuple[str, str]] = {
    "description": ("run: make\ndescription: Builds", "spec: {description: Builds}\n" + WORK),
    "title": ("run: make\ntitle: Builder", "spec: {name: Builder}\n" + WORK),
    "priority": ("run: make\npriority: high", "spec: {priority: high}\n" + WORK),
    "domain": ("run: make\ndomain: tools", "spec: {domain: tools}\n" + WORK),
    "model": ("goal: Build\nmodel: auto", "spec: {}\nmodel: auto\ntasks: [Build]\n"),
    "goal": ("goal: Build", "spec: {}\ntasks: [Build]\n"),
    "goal with a check": (
        "goal: Build\ncheck: make test",
        "spec: {}\ntasks: [Build]\nobjectives: [{description: Build, check: make test}]\n",
    ),
    "run": ("run: make", NEEDED),
    "run of words": ("run: [make, -j, 2, a b, $x]", "spec: {}\ntasks: [{run: \"make -j 2 'a b' '$x'\"}]\n"),
    "tasks": ("tasks: [{id: one, run: make}, Explain]", "spec: {}\ntasks: [{id: one, run: make}, Explain]\n"),
    "conditional tasks": (
        "tasks: {default: [Build], conditional: {release: [Tag]}}",
        "spec: {}\ntasks: {default: [Build], conditional: {release: [Tag]}}\n",
    ),
    "check": ("run: make\ncheck: make test", NEEDED + "objectives: [{description: make test, check: make test}]\n"),
    "check of words": (
        "run: make\ncheck: [test, -s, a b]",
        NEEDED + "objectives: [{description: \"test -s 'a b'\", check: \"test -s 'a b'\"}]\n",
    ),
    "check in full": (
        "goal: Build\ncheck: {run: [make, x], expect_exit: 2, timeout: 5m}",
        "spec: {}\ntasks: [Build]\n"
        "objectives: [{description: Build, check: {run: make x, expect_exit: 2, timeout: 5m}}]\n",
    ),
    "checks": (
        "goal: Build\ncheck: a\nchecks: [b, [c, d], {run: e, timeout: 1m}]\nobjectives: [Nice]",
        "spec: {}\ntasks: [Build]\nobjectives: [{description: Build, check: a}, {description: b, check: b},\n"
        "  {description: c d, check: c d}, {description: e, check: {run: e, timeout: 1m}}, Nice]\n",
    ),
    "checks alone": (
        "goal: Build\nchecks: a",
        "spec: {}\ntasks: [Build]\nobjectives: [{description: Build, check: a}]\n",
    ),
    "grants": (
        "run: make\ngrants: {read: [.], write: src, run: true, network: {hosts: [a.org], ports: [80]}, git: commit}",
        NEEDED
        + "security: {capabilities_required: [{filesystem-read: {paths: [.]}}, {filesystem-write: {paths: [src]}},"
        "\n  command-execution, {network-access: {hosts: [a.org], ports: [80]}}, git-access]}\n",
    ),
    "grants of git to read": (
        "run: make\ngrants: {git: read}",
        NEEDED + "security: {capabilities_required: [filesystem-read]}\n",
    ),
    "grants by their own names": (
        "run: make\ngrants: {telepathy: true, file-write: [a], node-execution: [npm], mine: {paths: [b]}}",
        NEEDED + "security: {capabilities_required: [telepathy, {file-write: {paths: [a]}},\n"
        "  {node-execution: {programs: [npm]}}, {mine: {paths: [b]}}]}\n",
    ),
    "grants taken back": (
        "run: make\ngrants: {read: true, run: false}",
        NEEDED + "security: {capabilities_required: [filesystem-read]}\n",
    ),
    "limits": (
        "run: make\nlimits: {cost: $1, time: 30m, memory: 64MB, cpu: 50%, tokens: 20k, processes: 9, disk: 1GB,\n"
        "  output: 2MB, calls: 5, tool_calls: 6, bandwidth: 1Mbps, traffic: 3MB}",
        NEEDED + "security: {resource_limits: {max_cost: $1, timeout: 30m, max_memory: 64MB, max_cpu: 50%,\n"
        "  max_tokens: 20k, max_processes: 9, max_disk_usage: 1GB, max_output: 2MB, max_model_calls: 5,\n"
        "  max_tool_calls: 6, max_network_bandwidth: 1Mbps, max_network_usage: 3MB}}\n",
    ),
    "repairs": ("goal: x\nlimits: {repairs: 2}", "spec: {}\ntasks: [x]\nflow: {repairs: 2}\n"),
    "needs": ("run: make\nneeds: b", NEEDED + "dependencies: {required: {b: {}}}\n"),
    "needs of several": ("run: make\nneeds: [b, {c: why}]", NEEDED + "dependencies: {required: {b: {}, c: why}}\n"),
    "needs in full": (
        "run: make\nneeds: {b: {verified: true}, c: {optional: true, reason: why}, d: , e: because}",
        NEEDED + "dependencies: {required: {b: {verified: true}, d: {}, e: because}, optional: {c: why}}\n",
    ),
    "dependencies": (
        "run: make\nneeds: b\ndependencies: {required: [c], optional: {d: why}}",
        NEEDED + "dependencies: {required: [b, c], optional: {d: why}}\n",
    ),
    "outputs": (
        "run: make\noutputs:\n  a: stdout\n  b: {from: stdout, as: lines}\n"
        "  c: {from: file, path: x/y, description: d}",
        NEEDED + "flow: {outputs: {a: {source: stdout}, b: {source: stdout, type: lines},\n"
        "  c: {source: file, path: x/y, description: d}}}\n",
    ),
    "outputs of a report": (
        "goal: x\noutputs: {a: report}",
        "spec: {}\ntasks: [x]\nflow: {outputs: {a: {source: report}}}\n",
    ),
    "for_each": (
        "run: make ${item}\nfor_each: [a, 1, {k: v}]\nmax_parallel: 3",
        "spec: {}\ntasks: [{run: 'make ${item}'}]\nflow: {for_each: [a, 1, {k: v}], max_parallel: 3}\n",
    ),
    "when": ("run: make\nwhen: not model.available", NEEDED + "flow: {when: not model.available}\n"),
    "approve": ("run: make\napprove: Sure?", NEEDED + "flow: {approve: Sure?}\n"),
    "approve in full": (
        "run: make\napprove: {question: Sure?, expires: 2h}",
        NEEDED + "flow: {approve: {question: Sure?, expires: 2h}}\n",
    ),
    "env": (
        "run: make\nenv: {A: '${secret:s}', B: 1.10, C: true}",
        NEEDED + "flow: {env: {A: '${secret:s}', B: '1.10', C: 'true'}}\n",
    ),
    "flow": (
        "run: 'x ${inputs.n}'\nflow: {inputs: {n: 5}}",
        "spec: {}\ntasks: [{run: 'x ${inputs.n}'}]\nflow: {inputs: {n: 5}}\n",
    ),
    "references": ("run: echo ${HOME}\nreferences: false", "spec: {}\ntasks: [{run: 'echo ${HOME}'}]\n"),
    "references that are none": ("run: make\nreferences: true", NEEDED + "flow: {}\n"),
    "an escape": ("run: echo $${HOME}", "spec: {}\ntasks: [{run: 'echo $${HOME}'}]\nflow: {}\n"),
    "an escape in prose": ("run: make\ndescription: $${x}", "spec: {description: '${x}'}\n" + WORK),
    "restart": ("run: make\nrestart: never", "spec: {}\n" + WORK + "restart: never\n"),
    "workspace": ("run: make\nworkspace: copy", "spec: {}\n" + WORK + "workspace: copy\n"),
    "retries": ("run: make\nretries: 2", "spec: {}\ntasks: [{run: make, retries: 2}]\n"),
    "timeout": (
        "timeout: 5m\ntasks: {default: [Build, {run: x, timeout: 1m}], conditional: {g: [y], h: }}",
        "spec: {}\ntasks: {default: [{description: Build, timeout: 5m}, {run: x, timeout: 1m}],\n"
        "  conditional: {g: [{description: y, timeout: 5m}], h: }}\n",
    ),
    "sandbox": ("run: make\nsandbox: false", NEEDED + "security: {sandbox: false}\n"),
    "enforcement": ("run: make\nenforcement: strict", NEEDED + "security: {enforcement: strict}\n"),
    "metadata": ("run: make\nmetadata: {version: 1.10, owner: me}", NEEDED.replace("spec", "#spec") + "spec: {}\n"),
    "spec": (
        "run: make\nspec: {owner: me, name: A}\ndescription: d",
        "spec: {owner: me, name: A, description: d}\n" + WORK,
    ),
    "objectives": ("run: make\nobjectives: [Nice]", NEEDED + "objectives: [Nice]\n"),
    "capabilities": ("run: make\ncapabilities: {primary: [x]}", NEEDED + "capabilities: {primary: [x]}\n"),
    "reporting": ("run: make\nreporting: {metrics: [speed]}", NEEDED + "reporting: {metrics: [speed]}\n"),
    "security": (
        "run: make\ngrants: {read: true}\nlimits: {time: 1m}\nsecurity: {capabilities_required: [git-access],\n"
        "  resource_limits: {max_cost: $1}, enforcement: strict}",
        NEEDED + "security: {capabilities_required: [filesystem-read, git-access], enforcement: strict,\n"
        "  resource_limits: {timeout: 1m, max_cost: $1}}\n",
    ),
    "behavioral_directives": ("run: make\nbehavioral_directives: x", NEEDED + "behavioral_directives: x\n"),
    "risk_mitigation": ("run: make\nrisk_mitigation: {monitoring: x}", NEEDED + "risk_mitigation: {monitoring: x}\n"),
    "success_criteria": ("run: make\nsuccess_criteria: {p: x}", NEEDED + "success_criteria: {p: x}\n"),
    "extensions": ("run: make\nextensions: {ours: {a: [1, 2.5, null]}}", NEEDED + "ours: {a: [1, 2.5, null]}\n"),
}
"""A key, an agent that uses it, and the spec of the same agent."""


@pytest.mark.parametrize("name", SAME)
def test_an_agent_is_the_same_as_its_spec(name: str) -> None:
    body, text = SAME[name]
    if name == "metadata":
        wanted = AgentConfig.parse("metadata: {name: a, version: 1.10, owner: me}\n" + NEEDED)
    else:
        wanted = spec(text)
    assert spec_data(agent(body)) == spec_data(wanted)
    assert agent(body) == wanted


def test_every_key_has_a_case() -> None:
    assert {name.split()[0] for name in SAME} | {"max_parallel"} >= AGENT.keys()
    assert CAPABILITIES.keys() == GRANTS.keys()
    assert {long for long, _ in LIMITS.values()} - {""} == set(spec_limits())


def spec_limits() -> list[str]:
    from toka.config.parts import ResourceLimits

    return list(ResourceLimits.model_fields)


def test_the_name_is_the_key_unless_metadata_says_otherwise() -> None:
    assert agent("run: make").name == "a"
    found = team("toka: 1\nagents: {b-c: {run: x, metadata: {name: b.c}}, d: {run: x, needs: b.c}}\n")
    assert list(found) == ["b.c", "d"]


def test_defaults_hold_where_an_agent_does_not_say_and_are_merged_key_by_key() -> None:
    head = (
        "defaults:\n  model: auto\n  grants: {read: true, run: [git]}\n  limits: {cost: $1, time: 30m, repairs: 1}\n"
        "  env: {A: x, B: y}\n  retries: 1\n  timeout: 5m\n  priority: low\n  domain: d\n  enforcement: strict\n"
    )
    plain = agent("goal: x", head)
    assert plain == spec(
        "spec: {priority: low, domain: d}\nmodel: auto\ntasks: [{description: x, retries: 1, timeout: 5m}]\n"
        "security: {capabilities_required: [filesystem-read, {command-execution: {programs: [git]}}],\n"
        "  enforcement: strict, resource_limits: {max_cost: $1, timeout: 30m}}\n"
        "flow: {env: {A: x, B: y}, repairs: 1}\n"
    )
    own = agent(
        "tasks: [{run: x, retries: 0}]\nmodel: openai:x\ngrants: {write: [src], run: [make]}\nlimits: {cost: $2}\n"
        "env: {B: z}\ntimeout: 1m\npriority: high\ndomain: e\nenforcement: best-effort",
        head,
    )
    assert own == spec(
        "spec: {priority: high, domain: e}\nmodel: openai:x\ntasks: [{run: x, retries: 0, timeout: 1m}]\n"
        "security: {capabilities_required: [filesystem-read, {command-execution: {programs: [make]}},\n"
        "  {filesystem-write: {paths: [src]}}], resource_limits: {max_cost: $2, timeout: 30m}}\n"
        "flow: {env: {A: x, B: z}, repairs: 1}\n"
    )
    assert set(DEFAULTS) <= AGENT.keys()


def test_references_may_be_off_for_all_and_on_for_one() -> None:
    found = team(
        "toka: 1\ndefaults: {references: false}\nagents:\n  a: {run: 'echo ${HOME}'}\n"
        "  b: {run: 'echo ${a.status}', needs: a, references: true}\n"
    )
    assert found["a"].flow is None
    assert found["b"].flow is not None


def test_agents_share_nothing_that_could_be_changed() -> None:
    found = team(
        "toka: 1\ndefaults: {grants: {read: &p [src]}, env: {A: x}}\nagents:\n"
        "  a: {run: x, checks: [&c {run: [a, b]}, *c], grants: {write: *p}}\n  b: {run: x, env: {B: y}}\n"
    )
    assert found["a"].flow is not None
    assert dict(found["a"].flow.env) == {"A": "x"}
    assert [o.check.run for o in found["a"].objectives if o.check] == ["a b", "a b"]


@pytest.mark.parametrize("references", ["true", "false"])
def test_what_an_alias_stands_for_is_each_agents_own(references: str) -> None:
    found = team(
        f"toka: 1\ndefaults: {{references: {references}}}\nagents:\n  a: {{tasks: &t [x], timeout: 1m}}\n"
        "  b: {tasks: *t, timeout: 2m}\n"
    )
    assert [c.task_list()[0].timeout_s for c in found.values()] == [60, 120]


TEXT = """\
toka: 1
inputs: {area: tests/}
defaults:
  limits: {cost: $1}
agents:
  survey:
    run: ls ${inputs.area}
    outputs: {files: {from: stdout, as: lines}}
    grants: {read: [.]}
  fix:
    needs: [survey]
    for_each: ${survey.files}
    goal: Mend ${item}.
    check: test -s ${item}
    limits: {time: 5m}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "team.yaml"
    path.write_text(TEXT)
    return path


def place(config: AgentConfig, *path: str | int) -> tuple[int, int]:
    position = config.position(*path)
    return position.line, position.column


def test_parts_stand_where_they_were_written(file: Path) -> None:
    fix, survey = AgentConfig.load_team(file)
    assert (fix.name, survey.name, fix.source) == ("fix", "survey", file)
    assert fix.position("metadata", "name").file == str(file)
    assert place(survey, "metadata", "name") == (6, 3)
    assert place(survey, "tasks", "default", 0, "run") == (7, 10)
    assert place(survey, "flow", "outputs", "files", "type") == (8, 41)
    assert place(survey, "security", "capabilities_required", 0, "arguments", "paths", 0) == (9, 21)
    assert place(survey, "security", "resource_limits", "max_cost") == (4, 18)
    assert place(fix, "dependencies", "required", "survey") == (11, 13)
    assert place(fix, "flow", "for_each") == (12, 15)
    assert place(fix, "tasks", "default", 0, "description") == (13, 11)
    assert place(fix, "objectives", 0, "check", "run") == (14, 12)
    assert place(fix, "security", "resource_limits", "timeout") == (15, 20)
    assert place(fix, "extensions") == (10, 3)
    assert (survey.origin.first, fix.origin.first) == ((6, 3), (10, 3))


def test_requests_know_where_they_stand(file: Path) -> None:
    (request,) = AgentConfig.load_team(file)[1].security.capabilities_required
    assert request.position is not None
    assert (request.position.file, request.position.line, request.position.column) == (str(file), 9, 14)


def test_the_record_of_a_run_holds_the_expanded_agents(file: Path) -> None:
    for config in AgentConfig.load_team(file, inputs={"area": "src"}):
        again = AgentConfig.from_json(config.to_json())
        assert again == config
        assert again.source == file
        assert again.position("metadata", "name").line == 0


def test_a_team_and_specs_are_read_together(file: Path) -> None:
    (file.parent / "last.yaml").write_text("metadata: {name: last}\nspec: {}\ntasks: [x]\ndependencies: [fix]\n")
    found = AgentConfig.load_directory(file.parent)
    assert [c.name for c in found] == ["fix", "last", "survey"]
    checked = check_paths([file, file.parent / "last.yaml", file.parent])
    assert [c.name for c in checked.configs] == ["fix", "last", "survey"]


def test_where_one_agent_is_wanted_a_team_of_one_will_do(file: Path) -> None:
    with pytest.raises(ConfigError, match="this is a team of 2 agents, where one is wanted"):
        AgentConfig.load_from_file(file)
    file.write_text("toka: 1\ninputs: {n: 1}\nagents: {a: {run: 'echo ${inputs.n}'}}\n")
    one = AgentConfig.load_from_file(file, {"n": "2"})
    assert one.flow is not None
    assert one.flow.inputs == {"n": 2}
    assert AgentConfig.parse(file.read_text()).name == "a"
    with pytest.raises(ConfigError, match='no team file declares an input "m"'):
        AgentConfig.parse(file.read_text(), inputs={"m": 1})


def test_findings_of_an_agent_are_its_own(file: Path) -> None:
    file.write_text(TEXT.replace("grants: {read: [.]}", "grants: {telepathy: true}"))
    fix, survey = AgentConfig.load_team(file)
    assert fix.findings == survey.findings == ()
    found = check_paths([file]).findings
    assert [(f.code, f.line) for f in found if f.code == "TK4001"] == [("TK4001", 9)]


def test_a_large_team_is_parsed_once_for_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toka.config import team_file

    agents = "".join(f"  a{n}: {{run: x, grants: {{telepathy: true}}}}\n" for n in range(200))
    (tmp_path / "team.yaml").write_text(f"toka: 1\nagents:\n{agents}")
    real, calls = team_file.read_nodes, list[Any]()
    monkeypatch.setattr(team_file, "read_nodes", lambda source: calls.append(source) or real(source))
    found = check_paths([tmp_path / "team.yaml"]).findings
    assert [f.line for f in found if f.code == "TK4001"] == list(range(3, 203))
    assert len(calls) == 1
