"""Text for a terminal: made visible, cut, aligned, coloured. Pure.

Whatever agents, tools and specs wrote goes through `line_of`, `lines_of` or `clean`, so that it cannot drive the
terminal of the person who reads it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Sequence
from shlex import quote
from typing import Any, Final, cast

from toka.config.diagnostics import visible
from toka.core.reference import as_text, substitute

LINE: Final = 400
"""Characters that are shown of one line."""
SHORT: Final = 200
"""Characters that are shown of a text beside other things."""
STYLES: Final = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1", "info": "36"}

Paint = Callable[[str, str], str]
"""(text, style) -> text; the style is a key of STYLES or empty."""
Cell = str | tuple[str, str]
"""Text, or text with a style."""


def plain(text: str, style: str) -> str:  # noqa: ARG001 - a Paint
    """The text without colour."""
    return text


def painted(text: str, style: str) -> str:
    """The text in the style's colour."""
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if style and text else text


def painter(coloured: bool) -> Paint:  # noqa: FBT001 - the one thing it depends on
    """How to paint where colour is wanted, or not."""
    return painted if coloured else plain


def needed(place: str, patch: str) -> str:
    """What would allow what was refused: `agents/a.yaml:12 would need: - git-access`; empty when nothing is known."""
    home = os.environ.get("HOME", "").rstrip("/") + "/"
    place = f"~/{place.removeprefix(home)}" if home != "/" and place.startswith(home) else place
    if patch.startswith(("-", "grants:")):
        return f"{place or 'the spec'} would need: {patch}"
    return f"see {patch or place}" if patch or place else ""


def line_of(text: str, limit: int = LINE) -> str:
    """Text as one visible line of at most `limit` characters and a note of what is missing."""
    if len(text) <= limit:
        return visible(text)
    return f"{visible(text[:limit])} [... {len(text) - limit:,} more characters]"


def executed(line: str, values: Any) -> str:
    """A recorded command line with the values that were handed to it, each as one quoted word."""
    if not isinstance(values, dict) or "${" not in line:
        return line
    known = cast("dict[str, Any]", values)
    return substitute(line, lambda each: quote(as_text(known[each.key])) if each.key in known else each.text)


def clean(text: str, limit: int = SHORT) -> str:
    """The first line of a text, its spaces as one each, at most `limit` characters; … where more follows.

    For a title or a reason beside other things. `line_of` keeps all lines, shown as one, and says how much is missing.
    """
    first, _, rest = text.strip().partition("\n")
    flat = visible(" ".join(first.split())) + (" …" if rest else "")
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def lines_of(text: str, most: int | None, limit: int | None = LINE) -> list[str]:
    """Text as visible lines: the first two thirds of `most` and the last third, with a note between.

    Args:
        text: any text; lines end at LF or CR LF.
        most: how many lines to keep; None = all.
        limit: characters kept of each line; None = all.
    """
    lines = text.strip("\r\n").replace("\r\n", "\n").split("\n") if text.strip("\r\n") else []
    if most is not None and len(lines) > most:
        head = max(1, most * 2 // 3)
        tail = most - head
        left_out = len(lines) - head - tail
        shown = [*lines[:head], "", *(lines[-tail:] if tail else [])]
        out = [line_of(line, limit or len(line)) for line in shown]
        out[head] = f"[... {left_out:,} more lines]"
        return out
    return [line_of(line, limit or len(line)) for line in lines]


def columns(rows: Sequence[Sequence[Cell]], right: Collection[int] = (), paint: Paint = plain) -> list[str]:
    """Rows with their columns aligned by two spaces, without trailing space. Columns in `right` are flush right."""
    texts = [[c if isinstance(c, str) else c[0] for c in row] for row in rows]
    count = max((len(row) for row in texts), default=0)
    widths = [max((len(row[i]) for row in texts if i < len(row)), default=0) for i in range(count)]
    out: list[str] = []
    for row, cells in zip(texts, rows, strict=True):
        parts: list[str] = []
        for i, (text, cell) in enumerate(zip(row, cells, strict=True)):
            pad = " " * (widths[i] - len(text))
            shown = paint(text, cell[1]) if isinstance(cell, tuple) else text
            last = i == len(row) - 1
            parts.append(pad + shown if i in right else shown if last else shown + pad)
        out.append("  ".join(parts).rstrip())
    return out


def span(seconds: float) -> str:
    """A duration for people, two units at most: 40ms, 0.3s, 12s, 3m05s, 2h10m, 3d04h."""
    seconds = max(0.0, seconds)
    if seconds < 0.0995:
        return f"{round(seconds * 1000)}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3_600}h{whole % 3_600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3_600:02d}h"


def age(seconds: float) -> str:
    """How long ago, one unit: 5s, 12m, 3h, 9d."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(max(0.0, seconds))}s"


def money(usd: float | None) -> str:
    """US dollars, to the cent, or finer below a dollar; `unknown` when a call of unknown price was made."""
    if usd is None:
        return "unknown"
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${usd:.4f}"


def moment(at: float | None) -> str:
    """A point in time, local: 2026-11-23 05:36:28."""
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def clock(at: float) -> str:
    """The time of day, local: 05:36:28."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def some(count: int, one: str, many: str = "") -> str:
    """A count with its noun: `1 spec`, `12 specs`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def json_line(value: object) -> str:
    """One line of JSON. Characters that a terminal obeys, that hide text or that are no text are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return text if text.isprintable() else json.dumps(value, separators=(", ", ": "))


def compact(value: Any, limit: int = LINE) -> str:
    """A JSON value on one visible line; text as it is."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return line_of(text, limit)
