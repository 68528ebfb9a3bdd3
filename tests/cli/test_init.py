"""`toka init`: what it finds, what it writes, and that the team runs as written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jsonschema_rs
import pytest

from cli.records import Ran, Toka
from toka.cli import detect as detection
from toka.cli.detect import Found
from toka.cli.teams import project_team, starter_team
from toka.config.agent import AgentConfig
from toka.config.check import check
from toka.config.nodes import plain
from toka.config.source import Source
from toka.config.team_schema import team_schema
from toka.config.yaml import read_nodes

UNITTEST = "import unittest\n\n\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertTrue(True)\n"
NODE = '{"name": "x", "version": "1.0.0", "scripts": {"test": "node check.js"}}'


@pytest.fixture
def project(toka: Toka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory, empty. No model answers; the state is elsewhere."""
    monkeypatch.setenv("TOKA_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("TOKA_STATE", str(tmp_path / "state"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def fill(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def done(ran: Ran) -> dict[str, dict[str, object]]:
    """The agents in the last record of `--json`."""
    return json.loads(ran.out.splitlines()[-1])["agents"]


# --- the team runs as written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "command", "source"),
    [
        ({"Makefile": "all:\n\ntest: all\n\t@echo all is well\n"}, "make test", "Makefile"),
        ({"GNUmakefile": "check:\n\t@true\n"}, "make check", "GNUmakefile"),
        ({"test_a.py": UNITTEST, "README": ""}, "python3 -m unittest", "test_a.py"),
        ({"tests/test_a.py": UNITTEST}, "python3 -m unittest discover -s tests", "tests/test_a.py"),
        (
            {"tests/test_a.py": UNITTEST, "tests/__init__.py": "", "src/it/__init__.py": ""},
            "PYTHONPATH=src python3 -m unittest discover -s tests -t .",
            "tests/test_a.py",
        ),
        ({"package.json": NODE, "check.js": "process.exit(0)\n"}, "npm test", "package.json"),
    ],
)
def test_team_runs_the_tests_of_the_project_and_they_must_pass(
    toka: Toka, project: Path, files: Mapping[str, str], command: str, source: str
) -> None:
    if not shutil.which(command.split()[0].removeprefix("PYTHONPATH=src") or "python3", path="/usr/bin:/bin"):
        pytest.skip(f"no {command} below /usr")
    fill(project, files)
    written = toka("init")
    assert written.code == 0, written.err
    assert f"found `{command}`" in written.out and f"from {source}\n" in written.out
    ran = toka("run", "agents", "--json")
    assert ran.code == 0, ran.out
    agents = done(ran)
    assert {name: a["state"] for name, a in agents.items()} == {
        "surveyor": "COMPLETED", "tester": "COMPLETED", "reporter": "COMPLETED", "explainer": "SKIPPED",
    }  # fmt: skip
    assert agents["tester"]["objectives"] == [{"number": 1, "title": "The tests pass", "state": "verified"}]
    assert (project / "toka-report/tests.txt").read_text().endswith("exit 0\n")
    report = (project / "toka-report/report.md").read_text()
    assert "    exit 0" in report and "files by extension" in report


@pytest.mark.slow
def test_failing_tests_fail_the_run_and_are_reported_all_the_same(toka: Toka, project: Path) -> None:
    fill(project, {"Makefile": "test:\n\t@echo it is broken; exit 3\n"})
    assert toka("init").code == 0
    ran = toka("run", "agents", "--json")
    assert ran.code == 1
    assert done(ran)["tester"]["state"] == "FAILED"
    assert "it is broken" in (project / "toka-report/report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "told", "reported"),
    [
        ({"Cargo.toml": "[package]\n"}, "has no cargo", "not run: the sandbox has no cargo; it looks in /nowhere"),
        (
            {"pyproject.toml": "[tool.pytest]\n"},
            "has no pytest",
            "not run: the Python of the sandbox, /bin/false, has no",
        ),
        ({"notes.txt": "hello"}, "found no test command", "not run: no test command was found; write yours into"),
    ],
)
def test_what_cannot_be_tested_is_said_plainly_and_the_run_ends_well(
    toka: Toka, project: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], told: str, reported: str
) -> None:
    monkeypatch.setattr(detection, "SANDBOX_PATH", "/nowhere")
    monkeypatch.setattr(detection, "PYTHON", "/bin/false")
    fill(project, files)
    written = toka("init")
    assert written.code == 0
    assert told in written.out
    tester = project / "agents/team.yaml"
    text = tester.read_text().replace("command -v cargo", "false").replace("python3 -c 'import pytest'", "false")
    tester.write_text(text)  # this machine may have what the test says it lacks
    ran = toka("run", "agents", "--json")
    assert ran.code == 0, ran.out
    assert reported in (project / "toka-report/report.md").read_text()


@pytest.mark.slow
def test_empty_directory_gets_a_small_team_that_runs(toka: Toka, project: Path) -> None:
    (project / ".git").mkdir()
    written = toka("init")
    assert written.out.splitlines() == [
        "wrote agents/team.yaml", "wrote agents/.schema/team.json", "",
        "next", "  toka plan agents", "  toka run agents",
    ]  # fmt: skip
    assert toka("validate", "agents").code == 0
    ran = toka("run", "agents", "--json")
    assert ran.code == 0, ran.out
    assert [a["state"] for a in done(ran).values()].count("COMPLETED") == 2
    (left,) = (e for e in toka("events", "@last", "--json").json_lines() if e["kind"] == "outputs_made")
    assert (left["agent"], left["values"]) == ("counter", {"words": 3})


@pytest.mark.slow
def test_directory_with_specs_of_its_own_keeps_them_and_the_next_command_leaves_them_out(
    toka: Toka, project: Path
) -> None:
    fill(project, {"agents/mine.yaml": "not: [a spec", "Makefile": "test:\n\t@true\n"})
    written = toka("init")
    assert written.code == 0
    assert (project / "agents/mine.yaml").read_text() == "not: [a spec"
    command = written.out.splitlines()[-1].split()
    assert command == ["toka", "run", "agents/team.yaml"]
    assert toka(*command[1:], "--json").code == 0


@pytest.mark.slow
def test_named_directory_is_made_and_the_next_command_names_it(toka: Toka, project: Path) -> None:
    written = toka("init", "a new one")
    assert (project / "a new one/agents/team.yaml").is_file()
    assert written.out.splitlines()[-1] == "  toka run 'a new one/agents' --workspace 'a new one'"
    ran = toka("run", "a new one/agents", "--workspace", "a new one", "--quiet")
    assert ran.code == 0, ran.err


# --- nothing is overwritten


def test_second_init_finds_the_files_of_the_first(toka: Toka, project: Path) -> None:
    assert toka("init").code == 0
    assert "agents/team.yaml, agents/.schema/team.json: there already" in toka("init").err
    assert len(list((project / "agents").iterdir())) == 2


def test_files_that_are_there_are_named_and_nothing_is_written(toka: Toka, project: Path) -> None:
    fill(project, {"agents/team.yaml": "mine", "agents/reporter.yaml": "mine too", "Makefile": "test:\n"})
    before = tree(project)
    refused = toka("init")
    assert refused.code == 2
    assert "agents/team.yaml: there already; nothing was written" in refused.err
    assert refused.out == ""
    assert tree(project) == before


def test_force_overwrites_those_files_and_no_others(toka: Toka, project: Path) -> None:
    fill(project, {"agents/team.yaml": "mine", "agents/other.yaml": "mine", "Makefile": "test:\n"})
    assert toka("init", "--force").code == 0
    assert "  tester:" in (project / "agents/team.yaml").read_text()
    assert (project / "agents/other.yaml").read_text() == "mine"


def test_links_are_not_followed(toka: Toka, project: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    fill(outside, {"victim": "keep me"})
    (project / "agents").symlink_to(outside)
    assert toka("init", "--force").code == 2
    (project / "agents").unlink()
    (project / "agents").mkdir()
    (project / "agents/team.yaml").symlink_to(outside / "victim")
    assert toka("init").code == 2
    assert toka("init", "--force").code == 0
    assert tree(outside) == {"victim": "keep me"}
    assert not (project / "agents/team.yaml").is_symlink()
    (project / "agents/.schema/team.json").unlink()
    (project / "agents/.schema").rmdir()
    (project / "agents/.schema").symlink_to(outside)
    assert toka("init", "--force").code == 2
    assert tree(outside) == {"victim": "keep me"}


def test_directory_that_cannot_be_written_is_an_error_of_use(toka: Toka, project: Path) -> None:
    (project / "file").write_text("")
    assert toka("init", "file").code == 2
    assert toka("init", "/proc/1/nowhere").code == 2


# --- what it writes


@pytest.mark.parametrize(
    "source", ["Makefile", "tests/test_\nmetadata: {name: evil}\n.py", "tests/test_\x1b[31m.py", "a: b #{"]
)
def test_whatever_a_file_is_called_the_specs_have_no_findings(source: str) -> None:
    for missing in ("", "the sandbox has no make"):
        text = project_team(Found("make test", source, "make", "command -v make > /dev/null", missing))
        assert names_of(text) == ["explainer", "reporter", "surveyor", "tester"]


def names_of(text: str) -> list[str]:
    """The agents of a team file without a finding that its schema accepts."""
    configs, drafts, findings, _ = AgentConfig.read([Source("team.yaml", text)])
    assert (drafts, findings, check(configs)) == ((), (), ())
    node = read_nodes(Source("team.yaml", text))
    assert node is not None
    schema = json.loads(json.dumps(team_schema()))
    assert [e.message for e in jsonschema_rs.validator_for(schema).iter_errors(plain(node))] == []
    return sorted(c.name for c in configs)


def test_teams_have_no_findings() -> None:
    assert names_of(starter_team()) == ["counter", "greeter", "writer"]
    assert names_of(project_team(None)) == ["explainer", "reporter", "surveyor", "tester"]


def test_the_first_line_tells_editors_of_the_schema_that_lies_beside(toka: Toka, project: Path) -> None:
    assert toka("init").code == 0
    first = (project / "agents/team.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=.schema/team.json"
    schema = json.loads((project / "agents" / first.partition("=")[2]).read_text())
    assert schema == toka("schema", "--team").json


@pytest.mark.slow
def test_the_team_runs_with_a_model_too(toka: Toka, project: Path) -> None:
    (project / ".git").mkdir()
    assert toka("init").code == 0
    (project / "script.yaml").write_text(
        "script: 1\nagents:\n  writer:\n    task-1:\n"
        "      - calls: [{write_file: {path: answer.txt, content: 'Hello yourself.'}}]\n"
        "      - report: {status: succeeded, summary: answered}\n"
    )
    ran = toka("run", "agents", "--model", "scripted:script.yaml", "--json")
    assert ran.code == 0, ran.out
    assert {name: a["state"] for name, a in done(ran).items()} == dict.fromkeys(
        ["greeter", "counter", "writer"], "COMPLETED"
    )
    assert (project / "answer.txt").read_text() == "Hello yourself."
