"""An event loop that never waits: when nothing is left to do it asks what happens next, and its time jumps."""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from toka.core.clock import Timer


class _Selector(selectors.DefaultSelector):
    """Looks at what is ready and never waits for it: `idle` is told how long the loop would have waited."""

    def __init__(self, idle: Callable[[float | None], None]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See BaseSelector; `timeout` is never spent."""
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self._idle(timeout)
        return ready


class IdleLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still while anything can run.

    When nothing can, `on_idle` decides what happens next. Only if it has nothing, time jumps to the next timer. What is
    given to a thread runs at once, in this one.
    """

    def __init__(self, on_idle: Callable[[bool], bool]) -> None:
        """`on_idle` is told whether there is a timer to jump to, and returns whether it made something runnable.

        Without a timer it must.
        """
        self._on_idle = on_idle
        self._elapsed = 0.0
        super().__init__(_Selector(self._idle))

    def time(self) -> float:
        """Seconds that timers have jumped over."""
        return self._elapsed

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # noqa: ARG002
        """Runs it here and now."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as e:  # noqa: BLE001 - it belongs to whoever awaits it
            future.set_exception(e)
        return future

    def _idle(self, timeout: float | None) -> None:
        if self._on_idle(timeout is not None):
            return
        if timeout is None:
            raise RuntimeError("nothing can happen any more")
        self._elapsed += timeout


class RecordedClock:
    """Time as the record tells it. Nobody waits: whoever sleeps is woken, and a timeout is over, when that is said.

    Attributes:
        at: the time of the record that everything has come to, in wall-clock seconds.
    """

    def __init__(self, begins: Callable[[], Awaitable[None]] | None = None) -> None:
        """Time begins when `at` is set. `begins` is awaited before each timeout: it may put that off."""
        self.at = 0.0
        self._begins = begins
        self._count = 0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._timeouts: list[RecordedTimer] = []

    def now(self) -> float:
        """See Clock."""
        return self.at

    def monotonic(self) -> float:
        """See Clock."""
        return self.at

    def boottime(self) -> float:
        """See Clock."""
        return self.at

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleepers, (self.at + seconds, self._count, future))
        await future

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Timer]:
        """See Clock."""
        return self._timeout(float("inf") if seconds is None else seconds)

    @asynccontextmanager
    async def _timeout(self, seconds: float) -> AsyncGenerator[Timer]:
        if self._begins is not None:
            await self._begins()
        async with asyncio.timeout(None) as real:
            timer = RecordedTimer(self, real, self.at + seconds)
            self._timeouts.append(timer)
            try:
                yield timer
            finally:
                self._timeouts.remove(timer)

    def wake(self) -> bool:
        """Wakes who would wake first; False when nobody sleeps."""
        while self._sleepers:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)
                return True
        return False

    def run_out(self, until: float) -> bool:
        """Ends the timeout that would be over first, if that is not after `until`; False when there is none."""
        open_ = [t for t in self._timeouts if t.left is None and t.real.when() is None and t.due <= until]
        if not open_:
            return False
        first = min(open_, key=lambda timer: timer.due)
        first.real.reschedule(asyncio.get_running_loop().time() - 1)
        return True


@dataclass(slots=True, eq=False)
class RecordedTimer:
    """A timeout of a RecordedClock. See Timer.

    Attributes:
        clock: whose it is.
        real: the loop's, which is never over by itself.
        due: when it is over, in wall-clock seconds.
        left: seconds that are left while it is held; None while it is not.
    """

    clock: RecordedClock
    real: asyncio.Timeout
    due: float
    left: float | None = None

    def hold(self) -> None:
        """See Timer."""
        if self.left is None:
            self.left = self.due - self.clock.at

    def go_on(self) -> None:
        """See Timer."""
        if self.left is not None:
            self.due, self.left = self.clock.at + self.left, None
