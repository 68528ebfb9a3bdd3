"""The JSON Schema of a spec, for editors and `toka schema`: the models' own schema plus every spelling of `dialect`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from toka.config.agent import AgentConfig
from toka.config.schema_examples import EXAMPLES
from toka.core.capability import ARGUMENTS

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
VARIABLES: Final = "^[A-Za-z_][A-Za-z0-9_]{0,199}$"
"""What variables may be called."""
Schema = dict[str, Any]

DEFAULT: Final = "Default: "
"""What stands in a description before what holds without the key."""
WIDTH: Final = 120
"""Characters of a line of a printed schema, where its texts are not longer."""

_SCALAR: Final[Schema] = {"type": ["string", "number"]}
_TEXTS: Final[Schema] = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}, {"type": "null"}]}
_NOTHING: Final[Schema] = {"type": "null"}


def schema_text(value: Any, indent: str = "", taken: int = 0) -> str:
    """A schema as JSON, on as few lines as fit into the width of a page.

    Args:
        value: the schema, or a part of it.
        indent: what its lines begin with.
        taken: characters that stand on the first line already.
    """
    whole = json.dumps(value, ensure_ascii=False)
    if len(indent) + taken + len(whole) < WIDTH or not value or not isinstance(value, (dict, list)):
        return whole
    inner = indent + "  "
    if isinstance(value, list):
        lines = [schema_text(item, inner) for item in cast("list[Any]", value)]
    else:
        keys = [(f"{json.dumps(key)}: ", item) for key, item in cast("dict[str, Any]", value).items()]
        lines = [key + schema_text(item, inner, len(key)) for key, item in keys]
    first, last = "[]" if isinstance(value, list) else "{}"
    return f"{first}\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}{last}"


def spec_schema() -> Schema:
    """JSON Schema, draft 2020-12, of a spec as people write it.

    Unknown sections are allowed, as the loader keeps them; unknown keys are refused where the loader refuses them.
    What a schema cannot say (unique task ids, circles, units) is left to the loader.
    """
    schema = AgentConfig.model_json_schema(mode="validation")
    definitions: dict[str, Schema] = schema["$defs"]
    del definitions["CapabilityRequest"]
    for definition in definitions.values():
        _loosen(definition)
    _loosen(schema)
    for name, rewrite in _SPELLINGS.items():
        definitions[name] = rewrite(definitions[name])
    sections: Schema = schema["properties"]
    del sections["extensions"]
    reference = {"$ref": "#/$defs/TaskEntry"}
    sections["tasks"] = _with(sections["tasks"], {"type": "array", "items": reference})
    sections["dependencies"] = _with(sections["dependencies"], _named("Dependency"))
    for name in ("behavioral_directives", "success_criteria"):
        section: Schema = {"anyOf": [{"type": "object", "additionalProperties": _TEXTS}, _TEXTS]}
        sections[name] = {"description": sections[name]["description"], **section}
    for name, examples in EXAMPLES.items():
        _exemplify(definitions[name] if name else schema, examples)
    return {
        "$schema": DIALECT,
        "title": "Toka agent",
        "description": "One agent. Sections that are not listed are kept and shown to the agent.",
        **{k: v for k, v in schema.items() if k not in ("title", "description", "additionalProperties")},
        "required": ["metadata", "spec", "tasks"],
        "additionalProperties": True,
    }


def _loosen(definition: Schema) -> None:
    """Scalars may be written as numbers, and optional keys may be left empty."""
    definition.pop("title", None)
    required = definition.get("required", ())
    for name, field in cast("dict[str, Schema]", definition.get("properties", {})).items():
        field.pop("title", None)
        description = field.pop("description", None)
        default = field.pop("default", None)
        if isinstance(default, (bool, int, str)) and default != "":
            description = f"{description} {DEFAULT}{_word(default, field)}."
        loose = _loose(field)
        if name not in required:
            loose = _with(loose, _NOTHING)
        definition["properties"][name] = {"description": description, **loose} if description else loose


def _exemplify(definition: Schema, examples: Mapping[str, Any]) -> None:
    """Adds the examples of the keys of a definition, in whatever spelling it is."""
    for option in (definition, *definition.get("anyOf", ())):
        for key, field in option.get("properties", {}).items():
            if key in examples:
                option["properties"][key] = {**field, "examples": [examples[key]]}


def _word(default: object, field: Schema) -> str:
    """A default as it is written."""
    if isinstance(default, int) and not isinstance(default, bool) and "enum" in field:
        return str(field["enum"][default])
    return default if isinstance(default, str) else json.dumps(default)


def _loose(field: Schema) -> Schema:
    """A field's schema with text widened to numbers, and lists of text to a single text."""
    if field.get("type") == "string":
        return {**field, "type": ["string", "number"]}
    if field.get("type") == "array":
        items = _loose(field["items"])
        listed = {**field, "items": items}
        return {"anyOf": [listed, items]} if "$ref" not in items else listed
    if field.get("type") == "object" and "additionalProperties" in field and field["additionalProperties"] is not True:
        return {**field, "additionalProperties": _loose(field["additionalProperties"])}
    if "anyOf" in field:
        return {**field, "anyOf": [_loose(option) for option in field["anyOf"]]}
    return field


def _with(field: Schema, *more: Schema) -> Schema:
    description = field.get("description")
    rest = {k: v for k, v in field.items() if k != "description"}
    options: list[Schema] = [*(rest["anyOf"] if set(rest) == {"anyOf"} else [rest])]
    out: Schema = {"anyOf": [*options, *(m for m in more if m not in options)]}
    return {"description": description, **out} if description else out


def _or_text(definition: Schema) -> Schema:
    """A mapping, or the text that stands for it."""
    return {"anyOf": [definition, _SCALAR]}


def _named(name: str) -> Schema:
    """The spellings of named things: mapping, list of `name: value`, list of objects with a name, list of names."""
    value: Schema = {"anyOf": [{"$ref": f"#/$defs/{name}"}, _NOTHING]}
    mapping: Schema = {"type": "object", "additionalProperties": value}
    whole: Schema = {"type": "object", "required": ["name"]}
    listed: Schema = {"type": "array", "items": {"anyOf": [_SCALAR, mapping, whole]}}
    return {"anyOf": [mapping, listed, _SCALAR, _NOTHING]}


def _dependencies(definition: Schema) -> Schema:
    properties: dict[str, Schema] = definition["properties"]
    for kind in ("required", "optional"):
        properties[kind] = {"description": properties[kind]["description"], **_named("Dependency")}
    return definition


def _metric(definition: Schema) -> Schema:
    """The name may stand outside."""
    return {"anyOf": [{k: v for k, v in definition.items() if k != "required"}, _SCALAR]}


def _reporting(definition: Schema) -> Schema:
    properties: dict[str, Schema] = definition["properties"]
    properties["metrics"] = {"description": properties["metrics"]["description"], **_named("Metric")}
    return definition


def _security(definition: Schema) -> Schema:
    properties: dict[str, Schema] = definition["properties"]
    field = properties["capabilities_required"]
    properties["capabilities_required"] = {"description": field["description"], **_requests()}
    return definition


def _flow(definition: Schema) -> Schema:
    properties: dict[str, Schema] = definition["properties"]
    names = {VARIABLES: {"type": ["string", "number", "boolean"]}}
    values: Schema = {"type": "object", "patternProperties": names, "additionalProperties": False}
    properties["env"] = {"description": properties["env"]["description"], "anyOf": [values, _NOTHING]}
    return definition


def _requests() -> Schema:
    arguments: Schema = {
        "type": "object",
        "properties": dict.fromkeys(ARGUMENTS, _TEXTS),
        "additionalProperties": False,
        "description": "What it is narrowed to. paths: relative to the workspace, with everything below.",
    }
    mapping: Schema = {"type": "object", "additionalProperties": arguments}
    listed: Schema = {"type": "array", "items": {"anyOf": [{"type": "string"}, mapping]}}
    return {"anyOf": [listed, mapping, {"type": "string"}, _NOTHING]}


def _tasks(definition: Schema) -> Schema:
    group: Schema = {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/TaskEntry"}}, _NOTHING]}
    definition["properties"]["conditional"]["anyOf"] = [{"type": "object", "additionalProperties": group}, _NOTHING]
    return definition


_SPELLINGS: Final[dict[str, Callable[[Schema], Schema]]] = {
    "Approval": _or_text,
    "Check": _or_text,
    "Dependencies": _dependencies,
    "Dependency": _or_text,
    "Flow": _flow,
    "Metric": _metric,
    "Objective": _or_text,
    "Reporting": _reporting,
    "Risk": _or_text,
    "Security": _security,
    "TaskEntry": _or_text,
    "Tasks": _tasks,
}
"""The definitions that have further spellings."""
