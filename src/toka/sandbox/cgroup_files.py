"""The files of cgroups: reading and writing them as the kernel wants it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class Files:
    """The cgroup file systems as we touch them. Every method raises OSError as the kernel does."""

    def read(self, path: Path) -> str:
        """The whole of a file. Not pathlib, which asks the kernel twice as often: this runs around every command."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            blocks = [os.read(fd, 65536)]
            while blocks[-1]:
                blocks.append(os.read(fd, 65536))
            return b"".join(blocks).decode()
        finally:
            os.close(fd)

    def write(self, path: Path, text: str) -> None:
        """One write(2) into a file that exists: the kernel takes each as one request."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def make(self, path: Path) -> None:
        """Makes one directory, which is how a cgroup is made."""
        path.mkdir()

    def remove(self, path: Path) -> None:
        """Removes one directory; the kernel refuses while processes are in it."""
        path.rmdir()

    def folders(self, path: Path) -> list[str]:
        """The names of the directories in a directory, sorted."""
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))

    def exists(self, path: Path) -> bool:
        """Whether there is such a file or directory."""
        return path.exists()

    def writable(self, path: Path) -> bool:
        """Whether this process may write to it; False on a read-only mount, whoever asks."""
        return os.access(path, os.W_OK, effective_ids=True)


def make_fresh(files: Files, directory: Path) -> None:
    """Makes a directory with all counters at zero: an empty one of that name goes first, one in use is an OSError."""
    with suppress(FileNotFoundError):
        files.remove(directory)
    files.make(directory)
