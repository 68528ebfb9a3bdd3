"""Folders for tests: made from descriptions, changed at random, and compared to the last bit."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

Snapshot = dict[bytes, tuple[object, ...]]

NAMES = [
    b"a", b"b", b"README.md", b"-rf", b" ", b"new\nline", b'tab\tand"quote', b"\xff\xfe", "gr\u00fc\u00df".encode(),
    b"x" * 255,
    b".git", b".gitattributes", b".gitignore", b"HEAD", b"config", b"hooks", b"CON", b"...", b"d", b"m", b".toka-put-0",
]  # fmt: skip
CONTENTS = [
    b"", b"one\r\ntwo\r\n", b"one\ntwo\n", b"\0\1\2binary\xff", b"* filter=evil text eol=crlf ident\n", b"$Id$\n",
    b"[core]\n\thooksPath = /tmp\n\tfsmonitor = /bin/false\n", b"*\n", b"gitdir: /etc\n", b"long " * 40,
]  # fmt: skip
TARGETS = [b"a", b"../..", b"/etc/passwd", b"nowhere", b".", b"b", b"\xff", b"/" + b"t" * 200]
FILE_MODES = [0o644, 0o600, 0o755, 0o444, 0o400, 0o666, 0o711]
FOLDER_MODES = [0o755, 0o700, 0o555, 0o775, 0o1777]
TIMES = [0, 1, 1_000_000_000, 1_700_000_000_123_456_789, 4_000_000_000_000_000_001]


@dataclass(frozen=True)
class File:
    content: bytes
    mode: int
    mtime: int


@dataclass(frozen=True)
class Link:
    target: bytes
    mtime: int


@dataclass(frozen=True)
class Folder:
    entries: dict[bytes, File | Link | Folder]
    mode: int
    mtime: int


files = st.builds(File, st.sampled_from(CONTENTS), st.sampled_from(FILE_MODES), st.sampled_from(TIMES))
links = st.builds(Link, st.sampled_from(TARGETS), st.sampled_from(TIMES))


def folders(inner: st.SearchStrategy[File | Link | Folder], most: int = 5) -> st.SearchStrategy[Folder]:
    entries = st.dictionaries(st.sampled_from(NAMES), inner, max_size=most)
    return st.builds(Folder, entries, st.sampled_from(FOLDER_MODES), st.sampled_from(TIMES))


entries = st.recursive(files | links, folders, max_leaves=12)
workspaces = folders(entries, 8)
"""Any workspace."""


@dataclass(frozen=True)
class Act:
    """One change: what is done, to which path (as a number), and with what."""

    what: str
    where: int
    name: bytes
    new: File | Link | Folder


acts = st.lists(
    st.builds(
        Act,
        st.sampled_from(["remove", "add", "retype", "mode", "time", "write", "close"]),
        st.integers(0, 1000),
        st.sampled_from(NAMES),
        st.recursive(files | links, lambda inner: folders(inner, 3), max_leaves=4),
    ),
    max_size=8,
)
"""What somebody does to a workspace."""


def make(path: bytes, what: File | Link | Folder) -> None:
    """Makes it, with modes and times, from the inside out."""
    if isinstance(what, Link):
        os.symlink(what.target, path)
        os.utime(path, ns=(what.mtime, what.mtime), follow_symlinks=False)
        return
    if isinstance(what, File):
        with open(path, "xb") as file:
            file.write(what.content)
    else:
        os.makedirs(path, exist_ok=True)
        for name, inner in what.entries.items():
            make(path + b"/" + name, inner)
    os.chmod(path, what.mode)
    os.utime(path, ns=(what.mtime, what.mtime))


def remove(path: bytes) -> None:
    """Whatever its modes are."""
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
        return
    os.chmod(path, 0o700)
    for name in os.listdir(path):
        remove(path + b"/" + name)
    os.rmdir(path)


def paths(top: bytes) -> list[bytes]:
    """Everything below a folder, in an order that does not depend on the file system."""
    found: list[bytes] = []
    with open_for_us(top):
        for name in sorted(os.listdir(top)):
            path = top + b"/" + name
            found.append(path)
            if os.path.isdir(path) and not os.path.islink(path):
                found += paths(path)
    return found


class open_for_us:  # noqa: N801 - used like a function
    """A folder that the owner may use meanwhile; its mode and time are as before afterwards."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.status = os.lstat(self.path)
        os.chmod(self.path, stat.S_IMODE(self.status.st_mode) | 0o700)

    def __exit__(self, *_: object) -> None:
        os.chmod(self.path, stat.S_IMODE(self.status.st_mode))


def act(top: Path, changes: list[Act], *, closing: bool = True) -> None:
    """Does them all; one that cannot be done is left out."""
    root = os.fsencode(top)
    for change in changes:
        there = paths(root)
        path = there[change.where % len(there)] if there else root
        if path == root and change.what != "add":
            continue
        modes = []
        for folder in [root, *around(root, path)]:
            modes.append((folder, stat.S_IMODE(os.lstat(folder).st_mode)))
            os.chmod(folder, modes[-1][1] | 0o700)
        try:
            _act(root, path, change, closing=closing)
        finally:
            for folder, mode in reversed(modes):
                os.chmod(folder, mode)


def around(root: bytes, path: bytes) -> list[bytes]:
    """The folders between the two, outermost first."""
    inner = path[len(root) + 1 :].split(b"/")[:-1]
    return [root + b"/" + b"/".join(inner[: n + 1]) for n in range(len(inner))]


def _act(root: bytes, path: bytes, change: Act, *, closing: bool) -> None:
    link = os.path.islink(path)
    folder = os.path.isdir(path) and not link
    if change.what == "remove":
        remove(path)
    elif change.what == "retype":
        remove(path)
        make(path, change.new)
    elif change.what == "add":
        target = path if folder else root
        if os.path.lexists(target + b"/" + change.name):
            return
        with open_for_us(target):
            make(target + b"/" + change.name, change.new)
    elif change.what == "mode" and not link and not isinstance(change.new, Link):
        os.chmod(path, change.new.mode)
    elif change.what == "close" and not link and closing:
        os.chmod(path, 0)
    elif change.what == "time":
        os.utime(path, ns=(change.new.mtime, change.new.mtime), follow_symlinks=False)
    elif change.what == "write" and not folder and not link and isinstance(change.new, File):
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        os.chmod(path, 0o600)
        with open(path, "r+b") as file:
            file.write(change.new.content)
        os.chmod(path, mode)


def snapshot(top: Path) -> Snapshot:
    """Types, modes, times of change, contents and targets of all there is."""
    found: Snapshot = {}
    root = os.fsencode(top)

    def look(path: bytes) -> None:
        status = os.lstat(path)
        kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
        inside: object = None
        if stat.S_ISLNK(kind):
            inside, mode = os.readlink(path), 0
        elif stat.S_ISREG(kind):
            inside = Path(os.fsdecode(path)).read_bytes() if mode & 0o400 or os.geteuid() == 0 else "closed"
        elif stat.S_ISDIR(kind):
            with open_for_us(path):
                for name in sorted(os.listdir(path)):
                    look(path + b"/" + name)
        found[path[len(root) :]] = (kind, mode, status.st_mtime_ns, inside)

    look(root)
    return found


def clear(top: Path) -> None:
    """Empties a folder."""
    os.chmod(top, 0o700)
    for name in os.listdir(os.fsencode(top)):
        remove(os.fsencode(top) + b"/" + name)
