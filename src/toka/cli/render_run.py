"""Runs as a list, and one run with everything that explains it, for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from toka.cli.explain_state import explanation, run_explanation
from toka.cli.questions import question_lines
from toka.cli.render_change import confinement, network_lines, sandbox_lines, workspace_lines
from toka.cli.tally import RunLine, is_scripted
from toka.cli.text import (
    LINE,
    Cell,
    Paint,
    age,
    columns,
    compact,
    line_of,
    lines_of,
    moment,
    money,
    needed,
    plain,
    some,
    span,
)
from toka.cli.view import Denial, RunView, is_meant
from toka.config.parts import Metric
from toka.events.event import NetworkAttempted, SandboxReady
from toka.events.lifecycle import ObjectiveStatus, RunStatus, TaskStatus
from toka.events.state import AgentState, ObjectiveState, TaskState

STYLES: Final = {
    "COMPLETED": "good", "SUCCEEDED": "good", "verified": "good", "FAILED": "bad", "failed": "bad", "UNREADABLE": "bad",
    "STOPPED": "warn", "INTERRUPTED": "warn", "WAITING": "warn", "NEEDS_ATTENTION": "warn", "CANCELLED": "warn",
    "AWAITING_APPROVAL": "warn",
    "RUNNING": "info", "SKIPPED": "dim", "QUEUED": "dim", "claimed": "dim", "CONFIGURED": "dim", "READY": "dim",
}  # fmt: skip
"""Colours only repeat what the word says."""
REASON_LINES: Final = 8
EVIDENCE_LINES: Final = 10
UNDECLARED: Final = 20
"""Figures that no spec declares which are shown of an agent; further ones are counted."""
HEADER: Final = ("RUN", "STATE", "AGENTS", "AGE", "TOOK", "TOKENS", "COST", "MODEL", "WORKSPACE")

Declared = Mapping[str, Sequence[Metric]]
"""The metrics that specs declare, by agent. An agent that is not in it has a spec that cannot be read."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """One figure of an agent.

    Attributes:
        name: as declared, or as reported.
        value: the latest that was reported; None when none was.
        unit: as declared; None when the spec names none.
        declared: whether the spec declares it; None when that is unknown.
    """

    name: str
    value: float | None
    unit: str | None
    declared: bool | None


def list_lines(runs: Sequence[RunLine], now: float, paint: Paint = plain, options: str = "") -> list[str]:
    """A table of runs, each with what to do about it below where there is something to do.

    `options` ends commands that are shown for copying: ` --state DIR`, or nothing.
    """
    rows: list[list[Cell]] = [[(h, "dim") for h in HEADER]]
    rows += [_row(line, now) for line in runs]
    head, *table = columns(rows, (2, 3, 4, 5, 6), paint)
    out = [head]
    for line, text in zip(runs, table, strict=True):
        out.append(text)
        if line.status is None:
            out.append(f"  {line_of(line.reason)}")
            continue
        if level := confinement(line.level):
            out.append(f"  {paint(level, 'warn')}")
        out += [f"  {line_of(agent, 60)} asks: {line_of(question, 200)}" for agent, question in line.asks]
        if (what := hint(line, options)) is not None:
            out.append(paint(f"  {what}", "dim"))
    return out


def hint(line: RunLine, options: str = "") -> str | None:
    """The command that helps a run on; None when nothing is to be done."""
    if line.status is RunStatus.INTERRUPTED:
        return f"toka resume {line.run}{options}"
    return f"toka show {line.run}{options}" if line.status is RunStatus.WAITING or line.asks else None


def _row(line: RunLine, now: float) -> list[Cell]:
    if line.status is None:
        return [line_of(line.run, 60), ("UNREADABLE", "bad")]
    state = line.status.value
    return [
        line_of(line.run, 60),
        (state, STYLES.get(state, "")),
        f"{line.done}/{line.total}",
        age(now - line.started_at) if line.started_at is not None else "-",
        span(line.duration(now)),
        f"{line.tokens:,}",
        money(line.cost_usd),
        model_text(line.models),
        line_of(line.workspace, 120),
    ]


def model_text(models: Sequence[str]) -> str:
    """The models, or SCRIPTED in place of each script; `-` when none was asked."""
    names = dict.fromkeys("SCRIPTED" if is_scripted((m,)) else line_of(m, 60) for m in models)
    shown = list(names)
    if len(shown) > 2:
        return f"{', '.join(shown[:2])} and {len(shown) - 2} more"
    return ", ".join(shown) or "-"


def run_lines(
    view: RunView,
    only: str | None = None,
    paint: Paint = plain,
    declared: Declared | None = None,
    sandboxes: Mapping[str, SandboxReady] | None = None,
    refused: Mapping[str, Sequence[NetworkAttempted]] | None = None,
) -> list[str]:
    """One run, or one agent of it, with the reasons for everything that waits or went wrong.

    Args:
        view: the run.
        only: the one agent to show; None: all.
        paint: how to colour.
        declared: the metrics of its specs; None: unknown.
        sandboxes: the latest sandbox of each agent that had one; None: unknown.
        refused: what each agent asked of the network and did not get; None: unknown.
    """
    state = view.state
    label = f"  {paint('SCRIPTED', 'warn')}: a script answered, no model" if is_scripted(view.models) else ""
    if weak := confinement(state.weakest):
        label += f"  {paint(weak, 'bad' if state.weakest == 'none' else 'warn')}"
    status = view.status.value
    out = [f"run {paint(line_of(state.id, 60), 'bold')}  {paint(status, STYLES.get(status, ''))}{label}"]
    for line in run_explanation(view):
        out += [f"  {text}" for text in lines_of(line, REASON_LINES)]
    out += [f"  {line}" for line in columns(_facts(view))]
    for name, agent in state.agents.items():
        if is_meant(only, name):
            out += ["", *agent_lines(view, agent, paint)]
            out += [f"  {line}" for line in _metrics(gauges(agent, declared or {}), paint)]
            out += [f"  {line}" for event in (refused or {}).get(name, ()) for line in network_lines(event, paint)]
            if sandboxes is not None and name in sandboxes:
                out += [f"  {paint('sandbox', 'dim')}  {line}" for line in sandbox_lines(sandboxes[name])]
    return out


def _facts(view: RunView) -> list[list[Cell]]:
    state = view.state
    agents = state.agents.values()
    until = state.ended_at or (view.now if view.going else state.changed_at)
    tokens = sum(a.usage.tokens for a in agents)
    costs = [a.cost_usd for a in agents]
    cost = None if None in costs else sum(c for c in costs if c is not None)
    rows: list[list[Cell]] = [
        ["workspace", line_of(state.created.workspace if state.created else "-")],
        ["started", f"{moment(state.started_at)}, took {span(until - (state.started_at or until))}"],
        ["agents", f"{sum(a.ended for a in agents)} of {len(state.agents)} have ended"],
        ["used", f"{some(tokens, 'token')}, {money(cost)}"],
        ["model", ", ".join(line_of(m, 120) for m in view.models) or "none was asked"],
    ]
    if view.going and view.lease is not None:
        rows.append(["executor", f"process {view.lease.holder.pid} on {line_of(view.lease.holder.host, 60)}"])
    return rows


def agent_lines(view: RunView, agent: AgentState, paint: Paint = plain) -> list[str]:
    """One agent: status, reason, tasks, objectives, refused calls."""
    done, total = view.done(agent)
    status = agent.status.value
    weak = confinement(agent.level)
    used = [f"{done}/{total} tasks", some(agent.usage.tokens, "token"), money(agent.cost_usd)]
    if agent.made is not None:
        used = [some(agent.made.count, "instance")]
    if agent.tool_calls:
        used.append(some(agent.tool_calls, "tool call"))
    if agent.restarts:
        used.append(some(agent.restarts, "restart"))
    if agent.started_at is not None:
        until = agent.ended_at or (view.now if view.going else agent.changed_at)
        used.append(span(until - agent.started_at))
    head = f"{paint(line_of(agent.name, 100), 'bold')}  {paint(status, STYLES.get(status, ''))}  {', '.join(used)}"
    out = [f"{head}  {paint(weak, 'bad' if agent.level == 'none' else 'warn')}" if weak else head]
    for line in explanation(view, agent):
        out += [f"  {text}" for text in lines_of(line, REASON_LINES)]
    if agent.name in view.items:
        out.append(f"  {paint('item', 'dim')}  {compact(view.items[agent.name], LINE)}")
    for event in (agent.private, agent.returned):
        path = agent.private.path if agent.private is not None else ""
        out += [f"  {line}" for line in workspace_lines(event, paint, path)] if event is not None else ()
    for question in agent.asking:
        out += [f"    {line}" for line in question_lines(view.state.id, agent.name, question, view.now, view.options)]
    out += [f"  {line}" for line in _tasks(view, agent, paint)] if agent.made is None else ()
    for objective in (agent.objectives[n] for n in sorted(agent.objectives)):
        out += [f"  {line}" for line in _objective(objective, paint)]
    for denial in view.denials.get(agent.name, ()):
        out += [f"  {line}" for line in _denial(denial, paint)]
    for name, value in view.values.get(agent.name, {}).items():
        out.append(f"  {paint('left', 'dim')}  {line_of(name, 100)} = {compact(value, LINE)}")
    return out


def _tasks(view: RunView, agent: AgentState, paint: Paint) -> list[str]:
    planned = view.planned.get(agent.name)
    titles = {**(planned.tasks if planned else {})}
    tasks = {**{t: TaskState(t, title) for t, title in titles.items()}, **agent.tasks}
    rows: list[list[Cell]] = []
    for task in tasks.values():
        state = "not run" if agent.ended and task.id not in agent.tasks else task.status.value
        tries = f"attempt {task.attempt}" if task.attempt > 1 else ""
        title = line_of((task.title or titles.get(task.id, "")).strip().partition("\n")[0], 100)
        rows.append([line_of(task.id, 60), (state, STYLES.get(state, "")), " ".join(filter(None, (title, tries)))])
    out: list[str] = []
    for task, line in zip(tasks.values(), columns(rows, paint=paint), strict=True):
        out.append(line)
        out += [f"    {text}" for text in _task_news(task)]
    return out


def _task_news(task: TaskState) -> list[str]:
    if task.status is TaskStatus.SUCCEEDED:
        summary = str((task.report or {}).get("summary", ""))
        return lines_of(summary, 2, 200) if summary else []
    if task.status is TaskStatus.NEEDS_ATTENTION:
        return lines_of(task.question or task.reason, REASON_LINES)
    if task.status in (TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.RETRY_WAIT):
        return lines_of(task.reason or task.why, REASON_LINES)
    return []


def _objective(objective: ObjectiveState, paint: Paint) -> list[str]:
    state = objective.status.value
    repairs = f" (after {some(objective.round, 'repair')})" if objective.round else ""
    title = line_of(objective.title.strip().partition("\n")[0], 120)
    out = [f"objective {objective.number}  {paint(state, STYLES.get(state, ''))}  {title}{repairs}"]
    evidence = objective.evidence
    if not evidence:
        return out
    ended = f"exited with {evidence.get('exit')}" if evidence.get("ended") == "exited" else str(evidence.get("ended"))
    out.append(f"    `{line_of(str(evidence.get('command', '')), 120)}` {line_of(ended, 60)}")
    if objective.status is ObjectiveStatus.FAILED:
        out += [f"    | {text}" for text in lines_of(str(evidence.get("output", "")), EVIDENCE_LINES, 200)]
    return out


def _denial(denial: Denial, paint: Paint) -> list[str]:
    times = f", {denial.count} times" if denial.count > 1 else ""
    what = f"{line_of(denial.tool, 60)} {compact(denial.arguments, 120)}" if denial.arguments else denial.tool
    return [
        f"{paint('denied', 'warn')} {what} in {line_of(denial.task, 60)}{times}",
        f"    {line_of(denial.reason, 300)} (rule: {line_of(denial.rule, 120)})",
        *([f"    {line_of(fix, 300)}"] if (fix := needed(denial.place, denial.patch)) else []),
    ]


def gauges(agent: AgentState, declared: Declared) -> list[Gauge]:
    """An agent's figures: the declared ones in the order of its spec, then the others as they were reported."""
    known = declared.get(agent.name)
    units = {m.name: m.unit for m in known or ()}
    out = [Gauge(name, agent.metrics.get(name), unit, declared=True) for name, unit in units.items()]
    other = None if known is None else False
    return out + [Gauge(name, value, None, other) for name, value in agent.metrics.items() if name not in units]


def gauges_json(agent: AgentState, declared: Declared) -> list[dict[str, Any]]:
    """The same for `toka show --json`: {"name", "value": null when not reported, "unit", "declared"}."""
    return [asdict(gauge) for gauge in gauges(agent, declared)]


def _metrics(figures: Sequence[Gauge], paint: Paint) -> list[str]:
    others = [g for g in figures if not g.declared]
    shown = [g for g in figures if g.declared] + others[:UNDECLARED]
    rows: list[list[Cell]] = []
    for gauge in shown:
        value = "not reported" if gauge.value is None else f"{float(gauge.value):,.12g}"
        text = f"{value} {line_of(gauge.unit, 40)}" if gauge.unit and gauge.value is not None else value
        cell: Cell = (text, "dim") if gauge.value is None else text
        note: list[Cell] = [("not declared in the spec", "dim")] if gauge.declared is False else []
        rows.append([f"metric {line_of(gauge.name, 60)}", cell, *note])
    more = len(others) - UNDECLARED
    return columns(rows, paint=paint) + ([f"and {some(more, 'more figure')} not declared"] if more > 0 else [])


def list_json(line: RunLine, now: float, options: str = "") -> dict[str, Any]:
    """One line of `toka ps --json`."""
    return {
        "type": "run",
        "run_id": line.run,
        "state": line.status.value if line.status else "UNREADABLE",
        "reason": line.reason,
        "agents": {"done": line.done, "total": line.total},
        "started_at": line.started_at,
        "ended_at": line.ended_at,
        "duration_s": round(line.duration(now), 3),
        "tokens": line.tokens,
        "cost_usd": line.cost_usd,
        "workspace": line.workspace,
        "models": list(line.models),
        "scripted": line.scripted,
        "sandbox": line.level,
        "executor": {"pid": line.executor[0], "host": line.executor[1]} if line.executor else None,
        "asks": [{"agent": agent, "question": question} for agent, question in line.asks],
        "hint": hint(line, options),
    }
