"""The measured process: executes tasks in one way, once, and prints what they cost as one line of JSON.

A task is two requests to the model and one call of a tool in this process. The ways:

- `toka`: one run of many agents through OrchestrationEngine; every step in the SQLite journal, synced to disk
- `sdk`: a loop by hand over the `openai` SDK with its default client
- `direct`: a loop by hand over pydantic-ai's model layer, its requests sent by aiohttp; no journal
- `aiohttp`: a loop by hand over aiohttp alone: the floor
- `journal`: no task at all, only appends to the journal

    python bench/load.py toka --tasks 400 --concurrency 50 --url http://127.0.0.1:PORT/v1 --state DIR
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

import machine
from task import Opened, Options

WAYS = ("toka", "sdk", "direct", "aiohttp", "journal")
WARM_UP = 20
"""Tasks executed before the measured ones: imports, caches, the first connections."""


async def measure(opened: Opened, options: Options) -> dict[str, Any]:
    """Processor and wall time of the tasks, without start-up."""
    async with opened as execute:
        await execute(min(WARM_UP, options.tasks))
        gc.collect()
        waited, cpu, began = machine.waited_s(), machine.cpu_s(), time.perf_counter()
        good = await execute(options.tasks)
        wall, used = time.perf_counter() - began, machine.cpu_s() - cpu
        return {
            "good": good,
            "wall_s": round(wall, 4),
            "cpu_ms": round(1000 * used / options.tasks, 4),
            "waited_s": round(machine.waited_s() - waited, 3),
            "most_mb": round(machine.rss_kb("VmHWM") / 1024, 1),
        }


async def park(opened: Opened, options: Options, patience_s: float) -> dict[str, Any]:
    """Memory that each agent takes while all of them wait for the model."""
    async with opened as execute:
        await execute(min(WARM_UP, options.tasks))
        _control(options.url, f"delay/{patience_s + 60:g}", post=True)
        gc.collect()
        before = machine.rss_kb()
        waiting = asyncio.create_task(execute(options.tasks))
        end, parked = time.monotonic() + patience_s, 0
        while time.monotonic() < end and parked < options.tasks and not waiting.done():
            await asyncio.sleep(0.2)
            parked = _control(options.url, "stats")["waiting"]
        await asyncio.sleep(0.2)
        gc.collect()
        grown = machine.rss_kb() - before
        _print({"good": parked, "kb": round(grown / options.tasks, 2), "before_mb": round(before / 1024, 1)})
        os._exit(0)  # the replies are minutes away, and everything measured is printed


def _control(url: str, path: str, *, post: bool = False) -> dict[str, Any]:
    """Asks the stub; blocking on purpose, so that nothing is added to the loop that is measured."""
    request = urllib.request.Request(f"{url.removesuffix('/v1')}/{path}", method="POST" if post else "GET")
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


def _print(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description="Execute tasks in one way and print what they cost.")
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--url", required=True)
    parser.add_argument("--state", type=Path, default=Path())
    parser.add_argument("--park", type=float, default=0.0, metavar="S", help="measure memory; wait at most so long")
    given = parser.parse_args()
    machine.pin(machine.BENCH_CORE)
    options = Options(given.tasks, given.concurrency, given.url, given.state)
    opened: Opened = importlib.import_module(f"way_{given.way}").opened(options)
    if given.park:
        asyncio.run(park(opened, options, given.park))
    else:
        _print(asyncio.run(measure(opened, options)))


if __name__ == "__main__":
    main()
