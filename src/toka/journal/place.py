"""Where a journal may lie: a directory of ours, where locks and shared memory hold for all processes that use it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from toka.errors import JournalUnavailable

NETWORK: Final = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x517B: "SMB",
    0x01021997: "9p",
    0x5346414F: "AFS",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
}
"""File systems of other machines, by the number that statfs(2) gives. What lies behind FUSE, nobody can tell."""
_ELSEWHERE: Final = "choose a directory on a disk of this machine: --state DIR or TOKA_STATE"


def file_system(path: Path) -> int:
    """The number of the file system that holds `path`, as statfs(2) gives it; 0 where that cannot be told."""
    try:
        statfs = ctypes.CDLL(None, use_errno=True).statfs
    except (AttributeError, OSError):
        return 0
    found = (ctypes.c_long * 64)()  # f_type is the first word of the structure on every Linux
    return found[0] & 0xFFFFFFFF if statfs(os.fsencode(path), found) == 0 else 0


def refuse_network(state: Path) -> None:
    """Refuses a state directory, there or yet to be made, on a file system of another machine.

    Raises:
        JournalUnavailable: processes there could destroy the journal: locks and the shared memory of its write-ahead
            log are not kept between machines.
    """
    place = next(path for path in (state.absolute(), *state.absolute().parents) if path.exists())
    name = NETWORK.get(file_system(place))
    if name is not None:
        raise JournalUnavailable(
            f"the state directory {state} lies on {name}, a file system of another machine: a journal there can be "
            "destroyed, because locks and shared memory do not reach from one machine to the other",
            hint=_ELSEWHERE,
        )


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
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            _sync(state)
    # A file that is there is never opened here: closing it would take SQLite's locks from the whole process.
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(state, os.W_OK | os.X_OK):
        code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), str(path))
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
