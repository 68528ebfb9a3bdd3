"""All time comes from here."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Clock(Protocol):
    """Time as the runtime sees it. All figures are in seconds."""

    def now(self) -> float:
        """Wall-clock time since the epoch; may jump."""
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

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Any]:
        """An async context that raises TimeoutError when its body runs past `seconds` (None: never)."""
        ...


class SystemClock:
    """The machine's own clocks and the event loop's timers."""

    def now(self) -> float:
        """See Clock."""
        return time.time()

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def boottime(self) -> float:
        """See Clock. Systems without CLOCK_BOOTTIME use the monotonic clock."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await asyncio.sleep(max(0.0, seconds))

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Any]:
        """See Clock."""
        return asyncio.timeout(seconds)
