"""fold(state, record) -> state: the only definition of what a run's, an agent's and a task's status is.

Watching a live run, opening a finished one and recovering a crashed one are this fold over the same records. A fold
that changes nothing returns the state it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    ExecutorAttached,
    HoldLifted,
    HoldPlaced,
    ObjectiveChanged,
    RunCreated,
    RunStateChanged,
    SandboxReady,
)
from toka.events.flow import ApprovalAnswered, ApprovalAsked, InstancesMade, OutputsMade
from toka.events.fold_task import TASK_RULES, with_task
from toka.events.health import Health, HealthChanged, Rung
from toka.events.lifecycle import (
    AGENT_ENDS,
    RETRIED,
    RUN_ENDS,
    AgentStatus,
    ObjectiveStatus,
    RunStatus,
    Trigger,
)
from toka.events.record import Record
from toka.events.state import LEVELS, AgentState, ApprovalState, ObjectiveState, RunState, weaker, with_unbegun
from toka.events.workspace import BranchReturned, WorkspaceMade

JSON = dict[str, Any]


def fold(state: RunState, record: Record) -> RunState:
    """The run's state after one more record. Records must come in the order of their ids."""
    if record.stream:
        old = state.agents.get(record.stream) or AgentState(record.stream)
        new = fold_agent(old, record)
        if new is old and record.stream in state.agents:
            return replace(state, last=record.id, changed_at=record.at)
        return replace(state, agents={**state.agents, record.stream: new}, last=record.id, changed_at=record.at)
    rule = _RUN_RULES.get(type(record.event))
    new_run = rule(state, record) if rule else state
    return replace(new_run, last=record.id, changed_at=record.at)


def fold_all(run: str, records: Iterable[Record]) -> RunState:
    """The state of a run from its records: as `fold` for each, but the agents are not copied for each."""
    state = RunState(run)
    agents: dict[str, AgentState] | None = None
    last: Record | None = None
    for last in records:
        if last.stream:
            agents = dict(state.agents) if agents is None else agents
            agents[last.stream] = fold_agent(agents.get(last.stream) or AgentState(last.stream), last)
        else:
            state = fold(state if agents is None else replace(state, agents=agents), last)
            agents = None
    if agents is None or last is None:
        return state
    return replace(state, agents=agents, last=last.id, changed_at=last.at)


def fold_agent(state: AgentState, record: Record) -> AgentState:
    """An agent's state after one more record of its stream."""
    rule = _AGENT_RULES.get(type(record.event))
    return rule(state, record) if rule else state


def _created(state: RunState, record: Record) -> RunState:
    event = record.event
    assert isinstance(event, RunCreated)
    agents = {name: AgentState(name) for name in event.agents}
    return replace(state, created=event, agents=agents, started_at=record.at)


def _attached(state: RunState, record: Record) -> RunState:
    event = record.event
    assert isinstance(event, ExecutorAttached)
    return replace(state, epoch=event.epoch, level=weaker(state.level, event.sandbox))


def _run_state(state: RunState, record: Record) -> RunState:
    event = record.event
    assert isinstance(event, RunStateChanged)
    status = RunStatus(event.state)
    ended = record.at if status in RUN_ENDS else None
    return replace(state, status=status, reason=event.reason, ended_at=ended)


def _applied(state: RunState, record: Record) -> RunState:
    event = record.event
    assert isinstance(event, CommandApplied)
    rule = _COMMANDS.get(event.verb)
    agents = with_unbegun(state, event.agent).agents
    if rule is not None:
        named = [a for a in agents.values() if event.agent in ("", a.name, a.name.partition("[")[0])]
        meant = [a for a in named if (a.status in RETRIED if event.verb == "retry" else not a.ended)]
        agents = {**agents, **{agent.name: rule(agent, event) for agent in meant}}
    return replace(state, commands=state.commands | {event.command}, agents=agents)


def _ask_pause(agent: AgentState, event: CommandApplied) -> AgentState:
    return replace(agent, holds={**agent.holds, "person": event.reason}, let_go=False)


def _ask_resume(agent: AgentState, event: CommandApplied) -> AgentState:  # noqa: ARG001 - called as all of them are
    holds = {k: v for k, v in agent.holds.items() if k not in ("person", "health")}
    return replace(agent if "health" not in agent.holds else _forgiven(agent), holds=holds, let_go=True)


def _ask_retry(agent: AgentState, event: CommandApplied) -> AgentState:
    return replace(agent, retry=event.reason or f"by {event.author or 'a person'}")


def _forgiven(agent: AgentState) -> AgentState:
    """An agent with all chances again that it had at the beginning."""
    tasks = {n: replace(t, spared=(len(t.nudges), len(t.restarts))) for n, t in agent.tasks.items()}
    return replace(agent, tasks=tasks, health=Health.HEALTHY, crashes=0, failures=0)


def _ask_stop(agent: AgentState, event: CommandApplied) -> AgentState:
    who = f" ({event.author})" if event.author else ""
    return replace(agent, stop=agent.stop or (event.reason or "stopped by a person") + who)


_COMMANDS: Final[Mapping[str, Callable[[AgentState, CommandApplied], AgentState]]] = {
    "pause": _ask_pause,
    "resume": _ask_resume,
    "stop": _ask_stop,
    "retry": _ask_retry,
}
"""What a request changes by being applied: a process that dies right after it has forgotten nothing."""


def _run_hold(state: RunState, record: Record) -> RunState:
    return replace(state, holds=_holds(state.holds, record))


def _agent_hold(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, HoldPlaced | HoldLifted)
    lifted = isinstance(event, HoldLifted)
    if event.hold == "person":
        state = replace(state, let_go=lifted)
    elif lifted and event.hold == "health":
        state = _forgiven(state)
    return replace(state, holds=_holds(state.holds, record), changed_at=record.at)


def _holds(holds: Mapping[str, str], record: Record) -> Mapping[str, str]:
    event = record.event
    if isinstance(event, HoldPlaced):
        return {**holds, event.hold: event.reason}
    assert isinstance(event, HoldLifted)
    return {k: v for k, v in holds.items() if k != event.hold}


_AT_REST: Final = frozenset({AgentStatus.WAITING, AgentStatus.PAUSED, AgentStatus.CRASH_LOOP, AgentStatus.QUARANTINED})
"""Statuses in which no time of the agent passes: a person's time is not its own."""


def _agent_state(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, AgentStateChanged)
    status = AgentStatus(event.state)
    started, active, stint = state.started_at, state.active_s, state.stint_at
    if status is AgentStatus.STARTING:
        started = record.at if started is None else started
        active += max(0.0, state.changed_at - stint) if stint is not None else 0.0
        stint = record.at
    elif status is AgentStatus.RUNNING and stint is None:  # it goes on after a rest
        stint = record.at
    elif (status in _AT_REST or status in AGENT_ENDS) and stint is not None:
        active, stint = active + max(0.0, record.at - stint), None
    new = replace(
        state,
        status=status,
        active_s=active,
        stint_at=stint,
        reason=event.reason,
        why=event.why,
        until=event.until,
        started_at=started,
        ended_at=record.at if status in AGENT_ENDS else None,
        changed_at=record.at,
    )
    if status is AgentStatus.BACKOFF:
        return _to_be_restarted(state, new, record.at, failed=event.by == Trigger.WORK)
    if state.status is AgentStatus.BACKOFF and status is not AgentStatus.STARTING:  # nothing came of the restart
        new = replace(new, restarts=state.restarts - 1)
    if status is AgentStatus.STARTING:
        return replace(new, retry=None)
    if status is AgentStatus.READY:
        ended = state.status in AGENT_ENDS
        return replace(_forgiven(new), retry=None, tries=state.tries + ended, fresh_s=active, stop="")
    return new


def _to_be_restarted(state: AgentState, new: AgentState, now: float, *, failed: bool) -> AgentState:
    """The new state, with what is counted when an agent crashes, or its work failed and is tried again."""
    new = replace(new, restarts=state.restarts + 1)
    if failed:
        return replace(new, tries=state.tries + 1, failures=state.failures_now, failed_at=state.succeeded)
    return replace(new, crashes=state.crashes_at(now), crashed_at=state.steps)


def _health(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, HealthChanged)
    new = replace(state, health=Health(event.health), found=event, changed_at=record.at)
    task = state.tasks.get(event.task)
    if task is not None and event.health == Health.BURNING:
        return with_task(new, record, replace(task, burnt=True))
    known = {Rung.NUDGE: "nudges", Rung.RESTART: "restarts"}.get(Rung(event.rung))
    if task is None or known is None or event.step in getattr(task, known):
        return new
    return with_task(new, record, replace(task, **{known: (*getattr(task, known), event.step)}))


def _sandbox(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, SandboxReady)
    return replace(state, level=weaker(state.level, str(event.test.get("level", LEVELS[0]))))


def _objective(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, ObjectiveChanged)
    old = state.objectives.get(event.objective) or ObjectiveState(event.objective)
    new = replace(
        old,
        title=event.title or old.title,
        status=ObjectiveStatus(event.state),
        round=event.round,
        evidence=event.evidence,
    )
    return replace(state, objectives={**state.objectives, event.objective: new}, changed_at=record.at)


def _kept(state: AgentState, record: Record) -> AgentState:
    return replace(state, changed_at=record.at, **{_KEPT[type(record.event)]: record.event})


def _asked(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, ApprovalAsked)
    new = ApprovalState(
        event.approval, event.task, event.question, event.shown, record.at, event.expires_at, event.within_s
    )
    return replace(state, approvals={**state.approvals, event.approval: new}, changed_at=record.at)


def _answered(state: AgentState, record: Record) -> AgentState:
    event = record.event
    assert isinstance(event, ApprovalAnswered)
    old = state.approvals.get(event.approval)
    if old is None or old.answer:
        return state
    new = replace(old, answer=event.answer, author=event.author, reason=event.reason)
    return replace(state, approvals={**state.approvals, event.approval: new}, changed_at=record.at)


_KEPT: Final[Mapping[type[Any], str]] = {
    InstancesMade: "made",
    OutputsMade: "outputs",
    WorkspaceMade: "private",
    BranchReturned: "returned",
}
"""Events that are kept as they are, and where."""

_RUN_RULES: Final[Mapping[type[Any], Callable[[RunState, Record], RunState]]] = {
    RunCreated: _created,
    ExecutorAttached: _attached,
    RunStateChanged: _run_state,
    CommandApplied: _applied,
    HoldPlaced: _run_hold,
    HoldLifted: _run_hold,
}

_AGENT_RULES: Final[Mapping[type[Any], Callable[[AgentState, Record], AgentState]]] = {
    AgentStateChanged: _agent_state,
    SandboxReady: _sandbox,
    HoldPlaced: _agent_hold,
    HoldLifted: _agent_hold,
    **TASK_RULES,
    ObjectiveChanged: _objective,
    HealthChanged: _health,
    **dict.fromkeys(_KEPT, _kept),
    ApprovalAsked: _asked,
    ApprovalAnswered: _answered,
}
