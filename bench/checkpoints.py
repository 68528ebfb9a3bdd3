"""What a checkpoint costs, from the call to its answer: prints one JSON object.

python bench/checkpoints.py --directory DIR --files 10000 --times 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from toka.core.clock import SystemClock
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.lock import Note

NOTE = Note("run_bench", "agent", "task", "step")
IN_FOLDER = 50
CHANGED = 10
PAUSE_S = 0.05


def fill(workspace: Path, files: int) -> list[Path]:
    """Source files of half a kilobyte to a kilobyte, fifty in a folder, folders two deep."""
    made: list[Path] = []
    for number in range(files):
        folder = workspace / f"part{number // IN_FOLDER // 20}" / f"room{number // IN_FOLDER}"
        if number % IN_FOLDER == 0:
            folder.mkdir(parents=True, exist_ok=True)
        made.append(folder / f"module{number}.py")
        made[-1].write_text(f"def f{number}() -> int:\n    return {number}\n" * (12 + number % 12))
    return made


async def timed(act: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await act()
    return 1000 * (time.perf_counter() - began)


async def measure(directory: Path, files: int, times: int) -> dict[str, float]:
    """Medians, in milliseconds; the store's size in MiB."""
    workspace = directory / "workspace"
    made = fill(workspace, files)
    checkpoints = Checkpoints(workspace, directory / "state", SystemClock())
    found: dict[str, list[float]] = {}
    try:
        found["first"] = [await timed(lambda: checkpoints.take(NOTE))]
        await asyncio.sleep(PAUSE_S)
        for number in range(times):
            found.setdefault("unchanged", []).append(await timed(lambda: checkpoints.take(NOTE)))
            for file in made[number :: max(1, files // CHANGED)][:CHANGED]:
                file.write_text(f"{time.time_ns()}\n")
            await asyncio.sleep(PAUSE_S)
            found.setdefault("changed", []).append(await timed(lambda: checkpoints.take(NOTE)))
            await asyncio.sleep(PAUSE_S)
        newest = await checkpoints.take(NOTE)
        for number in range(max(1, times // 4)):
            for file in made[number :: max(1, files // CHANGED)][:CHANGED]:
                file.write_text("changed\n")
            await asyncio.sleep(PAUSE_S)
            found.setdefault("restore", []).append(await timed(lambda: checkpoints.restore(newest.id, NOTE)))
        (directory / "aside").mkdir()
        for entry in list(workspace.iterdir()):  # not deleted: ext4 is slow to give such inodes out again
            entry.rename(directory / "aside" / entry.name)
        found["restore all"] = [await timed(lambda: checkpoints.restore(newest.id, NOTE))]
    finally:
        await checkpoints.close()
    size = sum(p.stat().st_size for p in checkpoints.folder.rglob("*") if p.is_file()) / 2**20
    return {**{name: median(values) for name, values in found.items()}, "store": size}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=20)
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=given.directory))
    print(json.dumps(asyncio.run(measure(directory, given.files, given.times))))


if __name__ == "__main__":
    main()
