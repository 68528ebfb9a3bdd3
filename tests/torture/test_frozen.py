"""R6: who was stopped for longer than its lease, while another took its run, records nothing and does nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import eventually
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.events.event import ExecutorAttached
from toka.events.record import Record
from toka.journal.audit import verify
from toka.journal.database import FILE
from toka.journal.sqlite import SqliteReader

DRIVER = Path(__file__).with_name("frozen.py")
pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")


@dataclass
class Place:
    """A run's folder, and the processes that execute it."""

    folder: Path
    lease_s: float
    processes: list[subprocess.Popen[str]] = field(default_factory=list["subprocess.Popen[str]"])

    def start(self, run: RunId | None = None) -> subprocess.Popen[str]:
        ledger = self.folder / f"asked-{len(self.processes)}"
        command = [
            sys.executable,
            str(DRIVER),
            str(self.folder),
            str(self.lease_s),
            str(ledger),
            *([run] if run else []),
        ]
        path = f"{DRIVER.parents[1]}:{DRIVER.parents[2] / 'src'}"
        environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self.folder
        )
        self.processes.append(process)
        return process

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def records(self) -> list[Record]:
        with closing(SqliteReader(self.folder / "state", SystemClock())) as reader:
            return [record for run in reader.runs() for record in reader.read(run)]

    def holder(self, run: RunId) -> int | None:
        """The process whose lease has not run out."""
        with closing(SqliteReader(self.folder / "state", SystemClock())) as reader:
            lease = reader.lease(run)
            return lease.holder.pid if lease is not None and lease.alive else None

    def is_locked(self) -> bool:
        """Whether somebody is in the middle of writing."""
        with closing(sqlite3.connect(self.folder / "state" / FILE, isolation_level=None, timeout=0)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            db.execute("ROLLBACK")
            return False


@asynccontextmanager
async def place(folder: Path, lease_s: float) -> AsyncIterator[Place]:
    (folder / "work").mkdir(parents=True)
    (folder / "work" / "ledger").touch()
    for n in range(30):
        (folder / "work" / f"{n}.txt").write_text(f"line {n}\n")
    made = Place(folder, lease_s)
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.communicate()


async def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, errors = await asyncio.wait_for(asyncio.to_thread(process.communicate), 100)
    assert process.returncode == 0 and not errors, errors[-3000:]
    return json.loads(said)


async def stopped(at: Place, process: subprocess.Popen[str]) -> int:
    """Stops a process that is not in the middle of writing; nobody could write then. Returns how often it was."""
    for busy in range(1000):
        process.send_signal(signal.SIGSTOP)
        await eventually(lambda: " T " in Path(f"/proc/{process.pid}/stat").read_text(), "the stop")
        if not at.is_locked():
            return busy
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.01)
    raise AssertionError("it writes all the time")


async def freeze(at: Place, after_s: float, *, woken_late: bool) -> dict[str, int]:
    """One process is stopped, another takes its run, the first goes on. Returns what it recorded and did after that.

    Args:
        at: where.
        after_s: when the first is stopped, in seconds after the first model call.
        woken_late: it goes on when the run is over, else while the other is at work.
    """
    first = at.start()
    await eventually(lambda: at.lines("asked-0"), "a model call")
    await asyncio.sleep(after_s)
    busy = await stopped(at, first)
    (run,) = {record.run for record in at.records()}
    while at.holder(run) == first.pid:
        await asyncio.sleep(0.02)
    before = at.records()[-1].id
    second = at.start(run)
    await eventually(lambda: at.lines("asked-1"), "a model call of the other")
    outcome = await ended(second) if woken_late else None
    asked, did = len(at.lines("asked-0")), len(at.lines("work/ledger"))
    first.send_signal(signal.SIGCONT)
    lost = await ended(first)
    did = len(at.lines("work/ledger")) - did if woken_late else 0
    outcome = outcome or await ended(second)
    assert outcome == {"status": "COMPLETED", "exit": 0}, outcome
    assert lost["error"] == "StaleEpoch" and lost["exit"] == 75, lost
    other = f"process {second.pid} on {os.uname().nodename}"
    assert f"run {run}" in lost["message"] and other in lost["message"], lost
    with closing(SqliteReader(at.folder / "state", SystemClock())) as reader:
        assert verify(reader, run).problems == ()
    records = at.records()
    assert [r.event.pid for r in records if isinstance(r.event, ExecutorAttached)] == [first.pid, second.pid]
    return {
        "zombie commits": zombies(records, before),
        "zombie acts": len(at.lines("asked-0")) - asked + did,
        "stopped while writing": busy,
    }


def zombies(records: list[Record], before: int) -> int:
    """Records after the takeover that do not bear the epoch of whoever took over, which is the highest of a stream."""
    highest: dict[str, int] = {}
    for record in records:
        highest[record.stream] = max(highest.get(record.stream, 0), record.epoch)
    return sum(record.id > before and record.epoch < highest[record.stream] for record in records)


@pytest.mark.slow
@pytest.mark.parametrize("woken_late", [False, True])
async def test_who_lost_its_run_while_it_was_stopped_does_nothing_more(
    tmp_path: Path, counted: dict[str, Any], woken_late: bool
) -> None:
    async with place(tmp_path / "run", 0.6) as at:
        found = await freeze(at, 0.1, woken_late=woken_late)
    counted.update(found)
    assert found["zombie commits"] == found["zombie acts"] == 0


@pytest.mark.torture("R6", "0 commits and 0 acts after a stop longer than the lease")
async def test_stops_at_many_moments(tmp_path: Path, seed: int, counted: dict[str, Any]) -> None:
    chance = random.Random(seed)
    total = {"stops": 0, "zombie commits": 0, "zombie acts": 0, "stopped while writing": 0}
    for number in range(30):
        lease_s = 15.0 if number < 2 else 0.6
        async with place(tmp_path / str(number), lease_s) as at:
            found = await freeze(at, chance.uniform(0.0, 0.5), woken_late=chance.random() < 0.5)
        total["stops"] += 1
        for name, value in found.items():
            total[name] += value
        counted.update(total)
    assert total["zombie commits"] == total["zombie acts"] == 0
