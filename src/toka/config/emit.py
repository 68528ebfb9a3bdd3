"""Plain data as YAML for people: block style, one spelling for each value, read back by `yaml` as the same data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, cast

import yaml as pyyaml

from toka.config.nodes import ScalarNode, value_of

WIDTH: Final = 100
"""Columns that a list of words on one line may take."""
LONGEST_KEY: Final = 500
"""Characters of a key that needs no mark of its own; YAML takes 1024."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./$(<=+^~](?:[^\n:#]|:(?=[^ ,\]}])|(?<=[^ ])#)*")
_WORD: Final = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./*@+-]*")
_RESOLVER: Final[Any] = pyyaml.resolver.Resolver()
_TEXT: Final = "tag:yaml.org,2002:str"


def to_yaml(value: Any) -> str:
    """Data as a YAML document that ends with a newline. Mappings keep their order."""
    return "\n".join(_lines(value, 0)) + "\n"


def _lines(value: Any, indent: int) -> Iterator[str]:
    """The lines of a value that begins on a line of its own."""
    pad = " " * indent
    if isinstance(value, dict) and value:
        for key, inner in cast("dict[str, object]", value).items():
            name = _single(key)
            if len(name) > LONGEST_KEY:
                yield f"{pad}? {name}"
                yield from _after(f"{pad}:", inner, indent)
            else:
                yield from _after(f"{pad}{name}:", inner, indent)
    elif isinstance(value, list) and value:
        for item in cast("list[Any]", value):
            if isinstance(item, (dict, list)) and _in_line(item) is None:
                first, *rest = _lines(item, indent + 2)
                yield f"{pad}- {first[indent + 2 :]}"
                yield from rest
            else:
                yield from _after(f"{pad}-", item, indent)
    else:
        yield from _after(pad, value, indent)


def _after(head: str, value: Any, indent: int) -> Iterator[str]:
    """A value after its key or dash."""
    space = "" if not head or head.isspace() else " "
    if (line := _in_line(value)) is not None:
        yield f"{head}{space}{line}"
    elif isinstance(value, str):
        end = len(value) - len(value.rstrip("\n"))
        yield f"{head}{space}|{'-' if not end else '' if end == 1 else '+'}"
        for line in value.removesuffix("\n").split("\n"):
            yield f"{' ' * (indent + 2)}{line}" if line else ""
    else:
        yield head
        yield from _lines(value, indent + 2)


def _in_line(value: Any) -> str | None:
    """A value that takes one line; None when it needs several."""
    if isinstance(value, str):
        return None if "\n" in value and _literal(value) else _single(value)
    if isinstance(value, list):
        items = cast("list[object]", value)
        words = [item for item in items if isinstance(item, str) and _WORD.fullmatch(item) and _is_text(item)]
        line = f"[{', '.join(words)}]"
        return line if len(words) == len(items) and len(line) <= WIDTH else None
    if isinstance(value, dict):
        return None if value else "{}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return hex(value)
    return json.dumps(value)


def _single(text: str) -> str:
    """Text on one line, in quotes where it needs them."""
    if _PLAIN.fullmatch(text) and text.isprintable() and not text.endswith((" ", ":")) and _is_text(text):
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in json.dumps(text, ensure_ascii=False))


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _is_text(text: str) -> bool:
    """Whether every reader of YAML takes it for text without quotes: those of version 1.1, too."""
    bare = ScalarNode(text, 0, 0, bare=True)
    return value_of(bare) == text and bool(_RESOLVER.resolve(pyyaml.ScalarNode, text, (True, False)) == _TEXT)


def _literal(text: str) -> bool:
    """Whether it can stand as it is, line by line."""
    lines = text.split("\n")
    return bool(lines[0]) and not lines[0][0].isspace() and all(line.isprintable() for line in lines)
