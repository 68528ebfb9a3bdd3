"""Channels that also go to a file: each digest is appended as one JSON line, by a worker that agents never wait for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from toka.config.settings_tables import ChannelSink
from toka.runtime.progress import Digest, ProgressReporter

QUEUE: Final = 1_000
"""Digests that may wait to be written; beyond that the oldest are dropped, and the next line says how many."""


class ChannelSinks:
    """Writes the digests of a run's channels to their files. A file that cannot be written loses only its own lines."""

    def __init__(self, run: str, channels: Mapping[str, ChannelSink], reporter: ProgressReporter) -> None:
        """Subscribes to the channels that have a file."""
        self._run = run
        self._files = {name: Path(sink.file) for name, sink in channels.items() if sink.file}
        self._queue: asyncio.Queue[Digest | None] = asyncio.Queue(QUEUE)
        self._dropped = 0
        self._failed: dict[str, str] = {}
        self._unsubscribe = [reporter.subscribe_channel(name, self._take) for name in self._files]
        self._worker = asyncio.create_task(self._write()) if self._files else None

    @property
    def failed(self) -> Mapping[str, str]:
        """Channels whose file could not be written, with the reason."""
        return dict(self._failed)

    async def close(self) -> None:
        """Writes what is queued and ends."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        if self._worker is not None:
            await self._queue.put(None)
            await self._worker

    def _take(self, digest: Digest) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self._dropped += 1
        self._queue.put_nowait(digest)

    async def _write(self) -> None:
        while (digest := await self._queue.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            line = json.dumps(described(self._run, digest, dropped), ensure_ascii=False)
            try:
                await asyncio.to_thread(_append, self._files[digest.channel], line)
            except OSError as e:
                self._failed[digest.channel] = e.strerror or str(e)


def described(run: str, digest: Digest, dropped: int = 0) -> dict[str, Any]:
    """A digest as the JSON line that a channel's file gets."""
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


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(line + "\n")
