"""Verifying a run's record.

Each stream is a hash chain: every record's hash covers the one before it and its own stored bytes, which name the
run, the stream, the sequence number and the epoch. An edited, deleted, inserted, reordered or transplanted record
breaks its chain there; a cut tail contradicts the streams table; a large value that is kept beside its record is known
there by its hash. Whoever rewrites both a chain and its head leaves no
trace in this file: only a head noted elsewhere at an earlier time shows that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from toka.core.ids import RunId
from toka.errors import JournalCorrupt, JournalError, NotFound
from toka.events.record import blobs_of, decode
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
    before = reader.heads(run)
    seen: dict[str, tuple[int, bytes]] = {}
    passed: dict[str, bytes] = {}
    bad: dict[str, Problem] = {}
    count = 0
    rows = _Rows(reader, run)
    values = _Values(reader)
    for id_, stream, body, stored in rows:
        count += 1
        if stream in bad:
            continue
        seq, link = seen.get(stream, (0, GENESIS))
        what = _misplaced(body, run, stream, seq + 1)
        expected = chain(link, body) if not what else link
        if not what and stored != expected:
            what = "its hash does not match"
        what = what or values.missing(id_, body)
        if what:
            bad[stream] = Problem(stream, seq + 1, id_, what)
        else:
            seen[stream] = (seq + 1, expected)
            if stream in before and before[stream][0] == seq + 1:
                passed[stream] = expected
    after = reader.heads(run)
    if rows.error is not None and before:
        bad.setdefault(*rows.unread(before))
    for stream, head in after.items() if rows.error is None else ():
        end = seen.setdefault(stream, (0, GENESIS))
        what = _ends_badly(end, head, before.get(stream), passed.get(stream, GENESIS))
        if what and stream not in bad:
            bad[stream] = Problem(stream, end[0] + 1, None, what)
    problems = tuple(bad[s] for s in sorted(bad))
    return Verdict(run, count, problems, {s: link.hex() for s, (_, link) in sorted(seen.items())})


class _Values:
    """The large values that records keep beside themselves: each is known by its own hash."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._seen: dict[str, str] = {}

    def missing(self, id_: int, body: str) -> str:
        """What is wrong with those that a stored event names; empty when nothing is."""
        if '"blob":"' not in body and '"specs":"' not in body:
            return ""
        try:
            named = blobs_of(decode(id_, body).event)
        except ValueError as e:
            return str(e)
        for digest in named:
            if digest not in self._seen:
                self._seen[digest] = self._look(digest)
            if self._seen[digest]:
                return self._seen[digest]
        return ""

    def _look(self, digest: str) -> str:
        try:
            self._reader.blob(digest)
        except NotFound:
            return f"its large value, blob {digest[:12]}, is missing"
        except JournalCorrupt:
            return f"its large value, blob {digest[:12]}, was changed"
        except JournalError as e:
            return f"its large value, blob {digest[:12]}, cannot be read ({e.message})"
        return ""


class _Rows:
    """The stored records of a run, stream by stream, up to the first that cannot be read; `error` says why."""

    def __init__(self, reader: Reader, run: RunId) -> None:
        self._reader = reader
        self._run = run
        self._read: Counter[str] = Counter()
        self.error: JournalError | None = None

    def __iter__(self) -> Iterator[tuple[int, str, str, bytes]]:
        try:
            for row in self._reader.stored(self._run):
                self._read[row[1]] += 1
                yield row
        except JournalError as e:
            self.error = e

    def unread(self, heads: Mapping[str, tuple[int, bytes]]) -> tuple[str, Problem]:
        """The record that could not be read, with its stream: the first that is missing of what the heads promise."""
        short = [stream for stream, (last, _) in heads.items() if self._read[stream] < last]
        stream = short[0] if short else list(heads)[-1]
        why = self.error.message if self.error else ""
        what = f"it cannot be read ({why}); what comes after it was not verified"
        return stream, Problem(stream, self._read[stream] + 1, None, what)


def _ends_badly(
    end: tuple[int, bytes], head: tuple[int, bytes], before: tuple[int, bytes] | None, passed: bytes
) -> str:
    """What is wrong with a stream's end; empty when it is its head, or was it before the stream grew meanwhile.

    Args:
        end: number and hash of the last record that was read.
        head: what the streams table says now.
        before: what it said before the records were read; None when the stream did not exist.
        passed: the hash of the record that was the head then.
    """
    if end == head:
        return ""
    if end[0] == head[0]:
        return "its head's hash does not match"
    grew = before is None or (before[0] <= end[0] and before[1] == passed)
    return "" if grew and end[0] < head[0] else f"the stream ends at {end[0]}, its head says {head[0]}"


def _misplaced(body: object, run: str, stream: str, seq: int) -> str:
    if not isinstance(body, str):  # what somebody who edits the file may have left there
        return "it is not a stored event"
    try:
        raw = json.loads(body)
        place = (raw["run"], raw["stream"], raw["seq"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "it is not a stored event"
    if place[:2] != (run, stream):
        return f"it belongs to stream {place[1]!r} of run {place[0]}"
    return "" if place[2] == seq else f"record {seq} is expected here, this is {place[2]}"
