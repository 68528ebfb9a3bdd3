"""Private workspaces: a copy, or a clone of its own, in which one agent works. They lie in the state directory.

Each is made beside its place and renamed at the end, so that what is at that place is whole, whatever was killed when.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final, Literal

from toka.errors import UsageError
from toka.sandbox.profile import find_program
from toka.sandbox.trusted import TRUSTED
from toka.workspace.checkpoints import store_of
from toka.workspace.duplicate import duplicate
from toka.workspace.repository import ENVIRONMENT, SETTINGS, NotBrought, Repository, look_at, unfit

FOLDER: Final = "workspaces"
"""The folder of all of them, in the state directory."""
NOTE: Final = "made.json"
TREE: Final = "tree"
_NEW: Final = ".new-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A private workspace that is wanted.

    Attributes:
        how: `worktree` or `copy`.
        workspace: what it is made of.
        state: the state directory; what lies in it is not copied.
        run, agent: whose it is.
        branch: of a worktree: its branch.
    """

    how: Literal["worktree", "copy"]
    workspace: Path
    state: Path
    run: str
    agent: str
    branch: str = ""

    @property
    def folder(self) -> Path:
        """Its place."""
        return self.state / FOLDER / self.run / self.agent


@dataclass(frozen=True, slots=True)
class Private:
    """A private workspace that is there; see WorkspaceMade."""

    how: str
    path: str
    base: str = ""
    branch: str = ""
    objects: str = ""


async def make(wanted: Wanted) -> Private:
    """Makes it, unless it is there from an earlier start. When it is cancelled, nothing of it is left.

    Raises:
        UsageError: it cannot be made; the message says what is wrong, the hint what to do.
    """
    stop = threading.Event()
    working = asyncio.ensure_future(asyncio.to_thread(_make, wanted, stop.is_set))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({working})
        if not working.cancelled():
            working.exception()
        raise


def _make(wanted: Wanted, stopped: Callable[[], bool]) -> Private:
    folder = wanted.folder
    with suppress(OSError, ValueError, TypeError):
        return Private(**json.loads((folder / NOTE).read_bytes()))
    try:
        for each in (folder.parent.parent, folder.parent):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            each.chmod(0o700)
        for left in folder.parent.glob(f"{_NEW}{_escaped(wanted.agent)}-*"):
            _removed(left)
        beside = folder.parent / f"{_NEW}{wanted.agent}-{os.urandom(4).hex()}"
        beside.mkdir(mode=0o700)
        try:
            made = _filled(wanted, beside, stopped)
            (beside / NOTE).write_text(json.dumps(asdict(made)))
            beside.rename(folder)
        except BaseException:
            remove(beside)
            raise
    except OSError as error:
        at = f" ({error.filename})" if error.filename else ""
        raise UsageError(
            f"the private workspace of {wanted.agent} cannot be made: {error.strerror or 'interrupted'}{at}",
            hint="make it readable, free some space, or say `workspace: shared`",
        ) from None
    return made


def _escaped(name: str) -> str:
    return name.replace("[", "[[]")


def _filled(wanted: Wanted, beside: Path, stopped: Callable[[], bool]) -> Private:
    tree, final = beside / TREE, str(wanted.folder / TREE)
    tree.mkdir(mode=0o700)
    if wanted.how == "worktree":
        repository = look_at(wanted.workspace)
        _clone(repository, tree, wanted, stopped)
        return Private("worktree", final, repository.head, wanted.branch, str(repository.objects))
    workspace, state = wanted.workspace.resolve(), wanted.state.resolve()
    left_out = [state.relative_to(workspace).as_posix()] if state.is_relative_to(workspace) else []
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    source = os.open(workspace, flags)
    try:
        target = os.open(tree, flags)
        try:
            duplicate(source, target, left_out, stopped)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return Private("copy", final)


# ---- worktrees


def _clone(repository: Repository, tree: Path, wanted: Wanted, stopped: Callable[[], bool]) -> None:
    """A repository of its own that borrows objects, with its files checked out.

    Git runs outside the sandbox here, and nobody else has a word in it: the repository it runs in was written by the
    lines below, no agent has seen it yet, and of the user's only objects are read. Settings name no filter and no
    hook, so attributes in the commit can name one in vain. Git itself refuses paths that lead out of the tree or
    into `.git`.
    """
    if problem := unfit(repository, wanted.branch):
        raise UsageError(problem, hint="name another one: metadata.branch")
    git = tree / ".git"
    branch = f"refs/heads/{wanted.branch}"
    own = f'name = "{wanted.agent}"\n\temail = "{wanted.agent}@toka.invalid"'
    version, extension = "0", ""
    if repository.form != "sha1":
        version, extension = "1", f"[extensions]\n\tobjectFormat = {repository.form}\n"
    files = {
        "HEAD": f"ref: {branch}\n",
        "config": f"[core]\n\trepositoryformatversion = {version}\n\tfilemode = true\n\tbare = false\n"
        f"\tlogAllRefUpdates = true\n{extension}[user]\n\t{own}\n[gc]\n\tauto = 0\n",
        branch: f"{repository.head}\n",
        "info/exclude": "".join(f"/{path}\n" for path in TRUSTED),  # sandboxes put empty ones there
        "objects/info/alternates": f"{repository.objects}\n",
    }
    shallow = repository.folder / "shallow"
    if shallow.is_file() and not shallow.is_symlink():
        files["shallow"] = shallow.read_text()
    for folder in ("hooks", "info", "objects/pack", "refs/tags"):
        (git / folder).mkdir(parents=True)
    for name, text in files.items():
        (git / name).parent.mkdir(parents=True, exist_ok=True)
        (git / name).write_text(text)
    for command in (["read-tree", "HEAD"], ["checkout-index", "--all", "--force", "--index", "--quiet"]):
        _checked(git, tree, command, stopped)


def _checked(git: Path, tree: Path, command: list[str], stopped: Callable[[], bool]) -> None:
    """Runs git in a clone that was just made, until it is done or stopped."""
    program = find_program("git")
    assert program is not None, "look_at found it"
    settings = [part for setting in SETTINGS for part in ("-c", setting)]
    process = subprocess.Popen(
        [program, *settings, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "GIT_DIR": str(git), "GIT_WORK_TREE": str(tree)}, cwd=tree, process_group=0,
    )  # fmt: skip
    with process:
        while True:
            try:
                _, said = process.communicate(timeout=0.1)
                break
            except subprocess.TimeoutExpired:
                if stopped():
                    process.kill()
                    raise InterruptedError from None
    if process.returncode:
        lines = said.decode("utf-8", "replace").strip().splitlines()
        raise UsageError(
            f"git {command[0]} failed in the clone: {lines[-1] if lines else process.returncode}",
            hint="see `git fsck`; or say `workspace: copy`",
        )


@contextmanager
def outgoing(tree: Path, name: str) -> Generator[IO[bytes]]:
    """A file in the `.git` of an agent's clone, read without following a link; it is gone afterwards.

    Raises:
        NotBrought: there is no such file.
    """
    nofollow = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            git = os.open(".git", os.O_RDONLY | os.O_DIRECTORY | nofollow, dir_fd=root)
        finally:
            os.close(root)
    except OSError as error:
        raise NotBrought(f"its .git cannot be opened: {error.strerror}") from None
    try:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | nofollow, dir_fd=git)
        except OSError as error:
            raise NotBrought(f"what git made of it cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotBrought("what git made of it is no file")
        with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            yield file
    finally:
        with suppress(OSError):
            os.unlink(name, dir_fd=git)
        os.close(git)


# ---- their end


def remove(folder: Path) -> None:
    """Removes a folder with all that is in it, whatever modes agents left there; no link is followed.

    Nobody may be at work in it. Raises OSError.
    """
    for at, folders, _ in os.walk(folder):
        for name in folders:
            inner = Path(at, name)
            if not inner.is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(folder)


def _removed(left: Path) -> None:
    """Removes what a killed process left half made; a git that outlived it may still write there for a moment."""
    for _ in range(20):
        with suppress(OSError):
            remove(left)
            return
        time.sleep(0.05)


def prune(state: Path, ended: Mapping[str, float], keep_s: float, now: float) -> list[str]:
    """Removes the private workspaces of runs that ended long ago, with their checkpoints.

    Args:
        state: the state directory.
        ended: run -> when it ended, wall-clock seconds; a run that is not in it keeps its own.
        keep_s: how long they stay after that, in seconds.
        now: wall-clock seconds.

    Returns:
        The runs whose workspaces were removed.
    """
    gone: list[str] = []
    for run, at in sorted(ended.items()):
        folder = state / FOLDER / run
        if Path(run).name == run and at <= now - keep_s and folder.is_dir() and not folder.is_symlink():
            stores = [store_of(each.resolve() / TREE, state) for each in folder.iterdir()]
            remove(folder)
            for store in filter(Path.is_dir, stores):
                remove(store)
            gone.append(run)
    return gone
