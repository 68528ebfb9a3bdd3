"""`toka show RUN --resources`: what each command used, from the record."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cli.records import Recorded, Toka, write_run
from toka.cli.resources import Use, resource_lines, total_of, uses_of
from toka.core.ids import RunId
from toka.errors import NotFound
from toka.events.event import RunCreated, RunStateChanged, StepDone, StepFailed, StepIntent, StepLeft
from toka.events.record import Record
from toka.sandbox.cgroup_find import Hierarchies

needs_bwrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
BY_CGROUP = bool(Hierarchies.find().places.get("memory"))
"""Whether the kernel kills what takes too much memory; else it gets none, and no limit is told."""
RUN = "20261101-101010-abcdef"
MIB = 1 << 20
BEGUN = [RunCreated(["one"], "0" * 64, "/w"), RunStateChanged("RUNNING")]
SPEC = """
metadata: {name: one}
spec: {name: One}
tasks:
  - {id: spin, description: spin, run: "python3 -c 'import time\\nt=time.process_time\\nwhile t()<0.6: pass'"}
  - {id: hold, description: hold, run: "python3 -c 'x=bytearray(40<<20)'; yes 0123456789 | head -c 200000"}
  - {id: write, description: write, run: "dd if=/dev/zero of=big bs=1M count=20 conv=fsync status=none"}
  - {id: hog, description: hog, run: "python3 -c 'x=bytearray(400<<20); print(len(x))'"}
security:
  capabilities_required: [filesystem-write]
  resource_limits: {max_memory: 128MB, max_cpu: 50%}
"""


@pytest.fixture(scope="module")
def hungry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with one real run: it spins, holds memory, writes, and meets its limit of memory."""
    return tmp_path_factory.mktemp("hungry")


def started(toka: Toka, folder: Path) -> Path:
    if not (folder / "state").exists():
        (folder / "one.yaml").write_text(SPEC)
        (folder / "ws").mkdir()
        toka("run", folder / "one.yaml", "--workspace", folder / "ws", "--state", folder / "state")
    return folder / "state"


@needs_bwrap
def test_each_command_is_told_with_what_it_used(toka: Toka, hungry: Path) -> None:
    state = started(toka, hungry)
    shown = toka("show", "@last", "--resources", "--json", "--state", state).json
    assert shown["type"] == "resources"
    spin, hold, write, hog = shown["agents"]["one"]["steps"]
    assert [s["step"] for s in (spin, hold, write, hog)] == [
        f"{task}/1/1/run/0" for task in ("spin", "hold", "write", "hog")
    ]
    assert 0.5 < spin["cpu_s"] < 2
    if spin["throttled_s"] is not None:
        assert spin["wall_s"] > 0.9, "at half a core"
    assert hold["memory_peak_bytes"] > 40 * MIB
    if write["written_bytes"] is not None:  # a machine may keep it to itself
        assert 20 * MIB <= write["written_bytes"] < 40 * MIB
    if BY_CGROUP:
        assert hog["exceeded"]["kind"] == "memory"
        assert (hog["exceeded"]["limit"], hog["exceeded"]["unit"]) == (128 * MIB, "bytes")
    total = shown["agents"]["one"]["total"]
    assert total["cpu_s"] == pytest.approx(sum(s["cpu_s"] for s in (spin, hold, write, hog)), abs=0.01)
    assert total["memory_peak_bytes"] == max(s["memory_peak_bytes"] for s in (spin, hold, write, hog))
    assert total["limits_met"] == int(BY_CGROUP)


@needs_bwrap
def test_as_text_it_is_a_table_for_each_agent(toka: Toka, hungry: Path) -> None:
    state = started(toka, hungry)
    head, blank, name, titles, *rows = toka("show", "@last", "--resources", "--state", state).lines
    assert (head.endswith(": 4 commands"), blank, name) == (True, "", "one")
    assert titles.split() == ["STEP", "WHAT", "WALL", "CPU", "THROTTLED", "PEAK", "READ", "WRITTEN", "UP", "DOWN",
                              "LIMIT", "MET"]  # fmt: skip
    assert [row.split()[0] for row in rows] == [f"{t}/1/1/run/0" for t in ("spin", "hold", "write", "hog")] + [
        "together"
    ]
    if BY_CGROUP:
        assert "memory 128MB" in rows[3]
        assert rows[-1].endswith("1 time")
    assert toka("show", "@last", "one", "--resources", "--state", state).lines[2:] == [name, titles, *rows]


@needs_bwrap
def test_how_limits_were_held_stands_with_the_run(toka: Toka, hungry: Path) -> None:
    text = toka("show", "@last", "--state", started(toka, hungry)).out
    assert "  sandbox  self-test passed as user id " in text
    assert "  sandbox  limits: " in text or "  sandbox  best effort: " in text


def test_a_run_whose_steps_used_nothing_says_so(toka: Toka, tmp_path: Path) -> None:
    steps = [StepIntent("t/1/1/model/0", "k", "pure", "m"), StepDone("t/1/1/model/0", {"say": "hi"}, [1, 1, 0, 0, 1])]
    write_run(tmp_path, RUN, [("", BEGUN), ("one", steps)])
    done = toka("show", "@last", "--resources", "--state", tmp_path)
    assert (done.code, done.lines) == (0, [f"run {RUN}: no step ran a program"])
    assert toka("show", "@last", "--resources", "--json", "--state", tmp_path).json == {
        "type": "resources", "run_id": RUN, "agents": {},
    }  # fmt: skip


def test_unknown_runs_and_agents_are_not_found(toka: Toka, tmp_path: Path) -> None:
    assert toka("show", "@last", "--resources", "--state", tmp_path).code == 9
    write_run(tmp_path, RUN, [("", BEGUN)])
    assert toka("show", "20200101-000000-nobody", "--resources", "--state", tmp_path).code == 9
    assert toka("show", "@last", "nobody", "--resources", "--state", tmp_path).code == 9


def test_an_ended_team_is_shown_agent_by_agent(toka: Toka, recorded: Recorded) -> None:
    shown = toka("show", "@last", "--resources", "--json", "--state", recorded.state).json
    assert set(shown["agents"]) == {"one", "two"}, "the third was skipped"
    only = toka("show", "@last", "two", "--resources", "--json", "--state", recorded.state).json
    assert only["agents"] == {"two": shown["agents"]["two"]}


@needs_bwrap
def test_the_figures_outlive_a_large_result_that_is_lost(toka: Toka, hungry: Path, tmp_path: Path) -> None:
    state = tmp_path / "copy"
    shutil.copytree(started(toka, hungry), state)
    with sqlite3.connect(state / "journal.db") as db:
        kept = db.execute("SELECT count(*) FROM blobs").fetchone()[0]
        db.execute("DELETE FROM blobs")
    db.close()
    assert kept > 1, "200 kB of output are kept beside the record"
    steps = toka("show", "@last", "--resources", "--json", "--state", state).json["agents"]["one"]["steps"]
    assert [s["step"].partition("/")[0] for s in steps] == ["spin", "hold", "write", "hog"]
    assert steps[1]["memory_peak_bytes"] > 40 * MIB


# ---- single records


def used(*events: Any, blobs: dict[str, bytes] | None = None) -> tuple[Use, ...]:
    def load(digest: str) -> bytes:
        if blobs is None or digest not in blobs:
            raise NotFound(f"no blob {digest}")
        return blobs[digest]

    return uses_of([Record(n, RunId(RUN), "one", n, 1, 0.0, event) for n, event in enumerate(events, 1)], load)


FIGURES: dict[str, Any] = {
    "cpu_s": 1.5, "throttled_s": 0.5, "memory_peak_bytes": 3 * MIB, "read_bytes": 1, "written_bytes": 2048,
    "network_up": 700, "network_down": 5 * MIB,
}  # fmt: skip


def test_a_tool_is_told_with_its_command() -> None:
    (use,) = used(
        StepIntent("t/1/1/tool/0", "k", "once", "run_command", arguments={"command": "make all"}),
        StepDone("t/1/1/tool/0", {"text": "x", "data": FIGURES}, wall_s=2.0),
    )
    assert use == Use("one", "t/1/1/tool/0", "run_command make all", 2.0, **FIGURES)
    line = resource_lines(RUN, [use])[4].split()
    assert line[-8:] == ["2.0s", "1.5s", "0.5s", "3.0MB", "1B", "2.0KB", "700B", "5.0MB"]


def test_results_in_blobs_are_read_and_what_is_none_is_left_out() -> None:
    done = StepDone("t/1/1/tool/0", {"blob": "d"}, wall_s=1.0)
    assert used(done, blobs={"d": json.dumps({"data": FIGURES}).encode()})[0].cpu_s == 1.5
    assert used(done, blobs={"d": b"[1]"}) == used(done, blobs={"d": b"\xff"}) == used(done) == ()
    assert used(StepDone("t/1/1/tool/0", "text"), StepDone("t/1/1/tool/1", None)) == ()


def test_figures_of_a_step_stand_with_its_end_and_go_before_those_in_its_result() -> None:
    forged = {"text": "x", "data": {"cpu_s": 99.0}}
    (use,) = used(StepDone("t/1/1/tool/0", forged, wall_s=1.0, resources=FIGURES))
    assert use.cpu_s == 1.5
    time = {"scope": "time of task t", "limit": 1.0, "used": 1.0, "unit": "seconds"}
    killed = {**FIGURES, "at_least": ["cpu_s", "written_bytes"]}
    (use,) = used(StepFailed("t/1/1/tool/0", "timeout", "timed out", wall_s=1.0, limit=time, resources=killed))
    assert (use.wall_s, use.exceeded) == (1.0, {"kind": "time", "limit": 1.0, "used": 1.0, "unit": "seconds"})
    line = resource_lines(RUN, [use])[4].split()
    assert line[-11:] == ["1.0s", "1.5s+", "0.5s", "3.0MB", "1B", "2.0KB+", "700B", "5.0MB", "time", "1", "seconds"]
    assert used(StepFailed("t/1/1/model/0", "timeout", "timed out", wall_s=1.0, limit=time)) == ()
    assert used(StepLeft("t/1/1/run/0", 2.0, FIGURES))[0].cpu_s == 1.5


def test_where_nothing_counts_the_whole_sandbox_the_largest_process_stands_in() -> None:
    (use,) = used(StepDone("t/1/1/run/0", {"cpu_s": 0.1, "max_rss_bytes": 7}))
    assert (use.memory_peak_bytes, use.throttled_s) == (7, None)


def test_together_is_a_sum_and_for_memory_the_highest() -> None:
    one = Use("a", "s", "w", 1.0, 0.5, None, 10, read_bytes=3, at_least=("cpu_s",))
    two = Use(
        "a", "s", "w", 2.0, None, None, 30, exceeded={"kind": "time", "limit": 2.5, "used": 2.5, "unit": "seconds"}
    )
    assert total_of([one, two]) == {
        "wall_s": 3.0, "cpu_s": 0.5, "throttled_s": None, "read_bytes": 3, "written_bytes": None, "network_up": None,
        "network_down": None, "memory_peak_bytes": 30, "limits_met": 1,
        "at_least": ("cpu_s",),
    }  # fmt: skip
    assert resource_lines(RUN, [two])[4].endswith("time 2.5 seconds")
    crowd = Use("a", "s", "w", 2.0, exceeded={"kind": "processes", "limit": 30, "used": 30, "unit": "processes"})
    assert resource_lines(RUN, [crowd])[4].endswith("  processes 30")
    old = Use("a", "s", "w", 2.0, exceeded={"kind": "memory", "limit": 64 * MIB, "used": 64 * MIB})
    assert resource_lines(RUN, [old])[4].endswith("memory 64MB")


def test_a_command_cannot_drive_the_terminal() -> None:
    (use,) = used(
        StepIntent("t/1/1/run/0", "k", "once", "printf '\x1b[2J'\nrm"), StepDone("t/1/1/run/0", {"cpu_s": 0.1})
    )
    text = "\n".join(resource_lines("\x1b]0;x\x07", [use]))
    assert "\x1b" not in text
