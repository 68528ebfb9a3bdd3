"""Where a journal lies: on a disk of this machine, or on one that other machines write to as well; and making it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

NETWORK: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "coda", "glusterfs", "lustre", "ncpfs", "gpfs",
        "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.glusterfs", "fuse.ceph", "fuse.gcsfuse", "fuse.davfs",
    }
)  # fmt: skip
"""File systems whose locks and shared memory do not hold between machines, or not at all."""
_MOUNTS: Final = Path("/proc/self/mountinfo")
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


def network_filesystem(state: Path) -> str:
    """The kind of network file system that a directory is on, such as `nfs4`; empty when it is on none.

    SQLite's log needs memory that all writers share, which a network file system does not give: sqlite.org/wal.html.

    Args:
        state: the directory; it need not exist.
    """
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    place = Path(os.path.realpath(state))
    for line in lines:
        fields = line.split(b" ")
        target = os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), fields[4]))
        if place.is_relative_to(target) and len(target) >= len(best):  # of two at one place the later covers the first
            best, kind = target, os.fsdecode(fields[fields.index(b"-") + 1])
    return kind if kind in NETWORK else ""


def make(state: Path, file: str) -> Path:
    """Makes the state directory (0700) and an empty file in it (0600) when they are missing; returns the file.

    What was made is there after a power loss, too.

    Raises:
        OSError: they cannot be made or written.
    """
    path = state / file
    missing = [place for place in (state, *state.parents) if not place.exists()]
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    for place in missing:
        _sync(place.parent)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        _sync(state)
    os.close(os.open(path, os.O_RDWR))  # says why, where access(2) only says no
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(state, os.W_OK | os.X_OK):
        raise PermissionError(13, "Permission denied", str(path))
    return path


def _sync(directory: Path) -> None:
    """Makes the names in a directory durable; does nothing where the system cannot."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # it may be entered and not be read: whoever made it has synced it
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
