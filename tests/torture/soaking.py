"""One process that takes very many steps: `python soaking.py FOLDER STEPS`. Prints what it used, as JSON.

Each sample is [steps, memory in KiB, open files, threads, tasks of the event loop].
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import agent
from toka.app import Parts, open_runtime, read_settings
from toka.core.capability import Capability
from toka.core.effect import Effect
from toka.events.event import StepDone
from toka.events.record import Record
from toka.llm.model import ModelRequest
from toka.llm.script import ScriptedReply
from toka.llm.scripted import ScriptedModel
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.tools.tool import Arguments, ToolContext, ToolResult

MODEL = "scripted:soak"
TURNS = 40
"""Model calls with a tool call in each task; one more reports."""
TOGETHER = 50
"""Agents that are at work at one time."""
SAMPLES = 100


class Count:
    """A tool in this process, as a program that embeds Toka brings its own."""

    name = "count"
    description = "Count."
    parameters: Mapping[str, Any] = {
        "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False,
    }  # fmt: skip
    effect = Effect.PURE

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        return ()

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        return ToolResult(f"{args['n']} and so on")


def answer(request: ModelRequest) -> ScriptedReply:
    if request.call <= TURNS:
        return ScriptedReply(say="Next.", calls=(("count", json.dumps({"n": request.call})),))
    return ScriptedReply(calls=(("report", json.dumps({"status": "succeeded", "summary": "counted"})),))


def used(steps: int) -> list[int]:
    status = Path("/proc/self/status").read_text()
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    return [
        steps,
        memory,
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
        len(asyncio.all_tasks()),
    ]


async def soak(folder: Path, steps: int) -> dict[str, Any]:
    (folder / "work").mkdir(parents=True)
    settings = read_settings({"state": str(folder / "state"), "model": MODEL}, cwd=folder, environment={})
    execution = replace(settings.execution, max_concurrent_agents=TOGETHER, max_turns=TURNS + 1, health_nudges=0)
    tasks = max(1, steps // (TOGETHER * (2 * TURNS + 1)))
    team = [agent(f"a{n}", [f"Count, part {t}." for t in range(tasks)]) for n in range(TOGETHER)]
    samples: list[list[int]] = []
    done, every = 0, max(1, steps // SAMPLES)

    def count(record: Record) -> None:
        nonlocal done
        if isinstance(record.event, StepDone):
            done += 1
            if done % every == 0:
                samples.append(used(done))

    parts = Parts(models={MODEL: ScriptedModel(answer, name=MODEL)}, tools=(Count(),))
    async with open_runtime(replace(settings, execution=execution), parts, environment={}) as runtime:
        session = await OrchestrationEngine(runtime).start(RunRequest(team, folder / "work"))
        session.context.recorder.subscribe(count)
        gc.collect()
        samples.append(used(0))
        result = await session.run()
        await session.context.recorder.close()
    return {"status": result.status.value, "reason": result.reason, "steps": done, "samples": samples}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(soak(Path(sys.argv[1]), int(sys.argv[2])))))
