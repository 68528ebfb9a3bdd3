"""Vendor models through pydantic-ai's model layer.

pydantic-ai knows each provider's protocol; the loop, the retries, the budgets and the durable form are ours. Our
messages go in, one direct request is made, our reply comes out. Nothing in a reply is repaired: arguments that are not
JSON stay as they came (sent back, they are wrapped by pydantic-ai as `{"INVALID_JSON": "..."}`, because providers want
an object). Two calls of one reply may have the same id: whoever answers them tells the model.

Only this module, `conversion` and the `wire_*` modules import pydantic-ai, and only this module is imported by others;
a wire, with its vendor's SDK, is imported when the first of its models is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

import httpx2
from pydantic_ai import messages as pm
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import AgentRunError, UserError
from pydantic_ai.models import Model as PydanticModel
from pydantic_ai.settings import ModelSettings

from toka.core.clock import Clock
from toka.core.message import Usage
from toka.llm.conversion import ToolSets, from_vendor, to_vendor, usage_of
from toka.llm.failure import failed
from toka.llm.model import Finish, ModelReply, ModelRequest
from toka.llm.resolve import Endpoint
from toka.llm.sdk_failures import call_error
from toka.llm.transport import AiohttpTransport, TransportSettings

_UNREADABLE: Final = (AgentRunError, ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError)
"""What pydantic-ai and the SDKs raise at a reply that does not have the documented form."""
_FINISH: Final[dict[str | None, Finish]] = {"length": "length", "content_filter": "refused"}


class VendorModels:
    """Makes vendor models. One SDK client per server and key; all share one transport and its connections."""

    def __init__(
        self, clock: Clock, transport: TransportSettings | None = None, redact: Callable[[str], str] = str
    ) -> None:
        """Makes none yet.

        Args:
            clock: time, for Retry-After dates.
            transport: None: the defaults.
            redact: takes secrets out of what providers say of failures and of themselves.
        """
        self._clock = clock
        self._redact = redact
        self._settings = transport or TransportSettings()
        self._transport = AiohttpTransport(self._settings)
        self._clients: dict[tuple[str, str | None, str | None], Any] = {}

    def model(self, name: str, endpoint: Endpoint) -> VendorModel:
        """The model behind an endpoint; `name` is its model string."""
        if endpoint.wire == "anthropic":
            from toka.llm import wire_anthropic as wire
        else:
            from toka.llm import wire_openai as wire
        server = (endpoint.wire, endpoint.base_url, endpoint.key)
        sdk: Any = self._clients.get(server)
        if sdk is None:
            http = httpx2.AsyncClient(
                transport=self._transport, timeout=self._settings.deadline_s, follow_redirects=False, trust_env=False
            )
            self._clients[server] = sdk = cast("Any", wire.client(endpoint, http))
        return VendorModel(name, wire.model(endpoint, sdk), self._clock, self._redact)

    async def aclose(self) -> None:
        """Closes all connections. Safe to call twice."""
        clients, self._clients = self._clients, {}
        for sdk in clients.values():
            await sdk.close()
        await self._transport.aclose()


class VendorModel:
    """A Model over one of pydantic-ai's. Closed by the `VendorModels` that made it."""

    def __init__(self, name: str, model: PydanticModel[Any], clock: Clock, redact: Callable[[str], str] = str) -> None:
        self._name = name
        self._model = model
        self._clock = clock
        self._redact = redact
        self._tools = ToolSets()

    @property
    def name(self) -> str:
        """See Model."""
        return self._name

    async def request(self, request: ModelRequest) -> ModelReply:
        """See Model."""
        settings: ModelSettings = {"timeout": request.timeout_s}
        if request.max_tokens is not None:
            settings["max_tokens"] = request.max_tokens
        if request.key:
            settings["extra_headers"] = {"Idempotency-Key": request.key}
        messages = to_vendor(request.messages, self._model.system)
        try:
            response = await model_request(
                self._model,
                messages,
                model_settings=settings,
                model_request_parameters=self._tools.of(request.tools),
                instrument=False,
            )
            return self._reply(response)
        except UnicodeEncodeError as e:
            raise failed("invalid_request", f"{self._name}: the request holds text that is no Unicode") from e
        except UserError as e:
            why = self._redact(str(e))
            raise failed("invalid_request", f"{self._name}: the request cannot be sent: {why}") from e
        except _UNREADABLE as e:
            raise call_error(e, self._name, self._clock.now(), self._redact) from e

    def _reply(self, response: pm.ModelResponse) -> ModelReply:
        message = from_vendor(response, self._model.system)
        usage = usage_of(response.usage)
        finish = _FINISH.get(response.finish_reason) or ("tool_calls" if message.calls else "stop")
        model = self._redact(response.model_name or "") or self._name.partition(":")[2]
        return ModelReply(message, usage or Usage(calls=1), model, None, finish, estimated=usage is None)

    async def aclose(self) -> None:
        """See Model. The connections belong to all models of the provider."""
