"""`toka convert`: specs to a team file and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.records import Toka
from toka.config.agent import AgentConfig

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "specs"
TEAM = """\
toka: 1
inputs: {area: src}
agents:
  survey:
    run: "ls ${inputs.area}"
    grants: {read: ["${inputs.area}"], run: [ls]}
    outputs: {files: {from: stdout, as: lines}}
  look:
    needs: survey
    for_each: ${survey.files}
    run: wc -l ${item}
    grants: {read: [.], run: [wc]}
"""


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "team.yaml"
    path.write_text(TEAM)
    return path


def test_a_directory_of_specs_becomes_one_file_on_stdout(toka: Toka, team: Path) -> None:
    done = toka("convert", str(FIXTURES))
    assert done.code == 0, done.err
    Path("all.yaml").write_text(done.out)
    assert AgentConfig.load_team("all.yaml") == AgentConfig.load_directory(FIXTURES)
    assert toka("validate", "all.yaml").code == toka("validate", str(FIXTURES)).code


def test_and_comes_back_as_one_file_an_agent(toka: Toka, team: Path) -> None:
    assert toka("convert", str(FIXTURES), "-o", "all.yaml").code == 0
    done = toka("convert", "--to", "specs", "all.yaml", "-o", "back")
    assert done.code == 0, done.err
    assert done.err.count("wrote back/") == 5
    assert AgentConfig.load_directory("back") == AgentConfig.load_directory(FIXTURES)


def test_inputs_have_the_values_that_are_given(toka: Toka, team: Path) -> None:
    assert toka("convert", "--to", "specs", "team.yaml", "-o", "back", "--input", "area=docs").code == 0
    survey = AgentConfig.load_from_file("back/survey.yaml")
    assert survey.flow is not None
    assert survey.flow.inputs == {"area": "docs"}
    assert survey == AgentConfig.load_team("team.yaml", inputs={"area": "docs"})[1]
    assert survey.security.capabilities_required[0].arguments == {"paths": ("docs",)}


def test_nothing_is_overwritten_unasked(toka: Toka, team: Path) -> None:
    assert toka("convert", "team.yaml", "-o", "team.yaml").code == 2
    assert team.read_text() == TEAM
    refused = toka("convert", "--to", "specs", "team.yaml")
    assert refused.code == 2
    assert "say where to: -o DIR" in refused.err
    Path("back").mkdir()
    Path("back/look.yaml").write_text("mine")
    refused = toka("convert", "--to", "specs", "team.yaml", "-o", "back")
    assert refused.code == 2
    assert "back/look.yaml: there already; nothing was written" in refused.err
    assert not Path("back/survey.yaml").exists()
    assert toka("convert", "--to", "specs", "team.yaml", "-o", "back", "--force").code == 0
    assert Path("back/look.yaml").read_text() != "mine"


def test_what_has_errors_is_not_converted_and_all_are_told(toka: Toka, team: Path) -> None:
    team.write_text(TEAM.replace("wc -l ${item}", "wc -l '${item}'").replace("ls ${", "ls ${x} ${"))
    done = toka("convert", "team.yaml")
    assert done.code == 3
    assert "TK2014" in done.err
    assert "TK2015" in done.err
    assert done.out == ""


def test_a_part_of_a_team_can_be_converted(toka: Toka, team: Path) -> None:
    done = toka("convert", str(FIXTURES / "docs-site.yaml"))
    assert done.code == 0, done.err
    assert "linked-checks" in done.out


def test_two_agents_of_one_name_cannot(toka: Toka, team: Path) -> None:
    Path("other.yaml").write_text("metadata: {name: look}\nspec: {}\ntasks: [x]\n")
    done = toka("convert", "team.yaml", "other.yaml")
    assert done.code == 3
    assert "TK2008" in done.err
