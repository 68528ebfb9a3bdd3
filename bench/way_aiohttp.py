"""By hand over aiohttp alone: as little as a task can cost with an ordinary HTTP client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from task import MODEL, PROMPT, SYSTEM, TOOL, Execute, Options, by_hand, fact


@asynccontextmanager
async def opened(options: Options) -> AsyncGenerator[Execute]:
    """A session and its loop."""
    url = f"{options.url}/chat/completions"
    headers = {"Authorization": "Bearer sk-bench"}
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:

        async def task() -> str:
            messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]
            while True:
                body = {"model": MODEL, "messages": messages, "tools": [TOOL]}
                async with session.post(url, json=body) as reply:
                    message = (await reply.json())["choices"][0]["message"]
                if not message.get("tool_calls"):
                    return message["content"]
                messages.append(message)
                for call in message["tool_calls"]:
                    text = fact(**json.loads(call["function"]["arguments"]))
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})

        yield by_hand(task, options.concurrency)
