"""Starts the measured processes, one after the other, each fresh and each with a stub of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

import machine
from report import Experiment, Round

HERE: Final = Path(__file__).resolve().parent
PATIENCE_S: Final = 90.0
"""No measured process takes longer; it is killed then, and its figure is missing."""


class Processes:
    """Measured processes; `problems` says what went wrong with them."""

    def __init__(self, directory: Path) -> None:
        """`directory`: where journals and specs go while it is measured."""
        self.directory = directory
        self.problems: list[str] = []

    def round(self, experiment: Experiment) -> Round:
        """Every way once."""
        e = experiment
        return {way: self.load(way, e.tasks, e.concurrency, delay=e.delay, park=e.park) for way in e.ways}

    def load(self, way: str, tasks: int, concurrency: int, *, delay: float = 0.0, park: float = 0.0) -> dict[str, Any]:
        """The result of one run of load.py; empty when it failed."""
        state = Path(tempfile.mkdtemp(prefix="load-", dir=self.directory))
        command = [sys.executable, str(HERE / "load.py"), way, "--state", str(state)]
        command += ["--tasks", str(tasks), "--concurrency", str(concurrency), "--park", str(park)]
        try:
            with _stub(delay) as url:
                text = self._output([*command, "--url", url])
        finally:
            shutil.rmtree(state, ignore_errors=True)
        if text is None:
            return {}
        result: dict[str, Any] = json.loads(text.splitlines()[-1])
        if result["good"] != tasks:
            self.problems.append(f"{way}: only {result['good']} of {tasks} tasks ended as they should")
            return {}
        return result

    def hands(self, commands: int) -> dict[str, float]:
        """What hands.py prints; empty when it failed."""
        command = [sys.executable, str(HERE / "hands.py"), "--directory", str(self.directory)]
        text = self._output([*command, "--commands", str(commands)])
        found: dict[str, float] = {} if text is None else json.loads(text.splitlines()[-1])
        return found

    def recovery(self, agents: int) -> dict[str, float]:
        """What recovery.py prints; empty when it failed."""
        place = Path(tempfile.mkdtemp(prefix="recovery-", dir=self.directory))
        command = [sys.executable, str(HERE / "recovery.py"), "--directory", str(place), "--agents", str(agents)]
        try:
            text = self._output(command)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        found: dict[str, float] = {} if text is None else json.loads(text.splitlines()[-1])
        return found

    def checkpoints(self, files: int, times: int) -> dict[str, float]:
        """What checkpoints.py prints; empty when it failed."""
        command = [sys.executable, str(HERE / "checkpoints.py"), "--directory", str(self.directory)]
        text = self._output([*command, "--files", str(files), "--times", str(times)])
        found: dict[str, float] = {} if text is None else json.loads(text.splitlines()[-1])
        return found

    def command(
        self, arguments: list[str], times: int, figure: Literal["cpu", "wall"], *, factor: float = 1.0
    ) -> float | None:
        """The median of a command's seconds times `factor`, after one start that fills the caches; None: it failed."""
        found: list[float] = []
        for _ in range(times + 1):
            cpu, began = machine.cpu_s(children=True), time.perf_counter()
            if self._output(arguments) is None:
                return None
            wall = time.perf_counter() - began
            found.append(machine.cpu_s(children=True) - cpu if figure == "cpu" else wall)
        return factor * median(found[1:])

    def _output(self, arguments: list[str]) -> str | None:
        """What a process prints; None when it fails."""
        try:
            done = subprocess.run(
                arguments, capture_output=True, text=True, timeout=PATIENCE_S, cwd=self.directory, env=_environment()
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            self.problems.append(f"{_short(arguments)}: {e}")
            return None
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            why = next((line for line in said if line.startswith("toka: ")), said[-1])
            self.problems.append(f"{_short(arguments)}: exit {done.returncode}: {why}")
            return None
        return done.stdout


@contextmanager
def _stub(delay: float) -> Iterator[str]:
    """Runs a stub; yields its base URL."""
    command = [sys.executable, str(HERE / "stub.py"), "--delay", str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def _environment() -> dict[str, str]:
    """What a process sees: no settings and no keys of whoever measures."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(Path.home()), "LANG": "C.UTF-8", "TERM": "dumb"}


def _short(arguments: list[str]) -> str:
    names = [Path(argument).name for argument in arguments[:3]]
    return " ".join(names[1:] if names[0].startswith("python") else names[:2])
