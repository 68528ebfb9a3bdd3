"""How a run ended, for people: state, agents, objectives, denials, cost, and where to look further."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from toka.cli.door import pages
from toka.cli.explain_state import restarts_spent
from toka.cli.questions import doubt_lines, question_lines, questions_of
from toka.cli.render_change import confinement, not_back
from toka.cli.rows import NAME_WIDTH, objectives_in_words
from toka.cli.tally import is_scripted
from toka.cli.text import clean, columns, money, needed, some, span
from toka.cli.view import Denial, denials_of, planned_of
from toka.core.ids import RunId
from toka.errors import NotFound
from toka.events.event import StepDenied, StepDone
from toka.events.lifecycle import AgentStatus, ObjectiveStatus, TaskStatus
from toka.events.record import Record
from toka.events.state import AgentState, RunState
from toka.journal.journal import Reader
from toka.orchestration.result import RunResult
from toka.runtime.values import template_of

SHOWN: Final = 30
"""Agents, objectives and denials that are listed; further ones are counted."""
_HELD: Final = (AgentStatus.CRASH_LOOP, AgentStatus.QUARANTINED)
_BAD: Final = (AgentStatus.WAITING, AgentStatus.FAILED)


@dataclass(frozen=True, slots=True)
class Details:
    """What a run's state does not tell and its record does.

    Attributes:
        denied: refused calls by agent.
        models: the models that answered, in order of their first answer.
        tasks: ids of all tasks of agents that did not come to all of them, by the name in their spec.
    """

    denied: Mapping[str, tuple[Denial, ...]] = field(default_factory=dict[str, tuple[Denial, ...]])
    models: tuple[str, ...] = ()
    tasks: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])


def details_of(reader: Reader, run: RunId, state: RunState | None = None) -> Details:
    """Reads a run's record, a page at a time, and of agents of `state` that are not done the tasks. JournalError."""
    denied: list[Record] = []
    models: dict[str, None] = {}
    for records in pages(reader, run):
        for record in records:
            event = record.event
            if isinstance(event, StepDenied):
                denied.append(record)
            elif isinstance(event, StepDone) and event.model:
                models[event.model] = None
    return Details(denials_of(denied), tuple(models), _tasks(reader, state) if state is not None else {})


def _tasks(reader: Reader, state: RunState) -> dict[str, frozenset[str]]:
    undone = [a for a in state.agents.values() if a.tasks and a.status is not AgentStatus.COMPLETED]
    if not undone or state.created is None:
        return {}
    try:
        specs = reader.blob(state.created.specs)
    except NotFound:
        return {}
    planned = planned_of(specs, state.created.enabled, {_spec_of(a) for a in undone})
    return {name: frozenset(each.tasks) for name, each in planned.items()}


def _spec_of(agent: AgentState) -> str:
    return template_of(agent.name) or agent.name


def summary_lines(result: RunResult, *, options: str = "", details: Details | None = None) -> list[str]:
    """The end of a run.

    Args:
        result: the run as it stands.
        options: what commands about this run need besides its id, such as ` --state DIR`.
        details: from `details_of`; None: denials are only counted, and a model is known only when the command named it.
    """
    state = result.state
    lines = [_head(result, details)]
    if result.reason:
        lines.append(f"  {clean(result.reason)}")
    lines += [
        "",
        *_agents(state, details.tasks if details else {}),
        *_spent(state),
        *_objectives(state),
        *_denials(state, details),
        *_not_back(state),
        *_questions(state, options),
        *doubt_lines(state, options),
        *_held(state, options),
    ]
    lines += ["", _use(state), "", "look further"]
    lines += [f"  {command}{options}" for command in _commands(state)]
    return lines


def done_json(result: RunResult, details: Details) -> dict[str, Any]:
    """The `done` record of `--json`: the result, and whether a script answered in place of a model."""
    return {**result.to_json(), "scripted": is_scripted(details.models)}


def _head(result: RunResult, details: Details | None) -> str:
    state = result.state
    took = max(0.0, (state.ended_at or state.changed_at) - (state.started_at or state.changed_at))
    line = f"run {result.run} {result.status.value} after {span(took)}"
    models = list(details.models) if details else [state.created.model or ""] if state.created else []
    if is_scripted(models):
        line += "   SCRIPTED: the model's replies come from a script, everything else is real"
    weak = confinement(state.weakest)
    return f"{line}   {weak}" if weak else line


def _agents(state: RunState, tasks: Mapping[str, frozenset[str]]) -> list[str]:
    agents = _in_order(state)
    bad = [a for a in agents if a.status is not AgentStatus.COMPLETED]
    shown = agents if len(agents) <= SHOWN else [*bad, *(a for a in agents if a not in bad)][:SHOWN]
    lines = ["  " + line for line in columns([_agent(a, tasks.get(_spec_of(a), frozenset())) for a in shown])]
    return lines + _more(len(agents) - len(shown), "agents")


def _spent(state: RunState) -> list[str]:
    return ["", f"  {told}"] if (told := restarts_spent(state)) else []


def _in_order(state: RunState) -> list[AgentState]:
    """The agents as they started; those that never did come last."""
    return sorted(state.agents.values(), key=lambda a: (a.started_at is None, a.started_at or 0.0))


def _agent(agent: AgentState, planned: frozenset[str]) -> tuple[str, ...]:
    succeeded = sum(1 for t in agent.tasks.values() if t.status is TaskStatus.SUCCEEDED)
    done = f"{succeeded}/{len(planned | agent.tasks.keys())} tasks" if agent.tasks else ""
    if agent.made is not None:
        done = some(agent.made.count, "instance")
    tokens = f"{agent.usage.tokens:,} tokens" if agent.usage.tokens else ""
    repairs = sum(1 for t in agent.tasks if t.startswith("repair-"))
    facts = [
        objectives_in_words(agent),
        some(repairs, "repair") if repairs else "",
        f"{agent.denied} denied" if agent.denied else "",
        some(agent.restarts, "restart") if agent.restarts else "",
        "" if agent.status is AgentStatus.COMPLETED else clean(agent.reason, 160),
    ]
    return clean(agent.name, NAME_WIDTH), agent.status.value, done, tokens, "; ".join(f for f in facts if f)


def _objectives(state: RunState) -> list[str]:
    order = (ObjectiveStatus.FAILED, ObjectiveStatus.PENDING, ObjectiveStatus.CLAIMED, ObjectiveStatus.VERIFIED)
    every = [(a.name, o) for a in _in_order(state) for _, o in sorted(a.objectives.items())]
    shown = every if len(every) <= SHOWN else sorted(every, key=lambda each: order.index(each[1].status))[:SHOWN]
    if not shown:
        return []
    cells = [
        (
            o.status.value,
            clean(name, NAME_WIDTH),
            clean(o.title, 100) + (f" (after repair {o.round})" if o.round else ""),
        )
        for name, o in shown
    ]
    rows = [f"  {line}" for line in columns(cells)]
    return ["", "objectives", *rows, *_more(len(every) - len(shown), "objectives")]


def _denials(state: RunState, details: Details | None) -> list[str]:
    total = sum(a.denied for a in state.agents.values())
    if not total:
        return []
    if details is None:
        return ["", f"denied: {some(total, 'tool call')}"]
    every = [(agent, d) for agent, denials in details.denied.items() for d in denials]
    shown = every[:SHOWN]
    rows = [row for agent, denial in shown for row in _denial(agent, denial)]
    return ["", "denied", *rows, *_more(len(every) - len(shown), "kinds of denied calls")]


def _denial(agent: str, denial: Denial) -> Iterator[str]:
    times = f", {denial.count} times" if denial.count > 1 else ""
    said = f"{clean(denial.tool, 60)}{times}: {clean(denial.reason, 160)}   rule: {clean(denial.rule, 100)}"
    yield f"  {clean(agent, NAME_WIDTH)}  {said}"
    if fix := needed(denial.place, denial.patch):
        yield f"      {clean(fix, 200)}"


def _not_back(state: RunState) -> list[str]:
    """What stays in private workspaces although a branch was to bring it back, and where that is."""
    every = [
        (clean(a.name, NAME_WIDTH), f"{what}; in {clean(a.private.path)}")
        for a in _in_order(state)
        if a.private is not None and a.returned is not None and (what := not_back(a.returned))
    ]
    rows = [f"  {line}" for line in columns(every[:SHOWN])]
    return ["", "did not come back", *rows, *_more(len(every) - SHOWN, "agents")] if every else []


def _questions(state: RunState, options: str) -> list[str]:
    every = questions_of(state)
    out = ["", "waits for a person"] if every else []
    for agent, question in every[:SHOWN]:
        out.append(f"  {clean(agent, NAME_WIDTH)} asks: {clean(question.question, 160)}")
        about = question_lines(state.id, agent, question, state.changed_at, options)
        out += [f"    {line}" for line in about]
    return out + _more(len(every) - len(out and every[:SHOWN]), "questions")


def _held(state: RunState, options: str) -> list[str]:
    """Agents that only a person lets go on, each with the commands that do, or that end the run."""
    held = [a for a in _in_order(state) if a.status in _HELD]
    out = ["", "held until a person decides"] if held else []
    for agent in held[:SHOWN]:
        out.append(f"  {clean(agent.name, NAME_WIDTH)} is in {agent.status.value}; one of")
        about = f"{state.id} {shlex.quote(clean(agent.name))}"
        out += [f"    toka {each}{options}" for each in (f"retry {about}", f"resume {about}", f"stop {state.id}")]
    return out + _more(len(held) - SHOWN, "agents")


def _use(state: RunState) -> str:
    agents = list(state.agents.values())
    tokens = sum(a.usage.tokens for a in agents)
    calls = sum(a.usage.calls for a in agents)
    tools = sum(a.tool_calls for a in agents)
    costs = [a.cost_usd for a in agents]
    cost = None if any(c is None for c in costs) else sum(c or 0.0 for c in costs)
    return f"{tokens:,} tokens in {some(calls, 'model call')}, {some(tools, 'tool call')}, cost {money(cost)}"


def _commands(state: RunState) -> list[str]:
    agents = _in_order(state)
    bad = [a.name for status in (*_HELD, *_BAD) for a in agents if a.status is status and a.made is None]
    curious = [
        *bad,
        *(a.name for a in agents if a.denied),
        *(a.name for a in agents if a.usage.calls),
        *(a.name for a in agents if a.made is None),
    ]
    logs = [f"toka logs {state.id} {shlex.quote(clean(curious[0]))}"] if curious else []
    return [f"toka show {state.id}", *logs, f"toka events {state.id}", f"toka audit verify {state.id}"]


def _more(count: int, what: str) -> list[str]:
    return [f"  and {count} more {what}"] if count > 0 else []
