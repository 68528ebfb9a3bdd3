from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from toka.events.lifecycle import (
    AGENT_ENDS,
    AGENT_TRANSITIONS,
    RUN_ENDS,
    TASK_ENDS,
    TASK_TRANSITIONS,
    AgentStatus,
    RunStatus,
    TaskStatus,
    Trigger,
    agent_may,
    task_may,
)

S = TypeVar("S")


def reach(table: Mapping[S, Collection[S]], start: S) -> set[S]:
    seen, stack = {start}, [start]
    while stack:
        fresh = set(table[stack.pop()]) - seen
        seen |= fresh
        stack += fresh
    return seen


def test_every_status_has_its_row() -> None:
    assert set(AGENT_TRANSITIONS) == set(AgentStatus)
    assert set(TASK_TRANSITIONS) == set(TaskStatus)


def test_every_status_can_be_reached() -> None:
    assert reach(AGENT_TRANSITIONS, AgentStatus.CONFIGURED) == set(AgentStatus)
    assert reach(TASK_TRANSITIONS, TaskStatus.QUEUED) == set(TaskStatus)


@pytest.mark.parametrize("status", AgentStatus)
def test_an_agent_can_end_from_wherever_it_is(status: AgentStatus) -> None:
    assert reach(AGENT_TRANSITIONS, status) & AGENT_ENDS
    if status not in AGENT_ENDS:
        assert AgentStatus.STOPPED in reach(AGENT_TRANSITIONS, status), "a person can stop it"


@pytest.mark.parametrize("status", TaskStatus)
def test_a_task_can_end_from_wherever_it_is(status: TaskStatus) -> None:
    assert reach(TASK_TRANSITIONS, status) & TASK_ENDS


def test_an_end_is_left_only_when_a_person_has_a_failure_tried_again() -> None:
    assert {s for s in AgentStatus if not AGENT_TRANSITIONS[s]} == {AgentStatus.COMPLETED, AgentStatus.STOPPED}
    left = {(old, new) for old in AGENT_ENDS for new in AgentStatus if agent_may(old, new)}
    assert left == {(AgentStatus.FAILED, AgentStatus.READY), (AgentStatus.SKIPPED, AgentStatus.READY)}
    assert AGENT_TRANSITIONS[AgentStatus.FAILED][AgentStatus.READY] == {Trigger.PERSON}
    assert AGENT_TRANSITIONS[AgentStatus.SKIPPED][AgentStatus.READY] == {Trigger.PERSON, Trigger.SCHEDULE}
    again = {(old, new) for old in TASK_ENDS for new in TaskStatus if task_may(old, new)}
    assert {old for old, _ in again} == TASK_ENDS - {TaskStatus.SUCCEEDED}
    assert {new for _, new in again} == {TaskStatus.RETRY_WAIT, TaskStatus.QUEUED}
    for old, new in again:
        assert TASK_TRANSITIONS[old][new] == {Trigger.PERSON, Trigger.CRASH}


def test_every_change_has_somebody_who_may_bring_it_about_and_every_trigger_has_its_use() -> None:
    rows = [row for table in (AGENT_TRANSITIONS, TASK_TRANSITIONS) for row in table.values()]
    assert all(triggers for row in rows for triggers in row.values())
    used = {trigger for row in rows for triggers in row.values() for trigger in triggers}
    assert used | {Trigger.RECOVERY} == set(Trigger), "recovery starts anything that has not ended"


def test_who_may_bring_a_change_about_is_asked() -> None:
    assert agent_may(AgentStatus.RUNNING, AgentStatus.STOPPING, Trigger.PERSON)
    assert not agent_may(AgentStatus.RUNNING, AgentStatus.STOPPING, Trigger.WORK)
    assert not agent_may(AgentStatus.FAILED, AgentStatus.READY, Trigger.SCHEDULE)
    assert agent_may(AgentStatus.PAUSED, AgentStatus.STARTING, Trigger.RECOVERY)
    assert not agent_may(AgentStatus.PAUSED, AgentStatus.STARTING, Trigger.SCHEDULE)
    assert not task_may(TaskStatus.RUNNING, TaskStatus.SUCCEEDED, Trigger.PERSON)


def test_only_a_person_lets_an_agent_go_on_that_was_taken_out_of_service() -> None:
    for held in (AgentStatus.CRASH_LOOP, AgentStatus.QUARANTINED):
        assert set(AGENT_TRANSITIONS[held]) == {AgentStatus.READY, AgentStatus.FAILED, AgentStatus.STOPPED}
        assert AGENT_TRANSITIONS[held][AgentStatus.READY] == {Trigger.PERSON}


def test_a_takeover_starts_any_agent_that_has_not_ended() -> None:
    assert {s for s in AgentStatus if agent_may(s, AgentStatus.STARTING)} == set(AgentStatus) - AGENT_ENDS


def test_stopping_leads_to_stopped_and_nowhere_else() -> None:
    assert set(AGENT_TRANSITIONS[AgentStatus.STOPPING]) == {AgentStatus.STOPPED}


def test_no_task_succeeds_without_running() -> None:
    assert not task_may(TaskStatus.QUEUED, TaskStatus.SUCCEEDED)
    assert not agent_may(AgentStatus.STARTING, AgentStatus.COMPLETED)


def test_a_run_that_waits_or_was_interrupted_has_not_ended() -> None:
    assert set(RunStatus) - RUN_ENDS == {
        RunStatus.CREATED,
        RunStatus.RUNNING,
        RunStatus.WAITING,
        RunStatus.INTERRUPTED,
    }


def test_the_manual_shows_the_tables() -> None:
    manual = Path(__file__).parents[2] / "docs" / "supervision.md"
    lines = [line for line in manual.read_text().splitlines() if line.startswith("| ") and line.count("|") == 4]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    shown = {(old, new, by) for old, new, told in rows for by in told.split(", ") if new in {*AgentStatus, *TaskStatus}}
    tables = (AGENT_TRANSITIONS, TASK_TRANSITIONS)
    cells = [(old, new, by) for t in tables for old, row in t.items() for new, by in row.items()]
    assert shown == {(old.value, new.value, each.value) for old, new, by in cells for each in by}
