"""What a disk holds at each moment of a traced run, if the power went then.

`strace` tells every write, in the order in which they were made: to the journal's files, and to the ledgers and the
standard output that show what was done and what was told. A write that was synced is on the disk. One that was not may
be there, or not, or in part, and another that was made later may be there without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

TRACED = "write,pwrite64,ftruncate,fdatasync,fsync"
STRACE = ("strace", "-f", "-y", "-xx", "-s", "1048576", "--seccomp-bpf", "-e", f"trace={TRACED}", "-e", "signal=none")
DATABASE, LOG = "journal.db", "journal.db-wal"
_CALL = re.compile(rb'^(\d+) +(\w+)\(\d+<([^>]*)>(?:, "([^"]*)")?(?:\.\.\.)?([^"]*)$')
_RESUMED = re.compile(rb"^(\d+) +<\.\.\. \w+ resumed>.*= (-?\d+)")
_ENDED = re.compile(rb"\) += (-?\d+)")
_NUMBERS = re.compile(rb", (\d+)")


@dataclass(frozen=True)
class Write:
    """To a file of the journal; with `data` None the file is cut, or filled with zeros, to `offset` bytes."""

    file: str
    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.offset :]
            content.extend(bytes(self.offset - len(content)))
            return
        content.extend(bytes(max(0, self.offset - len(content))))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass(frozen=True)
class Sync:
    """A file of the journal is on the disk."""

    file: str


@dataclass(frozen=True)
class Act:
    """Something begins outside the journal that bears the key of a step: a model is asked, a command works."""

    key: str


@dataclass(frozen=True)
class Told:
    """Somebody is told of a record."""

    id: int


Happened = Write | Sync | Act | Told


@dataclass(frozen=True)
class _Call:
    name: str
    file: str
    data: bytes
    numbers: list[int]

    def ended(self) -> Happened | None:
        """What has happened when the call came back."""
        if self.file not in (DATABASE, LOG):
            return None
        match self.name:
            case "pwrite64":
                return Write(self.file, self.numbers[-1], self.data)
            case "ftruncate":
                return Write(self.file, self.numbers[0], None)
            case "fdatasync" | "fsync":
                return Sync(self.file)
            case _:
                raise AssertionError(f"{self.name} on {self.file}")

    def began(self, told: bytearray) -> Iterator[Happened]:
        """What others see from the moment on which the call is made. `told`: the last line, as far as it is printed."""
        if self.name != "write":
            return
        if self.file in ("ledger", "model"):
            for line in self.data.decode().splitlines():
                yield Act(line.split()[0])
        if self.file == "said":
            told += self.data
            *lines, rest = bytes(told).split(b"\n")
            told[:] = rest
            for line in lines:
                if (id_ := json.loads(line).get("id")) is not None:
                    yield Told(id_)


def read(trace: Path) -> Iterator[Happened]:
    """All that happened, in order. A sync counts when it came back, an act when it is begun."""
    flying: dict[bytes, _Call] = {}
    told = bytearray()
    for line in trace.read_bytes().splitlines():
        if (resumed := _RESUMED.match(line)) is not None:
            call = flying.pop(resumed[1], None)
            code = resumed[2]
        elif (begun := _CALL.match(line)) is not None:
            path = bytes.fromhex(begun[3].replace(b"\\x", b"").decode()).decode()
            data = bytes.fromhex((begun[4] or b"").replace(b"\\x", b"").decode())
            call = _Call(begun[2].decode(), Path(path).name, data, [int(n) for n in _NUMBERS.findall(begun[5])])
            yield from call.began(told)
            ended = _ENDED.search(begun[5])
            if ended is None:
                flying[begun[1]] = call
                continue
            code = ended[1]
        else:
            continue
        if call is not None and (event := call.ended()) is not None:
            assert not code.startswith(b"-"), f"{call.name} failed"
            if isinstance(event, Write) and event.data is not None:
                assert int(code) == len(event.data), "a write that was cut short"
            yield event


@dataclass
class Disk:
    """The journal's files as they surely are, and the writes since, which may be there or not.

    Attributes:
        sure: by name.
        since: in the order in which they were made.
    """

    sure: dict[str, bytearray] = field(default_factory=lambda: {DATABASE: bytearray(), LOG: bytearray()})
    since: list[Write] = field(default_factory=list[Write])

    def sync(self, file: str) -> None:
        """What was written to a file is on the disk."""
        for write in self.since:
            if write.file == file:
                write.apply(self.sure[file])
        self.since = [write for write in self.since if write.file != file]

    def with_writes(self, writes: list[Write]) -> dict[str, bytes]:
        """The files when of the unsure writes these are there."""
        files = {name: bytearray(content) for name, content in self.sure.items()}
        for write in writes:
            write.apply(files[write.file])
        return {name: bytes(content) for name, content in files.items()}


Damage = Literal["missing", "half", "zeroed", "garbage", "alone"]
DAMAGES: tuple[Damage, ...] = ("missing", "half", "zeroed", "garbage", "alone")


def damaged(disk: Disk, damage: Damage) -> dict[str, bytes]:
    """The files when the power went during the last of the unsure writes, which came to the disk as `damage` says.

    "alone": it is there, and none of those before it.
    """
    *before, last = disk.since
    data = last.data or b""
    match damage:
        case "missing":
            return disk.with_writes(before)
        case "alone":
            return disk.with_writes([last])
        case "half":
            torn = data[: len(data) // 2]
        case "zeroed":
            torn = bytes(len(data))
        case "garbage":
            torn = bytes((byte * 167 + 89) & 0xFF for byte in data)
    return disk.with_writes([*before, Write(last.file, last.offset, torn)])
