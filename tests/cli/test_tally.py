"""What a list of runs says of each, without folding its events."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli.records import Recorded, write_run
from toka.cli.door import folded
from toka.cli.tally import RunLine, is_script, is_scripted, tally
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import JournalCorrupt, JournalError
from toka.events.event import (
    AgentStateChanged,
    Event,
    ExecutorAttached,
    RunCreated,
    RunStateChanged,
    StepDone,
    StepFailed,
    StepIntent,
)
from toka.events.lifecycle import RunStatus
from toka.journal.database import FILE
from toka.journal.sqlite import SqliteReader

RUN = RunId("20261123-053626-wua9rr")
STEP = "task-1/1/1/model/0"
MESSAGE = {"role": "assistant", "text": "hi"}


def begun(model: str | None = None) -> list[Event]:
    return [
        RunCreated(["a", "b"], "0" * 64, "/w", model=model),
        ExecutorAttached("h", 1, 1),
        RunStateChanged("RUNNING"),
    ]


def asked(model: str, step: str = STEP, lost: list[float | None] | None = None) -> StepIntent:
    return StepIntent(step, "k" * 32, "idempotent", model, messages=[], lost=lost)


def line(state: Path, run: RunId = RUN) -> RunLine:
    reader = SqliteReader(state, SystemClock())
    try:
        (found,) = tally(reader, [run])
        return found
    finally:
        reader.close()


def written(state: Path, *streams: tuple[str, Sequence[Event]], release: bool = True) -> RunLine:
    write_run(state, RUN, streams, release=release)
    return line(state)


def test_the_sums_are_those_of_the_fold(recorded: Recorded) -> None:
    reader = SqliteReader(recorded.state, SystemClock())
    state = folded(recorded.run, reader.read(recorded.run))
    reader.close()
    agents = state.agents.values()
    found = line(recorded.state, recorded.run)
    assert found.status is state.status is RunStatus.FAILED
    assert found.reason == state.reason
    assert found.tokens == sum(a.usage.tokens for a in agents) > 0
    assert found.cost_usd == pytest.approx(sum(a.cost_usd or 0.0 for a in agents))
    assert (found.done, found.total) == (3, 3)
    assert (found.started_at, found.ended_at) == (state.started_at, state.ended_at)
    assert found.workspace == str(recorded.workspace)
    assert found.scripted
    assert found.executor is None


def test_failed_and_lost_calls_are_charged_too(tmp_path: Path) -> None:
    steps: list[Event] = [
        asked("openai:x"),
        StepFailed(STEP, "timeout", "late", usage=[100, 10, 0, 0, 1], cost_usd=0.5),
        asked("openai:x", lost=[1_000, 200, 0, 0, 1, 0.25]),
        StepDone(STEP, MESSAGE, [20, 3, 0, 0, 1], 0.125, "x"),
    ]
    found = written(tmp_path, ("", begun()), ("a", steps))
    assert (found.tokens, found.cost_usd) == (1_333, 0.875)


@pytest.mark.parametrize(
    "steps",
    [
        [StepDone(STEP, MESSAGE, [1, 1, 0, 0, 1], None, "x")],
        [StepFailed(STEP, "timeout", "late", usage=[1, 1, 0, 0, 1])],
        [asked("openai:x", lost=[1, 1, 0, 0, 1, None])],
    ],
)
def test_a_call_of_unknown_price_makes_the_cost_unknown(tmp_path: Path, steps: list[Event]) -> None:
    found = written(tmp_path, ("", begun()), ("a", [asked("openai:x"), *steps]), ("b", [asked("openai:x")]))
    assert (found.tokens, found.cost_usd) == (2, None)


def test_what_a_tool_calls_usage_is_not_charged(tmp_path: Path) -> None:
    step = StepDone("task-1/1/1/tool/0", {"usage": [9, 9, 9, 9, 9]})
    found = written(tmp_path, ("", begun()), ("a", [step]))
    assert (found.tokens, found.cost_usd) == (0, 0.0)


def test_the_models_that_were_used_go_before_the_one_that_was_asked_for(tmp_path: Path) -> None:
    command = StepIntent("task-1/1/1/run/0", "k", "once", "cat /model/x")
    found = written(
        tmp_path, ("", begun("auto")), ("a", [command, asked("openai:x"), asked("openai:z", "task-2/1/1/model/0")]),
        ("b", [asked("scripted:s")]),
    )  # fmt: skip
    assert found.models == ("openai:x", "scripted:s")
    assert found.scripted
    other = RunId("20261123-053627-wua9rr")
    write_run(tmp_path, other, [("", begun("auto")), ("a", [command])])
    assert line(tmp_path, other).models == ("auto",)


def test_what_has_not_ended_is_interrupted_unless_somebody_executes_it(tmp_path: Path) -> None:
    found = written(tmp_path, ("", begun()), ("a", [AgentStateChanged("STARTING")]), release=False)
    assert (found.status, found.done, found.total, found.ended_at) == (RunStatus.RUNNING, 0, 2, None)
    assert found.executor is not None and found.executor[0] == os.getpid()
    other = RunId("20261123-053627-wua9rr")
    write_run(tmp_path, other, [("", begun()), ("a", [AgentStateChanged("COMPLETED")])])
    gone = line(tmp_path, other)
    assert (gone.status, gone.done, gone.executor) == (RunStatus.INTERRUPTED, 1, None)
    waiting = RunId("20261123-053628-wua9rr")
    write_run(tmp_path, waiting, [("", [*begun(), RunStateChanged("WAITING", "a: which?")])])
    assert (line(tmp_path, waiting).status, line(tmp_path, waiting).reason) == (RunStatus.WAITING, "a: which?")


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"started_at": 10.0, "ended_at": 25.0, "changed_at": 99.0}, 15.0),
        ({"started_at": 10.0, "changed_at": 40.0, "executor": (1, "h")}, 90.0),
        ({"started_at": 10.0, "changed_at": 40.0}, 30.0),
        ({"started_at": 10.0}, 90.0),
        ({}, 0.0),
        ({"started_at": 200.0}, 0.0),
    ],
)
def test_how_long_a_run_took(fields: dict[str, object], seconds: float) -> None:
    assert RunLine(RUN, RunStatus.RUNNING, **fields).duration(100.0) == seconds  # type: ignore[arg-type]


def spoil(state: Path, sql: str) -> None:
    with sqlite3.connect(state / FILE) as db:
        assert db.execute(sql).rowcount > 0
    db.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE events SET body = '{}' WHERE kind = 'run_state'",
        "UPDATE events SET body = replace(body, '\"state\"', '\"stato\"') WHERE kind = 'run_state'",
        "UPDATE events SET body = replace(body, 'RUNNING', 'WALKING') WHERE kind = 'run_state'",
        "UPDATE events SET body = 'no JSON' WHERE kind = 'run_created'",
    ],
)
def test_a_run_that_cannot_be_read_has_a_line_that_says_so(tmp_path: Path, sql: str) -> None:
    written(tmp_path, ("", begun()))
    spoil(tmp_path, sql)
    found = line(tmp_path)
    assert found.status is None
    assert found.reason
    for word in ("Error", "KeyError", "Traceback", "('"):
        assert word not in found.reason
    reader = SqliteReader(tmp_path, SystemClock())
    try:
        with pytest.raises(JournalError) as caught:
            folded(RUN, reader.read(RUN))
    finally:
        reader.close()
    assert "KeyError" not in caught.value.message


def test_a_record_of_another_form_is_told_without_pythons_words() -> None:
    with pytest.raises(JournalCorrupt) as caught:
        folded(RUN, [object()])  # type: ignore[list-item]
    assert caught.value.message == f"run {RUN} cannot be read: a record does not say what its kind should"
    assert caught.value.exit_code == 70
    assert f"toka audit verify {RUN}" in (caught.value.hint or "")


def test_a_database_that_is_none_is_an_error(tmp_path: Path) -> None:
    written(tmp_path, ("", begun()))
    reader = SqliteReader(tmp_path, SystemClock())
    try:
        with sqlite3.connect(tmp_path / FILE) as db:
            db.execute("DROP TABLE events")
        db.close()
        (found,) = tally(reader, [RUN])
        assert found.status is None
    finally:
        reader.close()


def test_scripts_are_known_by_their_prefix() -> None:
    assert is_script("scripted:x") and not is_script("server:scripted:x") and not is_script(None)
    assert is_scripted(["openai:x", "scripted:y"]) and not is_scripted([])
