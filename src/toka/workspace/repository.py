"""The user's repository: what a clone for an agent needs of it, and how the agent's branch comes into it.

Git runs here outside any sandbox, in a repository that the agent cannot configure: `GIT_DIR` is the user's, no settings
but its own are read, and before those goes whatever could name a program. The commands used are plumbing: they look at
no working file and no index, so that no filter, attribute or monitor has a part in them. Where Toka runs as root, they
run as the owner of the repository. What an agent made comes as a stream of objects and nothing else.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from toka.errors import UsageError
from toka.sandbox.profile import find_program

ENVIRONMENT: Final[Mapping[str, str]] = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": "0", "GIT_ATTR_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1", "GIT_PAGER": "cat", "PAGER": "cat", "GIT_EDITOR": "false",
    "GIT_ALLOW_PROTOCOL": "none", "GIT_LITERAL_PATHSPECS": "1", "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "LC_ALL": "C",
}  # fmt: skip
SETTINGS: Final = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.pager=cat", "core.editor=false", "core.askPass=",
    "core.sshCommand=false", "core.alternateRefsCommand=", "core.attributesFile=/dev/null", "credential.helper=",
    "protocol.allow=never", "gc.auto=0", "maintenance.auto=false", "submodule.recurse=false",
)  # fmt: skip
"""What goes before a repository's own settings: nothing that names a program."""
LARGEST: Final = 1 << 30
"""Bytes of the objects that may come back."""
LONGEST_S: Final = 300.0
COPY_HINT: Final = "say `workspace: copy`, or `shared`"
_HEADER: Final = re.compile(rb"# v[23] git bundle\n")


class NotBrought(Exception):
    """Why a branch cannot come into the user's repository, in words."""


@dataclass(frozen=True, slots=True)
class Repository:
    """What is known of the repository of a workspace.

    Attributes:
        workspace: its working folder.
        folder: its `.git`, a folder and no link.
        head: the commit that is checked out.
        form: how objects are named: sha1 or sha256.
    """

    workspace: Path
    folder: Path
    head: str
    form: str

    @property
    def objects(self) -> Path:
        """Where its objects are."""
        return self.folder / "objects"

    def git(
        self, *args: str, given: IO[bytes] | None = None, fine: int = 0, more: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Runs git in it; exit code and what it printed.

        Args:
            args: the command.
            given: its standard input.
            fine: exit codes up to this are no failure.
            more: variables.

        Raises:
            NotBrought: it failed, or took too long.
        """
        return run_git(self.folder, args, given=given, fine=fine, more=more)


def run_git(
    folder: Path,
    args: Sequence[str],
    *,
    given: IO[bytes] | None = None,
    fine: int = 0,
    more: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Runs git in a repository whose settings no agent writes; see `Repository.git`."""
    program = find_program("git")
    if program is None:
        raise NotBrought("git is not installed")
    settings = [part for setting in SETTINGS for part in ("-c", setting)]
    owner = folder.stat().st_uid
    other = os.geteuid() == 0 and owner != 0
    try:
        done = subprocess.run(
            [program, *settings, *args], stdin=given or subprocess.DEVNULL, capture_output=True, check=False,
            env={**ENVIRONMENT, "GIT_DIR": str(folder), **(more or {})}, cwd="/", timeout=LONGEST_S,
            user=owner if other else None, group=folder.stat().st_gid if other else None,
            extra_groups=[] if other else None,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotBrought(f"git {args[0]} took longer than {LONGEST_S:g} s") from None
    except OSError as error:
        raise NotBrought(f"git cannot be started: {error.strerror}") from None
    if not 0 <= done.returncode <= fine:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NotBrought(f"git {args[0]} failed: {said[-1] if said else done.returncode}")
    return done.returncode, done.stdout.decode("utf-8", "surrogateescape").strip()


def look_at(workspace: Path) -> Repository:
    """The repository of a workspace, if clones can borrow from it.

    Its objects must lie in its own folder, reached without a link: they are shown to agents, and agents with
    git-access may have changed what leads elsewhere.

    Raises:
        UsageError: it cannot be used; the hint says what to do.
    """
    if find_program("git") is None:
        raise UsageError("`workspace: worktree` needs git, which is not installed", hint=f"install it; or {COPY_HINT}")
    folder = workspace.resolve() / ".git"
    kind = _mode(folder)
    if kind is None:
        raise _none_at(workspace)
    if not stat.S_ISDIR(kind) or _mode(folder / "commondir") is not None:
        raise UsageError(
            f"{folder} leads to a repository elsewhere, as that of a submodule or of `git worktree`",
            hint=f"use the main checkout; or {COPY_HINT}",
        )
    if not stat.S_ISDIR(_mode(folder / "objects") or 0):
        raise UsageError(f"{folder}/objects is no folder", hint=f"see `git fsck`; or {COPY_HINT}")
    if _mode(folder / "objects/info/alternates") is not None:
        raise UsageError(
            f"the repository {workspace} borrows objects from another one",
            hint=f"`git repack -a -d`, then remove .git/objects/info/alternates; or {COPY_HINT}",
        )
    try:
        missing, head = run_git(folder, ["rev-parse", "--quiet", "--verify", "HEAD^{commit}"], fine=1)
        form = run_git(folder, ["rev-parse", "--show-object-format"])[1]
    except NotBrought as problem:
        raise UsageError(f"the repository {workspace} cannot be read: {problem}", hint=COPY_HINT) from None
    if missing:
        raise UsageError(f"the repository {workspace} has no commit yet", hint=f"commit something; or {COPY_HINT}")
    return Repository(workspace.resolve(), folder, head, form)


def _none_at(workspace: Path) -> UsageError:
    """What a workspace is that has no repository of its own, and what to do instead."""
    place = workspace.resolve()
    around = next((each for each in place.parents if _mode(each / ".git") is not None), None)
    if (place / "HEAD").is_file() and (place / "objects").is_dir() and (place / "refs").is_dir():
        return UsageError(
            f"`workspace: worktree` needs a repository with a working folder, and {workspace} is a bare one",
            hint="`git clone` it, and name that folder with --workspace",
        )
    if around is not None:
        return UsageError(
            f"`workspace: worktree` needs the top of a repository, and {workspace} is a folder in that of {around}",
            hint=f"--workspace {shlex.quote(str(around))}; or {COPY_HINT}",
        )
    return UsageError(
        f"`workspace: worktree` needs a repository, and {workspace} is none",
        hint=f"`git init` there and commit; or {COPY_HINT}",
    )


def _mode(path: Path) -> int | None:
    """What is at a path, itself; None = nothing."""
    try:
        return path.lstat().st_mode
    except OSError:
        return None


def unfit(repository: Repository, branch: str) -> str:
    """Why work on a branch that begins at HEAD could not come back, for people; empty when it could."""
    try:
        bad = branch.startswith("-") or branch == "HEAD"
        if bad or repository.git("check-ref-format", f"refs/heads/{branch}", fine=1)[0]:
            return f"{branch!r} cannot be the name of a branch"
        if branch in checked_out(repository):
            return f"the branch {branch} is checked out"
        old = tip_of(repository, branch)
        if old is not None and not _contains(repository, repository.head, old):
            return f"the branch {branch} is there, and HEAD does not contain it"
    except NotBrought as problem:
        return str(problem)
    return ""


def checked_out(repository: Repository) -> set[str]:
    """The branches that are checked out, in its working folder or another one."""
    found = repository.git("worktree", "list", "--porcelain")[1].splitlines()
    marker = "branch refs/heads/"
    return {line.removeprefix(marker) for line in found if line.startswith(marker)}


def tip_of(repository: Repository, branch: str) -> str | None:
    """Where a branch stands; None = there is none."""
    missing, found = repository.git("rev-parse", "--quiet", "--verify", f"refs/heads/{branch}", fine=1)
    return None if missing else found


def _contains(repository: Repository, commit: str, older: str, more: Mapping[str, str] | None = None) -> bool:
    return repository.git("merge-base", "--is-ancestor", older, commit, fine=1, more=more)[0] == 0


def receive(repository: Repository, branch: str, tip: str, base: str, bundle: IO[bytes]) -> int:
    """Brings a branch in, fast-forward only: all of it, or nothing. Doing it again changes nothing.

    The objects are looked at in a folder apart, which git takes for its own remains: each of them whole and sound, all
    that the tip leads to there, the history one that goes on from what is known. Only then they come in.

    Args:
        repository: the user's.
        branch: its name; never one that is checked out.
        tip: the commit that it is to stand at.
        base: the commit that the work began with.
        bundle: what git made of the branch without the base, at its beginning; can be sought in.

    Returns:
        How many commits are new.

    Raises:
        NotBrought: it cannot be; nothing was changed.
    """
    if len(tip) != len(repository.head) or not re.fullmatch(r"[0-9a-f]+", tip):
        raise NotBrought("its commit has no sound name")
    if branch in checked_out(repository):
        raise NotBrought(f"the branch {branch} is checked out; check another one out")
    old = tip_of(repository, branch)
    if old == tip:
        return 0
    start = _pack_in(bundle)
    incoming = repository.objects / f"tmp_objdir-toka-{os.urandom(6).hex()}"
    apart = {"GIT_OBJECT_DIRECTORY": str(incoming), "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(repository.objects)}
    index = ("index-pack", "--stdin", "--fix-thin", "--strict", f"--max-input-size={LARGEST}")
    try:
        _folder_of(repository, incoming)
        _from(bundle, start)
        repository.git(*index, given=bundle, more=apart)
        if repository.git("cat-file", "-t", tip, more=apart)[1] != "commit":
            raise NotBrought("what it stands at is no commit")
        # Fails where anything that the tip leads to is missing.
        repository.git("rev-list", "--objects", "--quiet", tip, "--not", "--all", more=apart)
        if not _contains(repository, tip, old or base, apart):
            where = f"the branch {branch} moved on to {old[:12]}" if old else f"it does not contain {base[:12]}"
            raise NotBrought(f"not a fast-forward: {where}")
        count = int(repository.git("rev-list", "--count", tip, f"^{old or base}", more=apart)[1])
        _from(bundle, start)
        repository.git(*index, given=bundle)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    zero = "0" * len(tip)
    repository.git("update-ref", "-m", "toka: brought back", f"refs/heads/{branch}", tip, old or zero)
    return count


def _folder_of(repository: Repository, incoming: Path) -> None:
    status = repository.objects.stat()
    try:
        incoming.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(incoming, status.st_uid, status.st_gid)
    except OSError as error:
        raise NotBrought(f"{repository.objects} cannot be written: {error.strerror}") from None


def _pack_in(bundle: IO[bytes]) -> int:
    """Where the objects begin in a bundle."""
    _from(bundle, 0)
    head = os.read(bundle.fileno(), 1 << 16)
    end = head.find(b"\n\n")
    if not _HEADER.match(head) or end < 0:
        raise NotBrought("what git made of it is no bundle")
    return end + 2


def _from(bundle: IO[bytes], start: int) -> None:
    """Makes whoever is given the file begin there."""
    os.lseek(bundle.fileno(), start, os.SEEK_SET)
