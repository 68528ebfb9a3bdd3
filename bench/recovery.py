"""Many agents in one run: what an append takes while all of them work, how soon they go on, what one that rests takes.

Prints one line of JSON:

- `p50`, `p95`: milliseconds from the moment on which an append was due to the moment on which it was on disk. The
  appends of each agent come at fixed times, whether the one before has ended or not (an open loop): a journal that
  falls behind shows it in the figures, and not only in fewer appends
- `resume`: seconds from the start of a process to the moment on which every agent's model call, which was in flight
  when the process before was killed, has been made again
- `parked`: KiB that each agent takes while a person's pause holds it

    python bench/recovery.py --directory DIR --agents 1000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
from task import PROMPT
from toka.app import Parts, open_runtime, read_settings
from toka.core.clock import SystemClock
from toka.core.ids import RunId, new_run_id
from toka.events.event import StepIntent
from toka.events.lifecycle import AgentStatus
from toka.journal.recorder import Recorder
from toka.journal.sqlite import SqliteJournal
from toka.llm.model import ModelRequest
from toka.llm.script import ScriptedReply
from toka.llm.scripted import ScriptedModel
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.orchestration.session import RunSession
from way_toka import GetFact, specs

MODEL = "scripted:bench"
EACH_S = 0.5
"""Between two appends of one agent: two for each step, one step a second."""
FOREVER_S = 3600.0
PATIENCE_S = 60.0


async def appends(directory: Path, agents: int, seconds: float) -> dict[str, float]:
    """An append of each agent every EACH_S, for so many seconds."""
    clock, chance = SystemClock(), random.Random(1)
    journal = SqliteJournal(directory / "open-loop", clock)
    recorder = Recorder(journal, await journal.acquire(new_run_id(clock.now(), lambda n: n // 2)))
    took: list[float] = []
    loop = asyncio.get_running_loop()

    async def one(stream: str, due: float) -> None:
        messages = [{"role": "user", "text": PROMPT}]
        await recorder.record(
            stream, StepIntent("task-1/1/1/model/0", "0" * 32, "idempotent", MODEL, messages=messages)
        )
        took.append(loop.time() - due)

    async def agent(number: int, begin: float) -> None:
        due, tasks = begin + chance.random() * EACH_S, set[asyncio.Task[None]]()
        while due < begin + seconds:
            await asyncio.sleep(due - loop.time())
            task = asyncio.create_task(one(f"agent-{number:05d}", due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += EACH_S
        await asyncio.gather(*tasks)

    begin = loop.time() + 0.2
    await asyncio.gather(*(agent(n, begin) for n in range(agents)))
    await recorder.close()
    await journal.aclose()
    took.sort()
    return {"p50": 1000 * took[len(took) // 2], "p95": 1000 * took[int(len(took) * 0.95)], "rate": len(took) / seconds}


async def executed(
    directory: Path, agents: int, answer: Callable[[ModelRequest], ScriptedReply], run: str, then: Any
) -> None:
    """Starts a run of so many agents, or goes on with `run`; awaits `then` with its session while it is executed."""
    (directory / "workspace").mkdir(parents=True, exist_ok=True)
    settings = read_settings({"state": str(directory / "state"), "model": MODEL}, cwd=directory, environment={})
    execution = replace(settings.execution, max_concurrent_agents=agents, model_timeout_s=2 * FOREVER_S)
    parts = Parts(models={MODEL: ScriptedModel(answer, name=MODEL)}, tools=(GetFact(),))
    async with open_runtime(replace(settings, execution=execution), parts, environment={}) as runtime:
        engine = OrchestrationEngine(runtime)
        if run:
            session = await engine.resume(RunId(run), author="bench")
        else:
            session = await engine.start(RunRequest(specs(agents), directory / "workspace"))
        executing = asyncio.create_task(session.run())
        await then(session)
        await session.shutdown(0.0)
        await executing
        await session.context.recorder.close()


async def in_flight(directory: Path, agents: int, run: str) -> None:
    """Prints the run's id as soon as the model calls of all agents are in flight, then waits to be killed."""
    asked: set[str] = set()

    def answer(request: ModelRequest) -> ScriptedReply:
        asked.add(request.agent)
        return ScriptedReply(say="", delay_s=FOREVER_S)

    async def then(session: RunSession) -> None:
        while len(asked) < agents:
            await asyncio.sleep(0.005)
        print(session.context.id, flush=True)
        await asyncio.sleep(FOREVER_S)

    await executed(directory, agents, answer, run, then)


def resumed(directory: Path, agents: int) -> float:
    """Seconds that a fresh process takes to have all model calls in flight again."""
    run, took = "", 0.0
    for _ in range(2):
        command = [sys.executable, __file__, "--directory", str(directory), "--agents", str(agents), "--fly", run]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                run = process.stdout.readline().strip()
                took = time.perf_counter() - began
            finally:
                process.send_signal(signal.SIGKILL)
        if not run:
            raise SystemExit("a process ended before all its agents worked")
    return took


async def parked(directory: Path, agents: int) -> dict[str, float]:
    """Memory of so many agents that are paused after their first step."""

    def answer(request: ModelRequest) -> ScriptedReply:
        return ScriptedReply(calls=(("get_fact", json.dumps({"key": f"k{request.call}"})),), delay_s=0.5)

    found: dict[str, float] = {}
    gc.collect()
    before = machine.rss_kb()

    async def then(session: RunSession) -> None:
        context = session.context
        end = time.monotonic() + PATIENCE_S
        while sum(a.steps > 0 for a in context.recorder.state.agents.values()) < agents and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await context.runtime.journal.submit(context.id, "pause", agent="", arguments={}, by=("bench", "to rest"))
        while time.monotonic() < end:
            await asyncio.sleep(0.1)
            resting = sum(a.status is AgentStatus.PAUSED for a in context.recorder.state.agents.values())
            if resting == agents:
                break
        gc.collect()
        found["parked"] = (machine.rss_kb() - before) / agents
        found["resting"] = resting

    await executed(directory, agents, answer, "", then)
    return found


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description="Measure the journal and the supervision of many agents.")
    parser.add_argument("--directory", type=Path, required=True, help="on a disk")
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the open loop")
    parser.add_argument("--fly", metavar="RUN", help="only until all model calls are in flight; empty: a new run")
    given = parser.parse_args()
    if given.fly is not None:
        asyncio.run(in_flight(given.directory, given.agents, given.fly))
        return
    machine.pin(machine.BENCH_CORE)
    figures = asyncio.run(appends(given.directory, given.agents, given.seconds))
    figures |= asyncio.run(parked(given.directory / "parked", given.agents))
    if figures.pop("resting") != given.agents:
        raise SystemExit("not all agents came to rest")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    figures["resume"] = resumed(given.directory / "resumed", given.agents)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
