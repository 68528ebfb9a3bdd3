"""S5: whoever changes the record is found, at the exact record; whoever rewrites it whole only by a noted head."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from journal.conftest import OTHER, RUN, event
from toka.core.clock import SystemClock
from toka.errors import JournalCorrupt, NotFound
from toka.events.event import StepDone
from toka.events.flow import InstancesMade
from toka.journal.audit import Problem, Verdict, verify
from toka.journal.database import FILE
from toka.journal.journal import GENESIS, chain
from toka.journal.sqlite import SqliteJournal, SqliteReader


@pytest.fixture
async def written(state: Path) -> AsyncIterator[Path]:
    """Two runs; of RUN the streams a and b with five records each, interleaved: ids 1, 3, 5, 7, 9 are a's."""
    journal = SqliteJournal(state, SystemClock())
    for run in (RUN, OTHER):
        lease = await journal.acquire(run)
        for n in range(5):
            for stream in ("a", "b"):
                await journal.append(lease, stream, 1, [event(f"{stream}{n}")])
    await journal.aclose()
    yield state


@pytest.fixture
def db(written: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(written / FILE, isolation_level=None)) as connection:
        yield connection


def audit(state: Path, run: str = RUN) -> Verdict:
    with closing(SqliteReader(state, SystemClock())) as reader:
        return verify(reader, run)  # type: ignore[arg-type]


HASH, PLACE = "its hash does not match", "record 3 is expected here, this is 4"


def test_an_untouched_record_is_whole(written: Path) -> None:
    verdict = audit(written)
    assert (verdict.problems, verdict.records, sorted(verdict.heads)) == ((), 10, ["a", "b"])


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("UPDATE events SET body=replace(body, 'a2', 'xx') WHERE id=5", Problem("a", 3, 5, HASH)),
        ("UPDATE events SET body=replace(body, '\"epoch\":1', '\"epoch\":2') WHERE id=5", Problem("a", 3, 5, HASH)),
        ("UPDATE events SET hash=x'00' WHERE id=5", Problem("a", 3, 5, HASH)),
        ("UPDATE events SET hash='text' WHERE id=5", Problem("a", 3, 5, HASH)),
        ("UPDATE events SET hash=99999999999 WHERE id=5", Problem("a", 3, 5, HASH)),
        ("UPDATE events SET body='[1]' WHERE id=5", Problem("a", 3, 5, "it is not a stored event")),
        ("UPDATE events SET body=x'00ff' WHERE id=5", Problem("a", 3, 5, "it is not a stored event")),
        ("UPDATE events SET body=7 WHERE id=5", Problem("a", 3, 5, "it is not a stored event")),
        (
            "UPDATE events SET body=replace(hex(zeroblob(50000)), '0', '[') WHERE id=5",
            Problem("a", 3, 5, "it is not a stored event"),
        ),
        ("DELETE FROM events WHERE id=5", Problem("a", 3, 7, PLACE)),
        ("DELETE FROM events WHERE id=1", Problem("a", 1, 3, "record 1 is expected here, this is 2")),
        ("DELETE FROM events WHERE id=9", Problem("a", 5, None, "the stream ends at 4, its head says 5")),
        ("DELETE FROM events WHERE id IN (7, 9)", Problem("a", 4, None, "the stream ends at 3, its head says 5")),
        (
            "DELETE FROM events WHERE id IN (1, 3, 5, 7, 9)",
            Problem("a", 1, None, "the stream ends at 0, its head says 5"),
        ),
        ("UPDATE streams SET head=x'00' WHERE id=1", Problem("a", 6, None, "its head's hash does not match")),
        ("UPDATE streams SET head_seq=7 WHERE id=1", Problem("a", 6, None, "the stream ends at 5, its head says 7")),
    ],
)
def test_an_edit_or_a_deletion_is_named_at_the_record(
    written: Path, db: sqlite3.Connection, sql: str, found: Problem
) -> None:
    db.execute(sql)
    verdict = audit(written)
    assert verdict.problems == (found,)
    assert audit(written, OTHER).problems == ()


def test_two_records_that_changed_places_are_named_at_the_first(written: Path, db: sqlite3.Connection) -> None:
    rows = {i: db.execute("SELECT body, hash FROM events WHERE id=?", (i,)).fetchone() for i in (5, 7)}
    for here, there in ((5, 7), (7, 5)):
        db.execute("UPDATE events SET body=?, hash=? WHERE id=?", (*rows[there], here))
    assert audit(written).problems == (Problem("a", 3, 5, PLACE),)


def test_records_swapped_between_streams_are_named_in_both(written: Path, db: sqlite3.Connection) -> None:
    rows = {i: db.execute("SELECT body, hash FROM events WHERE id=?", (i,)).fetchone() for i in (7, 8)}
    for here, there in ((7, 8), (8, 7)):
        db.execute("UPDATE events SET body=?, hash=? WHERE id=?", (*rows[there], here))
    assert audit(written).problems == (
        Problem("a", 4, 7, f"it belongs to stream 'b' of run {RUN}"),
        Problem("b", 4, 8, f"it belongs to stream 'a' of run {RUN}"),
    )


def test_a_record_of_another_run_is_told_by_its_run(written: Path, db: sqlite3.Connection) -> None:
    body, link = db.execute("SELECT body, hash FROM events WHERE stream=3 AND seq=5").fetchone()
    db.execute("UPDATE events SET body=?, hash=? WHERE id=9", (body, link))
    assert audit(written).problems == (Problem("a", 5, 9, f"it belongs to stream 'a' of run {OTHER}"),)


def test_each_stream_has_its_own_first_bad_record(written: Path, db: sqlite3.Connection) -> None:
    db.execute("UPDATE events SET body=replace(body, 'a1', 'x') WHERE id IN (3, 7)")
    db.execute("UPDATE events SET body=replace(body, 'b3', 'x') WHERE id=8")
    verdict = audit(written)
    assert [(p.stream, p.record) for p in verdict.problems] == [("a", 3), ("b", 8)]
    assert verdict.records == 10


@pytest.mark.parametrize("spoilt", [b"\0" * 4096, b"\xa5" * 4096, b"\x0d\xff" * 2048])
async def test_what_cannot_be_read_is_named_and_nothing_is_overwritten(state: Path, spoilt: bytes) -> None:
    journal = SqliteJournal(state, SystemClock())
    for run in (RUN, OTHER):
        lease = await journal.acquire(run)
        for n in range(5):
            for stream in ("", "a", "b"):
                await journal.append(lease, stream, 1, [event(f"{stream}{n} " + "x" * 3000)])
    await journal.aclose()
    file = state / FILE
    pages = [i for i in range(0, file.stat().st_size, 4096) if b'"reason":"a3 ' in file.read_bytes()[i : i + 4096]]
    data = bytearray(file.read_bytes())
    data[pages[0] : pages[0] + 4096] = spoilt
    file.write_bytes(data)
    verdict = audit(state)
    (problem,) = [p for p in verdict.problems if p.stream == "a"]
    assert problem.seq == 4, "the one on the page that was spoilt"
    assert not [p for p in verdict.problems if p.stream == ""], "it was read before, and is whole"
    assert file.read_bytes() == data


def test_who_rewrites_chain_and_head_is_caught_only_by_a_head_noted_before(
    written: Path, db: sqlite3.Connection
) -> None:
    noted = audit(written).heads
    db.execute("UPDATE events SET body=replace(body, 'a2', 'xx') WHERE id=5")
    link = GENESIS
    for id_, body in db.execute("SELECT id, body FROM events WHERE stream=1 ORDER BY seq").fetchall():
        link = chain(link, body)
        db.execute("UPDATE events SET hash=? WHERE id=?", (link, id_))
    db.execute("UPDATE streams SET head=? WHERE id=1", (link,))
    verdict = audit(written)
    assert verdict.problems == (), "in this file there is no trace"
    assert verdict.heads["b"] == noted["b"]
    assert verdict.heads["a"] != noted["a"]


SPOILT = "UPDATE blobs SET data=x'00' WHERE digest=?"
LOST = "DELETE FROM blobs WHERE digest=?"


@pytest.mark.parametrize(("sql", "what"), [(SPOILT, "was changed"), (LOST, "is missing")])
async def test_a_large_value_is_known_by_its_hash(state: Path, sql: str, what: str) -> None:
    journal = SqliteJournal(state, SystemClock())
    lease = await journal.acquire(RUN)
    digest = await journal.put_blob(b'"' + b"x" * 50_000 + b'"')
    for result in ({"text": "small"}, {"text": digest}, {"blob": digest}):
        await journal.append(lease, "a", 1, [StepDone("s", result)])
    await journal.append(lease, "b", 1, [InstancesMade(count=1, blob=digest)])
    await journal.aclose()
    assert audit(state).problems == ()
    with closing(sqlite3.connect(state / FILE, isolation_level=None)) as db:
        assert db.execute(sql, (digest,)).rowcount == 1
    bad = f"its large value, blob {digest[:12]}, {what}"
    assert audit(state).problems == (Problem("a", 3, 3, bad), Problem("b", 1, 4, bad))
    with closing(SqliteReader(state, SystemClock())) as reader, pytest.raises((JournalCorrupt, NotFound), match=digest):
        reader.blob(digest)
