"""The host's side of the file worker: one connection, one request at a time, a worker while it is needed."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

from toka.core.stopwatch import Stopwatch
from toka.sandbox.command import Lifeline
from toka.sandbox.launch import Zygote, to_the_end
from toka.sandbox.policy import SandboxPolicy

MAX_ANSWER: Final = 64 * 1024 * 1024
WORKER_IDLE_S: Final = 5.0
"""Seconds without a file operation after which the file worker ends."""
END_S: Final = 5.0
"""Seconds after a kill in which the zygote must report the end of a worker; then the whole sandbox is killed."""
WORKER_LIMITS: Final = {"NOFILE": 64, "DATA": 512 * 1024 * 1024}

Send = Callable[[dict[str, Any], tuple[int, int]], Awaitable[Zygote]]
"""Hands a request and its descriptors to a zygote that lives, and gives that zygote."""


class FileWorker:
    """A worker process inside a sandbox and the connection to it. After any failure it is killed, not reused."""

    def __init__(self, connection: socket.socket, lifeline: Lifeline, zygote: Zygote) -> None:
        self._zygote = zygote
        self._connection = connection
        self._lifeline = lifeline
        self._loop = asyncio.get_running_loop()

    @property
    def zygote(self) -> Zygote:
        """The sandbox it belongs to."""
        return self._zygote

    @staticmethod
    async def start(send: Send, policy: SandboxPolicy) -> FileWorker:
        """Asks for a worker.

        Args:
            send: see `Send`.
            policy: for the size of files.
        """
        connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        lifeline = Lifeline()
        limits = {**WORKER_LIMITS, "FSIZE": policy.file_bytes}
        try:
            request = {"op": "files", "profile": "files", "timeout": math.inf, "rlimits": limits}
            zygote = await send(request, (theirs.fileno(), lifeline.theirs.fileno()))
        except BaseException:
            connection.close()
            lifeline.close()
            raise
        finally:
            theirs.close()
        lifeline.theirs.close()
        return FileWorker(connection, lifeline, zygote)

    async def ask(self, header: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """One request and its answer.

        Raises:
            EOFError: the worker died.
            OSError: the same, seen while sending.
        """
        text = json.dumps(header).encode()
        await self._loop.sock_sendall(self._connection, struct.pack("!II", len(text), len(body)) + text + body)
        head, tail = struct.unpack("!II", await self._exactly(8))
        if head + tail > MAX_ANSWER:
            raise EOFError
        return json.loads(await self._exactly(head)), bytes(await self._exactly(tail))

    async def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            count = await self._loop.sock_recv_into(self._connection, view[got:])
            if not count:
                raise EOFError
            got += count
        return data

    async def end(self, kill: Callable[[Zygote], Awaitable[None]], *, at_once: bool) -> dict[str, Any]:
        """Kills the worker and returns when it is dead; with the zygote's report, empty when there is none.

        Args:
            kill: ends the whole sandbox, for a zygote that does not end its worker.
            at_once: whether it cannot do so now.
        """
        self._lifeline.cut()
        report = asyncio.ensure_future(self._lifeline.report())
        try:
            if not at_once:
                await asyncio.wait({report}, timeout=END_S)
            if not report.done():
                await kill(self._zygote)
            return await report
        finally:
            self.close()

    def close(self) -> None:
        """Closes the connection without waiting; the worker is killed by that."""
        self._connection.close()
        self._lifeline.close()


class FileDesk:
    """File operations of one sandbox, one after the other. The worker is started when it is needed."""

    def __init__(
        self,
        alive: Callable[[], Awaitable[Zygote]],
        send: Send,
        kill: Callable[[Zygote], Awaitable[None]],
        policy: SandboxPolicy,
        watch: Stopwatch,
    ) -> None:
        """For a sandbox.

        Args:
            alive: starts the sandbox, if need be.
            send: see `Send`.
            kill: ends the whole sandbox.
            policy: for the size of files.
            watch: counts the seconds of deadlines; held while the sandbox stands still.
        """
        self._alive = alive
        self._send = send
        self._kill = kill
        self._policy = policy
        self._watch = watch
        self._worker: FileWorker | None = None
        self._turn = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    async def file(self, request: dict[str, Any], body: bytes, timeout_s: float) -> dict[str, Any]:
        """One operation; see `Sandbox.file`."""
        op: str = request["op"]
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            try:
                await self._alive()
                if self._worker is None or not self._worker.zygote.alive:
                    await self._end_worker()
                    self._worker = await FileWorker.start(self._send, self._policy)
                async with self._watch.timeout(timeout_s):
                    answer, data = await self._worker.ask(request, body)
            except TimeoutError:
                await self._end_worker()
                return {"error": "timeout", "message": f"{op} took longer than {timeout_s:g} seconds{_doubt(op)}"}
            except (EOFError, OSError):
                report = await self._end_worker()
                return {"error": "lost", "message": (report.get("refused") or "the file worker died") + _doubt(op)}
            except asyncio.CancelledError:
                await to_the_end(self._end_worker())
                raise
            self._idle = asyncio.get_running_loop().call_later(WORKER_IDLE_S, self._rest)
        return {**answer, "body": data}

    def _rest(self) -> None:
        """Ends a file worker that nobody uses: it is half of what an idle sandbox costs, and back in milliseconds."""
        if not self._turn.locked():
            self.close()

    async def _end_worker(self) -> dict[str, Any]:
        worker, self._worker = self._worker, None
        return {} if worker is None else await worker.end(self._kill, at_once=self._watch.held)

    def close(self) -> None:
        """Ends the worker without waiting for its end."""
        if self._idle is not None:
            self._idle.cancel()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()


def _doubt(op: str) -> str:
    return "; it may or may not have happened" if op in ("write", "edit") else ""
