"""The store's own care: room, cleaning up, and being killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from toka.errors import CheckpointRefused, NotFound
from toka.workspace import packs
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.claims import Note
from toka.workspace.store import commit_text, read_commit
from toka.workspace.trees import below, within
from workspace.conftest import NOTE, Open
from workspace.test_restore_exact import Directly
from workspace.trees import snapshot


def stored(checkpoints: Checkpoints) -> list[str]:
    """Objects and references, not what is about them."""
    git = checkpoints.folder / "git"
    return sorted(str(p.relative_to(git)) for f in ("objects", "refs") for p in (git / f).rglob("*") if p.is_file())


async def test_what_exceeds_the_quota_is_refused_before_anything_is_kept(
    open_checkpoints: Open, workspace: Path
) -> None:
    checkpoints = open_checkpoints(quota_bytes=60_000)
    first = await checkpoints.take(NOTE)
    there = stored(checkpoints)
    (workspace / "big").write_bytes(os.urandom(100_000))
    with pytest.raises(CheckpointRefused, match="does not fit") as caught:
        await checkpoints.take(NOTE)
    assert caught.value.reason == "quota"
    assert caught.value.exit_code == 6
    assert "prune" in (caught.value.hint or "")
    assert stored(checkpoints) == there
    with pytest.raises(CheckpointRefused):
        await checkpoints.restore(first.id, NOTE)
    assert (workspace / "big").exists(), "what cannot be kept is not taken away"
    (workspace / "big").unlink()
    assert (await checkpoints.take(NOTE)).files == 3


async def test_a_disk_without_room_is_told(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    direct = Directly(workspace)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(packs.os, "fsync", full)
        with pytest.raises(Exception, match="No space left") as caught:
            direct.take()
    assert getattr(caught.value, "code", "") == "disk"
    assert not list(Path("objects/pack").iterdir())
    direct.restore(direct.take())
    direct.store.close()


async def test_old_runs_go_and_what_others_need_stays(checkpoints: Checkpoints, workspace: Path) -> None:
    (workspace / "big").write_bytes(os.urandom(200_000))
    old = await checkpoints.take(NOTE)
    (workspace / "big").unlink()
    young = await checkpoints.take(Note("run_2"))
    there = snapshot(workspace)
    assert (await checkpoints.prune({"run_1": time.time() - 86_400}, 2))[0] == 0, "not old enough"
    dropped, freed = await checkpoints.prune({"run_1": time.time() - 3 * 86_400}, 2)
    assert dropped == 1
    assert freed > 190_000
    with pytest.raises(NotFound):
        await checkpoints.restore(old.id, NOTE)
    (workspace / "src/main.py").write_text("changed\n")
    await checkpoints.restore(young.id, NOTE)
    assert snapshot(workspace) == there
    assert await checkpoints.history("run_1") != []  # what was found before going back


async def test_cleaning_up_beside_another_process_loses_nothing(open_checkpoints: Open, workspace: Path) -> None:
    """What one process knows to be in the store, another takes out of it."""
    one, other = open_checkpoints(), open_checkpoints()
    await one.take(Note("old"))
    await other.prune({"old": 0.0}, 0)
    taken = await one.take(Note("new"))
    subprocess.run(["rm", "-rf", str(workspace / "src")], check=True)
    assert (await one.restore(taken.id, NOTE)).left == ()
    assert (workspace / "src/main.py").read_text() == "print('hi')\n"


@pytest.mark.slow
async def test_cleaning_up_while_others_take_loses_nothing(open_checkpoints: Open, workspace: Path) -> None:
    one, other = open_checkpoints(), open_checkpoints()
    kept: dict[str, str] = {}

    async def take() -> None:
        for number in range(12):
            (workspace / "src/main.py").write_text(f"{number}\n")
            kept[(await one.take(Note(f"run_{number % 2}"))).id] = f"{number}\n"
            await one.take(Note(f"gone_{number}"))

    async def clean() -> None:
        while not taking.done():
            await other.prune({f"gone_{number}": 0.0 for number in range(12)}, 0)

    taking = asyncio.ensure_future(take())
    await asyncio.gather(taking, clean())
    for checkpoint, text in kept.items():
        await other.restore(checkpoint, NOTE)
        assert (workspace / "src/main.py").read_text() == text
    git = other.folder / "git"
    subprocess.run(["git", "--git-dir", git, "fsck", "--full", "--no-dangling"], check=True, capture_output=True)


async def test_git_reads_what_we_write(checkpoints: Checkpoints, workspace: Path) -> None:
    (workspace / "large").write_bytes(os.urandom(5_000_000))
    (workspace / "empty").touch()
    taken = await checkpoints.take(NOTE)
    git = ["git", "--git-dir", str(checkpoints.folder / "git")]
    subprocess.run([*git, "fsck", "--full", "--strict", "--no-dangling"], check=True, capture_output=True)
    (pack,) = (checkpoints.folder / "git/objects/pack").glob("*.idx")
    subprocess.run([*git, "verify-pack", str(pack)], check=True, capture_output=True)
    shown = subprocess.run([*git, "cat-file", "blob", f"{taken.id}:files/large"], check=True, capture_output=True)
    assert shown.stdout == (workspace / "large").read_bytes()


def test_an_index_points_beyond_two_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {bytes([n]) * 20: (n, place) for n, place in enumerate([12, packs.FAR - 1, packs.FAR, 1 << 40])}
    (tmp_path / "p.idx").write_bytes(packs._index(entries, bytes(20)))
    with (tmp_path / "p.idx").open() as index:
        said = subprocess.run(["git", "show-index"], stdin=index, capture_output=True, text=True).stdout
    assert [int(line.split()[0]) for line in said.splitlines()] == [12, packs.FAR - 1, packs.FAR, 1 << 40]
    assert list(packs.names_in(str(tmp_path / "p.idx"))) == sorted(entries)


def test_a_note_comes_back_as_it_was() -> None:
    note = {"run": "r", "agent": "", "task": "a\nb", "step": '"q" \u2028 ', "time": "1.5"}
    tree, found = read_commit(commit_text(bytes(20), note, 1))
    assert (tree, found) == ("0" * 40, note)


def test_paths_are_told_from_what_only_begins_like_them() -> None:
    assert below(["."]) is None
    assert below(["a/b", "a/c", "d"]) == {"a": {"b": None, "c": None}, "d": None}
    assert below(["a", "a/b"]) == {"a": None}
    assert within("a/b", ["a"])
    assert not within("ab", ["a"])
    assert within("x", ["."])


async def test_what_a_killed_write_left_outside_the_scope_is_no_obstacle(
    checkpoints: Checkpoints, workspace: Path
) -> None:
    taken = await checkpoints.take(NOTE, ["src/main.py"])
    name = hashlib.sha256(b"src/main.py").hexdigest()[:16]
    (workspace / f"src/.toka-put-{name}").write_text("half")
    (workspace / "src/main.py").write_text("changed\n")
    restored = await checkpoints.restore(taken.id, NOTE)
    assert (restored.changed, restored.left) == (("src/main.py",), ())
    assert sorted(p.name for p in (workspace / "src").iterdir()) == ["main.py", "run.sh"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_going_back_can_be_killed_at_any_moment(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    for number in range(150):
        (workspace / f"src/{number}").write_bytes(os.urandom(200))
        (workspace / f"docs/{number}").mkdir()
        (workspace / f"docs/{number}/f").symlink_to(str(number))
    (workspace / "docs").chmod(0o555)
    direct = Directly(workspace)
    taken = direct.take()
    there = snapshot(workspace)
    direct.store.close()
    seed = random.randrange(1 << 30)
    chance, cut = random.Random(seed), 0
    for _ in range(12):
        (workspace / "docs").chmod(0o755)
        subprocess.run(
            "rm -rf docs/*; mkdir docs/new; touch docs/new/x; for i in src/*; do echo y > $i; done",
            shell=True,
            cwd=workspace,
            check=True,
        )
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            try:
                Directly(workspace).restore(taken)
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        _, code = os.waitpid(pid, 0)
        cut += os.WIFSIGNALED(code) and time.monotonic() - began < 0.12
        again = Directly(workspace)
        again.restore(taken)
        again.store.close()
        assert snapshot(workspace) == there, f"seed {seed}"
    (workspace / "docs").chmod(0o755)
    assert cut


@pytest.mark.slow
async def test_a_killed_sandbox_is_told_and_going_back_again_comes_to_the_same_end(
    checkpoints: Checkpoints, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toka.errors import SandboxError
    from toka.workspace import checkpoints as room

    taken = await checkpoints.take(NOTE)
    there = snapshot(workspace)
    started = room.start_cell

    async def start(plan: room.Plan) -> room.Cell:
        running = await started(plan)
        if plan.writable:
            os.kill(running.pid, signal.SIGKILL)
        return running

    (workspace / "src/main.py").write_text("changed\n")
    with monkeypatch.context() as patched:
        patched.setattr(room, "start_cell", start)
        with pytest.raises(SandboxError, match="died while it was asked to apply"):
            await checkpoints.restore(taken.id, NOTE)
    await checkpoints.restore(taken.id, NOTE)
    assert snapshot(workspace) == there
