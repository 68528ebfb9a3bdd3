"""Runs to look at: one that happened, and ones written by hand."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toka.app import open_runtime, read_settings
from toka.config.agent import AgentConfig
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.events.event import Event, RunCreated
from toka.journal.journal import Command
from toka.journal.sqlite import SqliteJournal, SqliteReader
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest

ONE = """
metadata: {name: one, version: v1}
spec: {name: One, priority: high}
objectives:
  - {description: it works, check: "test -f b.txt"}
  - it is beautiful
tasks:
  default:
    - {description: list, run: "printf '\\\\033]0;title\\\\007'; echo listed"}
    - {description: write b}
security: {capabilities_required: [filesystem-write]}
"""
TWO = """
metadata: {name: two}
spec: {name: Two}
dependencies: {required: {one: {}}}
objectives:
  - {description: never, check: "echo not there; test -f never.txt"}
tasks: [do something]
security: {capabilities_required: [filesystem-read]}
"""
THREE = """
metadata: {name: three}
spec: {name: Three}
dependencies: {required: {two: {}}}
tasks: [{description: last, run: "true"}]
"""
SCRIPT = r"""
script: 1
agents:
  one:
    task-2:
      - say: "I shall \e[2J read"
        calls: [{read_file: {path: a.txt}}]
      - calls: [{write_file: {path: b.txt, content: hi}}, {frobnicate: {a: 1}}]
      - report: {status: succeeded, summary: wrote b}
  two:
    task-1:
      - calls: [{write_file: {path: b.txt, content: hi}}]
      - calls: [{write_file: {path: b.txt, content: ho}}, {run_command: {command: "rm -rf /"}}]
      - report: {status: succeeded, summary: done}
    repair-1:
      - report: {status: succeeded, summary: mended}
    repair-2:
      - report: {status: succeeded, summary: mended again}
"""


@dataclass(frozen=True)
class Recorded:
    """A run of three agents that really happened: one completed, two failed its check, three was skipped."""

    state: Path
    run: RunId
    workspace: Path


async def run_team(root: Path) -> RunId:
    workspace = root / "work"
    workspace.mkdir()
    (workspace / "a.txt").write_text("hello \x1b[31mred\n" + "x" * 100_000 + "\n")
    (root / "script.yaml").write_text(SCRIPT)
    flags = {"state": str(root / "state"), "model": f"scripted:{root}/script.yaml"}
    settings = read_settings(flags, environment={"HOME": str(root)})
    async with open_runtime(settings) as runtime:
        configs = [AgentConfig.parse(text, f"{i}.yaml") for i, text in enumerate((ONE, TWO, THREE))]
        result = await OrchestrationEngine(runtime).run(RunRequest(configs, workspace))
        return result.run


COMMAND = (sys.executable, "-c", "from toka.cli.main import main; main()")
"""The command line in a process of its own."""


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


Toka = Callable[..., Ran]


def write_run(state: Path, run: str, streams: Sequence[tuple[str, Sequence[Event]]], *, release: bool = True) -> None:
    """Records events by hand. Without `release` the lease stays, as after a kill."""

    async def write() -> None:
        journal = SqliteJournal(state, SystemClock())
        lease = await journal.acquire(RunId(run))
        for stream, events in streams:
            specs = await journal.put_blob(b"[]")
            written = [replace(e, specs=specs) if isinstance(e, RunCreated) else e for e in events]
            await journal.append(lease, stream, lease.epochs.get(stream, 1), written)
        if release:
            await journal.release(lease)
        await journal.aclose()

    asyncio.run(write())


def commands(state: Path, run: str) -> list[Command]:
    """What people asked of a run."""
    with closing(SqliteReader(state, SystemClock())) as reader:
        return reader.commands(RunId(run))
