"""Heads of a run's streams, noted elsewhere and compared later: what shows a rewritten record. Pure, given the rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from toka.core.ids import RunId
from toka.errors import UsageError
from toka.journal.audit import Problem

FORM: Final = 1
"""Of the exported file."""
CAN: Final = (
    "A chain shows records that were changed, removed, added, reordered or moved, and a cut end. It cannot show that "
    "somebody rewrote a whole stream and its head in this file: only heads noted elsewhere before show that "
    "(toka audit heads RUN > FILE, later toka audit verify RUN --heads FILE)."
)


@dataclass(frozen=True, slots=True)
class Noted:
    """An export of `toka audit heads`: per stream the number and the hash, in hex, of its last record then."""

    run: RunId
    heads: Mapping[str, tuple[int, str]]


def heads_json(run: RunId, heads: Mapping[str, tuple[int, bytes]], at: float) -> dict[str, Any]:
    """The object that `toka audit heads` prints; the run's own stream has the empty name."""
    streams = {name: {"seq": seq, "hash": head.hex()} for name, (seq, head) in sorted(heads.items())}
    return {"form": FORM, "run_id": run, "noted_at": round(at, 3), "heads": streams}


def read_heads(text: str, file: str) -> Noted:
    """The inverse of `heads_json`. Raises UsageError."""
    try:
        raw: Any = json.loads(text)
        if raw["form"] != FORM:
            raise ValueError(f"form {raw['form']!r}")
        heads = {
            str(name): (int(head["seq"]), str(head["hash"]))
            for name, head in cast("dict[str, Any]", raw["heads"]).items()
        }
        return Noted(RunId(str(raw["run_id"])), heads)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UsageError(f"{file} holds no heads: {e}", hint="make one: toka audit heads RUN > FILE") from e


def compare(noted: Noted, rows: Iterable[tuple[int, str, str, bytes]]) -> list[Problem]:
    """What contradicts the noted heads.

    Args:
        noted: the heads.
        rows: (id, stream, body, hash) as stored, by stream and sequence number, of a run whose chains are sound.
    """
    left = {name: head for name, head in noted.heads.items() if head[0] > 0}
    counts: dict[str, int] = {}
    problems: list[Problem] = []
    for id_, stream, _, link in rows:
        seq = counts[stream] = counts.get(stream, 0) + 1
        if stream in left and left[stream][0] == seq:
            _, expected = left.pop(stream)
            if link.hex() != expected:
                problems.append(Problem(stream, seq, id_, "its hash is not the one that was noted: it was rewritten"))
    for stream, (seq, _) in left.items():
        have = counts.get(stream, 0)
        problems.append(Problem(stream, have + 1, None, f"the stream ends at {have}, but {seq} was noted"))
    return sorted(problems, key=lambda p: p.stream)
