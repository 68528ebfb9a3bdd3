"""What a workspace holds is data: nothing in it is executed, nothing is followed out of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from toka.workspace import walk
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.putback import Putter
from workspace.conftest import NOTE, Open
from workspace.test_restore_exact import Directly
from workspace.trees import snapshot

SECRET = b"a secret of somebody else\n"
SECRET_ID = hashlib.sha1(b"blob %d\0" % len(SECRET) + SECRET).digest()


@pytest.fixture
def trap(workspace: Path, tmp_path: Path) -> Path:
    """A repository that runs a program at every occasion that git gives; the path of what that leaves behind."""
    marker, program = tmp_path / "marker", tmp_path / "evil"
    program.write_text(f"#!/bin/sh\necho ran >> {marker}\ncat\n")
    program.chmod(0o755)
    tmp_path.chmod(0o777)
    subprocess.run(["git", "-C", workspace, "init", "-q"], check=True)
    config = workspace / ".git/config"
    config.write_text(
        config.read_text()
        + f"\thooksPath = {tmp_path}/hooks\n\tfsmonitor = {program}\n\tpager = {program}\n\teditor = {program}\n"
        + f"\tsshCommand = {program}\n\talternateRefsCommand = {program}\n\tattributesFile = {tmp_path}/attributes\n"
        + f'[filter "evil"]\n\tclean = {program}\n\tsmudge = {program}\n\tprocess = {program}\n\trequired = true\n'
        + f'[diff "evil"]\n\ttextconv = {program}\n\tcommand = {program}\n[diff]\n\texternal = {program}\n'
        + f'[merge "evil"]\n\tdriver = {program}\n[uploadpack]\n\tpackObjectsHook = {program}\n'
    )
    for folder in (tmp_path / "hooks", workspace / ".git/hooks"):
        folder.mkdir(exist_ok=True)
        for hook in ("post-index-change", "reference-transaction", "pre-commit", "post-checkout", "fsmonitor-watchman"):
            (folder / hook).write_text(program.read_text())
            (folder / hook).chmod(0o755)
    (tmp_path / "attributes").write_text("* filter=evil diff=evil\n")
    (workspace / ".gitattributes").write_text("* filter=evil diff=evil merge=evil text eol=crlf ident\n")
    return marker


def test_the_trap_snaps(trap: Path, workspace: Path) -> None:
    subprocess.run(["git", "-C", workspace, "add", "."], capture_output=True)
    assert trap.exists()


@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("level", ["full", "none"])
async def test_nothing_of_a_hostile_repository_runs(
    *, level: str, ignored: bool, trap: Path, workspace: Path, open_checkpoints: Open
) -> None:
    checkpoints = open_checkpoints(level=level, ignored=ignored)
    (workspace / "src/main.py").write_bytes(b"$Id$\r\n\r\n\n")
    there = snapshot(workspace)
    taken = await checkpoints.take(NOTE)
    (workspace / "src/main.py").write_bytes(b"changed\n")
    (workspace / ".gitattributes").write_text("* diff=evil\n")
    assert b"-$Id$\r\n" in (await checkpoints.diff(taken.id)).text
    await checkpoints.restore(taken.id, NOTE)
    await checkpoints.history()
    await checkpoints.prune({"other": 0.0}, 0)
    assert snapshot(workspace) == there
    assert not trap.exists()


@pytest.fixture
def direct(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Directly:
    """Without a sandbox, which would hide a mistake."""
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    return Directly(workspace)


def test_nothing_of_a_hostile_repository_runs_even_without_a_sandbox(
    trap: Path, workspace: Path, direct: Directly
) -> None:
    taken = direct.take()
    direct.ask("take", scope=["."], ignored=False, objects=True)
    (workspace / "src/main.py").write_bytes(b"changed\n")
    direct.ask("diff", old=taken, new=None, paths=[])
    direct.restore(taken)
    direct.ask("forget", runs=["r"])
    direct.store.close()
    assert not trap.exists()


def test_a_git_file_that_points_elsewhere_is_a_file(workspace: Path, direct: Directly, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    subprocess.run(["git", "init", "-q", elsewhere], check=True)
    (workspace / ".git").write_text(f"gitdir: {elsewhere}/.git\n")
    there = snapshot(elsewhere)
    taken = direct.take()
    (workspace / ".git").unlink()
    direct.restore(taken)
    direct.store.close()
    assert (workspace / ".git").read_text() == f"gitdir: {elsewhere}/.git\n"
    assert snapshot(elsewhere) == there


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "secret").write_bytes(SECRET)
    (folder / "deep/main.py").write_bytes(SECRET)
    return folder


async def test_links_out_of_the_workspace_are_links(
    checkpoints: Checkpoints, workspace: Path, outside: Path, direct: Directly
) -> None:
    (workspace / "file").symlink_to(outside / "secret")
    (workspace / "folder").symlink_to(outside)
    assert (await checkpoints.take(NOTE)).files == 5
    direct.take()
    direct.store.close()
    assert SECRET_ID not in direct.store.known


def test_a_folder_swapped_for_a_link_during_the_walk_is_not_followed(
    workspace: Path, outside: Path, direct: Directly, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeper = walk.Walk._deeper

    def swapped(self: walk.Walk, fd: int, name: str, *rest: object) -> object:
        if name == "src" and not (workspace / "src").is_symlink():
            (workspace / "src").rename(workspace / "away")
            (workspace / "src").symlink_to(outside)
        return deeper(self, fd, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(walk.Walk, "_deeper", swapped)
    taken = direct.take()
    assert SECRET_ID not in direct.store.known
    assert direct.ask("diff", old=taken, new=None, paths=["src"])["changes"] == []
    direct.store.close()


def test_a_file_that_vanishes_during_the_walk_takes_no_other_with_it(
    workspace: Path, direct: Directly, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, gone = walk.signature, (workspace / "src/main.py").stat().st_ino
    seen: list[int] = []

    def look(status: os.stat_result) -> walk.Signature:
        seen.append(status.st_ino)
        if status.st_ino == gone:
            (workspace / "src/main.py").unlink(missing_ok=True)
            raise FileNotFoundError
        return real(status)

    monkeypatch.setattr(walk, "signature", look)
    answer = direct.ask("take", scope=["."], ignored=True, objects=False)
    direct.store.close()
    assert gone in seen
    assert (answer["files"], answer["uncovered"]) == (2, [])


def test_a_file_swapped_for_a_link_during_the_walk_is_not_followed(
    workspace: Path, outside: Path, direct: Directly, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = walk.Walk._leaf

    def swapped(self: walk.Walk, fd: int, name: str, sign: walk.Signature) -> walk.Seen:
        file = workspace / "src/main.py"
        if name == "main.py" and not file.is_symlink():
            file.unlink()
            file.symlink_to(outside / "secret")
        return leaf(self, fd, name, sign)

    monkeypatch.setattr(walk.Walk, "_leaf", swapped)
    direct.take()
    direct.store.close()
    assert SECRET_ID not in direct.store.known


def test_a_file_swapped_for_a_pipe_during_the_walk_is_not_waited_for(
    workspace: Path, direct: Directly, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = walk.Walk._leaf

    def swapped(self: walk.Walk, fd: int, name: str, sign: walk.Signature) -> walk.Seen:
        file = workspace / "src/main.py"
        if name == "main.py" and not file.is_fifo():
            file.unlink()
            os.mkfifo(file)
        return leaf(self, fd, name, sign)

    monkeypatch.setattr(walk.Walk, "_leaf", swapped)
    answer = direct.ask("take", scope=["."], ignored=True, objects=False)
    direct.store.close()
    assert answer["uncovered"] == [("src/main.py", "is a pipe")]


def test_a_folder_swapped_for_a_link_while_it_is_put_back_is_not_followed(
    workspace: Path, outside: Path, direct: Directly, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "src/deep").mkdir()
    (workspace / "src/deep/main.py").write_text("x\n")
    taken = direct.take()
    (workspace / "src/deep/main.py").write_text("y\n")
    plan = direct.ask("plan", id=taken, scope=None, opening=True)
    into = Putter._into

    def swapped(self: Putter, fd: int, name: str, *rest: object) -> None:
        if name == "deep":
            (workspace / "src/deep").rename(workspace / "away")
            (workspace / "src/deep").symlink_to(outside / "deep")
        into(self, fd, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Putter, "_into", swapped)
    there = snapshot(outside)
    done = direct.ask("apply", plan=plan["plan"])
    direct.store.close()
    assert done["raced"] == ["src/deep"]
    assert snapshot(outside) == there


def test_a_file_of_two_names_is_not_changed_under_its_other_name(
    workspace: Path, outside: Path, direct: Directly
) -> None:
    taken = direct.take()
    os.link(workspace / "src/main.py", outside / "other")
    (workspace / "src/main.py").chmod(0o600)
    there = snapshot(outside)
    direct.restore(taken)
    direct.store.close()
    assert (workspace / "src/main.py").stat().st_mode & 0o777 != 0o600
    assert snapshot(outside) == there


async def test_nobody_gets_back_the_right_to_run_as_the_owner(checkpoints: Checkpoints, workspace: Path) -> None:
    (workspace / "src/run.sh").chmod(0o4755)
    taken = await checkpoints.take(NOTE)
    (workspace / "src/run.sh").unlink()
    restored = await checkpoints.restore(taken.id, NOTE)
    assert (workspace / "src/run.sh").stat().st_mode & 0o7777 == 0o755
    assert restored.left == ("src/run.sh: programs do not get back the right to run as their owner",)


def test_a_change_within_one_tick_of_the_clock_is_seen(
    workspace: Path, direct: Directly, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system shows the same times, size and inode for both."""
    import time

    real = walk.signature
    now = time.time_ns()
    monkeypatch.setattr(walk, "signature", lambda s: (*real(s)[:2], 7, now if real(s)[0] & 0o100000 else 1, real(s)[4]))
    first = direct.take()
    with (workspace / "src/main.py").open("r+") as file:
        file.write("PRINT")
    assert direct.take() != first
    direct.store.close()
