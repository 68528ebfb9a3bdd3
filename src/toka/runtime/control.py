"""What keeps an agent from taking its next step: holds, a stop, the end of the process. And its clocks meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from toka.core.clock import Clock
from toka.core.stopwatch import Stopwatch


class Closing(Exception):
    """Raised at the gate: the agent must unwind without another step. Nothing is recorded about it here."""


class Interrupted(Exception):
    """Raised in place of a call that a pause did not wait for any longer."""


class Gate(Protocol):
    """What every act of an agent passes. Around the act it is entered: `async with gate`."""

    @property
    def held(self) -> bool:
        """Whether whoever comes now has to wait, or is sent back."""
        ...

    async def open(self) -> None:
        """Returns when nothing holds the agent. Raises Closing."""
        ...

    async def __aenter__(self) -> None:
        """As `open`; from here on the agent acts."""
        ...

    async def __aexit__(self, kind: object, error: object, trace: object, /) -> None:
        """The act is over."""
        ...

    def interruptible(self) -> Interruptible:
        """Around a call, inside of the act: a pause may end it. Raises Interrupted then."""
        ...

    def time(self) -> float:
        """Seconds since some moment, without those in which the agent stood still."""
        ...


class AgentControl:
    """The gate that every step of an agent passes.

    Invariant: while there is a hold, or after `close`, nobody gets through. The agent is at rest when somebody waits at
    the gate and nothing acts; while it rests, its timeouts stand still.

    Attributes:
        holds: what shuts the gate: hold -> reason.
        closing: whether it is shut for good.
        resting: whether the agent is at rest.
        acting: how many of its acts are under way.
    """

    def __init__(
        self, clock: Clock, on_paused: Callable[[], Awaitable[None]], on_resumed: Callable[[], Awaitable[bool]]
    ) -> None:
        """The callbacks record that the agent came to rest, and that it goes on; False: it may not go on yet."""
        self._clock = clock
        self._on_paused = on_paused
        self._on_resumed = on_resumed
        self._changed: asyncio.Event | None = None  # made when somebody waits: most agents are never held
        self._turn: asyncio.Lock | None = None
        self._watch = Stopwatch(clock)
        self._calls: set[Interruptible] = set()
        self._still = 0
        self.holds: dict[str, str] = {}
        self.closing = False
        self.resting = False
        self.acting = 0

    @property
    def held(self) -> bool:
        """Whether whoever comes now has to wait, or is sent back."""
        return bool(self.holds) or self.closing or self.resting

    async def open(self) -> None:
        """See Gate."""
        while self.held:
            if self.closing:
                raise Closing
            if self._turn is None:
                self._turn = asyncio.Lock()
            async with self._turn:
                await self._rest_or_go_on()
            if self.holds and not self.closing:
                await self._change()

    async def _rest_or_go_on(self) -> None:
        if self.closing:
            return
        if self.holds and not self.resting and not self.acting:
            self.resting = True
            self.stand_still()
            await self._on_paused()
        elif self.resting and not self.holds and await self._on_resumed():
            self.resting = False
            self.go_on()

    async def _change(self) -> None:
        if self._changed is None or self._changed.is_set():
            self._changed = asyncio.Event()
        await self._changed.wait()

    async def __aenter__(self) -> None:
        """See Gate."""
        while self.held:
            await self.open()
        self.acting += 1

    async def __aexit__(self, kind: object, error: object, trace: object, /) -> None:
        """See Gate."""
        self.acting -= 1
        if self.holds and not self.acting:
            self._notify()

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Any]:
        """As the clock's, but what the agent rests does not count."""
        return self._clock.timeout(None) if seconds is None else self._watch.timeout(seconds)

    def stand_still(self) -> None:
        """Stops the timeouts until as many calls of `go_on`."""
        self._still += 1
        self._watch.hold()

    def go_on(self) -> None:
        """Lets the timeouts go on."""
        self._still -= 1
        if not self._still:
            self._watch.go_on()

    def time(self) -> float:
        """See Gate."""
        return self._watch.elapsed()

    def interruptible(self) -> Interruptible:
        """See Gate."""
        return Interruptible(self._calls)

    def interrupt(self) -> None:
        """Ends the calls that may be ended."""
        for call in tuple(self._calls):
            call.end()

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


@dataclass(slots=True)
class Interruptible:
    """A call in flight, as a context: ended from outside it raises Interrupted, cancelled otherwise it is cancelled.

    It tells the two apart as `asyncio.timeout` does: by counting the task's cancellations.
    """

    _calls: set[Interruptible]
    _task: asyncio.Task[Any] | None = None
    _before: int = 0
    _hit: bool = False

    def __enter__(self) -> None:
        """From here it may be ended."""
        self._task = asyncio.current_task()
        self._before = self._task.cancelling() if self._task is not None else 0
        self._calls.add(self)

    def end(self) -> None:
        """Ends it."""
        if not self._hit and self._task is not None and self in self._calls:
            self._hit = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises Interrupted when it was ended."""
        self._calls.discard(self)
        hit = self._hit and self._task is not None and self._task.uncancel() <= self._before
        if hit and kind is asyncio.CancelledError:
            raise Interrupted from None

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class OpenGate:
    """A gate that is never shut, for steps outside of any agent's execution."""

    @property
    def held(self) -> bool:
        """See Gate."""
        return False

    async def open(self) -> None:
        """See Gate."""

    async def __aenter__(self) -> None:
        """See Gate."""

    async def __aexit__(self, kind: object, error: object, trace: object, /) -> None:
        """See Gate."""

    def interruptible(self) -> Interruptible:
        """See Gate."""
        return Interruptible(set())

    def time(self) -> float:
        """See Gate."""
        return time.monotonic()
