"""A process that executes a run, with a lease of its own length: `python frozen.py FOLDER LEASE_S LEDGER [RUN]`.

Starts a run in FOLDER, or goes on with RUN. Its model calls are noted in LEDGER, its commands in FOLDER/work/ledger.
Prints one JSON object when it ends: the run's status, or the error.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import agent
from survival import note
from toka.app import Parts, open_runtime, read_settings
from toka.core.ids import RunId
from toka.errors import TokaError
from toka.journal.journal import Timing
from toka.journal.sqlite import SqliteJournal
from toka.llm.model import ModelReply, ModelRequest
from toka.llm.script import ScriptedReply
from toka.llm.scripted import ScriptedModel
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest

MODEL = "scripted:frozen"
CALLS = 25
"""Model calls of each thinker."""
COMMANDS = 12
"""Commands of each worker."""


class Counted:
    """A model that takes a moment, and notes each call where nobody else does."""

    name = MODEL

    def __init__(self, ledger: Path) -> None:
        self._ledger = ledger
        self._inner = ScriptedModel(self._answer)

    def _answer(self, request: ModelRequest) -> ScriptedReply:
        if request.call < CALLS:
            return ScriptedReply(calls=(("read_file", json.dumps({"path": f"{request.call}.txt"})),), delay_s=0.03)
        return ScriptedReply(calls=(("report", json.dumps({"status": "succeeded", "summary": "read"})),))

    async def request(self, request: ModelRequest) -> ModelReply:
        note(self._ledger, f"{request.key} {request.agent}")
        return await self._inner.request(request)

    async def aclose(self) -> None:
        pass


def team() -> list[Any]:
    line = 'echo "$TOKA_IDEMPOTENCY_KEY $TOKA_AGENT" >> ledger; sleep 0.05'
    tasks = [{"id": f"t{n}", "run": line, "effect": "idempotent"} for n in range(COMMANDS)]
    thinkers = [agent(f"thinker-{n}", grant=["filesystem-read"]) for n in range(3)]
    return [*thinkers, *(agent(f"worker-{n}", tasks, grant=["filesystem-write"]) for n in range(3))]


async def live(folder: Path, lease_s: float, ledger: Path, run: RunId | None) -> dict[str, Any]:
    def journal(state: Path, clock: Any) -> SqliteJournal:
        return SqliteJournal(state, clock, Timing(lease_s, lease_s / 3))

    settings = read_settings({"state": str(folder / "state"), "model": MODEL}, cwd=folder, environment={})
    settings = replace(settings, execution=replace(settings.execution, grace_s=0.05, health_nudges=0))
    parts = Parts(journal=journal, models={MODEL: Counted(ledger)})
    try:
        async with open_runtime(settings, parts, environment={}) as runtime:
            engine = OrchestrationEngine(runtime)
            if run is None:
                session = await engine.start(RunRequest(team(), folder / "work"))
            else:
                session = await engine.resume(run, author="test")
            result = await session.run()
            await session.context.recorder.close()
            return {"status": result.status.value, "exit": result.exit_code}
    except TokaError as e:
        return {"error": type(e).__name__, "message": e.message, "hint": e.hint, "exit": e.exit_code}


if __name__ == "__main__":
    place, lease, where, *which = sys.argv[1:]
    print(json.dumps(asyncio.run(live(Path(place), float(lease), Path(where), RunId(which[0]) if which else None))))
