"""The task that every way executes: two requests to the model and one call of a tool in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYSTEM = "You are a helpful assistant. Use the tool, then answer."
PROMPT = "Look up the fact named alpha and tell me."
MODEL = "bench-model"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"key": {"type": "string"}},
    "required": ["key"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_fact", "description": "Look up a fact.", "parameters": SCHEMA},
}


@dataclass(frozen=True, slots=True)
class Options:
    """What one measured process is to do.

    Attributes:
        tasks: how many tasks are measured.
        concurrency: how many are executed at one time.
        url: the model server, up to and including /v1.
        state: a directory on disk for the journal.
    """

    tasks: int
    concurrency: int
    url: str
    state: Path


Execute = Callable[[int], Awaitable[int]]
"""Executes so many tasks, `concurrency` at a time; returns how many ended as they should."""
Opened = AbstractAsyncContextManager[Execute]


def fact(key: str) -> str:
    """What the tool does in all ways."""
    return f"{key}=42"


def by_hand(task: Callable[[], Awaitable[str]], concurrency: int) -> Execute:
    """Executes a hand-written loop over and over."""

    async def execute(tasks: int) -> int:
        numbers = iter(range(tasks))
        good = 0

        async def worker() -> None:
            nonlocal good
            for _ in numbers:
                text = await task()
                good += "42" in text

        await asyncio.gather(*(worker() for _ in range(min(concurrency, tasks))))
        return good

    return execute
