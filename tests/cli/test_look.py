from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from pathlib import Path

import pytest

from cli.records import Recorded, Toka, write_run
from harness import Team, agent, succeed
from toka.cli.render_run import UNDECLARED
from toka.cli.rows import event_text
from toka.cli.tally import RunLine
from toka.events.event import (
    AgentStateChanged,
    ExecutorAttached,
    HealthChanged,
    HoldPlaced,
    RunCreated,
    RunStateChanged,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    TaskStateChanged,
)
from toka.events.record import Record
from toka.runtime.progress import progress_event

RUN = "20261101-101010-abcdef"
BEGUN = [RunCreated(["a", "b"], "0" * 64, "/w"), ExecutorAttached("h", 1, 1), RunStateChanged("RUNNING")]


def test_an_empty_state_directory_gets_two_commands_to_copy_and_is_not_made(toka: Toka, tmp_path: Path) -> None:
    state = tmp_path / "none"
    done = toka("ps", "--state", state)
    assert done.code == 0
    assert done.lines == [f"No runs in {state}. Two ways to start one:", "  toka demo", "  toka run SPEC.yaml"]
    assert toka("ps", "--state", state, "--json").out == ""
    assert not state.exists()


def test_ps_lists_what_happened(toka: Toka, recorded: Recorded) -> None:
    done = toka("ps", "--state", recorded.state)
    assert done.code == 0
    head, line = done.lines
    assert head.split() == ["RUN", "STATE", "AGENTS", "AGE", "TOOK", "TOKENS", "COST", "MODEL", "WORKSPACE"]
    run, state, agents, _, _, _, cost, model, workspace = line.split()
    assert (run, state, agents, cost, model) == (recorded.run, "FAILED", "3/3", "$0.00", "SCRIPTED")
    assert workspace == str(recorded.workspace)


def test_ps_agrees_with_the_fold(toka: Toka, recorded: Recorded) -> None:
    listed = toka("ps", "--json", "--state", recorded.state).json
    shown = toka("show", "@last", "--json", "--state", recorded.state).json
    assert listed["tokens"] == sum(a["tokens"] for a in shown["agents"].values()) > 0
    assert listed["cost_usd"] == sum(a["cost_usd"] for a in shown["agents"].values())
    for same in ("run_id", "state", "workspace", "started_at", "ended_at", "models", "scripted", "reason"):
        assert listed[same] == shown[same]
    assert listed["scripted"] is True


def test_the_state_directory_comes_from_the_environment(
    toka: Toka, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKA_STATE", str(recorded.state))
    assert recorded.run in toka("ps").out


def test_a_run_whose_process_is_gone_is_interrupted(toka: Toka, tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", BEGUN), ("a", [AgentStateChanged("STARTING"), AgentStateChanged("RUNNING")])])
    _, line, hint = toka("ps", "--state", tmp_path).lines
    assert "INTERRUPTED" in line
    assert "0/2" in line
    assert hint.strip() == f"toka resume {RUN} --state {tmp_path}"
    text = toka("show", "abc", "--state", tmp_path).out
    assert f"Go on with: toka resume {RUN}" in text
    assert "was running when its process went away" in text
    assert "had not started when its run's process went away" in text


def test_a_run_with_a_living_process_is_running(toka: Toka, tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", BEGUN), ("a", [AgentStateChanged("STARTING")])], release=False)
    listed = toka("ps", "--json", "--state", tmp_path).json
    assert listed["state"] == "RUNNING"
    assert listed["executor"]["pid"] == os.getpid()
    shown = toka("show", "@last", "--json", "--state", tmp_path).json
    assert shown["agents"]["b"]["explanation"] == ["waits for a free place: only so many agents run at one time"]
    assert f"process {os.getpid()} on" in toka("show", "@last", "--state", tmp_path).out


def test_money_of_unknown_price_is_said_to_be_unknown(toka: Toka, tmp_path: Path) -> None:
    steps = [
        StepIntent("t/1/1/model/0", "k", "idempotent", "openai:x"),
        StepDone("t/1/1/model/0", {"role": "assistant"}, [10, 5, 0, 0, 1], 0.5, "x"),
        StepIntent("t/1/2/model/0", "k", "idempotent", "openai:x", lost=[7, 3, 0, 0, 1, 0.25]),
        StepFailed("t/1/2/model/0", "timeout", "too slow", usage=[1, 1, 0, 0, 1], cost_usd=0.25),
    ]
    write_run(tmp_path, RUN, [("", BEGUN), ("a", steps)])
    listed = toka("ps", "--json", "--state", tmp_path).json
    assert (listed["tokens"], listed["cost_usd"], listed["models"]) == (27, 1.0, ["openai:x"])
    unpriced = StepDone("t/1/3/model/0", {"role": "assistant"}, [1, 1, 0, 0, 1], None, "x")
    write_run(tmp_path, "20261101-101011-abcdeg", [("", BEGUN), ("a", [*steps, unpriced])])
    assert toka("ps", "--json", "--state", tmp_path).json_lines()[0]["cost_usd"] is None
    assert "unknown" in toka("ps", "--state", tmp_path).lines[1]


def test_ps_lists_the_newest_and_tells_how_many_more_there_are(
    toka: Toka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toka.cli.look.NEWEST", 2)
    for i in range(4):
        write_run(tmp_path, f"20261101-1010{i:02d}-abcde{i}", [("", [*BEGUN, RunStateChanged("COMPLETED")])])
    done = toka("ps", "--state", tmp_path)
    assert len(done.lines) == 3
    assert done.lines[1].startswith("20261101-101003")
    assert done.err.strip() == f"2 older runs: toka ps --all --state {tmp_path}"
    assert len(toka("ps", "--all", "--state", tmp_path).lines) == 5


def test_a_run_that_cannot_be_read_does_not_hide_the_others(toka: Toka, tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", [*BEGUN, RunStateChanged("COMPLETED")])])
    write_run(tmp_path, "20261101-101011-spoilt", [("", [*BEGUN, RunStateChanged("COMPLETED")])])
    with sqlite3.connect(tmp_path / "journal.db") as db:
        db.execute("UPDATE events SET body='{' WHERE kind='run_created' AND stream=2")
    db.close()
    done = toka("ps", "--state", tmp_path)
    assert done.code == 0
    assert "UNREADABLE" in done.lines[1]
    assert "toka audit verify" in done.lines[2]
    assert "COMPLETED" in done.lines[3]
    shown = toka("show", "spoilt", "--state", tmp_path)
    assert shown.code == 70
    assert "audit verify" in shown.err


def test_durations_of_the_living_and_the_dead() -> None:
    line = RunLine(RUN, None, started_at=100.0, changed_at=130.0)
    assert line.duration(1_000.0) == 30.0
    assert RunLine(RUN, None, started_at=100.0, executor=(1, "h")).duration(1_000.0) == 900.0
    assert RunLine(RUN, None, started_at=100.0, ended_at=110.0).duration(1_000.0) == 10.0
    assert RunLine(RUN, None).duration(1_000.0) == 0.0


def test_show_explains_every_agent(toka: Toka, recorded: Recorded) -> None:
    text = toka("show", "@last", "--state", recorded.state).out
    assert text.startswith(f"run {recorded.run}  FAILED  SCRIPTED: a script answered, no model\n")
    for line in (
        "  objective 1  verified  it works",
        "  objective 2  claimed  it is beautiful",
        "  objective 1  failed  never (after 2 repairs)",
        "      `echo not there; test -f never.txt` exited with 1",
        "      | not there",
        '  denied write_file {"path": "b.txt", "content": "hi"} in task-1, 2 times',
        "(rule: no filesystem-write)",
        "  needs two, which ended FAILED",
        "  task-1  not run  last",
        "3 of 3 have ended",
    ):
        assert line in text


def test_show_one_agent_by_the_beginning_of_its_name(toka: Toka, recorded: Recorded) -> None:
    text = toka("show", recorded.run, "thr", "--state", recorded.state).out
    assert "three  SKIPPED" in text
    assert "two  FAILED" not in text
    done = toka("show", recorded.run, "thre3", "--state", recorded.state)
    assert done.code == 9
    assert "did you mean three?" in done.err
    assert toka("show", recorded.run, "t", "--state", recorded.state).code == 2


def test_show_as_json_holds_what_the_text_says(toka: Toka, recorded: Recorded) -> None:
    shown = toka("show", "@last", "--json", "--state", recorded.state).json
    one, two, three = (shown["agents"][n] for n in ("one", "two", "three"))
    assert one["progress"] == {"done": 2, "total": 2}
    assert [o["state"] for o in one["objectives"]] == ["verified", "claimed"]
    assert two["denials"][0]["count"] == 2
    assert two["why"] == "check_failed"
    assert three["needs"] == ["two"]
    assert three["tasks"] == [{**three["tasks"][0], "id": "task-1", "title": "last", "state": None}]


def gauged(folder: Path, metrics: dict[str, float]) -> Path:
    """The state directory of a run whose agent declares three metrics and reports these."""
    declared = [
        {"name": "coverage", "description": "lines covered", "unit": "percent"},
        {"name": "defects", "description": "found"},
        {"name": "latency", "description": "of a request", "unit": "ms"},
    ]
    team = Team(folder, {"default": [succeed("ok", metrics=metrics)]})
    asyncio.run(team.run(agent("one", reporting={"metrics": declared}), agent("two", [{"run": "true"}])))
    return folder / "state"


def test_show_tells_each_metric_with_its_unit_and_which_were_never_reported(toka: Toka, tmp_path: Path) -> None:
    state = gauged(tmp_path, {"coverage": 81.5, "defects": 1234567, "\x1b[2Jinvented": 3})
    text = toka("show", "@last", "--state", state).out
    assert [" ".join(line.split()) for line in text.splitlines() if line.startswith("  metric ")] == [
        "metric coverage 81.5 percent",
        "metric defects 1,234,567",
        "metric latency not reported",
        "metric ␛[2Jinvented 3 not declared in the spec",
    ]
    agents = toka("show", "@last", "--json", "--state", state).json["agents"]
    assert agents["one"]["metrics"] == [
        {"name": "coverage", "value": 81.5, "unit": "percent", "declared": True},
        {"name": "defects", "value": 1234567, "unit": None, "declared": True},
        {"name": "latency", "value": None, "unit": "ms", "declared": True},
        {"name": "\x1b[2Jinvented", "value": 3, "unit": None, "declared": False},
    ]
    assert agents["two"]["metrics"] == []


def test_figures_that_nobody_declared_do_not_flood_the_screen(toka: Toka, tmp_path: Path) -> None:
    state = gauged(tmp_path, {f"n{i}": i for i in range(UNDECLARED + 2)})
    text = toka("show", "@last", "--state", state).out
    assert text.count("not declared in the spec") == UNDECLARED
    assert "  and 2 more figures not declared\n" in text
    assert len(toka("show", "@last", "--json", "--state", state).json["agents"]["one"]["metrics"]) == UNDECLARED + 5


def test_without_its_spec_a_figure_is_neither_declared_nor_not(toka: Toka, tmp_path: Path) -> None:
    done = TaskStateChanged("t", "SUCCEEDED", 1, report={"status": "succeeded", "summary": "s", "metrics": {"x": 1}})
    write_run(tmp_path, RUN, [("", BEGUN), ("a", [done])])
    assert "  metric x  1\n" in toka("show", "@last", "--state", tmp_path).out + "\n"
    shown = toka("show", "@last", "--json", "--state", tmp_path).json["agents"]["a"]["metrics"]
    assert shown == [{"name": "x", "value": 1, "unit": None, "declared": None}]


def test_a_reply_that_was_cut_off_is_said_to_be_in_the_log(toka: Toka, tmp_path: Path) -> None:
    whole = {"role": "assistant", "text": "and so"}
    said = [
        StepIntent("t/1/1/model/0", "k", "idempotent", "openai:x"),
        StepDone("t/1/1/model/0", whole, [9, 5, 0, 0, 1]),
        StepDone("t/1/2/model/0", {**whole, "finish": "length", "cut_at": 5}, [9, 5, 0, 0, 1]),
    ]
    write_run(tmp_path, RUN, [("", BEGUN), ("a", said)])
    assert toka("logs", "@last", "--state", tmp_path).out.count("cut off: the reply had no room to end") == 1


def test_a_question_for_a_person_is_shown(toka: Toka, tmp_path: Path) -> None:
    doubt = [
        TaskStateChanged("task-1", "RUNNING", 1, title="pay"),
        StepIntent("task-1/1/1/run/0", "k", "once", "pay"),
        StepInDoubt("task-1/1/1/run/0", "pay was started. Did it happen?"),
        TaskStateChanged("task-1", "NEEDS_ATTENTION", 1, "pay was started. Did it happen?", why="in_doubt"),
        AgentStateChanged("WAITING", "task task-1: pay was started. Did it happen?", "in_doubt"),
    ]
    begun = [AgentStateChanged("STARTING"), AgentStateChanged("RUNNING")]
    held = [*begun, HoldPlaced("person", "lunch", "ann")]
    waiting = RunStateChanged("WAITING", "a: pay was started. Did it happen?")
    write_run(tmp_path, RUN, [("", BEGUN), ("a", [*begun, *doubt]), ("b", held), ("", [waiting])])
    text = toka("show", "@last", "--state", tmp_path).out
    assert "WAITING" in text.splitlines()[0]
    assert "  task task-1 needs an answer: pay was started. Did it happen?" in text
    assert f"  held by person: lunch; to go on: toka resume {RUN} --state {tmp_path}" in text
    listed = toka("ps", "--state", tmp_path).lines
    assert listed[2].strip() == f"toka show {RUN} --state {tmp_path}"


def test_show_tells_how_often_an_agent_was_restarted_and_that_no_restart_is_left(toka: Toka, tmp_path: Path) -> None:
    created = RunCreated(["a"], "", "/w", options={"execution": {"run_restarts": 2}})
    round_ = [AgentStateChanged(s) for s in ("STARTING", "RUNNING")]
    failed = AgentStateChanged("BACKOFF", "task t: exited with 3", "task_failed", "work", 10.0)
    write_run(tmp_path, RUN, [("", [created]), ("a", [*round_, failed, *round_, failed])])
    text = toka("show", "@last", "--state", tmp_path).out
    assert "a  BACKOFF  0/0 tasks, 0 tokens, $0.00, 2 restarts" in text
    assert "  failed (2 in a row): task t: exited with 3" in text
    assert "  the 2 restarts of this run are used up: whoever crashes or fails now is not restarted" in text
    assert json.loads(toka("show", "@last", "--json", "--state", tmp_path).out)["agents"]["a"]["restarts"] == 2


def test_the_word_for_an_agents_health_is_said_once(toka: Toka, tmp_path: Path) -> None:
    reason = "looping: look {} got the same answer 5 times; being told 2 times did not help"
    held = HealthChanged("looping", "hold", "t", "t/1/9/model", reason)
    states = [AgentStateChanged(s) for s in ("STARTING", "RUNNING")]
    write_run(tmp_path, RUN, [("", BEGUN), ("a", [*states, held, AgentStateChanged("STOPPED", "by ada")])])
    seen = "look {} got the same answer 5 times; "
    assert f"  looping in task t: {seen}" in toka("show", "@last", "--state", tmp_path).out
    assert f"t looping (hold): {seen}" in toka("logs", "@last", "--state", tmp_path).out
    told = progress_event(Record(1, RUN, "a", 1, 0, 0.0, held))
    assert told is not None and told.text.startswith(f"looping: {seen}")


def test_a_skipped_task_that_is_to_be_tried_again_is_said_to_wait() -> None:
    again = TaskStateChanged("b", "QUEUED", 0, "task a did not succeed", by="person")
    told = progress_event(Record(1, RUN, "a", 1, 0, 0.0, again))
    assert told is not None and event_text(told) == "b waits again; it was skipped: task a did not succeed"


def test_logs_tell_what_was_asked_said_called_and_got(toka: Toka, recorded: Recorded) -> None:
    text = toka("logs", "@last", "--state", recorded.state).out
    for part in (
        "SCRIPTED",
        "$ printf",
        "  | ␛]0;title␇listed",
        "exited with 0 in",
        "  | I shall ␛[2J read",
        '> read_file {"path": "a.txt"}   allowed by filesystem-read',
        "  | hello ␛[31mred",
        "more characters]",
        '> frobnicate {"a": 1}   rejected, nothing was run',
        '> write_file {"path": "b.txt", "content": "hi"}   denied by rule: no filesystem-write',
        'reports {"status": "succeeded", "summary": "wrote b"}',
        "objective 1 verified: it works",
        "three SKIPPED: needs two, which ended FAILED",
        "system prompt, ",
    ):
        assert part in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 600


def test_logs_of_one_agent(toka: Toka, recorded: Recorded) -> None:
    lines = toka("logs", "@last", "two", "--state", recorded.state).lines
    assert {line.split()[1] for line in lines[1:] if not line.startswith(" ")} == {"two"}


def test_full_logs_cut_nothing(toka: Toka, recorded: Recorded) -> None:
    text = toka("logs", "@last", "--full", "--state", recorded.state).out
    assert "asked (system):" in text
    assert "more characters]" not in text


def test_following_an_ended_run_ends_at_once(toka: Toka, recorded: Recorded) -> None:
    done = toka("logs", "@last", "-f", "--state", recorded.state)
    assert done.code == 0
    assert done.err.strip() == f"run {recorded.run} has ended: FAILED"


def test_colour_only_where_it_is_asked_for(toka: Toka, recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [("ps",), ("show", "@last"), ("logs", "@last")]
    for command in commands:
        assert "\x1b" not in toka(*command, "--state", recorded.state).out
    monkeypatch.setenv("FORCE_COLOR", "1")
    for command in commands:
        assert "\x1b[31m" in toka(*command, "--state", recorded.state).out
    for command in commands[:2]:
        assert "\x1b" not in toka(*command, "--json", "--state", recorded.state).out


def test_json_lines_of_ps_are_one_object_each(toka: Toka, tmp_path: Path) -> None:
    for i in range(3):
        write_run(tmp_path, f"20261101-1010{i:02d}-abcde{i}", [("", BEGUN)])
    out = toka("ps", "--json", "--state", tmp_path).out
    assert [json.loads(line)["run_id"][-1] for line in out.splitlines()] == ["2", "1", "0"]
