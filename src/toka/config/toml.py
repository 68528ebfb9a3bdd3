"""One settings file, read with its keys ticked off, so that whatever is left over is unknown."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final, cast

from toka.config.load import read_source
from toka.config.source import Source

_PLACE: Final = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.S)


class TomlFile:
    """The content of a settings file.

    Attributes:
        source: its text and the findings about it.
        data: what is in it; empty when the file is absent or broken.
        trusted: False for a file that came with the files somebody works on.
    """

    def __init__(self, source: Source, data: dict[str, Any], *, trusted: bool) -> None:
        self.source = source
        self.data = data
        self.trusted = trusted

    def take(self, key: str) -> object:
        """The value of `key` or `table.key`, removed from what is left; None when it is not there."""
        table, _, name = key.rpartition(".")
        holder: object = self.data.get(table) if table else self.data
        return cast("dict[str, object]", holder).pop(name, None) if isinstance(holder, dict) else None

    def table(self, name: str) -> dict[str, object]:
        """A table, removed from what is left; empty when it is absent, and a finding when it is no table."""
        value: object = self.data.pop(name, {})
        if isinstance(value, dict):
            return cast("dict[str, object]", value)
        self.source.add("TK2011", f"{name} is a table", help=f"write [{name}]")
        return {}


def read_toml(path: Path, label: str, *, trusted: bool) -> TomlFile:
    """Reads a settings file. An absent one is empty; a broken one is empty and has findings."""
    if not path.exists():
        return TomlFile(Source(label), {}, trusted=trusted)
    source = read_source(path)
    source = _relabelled(source, label)
    if source.broken:
        return TomlFile(source, {}, trusted=trusted)
    try:
        data = tomllib.loads(source.text)
    except tomllib.TOMLDecodeError as error:
        match = _PLACE.fullmatch(str(error))
        what = (match["what"] if match else str(error)).strip()
        at = (int(match["line"]), int(match["column"]), 1) if match and match["line"] else (0, 0, 1)
        source.add("TK1001", f"not valid TOML: {what}", at)
        data = {}
    except RecursionError:
        source.add("TK1005", "nested too deep")
        data = {}
    return TomlFile(source, data, trusted=trusted)


def _relabelled(source: Source, label: str) -> Source:
    """The same under the name that messages use."""
    out = Source(label, source.text)
    for found in source.findings:
        at = (found.line, found.column, found.length)
        out.add(found.code, found.message, at, label=found.label, help=found.help, severity=found.severity)
    return out
