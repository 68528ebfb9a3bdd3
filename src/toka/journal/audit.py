"""Verifying a run's record.

Each stream is a hash chain: every record's hash covers the one before it and its own stored bytes, which name the
run, the stream, the sequence number and the epoch. An edited, deleted, inserted, reordered or transplanted record
breaks its chain there; a cut tail contradicts the streams table. Whoever rewrites both a chain and its head leaves no
trace in this file: only a head noted elsewhere at an earlier time shows that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from toka.core.ids import RunId
from toka.journal.journal import GENESIS, Reader, chain


@dataclass(frozen=True, slots=True)
class Problem:
    """The first bad record of a stream.

    Attributes:
        stream: the agent; empty for the run's own stream.
        seq: the place in the stream at which the record stops being trustworthy.
        record: id of the record there; None when it is missing.
        what: what is wrong with it.
    """

    stream: str
    seq: int
    record: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an audit of one run found. `records` counts what was read; `heads` are the streams' last hashes, in hex."""

    run: RunId
    records: int
    problems: tuple[Problem, ...]
    heads: Mapping[str, str] = field(default_factory=dict[str, str])


def verify(reader: Reader, run: RunId) -> Verdict:
    """Reads every stored record of a run and reports, per stream, the first one that cannot be trusted."""
    heads = reader.heads(run)
    seen: dict[str, tuple[int, bytes]] = dict.fromkeys(heads, (0, GENESIS))
    bad: dict[str, Problem] = {}
    count = 0
    for id_, stream, body, stored in reader.stored(run):
        count += 1
        if stream in bad:
            continue
        seq, link = seen.get(stream, (0, GENESIS))
        expected = chain(link, body)
        what = _misplaced(body, run, stream, seq + 1) or (
            "" if bytes(stored) == expected else "its hash does not match"
        )
        if what:
            bad[stream] = Problem(stream, seq + 1, id_, what)
        else:
            seen[stream] = (seq + 1, expected)
    for stream, (head_seq, head) in heads.items():
        seq, link = seen[stream]
        if stream not in bad and (seq, link) != (head_seq, head):
            missing = f"the stream ends at {seq}, its head says {head_seq}"
            bad[stream] = Problem(
                stream, seq + 1, None, missing if seq != head_seq else "its head's hash does not match"
            )
    problems = tuple(bad[s] for s in sorted(bad))
    return Verdict(run, count, problems, {s: link.hex() for s, (_, link) in sorted(seen.items())})


def _misplaced(body: str, run: str, stream: str, seq: int) -> str:
    try:
        raw = json.loads(body)
        place = (raw["run"], raw["stream"], raw["seq"])
    except (ValueError, KeyError, TypeError):
        return "it is not a stored event"
    if place[:2] != (run, stream):
        return f"it belongs to stream {place[1]!r} of run {place[0]}"
    return "" if place[2] == seq else f"record {seq} is expected here, this is {place[2]}"
