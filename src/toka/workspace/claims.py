"""Who of several processes changes which part of a workspace, agreed on by files alone.

Each process writes its claims into a file of its own and reads those of the others; nobody waits inside for anybody, so
that a process that stands still keeps out those alone who want what it claimed. A claim is written first as one that
is choosing, then gets a number above all that there are, then waits for those that meet it and have a lower number or
are still choosing: Lamport's bakery (A New Solution of Dijkstra's Concurrent Programming Problem, CACM 17/8, 1974).

A process keeps another file locked (flock) as long as it lives: claims of one that does not are history, which the
kernel decides, whatever it died of. The history tells who has written where since.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast

REMEMBERED: Final = 500
"""Claims that are remembered after their end, for `overtaken`: at least so many."""
_DIGITS: Final = 15
State = Literal["c", "w", "h", "o", "x"]
"""Choosing a number, waiting, held, over after it was held, given up. The first byte of a line."""


@dataclass(frozen=True, slots=True)
class Note:
    """For whom a checkpoint is taken or the lock is held. Lock and store give it back as it was.

    Attributes:
        run, agent, task, step: ids; a run's consists of letters, digits, `_`, `.` and `-`.
    """

    run: str
    agent: str = ""
    task: str = ""
    step: str = ""


@dataclass(eq=False, slots=True)
class Claim:
    """A line of a process's file.

    Attributes:
        note: for whom.
        scope: the paths.
        shared: whether others that share may be there, too.
        live: the process's own name for itself.
        number: its place in the queue; 0 while it chooses.
        state: see State.
        at: where its line begins in the file.
    """

    note: Note
    scope: tuple[str, ...]
    shared: bool
    live: str
    number: int = 0
    state: State = "c"
    at: int = 0

    @property
    def place(self) -> tuple[int, str]:
        """Its place in the order of all."""
        return self.number, self.live

    def line(self) -> bytes:
        """As it is written."""
        data = {"note": asdict(self.note), "scope": self.scope, "shared": self.shared}
        return f"{self.state}{self.number:0{_DIGITS}d} {json.dumps(data)}\n".encode()


class Wanted(Protocol):
    """What may meet another."""

    @property
    def scope(self) -> tuple[str, ...]:
        """The paths."""
        ...

    @property
    def shared(self) -> bool:
        """Whether others that share may be there, too."""
        ...


def meet(one: Wanted, two: Wanted) -> bool:
    """Whether one has to wait for the other."""
    return not (one.shared and two.shared) and overlap(one.scope, two.scope)


def overlap(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether a path of one set is, or lies below, one of the other. Paths are normalised, `.` is all."""
    return any(a == b or "." in (a, b) or a.startswith(f"{b}/") or b.startswith(f"{a}/") for a in one for b in two)


class Claims:
    """The claims of one process on a workspace, beside those of the others."""

    def __init__(self, folder: Path) -> None:
        """`folder` is that of the workspace's store."""
        self._folder = folder / "live"
        self._live = ""
        self._lock = self._file = -1
        self._size = self._lines = 0
        self._own: list[Claim] = []
        self._dead: dict[str, list[Claim]] = {}

    def make(self, note: Note, scope: Sequence[str], *, shared: bool) -> Claim:
        """Queues up for some paths.

        Raises:
            OSError: the folder cannot be written; nothing is claimed.
        """
        self._open()
        if self._lines > 2 * REMEMBERED:
            self._compact()
        claim = Claim(note, tuple(scope), shared, self._live, at=self._size)
        line = claim.line()
        self._write(line, claim.at)  # half a line is none, and the next one takes its place
        self._size += len(line)
        self._lines += 1
        self._own.append(claim)
        try:
            claim.number = 1 + max((each.number for each in (*self._own, *self._of_others())), default=0)
            self._write(b"%0*d" % (_DIGITS, claim.number), claim.at + 1)
            self._turn(claim, "w")
        except OSError:
            self.end(claim)
            raise
        return claim

    def before(self, claim: Claim) -> Iterator[Claim]:
        """The claims of other processes that one has to wait for."""
        for other in self._of_others():
            here = other.state in "ch" or (other.state == "w" and other.place < claim.place)
            if here and other.live not in self._dead and meet(other, claim):
                yield other

    def hold(self, claim: Claim) -> None:
        """Notes that a claim is held now: nothing was before it. Durable for one that is alone. Raises OSError."""
        self._turn(claim, "h")
        if not claim.shared:
            os.fdatasync(self._file)

    def end(self, claim: Claim) -> None:
        """Gives a claim up, held or not."""
        with contextlib.suppress(OSError):
            self._turn(claim, "o" if claim.state == "h" else "x")

    def overtaken(self, note: Note, scope: Sequence[str]) -> str:
        """Why what `note` held before may be another's by now, for people; empty when nobody has held it since."""
        held = [each for each in (*self._own, *self._of_others()) if each.state in "ho"]
        held.sort(key=lambda claim: claim.place)
        mine = (n for n, each in enumerate(held) if each.note == note)
        earlier = [n for n in mine if held[n].state == "o" or held[n].live != self._live]
        if not earlier:
            return "who wrote there since is not known any more"
        later = [each.note for each in held[earlier[-1] + 1 :] if each.note != note and overlap(each.scope, scope)]
        return f"agent {later[-1].agent} of run {later[-1].run} has written there since" if later else ""

    def close(self) -> None:
        """Lets go of everything; what was held stays known."""
        if self._lock < 0:
            return
        os.close(self._file)
        os.close(self._lock)
        self._lock = self._file = -1
        with contextlib.suppress(OSError):
            (self._folder / self._live).unlink()
        self._dead[self._live], self._own, self._live = self._own, [], ""

    # ---- the own file

    def _open(self) -> None:
        if self._lock >= 0:
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._live = secrets.token_hex(8)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        lock = os.open(self._folder / self._live, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._file = os.open(self._rows(self._live), flags, 0o600)
        except OSError:
            os.close(lock)
            raise
        self._lock, self._size, self._lines = lock, 0, 0
        self._forget()

    def _rows(self, live: str) -> Path:
        return self._folder / f"{live}.rows"

    def _write(self, data: bytes, at: int) -> None:
        if os.pwrite(self._file, data, at) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._rows(self._live)))

    def _turn(self, claim: Claim, state: State) -> None:
        """One byte in its place: no disk is too full for that."""
        self._write(state.encode(), claim.at)
        claim.state = state

    def _compact(self) -> None:
        """Writes the own file anew, without what need not be remembered. Raises OSError; then the old one stays."""
        last = {(each.note, each.scope, each.shared): each for each in self._own if each.state == "o"}
        known = set(map(id, sorted(last.values(), key=lambda claim: claim.place)[-REMEMBERED:]))
        kept = [each for each in self._own if each.state in "cwh" or id(each) in known]
        beside = self._folder / f"{self._live}.new"
        lines = [each.line() for each in kept]
        beside.write_bytes(b"".join(lines))
        file = os.open(beside, os.O_RDWR | os.O_CLOEXEC)
        os.fdatasync(file)
        beside.replace(self._rows(self._live))
        os.close(self._file)
        self._file, self._size, self._lines, self._own = file, 0, len(kept), kept
        for each, line in zip(kept, lines, strict=True):
            each.at = self._size
            self._size += len(line)

    # ---- those of others

    def _of_others(self) -> list[Claim]:
        """All that other processes claimed; those of processes that ended are read once."""
        found: list[Claim] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.glob("*.rows"):
                if path.stem == self._live:
                    continue
                if path.stem not in self._dead and not self._lives(path.stem):
                    self._dead[path.stem] = _read(path)  # read after its end: nothing is added any more
                found += self._dead[path.stem] if path.stem in self._dead else _read(path)
        return found

    def _lives(self, live: str) -> bool:
        """Whether the process of a file still holds it; the file of one that does not is removed."""
        path = self._folder / live
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(fd)

    def _forget(self) -> None:
        """Removes the files of processes that ended longest ago, as far as enough is remembered without them."""
        self._of_others()
        ended = sorted(self._dead.items(), key=lambda each: max((c.number for c in each[1]), default=0), reverse=True)
        count = 0
        for live, claims in ended:
            if count >= REMEMBERED:
                self._rows(live).unlink(missing_ok=True)
                del self._dead[live]
            count += len(claims)


def _read(path: Path) -> list[Claim]:
    """The claims in a file; lines that are not ours, or not whole, are none."""
    found: list[Claim] = []
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            state, number, data = line[:1], int(line[1 : _DIGITS + 1]), json.loads(line[_DIGITS + 1 :])
            if state in "cwhox" and line.endswith("\n"):
                note, scope = Note(**data["note"]), tuple(map(str, data["scope"]))
                found.append(Claim(note, scope, data["shared"] is True, path.stem, number, cast("Any", state)))
    return found
