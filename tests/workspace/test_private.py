from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.errors import UsageError
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.private import Wanted, make, outgoing, prune
from toka.workspace.repository import NotBrought
from workspace.test_repository import commit, git, planted, user

__all__ = ["user"]


def wanted(user: Path, state: Path, how: str = "worktree", agent: str = "one") -> Wanted:
    return Wanted(how, user, state, "run-1", agent, f"toka/run-1/{agent}")  # pyright: ignore[reportArgumentType]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_worktree_is_a_repository_of_its_own_at_head(user: Path, state: Path) -> None:
    (user / "uncommitted").write_text("stays")
    made = await make(wanted(user, state))
    tree = Path(made.path)
    assert tree == state / "workspaces/run-1/one/tree"
    assert (tree / "a.txt").read_text() == "one"
    assert not (tree / "uncommitted").exists()
    assert git(tree, "status", "--porcelain", "--branch") == "## toka/run-1/one"
    assert git(tree, "rev-parse", "HEAD") == git(user, "rev-parse", "HEAD") == made.base
    assert not list((tree / ".git/objects").rglob("*.pack"))
    commit(tree, "two")
    assert git(user, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert (state / "workspaces").stat().st_mode & 0o777 == 0o700


async def test_one_that_is_there_is_not_made_again(user: Path, state: Path) -> None:
    first = await make(wanted(user, state))
    commit(Path(first.path), "work")
    commit(user, "moved on")
    assert await make(wanted(user, state)) == first
    assert (Path(first.path) / "a.txt").read_text() == "work"


async def test_remains_of_one_that_was_cut_off_go(user: Path, state: Path) -> None:
    left = state / "workspaces/run-1/.new-one-dead/tree/closed"
    left.mkdir(parents=True)
    (left / "file").touch()
    left.chmod(0)
    other = state / "workspaces/run-1/.new-other-dead"
    other.mkdir()
    await make(wanted(user, state))
    assert names(state / "workspaces/run-1") == [".new-other-dead", "one"]


async def test_attributes_of_the_commit_and_settings_of_the_user_run_nothing(
    user: Path, state: Path, tmp_path: Path
) -> None:
    commit(user, "* filter=evil diff=evil text\n", ".gitattributes")
    proof = tmp_path / "proof"
    planted(user, proof)
    proof.unlink(missing_ok=True)
    made = await make(wanted(user, state))
    assert not proof.exists(), proof.read_text()
    assert (Path(made.path) / "a.txt").read_text() == "one"
    assert "trap" not in (Path(made.path) / ".git/config").read_text()
    assert names(Path(made.path) / ".git/hooks") == []


async def test_a_copy_has_all_but_the_state(user: Path) -> None:
    (user / "uncommitted").write_text("comes along")
    state = user / ".toka"
    made = await make(wanted(user, state, "copy"))
    tree = Path(made.path)
    assert names(tree) == [".git", "a.txt", "uncommitted"]
    (tree / "uncommitted").write_text("changed")
    assert (user / "uncommitted").read_text() == "comes along"


@pytest.mark.slow
async def test_a_cancelled_one_leaves_nothing(user: Path, state: Path) -> None:
    for number in range(3000):
        (user / f"f{number}").touch()
    working = asyncio.create_task(make(wanted(user, state, "copy")))
    while not list(state.glob("workspaces/run-1/.new-*/tree/*")):
        await asyncio.sleep(0.001)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert names(state / "workspaces/run-1") == []


async def test_what_cannot_be_made_says_why(user: Path, state: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(UsageError, match="needs a repository"):
        await make(wanted(tmp_path / "plain", state))
    with pytest.raises(UsageError, match="cannot be made: No such file or directory"):
        await make(wanted(tmp_path / "absent", state, "copy"))
    (user / ".git/objects/info/alternates").write_text("/etc\n")
    with pytest.raises(UsageError, match="borrows objects"):
        await make(wanted(user, state))
    assert names(state / "workspaces/run-1") == []


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "gitlink", "none"])
async def test_what_an_agent_puts_in_the_place_of_the_bundle_is_not_read(user: Path, state: Path, what: str) -> None:
    tree = Path((await make(wanted(user, state))).path)
    file = tree / ".git/toka-x.bundle"
    match what:
        case "link":
            file.symlink_to("/etc/passwd")
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "gitlink":
            (tree / ".git").rename(tree / "real")
            (tree / ".git").symlink_to("real")
        case _:
            pass
    with pytest.raises(NotBrought), outgoing(tree, "toka-x.bundle"):
        pass


async def test_those_of_runs_that_ended_long_ago_go(user: Path, state: Path) -> None:
    made = await make(wanted(user, state))
    closed = Path(made.path) / "closed"
    closed.mkdir()
    (closed / "file").touch()
    (closed / "out").symlink_to(user)
    closed.chmod(0)
    other = await make(Wanted("copy", user, state, "run-2", "one"))
    await make(Wanted("copy", user, state, "run-3", "one"))
    ended = {"run-1": 100.0, "run-2": 950.0, "../run-3": 0.0, "gone": 0.0}
    stores = [Checkpoints(Path(each), state, SystemClock()).folder for each in (made.path, other.path)]
    for store in stores:
        (store / "git").mkdir(parents=True)
    assert prune(state, ended, 500.0, 1000.0) == ["run-1"]
    assert [store.exists() for store in stores] == [False, True]
    assert names(state / "workspaces") == ["run-2", "run-3"]
    assert (user / "a.txt").exists()
