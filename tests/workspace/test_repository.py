from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from toka.errors import UsageError
from toka.workspace.repository import NotBrought, look_at, receive, tip_of, unfit


def git(folder: Path, *arguments: str, stdin: bytes | None = None) -> str:
    names = {f"GIT_{role}_{key}": "x@y" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environment = {**os.environ, **names, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    argv = ["git", "-c", "safe.directory=*", *arguments]
    done = subprocess.run(argv, cwd=folder, env=environment, input=stdin, capture_output=True, check=True)
    return done.stdout.decode().strip()


def commit(folder: Path, text: str, name: str = "a.txt") -> str:
    (folder / name).write_text(text)
    git(folder, "add", name)
    git(folder, "commit", "-q", "-m", text)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def user(tmp_path: Path) -> Path:
    folder = tmp_path / "user"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "one")
    return folder


@pytest.fixture
def clone(user: Path, tmp_path: Path) -> Path:
    git(tmp_path, "clone", "-q", "--shared", str(user), "clone")
    git(tmp_path / "clone", "checkout", "-q", "-b", "work")
    return tmp_path / "clone"


def brought(user: Path, clone: Path, *, branch: str = "work", tip: str = "", what: str = "work") -> int:
    base = git(user, "rev-parse", "main")
    git(clone, "bundle", "create", "-q", "../bundle", what, f"^{base}")
    with (clone.parent / "bundle").open("rb") as file:
        return receive(look_at(user), branch, tip or git(clone, "rev-parse", what), base, file)


def planted(folder: Path, proof: Path) -> None:
    """Everything in a repository's settings that could run something."""
    trap = folder.parent / f"trap-{folder.name}"
    trap.write_text(f"#!/bin/sh\necho $0 $@ >> {proof}\ncat\n")
    trap.chmod(0o755)
    hooks = ("reference-transaction", "post-checkout", "post-index-change", "post-update", "update", "pre-receive")
    (folder / ".git/hooks").mkdir(exist_ok=True)
    for hook in (*hooks, "post-merge", "post-rewrite", "pre-auto-gc", "post-receive", "proc-receive"):
        (folder / ".git/hooks" / hook).symlink_to(trap)
    git(folder, "config", "core.hooksPath", str(folder / ".git/hooks"))
    git(folder, "config", "core.fsmonitor", str(trap))
    git(folder, "config", "filter.evil.smudge", str(trap))
    git(folder, "config", "filter.evil.clean", str(trap))
    git(folder, "config", "filter.evil.process", str(trap))
    git(folder, "config", "diff.external", str(trap))
    git(folder, "config", "core.alternateRefsCommand", str(trap))
    git(folder, "config", "uploadpack.packObjectsHook", str(trap))
    git(folder, "config", "core.pager", str(trap))
    (folder / ".git/info").mkdir(exist_ok=True)
    (folder / ".git/info/attributes").write_text("* filter=evil diff=evil\n")


def test_a_branch_comes_back_with_all_that_it_leads_to(user: Path, clone: Path) -> None:
    commit(clone, "two")
    tip = commit(clone, "three")
    assert brought(user, clone) == 2
    assert git(user, "rev-parse", "work") == tip
    git(user, "fsck", "--strict")
    assert git(user, "show", "work:a.txt") == "three"
    assert git(user, "log", "-1", "--format=%s", "HEAD") == "one"
    assert brought(user, clone) == 0, "doing it again changes nothing"
    assert not list((user / ".git/objects").glob("tmp_objdir*"))


def test_only_that_branch_comes_back(user: Path, clone: Path) -> None:
    commit(clone, "two")
    git(clone, "tag", "v1")
    git(clone, "branch", "other")
    brought(user, clone)
    assert git(user, "for-each-ref", "--format=%(refname)").split() == ["refs/heads/main", "refs/heads/work"]


def test_a_branch_that_moved_on_is_not_overwritten(user: Path, clone: Path) -> None:
    git(user, "checkout", "-q", "-b", "work")
    moved = commit(user, "mine")
    git(user, "checkout", "-q", "main")
    commit(clone, "two")
    with pytest.raises(NotBrought, match=f"not a fast-forward: the branch work moved on to {moved[:12]}"):
        brought(user, clone)
    assert git(user, "rev-parse", "work") == moved
    assert not list((user / ".git/objects").glob("tmp_objdir*"))


def test_a_history_that_leaves_the_base_out_is_refused(user: Path, clone: Path) -> None:
    git(clone, "checkout", "-q", "--orphan", "new")
    commit(clone, "nothing before")
    with pytest.raises(NotBrought, match="not a fast-forward: it does not contain"):
        brought(user, clone, what="new")
    assert tip_of(look_at(user), "work") is None


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_branch_that_is_checked_out_is_never_moved(user: Path, clone: Path, tmp_path: Path, elsewhere: bool) -> None:
    if elsewhere:
        git(user, "worktree", "add", "-q", "-b", "work", str(tmp_path / "other"))
    else:
        git(user, "checkout", "-q", "-b", "work")
    before = git(user, "rev-parse", "work")
    commit(clone, "two")
    with pytest.raises(NotBrought, match="the branch work is checked out; check another one out"):
        brought(user, clone)
    assert git(user, "rev-parse", "work") == before


def forged(clone: Path, *objects: str) -> Path:
    """A bundle of just these objects, as no honest git makes it."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    argv = ["git", "-c", "safe.directory=*", "pack-objects", "--stdout", "-q"]
    listed = "\n".join(objects).encode() + b"\n"
    pack = subprocess.run(argv, cwd=clone, env=environment, input=listed, capture_output=True, check=True).stdout
    file = clone.parent / "forged"
    file.write_bytes(f"# v2 git bundle\n{objects[0]} refs/heads/work\n\n".encode() + pack)
    return file


def test_objects_that_are_missing_or_unsound_are_refused(user: Path, clone: Path) -> None:
    second = commit(clone, "two")
    base = git(user, "rev-parse", "main")
    tree = git(clone, "mktree", "--missing", stdin=b"100644 blob " + b"2" * 40 + b"\tgone\n")
    hollow = git(clone, "commit-tree", tree, "-p", base, "-m", "hollow")
    blob = git(clone, "rev-parse", "work:a.txt")
    inward = git(clone, "mktree", stdin=f"100644 blob {blob}\t.git\n".encode())
    hostile = git(clone, "commit-tree", inward, "-p", base, "-m", "hostile")
    bad = f"tree {inward}\nparent {base}\nauthor x\n\nbad\n".encode()
    odd = git(clone, "hash-object", "-t", "commit", "-w", "--stdin", "--literally", stdin=bad)
    before = set((user / ".git/objects").rglob("*"))
    for tip, objects in (
        ("0" * 39 + "1", (second,)),
        (second, (second,)),  # without its tree
        (hollow, (hollow, tree)),
        (hostile, (hostile, inward, blob)),
        (odd, (odd,)),
        (blob, (blob,)),
    ):
        with forged(clone, *objects).open("rb") as file, pytest.raises(NotBrought):
            receive(look_at(user), "work", tip, base, file)
        assert set((user / ".git/objects").rglob("*")) == before, objects
    assert tip_of(look_at(user), "work") is None


def test_a_tip_that_is_there_already_and_leads_nowhere_is_refused(user: Path, clone: Path) -> None:
    base = git(user, "rev-parse", "main")
    tree = git(user, "mktree", "--missing", stdin=b"100644 blob " + b"2" * 40 + b"\tgone\n")
    broken = git(user, "commit-tree", tree, "-p", base, "-m", "broken")
    (clone / "b").write_text("sound")
    blob = git(clone, "hash-object", "-w", "b")
    with forged(clone, blob).open("rb") as file, pytest.raises(NotBrought, match="rev-list failed"):
        receive(look_at(user), "work", broken, base, file)
    assert tip_of(look_at(user), "work") is None


def test_a_bundle_that_is_cut_short_is_refused(user: Path, clone: Path) -> None:
    tip = commit(clone, "two" * 1000)
    git(clone, "bundle", "create", "-q", "../bundle", "work", "^main")
    whole = (clone.parent / "bundle").read_bytes()
    (clone.parent / "bundle").write_bytes(whole[:-30])
    before = set((user / ".git/objects").rglob("*"))
    with (clone.parent / "bundle").open("rb") as file, pytest.raises(NotBrought, match="index-pack failed"):
        receive(look_at(user), "work", tip, look_at(user).head, file)
    assert set((user / ".git/objects").rglob("*")) == before


def test_what_is_no_bundle_is_refused(user: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"PACK" + bytes(100))
    head = git(user, "rev-parse", "HEAD")
    with (tmp_path / "bundle").open("rb") as file, pytest.raises(NotBrought, match="is no bundle"):
        receive(look_at(user), "work", "1" * 40, head, file)


def test_nothing_that_the_repositories_name_is_executed(user: Path, clone: Path, tmp_path: Path) -> None:
    commit(clone, "two")
    proof = tmp_path / "proof"
    git(clone, "bundle", "create", "-q", "../bundle", "work", "^main")
    tip = git(clone, "rev-parse", "work")
    planted(user, proof)
    planted(clone, proof)
    proof.unlink(missing_ok=True)
    repository = look_at(user)
    assert unfit(repository, "work") == ""
    with (tmp_path / "bundle").open("rb") as file:
        receive(repository, "work", tip, repository.head, file)
    assert not proof.exists(), proof.read_text()
    git(user, "update-ref", "refs/heads/sure", tip)
    assert "reference-transaction" in proof.read_text(), "the trap works"


def test_repositories_that_cannot_be_borrowed_from_are_refused(user: Path, clone: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "bare").mkdir()
    git(tmp_path / "bare", "init", "-q")
    git(user, "worktree", "add", "-q", str(tmp_path / "linked"))
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    git(swapped, "init", "-q")
    commit(swapped, "one")
    (swapped / ".git/objects").rename(swapped / ".git/real")
    (swapped / ".git/objects").symlink_to("real")
    for folder, told in (
        (tmp_path / "plain", "needs a repository, and .* is none"),
        (tmp_path / "bare", "has no commit yet"),
        (tmp_path / "linked", "leads to a repository elsewhere"),
        (clone, "borrows objects from another one"),
        (swapped, "objects is no folder"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            look_at(folder)
        assert "workspace: copy" in str(caught.value.hint)


def test_what_a_workspace_without_a_repository_of_its_own_is_is_told(user: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(user), "bare.git")
    with pytest.raises(UsageError, match=r"bare\.git is a bare one") as caught:
        look_at(tmp_path / "bare.git")
    assert caught.value.hint == "`git clone` it, and name that folder with --workspace"
    inner = user / "a folder" / "in it"
    inner.mkdir(parents=True)
    with pytest.raises(UsageError, match=f"in it is a folder in that of {user}$") as caught:
        look_at(inner)
    assert str(caught.value.hint).startswith(f"--workspace {user}; or say")


@pytest.mark.parametrize("name", ["a b", "-x", "x..y", "x.lock", "", "a\nb"])
def test_a_branch_needs_a_sound_name(user: Path, name: str) -> None:
    assert "cannot be the name of a branch" in unfit(look_at(user), name)


def test_work_on_a_branch_that_head_does_not_contain_could_not_come_back(user: Path) -> None:
    git(user, "checkout", "-q", "-b", "ahead")
    commit(user, "two")
    git(user, "checkout", "-q", "main")
    assert unfit(look_at(user), "ahead") == "the branch ahead is there, and HEAD does not contain it"
    assert unfit(look_at(user), "main") == "the branch main is checked out"
    git(user, "branch", "behind")
    assert unfit(look_at(user), "behind") == ""
