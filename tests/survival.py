"""Runs a small team in processes that are killed at a chosen write, and lets others go on with it.

`python survival.py FOLDER` reads cases from standard input, one JSON list of [at, before] pairs a line: where the first
process dies, where the one after it dies, and so on. The last process is not killed. For each case it writes what is
left to FOLDER/results, as one line of JSON. Everything is real: processes, SIGKILL, SQLite, sandboxes. Effects are
counted outside Toka: commands append to files of the workspace, and the model writes down each call that it answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from toka.app import Parts, open_runtime, read_settings
from toka.cli.ids import LAST, find_run
from toka.config.agent import AgentConfig
from toka.config.settings import Settings
from toka.core.clock import SystemClock
from toka.core.ids import AgentName, RunId, StepKey, idempotency_key
from toka.errors import TokaError
from toka.events.event import Event, RunCreated, RunStateChanged, StepDone, StepIntent
from toka.events.fold import fold_all
from toka.events.lifecycle import RUN_ENDS
from toka.events.record import Record
from toka.journal.database import FILE
from toka.journal.journal import Lease
from toka.journal.poke import poke
from toka.journal.sqlite import SqliteJournal, SqliteReader
from toka.llm.model import ModelReply, ModelRequest
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.orchestration.session import RunSession
from toka.testing import DyingJournal, ScriptedModel

MODEL = "scripted:survivor"
NEVER = 1_000_000
BOUND_S = 20.0
"""A life that takes longer, in seconds, has got stuck."""
AT_ONE_TIME = 2
"""Cases that run at one time."""

BUILDER = """
metadata: {name: builder}
spec: {name: Builder, domain: infrastructure}
tasks:
  default:
    - {id: prepare, run: 'echo "$TOKA_IDEMPOTENCY_KEY" >> effects/prepare; seq 4000', effect: idempotent}
    - {id: extend, run: 'echo "$TOKA_IDEMPOTENCY_KEY" >> effects/extend'}
    - {id: publish, run: 'echo "$TOKA_IDEMPOTENCY_KEY" >> effects/publish', effect: once}
security:
  capabilities_required: [{filesystem-write: {paths: [effects]}}]
"""

FIXER = """
metadata: {name: fixer}
spec: {name: Fixer, domain: testing}
objectives:
  - {description: the answer is right, check: 'test "$(cat answer.txt)" = 42'}
tasks:
  default:
    - {id: fix, description: Make the answer right and leave a note.}
security:
  capabilities_required: [filesystem-write]
"""

SITTER = """
metadata: {name: sitter}
spec: {name: Sitter, domain: testing}
tasks:
  default:
    - {id: sit, run: 'exec sleep 1000', effect: idempotent}
"""

SCRIPT: dict[str, Any] = {
    "agents": {
        "fixer": {
            "fix": [
                {"calls": [{"read_file": {"path": "answer.txt"}}, {"read_file": {"path": "long.txt"}}]},
                {
                    "calls": [
                        {"write_file": {"path": "note.txt", "content": "was 40\n"}},
                        {"edit_file": {"path": "answer.txt", "old": "40", "new": "41"}},
                    ]
                },
                {"report": {"status": "succeeded", "summary": "answered"}},
            ],
            "repair-1": [
                {"calls": [{"edit_file": {"path": "answer.txt", "old": "41", "new": "42"}}]},
                {"report": {"status": "succeeded", "summary": "mended"}},
            ],
        }
    }
}


class CountedModel:
    """Answers from the script, after writing down where no crash reaches it which call this is and what it was told."""

    name = MODEL

    def __init__(self, ledger: Path) -> None:
        self._script = ScriptedModel(SCRIPT)
        self._ledger = ledger

    async def request(self, request: ModelRequest) -> ModelReply:
        told = hashlib.sha256(repr(request.messages).encode()).hexdigest()
        note(self._ledger, f"{request.key}:{told}")
        return await self._script.request(request)

    async def aclose(self) -> None:
        pass


class MarkedJournal(DyingJournal):
    """Remembers which of its writes began the run and which ended it, and notes around the latter in a file."""

    began = 0
    ended = 0
    marks: Path | None = None

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        for event in events:
            if isinstance(event, RunCreated):
                self.began = self.writes + 1
            if isinstance(event, RunStateChanged) and event.state in RUN_ENDS:
                self.ended = self.writes + 1
        marks = self.marks if self.ended == self.writes + 1 else None
        if marks is not None:
            note(marks, "ending")
        records = await super().append(lease, stream, epoch, events)
        if marks is not None:
            note(marks, "ended")
        return records


def note(ledger: Path, line: str) -> None:
    fd = os.open(ledger, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def live(folder: Path, run: RunId | None, at: int, before: bool, ledger: str) -> None:
    """One process's life: starts the run, or goes on with it, and dies at its write number `at`."""
    journals: list[MarkedJournal] = []

    def journal(state: Path, clock: Any) -> MarkedJournal:
        journals.append(MarkedJournal(SqliteJournal(state, clock), at, before=before))
        journals[0].marks = folder / f"marks-{ledger}"
        return journals[0]

    parts = Parts(journal=journal, models={MODEL: CountedModel(folder / ledger)})
    async with open_runtime(settings_of(folder), parts, environment={}) as runtime:
        engine = OrchestrationEngine(runtime)
        if run is None:
            request = RunRequest([AgentConfig.parse(spec) for spec in (BUILDER, FIXER, SITTER)], folder / "work")
            session = await engine.start(request)
        else:
            session = await engine.resume(run, author="test")
        asking = asyncio.create_task(stop_sitter(session))
        result = await session.run()
        await asking
        await session.context.recorder.close()
        (marked,) = journals
        ended = {"exit": result.exit_code, "writes": marked.writes, "began": marked.began, "ended": marked.ended}
        (folder / "result").write_text(json.dumps(ended))


async def stop_sitter(session: RunSession) -> None:
    """Asks for the end of the agent that would never end, once it is at work, unless that was asked for already."""
    context = session.context
    journal, at_work = context.runtime.journal, asyncio.Event()

    def listen(record: Record) -> None:
        if record.stream == "sitter" and isinstance(record.event, StepIntent):
            at_work.set()

    context.recorder.subscribe(listen)
    if not context.recorder.state.agents["sitter"].ended and not journal.commands(context.id):
        await at_work.wait()
        await journal.submit(context.id, "stop", agent="sitter", arguments={}, by=("ada", "enough"))
        poke(context.runtime.state, context.id)


async def refused(folder: Path) -> dict[str, Any]:
    """What is said to whoever wants to go on with a run that has not begun, or has ended.

    `last` is the answer to the name @last, the only one a person has before the run's id was printed; `resume` that to
    the id, which is known from the lease; None when not even that was taken.
    """
    with closing(SqliteReader(folder / "state", SystemClock())) as reader:
        try:
            last = str(find_run(reader, LAST))
        except TokaError as e:
            last = f"{e} // {e.hint}"
    with closing(sqlite3.connect(folder / "state" / FILE)) as db:
        leased = [RunId(run) for (run,) in db.execute("SELECT run FROM leases")]
    said = None
    async with open_runtime(settings_of(folder), environment={}) as runtime:
        for run in leased:
            try:
                await OrchestrationEngine(runtime).resume(run, author="test")
            except TokaError as e:
                said = f"{type(e).__name__}: {e} // {e.hint}"
    return {"last": last, "resume": said}


def settings_of(folder: Path) -> Settings:
    settings = read_settings({"state": str(folder / "state"), "model": MODEL}, cwd=folder, environment={})
    return replace(settings, execution=replace(settings.execution, grace_s=0.05))


async def bounded(life: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(BOUND_S):
        await life


def in_child(body: Callable[[], None]) -> int:
    """Runs `body` in a process of its own and returns its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    try:
        body()
    except BaseException:  # noqa: BLE001 - nothing may get past the end of a forked process
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def recorded(folder: Path) -> dict[str, Any]:
    """What the journal says: the run, how things stand, which model calls are paid for, what was in flight."""
    with closing(SqliteReader(folder / "state", SystemClock())) as reader:
        runs = reader.runs()
        if not runs:
            return {"run": None, "status": None, "paid": [], "flying": []}
        records = reader.read(runs[0])
        apart = {f"{r.stream}/{r.event.step}": long_result(reader, r.event) for r in records if is_apart(r.event)}
    state = fold_all(runs[0], records)
    intents = {(r.stream, r.event.step): r.event for r in records if isinstance(r.event, StepIntent)}
    done = {(r.stream, r.event.step) for r in records if isinstance(r.event, StepDone)}
    flying = [
        {"agent": a.name, "effect": intents[a.name, step].effect, "task": t.id}
        for a in state.agents.values()
        for t in a.tasks.values()
        for step in t.in_flight
    ]
    agents = list(state.agents.values())
    paid = [idempotency_key(runs[0], AgentName(a), StepKey.parse(s)) for a, s in done if "/model/" in s]
    return {
        "run": runs[0],
        "status": state.status.value,
        "agents": {a.name: a.status.value for a in state.agents.values()},
        "tasks": {f"{a.name}/{t.id}": t.status.value for a in state.agents.values() for t in a.tasks.values()},
        "reports": {f"{a.name}/{t.id}": t.report for a in state.agents.values() for t in a.tasks.values()},
        "objectives": {
            f"{a.name}/{o.number}": [o.status.value, o.round] for a in agents for o in a.objectives.values()
        },
        "events": len(records),
        "apart": apart,
        "paid": paid,
        "flying": flying,
    }


def is_apart(event: Event) -> TypeGuard[StepDone]:
    """Whether it is the end of a step whose result lies in a blob."""
    return isinstance(event, StepDone) and isinstance(event.result, dict) and "blob" in event.result


def long_result(reader: SqliteReader, event: StepDone) -> list[Any]:
    """How many bytes a result in a blob takes (about: it says how long the step took), and the hash of its text."""
    data = reader.blob(event.result["blob"])
    value = json.loads(data)
    text = value["output"] if "output" in value else value["text"]
    return [round(len(data), -3), hashlib.sha256(text.encode()).hexdigest()]


def one_case(folder: Path, kills: list[tuple[int, bool]]) -> dict[str, Any]:
    work = folder / "work"
    (work / "effects").mkdir(parents=True)
    (work / "answer.txt").write_text("40\n")
    (work / "long.txt").write_text("".join(f"line {n}\n" for n in range(2_500)))
    lives: list[dict[str, Any]] = []
    for number, (at, before) in enumerate([*kills, (NEVER, False)]):
        left = recorded(folder) if number else {"run": None, "status": None}
        if number and left["status"] in (None, *RUN_ENDS):
            in_child(lambda: (folder / "refused").write_text(json.dumps(asyncio.run(refused(folder)))))
            break  # it was killed before it began, or after its end
        (folder / "result").unlink(missing_ok=True)
        ledger = f"asked-{number}"
        status = in_child(lambda: asyncio.run(bounded(live(folder, left["run"], at, before, ledger))))  # noqa: B023 - at once
        ended = json.loads((folder / "result").read_text()) if (folder / "result").exists() else None
        lives.append(
            {
                "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                "ended": ended,
                "asked": lines(folder / ledger),
                "marks": lines(folder / f"marks-{ledger}"),
                "after": recorded(folder),
            }
        )
        if ended:
            break
    return {
        "kills": kills,
        "lives": lives,
        "refused": json.loads((folder / "refused").read_text()) if (folder / "refused").exists() else None,
        "files": {p.name: p.read_text() for p in sorted(work.iterdir()) if p.is_file() and p.name != "long.txt"},
        "effects": {name: lines(work / "effects" / name) for name in ("prepare", "extend", "publish")},
    }


def main(folder: Path) -> None:
    cases = [json.loads(line) for line in sys.stdin if line.strip()]
    running: set[int] = set()
    for number, kills in enumerate(cases):
        if len(running) >= AT_ONE_TIME:
            running.discard(os.wait()[0])
        pid = os.fork()
        if not pid:
            try:
                out = json.dumps(one_case(folder / str(number), kills)) + "\n"
                note(folder / "results", out.rstrip("\n"))
            except BaseException:  # noqa: BLE001 - as above
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        running.add(pid)
    while running:
        running.discard(os.wait()[0])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except TokaError as error:
        sys.exit(str(error))
