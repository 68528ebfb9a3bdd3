"""One run as the object that `toka show --json` prints. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from toka.cli.explain_state import explanation, run_explanation
from toka.cli.questions import question_json
from toka.cli.tally import is_scripted
from toka.cli.view import RunView, is_meant
from toka.events.state import AgentState, TaskState


def run_json(view: RunView, only: str | None = None) -> dict[str, Any]:
    """All that `run_lines` shows, and more."""
    state, created = view.state, view.state.created
    return {
        "type": "run",
        "run_id": state.id,
        "state": view.status.value,
        "reason": state.reason,
        "explanation": run_explanation(view),
        "scripted": is_scripted(view.models),
        "sandbox": state.weakest,
        "models": list(view.models),
        "workspace": created.workspace if created else "",
        "started_at": state.started_at,
        "ended_at": state.ended_at,
        "changed_at": state.changed_at,
        "holds": dict(state.holds),
        "requests": [
            {"id": c.id, "verb": c.verb, "agent": c.agent or None, "arguments": dict(c.arguments), "author": c.author,
             "reason": c.reason}
            for c in view.noted
        ],
        "executor": {"pid": view.lease.holder.pid, "host": view.lease.holder.host}
        if view.going and view.lease
        else None,
        "agents": {name: agent_json(view, agent) for name, agent in state.agents.items() if is_meant(only, name)},
    }  # fmt: skip


def agent_json(view: RunView, agent: AgentState) -> dict[str, Any]:
    """One agent."""
    done, total = view.done(agent)
    planned = view.planned.get(agent.name)
    tasks = {t: TaskState(t, title) for t, title in planned.tasks.items()} if planned else {}
    usage = agent.usage
    return {
        "state": agent.status.value,
        "reason": agent.reason,
        "why": agent.why,
        "explanation": explanation(view, agent),
        "holds": dict(agent.holds),
        "needs": list(planned.needs) if planned else [],
        **({"item": view.items[agent.name]} if agent.name in view.items else {}),
        **_workspace(agent),
        "outputs": dict(view.values.get(agent.name, {})),
        "progress": {"done": done, "total": total},
        "tasks": [_task(t, recorded=t.id in agent.tasks or not agent.ended) for t in {**tasks, **agent.tasks}.values()],
        "approvals": [question_json(each) for each in agent.approvals.values()],
        "objectives": [
            {"number": n, "title": o.title, "state": o.status.value, "round": o.round, "evidence": o.evidence}
            for n, o in sorted(agent.objectives.items())
        ],
        "denials": [
            {"task": d.task, "tool": d.tool, "rule": d.rule, "reason": d.reason, "arguments": d.arguments,
             "count": d.count, "place": d.place, "patch": d.patch}
            for d in view.denials.get(agent.name, ())
        ],
        "tokens": usage.tokens,
        "usage": {
            "input": usage.input_tokens, "output": usage.output_tokens, "cache_read": usage.cache_read_tokens,
            "cache_write": usage.cache_write_tokens, "calls": usage.calls,
        },
        "cost_usd": None if agent.cost_usd is None else round(agent.cost_usd, 6),
        "tool_calls": agent.tool_calls,
        "denied": agent.denied,
        "restarts": agent.restarts,
        "started_at": agent.started_at,
        "ended_at": agent.ended_at,
    }  # fmt: skip


def _workspace(agent: AgentState) -> dict[str, Any]:
    """The private workspace of an agent that has one, and what became of its branch (null before it is done)."""
    if agent.private is None:
        return {}
    made = {"how": agent.private.how, "path": agent.private.path}
    if agent.private.how == "copy":
        return {"workspace": made}
    returned = asdict(agent.returned) if agent.returned is not None else None
    return {"workspace": {**made, "branch": agent.private.branch, "base": agent.private.base, "returned": returned}}


def _task(task: TaskState, *, recorded: bool) -> dict[str, Any]:
    """One task; its state is null when the agent ended before it."""
    return {
        "id": task.id,
        "title": task.title,
        "state": task.status.value if recorded else None,
        "attempt": task.attempt,
        "reason": task.reason,
        "why": task.why,
        "question": task.question,
        "report": task.report,
        "in_flight": dict(task.in_flight),
        "tokens": task.usage.tokens,
        "tool_calls": task.tool_calls,
        "denied": task.denied,
    }
