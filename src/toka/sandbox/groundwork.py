"""What the zygote checks and makes before it says ready, and the descriptors of a process.

Standard library and `kernel.py` only: it runs inside the sandbox, under the system's Python (>= 3.9).
"""

from __future__ import annotations

import errno
import os
import socket

from toka.sandbox.kernel import MS_BIND, MS_NODEV, MS_NOSUID, close_from, mount

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from typing import Any

PROGRAMS = "/toka/bin"


def open_fds() -> list[int]:
    """Our open descriptors, and one that the listing itself used."""
    return [int(name) for name in os.listdir("/proc/self/fd")]


def is_open(fd: int) -> bool:
    """Whether the descriptor is open."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def keep(status: int, further: int = -1) -> None:
    """Puts the pipe of the report at 3, a further descriptor, if there is one, at 4; closes all others but 0 to 2."""
    if further >= 0:
        import fcntl  # no agent's command needs it

        further = fcntl.fcntl(further, fcntl.F_DUPFD_CLOEXEC, 5)
    os.dup2(status, 3, inheritable=False)
    if further >= 0:
        os.dup2(further, 4, inheritable=False)
    close_from(4 if further < 0 else 5)


def check_mounts(expected: list[list[Any]]) -> None:
    """Each granted path must be the very file or folder that the host opened, with no more access than granted.

    A path that is swapped for a link while bwrap mounts would otherwise lead the mount astray.
    """
    for path, device, inode, writable in expected:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise OSError(errno.ESTALE, f"{path} changed while the sandbox started")
        if not writable and not os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EPERM, f"{path} is writable and should not be")


def gather_programs(programs: list[list[str]]) -> None:
    """Makes the folder that takes the place of /usr/bin for commands that may name listed programs only.

    Args:
        programs: [name, file] of each.
    """
    mount("none", PROGRAMS, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for name, file in programs:
        path = os.path.join(PROGRAMS, name)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o555))
        mount(file, path, None, MS_BIND)


def listen(port: int) -> socket.socket:
    """The way out: a listening socket of this sandbox's own network, which the host then accepts on."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener
