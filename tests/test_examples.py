"""The worked examples do what their READMEs say, and end unverified when a part of them is broken.

Run ids, durations and numbers of tokens are not compared. Agents that work at the same time may stand in another order.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from test_readme import ROOT, TOKA, blocks, normal
from toka.config.team_schema import team_schema

EXAMPLES = ROOT / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/team.yaml"))
KEY = "any-key-will-do"
WAITING = "release-notes"
"""The example in which a person is asked."""


class Example:
    """A copy of an example, with settings that keep the secret of log-triage."""

    def __init__(self, name: str, root: Path) -> None:
        if not shutil.which("bwrap"):
            pytest.skip("no bwrap: agents cannot run here")
        self.name = name
        self.folder = root / name
        self.work = self.folder / "workspace"
        self.state = root / "state"
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        settings = root / "config" / "toka" / "config.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text(blocks(self.readme, "toml")[0] if "```toml" in self.readme else "")
        self.environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(root), "LANG": "C.UTF-8", "PAGER_KEY": KEY,
            "XDG_CONFIG_HOME": str(root / "config"), "TOKA_STATE": str(self.state),
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }  # fmt: skip

    @property
    def readme(self) -> str:
        return (EXAMPLES / self.name / "README.md").read_text()

    def begin(self) -> None:
        """What comes before the team: a history, where there is one to be made."""
        if (self.folder / "history.sh").exists():
            self.call("sh", "history.sh")

    def call(self, *command: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.folder, env={**self.environment, **more}, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def toka(self, *arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        return self.call(*TOKA, *arguments, code=code, **more)

    def run(self, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        model = ("--model", "scripted:script.yaml")
        return self.toka("run", "team.yaml", *model, "--workspace", "workspace", *more, code=code)

    def agents(self) -> dict[str, Any]:
        """What `toka show @last --json` says of each agent."""
        return json.loads(self.toka("show", "@last", "--json").stdout)["agents"]

    def states(self) -> dict[str, str]:
        return {name: agent["state"] for name, agent in self.agents().items()}

    def verified(self) -> dict[str, int]:
        """How many objectives each agent has; all of them are verified."""
        found = {name: [each["state"] for each in agent["objectives"]] for name, agent in self.agents().items()}
        assert {state for states in found.values() for state in states} == {"verified"}
        return {name: len(states) for name, states in found.items() if states}

    def text(self, path: str) -> str:
        return (self.work / path).read_text()

    def change(self, file: str, old: str, new: str) -> None:
        """Breaks one place of one file."""
        path = self.folder / file
        text = path.read_text()
        assert text.count(old) == 1, (file, old, text.count(old))
        path.write_text(text.replace(old, new))

    def git(self, *words: str) -> str:
        return self.call("git", "-C", "workspace", *words).stdout


def ending(printed: str) -> list[str]:
    """The lines of how a run ended, without what differs between runs."""
    found = re.search(r"^run \S+ [A-Z]+ after", printed, re.MULTILINE)
    assert found is not None, printed
    text = printed[found.start() :].partition("\nlook further")[0]
    text = re.sub(r"asked   .*|--id \w+", "", text)
    return sorted(normal(line) for line in text.strip().splitlines())


def test_there_are_six_and_the_index_names_them_all() -> None:
    assert len(NAMES) == 6
    assert sorted(re.findall(r"\]\(([a-z-]+)/\)", (EXAMPLES / "README.md").read_text())) == NAMES
    for readme in (ROOT / "README.md", ROOT / "docs" / "specs.md"):
        assert sorted(set(re.findall(r"examples/([a-z-]+)/\)", readme.read_text()))) == NAMES, readme


def test_every_link_leads_to_a_file() -> None:
    for readme in EXAMPLES.rglob("README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / target).exists(), (readme, target)


def test_editors_find_the_schema_that_is_in_force() -> None:
    for team in (*EXAMPLES.glob("*/team.yaml"), EXAMPLES / "document-checker" / "style.yaml"):
        modeline = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", team.read_text().partition("\n")[0])
        assert modeline is not None
        assert (team.parent / modeline[1]).samefile(EXAMPLES / ".schema" / "team.json")
    same = json.loads((EXAMPLES / ".schema" / "team.json").read_text()) == team_schema()
    assert same, "made anew by: toka schema --team > examples/.schema/team.json"


def test_together_they_use_what_team_files_can_do() -> None:
    teams = [yaml.safe_load(path.read_text()) for path in EXAMPLES.glob("*/*.yaml") if path.name != "script.yaml"]
    agents = [agent for team in teams for agent in team.get("agents", {}).values()]
    agents = [agent for agent in agents if isinstance(agent, dict)]
    keys = {key for agent in agents for key in agent}
    assert keys >= {
        "goal", "run", "tasks", "check", "checks", "grants", "limits", "needs", "outputs", "for_each", "max_parallel",
        "when", "approve", "env", "retries",
    }  # fmt: skip
    outputs = [o for agent in agents for o in agent.get("outputs", {}).values()]
    assert {o["from"] for o in outputs} == {"stdout", "file", "report"}
    assert {o.get("as", "text") for o in outputs} == {"text", "lines", "integer", "number", "boolean", "list", "json"}
    grants = {name for part in (*agents, *(t.get("defaults", {}) for t in teams)) for name in part.get("grants", {})}
    assert grants >= {"read", "write", "run", "git", "python", "network"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_ends_as_its_readme_shows(name: str, tmp_path: Path) -> None:
    example = Example(name, tmp_path)
    example.begin()
    assert ", 0 errors, 0 warnings\n" in example.toka("validate", "team.yaml").stdout
    assert " waves" in example.toka("plan", "team.yaml").stdout
    example.toka("plan", "team.yaml", "--expanded")
    done = example.toka("run", "team.yaml", "--model", "scripted:script.yaml", code=7 if name == WAITING else 0)
    commands, ends = blocks(example.readme)[:2]
    assert commands.splitlines()[-1] == "toka run team.yaml --model scripted:script.yaml"
    assert ending(done.stderr) == ending(ends)


@pytest.mark.slow
def test_failing_tests_are_repaired_and_left_alone(tmp_path: Path) -> None:
    example = Example("fix-failing-tests", tmp_path)
    tests = {path: path.read_text() for path in example.work.glob("tests/*.py")}
    example.run()
    assert example.verified() == {"fix[1]": 1, "fix[2]": 1, "fix[3]": 1, "all": 1}
    assert {path: path.read_text() for path in tests} == tests
    assert "0 < grams <= most" in example.text("src/parcel/price.py")
    example.call("python3", "-m", "unittest", "discover", "-s", "workspace/tests", "-t", "workspace")
    agents = example.agents()
    assert {name: agent["denied"] for name, agent in agents.items() if agent["denied"]} == {"fix[3]": 1}
    assert "repair-1" in [task["id"] for task in agents["fix[2]"]["tasks"]]


@pytest.mark.slow
def test_a_project_without_failing_tests_needs_no_repair(tmp_path: Path) -> None:
    example = Example("fix-failing-tests", tmp_path)
    example.run()
    example.run()
    assert example.states() == {"survey": "COMPLETED", "fix": "SKIPPED", "all": "SKIPPED"}


@pytest.mark.slow
def test_dependencies_are_upgraded_each_by_its_own_agent(tmp_path: Path) -> None:
    example = Example("dependency-upgrade", tmp_path)
    example.run()
    two = dict.fromkeys(["upgrade[1]", "upgrade[2]", "upgrade[3]"], 2)
    assert example.verified() == {**two, "licences": 1, "summary": 1, "release": 1}
    assert json.loads(example.text("NOTES.json"))[1] == "Addresses of pages have letters and digits only."
    assert example.text("summary.txt") == "3 of 3 upgrades are done, 0 failed\n[]\n"
    for name in ("slugs/2.0.0", "tabular/1.0.0", "money/3.1.1"):
        vendored = "vendor/" + name.partition("/")[0] + "/__init__.py"
        assert example.text(vendored) == example.text(f"index/{name}/__init__.py")
    (retried,) = [task for task in example.agents()["upgrade[2]"]["tasks"] if task["id"] == "adapt"]
    assert retried["attempt"] == 2


@pytest.mark.slow
def test_logs_are_judged_and_somebody_is_called(tmp_path: Path) -> None:
    example = Example("log-triage", tmp_path)
    example.run()
    assert example.verified() == {"count": 1, "triage": 1, "page": 1}
    assert example.states()["table"] == "SKIPPED"
    page = json.loads(example.text("out/page.json"))
    assert page["text"].startswith('payments fail; the bank doesn\'t answer ("$(date)" is no command here) (20 errors')
    assert "E2,8,page" in example.text("out/triage.csv")
    recorded = [path for path in example.state.rglob("*") if path.is_file()]
    assert recorded
    assert not [path for path in recorded if KEY.encode() in path.read_bytes()], "the secret is in the record"


@pytest.mark.slow
def test_logs_without_a_model_are_kept_for_a_person(tmp_path: Path) -> None:
    example = Example("log-triage", tmp_path)
    done = example.toka("run", "team.yaml", OLLAMA_HOST="127.0.0.1:9", TOKA_BASE_URL="")
    if "no model" not in done.stderr:
        pytest.skip("a model answers on this machine")
    assert example.states() == {"count": "COMPLETED", "table": "COMPLETED", "triage": "SKIPPED", "page": "SKIPPED"}
    assert example.text("out/unjudged.json") == example.text("out/groups.json")


@pytest.mark.slow
def test_logs_without_the_secret_are_not_begun(tmp_path: Path) -> None:
    example = Example("log-triage", tmp_path)
    model = ("--model", "scripted:script.yaml")
    unset = example.toka("run", "team.yaml", *model, code=4, PAGER_KEY="").stderr
    assert "${secret:pager} is not there: ${env:PAGER_KEY} is not set\n  help: set it where" in unset
    unnamed = example.toka("run", "team.yaml", *model, code=4, XDG_CONFIG_HOME=str(tmp_path / "none")).stderr
    assert '${secret:pager} is not there: no settings name it\n  help: write pager = "${env:NAME}"' in unnamed
    assert not (example.work / "out").exists()


@pytest.mark.slow
def test_documents_are_held_to_the_program(tmp_path: Path) -> None:
    example = Example("document-checker", tmp_path)
    faq = example.text("docs/faq.md")
    example.run()
    assert example.verified() == {"mend[1]": 1, "mend[2]": 1, "style": 2, "review": 1, "tell": 1, "verdict": 1}
    assert "(settings.md)" in example.text("docs/start.md")
    assert "| timeout | 20 |" in example.text("docs/settings.md")
    assert example.text("docs/faq.md") == faq
    assert "- docs/faq.md:3: `it is tried three`" in example.text("review.md")
    example.run("--input", "review=false")
    assert {n: s for n, s in example.states().items() if s == "SKIPPED"}.keys() == {"mend", "review", "tell"}


@pytest.mark.slow
def test_release_notes_are_committed_when_a_person_agrees(tmp_path: Path) -> None:
    example = Example(WAITING, tmp_path)
    example.begin()
    done = example.run(code=7)
    assert "Release 1.3.0? Deleted orders no longer count" in done.stderr
    assert example.git("log", "-1", "--format=%s") == "BREAKING: export() is told the separator (#45)\n"
    assert example.git("status", "--porcelain") == " M CHANGELOG.md\n"
    answer, end = blocks(example.readme)[2:]
    for command in answer.splitlines()[:-1]:
        example.toka(*shlex.split(command)[1:])
    assert ending(example.toka("resume", "@last").stderr) == ending(end)
    assert example.verified() == {"changes": 1, "write": 1, "publish": 3, "tag": 1}
    assert example.git("log", "-2", "--format=%s") == "Release 1.3.0\nBREAKING: export() is told the separator (#45)\n"
    assert example.git("tag", "--points-at", "HEAD") == "v1.3.0\n"
    assert example.git("status", "--porcelain") == ""
    assert "(#41)" in example.git("show", "HEAD:CHANGELOG.md")


@pytest.mark.slow
def test_release_notes_that_a_person_refuses_are_not_committed(tmp_path: Path) -> None:
    example = Example(WAITING, tmp_path)
    example.begin()
    example.run(code=7)
    example.toka("deny", "@last", "--reason", "not on a Friday")
    assert "denied by " in example.toka("resume", "@last", code=8).stderr
    assert example.states()["tag"] == "SKIPPED"
    assert example.git("log", "-1", "--format=%s") == "BREAKING: export() is told the separator (#45)\n"


@pytest.mark.slow
def test_data_is_cleaned_by_a_program_that_stays(tmp_path: Path) -> None:
    example = Example("data-cleanup", tmp_path)
    raw = example.text("data/members.csv")
    example.run()
    assert example.verified() == {"clean": 2, "load": 1, "tell": 1}
    assert example.text("data/members.csv") == raw
    assert "no such day" in example.text("clean.py")
    assert "8,no such day" in example.text("out/rejected.csv")
    with closing(sqlite3.connect(example.work / "out" / "members.db")) as base:
        assert base.execute("select count(*), min(joined) from member").fetchone() == (9, "2023-04-01")
    assert example.text("out/summary.txt").startswith("0.643 of the rows are in")


@dataclass(frozen=True)
class Break:
    """One place that is broken, and who must notice: the agent whose objective fails, and who is skipped therefore.

    Without a file, `new` is an input that cannot be satisfied.
    """

    name: str
    file: str
    old: str
    new: str
    fails: str
    skips: tuple[str, ...] = ()


BREAKS = (
    Break("fix-failing-tests", "script.yaml", "new: 0 < grams <= most", "new: grams <= 1 * most", "fix[2]", ("all",)),
    Break("fix-failing-tests", "script.yaml", "new: str(-total % 10)", "new: str(9 - total % 10)", "fix[1]", ("all",)),
    Break("dependency-upgrade", "script.yaml", "new: '\"\\n\".join'", "new: '\" \".join'", "upgrade[3]", ("release",)),
    Break(
        "dependency-upgrade", "workspace/index/money/3.1.1/__init__.py", "Apache-2.0", "For sale", "licences",
        ("release",),
    ),
    Break("log-triage", "script.yaml", 'new: "E2,8"', 'new: "E2,7"', "triage", ("page",)),
    Break("log-triage", "workspace/tools/pager.py", "signature(sys.argv[1])", '"signed"', "page"),
    Break("log-triage", "", "", "most=10", "count", ("triage", "page")),
    Break("document-checker", "script.yaml", 'new: "[0, 1, 2, 4]"', 'new: "[0, 1, 2, 3]"', "mend[1]"),
    Break("document-checker", "script.yaml", "new: it is tried three", "new: it is tried four", "review", ("tell",)),
    Break("document-checker", "", "", "width=60", "style", ("verdict",)),
    Break("release-notes", "script.yaml", "an error (#41)", "an error (#44)", "write", ("publish", "tag")),
    Break("release-notes", "script.yaml", 'old: "## 1.2.0"', 'old: "# Changes\\n"', "write", ("publish", "tag")),
    Break("data-cleanup", "script.yaml", '= "no such day"', '= ""', "clean", ("load", "tell")),
    Break("data-cleanup", "", "", "least=0.9", "load", ("tell",)),
)  # fmt: skip


def test_each_example_is_broken_in_some_way() -> None:
    assert sorted({each.name for each in BREAKS}) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("broken", BREAKS, ids=lambda each: f"{each.name}-{each.fails}")
def test_an_example_that_is_broken_ends_unverified(broken: Break, tmp_path: Path) -> None:
    example = Example(broken.name, tmp_path)
    if broken.file:
        example.change(broken.file, broken.old, broken.new)
    else:
        assert f"--input {broken.new}" in example.readme
    example.begin()
    example.run(*([] if broken.file else ["--input", broken.new]), code=1)
    agents = example.agents()
    assert agents[broken.fails]["state"] == "FAILED"
    assert "failed" in [objective["state"] for objective in agents[broken.fails]["objectives"]]
    skipped = {name for name, agent in agents.items() if agent["state"] == "SKIPPED"}
    assert skipped >= set(broken.skips)
    assert not any(agents[name]["objectives"] for name in broken.skips)


@pytest.mark.slow
def test_a_release_that_is_not_committed_as_asked_is_not_tagged(tmp_path: Path) -> None:
    example = Example(WAITING, tmp_path)
    example.change("script.yaml", "message: Release 1.3.0", "message: Some release")
    example.begin()
    example.run(code=7)
    example.toka("approve", "@last", "--reason", "notes are fine")
    example.toka("resume", "@last", code=1)
    assert {n: s for n, s in example.states().items() if s != "COMPLETED"} == {"publish": "FAILED", "tag": "SKIPPED"}
    assert example.git("tag", "--list") == "v1.2.0\n"
