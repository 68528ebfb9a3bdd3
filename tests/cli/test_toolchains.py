"""`toolchains` of one's own settings, from the command line: shown, used, refused, and kept over a resume."""

from __future__ import annotations

import json
import os
import re
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

from sandbox.conftest import make_toolchain

TOKA = str(Path(sys.executable).with_name("toka"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here"),
]
SPEC = """
metadata: {{name: one}}
spec: {{name: One}}
tasks:
{tasks}
security:
  capabilities_required:
    - filesystem-write
    - command-execution: {{programs: [hello, sh]}}
"""
HELLO = '  - {id: greet, description: greet, run: "hello > said; echo $PATH >> said", effect: idempotent}\n'
WAIT = '  - {id: wait, description: wait, run: "touch started; while [ ! -e go ]; do sleep 0.05; done", effect: pure}\n'


class Place:
    """A home with settings, a workspace, and a toolchain."""

    def __init__(self, root: Path, toolchains: Path) -> None:
        self.root = root
        self.kit = make_toolchain(toolchains / "kit", hello="helper", helper="echo hello from the kit")
        for folder in ("ws", "agents", ".config/toka"):
            (root / folder).mkdir(parents=True)
        self.spec(HELLO)
        self.settings(str(self.kit))

    def settings(self, *paths: str, more: str = "") -> None:
        listed = "".join(f'  "{path}",\n' for path in paths)
        (self.root / ".config/toka/config.toml").write_text(f"[tools]\ntoolchains = [\n{listed}]\n{more}")

    def spec(self, tasks: str) -> None:
        (self.root / "agents/one.yaml").write_text(SPEC.format(tasks=tasks))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TOKA_", "XDG_")) and "_API_KEY" not in k}
        environment = {**kept, "HOME": str(self.root), "NO_COLOR": "1", "CI": "true"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [TOKA, *arguments], cwd=self.root, env=environment, stdout=pipe, stderr=pipe, text=True,
            start_new_session=True,
        )  # fmt: skip

    def toka_without(self) -> str:
        (self.root / ".config/toka/config.toml").unlink()
        return self.toka("doctor", "--json")[1]

    def toka(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    usual = "/opt" if os.getuid() == 0 else str(Path.home())
    toolchains = Path(tempfile.mkdtemp(prefix="toka-toolchains-", dir=usual))
    yield Place(tmp_path, toolchains)
    shutil.rmtree(toolchains, ignore_errors=True)


def test_a_run_uses_it_and_records_it(place: Place) -> None:
    code, out, err = place.toka("run", "agents", "--workspace", "ws", "--json")
    assert code == 0, err
    said = (place.root / "ws/said").read_text()
    assert said == f"hello from the kit\n{place.kit}/bin:/usr/local/bin:/usr/bin:/bin\n"
    (ready,) = (found for line in out.splitlines() if (found := json.loads(line)).get("kind") == "sandbox_ready")
    assert ready["policy"]["toolchains"] == [str(place.kit)]


def test_plan_and_explain_show_it(place: Place) -> None:
    code, out, err = place.toka("plan", "agents", "--workspace", "ws")
    assert code == 0, err
    assert f"toolchain {place.kit} (read-only)" in out
    assert "not installed" not in out + err
    _, out, _ = place.toka("explain", "grant", "one", "agents", "--workspace", "ws")
    for line in (f"read-only: {place.kit}, a toolchain", f"with all that they find in {place.kit}"):
        assert line in out
    assert re.search(rf"PATH +{place.kit}/bin:/usr/local/bin", out)
    _, out, _ = place.toka("explain", "grant", "one", "agents", "--workspace", "ws", "--json")
    got: dict[str, Any] = json.loads(out)
    assert got["sandbox"]["toolchains"] == [str(place.kit)]
    assert got["not_installed"] == []
    assert str(place.kit) in got["landlock"]["rules"]["commands"]["read, execute"]


def test_without_it_its_program_is_not_installed(place: Place) -> None:
    other = make_toolchain(place.kit.parent / "other", other="true")
    place.settings(str(other))
    code, _, err = place.toka("plan", "agents", "--workspace", "ws")
    assert code == 3
    assert 'the program "hello" is not installed' in err
    assert f"sandboxes look in {other}/bin, /usr/local/bin, /usr/bin" in err


def test_jail_has_it(place: Place) -> None:
    code, out, err = place.toka("jail", "--workspace", "ws", "--explain", "--", "hello")
    assert (code, out) == (0, "hello from the kit\n")
    assert f"read-only: /workspace, /usr, {place.kit}, parts of /etc" in err
    code, _, err = place.toka("jail", "--workspace", "ws", "--explain", "--", "touch", f"{place.kit}/new")
    assert code == 1
    assert "Read-only file system" in err
    assert "any of the system and the toolchains" in err


def test_what_the_policy_denies_is_denied_in_it(place: Place) -> None:
    place.settings(str(place.kit), more='[policy]\ndeny = ["command-execution: helper"]\n')
    code, out, err = place.toka("jail", "--workspace", "ws", "--", "hello")
    assert code
    assert not out
    assert "helper: Permission denied" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "agents", "--workspace", "ws"), ("plan", "agents", "--workspace", "ws"),
        ("explain", "grant", "one", "agents", "--workspace", "ws"), ("jail", "--workspace", "ws", "--", "true"),
    ],
    ids=lambda a: a[0],
)  # fmt: skip
def test_what_cannot_be_used_is_told_at_its_line_before_anything_starts(
    place: Place, arguments: tuple[str, ...]
) -> None:
    (place.kit.parent / "link").symlink_to(place.kit)
    (place.kit.parent / "empty").mkdir()
    here = place.kit.parent
    place.settings(str(place.kit), f"{here}/link", f"{here}/gone", f"{here}/empty")
    code, out, err = place.toka(*arguments)
    told = out + err
    assert code == 3
    for line, says in ((4, f"{here}/link is or leads through a symbolic link"), (5, f"there is no {here}/gone"),
                       (6, f"there is no folder bin in {here}/empty")):  # fmt: skip
        assert f"config.toml:{line}:3" in told
        assert says in told
    if arguments[0] != "explain":  # which prints findings in one line each
        assert f'help: name the folder that it leads to: "{place.kit}"' in told
    assert not (place.root / "ws/said").exists()


def test_doctor_looks_at_them(place: Place) -> None:
    _, out, _ = place.toka("doctor", "--json")
    rows = {row["layer"]: row for row in json.loads(out)["layers"]}
    assert (rows["toolchains"]["ok"], rows["toolchains"]["got"]) == (True, str(place.kit))
    place.settings(f"{place.kit}/gone")
    code, out, _ = place.toka("doctor", "--json")
    rows = {row["layer"]: row for row in json.loads(out)["layers"]}
    assert (code, rows["toolchains"]["ok"], json.loads(out)["level"]) == (4, False, "full")
    assert (
        f"config.toml:3:3: error[TK4206]: tools.toolchains: there is no {place.kit}/gone" in rows["toolchains"]["got"]
    )
    assert "toolchains" not in {row["layer"] for row in json.loads(place.toka_without())["layers"]}


def test_one_in_the_workspace_is_refused(place: Place) -> None:
    code, _, err = place.toka("run", "agents", "--workspace", str(place.kit.parent))
    assert code == 3
    assert f"{place.kit} meets the workspace {place.kit.parent}" in err


def interrupted(place: Place) -> None:
    """A run that was stopped before it greets."""
    place.spec(WAIT + HELLO)
    process = place.start("run", "agents", "--workspace", "ws")
    end = time.monotonic() + 30
    while not (place.root / "ws/started").exists():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    (place.root / "ws/go").touch()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err


def test_a_run_goes_on_with_those_that_it_was_made_with(place: Place) -> None:
    interrupted(place)
    other = make_toolchain(place.kit.parent / "other", hello="echo another")
    place.settings(str(other))
    code, _, err = place.toka("resume", "@last")
    assert code == 0, err
    assert (place.root / "ws/said").read_text().startswith(f"hello from the kit\n{place.kit}/bin:/usr")


def test_a_run_whose_toolchain_now_holds_the_record_does_not_go_on(place: Place) -> None:
    interrupted(place)
    (place.root / ".config/toka/config.toml").unlink()
    (place.root / ".local/state/toka").rename(place.kit / "state")
    code, _, err = place.toka("resume", "@last", "--state", f"{place.kit}/state")
    assert code == 3
    assert f'"{place.kit}" meets "{place.kit}/state", which Toka keeps from agents' in err
    assert "the run's own toolchains" in err


def test_a_run_whose_toolchain_is_gone_does_not_go_on(place: Place) -> None:
    interrupted(place)
    shutil.rmtree(place.kit)
    code, _, err = place.toka("resume", "@last")
    assert code == 3
    assert f"there is no {place.kit}" in err
    make_toolchain(place.kit, hello="echo again")
    assert place.toka("resume", "@last")[0] == 0
    assert (place.root / "ws/said").read_text().startswith("again\n")
