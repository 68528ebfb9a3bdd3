"""The write lock of a workspace: who changes it in steps that may be put back, one after the other.

The kernel holds it (flock on an open file), so it ends with its process, whatever that dies of.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from toka.core.clock import Clock

PAUSE_S: Final = 0.02
"""Seconds between two tries while another process holds it."""


@dataclass(frozen=True, slots=True)
class Note:
    """For whom a checkpoint is taken or the lock is held. Lock and store give it back as it was.

    Attributes:
        run, agent, task, step: ids; a run's consists of letters, digits, `_`, `.` and `-`.
    """

    run: str
    agent: str = ""
    task: str = ""
    step: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who held the write lock last.

    Attributes:
        note: for whom.
        checkpoint: what to go back to; empty when none was taken yet.
    """

    note: Note
    checkpoint: str = ""


class WriteLock:
    """An async context that holds the lock; one use only."""

    def __init__(self, folder: Path, note: Note, clock: Clock, local: asyncio.Lock) -> None:
        """Args:
        folder: of the workspace's store.
        note: for whom.
        clock: for the pauses.
        local: keeps those of this process in the order in which they came.
        """
        self._folder = folder
        self._holder = Holder(note)
        self._clock = clock
        self._local = local
        self._fd = -1

    async def __aenter__(self) -> Self:
        """Waits for the lock, however long; cancelling gives up.

        Raises:
            OSError: the store's folder cannot be written.
        """
        await self._local.acquire()
        try:
            self._fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            while True:
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await self._clock.sleep(PAUSE_S)
            _write(self._folder, self._holder)
        except BaseException:
            self._release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go of it."""
        self._release()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._local.release()

    def record(self, checkpoint: str) -> None:
        """Writes down, durably, what to go back to should the holder die. Only while it is held."""
        if self._fd < 0:
            raise RuntimeError("the write lock is not held")
        self._holder = replace(self._holder, checkpoint=checkpoint)
        _write(self._folder, self._holder)


def _write(folder: Path, holder: Holder) -> None:
    beside = folder / "holder.new"
    with beside.open("w", encoding="utf-8") as file:
        json.dump(asdict(holder), file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / "holder.json")


def read_holder(folder: Path) -> Holder | None:
    """Who held the lock last, or holds it; None when nobody ever did, or the file is not ours."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        data = json.loads((folder / "holder.json").read_text(encoding="utf-8"))
        return Holder(Note(**data["note"]), str(data["checkpoint"]))
    return None
