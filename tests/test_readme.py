"""README and docs/cli.md say what happens: their commands are run, and what they show is compared with what is printed.

Run ids, durations, and numbers of tokens (which depend on the Python that runs the demo's tests) are not compared.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from toka import errors
from toka.cli.main import COMMANDS, cli
from toka.events.lifecycle import AgentStatus, ObjectiveStatus, RunStatus, TaskStatus
from toka.llm.names import AUTO, PROVIDERS
from toka.orchestration import result

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CLI = (ROOT / "docs" / "cli.md").read_text()
TOKA = [sys.executable, "-c", "from toka.cli.main import main; main()"]
NORMAL = (
    (re.compile(r"\d{8}-\d{6}-[a-z0-9]{6}"), "RUN"),
    (re.compile(r"after (?:\d+(?:\.\d)?(?:ms|s)|\d+m\d\ds)"), "after TIME"),
    (re.compile(r"[\d,]+ tokens"), "N tokens"),
    (re.compile(r" {2,}"), "  "),
)

PROJECT = {
    "sums.py": "def add(a, b):\n    return a - b\n",
    "test_sums.py": (
        "import unittest\n\nfrom sums import add\n\n\nclass Sums(unittest.TestCase):\n"
        "    def test_add(self):\n        self.assertEqual(add(2, 2), 4)\n"
    ),
}
SCRIPT = """
script: 1
agents:
  tests:
    repair:
      - calls: [{read_file: {path: before.txt}}]
      - calls: [{edit_file: {path: sums.py, old: a - b, new: "a + b  # a sum"}}]
      - report: {status: succeeded, summary: the sign was wrong}
"""


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a language."""
    found: list[tuple[str, list[str]]] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line.startswith("```"):
            inside = not inside
            found += [(line[3:].strip(), [])] if inside else []
        elif inside:
            found[-1][1].append(line)
    assert not inside
    return ["".join(lines) for of, lines in found if of == language]


def after(words: str, language: str = "") -> str:
    """The first block of the README after these words."""
    assert README.count(words) == 1, words
    return blocks(README.partition(words)[2], language)[0]


def normal(text: str) -> str:
    for pattern, name in NORMAL:
        text = pattern.sub(name, text)
    return text.strip()


def without_comment(line: str) -> str:
    return line.partition("  #")[0].strip()


def command_lines() -> Iterator[str]:
    for text in (README, CLI):
        for block in blocks(text):
            yield from (without_comment(line) for line in block.splitlines() if line.startswith("toka "))


class Place:
    """A directory with the team of the README, and a project whose test fails."""

    def __init__(self, root: Path) -> None:
        self.home = root
        self.root = root = root / "project"
        (root / "agents").mkdir(parents=True)
        self.spec = root / "agents" / "tests.yaml"
        self.spec.write_text(after("`agents/tests.yaml`:", "yaml"))
        (root / "script.yaml").write_text(SCRIPT)
        for name, content in PROJECT.items():
            (root / name).write_text(content)

    def run(self, *arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8", **more}
        environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
        command = arguments if arguments[0] == sys.executable else [*TOKA, *arguments]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return done


@pytest.fixture
def place(tmp_path: Path) -> Place:
    if not shutil.which("bwrap"):
        pytest.skip("no bwrap: agents cannot run here")
    return Place(tmp_path)


@pytest.mark.slow
def test_the_demo_ends_as_shown(place: Place) -> None:
    printed = place.run("demo").stderr
    shown = after("It ends like this:")
    end = printed[re.search(r"^run \S+ COMPLETED", printed, re.MULTILINE).start() :]  # type: ignore[union-attr]
    assert normal(end) == normal(shown)


@pytest.mark.slow
def test_the_team_in_25_lines_has_25_lines_and_its_plan_is_as_shown(place: Place) -> None:
    assert len(place.spec.read_text().splitlines()) == 25
    assert place.run("validate", "agents").stdout == "1 spec, 0 errors, 0 warnings\n"
    shown, printed = after("`toka plan agents` says what will happen"), place.run("plan", "agents").stdout
    kernel = r"Landlock \d+, \d+ system calls"  # of the machine
    assert re.sub(kernel, "", printed) == re.sub(kernel, "", shown) and re.search(kernel, printed)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_mistake_is_shown_as_shown(place: Place, command: str) -> None:
    place.spec.write_text(place.spec.read_text() + "model: gpt-4\n")
    done = place.run(command, "agents", code=3)
    assert after("With `model: gpt-4` in the spec") in done.stdout + done.stderr


@pytest.mark.slow
def test_the_team_does_what_its_comments_say(place: Place) -> None:
    out = place.run("run", "agents", "--model", "scripted:script.yaml", "--json").stdout
    launch, *events, done = map(json.loads, out.splitlines())
    agent = done["agents"]["tests"]
    assert done["state"] == "COMPLETED"
    assert agent["tasks"] == {"before": "SUCCEEDED", "repair": "SUCCEEDED"}
    assert [o["state"] for o in agent["objectives"]] == ["verified"]
    assert "FAILED (failures=1)" in (place.root / "before.txt").read_text()
    (commands,) = [block for block in blocks(README) if block.startswith("toka validate agents ")]
    for line in commands.splitlines():
        words = shlex.split(without_comment(line))[1:]
        if words[0] in ("resume", "show"):
            place.run(*words)
        elif words[0] == "resolve":
            place.run(*words, code=9)  # nothing waits
    for words in (["logs", "@last"], ["events", "@last"], ["audit", "verify", "@last"], ["ps"]):
        place.run(*words)
    check_records(launch, events, done)


def check_records(launch: dict[str, Any], events: list[dict[str, Any]], done: dict[str, Any]) -> None:
    """The lines of `--json` hold what docs/cli.md promises of them."""
    first, further = (named_in(part) for part in bullet("- first ").split("}`", 1))
    assert launch["type"] == "launch"
    assert (first | further) - {"launch"} <= launch.keys()
    promised = named_in(bullet("- then events").replace('"agent"?', ""))
    assert all(promised - {"event"} <= event.keys() for event in events)
    agent = done["agents"]["tests"]
    last = named_in(bullet("- last "))
    assert last - {"done"} == (done.keys() | agent.keys()) & last
    assert done.keys() | agent.keys() <= last, "a field that is not in the manual"
    assert {"number", "title", "state"} == agent["objectives"][0].keys()


def bullet(begin: str) -> str:
    """One entry of the list of JSON lines in docs/cli.md."""
    rest = CLI.partition(begin)[2]
    return re.split(r"\n- |\n\n", rest)[0]


def named_in(text: str) -> set[str]:
    """The words in quotes or back quotes."""
    return set(re.findall(r'["`]([a-z_]+)["`]', text))


@pytest.mark.slow
def test_findings_and_plans_as_json_hold_what_is_promised(place: Place) -> None:
    found = json.loads(place.run("validate", "agents", "--json").stdout)
    told = CLI.partition("`toka validate --json` prints ")[2].partition(".")[0]
    assert named_in(told) == found.keys()
    plan = json.loads(place.run("plan", "agents", "--json").stdout)
    assert {"waves", "critical_path", "agents"} <= plan.keys()
    assert {"grant", "limits", "findings"} <= plan["agents"]["tests"].keys()


@pytest.mark.slow
def test_the_example_in_python_runs_as_it_stands(place: Place) -> None:
    shutil.copytree(ROOT / "agents", place.root / "agents", dirs_exist_ok=True)
    (place.root / "always.yaml").write_text(
        "script: 1\ndefault: [{report: {status: succeeded, summary: done}, repeat: true}]\n"
    )
    (place.root / "example.py").write_text(after("## From Python", "python"))
    done = place.run(sys.executable, "example.py", TOKA_MODEL="scripted:always.yaml")
    assert done.stdout == "COMPLETED\n"


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_every_command_shown_can_be_written_like_that(line: str) -> None:
    words = shlex.split(re.sub(r"[][|]|\.\.\.", " ", line))[1:]
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, line
    while isinstance(command, click.Group) and not words[1].startswith("-"):
        words = words[1:]
        command = command.get_command(click.Context(command), words[0])
        assert command is not None, line
    known = {opt for p in command.params if isinstance(p, click.Option) for opt in (*p.opts, *p.secondary_opts)}
    assert {word for word in words if word.startswith("--")} - {"--"} <= known
    if "[" not in line and "|" not in line:
        command.make_context(words[0], words[1:], resilient_parsing=False)


@pytest.mark.parametrize("name", ["run", "resume", "validate", "plan"])
def test_the_manual_names_every_option_of_the_stable_commands(name: str) -> None:
    (line,) = [line for line in command_lines() if line.startswith(f"toka {name} ") and "[--" in line]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = {max(p.opts, key=len) for p in command.params if isinstance(p, click.Option)}
    assert set(re.findall(r"--[a-z-]+", line)) == options


def rows(title: str) -> list[list[str]]:
    """The table below a heading of docs/cli.md."""
    section = CLI.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_manual_names_every_state() -> None:
    listed = {of: {re.sub(r" \(.*?\)", "", word).strip() for word in states.split(",")} for of, states in (
        (of, re.sub(r" \([^)]*\)", "", states)) for of, states in rows("States")
    )}  # fmt: skip
    assert listed["run"] == {s.value for s in RunStatus} - {"CREATED"}
    assert listed["agent"] == {s.value for s in AgentStatus}
    assert listed["task"] == {s.value for s in TaskStatus}
    assert all(f"`{s.value}`" in CLI for s in ObjectiveStatus)


def test_the_manual_names_every_exit_code() -> None:
    listed = {int(code) for codes, _ in rows("Exit codes") for code in codes.split(",")}
    raised = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.TokaError)}
    ended = {value for name, value in vars(result).items() if name.startswith("EXIT_")}
    assert listed == raised | ended | {130, 143, 141}


def test_the_manual_names_every_provider_with_its_key() -> None:
    listed = {model.strip("`").partition(":")[0]: key.strip("`") for model, _, key in rows("Models")}
    assert listed == {**{name: provider.key for name, provider in PROVIDERS.items()}, AUTO: ""}
    takers = {model.strip("`").partition(":")[0] for model, who, _ in rows("Models") if "the base URL" in who}
    assert takers - {"anthropic", AUTO} == {name for name, provider in PROVIDERS.items() if provider.base_url}


def test_what_make_is_asked_for_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {line.split()[1] for block in blocks(README) for line in block.splitlines() if line.startswith("make ")}
    assert asked
    assert asked <= targets


def test_every_link_leads_to_a_file() -> None:
    for name, text in (("README.md", README), ("docs/cli.md", CLI)):
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), target


def test_commands_named_in_prose_exist() -> None:
    for text in (README, CLI):
        for name in re.findall(r"`toka ([a-z][a-z-]*)", text):
            assert name in COMMANDS, name
