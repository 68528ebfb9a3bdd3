"""What a tool is: a name and a schema for the model, a need for the policy, an effect for recovery, and an act.

Tools own no state. What they need of a run comes in with each call, as a `ToolContext`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, Protocol, cast, runtime_checkable

import jsonschema_rs

from toka.core.capability import Capability
from toka.core.effect import Effect
from toka.core.jsonvalue import MAX_DEPTH, deeper_than, finite
from toka.core.message import ToolSpec
from toka.sandbox.command import CommandResult

Arguments = dict[str, Any]
Probed = Literal["happened", "not-happened", "unknown"]
MAX_ERRORS: Final = 5


class Hands(Protocol):
    """What tools use of a sandbox; `toka.sandbox.host.Sandbox` is one."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        timeout_s: float,
        output_limit: int | None = None,
        chosen_by: Any = "agent",
    ) -> CommandResult:
        """See `Sandbox.run`; `chosen_by` is a `toka.sandbox.profile.Kind`."""
        ...

    async def file(self, op: str, *, timeout_s: float = 30.0, body: bytes = b"", **args: Any) -> dict[str, Any]:
        """See `Sandbox.file`."""
        ...


class Mask(Protocol):
    """Takes secrets out of a text; of one that was cut at its end, also the beginning of a secret that stands there."""

    def __call__(self, text: str, *, ends_early: bool = False) -> str:
        """The text without them."""
        ...


def unmasked(text: str, *, ends_early: bool = False) -> str:  # noqa: ARG001 - as all masks
    """There are no secrets."""
    return text


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What one call may use.

    Attributes:
        hands: gives the agent's sandbox, starting it at the first need; tools that need none never call it.
        key: the step's idempotency key, the same over restarts; commands find it as TOKA_IDEMPOTENCY_KEY.
        timeout_s: seconds the call may take.
        output_limit: bytes of text that a result may have.
        agent: the agent's name, for what it signs.
        mask: takes secrets out of a text.
    """

    hands: Callable[[], Awaitable[Hands]]
    key: str
    timeout_s: float
    output_limit: int
    agent: str
    mask: Mask = unmasked

    def shown(self, text: str, *, missing: int = 0) -> str:
        """A text for a result: without secrets, then cut. See `cut` for the rest."""
        return cut(self.mask(text, ends_early=missing > 0), self.output_limit, missing=missing)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call gives back. A call that fails is a result, not an exception.

    Attributes:
        text: for the model.
        failed: whether it is an error.
        data: for the record, JSON; None when there is nothing beside the text.
    """

    text: str
    failed: bool = False
    data: dict[str, Any] | None = None


class Tool(Protocol):
    """One thing an agent can do."""

    @property
    def name(self) -> str:
        """As the model calls it."""
        ...

    @property
    def description(self) -> str:
        """What it does, for the model."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON Schema of its arguments, an object without further properties."""
        ...

    @property
    def effect(self) -> Effect:
        """What a crash in the middle of a call means."""
        ...

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """All that this very call needs to be granted.

        Raises:
            CapabilityError: the arguments ask for something that no grant can allow, such as a path outside.
        """
        ...

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """Acts. Arguments are valid and the needs are granted.

        Raises:
            SandboxError, SandboxUnavailable: the sandbox could not be started.
        """
        ...


@runtime_checkable
class CheckableTool(Tool, Protocol):
    """A tool whose act leaves a trace from which a later process can tell whether it happened."""

    async def evidence(self, args: Arguments, ctx: ToolContext) -> dict[str, Any]:
        """What to record, as JSON, before the act; changes nothing."""
        ...

    async def probe(self, args: Arguments, evidence: dict[str, Any], ctx: ToolContext) -> Probed:
        """Whether an act that was begun with this evidence happened; `unknown` when a third party changed things."""
        ...

    def happened(self, args: Arguments, evidence: dict[str, Any]) -> ToolResult:
        """The result of an act that a probe found done."""
        ...


class Described(Protocol):
    """What checking arguments needs of a tool; a `Tool` and a `ToolSpec` are ones."""

    @property
    def name(self) -> str:
        """As the model calls it."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON Schema of its arguments."""
        ...


def spec_of(tool: Tool) -> ToolSpec:
    """The tool as a model is shown it."""
    return ToolSpec(tool.name, tool.description, tool.parameters)


def validate(tool: Described, arguments_json: str) -> Arguments | str:
    """A model's arguments as a value that satisfies the tool's schema, or what is wrong with them.

    Nothing is repaired or converted: the error is for the model, which knows what it meant.

    Args:
        tool: whose schema applies.
        arguments_json: the JSON text as received.

    Returns:
        The arguments; or one text with up to five findings.
    """
    try:
        args: object = json.loads(
            arguments_json, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=finite
        )
        json.dumps(args, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return f"{tool.name}: the arguments contain half a surrogate pair, which is no text"
    except (ValueError, RecursionError) as error:
        return f"{tool.name}: the arguments are not valid JSON ({error}); send one JSON object"
    if deeper_than(MAX_DEPTH, args):
        return f"{tool.name}: the arguments are nested deeper than {MAX_DEPTH} levels"
    if not isinstance(args, dict):
        return f"{tool.name}: the arguments must be one JSON object, not {type(args).__name__}"
    checked = cast(Arguments, args)
    errors = list(_compiled(json.dumps(tool.parameters, sort_keys=True)).iter_errors(checked))
    if not errors:
        return checked
    found = "; ".join(_sentence(e.instance_path, e.message) for e in errors[:MAX_ERRORS])
    return f"{tool.name}: {found}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _sentence(path: Sequence[str | int], message: str) -> str:
    where = ".".join(map(str, path))
    return f"{where}: {_short(message)}" if where else _short(message)


def _short(message: str) -> str:
    return message if len(message) <= 300 else message[:200] + " ... " + message[-90:]


@lru_cache(maxsize=256)
def _compiled(schema: str) -> jsonschema_rs.Validator:
    """A compiled schema; a pure function of its text, kept because compiling costs more than checking."""
    return jsonschema_rs.validator_for(json.loads(schema))


def cut(text: str, limit: int, *, missing: int = 0) -> str:
    """`text` of at most about `limit` bytes: the middle gives way to a note of how many bytes are missing.

    Args:
        text: any text.
        limit: bytes of UTF-8; the note comes on top.
        missing: bytes that are missing at the end already, to be told as well.
    """
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text if not missing else f"{text}\n[... {missing} more bytes of output were not kept]"
    half = max(0, limit // 2)
    head, tail = data[: limit - half].decode("utf-8", "ignore"), data[len(data) - half :].decode("utf-8", "ignore")
    note = f"[... {len(data) - limit} bytes are missing here ...]"
    end = f"\n[... {missing} more bytes of output were not kept]" if missing else ""
    return f"{head}\n{note}\n{tail}{end}"
