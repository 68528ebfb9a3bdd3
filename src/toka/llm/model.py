"""What a model is to Toka: one request in, one reply out, and a meter that is asked before each attempt.

The values are ours and free of any vendor's types, so that a request can be recorded, priced, scripted and sent to
whatever provider its model string names.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Literal, Protocol

from toka.core.ids import AgentName, TaskId
from toka.core.message import Message, ToolSpec, Usage

Finish = Literal["stop", "tool_calls", "length", "refused"]
"""Why a reply ended: said all · wants tools run · cut off at `max_tokens` · the model or its provider declined."""


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One question to a model.

    Attributes:
        model: the model string, `provider:name` (see `toka.llm.resolve`).
        messages: the conversation; only the first may have the role `system`; never empty.
        tools: what the model may call, in the order shown to it. Pass the same tuple object for all calls of an agent:
            adapters cache its conversion by identity.
        max_tokens: upper bound of the reply in tokens; None: the gateway's default.
        agent: who asks.
        task: for which task; objectives use `objective-N`.
        call: 1-based number of this model call within the task, counted over the task's attempts.
        key: idempotency key of the step; the same when the step runs again after a crash.
        timeout_s: seconds for the whole call, waits and repeated attempts included.
        attempt: 1-based number of the attempt at this call; set by the gateway.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    max_tokens: int | None
    agent: AgentName
    task: TaskId
    call: int
    key: str
    timeout_s: float
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A model's answer.

    Attributes:
        message: role `assistant`: text, calls and the provider's opaque parts.
        usage: tokens as the provider counted them; `calls` is 1.
        model: the name the provider says it used; the requested name when it says none.
        cost_usd: US dollars; None when the price is unknown. Adapters leave None, the gateway prices.
        finish: why it ended.
        estimated: True when the provider reported no usable usage and `usage` is an upper bound of ours.
    """

    message: Message
    usage: Usage
    model: str
    cost_usd: float | None
    finish: Finish
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """The most that one attempt can cost.

    Attributes:
        input_tokens: an upper bound: the UTF-8 bytes of messages and tools, plus framing.
        max_tokens: the bound of the reply in tokens.
        cost_usd: US dollars at the highest price that applies; None when the price is unknown.
    """

    input_tokens: int
    max_tokens: int
    cost_usd: float | None


class Model(Protocol):
    """Something that answers requests. One instance serves all agents at the same time."""

    @property
    def name(self) -> str:
        """The model string it was made for."""
        ...

    async def request(self, request: ModelRequest) -> ModelReply:
        """Makes one attempt within `request.timeout_s` seconds; does not retry.

        Cancelling it ends the call in flight and closes its connection.

        Raises:
            ModelUnavailable: the provider does not answer this call now (connection, timeout, 429, 5xx).
            ModelRefused: the provider rejects the request, whatever we repeat.
            ModelError: what came back is not a usable reply.

        What is known beyond the message is in `toka.llm.failure.failure_of(error)`.
        """
        ...

    async def aclose(self) -> None:
        """Releases connections. Safe to call twice."""
        ...


class Meter(Protocol):
    """Who pays. Both methods may be plain or async: the gateway awaits what they return unless it is None."""

    def reserve(self, attempt: int, estimate: Estimate, /) -> Awaitable[None] | None:
        """Called before every attempt; the attempt is made only when this returns.

        A reservation whose call raises or is cancelled counts as not made: it will not be settled.

        Raises:
            LimitExceeded: there is not enough left in some scope; nothing is sent.
        """
        ...

    def settle(
        self, attempt: int, usage: Usage, cost_usd: float | None, error: str | None, /
    ) -> Awaitable[None] | None:
        """Called once after every reserved attempt, also when it failed or was cancelled.

        It may run while its task is being cancelled; what must be written is for the meter to shield. What it raises
        goes to the caller in place of the reply, so a bill above its reservation should not raise here.

        Args:
            attempt: the number given to `reserve`.
            usage: what was used: zero (`calls` 0) when the provider surely charges nothing, the reservation when that
                is unknown (a lost reply).
            cost_usd: US dollars for `usage`; None when the price is unknown.
            error: None for a usable reply, else the failure's kind (`timeout`, `cancelled` ...).
        """
        ...
