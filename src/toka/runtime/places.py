"""How many agents act at one time. One that rests, or waits to be restarted, takes no place.

Who rested goes on before others begin; who crashed begins again after those that have not begun.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable


class Places:
    """The places of one run.

    Invariant: at most `most` agents are in, and while somebody waits to come back from a rest, no place is free:
    whoever began before goes on before others begin.
    """

    def __init__(self, most: int, on_free: Callable[[], None] | None = None) -> None:
        """`on_free` is called when a place was left that nobody waits for."""
        self._most = most
        self._inside: set[str] = set()
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self._order: list[tuple[int, int, str]] = []
        self._last: list[tuple[int, int, str]] = []
        self._behind: set[str] = set()
        self._count = 0
        self.on_free = on_free

    @property
    def free(self) -> bool:
        """Whether another agent may begin."""
        return len(self._inside) < self._most and len(self._waiting) == len(self._behind)

    def enter(self, name: str) -> None:
        """An agent begins."""
        self._inside.add(name)

    def leave(self, name: str) -> None:
        """An agent ended, or rests. Harmless when it is not inside."""
        self.give_up(name)
        if name not in self._inside:
            return
        self._inside.discard(name)
        self._hand_on(self._order)
        if self.free and self.on_free is not None:
            self.on_free()

    def hand_out(self) -> None:
        """Nobody is left that could begin: free places go to those that crashed."""
        self._hand_on(self._last)

    async def come_back(self, name: str, urgency: int = 0, *, behind: bool = False) -> bool:
        """Waits for a place; True when there is one, False when `give_up` was called meanwhile.

        Args:
            name: the agent.
            urgency: the lowest number goes first, then who came first.
            behind: whether all others go before, also who has not begun: until `hand_out`.
        """
        if name in self._inside:
            return True
        if self.free and not behind:
            self._inside.add(name)
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[name] = waiter
        self._count += 1
        heapq.heappush(self._last if behind else self._order, (urgency, self._count, name))
        if behind:
            self._behind.add(name)
            if self.free and self.on_free is not None:
                self.on_free()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.leave(name)
            else:
                self.give_up(name)
            raise

    def give_up(self, name: str) -> None:
        """Whoever waits under this name waits no more."""
        waiter = self._waiting.pop(name, None)
        self._behind.discard(name)
        if waiter is not None and not waiter.done():
            waiter.set_result(False)

    def _hand_on(self, order: list[tuple[int, int, str]]) -> None:
        while order and len(self._inside) < self._most:
            _, _, name = heapq.heappop(order)
            waiter = self._waiting.get(name)
            if waiter is not None and not waiter.done():
                del self._waiting[name]
                self._behind.discard(name)
                self._inside.add(name)
                waiter.set_result(True)
