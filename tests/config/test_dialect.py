"""Every spelling has one meaning, and keys that nobody knows are never dropped in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding

HEAD = "metadata: {name: one}\nspec: {name: One}\n"
TASKS = "tasks: [x]\n"
Findings = Callable[[str], list[Finding]]


def section(text: str, name: str) -> Any:
    return AgentConfig.parse(HEAD + text).to_json()["spec"].get(name)


@pytest.mark.parametrize(
    "text",
    [
        "tasks: [x, {run: y}]",
        "tasks: {default: [x, {run: y}]}",
        "tasks: {default: [{description: x}, {run: y, priority: medium, depends_on: []}], conditional: }",
        "tasks:\n  default:\n  - description: x\n    timeout:\n  - run: y\n  conditional: {}",
    ],
)
def test_spellings_of_tasks(text: str) -> None:
    assert section(text, "tasks") == {"default": [{"description": "x"}, {"run": "y"}]}


@pytest.mark.parametrize(
    "text",
    [
        "dependencies: [a, b: why]",
        "dependencies: {required: [a, b: why]}",
        "dependencies: {required: [a: , {name: b, reason: why}], optional: }",
        "dependencies: {required: {a: , b: why}, optional: {}}",
        "dependencies: {required: {a: {}, b: {reason: why, verified: false}}, optional: []}",
        "dependencies: {required: [{a: '', b: why}]}",
    ],
)
def test_spellings_of_dependencies(text: str) -> None:
    assert section(TASKS + text, "dependencies") == {"required": {"a": {}, "b": {"reason": "why"}}}


@pytest.mark.parametrize("text", ["dependencies: {required: a}", "dependencies: [a]", "dependencies: {required: [a]}"])
def test_one_dependency(text: str) -> None:
    assert section(TASKS + text, "dependencies") == {"required": {"a": {}}}


@pytest.mark.parametrize(
    "text",
    [
        "reporting: {metrics: [a, b: what]}",
        "reporting: {metrics: {a: , b: what}}",
        "reporting: {metrics: [{name: a}, {name: b, description: what, type: gauge}]}",
        "reporting: {metrics: [a: {type: gauge}, b: {description: what}]}",
    ],
)
def test_spellings_of_metrics(text: str) -> None:
    assert section(TASKS + text, "reporting") == {"metrics": [{"name": "a"}, {"name": "b", "description": "what"}]}


@pytest.mark.parametrize(
    "text",
    [
        "[git-access, filesystem-read: {paths: [src]}]",
        "[git-access, filesystem-read: {paths: src}]",
        "[{git-access: {}, filesystem-read: {paths: src}}]",
        "{git-access: {}, filesystem-read: {paths: [src]}}",
    ],
)
def test_spellings_of_capabilities(text: str) -> None:
    requests = section(f"{TASKS}security: {{capabilities_required: {text}}}", "security")["capabilities_required"]
    assert requests == [{"name": "git-access"}, {"name": "filesystem-read", "arguments": {"paths": ["src"]}}]


def test_two_requests_of_one_name_are_alternatives() -> None:
    text = "security: {capabilities_required: [command-execution: {programs: [a]}, command-execution: {programs: [b]}]}"
    assert [c.programs for c in AgentConfig.parse(HEAD + TASKS + text).grant().capabilities] == [("a",), ("b",)]


@pytest.mark.parametrize("empty", ["[]", "", "~"])
def test_an_empty_argument_grants_nothing_rather_than_all(empty: str) -> None:
    text = f"security: {{capabilities_required: [filesystem-read: {{paths: {empty}}}]}}"
    config = AgentConfig.parse(HEAD + TASKS + text)
    assert config.grant().capabilities == ()
    assert [n.empty for n in config.grant_notes()] == [True]


def test_checks_and_objectives_in_short() -> None:
    assert section(TASKS + "objectives: [a, {description: b, check: make}]", "objectives") == [
        {"description": "a"}, {"description": "b", "check": {"run": "make"}},
    ]  # fmt: skip


def test_directives_and_criteria_in_short() -> None:
    assert section(TASKS + "behavioral_directives: [a]", "behavioral_directives") == {"general": ["a"]}
    assert section(TASKS + "behavioral_directives: a", "behavioral_directives") == {"general": ["a"]}
    assert section(TASKS + "success_criteria: {one: a, two: [b]}", "success_criteria") == {"one": ["a"], "two": ["b"]}


def test_sections_that_are_left_empty_are_absent() -> None:
    empty = "".join(f"{n}:\n" for n in ("model", "capabilities", "objectives", "dependencies", "reporting", "security"))
    assert AgentConfig.parse(HEAD + TASKS + empty) == AgentConfig.parse(HEAD + TASKS)


def test_numbers_are_kept_as_they_are_written_in_known_sections() -> None:
    config = AgentConfig.parse("metadata: {name: 007, version: 1.10}\nspec: {name: 1e3}\ntasks: [42]\nx: [007, 1.10]\n")
    assert (config.name, config.metadata.version, config.title) == ("007", "1.10", "1e3")
    assert config.task_list()[0].description == "42"
    assert config.extensions["x"] == [7, 1.1]


def test_further_keys_of_metadata_are_welcome(findings: Findings) -> None:
    assert findings("metadata: {name: a, reviewed_by: b}\nspec: {}\n" + TASKS) == []
    config = AgentConfig.parse("metadata: {name: a, reviewed_by: b}\nspec: {}\n" + TASKS)
    assert config.metadata.model_extra == {"reviewed_by": "b"}
    (typo,) = findings("metadata: {name: a, versoin: b}\nspec: {}\n" + TASKS)
    assert (typo.code, typo.severity, typo.help) == ("TK2003", "warning", 'did you mean "version"?')


@pytest.mark.parametrize(
    ("text", "severity", "line", "column"),
    [
        ("spec: {priorty: low}\nmetadata: {name: a}\ntasks: [x]\n", "warning", 1, 8),
        (HEAD + TASKS + "capabilities: {primry: [a]}\n", "warning", 4, 16),
        (HEAD + TASKS + "reporting: {colour: red}\n", "warning", 4, 13),
        (HEAD + TASKS + "reporting: {metrics: [{name: a, colour: red}]}\n", "warning", 4, 33),
        (HEAD + TASKS + "risk_mitigation: {high_priority_risks: [{risk: a, owner: b}]}\n", "warning", 4, 51),
        (HEAD + TASKS + "objectives: [{description: a, owner: b}]\n", "warning", 4, 31),
        (HEAD + TASKS + "objectives: [{description: a, chekc: b}]\n", "error", 4, 31),
        (HEAD + TASKS + "behavioural_directives: {a: [b]}\n", "warning", 4, 1),
        (HEAD + TASKS + "dependecies: [a]\n", "error", 4, 1),
        (HEAD + TASKS + "task: [a]\n", "none", 0, 0),
        (HEAD + "task: [a]\n", "error", 3, 1),
        (HEAD + "tasks: [{run: a, retires: 3}]\n", "error", 3, 18),
        (HEAD + "tasks: {defualt: [a], default: [x]}\n", "error", 3, 9),
        (HEAD + TASKS + "dependencies: {requried: [a]}\n", "error", 4, 16),
        (HEAD + TASKS + "dependencies: {required: {a: {verify: true}}}\n", "error", 4, 31),
        (HEAD + TASKS + "security: {sandboxed: true}\n", "error", 4, 12),
    ],
)
def test_unknown_keys(text: str, severity: str, line: int, column: int, findings: Findings) -> None:
    found = [(f.severity, f.line, f.column) for f in findings(text) if f.code == "TK2003"]
    assert found == ([] if severity == "none" else [(severity, line, column)])


def test_kept_keys_survive_the_record() -> None:
    config = AgentConfig.parse(HEAD + TASKS + "objectives: [{description: a, owner: b}]\n")
    assert config.objectives[0].model_extra == {"owner": "b"}
    assert AgentConfig.from_json(config.to_json()).objectives[0].model_extra == {"owner": "b"}


def test_aliases_in_two_sections_do_not_disturb_each_other() -> None:
    config = AgentConfig.parse(
        HEAD + "x: &t [{description: a, depends_on: b}]\ny: &p {required: &r [c]}\n"
        "tasks: {default: [{id: b, run: z}], conditional: {one: *t, two: *t}}\ndependencies: *p\nz: *r\n"
    )
    assert config.extensions["x"] == [{"description": "a", "depends_on": "b"}]
    assert config.extensions["z"] == ["c"]
    assert [t.id for t in config.task_list({"one", "two"})] == ["b", "one-1", "two-1"]
    assert list(config.dependencies.required) == ["c"]


def test_a_name_twice_in_a_list_is_an_error(findings: Findings) -> None:
    (found,) = findings(HEAD + TASKS + "dependencies: [a, b, a: again]\n")
    assert (found.code, found.line, found.column, found.label) == ("TK1006", 4, 22, "first on line 4")
