"""What commands used of the machine, step by step: for `toka show RUN --resources`. Pure, given the blobs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from toka.cli.text import Cell, clean, columns, executed, line_of, some, span
from toka.core.units import format_bytes
from toka.errors import TokaError
from toka.events.event import StepDone, StepFailed, StepIntent, StepLeft
from toka.events.record import Record

HEADER: Final = ("STEP", "WHAT", "WALL", "CPU", "THROTTLED", "PEAK", "READ", "WRITTEN", "UP", "DOWN", "LIMIT MET")
TITLE: Final = 40
"""Characters of a command that are shown."""
SUMMED: Final = ("wall_s", "cpu_s", "throttled_s", "read_bytes", "written_bytes", "network_up", "network_down")
Ended = StepDone | StepFailed | StepLeft
"""What says how a step ended, or was killed."""
FIGURES: Final = (*SUMMED[:3], "memory_peak_bytes", *SUMMED[3:])
"""What is told of a step, in the order of the columns."""
_UNITS: Final = ("B", "KB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Use:
    """What one step used. None: nothing, or it could not be read on that machine.

    Attributes:
        agent, step: whose, and its key.
        what: the command line, or the tool with its command.
        wall_s, cpu_s, throttled_s: seconds; throttled: spent waiting because of the limit on processor time.
        memory_peak_bytes: the most that the agent's whole sandbox had until then; where nothing counts that, the
            largest process of this step.
        read_bytes, written_bytes: of storage.
        network_up, network_down: bytes through the proxy.
        exceeded: the limit that was met: {"kind", "limit", "used", "unit"}, and "best_effort" when that is inferred.
        at_least: the names of those figures that are the least it can have been.
    """

    agent: str
    step: str
    what: str
    wall_s: float
    cpu_s: float | None = None
    throttled_s: float | None = None
    memory_peak_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    network_up: int | None = None
    network_down: int | None = None
    exceeded: Mapping[str, Any] | None = None
    at_least: Sequence[str] = ()


def uses_of(records: Iterable[Record], blob: Callable[[str], bytes]) -> tuple[Use, ...]:
    """What each command of a run used, in the order in which they ended.

    Args:
        records: of the run.
        blob: loads a large result; what cannot be loaded is left out.
    """
    what: dict[tuple[str, str], str] = {}
    out: list[Use] = []
    for record in records:
        event = record.event
        if isinstance(event, StepIntent):
            command = _mapping(event.arguments).get("command", "")
            what[record.stream, event.step] = f"{executed(event.what, event.arguments)} {command}".strip()
        elif isinstance(event, Ended) and (found := _figures(event, blob)):
            title = what.get((record.stream, event.step), "")
            out.append(_use(record.stream, event, title, found))
    return tuple(out)


def _figures(event: Ended, blob: Callable[[str], bytes]) -> Mapping[str, Any]:
    """The figures of a step; empty when it ran no command. Records of an earlier version have them in the result."""
    if event.resources is not None or not isinstance(event, StepDone):
        return _mapping(event.resources)
    value = _mapping(event.result)
    if isinstance(digest := value.get("blob"), str):
        try:
            value = _mapping(json.loads(blob(digest)))
        except (TokaError, ValueError):
            return {}
    for figures in (value, _mapping(value.get("data"))):
        if "cpu_s" in figures:
            return figures
    return {}


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _use(agent: str, event: Ended, what: str, found: Mapping[str, Any]) -> Use:
    ended = event.limit if isinstance(event, StepFailed) else None
    return Use(
        agent=agent,
        step=event.step,
        what=what,
        wall_s=event.wall_s,
        cpu_s=found.get("cpu_s"),
        throttled_s=found.get("throttled_s"),
        memory_peak_bytes=found.get("memory_peak_bytes") or found.get("max_rss_bytes"),
        read_bytes=found.get("read_bytes"),
        written_bytes=found.get("written_bytes"),
        network_up=found.get("network_up"),
        network_down=found.get("network_down"),
        exceeded=found.get("exceeded") or (ended and {"kind": str(ended["scope"]).partition(" ")[0], **_limits(ended)}),
        at_least=tuple(name for name in FIGURES if name in str(found.get("at_least", ""))),
    )


def _limits(met: Mapping[str, Any]) -> dict[str, Any]:
    return {name: met[name] for name in ("limit", "used", "unit")}


def total_of(uses: Sequence[Use]) -> dict[str, Any]:
    """All of them together: sums, the highest peak, how many limits were met."""
    out: dict[str, Any] = {}
    for name in SUMMED:
        values = [value for use in uses if (value := getattr(use, name)) is not None]
        out[name] = round(sum(values), 3) if values else None
    peaks = [use.memory_peak_bytes for use in uses if use.memory_peak_bytes is not None]
    out["memory_peak_bytes"] = max(peaks, default=None)
    out["limits_met"] = sum(1 for use in uses if use.exceeded)
    out["at_least"] = tuple(dict.fromkeys(name for use in uses for name in use.at_least))
    return out


def resources_json(run: str, uses: Sequence[Use]) -> dict[str, Any]:
    """The object that `toka show RUN --resources --json` prints."""
    agents: dict[str, Any] = {}
    for name, own in _by_agent(uses).items():
        steps = [{k: v for k, v in asdict(use).items() if k != "agent"} for use in own]
        agents[name] = {"steps": steps, "total": total_of(own)}
    return {"type": "resources", "run_id": run, "agents": agents}


def resource_lines(run: str, uses: Sequence[Use]) -> list[str]:
    """The same for a person: a table for each agent."""
    out = [f"run {line_of(run, 60)}: {some(len(uses), 'command') if uses else 'no step ran a program'}"]
    for name, own in _by_agent(uses).items():
        total = total_of(own)
        rows: list[list[Cell]] = [list(HEADER), *(_row(use) for use in own)]
        rows.append(["together", "", *_cells(total), some(total["limits_met"], "time") if total["limits_met"] else ""])
        out += ["", line_of(name, 100), *(f"  {line}" for line in columns(rows, range(2, 10)))]
    return out


def _by_agent(uses: Sequence[Use]) -> dict[str, list[Use]]:
    out: dict[str, list[Use]] = {}
    for use in uses:
        out.setdefault(use.agent, []).append(use)
    return out


def _row(use: Use) -> list[Cell]:
    met = use.exceeded
    sure = " (probably)" if met and met.get("best_effort") else ""
    limit = f"{line_of(str(met['kind']), 20)} {_limit(met)}{sure}" if met else ""
    return [line_of(use.step, 80), clean(use.what, TITLE), *_cells(asdict(use)), limit]


def _cells(figures: Mapping[str, Any]) -> list[Cell]:
    cells = {name: (_time if name.endswith("_s") else _size)(figures[name]) for name in FIGURES}
    return [f"{text}+" if name in figures["at_least"] and text != "-" else text for name, text in cells.items()]


def _limit(met: Mapping[str, Any]) -> str:
    """The figure of a limit in its unit; a record of an earlier version names none, and means bytes."""
    unit = str(met.get("unit", "bytes"))
    if unit == met["kind"]:
        return f"{met['limit']:g}"
    return format_bytes(int(met["limit"])) if unit == "bytes" else f"{met['limit']:g} {line_of(unit, 20)}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else span(seconds)


def _size(size: float | None) -> str:
    """Bytes for people: 512B, 3.4MB."""
    if size is None:
        return "-"
    amount, unit = float(size), 0
    while amount >= 1000 and unit + 1 < len(_UNITS):
        amount, unit = amount / 1024, unit + 1
    return f"{amount:.0f}{_UNITS[unit]}" if amount >= 99.5 or not unit else f"{amount:.1f}{_UNITS[unit]}"
