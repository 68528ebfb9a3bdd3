"""By hand over pydantic-ai's model layer, which Toka uses too, with Toka's aiohttp transport under it. No journal."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
from openai import AsyncOpenAI
from pydantic_ai.direct import model_request
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    SystemPromptPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

from task import MODEL, PROMPT, SCHEMA, SYSTEM, Execute, Options, by_hand, fact
from toka.llm.transport import AiohttpTransport, TransportSettings


@asynccontextmanager
async def opened(options: Options) -> AsyncGenerator[Execute]:
    """A model and its loop."""
    transport = AiohttpTransport(TransportSettings(connections=0))
    async with AsyncOpenAI(
        base_url=options.url, api_key="sk-bench", http_client=httpx2.AsyncClient(transport=transport, timeout=600)
    ) as client:
        model = OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client))
        tool = ToolDefinition(name="get_fact", description="Look up a fact.", parameters_json_schema=SCHEMA)
        parameters = ModelRequestParameters(function_tools=[tool], allow_text_output=True)

        async def task() -> str:
            messages: list[ModelMessage] = [ModelRequest(parts=[SystemPromptPart(SYSTEM), UserPromptPart(PROMPT)])]
            while True:
                reply = await model_request(model, messages, model_request_parameters=parameters)
                calls = [part for part in reply.parts if isinstance(part, ToolCallPart)]
                if not calls:
                    return reply.text or ""
                answers = [ToolReturnPart(c.tool_name, fact(**c.args_as_dict()), c.tool_call_id) for c in calls]
                messages += [reply, ModelRequest(parts=answers)]

        yield by_hand(task, options.concurrency)
    await transport.aclose()
