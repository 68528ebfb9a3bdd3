"""The host's side of the file worker: one connection, one request at a time."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

from toka.sandbox.command import Lifeline
from toka.sandbox.launch import Zygote
from toka.sandbox.policy import SandboxPolicy

MAX_ANSWER: Final = 64 * 1024 * 1024
WORKER_LIMITS: Final = {"NOFILE": 64, "DATA": 512 * 1024 * 1024}

Send = Callable[[dict[str, Any], tuple[int, int]], Awaitable[Zygote]]


class FileWorker:
    """A worker process inside a sandbox and the connection to it. After any failure it is killed, not reused."""

    def __init__(self, connection: socket.socket, lifeline: Lifeline, zygote: Zygote) -> None:
        self._zygote = zygote
        self._connection = connection
        self._lifeline = lifeline
        self._loop = asyncio.get_running_loop()

    @property
    def alive(self) -> bool:
        """Whether the sandbox it belongs to still is."""
        return self._zygote.alive

    @staticmethod
    async def start(send: Send, policy: SandboxPolicy) -> FileWorker:
        """Asks for a worker.

        Args:
            send: hands a request and two descriptors to a zygote that lives, and returns that zygote.
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

    async def end(self) -> dict[str, Any]:
        """Kills the worker and returns when it is dead; with the zygote's report, empty when there is none."""
        self._lifeline.cut()
        try:
            return await self._lifeline.report()
        finally:
            self.close()

    def close(self) -> None:
        """Closes the connection without waiting; the worker is killed by that."""
        self._connection.close()
        self._lifeline.close()
