"""What a sandbox costs beside plain processes, interleaved in one process: prints one JSON object.

python bench/hands.py --directory DIR --commands 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from toka.core.clock import SystemClock
from toka.sandbox.host import WORKER_IDLE_S, Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy

PYTHON = ["/usr/bin/python3", "-c", "pass"]
TRUE = ["/bin/true"]
POLICY = SandboxPolicy(reads=(".",), writes=("out",), programs=None)
STARTS = 20
PAUSE_S = 0.005
"""Between two commands: what a sandbox does after one is not to slow the plain one down."""


def plain(argv: list[str]) -> None:
    """The same command without a sandbox."""
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)


async def timed(act: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await act()
    return 1000 * (time.perf_counter() - began)


async def measure(workspace: Path, commands: int) -> dict[str, float]:
    """Medians, in milliseconds; memory in MiB."""
    around = Surroundings(SystemClock())
    found: dict[str, list[float]] = {}

    async def in_sandbox(argv: list[str]) -> None:
        ended = await sandbox.run(argv, timeout_s=10)
        assert ended.exit_code == 0, ended

    async def read() -> None:
        assert "error" not in await sandbox.file("read", path="file", start=1, lines=None, limit=1000)

    async def beside(argv: list[str]) -> None:
        plain(argv)

    sandbox = await Sandbox.start(workspace, POLICY, around)
    for number in range(commands + 3):
        for name, argv in (("true", TRUE), ("python", PYTHON)):
            if name == "python" and number % 2:
                continue
            there = await timed(lambda a=argv: in_sandbox(a))
            await asyncio.sleep(PAUSE_S)
            here = await timed(lambda a=argv: beside(a))
            await asyncio.sleep(PAUSE_S)
            if number >= 3:  # the first ones fill caches
                found.setdefault(name, []).append(there)
                found.setdefault("plain " + name, []).append(here)
                found.setdefault("ratio " + name, []).append(there / here)
        found.setdefault("read", []).append(await timed(read))
    await asyncio.sleep(0.2)
    usage = sandbox.keeper.usage()
    await sandbox.close()
    for _ in range(STARTS):
        began = time.perf_counter()
        one = await Sandbox.start(workspace, POLICY, around)
        found.setdefault("start", []).append(1000 * (time.perf_counter() - began))
        await one.close()
    idle = await Sandbox.start(workspace, POLICY, around)
    await idle.file("read", path="file", start=1, lines=None, limit=1000)
    await idle.run(TRUE, timeout_s=10)
    await asyncio.sleep(WORKER_IDLE_S + 0.5)
    memory = _pss(idle)
    await idle.close()
    return {**{name: median(values) for name, values in found.items()}, "memory": memory, "cpu": usage.cpu_s or 0.0}


def _pss(sandbox: Sandbox) -> float:
    """MiB of a sandbox in which nothing runs, shared pages divided among those who share them."""
    total = 0
    for pid in sandbox.processes():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return total / 1024


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--commands", type=int, default=200)
    given = parser.parse_args()
    workspace = Path(tempfile.mkdtemp(prefix="hands-", dir=given.directory))
    (workspace / "out").mkdir()
    (workspace / "file").write_text("a line\n" * 20)
    print(json.dumps(asyncio.run(measure(workspace, given.commands))))


if __name__ == "__main__":
    main()
