"""A model server that costs next to nothing: OpenAI's Chat Completions, not streamed, over a bare asyncio protocol.

A request without a tool's answer gets a call of the tool `get_fact`. A request with one gets a call of `report` when
that tool is offered (Toka ends a task with it), else a final text. Bodies are searched, not parsed.

Control: GET /stats answers with counters; POST /delay/SECONDS makes all later replies wait that long.

    python bench/stub.py --port 0 --delay 0.2     # prints the port it listens on
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
from typing import Any

import machine

TOOL = "get_fact"
ANSWER = "The fact is 42."
LIFE_S = 900.0
"""The stub ends by itself after this long, whatever became of the harness."""

_ANSWERED = re.compile(rb'"role":\s?"tool"')
_REPORTS = re.compile(rb'"name":\s?"report"')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


def _http(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def _completion(message: dict[str, Any], finish: str) -> bytes:
    reply = {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "bench-model",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return _http(json.dumps(reply, separators=(",", ":")).encode())


def _call(name: str, arguments: dict[str, Any]) -> bytes:
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": f"call_{name}", "type": "function", "function": function}
    return _completion({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")


class Stub:
    """The answers and the counters, shared by all connections."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.requests = self.waiting = self.most = 0
        self.first = _call(TOOL, {"key": "alpha"})
        self.report = _call("report", {"status": "succeeded", "summary": ANSWER})
        self.text = _completion({"role": "assistant", "content": ANSWER}, "stop")

    def answer(self, body: bytes) -> bytes:
        """The reply to one chat request."""
        self.requests += 1
        if _ANSWERED.search(body) is None:
            return self.first
        return self.report if _REPORTS.search(body) else self.text

    def stats(self) -> bytes:
        """The counters as a reply."""
        return _http(json.dumps({"requests": self.requests, "waiting": self.waiting, "most": self.most}).encode())


class Connection(asyncio.Protocol):
    """One client's connection; requests may come in pieces."""

    __slots__ = ("buffer", "loop", "stub", "transport")

    def __init__(self, stub: Stub, loop: asyncio.AbstractEventLoop) -> None:
        self.stub, self.loop, self.buffer = stub, loop, b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.transport = None

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(buffer, 0, end + 2)
            total = end + 4 + (int(length[1]) if length else 0)
            if len(buffer) < total:
                break
            self.handle(buffer.split(b" ", 2)[1], buffer[end + 4 : total])
            buffer = buffer[total:]
        self.buffer = buffer

    def handle(self, path: bytes, body: bytes) -> None:
        """Answers one request, now or after the delay."""
        stub = self.stub
        if path.endswith(b"/chat/completions"):
            reply = stub.answer(body)
            if stub.delay <= 0:
                self.transport.write(reply)
                return
            stub.waiting += 1
            stub.most = max(stub.most, stub.waiting)
            self.loop.call_later(stub.delay, self.later, reply)
        elif path == b"/stats":
            self.transport.write(stub.stats())
        elif path.startswith(b"/delay/"):
            stub.delay = float(path.rpartition(b"/")[2])
            stub.waiting = stub.most = 0
            self.transport.write(_http(b"{}"))
        else:
            self.transport.write(_http(b'{"error":{"message":"not found"}}', b"404 Not Found"))

    def later(self, reply: bytes) -> None:
        """Sends a delayed reply, unless the client went away."""
        self.stub.waiting -= 1
        if self.transport is not None:
            self.transport.write(reply)


async def _watch(parent: int) -> None:
    """Returns when the process that started the stub is gone, or the stub's time is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LIFE_S
    while os.getppid() == parent and loop.time() < end:
        await asyncio.sleep(1.0)


async def serve(port: int, delay: float) -> None:
    """Serves on the loopback address until the parent process is gone."""
    loop = asyncio.get_running_loop()
    stub = Stub(delay)
    server = await loop.create_server(lambda: Connection(stub, loop), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await _watch(os.getppid())


def main() -> None:
    """Runs the stub on its own core."""
    parser = argparse.ArgumentParser(description="A model server that costs next to nothing.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, printed")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds each reply waits")
    options = parser.parse_args()
    machine.pin(machine.STUB_CORE)
    try:
        import uvloop  # pyright: ignore[reportMissingImports]

        run: Any = uvloop.run
    except ImportError:
        run = asyncio.run
    run(serve(options.port, options.delay))


if __name__ == "__main__":
    main()
