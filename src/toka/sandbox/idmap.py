"""Root's way to a sandbox that is not root: mounts in which the workspace belongs to an ordinary user id.

When the runtime is root, sandboxes run under a user id of their own, as a limit on processes does not bind root and a
hole in the kernel should not meet root. The workspace's owner is shown to that id as itself: what an agent writes
belongs to the owner on disk, and no file changes hands. Source: mount_setattr(2), user_namespaces(7).

All functions here act on the calling thread, which must be in a mount namespace of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import struct
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from toka.errors import SandboxUnavailable
from toka.sandbox.kernel import call

FIRST_UID: Final = 64_000
"""Where the search for a user id without an account begins."""
LAST_UID: Final = 65_000
TOP: Final = 65_536
"""Ids from here on, such as those of containers, keep no owner in the sandbox: they show as nobody."""
STAGES: Final = ("/mnt", "/media", "/srv", "/opt")
"""Folders one of which every system has; the first is covered, for the starting thread alone."""
UNMAPPABLE_HINT: Final = (
    "run toka as an ordinary user, or keep the workspace on a file system with id-mapped mounts (ext4, xfs, btrfs, "
    "tmpfs); an overlay, as in the root of a container, has none: mount a volume for the workspace"
)
USERNS_HINT: Final = (
    "allow user namespaces: `sysctl kernel.unprivileged_userns_clone=1` (Debian), "
    "`sysctl user.max_user_namespaces=10000`, or an AppArmor profile for /usr/bin/bwrap "
    "(Ubuntu; see `sysctl kernel.apparmor_restrict_unprivileged_userns`)"
)

SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE, O_CLOEXEC, F_EMPTY_PATH = 0x1000, 0x8000, 1, 0o2000000, 4
MOUNT_ATTR_IDMAP: Final = 0x00100000
PYTHON: Final = "/usr/bin/python3"
"""The system's interpreter, which runs inside every sandbox."""
_HOLD_NAMESPACE: Final = (
    "import ctypes, os; os.write(1, b'-' if ctypes.CDLL(None).unshare(0x10000000) else b'+'); os.read(0, 1)"
)
_EMPTY: Final = ctypes.c_char_p(b"")
_NO_FD: Final = -100


@cache
def agent_uid() -> int:
    """The user id of sandboxes when the runtime is root: the first one that no account has."""
    for uid in range(FIRST_UID, LAST_UID):
        try:
            pwd.getpwuid(uid)
        except KeyError:
            return uid
    raise SandboxUnavailable(f"all user ids from {FIRST_UID} to {LAST_UID} have accounts; sandboxes need a free one")


def id_map(owner: int, shown: int) -> str:
    """The lines of a uid_map or gid_map: `owner` on disk appears as `shown`, every other id as itself."""
    pieces = [(owner, shown, 1)] if owner < TOP else []
    for low, high in _gaps(sorted({owner, shown})):
        pieces.append((low, low, high - low))
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in pieces)


def _gaps(points: list[int]) -> Iterator[tuple[int, int]]:
    """The ranges of ids below TOP that hold none of the points."""
    low = 0
    for point in (*(p for p in points if p < TOP), TOP):
        if low < point:
            yield low, point
        low = point + 1


@cache
def mapping(owner: tuple[int, int], shown: tuple[int, int]) -> int:
    """A user namespace that exists only to carry a map of ids, as an open descriptor; made once per process.

    Args:
        owner: uid and gid on disk.
        shown: uid and gid that they appear as.
    """
    argv = [PYTHON, "-I", "-S", "-c", _HOLD_NAMESPACE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}) as child:
        assert child.stdout is not None
        try:
            if child.stdout.read(1) != b"+":
                raise SandboxUnavailable("user namespaces are refused", hint=USERNS_HINT)
            for kind, (inside, outside) in {"uid": (owner[0], shown[0]), "gid": (owner[1], shown[1])}.items():
                Path(f"/proc/{child.pid}/{kind}_map").write_text(id_map(inside, outside), encoding="ascii")
            return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SandboxUnavailable(f"user ids cannot be mapped: {error.strerror}", hint=UNMAPPABLE_HINT) from None


def mount_mapped(fd: int, target: str, users: int) -> None:
    """Mounts an opened file or folder at `target` with mapped owners.

    Args:
        fd: opened in this thread's mount namespace.
        target: an existing file or folder.
        users: from `mapping`.

    Raises:
        SandboxUnavailable: the file system has no id-mapped mounts.
    """
    flags = AT_EMPTY_PATH | AT_RECURSIVE
    tree = _tree(fd)
    try:
        attributes = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, users)
        call(SYS_MOUNT_SETATTR, "mount_setattr", tree, _EMPTY, flags, ctypes.c_char_p(attributes), len(attributes))
        _move(tree, target)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EPERM, errno.ENOSYS):
            raise SandboxUnavailable(
                f"the workspace's owner cannot be mapped to another user id: {error}", hint=UNMAPPABLE_HINT
            ) from None
        raise
    finally:
        os.close(tree)


def mount_plain(fd: int, target: str) -> None:
    """As `mount_mapped`, with the owners that the files have."""
    tree = _tree(fd)
    try:
        _move(tree, target)
    finally:
        os.close(tree)


def _tree(fd: int) -> int:
    flags = AT_EMPTY_PATH | AT_RECURSIVE | OPEN_TREE_CLONE | O_CLOEXEC
    return call(SYS_OPEN_TREE, "open_tree", fd, _EMPTY, flags)


def _move(tree: int, target: str) -> None:
    call(SYS_MOVE_MOUNT, "move_mount", tree, _EMPTY, _NO_FD, ctypes.c_char_p(os.fsencode(target)), F_EMPTY_PATH)
