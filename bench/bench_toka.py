"""What Toka costs beside loops written by hand, on this machine, now.

Figures of different machines cannot be compared, nor those of a busy and an idle minute. So everything is measured in
rounds (A B C, A B C ...), each time in a fresh process, and what counts is the median of the rounds' ratios.

    .venv/bin/python bench/bench_toka.py              # all of it, under four minutes
    .venv/bin/python bench/bench_toka.py --quick      # one small round, under 40 seconds
    .venv/bin/python bench/bench_toka.py --only cpu --rounds 5 --json figures.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

import machine
import schedule
import specs
from processes import HERE, Processes
from report import Experiment, Round, Row, absolute, judge, table

TOKA: Final = Path(sys.executable).with_name("toka")
GROUPS: Final = ("cpu", "wall", "memory", "start", "journal", "sandbox", "checkpoint", "schedule")
WRITERS: Final = 50
"""Streams that are appended to at one time when the journal is measured alone."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: of each comparison.
        tasks50, tasks500: tasks of one process at 50 and at 500 at a time.
        many: agents that wait for a slow model at one time.
        parked: agents that wait for ever while memory is read.
        specs: specs to validate.
        appends: to the journal.
        starts: how often a command is started.
        commands: in a sandbox and beside it.
        files: of a workspace of which checkpoints are taken.
        peers: whether the ways that are only shown, not judged, are measured everywhere.
        budget_s: after so many seconds no further comparison begins.
    """

    rounds: int
    tasks50: int
    tasks500: int
    many: int
    parked: int
    specs: int
    appends: int
    starts: int
    commands: int
    files: int
    peers: bool
    budget_s: float


FULL: Final = Size(3, 400, 1000, 1000, 1000, 1000, 20_000, 5, 200, 10_000, peers=True, budget_s=180.0)
QUICK: Final = Size(1, 200, 500, 500, 300, 200, 5_000, 2, 60, 10_000, peers=False, budget_s=30.0)
TINY: Final = Size(1, 10, 10, 10, 10, 10, 50, 1, 6, 100, peers=False, budget_s=100.0)


def experiments(size: Size) -> list[Experiment]:
    """All comparisons."""
    cpu = ("toka", "sdk", "direct", "aiohttp") if size.peers else ("toka", "sdk", "direct")
    wall = ("toka", "direct", "sdk", "aiohttp") if size.peers else ("toka", "direct")
    memory = ("toka", "sdk", "direct") if size.peers else ("toka", "sdk")
    return [
        Experiment("cpu50", "CPU per task, 50 at a time", cpu, "sdk", "cpu_ms", "ms", 1.3, size.tasks50, 50),
        Experiment("cpu500", "CPU per task, 500 at a time", cpu, "sdk", "cpu_ms", "ms", 0.8, size.tasks500, 500),
        Experiment(
            "wall",
            f"Wall time, {size.many} agents, 200 ms model",
            wall,
            "direct",
            "wall_s",
            "s",
            1.3,
            size.many,
            size.many,
            delay=0.2,
        ),
        Experiment(
            "memory",
            f"Memory per waiting agent, {size.parked} of them",
            memory,
            "sdk",
            "kb",
            "KiB",
            1.4,
            size.parked,
            size.parked,
            park=60.0,
        ),
    ]


def measure(processes: Processes, size: Size, groups: tuple[str, ...]) -> list[Row]:
    """Everything, in rounds over all comparisons; what comes after the budget is left out, and `problems` says so."""
    end = time.monotonic() + size.budget_s
    chosen = [e for e in experiments(size) if e.id.rstrip("0123456789") in groups]
    rounds: dict[str, list[Round]] = {e.id: [] for e in chosen}
    rows: list[Row] = []
    skipped = 0
    for number in range(size.rounds):
        for experiment in chosen:
            if time.monotonic() > end:
                skipped += 1
                continue
            _say(f"round {number + 1} of {size.rounds}: {experiment.title}")
            rounds[experiment.id].append(processes.round(experiment))
        parts = (
            ("start", start_up), ("journal", journal), ("sandbox", sandbox), ("checkpoint", checkpoint),
            ("schedule", scheduling),
        )  # fmt: skip
        for group, part in parts:
            if number == 0 and group in groups:
                if time.monotonic() > end:
                    skipped += 1
                    continue
                _say(group)
                rows += part(processes, size)
    if skipped:
        processes.problems.append(f"time ran out after {size.budget_s:g} s: {skipped} measurements were left out")
    return [judge(e, rounds[e.id]) for e in chosen] + rows


def start_up(processes: Processes, size: Size) -> list[Row]:
    """Commands as a person waits for them."""
    directory, toka = processes.directory, str(TOKA)
    team, one = directory / "team", directory / "hello.yaml"
    specs.write(team, size.specs)
    one.write_text(specs.ONE_RUN)
    run = [toka, "run", str(one), "--state", str(directory / "state"), "--quiet"]
    help_ms = processes.command([toka, "--help"], size.starts, "cpu", factor=1000)
    run_s = processes.command(run, size.starts, "wall")
    validate_s = processes.command([toka, "validate", str(team)], 1, "wall")
    return [
        absolute("help", "toka --help, CPU", "ms", help_ms, 150.0),
        absolute("run", "toka run, one task with `run:`", "s", run_s, 0.6),
        absolute("validate", f"toka validate, {size.specs} specs", "s", validate_s, 5.0),
    ]


def journal(processes: Processes, size: Size) -> list[Row]:
    """The journal alone, as fast as it can and in an open loop; many agents that rest, and that go on after a kill."""
    return [*_journal_alone(processes, size), *_recovery(processes, size)]


def _journal_alone(processes: Processes, size: Size) -> list[Row]:
    """Events a second through the journal and the fold, each append on disk before the next of its stream."""
    results = [r for _ in range(min(size.rounds, 2)) if (r := processes.load("journal", size.appends, WRITERS))]
    title = f"Journal alone, {WRITERS} streams"
    if not results:
        return [absolute("journal", title, "events/s", None, None)]
    rate = median(2 * size.appends / r["wall_s"] for r in results)
    cost = median(1000 * r["cpu_ms"] / 2 for r in results)
    row = absolute("journal", title, "events/s", rate, None)
    return [replace(row, note=f"{cost:.0f} us CPU per event, with fold")]


def _recovery(processes: Processes, size: Size) -> list[Row]:
    """What recovery.py measures; the bars are those of a thousand agents."""
    found, agents = processes.recovery(size.many), f"{size.many:,} agents"
    p95 = absolute("append_p95", f"Append, open loop of {agents}, p95", "ms", found.get("p95"), None)
    rate = f"p50 {found['p50']:.1f} ms, {found['rate']:,.0f} appends/s" if found else p95.note
    return [
        replace(p95, note=rate),
        absolute("resume", f"Resume of {agents} in flight", "s", found.get("resume"), 3.0),
        absolute("parked", f"Memory per paused agent, {size.many:,} of them", "KiB", found.get("parked"), 100.0),
    ]


def sandbox(processes: Processes, size: Size) -> list[Row]:
    """Commands and file reads in a sandbox beside plain processes, one after the other in one process."""
    found = processes.hands(size.commands)
    titles = {"true": ("/bin/true in a sandbox", 8.0), "python": ("python3 -c pass in a sandbox", 1.5)}
    rows: list[Row] = []
    for name, (title, bar) in titles.items():
        ratio = found.get("ratio " + name)
        beside = {"plain": round(found["plain " + name], 3)} if ratio else {}
        met = None if ratio is None else ratio <= bar
        value = round(found[name], 3) if ratio else None
        rows.append(Row(f"sandbox_{name}", title, "ms", value, beside, (round(ratio, 3),) if ratio else (), bar, met))
    return [
        *rows,
        absolute("sandbox_start", "Start of a sandbox", "ms", found.get("start"), 60.0),
        absolute("sandbox_memory", "Memory of an idle sandbox", "MiB", found.get("memory"), 8.0),
        absolute("sandbox_read", "Reading a file in a sandbox", "ms", found.get("read"), 1.0),
    ]


def checkpoint(processes: Processes, size: Size) -> list[Row]:
    """Checkpoints of a workspace, and going back to one, in a process of its own."""
    found = processes.checkpoints(size.files, 4 * size.starts)
    of = f"{size.files:,} files"
    return [
        absolute("checkpoint_first", f"First checkpoint of {of}", "ms", found.get("first"), None),
        absolute("checkpoint_unchanged", f"Checkpoint of {of}, none changed", "ms", found.get("unchanged"), 60.0),
        absolute("checkpoint_changed", f"Checkpoint of {of}, 10 changed", "ms", found.get("changed"), 60.0),
        absolute("checkpoint_restore", f"Going back, 10 of {of} changed", "ms", found.get("restore"), None),
        absolute("checkpoint_restore_all", f"Going back, all {of} gone", "ms", found.get("restore all"), None),
        absolute("checkpoint_store", f"Store of {of} after that", "MiB", found.get("store"), None),
    ]


def scheduling(processes: Processes, size: Size) -> list[Row]:  # noqa: ARG001 - as all parts
    """How long teams take beside the least that they can take; on a clock of their own, so in this process."""
    found = schedule.ratios(max(3, size.starts * 20))
    rows = (("p95", found[int(0.95 * len(found))]), ("most", found[-1]))
    title = f"{schedule.AGENTS} agents, makespan over its least"
    return [absolute(f"schedule_{name}", f"{title}, {name} of {len(found)}", "x", value, 1.1) for name, value in rows]


def conditions(directory: Path) -> list[str]:
    """What a reader must know to believe the figures."""
    cores = machine.cores()
    pinned = f"the measured process on one core, the model stub on another (of {cores})"
    if cores < 2:
        pinned = "ONE core: the stub takes its time from the measured process, so do not compare these figures"
    disk = machine.file_system(directory)
    told = f"journal on {disk or 'an unknown file system'}, synced at every commit"
    if disk in ("tmpfs", "ramfs"):
        told += " - IN MEMORY, where syncing costs nothing: choose a directory on a disk with --directory"
    return [
        f"Python {platform.python_version()} on {platform.system()}; {pinned}",
        told,
        "one task = two requests to a local model stub and one call of a tool; medians; start-up not counted",
    ]


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Measures and prints. Returns 1 when a bar is missed and --strict is given."""
    parser = argparse.ArgumentParser(description="What Toka costs beside loops written by hand.")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const=QUICK, default=FULL, help="one small round")
    size.add_argument("--tiny", dest="size", action="store_const", const=TINY, help="only to see that it works")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each comparison")
    parser.add_argument("--only", choices=GROUPS, action="append", help="repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--directory", type=Path, help="a directory on a disk for the journals; default: build")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a bar is missed")
    given = parser.parse_args()
    chosen: Size = given.size
    if given.rounds:
        longer = max(1.0, given.rounds / chosen.rounds)
        chosen = replace(chosen, rounds=given.rounds, budget_s=chosen.budget_s * longer)
    parent: Path = given.directory or HERE.parent / "build"
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    began = time.monotonic()
    try:
        processes = Processes(directory)
        told = conditions(directory)
        rows = measure(processes, chosen, tuple(given.only or GROUPS))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(*told, "", table(rows), "", f"{time.monotonic() - began:.0f} s", sep="\n")
    problems = list(dict.fromkeys(processes.problems))
    for problem in problems:
        print(f"problem: {problem}")
    if given.json:
        figures = {"conditions": told, "rows": [asdict(r) for r in rows], "problems": problems}
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(given.strict and any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
