"""A copy of a folder in which others may be at work: every name is opened by itself, and no link is followed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Collection
from typing import Final

FICLONE: Final = 0x40049409
"""The ioctl that makes a file share another one's blocks until one of them is written (linux/fs.h)."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK: Final = 1 << 24


def duplicate(source: int, target: int, left_out: Collection[str], stopped: Callable[[], bool]) -> None:
    """Copies what is in a folder: files, folders, links as links, modes and times; owners where this process is root.

    What is neither is left out: sockets, pipes, devices. So is what vanishes meanwhile. Set-user-id bits do not come
    along.

    Args:
        source: an open folder.
        target: an open folder, empty.
        left_out: paths relative to the source that are not copied.
        stopped: asked before each file; true ends it.

    Raises:
        OSError: something cannot be read or written; `filename` is its path in the source.
        InterruptedError: it was stopped.
    """
    _Copier(frozenset(left_out), stopped).folder(source, target, "")


class _Copier:
    def __init__(self, left_out: frozenset[str], stopped: Callable[[], bool]) -> None:
        self._left_out = left_out
        self._stopped = stopped
        self._root = os.geteuid() == 0

    def folder(self, source: int, target: int, path: str) -> None:
        """All that is in one folder, then the folder's own mode and times."""
        for name in os.listdir(source):
            inner = f"{path}/{name}" if path else name
            if inner in self._left_out:
                continue
            if self._stopped():
                raise InterruptedError
            try:
                self._one(source, target, name, inner)
            except FileNotFoundError:
                continue
            except OSError as error:
                if not error.filename or error.filename == name:
                    raise OSError(error.errno, error.strerror, inner) from None
                raise
        self._like(target, os.fstat(source))

    def _one(self, source: int, target: int, name: str, path: str) -> None:
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            if self._root:
                os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
            os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)
        elif stat.S_ISDIR(found.st_mode):
            inner = os.open(name, _FOLDER, dir_fd=source)
            try:
                os.mkdir(name, 0o700, dir_fd=target)
                made = os.open(name, _FOLDER, dir_fd=target)
                try:
                    self.folder(inner, made, path)
                finally:
                    os.close(made)
            finally:
                os.close(inner)
        elif stat.S_ISREG(found.st_mode):
            self._file(source, target, name)

    def _file(self, source: int, target: int, name: str) -> None:
        inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            status = os.fstat(inner)
            if not stat.S_ISREG(status.st_mode):  # swapped since
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            made = os.open(name, flags, 0o600, dir_fd=target)
            try:
                _contents(inner, made)
                self._like(made, status)
            finally:
                os.close(made)
        finally:
            os.close(inner)

    def _like(self, made: int, status: os.stat_result) -> None:
        if self._root:
            os.fchown(made, status.st_uid, status.st_gid)
        os.fchmod(made, stat.S_IMODE(status.st_mode) & 0o1777)
        os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))


def _contents(source: int, target: int) -> None:
    """The same bytes: shared where the file system can, else copied within the kernel, else read and written."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(target, FICLONE, source)
        return
    try:
        while os.copy_file_range(source, target, _BLOCK):
            pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    while block := os.read(source, 1 << 20):
        view = memoryview(block)
        while view:
            view = view[os.write(target, view) :]
