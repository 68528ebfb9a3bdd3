"""Where a journal lies: on a disk of this machine, or on one that other machines write to as well."""

from __future__ import annotations

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


def network_filesystem(state: Path) -> str:
    """The kind of network file system that a directory is on, such as `nfs4`; empty when it is on none.

    SQLite's log needs memory that all writers share, which a network file system does not give: sqlite.org/wal.html.
    Nothing of the directory itself is looked at, since a server that is gone lets who looks wait.

    Args:
        state: absolute, without links; it need not exist.
    """
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        target = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        if state.is_relative_to(target) and len(target) >= len(best):  # of two at one place the later covers the first
            best, kind = target, fields[fields.index("-") + 1]
    return kind if kind in NETWORK else ""
