"""Channels that also go to a file or a web address: each digest is one JSON object, delivered by a worker of its own.

Agents never wait for a sink, and one that cannot be reached loses its own digests only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from toka.config.settings_tables import ChannelSink
from toka.core.clock import Clock
from toka.orchestration.webhook import Undelivered, Webhook
from toka.runtime.progress import Digest, ProgressReporter

QUEUE: Final = 1_000
"""Digests that may wait for one sink; beyond that the oldest are dropped, and the next one says how many."""
LAST_S: Final = 15.0
"""Seconds that sinks get at the end of a run for what still waits."""

Deliver = Callable[[dict[str, Any]], Awaitable[None]]


class ChannelSinks:
    """Delivers the digests of a run's channels."""

    def __init__(self, run: str, channels: Mapping[str, ChannelSink], reporter: ProgressReporter, clock: Clock) -> None:
        """Subscribes to the channels that have a sink.

        Args:
            run: its id, told with each digest.
            channels: their sinks; addresses are plain text here.
            reporter: whose digests.
            clock: for the time between two tries.
        """
        self._hooks: list[Webhook] = []
        self._workers: list[_Worker] = []
        self._unsubscribe: list[Callable[[], None]] = []
        for name, sink in channels.items():
            targets: list[tuple[str, Deliver]] = []
            if sink.file:
                targets.append((sink.file, partial(_append, Path(sink.file))))
            if sink.webhook:
                hook = Webhook(str(sink.webhook), clock)
                self._hooks.append(hook)
                targets.append(("webhook", hook.post))
            for target, deliver in targets:
                worker = _Worker(run, f"channel {name}: {target}", deliver)
                self._workers.append(worker)
                self._unsubscribe.append(reporter.subscribe_channel(name, worker.take))

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each sink that lost digests: which, how many, why."""
        return tuple(worker.problem for worker in self._workers if worker.problem)

    async def close(self) -> None:
        """Delivers what is queued, as far as that takes no longer than `LAST_S`, and ends."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        if self._workers:
            await asyncio.gather(*(worker.finish(LAST_S) for worker in self._workers))
        for hook in self._hooks:
            await hook.close()


class _Worker:
    """One sink and its queue."""

    def __init__(self, run: str, name: str, deliver: Deliver) -> None:
        self._run = run
        self._name = name
        self._deliver = deliver
        self._queue: asyncio.Queue[Digest | None] = asyncio.Queue(QUEUE)
        self._dropped = 0
        self._lost = 0
        self._why = ""
        self._task = asyncio.create_task(self._work())

    @property
    def problem(self) -> str:
        """What was lost and why; empty when nothing was."""
        what = "1 report was" if self._lost == 1 else f"{self._lost} reports were"
        return f"{self._name}: {what} not delivered: {self._why}" if self._lost else ""

    def take(self, digest: Digest) -> None:
        """Queues one digest."""
        if self._queue.full():
            self._queue.get_nowait()
            self._dropped += 1
            self._note(1, "more came than it could take")
        self._queue.put_nowait(digest)

    async def finish(self, seconds: float) -> None:
        """Delivers the rest within this time."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)
        done, _ = await asyncio.wait({self._task}, timeout=seconds)
        if not done:
            self._note(self._queue.qsize(), f"it took longer than {seconds:g} s at the end")
            self._task.cancel()
            await asyncio.wait({self._task})

    def _note(self, lost: int, why: str) -> None:
        self._lost += lost
        self._why = why

    async def _work(self) -> None:
        while (digest := await self._queue.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            try:
                await self._deliver(described(self._run, digest, dropped))
            except (OSError, Undelivered) as error:
                self._note(1, getattr(error, "strerror", None) or str(error))


def described(run: str, digest: Digest, dropped: int = 0) -> dict[str, Any]:
    """A digest as the JSON object that a sink gets."""
    out: dict[str, Any] = {
        "run_id": run,
        "channel": digest.channel,
        "agent": digest.agent,
        "cause": digest.cause,
        "state": digest.progress.status,
        "tasks": {"done": digest.progress.done, "total": digest.progress.total},
        "metrics": dict(digest.metrics),
        "events": [{"at": e.at, "kind": e.kind, "task": e.task, "text": e.text} for e in digest.events],
        "left_out": digest.left_out,
    }
    if dropped:
        out["dropped"] = dropped
    return out


async def _append(path: Path, value: dict[str, Any]) -> None:
    """Adds one line. Raises OSError."""
    line = json.dumps(value, ensure_ascii=False)

    def write() -> None:
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(line + "\n")

    await asyncio.to_thread(write)
