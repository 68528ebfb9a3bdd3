"""R4: a disk that is full, and a database that is locked, under a run of the real command line."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import eventually
from toka.core.clock import SystemClock
from toka.errors import JournalError
from toka.events.event import StepIntent
from toka.events.fold import fold_all
from toka.journal.audit import verify
from toka.journal.database import FILE
from toka.journal.journal import STALL_S
from toka.journal.sqlite import SqliteReader
from toka.orchestration.session import SHUTDOWN_S
from torture.crowd import LEDGER, write

TOKA = Path(__file__).with_name("counted_toka.py")
SIZE = "16m"
MOUNT = f'mount -t tmpfs -o size={SIZE},mode=700 tmpfs "$0" && exec "$@"'
QUIET_S = 0.5
"""Nothing was recorded for so long: the run stands still."""

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
needs_mounts = pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="only root can mount a disk")


@dataclass
class Disk:
    """A run whose state lies on a small disk of its own, when `mounted`, else in the folder.

    `state` is where this process finds it, which sees the disk through the process that mounted it. SQLite would not:
    it resolves that path to where nothing is mounted. So what is recorded is read from a copy.
    """

    folder: Path
    process: subprocess.Popen[bytes]
    state: Path

    def fill(self) -> None:
        """Leaves no room."""
        with (self.state / "filler").open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as e:
                    assert e.errno == errno.ENOSPC

    def free(self) -> None:
        (self.state / "filler").unlink()

    def acknowledged(self) -> list[int]:
        """The ids of the events that were printed whole."""
        lines = (self.folder / "said").read_bytes().splitlines(keepends=True)
        ids = [json.loads(line).get("id") for line in lines if line.endswith(b"\n")]
        return [id_ for id_ in ids if id_ is not None]

    def acts(self) -> set[str]:
        """The keys of all that was done, as commands and model noted them."""
        ledgers = (self.folder / "work" / LEDGER, self.folder / "model")
        return {line.split()[0] for path in ledgers if path.exists() for line in path.read_text().splitlines()}

    def copied(self) -> Path:
        """What is recorded now, copied while nobody writes."""
        copy = self.folder / "copied"
        shutil.rmtree(copy, ignore_errors=True)
        lives = self.process.poll() is None
        if lives:
            self.process.send_signal(signal.SIGSTOP)
            while " T " not in Path(f"/proc/{self.process.pid}/stat").read_text():
                time.sleep(0.001)
        shutil.copytree(self.state, copy, ignore=lambda *_: {"filler", *(p.name for p in self.state.glob("*.sock"))})
        if lives:
            self.process.send_signal(signal.SIGCONT)
        return copy

    def judge(self, counted: dict[str, Any]) -> tuple[str, int]:
        """Holds what is recorded against what was printed and done. Returns the run's state and how many records."""
        told, done = self.acknowledged(), self.acts()
        with closing(SqliteReader(self.copied(), SystemClock())) as reader:
            (run,) = reader.runs()
            records = reader.read(run)
            assert verify(reader, run).problems == ()
        lost = set(told) - {r.id for r in records}
        unintended = done - {r.event.key for r in records if isinstance(r.event, StepIntent)}
        counted["lost"] = counted.get("lost", 0) + len(lost)
        counted["acts without intent"] = counted.get("acts without intent", 0) + len(unintended)
        assert not lost and not unintended
        return fold_all(run, records).status.value, len(records)

    async def quiet(self) -> None:
        """Returns when nothing more is recorded."""
        last, since = -1, 0.0
        loop = asyncio.get_running_loop()
        while loop.time() - since < QUIET_S:
            if (now := len(self.acknowledged())) != last:
                last, since = now, loop.time()
            assert self.process.poll() is None, (self.folder / "errors").read_text()
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(folder: Path, agents: int, *, mounted: bool) -> AsyncIterator[Disk]:
    """A run of a crowd that has begun to work."""
    write(folder, agents // 3)
    (folder / "state").mkdir(mode=0o700)
    command = [sys.executable, str(TOKA), "../model", "run", "../specs", "--workspace", ".", "--state", "../state"]
    command += ["--model", "scripted:../script.yaml", "--json"]
    if mounted:
        command = ["unshare", "-m", "sh", "-c", MOUNT, str(folder / "state"), *command]
    with (folder / "said").open("wb") as out, (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(command, cwd=folder / "work", stdout=out, stderr=errors)
    state = Path(f"/proc/{process.pid}/root{folder}/state") if mounted else folder / "state"
    disk = Disk(folder, process, state)
    try:
        await eventually(lambda: process.poll() is not None or len(disk.acknowledged()) > 40, "some events")
        yield disk
    finally:
        process.kill()
        process.wait()


async def ended(process: subprocess.Popen[bytes], seconds: float = 60.0) -> int:
    return await asyncio.wait_for(asyncio.to_thread(process.wait), seconds)


@needs_mounts
@pytest.mark.slow
async def test_a_run_goes_on_by_itself_when_a_full_disk_has_room_again(tmp_path: Path, counted: dict[str, Any]) -> None:
    async with running(tmp_path / "run", 12, mounted=True) as disk:
        disk.fill()
        await disk.quiet()
        status, count = disk.judge(counted)
        assert status == "RUNNING"
        await asyncio.sleep(QUIET_S)
        assert disk.judge(counted) == (status, count), "nothing is recorded meanwhile"
        disk.free()
        assert await ended(disk.process) == 0, (disk.folder / "errors").read_text()
        assert len(disk.acknowledged()) > count


@needs_mounts
@pytest.mark.slow
async def test_who_is_asked_to_end_while_the_disk_is_full_ends_in_time(tmp_path: Path, counted: dict[str, Any]) -> None:
    async with running(tmp_path / "run", 6, mounted=True) as disk:
        disk.fill()
        await disk.quiet()
        kept = os.open(disk.state, os.O_RDONLY)  # the disk stays although its process goes
        began = time.monotonic()
        disk.process.terminate()
        code = await ended(disk.process)
        took = time.monotonic() - began
        disk.state = Path(f"/proc/self/fd/{kept}")
        disk.judge(counted)
        os.close(kept)
        assert took < SHUTDOWN_S + 2, took
        assert code in (JournalError.exit_code, 128 + signal.SIGTERM), (code, (disk.folder / "errors").read_text())


@pytest.mark.slow
async def test_a_run_goes_on_by_itself_when_a_lock_is_gone(tmp_path: Path, counted: dict[str, Any]) -> None:
    async with running(tmp_path / "run", 9, mounted=False) as disk:
        with closing(sqlite3.connect(disk.state / FILE, isolation_level=None, timeout=20)) as db:
            db.execute("BEGIN EXCLUSIVE")
            await disk.quiet()
            assert disk.judge(counted)[0] == "RUNNING"
            await asyncio.sleep(QUIET_S)
            disk.judge(counted)
            db.execute("ROLLBACK")
        assert await ended(disk.process) == 0, (disk.folder / "errors").read_text()
        assert disk.judge(counted)[0] == "COMPLETED"


@needs_mounts
@pytest.mark.torture("R4", "full again and again: nothing acknowledged is lost, nothing starts unrecorded")
async def test_a_disk_that_is_full_again_and_again(tmp_path: Path, seed: int, counted: dict[str, Any]) -> None:
    chance = random.Random(seed)
    for number in range(8):
        async with running(tmp_path / str(number), 30, mounted=True) as disk:
            kept = os.open(disk.state, os.O_RDONLY)
            disk.state = Path(f"/proc/self/fd/{kept}")  # the disk stays although its process may go
            while disk.process.poll() is None and len(disk.acknowledged()) < 700:
                disk.fill()
                counted["times full"] = counted.get("times full", 0) + 1
                await asyncio.sleep(chance.uniform(0.1, 1.0))
                disk.judge(counted)
                disk.free()
                await asyncio.sleep(chance.uniform(0.05, 0.5))
            os.close(kept)
            assert await ended(disk.process) == 0, (disk.folder / "errors").read_text()
    assert counted["times full"] >= 16


@needs_mounts
@pytest.mark.torture("R4", "stays full: exit 75 and what to do; a resume completes")
async def test_a_disk_that_stays_full_ends_the_run_which_can_be_resumed(
    tmp_path: Path, counted: dict[str, Any]
) -> None:
    async with running(tmp_path / "run", 12, mounted=True) as disk:
        disk.fill()
        kept = os.open(disk.state, os.O_RDONLY)  # the disk stays although its process goes
        assert await ended(disk.process, STALL_S + 40) == JournalError.exit_code
        said = (disk.folder / "errors").read_text()
        assert "full" in said and "free some space on that disk; nothing recorded is lost" in said, said
        disk.state = Path(f"/proc/self/fd/{kept}")
        disk.judge(counted)
        disk.state = disk.copied().rename(disk.folder / "moved")
        os.close(kept)
    command = [sys.executable, str(TOKA), "../model", "resume", "@last", "--state", "../moved", "--quiet"]
    resumed = subprocess.run(command, cwd=disk.folder / "work", capture_output=True, text=True, timeout=100)
    assert resumed.returncode in (0, 7), resumed.stderr
    disk.judge(counted)
