"""What a call inside a sandbox is about, seen from outside while it waits: its paths, as the inside finds them.

Whatever is found out here only explains: the kernel decides by what it finds itself. So a process that changes its
memory meanwhile deceives nobody but the reader of the explanation. Paths are looked up in the sandbox's own mounts, by
descriptors that can neither read nor write (O_PATH), and no link leads out of its root.
"""

# ruff: noqa: PTH115, PTH118, PTH120 - paths stay text

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Final

from toka.sandbox.watched import NOTICE, WATCHED, Action

LONGEST_PATH: Final = 4096
ADDRESS: Final = 128
"""Bytes of a socket's address that are read."""
ARGUMENTS: Final = 4096
"""Bytes of a command line that are read."""
_OPENAT2: Final = 437
_NO_XDEV, _NO_MAGIC, _IN_ROOT = 1, 2, 16
_FDCWD: Final = -100
_NOFOLLOW: Final = 0x100
_SEE: Final = os.O_PATH | os.O_CLOEXEC
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Found:
    """One path of a call.

    Attributes:
        path: as it was asked for, absolute.
        real: where it leads inside, through links; empty when not even its folder is there.
        exists: whether it is there.
        flags: of the mount on which it would be changed, as statvfs has them.
        mode: st_mode; 0 when it is not there.
        mounted: whether it is a mount of its own, which can be neither renamed nor removed.
    """

    path: str
    real: str = ""
    exists: bool = False
    flags: int = 0
    mode: int = 0
    mounted: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One call.

    Attributes:
        name: of the call.
        error: with which it was refused; 0 = the kernel goes on with it.
        args: as the kernel saw them.
        found: its paths.
        address: of the socket that is connected or bound.
        argv: the command line of the process, where something that it asks for is missing.
    """

    name: str
    error: int
    args: tuple[int, ...]
    found: tuple[Found, ...] = ()
    address: bytes = b""
    argv: tuple[str, ...] = ()

    @property
    def action(self) -> Action | None:
        """What it does; None for a call that was refused."""
        return None if self.error else WATCHED[self.name].action

    @property
    def opens(self) -> int:
        """The flags with which a file is opened; those of looking at it for other calls."""
        if self.name == "creat":
            return os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        return self.args[{"open": 1, "openat": 2}[self.name]] & 0xFFFFFFFF if self.action == "open" else os.O_PATH

    @property
    def follows(self) -> bool:
        """Whether a link at the end of its path is followed."""
        if self.action == "open":
            return not self.opens & os.O_NOFOLLOW
        at = WATCHED[self.name].empty
        link_itself = self.name in ("lstat", "lchown") or (at >= 0 and self.args[at] & _NOFOLLOW)
        return self.action not in ("make", "remove", "move") and not link_itself

    @property
    def telling(self) -> bool:
        """Whether it may have been refused by a layer of ours; one that only reads what is there was not."""
        if self.error or self.address:
            return True
        return any(not f.exists or not self.reads or f.real.startswith("/toka/") for f in self.found)

    @property
    def reads(self) -> bool:
        """Whether it only looks at what is there."""
        return self.action == "look" or (self.action == "open" and not writes(self.opens))


def writes(flags: int) -> bool:
    """Whether opening with these flags is to change a file."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & (os.O_TRUNC | os.O_CREAT))


class Window:
    """A look into one sandbox, whose processes share one root.

    Attributes:
        blind: whether the machine does not let us read the memory of its processes.
    """

    def __init__(self) -> None:
        self._root = -1
        self.blind = False

    def close(self) -> None:
        """Lets go of the root."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def see(self, notice: bytearray, name: str, error: int) -> Seen:
        """What a call is about, as far as that can be seen.

        Args:
            notice: what the kernel said, `struct seccomp_notif`.
            name: of the call.
            error: with which it will be refused; 0 = the kernel will go on with it.

        Raises:
            OSError, ValueError, OverflowError: its process went away, or hides its memory from us.
        """
        _, pid, _, _, _, _, *args = NOTICE.unpack(notice)
        seen = Seen(name, error, tuple(args))
        if error:
            return seen
        call = WATCHED[name]
        if call.action in ("connect", "bind"):
            return Seen(name, 0, seen.args, address=self._memory(pid, args[1], min(args[2] & 0xFFFFFFFF, ADDRESS)))
        if self._root < 0:
            self._root = os.open(f"/proc/{pid}/root", _SEE)
        found: list[Found] = []
        for folder, at in call.places:
            path = self._text(pid, args[at]) if args[at] else ""
            if path:
                found.append(self._find(_absolute(pid, args[folder] if folder >= 0 else None, path), seen))
        missing = call.action in ("open", "look") and any(not f.exists for f in found)
        return Seen(name, 0, seen.args, tuple(found), argv=_argv(pid) if missing else ())

    def _memory(self, pid: int, address: int, size: int) -> bytes:
        try:
            return _memory_of(pid, address, size)
        except PermissionError:
            self.blind = True
            raise

    def _text(self, pid: int, address: int) -> str:
        """A path in the memory of a process; raises ValueError when it is longer than paths are."""
        text, end, _ = self._memory(pid, address, LONGEST_PATH).partition(b"\0")
        if not end:
            raise ValueError("no end")
        return os.fsdecode(text)

    def _find(self, path: str, seen: Seen) -> Found:
        """The path that a call acts on: what it leads to, or the entry itself in its folder."""
        if not seen.follows:
            return self._entry(path)
        try:
            with _opened(self._root, path, _IN_ROOT | _NO_MAGIC) as fd:
                if seen.reads and not path.startswith("/toka/"):
                    return Found(path, path, exists=True)
                flags, mode = os.fstatvfs(fd).f_flag, os.fstat(fd).st_mode
                return Found(os.path.normpath(path), os.readlink(f"/proc/self/fd/{fd}"), True, flags, mode)
        except FileNotFoundError:
            entry = self._entry(path)
        if entry.exists and stat.S_ISLNK(entry.mode):  # it leads nowhere: what counts is where
            to = self._target(entry.real)
            return Found(os.path.normpath(os.path.join(os.path.dirname(entry.real), to))) if to else entry
        return entry

    def _entry(self, path: str) -> Found:
        """A name in its folder, where links at the end are not followed."""
        parent, name = os.path.split(path.rstrip("/"))
        shown = os.path.normpath(path)
        if name in ("", ".", ".."):
            return Found(shown, shown, True)  # no folder is changed by it
        try:
            with _opened(self._root, parent or "/", _IN_ROOT | _NO_MAGIC) as folder:
                flags = os.fstatvfs(folder).f_flag
                real = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
                try:
                    with _opened(folder, name, _NO_XDEV | _NO_MAGIC, os.O_NOFOLLOW) as fd:
                        return Found(shown, real, True, flags, os.fstat(fd).st_mode)
                except FileNotFoundError:
                    return Found(shown, real, False, flags)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    return Found(shown, real, True, flags, mounted=True)
        except FileNotFoundError:
            return Found(shown)

    def _target(self, path: str) -> str:
        """Where a link leads, as it says."""
        with _opened(self._root, path, _IN_ROOT | _NO_MAGIC, os.O_NOFOLLOW) as fd:
            return os.readlink("", dir_fd=fd)


def _memory_of(pid: int, address: int, size: int) -> bytes:
    """Memory of a process, up to where nothing is mapped any more. Raises OSError.

    Not by /proc/PID/mem, which belongs to root for a process that is not dumpable, as each is before its first exec.
    """
    first = min(size, _PAGE - address % _PAGE)  # what lies on one page is had whole or not at all
    data = ctypes.create_string_buffer(size)
    ours = (ctypes.c_size_t * 2)(ctypes.addressof(data), size)
    theirs = (ctypes.c_size_t * 4)(address, first, address + first, size - first)
    got = _libc.process_vm_readv(
        ctypes.c_int(pid), ours, ctypes.c_ulong(1), theirs, ctypes.c_ulong(2), ctypes.c_ulong(0)
    )
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return data.raw[:got]


@contextlib.contextmanager
def _opened(folder: int, path: str, resolve: int, more: int = 0) -> Generator[int]:
    """A path as a descriptor that can only be looked at. Raises OSError."""
    how = struct.pack("=QQQ", _SEE | more, 0, resolve)
    fd = _libc.syscall(
        ctypes.c_long(_OPENAT2), ctypes.c_int(folder), ctypes.c_char_p(os.fsencode(path)), ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )  # fmt: skip
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    try:
        yield fd
    finally:
        os.close(fd)


def _absolute(pid: int, folder: int | None, path: str) -> str:
    """A path of a process as one from the root, not yet followed."""
    if path.startswith("/"):
        return path
    low = _FDCWD if folder is None else ctypes.c_int32(folder & 0xFFFFFFFF).value
    return f"{os.readlink(f'/proc/{pid}/cwd' if low == _FDCWD else f'/proc/{pid}/fd/{low}')}/{path}"


def _argv(pid: int) -> tuple[str, ...]:
    fd = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return tuple(os.fsdecode(word) for word in os.read(fd, ARGUMENTS).split(b"\0"))
    finally:
        os.close(fd)


def named(path: str, argv: Sequence[str]) -> bool:
    """Whether the arguments of a command line name a path, so that it is no habit of the program to look for it."""
    return any(path in word for word in argv[1:])
