from __future__ import annotations

import asyncio
import marshal
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.errors import CheckpointRefused, CheckpointUnavailable, NotFound, SandboxError
from toka.sandbox.idmap import agent_uid
from toka.workspace import cell
from toka.workspace.checkpoint import Settings
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.claims import Note
from workspace.conftest import NOTE, Open
from workspace.trees import Snapshot, snapshot


def packs(checkpoints: Checkpoints) -> list[str]:
    return sorted(p.name for p in (checkpoints.folder / "git/objects/pack").iterdir())


def git(folder: Path, *args: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
    subprocess.run(["git", "-C", str(folder), *identity, *args], check=True, capture_output=True)


async def test_nothing_changed_makes_no_new_checkpoint(checkpoints: Checkpoints) -> None:
    first = await checkpoints.take(NOTE)
    assert first.created
    assert (first.files, first.changed, first.uncovered) == (3, 3, ())
    there = packs(checkpoints)
    again = await checkpoints.take(Note("run_1", "fixer", "task_1", "step_2"))
    assert (again.id, again.created, again.changed) == (first.id, False, 0)
    assert packs(checkpoints) == there
    assert [entry.note for entry in await checkpoints.history("run_1")] == [NOTE]


@pytest.mark.parametrize("change", ["content", "mode", "mtime", "new", "gone", "link", "folder"])
async def test_every_kind_of_change_makes_one(change: str, workspace: Path, checkpoints: Checkpoints) -> None:
    file = workspace / "src/main.py"
    first = await checkpoints.take(NOTE)
    status = file.stat()
    if change == "content":  # of the same size and time
        file.write_text("print('ho')\n")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "mode":
        file.chmod(0o600)
    elif change == "mtime":
        os.utime(file, ns=(1, 1))
    elif change == "new":
        (workspace / "new").touch()
    elif change == "gone":
        file.unlink()
    elif change == "link":
        (workspace / "l").symlink_to("nowhere")
    else:
        (workspace / "empty").mkdir()
    second = await checkpoints.take(NOTE)
    assert second.created
    assert second.id != first.id
    restored = await checkpoints.restore(first.id, NOTE)
    assert restored.left == ()
    assert (await checkpoints.restore(first.id, NOTE)).changed == ()


async def test_a_checkpoint_says_for_which_step_it_is(checkpoints: Checkpoints, workspace: Path) -> None:
    odd = Note("run_1", "fixer", "task\nToka-Run: other", 'st"ep \u2028')
    taken = await checkpoints.take(odd)
    (entry,) = await checkpoints.history("run_1")
    assert (entry.id, entry.note, entry.scope, entry.kept_for) == (taken.id, odd, (".",), "")
    assert abs(entry.at - time.time()) < 60
    assert await checkpoints.history("run_2") == []


@pytest.mark.parametrize("run", ["", "a/b", "../x", "a..b", ".lock", "x.lock", "a b"])
async def test_a_run_that_cannot_be_a_name_is_refused(run: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(CheckpointRefused) as caught:
        await checkpoints.take(Note(run))
    assert caught.value.reason == "bad-run"


async def test_another_runs_state_is_kept_for_this_run_too(checkpoints: Checkpoints) -> None:
    first = await checkpoints.take(NOTE)
    second = await checkpoints.take(Note("run_2"))
    assert (second.id, second.created) == (first.id, False)
    assert await checkpoints.prune({"run_1": 0.0}, 1) == (1, pytest.approx(0, abs=5000))
    assert (await checkpoints.restore(first.id, Note("run_2"))).changed == ()


# ---- scope


async def test_going_back_touches_nothing_outside_its_scope(checkpoints: Checkpoints, workspace: Path) -> None:
    taken = await checkpoints.take(NOTE, ["src"])
    assert taken.files == 2
    for folder in ("src", "docs"):
        (workspace / folder / "new").write_text("new\n")
    (workspace / "src/main.py").write_text("changed\n")
    (workspace / "docs/a.txt").write_text("changed\n")
    outside = snapshot(workspace / "docs")
    restored = await checkpoints.restore(taken.id, NOTE)
    assert sorted(restored.changed) == ["src/main.py", "src/new"]
    assert (workspace / "src/main.py").read_text() == "print('hi')\n"
    assert not (workspace / "src/new").exists()
    assert snapshot(workspace / "docs") == outside


async def test_what_is_outside_the_scope_cannot_be_written_when_going_back(
    checkpoints: Checkpoints, workspace: Path
) -> None:
    """The kernel holds the scope; the process that writes is not asked."""
    taken = await checkpoints.take(NOTE, ["src"])
    (workspace / "src/main.py").write_text("changed\n")
    seen: list[tuple[str, ...]] = []
    started = cell.start_cell

    async def start(plan: cell.Plan) -> cell.Cell:
        running = await started(plan)
        if plan.writable:
            lines = Path(f"/proc/{running.pid}/mountinfo").read_text().splitlines()
            seen.append(
                tuple(f"{w[4]} {w[5].split(',')[0]}" for w in map(str.split, lines) if "/s" in w[4] or "/w" in w[4])
            )
        return running

    import toka.workspace.checkpoints as room

    room.start_cell = start
    try:
        await checkpoints.restore(taken.id, NOTE)
    finally:
        room.start_cell = started
    assert [line for line in seen[0] if "/workspace" in line or "/store" in line] == [
        "/workspace ro", "/workspace/src rw", "/store ro",
    ]  # fmt: skip


@pytest.mark.parametrize("scope", [["src"], ["src/main.py"], ["src", "docs/a.txt"]])
async def test_a_scope_that_is_gone_comes_back(scope: list[str], checkpoints: Checkpoints, workspace: Path) -> None:
    taken = await checkpoints.take(NOTE, scope)
    there = {path: snapshot(workspace / path) for path in scope}
    subprocess.run(["rm", "-rf", "src", "docs"], cwd=workspace, check=True)
    await checkpoints.restore(taken.id, NOTE)
    assert {path: snapshot(workspace / path) for path in scope} == there
    assert not (workspace / "src/run.sh").exists() or "src" in scope


async def test_a_part_of_a_checkpoint_can_be_put_back(checkpoints: Checkpoints, workspace: Path) -> None:
    taken = await checkpoints.take(NOTE)
    (workspace / "src/main.py").write_text("changed\n")
    (workspace / "docs/a.txt").write_text("changed\n")
    restored = await checkpoints.restore(taken.id, NOTE, ["docs/a.txt"])
    assert restored.changed == ("docs/a.txt",)
    assert (workspace / "src/main.py").read_text() == "changed\n"
    assert (workspace / "docs/a.txt").read_bytes() == b"alpha\r\n"


async def test_what_became_of_a_folder_around_the_scope_is_not_touched(
    checkpoints: Checkpoints, workspace: Path
) -> None:
    (workspace / "a").write_text("a file\n")
    taken = await checkpoints.take(NOTE)
    (workspace / "a").unlink()
    (workspace / "a/b").mkdir(parents=True)
    (workspace / "a/other").write_text("other\n")
    (workspace / "a/b/new").write_text("new\n")
    await checkpoints.restore(taken.id, NOTE, ["a/b"])
    assert sorted(p.name for p in (workspace / "a").iterdir()) == ["other"] or not any((workspace / "a/b").iterdir())
    assert (workspace / "a/other").read_text() == "other\n"


async def test_more_than_a_checkpoint_holds_is_refused(checkpoints: Checkpoints) -> None:
    taken = await checkpoints.take(NOTE, ["src"])
    with pytest.raises(CheckpointRefused, match="does not hold docs") as caught:
        await checkpoints.restore(taken.id, NOTE, ["docs"])
    assert caught.value.reason == "scope"


@pytest.mark.parametrize("path", ["/etc", "../x", "a//b", "a/", "./a", ""])
async def test_a_scope_is_relative_and_normalised(path: str, checkpoints: Checkpoints) -> None:
    with pytest.raises(ValueError, match="normalised"):
        await checkpoints.take(NOTE, [path])


# ---- what is not recorded


async def test_what_is_no_file_is_named_and_never_opened(checkpoints: Checkpoints, workspace: Path) -> None:
    os.mkfifo(workspace / "src/pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(workspace / "sock"))
        taken = await checkpoints.take(NOTE)  # opening the pipe would wait for ever
        assert taken.uncovered == ("sock is a socket", "src/pipe is a pipe")
        (workspace / "src/main.py").write_text("changed\n")
        os.mkfifo(workspace / "docs/later")
        restored = await checkpoints.restore(taken.id, NOTE)
        assert sorted(restored.changed) == ["docs", "src/main.py"]
        assert (workspace / "src/pipe").is_fifo()
        assert (workspace / "sock").is_socket()
        assert (workspace / "docs/later").is_fifo()


async def test_a_new_folder_with_a_pipe_in_it_stays_and_is_named(checkpoints: Checkpoints, workspace: Path) -> None:
    taken = await checkpoints.take(NOTE)
    (workspace / "new").mkdir()
    (workspace / "new/file").touch()
    os.mkfifo(workspace / "new/pipe")
    restored = await checkpoints.restore(taken.id, NOTE)
    assert restored.left == ("new/pipe: is a pipe",)
    assert [p.name for p in (workspace / "new").iterdir()] == ["pipe"]


async def test_what_may_not_be_read_is_named(checkpoints: Checkpoints, workspace: Path) -> None:
    (workspace / "secret").write_text("s")
    (workspace / "secret").chmod(0)
    (workspace / "closed").mkdir(mode=0)
    taken = await checkpoints.take(NOTE)
    assert taken.uncovered == ("closed may not be read", "secret may not be read")
    (workspace / "docs/a.txt").unlink()
    restored = await checkpoints.restore(taken.id, NOTE)
    assert restored.changed == ("docs/a.txt",)
    assert (workspace / "secret").stat().st_mode & 0o777 == 0
    (workspace / "closed").chmod(0o700)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what it may not read")
async def test_what_belongs_to_somebody_else_is_named_and_left(checkpoints: Checkpoints, workspace: Path) -> None:
    for path in (workspace, *workspace.rglob("*")):
        os.chown(path, 54_321, 54_321)
    (workspace / "roots").write_text("secret")
    (workspace / "roots").chmod(0o600)
    taken = await checkpoints.take(NOTE)
    assert taken.uncovered == ("roots may not be read",)
    (workspace / "src/main.py").unlink()
    await checkpoints.restore(taken.id, NOTE)
    status = (workspace / "src/main.py").stat()
    assert (status.st_uid, status.st_gid) == (54_321, 54_321)
    assert (workspace / "roots").read_text() == "secret"


async def test_what_was_closed_since_is_opened_kept_and_put_back(checkpoints: Checkpoints, workspace: Path) -> None:
    taken = await checkpoints.take(NOTE)
    there = snapshot(workspace)
    (workspace / "src/main.py").write_text("mine\n")
    (workspace / "src/main.py").chmod(0)
    (workspace / "docs/new").mkdir()
    (workspace / "docs/new/file").write_text("mine, too\n")
    (workspace / "docs").chmod(0)
    restored = await checkpoints.restore(taken.id, NOTE)
    assert restored.left == ()
    assert snapshot(workspace) == there
    kept = (await checkpoints.history())[-1]
    assert (kept.id, kept.kept_for) == (restored.kept, taken.id)
    await checkpoints.restore(kept.id, NOTE)
    assert (workspace / "src/main.py").read_text() == "mine\n"
    assert (workspace / "docs/new/file").read_text() == "mine, too\n"


async def test_what_sandboxes_put_there_for_a_while_is_not_of_the_workspace(
    checkpoints: Checkpoints, workspace: Path
) -> None:
    first = await checkpoints.take(NOTE)
    (workspace / ".github/workflows").mkdir(parents=True)
    (workspace / ".envrc").touch()
    for name in (".github", ".github/workflows", ".envrc"):
        os.setxattr(workspace / name, "user.toka.placeholder", b"1")
    os.utime(workspace, ns=(0, 0))
    second = await checkpoints.take(NOTE)
    assert second.files == first.files
    await checkpoints.restore(first.id, NOTE)
    assert (workspace / ".envrc").exists()
    assert (workspace / ".github/workflows").is_dir()
    (workspace / ".envrc").write_text("a person's\n")
    third = await checkpoints.take(NOTE)
    assert third.files == first.files + 1


async def test_tokas_own_state_is_not_of_the_workspace(workspace: Path) -> None:
    state = workspace / ".toka/state"
    state.mkdir(parents=True)
    checkpoints = Checkpoints(workspace, state, SystemClock())
    try:
        taken = await checkpoints.take(NOTE)
        assert taken.files == 3
        (state / "journal.db").write_text("record\n")
        assert not (await checkpoints.take(NOTE)).created
        (workspace / "new").touch()
        await checkpoints.restore(taken.id, NOTE)
        assert (state / "journal.db").read_text() == "record\n"
    finally:
        await checkpoints.close()


async def test_ignored_files_can_be_left_out(open_checkpoints: Open, workspace: Path) -> None:
    checkpoints = open_checkpoints(ignored=False)
    git(workspace, "init", "-q")
    (workspace / "tracked.log").write_text("tracked\n")
    git(workspace, "add", "tracked.log")
    (workspace / ".gitignore").write_text("*.log\n!keep.log\n/build/\n")
    (workspace / "docs/.gitignore").write_text("draft\n")
    (workspace / "build").mkdir()
    for name in ("build/out", "a.log", "keep.log", "docs/draft", "src/draft"):
        (workspace / name).write_text(f"{name}\n")
    taken = await checkpoints.take(NOTE)
    for name in ("build/out", "a.log", "keep.log", "docs/draft", "src/draft", "tracked.log"):
        (workspace / name).write_text("changed\n")
    (workspace / "build/more").touch()
    restored = await checkpoints.restore(taken.id, NOTE)
    assert sorted(restored.changed) == ["keep.log", "src/draft", "tracked.log"]
    assert (workspace / "build/more").exists()
    assert (workspace / "a.log").read_text() == "changed\n"


async def test_what_was_ignored_stays_although_it_is_not_ignored_any_more(
    open_checkpoints: Open, workspace: Path
) -> None:
    checkpoints = open_checkpoints(ignored=False)
    (workspace / ".gitignore").write_text("*.log\n")
    (workspace / "a.log").write_text("log\n")
    taken = await checkpoints.take(NOTE)
    (workspace / ".gitignore").unlink()
    restored = await checkpoints.restore(taken.id, NOTE)
    assert restored.changed == (".gitignore",)
    assert (workspace / "a.log").read_text() == "log\n"


# ---- git's own folders


async def test_the_workspaces_repository_goes_back_without_its_objects(
    checkpoints: Checkpoints, workspace: Path
) -> None:
    git(workspace, "init", "-q")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "first")
    taken = await checkpoints.take(NOTE)
    (workspace / ".git/objects/ab").mkdir(exist_ok=True)
    (workspace / ".git/objects/ab/new").touch()
    assert not (await checkpoints.take(NOTE)).created, "objects are only added, and not recorded"
    (workspace / ".git/objects/ab/new").unlink()
    (workspace / "src/main.py").write_text("changed\n")
    git(workspace, "commit", "-qam", "second")
    git(workspace, "branch", "other")
    git(workspace, "checkout", "-qb", "third")
    await checkpoints.restore(taken.id, NOTE)

    def said(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", workspace, *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    assert said("log", "--format=%s", "--all") == "first"
    assert said("branch", "--format=%(refname:short)") in ("master", "main")
    assert said("status", "--porcelain") == ""
    said("fsck", "--no-dangling")
    restored = (await checkpoints.history())[-1]
    await checkpoints.restore(restored.id, NOTE)
    assert said("log", "-1", "--format=%s") == "second", "the objects were never taken away"


async def test_a_repository_that_was_made_goes_again_and_is_kept_whole(
    checkpoints: Checkpoints, workspace: Path
) -> None:
    taken = await checkpoints.take(NOTE)
    there = snapshot(workspace)
    git(workspace, "init", "-q")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "first")
    made = snapshot(workspace)
    restored = await checkpoints.restore(taken.id, NOTE)
    assert snapshot(workspace) == there
    await checkpoints.restore(restored.kept, NOTE)
    assert snapshot(workspace) == made


async def test_a_nested_repository_is_recorded_whole(checkpoints: Checkpoints, workspace: Path) -> None:
    nested = workspace / "nested"
    nested.mkdir()
    (nested / "f").write_text("f\n")
    git(nested, "init", "-q")
    git(nested, "add", ".")
    git(nested, "commit", "-qm", "first")
    taken = await checkpoints.take(NOTE)
    there = snapshot(workspace)
    subprocess.run(["rm", "-rf", str(nested)], check=True)
    await checkpoints.restore(taken.id, NOTE)
    assert snapshot(workspace) == there
    subprocess.run(["git", "-C", nested, "fsck"], check=True, capture_output=True)


# ---- comparing


async def test_a_diff_names_and_shows_what_changed(checkpoints: Checkpoints, workspace: Path) -> None:
    (workspace / "bin").write_bytes(b"\0\1")
    (workspace / ".gitattributes").write_text("* diff=evil\n")
    first = await checkpoints.take(NOTE)
    (workspace / "src/main.py").write_text("print('ho')\n")
    (workspace / "src/run.sh").unlink()
    (workspace / "docs/a.txt").unlink()
    (workspace / "docs/a.txt").symlink_to("b")
    (workspace / "new").touch(mode=0o755)
    (workspace / "bin").write_bytes(b"\0\2")
    now = await checkpoints.diff(first.id)
    found = {c.path: (c.status, c.old_mode, c.new_mode) for c in now.changes}
    assert found == {
        "bin": ("M", "100644", "100644"), "docs/a.txt": ("T", "100644", "120000"),
        "new": ("A", "000000", "100755"), "src/main.py": ("M", "100644", "100644"),
        "src/run.sh": ("D", "100755", "000000"),
    }  # fmt: skip
    assert b"-print('hi')\n+print('ho')\n" in now.text
    assert b"Binary files a/bin and b/bin differ" in now.text
    second = await checkpoints.take(NOTE)
    assert await checkpoints.diff(first.id, second.id) == now
    assert (await checkpoints.diff(second.id)).changes == ()
    some = await checkpoints.diff(first.id, second.id, ["src"])
    assert [c.path for c in some.changes] == ["src/main.py", "src/run.sh"]
    assert b"src/main.py" in some.text and b"Binary" not in some.text


async def test_a_diff_counts_gits_own_files_and_does_not_show_them(checkpoints: Checkpoints, workspace: Path) -> None:
    for folder in ("", "src/nested", "src/[odd]*"):
        subprocess.run(["git", "init", "-q", workspace / folder], check=True)
    first = await checkpoints.take(NOTE)
    for path in (".git/note", "src/nested/.git/note", "src/[odd]*/.git/note", "src/[odd]*/a", ".github", "x.git"):
        (workspace / path).write_text(f"in {path}\n")
    own = [".git/note", "src/[odd]*/.git/note", "src/nested/.git/note"]
    others = [".github", "src/[odd]*/a", "x.git"]
    for paths, shown in (([], others), ([".github", "src/[odd]*"], others[:2]), ([".git"], [])):
        found = await checkpoints.diff(first.id, None, paths)
        assert {c.path for c in found.changes} >= set(shown), "they are among the changes"
        lines = [line.removeprefix("+in ") for line in found.text.decode().splitlines() if line.startswith("+in ")]
        assert lines == shown
    assert sorted(c.path for c in (await checkpoints.diff(first.id)).changes) == sorted(own + others)


@pytest.mark.parametrize("name", ["0" * 40, "HEAD", "", "--help"])
async def test_an_unknown_checkpoint_is_said_to_be_unknown(name: str, checkpoints: Checkpoints) -> None:
    await checkpoints.take(NOTE)
    with pytest.raises(NotFound, match="checkpoint"):
        await checkpoints.restore(name, NOTE)
    with pytest.raises(NotFound, match="checkpoint"):
        await checkpoints.diff(name)


# ---- where it runs


@pytest.mark.parametrize("level", ["reduced", "none"])
async def test_it_works_without_namespaces(level: str, open_checkpoints: Open, workspace: Path) -> None:
    if os.getuid() == 0 and level == "reduced":
        for path in (workspace.parent, workspace, *workspace.rglob("*")):
            os.chown(path, agent_uid(), agent_uid())
        for path in workspace.parents:
            if path.stat().st_mode & 0o001 == 0:
                path.chmod(path.stat().st_mode | 0o001)
    checkpoints = open_checkpoints(level=level)
    taken = await checkpoints.take(NOTE)
    there: Snapshot = snapshot(workspace)
    subprocess.run(["rm", "-rf", str(workspace / "src")], check=True)
    (workspace / "new").touch()
    assert [c.path for c in (await checkpoints.diff(taken.id)).changes] == ["new", "src/main.py", "src/run.sh"]
    restored = await checkpoints.restore(taken.id, NOTE)
    assert restored.left == ()
    assert snapshot(workspace) == there
    assert (await checkpoints.restore(taken.id, NOTE)).changed == ()
    assert (await checkpoints.prune({"run_1": 0.0}, 0.0))[0] == 3


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives its work to another user")
async def test_reduced_as_root_says_whose_the_workspace_must_be(open_checkpoints: Open) -> None:
    with pytest.raises(Exception, match="belongs to user id 0"):
        await open_checkpoints(level="reduced").take(NOTE)


async def test_the_process_is_locked_up(checkpoints: Checkpoints) -> None:
    await checkpoints.take(NOTE)
    running = checkpoints._cell
    assert running is not None
    lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
    status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    assert status["CapEff"] == status["CapPrm"] == ["0000000000000000"]
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    assert "0" not in status["Uid"]
    for namespace in ("net", "mnt", "pid", "ipc", "uts"):
        inside, ours = (Path(f"/proc/{pid}/ns/{namespace}").readlink() for pid in (running.pid, "self"))
        assert inside != ours
    mounts = [line.split() for line in Path(f"/proc/{running.pid}/mountinfo").read_text().splitlines()]
    modes = {words[4]: words[5].split(",")[0] for words in mounts}
    assert (modes["/"], modes["/workspace"], modes["/store"], modes["/usr"]) == ("ro", "ro", "rw", "ro")
    assert not {"/tmp", "/home", "/root", "/run", "/sys"} & modes.keys()


async def test_the_store_is_closed_to_others(checkpoints: Checkpoints, state: Path) -> None:
    await checkpoints.take(NOTE)
    assert checkpoints.folder.parent == state / "checkpoints"
    for folder in (checkpoints.folder.parent, checkpoints.folder, checkpoints.folder / "git"):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.stat().st_uid == os.getuid()
    assert not [p for p in (checkpoints.folder / "git").rglob("*") if p.stat().st_uid != os.getuid()]


async def test_an_idle_process_ends_and_remembers(open_checkpoints: Open, workspace: Path) -> None:
    checkpoints = open_checkpoints(idle_s=0.05)
    first = await checkpoints.take(NOTE)
    async with asyncio.timeout(10):
        while checkpoints._cell is not None or not (checkpoints.folder / "git/toka-seen").exists():
            await asyncio.sleep(0.02)
    again = await checkpoints.take(NOTE)
    assert (again.id, again.created) == (first.id, False)
    (workspace / "new").touch()
    assert (await checkpoints.take(NOTE)).changed == 1


async def test_a_damaged_memory_is_not_believed(open_checkpoints: Open) -> None:
    one = open_checkpoints()
    first = await one.take(NOTE)
    await one.close()
    memory = one.folder / "git/toka-seen"
    whole = memory.read_bytes()
    seen = marshal.loads(whole[32:])
    contents = dict(zip(seen["contents"], reversed(seen["contents"].values()), strict=True))
    memory.write_bytes(whole[:32] + marshal.dumps({**seen, "contents": contents, "last": {}}))
    again = open_checkpoints()
    assert (await again.diff(first.id, (await again.take(NOTE)).id)).changes == ()


async def test_a_process_that_died_is_replaced(checkpoints: Checkpoints) -> None:
    first = await checkpoints.take(NOTE)
    running = checkpoints._cell
    assert running is not None
    os.kill(running.pid, 9)
    async with asyncio.timeout(10):
        while running.alive:
            await asyncio.sleep(0.01)
    assert (await checkpoints.restore(first.id, NOTE)).changed == ()


async def test_a_cancelled_checkpoint_leaves_nothing_running(checkpoints: Checkpoints, workspace: Path) -> None:
    (workspace / "big").write_bytes(os.urandom(30_000_000))
    await checkpoints.take(NOTE, ["docs"])
    running = checkpoints._cell
    assert running is not None
    taking = asyncio.ensure_future(checkpoints.take(NOTE))
    await asyncio.sleep(0.02)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert not running.alive
    assert len(await checkpoints.history()) == 1
    assert (await checkpoints.take(NOTE)).files == 4


async def test_another_folder_in_the_workspaces_place_is_seen(checkpoints: Checkpoints, workspace: Path) -> None:
    assert (await checkpoints.take(NOTE)).files == 3
    workspace.rename(workspace.parent / "old")
    workspace.mkdir()
    (workspace / "new").touch()
    assert (await checkpoints.take(NOTE)).files == 1


async def test_many_checkpoints_are_packed_together_when_nobody_waits(
    open_checkpoints: Open, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toka.workspace.checkpoints.CROWDED", 3)
    checkpoints = open_checkpoints(idle_s=0.1)
    taken: list[str] = []
    for number in range(5):
        (workspace / "src/main.py").write_text(f"{number}\n")
        taken.append((await checkpoints.take(NOTE)).id)
    async with asyncio.timeout(10):
        while checkpoints._cell is not None:
            await asyncio.sleep(0.02)
    assert len(packs(checkpoints)) == 2
    await checkpoints.restore(taken[0], NOTE)
    assert (workspace / "src/main.py").read_text() == "0\n"


async def test_without_git_it_says_so(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "find_program", lambda _: None)
    with pytest.raises(CheckpointUnavailable, match="git is not installed") as caught:
        await checkpoints.take(NOTE)
    assert caught.value.exit_code == 4
    assert "install" in (caught.value.hint or "")


async def test_a_missing_workspace_is_named(state: Path, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "nowhere", state, SystemClock(), Settings())
    with pytest.raises(SandboxError, match="nowhere cannot be opened"):
        await checkpoints.take(NOTE)
    await checkpoints.close()


async def test_a_workspace_that_does_not_stand_still_is_refused(
    checkpoints: Checkpoints, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes a file again and again, just before it is put back: his last word is never lost."""
    taken = await checkpoints.take(NOTE)
    change = Checkpoints._change
    count = 0

    async def meddle(self: Checkpoints, writable: tuple[str, ...], request: dict[str, object]) -> dict[str, object]:
        nonlocal count
        count += 1
        (workspace / "src/main.py").write_text(f"{count}\n")
        return await change(self, writable, request)

    (workspace / "src/main.py").write_text("0\n")
    monkeypatch.setattr(Checkpoints, "_change", meddle)
    with pytest.raises(CheckpointRefused, match=r"src/main\.py changes while") as caught:
        await checkpoints.restore(taken.id, NOTE)
    assert caught.value.reason == "changed"
    assert (workspace / "src/main.py").read_text() == f"{count}\n"
    for number in range(count):
        found = [entry.id for entry in await checkpoints.history() if entry.kept_for]
        texts = [(await checkpoints.diff(taken.id, name)).text for name in found]
        assert any(f"+{number}\n".encode() in text for text in texts)
