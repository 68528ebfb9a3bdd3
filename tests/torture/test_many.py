"""R9: a thousand agents at work in one run, ten thousand that are declared and wait."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

LOAD_S = 30.0
EACH_KB = 100.0
DELAY_S = 0.3
"""Until the model answers."""
TASKS = 3
"""Tasks of each live agent, one model call each."""


def write(folder: Path, specs: dict[str, dict[str, Any]], limit: int) -> None:
    (folder / "specs").mkdir(parents=True)
    (folder / "work").mkdir()
    for name, spec in specs.items():
        whole = {"metadata": {"name": name}, "spec": {"name": name}, **spec}
        (folder / "specs" / f"{name}.yaml").write_text(json.dumps(whole))
    reply = {"report": {"status": "succeeded", "summary": "done"}, "delay": f"{DELAY_S * 1000:g}ms", "repeat": True}
    (folder / "script.yaml").write_text(json.dumps({"script": 1, "default": [reply]}))
    (folder / "work" / "toka.toml").write_text(f"[execution]\nmax_concurrent_agents = {limit}\n")


def live(count: int) -> dict[str, dict[str, Any]]:
    tasks = [{"id": f"t{n}", "description": "Say it."} for n in range(TASKS)]
    return {f"a{n}": {"tasks": tasks} for n in range(count)}


def idle(count: int) -> dict[str, dict[str, Any]]:
    """All wait for a gate that never opens."""
    gate = {"tasks": [{"run": "sleep 1000", "effect": "idempotent"}]}
    return {
        "gate": gate,
        **{f"a{n}": {"tasks": ["Say it."], "dependencies": {"required": {"gate": {}}}} for n in range(count)},
    }


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "toka", "run", "../specs", "--workspace", ".", "--state", "../state"]
    command += ["--model", "scripted:../script.yaml", "--json"]
    with (folder / "said").open("wb") as out, (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(command, cwd=folder / "work", stdout=out, stderr=errors)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "said").read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def memory_kb(process: subprocess.Popen[bytes]) -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def load(folder: Path, count: int) -> tuple[float, int]:
    """Seconds until the first step of a team of so many idle agents, and the memory of its process then, in KiB."""
    write(folder, idle(count), 10)
    began = time.monotonic()
    with running(folder) as process:
        while not any(event.get("kind") == "step_intent" for event in said(folder)):
            assert process.poll() is None, (folder / "errors").read_text()[-2000:]
            assert time.monotonic() - began < 4 * LOAD_S, "it does not come to its first step"
            time.sleep(0.05)
        took = time.monotonic() - began
        time.sleep(1.0)
        return took, memory_kb(process)


def declared(folder: Path, count: int, counted: dict[str, Any]) -> None:
    _, alone = load(folder / "alone", 1)
    took, memory = load(folder / "many", count)
    counted["declared"], counted["load s"] = count, round(took, 1)
    counted["idle KB each"] = round((memory - alone) / count, 1)
    assert took <= LOAD_S and counted["idle KB each"] <= EACH_KB


def at_work(folder: Path, count: int, counted: dict[str, Any]) -> None:
    """All are at work at one time, and each gets on."""
    write(folder / "alone", live(1), 1)
    with running(folder / "alone") as process:
        alone = most(process, folder / "alone")
    write(folder / "many", live(count), count)
    with running(folder / "many") as process:
        memory = most(process, folder / "many")
        assert process.returncode == 0, (folder / "many" / "errors").read_text()[-2000:]
    running_now, together = 0, 0
    steps: dict[str, list[float]] = {}
    for event in said(folder / "many"):
        if event.get("kind") == "agent_state":
            running_now += {"RUNNING": 1, "COMPLETED": -1}.get(event["state"], 0)
            together = max(together, running_now)
        if event.get("kind") == "step_done":
            steps.setdefault(event["agent"], []).append(event["at"])
    assert len(steps) == count and {len(each) for each in steps.values()} == {TASKS}
    began = min(each[0] for each in steps.values())
    ended = max(each[-1] for each in steps.values())
    slowest = max(later - earlier for each in steps.values() for earlier, later in pairwise(each))
    counted["live at one time"], counted["live KB each"] = together, round((memory - alone) / count, 1)
    counted["steps per s"] = round(TASKS * count / (ended - began))
    counted["longest pause s"] = round(slowest, 1)
    assert together >= 0.9 * count, "they were not at work together"
    assert counted["live KB each"] <= EACH_KB
    assert slowest <= DELAY_S + max(5.0, (ended - began) / 2), "one was left behind"


def most(process: subprocess.Popen[bytes], folder: Path) -> int:
    """The most memory that a process took until its end, in KiB."""
    highest, end = 0, time.monotonic() + 200
    while process.poll() is None:
        assert time.monotonic() < end, (folder / "errors").read_text()[-2000:]
        highest = max(highest, memory_kb(process))
        time.sleep(0.02)
    return highest


needs_sandbox = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")


@needs_sandbox
@pytest.mark.slow
def test_a_thousand_declared_agents_load_quickly(tmp_path: Path, counted: dict[str, Any]) -> None:
    declared(tmp_path, 1000, counted)
    assert counted["load s"] <= LOAD_S / 3


@pytest.mark.slow
def test_a_hundred_live_agents_all_progress(tmp_path: Path, counted: dict[str, Any]) -> None:
    at_work(tmp_path, 100, counted)


@needs_sandbox
@pytest.mark.torture("R9", f"10,000 declared: load <= {LOAD_S:g} s, <= {EACH_KB:g} KB each")
def test_ten_thousand_declared_agents(tmp_path: Path, counted: dict[str, Any]) -> None:
    declared(tmp_path, 10_000, counted)


@pytest.mark.torture("R9", f"1,000 live: all progress, <= {EACH_KB:g} KB each")
def test_a_thousand_live_agents(tmp_path: Path, counted: dict[str, Any]) -> None:
    at_work(tmp_path, 1_000, counted)
