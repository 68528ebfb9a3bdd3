"""The table that a run of the reliability tests prints: one line for each of them, with what it counted.

A test is in the table when it is marked `torture("R1", "what it must reach")`, or when it takes the fixture `counted`.
What is met is decided by the test alone, by passing: the table only tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

COLUMNS = ("kills", "lost", "repeated", "same key", "zombie commits", "seed")
"""Figures that have a column of their own; all others are listed in one."""


@dataclass
class Line:
    """One test.

    Attributes:
        row: of RELIABILITY.md, such as R1; empty when it has none.
        test: its name.
        bar: what it must reach.
        figures: what it counted, by name.
        outcome: passed, failed or skipped.
        wall_s: how long it took.
        why: of one that was skipped.
    """

    row: str
    test: str
    bar: str
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    outcome: str = ""
    wall_s: float = 0.0
    why: str = ""


def table(lines: Sequence[Line]) -> list[str]:
    """The lines of the table, in the order of their rows."""
    head = ("", "test", *COLUMNS, "wall", "other figures", "bar", "met")
    rows = [head, *map(_cells, sorted(lines, key=lambda line: (_place(line.row), line.test)))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    rows.insert(1, tuple("-" * width for width in widths))
    return [" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _place(row: str) -> tuple[str, int]:
    digits = row.lstrip("RS")
    return (row[:1] or "~", int(digits) if digits.isdecimal() else 0)


def _cells(line: Line) -> tuple[str, ...]:
    rest = [f"{name}: {_shown(value)}" for name, value in line.figures.items() if name not in COLUMNS]
    met = {"passed": "yes", "failed": "NO", "skipped": f"skipped: {line.why}"}.get(line.outcome, "?")
    own = (_shown(line.figures[name]) if name in line.figures else "" for name in COLUMNS)
    return (line.row, line.test, *own, f"{line.wall_s:.0f} s", ", ".join(rest), line.bar, met)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and value < 10**9 else str(value)
