"""The values that an agent leaves: taken from its last command, a file or its report, and checked for their types."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from toka.config.flow import Output, ValueType
from toka.core.ids import TaskId
from toka.core.jsonvalue import MAX_DEPTH, deeper_than, finite
from toka.core.message import ToolSpec
from toka.core.reference import as_text, substitute, value_of
from toka.errors import SandboxError
from toka.events.flow import OutputsMade
from toka.llm.prompts import report_tool
from toka.runtime.context import AgentContext
from toka.runtime.values import ValueMissing

MAX_BYTES: Final = 1024 * 1024
"""Bytes of one output."""
MAX_ENTRIES: Final = 100_000
"""Entries of a list."""
INLINE_BYTES: Final = 16_384
"""Values above this size together go to a blob."""
_READ_S: Final = 30.0


def report_of(agent: AgentContext) -> ToolSpec:
    """The report with which an agent's last task ends: it holds the values that the agent is to report."""
    flow = agent.config.flow
    named = flow.outputs.items() if flow is not None else ()
    return report_tool({n: (SCHEMAS[o.type], o.description) for n, o in named if o.source == "report"})


def last_talk(agent: AgentContext) -> TaskId | None:
    """The last task that a model does; None when there is none."""
    return next((t.id for t in reversed(agent.config.task_list(agent.run.enabled)) if t.run is None), None)


async def collect(
    agent: AgentContext, stdout: Callable[[], str | None], reported: Mapping[str, Any]
) -> OutputsMade | None:
    """What an agent leaves that has done everything else; None when its spec declares nothing.

    Args:
        agent: the agent.
        stdout: gives what its last command printed on standard output; None when it ran none.
        reported: what its last report gives as values, by name.

    Raises:
        ValueMissing: one is not there, too large, or not of its type; the message says which.
    """
    flow = agent.config.flow
    if flow is None or not flow.outputs:
        return None
    values: dict[str, Any] = {}
    for name, output in flow.outputs.items():
        try:
            values[name] = await _one(agent, name, output, stdout, reported)
        except ValueMissing as problem:
            raise ValueMissing(f"the output {name} {problem}") from None
    values = agent.run.runtime.redact(values)
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if len(text) <= INLINE_BYTES:
        return OutputsMade(values)
    return OutputsMade(blob=await agent.run.recorder.put_blob(text.encode("utf-8", "surrogatepass")))


async def _one(
    agent: AgentContext, name: str, output: Output, stdout: Callable[[], str | None], reported: Mapping[str, Any]
) -> Any:
    match output.source:
        case "report":
            if name not in reported:
                raise ValueMissing("is not in the report")
            return _typed(output.type, reported[name])
        case "stdout":
            if (printed := stdout()) is None:
                raise ValueMissing("has no command that printed it")
            return parse_output(output.type, printed)
        case "file":
            return parse_output(output.type, await _file(agent, output.path or ""))


async def _file(agent: AgentContext, path: str) -> str:
    path = substitute(path, lambda each: as_text(value_of(each, agent.values.known)))
    try:
        hands = await agent.hands.sandbox()
        answer = await hands.file("read", timeout_s=_READ_S, path=path, start=1, lines=None, limit=MAX_BYTES + 1)
    except SandboxError as error:
        raise ValueMissing(f"could not be read from {path}: {error.message}") from None
    if "error" in answer:
        raise ValueMissing(f"is not there: {answer['message']}")
    if answer["binary"]:
        raise ValueMissing(f"is no text: {path} is a binary file")
    if answer["size"] > MAX_BYTES:
        raise ValueMissing(f"has {answer['size']} bytes in {path}; an output has at most {MAX_BYTES}")
    text: bytes = answer["body"]
    return agent.run.runtime.mask(text.decode("utf-8", "replace"))


def parse_output(kind: ValueType, text: str) -> Any:
    """A text as a value of a type.

    Raises:
        ValueMissing: it is none, or too large.
    """
    if (size := len(text.encode("utf-8", "replace"))) > MAX_BYTES:
        raise ValueMissing(f"has {size} bytes; an output has at most {MAX_BYTES}")
    if kind == "text":
        return text.removesuffix("\n")
    if kind == "lines":
        return _typed("lines", [line.removesuffix("\r") for line in text.split("\n") if line.strip()])
    if kind == "boolean" and text.strip() in ("True", "False"):  # as Python prints them
        text = text.lower()
    if not text.strip():
        raise ValueMissing(f"is empty, which is no {kind}")
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=finite)
    except (ValueError, RecursionError):
        raise ValueMissing(f"is no {kind}: {_short(text)}") from None
    return _typed(kind, value)


def _typed(kind: ValueType, value: Any) -> Any:
    """A value of a type. Raises ValueMissing when it is not of that type."""
    if deeper_than(MAX_DEPTH, value):
        raise ValueMissing(f"is nested deeper than {MAX_DEPTH} levels")
    if kind == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)  # to JSON these are the same
    if not _FITS[kind](value):
        raise ValueMissing(f"is no {_NAMES.get(kind, kind)}: {_short(json.dumps(value, ensure_ascii=False))}")
    count = len(cast("list[Any]", value)) if isinstance(value, list) else 0
    if count > MAX_ENTRIES:
        raise ValueMissing(f"has {count} entries; a list has at most {MAX_ENTRIES}")
    if (size := len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))) > 2 * MAX_BYTES:
        raise ValueMissing(f"has {size} bytes; an output has at most {MAX_BYTES}")
    return cast(object, value)


def _lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in cast("list[Any]", value))


_FITS: Final[Mapping[ValueType, Callable[[Any], bool]]] = {
    "text": lambda v: isinstance(v, str),
    "lines": _lines,
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "list": lambda v: isinstance(v, list),
    "json": lambda _: True,
}
_NAMES: Final = {"lines": "list of lines"}

SCHEMAS: Final[Mapping[ValueType, Mapping[str, Any]]] = {
    "text": {"type": "string", "maxLength": 100_000},
    "lines": {"type": "array", "items": {"type": "string"}, "maxItems": 10_000},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "list": {"type": "array", "maxItems": 10_000},
    "json": {},
}
"""What a report may say of an output, by its type."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 80 else flat[:79] + "…"
