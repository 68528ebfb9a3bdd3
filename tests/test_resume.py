"""A killed run goes on where it stopped: R2, at every write of a small run, and once more after that.

The processes are real and die by SIGKILL; `survival.py` runs them and says what is left. Effects are counted in files
that only the commands and the model write.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, eventually, survived
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import JournalError, RunBusy, UsageError
from toka.journal.sqlite import SqliteJournal
from toka.orchestration.engine import OrchestrationEngine
from toka.runtime.payload import INLINE_BYTES

DRIVER = Path(__file__).with_name("survival.py")
Case = list[tuple[int, bool]]
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """A run that nobody kills: how it ends, how many writes it takes, and which of them begins and ends it."""

    end: dict[str, Any]
    writes: int
    began: int
    ended: int

    def begins(self, at: int, before: bool) -> bool:
        """Whether a run whose process dies there has begun: its launch is recorded."""
        return at > self.began or (at == self.began and not before)


def whole_run(folder: Path) -> Whole:
    (outcome,) = survived(DRIVER, folder, [[]])
    (life,) = outcome["lives"]
    after, ended = life["after"], life["ended"]
    end = {k: after[k] for k in ("status", "agents", "tasks", "reports", "objectives", "apart")}
    assert end["status"] == "STOPPED", "somebody stops one of its agents"
    assert end["agents"] == {"builder": "COMPLETED", "fixer": "COMPLETED", "sitter": "STOPPED"}
    assert end["objectives"] == {"fixer/1": ["verified", 1]}
    assert set(end["apart"]) == {"builder/prepare/1/1/run/0", "fixer/fix/1/1/tool/1"}
    assert all(size > INLINE_BYTES for size, _ in end["apart"].values())
    assert ended["exit"] == 8 and 1 < ended["began"] < ended["ended"] < ended["writes"]
    return Whole(end, ended["writes"], ended["began"], ended["ended"])


def judge(outcome: Outcome, whole: Whole) -> str:
    """Every promise about one case. Returns how it ended: "nothing", "ended", "resumed", "doubtful" or "lived".

    How many events a write takes along depends on how busy the machine is, so a run may have a write less or more.
    """
    lives, refused = outcome["lives"], outcome["refused"]
    at, before = outcome["kills"][0]
    if lives[0]["ended"]:
        assert at > lives[0]["ended"]["writes"] and len(lives) == 1
        assert {k: lives[0]["after"][k] for k in whole.end} == whole.end
        return "lived"
    assert lives[0]["signal"] == 9, "the first process did not die"
    begun = lives[0]["after"]["run"] is not None
    assert begun == whole.begins(at, before), "a run has begun when its launch is recorded, and not before"
    if not begun:
        assert len(lives) == 1 and not lives[0]["asked"]
        assert outcome["files"] == {"answer.txt": "40\n"} and not any(outcome["effects"].values()), "nothing was done"
        assert refused["last"] == "no runs are recorded here // start one: toka run SPEC, or toka demo"
        leased = at > 1 or not before
        known = "JournalError: run {} has no first record // it was killed before it began; start it again"
        assert (refused["resume"] is not None) == leased
        assert not leased or re.fullmatch(known.format(r"[\w-]+"), refused["resume"])
        return "nothing"
    last = lives[-1]
    marks = lives[0]["marks"]
    over = marks == ["ending", "ended"] or (marks == ["ending"] and not before)
    assert (lives[0]["after"]["status"] == whole.end["status"]) == over
    if refused is not None:  # a killed process had ended it already
        assert last["signal"] == 9 and refused["last"] == last["after"]["run"]
        assert f" has ended: {whole.end['status']} // " in refused["resume"]
    else:
        assert (last["signal"], last["exit"]) == (0, 0), "the last process was not to die"
    doubtful = judge_end(outcome, whole)
    judge_calls(lives)
    return "doubtful" if doubtful else "ended" if refused is not None else "resumed"


def judge_end(outcome: Outcome, whole: Whole) -> bool:
    """The run's end and its effects. Returns whether it waits for a person."""
    lives = outcome["lives"]
    last = lives[-1]
    doubtful = {f["agent"] for life in lives[:-1] for f in life["after"]["flying"] if f["effect"] == "once"}
    expected = whole.end
    if doubtful:
        assert doubtful == {"builder"}, "only the task without a declared effect may wait for a person"
        expected = {
            **whole.end,
            "status": "WAITING",
            "agents": {**whole.end["agents"], "builder": "WAITING"},
            "tasks": {**whole.end["tasks"], "builder/publish": "NEEDS_ATTENTION"},
            "reports": {**whole.end["reports"], "builder/publish": None},
        }
    assert {k: last["after"][k] for k in expected} == expected
    assert outcome["files"] == {"answer.txt": "42\n", "note.txt": "was 40\n"}
    publish, prepare = outcome["effects"]["publish"], outcome["effects"]["prepare"]
    assert len(outcome["effects"]["extend"]) == 1, "what was cut off was not put back before it ran again"
    assert len(publish) <= 1 if doubtful else len(publish) == 1, "what must happen once happened again"
    assert 1 <= len(prepare) <= len(lives) and len(set(prepare)) == 1, "a repeat must carry the same key"
    if last["ended"]:
        assert last["ended"]["writes"] <= whole.writes + 6, "going on costs taking over and what was in flight, no more"
    return bool(doubtful)


def judge_calls(lives: list[dict[str, Any]]) -> None:
    """No answer was bought twice, and who asked again asked the same."""
    paid: set[str] = set()
    told: dict[str, str] = {}
    asked: Counter[str] = Counter()
    for life in lives:
        calls = [call.split(":") for call in life["asked"]]
        assert not paid & {key for key, _ in calls}, "a recorded answer was bought again"
        assert all(told.setdefault(key, messages) == messages for key, messages in calls), "the transcript changed"
        paid |= set(life["after"]["paid"])
        asked.update(key for key, _ in calls)
    assert paid == set(asked) and len(paid) == 5
    assert all(count <= len(lives) for count in asked.values())


@pytest.mark.slow
def test_killed_at_any_write_a_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = whole_run(tmp_path / "whole")
    cases = [[(at, before)] for at in range(1, whole.writes + 1) for before in (True, False)]
    ends = Counter(judge(outcome, whole) for outcome in survived(DRIVER, tmp_path / "killed", cases))
    assert ends["nothing"] == 2 * whole.began - 1, "all before the launch"
    assert ends["ended"] + ends["lived"] <= 2 * (whole.writes - whole.ended) + 7, "all from the end on"
    assert ends["ended"], "some were killed after the end"
    assert 1 <= ends["doubtful"] <= 30, "the step in flight was `once` at some of the kills, and at most not"
    assert ends.total() == len(cases)


@pytest.mark.torture("R2", "killed at every write, and at every other after that: the same end, or a person is asked")
def test_killed_twice_at_any_writes_a_run_ends_as_if_it_had_not_been(tmp_path: Path, counted: dict[str, Any]) -> None:
    whole = whole_run(tmp_path / "whole")
    cases: list[Case] = [
        [(at, before), (again, after)]
        for at in range(whole.began + 1, whole.ended, 2)
        for again in range(1, whole.writes - at + 6, 3)
        for before in (True, False)
        for after in (True, False)
    ]
    outcomes = survived(DRIVER, tmp_path / "killed", cases)
    ends = Counter(judge(outcome, whole) for outcome in outcomes)
    repeats = [effects["prepare"] for effects in (outcome["effects"] for outcome in outcomes)]
    counted["kills"] = sum(life["signal"] == 9 for outcome in outcomes for life in outcome["lives"])
    counted["same key"] = sum(len(lines) - 1 for lines in repeats if lines)
    counted.update(ends)
    assert ends["resumed"] and ends["doubtful"] and ends["ended"] and not ends["nothing"]


async def test_a_finished_run_cannot_be_resumed(team: Team) -> None:
    result = await team.run(agent())
    async with team.open() as runtime:
        with pytest.raises(UsageError, match=f"run {result.run} has ended: COMPLETED"):
            await OrchestrationEngine(runtime).resume(result.run)
        assert (lease := runtime.journal.lease(result.run)) is None or not lease.alive, "the refusal keeps no lease"


async def test_a_run_that_was_never_begun_says_so(team: Team) -> None:
    async with team.open() as runtime:
        for _ in range(2):
            with pytest.raises(JournalError, match="has no first record") as error:
                await OrchestrationEngine(runtime).resume(RunId("20300101-000000-aaaaaa"))
            assert error.value.hint and "start it again" in error.value.hint
        assert runtime.journal.runs() == []


async def test_a_run_that_a_live_process_executes_cannot_be_resumed(team: Team) -> None:
    async with team.open() as runtime:
        session = await team.start(runtime, agent())
        async with team.open() as other:
            with pytest.raises(RunBusy, match=f"executed by process {os.getpid()} on "):
                await OrchestrationEngine(other).resume(session.context.id)
        assert (await session.run()).exit_code == 0


async def test_a_journal_that_cannot_be_understood_keeps_no_lease(team: Team) -> None:
    async with team.open() as runtime:
        session = await team.start(runtime, agent())
        await session.context.recorder.close()
        writer = SqliteJournal(team.folder / "state", SystemClock())
        writer._writer._connection.execute("UPDATE events SET body='{}'")
        await writer.aclose()
        for _ in range(2):
            with pytest.raises(JournalError, match="is not a stored event"):
                await OrchestrationEngine(runtime).resume(session.context.id)


@pytest.mark.slow
async def test_a_process_killed_during_a_command_leaves_no_process(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from harness import Team, agent\n"
        "team = Team(Path(sys.argv[1]))\n"
        "line = 'setsid sleep 4242.4242 & echo $TOKA_RUN > started; sleep 4242.4242'\n"
        "asyncio.run(team.run(agent(tasks=[{'run': line, 'effect': 'once'}], grant=['filesystem-write'])))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=DRIVER.parent)
    started = tmp_path / "work" / "started"
    try:
        await eventually(lambda: started.exists() and started.read_text(), "the command's start")
        await eventually(lambda: len(sleeping()) >= 2, "both sleepers")
    finally:
        process.kill()
        process.wait()
    await eventually(lambda: not sleeping(), "the death of all that the command started")
    team = Team(tmp_path)
    async with team.open() as runtime:
        (run,) = runtime.journal.runs()
        session = await team.resume(runtime, run)
        result = await session.run()
        assert result.exit_code == 7 and result.state.agents["one"].tasks["task-1"].question
        await session.context.recorder.close()


def sleeping() -> list[str]:
    """The sleepers that this test started, wherever they ended up."""
    found: list[str] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if (
                    b"4242.4242" in (folder / "cmdline").read_bytes()
                    and b"sleep\0" in (folder / "cmdline").read_bytes()
                ):
                    found.append(folder.name)
            except OSError:
                continue
    return found
