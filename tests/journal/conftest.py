from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.events.event import HoldPlaced
from toka.journal.journal import Journal
from toka.journal.memory import MemoryJournal
from toka.journal.sqlite import SqliteJournal, SqliteReader

RUN = RunId("20300101-000000-aaaaaa")
OTHER = RunId("20300101-000000-bbbbbb")


def event(text: str = "x") -> HoldPlaced:
    """An event that carries a text."""
    return HoldPlaced("person", text)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
async def sqlite(state: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(state, SystemClock())
    yield journal
    await journal.aclose()


@pytest.fixture(params=["memory", "sqlite"])
async def journal(request: pytest.FixtureRequest, state: Path) -> AsyncIterator[Journal]:
    """Every journal there is: all of them keep the same promises."""
    made = MemoryJournal(SystemClock()) if request.param == "memory" else SqliteJournal(state, SystemClock())
    yield made
    await made.aclose()


def texts(state: Path, run: RunId = RUN, stream: str | None = None) -> list[str]:
    """The texts of a run's events, as another process reads them."""
    with closing(SqliteReader(state, SystemClock())) as reader:
        return [r.event.reason for r in reader.read(run, stream=stream) if isinstance(r.event, HoldPlaced)]


PRELUDE = """
import asyncio, os, signal, sys, time
from pathlib import Path
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import *
from toka.events.event import HoldPlaced
from toka.journal.journal import Timing
from toka.journal.sqlite import SqliteJournal, SqliteReader
state, run = Path(sys.argv[1]), RunId(sys.argv[2])
def say(*words): print(*words, flush=True)
def listen(): return sys.stdin.readline().strip()
async def main():
    journal = SqliteJournal(state, SystemClock(), Timing(stall_s=float(sys.argv[3])))
"""
Python = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def python(state: Path) -> AsyncIterator[Python]:
    """Starts a process of its own that runs a body with a journal of the same directory; `say` and `listen` talk.

    `stall_s`: how long that journal waits for a disk that takes nothing, in seconds.
    """
    started: list[subprocess.Popen[str]] = []

    def start(body: str, run: RunId = RUN, stall_s: float = 30.0) -> subprocess.Popen[str]:
        code = PRELUDE + "".join(f"    {line}\n" for line in body.strip().splitlines()) + "asyncio.run(main())\n"
        command = [sys.executable, "-c", code, str(state), run, str(stall_s)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdin and process.stdout
        process.stdin.close()
        process.stdout.close()


async def hear(process: subprocess.Popen[str]) -> str:
    """The next line that a process says."""
    assert process.stdout
    return (await asyncio.to_thread(process.stdout.readline)).strip()


def tell(process: subprocess.Popen[str], line: str = "go") -> None:
    assert process.stdin
    process.stdin.write(line + "\n")
    process.stdin.flush()
