from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.events.event import KINDS, RESERVED_KINDS, Unknown
from toka.events.event import Event as AnyEvent
from toka.events.record import VERSION, Record, decode, encode, payload

STORED = Path(__file__).resolve().parents[1] / "fixtures" / "runs" / "v1.jsonl"

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=3)
texts = st.text(st.characters() | st.sampled_from("\ud800\udbff\udc00\udfff"), max_size=30)
"""Any text, half surrogate pairs included."""
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "str": texts,
    "int": st.integers(0, 10**9),
    "float": st.floats(0, 1e9),
    "bool": st.booleans(),
    "Any": values,
    "JSON": objects,
    "dict[str, int]": st.dictionaries(texts, st.integers(0, 10**9), max_size=3),
    "list[str]": st.lists(texts, max_size=3),
    "list[int]": st.lists(st.integers(0, 10**9), max_size=5),
    "list[float]": st.lists(st.floats(0, 1e9), max_size=3),
    "list[Any]": st.lists(values, max_size=3),
    "list[JSON]": st.lists(objects, max_size=3),
}


def strategy_of(annotation: str) -> st.SearchStrategy[Any]:
    options = [part.strip() for part in annotation.split("|")]
    return st.one_of([st.none() if part == "None" else BY_TYPE[part] for part in options])


def events_of(cls: type[Any]) -> st.SearchStrategy[AnyEvent]:
    fields = {f.name: strategy_of(str(f.type)) for f in dataclasses.fields(cls)}
    return st.builds(cls, **fields)


events = st.one_of([events_of(cls) for cls in KINDS.values()])
unknown = st.builds(Unknown, st.text(min_size=1, max_size=20).filter(lambda kind: kind not in KINDS), objects)


@given(event=events | unknown, seq=st.integers(1, 10**9), epoch=st.integers(1, 100), at=st.floats(0, 1e10))
def test_every_event_survives_being_stored(event: AnyEvent, seq: int, epoch: int, at: float) -> None:
    body = encode(event, "run", "agent", seq, epoch, at)
    body.encode()  # what is stored is UTF-8 whatever a text held
    assert decode(7, body) == Record(7, "run", "agent", seq, epoch, at, event)


@given(event=events)
def test_what_equals_its_default_is_not_stored(event: AnyEvent) -> None:
    stored = json.loads(encode(event, "run", "agent", 1, 1, 0.0))["data"]
    for f in dataclasses.fields(event):
        if f.default is not dataclasses.MISSING and getattr(event, f.name) == f.default:
            assert f.name not in stored


@given(event=events, more=objects)
def test_fields_of_a_later_version_are_ignored(event: AnyEvent, more: dict[str, Any]) -> None:
    raw = json.loads(encode(event, "run", "agent", 1, 1, 0.0))
    raw["data"] = {**{f"later-{k}": v for k, v in more.items()}, **raw["data"]}
    raw["later"] = 1
    assert decode(1, json.dumps(raw)).event == event


@given(event=unknown)
def test_kinds_of_a_later_version_are_kept_whole(event: Unknown) -> None:
    body = encode(event, "run", "agent", 1, 1, 0.0)
    again = decode(1, body).event
    assert payload(again) == (event.kind, event.data)
    assert encode(again, "run", "agent", 1, 1, 0.0) == body


@pytest.mark.parametrize(
    "body", ["", "[]", "null", "{}", "7", '{"kind": "hold_placed"}', '{"kind": "hold_placed", "data": {}}', "\x00"]
)
def test_what_is_no_event_is_named_with_its_record(body: str) -> None:
    with pytest.raises(ValueError, match=r"record 31 is not|Expecting"):
        decode(31, body)


def test_the_printed_form_lets_no_field_hide_the_place_of_a_record() -> None:
    record = Record(4, "run", "agent", 2, 1, 1.23456, Unknown("later", {"id": 99, "kind": "x", "seq": 0, "new": [1]}))
    assert record.to_json() == {
        "type": "event",
        "id": 4,
        "run_id": "run",
        "seq": 2,
        "at": 1.235,
        "agent": "agent",
        "kind": "later",
        "new": [1],
    }


def test_every_class_of_event_is_in_the_union_and_has_a_kind_of_its_own() -> None:
    members = set(typing.get_args(AnyEvent))
    assert members == {*KINDS.values(), Unknown}
    assert all(kind == cls.KIND for kind, cls in KINDS.items())
    assert not RESERVED_KINDS & KINDS.keys(), "reserved for messages between agents"


def test_the_journal_of_this_version_is_understood_for_ever() -> None:
    bodies = STORED.read_text(encoding="utf-8").splitlines()
    records = [decode(number, body) for number, body in enumerate(bodies, 1)]
    assert {payload(r.event)[0] for r in records} == {*KINDS, "message_sent"}
    for record, body in zip(records, bodies, strict=True):
        assert json.loads(body)["v"] == VERSION == 1
        known = payload(record.event)[1]
        assert {k: v for k, v in json.loads(body)["data"].items() if k in known} == known
