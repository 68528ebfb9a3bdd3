"""Inputs of a team: declared with types, given by a person, put in where they may decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.config.agent import AgentConfig
from toka.config.check import check_paths
from toka.config.inputs import UNSET, read_inputs, read_value
from toka.config.source import Source
from toka.errors import ConfigError

HEAD = "toka: 1\ninputs:\n"
BODY = "agents: {a: {run: 'echo ${inputs.x}'}}\n"


def values(declaration: str, **inputs: object) -> dict[str, Any]:
    reading = AgentConfig.read([Source("team.yaml", f"{HEAD}  x: {declaration}\n{BODY}")], inputs)
    assert [f.text for f in reading.findings] == []
    flow = reading.configs[0].flow
    assert flow is not None
    return dict(flow.inputs)


def codes(text: str, **inputs: object) -> list[str]:
    reading = AgentConfig.read([Source("team.yaml", text)], inputs)
    return [f"{f.file}:{f.line} {f.code}" for f in reading.findings]


@pytest.mark.parametrize(
    ("declaration", "value"),
    [
        ("tests/", "tests/"), ("3", 3), ("0.5", 0.5), ("true", True), ("[a, 1]", ["a", 1]), ("'3'", "3"), ("1.10", 1.1),
        ("{default: 3}", 3), ("{type: string, default: 3}", "3"), ("{type: string, default: 1.10}", "1.10"),
        ("{type: string, default: true}", "true"), ("{type: number, default: 3}", 3),
        ("{type: integer, default: 5}", 5), ("{type: list, default: 'a, b'}", ["a", "b"]),
        ("{type: boolean, default: false}", False), ("{default: [1]}", [1]), ("{description: d, default: z}", "z"),
    ],
)  # fmt: skip
def test_a_default_has_the_type_that_is_declared_or_seen(declaration: str, value: object) -> None:
    assert values(declaration) == {"x": value}


@pytest.mark.parametrize(
    ("declaration", "given_", "value"),
    [
        ("tests/", "src", "src"), ("", "src", "src"), ("3", "7", 7), ("3", 7, 7), ("0.5", "2", 2),
        ("0.5", "1e-2", 0.01),
        ("true", "false", False), ("true", False, False), ("[a]", "b,c", ["b", "c"]), ("[a]", '["b", 1]', ["b", 1]),
        ("[a]", "", []), ("[a]", ["z"], ["z"]), ("{type: string}", "$(rm -rf /); '\"\n", "$(rm -rf /); '\"\n"),
    ],
)  # fmt: skip
def test_a_given_value_is_read_by_the_type(declaration: str, given_: object, value: object) -> None:
    assert values(declaration, x=given_) == {"x": value}


@pytest.mark.parametrize(
    ("declaration", "given_"),
    [
        ("3", "three"), ("3", "3.5"), ("3", True), ("3", None), ("0.5", "nan"), ("0.5", "1e999"), ("true", "yes"),
        ("true", 1), ("[a]", "[b"), ("[a]", {"a": 1}), ("text", 3), ("text", ["a"]), ("text", "nul\0"),
        ("text", "x" * 20_001), ("[a]", ["x"] * 1_001), ("3", "9" * 30),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_a_finding_where_it_was_given(declaration: str, given_: object) -> None:
    (found,) = codes(f"{HEAD}  x: {declaration}\n{BODY}", x=given_)
    assert found.startswith("<inputs>:0 TK")


def test_a_value_that_is_missing_is_a_finding_where_it_is_declared() -> None:
    text = f"{HEAD}  x: {{type: integer}}\nagents: {{a: {{run: x, limits: {{tokens: '${{inputs.x}}'}}}}}}\n"
    assert codes(text) == ["team.yaml:3 TK2017"]
    assert codes(text, x=5) == []


def test_a_value_that_nobody_declares_is_refused() -> None:
    (found,) = AgentConfig.read([Source("t", f"{HEAD}  x: a\n{BODY}")], {"y": 1}).findings
    assert found.message == 'no team file declares an input "y"'
    assert codes("metadata: {name: a}\nspec: {}\ntasks: [x]\n", y=1) == ["<inputs>:0 TK2017"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("toka: 1\ninputs: [a]\n" + BODY, ["3 TK2017", "2 TK2002"]),
        (f"{HEAD}  'a b': c\n  x: a\n{BODY}", ["3 TK2005"]),
        (f"{HEAD}  x: {{type: text, default: a}}\n{BODY}", ["3 TK2004"]),
        (f"{HEAD}  x: {{typ: string, default: a}}\n{BODY}", ["3 TK2003"]),
        (f"{HEAD}  x: {{type: boolean, default: maybe}}\n{BODY}", ["3 TK2017"]),
    ],
)
def test_a_wrong_declaration_is_found(text: str, expected: list[str]) -> None:
    assert [c.removeprefix("team.yaml:") for c in codes(text)] == expected


def test_inputs_are_put_in_where_they_are_settled_and_stay_references_where_they_are_not() -> None:
    text = HEAD + (
        "  dir: src\n  dirs: [a, b]\n  n: 3\n  yes: true\n  who: survey\n"
        "agents:\n  survey: {run: x}\n  a:\n"
        "    run: echo ${inputs.dir} ${inputs.n}\n    title: Looks at ${inputs.dir}\n    description: $${inputs.dir}\n"
        "    grants: {read: '${inputs.dirs}', write: ['${inputs.dir}/out', '${inputs.dirs}'], run: '${inputs.yes}'}\n"
        "    limits: {cost: '$${inputs.n}', processes: '${inputs.n}', cpu: '${inputs.n}0%'}\n"
        "    needs: ['${inputs.who}']\n    timeout: ${inputs.n}m\n    when: ${inputs.yes}\n"
        "    outputs: {o: {from: file, path: '${inputs.dir}/o'}}\n"
        "    extensions: {x: '${inputs.dirs}', y: '${inputs.n}'}\n"
    )
    found = codes(text)
    assert found == ["team.yaml:15 TK5001"]  # `$$` before a brace is an escape
    reading = AgentConfig.read([Source("team.yaml", text.replace("'$${inputs.n}'", "$2"))])
    assert reading.findings == ()
    a = next(c for c in reading.configs if c.name == "a")
    assert (a.title, a.spec.description) == ("Looks at src", "${inputs.dir}")
    assert [(r.name, dict(r.arguments)) for r in a.security.capabilities_required] == [
        ("filesystem-read", {"paths": ("a", "b")}),
        ("filesystem-write", {"paths": ("src/out", "a", "b")}),
        ("command-execution", {}),
    ]
    assert (a.limits.processes, a.limits.cpu_cores, a.task_list()[0].timeout_s) == (3, 0.3, 180)
    assert list(a.dependencies.required) == ["survey"]
    assert a.extensions == {"x": ["a", "b"], "y": 3}
    assert a.flow is not None
    assert dict(a.flow.inputs) == {"dir": "src", "n": 3, "yes": True}
    assert a.task_list()[0].run == "echo ${inputs.dir} ${inputs.n}"
    assert a.flow.outputs["o"].path == "${inputs.dir}/o"


def test_a_value_is_data_and_never_a_reference() -> None:
    text = f"{HEAD}  x: a\nagents: {{a: {{run: x, description: 'about ${{inputs.x}}'}}}}\n"
    reading = AgentConfig.read([Source("t", text)], {"x": "${secret:s} ${item}"})
    assert reading.findings == ()
    assert reading.configs[0].spec.description == "about ${secret:s} ${item}"
    assert reading.configs[0].flow is None


def test_an_input_cannot_lead_out_of_the_workspace() -> None:
    text = f"{HEAD}  x: src\nagents: {{a: {{run: x, grants: {{read: ['${{inputs.x}}']}}}}}}\n"
    assert codes(text, x="../..") == ["team.yaml:4 TK4003"]
    text = f"{HEAD}  x: src\nagents: {{a: {{run: x, outputs: {{o: {{from: file, path: '${{inputs.x}}'}}}}}}}}\n"
    assert codes(text, x="/etc/passwd") == ["team.yaml:4 TK4003"]


def test_for_each_takes_an_input_of_the_right_size() -> None:
    text = f"{HEAD}  x: [a]\nagents: {{a: {{run: 'echo ${{item}}', for_each: '${{inputs.x}}'}}}}\n"
    assert codes(text, x=["b", "c"]) == []
    assert codes(text, x=[]) == ["team.yaml:4 TK2019"]
    assert codes(text.replace("[a]", "text")) == ["team.yaml:4 TK2016"]
    assert codes(text.replace("for_each", "when").replace(" ${item}", "")) == ["team.yaml:4 TK2016"]


def test_flags_win_over_files_and_files_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1.10\nx: [1, two]\nflag: true\n")
    (tmp_path / "b.json").write_text('{"x": ["b"], "other": "o"}')
    inputs = read_inputs(["other=p=q"], [tmp_path / "a.yaml", tmp_path / "b.json"])
    assert {name: one.value for name, one in inputs.given.items()} == {
        "version": "1.10", "x": ["b"], "flag": "true", "other": "p=q",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "a: 1\na: 2\n"])
def test_a_file_of_inputs_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_inputs([], [tmp_path / "a.yaml"])
    assert caught.value.findings
    with pytest.raises(ConfigError):
        read_inputs([], [tmp_path / "none.yaml"])
    with pytest.raises(ConfigError, match="gives no value"):
        read_inputs(["area"], [])


def test_a_wrong_value_of_a_file_is_shown_in_it(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text(f"{HEAD}  x: 3\n{BODY}")
    (tmp_path / "in.yaml").write_text("\nx: three\n")
    found = check_paths([tmp_path / "team.yaml"], None, read_inputs([], [tmp_path / "in.yaml"])).findings
    assert [(f.file, f.line, f.column, f.code) for f in found if f.code != "TK4004"] == [
        (str(tmp_path / "in.yaml"), 2, 4, "TK2017")
    ]
    assert "declared in" in found[0].label


@given(st.sampled_from(["string", "integer", "number", "boolean", "list"]), st.text() | st.integers() | st.none())
def test_whatever_is_given_it_is_of_the_type_or_refused(kind: str, value: object) -> None:
    read = read_value(kind, value)
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "list": (list,),
    }  # fmt: skip
    assert read is UNSET or isinstance(read, kinds[kind])
