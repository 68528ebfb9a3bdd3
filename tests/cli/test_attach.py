"""`toka resume` of a run that others have at the same time, and a state directory that goes away: real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from toka.cli.stream import EventPrinter
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.events.event import HoldPlaced
from toka.journal.database import FILE
from toka.journal.sqlite import SqliteJournal

TOKA = str(Path(sys.executable).with_name("toka"))
BOUND_S = 20.0

SLOW = """
metadata: {name: slow}
spec: {name: Slow, domain: testing}
tasks:
  - {id: first, description: first, run: "echo first >> ledger.txt", effect: idempotent}
  - {id: wait, description: wait, run: "echo wait >> ledger.txt; touch started; while [ ! -e go ]; do sleep 0.05; done",
     effect: idempotent}
  - {id: last, description: last, run: "echo last >> ledger.txt", effect: idempotent}
security: {capabilities_required: [filesystem-write]}
"""
BUSY = """
metadata: {name: busy}
spec: {name: Busy, domain: testing}
tasks:
  - {id: start, description: start, run: touch started, effect: idempotent}
""" + "".join(f"  - {{id: t{n}, description: t, run: sleep 0.05, effect: idempotent}}\n" for n in range(400))
BUSY += "security: {capabilities_required: [filesystem-write]}\n"


class Place:
    """A directory with a state directory, a workspace and a spec, and the processes started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.work = folder, folder / "state", folder / "ws"
        self.work.mkdir()
        self.started: list[subprocess.Popen[str]] = []
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TOKA_") and not k.endswith("_API_KEY")}
        self.environment = {**kept, "OLLAMA_HOST": "127.0.0.1:9", "NO_COLOR": "1", "CI": "true"}

    def toka(self, *arguments: str) -> subprocess.Popen[str]:
        command = [TOKA, *arguments, "--state", str(self.state)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        self.started.append(process)
        return process

    def run(self, spec: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a run; returns when its first task has run."""
        (self.folder / "one.yaml").write_text(spec)
        process = self.toka("run", "one.yaml", "--workspace", "ws", *arguments)
        until((self.work / "started").exists, "the start")
        return process

    def interrupted(self, spec: str) -> None:
        """A run whose process was killed in the task that waits."""
        process = self.run(spec)
        process.kill()
        process.communicate()
        (self.work / "started").unlink()

    @property
    def ledger(self) -> list[str]:
        return (self.work / "ledger.txt").read_text().split()

    def recorded(self, kind: str) -> int:
        """How many events of a kind there are."""
        with closing(sqlite3.connect(self.state / FILE)) as db:
            return db.execute("SELECT count(*) FROM events WHERE kind=?", (kind,)).fetchone()[0]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody can write into the journal meanwhile; reading goes on."""
        with closing(sqlite3.connect(self.state / FILE, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")

    def is_about_to_take(self, process: subprocess.Popen[str]) -> bool:
        """Whether it has looked at the run and opened the journal for writing: it reads and writes by two handles."""
        opened = 0
        for handle in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                opened += handle.readlink() == self.state / FILE
            except OSError:
                continue
        return opened >= 2


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < end, f"waited {BOUND_S} s for {what}"
        time.sleep(0.01)


def freeze(process: subprocess.Popen[str]) -> None:
    """Stops a process; returns when none of its threads runs any more."""
    process.send_signal(signal.SIGSTOP)
    threads = Path(f"/proc/{process.pid}/task")
    until(lambda: all("\nState:\tT" in (t / "status").read_text() for t in threads.iterdir()), "the stop")


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=BOUND_S)
    return process.returncode, out, errors


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


# --- two at once


@pytest.mark.slow
def test_of_two_resumes_at_once_one_executes_and_the_other_follows(place: Place) -> None:
    place.interrupted(SLOW)
    with place.locked():
        both = [place.toka("resume", "@last", "--json", "--reason", "now") for _ in range(2)]
        for process in both:
            until(lambda p=process: place.is_about_to_take(p), "a look that finds nobody")
    until((place.work / "started").exists, "the second task")
    until(lambda: place.recorded("command_applied"), "the request of the one that follows")
    (place.work / "go").touch()
    outcomes = [ended(process) for process in both]
    assert [(code, errors) for code, _, errors in outcomes] == [(0, ""), (0, "")]
    told = [lines(out) for _, out, _ in outcomes]
    (executor,) = [n for n in range(2) if "executor" not in told[n][0]]
    launch, *events, done = told[1 - executor]
    assert (launch["type"], launch["executor"]) == ("launch", both[executor].pid)
    assert (done["type"], done["state"], done["run_id"]) == ("done", "COMPLETED", launch["run_id"])
    assert done == told[executor][-1]
    ids = [event["id"] for event in events]
    assert {event["type"] for event in events} == {"event"} and ids == sorted(ids)
    asked = [(event["verb"], event["reason"]) for event in events if event["kind"] == "command_applied"]
    assert asked == [("resume", "now")], "it asks the one that executes to lift what holds the run"
    assert place.ledger == ["first", "wait", "wait", "last"]


@pytest.mark.slow
def test_the_other_says_whom_it_follows(place: Place) -> None:
    place.interrupted(SLOW)
    with place.locked():
        both = [place.toka("resume", "@last") for _ in range(2)]
        for process in both:
            until(lambda p=process: place.is_about_to_take(p), "a look that finds nobody")
    until((place.work / "started").exists, "the second task")
    (place.work / "go").touch()
    outcomes = [ended(process) for process in both]
    assert [code for code, _, _ in outcomes] == [0, 0]
    following = [n for n in range(2) if "following it (Ctrl-C leaves it running)" in outcomes[n][2]]
    assert len(following) == 1
    (follower,) = following
    holder = f"is being executed by process {both[1 - follower].pid} on {os.uname().nodename}, since "
    assert re.search(rf"{re.escape(holder)}\d+ s; following it", outcomes[follower][2])
    assert place.ledger == ["first", "wait", "wait", "last"]


@pytest.mark.slow
def test_a_run_that_another_resume_has_ended_meanwhile_is_told_as_ended(place: Place) -> None:
    place.interrupted(SLOW)
    (place.work / "go").touch()
    with place.locked():
        late = place.toka("resume", "@last", "--json")
        until(lambda: place.is_about_to_take(late), "a look that finds nobody")
        freeze(late)
    assert ended(place.toka("resume", "@last", "-q"))[0] == 0
    (place.folder / "two.yaml").write_text(SLOW.replace("name: slow", "name: newer"))
    assert ended(place.toka("run", "two.yaml", "--workspace", "ws", "-q"))[0] == 0
    late.send_signal(signal.SIGCONT)
    code, out, errors = ended(late)
    assert (code, errors) == (0, "")
    launch, done = lines(out)
    assert (launch["type"], done["type"], done["state"]) == ("launch", "done", "COMPLETED")
    assert list(done["agents"]) == ["slow"], "@last is the run it was when the command was given"
    assert place.ledger == ["first", "wait", "wait", "last", "first", "wait", "last"]


# --- a state directory that goes away


GONE = "is gone: its directory was deleted or moved while it was in use"


@pytest.mark.slow
@pytest.mark.parametrize("spec", [BUSY, SLOW], ids=["busy", "waiting"])
def test_a_run_ends_soon_when_its_record_is_deleted(place: Place, spec: str) -> None:
    process = place.run(spec, "--json")
    began = time.monotonic()
    shutil.rmtree(place.state)
    code, out, errors = ended(process)
    assert time.monotonic() - began < 5.0
    assert code == 4
    assert f"toka: the journal {place.state / FILE} {GONE}" in errors and "--state DIR" in errors
    done = lines(out)[-1]
    assert (done["type"], done["state"]) == ("done", "INTERRUPTED") and GONE in done["reason"]
    assert not place.state.exists(), "nothing was made anew in its place"


@pytest.mark.slow
def test_a_run_whose_record_was_moved_goes_on_where_it_is_now(place: Place) -> None:
    process = place.run(SLOW)
    place.state.rename(place.folder / "moved")
    code, _, errors = ended(process)
    assert code == 4 and GONE in errors
    (place.work / "go").touch()
    place.state = place.folder / "moved"
    assert ended(place.toka("resume", "@last"))[0] == 0
    assert place.ledger == ["first", "wait", "wait", "last"]


@pytest.mark.slow
def test_who_follows_hears_of_it_too(place: Place) -> None:
    process = place.run(SLOW)
    follower = place.toka("resume", "@last", "--json")
    assert follower.stdout is not None
    assert json.loads(follower.stdout.readline())["executor"] == process.pid
    freeze(process)
    shutil.rmtree(place.state)
    code, out, errors = ended(follower)
    assert code == 4 and GONE in errors
    assert lines(out)[-1]["type"] == "done"


async def test_events_that_cannot_be_read_are_told_and_break_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunId("20300101-000000-aaaaaa")
    journal = SqliteJournal(tmp_path / "state", SystemClock())
    lease = await journal.acquire(run)
    first, *_ = await journal.append(lease, "a", 1, [HoldPlaced("person", str(n)) for n in range(3)])
    await journal.aclose()
    with closing(sqlite3.connect(tmp_path / "state" / FILE)) as db:
        db.execute("UPDATE events SET body='{}' WHERE id=?", (first.id + 2,))
        db.commit()
    printer = EventPrinter(tmp_path / "state", run, first.id, lambda: None)
    printer.close()
    assert printer.failure is not None and f"record {first.id + 2} is not a stored event" in printer.failure.message
    printer = EventPrinter(tmp_path / "state", run, first.id + 2, lambda: None)
    printer.close()
    assert printer.failure is None and capsys.readouterr().out == ""


# --- sockets


@pytest.mark.slow
def test_the_socket_of_a_killed_process_is_gone_after_the_next_start(place: Place) -> None:
    def sockets() -> list[str]:
        return [path.name for path in place.state.glob("*.sock")]

    place.interrupted(SLOW)
    assert len(sockets()) == 1, "a killed process leaves it"
    (place.folder / "two.yaml").write_text(SLOW.replace("name: slow", "name: two"))
    other = place.toka("run", "two.yaml", "--workspace", "ws")
    until((place.work / "started").exists, "the second task")
    assert len(sockets()) == 1, "that of the live one"
    (place.work / "go").touch()
    assert ended(other)[0] == 0
    assert sockets() == []
