"""Runs an agent that asks a person twice, in processes that are killed at a chosen write, and lets others go on.

`python survival_approval.py FOLDER` reads cases from standard input, one JSON pair [at, before] a line: where the first
process dies. The processes after it are not killed; there are as many as it takes. For each case it writes what is left
to FOLDER/results, as one line of JSON. The person answers each question that is open and has no answer yet.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from survival import AT_ONE_TIME, MODEL, bounded, in_child, note
from toka.app import Parts, open_runtime, read_settings
from toka.config.agent import AgentConfig
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.events.event import StepIntent, TaskStateChanged
from toka.events.flow import ApprovalAnswered, ApprovalAsked
from toka.events.fold import fold_all
from toka.events.lifecycle import RUN_ENDS
from toka.journal.poke import poke
from toka.journal.sqlite import SqliteJournal, SqliteReader
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.orchestration.session import RunSession
from toka.testing import DyingJournal, ScriptedModel

NEVER = 1_000_000
LIVES = 8

SHIP = """
metadata: {name: ship}
spec: {name: Ship, domain: testing}
tasks:
  default:
    - {id: write, description: Write the secret.}
    - {id: publish, run: 'echo published >> effects', effect: idempotent}
security:
  capabilities_required: [filesystem-write]
flow: {approve: {question: 'Ship it?', expires: 1h}}
"""
OTHER = """
metadata: {name: other}
spec: {name: Other, domain: testing}
tasks:
  default:
    - {id: keep, run: 'until [ -e effects ]; do sleep 0.02; done', effect: idempotent}
security: {capabilities_required: [filesystem-read]}
"""
"""Is at work until the end, so that the first process lives while the person answers."""
SCRIPT: dict[str, Any] = {
    "agents": {
        "ship": {
            "write": [
                {"calls": [{"write_file": {"path": "secret.txt", "content": "42"}}]},
                {"report": {"status": "succeeded", "summary": "written"}},
            ]
        }
    }
}


async def live(folder: Path, run: RunId | None, at: int, before: bool) -> None:
    journals: list[DyingJournal] = []

    def journal(state: Path, clock: Any) -> DyingJournal:
        journals.append(DyingJournal(SqliteJournal(state, clock), at, before=before))
        return journals[0]

    settings = read_settings({"state": str(folder / "state"), "model": MODEL}, cwd=folder, environment={})
    settings = replace(settings, execution=replace(settings.execution, grace_s=0.05))
    parts = Parts(journal=journal, models={MODEL: ScriptedModel(SCRIPT)})
    async with open_runtime(settings, parts, environment={}) as runtime:
        engine = OrchestrationEngine(runtime)
        if run is None:
            session = await engine.start(RunRequest([AgentConfig.parse(s) for s in (OTHER, SHIP)], folder / "work"))
        else:
            session = await engine.resume(run, author="test")
        person = asyncio.create_task(answer(session))
        result = await session.run()
        person.cancel()
        await asyncio.gather(person, return_exceptions=True)
        await session.context.recorder.close()
        (folder / "result").write_text(json.dumps({"exit": result.exit_code, "writes": journals[0].writes}))


async def answer(session: RunSession) -> None:
    """Answers what is asked, as another process does it."""
    context = session.context
    journal = context.runtime.journal
    asked = asyncio.Event()
    context.recorder.subscribe(lambda r: asked.set() if isinstance(r.event, ApprovalAsked) else None)
    while True:
        given = {i for c in journal.commands(context.id) for i in c.arguments.get("approvals", ())}
        for agent in context.recorder.state.agents.values():
            for each in agent.asking:
                if each.id not in given:
                    arguments = {"approvals": [each.id], "at": SystemClock().now()}
                    by = ("ada", "fine")
                    await journal.submit(context.id, "approve", agent=agent.name, arguments=arguments, by=by)
                    assert context.runtime.state is not None
                    poke(context.runtime.state, context.id)
        asked.clear()
        await asked.wait()


def left(folder: Path) -> dict[str, Any]:
    """What the journal says."""
    with closing(SqliteReader(folder / "state", SystemClock())) as reader:
        runs = reader.runs()
        if not runs:
            return {"run": None, "status": None}
        records = reader.read(runs[0])
    state = fold_all(runs[0], records)

    asked: dict[str, list[int]] = {}
    answered: dict[str, list[int]] = {}
    for record in records:
        if isinstance(record.event, ApprovalAsked):
            asked.setdefault(record.event.approval, []).append(record.id)
        elif isinstance(record.event, ApprovalAnswered):
            answered.setdefault(record.event.approval, []).append(record.id)
    began = [r.id for r in records if r.stream == "ship" and isinstance(r.event, TaskStateChanged)]
    called = [r.id for r in records if isinstance(r.event, StepIntent) and r.event.what == "write_file"]
    return {
        "run": runs[0],
        "status": state.status.value,
        "tasks": {t.id: t.status.value for a in state.agents.values() for t in a.tasks.values()},
        "asked": asked,
        "answered": answered,
        "began": began,
        "called": called,
    }


def one_case(folder: Path, at: int, before: bool) -> dict[str, Any]:
    (folder / "work").mkdir(parents=True)
    (folder / "toka.toml").write_text('[policy]\nask = ["write_file(secret*)"]\n')
    statuses: list[int] = []
    result = None
    for number in range(LIVES):
        known = left(folder) if number else {"run": None, "status": None}
        if number and known["status"] in (None, *RUN_ENDS):
            break
        kill = (at, before) if not number else (NEVER, False)
        (folder / "result").unlink(missing_ok=True)
        statuses.append(in_child(lambda: asyncio.run(bounded(live(folder, known["run"], *kill)))))  # noqa: B023 - at once
        result = json.loads((folder / "result").read_text()) if (folder / "result").exists() else result
    work = folder / "work"
    files = {p.name: p.read_text() for p in sorted(work.iterdir()) if p.is_file()}
    return {"at": at, "before": before, "lives": statuses, "result": result, "left": left(folder), "files": files}


def main(folder: Path) -> None:
    running: set[int] = set()
    for number, line in enumerate(sys.stdin):
        if len(running) >= AT_ONE_TIME:
            running.discard(os.wait()[0])
        at, before = json.loads(line)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                note(folder / "results", json.dumps(one_case(folder / str(number), at, before)))
                code = 0
            finally:
                os._exit(code)
        running.add(pid)
    while running:
        running.discard(os.wait()[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
