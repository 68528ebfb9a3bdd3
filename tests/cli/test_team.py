"""Team files on the command line: validate, plan, run, and the values of their inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml as pyyaml

from cli.records import Toka
from toka.config.agent import AgentConfig

TEAM = """\
toka: 1
inputs: {area: {type: string, default: src}, deep: {type: boolean, default: false}}
defaults:
  grants: {read: [.], run: [ls, wc]}
agents:
  survey:
    run: ls ${inputs.area}
    outputs: {files: {from: stdout, as: lines}}
    limits: {time: 1m}
  look:
    needs: [survey]
    for_each: ${survey.files}
    max_parallel: 4
    when: [not model.available, "${inputs.deep}"]
    approve: {question: "Look at ${survey.total}?", expires: 2h}
    run: wc -l ${item}
    check: test -n ${item}
    env: {TOKEN: "a-${secret:github}", PLAIN: visible}
    limits: {repairs: 2}
"""


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with `team.yaml` and a folder `src`; the settings name a secret."""
    settings = tmp_path / "config/toka/config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('[secrets]\ngithub = "${env:GITHUB_TOKEN}"\n')
    settings.chmod(0o600)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("GITHUB_TOKEN", "planted-github-token")
    folder = tmp_path / "project"
    (folder / "src").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOKA_STATE", str(tmp_path / "state"))
    path = folder / "team.yaml"
    path.write_text(TEAM)
    return path


def test_a_sound_team_is_valid(toka: Toka, team: Path) -> None:
    done = toka("validate", "team.yaml")
    assert (done.code, done.out) == (0, "1 file, 2 agents, 0 errors, 0 warnings\n")


def test_findings_have_their_lines_in_every_format(toka: Toka, team: Path) -> None:
    team.write_text(TEAM.replace("wc -l ${item}", "wc -l '${item}'"))
    done = toka("validate", "team.yaml")
    assert done.code == 3
    assert " --> team.yaml:16:17\n" in done.out
    assert "16 |     run: wc -l '${item}'\n" in done.out
    assert "file=team.yaml,line=16,col=17,endColumn=24" in toka("validate", "team.yaml", "--format", "github").out
    (run,) = toka("validate", "team.yaml", "--format", "sarif").json["runs"]
    (result,) = run["results"]
    place = result["locations"][0]["physicalLocation"]
    assert result["ruleId"] == "TK2015"
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("team.yaml", 16)
    (found,) = toka("validate", "team.yaml", "--json").json["findings"]
    assert (found["code"], found["line"], found["column"]) == ("TK2015", 16, 17)


def test_the_plan_shows_what_passes_between_agents(toka: Toka, team: Path) -> None:
    done = toka("plan", "team.yaml")
    assert done.code == 0, done.err
    rows = [line.strip() for line in done.lines]
    for row in (
        "inputs    area = src",
        "outputs   files: lines from stdout",
        "for each  ${survey.files}, 4 at one time",
        "when      not model.available and ${inputs.deep}",
        "approval  Look at ${survey.total}? (expires after 2h)",
        "inputs    deep = false",
        "env       TOKEN (${secret:github}), PLAIN",
        "repairs   at most 2",
    ):
        assert row in rows
    assert "visible" not in done.out


def test_the_plan_says_who_must_be_verified(toka: Toka, team: Path) -> None:
    team.write_text(TEAM.replace("needs: [survey]", "needs: {survey: {verified: true}}"))
    assert "    needs     survey (verified)" in toka("plan", "team.yaml").lines
    team.write_text(TEAM)
    assert "    needs     survey" in toka("plan", "team.yaml").lines


def test_the_plan_as_json_has_it_too(toka: Toka, team: Path) -> None:
    agents = toka("plan", "team.yaml", "--json").json["agents"]
    assert agents["survey"]["flow"]["outputs"] == {
        "files": {"source": "stdout", "path": None, "type": "lines", "description": ""}
    }
    flow = agents["look"]["flow"]
    assert flow["env"] == {"TOKEN": ["github"], "PLAIN": []}
    assert (flow["for_each"], flow["max_parallel"], flow["repairs"]) == ("${survey.files}", 4, 2)
    assert "visible" not in json.dumps(agents)


def test_findings_of_the_plan_stand_beside_their_agents(toka: Toka, team: Path) -> None:
    team.write_text(TEAM.replace("limits: {repairs: 2}", "grants: {telepathy: true}"))
    agents = toka("plan", "team.yaml", "--json").json["agents"]
    assert {n: [f["code"] for f in a["findings"] if f["code"]] for n, a in agents.items()} == {
        "survey": [], "look": ["TK4001"],
    }  # fmt: skip


def test_the_plan_finds_a_secret_that_no_settings_name(toka: Toka, team: Path) -> None:
    team.write_text(TEAM.replace("secret:github", "secret:gitlab"))
    done = toka("plan", "team.yaml")
    assert done.code == 3
    assert 'error[TK4208]: the secret "gitlab" is not there: no settings name it\n   --> team.yaml:18:21\n' in done.err
    own = team.parents[1] / "config/toka/config.toml"
    assert f'write gitlab = "${{env:NAME}}" under [secrets] in {own}' in done.err
    assert "1 error; no run would start in" in done.err
    assert toka("validate", "team.yaml").code == 0  # a matter of the settings, not of the file
    done = toka("run", "team.yaml")
    assert done.code == 4, done.err
    assert "team.yaml:18:18: ${secret:gitlab} is not there: no settings name it" in done.err
    assert toka("ps", "--all").out.startswith("No runs in")


def test_the_plan_finds_a_secret_that_is_not_set(toka: Toka, team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_TOKEN")
    done = toka("plan", "team.yaml")
    assert (done.code, "is not there: ${env:GITHUB_TOKEN} is not set" in done.err) == (3, True), done.err
    assert "= help: set it where the settings look for it" in done.err


@pytest.mark.parametrize(
    ("grants", "path", "refused"),
    [
        ("{read: [src]}", "out/list.json", True),
        ("{write: [src]}", "src", False),
        ("{read: [src]}", "src/list.json", False),
        ("{write: [out]}", "out/list.json", False),
        ("{read: true}", "anywhere", False),
        ("{python: true}", "anywhere", True),
    ],
)
def test_the_plan_finds_an_output_that_could_never_be_read(
    toka: Toka, team: Path, grants: str, path: str, refused: bool
) -> None:
    team.write_text(
        f"toka: 1\nagents:\n  a:\n    run: 'true'\n    grants: {grants}\n"
        f"    outputs:\n      o: {{from: file, path: {path}, as: json}}\n"
    )
    for command in ("plan", "run"):
        done = toka(command, "team.yaml")
        told = f'error[TK4207]: the output "o" is read from "{path}", which was not granted\n  --> team.yaml:7:29'
        assert (told in done.err) is refused, done.err
        assert done.code == (3 if refused else 0) or command == "run"


def test_the_plan_shows_all_of_a_command_and_the_first_line_of_a_goal(toka: Toka, team: Path) -> None:
    team.write_text(
        "toka: 1\ndefaults: {grants: {read: [.]}}\nagents:\n  a:\n    run: |\n      first\n\n      third\n"
        "  b:\n    goal: |\n      Do this.\n      And that.\n      Then stop.\n"
        "  c:\n    run: |\n" + "".join(f"      line{n}\n" for n in range(20))
    )
    lines = toka("plan", "team.yaml").lines
    at = lines.index("    tasks     task-1: $ first")
    assert lines[at : at + 3] == ["    tasks     task-1: $ first", " " * 14, " " * 18 + "third"] or [
        line.strip() for line in lines[at : at + 3]
    ] == ["tasks     task-1: $ first", "", "third"]
    assert "    tasks     task-1: Do this." in lines
    assert [line.strip() for line in lines].count("[... 2 more lines]") == 1
    assert [line.strip() for line in lines].count("[... 8 more lines]") == 1
    assert "line12" not in "\n".join(lines)


def test_the_expanded_agents_can_be_read_again(toka: Toka, team: Path, tmp_path: Path) -> None:
    done = toka("plan", "team.yaml", "--expanded", "--input", "area=docs")
    assert done.code == 0, done.err
    documents = done.out.split("---\n")[1:]
    configs = AgentConfig.load_team("team.yaml", inputs={"area": "docs"})
    assert tuple(AgentConfig.parse(text) for text in documents) == configs
    assert len(list(pyyaml.safe_load_all(done.out))) == 2
    for number, text in enumerate(documents):
        (tmp_path / f"{number}.yaml").write_text(text)
    assert toka("validate", *(str(tmp_path / f"{n}.yaml") for n in range(2))).code == 0


def test_a_team_with_errors_has_no_expanded_form(toka: Toka, team: Path) -> None:
    team.write_text(TEAM.replace("needs: [survey]", ""))
    done = toka("plan", "team.yaml", "--expanded")
    assert (done.code, done.out) == (3, "")
    assert done.err.count("TK3010") == 2


def test_inputs_come_from_flags_and_files(toka: Toka, team: Path) -> None:
    Path("in.yaml").write_text("area: from-a-file\ndeep: true\n")
    flow = toka("plan", "team.yaml", "--json", "--inputs", "in.yaml").json["agents"]["survey"]["flow"]
    assert flow["inputs"] == {"area": "from-a-file"}
    flow = toka("plan", "team.yaml", "--json", "--inputs", "in.yaml", "--input", "area=x").json["agents"]["survey"][
        "flow"
    ]
    assert flow["inputs"] == {"area": "x"}


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_wrong_input_stops_everything(toka: Toka, team: Path, tmp_path: Path, command: str) -> None:
    for flag in ("aera=src", "deep=maybe", "nothing"):
        done = toka(command, "team.yaml", "--input", flag)
        assert done.code == 3
        assert "TK2017" in done.err + done.out
    assert toka(command, "team.yaml", "--inputs", "none.yaml").code == 3
    assert not (tmp_path / "state").exists()


def test_a_missing_input_stops_everything(toka: Toka, team: Path, tmp_path: Path) -> None:
    team.write_text(TEAM.replace(", default: src", ""))
    for command in ("validate", "plan", "run"):
        done = toka(command, "team.yaml")
        assert done.code == 3
        assert "team.yaml:2:10" in done.err + done.out
        assert "give one: --input area=VALUE" in done.err + done.out
    assert not (tmp_path / "state").exists()
    assert toka("validate", "team.yaml", "--input", "area=src").code == 0


def test_explain_grant_knows_agents_of_a_team(toka: Toka, team: Path) -> None:
    done = toka("explain", "grant", "survey", "team.yaml", "--json")
    assert done.code == 0, done.err
    assert done.json["agent"] == "survey"


PLAIN = "toka: 1\nworkspace: {0}\nagents: {{a: {{run: pwd > where.txt, grants: {{write: true}}}}}}\n"


@pytest.mark.slow
def test_a_team_runs_in_the_workspace_that_it_names(toka: Toka, team: Path) -> None:
    team.write_text(PLAIN.format("src"))
    done = toka("run", "team.yaml", "--json")
    assert done.code == 0, done.err
    assert Path("src/where.txt").is_file()
    assert json.loads(done.lines[0])["workspace"] == str(team.parent / "src")
    (team.parent / "other").mkdir()
    assert toka("run", "team.yaml", "--workspace", "other", "--quiet").code == 0
    assert Path("other/where.txt").is_file()


def test_a_team_file_does_not_choose_a_directory_elsewhere(toka: Toka, team: Path, tmp_path: Path) -> None:
    for elsewhere in ("..", str(tmp_path), "/", "link"):
        (team.parent / "link").unlink(missing_ok=True)
        (team.parent / "link").symlink_to(tmp_path)
        team.write_text(PLAIN.format(elsewhere))
        for command in ("plan", "run"):
            done = toka(command, "team.yaml")
            assert done.code == 2, elsewhere
            assert "which is neither below it nor here" in done.err
            assert "if that is meant: --workspace" in done.err
    assert toka("plan", "team.yaml", "--workspace", "src").code == 0


def test_the_project_around_may_be_named_from_there(toka: Toka, team: Path) -> None:
    (team.parent / "agents").mkdir()
    (team.parent / "agents/team.yaml").write_text(PLAIN.format(".."))
    assert toka("plan", "agents").code == 0


def test_several_workspaces_are_a_question(toka: Toka, team: Path) -> None:
    team.write_text(PLAIN.format("src"))
    Path("b.yaml").write_text(PLAIN.format(".").replace("{a:", "{b:"))
    done = toka("plan", "team.yaml", "b.yaml")
    assert done.code == 2
    assert "b.yaml, team.yaml name different workspaces" in done.err
    team.write_text(PLAIN.format("nowhere"))
    done = toka("plan", "team.yaml")
    assert done.code == 2
    assert "nowhere is not a directory" in done.err


def test_the_schema_comes_in_several_forms(toka: Toka) -> None:
    both, team, spec = (toka("schema", *flags).json for flags in ((), ("--team",), ("--spec",)))
    assert both["if"] == {"required": ["toka"]}
    assert team["required"] == ["toka"]
    assert spec["required"] == ["metadata", "spec", "tasks"]
    assert toka("schema", "--draft", "7").json["$schema"].endswith("draft-07/schema#")
    assert toka("schema", "--markdown").out.startswith("# Keys of team files and specs\n")


@pytest.mark.slow
def test_a_large_team_is_planned(toka: Toka, team: Path) -> None:
    agents = "".join(
        f"  a{n}:\n    run: wc ${{inputs.area}}/{n}\n    outputs: {{o: {{from: stdout, as: lines}}}}\n"
        + (f"    needs: a{n - 1}\n    for_each: ${{a{n - 1}.o}}\n    check: test -n ${{item}}\n" if n else "")
        for n in range(500)
    )
    team.write_text(f"toka: 1\ninputs: {{area: src}}\ndefaults: {{grants: {{read: [.]}}}}\nagents:\n{agents}")
    done = toka("plan", "team.yaml", "--json")
    assert done.code == 0, done.err
    assert len(done.json["agents"]) == 500


def test_a_secret_that_is_written_as_a_value_is_told_how(toka: Toka, team: Path) -> None:
    team.write_text(TEAM.replace("a-${secret:github}", "${secret.token}"))
    done = toka("validate", "team.yaml")
    assert done.code == 3
    assert "did you mean ${secret:token}?" in done.out
