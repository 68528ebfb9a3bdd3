"""`toka demo`, as a person runs it: the command in a process of its own, with real sandboxes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest

from harness import usable
from toka.config.check import check_paths
from toka.core.clock import SystemClock
from toka.events.event import StepDenied
from toka.events.fold import fold_all
from toka.events.lifecycle import AgentStatus, ObjectiveStatus, TaskStatus
from toka.events.state import RunState
from toka.journal.sqlite import SqliteReader

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
UID = 54_322
COMMAND = [sys.executable, "-c", "from toka.cli.main import main; main()", "demo"]
AGENTS = ("surveyor", "fixer", "documenter", "reviewer")


def environment(home: Path, **more: str) -> dict[str, str]:
    """A process without keys and settings."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", **more}


def demo(home: Path, *options: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*before, *COMMAND, *map(str, options)]
    return subprocess.run(
        argv, cwd=home, env=environment(home), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def recorded(state: Path) -> tuple[RunState, list[Any]]:
    """The only run of a state directory, and its refused calls."""
    reader = SqliteReader(state, SystemClock())
    try:
        (run,) = reader.runs()
        records = reader.read(run)
        return fold_all(run, records), [r for r in records if isinstance(r.event, StepDenied)]
    finally:
        reader.close()


@pytest.fixture(scope="module")
def package() -> Path:
    with as_file(files("toka") / "demo") as path:
        return path


class Done:
    """One demo that has ended."""

    def __init__(self, home: Path, package: Path) -> None:
        before = contents(package)
        self.result = demo(home, "--state", home / "state")
        self.unchanged = contents(package) == before
        self.project = home / "state" / "demo" / "1" / "project"
        self.state, self.denied = recorded(home / "state")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Done:
    return Done(tmp_path_factory.mktemp("demo"), package)


def test_all_agents_complete_and_the_exit_code_is_0(done: Done) -> None:
    assert done.result.returncode == 0, done.result.stderr
    assert {name: agent.status for name, agent in done.state.agents.items()} == dict.fromkeys(
        AGENTS, AgentStatus.COMPLETED
    )


def test_first_patch_fails_its_check_and_the_repair_passes(done: Done) -> None:
    fixer = done.state.agents["fixer"]
    assert {t.id: t.status for t in fixer.tasks.values()} == dict.fromkeys(("fix", "repair-1"), TaskStatus.SUCCEEDED)
    assert (fixer.objectives[1].status, fixer.objectives[1].round) == (ObjectiveStatus.VERIFIED, 1)


def test_documenter_is_denied_what_it_was_not_granted_and_works_on(done: Done, package: Path) -> None:
    (denial,) = done.denied
    assert (denial.stream, denial.event.what, denial.event.rule) == (
        "documenter",
        "edit_file",
        "filesystem-write: docs",
    )
    readme = "README.md"
    assert (done.project / readme).read_bytes() == (package / "project" / readme).read_bytes()
    assert ">>> merge(" in (done.project / "docs" / "hours.md").read_text()


def test_objectives_with_a_check_are_verified_and_the_one_without_is_claimed(done: Done) -> None:
    stands = [o.status for agent in done.state.agents.values() for o in agent.objectives.values()]
    assert stands.count(ObjectiveStatus.VERIFIED) == 5
    assert stands.count(ObjectiveStatus.CLAIMED) == 1
    assert len(stands) == 6


def test_work_is_done_in_a_copy(done: Done, package: Path) -> None:
    assert done.unchanged
    assert (done.project / "hours.py").read_text() != (package / "project" / "hours.py").read_text()
    tests = subprocess.run([sys.executable, "-m", "unittest"], cwd=done.project, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stderr


def test_output_says_what_is_scripted_what_was_denied_and_where_to_look(done: Done) -> None:
    text = done.result.stderr
    run = done.state.id
    assert "the model is SCRIPTED, everything else is real" in text
    assert f"run {run} in {done.project}" in text
    assert "fixer       objective 1 check failed: All tests pass" in text
    assert "fixer       repair-1 done: " in text
    assert "documenter  edit_file denied: README.md is outside the granted filesystem-write: docs" in text
    assert "7/7              run completed" in text
    for line in (
        f"toka show {run}",
        f"toka events {run}",
        f"toka audit verify {run}",
        "  claimed   documenter",
        "tokens in",
    ):
        assert line in text
    assert done.result.stdout == ""


def test_demo_takes_seconds(done: Done) -> None:
    assert done.state.started_at is not None and done.state.ended_at is not None
    assert done.state.ended_at - done.state.started_at < 15  # some 2 s; this machine may be busy


def test_second_demo_has_a_directory_of_its_own_and_json_is_one_record_a_line(done: Done) -> None:
    state = done.project.parents[2]
    again = demo(state.parent, "--state", state, "--json")
    assert again.returncode == 0, again.stderr
    records = [json.loads(line) for line in again.stdout.splitlines()]
    assert (records[0]["type"], records[-1]["type"]) == ("launch", "done")
    assert records[0]["workspace"] == str(state / "demo" / "2" / "project")
    assert records[-1]["state"] == "COMPLETED"
    assert records[-1]["agents"]["documenter"]["denied"] == 1
    assert [r["what"] for r in records if r.get("kind") == "step_denied"] == ["edit_file"]


def test_specs_have_no_findings(package: Path) -> None:
    configs, _, findings = check_paths([package / "agents"])
    assert {c.name for c in configs} == set(AGENTS)
    assert findings == ()


def test_example_spec_has_no_findings() -> None:
    (config,), _, findings = check_paths(
        [ROOT / "agents" / "v0.3.0" / "workstreams" / "build-system-stabilization.yaml"]
    )
    assert config.name == "build-system-stabilization"
    assert findings == ()


def test_project_has_two_failing_tests_before_anybody_works_on_it(package: Path, tmp_path: Path) -> None:
    shutil.copytree(package / "project", tmp_path / "p")
    tests = subprocess.run([sys.executable, "-m", "unittest"], cwd=tmp_path / "p", capture_output=True, text=True)
    assert tests.stderr.endswith("FAILED (failures=2)\n")


def test_workspace_option_names_the_copy(tmp_path: Path) -> None:
    done = demo(tmp_path, "--state", "state", "--workspace", "here")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "review.md").stat().st_size > 0
    assert "--state state" in done.stderr


def test_workspace_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = demo(tmp_path, "--state", "state", "--workspace", "mine")
    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert contents(tmp_path / "mine").keys() == {"notes.txt"}
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("there", [True, False])
def test_model_that_cannot_be_had_leaves_nothing_behind(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "empty").mkdir()
    done = demo(tmp_path, "--state", "state", "--workspace", "empty", "--model", "openai:some-model")
    assert done.returncode == 4, done.stderr
    assert "OPENAI_API_KEY" in done.stderr
    assert list((tmp_path / "state" / "demo").iterdir()) == []
    assert (tmp_path / "empty").exists() == there
    assert contents(tmp_path / "empty") == {}


def test_base_url_without_a_model_is_a_usage_error(tmp_path: Path) -> None:
    done = demo(tmp_path, "--state", "state", "--base-url", "http://127.0.0.1:9/v1")
    assert done.returncode == 2, done.stderr
    assert "scripted does not take one" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_bwrap_nothing_is_begun(tmp_path: Path) -> None:
    hidden = ("/usr/bin/bwrap", "--dev-bind", "/", "/", "--ro-bind", "/dev/null", "/usr/bin/bwrap")
    if not Path("/usr/bin/bwrap").exists() or subprocess.run([*hidden, "/bin/true"], capture_output=True).returncode:
        pytest.skip("bwrap cannot hide itself here")
    done = demo(tmp_path, "--state", "state", before=hidden)
    assert done.returncode == 4, done.stderr
    assert "apt install bubblewrap" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="already an ordinary user")
def test_demo_runs_for_an_ordinary_user() -> None:
    """An uid without an account is as ordinary as one with: only the kernel is asked."""
    home = Path("/tmp") / f"toka-demo-{os.getpid()}"
    try:
        shutil.copytree(ROOT / "src", home / "src", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chown", "-R", f"{UID}:{UID}", str(home)], check=True)
        env = environment(home, PYTHONPATH=str(home / "src"), PYTHONDONTWRITEBYTECODE="1")
        user: dict[str, Any] = {"user": UID, "group": UID, "extra_groups": [], "cwd": home, "env": env}
        if not usable(user, "click, yaml, toka"):
            pytest.skip(f"{sys.executable} cannot be used by another user")
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60, **user)
        assert done.returncode == 0, done.stderr
        made = home / ".local" / "state" / "toka"
        assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (UID, 0o700)
        assert (made / "demo" / "1" / "project" / "review.md").stat().st_size > 0
    finally:
        shutil.rmtree(home, ignore_errors=True)


def on_terminal(home: Path, *options: str) -> tuple[int, str, bool]:
    """Runs the demo on a terminal of 100 columns: exit code, what was drawn, whether its modes are as before."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        before = termios.tcgetattr(theirs)
        process = subprocess.Popen(
            [*COMMAND, *options], stdin=theirs, stdout=theirs, stderr=theirs, cwd=home,
            env=environment(home, TERM="xterm-256color"), start_new_session=True,
        )  # fmt: skip
        drawn = b""
        os.set_blocking(ours, False)
        while process.poll() is None:
            try:
                drawn += os.read(ours, 65_536)
            except BlockingIOError:
                try:
                    process.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
        try:
            while block := os.read(ours, 65_536):
                drawn += block
        except (BlockingIOError, OSError):
            pass
        return process.returncode, drawn.decode(), termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_live_view_draws_on_a_terminal_and_ends_cleanly(tmp_path: Path) -> None:
    code, text, same = on_terminal(tmp_path, "--state", "state")
    assert code == 0
    assert same
    assert text.count("SCRIPTED model") > 3
    assert "\x1b[1A\x1b[2K" in text or "\x1b[2K\x1b[1A" in text
    assert "RUNNING" in text and "after fixer, documenter" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    end = text[text.rindex("\x1b[?25h") :]
    assert "look further" in end
    assert "\x1b[1A" not in end
