"""Recording a workspace: one walk that looks at every name, and reads only what has changed since the last one.

A file counts as unchanged when its mode, size, times of change (contents and inode) and inode are what they were. A
file whose inode changed less than a tick of the file system's clock before it was read may change again without a
trace; it is read again next time (git calls such entries racy).

No name is ever followed: folders are opened one in the other by descriptor, files without following links, and what is
neither file, folder nor link is not opened. Standard library only: it runs inside the sandbox.
"""

from __future__ import annotations

import os
import stat
import time
from operator import attrgetter

from toka.workspace.packs import BLOB, TREE, Unsteady, name_of_file
from toka.workspace.trees import FILE, FOLDER, LINK, PROGRAM, meta_of, tree_of

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from toka.workspace.store import Store
    from toka.workspace.trees import Below, Mark

    Signature = tuple[int, int, int, int, int]
    """Mode, size, time of change, of the inode's change, inode."""
    Seen = tuple[Signature, bytes]
    """A file or link as it was last seen, and the object that holds its contents."""
    Entry: TypeAlias = "Seen | Folder"
    Ask = Callable[[str, list[str]], set[str]]
    """Which names in a folder are ignored."""

signature: Callable[[os.stat_result], Signature] = attrgetter(
    "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"
)
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
PLACEHOLDER = "user.toka.placeholder"
"""The attribute of what sandboxes put where something protected is missing (see `sandbox/protect.py`)."""
TICK_NS = 20_000_000
"""No file system in use that has nanoseconds lets more pass between two values of its clock."""
COARSE_NS = 2_000_000_000
"""The same for those that have whole seconds only."""
DEEPEST = 400
LARGE = 4 << 20
"""Files from here on are read twice instead of being held in memory."""
TRIES = 4
OTHERS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
UNREADABLE = "may not be read"
NEVER_STILL: Any = (0, 0, 0, 0, 0)


class Folder:
    """A folder as it was last seen, and the objects that record it; `mark` is None for one on the way to the scope."""

    __slots__ = ("entries", "files", "mark", "meta")

    def __init__(self, mark: Mark | None, entries: dict[str, Entry]) -> None:
        self.mark = mark
        self.entries = entries
        self.files = b""
        self.meta = b""


class Vanished(Exception):
    """What was listed is not there any more, or not what it was."""


class Placeholder(Exception):
    """It is only there to be protected, and goes with the sandbox."""


class Walk:
    """One walk.

    Args:
        store: takes the contents, within `writing`.
        contents: objects by signature, of other walks.
        excluded: paths that do not exist as far as checkpoints are concerned.
        ignored: says which names in a folder are to be left out; None = none.
    """

    def __init__(
        self, store: Store, contents: dict[Signature, bytes], excluded: frozenset[str], ignored: Ask | None
    ) -> None:
        self._store = store
        self._contents = contents
        self._excluded = excluded
        self._ignored = ignored
        self._began = time.time_ns()
        self._anew = True
        self.uncovered: dict[str, str] = {}
        """Path -> why it was not recorded."""
        self.left_out: list[str] = []
        """Ignored paths."""
        self.omitted: list[str] = []
        """Excluded paths that are there."""
        self.placeholders: list[str] = []
        """What a sandbox put where something protected is missing."""
        self.files = 0
        self.changed = 0
        self.fresh: dict[Signature, bytes] = {}
        """What was read, for later walks."""

    def whole(self, fd: int, old: Folder | None, only: Below) -> Folder:
        """Records an opened workspace, or some of it."""
        self._anew = old is None
        folder = self._folder(fd, old, "", only, 0)
        return folder if folder is not None else self._record(None, {})

    def _folder(self, fd: int, old: Folder | None, path: str, only: Below, depth: int) -> Folder | None:
        """One folder with all below it: `old` itself when nothing is different; None for a placeholder."""
        status = os.fstat(fd)
        mark = None if only is not None else (stat.S_IMODE(status.st_mode), status.st_mtime_ns)
        was: dict[str, Entry] = {} if old is None else old.entries
        same = old is not None and old.mark == mark
        entries: dict[str, Entry] = {}
        for name, sign in self._listed(fd, path, only):
            before = was.get(name)
            if before.__class__ is tuple and before[0] == sign:  # type: ignore[index]
                entries[name] = before  # type: ignore[assignment]
                self.files += 1
                continue
            now = self._entry(fd, name, sign, before, path + name, (None if only is None else only[name], depth))
            if now is None:
                continue
            entries[name] = now
            if isinstance(now, tuple):
                self.files += 1
                alike = isinstance(before, tuple) and _record_of(before) == _record_of(now)
                self.changed += not alike and not (self._anew and now[0] in self._contents)
                same = same and alike
            else:
                same = same and now is before
        self.changed += sum(isinstance(was[name], tuple) for name in was.keys() - entries.keys())
        if not entries and path and _is_placeholder(fd):
            self.placeholders.append(path[:-1])
            return None
        if same and old is not None and len(entries) == len(was):
            old.entries = entries  # of the same contents, perhaps with later signatures
            return old
        return self._record(mark, entries)

    def _listed(self, fd: int, path: str, only: Below) -> list[tuple[str, Signature]]:
        """The names in a folder, each with its signature."""
        if only is None:
            try:
                with os.scandir(fd) as found:
                    items = [(e.name, signature(e.stat(follow_symlinks=False))) for e in found]
            except OSError:  # now that the iterator is closed, the descriptor stands at the beginning again
                items = self._each(fd, path, os.listdir(fd))
        else:
            items = self._each(fd, path, sorted(only))
        if self._excluded:
            self.omitted += [path + name for name, _ in items if path + name in self._excluded]
            items = [item for item in items if path + item[0] not in self._excluded]
        if self._ignored is not None and items:
            out = self._ignored(path, [name for name, _ in items])
            self.left_out += [path + name for name in out]
            items = [item for item in items if item[0] not in out]
        return items

    def _each(self, fd: int, path: str, names: list[str]) -> list[tuple[str, Signature]]:
        found: list[tuple[str, Signature]] = []
        for name in names:
            try:
                found.append((name, signature(os.stat(name, dir_fd=fd, follow_symlinks=False))))
            except PermissionError:
                self.uncovered[path + name] = UNREADABLE
            except OSError:  # gone, or never there
                pass
        return found

    def _entry(
        self, fd: int, name: str, sign: Signature, before: Entry | None, path: str, below: tuple[Below, int]
    ) -> Entry | None:
        """A file, link or folder as it is now; None for what is not recorded."""
        only, _ = below
        for _ in range(TRIES):
            kind = stat.S_IFMT(sign[0])
            try:
                if kind == stat.S_IFDIR:
                    old = before if isinstance(before, Folder) else None
                    return self._deeper(fd, name, old, path + "/", below)
                if only is not None:
                    self.uncovered[path] = "is no folder, so nothing below it can be recorded"
                    return None
                if kind in (stat.S_IFREG, stat.S_IFLNK):
                    return self._leaf(fd, name, sign)
                self.uncovered[path] = f"is {OTHERS.get(kind, 'no file')}"
                return None
            except Placeholder:
                self.placeholders.append(path)
                return None
            except PermissionError:
                self.uncovered[path] = UNREADABLE
                return None
            except (Vanished, Unsteady, FileNotFoundError, NotADirectoryError):
                try:
                    sign = signature(os.stat(name, dir_fd=fd, follow_symlinks=False))
                except OSError:
                    return None
        self.uncovered[path] = "changes while it is read"
        return None

    def _deeper(self, fd: int, name: str, old: Folder | None, path: str, below: tuple[Below, int]) -> Folder | None:
        only, depth = below
        if depth >= DEEPEST:
            self.uncovered[path[:-1]] = f"lies more than {DEEPEST} folders deep"
            return None
        try:
            inner = os.open(name, FOLDER_FLAGS, dir_fd=fd)
        except OSError as error:
            if isinstance(error, (PermissionError, FileNotFoundError, NotADirectoryError)):
                raise
            raise Vanished from None
        try:
            return self._folder(inner, old, path, only, depth + 1)
        finally:
            os.close(inner)

    def _leaf(self, fd: int, name: str, sign: Signature) -> Seen:
        """A file or link."""
        if (known := self._contents.get(sign)) is not None:
            return sign, known
        if stat.S_ISLNK(sign[0]):
            try:
                target = os.fsencode(os.readlink(name, dir_fd=fd))
            except OSError:
                raise Vanished from None
            return self._settled(sign, self._store.add(BLOB, target))
        try:
            file = os.open(name, FILE_FLAGS, dir_fd=fd)
        except PermissionError:
            raise
        except OSError:  # a link, a folder, or nothing by now
            raise Vanished from None
        try:
            sign = signature(os.fstat(file))
            if not stat.S_ISREG(sign[0]):
                raise Vanished
            if sign[1] <= 1 and _is_placeholder(file):
                raise Placeholder
            oid = self._contents_of(file, sign[1])
            if signature(os.fstat(file)) != sign:
                raise Unsteady
        finally:
            os.close(file)
        return self._settled(sign, oid)

    def _contents_of(self, file: int, size: int) -> bytes:
        if size < LARGE:
            data = b""
            while len(data) <= size and (block := os.read(file, size + 1 - len(data))):
                data += block
            if len(data) != size:
                raise Unsteady
            return self._store.add(BLOB, data)
        pack = self._store.pack
        assert pack is not None
        oid = name_of_file(file, size)
        if oid not in self._store.known and oid not in pack.entries:
            mark = pack.mark()
            try:
                pack.add_file(oid, file, size)
            except Unsteady:
                pack.back_to(mark)
                raise
        return oid

    def _settled(self, sign: Signature, oid: bytes) -> Seen:
        """What is remembered of a file that was read: that it must be read again, if it could change unseen."""
        tick = TICK_NS if sign[3] % 1_000_000_000 else COARSE_NS
        if sign[3] < self._began - tick:
            self.fresh[sign] = oid
            return sign, oid
        return (sign[0], sign[1], sign[2], -1, sign[4]), oid

    def _record(self, mark: Mark | None, entries: dict[str, Entry]) -> Folder:
        """Writes the objects of one folder."""
        folder = Folder(mark, entries)
        files: list[tuple[bytes, bytes, bytes]] = []
        meta: list[tuple[bytes, bytes, bytes]] = []
        marks: list[tuple[bytes, Mark]] = []
        for name, entry in entries.items():
            raw = os.fsencode(name)
            if isinstance(entry, Folder):
                files.append((FOLDER, raw, entry.files))
                meta.append((FOLDER, b"d" + raw, entry.meta))
            else:
                sign, oid = entry
                mode = sign[0]
                files.append((LINK if stat.S_ISLNK(mode) else PROGRAM if mode & 0o100 else FILE, raw, oid))
                marks.append((raw, (stat.S_IMODE(mode), sign[2])))
        meta.append((FILE, b"m", self._store.add(BLOB, meta_of(mark, marks))))
        folder.files = self._store.add(TREE, tree_of(files))
        folder.meta = self._store.add(TREE, tree_of(meta))
        return folder


def _record_of(seen: Seen) -> tuple[int, int, bytes]:
    """What a checkpoint keeps of a file."""
    sign, oid = seen
    return sign[0], sign[2], oid


def _is_placeholder(fd: int) -> bool:
    try:
        return os.getxattr(fd, PLACEHOLDER) == b"1"
    except OSError:
        return False
