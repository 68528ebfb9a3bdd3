"""One life of a run with many instances: `python fanout.py FOLDER COUNT AT BEFORE`.

Starts the run of FOLDER, or goes on with it, and dies by SIGKILL at its write number AT, before that write is handed on
when BEFORE is 1. What each instance did is appended to FOLDER/work/log by its command.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from toka.app import Parts, open_runtime, read_settings
from toka.config.agent import AgentConfig
from toka.events.fold import fold_all
from toka.journal.sqlite import SqliteJournal
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.testing import DyingJournal

TEAM = """
toka: 1
defaults: {{grants: {{write: [.]}}}}
agents:
  survey:
    tasks: [{{run: "seq -f 'element %03g' {count}", effect: pure}}]
    outputs: {{names: {{from: stdout, as: lines}}}}
  fix:
    needs: [survey]
    for_each: ${{survey.names}}
    max_parallel: 4
    tasks: [{{run: 'echo "$TOKA_AGENT ${{item}}" >> log', effect: idempotent}}]
    outputs: {{said: {{from: stdout}}}}
  ship:
    needs: [fix]
    tasks: [{{run: 'echo ${{fix.completed}} of ${{fix.total}} > total', effect: idempotent}}]
"""


async def live(folder: Path, count: int, at: int, *, before: bool) -> int:
    def journal(state: Path, clock: Any) -> DyingJournal:
        return DyingJournal(SqliteJournal(state, clock), at, before=before)

    (folder / "team.yaml").write_text(TEAM.format(count=count))
    settings = read_settings({"state": str(folder / "state")}, cwd=folder, environment={})
    settings = replace(settings, execution=replace(settings.execution, grace_s=0.05))
    async with open_runtime(settings, Parts(journal=journal), environment={}) as runtime:
        engine = OrchestrationEngine(runtime)
        if runs := runtime.journal.runs():
            if fold_all(runs[0], runtime.journal.read(runs[0])).ended:
                return 0  # it was killed after the very end
            session = await engine.resume(runs[0], author="test")
        else:
            configs = AgentConfig.load_team(folder / "team.yaml")
            session = await engine.start(RunRequest(configs, folder / "work"))
        result = await session.run()
        await session.context.recorder.close()
        return result.exit_code


if __name__ == "__main__":
    place, many, last, early = sys.argv[1:]
    sys.exit(asyncio.run(live(Path(place), int(many), int(last), before=early == "1")))
