"""By hand over the `openai` SDK with its default client, on which most frameworks stand."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI

from task import MODEL, PROMPT, SYSTEM, TOOL, Execute, Options, by_hand, fact


@asynccontextmanager
async def opened(options: Options) -> AsyncGenerator[Execute]:
    """A client and its loop."""
    tools: Any = [TOOL]
    async with AsyncOpenAI(base_url=options.url, api_key="sk-bench", timeout=600) as client:

        async def task() -> str:
            messages: list[Any] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": PROMPT}]
            while True:
                reply = await client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
                message = reply.choices[0].message
                if not message.tool_calls:
                    return message.content or ""
                messages.append(message.model_dump(exclude_none=True))
                for call in message.tool_calls:
                    function: Any = call.function  # type: ignore[union-attr]
                    text = fact(**json.loads(function.arguments))
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": text})

        yield by_hand(task, options.concurrency)
