"""The durable form of a conversation: ours, versioned, independent of any provider or library.

JSON form, version 1: {"role", "text"?, "calls"?: [[id, name, arguments]], "call_id"?, "name"?, "failed"?, "opaque"?}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

VERSION = 1
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the model wrote it.

    Attributes:
        id: the provider's id of the call, unique within one reply.
        name: the tool's name, possibly one that does not exist.
        arguments: the JSON text as received; it may be malformed, and is never repaired.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a conversation.

    Attributes:
        role: who speaks. `tool` messages answer one call.
        text: what is said; empty when there is nothing but calls.
        calls: the tool calls of an assistant's message, in order.
        call_id: of a tool message: the call it answers.
        name: of a tool message: the tool's name.
        failed: of a tool message: True when the answer is an error.
        opaque: provider parts that must go back unchanged (signed thinking); a JSON value, None when there are none.
    """

    role: Role
    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""
    failed: bool = False
    opaque: Any = None

    def to_json(self) -> dict[str, Any]:
        """The durable form; fields at their default are left out."""
        out: dict[str, Any] = {"role": self.role}
        if self.text:
            out["text"] = self.text
        if self.calls:
            out["calls"] = [[c.id, c.name, c.arguments] for c in self.calls]
        if self.call_id:
            out["call_id"] = self.call_id
        if self.name:
            out["name"] = self.name
        if self.failed:
            out["failed"] = True
        if self.opaque is not None:
            out["opaque"] = self.opaque
        return out

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Message:
        """The inverse of `to_json`; unknown fields are ignored, so that an older Toka reads a newer record."""
        return Message(
            role=data["role"],
            text=data.get("text", ""),
            calls=tuple(ToolCall(c[0], c[1], c[2]) for c in data.get("calls", ())),
            call_id=data.get("call_id", ""),
            name=data.get("name", ""),
            failed=data.get("failed", False),
            opaque=data.get("opaque"),
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a model call used.

    Attributes:
        input_tokens: all tokens read, cached ones included.
        output_tokens: all tokens written, reasoning included.
        cache_read_tokens: part of `input_tokens` served from the provider's cache.
        cache_write_tokens: part of `input_tokens` written to the provider's cache.
        calls: how many requests were answered or charged.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    calls: int = 0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        """The sum, field by field."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.calls + other.calls,
        )

    def to_json(self) -> list[int]:
        """[input, output, cache_read, cache_write, calls]."""
        return [
            self.input_tokens, self.output_tokens, self.cache_read_tokens, self.cache_write_tokens, self.calls,
        ]  # fmt: skip

    @staticmethod
    def from_json(data: list[int]) -> Usage:
        """The inverse of `to_json`."""
        return Usage(*data[:5])


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as it is shown to a model: name, what it does, and the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]
