"""Models that speak OpenAI's Chat Completions: OpenAI itself, Ollama, llama.cpp's server, and compatible ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import httpx2
from openai import AsyncOpenAI, NotGiven, Omit
from openai.types import CompletionUsage, chat
from openai.types.completion_usage import PromptTokensDetails
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

from toka.llm.conversion import KnownTools
from toka.llm.resolve import Endpoint

NO_KEY: Final = "no-key"
"""Sent where a server needs no key, because the SDK insists on one."""
OPENAI_URL: Final = "https://api.openai.com/v1"
COMPATIBLE: Final = OpenAIModelProfile(
    openai_chat_supports_max_completion_tokens=False,
    openai_supports_strict_tool_definition=False,
    openai_system_prompt_role="system",
)
"""For servers that speak OpenAI's protocol without being OpenAI: its common core."""


def client(endpoint: Endpoint, http: httpx2.AsyncClient) -> AsyncOpenAI:
    """An SDK client for the endpoint's server, without retries of its own."""
    made = AsyncOpenAI(
        base_url=endpoint.base_url or OPENAI_URL, api_key=endpoint.key or NO_KEY, http_client=http, max_retries=0
    )
    if endpoint.base_url is not None:
        made.organization = made.project = None  # the SDK takes them from the environment; they are for OpenAI alone
    vars(made)["chat"] = SimpleNamespace(completions=LeanCompletions(made))
    return made


def model(endpoint: Endpoint, sdk: AsyncOpenAI) -> OpenAIChatModel:
    """pydantic-ai's model for an endpoint."""
    if endpoint.provider == "ollama":
        return _Ollama(endpoint.name, provider=OllamaProvider(openai_client=sdk))
    profile = None if endpoint.provider == "openai" and endpoint.base_url is None else COMPATIBLE
    return _OpenAI(endpoint.name, provider=OpenAIProvider(openai_client=sdk), profile=profile)


class LeanCompletions:
    """The SDK's `chat.completions` without its walk over the whole request body.

    That walk looks up aliases and files in the parameters' type hints, finds none in a chat request, and costs more
    than everything else the SDK does. What is sent is the same but for the order of the keys.
    """

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def create(
        self, *, extra_headers: Any = None, extra_body: Any = None, timeout: Any = None, **body: Any
    ) -> chat.ChatCompletion:
        """See openai's AsyncCompletions.create; does not stream."""
        options: Any = {"headers": extra_headers or {}, "security": {"bearer_auth": True}, "timeout": timeout}
        if extra_body is not None:
            options["extra_json"] = extra_body
        given = {name: value for name, value in body.items() if not isinstance(value, Omit | NotGiven)}
        return await self._client.post("/chat/completions", cast_to=chat.ChatCompletion, body=given, options=options)


class _OpenAI(KnownTools, OpenAIChatModel):
    def _validate_completion(self, response: chat.ChatCompletion) -> Any:
        return super()._validate_completion(_tolerable(response))

    def _map_usage(self, response: chat.ChatCompletion) -> RequestUsage:
        return _usage(response.usage)


class _Ollama(KnownTools, OllamaModel):
    def _validate_completion(self, response: chat.ChatCompletion) -> Any:
        return super()._validate_completion(_tolerable(response))

    def _map_usage(self, response: chat.ChatCompletion) -> RequestUsage:
        return _usage(response.usage)


def _tolerable(response: Any) -> chat.ChatCompletion:
    """A reply without what nobody needs stays a reply: an answer that was paid for is not lost to a missing id."""
    response.id = response.id or ""
    response.model = response.model or ""
    response.object = "chat.completion"
    usage = response.usage
    cached = _count(getattr(usage, "prompt_tokens_details", None), "cached_tokens")
    response.usage = CompletionUsage(
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        total_tokens=0,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached) if cached else None,
    )
    return response


def _count(usage: object, name: str) -> int:
    """A number of tokens; zero where there is none, or no number."""
    value = getattr(usage, name, 0)
    return value if isinstance(value, int) else 0


def _usage(usage: CompletionUsage | None) -> RequestUsage:
    if usage is None:
        return RequestUsage()
    cached = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
    return RequestUsage(
        input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, cache_read_tokens=cached
    )
