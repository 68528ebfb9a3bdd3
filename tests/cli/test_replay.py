"""`toka replay` on the command line: what it says, its exit code, and that it leaves the record alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from cli.records import Recorded, Toka
from toka.events.event import Event, StepDenied, TaskStateChanged
from toka.events.record import decode, encode
from toka.journal.database import FILE
from toka.journal.journal import GENESIS, chain


def rewritten(recorded: Recorded, change: Callable[[Event], Event | None]) -> None:
    """Writes another record in the place of this one, as its own chain: nothing of it contradicts itself."""
    with closing(sqlite3.connect(recorded.state / FILE)) as db:
        heads: dict[int, tuple[int, bytes]] = {}
        for id_, stream, body in db.execute("SELECT id, stream, body FROM events ORDER BY id").fetchall():
            r = decode(id_, body)
            seq, link = heads.get(stream, (0, GENESIS))
            event = change(r.event)
            if event is None:
                db.execute("DELETE FROM events WHERE id=?", (id_,))
                continue
            text = encode(event, r.run, r.stream, seq + 1, r.epoch, r.at)
            heads[stream] = (seq + 1, chain(link, text))
            db.execute("UPDATE events SET seq=?, body=?, hash=? WHERE id=?", (seq + 1, text, heads[stream][1], id_))
        for stream, (seq, link) in heads.items():
            db.execute("UPDATE streams SET head_seq=?, head=? WHERE id=?", (seq, link, stream))
        db.commit()


def test_the_same_decisions_are_said_to_be_the_same(recorded: Recorded, toka: Toka) -> None:
    ran = toka("replay", recorded.run, "--state", recorded.state)
    assert ran.code == 0 and ran.out.startswith("same decisions: ") and " steps of " in ran.out


def test_json_is_one_object(recorded: Recorded, toka: Toka) -> None:
    ran = toka("replay", "@last", "--json", "--state", recorded.state)
    (line,) = ran.out.splitlines()
    found = json.loads(line)
    assert ran.code == 0 and (found["type"], found["run_id"], found["same"]) == ("replay", recorded.run, True)
    assert found["steps"] and found["processes"] == 1 and found["divergences"] == []


def test_another_report_is_named_at_its_record_though_the_chain_holds(recorded: Recorded, toka: Toka) -> None:
    def other(event: Event) -> Event:
        if isinstance(event, TaskStateChanged) and event.report is not None:
            return replace(event, report={**event.report, "summary": "all is well"})
        return event

    rewritten(recorded, other)
    assert toka("audit", "verify", "@last", "--state", recorded.state).code == 0
    ran = toka("replay", "@last", "--state", recorded.state)
    assert ran.code == 1 and " goes another way at record " in ran.out and "all is well" in ran.out
    assert ran.out.splitlines()[-1].startswith("other decisions; the same are ")
    found = json.loads(toka("replay", "@last", "--json", "--state", recorded.state).out)
    assert found["same"] is False and found["divergences"][0]["fields"] == ["report"]


def test_a_denial_that_was_taken_out_is_missed_though_the_chain_holds(recorded: Recorded, toka: Toka) -> None:
    rewritten(recorded, lambda event: None if isinstance(event, StepDenied) else event)
    assert toka("audit", "verify", "@last", "--state", recorded.state).code == 0
    ran = toka("replay", "@last", "--state", recorded.state)
    assert ran.code == 1 and "  now       step_denied: " in ran.out


def test_the_record_is_only_read(recorded: Recorded, toka: Toka) -> None:
    before = (recorded.state / FILE).read_bytes()
    toka("replay", "@last", "--state", recorded.state)
    assert (recorded.state / FILE).read_bytes() == before


def test_a_run_that_is_not_there_is_an_error(recorded: Recorded, toka: Toka) -> None:
    ran = toka("replay", "nonesuch", "--state", recorded.state)
    assert ran.code == 9 and not ran.out and "no run 'nonesuch'" in ran.err


def test_a_damaged_record_is_an_error(recorded: Recorded, toka: Toka) -> None:
    with closing(sqlite3.connect(recorded.state / FILE)) as db:
        db.execute("UPDATE events SET body='{}' WHERE id=3")
        db.commit()
    ran = toka("replay", "@last", "--state", recorded.state)
    assert ran.code == 70 and "audit verify" in ran.err
