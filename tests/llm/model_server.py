"""A model server on loopback that misbehaves as told: raw asyncio, every byte under the test's control."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import struct
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

JSON = "application/json"
Call = tuple[str, str, str]
"""(id, tool, arguments as text)"""


@dataclass
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Behaviour = Callable[["ModelServer", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ModelServer:
    """Answers requests with the behaviours in `plan`, one each; the last one answers all further requests."""

    plan: deque[Behaviour] = field(default_factory=deque)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    closed_by_client: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    tls: ssl.SSLContext | None = None
    current: Behaviour = field(init=False)

    def will(self, *behaviours: Behaviour) -> None:
        self.plan.extend(behaviours)

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while (request := await _read(reader)) is not None:
                self.received.append(request)
                self.arrived.set()
                if self.plan:
                    self.current = self.plan.popleft()
                await self.current(self, reader, writer)
                if writer.is_closing():
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")[:-2]
    headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
    method, path, _ = first.split(" ", 2)
    return Received(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


# --- behaviours -----------------------------------------------------------------------------------------------------


def raw(data: bytes, *, close: bool = False) -> Behaviour:
    async def behave(server: ModelServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        server.sent += len(data)
        await writer.drain()
        if close:
            writer.close()

    return behave


def reply(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None, content_type: str | None = JSON
) -> Behaviour:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}"]
    if content_type is not None:
        lines.append(f"content-type: {content_type}")
    lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
    return raw("\r\n".join(lines).encode() + b"\r\n\r\n" + data)


def error(status: int, message: str = "boom", headers: Mapping[str, str] | None = None, **fields: str) -> Behaviour:
    """In the form that both vendors' clients read."""
    return reply({"type": "error", "error": {"message": message, **fields}}, status, headers)


def reset() -> Behaviour:
    """Headers, a few bytes of many, then a TCP reset."""

    async def behave(server: ModelServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{"id":')
        await writer.drain()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return behave


def hang() -> Behaviour:
    """Says nothing; notes when the client goes away."""

    async def behave(server: ModelServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1) == b"":
            server.closed_by_client.set()
        writer.close()

    return behave


def drip(seconds: float = 0.02) -> Behaviour:
    """A correct head, then one byte of white space at a time, for ever."""

    async def behave(server: ModelServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
        try:
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(seconds)
        finally:
            server.closed_by_client.set()

    return behave


def huge(size: int, *, announced: bool) -> Behaviour:
    """A valid reply of `size` bytes of content, with or without its length in the head."""

    async def behave(server: ModelServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start, end = b'{"choices":[{"message":{"role":"assistant","content":"', b'"}}]}'
        total = len(start) + size + len(end)
        length = b"content-length: %d\r\n" % total if announced else b"connection: close\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + length + b"\r\n" + start)
        block = b"A" * 65536
        try:
            for _ in range(size // len(block)):
                writer.write(block)
                await writer.drain()
                server.sent += len(block)
            writer.write(end)
            await writer.drain()
        except ConnectionError:
            server.closed_by_client.set()
        writer.close()

    return behave


def bomb(size: int) -> Behaviour:
    """`size` bytes of JSON white space, compressed a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * 1_000_000
    data = b"".join(packer.compress(block) for _ in range(size // len(block))) + packer.flush()
    return reply(data, headers={"content-encoding": "gzip"})


def gzipped(body: Any) -> Behaviour:
    return reply(gzip.compress(json.dumps(body).encode()), headers={"content-encoding": "gzip"})


# --- replies in the vendors' forms -----------------------------------------------------------------------------------


def openai_body(text: str | None = None, calls: Sequence[Call] = (), **changes: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls
        ]
    message |= changes.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop", "logprobs": None}
    choice |= changes.pop("choice", {})
    body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "gpt-test-2026",
        "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }  # fmt: skip
    return {k: v for k, v in (body | changes).items() if v is not ...}


def anthropic_body(text: str | None = None, calls: Sequence[Call] = (), **changes: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    content += [{"type": "tool_use", "id": i, "name": n, "input": _input(a)} for i, n, a in calls]
    body = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test-2026", "content": content,
        "stop_reason": "tool_use" if calls else "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 20},
    }  # fmt: skip
    return {k: v for k, v in (body | changes).items() if v is not ...}


def _input(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
