"""Reads script files, YAML or JSON. They are the user's own; what is guarded against is a slip, not an attacker."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Final

import yaml

from toka.errors import ConfigError, UsageError
from toka.llm.script import Script, ScriptFinding, script_of

MAX_BYTES: Final = 4 * 1024 * 1024
"""Largest script file, in bytes."""
MAX_DEPTH: Final = 64
"""Deepest nesting: the C parser's constructor dies on very deep documents."""


def read_script(path: Path) -> Script:
    """Reads a script file, YAML or JSON.

    Raises:
        UsageError: the file cannot be read, is no regular file, or is too big.
        ConfigError: it is not a script; carries every finding.
    """
    try:
        data = _read(path)
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read the script {path}: {getattr(e, 'strerror', None) or e}") from e
    if len(data) > MAX_BYTES:
        raise UsageError(f"the script {path} is larger than {MAX_BYTES // 1024**2} MB")
    loader = _loader()
    try:
        text = data.decode("utf-8-sig")
        _guard(text, loader)
        document = yaml.load(text, Loader=loader)  # noqa: S506  (a safe loader, chosen at run time)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as e:
        finding = ScriptFinding(f"{path}: {_why(e)}")
        raise ConfigError(f"{path} is not readable as YAML", (finding,)) from e
    return script_of(document, str(path))


def _read(path: Path) -> bytes:
    """At most MAX_BYTES + 1 bytes of a regular file: a spec may name anything, and nothing else is read from."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)


def _why(error: Exception) -> str:
    """What YAML or UTF-8 forbids, with its place."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context or 'not YAML'}"
    return " ".join(str(error).split())


def _loader() -> Any:
    """A safe loader that also refuses duplicate keys, in C when PyYAML has it."""
    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001  (PyYAML's signature)
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key.value, str) and key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
                seen.add(str(key.value))
            return base.construct_mapping(self, node, deep)

    return Loader


def _guard(text: str, loader: Any) -> None:
    """Refuses what could harm the constructor: deep nesting, and aliases (which can multiply)."""
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"line {_line(event)}: nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {_line(event)}: anchors and aliases are not used here")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0
