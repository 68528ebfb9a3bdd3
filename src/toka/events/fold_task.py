"""What records of tasks and steps change in the state of their agent: the part of `fold` that is about work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from sys import float_info
from typing import Any, Final, cast

from toka.core.message import Usage
from toka.events.event import (
    StepDenied,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    StepResolved,
    StepWaits,
    TaskStateChanged,
)
from toka.events.health import Health
from toka.events.lifecycle import TASK_ENDS, TaskStatus
from toka.events.record import Record
from toka.events.state import AgentState, TaskState

JSON = dict[str, Any]


def _task_state(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, TaskStateChanged)
    old = state.tasks.get(event.task) or TaskState(event.task)
    status = TaskStatus(event.state)
    began = old.began_s
    if began is None and status is TaskStatus.RUNNING:
        began = state.active_s + (max(0.0, record.at - state.stint_at) if state.stint_at is not None else 0.0)
    new = replace(
        old,
        began_s=began,
        title=event.title or old.title,
        status=status,
        attempt=event.attempt or old.attempt,
        reason=event.reason,
        why=event.why,
        report=event.report if event.report is not None else old.report,
        waits="",
        question=old.question if status is TaskStatus.NEEDS_ATTENTION else "",
        fresh=old.attempt if old.status in TASK_ENDS else old.fresh,
    )
    if status is TaskStatus.SUCCEEDED and state.found is not None and state.found.task == event.task:
        state = replace(state, health=Health.HEALTHY)
    return with_task(state, record, new, metrics=_filled(state.metrics, event.report))


def _filled(metrics: Mapping[str, float], report: JSON | None) -> Mapping[str, float]:
    """The gauges after one more report; what is no finite number fills none."""
    told: Any = report.get("metrics") if report else None
    if not isinstance(told, dict):
        return metrics
    return {**metrics, **{name: n for name, n in cast(JSON, told).items() if _is_figure(n)}}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= float_info.max


def _waits(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, StepWaits)
    whom = f"{event.agent} of run {event.run}" if event.run else event.agent
    return with_task(state, record, replace(_task(state, event.step), waits=whom))


def _intent(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, StepIntent)
    task = replace(_task(state, event.step), waits="")
    counted = 1 if "/tool/" in event.step and not event.again else 0
    flying = {**task.in_flight, event.step: event.what}
    if event.lost is None:
        new = replace(task, in_flight=flying, tool_calls=task.tool_calls + counted)
        return with_task(state, record, new, tool_calls=state.tool_calls + counted)
    usage, price = Usage.from_json(event.lost), event.lost[5]
    cost = None if state.cost_usd is None or price is None else state.cost_usd + price
    new = replace(task, in_flight=flying, usage=task.usage + usage)
    return with_task(state, record, new, usage=state.usage + usage, cost_usd=cost)


def _ended_step(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, StepDone | StepFailed)
    task = _task(state, event.step)
    flying = {k: v for k, v in task.in_flight.items() if k != event.step} if task.in_flight else task.in_flight
    steps = state.steps + isinstance(event, StepDone)
    if event.usage is None:
        return with_task(state, record, replace(task, in_flight=flying), steps=steps)
    usage = Usage.from_json(event.usage)
    cost = None if state.cost_usd is None or event.cost_usd is None else state.cost_usd + event.cost_usd
    new = replace(task, in_flight=flying, usage=task.usage + usage)
    return with_task(state, record, new, usage=state.usage + usage, cost_usd=cost, steps=steps)


def _denied(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, StepDenied)
    task = _task(state, event.step)
    return with_task(state, record, replace(task, denied=task.denied + 1), denied=state.denied + 1)


def _doubt(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, StepInDoubt)
    return with_task(state, record, replace(_task(state, event.step), question=event.question))


def _resolved(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, StepResolved)
    return with_task(state, record, replace(_task(state, event.step), question=""))


def _task(state: AgentState, step: str) -> TaskState:
    task = step.partition("/")[0]
    return state.tasks.get(task) or TaskState(task)


def with_task(state: AgentState, record: Record, task: TaskState, **changes: Any) -> AgentState:
    """An agent with a task changed, and more of its own. Objectives are checked in steps, too: those are no tasks."""
    if task.id in state.tasks or not task.id.startswith("objective-"):
        changes["tasks"] = {**state.tasks, task.id: task}
    return replace(state, changed_at=record.at, **changes)


TASK_RULES: Final[Mapping[type[Any], Callable[[AgentState, Record], AgentState]]] = {
    TaskStateChanged: _task_state,
    StepWaits: _waits,
    StepIntent: _intent,
    StepDone: _ended_step,
    StepFailed: _ended_step,
    StepDenied: _denied,
    StepInDoubt: _doubt,
    StepResolved: _resolved,
}
"""By the type of the event."""
