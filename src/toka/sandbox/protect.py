"""Paths of a workspace that stay as they are although the agent may write around them; `trusted` says which.

A read-only mount alone is not enough: whoever may rename the folder above it can put another one in its place. So every
folder between a writable mount and a protected path is a mount of its own, which cannot be renamed; and what does not
exist is created, empty, so that it can be mounted.

What was created carries a mark and is removed when the last sandbox that uses it has closed, unless it was filled
meanwhile. A shared lock on it says who uses it, also over the end of a process by SIGKILL.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toka.errors import SandboxError
from toka.sandbox.gitconfig import obeyed
from toka.sandbox.policy import PathRule, SandboxPolicy
from toka.sandbox.trusted import ALWAYS, GIT, GIT_TRUSTED, TRUSTED, Kind, wanted, within

CONTENTS: Final = {"commondir": b"."}
"""What a placeholder holds that may not be empty, by name: git looks for settings and hooks where commondir says."""
MARK: Final = "user.toka.placeholder"


@dataclass(frozen=True, slots=True)
class Protection:
    """What is mounted over the granted paths.

    Attributes:
        rules: further mounts: folders on the way, as they are granted, and protected paths, read-only or hidden.
        notes: one sentence for each protected path that could not be.
    """

    rules: tuple[PathRule, ...] = ()
    notes: tuple[str, ...] = ()


def protect(root: int, policy: SandboxPolicy, stack: ExitStack) -> Protection:
    """Finds what must be protected under a policy, creating what is missing.

    Args:
        root: an opened folder, the workspace.
        policy: its writable paths, and further paths to protect or hide.
        stack: lets go of the locks and removes what was created, where nobody else needs it.

    Raises:
        SandboxError: a protected path, or a folder on the way to it, is a symbolic link or of the wrong kind: nothing
            that is mounted there would protect what the link leads to.
    """
    if inside := next((w for w in policy.writes if w.startswith(".git/")), None):
        raise SandboxError(f"{inside} may not be granted for writing", hint="ask for git-access instead")
    rules: dict[str, PathRule] = {}
    notes: list[str] = []
    repository = policy.git and _exists(root, GIT)
    if repository:
        rules[GIT] = PathRule(GIT, "write")
    elif policy.git:
        notes.append("there is no .git here, so git-access grants nothing")
    writes = (*policy.writes, *rules)
    for path, kind in wanted(policy, git=repository, obeyed=_obeyed(root, policy)).items():
        base = max((w for w in writes if within(w, path)), key=_depth, default=None)
        if base is None or (base == path and path not in ALWAYS):
            continue
        try:
            if path not in policy.protected:
                _ensure(root, path, kind, stack)
            elif not _exists(root, path):
                continue
        except PermissionError:
            notes.append(f"{path}: may not be created here, so the agent cannot either; not protected")
            continue
        for folder in _between(base, path):
            rules.setdefault(folder, PathRule(folder, "write"))
        rules[path] = PathRule(path, "read")
    for path in policy.hidden:
        shown = max((r for r in policy.rules if within(r.path, path)), key=lambda r: _depth(r.path), default=None)
        if shown is not None and _exists(root, path):
            for folder in _between(shown.path, path) if shown.access == "write" else ():
                rules.setdefault(folder, PathRule(folder, "write"))
            rules[path] = PathRule(path, "hide")
    return Protection(tuple(rules.values()), tuple(notes))


def tidy(workspace: Path) -> None:
    """Removes what dead processes created in a workspace to protect it, where nobody uses it any more."""
    with contextlib.suppress(OSError), ExitStack() as stack:
        root = os.open(workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        further = obeyed(workspace)
        for path in (*TRUSTED, *GIT_TRUSTED, GIT, *further):
            with contextlib.suppress(OSError, SandboxError):
                _visit(root, path, stack)


def _visit(root: int, path: str, stack: ExitStack) -> None:
    """Takes a lock on each placeholder on the way to a path, so that it goes when the stack unwinds."""
    at = os.dup(root)
    try:
        for name in path.split("/"):
            deeper = _step(at, name, path)
            if deeper is None:
                return
            _hold(at, name, deeper, stack)
            os.close(at)
            at = deeper
    finally:
        os.close(at)


def _obeyed(root: int, policy: SandboxPolicy) -> dict[str, Kind]:
    """Where git outside gets further settings and hooks from, if the agent may write anything at all."""
    if not (policy.writes or policy.git) or not _exists(root, GIT):
        return {}
    return obeyed(Path(os.readlink(f"/proc/self/fd/{root}")))


def _depth(path: str) -> int:
    return 0 if path == "." else path.count("/") + 1


def _between(base: str, path: str) -> list[str]:
    """The folders below `base` and above `path`, outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(_depth(base) + 1, len(parts))]


def _exists(root: int, path: str) -> bool:
    """Whether a path is there, no link on the way to it or at its end.

    Raises:
        SandboxError: a link is.
    """
    at = os.dup(root)
    try:
        for name in path.split("/"):
            deeper = _step(at, name, path)
            if deeper is None:
                return False
            os.close(at)
            at = deeper
    finally:
        os.close(at)
    return True


def _ensure(root: int, path: str, kind: Kind, stack: ExitStack) -> None:
    """Makes sure that a path exists, creating it and the folders on the way."""
    at = os.dup(root)
    parts = path.split("/")
    try:
        for depth, name in enumerate(parts):
            last = depth + 1 == len(parts)
            deeper = _step(at, name, path)
            if deeper is None:
                try:
                    _create(at, name, kind if last else "folder")
                except PermissionError as error:
                    if error.errno != errno.EROFS:
                        _refuse_closed(at, path)
                    raise
                deeper = _step(at, name, path)
            if deeper is None:
                raise SandboxError(f"{path} vanished while the sandbox started")
            _hold(at, name, deeper, stack)
            if not last and not stat.S_ISDIR(os.fstat(deeper).st_mode):
                os.close(deeper)
                raise SandboxError(
                    f"{'/'.join(parts[: depth + 1])} is a file, so {path} cannot be protected",
                    hint="a worktree or submodule keeps its repository elsewhere: use the main checkout",
                )
            os.close(at)
            at = deeper
    finally:
        os.close(at)


def _step(at: int, name: str, path: str) -> int | None:
    """Opens one name below a folder; None when it does not exist."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    except FileNotFoundError:
        return None
    except PermissionError:
        _refuse_closed(at, path)
        raise
    mode = os.fstat(fd).st_mode
    if stat.S_ISLNK(mode):
        os.close(fd)
        raise SandboxError(
            f"{path} is protected, and {name} is a symbolic link", hint="replace the link by what it leads to"
        )
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for whoever writes to it
        os.close(fd)
        raise SandboxError(f"{path} is protected, and {name} is neither a file nor a folder", hint="remove it")
    return fd


def _refuse_closed(folder: int, path: str) -> None:
    """What its owner closed, the agent, who is that user, could open again later and find nothing protected in it.

    Raises:
        SandboxError: the folder is ours.
    """
    if os.fstat(folder).st_uid == os.geteuid():
        raise SandboxError(
            f"the folder around {path} is closed to its own owner, so it cannot be protected",
            hint="give its owner all rights on it again: chmod u+rwx",
        )


def _create(at: int, name: str, kind: Kind) -> None:
    try:
        if kind == "folder":
            os.mkdir(name, 0o755, dir_fd=at)
        else:
            _create_file(at, name, CONTENTS.get(name, b""))
    except FileExistsError:
        return
    except OSError as error:
        if error.errno == errno.EROFS:
            raise PermissionError(error.errno, error.strerror) from None
        raise
    with contextlib.suppress(OSError), _reopened(at, name) as fd:
        os.setxattr(fd, MARK, b"1")


def _create_file(at: int, name: str, content: bytes) -> None:
    """Creates a file with its content at once: git outside may look at any moment."""
    if content:
        with contextlib.suppress(OSError):
            fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=at)
            try:
                os.write(fd, content)
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=at)
            finally:
                os.close(fd)
            return
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=at)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def _hold(at: int, name: str, fd: int, stack: ExitStack) -> None:
    """Locks a placeholder of ours for sharing; when the stack unwinds, it goes with the last lock."""
    with contextlib.suppress(OSError):
        file = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        if not _marked(file):
            os.close(file)
            return
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        stack.callback(_let_go, os.dup(at), name, file)


def _let_go(folder: int, name: str, file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(file)
        if not _marked(file) or not os.path.samestat(status, os.stat(name, dir_fd=folder, follow_symlinks=False)):
            return
        if stat.S_ISDIR(status.st_mode):
            os.rmdir(name, dir_fd=folder)
        elif os.pread(file, 64, 0) == CONTENTS.get(name, b""):
            os.unlink(name, dir_fd=folder)
    except OSError:  # still in use, filled meanwhile, or gone
        pass
    finally:
        os.close(file)
        os.close(folder)


def _marked(fd: int) -> bool:
    try:
        return os.getxattr(fd, MARK) == b"1"
    except OSError:
        return False


@contextlib.contextmanager
def _reopened(at: int, name: str) -> Generator[int]:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        yield fd
    finally:
        os.close(fd)
