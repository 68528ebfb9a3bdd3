"""Agents in workspaces of their own: real processes, real git, real sandboxes, also when they are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.test_attach import TOKA, Place
from cli.test_steer import replayed, say, shown, team, until
from harness import usable

ROOT = Path(__file__).parents[2]
UID = 54_323
EDIT = "echo NAME >> a.txt && git commit -qam NAME"
GRANTS = {"write": True, "git": True}


def git(folder: Path, *arguments: str) -> str:
    names = {f"GIT_{role}_{key}": "x@y" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environment = {**os.environ, **names, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    argv = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, check=True, text=True).stdout.strip()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    (made.work / "a.txt").write_text("one\n")
    git(made.work, "init", "-q", "-b", "main")
    git(made.work, "add", ".")
    git(made.work, "commit", "-q", "-m", "one")
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    if made.state.is_dir():
        replayed(made)


def clone(name: str, run: str = EDIT, **more: Any) -> dict[str, Any]:
    return {"run": run.replace("NAME", name), "grants": GRANTS, "workspace": "worktree", **more}


def go(place: Place, code: int = 0) -> str:
    return say(place, "run", "team.yaml", "--workspace", str(place.work), "--quiet", code=code)


def states(place: Place) -> dict[str, Any]:
    return {name: agent["workspace"] for name, agent in shown(place)["agents"].items() if "workspace" in agent}


@pytest.mark.slow
def test_two_agents_edit_the_same_file_and_both_branches_arrive(place: Place) -> None:
    team(place, one=clone("one"), two=clone("two", EDIT + "; echo new > left"))
    go(place)
    run = shown(place)["run_id"]
    for name in ("one", "two"):
        branch = f"toka/{run}/{name}"
        assert git(place.work, "show", f"{branch}:a.txt") == f"one\n{name}"
        assert git(place.work, "log", "-1", "--format=%an %ae %s", branch) == f"{name} {name}@toka.invalid {name}"
    assert git(place.work, "status", "--porcelain") == ""
    assert git(place.work, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert (place.work / "a.txt").read_text() == "one\n"
    told, log = say(place, "show", "@last"), say(place, "logs", "@last")
    tree = place.state / "workspaces" / run / "two/tree"
    assert f"works in a worktree on branch toka/{run}/two from " in told
    assert f"branch toka/{run}/two brought back: 1 commit, now at " in told
    assert f"1 file was not committed and stays in {tree}" in told
    assert f"branch toka/{run}/two brought back: 1 commit" in log
    assert states(place)["one"]["returned"]["left"] == 0, "what the sandbox put there does not count"
    git(place.work, "fsck", "--strict")


@pytest.mark.slow
def test_a_branch_that_the_spec_names_and_one_for_each_instance(place: Place) -> None:
    (place.folder / "team.yaml").write_text(
        json.dumps(
            {
                "toka": 1,
                "agents": {
                    "list": {"run": "seq 2", "outputs": {"n": {"from": "stdout", "as": "lines"}}},
                    "fix": clone("fix", for_each="${list.n}", needs=["list"], metadata={"branch": "fixes"}),
                    "each": clone("each", for_each="${list.n}", needs=["list"]),
                },
            }
        )
    )
    go(place)
    run = shown(place)["run_id"]
    found = git(place.work, "for-each-ref", "--format=%(refname:short)").split()
    assert sorted(found) == ["fixes-1", "fixes-2", "main", f"toka/{run}/each/1", f"toka/{run}/each/2"]


@pytest.mark.slow
def test_a_copy_stays_apart_and_has_what_was_not_committed(place: Place) -> None:
    (place.work / "dirty").write_text("dirty\n")
    run = "cat dirty && echo changed > dirty && rm a.txt"
    team(place, one={"run": run, "grants": {"write": True}, "workspace": "copy", "checks": ["test ! -e a.txt"]})
    go(place)
    assert ((place.work / "dirty").read_text(), (place.work / "a.txt").exists()) == ("dirty\n", True)
    tree = Path(states(place)["one"]["path"])
    assert ((tree / "dirty").read_text(), (tree / "a.txt").exists()) == ("changed\n", False)
    assert f"works in a copy: {tree}" in say(place, "show", "@last")
    patch = say(place, "diff", "@last", "one")
    assert "+changed" in patch and "2 paths changed\n" in patch
    say(place, "rollback", "@last", "one", "--to", "1")
    assert (tree / "a.txt").read_text() == "one\n"


@pytest.mark.slow
def test_agents_that_fail_or_are_stopped_bring_nothing_back(place: Place) -> None:
    team(place, one=clone("one", EDIT + "; exit 1"), two=clone("two", EDIT + "; touch here; sleep 60"))
    place.environment["TOKA_GRACE"] = "1s"
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    until(lambda: list(place.state.glob("workspaces/*/two/tree/here")), "the commit")
    say(place, "stop", "@last", "two")
    process.communicate(timeout=60)
    assert git(place.work, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert [agent["state"] for agent in shown(place)["agents"].values()] == ["FAILED", "STOPPED"]
    assert all(each["returned"] is None for each in states(place).values())


@pytest.mark.slow
def test_what_cannot_come_back_is_told_and_stays(place: Place) -> None:
    """The user checks the branch out, or commits to it, while the agent works."""
    orphan = "git checkout -q --orphan other && git commit -qm x && git branch -qf fresh"
    wait = EDIT + "; touch here; while [ ! -e go ]; do sleep 0.05; done"
    team(
        place,
        one=clone("one", wait, metadata={"branch": "moved"}),
        two=clone("two", wait, metadata={"branch": "taken"}),
        three=clone("three", orphan, metadata={"branch": "fresh"}),
    )  # fmt: skip
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    trees = [until(lambda n=n: list(place.state.glob(f"workspaces/*/{n}/tree/here")))[0].parent for n in ("one", "two")]
    git(place.work, "checkout", "-q", "-b", "moved")
    git(place.work, "commit", "-q", "--allow-empty", "-m", "mine")
    moved = git(place.work, "rev-parse", "HEAD")
    git(place.work, "checkout", "-q", "-b", "taken", "main")
    for tree in trees:
        (tree / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"  two    the branch taken is checked out; check another one out; in {trees[1]}" in (out + err).splitlines()
    problems = {name: each["returned"]["problem"] for name, each in states(place).items()}
    assert problems["one"] == f"not a fast-forward: the branch moved moved on to {moved[:12]}"
    assert problems["two"] == "the branch taken is checked out; check another one out"
    assert problems["three"].startswith("not a fast-forward: it does not contain ")
    assert git(place.work, "rev-parse", "moved") == moved
    assert git(place.work, "rev-parse", "taken") == git(place.work, "rev-parse", "main")
    told = say(place, "show", "@last")
    assert "branch taken not brought back: the branch taken is checked out" in told
    assert f"it stays in {trees[1]}" in told
    assert git(trees[1], "log", "-1", "--format=%s") == "two"


@pytest.mark.slow
def test_commits_elsewhere_than_on_its_branch_are_told_with_the_folder_where_they_stay(place: Place) -> None:
    twice = "git commit -qam w1; echo w >> a.txt; git commit -qam w2; "
    team(
        place,
        elsewhere=clone("elsewhere", "set -e; git checkout -q -b elsé/where; echo w >> a.txt; " + twice),
        detached=clone("detached", EDIT + "; git checkout -q --detach; echo w >> a.txt; git commit -qam d"),
        hidden=clone("hidden", "echo w >> a.txt; git stash -q; git checkout -q --orphan none"),
        unread=clone("unread", EDIT + "; echo x > .git/packed-refs"),
        idle=clone("idle", "true"),
        left=clone("left", "echo w >> a.txt"),
    )  # fmt: skip
    told = go(place)
    run, found = shown(place)["run_id"], states(place)
    assert {name: each["returned"]["elsewhere"] for name, each in found.items()} == {
        "elsewhere": {"refs/heads/elsé/where": 2},
        "detached": {"HEAD": 1},
        "hidden": {"refs/stash": 2},
        "unread": {},
        "idle": {},
        "left": {},
    }
    tree = found["elsewhere"]["path"]
    text = say(place, "show", "@last")
    assert f"branch toka/{run}/elsewhere: nothing was committed on it, nothing comes back" in text
    assert f"2 commits on branch elsé/where did not come back and stay in {tree}" in text
    assert f"branch toka/{run}/detached brought back: 1 commit" in text
    assert f"1 commit on a detached HEAD did not come back and stays in {found['detached']['path']}" in text
    assert "2 commits on refs/stash did not come back" in text
    end = told.partition("\ndid not come back\n")[2].partition("\n\n")[0].splitlines()
    assert f"  elsewhere  2 commits on branch elsé/where; in {tree}" in end
    assert {line.split()[0] for line in end} == {"elsewhere", "detached", "hidden", "unread", "left"}, told
    assert f"  left       1 file that was not committed; in {found['left']['path']}" in end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("branch", "told"),
    [("main", "the branch main is checked out"), ("a..b", "cannot be the name of a branch")],
)
def test_what_could_not_come_back_is_refused_before_anything_starts(place: Place, branch: str, told: str) -> None:
    team(place, one=clone("one", metadata={"branch": branch}))
    assert told in go(place, code=3)
    argv = [TOKA, "plan", "team.yaml", "--workspace", str(place.work)]
    environment = {**place.environment, "TOKA_STATE": str(place.state)}
    plan = subprocess.run(argv, cwd=place.folder, env=environment, capture_output=True, text=True, check=False)
    assert (plan.returncode, "error[TK4209]" in plan.stderr) == (3, True), plan.stdout + plan.stderr
    assert not (place.state / "workspaces").exists()


@pytest.mark.slow
def test_hooks_and_filters_in_both_repositories_run_nothing_outside(place: Place) -> None:
    """What stands in the agent's settings was put there past its sandbox, which would not have let it."""
    proof = place.folder / "proof"
    trap = place.folder / "trap"
    trap.write_text(f"#!/bin/sh\necho $0 $@ >> {proof}\ncat\n")
    trap.chmod(0o755)
    keys = (
        *("core.fsmonitor", "filter.evil.smudge", "filter.evil.clean", "filter.evil.process", "diff.external"),
        *("uploadpack.packObjectsHook", "core.alternateRefsCommand", "core.sshCommand", "core.pager", "core.editor"),
    )

    def planted(repository: Path) -> None:
        for hook in ("reference-transaction", "post-checkout", "post-index-change", "update", "post-update"):
            (repository / ".git/hooks" / hook).symlink_to(trap)
        for key in keys:
            git(repository, "config", key, str(trap))
        git(repository, "config", "core.hooksPath", str(repository / ".git/hooks"))
        (repository / ".git/info/attributes").write_text("* filter=evil diff=evil\n")

    (place.work / ".gitattributes").write_text("* filter=evil diff=evil\n")
    git(place.work, "add", ".")
    git(place.work, "commit", "-q", "-m", "attributes")
    planted(place.work)
    proof.unlink(missing_ok=True)
    team(place, one=clone("one", EDIT + "; echo more >> a.txt; touch here; while [ ! -e go ]; do sleep 0.05; done"))
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    tree = until(lambda: list(place.state.glob("workspaces/*/one/tree/here")), "the commit")[0].parent
    planted(tree)
    proof.unlink(missing_ok=True)
    (tree / "go").touch()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert states(place)["one"]["returned"]["commits"] == 1, states(place)
    assert not proof.exists(), proof.read_text()
    git(place.work, "update-ref", "refs/heads/sure", "main")
    assert "reference-transaction" in proof.read_text(), "the trap works"


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("when", ["copying", "cloning", "working", "bringing back"])
def test_after_a_kill_at_any_moment_the_same_workspace_goes_on(place: Place, when: str) -> None:
    if when in ("copying", "cloning"):
        for number in range(2500):
            (place.work / f"f{number}").write_text(str(number))
        git(place.work, "add", ".")
        git(place.work, "commit", "-q", "-m", "many")
    big = "head -c 30000000 /dev/urandom > big; git add big; " if when == "bringing back" else ""
    wait = "touch here; while [ ! -e go ]; do sleep 0.02; done; " if when == "working" else ""
    spec = clone("one", big + (EDIT if when != "copying" else "true"), effect="idempotent")
    spec["tasks"] = [
        {"id": "edit", "run": spec.pop("run"), "effect": spec.pop("effect")},
        {"id": "wait", "run": wait + "echo done >> done", "effect": "idempotent"},
    ]
    spec["workspace"] = "copy" if when == "copying" else "worktree"
    team(place, one=spec)
    signs: dict[str, Callable[[], Any]] = {
        "copying": lambda: list(place.state.glob("workspaces/*/.new-*/tree/f*")),
        "cloning": lambda: list(place.state.glob("workspaces/*/.new-*/tree/f*")),
        "working": lambda: list(place.state.glob("workspaces/*/one/tree/here")),
        "bringing back": lambda: list((place.work / ".git/objects").glob("tmp_objdir-toka-*")),
    }
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    while not signs[when]():
        assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = states(place)
    assert bool(before) == (when not in ("copying", "cloning"))
    for tree in place.state.glob("workspaces/*/one/tree"):
        (tree / "go").touch()
    say(place, "resume", "@last", "--quiet")
    after = states(place)["one"]
    if before:
        assert after["path"] == before["one"]["path"]
    assert [p.name for p in Path(after["path"]).parent.parent.iterdir()] == ["one"]
    assert (Path(after["path"]) / "done").read_text() == "done\n"
    if when == "copying":
        assert len(list(Path(after["path"]).glob("f*"))) == 2500
        return
    assert after["returned"]["problem"] == ""
    assert git(place.work, "show", f"{after['branch']}:a.txt") == "one\none"
    assert git(place.work, "rev-list", "--count", f"main..{after['branch']}") == "1"
    git(place.work, "fsck", "--strict")


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(os.getuid() != 0, reason="already an ordinary user")
@pytest.mark.parametrize("who", ["an ordinary user", "root in the folder of one"])
def test_it_holds_for_an_ordinary_user_and_for_root_in_the_folder_of_one(who: str) -> None:
    home = Path("/tmp") / f"toka-workspaces-{os.getpid()}"
    home.mkdir()
    try:
        shutil.copytree(ROOT / "src", home / "src", ignore=shutil.ignore_patterns("__pycache__"))
        work = home / "ws"
        work.mkdir()
        (work / "a.txt").write_text("one\n")
        git(work, "init", "-q", "-b", "main")
        git(work, "add", ".")
        git(work, "commit", "-q", "-m", "one")
        (home / "team.yaml").write_text(json.dumps({"toka": 1, "agents": {"one": clone("one"), "two": clone("two")}}))
        (work / ".git").chmod(0o700)
        subprocess.run(["chown", "-R", f"{UID}:{UID}", str(home)], check=True)
        user: dict[str, Any] = {"cwd": home, "capture_output": True, "text": True}
        if who == "an ordinary user":
            user |= {"user": UID, "group": UID, "extra_groups": []}
            if not usable(user, "pydantic, click"):
                pytest.skip(f"{sys.executable} cannot be used by another user")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TOKA_")}
        env = {**kept, "PYTHONPATH": str(home / "src"), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
        argv = [sys.executable, "-m", "toka", "run", "team.yaml", "--workspace", "ws", "--state", "state", "--quiet"]
        done = subprocess.run(argv, env=env, **user, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        branches = [b for b in git(work, "for-each-ref", "--format=%(refname)").split() if "/toka/" in b]
        assert len(branches) == 2
        assert {git(work, "show", f"{b}:a.txt") for b in branches} == {"one\none", "one\ntwo"}
        owners = {path.lstat().st_uid for path in (work / ".git").rglob("*")}
        assert owners == {UID}, "what was brought back belongs to whose repository it is"
    finally:
        shutil.rmtree(home, ignore_errors=True)
