"""What cannot be given is refused before anything starts: with its place, and nothing is left behind.

Each case goes through the command line three times: `validate`, which does not look at the workspace, `plan` and `run`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.records import Ran, Toka
from toka.core.limits import LEAST_MEMORY

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")

SPEC = """
metadata: {name: one}
spec: {name: One}
tasks: [{description: touch, run: "touch docs/touched"}]
security:
  resource_limits: {LIMITS}
  capabilities_required:
    - filesystem-write: {paths: [docs]}
    - ASKED
"""
PLACE = "specs/a.yaml:9"
LIMITS_PLACE = "specs/a.yaml:6"
Tried = Callable[..., Ran]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for folder in ("ws/docs", "specs"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def write(place: Path, asked: str = "filesystem-read", limits: str = "", more: str = "") -> None:
    (place / "specs/a.yaml").write_text(SPEC.replace("ASKED", asked).replace("LIMITS", limits) + more)


def tree(folder: Path) -> dict[str, Any]:
    """Everything below a folder: what kind it is, and what it holds or leads to."""
    out: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        out[name] = (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else path.is_dir()
        )
    return out


@pytest.fixture
def refused(toka: Toka, place: Path) -> Callable[..., None]:
    """Runs the three commands, and says what each must do. Nothing may be recorded, made or changed by any of them."""

    def check(*said: str, validates: int = 0, code: int = 3, plans: int | None = None, workspace: str = "ws") -> None:
        before = tree(place)
        done = toka("validate", "specs")
        assert done.code == validates, done.out + done.err
        if validates:
            assert all(text in done.out + done.err for text in said), done.out + done.err
        for command, ends in (("plan", code if plans is None else plans), ("run", code)):
            state = ("--state", place / "state") if command == "run" else ()
            done = toka(command, "specs", "--workspace", place / workspace, *state)
            shown = done.out + done.err
            assert done.code == ends, f"{command}: {shown}"
            assert all(text in shown for text in said), f"{command}: {shown}"
        assert toka("ps", "--state", place / "state", "--json").out == "", "no run is recorded"
        shutil.rmtree(place / "state", ignore_errors=True)
        assert tree(place) == before, "nothing was made or removed"

    return check


def test_what_is_fine_runs(toka: Toka, place: Path) -> None:
    """The spec that the other cases spoil."""
    write(place)
    for command in (("validate", "specs"), ("plan", "specs", "--workspace", "ws")):
        assert toka(*command).code == 0
    assert toka("run", "specs", "--workspace", "ws", "--state", "state").code == 0
    assert (place / "ws/docs/touched").exists()


def test_a_path_that_does_not_exist(place: Path, refused: Callable[..., None]) -> None:
    write(place, "filesystem-read: {paths: [docs, missing/notes]}")
    refused(PLACE, "TK4201", 'there is no "missing/notes" in the workspace', "create it, correct the path")


@pytest.mark.parametrize("capability", ["filesystem-read", "filesystem-write"])
def test_a_granted_path_that_is_a_link(place: Path, refused: Callable[..., None], capability: str) -> None:
    write(place, capability + ": {paths: [docs, link/more]}")
    (place / "ws/link").symlink_to("docs")
    said = '"link/more" is or leads through a symbolic link'
    refused(PLACE, "TK4201", said, 'grant what it leads to: "docs/more"')
    (place / "ws/link").unlink()
    (place / "ws/link").symlink_to(place)
    refused(PLACE, "TK4201", said, "it leads out of the workspace")


def test_a_path_that_an_agent_before_may_write_is_awaited(toka: Toka, place: Path) -> None:
    write(place, "filesystem-read: {paths: [docs/later]}", more="dependencies: {required: {two: {}}}\n")
    other = SPEC.replace("ASKED", "filesystem-read").replace("LIMITS", "").replace("name: one", "name: two")
    (place / "specs/b.yaml").write_text(other)
    assert toka("plan", "specs", "--workspace", "ws").code == 0


def test_a_workspace_that_is_a_link(place: Path, refused: Callable[..., None]) -> None:
    write(place)
    (place / "link").symlink_to("ws")
    refused("TK4202", "link is a symbolic link", "--workspace ", "ws", workspace="link")


def test_a_workspace_below_a_link_is_none(toka: Toka, place: Path) -> None:
    write(place)
    (place / "link").symlink_to(place)
    assert toka("plan", "specs", "--workspace", "link/ws").code == 0


PLANTED = [".envrc", ".vscode", ".mcp.json", ".claude", "toka.toml", ".github", ".github/workflows", ".gitmodules"]


@pytest.mark.parametrize("path", PLANTED)
def test_a_link_planted_at_a_protected_path(place: Path, refused: Callable[..., None], path: str) -> None:
    write(place, "filesystem-write: {paths: [.]}")
    (place / "target").mkdir()
    planted = place / "ws" / path
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(place / "target")
    refused(PLACE, "TK4203", f"{planted.name} is a symbolic link", "replace the link by what it leads to")


@pytest.mark.parametrize("path", [".git/hooks", ".git/config", ".git/info"])
def test_a_link_planted_in_a_repository(place: Path, refused: Callable[..., None], path: str) -> None:
    write(place, "git-access")
    (place / "ws/.git").mkdir()
    (place / "target").mkdir()
    (place / "ws" / path).symlink_to(place / "target")
    refused(PLACE, "TK4203", f"{path.removeprefix('.git/')} is a symbolic link")


def test_a_spec_in_the_workspace_that_is_a_link(toka: Toka, place: Path) -> None:
    write(place, "filesystem-write")
    shutil.move(place / "specs/a.yaml", place / "a.yaml")
    (place / "ws/a.yaml").symlink_to(place / "a.yaml")
    before = tree(place / "ws")
    for command in (("plan",), ("run", "--state", place / "state")):
        done = toka(*command, "ws/a.yaml", "--workspace", "ws")
        assert (done.code, "TK4203" in done.out + done.err) == (3, True), done.out + done.err
    assert tree(place / "ws") == before


def test_a_repository_that_is_a_file(place: Path, refused: Callable[..., None]) -> None:
    """As in a worktree or a submodule."""
    write(place, "git-access")
    (place / "ws/.git").write_text("gitdir: /somewhere/else\n")
    refused(PLACE, "TK4203", ".git is a file", "use the main checkout")


def test_a_worktree_is_no_hindrance_to_an_agent_that_leaves_the_repository_alone(toka: Toka, place: Path) -> None:
    write(place, "filesystem-write: {paths: [.]}")
    (place / "ws/.git").write_text("gitdir: /somewhere/else\n")
    assert toka("run", "specs", "--workspace", "ws", "--state", "state").code == 0
    assert sorted(p.name for p in (place / "ws").iterdir()) == [".git", "docs"]
    assert (place / "ws/.git").read_text() == "gitdir: /somewhere/else\n"


def test_a_program_that_is_not_installed(place: Path, refused: Callable[..., None]) -> None:
    write(place, "command-execution: {programs: [ls, no-such-program]}")
    refused(PLACE, "TK4204", 'the program "no-such-program" is not installed', "install it, or take it out")


def test_a_program_that_is_installed_where_sandboxes_do_not_look(
    place: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = place / "bin/mine"
    own.parent.mkdir()
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", f"{own.parent}:{os.environ['PATH']}")
    write(place, "command-execution: {programs: [mine]}")
    refused(PLACE, "TK4204", "sandboxes look in /usr/local/bin, /usr/bin")


HOSTS = [
    "exa mple.org", "user@example.org", "https://example.org", "example.org/path", "*.*.org", "*", "e*.org", "[::1]",
    "::1", "127.0.0.1", "2130706433", "0x7f000001", "0x7f.1", "ex\u00e4mple.org", "\u0435xample.org",
    "example.org\\0.evil", "example..org", ".example.org", "example.org.", "-a.org", "a_b.org", "example.org%0a",
    "x" * 64 + ".org",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_pattern_with_odd_characters(place: Path, refused: Callable[..., None], host: str) -> None:
    write(place, f'network-access: {{hosts: ["{host}"]}}')
    refused(PLACE, "TK4003", "is not a host name; write names such as api.example.org", validates=3)


@pytest.mark.parametrize("memory", ["64KB", "4MB", "19MB"])
def test_a_memory_limit_below_what_a_sandbox_needs(place: Path, refused: Callable[..., None], memory: str) -> None:
    write(place, limits=f"max_memory: {memory}")
    refused(LIMITS_PLACE, "TK5003", f"{memory} is out of range", "at least 20MB", validates=3)


def test_the_least_memory_is_enough_to_work(toka: Toka, place: Path) -> None:
    """For the self-test, the file worker, a command and a check, whoever counts."""
    write(place, "filesystem-read", limits=f"max_memory: {LEAST_MEMORY >> 20}MB")
    text = (place / "specs/a.yaml").read_text()
    slow = "python3 -c 'import time; time.sleep(0.4)' && touch docs/touched"
    (place / "specs/a.yaml").write_text(
        text.replace("touch docs/touched", slow).replace("tasks: [", "tasks: [{description: think}, ")
    )
    (place / "s.yaml").write_text(
        "script: 1\ndefault:\n  - calls: [{write_file: {path: docs/b.txt, content: hi}}, {list_dir: {path: docs}}]\n"
        "  - report: {status: succeeded, summary: done}\n"
    )
    done = toka("run", "specs", "--workspace", "ws", "--state", "state", "--model", "scripted:s.yaml")
    assert done.code == 0, done.out + done.err
    assert (place / "ws/docs/touched").exists()


def test_strict_limits_that_can_only_be_best_effort(place: Path, refused: Callable[..., None]) -> None:
    """No machine holds the bytes that are written, so this is refused on every one."""
    write(place, limits="max_disk_usage: 1GB", more="  enforcement: strict\n")
    refused(
        "specs/a.yaml:10: agent one asks for strict limits",
        "max_disk_usage 1GB is best effort (counted while commands run",
        "no quota of a file system holds it",
        code=4,
    )


def test_all_that_is_wrong_is_said_at_once(toka: Toka, place: Path) -> None:
    write(place, "command-execution: {programs: [no-such-program]}")
    text = (place / "specs/a.yaml").read_text()
    (place / "specs/a.yaml").write_text(
        text.replace("paths: [docs]", "paths: [docs]}\n    - filesystem-read: {paths: [missing]")
    )
    (place / "ws/.envrc").symlink_to("docs")
    for command in ("plan", "run"):
        done = toka(command, "specs", "--workspace", "ws")
        assert done.code == 3
        assert ("TK4201" in done.out + done.err, "TK4204" in done.out + done.err) == (True, True)
