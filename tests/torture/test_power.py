"""R12: the power goes at any moment of a run. What the disk then holds is known from a trace of all writes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from toka.core.clock import SystemClock
from toka.events.event import StepDone, StepFailed, StepIntent
from toka.journal.audit import verify
from toka.journal.sqlite import SqliteReader
from torture.crowd import write
from torture.power import DAMAGES, LOG, STRACE, Act, Disk, Sync, Told, Write, damaged, read

TOKA = Path(__file__).with_name("counted_toka.py")
pytestmark = pytest.mark.skipif(
    not (shutil.which("strace") and shutil.which("bwrap")), reason="no strace: apt-get install strace"
)


@dataclass(frozen=True)
class Recorded:
    """What a journal holds: the ids of its records, and the keys of the steps that it knows of."""

    ids: frozenset[int] = frozenset()
    keys: frozenset[str] = frozenset()


def look(folder: Path, files: dict[str, bytes]) -> Recorded:
    """Opens what a disk holds after the power went, as the next process does: it must be sound."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, content in files.items():
        if content:
            (folder / name).write_bytes(content)
    with closing(SqliteReader(folder, SystemClock())) as reader:
        if not (runs := reader.runs()):
            return Recorded()
        assert verify(reader, runs[0]).problems == ()
        records = reader.read(runs[0])
    ids = [record.id for record in records]
    assert ids == list(range(1, len(ids) + 1)), "a record is missing in the middle"
    keys = {r.event.step: r.event.key for r in records if isinstance(r.event, StepIntent)}
    ended = {r.event.step for r in records if isinstance(r.event, StepDone | StepFailed)}
    assert ended <= set(keys), "a step has ended that nobody meant to begin"
    return Recorded(frozenset(ids), frozenset(r.event.key for r in records if isinstance(r.event, StepIntent)))


def traced(folder: Path, kinds: int) -> Path:
    """Traces the run of a crowd to its end."""
    write(folder, kinds)
    toka = [sys.executable, str(TOKA), "../model", "run", "../specs", "--workspace", ".", "--state", "../state"]
    toka += ["--model", "scripted:../script.yaml", "--json"]
    with (folder / "said").open("wb") as out:
        done = subprocess.run(
            [*STRACE, "-o", "../trace", *toka], cwd=folder / "work", stdout=out, stderr=subprocess.PIPE, timeout=100
        )
    if b"PTRACE" in done.stderr:
        pytest.skip("this system lets nobody trace a process")
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return folder / "trace"


def power_goes(folder: Path, trace: Path, counted: dict[str, Any], chance: random.Random, share: float) -> None:
    """Goes through a trace. `share`: of the moments between two syncs at which torn writes are looked at, how many."""
    disk, sure, highest = Disk(), Recorded(), 0
    started = False
    figures = dict.fromkeys(("syncs", "acts", "told", "torn writes", "lost", "acts without intent"), 0)
    for event in read(trace):
        match event:
            case Write(file):
                started = started or file == LOG
                disk.since.append(event)
                if started and chance.random() < share:
                    for damage in DAMAGES:
                        figures["torn writes"] += 1
                        found = look(folder, damaged(disk, damage))
                        figures["lost"] += len(sure.ids - found.ids)
            case Sync(file):
                figures["syncs"] += 1
                disk.sync(file)
                if started:
                    sure = look(folder, disk.with_writes([]))
                    assert max(sure.ids, default=0) >= highest, "what was on the disk is gone"
                    highest = max(sure.ids, default=0)
            case Act(key):
                figures["acts"] += 1
                figures["acts without intent"] += key not in sure.keys
            case Told(id_):
                figures["told"] += 1
                figures["lost"] += id_ not in sure.ids
    counted.update(figures)
    assert figures["lost"] == 0, "what was acknowledged was not on the disk"
    assert figures["acts without intent"] == 0, "an act was begun whose intent was not on the disk"


def log_is_cut(folder: Path, trace: Path, counted: dict[str, Any], step: int) -> None:
    """The longest log that there was is cut at every `step`th byte and spoilt there: what comes before it stays."""
    disk, longest, base = Disk(), b"", b""
    for event in read(trace):
        if isinstance(event, Write):
            disk.since.append(event)
        elif isinstance(event, Sync):
            disk.sync(event.file)
            if len(disk.sure[LOG]) > len(longest):  # later the database may hold some of it already
                longest, base = bytes(disk.sure[LOG]), bytes(disk.sure["journal.db"])
    last: frozenset[int] = frozenset()
    cuts = range(0, len(longest), step)
    for cut in cuts:
        kept = look(folder, {"journal.db": base, LOG: longest[:cut]}).ids
        assert last <= kept, "a longer log holds less"
        spoilt = longest[:cut] + bytes((b + 1) & 0xFF for b in longest[cut : cut + 512]) + longest[cut + 512 :]
        assert look(folder, {"journal.db": base, LOG: spoilt}).ids == kept, "what comes before the cut, no more"
        last = kept
    counted["cuts"] = 2 * len(cuts)
    assert len(last) > 50, "the last cut leaves nearly all"


@pytest.mark.slow
def test_what_was_told_or_done_is_on_the_disk_whenever_the_power_goes(
    tmp_path: Path, seed: int, counted: dict[str, Any]
) -> None:
    trace = traced(tmp_path / "run", 1)
    power_goes(tmp_path / "disk", trace, counted, random.Random(seed), 0.03)
    assert counted["acts"] > 15 and counted["told"] > 80 and counted["syncs"] > 40 and counted["torn writes"] > 50
    log_is_cut(tmp_path / "disk", trace, counted, 31_013)


@pytest.mark.torture("R12", "synced before each act and word; torn writes and cuts leave a sound record")
def test_the_power_goes_at_every_write(tmp_path: Path, seed: int, counted: dict[str, Any]) -> None:
    power_goes(tmp_path / "disk", traced(tmp_path / "large", 8), counted, random.Random(seed), 0.02)
    large = dict(counted)
    trace = traced(tmp_path / "small", 1)
    power_goes(tmp_path / "disk", trace, counted, random.Random(seed), 1.0)
    for name in ("syncs", "acts", "told", "torn writes"):
        counted[name] += large[name]
    assert counted["torn writes"] > 2000
    log_is_cut(tmp_path / "disk", trace, counted, 515)
