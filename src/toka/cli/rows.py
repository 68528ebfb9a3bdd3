"""A run in words: one row for each agent, one line for each change. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from toka.cli.text import SHORT, clean, clock
from toka.events.lifecycle import TASK_ENDS, AgentStatus, ObjectiveStatus, TaskStatus
from toka.events.state import AgentState, RunState, TaskState
from toka.runtime.progress import ProgressEvent

NAME_WIDTH: Final = 24
"""Columns that the longest agent's name may take."""
TITLE_WIDTH: Final = 120
"""Characters of a task's description when it starts."""
_ORDER: Final = (AgentStatus.FAILED, AgentStatus.WAITING, AgentStatus.RUNNING, AgentStatus.STARTING)
_TASK_LINES: Final = {
    "task_started": "{task}: {text}",
    "repair_started": "{task}: {text}",
    "task_succeeded": "{task} done: {text}",
    "repair_succeeded": "{task} done: {text}",
    "task_failed": "{task} failed: {text}",
    "task_skipped": "{task} skipped: {text}",
    "task_cancelled": "{task} cancelled: {text}",
    "task_needs_attention": "{task} needs a person: {text}",
    "approval_asked": "{task} asks: {text}",
    "approval_answered": "{task}: {text}",
    "step_in_doubt": "{task} in doubt: {text}",
    "tool_denied": "{text}",
}
"""How an event about a task reads; other kinds: the task and the text."""


@dataclass(frozen=True, slots=True)
class Row:
    """One agent as the live view shows it.

    Attributes:
        agent: its name.
        status: its state.
        task: what it does now: id and description; empty when nothing.
        attempt: which try of the task this is; 0 when there is none.
        done: tasks that ended, `total`: of how many.
        tokens: used so far.
        note: what it waits for, why it ended badly, or how its objectives stand.
    """

    agent: str
    status: AgentStatus
    task: str = ""
    attempt: int = 0
    done: int = 0
    total: int = 0
    tokens: int = 0
    note: str = ""


def row_of(agent: AgentState, total: int, waits_for: tuple[str, ...] = ()) -> Row:
    """One agent's row.

    Args:
        agent: its state.
        total: how many tasks it has, as far as is known.
        waits_for: agents that must end before it starts.
    """
    task = current_task(agent)
    done = sum(1 for t in agent.tasks.values() if t.status in TASK_ENDS)
    if agent.made is not None:
        what = f"{agent.made.count} instances"
    elif task is not None:
        what = f"{task.id}: {task.title}" if task.title and task.title != task.id else task.id
    else:
        what = "checks its objectives" if agent.status is AgentStatus.RUNNING and 0 < total <= done else ""
    note = _note(agent, task, waits_for)
    attempt = task.attempt if task else 0
    return Row(agent.name, agent.status, clean(what), attempt, done, total, agent.usage.tokens, clean(note))


def rows_of(
    state: RunState, before: Mapping[str, Sequence[str]], totals: Mapping[str, int], limit: int
) -> tuple[list[Row], str]:
    """The rows of a run, at most `limit`, and what was left out, in words.

    When there are too many, agents that failed, wait or run come before those that have nothing to tell.

    Args:
        state: the run's state.
        before: all agents in the order of the plan, each with the agents that must end before it starts.
        totals: how many tasks each agent has, as far as is known.
        limit: rows at most.
    """
    names, left_out = list(before), ""
    if len(names) > limit:
        names, left_out = _most_urgent(state, names, limit)
    rows: list[Row] = []
    for name in names:
        open_ = tuple(on for on in before[name] if not _agent(state, on).ended)
        rows.append(row_of(_agent(state, name), totals.get(name, 0), open_))
    return rows, left_out


def _most_urgent(state: RunState, names: list[str], limit: int) -> tuple[list[str], str]:
    rank = {status: at for at, status in enumerate(_ORDER)}
    place = {name: at for at, name in enumerate(names)}
    urgent = sorted(names, key=lambda n: (rank.get(_agent(state, n).status, len(rank)), place[n]))
    rest = urgent[limit:]
    counts = Counter(_agent(state, n).status.value for n in rest)
    words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return sorted(urgent[:limit], key=place.__getitem__), f"and {len(rest)} more: {words}"


def _agent(state: RunState, name: str) -> AgentState:
    return state.agents.get(name) or AgentState(name)


def event_line(event: ProgressEvent, done: int, total: int, width: int = 0) -> str:
    """One change as a line: local time, tasks ended of all known ones, whom it concerns, what happened.

    Args:
        event: the change.
        done: tasks ended in the whole run.
        total: tasks known in the whole run.
        width: columns for the agent's name.
    """
    return f"{_head(event.at, done, total)}  {clean(event.agent, NAME_WIDTH):<{width}}  {event_text(event)}".rstrip()


def event_text(event: ProgressEvent) -> str:
    """What happened, with the task it concerns and without the agent."""
    text = clean(event.text, TITLE_WIDTH if event.kind.endswith("_started") else SHORT)
    if text.startswith("`") and text.count("`") == 1:
        text += " …`"  # the first of several lines of a command
    if not event.task:
        return text
    return _TASK_LINES.get(event.kind, "{task} {text}").format(task=clean(event.task, NAME_WIDTH), text=text)


def heartbeat_line(state: RunState, done: int, total: int, now: float) -> str:
    """A line for a time in which nothing changed: who does what, who waits."""
    busy: list[str] = []
    waiting: list[str] = []
    for agent in state.agents.values():
        task = current_task(agent)
        if agent.status in (AgentStatus.RUNNING, AgentStatus.STARTING):
            busy.append(f"{clean(agent.name, NAME_WIDTH)} {clean(task.id, NAME_WIDTH) if task else 'checks'}")
        elif not agent.ended:
            waiting.append(clean(agent.name, NAME_WIDTH))
    parts = [f"{word} {listed(names)}" for word, names in (("running:", busy), ("waiting:", waiting)) if names]
    return f"{_head(now, done, total)}  {'; '.join(parts) or 'nothing runs'}"


def current_task(agent: AgentState) -> TaskState | None:
    """The task an agent is at; None before the first, between tasks, and after the end."""
    if agent.ended:
        return None
    open_ = [t for t in agent.tasks.values() if t.status not in TASK_ENDS and t.status is not TaskStatus.QUEUED]
    return open_[-1] if open_ else None


def objectives_in_words(agent: AgentState) -> str:
    """How an agent's objectives stand: `2 verified, 1 claimed`; empty when there are none yet."""
    counts = Counter(o.status for o in agent.objectives.values())
    order = (ObjectiveStatus.VERIFIED, ObjectiveStatus.CLAIMED, ObjectiveStatus.FAILED, ObjectiveStatus.PENDING)
    return ", ".join(f"{counts[s]} {s.value}" for s in order if counts[s])


def listed(items: list[str], limit: int = 6) -> str:
    """The first items, and how many more there are."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _head(at: float, done: int, total: int) -> str:
    digits = len(str(total))
    return f"{clock(at)}  {done:>{digits}}/{total}"


def _note(agent: AgentState, task: TaskState | None, waits_for: tuple[str, ...]) -> str:
    if agent.holds:
        return "; ".join(f"held: {hold}" + (f" ({reason})" if reason else "") for hold, reason in agent.holds.items())
    if agent.status is AgentStatus.CONFIGURED:
        return f"after {listed(list(waits_for))}" if waits_for else "waits for its turn"
    denied = f"{agent.denied} denied" if agent.denied else ""
    standing = ", ".join(part for part in (objectives_in_words(agent), denied) if part)
    if agent.status is AgentStatus.COMPLETED:
        return standing
    if task is not None and task.status is TaskStatus.RETRY_WAIT:
        return f"tries again: {task.reason}"
    if task is not None and task.status is TaskStatus.NEEDS_ATTENTION:
        return task.question or task.reason
    if task is not None and task.status is TaskStatus.AWAITING_APPROVAL:
        return f"awaits approval: {task.reason}"
    if agent.status is AgentStatus.WAITING and agent.why == "approval":
        return f"awaits approval: {agent.reason}"
    return agent.reason or standing
