"""Team files that include others, and the directory that one names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from toka.config.agent import AgentConfig
from toka.config.check import Checked, check_paths
from toka.config.documents import MAX_INCLUDES


def checked(folder: Path, files: Mapping[str, str], *paths: str, **inputs: object) -> Checked:
    """The team at `team.yaml`, or at `paths`, of these files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return check_paths([folder / p for p in paths or ("team.yaml",)], None, inputs)


def told(found: Checked, folder: Path) -> list[str]:
    texts = [f"{Path(f.file).relative_to(folder)}:{f.line} {f.code}" for f in found.findings if f.code != "TK4004"]
    return [t for t in texts if not t.startswith("<")]


A = "agents: {a: {run: x, needs: [b, c]}}\n"
B = "toka: 1\nagents: {b: {run: x}}\n"
C = "metadata: {name: c}\nspec: {}\ntasks: [x]\n"


def test_team_files_specs_and_folders_are_included(tmp_path: Path) -> None:
    head = "toka: 1\ninclude: [more/b.yaml, ../specs]\n"
    found = checked(tmp_path / "t", {"team.yaml": head + A, "more/b.yaml": B, "../specs/c.yml": C})
    assert found.findings == tuple(f for f in found.findings if f.code == "TK4004")
    assert [c.name for c in found.configs] == ["a", "b", "c"]
    assert found.configs[1].origin.files == (tmp_path / "t/more/b.yaml", tmp_path / "t/team.yaml")
    assert {str(c.source) for c in found.configs} == {
        str(tmp_path / "t/team.yaml"), str(tmp_path / "t/more/b.yaml"), str(tmp_path / "t/../specs/c.yml"),
    }  # fmt: skip


def test_a_file_that_only_includes_is_a_team(tmp_path: Path) -> None:
    found = checked(tmp_path, {"team.yaml": "toka: 1\ninclude: b.yaml\n", "b.yaml": B})
    assert [c.name for c in found.configs] == ["b"]
    assert told(found, tmp_path) == []


def test_defaults_are_those_of_each_file_and_inputs_reach_further(tmp_path: Path) -> None:
    files = {
        "team.yaml": "toka: 1\ninputs: {x: outer, n: 3}\ndefaults: {priority: high}\ninclude: b.yaml\n",
        "b.yaml": "toka: 1\ninputs: {x: {type: string}, y: own}\nagents: {b: {run: 'e ${inputs.x} ${inputs.y}'}}\n",
    }
    found = checked(tmp_path, files)
    (b,) = found.configs
    assert told(found, tmp_path) == []
    assert b.flow is not None
    assert dict(b.flow.inputs) == {"x": "outer", "y": "own"}
    assert str(b.priority) == "medium"
    (b,) = checked(tmp_path, files, x="given", y="too").configs
    assert b.flow is not None
    assert dict(b.flow.inputs) == {"x": "given", "y": "too"}
    assert b.position("tasks", "default", 0, "run").line == 3


def test_an_inherited_value_of_another_type_is_found(tmp_path: Path) -> None:
    files = {
        "team.yaml": "toka: 1\ninputs: {x: text}\ninclude: b.yaml\n",
        "b.yaml": "toka: 1\ninputs: {x: 3}\nagents: {b: {run: 'e ${inputs.x}'}}\n",
    }
    assert [f.code for f in checked(tmp_path, files).findings if f.severity == "error"] == ["TK2017"]


def test_a_path_may_come_from_an_input(tmp_path: Path) -> None:
    files = {"team.yaml": "toka: 1\ninputs: {which: b}\ninclude: '${inputs.which}.yaml'\n", "b.yaml": B, "c.yaml": C}
    assert [c.name for c in checked(tmp_path, files).configs] == ["b"]
    assert [c.name for c in checked(tmp_path, files, which="c").configs] == ["c"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"team.yaml": "toka: 1\ninclude: [none.yaml]\n"}, ["team.yaml:2 TK1013"]),
        ({"team.yaml": "toka: 1\ninclude: [team.yaml]\n" + B[8:]}, ["team.yaml:2 TK2021"]),
        (
            {"team.yaml": "toka: 1\ninclude: b.yaml\n", "b.yaml": "toka: 1\n\ninclude: ./x/../team.yaml\n", "x/y": ""},
            ["b.yaml:3 TK2021"],
        ),
        ({"team.yaml": "toka: 1\ninclude: [b.yaml, ./b.yaml]\n", "b.yaml": B}, ["team.yaml:2 TK2021"]),
        ({"team.yaml": "toka: 1\ninclude: [5, '', {a: b}]\n"}, ["team.yaml:2 TK1013", "team.yaml:2 TK2002",
                                                                "team.yaml:2 TK2002"]),
        ({"team.yaml": "toka: 1\ninclude: empty\n", "empty/x": ""}, ["team.yaml:2 TK1012"]),
        ({"team.yaml": "toka: 1\ninclude: b.yaml\nagents: {b: {run: x}}\n", "b.yaml": B}, ["team.yaml:3 TK2008"]),
        ({"team.yaml": "toka: 1\ninclude: b.yaml\n", "b.yaml": "agents: ["}, ["b.yaml:2 TK1001"]),
    ],
)  # fmt: skip
def test_what_cannot_be_included_is_found_at_its_line(
    tmp_path: Path, files: Mapping[str, str], expected: list[str]
) -> None:
    assert told(checked(tmp_path, files), tmp_path) == expected


def test_a_double_is_a_warning_and_counts_once(tmp_path: Path) -> None:
    found = checked(tmp_path, {"team.yaml": "toka: 1\ninclude: [b.yaml, b.yaml]\n", "b.yaml": B})
    assert [f.severity for f in found.findings if f.code == "TK2021"] == ["warning"]
    assert [c.name for c in found.configs] == ["b"]


def test_a_loop_names_the_way(tmp_path: Path) -> None:
    found = checked(tmp_path, {"team.yaml": "toka: 1\ninclude: b.yaml\n", "b.yaml": "toka: 1\ninclude: team.yaml\n"})
    (loop,) = [f for f in found.findings if f.code == "TK2021"]
    assert loop.message == '"team.yaml" includes itself: team.yaml -> b.yaml -> team.yaml'


def test_a_long_chain_of_files_ends(tmp_path: Path) -> None:
    files = {f"{n}.yaml": f"toka: 1\ninclude: {n + 1}.yaml\n" for n in range(40)}
    found = checked(tmp_path, {**files, "40.yaml": B}, "0.yaml")
    assert told(found, tmp_path) == [f"{MAX_INCLUDES}.yaml:2 TK2021"]


def test_a_broken_include_does_not_make_agents_unknown(tmp_path: Path) -> None:
    found = checked(tmp_path, {"team.yaml": "toka: 1\ninclude: none.yaml\n" + A})
    assert told(found, tmp_path) == ["team.yaml:2 TK1013"]


def test_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    found = checked(tmp_path, {"team.yaml": "toka: 1\ninclude: [/dev/zero]\n"})
    assert told(found, tmp_path) == ["team.yaml:2 TK1013"]


def test_files_that_are_named_and_included_are_read_once(tmp_path: Path) -> None:
    files = {"team.yaml": "toka: 1\ninclude: b.yaml\n" + "agents: {a: {run: x, needs: b}}\n", "b.yaml": B}
    for paths in (("team.yaml", "b.yaml"), (".",)):
        assert [c.name for c in checked(tmp_path, files, *paths).configs] == ["a", "b"]


def test_the_workspace_is_told_to_all_agents_of_the_file(tmp_path: Path) -> None:
    files = {
        "t/team.yaml": "toka: 1\nworkspace: project\ninclude: [b.yaml, c.yaml]\nagents: {a: {run: x}}\n",
        "t/b.yaml": "toka: 1\nworkspace: elsewhere\nagents: {b: {run: x}}\n",
        "t/c.yaml": C,
        "d.yaml": C.replace("name: c", "name: d"),
    }
    found = checked(tmp_path, files, "t/team.yaml", "d.yaml").configs
    named = {str(c.name): (w := c.origin.workspace) and (w.path, w.file) for c in found}
    wanted = (tmp_path / "t/project", tmp_path / "t/team.yaml")
    assert named == {"a": wanted, "b": wanted, "c": wanted, "d": None}


@pytest.mark.parametrize("value", ["[a]", "{a: b}", "''", "${a.status}", "${secret:x}"])
def test_a_workspace_is_one_path(tmp_path: Path, value: str) -> None:
    found = checked(tmp_path, {"team.yaml": f"toka: 1\nworkspace: {value}\nagents: {{a: {{run: x}}}}\n"})
    assert [f.line for f in found.findings if f.severity == "error"] == [2]


def test_several_texts_are_read_too() -> None:
    from toka.config.source import Source

    reading = AgentConfig.read([Source("one", B), Source("two", "toka: 1\ninclude: x\n")])
    assert [c.name for c in reading.configs] == ["b"]
    assert [f.code for f in reading.findings] == ["TK2021"]
