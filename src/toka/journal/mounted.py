"""Which file system a journal lies on by the table of mounts, which also names what `place` cannot tell: FUSE ones."""

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
