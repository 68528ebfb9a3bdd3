"""Why an agent waits, or ended as it did, in sentences. Pure."""

from __future__ import annotations

from typing import Final

from toka.cli.questions import is_late, late_text, resolving
from toka.cli.text import age, line_of, moment
from toka.cli.view import Planned, RunView
from toka.events.health import Health, Rung
from toka.events.lifecycle import AGENT_ENDS, AgentStatus, RunStatus, TaskStatus
from toka.events.state import AgentState, RunState
from toka.events.steps import UNKEPT
from toka.journal.journal import Command
from toka.orchestration.settled import recorded_execution
from toka.runtime.restart import used_up

_LIFTED = {
    "person": "toka resume {run}",
    "health": "toka resume {run}",
    "budget": "raise the limit, then toka resume {run}",
    "approval": "approve or deny the request",
}


def run_explanation(view: RunView) -> list[str]:
    """Why the run stands as it does, and what to do about it; empty when there is nothing to say."""
    run = f"{view.state.id}{view.options}"
    out = [f"held by {hold}: {reason or 'no reason given'}" for hold, reason in view.state.holds.items()]
    if view.status is RunStatus.INTERRUPTED:
        out.append(f"{_executor_gone(view)}; nothing recorded is lost. Go on with: toka resume {run}")
    elif view.status is RunStatus.WAITING:
        out.append(f"waits for a person: {view.state.reason}" if view.state.reason else "waits for a person")
    elif view.state.reason:
        out.append(view.state.reason)
    if spent := restarts_spent(view.state):
        out.append(spent)
    if view.unkept:
        out.append(UNKEPT.format(why=view.unkept))
    return out + [_noted(each) for each in view.noted]


def _noted(command: Command) -> str:
    """What somebody asked for, of which no process knows yet."""
    task, answer = command.arguments.get("task", ""), command.arguments.get("answer", "")
    what = f" task {task}: {answer}" if command.verb == "resolve" else ""
    whom = f" of {command.agent}" if what and command.agent else f" {command.agent}" if command.agent else ""
    why = f" ({command.reason})" if command.reason else ""
    return f"noted, and not taken up yet: {command.verb}{what}{whom}, by {command.author or 'nobody'}{why}"


def restarts_spent(state: RunState) -> str:
    """Says that no agent of the run is restarted any more; empty when that is not so."""
    told = used_up(state.agents, recorded_execution(state.created).run_restarts) if state.created else ""
    return f"{told}: whoever crashes or fails now is not restarted" if told else ""


def explanation(view: RunView, agent: AgentState) -> list[str]:
    """Why the agent waits, or how it ended, one sentence each; empty when it goes without saying."""
    if agent.status in AGENT_ENDS:
        return _ending(agent)
    out = _approvals(view, agent) + _questions(view, agent)
    if agent.retry is not None and view.status is not RunStatus.RUNNING:
        out.append(f"is to be tried again ({agent.retry or 'no reason given'})")
    for hold, reason in {**view.state.holds, **agent.holds}.items():
        lift = _LIFTED.get(hold, "toka resume {run}").format(run=f"{view.state.id}{view.options}")
        out.append(f"held by {hold}: {reason or 'no reason given'}; to go on: {lift}")
    out += _health(agent)
    if out:
        return out
    if agent.status is AgentStatus.BACKOFF:
        return [_backoff(view, agent)]
    if agent.status is AgentStatus.PAUSED and view.going:
        return ["was resumed and waits for a free place: only so many agents run at one time"]
    if agent.status in (AgentStatus.CONFIGURED, AgentStatus.READY):
        return [_not_started(view, agent)]
    if view.status is RunStatus.INTERRUPTED:
        flying = ", ".join(in_flight(agent))
        middle = f", in the middle of {flying}" if flying else ""
        return [f"was {agent.status.lower()} when its process went away{middle}"]
    if agent.reason:
        return [f"{agent.status.lower()}: {agent.reason}"]
    waiting = [f"task {t.id} is tried again soon: {t.reason}" for t in agent.tasks.values()
               if t.status is TaskStatus.RETRY_WAIT]  # fmt: skip
    waiting += [f"task {t.id} waits for its turn to write: {t.waits} writes to the same paths and is before it"
                for t in agent.tasks.values() if t.waits]  # fmt: skip
    return waiting or [f"now: {each}" for each in in_flight(agent)]


def _ending(agent: AgentState) -> list[str]:
    if agent.status is AgentStatus.COMPLETED:
        return []
    return [agent.reason or agent.why or f"{agent.status.lower()} without a reason", *_health(agent)]


_DONE: Final = {
    Rung.NUDGE: "its model was told so",
    Rung.RESTART: "it was set back to where it last got somewhere",
    Rung.HOLD: "it was held",
}


def _health(agent: AgentState) -> list[str]:
    """What was last found wrong with it, and done about it; empty while it is healthy."""
    if agent.health is Health.HEALTHY or agent.found is None or agent.status is AgentStatus.QUARANTINED:
        return []
    task = f" in task {agent.found.task}" if agent.found.task else ""
    return [f"{agent.health.value}{task}: {agent.found.seen}; {_DONE[Rung(agent.found.rung)]}"]


def _backoff(view: RunView, agent: AgentState) -> str:
    """Why it is restarted, and when."""
    what = f"crashed ({agent.crashes}" if agent.why == "crash" else f"failed ({agent.failures}"
    crashed = f"{what} in a row): {agent.reason}"
    if agent.until is None or not view.going:
        return crashed
    left = max(0.0, agent.until - view.now)
    now = f"toka retry {view.state.id} {agent.name}{view.options}"
    return f"{crashed}; is restarted in {left:.0f} s, or now with: {now}"


def _approvals(view: RunView, agent: AgentState) -> list[str]:
    return [
        f"asked: {each.question} ({late_text(each)})"
        if is_late(each, view.now)
        else f"awaits approval since {moment(each.asked_at)}: {each.question}"
        for each in agent.asking
    ]


def _questions(view: RunView, agent: AgentState) -> list[str]:
    first = {
        str(c.arguments.get("task")): c for c in reversed(view.noted) if c.verb == "resolve" and c.agent == agent.name
    }
    return [
        f"task {t.id} is answered: {noted.arguments.get('answer')} by {noted.author or 'nobody'}; no process has taken "
        "that up yet"
        if (noted := first.get(t.id)) is not None
        else f"task {t.id} needs an answer: {t.question or t.reason} "
        f"({resolving(view.state, agent.name, t.id, view.options)})"
        for t in agent.tasks.values()
        if t.status is TaskStatus.NEEDS_ATTENTION
    ]


def _not_started(view: RunView, agent: AgentState) -> str:
    needs = view.planned.get(agent.name, Planned()).needs
    open_ = [
        f"{name} ({state.status.value})"
        for name in needs
        if (state := view.state.agents.get(name)) is not None and state.status is not AgentStatus.COMPLETED
    ]
    if open_:
        return f"waits for {', '.join(open_)}"
    if not view.going:
        return "had not started when its run's process went away"
    return "waits for a free place: only so many agents run at one time"


def in_flight(agent: AgentState) -> list[str]:
    """What an agent is in the middle of, each with its task."""
    return [
        f"{line_of(what, 80)} (task {task.id})" for task in agent.tasks.values() for what in task.in_flight.values()
    ]


def _executor_gone(view: RunView) -> str:
    if view.lease is None:
        return "no process executes it"
    holder = view.lease.holder
    return f"process {holder.pid} on {holder.host} went away, last heard of {age(view.now - view.state.changed_at)} ago"
