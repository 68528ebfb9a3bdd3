"""The journal alone: as many appends as `tasks`, each of two events, by so many writers; one append at a time each."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from task import PROMPT, SYSTEM, Execute, Options, by_hand
from toka.core.clock import SystemClock
from toka.core.ids import new_run_id
from toka.events.event import StepDone, StepIntent
from toka.journal.recorder import Recorder
from toka.journal.sqlite import SqliteJournal


@asynccontextmanager
async def opened(options: Options) -> AsyncGenerator[Execute]:
    """A journal, and a recorder that folds what is written."""
    clock = SystemClock()
    journal = SqliteJournal(options.state / "state", clock)
    recorder = Recorder(journal, await journal.acquire(new_run_id(clock.now(), lambda n: n // 2)))
    streams = [f"agent-{number:05d}" for number in range(options.concurrency)]
    free = list(streams)
    messages = [{"role": "system", "text": SYSTEM}, {"role": "user", "text": PROMPT}]
    reply = {"role": "assistant", "calls": [["call_1", "get_fact", '{"key": "alpha"}']]}

    async def append() -> str:
        stream = free.pop()
        step = "task-1/1/1/model/0"
        intent = StepIntent(step, "0" * 32, "idempotent", "openai:bench-model", messages=messages, reserved=[900, 8192])
        done = StepDone(step, reply, [100, 20, 0, 0, 1], None, "bench-model", 0.0123)
        await recorder.record(stream, intent, done)
        free.append(stream)
        return "42"

    yield by_hand(append, options.concurrency)
    await recorder.close()
    await journal.aclose()
