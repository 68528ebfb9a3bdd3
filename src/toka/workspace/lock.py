"""The write lock of a workspace: who changes which part of it, in steps that may be put back and in others.

A step that may be put back holds its part alone: whatever another wrote there meanwhile would be put back with it.
Others share theirs: they wait for such a step, and it for them, but not for each other. Parts that do not overlap are
nobody's concern. This holds over processes, too: who holds what stands in a table beside the store. Each process keeps
a file of its own locked there (flock), and what it holds counts as long as that lasts: the kernel lets go of it when
the process ends, whatever it dies of.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

from toka.core.clock import Clock

PAUSE_S: Final = 0.02
"""Seconds between two looks while another process holds what is wanted."""
WAIT_S: Final = 1.0
"""Seconds of waiting after which it is told."""
REMEMBERED: Final = 500
"""Holders that are remembered after they let go, for `overtaken`."""


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


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of the table: who holds or held which paths, and under which process's file; that is empty afterwards."""

    note: Note
    scope: tuple[str, ...]
    live: str
    shared: bool = False


Told = Callable[[Note], Awaitable[None]]
"""Called with the one that is waited for."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """Somebody of this process who waits, or holds."""

    note: Note
    scope: tuple[str, ...]
    shared: bool = False
    holds: bool = False


def _meet(one: _Entry | _Ticket, two: _Entry | _Ticket) -> bool:
    """Whether one has to wait for the other."""
    return not (one.shared and two.shared) and overlap(one.scope, two.scope)


def overlap(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether a path of one set is, or lies below, one of the other. Paths are normalised, `.` is all."""
    return any(a == b or "." in (a, b) or a.startswith(f"{b}/") or b.startswith(f"{a}/") for a in one for b in two)


class WriteLocks:
    """The write lock of one workspace, as one process takes it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """`folder` is that of the workspace's store; `clock` is for the pauses."""
        self._folder = folder
        self.clock = clock
        self._live = ""
        self._fd = -1
        self._tickets: list[_Ticket] = []
        self._left = asyncio.Event()

    def lock(self, note: Note, scope: Sequence[str], told: Told | None = None, *, shared: bool = False) -> WriteLock:
        """The lock for some paths, for `async with`; one use only. `told` is called once, if it takes a second."""
        return WriteLock(self, _Ticket(note, tuple(scope), shared), told)

    def overtaken(self, note: Note, scope: Sequence[str]) -> str:
        """Why what `note` held before may be another's by now, for people; empty when nobody has held it since."""
        rows = self._rows()
        earlier = [n for n, row in enumerate(rows) if row.note == note and row.live != (self._live or None)]
        if not earlier:
            return "who wrote there since is not known any more"
        later = [row.note for row in rows[earlier[-1] + 1 :] if row.note != note and overlap(row.scope, scope)]
        return f"agent {later[-1].agent} of run {later[-1].run} has written there since" if later else ""

    def close(self) -> None:
        """Lets go of everything."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                (self._folder / "live" / self._live).unlink()

    def begin(self, ticket: _Ticket) -> None:
        """Queues up."""
        self._tickets.append(ticket)

    def ahead(self, ticket: _Ticket) -> Note | None:
        """Who is next before somebody that waits: of this process, else of another one; None = nobody any more."""
        before = self._tickets[: self._tickets.index(ticket)]
        mine = [each.note for each in before if _meet(each, ticket)]
        return mine[-1] if mine else next((row.note for row in self._others(self._rows(), ticket)), None)

    def take(self, ticket: _Ticket) -> bool | None:
        """Takes the lock if it is free. False: somebody of this process is before; None: another process has it.

        Raises:
            OSError: the store's folder cannot be written.
        """
        before = self._tickets[: self._tickets.index(ticket)]
        if any(_meet(each, ticket) for each in before):
            return False
        self._open()
        with self._table():
            rows = self._rows()
            if any(self._others(rows, ticket)):
                return None
            if ticket.shared:  # of what is over, when it was last is enough
                rows = [row for row in rows if row != _entry(ticket, "")]
            if len(rows) > 2 * REMEMBERED:
                rows = [*(row for row in rows[:-REMEMBERED] if row.live), *rows[-REMEMBERED:]]
            self._write([*rows, _entry(ticket, self._live)], durable=not ticket.shared)
        ticket.holds = True
        return True

    def end(self, ticket: _Ticket) -> None:
        """Lets go of the lock, or of the place in the queue."""
        self._tickets.remove(ticket)
        left, self._left = self._left, asyncio.Event()
        left.set()
        if ticket.holds:
            with contextlib.suppress(OSError), self._table():
                rows, ours = self._rows(), _entry(ticket, self._live)
                if ours in rows:  # two of one agent that share look alike: each ends one
                    rows[rows.index(ours)] = _entry(ticket, "")
                self._write(rows, durable=False)

    async def changed(self, *, elsewhere: bool) -> None:
        """Returns when it may be worth another look."""
        if elsewhere:
            await self.clock.sleep(PAUSE_S)
        else:
            await self._left.wait()

    def _open(self) -> None:
        if self._fd >= 0:
            return
        (self._folder / "live").mkdir(mode=0o700, exist_ok=True)
        self._live = secrets.token_hex(8)
        self._fd = os.open(self._folder / "live" / self._live, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def _others(self, rows: Sequence[_Entry], ticket: _Ticket) -> Iterator[_Entry]:
        """Of the rows those of other processes for which somebody has to wait."""
        others = (row for row in rows if row.live and row.live != self._live)
        return (row for row in others if _meet(row, ticket) and self._lives(row.live))

    def _lives(self, live: str) -> bool:
        """Whether the process of a file still holds it; the file of one that does not is removed."""
        path = self._folder / "live" / Path(live).name
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

    @contextlib.contextmanager
    def _table(self) -> Generator[None]:
        """Around a change of the table; nobody holds it for longer than that takes."""
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _rows(self) -> list[_Entry]:
        """The table; empty when there is none, or it is not ours."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            data = cast("list[Any]", json.loads((self._folder / "holders.json").read_text(encoding="utf-8")))
            return [
                _Entry(Note(**row["note"]), tuple(row["scope"]), str(row["live"]), row.get("shared") is True)
                for row in data
            ]
        return []

    def _write(self, rows: Sequence[_Entry], *, durable: bool = True) -> None:
        beside = self._folder / "holders.new"
        with beside.open("w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file)
            if durable:
                file.flush()
                os.fdatasync(file.fileno())
        beside.replace(self._folder / "holders.json")


def _entry(ticket: _Ticket, live: str) -> _Entry:
    return _Entry(ticket.note, ticket.scope, live, ticket.shared)


class WriteLock:
    """An async context that holds the lock for some paths; one use only."""

    def __init__(self, locks: WriteLocks, wanted: _Ticket, told: Told | None) -> None:
        self._locks = locks
        self._wanted = wanted
        self._told = told
        self._ticket: _Ticket | None = None

    async def __aenter__(self) -> Self:
        """Waits for the lock, however long; cancelling gives up. Without paths it is free.

        Raises:
            OSError: the store's folder cannot be written.
        """
        if not self._wanted.scope:
            return self
        self._ticket = ticket = self._wanted
        self._locks.begin(ticket)
        telling: asyncio.Task[None] | None = None
        try:
            while not (taken := self._locks.take(ticket)):
                if telling is None and self._told is not None:
                    telling = asyncio.ensure_future(self._tell(ticket, self._told))
                await self._locks.changed(elsewhere=taken is None)
        except BaseException:
            self._locks.end(ticket)
            raise
        finally:
            if telling is not None:
                telling.cancel()
        return self

    async def _tell(self, ticket: _Ticket, told: Told) -> None:
        await self._locks.clock.sleep(WAIT_S)
        note = None if ticket.holds else self._locks.ahead(ticket)
        if note is not None:
            await told(note)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of it."""
        if self._ticket is not None:
            self._locks.end(self._ticket)
