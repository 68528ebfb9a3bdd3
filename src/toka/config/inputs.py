"""Inputs of a team: what its file declares, what a person gives, and the values that come out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from toka.config.diagnostics import did_you_mean, in_order, one_of, quoted, summary
from toka.config.fields import MAX_ITEMS, MAX_PROSE
from toka.config.load import read_source
from toka.config.nodes import ListNode, MapNode, Node, ScalarNode, absent, at, plain, value_of
from toka.config.source import Source
from toka.config.yaml import read_nodes
from toka.core.jsonvalue import MAX_DEPTH, deeper_than, finite
from toka.core.reference import VALUE_NAME
from toka.errors import ConfigError

InputType = Literal["string", "integer", "number", "boolean", "list"]
TYPES: Final[tuple[str, ...]] = get_args(InputType)
FLAG: Final = "--input"
"""What messages call values of the command line."""
UNSET: Final = object()
"""No value."""
WRONG: Final = object()
"""A default that was refused."""

_KEYS: Final = ("type", "default", "description")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_WHOLE: Final = re.compile(r"[-+]?[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")
_WANTED: Final = {
    "string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false",
    "list": 'a list: a JSON list such as ["a", "b"], or a,b',
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Given:
    """A value that a person gave.

    Attributes:
        value: text, which is read by the type of the input, or data of that type.
        source, at: where it stands.
    """

    value: object
    source: Source
    at: tuple[int, int, int] = (0, 0, 1)


@dataclass(frozen=True, slots=True)
class Declared:
    """An input that a team file declares.

    Attributes:
        name, type, description: as written.
        default: its value when none is given; UNSET = one must be given, WRONG = it was refused.
        at: where it stands.
    """

    name: str
    type: str
    default: object
    description: str
    at: tuple[int, int, int]


@dataclass
class Inputs:
    """Values that a person gave, by name, and what is wrong with them.

    Attributes:
        given: the values; those of the command line win over those of files.
        known: names that some team file declares; filled in while files are read.
        sources: where findings about them are.
    """

    given: dict[str, Given] = field(default_factory=dict[str, Given])
    known: set[str] = field(default_factory=set[str])
    sources: list[Source] = field(default_factory=list[Source])

    @classmethod
    def of(cls, values: Inputs | Mapping[str, object] | None) -> Inputs:
        """From plain data; None gives none."""
        if isinstance(values, Inputs):
            return values
        source = Source("<inputs>")
        return cls({name: Given(value, source) for name, value in (values or {}).items()}, sources=[source])

    def beneath(self, values: Mapping[str, object]) -> Inputs:
        """For an included file: the same, and the values of the file that includes it for names that nobody gave."""
        source = Source("<inputs>")
        self.sources.append(source)
        return Inputs({**{n: Given(v, source) for n, v in values.items()}, **self.given}, self.known, self.sources)

    def report_unknown(self) -> None:
        """Adds a finding for each value that no file that was read declares."""
        for name, given in self.given.items():
            if name not in self.known:
                near = did_you_mean(name, self.known)
                message = f"no team file declares an input {quoted(name)}"
                given.source.add("TK2017", message, given.at, help=near)


def read_inputs(flags: Iterable[str], files: Iterable[Path]) -> Inputs:
    """Values of `--input NAME=VALUE` and `--inputs FILE`.

    Raises:
        ConfigError: a file cannot be read or is no mapping, or a flag has no `=`.
    """
    out = Inputs()
    for file in files:
        source = read_source(file)
        out.sources.append(source)
        root = None if source.broken else read_nodes(source)
        if root is not None and not isinstance(root, MapNode):
            source.add(
                "TK2002", "inputs are a mapping of names to values", at(root), label="expected such as area: src"
            )
        for name, value in root.entries.items() if isinstance(root, MapNode) else ():
            out.given[name] = Given(_written(value), source, at(value))
    source = Source(FLAG)
    out.sources.append(source)
    for flag in flags:
        name, equals, text = flag.partition("=")
        if not equals:
            source.add("TK2017", f"{quoted(flag)} gives no value", help="write --input NAME=VALUE")
        out.given[name] = Given(text, source)
    findings = in_order(f for s in out.sources for f in s.findings)
    if any(f.severity == "error" for f in findings):
        raise ConfigError(summary(findings), findings)
    return out


def _written(node: Node) -> object:
    """The text of a scalar, as it was written; lists and mappings as data."""
    return node.text if isinstance(node, ScalarNode) and not absent(node) else plain(node)


def read_declarations(node: Node, source: Source) -> dict[str, Declared]:
    """The inputs that a team file declares. What is wrong goes to the source."""
    out: dict[str, Declared] = {}
    if absent(node):
        return out
    if not isinstance(node, MapNode):
        source.add("TK2002", "inputs are a mapping of names", at(node), label="expected such as area: src")
        return out
    for name, value in node.entries.items():
        key = node.keys[name]
        if not VALUE_NAME.fullmatch(name):
            expected = "expected 1 to 100 letters, digits, '_' and '-', the first a letter or '_'"
            source.add("TK2005", f"{quoted(name)} cannot be the name of an input", at(key), label=expected)
            continue
        out[name] = _declared(key, value, source)
    return out


def _declared(key: ScalarNode, node: Node, source: Source) -> Declared:
    if isinstance(node, ScalarNode) and node.text in TYPES:
        help_ = f"write {{type: {node.text}}}, or {{default: {node.text}}} where the text itself is meant"
        source.add("TK2002", f"{quoted(node.text)} alone would be the default of the input", at(node), help=help_)
        return Declared(key.text, node.text, WRONG, "", at(key))
    if not isinstance(node, MapNode):
        default = UNSET if absent(node) else _written(node)
        kind = "list" if isinstance(node, ListNode) else _kind_of(node)
        return Declared(key.text, kind, plain(node) if kind != "string" else default, "", at(key))
    for name, inner in node.keys.items():
        if name not in _KEYS:
            source.add("TK2003", f"unknown key {quoted(name)}", at(inner), help=did_you_mean(name, _KEYS))
    given = node.entries.get("type")
    kind = given.text if isinstance(given, ScalarNode) else "string"
    if given is not None and kind not in TYPES:
        near = did_you_mean(kind, TYPES)
        source.add("TK2004", f"unknown type {quoted(kind)}", at(given), label=f"expected {one_of(TYPES)}", help=near)
        return Declared(key.text, "string", WRONG, "", at(key))
    told = node.entries.get("description")
    default: object = UNSET
    if (written := node.entries.get("default")) is not None and not absent(written):
        if given is None:
            kind = "list" if isinstance(written, ListNode) else _kind_of(written)
        default = _checked(key.text, kind, Given(_written(written), source, at(written)), "")
        default = WRONG if default is UNSET else default
    return Declared(key.text, kind, default, told.text if isinstance(told, ScalarNode) else "", at(key))


def _kind_of(node: Node) -> str:
    """The type that a default stands for."""
    match value_of(node) if isinstance(node, ScalarNode) else "":
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case _:
            return "string"


def values_of(declared: Mapping[str, Declared], inputs: Inputs, source: Source) -> dict[str, Any]:
    """The value of each declared input. One that is missing or wrong becomes a finding, and has no value."""
    out: dict[str, Any] = {}
    inputs.known.update(declared)
    for name, one in declared.items():
        given = inputs.given.get(name)
        value = one.default
        if given is not None:
            value = _checked(name, one.type, given, f"declared in {source.file}:{one.at[0]}")
        elif value is UNSET:
            message = f"the input {quoted(name)} has no value"
            help_ = f"give one: --input {name}=VALUE, or a default"
            source.add("TK2017", message, one.at, label=f"{_WANTED[one.type].partition(':')[0]}", help=help_)
        if value is not UNSET and value is not WRONG:
            out[name] = value
    return out


def _checked(name: str, kind: str, given: Given, label: str) -> object:
    """A value of the wanted type; UNSET after a finding."""
    value = read_value(kind, given.value)
    if value is UNSET:
        shown = quoted(str(given.value), 40)
        message = f"the input {quoted(name)} must be {_WANTED[kind].partition(':')[0]}, not {shown}"
        given.source.add("TK2017", message, given.at, label=label or f"expected {_WANTED[kind]}")
        return UNSET
    if deeper_than(MAX_DEPTH, value):
        given.source.add("TK1005", f"the input {quoted(name)} is nested deeper than {MAX_DEPTH} levels", given.at)
        return UNSET
    if _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        given.source.add("TK1003", f"the input {quoted(name)} is no text in UTF-8", given.at)
        return UNSET
    size = len(json.dumps(value, ensure_ascii=False))
    if len(cast("list[object]", value) if kind == "list" else ()) > MAX_ITEMS:
        given.source.add("TK2006", f"the input {quoted(name)} has more than {MAX_ITEMS} entries", given.at)
    elif size > 5 * MAX_PROSE or (kind == "string" and size > MAX_PROSE):
        given.source.add("TK2006", f"the input {quoted(name)} is too long", given.at)
    elif "\\u0000" in json.dumps(value):
        given.source.add("TK1003", f"the input {quoted(name)} holds the character U+0000", given.at)
    else:
        return value
    return UNSET


def read_value(kind: str, value: object) -> object:
    """A value as the type wants it; text is read. UNSET when it is none of that type."""
    text = value if isinstance(value, str) else None
    match kind:
        case "string":
            return value if text is not None else UNSET
        case "integer":
            if text is not None:
                return int(text) if _WHOLE.fullmatch(text) else UNSET
            return value if isinstance(value, int) and not isinstance(value, bool) else UNSET
        case "number":
            number = value if text is None else float(text) if _DECIMAL.fullmatch(text) else None
            sound = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
            return (int(text) if text is not None and _WHOLE.fullmatch(text) else number) if sound else UNSET
        case "boolean":
            return (
                {"true": True, "false": False}.get(text, UNSET)
                if text is not None
                else value
                if isinstance(value, bool)
                else UNSET
            )
        case _:
            return _list(text) if text is not None else _is_list(value)


def _list(text: str) -> object:
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",")] if text.strip() else []
    try:
        return _is_list(json.loads(text, parse_float=finite))
    except (ValueError, RecursionError):
        return UNSET


def _is_list(value: object) -> object:
    """The value, if it is a list."""
    found: object = UNSET
    if isinstance(value, list):
        found = cast("list[object]", value)
    return found
