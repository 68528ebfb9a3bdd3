"""Journals that are empty, broken, foreign or hostile."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from cli.records import COMMAND, Recorded, Toka, write_run
from toka.events.event import AgentStateChanged, RunCreated, RunStateChanged, StepDenied, StepDone, TaskStateChanged

READERS = [("ps",), ("show", "@last"), ("logs", "@last"), ("events", "@last"), ("audit", "verify", "@last")]
EVIL = "\x1b]0;owned\x07\x9b2J\u202e" + "x" * 100_000


@pytest.mark.parametrize("command", READERS)
def test_a_file_that_is_no_database(toka: Toka, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "journal.db").write_bytes(b"this is not a database" * 1000)
    done = toka(*command, "--state", tmp_path)
    assert done.code == 4
    assert "the file is damaged or is no journal" in done.err
    assert done.out == ""


@pytest.mark.parametrize("command", READERS)
def test_a_journal_of_a_newer_toka(toka: Toka, recorded: Recorded, command: tuple[str, ...]) -> None:
    with closing(sqlite3.connect(recorded.state / "journal.db")) as db:
        db.execute("PRAGMA user_version=99")
    done = toka(*command, "--state", recorded.state)
    assert done.code == 4
    assert "newer Toka" in done.err


@pytest.mark.parametrize("command", READERS)
def test_a_database_with_a_broken_page(toka: Toka, recorded: Recorded, command: tuple[str, ...]) -> None:
    file = recorded.state / "journal.db"
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    data = bytearray(file.read_bytes())
    for page in range(2, pages):
        data[page * size : page * size + 64] = b"\xff" * 64
    file.write_bytes(data)
    done = toka(*command, "--state", recorded.state)
    assert done.code in ((0, 4) if command == ("ps",) else (4, 70)), "to try again would not help"
    assert "internal error" not in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", READERS)
def test_an_empty_journal(toka: Toka, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "journal.db").touch()
    done = toka(*command, "--state", tmp_path)
    assert done.code == (0 if command == ("ps",) else 9)
    assert "toka demo" in done.out + done.err


@pytest.mark.parametrize("command", READERS)
def test_a_state_directory_that_is_a_file(toka: Toka, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    done = toka(*command, "--state", tmp_path / "file")
    assert done.code == 4
    assert "--state DIR or TOKA_STATE" in done.err


@pytest.mark.parametrize(
    "command", [*READERS, ("show", "@last", "--json"), ("ps", "--json"), ("events", "@last", "--json")]
)
def test_whatever_a_record_says_the_terminal_is_left_alone(
    toka: Toka, tmp_path: Path, command: tuple[str, ...]
) -> None:
    run_events = [RunCreated([EVIL, "b"], "0" * 64, EVIL, model=EVIL), RunStateChanged("RUNNING", EVIL)]
    agent_events = [
        AgentStateChanged("STARTING", EVIL),
        TaskStateChanged(EVIL, "RUNNING", 1, EVIL, title=EVIL),
        StepDone("t/1/1/model/0", {"role": "assistant", "text": EVIL}, [1, 1, 0, 0, 1], 0.0, EVIL),
        StepDenied("t/1/1/tool/0", EVIL, EVIL, EVIL, {EVIL: EVIL}),
        AgentStateChanged("FAILED", EVIL + "\n" + EVIL),
    ]
    write_run(tmp_path, "20261101-101010-abcdef", [("", run_events), (EVIL, agent_events)])
    done = toka(*command, "--state", tmp_path)
    assert done.code == 0
    for line in done.lines:
        assert line.isprintable()
        assert "--json" in command or len(line) < 4_000


@pytest.mark.parametrize(
    "body",
    ['"data":{"state":"DANCING"}', '"data":{"state":7}', '"data":[]', '"data":{}'],
)
def test_records_that_do_not_say_what_their_kind_should(toka: Toka, recorded: Recorded, body: str) -> None:
    with closing(sqlite3.connect(recorded.state / "journal.db", isolation_level=None)) as db:
        db.execute(
            "UPDATE events SET body=substr(body, 1, instr(body, '\"data\"')-1) || ? || '}' WHERE kind='agent_state'",
            (body,),
        )
    for command in READERS:
        done = toka(*command, "--state", recorded.state)
        assert "internal error" not in done.err, command
        assert done.code in (0, 70), command
    assert toka("audit", "verify", "@last", "--state", recorded.state).code == 70


@pytest.mark.parametrize("command", [["ps"], ["plan", "x.yaml"], ["run", "x.yaml"], ["jail", "--", "true"]])
def test_a_directory_that_was_deleted_is_told_as_such(tmp_path: Path, command: list[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    line = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    argv = ["sh", "-c", line, "sh", str(gone), *COMMAND, *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr.splitlines()[:2]) == (
        2, ["toka: the current directory is no longer there", "  help: change to one that is"],
    ), done.stderr  # fmt: skip
