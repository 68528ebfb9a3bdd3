"""Upper bounds of tokens, from bytes: a token is at least one byte of text in every tokenizer in use (pure)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

from toka.core.message import Message, ToolSpec

PER_MESSAGE: Final = 16
"""Tokens added per message, call and tool for the provider's framing."""
PER_REQUEST: Final = 512
"""Tokens added per request with tools: providers put a prompt of their own before the tools."""
REMEMBERED: Final = 256
"""How many tool sets' sizes are remembered."""


ToolSetKey = tuple[tuple[str, str, int], ...]
"""What a tool set is known by, see `tool_set_key`."""


def tool_set_key(tools: Sequence[ToolSpec]) -> ToolSetKey:
    """What makes two tool sets the same: names, descriptions, and the identity of the schemas, which are not hashable.

    Keep the tool set with its key, so that an identity stays true.
    """
    return tuple((t.name, t.description, id(t.parameters)) for t in tools)


class Bounds:
    """Bounds the tokens of requests and replies.

    The size of a tool set is kept for all agents that have the same tools.
    """

    def __init__(self) -> None:
        self._tools: dict[ToolSetKey, tuple[Sequence[ToolSpec], int]] = {}

    def input(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> int:
        """The most tokens that a provider can count for this request, cached ones included."""
        size = sum(map(_message_size, messages)) + PER_MESSAGE
        return size + self._tool_bytes(tools) if tools else size

    def output(self, message: Message) -> int:
        """The most tokens that a provider can count for this reply, as far as it was shown to us."""
        return _message_size(message)

    def _tool_bytes(self, tools: Sequence[ToolSpec]) -> int:
        key = tool_set_key(tools)
        known = self._tools.get(key)
        if known is None:
            size = sum(
                _size(t.name) + _size(t.description) + _size(json.dumps(dict(t.parameters), ensure_ascii=False))
                for t in tools
            )
            if len(self._tools) >= REMEMBERED:
                self._tools.pop(next(iter(self._tools)))
            known = self._tools[key] = (tools, size + PER_MESSAGE * len(tools) + PER_REQUEST)
        return known[1]


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _message_size(message: Message) -> int:
    size = PER_MESSAGE + _size(message.text)
    for call in message.calls:
        size += PER_MESSAGE + _size(call.name) + _size(call.arguments)
    return size if message.opaque is None else size + _value_size(message.opaque)


def _value_size(value: Any) -> int:
    """The bytes of all text in a JSON value, with a little for each thing in it."""
    if isinstance(value, str):
        return PER_MESSAGE + _size(value)
    if isinstance(value, dict):
        return PER_MESSAGE + sum(_size(k) + _value_size(v) for k, v in cast("dict[str, Any]", value).items())
    if isinstance(value, list):
        return PER_MESSAGE + sum(map(_value_size, cast("list[Any]", value)))
    return PER_MESSAGE
