"""An event in its place in the journal, and the stored form of both.

Fields are JSON values, so the stored form is the fields by name; those at their default are left out. The form has a
version: a reader ignores fields it does not know and keeps kinds it does not know as `Unknown`, so that the journal of
every released version can be read for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

from toka.events.event import JSON, KINDS, Event, RunCreated, StepDone, Unknown
from toka.events.flow import InstancesMade, OutputsMade

VERSION: Final = 1
"""Of the stored form. It changes only when a reader of an older version would misread."""

_MISSING: Final = object()


def _default(f: Any) -> Any:
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else _MISSING


_FIELDS: Final[Mapping[type[Any], tuple[tuple[str, Any], ...]]] = {
    c: tuple((f.name, _default(f)) for f in fields(c)) for c in KINDS.values()
}


@dataclass(frozen=True, slots=True)
class Record:
    """An event in its place in the journal.

    Attributes:
        id: position in the whole journal, growing, from 1.
        run: the run.
        stream: the agent's name; empty for the run's own stream.
        seq: position in the stream, from 1 without gaps.
        epoch: the executor's epoch when it was written.
        at: wall-clock time of the append, seconds since the epoch.
        event: what happened.
    """

    id: int
    run: str
    stream: str
    seq: int
    epoch: int
    at: float
    event: Event

    def to_json(self) -> JSON:
        """The form that `--json` prints: {"type": "event", "id", "run", "agent"?, "seq", "at", "kind", ...fields}."""
        out: JSON = {"type": "event", "id": self.id, "run_id": self.run, "seq": self.seq, "at": round(self.at, 3)}
        if self.stream:
            out["agent"] = self.stream
        kind, data = payload(self.event)
        out["kind"] = kind
        out.update((k, v) for k, v in data.items() if k not in out)
        return out


def payload(event: Event) -> tuple[str, JSON]:
    """The kind and the fields that differ from their defaults."""
    if isinstance(event, Unknown):
        return event.kind, dict(event.data)
    out: JSON = {}
    for name, default in _FIELDS[type(event)]:
        value = getattr(event, name)
        if value != default:
            out[name] = value
    return event.KIND, out


def encode(event: Event, run: str, stream: str, seq: int, epoch: int, at: float) -> str:
    """The bytes to store, as text: one JSON object that names its own place, so that it cannot be moved unnoticed."""
    kind, data = payload(event)
    head: JSON = {"v": VERSION, "run": run, "stream": stream, "seq": seq, "epoch": epoch, "at": at, "kind": kind}
    head["data"] = data
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as models and programs send it: stored as its escape
        text = json.dumps(head, separators=(",", ":"))
    return text


def decode(id_: int, body: str) -> Record:
    """The inverse of `encode`.

    Raises:
        ValueError: the text is not a stored event.
    """
    raw: JSON = json.loads(body)
    try:
        kind, data = raw["kind"], raw["data"]
        cls = KINDS.get(kind)
        event: Event
        if cls is None:
            event = Unknown(kind, data)
        else:
            event = cls(**{name: data[name] for name, _ in _FIELDS[cls] if name in data})
        return Record(id_, raw["run"], raw["stream"], raw["seq"], raw["epoch"], raw["at"], event)
    except (KeyError, TypeError) as e:
        raise ValueError(f"record {id_} is not a stored event: {e}") from e


def blobs_of(event: Event) -> tuple[str, ...]:
    """The digests of the large values that an event keeps beside itself."""
    match event:
        case RunCreated(specs=digest) | InstancesMade(blob=digest) | OutputsMade(blob=digest):
            return (digest,) if digest else ()
        case StepDone(result={"blob": str(digest)}):
            return (digest,)
        case _:
            return ()
