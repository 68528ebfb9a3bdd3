"""Time that can be held: what counts it stands still until it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from toka.core.clock import Clock, Timer


class Stopwatch:
    """Seconds of a clock, without those during which it was held.

    Invariant: while it is held, `elapsed` does not change and no `timeout` runs out.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: float | None = None
        self._stood = 0.0
        self._going = asyncio.Event()
        self._going.set()
        self._timers: set[Timer] = set()

    @property
    def held(self) -> bool:
        """Whether it stands still now."""
        return self._since is not None

    def elapsed(self) -> float:
        """Seconds that counted until now, from the clock's own beginning."""
        return self._clock.monotonic() - self.stood()

    def stood(self) -> float:
        """Seconds during which it was held, until now."""
        return self._stood + (0.0 if self._since is None else self._clock.monotonic() - self._since)

    def hold(self) -> None:
        """From here it stands still. Idempotent."""
        if self._since is None:
            self._since = self._clock.monotonic()
            self._going.clear()
            for timer in self._timers:
                timer.hold()

    def go_on(self) -> None:
        """From here it counts again. Idempotent."""
        self._stood, self._since = self.stood(), None
        self._going.set()
        for timer in self._timers:
            timer.go_on()

    async def wait_going(self) -> None:
        """Returns while it is not held; whoever waits may find it held again."""
        await self._going.wait()

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncGenerator[None]:
        """A context that raises TimeoutError when its body runs for more than `seconds` that count."""
        async with self._clock.timeout(seconds) as timer:
            self._timers.add(timer)
            if self.held:
                timer.hold()
            try:
                yield
            finally:
                self._timers.discard(timer)
