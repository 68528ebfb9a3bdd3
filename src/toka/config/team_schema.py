"""The JSON Schema of a team file, and the one that takes both forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from toka.config.flow import MAX_INSTANCES
from toka.config.inputs import TYPES
from toka.config.schema import DEFAULT, DIALECT, VARIABLES, Schema, spec_schema
from toka.config.team_keys import AGENT, DEFAULTS, GRANTS, INPUT, LIMITS, NEED, OUTPUT, TEAM, Key
from toka.core.reference import RESERVED

DRAFT_7: Final = "http://json-schema.org/draft-07/schema#"

_SCALAR: Final[Schema] = {"type": ["string", "number", "boolean"]}
_QUANTITY: Final[Schema] = {"type": ["string", "number"]}
_NOTHING: Final[Schema] = {"type": "null"}
_INPUT: Final[Schema] = {"type": "string", "pattern": r"^\$\{inputs\.[^}]+\}$"}
"""Where a value can be an input."""
_TEXTS: Final[Schema] = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]}
_COMMAND: Final[Schema] = {"anyOf": [{"type": "string"}, {"type": "array", "items": _SCALAR, "minItems": 1}]}
_TRUTH: Final[Schema] = {"anyOf": [{"type": "boolean"}, _INPUT]}
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$"
_VALUE_NAME: Final = r"^[A-Za-z_][A-Za-z0-9_-]{0,99}$"


def both_schema() -> Schema:
    """JSON Schema, draft 2020-12, of a file that is a team file or a spec: which of them, the key `toka` says."""
    spec, team = spec_schema(), team_schema()
    definitions = {**spec.pop("$defs"), **team.pop("$defs")}
    heads = ("$schema", "title", "description")
    return {
        "$schema": DIALECT,
        "title": "Toka team or agent",
        "description": "A team file, which begins with `toka: 1`, or the spec of one agent.",
        "type": "object",
        "if": {"required": ["toka"]},
        "then": {"$ref": "#/$defs/Team"},
        "else": {"$ref": "#/$defs/Spec"},
        "$defs": {
            **definitions,
            "Team": {k: v for k, v in team.items() if k not in heads},
            "Spec": {k: v for k, v in spec.items() if k not in heads},
        },
    }


def team_schema() -> Schema:
    """JSON Schema, draft 2020-12, of a team file.

    What a schema cannot say is left to the loader: references and their types, circles, units.
    """
    spec = spec_schema()
    definitions: dict[str, Schema] = spec["$defs"]
    return {
        "$schema": DIALECT,
        "title": "Toka team",
        "description": "A team of agents in one file.",
        "type": "object",
        "required": ["toka"],
        "anyOf": [{"required": ["agents"]}, {"required": ["include"]}],
        "additionalProperties": False,
        "properties": _properties(TEAM, _team()),
        "$defs": {
            **definitions,
            "Input": _closed(_properties(INPUT, _input())),
            "TeamAgent": _agent(spec["properties"]),
            "Grants": _grants(),
            "Limits": _closed(_properties({name: key for name, (_, key) in LIMITS.items()}, {}, _QUANTITY)),
            "Need": _closed(_properties(NEED, {"reason": _QUANTITY}, _TRUTH)),
            "TeamCheck": _check(definitions["Check"]),
            "TeamOutput": _output(),
        },
    }


def as_draft_7(schema: Schema) -> Schema:
    """The same schema in draft 7, which older editors know: `definitions` instead of `$defs`."""
    return {**cast("Schema", _moved(schema)), "$schema": DRAFT_7}


def _moved(value: Any) -> Any:
    if isinstance(value, list):
        return [_moved(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    out: Schema = {}
    for key, inner in cast("Schema", value).items():
        if key == "$ref" and isinstance(inner, str):
            out[key] = inner.replace("#/$defs/", "#/definitions/")
        else:
            out["definitions" if key == "$defs" else key] = _moved(inner)
    return {"allOf": [{"$ref": out.pop("$ref")}], **out} if "$ref" in out and len(out) > 1 else out


def _properties(keys: Mapping[str, Key], shapes: Mapping[str, Schema], usual: Schema | None = None) -> Schema:
    """Keys with their shapes, descriptions, defaults and examples; each may be left empty."""
    out: Schema = {}
    for name, key in keys.items():
        shape = shapes.get(name, usual or _SCALAR)
        told = f"{key.description} {DEFAULT}{key.default}." if key.default else key.description
        empty = name not in ("toka", "agents")
        given = [option for option in (shape["anyOf"] if set(shape) == {"anyOf"} else [shape]) if option != _NOTHING]
        options = {"anyOf": [*given, _NOTHING]} if empty else shape
        out[name] = {"description": told, **options, "examples": [key.example]}
    return out


def _closed(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _list_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map_of(values: Schema, pattern: str | None = None) -> Schema:
    names: Schema = {"propertyNames": {"pattern": pattern}} if pattern else {}
    return {"type": "object", **names, "additionalProperties": values}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _team() -> dict[str, Schema]:
    names: Schema = {"pattern": _NAME, "not": {"enum": sorted(RESERVED)}}
    agent = _ref("TeamAgent")
    value: Schema = {"anyOf": [_ref("Input"), _SCALAR, _list_of({}), _NOTHING]}
    shared = {
        "type": "object",
        "properties": {name: {"$ref": f"#/$defs/TeamAgent/properties/{name}"} for name in DEFAULTS},
        "additionalProperties": False,
    }
    return {
        "toka": {"enum": [1, "1"]},
        "inputs": _map_of(value, _VALUE_NAME),
        "defaults": shared,
        "agents": {"type": "object", "propertyNames": names, "additionalProperties": agent},
        "include": {"anyOf": [{"type": "string"}, _list_of({"type": "string"})]},
        "workspace": {"type": "string"},
    }


def _input() -> dict[str, Schema]:
    return {"type": {"enum": list(TYPES)}, "default": {"anyOf": [_SCALAR, _list_of({})]}}


def _agent(sections: Schema) -> Schema:
    """An agent. The sections of a spec are as there; `metadata` needs no name."""
    checks: Schema = {"anyOf": [*_COMMAND["anyOf"], _ref("TeamCheck")]}
    name = {"type": "string"}
    shapes: dict[str, Schema] = {
        "priority": {"anyOf": [{"enum": ["critical", "high", "medium", "low"]}, _INPUT]},
        "model": {"type": "string"},
        "restart": {"anyOf": [{"enum": ["never", "on_failure", "always"]}, _INPUT]},
        "workspace": {"anyOf": [{"enum": ["shared", "worktree", "copy"]}, _INPUT]},
        "goal": _SCALAR,
        "run": _COMMAND,
        "check": checks,
        "checks": {"anyOf": [_list_of(checks), {"type": "string"}]},
        "grants": _ref("Grants"),
        "limits": _ref("Limits"),
        "needs": {"anyOf": [name, _list_of({"anyOf": [name, _map_of(_need())]}), _map_of(_need())]},
        "outputs": _map_of({"anyOf": [_ref("TeamOutput"), {"enum": ["stdout", "report"]}]}, _VALUE_NAME),
        "for_each": {
            "anyOf": [
                {"type": "string", "pattern": r"\$\{"},
                {**_list_of({}), "minItems": 1, "maxItems": MAX_INSTANCES},
            ]
        },
        "max_parallel": _QUANTITY,
        "when": {"anyOf": [name, _list_of(name)]},
        "approve": _ref("Approval"),
        "env": {"type": "object", "patternProperties": {VARIABLES: _SCALAR}, "additionalProperties": False},
        "references": {"type": "boolean"},
        "retries": _QUANTITY,
        "timeout": _QUANTITY,
        "sandbox": _TRUTH,
        "enforcement": {"anyOf": [{"enum": ["strict", "best-effort"]}, _INPUT]},
        "extensions": _map_of({}),
        "metadata": _map_of({}),
    }
    taken = {n: {k: v for k, v in s.items() if k not in ("description", "examples")} for n, s in sections.items()}
    shapes = {**{name: taken[name] for name in AGENT if name in taken and name not in shapes}, **shapes}
    work = [{"required": [name]} for name in ("goal", "run", "tasks")]
    said = "One of goal, run and tasks. From metadata on, the keys are sections of a spec, for what has no short form."
    return {"description": said, **_closed(_properties(AGENT, shapes)), "oneOf": work}


def _need() -> Schema:
    return {"anyOf": [_ref("Need"), {"type": "string"}, _NOTHING]}


def _grants() -> Schema:
    """Short names, and capabilities by their own; a list narrows, true does not, false takes a default back."""
    arguments: Schema = {"type": "object", "additionalProperties": _TEXTS}
    value: Schema = {"anyOf": [{"type": "boolean"}, *_TEXTS["anyOf"], arguments]}
    git: Schema = {"enum": [True, False, "commit", "read"]}
    properties = _properties(GRANTS, {"git": git}, value)
    for field in properties.values():
        field["anyOf"] = [option for option in field["anyOf"] if option != _NOTHING]
    return {"type": "object", "properties": properties, "additionalProperties": value}


def _check(check: Schema) -> Schema:
    """A check of a spec, whose command may be words."""
    mapping: Schema = next(option for option in check["anyOf"] if "properties" in option)
    run = {k: v for k, v in mapping["properties"]["run"].items() if k in ("description", "examples")}
    return {**mapping, "properties": {**mapping["properties"], "run": {**run, **_COMMAND}}}


def _output() -> Schema:
    keys = {name: key for name, (_, key) in OUTPUT.items()}
    types = {"enum": ["text", "lines", "integer", "number", "boolean", "list", "json"]}
    shapes: dict[str, Schema] = {
        "from": {"enum": ["stdout", "file", "report"]},
        "as": types,
        "path": {"type": "string"},
        "description": {"type": "string"},
    }
    file: Schema = {"if": {"properties": {"from": {"const": "file"}}}, "then": {"required": ["path"]}}
    return {**_closed(_properties(keys, shapes)), "required": ["from"], **file}
