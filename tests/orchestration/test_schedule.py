from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import agent
from orchestration.test_dependency import NAMES, circular, configs, edges, priorities
from toka.core.ids import AgentName
from toka.events.lifecycle import AgentStatus, ObjectiveStatus
from toka.events.state import AgentState, ObjectiveState
from toka.orchestration.dependency import DependencyResolver
from toka.orchestration.schedule import Blocked, Schedule, recovered

ENDS = (AgentStatus.COMPLETED, AgentStatus.FAILED, AgentStatus.STOPPED)


def graph(**needs: Any) -> DependencyResolver:
    """Agents by name with their required ones; `+x` is optional, `!x` must be verified."""
    out = []
    for name, on in needs.items():
        required = {d.strip("!"): {"verified": d.startswith("!")} for d in on if not d.startswith("+")}
        optional = {d.strip("+"): {} for d in on if d.startswith("+")}
        out.append(agent(name, dependencies={"required": required, "optional": optional}))
    return DependencyResolver(out)


def end(name: str, status: AgentStatus = AgentStatus.COMPLETED, why: str = "", **more: Any) -> AgentState:
    return AgentState(name, status, why=why, **more)


def drain(schedule: Schedule) -> list[str]:
    out: list[str] = []
    while (name := schedule.next()) is not None:
        out.append(name)
    return out


def test_the_urgent_go_first_then_those_with_the_longest_path_behind_them_then_by_name() -> None:
    specs = [
        agent("late", priority="low"),
        agent("b"), agent("a"),
        agent("root"), agent("mid", dependencies={"required": ["root"]}),
        agent("urgent", priority="critical"),
    ]  # fmt: skip
    assert drain(Schedule(DependencyResolver(specs))) == ["urgent", "root", "a", "b", "late"]


def test_an_agent_waits_for_all_it_depends_on() -> None:
    schedule = Schedule(graph(a=[], b=[], c=["a", "+b"]))
    assert drain(schedule) == ["a", "b"]
    assert schedule.ended(end("a")) == [] and drain(schedule) == []
    assert schedule.ended(end("b", AgentStatus.FAILED)) == []
    assert drain(schedule) == ["c"], "an optional one may fail"


@pytest.mark.parametrize("status", [AgentStatus.FAILED, AgentStatus.STOPPED, AgentStatus.SKIPPED])
def test_a_required_agent_that_did_not_complete_blocks_with_the_reason_and_so_on_down(status: AgentStatus) -> None:
    schedule = Schedule(graph(a=[], b=["a"], c=["b"], d=["+c"], e=[]))
    assert drain(schedule) == ["a", "e"]
    assert schedule.ended(end("a", status)) == [
        Blocked(AgentName("b"), f"needs a, which ended {status.value}", "dependency"),
        Blocked(AgentName("c"), "needs b, which ended SKIPPED", "dependency"),
    ]
    assert drain(schedule) == ["d"]
    assert schedule.ended(end("a", status)) == [], "an end counts once"


def test_a_missing_model_is_the_reason_all_the_way_down() -> None:
    schedule = Schedule(graph(a=[], b=["a"], c=["b"]))
    assert [b.why for b in schedule.ended(end("a", AgentStatus.SKIPPED, "no_model"))] == ["no_model", "no_model"]


def test_a_dependent_that_demands_verified_objectives_does_not_take_claims() -> None:
    claimed = {
        1: ObjectiveState(1, status=ObjectiveStatus.VERIFIED),
        2: ObjectiveState(2, status=ObjectiveStatus.CLAIMED),
    }
    schedule = Schedule(graph(a=[], b=["!a"], c=["a"]))
    drain(schedule)
    assert schedule.ended(end("a", objectives=claimed)) == [
        Blocked(AgentName("b"), "needs a verified, and its objective 2 is only claimed", "dependency")
    ]
    assert drain(schedule) == ["c"]
    again = Schedule(graph(a=[], b=["!a"]))
    drain(again)
    assert again.ended(end("a", objectives={1: claimed[1]})) == [] and drain(again) == ["b"]


def test_a_long_chain_is_blocked_without_a_deep_stack() -> None:
    needs = {f"n{i:04}": [f"n{i - 1:04}"] if i else [] for i in range(1500)}
    schedule = Schedule(graph(**needs))
    assert len(schedule.ended(end("n0000", AgentStatus.FAILED))) == 1499


@settings(max_examples=150, deadline=None)
@given(required=edges, optional=edges, priority=priorities, data=st.data())
def test_a_recovered_schedule_is_one_that_lived_through_the_same_ends(
    required: set[tuple[str, str]], optional: set[tuple[str, str]], priority: dict[str, str], data: st.DataObject
) -> None:
    if circular(required):
        return
    resolver = DependencyResolver(configs(required, optional, priority))
    lived = Schedule(resolver)
    states: dict[str, AgentState] = {n: AgentState(n) for n in NAMES}
    started: list[str] = []
    unwritten: list[Blocked] = []
    for _ in range(data.draw(st.integers(0, 6))):
        while (name := lived.next()) is not None:
            started.append(name)
        if not started:
            break
        name = started.pop(data.draw(st.integers(0, len(started) - 1)))
        states[name] = end(name, data.draw(st.sampled_from(ENDS)))
        for blocked in lived.ended(states[name]):
            if data.draw(st.booleans()):
                states[blocked.agent] = end(blocked.agent, AgentStatus.SKIPPED, blocked.why)
            else:
                unwritten.append(blocked)  # the process died before this was recorded
    again, blocked = recovered(resolver, states)
    assert {b.agent for b in blocked} == {b.agent for b in unwritten}
    running = sorted([*started, *drain(lived)])
    assert sorted(drain(again)) == running
    while running:  # and what ends from here on has the same consequences for both
        state = end(running.pop(), data.draw(st.sampled_from(ENDS)))
        assert again.ended(state) == lived.ended(state)
        ready = drain(lived)
        assert drain(again) == ready
        running += ready


def test_who_is_in_the_middle_of_its_work_does_not_wait_for_an_optional_one_that_is_tried_again() -> None:
    resolver = graph(a=[], b=["+a"], c=["+a"], d=["b"])
    states = {
        "a": AgentState("a", AgentStatus.READY),
        "b": AgentState("b", AgentStatus.RUNNING),
        "c": AgentState("c", AgentStatus.READY),
        "d": AgentState("d"),
    }
    again, blocked = recovered(resolver, states)
    assert blocked == []
    assert {again.next(), again.next()} == {"a", "b"}
    assert again.next() is None, "c begins anew, and d needs b"
    assert again.ended(end("a")) == []
    assert again.next() == "c"
