"""A killed run goes on where it stopped: R2, at every write of a small run, and once more after that.

The processes are real and die by SIGKILL; `survival.py` runs them and says what is left. Effects are counted in files
that only the commands and the model write.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, eventually
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import JournalError, RunBusy, UsageError
from toka.journal.sqlite import SqliteJournal
from toka.orchestration.engine import OrchestrationEngine

DRIVER = Path(__file__).with_name("survival.py")
Case = list[tuple[int, bool]]
Outcome = dict[str, Any]


def survived(folder: Path, cases: list[Case]) -> list[Outcome]:
    folder.mkdir()
    text = "".join(json.dumps(case) + "\n" for case in cases)
    done = subprocess.run([sys.executable, str(DRIVER), str(folder)], input=text, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    outcomes = [json.loads(line) for line in (folder / "results").read_text().splitlines()]
    assert len(outcomes) == len(cases)
    return outcomes


def judge(outcome: Outcome, whole: dict[str, Any], writes: int) -> None:
    """Every promise about one case; `whole` is how the run ends when nobody kills it."""
    lives = outcome["lives"]
    last = lives[-1]
    assert last["signal"] == 0, "the last process was not to die"
    assert last["exit"] == 0
    doubtful = {f["agent"] for life in lives[:-1] for f in life["after"]["flying"] if f["effect"] == "once"}
    expected = dict(whole)
    if doubtful:
        assert doubtful == {"builder"}, "only the task without a declared effect may wait for a person"
        expected = {
            **whole,
            "status": "WAITING",
            "agents": {"builder": "WAITING", "fixer": "COMPLETED"},
            "tasks": {**whole["tasks"], "builder/publish": "NEEDS_ATTENTION"},
            "reports": {**whole["reports"], "builder/publish": None},
        }
    assert {k: last["after"][k] for k in expected} == expected
    assert outcome["files"] == {"answer.txt": "42\n", "note.txt": "was 40\n"}
    publish, prepare = outcome["effects"]["publish"], outcome["effects"]["prepare"]
    assert len(publish) <= 1 if doubtful else len(publish) == 1, "what must happen once happened again"
    assert 1 <= len(prepare) <= len(lives) and len(set(prepare)) == 1, "a repeat must carry the same key"
    paid: set[str] = set()
    asked: Counter[str] = Counter()
    for life in lives:
        assert not paid & set(life["asked"]), "a recorded answer was bought again"
        paid |= set(life["after"]["paid"])
        asked.update(life["asked"])
    assert paid == set(asked) and len(paid) == 5
    assert all(count <= len(lives) for count in asked.values())
    assert last["ended"][1] <= writes + 6, "going on costs no more than taking over and the steps that were in flight"


def whole_run(folder: Path) -> tuple[dict[str, Any], int]:
    """The end of a run that nobody kills, and how many writes it takes."""
    (outcome,) = survived(folder, [[]])
    (life,) = outcome["lives"]
    after = life["after"]
    whole = {k: after[k] for k in ("status", "agents", "tasks", "reports", "objectives")}
    assert whole["status"] == "COMPLETED" and whole["objectives"] == {"fixer/1": ["verified", 1]}
    return whole, life["ended"][1]


@pytest.mark.slow
def test_killed_at_any_write_a_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, writes = whole_run(tmp_path / "whole")
    assert writes > 40
    cases = [[(at, before)] for at in range(1, writes + 1) for before in (True, False)]
    outcomes = survived(tmp_path / "killed", cases)
    doubtful = 0
    for outcome in outcomes:
        (kill,) = outcome["kills"]
        lives = outcome["lives"]
        assert lives[0]["signal"] == 9, f"the process of {kill} did not die"
        if lives[0]["after"]["run"] is None:
            assert kill == [1, True], "only a run whose first write is missing has not begun"
        elif lives[0]["after"]["status"] == "COMPLETED":
            assert kill == [writes, False], "the last write ends the run; there is nothing left to do"
        else:
            assert len(lives) == 2, f"the run of {kill} was not resumed"
            judge(outcome, whole, writes)
            doubtful += lives[1]["after"]["status"] == "WAITING"
    assert 1 <= doubtful <= 30, "the step in flight was `once` at some of the kills, and at most not"


@pytest.mark.torture
def test_killed_twice_at_any_writes_a_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, writes = whole_run(tmp_path / "whole")
    cases: list[Case] = [
        [(at, before), (again, after)]
        for at in range(2, writes, 2)
        for again in range(1, writes - at + 6, 3)
        for before in (True, False)
        for after in (True, False)
    ]
    judged = 0
    for outcome in survived(tmp_path / "killed", cases):
        if outcome["lives"][0]["after"]["status"] != "COMPLETED" and outcome["lives"][-1]["signal"] == 0:
            judge(outcome, whole, writes)
            judged += 1
    assert judged, "no case came to a second kill"


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
        "asyncio.run(team.run(agent(tasks=[{'run': line}], grant=['filesystem-write'])))\n"
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
