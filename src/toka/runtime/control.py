"""What keeps an agent from taking its next step: holds, a stop, the end of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Closing(Exception):
    """Raised at the gate: the agent must unwind without another step. Nothing is recorded about it here."""


class AgentControl:
    """The gate that every step of an agent passes.

    Invariant: while there is a hold, or after `close`, no call of `gate` returns.
    """

    def __init__(self, on_paused: Callable[[], Awaitable[None]], on_resumed: Callable[[], Awaitable[None]]) -> None:
        """The callbacks record that the agent came to rest at the gate, and that it goes on."""
        self._on_paused = on_paused
        self._on_resumed = on_resumed
        self._changed: asyncio.Event | None = None  # made when somebody waits: most agents are never held
        self.holds: dict[str, str] = {}
        self.closing = False
        self.resting = False

    async def gate(self) -> None:
        """Returns when nothing holds the agent. Raises Closing once it is closed."""
        while self.holds and not self.closing:
            if not self.resting:
                self.resting = True
                await self._on_paused()
                continue
            if self._changed is None or self._changed.is_set():
                self._changed = asyncio.Event()
            await self._changed.wait()
        if self.closing:
            raise Closing
        if self.resting:
            self.resting = False
            await self._on_resumed()

    def hold(self, hold: str, reason: str) -> None:
        """From here the gate is shut."""
        self.holds[hold] = reason
        self._notify()

    def lift(self, hold: str) -> None:
        """Takes one hold away; the gate opens with the last one."""
        self.holds.pop(hold, None)
        self._notify()

    def close(self) -> None:
        """From here every step is refused: the agent unwinds at its next one."""
        self.closing = True
        self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
