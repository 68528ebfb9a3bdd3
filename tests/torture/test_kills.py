"""R1: processes of a crowd of agents are killed at random, and all that they did is counted outside Toka."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("killing.py")
ENOUGH = 300
BOUND_S = 600.0
AT_ONE_TIME = 2

pytestmark = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")


def start(folder: Path, seed: int, kills: int, agents: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(DRIVER), str(folder), str(seed), str(kills), str(agents)]
    path = str(DRIVER.parents[1])
    environment = {"PYTHONPATH": f"{path}:{Path(path).parent / 'src'}", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return json.loads(said)


def judge(cases: list[dict[str, Any]], counted: dict[str, Any]) -> None:
    total = sum((Counter(case["figures"]) for case in cases), Counter[str]())
    for name in ("kills", "lost", "repeated", "same key", "once repeated", "doubts", "model calls again"):
        counted[name] = total[name]
    counted["runs"], counted["acknowledged"] = len(cases), total["acknowledged"]
    broken = [f"seed {case['seed']}: {text}" for case in cases for text in case["broken"]]
    assert not broken, "\n".join(broken)
    assert total["lost"] == 0, "what was acknowledged or recorded is gone"
    assert total["repeated"] == 0, "a recorded step ran again"
    assert total["once repeated"] == 0, "what may happen once happened again"
    assert total["acknowledged"] > 20 * total["agents"], "what was printed was compared"


@pytest.mark.slow
def test_a_crowd_survives_kills_at_any_moment(tmp_path: Path, seed: int, counted: dict[str, Any]) -> None:
    case = end(start(tmp_path / "crowd", seed, 10, 30))
    judge([case], counted)
    assert case["figures"]["kills"] >= 5


@pytest.mark.torture("R1", f"{ENOUGH} kills in 10 min, nothing lost, nothing recorded or `once` repeated")
def test_hundreds_of_kills(tmp_path: Path, seed: int, counted: dict[str, Any]) -> None:
    chance, began = random.Random(seed), time.monotonic()
    running: list[tuple[Path, subprocess.Popen[str]]] = []
    cases: list[dict[str, Any]] = []
    try:
        while True:
            killed = sum(case["figures"].get("kills", 0) for case in cases)
            late = killed >= ENOUGH or time.monotonic() - began > BOUND_S
            while not late and len(running) < AT_ONE_TIME:
                folder = tmp_path / f"crowd-{len(cases) + len(running)}-{chance.randrange(10**6)}"
                running.append((folder, start(folder, chance.randrange(10**9), 30, chance.randrange(30, 51, 3))))
            if not running:
                break
            if not any(process.poll() is not None for _, process in running):
                time.sleep(0.05)
                continue
            for folder, process in [one for one in running if one[1].poll() is not None]:
                running.remove((folder, process))
                cases.append(end(process))
                if not cases[-1]["broken"]:
                    shutil.rmtree(folder)
    finally:
        for _, process in running:
            process.kill()
            process.wait()
    counted["kills per 10 min"] = round(
        600 * sum(c["figures"].get("kills", 0) for c in cases) / (time.monotonic() - began)
    )
    judge(cases, counted)
    assert counted["kills"] >= ENOUGH
    assert counted["same key"] and counted["doubts"] and counted["model calls again"], "steps were killed in flight"
