"""How a checkpoint lies in the store. Standard library only: it runs inside the sandbox.

A checkpoint is a commit; its tree has three entries:

    files   the workspace as git would show it: contents, links, whether a file may be executed, empty folders
    meta    the same folders, each with a blob `m` and, as `d<name>`, the folders in it
    about   a JSON object: the scope, and what in it was not recorded

The blob `m` holds records that end with NUL: `mode mtime` of the folder, then `mode mtime name` of each file and link
in it, in octal and nanoseconds. A folder that is only on the way to the scope has `-` as its first record. A change in
one folder writes the objects of that folder and of those around it, and no others.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    Mark = tuple[int, int]
    """A mode (permission bits) and a time of change in nanoseconds."""
    Below: TypeAlias = "dict[str, Below] | None"
    """What of a folder is meant: all of it (None), or some of its entries."""
    Read = Callable[[str, str], bytes]
    """The contents of an object, by its name and kind."""

FILE, PROGRAM, LINK, FOLDER = b"100644", b"100755", b"120000", b"40000"


def tree_of(entries: Iterable[tuple[bytes, bytes, bytes]]) -> bytes:
    """A tree object of (mode, name, object)."""
    ordered = sorted(entries, key=lambda e: e[1] + b"/" if e[0] == FOLDER else e[1])
    return b"".join([mode + b" " + name + b"\0" + oid for mode, name, oid in ordered])


def entries_of(tree: bytes) -> list[tuple[bytes, bytes, str]]:
    """(mode, name, object) of each entry of a tree object."""
    found: list[tuple[bytes, bytes, str]] = []
    at = 0
    while at < len(tree):
        space, end = tree.index(b" ", at), tree.index(b"\0", at)
        found.append((tree[at:space], tree[space + 1 : end], tree[end + 1 : end + 21].hex()))
        at = end + 21
    return found


def meta_of(own: Mark | None, marks: Iterable[tuple[bytes, Mark]]) -> bytes:
    """The blob `m` of a folder."""
    first = b"-\0" if own is None else b"%o %d\0" % own
    return first + b"".join([b"%o %d %s\0" % (mode, mtime, name) for name, (mode, mtime) in sorted(marks)])


def marks_of(data: bytes) -> tuple[Mark | None, dict[bytes, Mark]]:
    """The inverse of `meta_of`."""
    first, *rest = data[:-1].split(b"\0")
    own = None if first == b"-" else _mark(*first.split(b" "))
    marks: dict[bytes, Mark] = {}
    for record in rest:
        mode, mtime, name = record.split(b" ", 2)
        marks[name] = _mark(mode, mtime)
    return own, marks


def _mark(mode: bytes, mtime: bytes) -> Mark:
    return int(mode, 8), int(mtime)


class Leaf:
    """A recorded file or link."""

    __slots__ = ("kind", "mode", "mtime", "oid")

    def __init__(self, kind: bytes, mode: int, mtime: int, oid: str) -> None:
        self.kind = kind
        self.mode = mode
        self.mtime = mtime
        self.oid = oid


class Branch:
    """A recorded folder; `mark` is None where it is only on the way to the scope."""

    __slots__ = ("entries", "mark")

    def __init__(self, mark: Mark | None, entries: dict[str, Leaf | Branch]) -> None:
        self.mark = mark
        self.entries = entries


def load(read: Read, files: str, meta: str, only: Below = None) -> Branch:
    """A recorded folder with all below it, or with some of it: those around are only on the way then."""
    parts = {name: oid for _, name, oid in entries_of(read(meta, "tree"))}
    own, marks = marks_of(read(parts[b"m"], "blob"))
    entries: dict[str, Leaf | Branch] = {}
    for kind, raw, oid in entries_of(read(files, "tree")):
        name = os.fsdecode(raw)
        if only is not None and (name not in only or (only[name] is not None and kind != FOLDER)):
            continue
        if kind == FOLDER:
            entries[name] = load(read, oid, parts[b"d" + raw], None if only is None else only[name])
        else:
            entries[name] = Leaf(kind, *marks[raw], oid)
    return Branch(own if only is None else None, entries)


def below(paths: Iterable[str]) -> Below:
    """Paths relative to the workspace as what is meant of it; `.` is everything."""
    top: dict[str, Below] = {}
    for path in sorted(paths):
        if path == ".":
            return None
        at, *rest = path.split("/")
        here = top
        for name in rest:
            inner = here.setdefault(at, {})
            if inner is None:  # a folder around it is meant already
                break
            here, at = inner, name
        else:
            here[at] = None
    return top


def within(path: str, scope: Iterable[str]) -> bool:
    """Whether a path is one of these or lies below one."""
    return any(p in (".", path) or path.startswith(p + "/") for p in scope)
