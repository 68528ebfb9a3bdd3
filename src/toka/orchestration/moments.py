"""Where whoever would act too early in a replay waits for the place of a record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from toka.events.event import AgentStateChanged, Event, StepFailed
from toka.events.lifecycle import AgentStatus
from toka.events.record import Record


@dataclass(frozen=True, slots=True, eq=False)
class _Wait:
    """Somebody waits for a record of a stream that `come` is true of."""

    stream: str
    come: Callable[[Event], bool]
    future: asyncio.Future[None]


class Moments:
    """Those who wait, of one replay."""

    def __init__(self) -> None:
        self._waits: list[_Wait] = []

    async def until(self, stream: str, come: Callable[[Event], bool]) -> None:
        """Returns when the place of a record of this stream has come that `come` is true of."""
        wait = _Wait(stream, come, asyncio.get_running_loop().create_future())
        self._waits.append(wait)
        try:
            await wait.future
        finally:
            self._waits.remove(wait)

    def come(self, head: Record | None) -> bool:
        """Wakes those who wait for a record; with None, all. False when there is nobody."""
        found = [
            w
            for w in self._waits
            if not w.future.done() and (head is None or (w.stream == head.stream and w.come(head.event)))
        ]
        for wait in found:
            wait.future.set_result(None)
        return bool(found)

    def first(self) -> bool:
        """Wakes who has waited longest, whatever for; False when there is nobody."""
        wait = next((w for w in self._waits if not w.future.done()), None)
        if wait is not None:
            wait.future.set_result(None)
        return wait is not None


def breaks(event: Event) -> bool:
    """Whether this is the first that an agent records when something broke it."""
    if isinstance(event, StepFailed):
        return event.error == "failed"
    return isinstance(event, AgentStateChanged) and event.state == AgentStatus.BACKOFF.value
