"""What git's settings send it to: files of the workspace that git outside obeys wherever they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

MAX_BYTES: Final = 1 << 20
_SECTION: Final = re.compile(r"\[\s*([A-Za-z0-9.-]+)\s*(?:\"[^\"]*\")?\s*\]")
_ENTRY: Final = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)\s*=\s*(.*?)\s*\Z")


def obeyed(workspace: Path, home: Path | None = None) -> dict[str, Literal["folder", "file"]]:
    """Paths below a workspace that hold hooks (`core.hooksPath`) or further settings (`include.path`) of its git.

    Args:
        workspace: the repository's folder.
        home: of the user, whose own settings may name a folder for hooks in every repository; None = our own.
    """
    home = home or Path(os.path.expanduser("~"))  # noqa: PTH111 - pathlib fails where nobody has a home
    found: dict[str, Literal["folder", "file"]] = {}
    own = workspace / ".git/config"
    for file in (own, home / ".gitconfig", home / ".config/git/config"):
        for section, key, value in _entries(_text(file)):
            if (section, key) == ("core", "hookspath"):
                path = _below(workspace, workspace, value, home)
                kind: Literal["folder", "file"] = "folder"
            elif file == own and section in ("include", "includeif") and key == "path":
                path, kind = _below(workspace, own.parent, value, home), "file"
            else:
                continue
            if path is not None and not path.startswith(".git/"):
                found[path] = kind
    return found


def _below(workspace: Path, base: Path, value: str, home: Path) -> str | None:
    """A path as the sandbox names it; None when it leads out of the workspace, or is all of it."""
    if value.startswith("~/"):
        value = f"{home}/{value[2:]}"
    path = os.path.relpath(os.path.normpath(base / value), workspace)
    return None if path.startswith("..") or path == "." else path


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """(section, key, value) of git's settings, names in lower case; what cannot be understood is left out."""
    section = ""
    for line in text.splitlines():
        rest = line.strip()
        if (found := _SECTION.match(rest)) is not None:
            section, rest = found[1].lower(), rest[found.end() :].strip()
        if rest and rest[0] not in "#;" and (entry := _ENTRY.match(rest)) is not None:
            value = entry[2]
            value = value[1 : value.index('"', 1)] if re.match(r'"[^"]*"', value) else re.split(r"\s[#;]", value)[0]
            yield section, entry[1].lower(), value.strip()


def _text(file: Path) -> str:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, MAX_BYTES).decode("utf-8", "replace")
    except OSError:  # a folder
        return ""
    finally:
        os.close(fd)
