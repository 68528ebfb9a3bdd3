"""A run with many instances that is killed goes on with the same ones: each works for its element, and once."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.events.flow import InstancesMade
from toka.events.fold import fold_all
from toka.journal.sqlite import SqliteReader

DRIVER = Path(__file__).with_name("fanout.py")
NEVER = 1_000_000


def lives(folder: Path, count: int, kills: Sequence[tuple[int, bool]]) -> int:
    """Runs the team, killed at these writes of one process after the other; returns how many died."""
    (folder / "work").mkdir(parents=True)
    for died, (at, before) in enumerate([*kills, (NEVER, False)]):
        command = [sys.executable, str(DRIVER), str(folder), str(count), str(at), str(int(before))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        if done.returncode == 0:
            return died
        assert done.returncode == -9, done.stderr[-3000:]
    raise AssertionError("nobody came to the end")


def judge(folder: Path, count: int, died: int) -> None:
    with closing(SqliteReader(folder / "state", SystemClock())) as reader:
        (run,) = reader.runs()
        records = reader.read(run)
        (made,) = [r.event for r in records if isinstance(r.event, InstancesMade)]
        items = [f"element {n:03}" for n in range(1, count + 1)]
        assert (made.items or reader.blob(made.blob)) and made.count == count
    state = fold_all(run, records)
    names = ["survey", "fix", "ship", *(f"fix[{n}]" for n in range(1, count + 1))]
    assert {a.name: a.status.value for a in state.agents.values()} == dict.fromkeys(names, "COMPLETED")
    assert (folder / "work/total").read_text() == f"{count} of {count}\n"
    log = Counter((folder / "work/log").read_text().splitlines())
    assert set(log) == {f"fix[{n}] {item}" for n, item in enumerate(items, 1)}, "each has its own element, always"
    assert sum(log.values()) <= count + 4 * died, "only what was in flight at a kill was done again"


@pytest.mark.slow
def test_two_hundred_instances_survive_kills(tmp_path: Path) -> None:
    kills = [(7, False), (3, True), (60, True), (101, False), (9, False), (240, True)]
    died = lives(tmp_path / "run", 200, kills)
    assert died == len(kills)
    judge(tmp_path / "run", 200, died)


@pytest.mark.slow
@pytest.mark.parametrize("at", [6, 7, 8, 9, 12, 20, 31, 33])
@pytest.mark.parametrize("before", [True, False])
def test_a_kill_anywhere_leads_to_the_same_end(tmp_path: Path, at: int, before: bool) -> None:
    died = lives(tmp_path / "run", 4, [(at, before)])
    judge(tmp_path / "run", 4, died)


@pytest.mark.torture("R2", "many instances, killed twice at every write: each works for its element")
def test_two_kills_at_every_write(tmp_path: Path) -> None:
    chance = random.Random(7)
    for at in range(3, 60):
        for before in (True, False):
            folder = tmp_path / f"{at}-{before}"
            died = lives(folder, 4, [(at, before), (chance.randrange(3, 40), before)])
            judge(folder, 4, died)
