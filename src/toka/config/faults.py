"""Validation errors of the models -> findings with the place in the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from toka.config.diagnostics import did_you_mean, quoted
from toka.config.nodes import ListNode, MapNode, Node
from toka.config.source import Source

Path = Sequence[str | int]
Place = tuple[int, int, int]
"""Line and column from 1, and length; (0, 0, 1) when unknown."""
NOWHERE: Final[Place] = (0, 0, 1)

_WANTED: Final = {
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def place_of(root: Node | None, path: Path) -> Place:
    """Where a path of keys and indexes stands in canonical nodes.

    A single value is shown itself; a mapping or list is shown at its key. Where the path leads to nothing, the place
    of its longest part that exists is returned.
    """
    if root is None:
        return NOWHERE
    node, at = root, root
    for step in path:
        if isinstance(node, MapNode) and isinstance(step, str) and step in node.entries:
            key, node = node.keys[step], node.entries[step]
            at = key if isinstance(node, (MapNode, ListNode)) and key.line else node
        elif isinstance(node, ListNode) and isinstance(step, int) and 0 <= step < len(node.items):
            node = at = node.items[step]
        else:
            break
    return at.line, at.column, at.length


def path_text(path: Path) -> str:
    """`tasks.default[2].priority`."""
    out = ""
    for step in path:
        out += f"[{step}]" if isinstance(step, int) else f".{step}" if out else str(step)
    return out or "the spec"


def report(
    error: ValidationError, root: Node | None, source: Source, text_of: Callable[[Path], str] = path_text
) -> None:
    """Adds a finding for each validation error. `text_of` says how a path of the canonical spec is called."""
    for detail in error.errors(include_url=False):
        _one(detail, root, source, text_of)


def _one(detail: ErrorDetails, root: Node | None, source: Source, text_of: Callable[[Path], str]) -> None:
    path = [step for step in detail["loc"] if step != "[key]"]
    at = place_of(root, path)
    where = text_of(path)
    kind = detail["type"]
    context: dict[str, Any] = detail.get("ctx") or {}
    if kind == "toka_finding":
        source.add(context["code"], context["message"], at, label=context["label"], help=context["help"])
    elif kind == "missing":
        source.add("TK2001", f"{text_of(path[:-1])} lacks {quoted(str(path[-1]))}", at)
    elif kind == "extra_forbidden":
        source.add("TK2003", f"unknown key {quoted(str(path[-1]))}", at)
    elif kind in _WANTED:
        source.add("TK2002", f"{where} must be {_WANTED[kind]}, not {_kind_of(detail['input'])}", at)
    elif kind == "literal_error":
        message = f"unknown value {quoted(str(detail['input']))} of {where}"
        near = did_you_mean(str(detail["input"]), re.findall(r"'([^']*)'", str(context["expected"])))
        source.add("TK2004", message, at, label=f"expected {context['expected']}", help=near)
    elif kind == "string_too_short":
        source.add("TK2006", f"{where} must not be empty", at)
    elif kind == "string_pattern_mismatch":
        expected = "expected letters, digits and '_', the first no digit"
        source.add("TK2005", f"{quoted(str(path[-1]))} cannot be the name of a variable", at, label=expected)
    elif kind in ("string_too_long", "too_long"):
        unit = "characters" if kind == "string_too_long" else "entries"
        source.add("TK2006", f"{where} has more than {context['max_length']} {unit}", at)
    else:
        source.add("TK2002", f"{where}: {detail['msg'][:1].lower()}{detail['msg'][1:]}", at)


def _kind_of(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {quoted(value, 30)}"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else "a number"
