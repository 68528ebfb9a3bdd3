"""What YAML text is made of: scalars, lists and mappings that know where they stand."""

from __future__ import annotations

import re
from typing import Final

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
