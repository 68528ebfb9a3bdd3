from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from llm.model_server import ModelServer
from toka.core.ids import AgentName, TaskId
from toka.core.message import Message, ToolSpec, Usage
from toka.errors import LimitExceeded
from toka.llm.model import Estimate, ModelRequest

READ_FILE = ToolSpec(
    "read_file",
    "Reads a file.",
    {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"], "additionalProperties": False},
)
TOOLS = (READ_FILE,)


def ask(*messages: Message, **changes: Any) -> ModelRequest:
    """A request with sensible values for what a test does not name."""
    fields: dict[str, Any] = {
        "model": "openai:gpt-4o",
        "messages": messages or (Message("system", "Be brief."), Message("user", "Read a.txt.")),
        "tools": TOOLS,
        "max_tokens": 500,
        "agent": AgentName("fixer"),
        "task": TaskId("fix-sum"),
        "call": 1,
        "key": "0123456789abcdef",
        "timeout_s": 10.0,
    }
    return ModelRequest(**(fields | changes))


class FakeClock:
    """Sleeping takes no time and is recorded; deadlines are real, so that what hangs still ends."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def boottime(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        await asyncio.sleep(0)

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[Any]:
        return asyncio.timeout(seconds)


class Ledger:
    """A meter that writes everything down, and refuses from attempt `allowed + 1` on."""

    def __init__(self, allowed: int = 100, *, slow: bool = False) -> None:
        self.allowed = allowed
        self.slow = slow
        self.reserved: list[tuple[int, Estimate]] = []
        self.settled: list[tuple[int, Usage, float | None, str | None]] = []

    def reserve(self, attempt: int, estimate: Estimate, /) -> Any:
        if attempt > self.allowed:
            raise LimitExceeded("task fix-sum", self.allowed, attempt, "model calls")
        self.reserved.append((attempt, estimate))
        return asyncio.sleep(0) if self.slow else None

    def settle(self, attempt: int, usage: Usage, cost_usd: float | None, error: str | None, /) -> Any:
        self.settled.append((attempt, usage, cost_usd, error))
        return asyncio.sleep(0) if self.slow else None


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with ModelServer() as running:
        yield running


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
