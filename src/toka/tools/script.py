"""A tool that is a script of somebody else's. It runs inside the agent's sandbox, and its text is all that it brings.

The script is one file for the system's Python with the standard library only. It finds its arguments, as JSON, in
`sys.argv[1]`, works in the workspace, and prints as its last line a JSON object: `text` for the model, and if it likes
`failed` (true or false) and `data` (an object for the record). It can start no program beside python3 and psql.

Beside it, a JSON object describes it:

| key | what it says |
| --- | --- |
| `description` | what the tool does, for the model |
| `parameters` | JSON Schema of its arguments, an object without further properties |
| `needs` | what a call needs to be granted: capabilities with their arguments, as in a spec; `{x}` is the argument x |
| `effect` | after a crash in the middle: `pure` or `idempotent` runs again, `once` (without this key) is asked about |
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import jsonschema_rs

from toka.core.capability import ARGUMENTS, Capability, CapabilityError, Grant
from toka.core.catalogue import Resolution, resolve
from toka.core.effect import Effect
from toka.tools.files import path_of
from toka.tools.inside import ALONE
from toka.tools.shell import ending
from toka.tools.tool import Arguments, ToolContext, ToolResult, cut

MAX_SCRIPT: Final = 64 * 1024
"""Bytes of a script, and of what describes it."""
MAX_DATA: Final = 64 * 1024
"""Bytes of output beyond the text."""
KEYS: Final = ("description", "parameters", "needs", "effect")
EFFECTS: Final = (Effect.PURE, Effect.IDEMPOTENT, Effect.ONCE)
_SAMPLES: Final = {"paths": "a", "hosts": "a.example.org", "programs": "a", "ports": "443"}

Needs = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Capability -> argument -> items, of which `{x}` stands for an argument of the call."""


class Unfit(ValueError):
    """What was found is no tool; the message says why."""


@dataclass(frozen=True, slots=True)
class ScriptTool:
    """See Tool.

    Attributes:
        name: as the model calls it.
        description: for the model.
        parameters: JSON Schema of its arguments.
        effect: what a crash in the middle means.
        needed: what a call needs, see `Needs`.
        script: the program's text.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    effect: Effect
    needed: Needs
    script: str

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """What the description says, with the call's arguments in it.

        Raises:
            CapabilityError: an argument is none that could be granted, such as a path outside the workspace.
        """
        out: list[Capability] = []
        for name, arguments in self.needed.items():
            filled = {kind: tuple(_filled(kind, items, args)) for kind, items in arguments.items()}
            found = resolve(name, filled)
            if not found.capabilities:
                raise CapabilityError(found.note)
            out += found.capabilities
        return tuple(out)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The names of the primitives that a call needs."""
        return tuple(dict.fromkeys(c.name for need in self.needed.items() for c in _sampled(*need).capabilities))

    def fits(self, grant: Grant) -> bool:
        """Whether any call at all can be granted: what its arguments decide is left open."""
        for name, arguments in self.needed.items():
            fixed = {kind: items for kind, items in arguments.items() if not any(map(_is_place, items))}
            wanted = resolve(name, fixed).capabilities or _sampled(name, arguments).capabilities
            if not all(any(own.intersect(c) for own in grant.named(c.name)) for c in wanted):
                return False
        return True

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool. A script that raises, hangs or prints no result gives a failure with its kind in `data`."""
        hands = await ctx.hands()
        result = await hands.run(
            [*ALONE, self.script, json.dumps(args)],
            env={"TOKA_IDEMPOTENCY_KEY": ctx.key},
            timeout_s=ctx.timeout_s,
            output_limit=ctx.output_limit + MAX_DATA,
            chosen_by="tool",
        )
        said = result.output.decode("utf-8", "replace").strip()
        if result.failed and (note := ending(result, ctx.timeout_s)):
            return self._failure("raised" if result.ended == "exited" else result.ended, note, said, ctx)
        answer = _answer(said.rpartition("\n")[2])
        if answer is None or result.dropped:
            return self._failure("no-result", "its last line is no result", said, ctx)
        return ToolResult(ctx.shown(answer["text"]), answer.get("failed", False), answer.get("data"))

    def _failure(self, kind: str, why: str, said: str, ctx: ToolContext) -> ToolResult:
        """The one form of all failures of the script itself: one it reports is a result like any other."""
        text = f"the tool {self.name} failed: {why}"
        return ToolResult(
            cut(f"{text}\n{said}" if said else text, ctx.output_limit), failed=True, data={"tool_error": kind}
        )


def _filled(kind: str, items: tuple[str, ...], args: Arguments) -> Iterator[str]:
    for item in items:
        value: Any = args[item[1:-1]] if _is_place(item) else item
        for text in cast("list[str]", value) if isinstance(value, list) else [value]:
            yield path_of({"path": text}) if kind == "paths" else text


def _is_place(item: str) -> bool:
    return item.startswith("{") and item.endswith("}")


def _answer(line: str) -> dict[str, Any] | None:
    """A script's result; None when it is none."""
    try:
        answer: object = json.loads(line)
        json.dumps(answer, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    found = cast("dict[str, Any]", answer)
    kinds = {"text": str, "failed": bool, "data": dict}
    fits = all(isinstance(found[key], kinds[key]) for key in found if key in kinds)
    return found if fits and "text" in found else None


def read_tool(name: str, script: str, manifest: str) -> ScriptTool:
    """A tool of a script and what describes it.

    Raises:
        Unfit: it is none.
    """
    try:
        told: object = json.loads(manifest)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise Unfit("what describes it is no JSON object")
    table = cast("dict[str, Any]", told)
    if odd := [key for key in table if key not in KEYS]:
        raise Unfit(f"{odd[0]!r} is none of {', '.join(KEYS)}")
    description: object = table.get("description")
    if not isinstance(description, str) or not description.strip():
        raise Unfit("it has no description")
    if table.get("effect", "once") not in EFFECTS:
        raise Unfit(f"effect is one of {', '.join(EFFECTS)}")
    if "\0" in script:
        raise Unfit("the script holds a NUL")
    parameters = checked_parameters(table.get("parameters"))
    needed = _needs(table.get("needs", {}), parameters)
    return ScriptTool(name, description, parameters, Effect(table.get("effect", "once")), needed, script)


def checked_parameters(value: object) -> Mapping[str, Any]:
    """A schema of an object without further properties, which looks nothing up elsewhere. Raises Unfit."""
    if not isinstance(value, dict):
        raise Unfit("parameters is no JSON Schema")
    schema = cast("dict[str, Any]", value)
    if schema.get("type") != "object" or schema.get("additionalProperties") is not False:
        raise Unfit('parameters is not of "type": "object" with "additionalProperties": false')
    if any(key in ("$ref", "$dynamicRef", "$recursiveRef", "$id", "id", "$schema") for key in _keys(schema)):
        raise Unfit("parameters refers to other schemas")
    try:
        jsonschema_rs.validator_for(schema)
    except ValueError as error:
        raise Unfit(f"parameters is no JSON Schema: {str(error).splitlines()[0][:200]}") from None
    return schema


def _keys(value: object) -> Iterator[str]:
    """Every key of a JSON value that a schema's reader might take for a keyword."""
    if isinstance(value, dict):
        for key, inner in cast("dict[str, object]", value).items():
            if key == "properties" and isinstance(inner, dict):
                for schema in cast("dict[str, object]", inner).values():
                    yield from _keys(schema)
                continue
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _keys(inner)


def _needs(value: object, parameters: Mapping[str, Any]) -> Needs:
    if not isinstance(value, dict):
        raise Unfit("needs is no object")
    required = parameters.get("required", [])
    out: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, given in cast("dict[str, object]", value).items():
        table = cast("dict[str, object]", given) if isinstance(given, dict) else {"": given}
        for kind, items in table.items():
            listed = cast("list[object]", items) if isinstance(items, list) else []
            if kind not in ARGUMENTS or not listed or not all(isinstance(i, str) for i in listed):
                raise Unfit(f"needs: {name} takes lists of texts under {', '.join(ARGUMENTS)}")
            texts = tuple(map(str, listed))
            for place in filter(_is_place, texts):
                if place[1:-1] not in required or not _holds_text(parameters, place[1:-1]):
                    raise Unfit(f"needs: {place} is no required text, or list of texts, among the parameters")
            out.setdefault(name, {})[kind] = texts
        out.setdefault(name, {})
        _check(name, out[name])
    return out


def _holds_text(parameters: Mapping[str, Any], name: str) -> bool:
    schema = parameters.get("properties", {}).get(name, {})
    return schema.get("type") == "string" or (
        schema.get("type") == "array" and schema.get("items", {}).get("type") == "string"
    )


def _sampled(name: str, arguments: Mapping[str, tuple[str, ...]]) -> Resolution:
    """What a need stands for with something acceptable in place of the call's arguments."""
    sample = {
        kind: tuple(_SAMPLES[kind] if _is_place(item) else item for item in items) for kind, items in arguments.items()
    }
    return resolve(name, sample)


def _check(name: str, arguments: Mapping[str, tuple[str, ...]]) -> None:
    """Raises Unfit when no call could ever be granted."""
    try:
        found = _sampled(name, arguments)
    except CapabilityError as error:
        raise Unfit(f"needs: {error}") from None
    if not found.capabilities:
        raise Unfit(f"needs: {found.note}")
