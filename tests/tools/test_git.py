"""The git tool on real repositories, in real sandboxes, some of which mean harm."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toka.core.capability import Capability, CapabilityError, Grant
from toka.core.effect import Effect
from toka.sandbox.trusted import TRUSTED
from toka.tools import git as module
from toka.tools.git import SETTINGS, Git
from toka.tools.tool import ToolContext, ToolResult, validate
from tools.conftest import Room, Watched

pytestmark = pytest.mark.skipif(shutil.which("git", path="/usr/local/bin:/usr/bin:/bin") is None, reason="no git here")
KEY = "k" * 32
ALL = {"reads": (), "writes": (".",), "git": True}


def plain(repository: Path, *argv: str) -> str:
    """Git on the host, as the test's author."""
    config = ["-c", "user.name=Author", "-c", "user.email=author@example.org", "-c", "safe.directory=*"]
    done = subprocess.run(["git", *config, *argv], cwd=repository, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(workspace: Path) -> Path:
    plain(workspace, "init", "--quiet", "--initial-branch=work")
    plain(workspace, "add", ".")
    plain(workspace, "commit", "--quiet", "--message=first")
    return workspace


def test_what_a_call_needs() -> None:
    git, reader = Git(), Git(commits=False)
    assert git.effect is Effect.CHECKABLE
    for args in ({"command": "status"}, {"command": "diff", "paths": ["src"]}, {"command": "log", "limit": 3}):
        assert git.needs(dict(args)) == (Capability("git-access"),)
        assert reader.needs(dict(args)) == (Capability("filesystem-read", paths=(".",)),)
    assert git.needs({"command": "commit", "paths": ["./src//a.py", "/workspace/docs"], "message": "x"}) == (
        Capability("git-access"),
        Capability("filesystem-write", paths=("docs", "src/a.py")),
    )
    narrow = Grant((Capability("git-access"), Capability("filesystem-write", paths=("src",))))
    whole = git.needs({"command": "commit", "paths": ["."], "message": "x"})
    assert [narrow.covering(need) is not None for need in whole] == [True, False]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"command": "commit", "message": "x"}, "needs a message, and the paths"),
        ({"command": "commit", "paths": ["src"]}, "needs a message"),
        ({"command": "commit", "paths": ["src"], "message": " \n"}, "needs a message"),
        ({"command": "commit", "paths": ["../x"], "message": "x"}, "leaves the workspace"),
        ({"command": "commit", "paths": [".git/config"], "message": "x"}, "belongs to git itself"),
        ({"command": "diff", "paths": ["src/../.GIT"]}, "belongs to git itself"),
        ({"command": "commit", "paths": ["/etc/passwd"], "message": "x"}, "not relative"),
        ({"command": "status", "message": "x"}, "git status takes no message"),
        ({"command": "commit", "paths": ["a"], "message": "x", "revision": "HEAD"}, "git commit takes no revision"),
        ({"command": "log", "staged": True}, "git log takes no staged"),
        *(({"command": "diff", "revision": r}, "is not a commit") for r in
          ("--output=x", "-p", "--", "", "HEAD:src/a.py", ":/x", "a b", "a\nb", "$(x)", "HEAD;x", "x" * 201, "^HEAD")),
    ],
)  # fmt: skip
def test_what_is_no_call_of_git_is_refused(args: dict[str, Any], says: str) -> None:
    with pytest.raises(CapabilityError, match=says):
        Git().needs(args)


def test_who_may_not_commit_is_not_shown_how() -> None:
    assert "and commit" not in Git(commits=False).description
    assert isinstance(validate(Git(commits=False), '{"command": "commit", "message": "x"}'), str)
    assert validate(Git(), '{"command": "log", "paths": ["a"]}') == {"command": "log", "paths": ["a"]}


async def test_reading(room: Room, repository: Path) -> None:
    (repository / "src/a.py").write_text("one = 1\ntwo = 22\nthree = 3\n")
    (repository / "src/ä b").write_text("new")
    for ctx, git in ((room(**ALL), Git()), (room(reads=(".",)), Git(commits=False))):
        status = await git.call({"command": "status"}, ctx)
        assert status.text.splitlines() == ["## work", " M src/a.py", '?? "src/ä b"']
        assert not status.failed
        assert (await git.call({"command": "status", "paths": ["README.md"]}, ctx)).text.endswith(
            "nothing has changed]"
        )
        diff = (await git.call({"command": "diff", "paths": ["src"]}, ctx)).text
        assert "-two = 2\n+two = 22\n" in diff
        assert (await git.call({"command": "diff", "staged": True}, ctx)).text == "[no difference]"
        assert (await git.call({"command": "diff", "paths": ["*.py"]}, ctx)).text == "[no difference]"
        assert "+one = 1" not in (await git.call({"command": "diff", "revision": "HEAD"}, ctx)).text
        log = (await git.call({"command": "log", "revision": "HEAD", "limit": 1, "paths": ["src"]}, ctx)).text
        assert log.endswith(" Author: first\n")
        assert (await git.call({"command": "log", "paths": ["none"]}, ctx)).text == "[no commit]"
        unknown = await git.call({"command": "diff", "revision": "nowhere"}, ctx)
        assert unknown.failed
        assert "nowhere" in unknown.text


async def test_what_cannot_be_read_is_said(room: Room, workspace: Path) -> None:
    for policy in (ALL, {"reads": ("src",)}):
        result = await Git().call({"command": "status"}, room(**policy))
        assert result == ToolResult("the workspace is not a git repository, or its .git may not be read", failed=True)


async def test_a_commit_holds_its_paths_and_nothing_else(room: Room, repository: Path) -> None:
    (repository / "src/a.py").unlink()
    (repository / "src/new.py").write_text("new")
    (repository / "README.md").write_text("staged by somebody else")
    (repository / "other").write_text("of somebody else")
    plain(repository, "add", "README.md")
    result = await Git().call(
        {"command": "commit", "paths": ["src"], "message": "Replace a\n\nIt was old."}, room(**ALL)
    )
    assert not result.failed, result.text
    assert result.data == {"commit": plain(repository, "rev-parse", "HEAD"), "branch": "work"}
    assert "2 files changed" in result.text
    assert plain(repository, "show", "--name-only", "--format=", "HEAD").split() == ["src/a.py", "src/new.py"]
    assert plain(repository, "diff", "--cached", "--name-only") == "README.md"
    assert plain(repository, "log", "-1", "--format=%an %ae %cn|%B") == (
        f"fixer fixer@toka.invalid fixer|Replace a\n\nIt was old.\n\nToka-Step: {KEY}"
    )
    assert plain(repository, "log", "-1", "--format=%(trailers:key=Toka-Step,valueonly)") == KEY
    assert plain(repository, "status", "--short", "README.md", "other").splitlines() == ["M  README.md", "?? other"]


async def test_the_files_that_the_sandbox_puts_are_neither_shown_nor_committed(room: Room, repository: Path) -> None:
    ctx = room(**ALL)
    assert (await Git().call({"command": "status"}, ctx)).text == "## work\n[nothing has changed]"
    (repository / "src/a.py").write_text("")
    assert all((repository / name).exists() for name in TRUSTED)
    result = await Git().call({"command": "commit", "paths": ["."], "message": "all"}, ctx)
    assert plain(repository, "show", "--name-only", "--format=", "HEAD") == "src/a.py", result.text


async def test_the_first_commit_of_all(room: Room, workspace: Path) -> None:
    plain(workspace, "init", "--quiet", "--initial-branch=work")
    args = {"command": "commit", "paths": ["src"], "message": "first"}
    ctx = room(**ALL)
    evidence = await Git().evidence(args, ctx)
    assert evidence == {"head": None}
    assert await Git().probe(args, evidence, ctx) == "not-happened"
    result = await Git().call(args, ctx)
    assert not result.failed, result.text
    assert await Git().probe(args, evidence, ctx) == "happened"


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["src"], "nothing to commit: these paths are as in the last commit"),
        (["none"], "pathspec 'none' did not match any files"),
        (["s*"], "pathspec 's*' did not match any files"),
        ([":(top)src"], "did not match any files"),
        (["link/a.py"], "beyond a symbolic link"),
        (["ignored"], "ignored by one of your .gitignore files"),
    ],
)
async def test_a_commit_says_why_not(room: Room, repository: Path, paths: list[str], says: str) -> None:
    (repository / "link").symlink_to("src")
    (repository / ".gitignore").write_text("ignored\n")
    (repository / "ignored").write_text("")
    before = plain(repository, "rev-parse", "HEAD")
    result = await Git().call({"command": "commit", "paths": paths, "message": "x"}, room(**ALL))
    assert result.failed
    assert says in result.text
    assert plain(repository, "rev-parse", "HEAD") == before


async def test_no_commit_without_a_branch(room: Room, repository: Path) -> None:
    plain(repository, "checkout", "--quiet", "--detach")
    (repository / "src/a.py").write_text("")
    result = await Git().call({"command": "commit", "paths": ["src"], "message": "x"}, room(**ALL))
    assert result.text == "no branch is checked out, so a commit would belong to none"


async def test_a_file_may_be_called_like_an_option(room: Room, repository: Path) -> None:
    (repository / "--all").write_text("x")
    (repository / "src/a.py").write_text("")
    result = await Git().call({"command": "commit", "paths": ["--all"], "message": "--amend"}, room(**ALL))
    assert not result.failed, result.text
    assert plain(repository, "show", "--name-only", "--format=%s", "HEAD").split() == ["--amend", "--all"]


async def test_without_git_access_nothing_can_be_committed(room: Room, repository: Path) -> None:
    (repository / "src/a.py").write_text("")
    ctx = room(reads=(), writes=(".",))
    assert " M src/a.py" in (await Git(commits=False).call({"command": "status"}, ctx)).text
    result = await Git().call({"command": "commit", "paths": ["src"], "message": "x"}, ctx)
    assert result.failed
    assert "Read-only file system" in result.text


async def test_a_probe_finds_the_step_that_made_a_commit(room: Room, repository: Path) -> None:
    args = {"command": "commit", "paths": ["src"], "message": "x"}
    ctx, git = room(**ALL), Git()
    evidence = await git.evidence(args, ctx)
    assert evidence == {"head": plain(repository, "rev-parse", "HEAD")}
    assert await git.probe(args, evidence, ctx) == "not-happened"
    (repository / "src/a.py").write_text("")
    plain(repository, "commit", "--quiet", "--all", "--message=by somebody else")
    assert await git.probe(args, evidence, ctx) == "unknown"
    (repository / "src/a.py").write_text("1")
    assert not (await git.call(args, ctx)).failed
    assert await git.probe(args, evidence, ctx) == "happened"
    plain(repository, "commit", "--quiet", "--allow-empty", "--message=and one more")
    assert await git.probe(args, evidence, ctx) == "happened"
    assert await git.probe(args, evidence, replace(ctx, key="j" * 32)) == "unknown"
    assert git.happened(args, evidence).text == "committed src"
    assert await git.probe({"command": "log"}, await git.evidence({"command": "log"}, ctx), ctx) == "not-happened"


@pytest.mark.parametrize(
    ("message", "whole"),
    [
        ("One", f"One\n\nToka-Step: {KEY}"),
        ("One\n\nWhy: not", f"One\n\nWhy: not\nToka-Step: {KEY}"),
        ("One\n\nWhy: not\nbecause", f"One\n\nWhy: not\nbecause\n\nToka-Step: {KEY}"),
        ("One: two", f"One: two\n\nToka-Step: {KEY}"),
        ("# One\n", f"# One\n\nToka-Step: {KEY}"),
    ],
)
async def test_the_step_is_the_last_trailer(room: Room, repository: Path, message: str, whole: str) -> None:
    (repository / "src/a.py").write_text("")
    await Git().call({"command": "commit", "paths": ["src"], "message": message}, room(**ALL))
    assert plain(repository, "log", "-1", "--format=%B") == whole


# --- repositories that mean harm

HOOKS = ("pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "post-index-change", "reference-transaction")


def _hooks(repository: Path, _: str) -> None:
    for name in HOOKS:
        shutil.copy(repository / "evil", repository / ".git/hooks" / name)


def _setting(name: str, value: str = "{evil}") -> Callable[[Path, str], None]:
    def change(repository: Path, evil: str) -> None:
        plain(repository, "config", name, value.format(evil=evil))

    return change


def _attribute(text: str, name: str) -> Callable[[Path, str], None]:
    def change(repository: Path, evil: str) -> None:
        (repository / ".gitattributes").write_text(f"* {text}\n")
        plain(repository, "config", name, evil)

    return change


def _signed(repository: Path, evil: str) -> None:
    plain(repository, "config", "gpg.program", evil)
    plain(repository, "config", "commit.gpgSign", "true")


def _shown(repository: Path, evil: str) -> None:
    tree = plain(repository, "rev-parse", "HEAD^{tree}")
    signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n x\n -----END PGP SIGNATURE-----"
    text = f"tree {tree}\nauthor A <a@b> 0 +0000\ncommitter A <a@b> 0 +0000\n{signature}\n\nx\n"
    (repository / "signed").write_text(text)
    made = plain(repository, "hash-object", "-t", "commit", "-w", "signed")
    plain(repository, "update-ref", "HEAD", made)
    plain(repository, "config", "gpg.program", evil)
    plain(repository, "config", "log.showSignature", "true")


ME = {f"GIT_{role}_{what}": "me" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
HARM: dict[str, Callable[[Path, str], None]] = {
    "hooks": _hooks,
    "hooksPath": lambda repository, _: (
        _hooks(repository, ""),
        _setting("core.hooksPath", ".git/hooks")(repository, ""),
    )[0],
    "fsmonitor": _setting("core.fsmonitor"),
    "external diff": _setting("diff.external"),
    "diff driver": _attribute("diff=x", "diff.x.command"),
    "textconv": _attribute("diff=x", "diff.x.textconv"),
    "signer": _signed,
    "signature": _shown,
}
BY_THE_KERNEL_ALONE: dict[str, Callable[[Path, str], None]] = {"filter": _attribute("filter=x", "filter.x.clean")}


@pytest.fixture
def evil(repository: Path) -> Path:
    """A program in the workspace that leaves a trace."""
    (repository / "evil").write_text('#!/bin/sh\n: > /workspace/owned\ncat "$1" 2>/dev/null\nexit 0\n')
    (repository / "evil").chmod(0o755)
    return repository


async def everything(ctx: ToolContext, git: Git, repository: Path) -> None:
    for args in (
        {"command": "status"},
        {"command": "diff"},
        {"command": "diff", "revision": "HEAD"},
        {"command": "log"},
    ):
        await git.call(dict(args), ctx)
    await git.call({"command": "commit", "paths": ["src/a.py"], "message": "x"}, ctx)


def changed(repository: Path, harm: Callable[[Path, str], None]) -> Path:
    """Where the trace would be, in a repository with harm in it and one changed file."""
    harm(repository, "/workspace/evil")
    (repository / "src/a.py").write_text("changed\n")
    return repository / "owned"


@pytest.mark.parametrize("name", HARM)
async def test_the_options_alone_keep_a_repository_from_running_anything(room: Room, evil: Path, name: str) -> None:
    trace = changed(evil, HARM[name])
    await everything(room(**ALL, kind="person"), Git(), evil)
    assert not trace.exists()
    assert name in ("diff driver", "textconv") or plain(evil, "log", "-1", "--format=%an") == "fixer"


@pytest.mark.parametrize("name", {**HARM, **BY_THE_KERNEL_ALONE})
async def test_the_kernel_alone_keeps_a_repository_from_running_anything(
    room: Room, evil: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTINGS", ())
    monkeypatch.setattr(module, "PLAIN_DIFF", ())
    trace = changed(evil, {**HARM, **BY_THE_KERNEL_ALONE}[name])
    await everything(room(**ALL, programs=None), Git(), evil)
    assert not trace.exists()


@pytest.mark.parametrize("name", {**HARM, **BY_THE_KERNEL_ALONE})
async def test_each_harm_is_one(room: Room, evil: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither the options nor the kernel in its way it leaves its trace: the tests above can fail."""
    monkeypatch.setattr(module, "SETTINGS", ())
    monkeypatch.setattr(module, "PLAIN_DIFF", ())
    trace = changed(evil, {**HARM, **BY_THE_KERNEL_ALONE}[name])
    ctx = room(**ALL, kind="person")
    await everything(ctx, Git(), evil)
    hands = await ctx.hands()
    assert isinstance(hands, Watched)
    if not trace.exists():  # what the tool's own arguments hold off, called without them
        for argv in (["git", "log"], ["git", "commit", "--allow-empty", "--message=x"], ["git", "diff", "HEAD"]):
            await hands.run(argv, env={**module.ENVIRONMENT, **ME}, timeout_s=10)
    assert trace.exists()


async def test_git_reaches_no_network_and_starts_no_other_program(room: Room, repository: Path) -> None:
    hands = await room(**ALL, network=(Capability("network-access"),)).hands()
    for argv, says in (
        (["/bin/sh", "-c", "true"], "Permission denied"),
        (["python3", "-c", "1"], "Permission denied"),
        (["git", "-c", "alias.x=!true", "x"], "Permission denied"),
        (["git", "-c", "protocol.allow=always", "ls-remote", "http://127.0.0.1:3128/x"], "nable to"),
    ):
        result = await hands.run(
            argv, env=module.ENVIRONMENT | {"GIT_ALLOW_PROTOCOL": "http"}, timeout_s=10, chosen_by="git"
        )
        assert result.exit_code != 0
        assert says in result.output.decode(), argv


async def test_protocols_are_off_by_themselves(room: Room, repository: Path) -> None:
    hands = await room(**ALL, kind="person").hands()
    settings = [part for setting in SETTINGS for part in ("-c", setting)]
    for environment in ({"GIT_ALLOW_PROTOCOL": ""}, {}):
        own = {k: v for k, v in module.ENVIRONMENT.items() if k != "GIT_ALLOW_PROTOCOL"} | environment
        result = await hands.run(["git", *settings, "ls-remote", "/workspace"], env=own, timeout_s=10)
        assert b"not allowed" in result.output
