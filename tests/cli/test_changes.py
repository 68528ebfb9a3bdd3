"""`toka diff` and `toka rollback`, and commands that a kill cut off: real processes, real sandboxes, real kills."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.test_attach import Place
from cli.test_steer import say, team, until


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def run(place: Place, code: int = 0) -> str:
    return say(place, "run", "team.yaml", "--workspace", str(place.work), code=code)


WRITES: dict[str, Any] = {"grants": {"write": True}}


def two_steps(place: Place) -> None:
    (place.work / "log").write_text("keep\n")
    (place.work / "old").write_text("old\n")
    tasks = [{"run": "echo a >> log"}, {"run": "echo b >> log; mkdir d; seq 3 > d/n; rm old; chmod 700 log"}]
    team(place, writer={"tasks": tasks, **WRITES}, reader={"run": "true"})
    run(place)


@pytest.mark.slow
def test_a_diff_shows_what_a_run_and_what_a_step_changed(place: Place) -> None:
    two_steps(place)
    whole = say(place, "diff", "@last")
    assert "+a\n+b\n" in whole
    assert "deleted file mode" in whole
    assert "3 paths changed" in whole
    first = say(place, "diff", "@last", "writer", "--step", "1")
    assert "+a\n" in first
    assert "+b" not in first
    assert "1 path changed" in first
    told = json.loads(say(place, "diff", "@last", "--step", "task-2/1/1/run/0", "--json"))
    assert {c["path"]: c["status"] for c in told["changes"]} == {"d/n": "A", "log": "M", "old": "D"}
    steps = [json.loads(line) for line in say(place, "diff", "@last", "--steps", "--json").splitlines()]
    assert [(s["number"], s["agent"], s["scope"]) for s in steps] == [(1, "writer", ["."]), (2, "writer", ["."])]
    assert "there is no step 7" in say(place, "diff", "@last", "--step", "7", code=9)
    assert "no step of agent reader could change the workspace" in say(place, "diff", "@last", "reader", code=9)


@pytest.mark.slow
def test_a_rollback_is_exact_recorded_and_can_be_undone(place: Place) -> None:
    two_steps(place)
    with (place.work / "log").open("a") as log:
        log.write("a person's\n")
    (place.work / "new").write_text("a person's, too\n")
    told = json.loads(say(place, "rollback", "@last", "writer", "--to", "2", "--reason", "start over", "--json"))
    assert (place.work / "log").read_text() == "keep\na\n"
    assert (place.work / "old").read_text() == "old\n"
    assert sorted(p.name for p in place.work.iterdir()) == ["log", "old"]
    told_of = say(place, "logs", "@last")
    assert "rollback writer, asked by " in told_of
    assert "start over" in told_of
    say(place, *told["undo"].split()[1:])
    assert (place.work / "log").read_text() == "keep\na\nb\na person's\n"
    assert (place.work / "new").read_text() == "a person's, too\n"
    assert not (place.work / "old").exists()
    assert "no contradiction" in say(place, "audit", "verify", "@last")


@pytest.mark.slow
def test_what_goes_on_or_can_go_on_is_not_rolled_back(place: Place) -> None:
    team(place, writer={"tasks": [{"run": "echo a >> log"}, {"run": "touch begun; sleep 60"}], **WRITES})
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    until((place.work / "begun").exists)
    told = say(place, "rollback", "@last", "writer", "--to", "1", code=2)
    assert f"is being executed by process {process.pid}" in told
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    told = say(place, "rollback", "@last", "writer", "--to", "1", code=2)
    assert "agent writer has not ended" in told
    assert "toka stop " in told
    assert (place.work / "log").read_text() == "a\n"
    say(place, "stop", "@last", "writer")
    say(place, "rollback", "@last", "writer", "--to", "1")
    assert not (place.work / "log").exists()


@pytest.mark.slow
def test_a_command_that_a_kill_cut_off_is_undone_and_run_again(place: Place) -> None:
    (place.work / "log").write_text("keep\n")
    (place.work / "sub").mkdir()
    command = "echo a >> log; rm -r sub; touch begun; [ -e go ] || sleep 60; echo b >> log"
    team(place, writer={"run": command, **WRITES})
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    until((place.work / "begun").exists)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (place.work / "go").touch()
    again = place.toka("resume", "@last", "--quiet")
    until(lambda: not (place.work / "go").exists(), "the workspace to be put back")  # as it was before the command
    until((place.work / "begun").exists)
    assert (place.work / "log").read_text() == "keep\na\n"
    (place.work / "go").touch()
    os.kill(again.pid, signal.SIGKILL)
    again.wait()
    steps = [json.loads(line) for line in say(place, "diff", "@last", "--steps", "--json").splitlines()]
    assert [s["what"] for s in steps] == [command, "put back to before step 1"]


@pytest.mark.slow
def test_what_another_run_wrote_meanwhile_is_not_undone(place: Place) -> None:
    team(place, writer={"run": "echo mine > log; touch begun; sleep 60", **WRITES})
    process = place.toka("run", "team.yaml", "--workspace", str(place.work), "--quiet")
    until((place.work / "begun").exists)
    first = json.loads(say(place, "show", "@last", "--json"))["run_id"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    team(place, other={"run": "echo other > log", **WRITES})
    run(place)
    assert say(place, "resume", first, code=7)
    assert (place.work / "log").read_text() == "other\n"
    told = say(place, "show", first)
    assert "The workspace is as it was left: agent other of run " in told
    assert "has written there since. Did it happen?" in told


@pytest.mark.slow
def test_agents_that_write_the_same_place_take_turns_and_others_do_not_wait(place: Place) -> None:
    busy = "mkdir {at}/busy && sleep 0.3 && rmdir {at}/busy"
    for name in ("one", "two"):
        (place.work / name).mkdir()
    same = {f"a{n}": {"run": busy.format(at="one"), "grants": {"write": ["one"]}} for n in range(3)}
    meet = "touch {own}/here; for n in $(seq 100); do [ -e {other}/here ] && exit 0; sleep 0.1; done; exit 1"
    apart = {
        "left": {"run": meet.format(own="left", other="right"), "grants": {"write": ["left"], "read": ["right"]}},
        "right": {"run": meet.format(own="right", other="left"), "grants": {"write": ["right"], "read": ["left"]}},
    }
    for name in apart:
        (place.work / name).mkdir()
    team(place, **same, **apart)
    run(place)
