"""From the results of measured processes to a table of ratios."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

TITLES: Final = {
    "toka": "Toka",
    "sdk": "openai SDK",
    "direct": "direct + aiohttp",
    "aiohttp": "aiohttp",
    "plain": "plain process",
}

Round = dict[str, dict[str, Any]]
"""The results of one round: way -> what load.py printed; empty where the process failed."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """One comparison: the same load in several ways.

    Attributes:
        id: for programs.
        title: for the table.
        ways: in the order of a round; the first is judged.
        beside: the way that the first is compared with.
        figure: the field of a process's result that is compared.
        unit: of the figure.
        bar: the largest ratio that is good enough.
        tasks, concurrency: see load.py.
        delay: seconds until the model answers.
        park: seconds to wait until all agents wait; 0: time is measured, not memory.
    """

    id: str
    title: str
    ways: tuple[str, ...]
    beside: str
    figure: str
    unit: str
    bar: float
    tasks: int
    concurrency: int
    delay: float = 0.0
    park: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result.

    Attributes:
        id, title: which one.
        unit: of the figures.
        toka: the median; None when nothing could be measured.
        beside: medians of the other ways; the first is the one compared with.
        ratios: of the rounds, in order; empty where the figure itself is judged.
        bar: the most that is good enough, of the ratio or of the figure; None: it is only shown.
        met: whether it is; None without a bar or without a figure.
        note: what else there is to know.
    """

    id: str
    title: str
    unit: str
    toka: float | None
    beside: dict[str, float] = field(default_factory=dict[str, float])
    ratios: tuple[float, ...] = ()
    bar: float | None = None
    met: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        return median(self.ratios) if self.ratios else None


def judge(experiment: Experiment, rounds: list[Round]) -> Row:
    """A comparison as a line of the result."""
    e, own = experiment, experiment.ways[0]
    medians: dict[str, float] = {}
    for way in (own, e.beside, *e.ways):
        if found := [float(r[way][e.figure]) for r in rounds if r.get(way)]:
            medians.setdefault(way, round(median(found), 4))
    pairs = [(r[own][e.figure], r[e.beside][e.figure]) for r in rounds if r.get(own) and r.get(e.beside)]
    ratios = tuple(round(mine / other, 3) for mine, other in pairs if other > 0)
    note = f"rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}" if len(ratios) > 1 else ""
    met = median(ratios) <= e.bar if ratios else None
    return Row(e.id, e.title, e.unit, medians.pop(own, None), medians, ratios, e.bar, met, note)


def absolute(id_: str, title: str, unit: str, figure: float | None, bar: float | None) -> Row:
    """A figure that is judged by itself; None: it could not be measured."""
    met = None if figure is None or bar is None else figure <= bar
    value = None if figure is None else round(figure, 3)
    return Row(id_, title, unit, value, bar=bar, met=met, note="not measured" if figure is None else "")


def table(rows: list[Row]) -> str:
    """The result as a Markdown table."""
    lines = [("what", "Toka", "ratio", "bar", "", "beside it", "note")]
    lines += [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    figure = "" if row.toka is None else f"{_number(row.toka)} {row.unit}"
    beside = ", ".join(f"{TITLES[way]} {_number(value)}" for way, value in row.beside.items())
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    compared = bool(row.beside)
    bar = "" if row.bar is None else f"<= {row.bar:g}{'x' if compared else ' ' + row.unit}"
    verdict = "" if row.bar is None else {True: "ok", False: "MISSED", None: "?"}[row.met]
    return row.title, figure, ratio, bar, verdict, beside, row.note


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
