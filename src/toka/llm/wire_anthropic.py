"""Models that speak Anthropic's Messages protocol."""

from __future__ import annotations

from typing import Any, Final

import httpx2
from anthropic import AsyncAnthropic
from anthropic.types.beta import BetaMessage, BetaUsage
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

from toka.llm.conversion import KnownTools
from toka.llm.resolve import Endpoint

ANTHROPIC_URL: Final = "https://api.anthropic.com"


def client(endpoint: Endpoint, http: httpx2.AsyncClient) -> AsyncAnthropic:
    """An SDK client for the endpoint's server, without retries of its own."""
    return AsyncAnthropic(
        base_url=endpoint.base_url or ANTHROPIC_URL, api_key=endpoint.key or "", http_client=http, max_retries=0
    )


def model(endpoint: Endpoint, sdk: AsyncAnthropic) -> AnthropicModel:
    """pydantic-ai's model for an endpoint."""
    return _Anthropic(endpoint.name, provider=AnthropicProvider(anthropic_client=sdk))


class _Anthropic(KnownTools, AnthropicModel):
    def _process_response(self, response: BetaMessage, *args: Any, **kwargs: Any) -> ModelResponse:
        if not _countable(response.usage):
            response.usage = BetaUsage(input_tokens=0, output_tokens=0)
        return super()._process_response(response, *args, **kwargs)


def _countable(usage: Any) -> bool:
    """Whether a usage is there and holds numbers of tokens; the SDK does not check what it parses."""
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    counts = [getattr(usage, name, None) for name in names]
    return all(isinstance(c, int) and c >= 0 for c in counts[:2]) and all(
        c is None or (isinstance(c, int) and c >= 0) for c in counts[2:]
    )
