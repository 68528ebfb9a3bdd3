from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.core.message import Usage
from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    Event,
    ExecutorAttached,
    HoldLifted,
    HoldPlaced,
    ObjectiveChanged,
    RunCreated,
    RunStateChanged,
    SandboxReady,
    StepDenied,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    TaskStateChanged,
    Unknown,
)
from toka.events.fold import fold, fold_all
from toka.events.lifecycle import AgentStatus, ObjectiveStatus, RunStatus, TaskStatus
from toka.events.record import Record, decode
from toka.events.state import AgentState, RunState, TaskState

STORED = Path(__file__).resolve().parents[1] / "fixtures" / "runs" / "v1.jsonl"

tasks = st.sampled_from(["a", "b", "objective-1"])
steps = st.builds("{}/{}/1/{}/0".format, tasks, st.integers(1, 2), st.sampled_from(["model", "tool", "run"]))
usages = st.none() | st.lists(st.integers(0, 9), min_size=5, max_size=5)
costs = st.none() | st.floats(0, 1)
holds = st.sampled_from(["person", "budget", "health"])
run_events = st.one_of(
    st.builds(RunCreated, st.just(["x", "y"]), st.just(""), st.just("/w")),
    st.builds(ExecutorAttached, st.just("h"), st.just(1), st.integers(1, 5)),
    st.builds(RunStateChanged, st.sampled_from([s.value for s in RunStatus])),
    st.builds(CommandApplied, st.integers(1, 5), st.just("pause")),
    st.builds(HoldPlaced, holds),
    st.builds(HoldLifted, holds),
)
agent_events = st.one_of(
    st.builds(AgentStateChanged, st.sampled_from([s.value for s in AgentStatus])),
    st.builds(
        TaskStateChanged,
        tasks,
        st.sampled_from([s.value for s in TaskStatus]),
        st.integers(0, 3),
        report=st.none() | st.builds(dict, metrics=st.dictionaries(st.sampled_from("pq"), st.integers())),
    ),
    st.builds(StepIntent, steps, st.just("k"), st.just("once"), st.just("w"), again=st.integers(0, 1)),
    st.builds(StepDone, steps, usage=usages, cost_usd=costs),
    st.builds(StepFailed, steps, st.just("e"), st.just("m"), usage=usages, cost_usd=costs),
    st.builds(StepDenied, steps, st.just("w"), st.just("r"), st.just("m")),
    st.builds(StepInDoubt, steps, st.just("q")),
    st.builds(ObjectiveChanged, st.integers(1, 2), st.sampled_from([s.value for s in ObjectiveStatus])),
    st.builds(HoldPlaced, holds),
    st.builds(HoldLifted, holds),
)
placed = st.tuples(st.just(""), run_events) | st.tuples(st.sampled_from(["x", "y", "z"]), agent_events)


def records(items: list[tuple[str, Event]], first: int = 1) -> list[Record]:
    return [Record(i, "r", stream, i, 1, 100.0 + i, event) for i, (stream, event) in enumerate(items, first)]


def after(*items: Event, stream: str = "x") -> AgentState:
    return fold_all("r", records([(stream, e) for e in items])).agents[stream]


@given(items=st.lists(placed, max_size=30), cut=st.integers(0, 30))
def test_folding_in_parts_is_folding_at_once(items: list[tuple[str, Event]], cut: int) -> None:
    whole = records(items)
    state = fold_all("r", whole[:cut])
    for record in whole[cut:]:
        state = fold(state, record)
    assert state == fold_all("r", whole)


@given(items=st.lists(placed, min_size=1, max_size=30))
def test_a_fold_leaves_the_state_it_was_given_as_it_was(items: list[tuple[str, Event]]) -> None:
    *before, last = records(items)
    state = fold_all("r", before)
    fold(state, last)
    assert state == fold_all("r", before)


@given(items=st.lists(placed, max_size=20), stream=st.sampled_from(["", "x", "new"]))
def test_an_event_of_a_later_version_changes_nothing_but_the_place(items: list[tuple[str, Event]], stream: str) -> None:
    state = fold_all("r", records(items))
    (record,) = records([(stream, Unknown("later", {"task": "a", "state": "RUNNING"}))], first=len(items) + 1)
    expected = replace(state, last=record.id, changed_at=record.at)
    if stream and stream not in state.agents:
        expected = replace(expected, agents={**state.agents, stream: AgentState(stream)})
    assert fold(state, record) == expected


@given(items=st.lists(st.tuples(st.sampled_from(["x", "y"]), agent_events), max_size=40))
def test_sums_are_over_all_steps_and_flying_ones_have_no_end(items: list[tuple[str, Event]]) -> None:
    for name, state in fold_all("r", records(items)).agents.items():
        mine = [e for s, e in items if s == name]
        used = [Usage.from_json(e.usage) for e in mine if isinstance(e, StepDone | StepFailed) and e.usage is not None]
        assert state.usage == sum(used, Usage())
        assert state.steps == sum(isinstance(e, StepDone) for e in mine)
        assert state.denied == sum(isinstance(e, StepDenied) for e in mine)
        open_steps: set[str] = set()
        for event in mine:
            if isinstance(event, StepIntent):
                open_steps.add(event.step)
            elif isinstance(event, StepDone | StepFailed):
                open_steps.discard(event.step)
        flying = {step for task in state.tasks.values() for step in task.in_flight}
        assert flying <= open_steps
        assert {s for s in open_steps if not s.startswith("objective")} <= flying


def test_a_lost_model_call_is_charged_and_counts_once_more() -> None:
    key = "a/1/1/model/0"
    state = after(
        TaskStateChanged("a", "RUNNING", 1),
        StepIntent(key, "k", "idempotent", "m", reserved=[100.0, 20.0, 0.5]),
        StepIntent(key, "k", "idempotent", "m", again=1, lost=[100, 20, 0, 0, 1, 0.5]),
        StepDone(key, usage=[30, 4, 0, 0, 1], cost_usd=0.25),
    )
    assert state.usage == state.tasks["a"].usage == Usage(130, 24, 0, 0, 2)
    assert state.cost_usd == 0.75 and not state.tasks["a"].in_flight


@pytest.mark.parametrize(
    "unpriced",
    [
        StepDone("a/1/1/model/0", usage=[1, 1, 0, 0, 1]),
        StepIntent("a/1/1/model/0", "k", "idempotent", "m", again=1, lost=[1, 1, 0, 0, 1, None]),
    ],
)
def test_after_a_call_of_unknown_price_the_cost_stays_unknown(unpriced: Event) -> None:
    assert after(unpriced, StepDone("a/1/2/model/0", usage=[1, 1, 0, 0, 1], cost_usd=0.25)).cost_usd is None


def test_a_tool_call_is_counted_when_it_starts_and_only_once() -> None:
    key = "a/1/1/tool/0"
    state = after(
        StepIntent(key, "k", "pure", "read_file"),
        StepIntent(key, "k", "pure", "read_file", again=1),
        StepIntent("a/1/1/model/0", "k", "idempotent", "m"),
        StepIntent("a/1/1/run/0", "k", "once", "make"),
    )
    assert state.tool_calls == state.tasks["a"].tool_calls == 1
    assert list(state.tasks["a"].in_flight) == [key, "a/1/1/model/0", "a/1/1/run/0"]


def test_steps_of_objectives_are_charged_and_make_no_task() -> None:
    state = after(StepDone("objective-1/1/1/check/0", usage=[1, 2, 0, 0, 1], cost_usd=0.0))
    assert not state.tasks and state.usage.tokens == 3


def test_a_task_keeps_its_title_and_report_and_loses_an_answered_question() -> None:
    asked = after(
        TaskStateChanged("a", "RUNNING", 1, title="Do it"),
        StepInDoubt("a/1/1/run/0", "Did it?"),
        TaskStateChanged("a", "NEEDS_ATTENTION", 1, "Did it?", why="in_doubt"),
    ).tasks["a"]
    assert (asked.title, asked.question, asked.why) == ("Do it", "Did it?", "in_doubt")
    report = {"status": "succeeded", "summary": "yes"}
    answered = after(
        TaskStateChanged("a", "RUNNING", 1, title="Do it"),
        StepInDoubt("a/1/1/run/0", "Did it?"),
        TaskStateChanged("a", "SUCCEEDED", report=report),
    ).tasks["a"]
    assert answered == TaskState("a", "Do it", TaskStatus.SUCCEEDED, 1, report=report, began_s=0.0)


def test_gauges_hold_the_latest_figure_of_each_name_whoever_reported_it() -> None:
    def report(task: str, state: str, metrics: object) -> Event:
        return TaskStateChanged(task, state, 1, report={"status": state.lower(), "summary": "s", "metrics": metrics})

    state = after(
        TaskStateChanged("a", "RUNNING", 1),
        report("a", "SUCCEEDED", {"defects": 3, "coverage": 80.5}),
        report("b", "FAILED", {"defects": 1}),
        TaskStateChanged("c", "SUCCEEDED", 1, report={"status": "succeeded", "summary": "no figures"}),
    )
    assert state.metrics == {"defects": 1, "coverage": 80.5}


@pytest.mark.parametrize("odd", [None, [], "many", {"x": True}, {"x": "8"}, {"x": None}, {"x": float("inf")},
                                 {"x": float("nan")}, {"x": 10**400}])  # fmt: skip
def test_what_is_no_finite_number_fills_no_gauge(odd: object) -> None:
    first = TaskStateChanged("a", "SUCCEEDED", 1, report={"metrics": {"x": 7}})
    assert after(first, TaskStateChanged("b", "SUCCEEDED", 1, report={"metrics": odd})).metrics == {"x": 7}


def test_holds_come_and_go_one_by_one() -> None:
    state = fold_all(
        "r",
        records(
            [
                ("x", HoldPlaced("person", "lunch", "ada")),
                ("x", HoldPlaced("budget", "spent")),
                ("", HoldPlaced("person", "all")),
                ("x", HoldLifted("person")),
                ("x", HoldLifted("health")),
            ]
        ),
    )
    assert state.agents["x"].holds == {"budget": "spent"}
    assert state.holds == {"person": "all"}


@pytest.mark.parametrize(
    ("executors", "sandboxes", "weakest"),
    [
        (["full"], [], "full"),
        (["full"], [{}], "full"),
        (["none", "full"], [], "none"),
        (["full", "reduced", "full"], [{"level": "full"}], "reduced"),
        (["full"], [{"level": "none"}, {"level": "full"}], "none"),
        (["reduced"], [{"level": "of a newer Toka"}], "none"),
    ],
)
def test_a_run_is_marked_by_the_weakest_confinement_it_ever_had(
    executors: list[str], sandboxes: list[dict[str, Any]], weakest: str
) -> None:
    items: list[tuple[str, Event]] = [("", ExecutorAttached("h", 1, n + 1, e)) for n, e in enumerate(executors)]
    items += [("x", SandboxReady({}, [], test)) for test in sandboxes]
    assert fold_all("r", records(items)).weakest == weakest


def test_time_between_a_crash_and_its_takeover_is_not_active_time() -> None:
    moments = [
        (0, "STARTING"),
        (0, "RUNNING"),
        (30, "WAITING"),
        (1000, "STARTING"),
        (1000, "RUNNING"),
        (1007, "COMPLETED"),
    ]
    state = AgentState("x")
    run = RunState("r", agents={"x": state})
    for number, (at, status) in enumerate(moments, 1):
        run = fold(run, Record(number, "r", "x", number, 1, float(at), AgentStateChanged(status)))
        if status == "STARTING" and at:
            assert run.agents["x"].active_s == 30.0
    assert (run.agents["x"].started_at, run.agents["x"].ended_at) == (0.0, 1007.0)


def test_the_journal_of_this_version_folds_to_the_same_state_for_ever() -> None:
    bodies = STORED.read_text(encoding="utf-8").splitlines()
    state = fold_all("20260801-120000-abc234", [decode(i, body) for i, body in enumerate(bodies, 1)])
    fixer, writer = state.agents["fixer"], state.agents["writer"]
    assert (state.status, state.epoch, state.commands, state.last) == (RunStatus.WAITING, 2, {3}, len(bodies))
    assert state.created and state.created.agents == ["fixer", "writer"] and state.created.enabled == ["release"]
    assert (fixer.status, fixer.holds, fixer.tool_calls, fixer.denied, fixer.steps) == (
        AgentStatus.COMPLETED,
        {},
        1,
        1,
        3,
    )
    assert fixer.usage == Usage(2200, 270, 10, 5, 4) and fixer.cost_usd == pytest.approx(0.06)
    assert fixer.tasks["task-1"].status is TaskStatus.SUCCEEDED and fixer.tasks["task-1"].attempt == 2
    assert fixer.tasks["task-1"].report == {"status": "succeeded", "summary": "mended", "metrics": {"sums": 1}}
    assert fixer.metrics == {"sums": 1}
    assert [(o.status, o.round) for _, o in sorted(fixer.objectives.items())] == [("verified", 1), ("claimed", 0)]
    assert (writer.status, writer.why) == (AgentStatus.WAITING, "in_doubt")
    assert writer.tasks["release-1"].status is TaskStatus.NEEDS_ATTENTION
    assert list(writer.tasks["release-1"].in_flight.values()) == ["publish"]
