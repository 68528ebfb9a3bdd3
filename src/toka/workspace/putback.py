"""Going back to a checkpoint: what has to be done, and doing it. Standard library only: it runs inside the sandbox.

The plan is made where the workspace can only be read, from what was just recorded of it. It is carried out where the
scope can be written, and each file is looked at once more before it is replaced: one that is not what was recorded
stays, and the caller records and plans again. Files are written beside their place and renamed, so that a plan that was
cut off anywhere leaves a workspace for which a new plan leads to the same end.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time

from toka.workspace.trees import LINK, Branch, Leaf, within
from toka.workspace.walk import FOLDER_FLAGS, OTHERS, PLACEHOLDER, Folder, signature

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from toka.workspace.walk import Entry

SET_IDS = 0o6000
"""Never given back to files: they let a program run as the owner of the workspace."""
EMPTY_HANDED = tuple(f"is {kind}" for kind in OTHERS.values())
"""Why something was not recorded that has no contents to lose."""


class Planner:
    """Compares a checkpoint with the workspace as it was just recorded.

    Args:
        kept: paths that the checkpoint left out: they stay as they are.
        uncovered: path -> why it could not be recorded now.
        passed: paths that were left out just now.
    """

    def __init__(self, kept: set[str], uncovered: dict[str, str], passed: list[str]) -> None:
        self._kept = kept
        self._uncovered = uncovered
        self._unseen = [*uncovered, *passed]
        self.changed: list[str] = []
        self.left: dict[str, str] = {}
        """Path -> why it is not put back."""

    def folder(self, target: Branch, now: Folder | None, path: str = "") -> dict[str, Any] | None:
        """What has to be done in a folder; None when nothing has."""
        plan: dict[str, Any] = {"drop": [], "put": [], "prune": {}, "make": {}, "into": {}, "mark": target.mark}
        there: dict[str, Entry] = {} if now is None else now.entries
        for name, entry in there.items():
            whole = path + name
            if whole in self._kept:
                continue
            if name not in target.entries or isinstance(entry, Folder) != isinstance(target.entries[name], Branch):
                self._remove(plan, name, entry, whole, target.entries.get(name))
        for name, wanted in target.entries.items():
            whole, entry = path + name, there.get(name)
            if entry is None and not self._uncovered.get(whole, EMPTY_HANDED[0]).startswith(EMPTY_HANDED):
                self.left[whole] = self._uncovered[whole]
            elif isinstance(wanted, Leaf):
                self._leaf(plan, name, wanted, entry, whole)
            elif isinstance(entry, Folder):
                if (inner := self.folder(wanted, entry, whole + "/")) is not None:
                    plan["into"][name] = inner
            else:
                self.changed.append(whole)
                plan["make"][name] = self.folder(wanted, None, whole + "/") or _nothing(wanted.mark)
        if any(plan[key] for key in ("drop", "put", "prune", "make", "into")):
            return plan
        if now is not None and target.mark not in (None, now.mark):
            self.changed.append(path[:-1] or ".")
            return plan
        return None

    def _leaf(self, plan: dict[str, Any], name: str, wanted: Leaf, entry: Entry | None, path: str) -> None:
        sign, same = None, False
        if isinstance(entry, tuple):
            sign = entry[0]
            same = entry[1].hex() == wanted.oid and stat.S_ISLNK(sign[0]) == (wanted.kind == LINK)
            if same and (stat.S_IMODE(sign[0]), sign[2]) == (wanted.mode, wanted.mtime):
                return
        self.changed.append(path)
        plan["put"].append([name, wanted.kind == LINK, wanted.oid, wanted.mode, wanted.mtime, sign, same])

    def _remove(self, plan: dict[str, Any], name: str, entry: Entry, path: str, wanted: Leaf | Branch | None) -> None:
        """Takes away what the checkpoint has not, or as something else."""
        if isinstance(entry, tuple):
            if wanted is None:
                self.changed.append(path)
            plan["drop"].append([name, entry[0]])
            return
        inner = _nothing(None)
        for below, what in entry.entries.items():
            self._remove(inner, below, what, f"{path}/{below}", None)
        hidden = [p for p in self._unseen if within(p, (path,))]
        for below in hidden:
            self.left.setdefault(below, self._uncovered.get(below, "is ignored"))
        inner["keep"] = bool(hidden) or entry.mark is None  # what is only on the way to the scope stays
        plan["prune"][name] = inner
        if not inner["keep"] and wanted is None:
            self.changed.append(path)


def _nothing(mark: tuple[int, int] | None) -> dict[str, Any]:
    return {"drop": [], "put": [], "prune": {}, "make": {}, "into": {}, "mark": mark}


# ---- doing it


class Changed(Exception):
    """Something is not what was recorded."""


class Putter:
    """Carries out plans.

    Args:
        copy: writes the contents of an object to a descriptor.
        read: the contents of an object.
    """

    def __init__(self, copy: Callable[[str, int], None], read: Callable[[str, str], bytes]) -> None:
        self._copy = copy
        self._read = read
        self.raced: list[str] = []
        """Paths that had changed since they were recorded, and were let be."""
        self.left: dict[str, str] = {}
        """Path -> why it could not be put back."""

    def folder(self, fd: int, plan: dict[str, Any], path: str = "") -> None:
        """Does what is to be done in an opened folder and below it, and gives it its mode and time."""
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        busy = any(plan[key] for key in ("drop", "put", "prune", "make"))
        if busy and mode & 0o700 != 0o700:
            os.chmod(fd, mode | 0o700)
        for name, sign in plan["drop"]:
            self._try(path + name, self._drop, fd, name, sign)
        for name, inner in plan["prune"].items():
            self._try(path + name, self._prune, fd, name, inner, path + name)
        for item in plan["put"]:
            self._try(path + item[0], self._put, fd, item, path)
        for name, inner in plan["make"].items():
            self._try(path + name, self._make, fd, name, inner, path + name)
        for name, inner in plan["into"].items():
            self._try(path + name, self._into, fd, name, inner, path + name)
        if plan["mark"] is not None:
            self._try(path[:-1] or ".", self._settle, fd, *plan["mark"])
        elif busy and mode & 0o700 != 0o700:
            os.chmod(fd, mode)

    def _try(self, path: str, act: Callable[..., None], *args: Any) -> None:
        try:
            act(*args)
        except (Changed, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError):
            self.raced.append(path)
        except OSError as error:
            if error.errno == 39:  # ENOTEMPTY: somebody put something in
                self.raced.append(path)
            else:
                self.left[path] = error.strerror or str(error)

    def _drop(self, fd: int, name: str, sign: list[int]) -> None:
        if not _like(os.stat(name, dir_fd=fd, follow_symlinks=False), sign):
            raise Changed
        os.unlink(name, dir_fd=fd)

    def _prune(self, fd: int, name: str, plan: dict[str, Any], path: str) -> None:
        self._into(fd, name, plan, path)
        if not plan["keep"]:
            os.rmdir(name, dir_fd=fd)

    def _into(self, fd: int, name: str, plan: dict[str, Any], path: str) -> None:
        inner = os.open(name, FOLDER_FLAGS, dir_fd=fd)
        try:
            self.folder(inner, plan, path + "/")
        finally:
            os.close(inner)

    def _make(self, fd: int, name: str, plan: dict[str, Any], path: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=fd)
        except FileExistsError:
            kind = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_IFMT(kind) in OTHERS:
                os.unlink(name, dir_fd=fd)
                os.mkdir(name, 0o700, dir_fd=fd)
        if plan["mark"] is None:  # only on the way to the scope, so no mode was recorded
            plan["mark"] = (0o755, time.time_ns())
        self._into(fd, name, plan, path)

    def _put(self, fd: int, item: list[Any], path: str) -> None:
        """Gives a file or link its contents, mode and time."""
        name, link, oid, mode, mtime, sign, same = item
        if mode & SET_IDS:
            mode &= ~SET_IDS
            self.left[path + name] = "programs do not get back the right to run as their owner"
        if sign is not None:
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                status = os.fstat(found)
                if not _like(status, sign):
                    raise Changed
                # A file of several names may be one outside the scope, too: it is left what it is.
                if same and status.st_nlink == 1 and _dress(fd, name, found, status, mode, mtime):
                    return
            finally:
                os.close(found)
        elif not _free(fd, name):
            raise Changed
        beside = ".toka-put-" + hashlib.sha256(os.fsencode(path + name)).hexdigest()[:16]
        try:
            os.unlink(beside, dir_fd=fd)  # of a plan that was cut off
        except FileNotFoundError:
            pass
        if link:
            os.symlink(os.fsdecode(self._read(oid, "blob")), beside, dir_fd=fd)
            os.utime(beside, ns=(mtime, mtime), dir_fd=fd, follow_symlinks=False)
        else:
            self._write(fd, beside, oid, mode, mtime)
        if sign is not None and not _like(os.stat(name, dir_fd=fd, follow_symlinks=False), sign):
            os.unlink(beside, dir_fd=fd)
            raise Changed
        os.rename(beside, name, src_dir_fd=fd, dst_dir_fd=fd)

    def _write(self, fd: int, name: str, oid: str, mode: int, mtime: int) -> None:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            self._copy(oid, file)
            os.chmod(file, mode)
            os.utime(file, ns=(mtime, mtime))
        finally:
            os.close(file)

    def _settle(self, fd: int, mode: int, mtime: int) -> None:
        """Gives a folder its mode and time."""
        if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            try:
                os.chmod(fd, mode)
            except PermissionError:  # the filter knows no folders
                os.chmod(fd, mode & ~SET_IDS)
        os.utime(fd, ns=(mtime, mtime))


def _like(status: os.stat_result, sign: list[int]) -> bool:
    """Whether a file is the one that was recorded; -1 stands for a time that said nothing."""
    now = signature(status)
    return all(a == b or b == -1 for a, b in zip(now, sign))


def _dress(fd: int, name: str, found: int, status: os.stat_result, mode: int, mtime: int) -> bool:
    """Gives a file of the right contents its mode and time; False when it is not ours to change."""
    try:
        if stat.S_ISLNK(status.st_mode):
            os.utime(name, ns=(mtime, mtime), dir_fd=fd, follow_symlinks=False)
        else:
            if stat.S_IMODE(status.st_mode) != mode:
                os.chmod(f"/proc/self/fd/{found}", mode)
            os.utime(f"/proc/self/fd/{found}", ns=(mtime, mtime))
    except PermissionError:
        return False
    return True


def _free(fd: int, name: str) -> bool:
    """Whether nothing is at a name, or only what has no contents: a pipe, or a sandbox's placeholder."""
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    if stat.S_ISREG(status.st_mode) and status.st_size <= 1:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            return os.getxattr(f"/proc/self/fd/{found}", PLACEHOLDER) == b"1"
        except OSError:
            return False
        finally:
            os.close(found)
    return stat.S_IFMT(status.st_mode) in OTHERS


# ---- opening what is closed


def open_up(fd: int, path: str) -> None:
    """Gives the owner back the right to read a file, or a folder with all below it, so that it can be recorded."""
    *parents, name = path.split("/")
    at = os.dup(fd)
    try:
        for part in parents:
            inner = os.open(part, FOLDER_FLAGS, dir_fd=at)
            os.close(at)
            at = inner
        _open_name(at, name)
    finally:
        os.close(at)


def _open_name(fd: int, name: str) -> None:
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except PermissionError:  # the folder may not be searched
        os.chmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | 0o700)
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        mode = os.fstat(found).st_mode
        folder = stat.S_ISDIR(mode)
        if folder or stat.S_ISREG(mode):
            need = 0o700 if folder else 0o400
            if mode & need != need:
                os.chmod(f"/proc/self/fd/{found}", stat.S_IMODE(mode) | need)
        if folder:
            inner = os.open(name, FOLDER_FLAGS, dir_fd=fd)
            try:
                for below in os.listdir(inner):
                    _open_name(inner, below)
            finally:
                os.close(inner)
    finally:
        os.close(found)
