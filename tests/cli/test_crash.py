"""`toka crash-test`: real processes, real SIGKILL; what it finds, and what it must not let pass."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.records import Ran
from cli.test_steer import until
from toka.cli.crash import result_line
from toka.cli.crash_case import Outcome, Whole, judge, places
from toka.cli.crash_left import Left, differences
from toka.events.lifecycle import RunStatus

TEAM = """
toka: 1
agents:
  builder:
    tasks:
      - {id: prepare, run: 'seq 10 > out.txt', effect: idempotent}
      - {id: publish, run: 'echo hi >> published.txt', effect: once}
    grants: {write: [.]}
  fixer:
    needs: [builder]
    tasks: [{id: fix, description: Fix it.}]
    grants: {write: [.]}
"""
SCRIPT = {
    "script": 1,
    "agents": {
        "fixer": {
            "fix": [
                {"delay": "10s", "calls": [{"write_file": {"path": "note.txt", "content": "x"}}]},
                {"report": {"status": "succeeded", "summary": "fixed"}},
            ]
        }
    },
}
FACTS = {
    "the run": "COMPLETED",
    "agent a": "COMPLETED",
    "task t of a": "SUCCEEDED",
    "agent b": "COMPLETED",
    "file x": "1",
}
WHOLE = Whole(Left(RunStatus.COMPLETED, FACTS), 10, 1.0, frozenset())
FLYING = Left(RunStatus.RUNNING, flying={("a", "t"): "once"}, once=frozenset({"k"}))


TWICE = """
from toka.runtime.step import Steps
async def again(*_): return None
Steps._after_crash = again
"""
"""Makes processes run again what was in flight, whatever it was: those of the test are forked from this one."""


@pytest.fixture
def toka(tmp_path: Path) -> Any:
    """The command in a process of its own, which has no threads that its children would lack."""

    def run(*arguments: object, before: str = "") -> Ran:
        code = f"{before}\nfrom toka.cli.main import main; main()"
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path / "scratch")}
        (tmp_path / "scratch").mkdir(exist_ok=True)
        argv = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def work(tmp_path: Path) -> Path:
    if not shutil.which("bwrap"):
        pytest.skip("no bwrap: agents cannot run here")
    (tmp_path / "team.yaml").write_text(TEAM)
    (tmp_path / "script.yaml").write_text(json.dumps(SCRIPT))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "given.txt").write_text("given\n")
    return tmp_path / "work"


def crash(toka: Any, work: Path, *options: object, **how: str) -> Ran:
    place = work.parent
    given = ("--workspace", work, "--script", place / "script.yaml", *options)
    return toka("crash-test", place / "team.yaml", *given, **how)


@pytest.mark.slow
def test_a_killed_team_ends_as_one_that_was_not(toka: Any, work: Path) -> None:
    ran = crash(toka, work, "--kills", 8, "--seed", 3, "--json")
    *kills, done = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0 and done["type"] == "done"
    assert (done["kills"], done["different"], done["repeated"]) == (8, 0, 0)
    assert done["identical"] + done["asks"] == 8 and len({(k["write"], k["before"]) for k in kills}) == 8
    assert [p.name for p in work.iterdir()] == ["given.txt"], "only copies are worked on"


@pytest.mark.slow
def test_every_write_is_killed_before_and_after_it_and_the_question_is_told(toka: Any, work: Path) -> None:
    ran = crash(toka, work, "--every-write")
    last = ran.out.splitlines()[-1]
    assert ran.code == 0 and last.endswith(" 0 repeated effects") and " questions," in last
    writes = int(ran.err.partition("COMPLETED, ")[2].split()[0])
    assert int(last.split()[0]) in range(2 * writes - 6, 2 * writes + 1), "a run may have a write less or more"
    assert "builder/publish" in ran.err


@pytest.mark.slow
def test_a_step_that_runs_twice_is_found(toka: Any, work: Path) -> None:
    ran = crash(toka, work, "--every-write", before=TWICE)
    assert ran.code == 1 and " repeated effect" in ran.out and " 0 repeated" not in ran.out
    assert "went on, although a step that must not run twice was in flight" in ran.err
    assert "file published.txt differs" in ran.err
    kept = Path(ran.err.partition("kept: ")[2].partition(";")[0])
    assert (kept / "state").is_dir() and (kept / "work" / "given.txt").exists()


@pytest.mark.slow
def test_a_model_is_never_asked(toka: Any, work: Path) -> None:
    ran = toka("crash-test", work.parent / "team.yaml", "--workspace", work)
    assert ran.code == 2 and "--script FILE" in ran.err and "asks no model" in ran.err


@pytest.mark.slow
def test_an_agent_that_may_reach_the_network_is_refused(toka: Any, work: Path) -> None:
    (work.parent / "team.yaml").write_text(TEAM.replace("grants: {write: [.]}", "grants: {network: [example.org]}"))
    ran = crash(toka, work)
    assert ran.code == 2 and "may reach the network" in ran.err and "--network" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code"),
    [(["--every-write", "--kills", "3"], 2), (["--kills", "0"], 2), (["--enable", "nothing"], 2)],
)
def test_bad_options_are_refused(toka: Any, work: Path, options: list[str], code: int) -> None:
    assert crash(toka, work, *options).code == code


@pytest.mark.slow
def test_a_script_with_mistakes_is_refused(toka: Any, work: Path) -> None:
    (work.parent / "script.yaml").write_text("script: 1\nagents: 3\n")
    assert crash(toka, work).code == 3


@pytest.mark.slow
def test_a_team_that_cannot_run_is_an_error_and_leaves_nothing(toka: Any, work: Path) -> None:
    (work.parent / "team.yaml").write_text(TEAM.replace("[.]", "[.]\n      programs: [nonesuch-program]"))
    ran = crash(toka, work)
    assert ran.code != 0 and not ran.out


@pytest.mark.slow
def test_the_demo_is_killed(toka: Any, work: Path) -> None:
    ran = toka("demo", "--kill", before="import toka.cli.demo; toka.cli.demo.KILLS = 4")
    assert ran.code == 0 and ran.out.startswith("4 kills, ") and ran.out.endswith(", 0 repeated effects\n")
    assert not list((work.parent / "scratch").iterdir()), "nothing is left"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_ends_the_test_leaves_nothing_behind(work: Path, number: signal.Signals) -> None:
    place, scratch = work.parent, work.parent / "scratch"
    scratch.mkdir()
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(place), "LANG": "C.UTF-8"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(scratch)}
    argv = [sys.executable, "-m", "toka", "crash-test", "team.yaml", "--workspace", "work", "--script", "script.yaml"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*argv, "--every-write"], cwd=place, env=environment, **pipes)
    try:
        assert process.stderr is not None
        assert any("killing it at" in line for line in process.stderr)
        until(lambda: list(scratch.glob("toka-crash-*/*/state")), "a run that is to be killed")
        process.send_signal(number)
        told = process.stderr.read()
        assert process.wait(60) == (130 if number == signal.SIGINT else 128 + number), told
    finally:
        process.kill()
        process.communicate()
    assert number == signal.SIGINT or f"ended by {number.name}" in told
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_the_demo_is_killed_in_places_of_its_own(toka: Any, tmp_path: Path) -> None:
    assert toka("demo", "--kill", "--state", tmp_path / "x").code == 2


# --- what is right, and what is not --------------------------------------------------------------------------------


def test_the_sample_has_as_many_places_as_asked_and_is_drawn_again_by_its_seed() -> None:
    assert places(3, None, 0) == [(1, True), (1, False), (2, True), (2, False), (3, True), (3, False)]
    assert len(set(places(50, 20, 7))) == 20 and places(50, 20, 7) == places(50, 20, 7) != places(50, 20, 8)
    assert len(places(2, 99, 0)) == 4


@pytest.mark.parametrize(
    ("fact", "value"),
    [("the run", "FAILED"), ("agent a", "FAILED"), ("task t of a", "FAILED"), ("file x", "2"), ("file y", "1")],
)
def test_every_fact_counts(fact: str, value: str) -> None:
    left = Left(RunStatus.COMPLETED, {**FACTS, fact: value})
    assert len(differences(WHOLE.left, left, frozenset())) == 1
    assert not differences(WHOLE.left, left, frozenset({fact}))
    assert not differences(WHOLE.left, Left(RunStatus.COMPLETED, FACTS), frozenset())


def test_what_is_missing_counts() -> None:
    facts = {fact: value for fact, value in FACTS.items() if fact != "file x"}
    assert differences(WHOLE.left, Left(RunStatus.COMPLETED, facts), frozenset()) == ["file x is missing"]


def asking(**more: Any) -> Left:
    facts = {**FACTS, "the run": "WAITING", "agent a": "WAITING", "task t of a": "NEEDS_ATTENTION", **more}
    return Left(RunStatus.WAITING, facts, frozenset({"a"}), asked=frozenset({("a", "t")}))


def test_a_question_is_right_exactly_where_a_step_that_must_not_run_twice_was_in_flight() -> None:
    assert judge(WHOLE, (1, False), FLYING, asking(), [["run k"], []]).right
    not_flying = replace(FLYING, flying={})
    assert not judge(WHOLE, (1, False), not_flying, asking(), [["run k"], []]).right
    harmless = replace(FLYING, flying={("a", "t"): "idempotent"})
    assert not judge(WHOLE, (1, False), harmless, asking(), [["run k"], []]).right
    went_on = Left(RunStatus.COMPLETED, FACTS)
    assert not judge(WHOLE, (1, False), FLYING, went_on, [["run k"], []]).right


def test_a_question_excuses_nothing_of_the_agents_that_ended() -> None:
    assert not judge(WHOLE, (1, False), FLYING, asking(**{"agent b": "FAILED"}), [[], []]).right


def test_what_was_recorded_or_must_not_run_twice_is_not_taken_again() -> None:
    done = Left(RunStatus.COMPLETED, FACTS)
    recorded = Left(RunStatus.RUNNING, ended=frozenset({"k"}))
    assert judge(WHOLE, (1, False), recorded, done, [["ask k"], ["ask k"]]).repeated == ("k",)
    once = Left(RunStatus.RUNNING, once=frozenset({"k"}))
    assert judge(WHOLE, (1, False), once, done, [["run k"], ["run k"]]).repeated == ("k",)
    again = judge(WHOLE, (1, False), Left(RunStatus.RUNNING), done, [["run k"], ["run k"]])
    assert not again.repeated and again.again == ("k",) and again.right


def test_the_last_line_counts_every_kill_once() -> None:
    right, asks = Outcome((1, True), killed=True), Outcome((2, True), killed=True, asks=("a/t",))
    differs = Outcome((3, True), killed=True, differences=("file x differs",))
    twice = Outcome((4, True), killed=True, repeated=("k",))
    assert result_line([right, right]) == "2 kills, 2 identical results, 0 repeated effects"
    assert result_line([right, asks, asks]) == "3 kills, 1 identical result and 2 questions, 0 repeated effects"
    told = "5 kills, 2 identical results, 1 question and 2 differing, 1 repeated effect"
    assert result_line([right, right, asks, differs, twice]) == told
    assert result_line([right, differs]) == "2 kills, 1 identical result and 1 differing, 0 repeated effects"
    unkilled = replace(differs, killed=False)
    assert result_line([right, unkilled]).endswith(", 0 repeated effects, 1 differing that no kill met")
