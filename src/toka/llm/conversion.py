"""Our messages and usage <-> pydantic-ai's: what all vendor wires share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, cast

from pydantic_ai import messages as pm
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from toka.core.message import Message, ToolCall, ToolSpec, Usage
from toka.llm.estimate import ToolSetKey, tool_set_key

REMEMBERED: Final = 256
"""How many tool sets stay converted, per model."""
_WHEN: Final = datetime.fromtimestamp(0, UTC)
"""Given to all parts: the time is not sent, and taking it costs more than the rest of a part."""


def to_vendor(messages: Sequence[Message], system: str) -> list[pm.ModelMessage]:
    """Our messages as pydantic-ai's.

    Args:
        messages: in order.
        system: pydantic-ai's name of the provider; opaque parts of another one are left out.
    """
    out: list[pm.ModelMessage] = []
    parts: list[pm.ModelRequestPart] = []
    for message in messages:
        if message.role == "assistant":
            if parts:
                out.append(pm.ModelRequest(parts=parts))
                parts = []
            out.append(pm.ModelResponse(parts=_spoken(message, system), provider_name=system, timestamp=_WHEN))
        elif message.role == "tool":
            parts.append(
                pm.ToolReturnPart(
                    message.name,
                    message.text,
                    message.call_id,
                    timestamp=_WHEN,
                    outcome="failed" if message.failed else "success",
                )
            )
        elif message.role == "system":
            parts.append(pm.SystemPromptPart(message.text, timestamp=_WHEN))
        else:
            parts.append(pm.UserPromptPart(message.text, timestamp=_WHEN))
    if parts:
        out.append(pm.ModelRequest(parts=parts))
    return out


def _spoken(message: Message, system: str) -> list[pm.ModelResponsePart]:
    """The parts of an assistant's message; in the order of `opaque` when there is one of this provider."""
    calls: list[pm.ModelResponsePart] = [pm.ToolCallPart(c.name, c.arguments, c.id) for c in message.calls]
    opaque = message.opaque
    if not isinstance(opaque, dict) or cast("dict[str, Any]", opaque).get("system") != system:
        return [pm.TextPart(message.text), *calls] if message.text else calls
    parts: list[pm.ModelResponsePart] = []
    text, left = 0, iter(calls)
    for kind, value in cast("dict[str, Any]", opaque)["parts"]:
        if kind == "text":
            parts.append(pm.TextPart(message.text[text : text + value]))
            text += value
        elif kind == "thinking":
            parts.append(pm.ThinkingPart(provider_name=system, **value))
        elif (call := next(left, None)) is not None:
            parts.append(replace(call, provider_name=system, provider_details=value) if value else call)  # type: ignore[arg-type]
    return parts


def from_vendor(response: pm.ModelResponse, system: str) -> Message:
    """A response as our message.

    `opaque` is None for plain text and calls. With parts that must go back unchanged it is {"system": the provider,
    "parts": [["thinking", {...}] | ["text", characters] | ["call", details or null], ...]} in the order received.
    """
    text: list[str] = []
    calls: list[ToolCall] = []
    order: list[list[Any]] = []
    keep = False
    for part in response.parts:
        if isinstance(part, pm.TextPart):
            text.append(_encodable(part.content))
            order.append(["text", len(text[-1])])
        elif isinstance(part, pm.ToolCallPart):
            arguments = _encodable(_arguments(part.args))
            calls.append(ToolCall(_encodable(part.tool_call_id), _encodable(part.tool_name), arguments))
            order.append(["call", part.provider_details])
            keep = keep or bool(part.provider_details)
        elif isinstance(part, pm.ThinkingPart):
            thinking = {"content": _encodable(part.content), "id": part.id, "signature": part.signature}
            if part.provider_details:
                thinking["provider_details"] = cast("Any", part.provider_details)
            order.append(["thinking", thinking])
            keep = True
    if not text and not calls and (refusal := (response.provider_details or {}).get("refusal")):
        text.append(_encodable(str(refusal)))
    opaque = {"system": system, "parts": order} if keep else None
    return Message("assistant", text="".join(text), calls=tuple(calls), opaque=opaque)


def _encodable(text: str) -> str:
    """`text`, with lone surrogates replaced: they can be in JSON, but not in UTF-8, and so in no record."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _arguments(arguments: object) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments if arguments is not None else {}, ensure_ascii=False)


def usage_of(usage: RequestUsage) -> Usage | None:
    """Our Usage; None when the provider told none, or numbers that cannot be."""
    counts = (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens)
    if min(counts) < 0 or usage.input_tokens <= 0:
        return None
    return Usage(*counts, calls=1)


class ToolSets:
    """Tool sets as pydantic-ai's request parameters: the same object for all agents with the same tools."""

    def __init__(self) -> None:
        self._known: dict[ToolSetKey, tuple[Sequence[ToolSpec], ModelRequestParameters]] = {}

    def of(self, tools: Sequence[ToolSpec]) -> ModelRequestParameters:
        """The parameters for a tool set."""
        key = tool_set_key(tools)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= REMEMBERED:
                self._known.pop(next(iter(self._known)))
            definitions = [
                ToolDefinition(name=t.name, description=t.description, parameters_json_schema=dict(t.parameters))
                for t in tools
            ]
            parameters = ModelRequestParameters(function_tools=definitions, allow_text_output=True)
            known = self._known[key] = (tools, parameters)
        return known[1]


class KnownTools:
    """Keeps what pydantic-ai makes of a tool set, which it would otherwise make for each request."""

    _known: dict[int, tuple[ModelRequestParameters, ModelRequestParameters]]

    def customize_request_parameters(self, model_request_parameters: ModelRequestParameters) -> ModelRequestParameters:
        """See pydantic-ai's Model; `model_request_parameters` are never changed once made."""
        known = vars(self).setdefault("_known", {})
        found = known.get(id(model_request_parameters))
        if found is None:
            if len(known) >= REMEMBERED:
                known.pop(next(iter(known)))
            made = cast("Any", super()).customize_request_parameters(model_request_parameters)
            found = known[id(model_request_parameters)] = (model_request_parameters, made)
        return found[1]
