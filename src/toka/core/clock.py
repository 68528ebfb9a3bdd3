"""All time comes from here."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, Self


class Timer(Protocol):
    """A timeout that is running."""

    def hold(self) -> None:
        """From here time does not count. Harmless when it is held already."""
        ...

    def go_on(self) -> None:
        """From here it counts again: what was left is left. Harmless when it is not held."""
        ...


class Clock(Protocol):
    """Time as the runtime sees it. All figures are in seconds."""

    def now(self) -> float:
        """Wall-clock time since the epoch. Another process, or this one after a restart, may see an earlier one."""
        ...

    def monotonic(self) -> float:
        """Never goes back; stands still while the machine sleeps."""
        ...

    def boottime(self) -> float:
        """Never goes back and counts the time asleep; the same for all processes until the machine reboots."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds`; at once (after one turn of the loop) when that is not positive."""
        ...

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Timer]:
        """An async context that raises TimeoutError when its body runs past `seconds` (None: never)."""
        ...


class SystemClock:
    """The machine's own clocks and the event loop's timers.

    The wall clock is read once, at the first question; from there its time passes with boot time. So nothing that is
    timed by it comes early, late or twice when somebody sets the machine's clock.
    """

    _booted: float | None = None

    def now(self) -> float:
        """See Clock. Systems without CLOCK_BOOTTIME show the wall clock as it is."""
        if not hasattr(time, "CLOCK_BOOTTIME"):
            return time.time()
        if self._booted is None:
            self._booted = time.time() - self.boottime()
        return self._booted + self.boottime()

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def boottime(self) -> float:
        """See Clock. Systems without CLOCK_BOOTTIME use the monotonic clock."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await asyncio.sleep(max(0.0, seconds))

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Timer]:
        """See Clock."""
        return Countdown(asyncio.timeout(seconds))


class Countdown:
    """A timeout of the event loop that can be held."""

    __slots__ = ("_left", "_real")

    def __init__(self, real: asyncio.Timeout) -> None:
        self._real = real
        self._left: float | None = None

    async def __aenter__(self) -> Self:
        """The time begins."""
        await self._real.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """The time ends; raises TimeoutError when it was up."""
        return await self._real.__aexit__(kind, error, trace)

    def hold(self) -> None:
        """See Timer."""
        when = self._real.when()
        if when is not None and not self._real.expired():
            self._left = max(0.0, when - asyncio.get_running_loop().time())
            self._real.reschedule(None)

    def go_on(self) -> None:
        """See Timer."""
        if self._left is not None:
            self._real.reschedule(asyncio.get_running_loop().time() + self._left)
            self._left = None
