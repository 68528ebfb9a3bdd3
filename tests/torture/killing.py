"""One run of a crowd whose processes are killed at random: `python killing.py FOLDER SEED KILLS AGENTS`.

Prints one JSON object: what was counted, and what broke a promise. Each process is the real command line, killed with
SIGKILL at a moment that SEED chooses; what it printed before counts as acknowledged. All that it leaves behind becomes
a child of this process, which waits for its end: so a ledger is read only when nobody writes to it any more.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toka.app import read_settings, submit_command
from toka.core.clock import SystemClock
from toka.core.ids import AgentName, RunId, StepKey, idempotency_key
from toka.events.event import StepDone, StepFailed
from toka.events.fold import fold_all
from toka.events.state import RunState
from toka.journal.audit import verify
from toka.journal.sqlite import SqliteReader
from torture.crowd import EFFECTS, LEDGER, ONCE, write

TOKA = Path(__file__).with_name("counted_toka.py")
LATEST_S = 0.6
"""When a process is killed at the latest, in seconds after it said that it executes the run."""
EARLY = 0.1
"""How many are killed before, as they start."""
ORPHANS_S = 10.0
"""How long the children of a killed process may outlive it."""
WHOLE_S = 90.0
"""How long a process that nobody kills may take."""
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER"""


@dataclass
class Seen:
    """What is recorded: the stored rows of each stream, the keys of steps that ended, and the state; before a run
    began, nothing."""

    run: RunId | None = None
    rows: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])
    ids: frozenset[int] = frozenset()
    ended: frozenset[str] = frozenset()
    state: RunState | None = None


@dataclass
class Case:
    """One run over all its processes.

    Attributes:
        figures: what was counted.
        broken: what must not happen, in words.
    """

    folder: Path
    chance: random.Random
    figures: Counter[str] = field(default_factory=Counter[str])
    broken: list[str] = field(default_factory=list[str])
    told: dict[str, str] = field(default_factory=dict[str, str])

    def lines(self, name: str) -> list[list[str]]:
        """A ledger's lines, as words."""
        path = self.folder / name
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def look(self) -> Seen:
        """Reads the journal, and verifies it."""
        if not (self.folder / "state" / "journal.db").exists():
            return Seen()
        with closing(SqliteReader(self.folder / "state", SystemClock())) as reader:
            if not (runs := reader.runs()):
                return Seen()
            (run,) = runs
            self.broken += [f"the record is bad: {p}" for p in verify(reader, run).problems]
            rows: dict[str, list[bytes]] = {}
            ids: list[int] = []
            for id_, stream, _, link in reader.stored(run):
                rows.setdefault(stream, []).append(link)  # each covers all before it
                ids.append(id_)
            records = reader.read(run)
        ended = frozenset(
            idempotency_key(run, AgentName(r.stream), StepKey.parse(r.event.step))
            for r in records
            if isinstance(r.event, StepDone | StepFailed)
        )
        return Seen(run, rows, frozenset(ids), ended, fold_all(run, records))

    def live(self, before: Seen, number: int, *, to_the_end: bool) -> int | None:
        """One process; returns its exit code, None when it was killed."""
        what = ["resume", str(before.run)] if before.run else ["run", "../specs", "--workspace", "."]
        model = [] if before.run else ["--model", "scripted:../script.yaml"]
        command = [sys.executable, str(TOKA), "../model", *what, "--state", "../state", *model, "--json"]
        said = self.folder / f"said-{number}"
        with said.open("wb") as out, (self.folder / f"errors-{number}").open("wb") as errors:
            process = subprocess.Popen(command, cwd=self.folder / "work", stdout=out, stderr=errors)
        early = self.chance.random() < EARLY
        kill_s = WHOLE_S if to_the_end else self.chance.uniform(0.0, 0.5 if early else LATEST_S)
        if not to_the_end and not early:
            end = time.monotonic() + WHOLE_S
            while not said.stat().st_size and process.poll() is None and time.monotonic() < end:
                time.sleep(0.005)
        try:
            code: int | None = process.wait(kill_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
            if to_the_end:
                self.broken.append(f"process {number} did not end within {WHOLE_S:g} s")
        self.reap(number)
        return code

    def reap(self, number: int) -> None:
        """Waits for the end of all that a process left behind."""
        end = time.monotonic() + ORPHANS_S
        while time.monotonic() < end:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.005)
            except ChildProcessError:
                return
        self.broken.append(f"process {number} left others behind that did not end")
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)

    def compare(self, number: int, before: Seen, after: Seen, lines: int, calls: int) -> None:
        """Holds a process's life against every promise."""
        for stream, rows in before.rows.items():
            lost = len(rows) - sum(a == b for a, b in zip(rows, after.rows.get(stream, []), strict=False))
            self.figures["lost"] += lost
        for line in (self.folder / f"said-{number}").read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n") and isinstance(event := json.loads(line).get("id"), int):
                self.figures["acknowledged"] += 1
                self.figures["lost"] += event not in after.ids
        new = [*self.lines(f"work/{LEDGER}")[lines:], *self.lines("model")[calls:]]
        self.figures["repeated"] += sum(key in before.ended for key, *_ in new)
        for key, agent, what in self.lines("model")[calls:]:
            if self.told.setdefault(key, what) != what:
                self.broken.append(f"{agent} asked its model something else under the key {key}")

    def answer(self, seen: Seen) -> None:
        """Says for every step in doubt what the ledger knows of it."""
        if seen.run is None or seen.state is None:
            return
        settings = read_settings({"state": str(self.folder / "state")}, cwd=self.folder, environment={})
        keys = {key for key, *_ in self.lines(f"work/{LEDGER}")}
        for agent in seen.state.agents.values():
            for task in agent.tasks.values():
                if not task.question:
                    continue
                (step,) = task.in_flight
                happened = idempotency_key(seen.run, AgentName(agent.name), StepKey.parse(step)) in keys
                self.figures["doubts"] += 1
                answer = {"task": task.id, "answer": "happened" if happened else "not-happened"}
                asked = submit_command(
                    settings, seen.run, "resolve", by=("ada", "the ledger"), agent=agent.name, arguments=answer
                )
                asyncio.run(asked)

    def execute(self, kills: int) -> None:
        """Kills processes until `kills` are dead, then lets one go on to the end of the run."""
        seen, number = Seen(), 0
        while True:
            lines, calls = len(self.lines(f"work/{LEDGER}")), len(self.lines("model"))
            last = self.figures["kills"] >= kills
            code = self.live(seen, number, to_the_end=last)
            now = self.look()
            self.compare(number, seen, now, lines, calls)
            self.figures["kills"] += code is None
            seen, number = now, number + 1
            if code in (0, 1) or self.broken or number > kills + 20:
                break
            if code not in (None, 7):
                self.broken.append(f"exit {code}: {(self.folder / f'errors-{number - 1}').read_text()[-500:]}")
                break
            self.answer(seen)
        self.judge_end(seen)

    def judge_end(self, seen: Seen) -> None:
        """The end of the run, and all of its effects."""
        state = seen.state
        if state is None or state.status.value != "COMPLETED":
            self.broken.append(f"the run is {state.status.value if state else 'not there'}: {state and state.reason}")
        counts = Counter(map(tuple, self.lines(f"work/{LEDGER}")))
        keys: dict[tuple[str, str], set[str]] = {}
        for key, agent, what in counts:
            keys.setdefault((agent, what), set()).add(key)
        for (key, agent, what), count in counts.items():
            self.figures["same key"] += count - 1
            self.figures["once repeated"] += count - 1 if what in ONCE else 0
            if len(keys[agent, what]) > 1:
                self.broken.append(f"{agent} did {what} under several keys, such as {key}")
        for agent in state.agents if state else ():
            for what in EFFECTS[agent.split("-")[0]]:
                if (agent, what) not in keys:
                    self.broken.append(f"{agent} never did {what}")
            if agent.startswith("writer") and (self.folder / "work" / f"{agent}.txt").read_text() != "42\n":
                self.broken.append(f"{agent} left something else than 42")
        self.figures["model calls again"] += len(self.lines("model")) - len({k for k, *_ in self.lines("model")})
        self.figures["agents"] += len(state.agents) if state else 0


def main(folder: Path, seed: int, kills: int, agents: int) -> dict[str, Any]:
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    write(folder, agents // 3)
    case = Case(folder, random.Random(seed))
    case.execute(kills)
    return {"seed": seed, "figures": case.figures, "broken": case.broken}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
