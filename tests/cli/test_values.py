"""Values that pass between agents of real runs: they are data wherever they go, and people can see them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cli.records import Toka

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
TEAM = """\
toka: 1
defaults: {grants: {read: [.]}}
agents:
  survey:
    run: cat values.json
    outputs: {values: {from: stdout, as: list}}
  each:
    needs: [survey]
    for_each: ${survey.values}
    run: python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' ${item} "<${item}>" --x=${item}
    check: [python3, -c, "import json, sys; sys.exit(sys.argv[1] not in json.load(open('values.json')))", "${item}"]
    outputs: {got: {from: stdout, as: json}}
  words:
    needs: [survey]
    for_each: ${survey.values}
    run: [python3, -c, "import json, sys; print(json.dumps(sys.argv[1:]))", "${item}", "<${item}>", "$(echo no) ; *"]
    outputs: {got: {from: stdout, as: json}}
  all:
    needs: [each]
    run: python3 -c 'import json, sys; print(json.dumps(json.loads(sys.argv[1])))' ${each.got}
    outputs: {got: {from: stdout, as: json}}
"""
NASTY = [
    "$(touch owned)", "`touch owned`", "; touch owned #", "' ; touch owned ; '", '" ; touch owned ; "', "a\nb\n", "\n",
    "${IFS}", "${inputs.x}", "$HOME", "*", "-rf", "--help", "a  b\t", "\\", "'\\''", '"', "&& touch owned",
    "| tee owned", "> owned", "é漢😀", "\x1b[31m", "\r\n", "!!", "~", "{a,b}", "#", "=", "$'x'", "\u202e", "\u2028",
]  # fmt: skip
"""What a shell, a terminal or our own references would make something of."""
VALUES = st.lists(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40) | st.sampled_from(NASTY),
    min_size=1,
    max_size=6,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOKA_STATE", str(tmp_path / "state"))
    (folder / "team.yaml").write_text(TEAM)
    return folder


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
@example(NASTY)
def test_a_value_is_data_in_every_command(toka: Toka, project: Path, values: list[str]) -> None:
    (project / "values.json").write_text(json.dumps(values))
    done = toka("run", "team.yaml", "--json")
    assert done.code == 0, done.out + done.err
    agents = toka("show", "@last", "--json").json["agents"]
    for number, value in enumerate(values, 1):
        one, other = agents[f"each[{number}]"], agents[f"words[{number}]"]
        assert one["item"] == value
        assert one["outputs"]["got"] == [value, f"<{value}>", f"--x={value}"]
        assert one["objectives"][0]["state"] == "verified"
        assert other["outputs"]["got"] == [value, f"<{value}>", "$(echo no) ; *"]
    assert agents["all"]["outputs"]["got"] == [
        agents[f"each[{n}]"]["outputs"]["got"] for n in range(1, len(values) + 1)
    ]
    assert sorted(path.name for path in project.iterdir()) == ["team.yaml", "values.json"]


def test_what_was_left_is_shown_wherever_one_looks(toka: Toka, project: Path) -> None:
    (project / "values.json").write_text(json.dumps(["one", {"deep": [1]}, "\x1b[31mred"]))
    (project / "team.yaml").write_text(TEAM.partition("    run: python3")[0] + "    run: echo ${item}\n")
    done = toka("run", "team.yaml")
    assert done.code == 0, done.out + done.err
    lines = toka("show", "@last").lines
    assert '  left  values = ["one", {"deep": [1]}, "\\u001b[31mred"]' in lines
    assert "  item  one" in lines
    assert '  item  {"deep": [1]}' in lines
    assert "  item  \\x1b[31mred" in lines or "  item  ␛[31mred" in lines
    logs = toka("logs", "@last").out
    assert 'left values = ["one", {"deep": [1]}' in logs
    assert "is there 3 times, once for each element" in logs
    assert "$ echo one" in logs
    assert """$ echo '{"deep":[1]}'""" in logs
    resources = toka("show", "@last", "--resources").out
    assert "echo one" in resources
    assert "${item}" not in logs + resources
    instances = toka("show", "@last", "each").out
    assert instances.count("SUCCEEDED") == 3, "an agent is shown with its instances"
    assert "each[2]" in toka("logs", "@last", "each").out
    assert "\x1b" not in logs
    agents = toka("show", "@last", "--json").json["agents"]
    assert agents["survey"]["outputs"] == {"values": ["one", {"deep": [1]}, "\x1b[31mred"]}
    assert agents["each[2]"]["item"] == {"deep": [1]}
    assert "item" not in agents["survey"]
    assert agents["each[1]"]["outputs"] == {}


def test_large_values_are_shown_too(toka: Toka, project: Path) -> None:
    values = [f"{n} {'x' * 400}" for n in range(100)]
    (project / "values.json").write_text(json.dumps(values))
    (project / "team.yaml").write_text(TEAM.partition("    run: python3")[0] + "    run: 'true'\n")
    done = toka("run", "team.yaml")
    assert done.code == 0, done.out + done.err
    agents = toka("show", "@last", "--json").json["agents"]
    assert agents["survey"]["outputs"] == {"values": values}
    assert agents["each[100]"]["item"] == values[99]
    (line,) = (line for line in toka("show", "@last", "survey").lines if line.startswith("  left  "))
    assert line.startswith('  left  values = ["0 xxx')
    assert line.endswith("more characters]")
