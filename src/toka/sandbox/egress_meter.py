"""How many bytes an agent may exchange with the network, and how fast."""

from __future__ import annotations

from typing import Final

from toka.core.clock import Clock
from toka.sandbox.egress_http import Stop

BLOCK: Final = 64 * 1024
"""Bytes moved at a time, and so what one direction of one connection holds in memory."""
_SMALLEST_BLOCK: Final = 512


class Meter:
    """Counts an agent's bytes, both directions together, and lets them through no faster than its limits say.

    A token bucket: `rate_bps` / 8 bytes come in per second and at most one second's worth is kept. Who takes more than
    is there goes into debt and waits until it is paid, so bytes go on in the order in which they came.

    Attributes:
        up: bytes let through towards hosts.
        down: bytes let through towards the sandbox.
        block: bytes to ask for at a time; fewer at a low rate, so that connections take turns.
    """

    def __init__(self, clock: Clock, rate_bps: int | None, max_bytes: int | None) -> None:
        """Takes bits per second and bytes in all; None = no limit. Raises ValueError when one is not positive."""
        if any(limit is not None and limit < 1 for limit in (rate_bps, max_bytes)):
            raise ValueError("a limit on network traffic must be positive")
        self.up: int = 0
        self.down: int = 0
        self._clock = clock
        self._max = max_bytes
        self._per_s = None if rate_bps is None else rate_bps / 8
        self._tokens = self._per_s or 0.0
        self._filled = clock.monotonic()
        self.block: int = BLOCK if self._per_s is None else max(_SMALLEST_BLOCK, min(BLOCK, int(self._per_s / 4)))

    def check(self) -> None:
        """Raises Stop (403) when all bytes are used."""
        if self._max is not None and self.up + self.down >= self._max:
            raise Stop(f"the network traffic of this agent has reached its limit of {self._max} bytes", 403)

    async def admit(self, size: int, *, up: bool) -> int:
        """Waits for the turn of `size` bytes; returns how many of them may pass: fewer only where the limit ends."""
        if self._max is not None:
            size = min(size, self._max - self.up - self.down)
        if up:
            self.up += size
        else:
            self.down += size
        if self._per_s is not None:
            now = self._clock.monotonic()
            self._tokens = min(self._per_s, self._tokens + (now - self._filled) * self._per_s) - size
            self._filled = now
            if self._tokens < 0:
                await self._clock.sleep(-self._tokens / self._per_s)
        return size
