"""R10: after very many steps a process uses no more of the machine than before, but for what a run's state takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("soaking.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(DRIVER.parents[1]), *filter(None, sys.path)))}
SLOPE_MB = 1.0
"""Of memory, for 10,000 steps."""
WARM_SHARE = 0.2
"""Of the steps, at the beginning, in which memory may grow as it likes: pools fill, modules are imported."""


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line that fits best, by least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    square = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / square


def soak(folder: Path, steps: int, counted: dict[str, Any]) -> list[list[int]]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), str(steps)], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["status"] == "COMPLETED", found["reason"]
    shutil.rmtree(folder)
    samples: list[list[int]] = [s for s in found["samples"] if s[0] >= WARM_SHARE * found["steps"]]
    counted["steps"] = found["steps"]
    counted["steps per s"] = round(found["steps"] / (time.monotonic() - began))
    counted["MB per 10,000 steps"] = round(slope([(s[0] / 10_000, s[1] / 1024) for s in samples]), 3)
    counted["MB at the end"] = round(samples[-1][1] / 1024)
    for name, place in (("fds", 2), ("threads", 3), ("tasks", 4)):
        values = [s[place] for s in samples]
        counted[name] = f"{min(values)}-{max(values)}"
    return samples


def flat(samples: list[list[int]]) -> None:
    """Files, threads and tasks do not grow with the steps: the last third has no more of them than the first had."""
    third = len(samples) // 3
    for place in (2, 3, 4):
        assert max(s[place] for s in samples[-third:]) <= max(s[place] for s in samples[:third]) + 2


def test_the_slope_of_a_line_is_found() -> None:
    assert slope([(x, 3 * x + 1) for x in range(10)]) == pytest.approx(3)


@pytest.mark.slow
def test_thousands_of_steps_leave_nothing_open(tmp_path: Path, counted: dict[str, Any]) -> None:
    samples = soak(tmp_path / "soak", 5_000, counted)
    flat(samples)
    assert samples[-1][1] - samples[0][1] < 20 * 1024, "memory"


@pytest.mark.torture("R10", f"200,000 steps: <= {SLOPE_MB:g} MB per 10,000; fds, threads, tasks flat")
def test_two_hundred_thousand_steps(tmp_path: Path, counted: dict[str, Any]) -> None:
    samples = soak(tmp_path / "soak", 202_500, counted)
    assert counted["steps"] >= 200_000
    flat(samples)
    assert counted["MB per 10,000 steps"] <= SLOPE_MB
