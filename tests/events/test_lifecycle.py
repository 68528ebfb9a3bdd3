from __future__ import annotations

from collections.abc import Mapping
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
    agent_may,
    task_may,
)

S = TypeVar("S")


def reach(table: Mapping[S, frozenset[S]], start: S) -> set[S]:
    seen, stack = {start}, [start]
    while stack:
        fresh = table[stack.pop()] - seen
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


def test_ends_are_final() -> None:
    assert {s for s in AgentStatus if not AGENT_TRANSITIONS[s]} == AGENT_ENDS
    assert {s for s in TaskStatus if not TASK_TRANSITIONS[s]} == TASK_ENDS
    assert not any(agent_may(old, new) for old in AGENT_ENDS for new in AgentStatus)
    assert not any(task_may(old, new) for old in TASK_ENDS for new in TaskStatus)


def test_a_takeover_starts_any_agent_that_has_not_ended() -> None:
    assert {s for s in AgentStatus if agent_may(s, AgentStatus.STARTING)} == set(AgentStatus) - AGENT_ENDS


def test_stopping_leads_to_stopped_and_nowhere_else() -> None:
    assert AGENT_TRANSITIONS[AgentStatus.STOPPING] == {AgentStatus.STOPPED}


def test_no_task_starts_without_being_queued_nor_succeeds_without_running() -> None:
    assert not any(task_may(s, TaskStatus.QUEUED) for s in TaskStatus)
    assert not task_may(TaskStatus.QUEUED, TaskStatus.SUCCEEDED)
    assert not agent_may(AgentStatus.STARTING, AgentStatus.COMPLETED)


def test_a_run_that_waits_or_was_interrupted_has_not_ended() -> None:
    assert set(RunStatus) - RUN_ENDS == {
        RunStatus.CREATED,
        RunStatus.RUNNING,
        RunStatus.WAITING,
        RunStatus.INTERRUPTED,
    }
