"""A nudge to the executor of a run: there is a new request in the journal.

A datagram socket in the state directory, one per run, readable by its owner alone. It carries nothing: whoever cannot
bind or reach it loses only time, because the executor looks at the journal now and then anyway.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from toka.core.ids import RunId


def _path(state: Path, run: RunId) -> Path:
    return state / f"{run}.sock"


class Inbox:
    """The executor's end. Use it as a context manager in the event loop."""

    def __init__(self, state: Path | None, run: RunId) -> None:
        """`state` None: there is nothing to bind, and `wait` is a plain wait."""
        self._path = _path(state, run) if state is not None else None
        self._socket: socket.socket | None = None
        self._news = asyncio.Event()

    def __enter__(self) -> Inbox:  # noqa: PYI034 - no subclasses
        """Binds the socket; without one, `wait` takes its full time."""
        if self._path is None:
            return self
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                bound.bind(str(self._path))
            finally:
                os.umask(before)
        except OSError:
            bound.close()
            return self
        self._socket = bound
        asyncio.get_running_loop().add_reader(bound, self._on_readable)
        return self

    def __exit__(self, *_: object) -> None:
        """Unbinds it."""
        if self._socket is not None and self._path is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._path.unlink(missing_ok=True)
            self._socket = None

    async def wait(self, seconds: float) -> None:
        """Returns at a nudge, or after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    def _on_readable(self) -> None:
        if self._socket is not None:
            try:
                while self._socket.recv(16):
                    pass
            except BlockingIOError:
                pass
        self._news.set()


def poke(state: Path, run: RunId) -> bool:
    """Nudges a run's executor; False when it cannot be reached that way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        try:
            sender.sendto(b"!", str(_path(state, run)))
        except OSError:
            return False
        return True
