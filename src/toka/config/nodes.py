"""What YAML text is made of: scalars, lists and mappings that know where they stand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, cast

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
"""Data as JSON knows it."""


class ScalarNode:
    """A single value as written.

    Attributes:
        text: the value, quotes and escapes resolved.
        bare: True when it stands without quotes, so that it may be a number, a boolean or nothing.
        line, column: where it starts, from 1.
        length: how many characters of its line are meant.
    """

    __slots__ = ("bare", "column", "length", "line", "text")

    def __init__(self, text: str, line: int, column: int, length: int = 1, *, bare: bool = False) -> None:
        self.text = text
        self.line = line
        self.column = column
        self.length = length
        self.bare = bare


class ListNode:
    """A sequence of nodes."""

    __slots__ = ("column", "items", "length", "line")

    def __init__(self, items: list[Node], line: int, column: int) -> None:
        self.items = items
        self.line = line
        self.column = column
        self.length = 1


class MapNode:
    """Keys, each once and in order, with their values; `keys` holds the node of each key."""

    __slots__ = ("column", "entries", "keys", "length", "line")

    def __init__(self, line: int, column: int, length: int = 1) -> None:
        self.entries: dict[str, Node] = {}
        self.keys: dict[str, ScalarNode] = {}
        self.line = line
        self.column = column
        self.length = length

    def put(self, key: ScalarNode, value: Node) -> None:
        """Sets an entry; an existing one of that name is replaced."""
        self.entries[key.text] = value
        self.keys[key.text] = key


Node = ScalarNode | ListNode | MapNode


def at(node: Node) -> tuple[int, int, int]:
    """Where a node stands: line, column, length."""
    return node.line, node.column, node.length


def absent(node: Node) -> bool:
    """Whether it says nothing: `key:` without a value, or null."""
    return isinstance(node, ScalarNode) and node.bare and value_of(node) is None


def mapping(place: Node, entries: Mapping[str, Node]) -> MapNode:
    """A mapping that stands where `place` does, its keys too."""
    out = MapNode(*at(place))
    for name, value in entries.items():
        out.put(ScalarNode(name, *at(place)), value)
    return out


def copied(node: Node) -> Node:
    """The same, sharing no list and no mapping; single values are never changed and stay."""
    if isinstance(node, ListNode):
        return ListNode([copied(item) for item in node.items], node.line, node.column)
    if isinstance(node, MapNode):
        out = MapNode(*at(node))
        for name, value in node.entries.items():
            out.put(node.keys[name], copied(value))
        return out
    return node


def node_of(value: object, place: tuple[int, int, int]) -> Node:
    """Plain data as a node that stands at `place`; the inverse of `plain`."""
    if isinstance(value, str):
        return ScalarNode(value, *place)
    if isinstance(value, list):
        return ListNode([node_of(item, place) for item in cast("list[object]", value)], place[0], place[1])
    if isinstance(value, dict):
        out = MapNode(*place)
        for name, inner in cast("dict[str, object]", value).items():
            out.put(ScalarNode(name, *place), node_of(inner, place))
        return out
    return ScalarNode(json.dumps(value), *place, bare=True)


_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_OCTAL: Final = re.compile(r"0o[0-7]{1,20}")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]{1,15}")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?")
_WORDS: Final[dict[str, bool | None]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_UNBOUNDED: Final = (float("inf"), float("-inf"))


def value_of(node: ScalarNode, *, numbers: bool = True) -> bool | int | float | str | None:
    """The value of a scalar by YAML 1.2's core schema.

    Args:
        node: the scalar; quoted ones are always text.
        numbers: False keeps numbers as the text that was written, so that a version `1.10` does not become 1.1.

    Returns:
        None, a boolean, a number or text. Numbers that JSON cannot hold (`.nan`, `.inf`, beyond 64 bits) stay text.
    """
    text = node.text
    if not node.bare:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if not numbers or text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) and (number := float(text)) not in _UNBOUNDED:
        return number
    return text


def plain(node: Node, *, numbers: bool = True) -> Plain:
    """The node as plain data; see `value_of` for scalars. Nodes are at most 64 deep, so recursion is bounded."""
    if isinstance(node, ScalarNode):
        return value_of(node, numbers=numbers)
    if isinstance(node, ListNode):
        return [plain(item, numbers=numbers) for item in node.items]
    return {key: plain(value, numbers=numbers) for key, value in node.entries.items()}
