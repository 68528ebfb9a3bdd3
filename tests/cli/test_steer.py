"""`toka pause`, `stop` and `resume AGENT` from another terminal: real processes, also killed ones."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.test_attach import Place


def ticking(name: str, **more: Any) -> dict[str, Any]:
    """An agent of many short steps: it goes on until there is a file `go`."""
    step = "[ -e NAME/go ] || { date +%s%N >> NAME/steps; sleep 0.03; }".replace("NAME", name)
    tasks = [{"id": f"t{n}", "run": step, "effect": "idempotent"} for n in range(400)]
    return {"tasks": tasks, "grants": {"write": [name]}, **more}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    if made.state.is_dir():
        replayed(made)


def team(place: Place, **agents: dict[str, Any]) -> None:
    (place.folder / "team.yaml").write_text(json.dumps({"toka": 1, "agents": agents}))


def until(condition: Callable[[], Any], what: str = "it", seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


def steps(place: Place, name: str) -> int:
    file = place.work / name / "steps"
    return len(file.read_text().splitlines()) if file.exists() else 0


def say(place: Place, *arguments: str, code: int = 0) -> str:
    process = place.toka(*arguments)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, out + err
    return out + err


def shown(place: Place) -> dict[str, Any]:
    return json.loads(say(place, "show", "@last", "--json"))


def replayed(place: Place) -> None:
    """Whatever was done to the runs: that it follows from their records can be shown."""
    for line in say(place, "ps", "--all", "--json").splitlines():
        assert say(place, "replay", json.loads(line)["run_id"]).startswith("same decisions: ")


def begin(place: Place, *names: str) -> Any:
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    for name in names:
        until(lambda name=name: steps(place, name) > 2, f"steps of {name}")
    return process


@pytest.mark.slow
def test_an_agent_rests_from_pause_to_resume_and_the_others_go_on(place: Place) -> None:
    team(place, one=ticking("one"), two=ticking("two"))
    process = begin(place, "one", "two")
    began = time.monotonic()
    told = say(place, "pause", "@last", "one", "--reason", "look first")
    assert told.splitlines()[0] == "paused: one"
    (run,) = [json.loads(line)["run_id"] for line in say(place, "ps", "--json").splitlines()]
    assert told.splitlines()[-1].startswith(f"go on with: toka resume {run} one"), "and not all of them"
    assert time.monotonic() - began < 4
    before, others = steps(place, "one"), steps(place, "two")
    time.sleep(0.5)
    assert steps(place, "one") == before
    assert steps(place, "two") > others
    agents = shown(place)["agents"]
    assert (agents["one"]["state"], agents["one"]["holds"]) == ("PAUSED", {"person": "look first"})
    assert say(place, "pause", "@last", "one").splitlines()[0] == "one is paused already"
    follower = place.toka("resume", "@last", "one", "--reason", "seen", "--quiet")
    until(lambda: steps(place, "one") > before + 2)
    for name in ("one", "two"):
        (place.work / name / "go").touch()
    assert process.wait(30) == 0
    assert follower.wait(30) == 0
    log = say(place, "logs", "@last")
    assert "pause one, asked by " in log
    assert "look first" in log


@pytest.mark.slow
def test_who_waits_for_its_turn_to_write_says_for_whom(place: Place) -> None:
    """Also to a run elsewhere, which waits for this one's."""
    writes = {"grants": {"write": ["src"]}}
    long = {"tasks": [{"id": "t", "run": "touch src/on; while [ ! -e src/go ]; do sleep 0.05; done"}], **writes}
    on = {"id": "on", "run": "until [ -e src/on ]; do sleep 0.05; done", "effect": "pure"}
    short = {"tasks": [on, {"id": "t", "run": "touch src/over"}], **writes}
    team(place, long=long, short=short)
    first = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    until((place.work / "src/on").exists)
    run = shown(place)["run_id"]
    team(place, elsewhere=short)
    second = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    whom = "task t waits for its turn to write: {0} writes to the same paths and is before it"
    until(lambda: whom.format("long") in say(place, "show", run), "the first run's wait")
    until(lambda: whom.format(f"long of run {run}") in say(place, "show", "@last"), "the second run's wait")
    (place.work / "src/go").touch()
    assert (first.wait(30), second.wait(30)) == (0, 0)
    assert "waits for its turn" not in say(place, "show", run) + say(place, "show", "@last")
    assert "waits for its turn to write, after long" in say(place, "logs", run)


@pytest.mark.slow
def test_a_whole_run_is_paused_and_goes_on(place: Place) -> None:
    team(place, one=ticking("one"), two=ticking("two"), three={**ticking("three"), "needs": ["one"]})
    process = begin(place, "one", "two")
    assert say(place, "pause", "@last").splitlines()[0] == "paused: one, three, two"
    before = [steps(place, name) for name in ("one", "two", "three")]
    time.sleep(0.4)
    assert [steps(place, name) for name in ("one", "two", "three")] == before
    assert {a["state"] for n, a in shown(place)["agents"].items() if n != "three"} == {"PAUSED"}
    for name in ("one", "two", "three"):
        (place.work / name).mkdir(exist_ok=True)
        (place.work / name / "go").touch()
    assert place.toka("resume", "@last", "--quiet").wait(30) == 0
    assert process.wait(30) == 0


@pytest.mark.slow
def test_a_pause_survives_a_kill_and_is_lifted_by_who_resumes_its_agent(place: Place) -> None:
    team(place, one=ticking("one"), two=ticking("two"))
    process = begin(place, "one", "two")
    say(place, "pause", "@last", "one", "--reason", "not now")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = steps(place, "one")
    again = place.toka("resume", "@last", "two", "--quiet")
    others = steps(place, "two")
    until(lambda: steps(place, "two") > others + 2)
    assert steps(place, "one") == before
    assert shown(place)["agents"]["one"]["holds"] == {"person": "not now"}
    for name in ("one", "two"):
        (place.work / name / "go").touch()
    until(lambda: shown(place)["agents"]["two"]["state"] == "COMPLETED")
    assert place.toka("resume", "@last", "one", "--quiet").wait(30) == 0
    assert again.wait(30) == 0


@pytest.mark.slow
def test_a_pause_that_nobody_takes_up_is_noted(place: Place) -> None:
    team(place, one=ticking("one"), two=ticking("two"))
    process = begin(place, "one", "two")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    told = say(place, "pause", "@last", "one")
    assert "noted for 1 agent: no process executes the run" in told
    before = steps(place, "one")
    again = place.toka("resume", "@last", "two", "--quiet")
    others = steps(place, "two")
    until(lambda: steps(place, "two") > others + 2)
    assert steps(place, "one") == before
    say(place, "stop", "@last")
    assert again.wait(30) == 8


@pytest.mark.slow
def test_stop_ends_an_agent_for_good_and_what_needs_it_is_skipped(place: Place) -> None:
    team(place, one=ticking("one"), two=ticking("two"), three={**ticking("three"), "needs": ["one"]})
    process = begin(place, "one", "two")
    assert say(place, "stop", "@last", "one", "--reason", "wrong tests").splitlines()[0] == "stopped: one"
    before = steps(place, "one")
    (place.work / "two/go").touch()
    assert process.wait(30) == 8
    assert steps(place, "one") == before
    agents = shown(place)["agents"]
    assert {n: a["state"] for n, a in agents.items()} == {"one": "STOPPED", "two": "COMPLETED", "three": "SKIPPED"}
    assert agents["one"]["reason"].startswith("wrong tests")
    assert say(place, "stop", "@last", "one").splitlines() == ["one is stopped already"]
    assert say(place, "stop", "@last").splitlines()[0].endswith("is stopped already")


@pytest.mark.slow
def test_stop_cancels_a_step_that_does_not_end(place: Place) -> None:
    hang = {"run": "touch one/begun; trap '' TERM INT; sleep 300", "grants": {"write": ["one"]}}
    team(place, one=hang)
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    until((place.work / "one/begun").exists)
    began = time.monotonic()
    assert say(place, "stop", "@last").splitlines()[0] == "stopped: one"
    assert time.monotonic() - began < 14
    assert process.wait(5) == 8


@pytest.mark.slow
def test_stop_of_a_run_that_nobody_executes_ends_it_here(place: Place) -> None:
    team(place, one=ticking("one"), two={**ticking("two"), "needs": ["one"]})
    process = begin(place, "one")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    told = json.loads(say(place, "stop", "@last", "--reason", "enough", "--json"))
    assert (told["state"], told["agents"], told["executor"], told["next"]) == (
        "STOPPED", {"one": "STOPPED", "two": "STOPPED"}, None, None,
    )  # fmt: skip
    document = shown(place)
    assert document["state"] == "STOPPED"
    assert document["agents"]["one"]["reason"].startswith("enough")
    assert say(place, "resume", "@last", code=8)
    assert say(place, "audit", "verify", "@last")


@pytest.mark.slow
def test_stop_of_one_agent_of_a_run_that_nobody_executes_leaves_the_others(place: Place) -> None:
    team(place, one=ticking("one"), two=ticking("two"), three={**ticking("three"), "needs": ["one"]})
    process = begin(place, "one", "two")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert say(place, "stop", "@last", "one").splitlines()[0] == "stopped: one"
    assert {n: a["state"] for n, a in shown(place)["agents"].items()} == {
        "one": "STOPPED", "two": "RUNNING", "three": "SKIPPED",
    }  # fmt: skip
    (place.work / "two/go").touch()
    assert place.toka("resume", "@last", "--quiet").wait(30) == 8


@pytest.mark.slow
def test_instances_are_paused_and_stopped_with_their_agent(place: Place) -> None:
    step = "[ -e each/go ] || { date +%s%N >> each/steps; sleep 0.03; }"
    tasks = [{"id": f"t{n}", "run": step, "effect": "idempotent"} for n in range(400)]
    team(place, each={"for_each": [1, 2, 3], "max_parallel": 2, "tasks": tasks, "grants": {"write": ["each"]}})
    process = begin(place, "each")
    assert say(place, "pause", "@last", "each").startswith("paused: each, each[1], each[2]")
    before = steps(place, "each")
    time.sleep(0.4)
    assert steps(place, "each") == before
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert say(place, "stop", "@last", "each").startswith("stopped: each")
    document = shown(place)
    assert {a["state"] for a in document["agents"].values()} == {"STOPPED"}
    assert document["state"] == "STOPPED"


@pytest.mark.slow
def test_what_cannot_be_steered_is_told(place: Place) -> None:
    team(place, one={"run": "true"}, two={"run": "true"})
    assert place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet").wait(30) == 0
    for verb in ("pause", "stop"):
        assert f"has ended (COMPLETED); there is nothing to {verb}" in say(place, verb, "@last", code=2)
        told = say(place, verb, "@last", "one", code=2)
        assert f"agent one has ended (COMPLETED); there is nothing to {verb}" in told
        assert "no run 'nowhere'" in say(place, verb, "nowhere", code=9)
        assert "no agent 'three'" in say(place, verb, "@last", "three", code=9)


@pytest.mark.slow
def test_with_now_a_command_stands_still_where_it_is(place: Place) -> None:
    beat = "for n in $(seq 2000); do [ -e one/go ] && exit 0; date +%s%N >> one/steps; sleep 0.02; done; exit 1"
    team(place, one={"run": beat, "timeout": "5s", "grants": {"write": ["one"]}}, two=ticking("two"))
    process = begin(place, "one", "two")
    began = time.monotonic()
    assert say(place, "pause", "@last", "one", "--now", "--reason", "hold it").splitlines()[0] == "paused: one"
    assert time.monotonic() - began < 4
    before = steps(place, "one")
    time.sleep(6)
    assert steps(place, "one") == before, "it stands still, and so does its deadline"
    agents = shown(place)["agents"]
    assert (agents["one"]["state"], agents["one"]["holds"]) == ("PAUSED", {"person": "hold it"})
    assert agents["two"]["state"] == "RUNNING"
    follower = place.toka("resume", "@last", "one", "--quiet")
    until(lambda: steps(place, "one") > before + 2)
    for name in ("one", "two"):
        (place.work / name / "go").touch()
    assert process.wait(30) == 0
    assert follower.wait(30) == 0


@pytest.mark.slow
def test_a_command_that_stands_still_can_be_stopped_and_killed(place: Place) -> None:
    beat = "for n in $(seq 2000); do date +%s%N >> NAME/steps; sleep 0.02; done"
    agents = {n: {"run": beat.replace("NAME", n), "grants": {"write": [n]}} for n in ("one", "two")}
    team(place, **agents)
    process = begin(place, "one", "two")
    say(place, "pause", "@last", "--now")
    assert say(place, "stop", "@last", "one").splitlines()[0] == "stopped: one"
    assert shown(place)["agents"]["one"]["state"] == "STOPPED"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = steps(place, "two")
    say(place, "stop", "@last", "two")
    time.sleep(0.3)
    assert steps(place, "two") == before, "nothing of a killed run goes on"


@pytest.mark.slow
def test_an_instance_is_stopped_at_once_also_while_nobody_executes_it(place: Place) -> None:
    each = ticking("each")
    team(place, each={**each, "for_each": [1, 2, 3], "max_parallel": 2})
    process = begin(place, "each")
    until(lambda: "each[2]" in shown(place)["agents"])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert say(place, "stop", "@last", "each[2]", "--reason", "no").splitlines()[0] == "stopped: each[2]"
    again = place.toka("resume", "@last", "--quiet")
    until(lambda: "each[3]" in shown(place)["agents"], "its place to be free")
    assert shown(place)["agents"]["each[2]"]["reason"].startswith("no (")
    told = say(place, "pause", "@last", "each").splitlines()[0]
    assert told == "paused: each, each[1], each[3]", "who was stopped is not paused"
    say(place, "stop", "@last")
    assert again.wait(30) == 8


@pytest.mark.slow
def test_an_instance_that_has_not_begun_is_paused_and_resumed_by_name(place: Place) -> None:
    each = ticking("each")
    team(place, each={**each, "for_each": [1, 2], "max_parallel": 1})
    process = begin(place, "each")
    assert "each[2]" not in shown(place)["agents"]
    assert say(place, "pause", "@last", "each[2]").splitlines()[0] == "paused: each[2]"
    assert "no agent 'each[3]'" in say(place, "pause", "@last", "each[3]", code=9)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = place.toka("resume", "@last", "each[1]", "--quiet")
    before = steps(place, "each")
    until(lambda: steps(place, "each") > before + 2)
    say(place, "stop", "@last", "each[1]")
    until(lambda: shown(place)["agents"]["each[2]"]["state"] == "PAUSED", "its turn, at which it rests")
    before = steps(place, "each")
    follower = place.toka("resume", "@last", "each[2]", "--quiet")
    until(lambda: steps(place, "each") > before)
    say(place, "stop", "@last")
    assert again.wait(30) == follower.wait(30) == 8


@pytest.mark.slow
def test_an_instance_goes_on_alone_while_its_agent_is_held(place: Place) -> None:
    step = "echo x >> each/${item}; sleep 0.03"
    tasks = [{"id": f"t{n}", "run": step, "effect": "idempotent"} for n in range(400)]
    team(place, each={"for_each": [1, 2, 3], "max_parallel": 2, "tasks": tasks, "grants": {"write": ["each"]}})

    def done(number: int) -> int:
        file = place.work / f"each/{number}"
        return len(file.read_text()) if file.exists() else 0

    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    until(lambda: done(1) and done(2))
    say(place, "pause", "@last", "each")
    follower = place.toka("resume", "@last", "each[2]", "--quiet")
    before = done(2)
    until(lambda: done(2) > before + 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    follower.wait(30)
    say(place, "pause", "@last", "each[1]", "--reason", "twice is no more than once")
    again = place.toka("resume", "@last", "each[3]", "--quiet")
    rests, before = done(1), done(2)
    until(lambda: done(2) > before + 2, "who was let go before the kill")
    say(place, "stop", "@last", "each[2]")
    until(lambda: done(3) > 4, "who was let go before it began, by somebody who executes the run")
    assert done(1) == rests
    say(place, "stop", "@last")
    assert again.wait(30) == 8


@pytest.mark.slow
def test_a_retry_after_the_time_of_the_run_is_refused(place: Place) -> None:
    team(place, bad={"run": "exit 1", "retries": 0}, two={"run": "sleep 60"})
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet", "--deadline", "2s")
    assert process.wait(30) == 6
    told = say(place, "retry", "@last", code=2)
    assert "had 2s, and they are over; another try would end at once" in told and "--deadline" in told


@pytest.mark.slow
def test_who_asks_a_process_that_stands_still_is_told_so(place: Place) -> None:
    team(place, one=ticking("one"))
    process = begin(place, "one")
    os.kill(process.pid, signal.SIGSTOP)
    try:
        told = say(place, "pause", "@last", "one")
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert f"noted for 1 agent: process {process.pid} has the run and did not answer within 5 s" in told
    until(lambda: shown(place)["agents"]["one"]["state"] == "PAUSED", "what was noted")
    say(place, "stop", "@last")
    assert process.wait(30) == 8


@pytest.mark.slow
def test_a_retry_of_a_run_names_those_that_had_failed(place: Place) -> None:
    team(place, bad={"run": "exit 1", "retries": 0}, two=ticking("two"))
    process = begin(place, "two")
    until(lambda: shown(place)["agents"]["bad"]["state"] == "FAILED")
    assert say(place, "retry", "@last").splitlines() == ["tried again: bad"]
    until(lambda: shown(place)["agents"]["bad"]["state"] == "FAILED")
    document = json.loads(say(place, "retry", "@last", "--json"))
    assert list(document["agents"]) == ["bad"]
    say(place, "stop", "@last")
    assert process.wait(30) == 1
