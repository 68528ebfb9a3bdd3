"""A plan as text and as JSON, with the findings of the check beside the agents they are about. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from toka.cli.render_findings import as_json
from toka.cli.text import Paint, line_of, plain, some
from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding
from toka.config.load import label_of
from toka.core import units
from toka.core.capability import Capability
from toka.core.ids import AgentName
from toka.core.limits import Limits
from toka.orchestration.plan import AgentPlan, Plan

WIDTH: Final = 160
LABEL: Final = 10
ITEMS: Final = 8
"""Items of a capability that are shown."""


def plan_json(plan: Plan, configs: Sequence[AgentConfig], findings: Sequence[Finding]) -> dict[str, Any]:
    """The object that `toka plan --json` prints: the plan, and all findings as objects."""
    out = plan.to_json()
    by_agent = _by_agent(configs, findings)
    for name, agent in plan.agents.items():
        known = by_agent.get(name, [])
        out["agents"][name]["findings"] = [
            *(f.to_json() for f in known),
            *({"code": None, "severity": "warning", "message": text} for text in _further(agent, known)),
        ]
    return {**out, **as_json(findings)}


def plan_lines(
    plan: Plan,
    configs: Sequence[AgentConfig],
    findings: Sequence[Finding],
    default_model: str,
    paint: Paint = plain,
) -> list[str]:
    """The plan for a person."""
    by_agent = _by_agent(configs, findings)
    head = f"{some(len(plan.agents), 'agent')} in {some(len(plan.waves), 'wave')}"
    if len(plan.critical_path) > 1:
        head += f"; the longest chain: {' -> '.join(plan.critical_path)}"
    out = [line_of(head, 1_000)]
    for number, wave in enumerate(plan.waves, 1):
        out += ["", paint(f"wave {number}", "dim")]
        for name in wave:
            out += _agent(plan.agents[name], by_agent.get(name, []), default_model, paint)
    named = {f for fs in by_agent.values() for f in fs}
    rest = [f.text for f in findings if f not in named]
    return [*out, "", *rest] if rest else out


def _agent(agent: AgentPlan, findings: Sequence[Finding], default_model: str, paint: Paint) -> list[str]:
    title = "" if agent.title == agent.name else f"  {line_of(agent.title, 80)}"
    out = [f"  {paint(line_of(agent.name), 'bold')}  {agent.priority.lower()}{title}"]
    if agent.needs:
        out.append(_row("needs", ", ".join(agent.needs)))
    if agent.after:
        out.append(_row("after", ", ".join(agent.after)))
    for place, (task, what, fixed) in enumerate(agent.tasks):
        title = line_of(what.strip().partition("\n")[0], 100)
        out.append(_row("" if place else "tasks", f"{task}: {'$ ' if fixed else ''}{title}"))
    if agent.checks[1]:
        out.append(_row("checks", _checks(*agent.checks)))
    out.append(_row("grant", "; ".join(map(_capability, agent.grant.capabilities)) or "nothing"))
    out.append(_row("limits", limits_text(agent.limits) or "none"))
    asked = agent.model or f"{default_model} (the default)"
    label = "   SCRIPTED" if asked.startswith("scripted:") else ""
    out.append(_row("model", asked + label if agent.needs_model else "needs none"))
    if agent.tools:
        out.append(_row("tools", ", ".join(t.name for t in agent.tools)))
    for finding in findings:
        style = "warn" if finding.severity == "warning" else "dim"
        where = f" (line {finding.line})" if finding.line else ""
        out.append(_row(finding.severity, f"{finding.code} {finding.message}{where}", paint, style))
    out += [_row("warning", text, paint, "warn") for text in _further(agent, findings)]
    return out


def limits_text(limits: Limits) -> str:
    """The limits that are set, each in its unit: `200,000 tokens, $2.50, 512MB memory`."""
    out: list[str] = []
    if limits.tokens is not None:
        out.append(f"{limits.tokens:,} tokens")
    if limits.cost_usd is not None:
        out.append(units.format_money(limits.cost_usd))
    if limits.model_calls is not None:
        out.append(some(limits.model_calls, "model call"))
    if limits.tool_calls is not None:
        out.append(some(limits.tool_calls, "tool call"))
    if limits.wall_s is not None:
        out.append(f"{units.format_duration(limits.wall_s)} time")
    if limits.cpu_cores is not None:
        out.append(f"{units.format_cpu(limits.cpu_cores)} CPU")
    if limits.processes is not None:
        out.append(some(limits.processes, "process", "processes"))
    sizes = (("memory", limits.memory_bytes), ("disk", limits.disk_bytes), ("output", limits.output_bytes))
    out += [f"{units.format_bytes(size)} {what}" for what, size in sizes if size is not None]
    if limits.network_bps is not None:
        out.append(f"{units.format_rate(limits.network_bps)} network")
    return ", ".join(out)


def _checks(checked: int, total: int) -> str:
    objectives = some(total, "objective")
    if checked == total:
        return f"{objectives}, all with a check"
    if checked == 0:
        return f"{objectives} without a check, which can only be claimed"
    return f"{checked} of {objectives} with a check; the others can only be claimed"


def _capability(capability: Capability) -> str:
    """A capability with its first items."""
    name, colon, rest = capability.text.partition(": ")
    items = rest.split(", ")
    if len(items) <= ITEMS:
        return capability.text
    return f"{name}{colon}{', '.join(items[:ITEMS])} and {len(items) - ITEMS} more"


def _row(label: str, text: str, paint: Paint = plain, style: str = "") -> str:
    return f"    {paint(label.ljust(LABEL), style)}{line_of(text, WIDTH)}"


def _by_agent(configs: Sequence[AgentConfig], findings: Sequence[Finding]) -> dict[AgentName, list[Finding]]:
    files = {label_of(c.source): c.name for c in configs if c.source is not None}
    out: dict[AgentName, list[Finding]] = {}
    for finding in findings:
        if finding.file in files:
            out.setdefault(files[finding.file], []).append(finding)
    return out


def _further(agent: AgentPlan, known: Sequence[Finding]) -> list[str]:
    """Warnings of the plan that the check has not found already."""
    said = {f.message for f in known}
    return [w for w in agent.warnings if w not in said]
