from __future__ import annotations

import json
import shlex
import signal
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cli.records import COMMAND, Recorded, Toka, write_run
from toka.cli.follow import Follower
from toka.cli.heads import Noted, compare, heads_json, read_heads
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import UsageError
from toka.events.event import ExecutorAttached, RunCreated, RunStateChanged
from toka.journal.sqlite import SqliteReader

RUN = RunId("20261101-101010-abcdef")
BEGUN = [RunCreated(["a"], "0" * 64, "/w"), ExecutorAttached("h", 1, 1), RunStateChanged("RUNNING")]


def change(state: Path, sql: str, values: Sequence[object] = ()) -> None:
    with closing(sqlite3.connect(state / "journal.db", isolation_level=None)) as db:
        db.execute(sql, tuple(values))


def stream_id(state: Path, name: str) -> int:
    with closing(sqlite3.connect(state / "journal.db")) as db:
        return db.execute("SELECT id FROM streams WHERE name=?", (name,)).fetchone()[0]


def test_events_as_text_and_as_json_lines(toka: Toka, recorded: Recorded) -> None:
    lines = toka("events", "@last", "--json", "--state", recorded.state).json_lines()
    assert [e["id"] for e in lines] == list(range(1, len(lines) + 1))
    assert lines[0]["kind"] == "run_created"
    assert lines[-1]["state"] == "FAILED"
    assert {e["run_id"] for e in lines} == {recorded.run}
    text = toka("events", "@last", "--state", recorded.state)
    assert len(text.lines) == len(lines)
    assert "\x1b" not in text.out
    assert "write_file denied: this agent has no filesystem-write" in text.out


def test_events_are_filtered_by_agent_kind_and_id(toka: Toka, recorded: Recorded) -> None:
    found = toka("events", "@last", "--json", "--agent", "two", "--kind", "step_denied", "--state", recorded.state)
    assert {(e["agent"], e["kind"]) for e in found.json_lines()} == {("two", "step_denied")}
    assert len(found.json_lines()) == 3
    after = toka("events", "@last", "--json", "--after", "60", "--state", recorded.state).json_lines()
    assert after[0]["id"] == 61


def test_unknown_agents_and_kinds_are_not_found(toka: Toka, recorded: Recorded) -> None:
    done = toka("events", "@last", "--kind", "step_deny", "--state", recorded.state)
    assert done.code == 9
    assert "did you mean step_denied?" in done.err
    assert toka("events", "@last", "--agent", "nobody", "--state", recorded.state).code == 9
    assert toka("events", "20", "--state", recorded.state).code == 0
    assert toka("events", "nothing", "--state", recorded.state).code == 9
    assert toka("events", "@last", "--after", "-1", "--state", recorded.state).code == 2


def test_following_a_run_whose_executor_is_gone_ends_and_says_so(
    toka: Toka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toka.cli.follow.POLL_S", 0.0)
    write_run(tmp_path, RUN, [("", BEGUN)])
    done = toka("events", "@last", "--follow", "--state", tmp_path)
    assert done.code == 75
    assert done.err.strip() == f"nobody executes run {RUN} any more; go on with: toka resume {RUN} --state {tmp_path}"
    assert len(done.lines) == 3


def test_a_follower_sees_each_record_once_until_the_run_ends(tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", BEGUN)], release=False)
    rest = iter([[RunStateChanged("WAITING")], [RunStateChanged("RUNNING")], [RunStateChanged("COMPLETED")]])
    left: list[RunId] = []

    def pause(seconds: float) -> None:
        left.append(RUN)
        change(tmp_path, "UPDATE leases SET until=0")  # this very process holds it, and appends under a new one
        write_run(tmp_path, RUN, [("", next(rest))], release=False)

    reader = SqliteReader(tmp_path, SystemClock())
    follower = Follower(reader, RUN, pause=pause)
    ids = [record.id for page in follower.follow() for record in page]
    reader.close()
    assert ids == [1, 2, 3, 4, 5, 6]
    assert follower.end == "ended"
    assert len(left) == 3


def test_a_run_that_waits_for_a_person_is_not_followed_for_ever(tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", [*BEGUN, RunStateChanged("WAITING", "a: a question")])])
    reader = SqliteReader(tmp_path, SystemClock())
    follower = Follower(reader, RUN, pause=lambda _: None)
    assert sum(len(page) for page in follower.follow()) == 4
    reader.close()
    assert follower.end == "waiting"


@pytest.mark.slow
def test_ctrl_c_ends_following_with_130(tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", BEGUN)], release=False)  # this test's process holds the lease, so it is alive
    command = [*COMMAND, "events", "@last", "--follow", "--json", "--state", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert [json.loads(following.stdout.readline())["id"] for _ in range(3)] == [1, 2, 3]
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=20)
    assert following.returncode == 130
    assert "Traceback" not in err


def test_a_sound_record_is_verified_and_the_limits_of_that_are_said(toka: Toka, recorded: Recorded) -> None:
    done = toka("audit", "verify", "@last", "--state", recorded.state)
    assert done.code == 0
    assert "no contradiction" in done.out
    assert "It cannot show that" in done.err
    verdict = toka("audit", "verify", "--all", "--json", "--state", recorded.state).json
    assert verdict["ok"] is True
    assert set(verdict["heads"]) == {"", "one", "two", "three"}


EDITED = "UPDATE events SET body=replace(body, 'RUNNING', 'STOPPED') WHERE stream=:s AND seq=2"
DELETED = "DELETE FROM events WHERE stream=:s AND seq=5"
TRUNCATED = "DELETE FROM events WHERE stream=:s AND seq>=20"
NO_JSON = "UPDATE events SET body='{' WHERE stream=:s AND seq=7"
NOT_TEXT = "UPDATE events SET body=x'00ff' WHERE stream=:s AND seq=7"
NOT_A_HASH = "UPDATE events SET hash='no' WHERE stream=:s AND seq=9"
HEAD = "UPDATE streams SET head=zeroblob(32) WHERE id=:s"


@pytest.mark.parametrize(
    ("sql", "seq", "what"),
    [
        (EDITED, 2, "its hash does not match"),
        (DELETED, 5, "record 5 is expected here, this is 6"),
        (TRUNCATED, 20, "the stream ends at 19, its head says"),
        (NO_JSON, 7, "it is not a stored event"),
        (NOT_TEXT, 7, "it is not a stored event"),
        (NOT_A_HASH, 9, "its hash does not match"),
        (HEAD, None, "its head's hash does not match"),
    ],
)
def test_what_was_spoilt_is_named(toka: Toka, recorded: Recorded, sql: str, seq: int | None, what: str) -> None:
    change(recorded.state, sql.replace(":s", str(stream_id(recorded.state, "one"))))
    done = toka("audit", "verify", "@last", "--json", "--state", recorded.state)
    assert done.code == 70
    (problem,) = done.json["problems"]
    assert problem["agent"] == "one"
    assert problem["what"].startswith(what)
    if seq is not None:
        assert problem["seq"] == seq
    text = toka("audit", "verify", "@last", "--state", recorded.state)
    assert text.code == 70
    assert f"  agent one, record {problem['seq']} (" in text.out


def test_records_swapped_between_streams_are_named_in_both(toka: Toka, recorded: Recorded) -> None:
    one, two = stream_id(recorded.state, "one"), stream_id(recorded.state, "two")
    swap = "UPDATE events SET stream=?, seq=seq+? WHERE stream=? AND seq%1000=3"
    for values in ((two, 1000, one), (one, 0, two), (two, -1000, two)):
        where = values if values != (two, -1000, two) else (two, -1000, two)
        change(recorded.state, swap if values != (one, 0, two) else swap.replace("seq%1000=3", "seq=3"), where)
    problems = toka("audit", "verify", "@last", "--json", "--state", recorded.state).json["problems"]
    assert [(p["agent"], p["seq"]) for p in problems] == [("one", 3), ("two", 3)]
    assert problems[0]["what"].startswith("it belongs to stream 'two'")


def test_a_file_that_is_damaged_elsewhere_is_told(toka: Toka, recorded: Recorded) -> None:
    """Of the records themselves nothing is lost."""
    with closing(sqlite3.connect(recorded.state / "journal.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name='commands'").fetchone()
    with (recorded.state / "journal.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    done = toka("audit", "verify", "@last", "--state", recorded.state)
    assert done.code == 70
    assert "no contradiction" in done.out and "journal.db: " in done.out
    assert ".recover" in done.err and "It cannot show that" not in done.err
    lines = toka("audit", "verify", "--all", "--json", "--state", recorded.state).out.splitlines()
    assert [json.loads(line)["ok"] for line in lines][-1] is False


def rewrite(state: Path, run: str, stream: str, old: str, new: str) -> None:
    """What somebody does who knows how the chain works: changes a record, then all hashes and the head."""
    from toka.journal.journal import GENESIS, chain

    with closing(sqlite3.connect(state / "journal.db", isolation_level=None)) as db:
        rows = db.execute(
            "SELECT e.id, e.body FROM events e JOIN streams s ON s.id=e.stream WHERE s.run=? AND s.name=? ORDER BY seq",
            (run, stream),
        ).fetchall()
        link = GENESIS
        for id_, body in rows:
            changed = body.replace(old, new)
            link = chain(link, changed)
            db.execute("UPDATE events SET body=?, hash=? WHERE id=?", (changed, link, id_))
        db.execute("UPDATE streams SET head=? WHERE run=? AND name=?", (link, run, stream))


def test_only_noted_heads_show_a_rewritten_chain(toka: Toka, recorded: Recorded, tmp_path: Path) -> None:
    file = tmp_path / "heads.json"
    file.write_text(toka("audit", "heads", "@last", "--state", recorded.state).out)
    sound = toka("audit", "verify", "@last", "--heads", file, "--state", recorded.state)
    assert sound.code == 0
    assert "it was not rewritten" in sound.err
    rewrite(recorded.state, recorded.run, "two", "not there", "was there")
    assert toka("audit", "verify", "@last", "--state", recorded.state).code == 0
    done = toka("audit", "verify", "--heads", file, "--state", recorded.state)
    assert done.code == 70
    assert "agent two, record" in done.out
    assert "it was rewritten" in done.out


def test_heads_may_have_grown_and_must_not_have_shrunk() -> None:
    rows = [(i, "a", "", bytes([i])) for i in range(1, 6)]
    grown = read_heads(json.dumps(heads_json(RUN, {"a": (3, bytes([3])), "": (0, b"")}, 0.0)), "f")
    assert compare(grown, rows) == []
    (problem,) = compare(Noted(RUN, {"a": (9, "00")}), rows)
    assert (problem.seq, problem.what) == (6, "the stream ends at 5, but 9 was noted")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"form": 2}', '{"form": 1, "run_id": "x", "heads": {"": 3}}', "[" * 5000]
)
def test_what_holds_no_heads_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="holds no heads"):
        read_heads(text, "f")


def test_audit_wants_to_know_which_run(toka: Toka, recorded: Recorded, tmp_path: Path) -> None:
    assert toka("audit", "verify", "--state", recorded.state).code == 2
    assert toka("audit", "verify", "@last", "--all", "--state", recorded.state).code == 2
    assert toka("audit", "verify", "@last", "--heads", tmp_path / "none", "--state", recorded.state).code == 2
    assert toka("audit", "verify", "--all", "--state", tmp_path / "none").code == 9
    file = tmp_path / "other.json"
    file.write_text(json.dumps(heads_json(RUN, {}, 0.0)))
    assert (
        "which is not verified here" in toka("audit", "verify", "@last", "--heads", file, "--state", recorded.state).err
    )


@pytest.mark.slow
def test_a_run_that_grows_while_it_is_verified_is_sound(tmp_path: Path) -> None:
    """Heads and records are read at different moments; the audit must not take growth for tampering."""
    from toka.journal.audit import verify

    write_run(tmp_path, RUN, [("", BEGUN)])
    reader = SqliteReader(tmp_path, SystemClock())

    class Growing(SqliteReader):
        def stored(self, run: RunId):  # type: ignore[no-untyped-def]
            write_run(tmp_path, run, [("", [RunStateChanged("RUNNING")]), ("late", [RunStateChanged("RUNNING")])])
            rows = list(super().stored(run))
            write_run(tmp_path, run, [("", [RunStateChanged("RUNNING")]), ("later", [RunStateChanged("RUNNING")])])
            return iter(rows)

    growing = Growing(tmp_path, SystemClock())
    assert verify(growing, RUN).problems == ()
    growing.close()
    reader.close()


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(recorded: Recorded) -> None:
    command = shlex.join([*COMMAND, "logs", "@last", "--full", "--state", str(recorded.state)])
    script = f"{command} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode in (0, 1, 141)  # click turns EPIPE into 1 before `main` sees it
    assert done.stderr == ""
