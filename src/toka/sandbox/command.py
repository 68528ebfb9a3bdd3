"""One command in a sandbox, seen from the host: its output, its report, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from toka.sandbox.keeper import Exceeded, Spent

FLOOD_BYTES: Final = 64 * 1024 * 1024
"""Output after which a command is killed, kept or not."""
_BLOCK: Final = 64 * 1024

Ended = Literal["exited", "timeout", "flood", "killed", "lost", "refused"]


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended. All that it started is dead, whatever `ended` says.

    Attributes:
        exit_code: of the command, the negative signal number when a signal ended it; 126 when it could not be started,
            127 when there is no such program; None when it did not come to its own end.
        output: standard output and standard error in the order written, up to the limit.
        stdout: standard output alone, up to the limit, where that was asked for; else None.
        stdout_missing: bytes of it beyond the limit.
        dropped: bytes of output beyond the limit.
        ended: `exited` by itself · `timeout` · `flood` of output · `killed` from outside · `lost`: the sandbox died,
            the command may have done anything or nothing · `refused`: nothing of it ran.
        wall_s: seconds from request to end.
        cpu_s: CPU seconds of the command and all that it started; see `Spent.at_least`.
        max_rss_bytes: largest resident size of any of those processes.
        reason: why it was refused; empty otherwise.
        exceeded: the limit that was met while it ran, for which it, or a process of it, was killed; None = none.
        spent: what the whole sandbox used while it ran.
    """

    exit_code: int | None
    output: bytes
    dropped: int
    ended: Ended
    wall_s: float
    cpu_s: float
    max_rss_bytes: int
    reason: str = ""
    exceeded: Exceeded | None = None
    spent: Spent = field(default_factory=Spent)
    stdout: bytes | None = None
    stdout_missing: int = 0

    @property
    def failed(self) -> bool:
        """Whether it did not end by itself with 0, or wrote more than it may before anybody saw it."""
        return (
            self.exit_code != 0
            or self.ended != "exited"
            or (self.exceeded is not None and self.exceeded.kind == "disk")
        )

    @property
    def resources(self) -> dict[str, Any]:
        """What was used of the machine beyond time, and the limit that was met, as JSON; the unknown is left out."""
        used = {k: v for k, v in asdict(self.spent).items() if v and k not in ("cpu_s", "at_least")}
        out: dict[str, Any] = {k: round(v, 3) if isinstance(v, float) else v for k, v in used.items()}
        if self.spent.at_least:
            out["at_least"] = list(self.spent.at_least)
        if self.exceeded is not None:
            out["exceeded"] = self.exceeded.to_json()
        return out


class Lifeline:
    """The host's end of what keeps one process inside alive. Closing it kills the process.

    Attributes:
        before_cut: called before it is killed.
    """

    def __init__(self) -> None:
        self.before_cut: Callable[[], None] = _nothing
        self._socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)

    async def report(self) -> dict[str, Any]:
        """The zygote's report once the process and all that it started are gone; empty when the zygote died first."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        except OSError:
            return {}
        return json.loads(data) if data else {}

    def signal(self, number: int) -> None:
        """Sends a signal to the command and its process group, as far as the person may: INT, TERM, HUP or QUIT."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.send(str(int(number)).encode())

    def cut(self) -> None:
        """Kills; `report` still tells when it is done."""
        self.before_cut()
        try:
            self._socket.send(b"k")
        except OSError:  # it has ended, or was told before
            pass

    def close(self) -> None:
        """Closes both ends; kills what still runs."""
        self._socket.close()
        self.theirs.close()


def _nothing() -> None:
    """Nobody wants to know."""


class Output:
    """What a command writes, read as it comes so that the command never waits for us.

    Attributes:
        theirs: the writing ends, for the command: standard output, and standard error where it is apart.
        kept: both together, as they came.
        stdout: standard output alone, where it is apart.
    """

    def __init__(self, limit: int, lifeline: Lifeline, *, apart: bool = False) -> None:
        """Opens a pipe, or with `apart` two of them. Of each kind at most `limit` bytes are kept."""
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._lifeline = lifeline
        pipes = [os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) for _ in range(1 + apart)]
        self._reads = [read for read, _ in pipes]
        self.theirs = [write for _, write in pipes]
        self.kept = bytearray()
        self.stdout = bytearray() if apart else None
        self.stdout_missing = 0
        self.size = 0
        self.flooded = False
        for read, write in pipes:
            os.set_blocking(write, True)
            self._loop.add_reader(read, self._take, read)

    @property
    def dropped(self) -> int:
        """Bytes that were not kept."""
        return self.size - len(self.kept)

    def _take(self, read: int) -> bool:
        """Reads one block; False when there is nothing (more)."""
        try:
            block = os.read(read, _BLOCK)
        except BlockingIOError:
            return False
        if not block:
            self._loop.remove_reader(read)
            return False
        self.size += len(block)
        self.kept += block[: max(0, self._limit - len(self.kept))]
        if self.stdout is not None and read == self._reads[0]:
            room = max(0, self._limit - len(self.stdout))
            self.stdout += block[:room]
            self.stdout_missing += len(block[room:])
        if self.size > FLOOD_BYTES and not self.flooded:
            self.flooded = True
            for each in self._reads:
                self._loop.remove_reader(each)  # it waits for us until it is dead
            self._lifeline.cut()
        return True

    def drain(self) -> None:
        """Takes what is left in the pipe. Does not wait for its end: another sandbox may have been handed a copy."""
        for read in self._reads:
            while self.size <= FLOOD_BYTES + _BLOCK * 16 and self._take(read):
                pass

    def added_to(self, result: CommandResult) -> CommandResult:
        """How the command ended, with what it wrote."""
        out = None if self.stdout is None else bytes(self.stdout)
        missing = self.stdout_missing
        return replace(result, output=bytes(self.kept), dropped=self.dropped, stdout=out, stdout_missing=missing)

    def sent(self) -> None:
        """Closes our copy of the writing end."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Closes everything."""
        self.sent()
        for read in self._reads:
            self._loop.remove_reader(read)
            os.close(read)
