"""Models that speak OpenAI's Chat Completions: OpenAI itself, Ollama, llama.cpp's server, and compatible ones."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, Final, cast

import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, NotGiven, Omit
from openai.types import CompletionUsage, chat
from openai.types.completion_usage import PromptTokensDetails
from pydantic import ValidationError
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
    vars(made)["chat"] = SimpleNamespace(completions=LeanCompletions(made, http))
    return made


def model(endpoint: Endpoint, sdk: AsyncOpenAI) -> OpenAIChatModel:
    """pydantic-ai's model for an endpoint."""
    if endpoint.provider == "ollama":
        return _Ollama(endpoint.name, provider=OllamaProvider(openai_client=sdk))
    profile = None if endpoint.provider == "openai" and endpoint.base_url is None else COMPATIBLE
    return _OpenAI(endpoint.name, provider=OpenAIProvider(openai_client=sdk), profile=profile)


_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


class LeanCompletions:
    """The SDK's `chat.completions` without the SDK's engine: one request through our transport, and its reply.

    The engine walks over the whole body for aliases and files that a chat request cannot have, copies its options
    three times, and builds and merges an address and two dozen headers for each request. That costs more than all the
    rest of a call. What is sent is the same but for the order of the keys and the headers that describe this machine;
    what is raised is the same.
    """

    def __init__(self, client: AsyncOpenAI, http: httpx2.AsyncClient) -> None:
        self._http = http
        self._url = httpx2.URL(f"{str(client.base_url).rstrip('/')}/chat/completions")
        fixed = {**client.default_headers, **client.auth_headers}
        self._headers = {
            name: value
            for name, value in fixed.items()
            if isinstance(value, str) and not name.lower().startswith("x-stainless")
        }

    async def create(
        self, *, extra_headers: Any = None, extra_body: Any = None, timeout: Any = None, **body: Any
    ) -> chat.ChatCompletion:
        """See openai's AsyncCompletions.create; does not stream."""
        given = {name: value for name, value in body.items() if not isinstance(value, Omit | NotGiven)}
        if extra_body is not None:
            given |= extra_body
        request = httpx2.Request(
            "POST",
            self._url,
            headers=self._headers | (extra_headers or {}),
            content=_JSON.encode(given).encode(),
            extensions={"timeout": {"read": timeout}} if isinstance(timeout, int | float) else {},
        )
        try:
            response = await self._http.send(request)
        except httpx2.TimeoutException as e:
            raise APITimeoutError(request=request) from e
        except httpx2.TransportError as e:
            raise APIConnectionError(request=request) from e
        if not response.is_success:
            raise APIStatusError(f"status {response.status_code}", response=response, body=_error_of(response))
        try:
            return chat.ChatCompletion.model_validate_json(response.content)
        except ValidationError:
            return chat.ChatCompletion.construct(**response.json())  # what can be used of it is used


def _error_of(response: httpx2.Response) -> Any:
    """What the SDK keeps of a refusal: the `error` of its JSON, the JSON without one, or its text."""
    try:
        body: Any = response.json()
    except ValueError:
        return response.text
    return cast("dict[str, Any]", body).get("error", body) if isinstance(body, dict) else body


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
