"""The write lock of a workspace: who changes which part of it, in steps that may be put back and in others.

A step that may be put back holds its part alone: whatever another wrote there meanwhile would be put back with it.
Others share theirs: they wait for such a step, and it for them, but not for each other. Parts that do not overlap are
nobody's concern. This holds over processes, too; see `claims.py` for how they agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from toka.core.clock import Clock
from toka.workspace.claims import Claim, Claims, Note, meet

PAUSE_S: Final = 0.02
"""Seconds between two looks while another process holds what is wanted."""
WAIT_S: Final = 1.0
"""Seconds of waiting after which it is told."""


Told = Callable[[Note], Awaitable[None]]
"""Called with the one that is waited for."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """Somebody of this process who waits, or holds."""

    note: Note
    scope: tuple[str, ...]
    shared: bool = False
    holds: bool = False
    claim: Claim | None = None


class WriteLocks:
    """The write lock of one workspace, as one process takes it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """`folder` is that of the workspace's store; `clock` is for the pauses."""
        self.clock = clock
        self._claims = Claims(folder)
        self._tickets: list[_Ticket] = []
        self._left = asyncio.Event()

    def lock(self, note: Note, scope: Sequence[str], told: Told | None = None, *, shared: bool = False) -> WriteLock:
        """The lock for some paths, for `async with`; one use only. `told` is called once, if it takes a second."""
        return WriteLock(self, _Ticket(note, tuple(scope), shared), told)

    def overtaken(self, note: Note, scope: Sequence[str]) -> str:
        """Why what `note` held before may be another's by now, for people; empty when nobody has held it since."""
        return self._claims.overtaken(note, scope)

    def close(self) -> None:
        """Lets go of everything."""
        self._claims.close()

    def begin(self, ticket: _Ticket) -> None:
        """Queues up."""
        self._tickets.append(ticket)

    def ahead(self, ticket: _Ticket) -> Note | None:
        """Who is next before somebody that waits: of this process, else of another one; None = nobody any more."""
        mine = [each.note for each in self._before(ticket)]
        if mine or ticket.claim is None:
            return mine[-1] if mine else None
        return next((each.note for each in self._claims.before(ticket.claim)), None)

    def take(self, ticket: _Ticket) -> bool | None:
        """Takes the lock if it is free. False: somebody of this process is before; None: another process is.

        Raises:
            OSError: the store's folder cannot be written.
        """
        if self._before(ticket):
            return False
        if ticket.claim is None:
            ticket.claim = self._claims.make(ticket.note, ticket.scope, shared=ticket.shared)
        if any(self._claims.before(ticket.claim)):
            return None
        self._claims.hold(ticket.claim)
        ticket.holds = True
        return True

    def end(self, ticket: _Ticket) -> None:
        """Lets go of the lock, or of the place in the queue."""
        self._tickets.remove(ticket)
        left, self._left = self._left, asyncio.Event()
        left.set()
        if ticket.claim is not None:
            self._claims.end(ticket.claim)

    async def changed(self, *, elsewhere: bool) -> None:
        """Returns when it may be worth another look."""
        if elsewhere:
            await self.clock.sleep(PAUSE_S)
        else:
            await self._left.wait()

    def _before(self, ticket: _Ticket) -> list[_Ticket]:
        before = self._tickets[: self._tickets.index(ticket)]
        return [each for each in before if meet(each, ticket)]


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
