"""The kinds of values that specs are made of, as annotated types with their rules and their JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from toka.config.diagnostics import did_you_mean, one_of, quoted
from toka.core import units
from toka.core.effect import Effect
from toka.core.ids import NAME
from toka.core.limits import LEAST_MEMORY

T = TypeVar("T")
N = TypeVar("N", int, float)
MAX_QUANTITY: Final = 100
MAX_LINE: Final = 1_000
MAX_PROSE: Final = 20_000
MAX_ITEMS: Final = 1_000


class Part(BaseModel):
    """A frozen part of a spec that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OpenPart(BaseModel):
    """A frozen part of a spec that keeps keys it does not know, in `model_extra`."""

    model_config = ConfigDict(frozen=True, extra="allow")


def keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys that a model accepts in a spec."""
    return tuple(name for name, field in model.model_fields.items() if not field.exclude)


class Priority(IntEnum):
    """How urgent something is. Sorts critical first."""

    CRITICAL = 0
    HIGH = 1
    MEDIUM = 2
    LOW = 3

    def __str__(self) -> str:
        """The word as specs write it."""
        return self.name.lower()


def fault(code: str, message: str, *, label: str = "", help: str | None = None) -> PydanticCustomError:  # noqa: A002
    """An error that a validator raises and that becomes a finding with this code."""
    return PydanticCustomError(
        "toka_finding", "{message}", {"code": code, "message": message, "label": label, "help": help}
    )


def _word(kind: str, words: dict[str, T]) -> Callable[[object], T]:
    def read(value: object) -> T:
        if isinstance(value, str) and value in words:
            return words[value]
        for known in words.values():
            if value is known:
                return known
        if not isinstance(value, str):
            raise fault("TK2002", f"{kind} must be text", label=f"expected {one_of(words)}")
        message = f"unknown {kind} {quoted(value)}"
        raise fault("TK2004", message, label=f"expected {one_of(words)}", help=did_you_mean(value, words))

    return read


def _quantity(
    read: Callable[[Any], N], low: float = 0, high: float = float("inf"), show: Callable[[Any], str] = "{:,}".format
) -> Callable[[object], N]:
    def parse(value: object) -> N:
        if not isinstance(value, (str, int, float)):
            raise fault("TK5001", "a quantity is one number or text", label="expected such as 512MB, 75% or 2h")
        if isinstance(value, str) and len(value) > MAX_QUANTITY:
            raise fault("TK5001", f"{quoted(value, 30)} is too long for a quantity", label="expected such as 512MB")
        try:
            amount = read(value)
        except units.UnitError as error:
            message = str(error).partition(";")[0]
            raise fault("TK5001", message, label=f"write {error.forms}") from None
        if not low <= amount <= high:
            upper = "" if high == float("inf") else f", at most {show(high)}"
            raise fault("TK5003", f"{value} is out of range", label=f"at least {show(low)}{upper}")
        return amount

    return parse


def _decimal(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")


def _name(kind: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str):
            raise fault("TK2002", f"{kind} must be text")
        if not NAME.fullmatch(value):
            expected = "1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
            raise fault("TK2005", f"{quoted(value)} cannot be {kind}", label=f"expected {expected}")
        return value

    return read


def _text_or_number(description: str, examples: list[str]) -> WithJsonSchema:
    return WithJsonSchema({"type": ["string", "number"], "description": description, "examples": examples})


def _name_schema() -> WithJsonSchema:
    return WithJsonSchema({"type": ["string", "number"], "pattern": f"^{NAME.pattern}$"})


PRIORITIES: Final = {str(p): p for p in Priority}
EFFECTS: Final = {e.value: e for e in Effect}
RESTARTS: Final = ("never", "on_failure", "always")
WORKSPACES: Final = ("shared", "worktree", "copy")

Line = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_LINE)]
"""One short text."""
Prose = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=MAX_PROSE)]
"""A text of any usual length."""
Optionally = Annotated[str, StringConstraints(strict=True, max_length=MAX_PROSE)]
"""A text that may be empty."""
Name = Annotated[str, BeforeValidator(_name("a name")), _name_schema()]
"""An agent's name, a task's id, a group's name."""
PriorityWord = Annotated[
    Priority,
    BeforeValidator(_word("priority", PRIORITIES)),
    PlainSerializer(str),
    WithJsonSchema({"enum": list(PRIORITIES)}),
]
EffectWord = Annotated[Effect, BeforeValidator(_word("effect", EFFECTS)), WithJsonSchema({"enum": list(EFFECTS)})]
RestartWord = Annotated[
    Literal["never", "on_failure", "always"],
    BeforeValidator(_word("restart", {word: word for word in RESTARTS})),
    WithJsonSchema({"enum": list(RESTARTS)}),
]
WorkspaceWord = Annotated[
    Literal["shared", "worktree", "copy"],
    BeforeValidator(_word("workspace", {word: word for word in WORKSPACES})),
    WithJsonSchema({"enum": list(WORKSPACES)}),
]
Duration = Annotated[
    float,
    BeforeValidator(_quantity(units.parse_duration)),
    PlainSerializer(lambda seconds: _decimal(seconds) + "s"),
    _text_or_number("A duration.", ["30s", "2h", "1h30m"]),
]
"""Seconds."""
MemorySize = Annotated[
    int,
    BeforeValidator(_quantity(units.parse_bytes, LEAST_MEMORY, show=units.format_bytes)),
    _text_or_number("A size of at least 20 MB: a sandbox and one small command take up to 16.", ["512MB", "1GB"]),
]
"""Bytes of memory."""
ByteCount = Annotated[
    int,
    BeforeValidator(_quantity(units.parse_bytes, 1024**2, show=units.format_bytes)),
    _text_or_number("A size of at least 1 MB.", ["512MB", "1GB"]),
]
"""Bytes."""
CpuShare = Annotated[
    float,
    BeforeValidator(_quantity(units.parse_cpu, 0.01, 4096)),
    _text_or_number("A share of one core, or a number of cores.", ["75%", "2"]),
]
"""Cores."""
Money = Annotated[float, BeforeValidator(_quantity(units.parse_money)), _text_or_number("US dollars.", ["$2.50"])]
"""US dollars."""
Rate = Annotated[
    int,
    BeforeValidator(_quantity(units.parse_rate)),
    PlainSerializer(lambda bits: f"{bits}bps"),
    _text_or_number("Bits per second.", ["100Mbps"]),
]
"""Bits per second."""
Count = Annotated[
    int, BeforeValidator(_quantity(units.parse_count, 0, 10**15)), _text_or_number("A whole number.", ["200k", "20"])
]
SmallCount = Annotated[
    int, BeforeValidator(_quantity(units.parse_count, 0, 100)), _text_or_number("A whole number up to 100.", ["3"])
]
ExitStatus = Annotated[
    int, BeforeValidator(_quantity(units.parse_count, 0, 255)), _text_or_number("An exit status.", ["0"])
]
ProcessCount = Annotated[
    int, BeforeValidator(_quantity(units.parse_count, 1, 10**6)), _text_or_number("A whole number from 1.", ["64"])
]
