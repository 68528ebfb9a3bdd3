"""Writing git's objects: many into one pack, with its index. Standard library only: it runs inside the sandbox.

One pack for each checkpoint costs two files to make durable, however many objects it has; git reads it like any other.
Source of the formats: git's Documentation/gitformat-pack.txt.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
import struct
import zlib

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

COMMIT, TREE, BLOB = 1, 2, 3
NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob"}
FOLDER = "objects/pack"
BLOCK = 1 << 20
FAR = 0x80000000
"""Offsets from here on have a table of their own in an index."""
TEMPORARY = "tmp_toka_"


class Full(Exception):
    """The pack would exceed what it may have."""


class Unsteady(Exception):
    """A file did not have the contents that it was said to have: somebody writes it now."""


def object_id(kind: int, data: bytes) -> bytes:
    """The name of an object, 20 bytes."""
    return hashlib.sha1(NAMES[kind] + b" %d\0" % len(data) + data).digest()


def _head(kind: int, size: int) -> bytes:
    """What stands before an object in a pack: its kind and its size in groups of seven bits."""
    out = bytearray()
    byte, size = kind << 4 | size & 15, size >> 4
    while size:
        out.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    out.append(byte)
    return bytes(out)


class Pack:
    """Objects on their way into the store; nothing of them is to be found there before `seal`.

    Args:
        room: bytes that the pack may have.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._path = f"{FOLDER}/{TEMPORARY}{os.urandom(8).hex()}"
        self._file: BinaryIO | None = None
        self._at = 0
        self.entries: dict[bytes, tuple[int, int]] = {}
        """Name -> checksum and place of each object."""

    def _write(self, data: bytes) -> None:
        if self._file is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(fd, "w+b", BLOCK)
            self._file.write(b"PACK" + struct.pack(">II", 2, 0))
            self._at = 12
        self._at += len(data)
        if self._at > self._room:
            raise Full
        self._file.write(data)

    def add(self, name: bytes, kind: int, data: bytes) -> None:
        """Adds an object by its name, which must be right."""
        whole = _head(kind, len(data)) + zlib.compress(data, 1)
        begin = self._at or 12
        self._write(whole)
        self.entries[name] = (zlib.crc32(whole), begin)

    def add_file(self, name: bytes, fd: int, size: int) -> None:
        """Adds a file's contents as a blob, from where the descriptor stands.

        Raises:
            Unsteady: they are not what the name says.
        """
        sha, packer = hashlib.sha1(b"blob %d\0" % size), zlib.compressobj(1)
        begin, part = self._at or 12, _head(BLOB, size)
        check = zlib.crc32(part)
        self._write(part)
        for block in blocks(fd, size):
            sha.update(block)
            part = packer.compress(block)
            check = zlib.crc32(part, check)
            self._write(part)
        part = packer.flush()
        self._write(part)
        if sha.digest() != name:
            raise Unsteady
        self.entries[name] = (zlib.crc32(part, check), begin)

    def mark(self) -> int:
        """Where the pack ends now; see `back_to`."""
        return self._at

    def back_to(self, mark: int) -> None:
        """Takes back what was begun after a mark and not added."""
        if self._file is not None:
            self._at = max(mark, 12)
            self._file.seek(self._at)
            self._file.truncate()

    def seal(self) -> None:
        """Puts the pack into the store, on disk when it returns. An empty one leaves nothing."""
        file = self._file
        if file is None:
            return
        file.seek(8)
        file.write(struct.pack(">I", len(self.entries)))
        file.seek(0)
        sha = hashlib.sha1()
        while block := file.read(BLOCK):
            sha.update(block)
        file.write(sha.digest())
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        final = f"{FOLDER}/pack-{sha.hexdigest()}"
        with open(self._path + ".idx", "xb") as index:
            index.write(_index(self.entries, sha.digest()))
            index.flush()
            os.fchmod(index.fileno(), 0o444)
            os.fsync(index.fileno())
        os.rename(self._path, final + ".pack")
        os.rename(self._path + ".idx", final + ".idx")
        sync_folder(FOLDER)
        self._file = None
        file.close()

    def abandon(self) -> None:
        """Leaves nothing of it."""
        file, self._file = self._file, None
        if file is None:
            return
        for path in (self._path, self._path + ".idx"):
            if os.path.exists(path):
                os.unlink(path)
        try:
            file.close()
        except OSError:  # what is still in its buffer has no place
            pass


def _index(entries: dict[bytes, tuple[int, int]], pack: bytes) -> bytes:
    """The index of a pack, version 2."""
    names = sorted(entries)
    counts = [0] * 256
    for name in names:
        counts[name[0]] += 1
    total = 0
    fan: list[int] = []
    for count in counts:
        total += count
        fan.append(total)
    near: list[int] = []
    far: list[int] = []
    for name in names:
        place = entries[name][1]
        if place >= FAR:
            far.append(place)
            place = FAR | (len(far) - 1)
        near.append(place)
    data = b"\xfftOc" + struct.pack(">I256I", 2, *fan) + b"".join(names)
    data += struct.pack(f">{len(names)}I", *(entries[name][0] for name in names))
    data += struct.pack(f">{len(near)}I{len(far)}Q", *near, *far) + pack
    return data + hashlib.sha1(data).digest()


def names_in(path: str) -> Iterator[bytes]:
    """The names of all objects that an index lists; none when it is not one of version 2."""
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:  # empty
            return
        with data:
            if len(data) < 1032 or data[:8] != b"\xfftOc\0\0\0\2":
                return
            (count,) = struct.unpack_from(">I", data, 1028)
            names = data[1032 : 1032 + 20 * count]
        yield from (names[at : at + 20] for at in range(0, 20 * count, 20))


def blocks(fd: int, size: int) -> Iterator[bytes]:
    """`size` bytes of a file.

    Raises:
        Unsteady: it has fewer.
    """
    while size:
        block = os.read(fd, min(size, BLOCK))
        if not block:
            raise Unsteady
        size -= len(block)
        yield block


def name_of_file(fd: int, size: int) -> bytes:
    """The name that a file's contents have as a blob, read from the beginning."""
    sha = hashlib.sha1(b"blob %d\0" % size)
    os.lseek(fd, 0, os.SEEK_SET)
    for block in blocks(fd, size):
        sha.update(block)
    os.lseek(fd, 0, os.SEEK_SET)
    return sha.digest()


def used(folder: str = ".") -> int:
    """Bytes of all files below a folder of the store, as they are long."""
    total = 0
    for entry in os.scandir(folder):
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:  # gone since it was listed
            continue
        total += used(entry.path) if stat.S_ISDIR(status.st_mode) else status.st_size
    return total


def sync_folder(path: str) -> None:
    """Makes durable which names a folder has."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
