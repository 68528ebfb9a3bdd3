"""Reads script files, YAML or JSON. They are the user's own; what is guarded against is a slip, not an attacker."""

from __future__ import annotations

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
        UsageError: the file cannot be read or is too big.
        ConfigError: it is not a script; carries every finding.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise UsageError(f"cannot read the script {path}: {e.strerror or e}") from e
    if len(data) > MAX_BYTES:
        raise UsageError(f"the script {path} is larger than {MAX_BYTES // 1024**2} MB")
    loader = _loader()
    try:
        text = data.decode("utf-8-sig")
        _guard(text, loader)
        document = yaml.load(text, Loader=loader)  # noqa: S506  (a safe loader, chosen at run time)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as e:
        finding = ScriptFinding(f"{path}: {' '.join(str(e).split())}")
        raise ConfigError(f"{path} is not readable as YAML", (finding,)) from e
    return script_of(document, str(path))


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
