"""A nudge to the executor of a run: there is a new request in the journal.

A datagram socket in the state directory, one per run, readable by its owner alone. It carries nothing: whoever cannot
bind or reach it loses only time, because the executor looks at the journal now and then anyway. A process that is
killed leaves its socket behind; the next one that executes a run in that directory sweeps it away.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from toka.core.ids import RunId

_SUFFIX: Final = ".sock"


def _path(state: Path, run: RunId) -> Path:
    return state / f"{run}{_SUFFIX}"


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file at a path; None when there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sweep(state: Path, is_left: Callable[[RunId], bool]) -> None:
    """Removes the sockets whose owners are dead.

    Args:
        state: the state directory.
        is_left: whether the process that executed a run last is dead for certain. Nobody may begin to execute the run
            between its answer and the removal.
    """
    for path in state.glob(f"*{_SUFFIX}"):
        try:
            if stat.S_ISSOCK(path.lstat().st_mode) and is_left(RunId(path.stem)):
                path.unlink(missing_ok=True)
        except (OSError, ValueError):  # it cannot be removed, or its name is no text
            continue  # it stays, which harms nobody


class Inbox:
    """The executor's end. Use it as a context manager in the event loop."""

    def __init__(self, state: Path | None, run: RunId) -> None:
        """`state` None: there is nothing to bind, and `wait` is a plain wait."""
        self._path = _path(state, run) if state is not None else None
        self._socket: socket.socket | None = None
        self._file: tuple[int, int] | None = None
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
        self._file = _identity(self._path)
        asyncio.get_running_loop().add_reader(bound, self._on_readable)
        return self

    def __exit__(self, *_: object) -> None:
        """Unbinds it. What another process bound there since, after taking the run over, stays."""
        if self._socket is not None and self._path is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            if self._file is not None and self._file == _identity(self._path):
                self._path.unlink(missing_ok=True)

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
