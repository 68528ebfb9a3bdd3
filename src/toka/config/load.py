"""Reading files safely: regular files only, bounded before they are read, in one documented order.

Nothing here follows a link out of the directory that was named, waits for a pipe, or reads a device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from toka.config.diagnostics import visible
from toka.config.source import MAX_BYTES, Source, decode, screen

SUFFIXES: Final = (".yaml", ".yml")
MAX_FILES: Final = 20_000
MAX_LEVELS: Final = 16


def label_of(path: Path) -> str:
    """The path as messages show it: as the user named it, printable whatever bytes it holds."""
    return visible(os.fsencode(path).decode("utf-8", "replace"))


def is_directory(path: Path) -> bool:
    """Whether the path leads to a directory; False for what cannot be a path at all."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_source(path: Path) -> Source:
    """Reads one file.

    Returns:
        Its decoded and screened text. When the file cannot be read or decoded, the text is empty or partial and
        `findings` says why; nothing is raised.
    """
    source = Source(label_of(path))
    try:
        data = _read(path)
    except FileNotFoundError:
        source.add("TK1013", "there is no such file")
    except (OSError, ValueError) as error:
        source.add("TK1013", f"the file cannot be read: {_reason(error)}")
    else:
        decode(source, data)
        screen(source)
    return source


def spec_files(directory: Path) -> tuple[tuple[Path, ...], Source]:
    """Lists the specs of a directory.

    All `*.yaml` and `*.yml` files in it and below it, at most 16 levels deep, sorted by path. Names that start with a
    dot are skipped, linked directories are not entered, and a linked file counts only when it leads to a file inside
    the directory.

    Returns:
        The files, and a source whose findings say what was skipped or why there is nothing.
    """
    notes = Source(label_of(directory))
    try:
        root = directory.resolve(strict=True)
        if not root.is_dir():
            notes.add("TK1013", "this is not a directory")
            return (), notes
        files = sorted(_walk(directory, root, notes, MAX_LEVELS), key=lambda p: p.parts)
    except FileNotFoundError:
        notes.add("TK1013", "there is no such directory")
        return (), notes
    except (OSError, ValueError, RuntimeError) as error:
        notes.add("TK1013", f"the directory cannot be read: {_reason(error)}")
        return (), notes
    if len(files) > MAX_FILES:
        notes.add("TK1004", f"the directory holds more than {MAX_FILES} specs")
        return (), notes
    if not files and not notes.broken:
        notes.add("TK1012", "the directory holds no *.yaml or *.yml file")
    return tuple(files), notes


def _walk(directory: Path, root: Path, notes: Source, levels: int) -> Iterator[Path]:
    if levels == 0:
        notes.add("TK1005", f"{label_of(directory)} is nested deeper than {MAX_LEVELS} directories")
        return
    with os.scandir(directory) as entries:
        found = sorted(entries, key=lambda e: e.name)
    for entry in found:
        path = directory / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, root, notes, levels - 1)
        elif entry.name.endswith(SUFFIXES):
            if not entry.is_symlink():
                yield path
            elif not _leads_into(path, root):
                notes.add("TK1013", f"{label_of(path)} leads out of the directory; it is skipped", severity="warning")
            elif not path.is_dir():
                yield path


def _leads_into(path: Path, root: Path) -> bool:
    """Whether a link leads to something below `root`; False for a link that leads nowhere or to itself."""
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        return False


def _read(path: Path) -> bytes:
    """At most MAX_BYTES + 1 bytes of a regular file. Raises OSError or ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(0, "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
        chunks: list[bytes] = []
        rest = MAX_BYTES + 1
        while rest > 0 and (chunk := os.read(descriptor, rest)):
            chunks.append(chunk)
            rest -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return (error.strerror or "unknown reason") if isinstance(error, OSError) else str(error)
