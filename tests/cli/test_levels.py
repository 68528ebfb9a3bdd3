"""How strongly agents are confined, by the real command: who may ask for which level, and what each run records."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cli.records import COMMAND, Ran, Toka
from harness import usable
from toka.sandbox import landlock
from toka.sandbox.idmap import agent_uid

ROOT = os.getuid() == 0
UID = 54_322
SOURCES = Path(__file__).parents[2] / "src"
LOOK = """
metadata: {name: look}
spec: {name: Look, domain: testing}
tasks:
  - {id: look, description: look, effect: idempotent,
     run: "id -u > out/uid; ls / > out/root 2>&1; cat SECRET > out/secret 2>&1; ls /proc/1/fd > out/fds 2>&1; true"}
security:
  sandbox: WANTED
  capabilities_required: [{filesystem-write: {paths: [out]}}]
"""
COVERED = 'mount --bind /dev/null /usr/bin/bwrap && exec "$@"'
"""What a shell in mounts of its own does so that this machine has no bwrap."""
NO_CGROUPS = 'umount -lR /sys/fs/cgroup && exec "$@"'

Run = Callable[..., Ran]


@pytest.fixture(params=["root", "ordinary"])
def user(request: pytest.FixtureRequest) -> int:
    """Who runs Toka."""
    if request.param == "root" and not ROOT:
        pytest.skip("this is not root")
    return 0 if request.param == "root" else UID if ROOT else os.getuid()


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that its user and the agents' can get to."""
    folder = Path(tempfile.mkdtemp(prefix="toka-levels-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place(home: Path, user: int) -> Path:
    """Beside the workspace lies a secret of the user's."""
    (home / "ws/out").mkdir(parents=True)
    (home / ".config/toka").mkdir(parents=True)
    (home / "secret").write_text("top-secret\n")
    spec(home)
    if ROOT:
        shutil.copytree(SOURCES, home / "src", ignore=shutil.ignore_patterns("__pycache__"))
        give(home, user)
    return home


def spec(home: Path, sandbox: str = "true") -> None:
    (home / "look.yaml").write_text(LOOK.replace("SECRET", str(home / "secret")).replace("WANTED", sandbox))


def give(path: Path, user: int) -> None:
    if ROOT:
        subprocess.run(["chown", "-R", f"{user}:{user}", str(path)], check=True)


@pytest.fixture
def run(place: Path, user: int) -> Run:
    """Runs Toka as that user, in a process of its own: `run("show", "@last", TOKA_SANDBOX="reduced")`."""
    identity: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if ROOT else {}
    if ROOT and user and not usable(identity, "pydantic, click, rich"):
        pytest.skip(f"{sys.executable} cannot be used by another user")

    def command(*arguments: str, before: Sequence[str] = (), **variables: str) -> Ran:
        environment = {"HOME": str(place), "PATH": "/usr/bin:/bin:/usr/sbin", "NO_COLOR": "1", "CI": "true"}
        environment |= {"PYTHONPATH": str(place / "src" if ROOT else SOURCES), "OLLAMA_HOST": "127.0.0.1:9"}
        done = subprocess.run(
            [*before, *COMMAND, *arguments], cwd=place / "ws", env={**environment, **variables}, capture_output=True,
            text=True, timeout=60, **identity,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout, done.stderr)

    return command


def look(run: Run, *options: str, **more: Any) -> Ran:
    return run("run", "../look.yaml", *options, **more)


def found(place: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in (place / "ws/out").iterdir()}


def kinds(run: Run, kind: str) -> list[dict[str, Any]]:
    return run("events", "@last", "--kind", kind, "--json").json_lines()


def levels(run: Run) -> tuple[str, list[str]]:
    """What `show --json` says of the run, and the recorded self-tests of its agents."""
    level = run("show", "@last", "--json").json["sandbox"]
    assert run("ps", "--json").json_lines()[0]["sandbox"] == level
    shown = {"reduced": "reduced sandbox", "none": "NO SANDBOX"}.get(level)
    assert shown is None or f"\n  {shown}" in run("ps").out
    return level, [e["test"]["level"] for e in kinds(run, "sandbox_ready")]


# ---- full


@pytest.mark.slow
def test_full_is_what_everybody_gets(run: Run, place: Path, user: int) -> None:
    done = look(run)
    assert done.code == 0, done.err
    assert "SANDBOX" not in done.err
    assert found(place)["uid"] == f"{agent_uid() if user == 0 else user}\n"
    assert "workspace" in found(place)["root"]
    assert "No such file" in found(place)["secret"]
    assert levels(run) == ("full", ["full"])
    assert "sandbox" not in kinds(run, "executor_attached")[0], "a default is not written"
    assert "sandbox" not in run("show", "@last").lines[0]


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="only root can cover bwrap")
@pytest.mark.parametrize("user", ["root"], indirect=True)
def test_without_bwrap_nothing_runs_unless_another_level_was_asked_for_by_name(run: Run, place: Path) -> None:
    covered = ["unshare", "-m", "sh", "-c", COVERED, "sh"]
    done = look(run, before=covered)
    assert done.code == 4
    assert "bwrap (bubblewrap) is not installed" in done.err
    assert "apt install bubblewrap" in done.err
    assert found(place) == {}
    assert run("ps").out.startswith("No runs"), "nothing is half-started"
    doctor = run("doctor", before=covered)
    assert doctor.code == 4
    assert "MISSING  bwrap" in doctor.out
    assert "not tried: bwrap" in doctor.out
    assert 'sandbox = "reduced" in your own config.toml; nothing falls back to it by itself' in doctor.err
    give(place / "ws", agent_uid())
    assert look(run, before=covered, TOKA_SANDBOX="reduced").code == 0
    assert levels(run) == ("reduced", ["reduced"])
    told = run("doctor", "--json", before=covered, TOKA_SANDBOX="reduced")
    assert (told.code, told.json["ok"], told.json["asked"], told.json["level"]) == (0, True, "reduced", "reduced")


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="only root can take cgroups away")
@pytest.mark.parametrize("user", ["root"], indirect=True)
def test_without_cgroups_agents_are_confined_all_the_same_and_the_doctor_says_what_is_loose(
    run: Run, place: Path
) -> None:
    bare = ["unshare", "-m", "sh", "-c", NO_CGROUPS, "sh"]
    doctor = run("doctor", before=bare)
    assert doctor.code == 0, doctor.out + doctor.err
    assert "without  cgroup memory" in doctor.out
    assert "agents can run here; best effort: limits of memory, cpu, pids" in doctor.err
    assert look(run, before=bare).code == 0
    assert levels(run) == ("full", ["full"])


# ---- reduced


@pytest.mark.slow
@pytest.mark.parametrize("by", ["file", "variable"])
def test_reduced_is_asked_for_in_ones_own_settings_and_recorded(run: Run, place: Path, user: int, by: str) -> None:
    give(place / "ws", agent_uid() if user == 0 else user)
    more = {"TOKA_SANDBOX": "reduced"} if by == "variable" else {}
    if by == "file":
        (place / ".config/toka/config.toml").write_text('sandbox = "reduced"\n')
    done = look(run, **more)
    assert done.code == 0, done.err
    assert "toka: reduced sandbox: Landlock and filters, no namespaces (sandbox, from " in done.err
    assert "   reduced sandbox" in done.err
    assert found(place)["uid"] == f"{agent_uid() if user == 0 else user}\n"
    for name in ("root", "secret", "fds"):
        assert "Permission denied" in found(place)[name], name
    assert levels(run) == ("reduced", ["reduced"])
    assert [e["sandbox"] for e in kinds(run, "executor_attached")] == ["reduced"]
    assert "reduced sandbox" in run("show", "@last").lines[0]
    assert ", reduced sandbox" in run("events", "@last").lines[1]


@pytest.mark.parametrize("user", ["root"], indirect=True)
def test_root_has_to_give_the_workspace_away_for_reduced(run: Run, place: Path) -> None:
    done = look(run, TOKA_SANDBOX="reduced")
    assert done.code == 4
    assert f"in a reduced sandbox root's agents run as user id {agent_uid()}" in done.err
    assert f"chown -R {agent_uid()} {place}/ws" in done.err
    assert run("ps").out.startswith("No runs")


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
@pytest.mark.parametrize("written", ['sandbox = "reduced"', 'sandbox = "none"', "allow_unsandboxed = true"])
def test_a_project_cannot_weaken_anything(run: Run, place: Path, written: str) -> None:
    (place / "ws/toka.toml").write_text(written + "\n")
    done = look(run)
    assert done.code == 3
    assert "cannot be set by a toka.toml in the working directory" in done.err
    assert found(place) == {}


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_no_setting_stands_for_no_sandbox(run: Run, place: Path) -> None:
    for value in ("none", "off", "Reduced"):
        done = look(run, TOKA_SANDBOX=value)
        assert done.code == 3, value
        assert 'write "full" or "reduced"' in done.err
    assert "toka run --dangerously-no-sandbox" in look(run, TOKA_SANDBOX="none").err
    assert found(place) == {}


# ---- none


@pytest.mark.slow
def test_none_is_asked_for_by_a_person_and_recorded_everywhere(run: Run, place: Path, user: int) -> None:
    done = look(run, "--dangerously-no-sandbox")
    assert done.code == 0, done.err
    assert "NO SANDBOX: commands can do whatever you can (--dangerously-no-sandbox)" in done.err
    assert found(place)["secret"] == "top-secret\n"
    assert found(place)["uid"] == f"{user}\n"
    assert levels(run) == ("none", ["none"])
    assert [e["sandbox"] for e in kinds(run, "executor_attached")] == ["none"]
    shown = run("show", "@last").out
    assert "NO SANDBOX" in shown.splitlines()[0]
    assert "nothing was tested" in shown
    assert "self-test passed" not in shown
    events = run("events", "@last").out
    assert ", NO SANDBOX" in events
    assert "NO SANDBOX, asked for: reads " in events
    assert "NO SANDBOX" in run("logs", "@last").out
    assert look(run).code == 0, "the next run is confined again"
    assert levels(run) == ("full", ["full"])


@pytest.mark.slow
@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_json_says_it_first_and_last(run: Run) -> None:
    records = look(run, "--dangerously-no-sandbox", "--json").json_lines()
    assert (records[0]["type"], records[0]["sandbox"]) == ("launch", "none")
    assert (records[-1]["type"], records[-1]["sandbox"]) == ("done", "none")
    records = look(run, "--json").json_lines()
    assert (records[0]["sandbox"], records[-1]["sandbox"]) == ("full", "full")


@pytest.mark.slow
@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_a_resume_is_confined_unless_the_person_says_so_again(run: Run, place: Path) -> None:
    """What was once without a sandbox stays marked, however it goes on."""
    text = LOOK.replace("WANTED", "true").replace("ls / > out/root 2>&1;", "test ! -e ../pid || kill -9 $(cat ../pid);")
    (place / "look.yaml").write_text(text)
    done = look(run, "--dangerously-no-sandbox", before=["sh", "-c", 'echo $$ > ../pid; exec "$@"', "sh"])
    assert done.code == -9
    done = run("resume", "@last")
    assert done.code == 0, done.err
    assert "NO SANDBOX: commands" not in done.err
    assert [e.get("sandbox", "full") for e in kinds(run, "executor_attached")] == ["none", "full"]
    assert levels(run) == ("none", ["none", "full"])


# ---- what a spec may ask for


@pytest.mark.slow
@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_a_spec_that_wants_no_sandbox_gets_one_unless_the_operator_allows_it(run: Run, place: Path) -> None:
    spec(place, "false")
    done = look(run)
    assert done.code == 0, done.err
    assert "TK4005" in done.err
    assert "No such file" in found(place)["secret"]
    assert levels(run) == ("full", ["full"])
    (place / ".config/toka/config.toml").write_text("allow_unsandboxed = true\n")
    done = look(run)
    assert done.code == 0, done.err
    assert "NO SANDBOX: commands can do whatever you can: look (`sandbox: false`" in done.err
    assert found(place)["secret"] == "top-secret\n"
    assert levels(run) == ("none", ["none"])
    assert "sandbox" not in kinds(run, "executor_attached")[0], "other agents would have been confined"
    spec(place)
    assert look(run).code == 0
    assert levels(run) == ("full", ["full"]), "allowing it forces it on nobody"


# ---- a person's own command

LOOK_AROUND = "id -u; cat SECRET; ls / > out/root; echo x > made; cat /proc/1/environ; exit 3"
ON_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def jail(run: Run, place: Path, *options: str, **more: Any) -> Ran:
    script = LOOK_AROUND.replace("SECRET", str(place / "secret"))
    return run("jail", "--explain", "--grant", "filesystem-write: out", *options, "--", "sh", "-c", script, **more)


@pytest.mark.slow
def test_a_jail_is_full_unless_another_level_was_asked_for(run: Run, place: Path, user: int) -> None:
    done = jail(run, place)
    assert (done.code, done.out) == (3, f"{agent_uid() if user == 0 else user}\n")
    assert "SANDBOX" not in done.err
    assert "reduced" not in done.err
    for line in (
        "refused: read /tmp/",
        r"refused: write /workspace/made \(mounts: ",
        "mounts +read-only: /workspace, ",
    ):
        assert re.search(line, done.err), done.err


@pytest.mark.slow
def test_a_jail_is_as_reduced_as_a_run_would_be(run: Run, place: Path, user: int) -> None:
    if user == 0:
        assert jail(run, place, TOKA_SANDBOX="reduced").code == 4, "the workspace is not the agent's"
    give(place / "ws", agent_uid() if user == 0 else user)
    done = jail(run, place, TOKA_SANDBOX="reduced")
    assert (done.code, done.out) == (3, f"{agent_uid() if user == 0 else user}\n")
    assert done.err.splitlines()[0] == (
        "toka: reduced sandbox: Landlock and filters, no namespaces (sandbox, from TOKA_SANDBOX)"
    )
    assert done.err.count("Permission denied") >= 4
    told = done.err.partition("toka: in force:")[2]
    for line in (
        r"level +reduced sandbox: Landlock and filters, no namespaces\n", "mounts +none of its own: it finds",
        rf"read-only: {place}/ws, /usr", rf"writable: {place}/ws/out, /tmp/toka-\w+ \(gone at the end\)",
        "what is refused inside cannot be seen from outside at the level reduced", rf"read +{place}/ws",
        "Permission denied +Landlock: the path is not granted", "note +names, sizes and times",
    ):  # fmt: skip
        assert re.search(line, told), f"no {line!r} in {told}"
    assert "/workspace" not in told
    assert "namespaces, mounts" not in told


@pytest.mark.slow
def test_a_jail_without_a_sandbox_says_so(run: Run, place: Path, user: int) -> None:
    done = jail(run, place, "--dangerously-no-sandbox")
    assert (done.code, done.out.splitlines()[:2]) == (3, [str(user), "top-secret"])
    assert done.err.splitlines()[0] == "toka: NO SANDBOX: commands can do whatever you can (--dangerously-no-sandbox)"
    told = done.err.partition("toka: in force:")[2]
    for line in ("level +NO SANDBOX", "mounts +none of", "Landlock +not in force", "seccomp +not in force",
                 f"user +{user} on this machine: yours", "network +all", "nothing was confined"):  # fmt: skip
        assert re.search(line, told), f"no {line!r} in {told}"
    assert "refused" not in told.replace("nothing was refused", "")
    assert (place / "ws/made").exists()


@pytest.mark.parametrize("user", ["ordinary"], indirect=True)
def test_no_setting_takes_the_sandbox_of_a_jail_away(run: Run, place: Path) -> None:
    assert jail(run, place, TOKA_SANDBOX="none").code == 3
    (place / "ws/toka.toml").write_text('sandbox = "reduced"\n')
    assert jail(run, place).code == 3
    assert not (place / "ws/made").exists()


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="only root can cover bwrap")
@pytest.mark.parametrize("user", ["root"], indirect=True)
def test_a_jail_falls_back_to_nothing_by_itself(run: Run, place: Path) -> None:
    covered = ["unshare", "-m", "sh", "-c", COVERED, "sh"]
    done = jail(run, place, before=covered)
    assert (done.code, done.out) == (4, "")
    assert "bwrap (bubblewrap) is not installed" in done.err
    give(place / "ws", agent_uid())
    assert jail(run, place, before=covered, TOKA_SANDBOX="reduced").code == 3


@pytest.mark.slow
@pytest.mark.parametrize("level", ["full", "reduced", "none"])
def test_a_jail_has_a_terminal_of_its_own_at_each_level(run: Run, place: Path, user: int, level: str) -> None:
    give(place / "ws", agent_uid() if user == 0 and level == "reduced" else user)
    options = ["--dangerously-no-sandbox"] if level == "none" else []
    more = {"TOKA_SANDBOX": "reduced"} if level == "reduced" else {}
    script = "test -t 0 && test -t 1 && echo to-the-terminal > /dev/tty; sleep 9 & jobs; kill %1; exit 4"
    command = ("jail", *options, "--", "bash", "--norc", "-c", f"set -m; {script}")
    done = run(*command, before=[sys.executable, "-c", ON_A_TERMINAL], **more)
    assert done.code == 4
    assert "to-the-terminal" in done.out
    assert "Running" in done.out


# ---- in this process: a kernel without Landlock


def test_a_kernel_without_landlock_gives_no_level_but_none(
    toka: Toka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    (tmp_path / "out").mkdir()
    spec(tmp_path)
    for level in ("full", "reduced"):
        monkeypatch.setenv("TOKA_SANDBOX", level)
        done = toka("run", "look.yaml")
        assert done.code == 4
        assert "needs Landlock, which this kernel has not" in done.err
        assert "Linux 5.13" in done.err
        doctor = toka("doctor", "--json").json
        rows = {row["layer"]: row for row in doctor["layers"]}
        assert (doctor["ok"], doctor["level"]) == (False, "none")
        assert (rows["landlock"]["ok"], rows["self-test"]["got"]) == (False, "not tried: landlock")
        assert "Linux 5.13" in rows["landlock"]["fix"]
    assert list((tmp_path / "out").iterdir()) == []


def test_an_older_landlock_holds_no_connections_in_reduced(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 3)
    monkeypatch.setenv("TOKA_SANDBOX", "reduced")
    rows = {row["layer"]: row for row in toka("doctor", "--json").json["layers"]}
    assert rows["egress"]["got"] == "Landlock 3 holds no connections"
    assert not rows["egress"]["needed"]


def test_help_says_what_it_does(toka: Toka) -> None:
    for command in ("run", "resume"):
        assert "--dangerously-no-sandbox" in toka(command, "--help").out
    shown = json.loads(toka("config", "show", "--json").out)["settings"]
    assert {"key": "sandbox", "value": "full", "origin": "default"} in shown
