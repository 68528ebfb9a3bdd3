"""What came of a replay, for people and as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from toka.cli.render_event import event_text
from toka.cli.text import line_of, some
from toka.events.event import Event
from toka.events.lifecycle import RunStatus
from toka.events.record import payload
from toka.orchestration.decisions import Divergence
from toka.orchestration.replay import Replayed

BEFORE: Final = 40
"""Characters that are shown before the first one that differs."""
SHOWN: Final = 160
"""Characters of one side."""


def replay_json(found: Replayed, status: str) -> dict[str, Any]:
    """The object of `toka replay --json`."""
    return {
        "type": "replay",
        "run_id": found.run,
        "same": found.same,
        "state": status,
        "steps": found.steps,
        "agents": found.agents,
        "processes": found.lives,
        "record": found.last,
        "divergences": [_divergence_json(each) for each in found.divergences],
        "unreached": list(found.unreached),
    }


def _divergence_json(each: Divergence) -> dict[str, Any]:
    return {
        "agent": each.stream or None,
        "record": None if each.record is None else each.record.id,
        "fields": list(each.fields),
        "recorded": None if each.record is None else _event_json(each.record.event),
        "now": None if each.now is None else _event_json(each.now),
        "instead": None if each.instead is None else {"agent": each.instead[0], **_event_json(each.instead[1])},
    }


def _event_json(event: Event) -> dict[str, Any]:
    kind, data = payload(event)
    return {**data, "kind": kind}


def replay_lines(found: Replayed, status: str) -> Iterator[str]:
    """Each place where an agent goes another way, and what the whole comes to."""
    for each in found.divergences:
        yield from _divergence_lines(each)
    steps = f"{some(found.steps, 'step')} of {some(found.agents, 'agent')}"
    if found.unreached:
        names = ", ".join(line_of(name, 60) for name in found.unreached)
        yield f"not reached after that: {names}"
    if not found.same:
        yield f"other decisions; the same are {steps}"
    elif found.state.ended:
        yield f"same decisions: {steps}"
    else:
        still = "goes on" if status == RunStatus.RUNNING.value else f"is {status}"
        yield f"same decisions: {steps}, up to record {found.last}; the run {still}"


def _divergence_lines(each: Divergence) -> Iterator[str]:
    who = f"agent {line_of(each.stream, 60)}" if each.stream else "the run"
    if each.record is None:
        yield f"{who} goes another way after the last record of it"
    else:
        yield f"{who} goes another way at record {each.record.id}"
        yield f"  recorded  {_said(each.record.event)}"
    if each.now is not None:
        yield f"  now       {_said(each.now)}"
    elif each.instead is not None:
        yield f"  now       nothing; first comes {line_of(each.instead[0], 60)}: {_said(each.instead[1])}"
    else:
        yield "  now       nothing"
    if each.record is not None and each.now is not None:
        old, new = payload(each.record.event)[1], payload(each.now)[1]
        for name in each.fields:
            if name != "kind":
                yield from _field_lines(name, old.get(name), new.get(name))


def _said(event: Event) -> str:
    return f"{payload(event)[0]}: {line_of(event_text(event), SHOWN)}"


def _field_lines(name: str, old: Any, new: Any) -> Iterator[str]:
    """A field on both sides, from a little before the first character that differs."""
    was, now = (json.dumps(value, ensure_ascii=False, sort_keys=True) for value in (old, new))
    same = next((n for n, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    start = max(0, same - BEFORE)
    for said, text in (("recorded", was), ("now", now)):
        shown = ("…" if start else "") + text[start : start + SHOWN] + ("…" if len(text) > start + SHOWN else "")
        yield f"    {name}, {said}: {line_of(shown, SHOWN + 2)}"
