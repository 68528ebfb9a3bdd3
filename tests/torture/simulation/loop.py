"""An event loop whose time is virtual: nothing waits, and whoever runs next is decided by a seed.

Each callback belongs to a simulated process, or to the world around them. A process that is dead runs no callback any
more, not even a clean-up; a frozen one runs them when it is thawed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from contextvars import Context, ContextVar
from typing import Any, Protocol

from toka.core.clock import Countdown, Timer

WALL = 1_800_000_000.0
"""Wall-clock seconds at the virtual time 0."""


class Process(Protocol):
    """What the loop must know of a simulated process."""

    dead: bool
    frozen: bool
    parked: list[asyncio.Handle]
    tasks: list[asyncio.Task[Any]]


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
"""Whose code runs; None: the world's."""


class Stuck(Exception):
    """Nothing is ready and no timer is set."""


class NumberedTask(asyncio.Task[Any]):
    """A task whose hash is its number, so that sets of tasks have one order in every process."""

    _numbers = itertools.count()

    def __hash__(self) -> int:
        try:
            return self._number
        except AttributeError:
            self._number = next(NumberedTask._numbers)
            return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NoSelector:
    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop of one world.

    Attributes:
        turns: callbacks that were run.
    """

    _ready: Any
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, rng: random.Random, *, shuffled: bool) -> None:
        """With `shuffled`, callbacks that are ready together run in an order of the seed's, not in that of arrival."""
        super().__init__()
        self._now = 0.0
        self._rng = rng
        self._shuffled = shuffled
        self._selector = _NoSelector()
        self._clock_resolution = 1e-9
        self.turns = 0
        NumberedTask._numbers = itertools.count()
        self.set_task_factory(self._made)

    def time(self) -> float:
        return self._now

    def _made(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = NumberedTask(coro, loop=loop, context=context)
        process = context.get(PROCESS) if context is not None else PROCESS.get()
        if process is not None:
            process.tasks.append(task)
            if len(process.tasks) > 500:
                process.tasks[:] = [t for t in process.tasks if not t.done()]
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Threads are none: the call is made here and now, and its result comes a moment later."""
        future: asyncio.Future[Any] = self.create_future()
        try:
            result, error = func(*args), None
        except Exception as e:  # noqa: BLE001 - handed to whoever waits
            result, error = None, e

        def tell() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.call_later(self._rng.random() * 0.002, tell)
        return future

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        ready, timers = self._ready, self._scheduled
        while timers and (timers[0]._cancelled or _is_dead(timers[0])):
            heapq.heappop(timers)._scheduled = False
        if not ready and not self._stopping:
            if not timers:
                raise Stuck
            self._now = max(self._now, timers[0]._when)
        while timers and timers[0]._when <= self._now:
            handle = heapq.heappop(timers)
            handle._scheduled = False
            ready.append(handle)
        count = len(ready)
        if self._shuffled and count > 1:
            batch = list(ready)
            ready.clear()
            self._rng.shuffle(batch)
            ready.extend(batch)
        for _ in range(count):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None and (process.dead or process.frozen):
                if not process.dead:
                    process.parked.append(handle)
                continue
            self.turns += 1
            handle._run()

    def thaw(self, process: Process) -> None:
        """Lets a frozen process go on with what became due meanwhile."""
        process.frozen = False
        parked, process.parked = process.parked, []
        self._ready.extend(parked)


def _is_dead(handle: asyncio.TimerHandle) -> bool:
    process = handle._context.get(PROCESS)
    return process is not None and process.dead


class VirtualClock:
    """See Clock: the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return WALL + self._loop.time()

    def monotonic(self) -> float:
        return self._loop.time()

    def boottime(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Timer]:
        return Countdown(asyncio.timeout(seconds))
