"""What `toka show RUN --resources` knows of commands that were killed, of every tool's commands, and of limits met.

Whole runs in processes of their own, as root with control groups where there are some, and as an ordinary user without.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.records import COMMAND, Ran
from harness import usable
from toka import version
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.journal.poke import poke
from toka.journal.sqlite import SqliteJournal
from toka.sandbox.cgroup_find import Hierarchies
from toka.sandbox.profile import find_program
from tools.test_git import plain
from tools.test_plugins import COUNTER, install

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here"),
]
MIB = 1 << 20
ROOT = os.getuid() == 0
UID = 54_322
SOURCES = Path(version.__file__).parents[1]
COUNTED = ROOT and all(Hierarchies.find().places.get(kind) for kind in ("memory", "cpu", "pids"))
"""Whether the control groups of this machine count what root's agents use."""
BURN = "python3 -c 'import time\nwhile time.process_time() < 0.8: pass'"
SPIN = f"{BURN}; for i in 1 2; do (while :; do :; done) & done; wait"
GROW = "python3 -c 'kept = []\nwhile True: kept.append(bytearray(1 << 20))'"
CROWDED = (
    'python3 -c \'import subprocess, time\ntry:\n  for i in range(60): subprocess.Popen(["sleep", "9"])\n'
    'except BlockingIOError: print("no more")\ntime.sleep(0.5)\''
)
"""Tries to have more processes than it may, notices, and ends well."""


class House:
    """A folder of a user's, in which `toka` runs in processes of its own."""

    def __init__(self, home: Path, user: int) -> None:
        self.home = home
        self.user = user
        self.work = home / "work"
        self.work.mkdir()
        self.site = home / "site"
        self.site.mkdir()
        if ROOT and user:
            shutil.copytree(SOURCES, home / "src", ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def held(self) -> bool:
        """Whether the kernel counts for all processes together."""
        return COUNTED and not self.user

    def _how(self) -> dict[str, Any]:
        search = [self.site, self.home / "src" if ROOT and self.user else SOURCES]
        env = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "NO_COLOR": "1", "CI": "true",
               "PYTHONPATH": os.pathsep.join(map(str, search)), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        identity = {"user": self.user, "group": self.user, "extra_groups": []} if ROOT and self.user else {}
        return {"cwd": self.home, "env": env, "text": True, **identity}

    def give(self) -> None:
        if ROOT and self.user:
            subprocess.run(["chown", "-R", f"{self.user}:{self.user}", str(self.home)], check=True)

    def __call__(self, *arguments: str) -> Ran:
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=90, **self._how())
        return Ran(done.returncode, done.stdout, done.stderr)

    def write(self, tasks: list[dict[str, Any]], script: dict[str, Any], grant: list[Any], **limits: Any) -> None:
        """The team of one agent, and what its model answers, by task."""
        spec = {
            "metadata": {"name": "one"},
            "spec": {"name": "One"},
            "tasks": [{"description": task["id"], **task} for task in tasks],
            "security": {"capabilities_required": grant, "resource_limits": limits},
        }
        (self.home / "one.yaml").write_text(yaml.safe_dump(spec))
        report = {"report": {"status": "succeeded", "summary": "done"}}
        answers = {task: [*replies, report] for task, replies in script.items()}
        (self.home / "script.yaml").write_text(yaml.safe_dump({"script": 1, "agents": {"one": answers}}))
        self.give()

    RUN = ("run", "one.yaml", "--workspace", "work", "--state", "state", "--model", "scripted:script.yaml")

    def run(self) -> Ran:
        return self(*self.RUN, "--json")

    def start(self) -> subprocess.Popen[str]:
        with (self.home / "said").open("w") as said:
            return subprocess.Popen([*COMMAND, *self.RUN], stdout=said, stderr=said, **self._how())

    def used(self) -> list[dict[str, Any]]:
        """The figures of the agent's steps."""
        shown = self("show", "@last", "--resources", "--json", "--state", "state")
        assert shown.code == 0, shown.err
        return shown.json["agents"].get("one", {"steps": []})["steps"]

    def table(self) -> list[str]:
        return self("show", "@last", "--resources", "--state", "state").lines

    def events(self, kind: str) -> list[dict[str, Any]]:
        return self("events", "@last", "--kind", kind, "--json", "--state", "state").json_lines()


@pytest.fixture(params=["root", "ordinary"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    """For root, and for an ordinary user, who has no control groups here."""
    if request.param == "root" and not ROOT:
        pytest.skip("this is not root")
    user = 0 if request.param == "root" else UID if ROOT else os.getuid()
    identity = {"user": user, "group": user, "extra_groups": []}
    if ROOT and user and not usable(identity, "pydantic, click, rich"):
        pytest.skip(f"{sys.executable} cannot be used by another user")
    home = Path(tempfile.mkdtemp(prefix="toka-used-"))
    home.chmod(0o755)
    yield House(home, user)
    shutil.rmtree(home, ignore_errors=True)


# ---- what was killed


def check_killed(house: House, step: dict[str, Any]) -> None:
    """Figures of a command that burnt 0.8 s of processor time and much more until it was killed."""
    assert step["cpu_s"] > 0.7
    assert step["wall_s"] > 0.8
    assert step["memory_peak_bytes"] > MIB
    assert ("cpu_s" in step["at_least"]) is not house.held


@pytest.mark.parametrize("by", ["run", "tool"])
def test_a_step_that_its_tasks_deadline_ended_is_told(house: House, by: str) -> None:
    task = {"id": "spin", "timeout": "3s", "retries": 0} | ({"run": SPIN} if by == "run" else {})
    script = {} if by == "run" else {"spin": [{"calls": [{"run_command": {"command": SPIN}}]}]}
    house.write([task], script, ["filesystem-write", "command-execution"])
    assert house.run().code != 0
    (step,) = house.used()
    check_killed(house, step)
    assert step["wall_s"] > 2.5
    assert (step["exceeded"]["kind"], step["exceeded"]["limit"], step["exceeded"]["unit"]) == ("time", 3, "seconds")
    row = house.table()[4]
    assert "time 3 seconds" in row
    assert ("s+ " in row) is not house.held
    ended = [*house.events("step_failed"), *house.events("step_done")]
    (limit,) = [event["limit"] for event in ended if "limit" in event]
    assert limit["scope"].startswith("time of ")


def test_a_step_that_its_agents_time_ended_is_told(house: House) -> None:
    house.write([{"id": "spin", "run": SPIN, "timeout": "1h"}], {}, ["filesystem-write"], timeout="3s")
    assert house.run().code != 0
    (step,) = house.used()
    check_killed(house, step)
    assert step["exceeded"] == {"kind": "time", "limit": 3, "used": 3, "unit": "seconds"}
    (failed,) = house.events("step_failed")
    assert failed["limit"]["scope"] == "time of agent one"


def started(house: House) -> subprocess.Popen[str]:
    """A run whose command has begun."""
    process = house.start()
    for _ in range(400):
        if (house.work / "begun").exists():
            return process
        assert process.poll() is None, (house.home / "said").read_text()
        time.sleep(0.05)
    process.kill()
    raise AssertionError("it did not begin")


async def ask(state: Path, run: str, verb: str) -> None:
    journal = SqliteJournal(state, SystemClock())
    await journal.submit(RunId(run), verb, agent="", arguments={}, by=("ada", "enough"))
    await journal.aclose()
    poke(state, RunId(run))


def test_a_step_of_a_stopped_run_is_told(house: House) -> None:
    house.write([{"id": "spin", "run": f"touch begun; {SPIN}"}], {}, ["filesystem-write"])
    process = started(house)
    try:
        time.sleep(1.5)
        run = house("ps", "--json", "--state", "state").json_lines()[0]["run_id"]
        asyncio.run(ask(house.home / "state", run, "stop"))
        house.give()
        assert process.wait(30) == 8
    finally:
        process.kill()
    (step,) = house.used()
    check_killed(house, step)
    assert step["exceeded"] is None


def test_a_step_that_ended_with_toka_itself_is_told_and_not_taken_for_done(house: House) -> None:
    """The second signal would end at once; the first one gives steps ten seconds."""
    house.write([{"id": "spin", "run": f"touch begun; {SPIN}", "effect": "once"}], {}, ["filesystem-write"])
    process = started(house)
    try:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
    (step,) = house.used()
    check_killed(house, step)
    assert step["wall_s"] > 9
    (left,) = house.events("step_left")
    assert left["step"] == step["step"] == "spin/1/1/run/0"
    assert "killed after" in house("events", "@last", "--kind", "step_left", "--state", "state").out
    assert "killed after" in house("logs", "@last", "one", "--state", "state").out
    assert house("resume", "@last", "--state", "state", "--json").code == 7, "whether it happened is in doubt as before"


# ---- every tool


def test_the_commands_of_every_tool_are_told(house: House) -> None:
    plain(house.work, "init", "--quiet", "--initial-branch=agents/one")
    (house.work / "src").mkdir()
    (house.work / "src/a.py").write_text("one\n")
    install(house.site, **COUNTER)
    settings = house.home / ".config/toka/config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('[tools]\nallow = ["acme-tools"]\n')
    calls = [
        {"git": {"command": "status"}},
        {"git": {"command": "commit", "paths": ["src/a.py"], "message": "first"}},
        {"python": {"code": "import time\nwhile time.process_time() < 0.3: pass"}},
        {"http_request": {"url": "https://api.example.invalid/x"}},
        {"count_lines": {"path": "src/a.py"}},
        {"read_file": {"path": "src/a.py"}},
    ]
    grant = [{"network-access": {"hosts": ["api.example.invalid"]}}, "filesystem-write", "git-access"]
    house.write([{"id": "all"}], {"all": [{"calls": calls}]}, [*grant, "python-execution"])
    assert house.run().code == 0
    told = {step["what"].split()[0]: step for step in house.used()}
    assert [step["what"] for step in house.used()[:2]] == ["git status", "git commit"]
    assert set(told) == {"git", "python", "http_request", "count_lines"}, "a file tool runs no command"
    assert all(step["cpu_s"] > 0 and step["memory_peak_bytes"] > MIB for step in told.values()), told
    assert told["python"]["cpu_s"] > 0.25


@pytest.mark.skipif(find_program("psql") is None, reason="no psql")
def test_the_commands_of_a_database_client_are_told(house: House) -> None:
    grant = [{"database-access": {"hosts": ["db.example.org"], "ports": ["5432"]}}, "filesystem-write"]
    calls = [{"run_command": {"command": "psql --version"}}]
    house.write([{"id": "ask"}], {"ask": [{"calls": calls}]}, grant)
    assert house.run().code == 0
    (step,) = house.used()
    assert step["what"] == "run_command psql --version"
    assert step["cpu_s"] > 0


def test_what_git_meets_is_a_limit_that_was_met(house: House) -> None:
    """A command of a tool of its own is ended by a limit as one of run_command is."""
    plain(house.work, "init", "--quiet", "--initial-branch=agents/one")
    (house.work / "big").mkdir()
    for number in range(6):  # none is too large a file
        (house.work / "big" / str(number)).write_bytes(os.urandom(3 * MIB))
    calls = [{"git": {"command": "commit", "paths": ["big"], "message": "big"}}]
    house.write([{"id": "a"}], {"a": [{"calls": calls}]}, ["filesystem-write", "git-access"], max_disk_usage="5MB")
    house.run()
    (step,) = house.used()
    assert (step["exceeded"]["kind"], step["exceeded"]["limit"]) == ("disk", 5 * MIB)
    assert step["written_bytes"] >= 4 * MIB, "a floor: the last look was before the end"
    (event,) = [event for event in house.events("step_done") if "limit" in event]
    assert event["limit"]["scope"] == "disk of agent one"
    assert "disk limit of 5MB reached" in event["result"]["text"]


# ---- limits that end nothing by themselves


def test_the_limit_of_processes_is_typed_and_the_agent_is_told(house: House) -> None:
    calls = [{"run_command": {"command": CROWDED}}]
    house.write(
        [{"id": "crowd"}], {"crowd": [{"calls": calls}]}, ["filesystem-write", "command-execution"], max_processes=30
    )
    done = house.run()
    assert done.code == 0, "it ended well"
    (step,) = house.used()
    assert step["exceeded"] == {"kind": "processes", "limit": 30, "used": 30, "unit": "processes"}
    assert house.table()[4].endswith("processes 30")
    (event,) = [event for event in house.events("step_done") if "limit" in event]
    assert event["limit"] == {"scope": "processes of agent one", "limit": 30, "used": 30, "unit": "processes"}
    assert "no more" in event["result"]["text"]
    assert "[processes limit of 30 reached]" in event["result"]["text"]
    assert not event.get("failed")
    again = house(*house.RUN)
    assert "limit met: processes of agent one: 30 of 30 processes used" in again.out + again.err


def test_memory_of_a_process_that_got_no_more_is_typed_as_far_as_it_is_known(house: House) -> None:
    house.write([{"id": "grow", "run": GROW}], {}, ["filesystem-write"], max_memory="128MB")
    assert house.run().code == 6
    (step,) = house.used()
    assert (step["exceeded"]["kind"], step["exceeded"]["limit"]) == ("memory", 128 * MIB)
    assert step["exceeded"]["used"] > 115 * MIB
    assert "limit met: memory of agent one" in house("logs", "@last", "one", "--state", "state").out
    if house.held:
        assert "best_effort" not in step["exceeded"]
    elif step["exceeded"].get("best_effort"):  # the watchdog may have been quicker
        assert house.table()[4].endswith("memory 128MB (probably)")


def test_a_failure_far_below_the_bound_is_no_lack_of_memory(house: House) -> None:
    house.write([{"id": "say", "run": "echo MemoryError; exit 1"}], {}, ["filesystem-write"], max_memory="128MB")
    assert house.run().code == 1
    (step,) = house.used()
    assert step["exceeded"] is None


def test_the_jail_says_the_same(house: House) -> None:
    house.give()
    grown = house("jail", "--workspace", "work", "--limit", "memory=128MB", "--", "sh", "-c", GROW)
    assert "toka: memory limit of 128MB " in grown.err
    assert grown.code != 0
    said = house("jail", "--workspace", "work", "--limit", "memory=128MB", "--", "sh", "-c", "echo MemoryError; exit 3")
    assert (said.code, "limit of" in said.err) == (3, False)
    crowd = house("jail", "--workspace", "work", "--limit", "processes=30", "--", "sh", "-c", CROWDED)
    assert (crowd.code, crowd.out) == (0, "no more\n")
    assert "toka: processes limit of 30 reached" in crowd.err


def test_figures_of_killed_commands_stay_in_the_sum(house: House) -> None:
    """What is killed is lost to the kernel's sums; later commands have figures of their own all the same."""
    calls = [
        {"run_command": {"command": f"timeout 1.5 sh -c {json.dumps(SPIN)} & sleep 0.2; kill -9 $$"}},
        {"python": {"code": "import time\nwhile time.process_time() < 0.5: pass"}},
        {"python": {"code": "pass"}},
    ]
    grant = ["filesystem-write", "command-execution"]
    house.write([{"id": "a"}], {"a": [{"calls": [call]} for call in calls]}, grant)
    assert house.run().code == 0
    _, busy, quiet = house.used()
    assert 0.45 < busy["cpu_s"] < 1.2
    assert quiet["cpu_s"] < 0.3
