"""A file with errors still takes part in every check: all findings come in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.config.agent import AgentConfig
from toka.config.check import check_paths

HEAD = "metadata: {name: one}\nspec: {}\n"


def codes(tmp_path: Path, **files: str) -> list[str]:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    configs, _, findings = check_paths([tmp_path])
    assert all(c.name not in ("one", "unnamed") for c in configs), "a draft is never handed out as a spec"
    return [f"{Path(f.file).stem}:{f.line} {f.code}" for f in findings if f.severity == "error"]


BAD_EVERYWHERE = """\
metadata: {name: one}
spec: {priority: hgih}
model: " a:b"
objectives: [{check: make}]
tasks:
  - {run: a, timeout: 5 parsecs, depends_on: [nobody]}
  - {id: second, description: b, depends_on: [second]}
  - {priority: high}
dependencies: {required: [ghost, one]}
reporting: {frequency: sometimes, metrics: [{type: gauge}, {name: x, type: guage}]}
security:
  sandbox: perhaps
  capabilities_required: [telepathy, [x], filesystem-read: {paths: [../x]}]
  resource_limits: {max_memory: lots}
"""


def test_one_pass_finds_what_is_wrong_in_every_section(tmp_path: Path) -> None:
    found = codes(tmp_path, a=BAD_EVERYWHERE)
    assert found == [
        "a:2 TK2004", "a:3 TK6001", "a:4 TK2001", "a:6 TK5001", "a:6 TK3004", "a:7 TK3005", "a:8 TK2001",
        "a:9 TK3001", "a:9 TK3003", "a:12 TK2002", "a:13 TK2002", "a:13 TK4003", "a:14 TK5001",
    ], found  # fmt: skip


def test_mending_what_was_reported_uncovers_nothing_new(tmp_path: Path) -> None:
    mended = BAD_EVERYWHERE
    for wrong, right in {
        "hgih": "high", '" a:b"': "auto", "[{check: make}]": "[{description: d, check: make}]", "5 parsecs": "5s",
        "[nobody]": "[second]", ", depends_on: [second]}\n  - {p": "}\n  - {description: c, p", "[ghost, one]": "[]",
        "sometimes": "daily", "{type: gauge}": "{name: y}", "guage": "gauge", "perhaps": "true",
        "[telepathy, [x], filesystem-read: {paths: [../x]}]": "[filesystem-read]", "lots": "1GB",
    }.items():  # fmt: skip
        assert wrong in mended
        mended = mended.replace(wrong, right)
    (tmp_path / "a.yaml").write_text(mended)
    configs, _, findings = check_paths([tmp_path])
    assert (len(configs), findings) == (1, ())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("tasks: [{run: [a]}, {run: b, depends_on: [task-1]}]", ["a:3 TK2002"]),
        ("tasks: [{id: /, run: a}, {run: b, depends_on: [x]}]", ["a:3 TK2005"]),
        ("tasks: 5", ["a:3 TK2002"]),
        ("tasks: {default: 5}", ["a:3 TK2002"]),
        ("tasks: [[a], {run: b, depends_on: [task-1]}, {run: c, depends_on: [task-2]}]", ["a:3 TK2002"]),
        ("tasks: [a]\nsecurity: {capabilities_required: [{name: [x]}]}\nobjectives: [{description: a, check: b}]",
         ["a:4 TK2002"]),
    ],
)  # fmt: skip
def test_nothing_is_reported_that_only_follows_from_another_mistake(
    tmp_path: Path, body: str, expected: list[str]
) -> None:
    assert codes(tmp_path, a=HEAD + body) == expected


def test_a_grant_with_an_error_is_not_called_empty(tmp_path: Path) -> None:
    tasks = HEAD + "tasks: [{run: a}]\n"
    for security, empty in (("", True), ("security: {capabilities_required: [[x]]}", False)):
        (tmp_path / "a.yaml").write_text(tasks + security)
        assert ("TK4004" in [f.code for f in check_paths([tmp_path]).findings]) == empty


def test_an_agent_whose_spec_is_wrong_is_not_unknown(tmp_path: Path) -> None:
    needy = "metadata: {name: two}\nspec: {}\ntasks: [x]\ndependencies: {required: [one, ghost]}\n"
    assert codes(tmp_path, a=HEAD + "tasks: [{run: a, timeout: x}]\n", b=needy) == ["a:3 TK5001", "b:4 TK3001"]


@pytest.mark.parametrize(
    "head", ["spec: {}\n", "metadata: {name: '/'}\nspec: {}\n", "metadata: 5\nspec: 7\n", "a: [\n"]
)
def test_when_a_name_is_not_known_no_agent_is_called_unknown(tmp_path: Path, head: str) -> None:
    needy = "metadata: {name: unnamed}\nspec: {}\ntasks: [x]\ndependencies: {required: [one]}\n"
    found = [f.code for f in check_paths(_written(tmp_path, a=head + "tasks: [x]\n", b=needy)).findings]
    assert "TK3001" not in found
    assert "TK2008" not in found, "the stand-in of a name clashes with nothing"


def test_circles_and_clashes_go_through_files_with_errors(tmp_path: Path) -> None:
    a = HEAD + "model: [1]\ntasks: [x]\ndependencies: {required: [two]}\n"
    b = "metadata: {name: two}\nspec: {}\ntasks: [x]\ndependencies: {required: [one]}\n"
    c = HEAD + "tasks: [x]\n"
    assert codes(tmp_path, a=a, b=b) == ["a:3 TK2002", "a:5 TK3003"]
    (tmp_path / "c.yaml").write_text(c)
    assert "TK2008" in [f.code for f in check_paths([tmp_path]).findings]


def test_a_check_with_an_error_is_not_taken_for_a_claim(tmp_path: Path) -> None:
    a = HEAD + "tasks: [x]\nobjectives: [{description: a, check: {run: b, timeout: x}}]\n"
    b = "metadata: {name: two}\nspec: {}\ntasks: [x]\ndependencies: {required: {one: {verified: true}}}\n"
    assert codes(tmp_path, a=a, b=b) == ["a:4 TK5001"]


WORDS = st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from(["", "a", "one", "5s", "x y", "/"]))
VALUES = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["name", "id", "run", "description", "default", "required", "check", "paths", "type", "q"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=8,
)
SECTIONS = st.sampled_from(
    ["metadata", "spec", "model", "capabilities", "objectives", "tasks", "dependencies", "reporting", "security"]
)


@given(st.dictionaries(SECTIONS, VALUES, max_size=5))
def test_any_shape_ends_in_findings(data: dict[str, object]) -> None:
    import json
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.yaml").write_text(json.dumps(data))
        reading = AgentConfig.read([folder])
        check_paths([folder])
    wrong = any(f.severity == "error" for f in reading.findings)
    assert wrong != bool(reading.configs)


def _written(folder: Path, **files: str) -> list[Path]:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return [folder]
