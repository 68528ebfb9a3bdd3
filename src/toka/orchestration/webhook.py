"""Sending digests to a web address: each by one POST, tried again while that may help, never a reason to wait."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Final

from toka.core.clock import Clock

ATTEMPTS: Final = 4
"""Tries of one digest; of the ones after a digest that was given up, one, until the server answers again."""
BACKOFF_S: Final = 1.0
"""Seconds before the second try; twice as long before each further one."""
TIMEOUT_S: Final = 10.0
"""Of one try, whatever the server does."""
_TRY_AGAIN: Final = (408, 425, 429)


class Undelivered(Exception):
    """A digest was not taken; the text says why, without the address, which may hold a key."""


class Webhook:
    """One address. Not for use by several tasks at a time."""

    def __init__(self, address: str, clock: Clock) -> None:
        """Opens nothing yet."""
        self._address = address
        self._clock = clock
        self._session: Any = None
        self._attempts = ATTEMPTS

    async def post(self, value: Mapping[str, Any]) -> None:
        """Sends one JSON object; a receiver recognises a repeated one by the header `Idempotency-Key`.

        Raises:
            Undelivered: after the last try, or at once when a further one would not help.
        """
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        headers = {"Content-Type": "application/json", "Idempotency-Key": hashlib.sha256(body).hexdigest()[:32]}
        problem = ""
        for attempt in range(1, self._attempts + 1):
            try:
                status = await self._send(body, headers)
            except OSError as error:
                problem = error.strerror or type(error).__name__
            else:
                self._attempts = ATTEMPTS
                if 200 <= status < 300:
                    return
                problem = f"the server answered {status}"
                if status < 500 and status not in _TRY_AGAIN:
                    raise Undelivered(problem)
            if attempt < self._attempts:
                await self._clock.sleep(BACKOFF_S * 2 ** (attempt - 1))
        self._attempts = 1
        raise Undelivered(problem)

    async def _send(self, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the reply, of which nothing else is read. Raises OSError."""
        import aiohttp  # only who has a webhook pays for it

        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), trust_env=False)
        try:
            async with self._session.post(self._address, data=body, headers=headers, allow_redirects=False) as reply:
                return reply.status
        except TimeoutError:
            raise OSError(0, f"no answer within {TIMEOUT_S:g} s") from None
        except (aiohttp.ClientError, ValueError) as error:
            number = getattr(getattr(error, "os_error", None), "errno", None)
            raise OSError(0, os.strerror(number).lower() if number else type(error).__name__) from None

    async def close(self) -> None:
        """Closes the connection."""
        if self._session is not None:
            await self._session.close()
