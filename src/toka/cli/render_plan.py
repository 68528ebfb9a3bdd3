"""A plan as text and as JSON, with the findings of the check beside the agents they are about. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from toka.cli.render_findings import as_json
from toka.cli.text import Paint, line_of, plain, some
from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding
from toka.config.flow import Flow
from toka.config.load import label_of
from toka.core import units
from toka.core.capability import Capability
from toka.core.ids import AgentName
from toka.core.limits import Limits
from toka.core.reference import as_text, references
from toka.orchestration.compiled import Compiled
from toka.orchestration.plan import AgentPlan, Plan
from toka.sandbox.enforcement import Enforcement

WIDTH: Final = 160
LABEL: Final = 10
ITEMS: Final = 8
"""Items of a capability that are shown."""
MAX_LINES: Final = 12
"""Lines of a command that are shown."""


def plan_json(
    plan: Plan, configs: Sequence[AgentConfig], findings: Sequence[Finding], compiled: Mapping[AgentName, Compiled]
) -> dict[str, Any]:
    """The object that `toka plan --json` prints: the plan, what each grant comes to, and all findings as objects."""
    out = plan.to_json()
    told = by_agent(configs, findings)
    for name, agent in plan.agents.items():
        known = told.get(name, [])
        rights = compiled[name].rights.to_json()
        out["agents"][name] |= {"tool_table": rights["tools"], "environment": rights["environment"]}
        out["agents"][name] |= {k: v for k, v in compiled[name].to_json().items() if k != "enforcement"}
        out["agents"][name]["findings"] = [
            *(f.to_json() for f in known),
            *({"code": None, "severity": "warning", "message": text} for text in _further(agent, known)),
        ]
    return {**out, **as_json(findings)}


def plan_lines(
    plan: Plan,
    configs: Sequence[AgentConfig],
    findings: Sequence[Finding],
    compiled: Mapping[AgentName, Compiled],
    default_model: str,
    paint: Paint = plain,
) -> list[str]:
    """The plan for a person."""
    told = by_agent(configs, findings)
    head = f"{some(len(plan.agents), 'agent')} in {some(len(plan.waves), 'wave')}"
    if len(plan.critical_path) > 1:
        head += f"; the longest chain: {' -> '.join(plan.critical_path)}"
    out = [line_of(head, 1_000)]
    for number, wave in enumerate(plan.waves, 1):
        out += ["", paint(f"wave {number}", "dim")]
        for name in wave:
            proven = {edge.on for edge in plan.graph.before[name] if edge.verified}
            out += _agent(plan.agents[name], proven, compiled[name], told.get(name, []), default_model, paint)
    named = {f for fs in told.values() for f in fs}
    rest = [f.text for f in findings if f not in named]
    return [*out, "", *rest] if rest else out


def _agent(
    agent: AgentPlan,
    proven: Collection[AgentName],
    compiled: Compiled,
    findings: Sequence[Finding],
    default_model: str,
    paint: Paint,
) -> list[str]:
    title = "" if agent.title == agent.name else f"  {line_of(agent.title, 80)}"
    out = [f"  {paint(line_of(agent.name), 'bold')}  {agent.priority.lower()}{title}"]
    if agent.needs:
        out.append(_row("needs", ", ".join(f"{n} (verified)" if n in proven else n for n in agent.needs)))
    if agent.after:
        out.append(_row("after", ", ".join(agent.after)))
    tasks = [line for task, what, fixed in agent.tasks for line in _task(task, what, fixed)]
    out += [_row("" if place else "tasks", line) for place, line in enumerate(tasks)]
    if agent.checks[1]:
        out.append(_row("checks", _checks(*agent.checks)))
    out += [_row(label, text) for label, text in _flow(agent.flow)]
    granted = [capability_text(capability) for capability in agent.grant.capabilities] or ["nothing"]
    out += [_row("" if place else "grant", text) for place, text in enumerate(granted)]
    out += [_row("" if place else "taken out", t.text) for place, t in enumerate(agent.taken)]
    out += [_row(label, text) for label, text in _compiled(compiled)]
    out.append(_row("limits", limits_text(agent.limits) or "none"))
    out += [_row("" if place else "held", line) for place, line in enumerate(held_lines(agent.held))]
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


def _flow(flow: Flow | None) -> Iterator[tuple[str, str]]:
    """What passes between agents, in short."""
    if flow is None:
        return
    if flow.for_each is not None:
        each = flow.for_each if isinstance(flow.for_each, str) else some(len(flow.for_each), "element")
        yield "for each", each + (f", {flow.max_parallel} at one time" if flow.max_parallel else "")
    if flow.when:
        yield "when", " and ".join(flow.when)
    if flow.approve:
        after = f" (expires after {units.format_duration(flow.approve.expires)})" if flow.approve.expires else ""
        yield "approval", flow.approve.question + after
    if flow.inputs:
        yield "inputs", ", ".join(f"{name} = {as_text(value)}" for name, value in flow.inputs.items())
    if flow.outputs:
        yield "outputs", ", ".join(f"{name}: {o.type} from {o.path or o.source}" for name, o in flow.outputs.items())
    if flow.env:
        secrets = {name: " ".join(r.text for r in references(v) if r.kind == "secret") for name, v in flow.env.items()}
        yield "env", ", ".join(f"{name} ({named})" if named else name for name, named in secrets.items())
    if flow.repairs is not None:
        yield "repairs", f"at most {flow.repairs}"


def _compiled(compiled: Compiled) -> Iterator[tuple[str, str]]:
    """What the grant comes to, in short: `toka explain grant` says all of it."""
    policy = compiled.rights.policy
    shown = [
        f"{m.rule.path} ({m.rule.access})" for m in compiled.mounts if m.why in ("granted", "missing", "git-access")
    ]
    kept = [m for m in compiled.mounts if m.why in ("protected", "hidden")]
    more = [f"{len(kept)} below them protected or hidden"] if kept else []
    yield "mounts", "; ".join((", ".join(_first(shown)) or "nothing of the workspace", *more))
    if policy.toolchains:
        yield "toolchain", f"{', '.join(_first(policy.toolchains))} (read-only)"
    hosts = [host for c in policy.network for host in c.hosts or ("any public host",)]
    yield "network", f"{', '.join(_first(hosts))} through its proxy" if hosts else "none"
    landlock = f"Landlock {compiled.landlock}" if compiled.landlock else "no Landlock here"
    calls = f"{sum(map(len, compiled.calls.values()))} system calls refused"
    yield "kernel", f"{landlock}, {calls}; all of it: toka explain grant {compiled.rights.agent} SPEC..."


def _task(name: str, what: str, fixed: bool) -> Iterator[str]:  # noqa: FBT001 - as the plan has it
    """A task: of a command all lines, of a goal the first."""
    lines = what.strip().splitlines()
    shown = lines[: MAX_LINES if fixed else 1]
    yield f"{name}: {'$ ' if fixed else ''}{line_of(shown[0] if shown else '', 100)}"
    yield from (f"    {line_of(line, 100)}" for line in shown[1:])
    if rest := len(lines) - len(shown):
        yield f"    [... {rest} more line{'s' if rest > 1 else ''}]"


def _first(items: Sequence[str]) -> list[str]:
    return [*items[:ITEMS], *([f"{len(items) - ITEMS} more"] if len(items) > ITEMS else [])]


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
    if limits.network_bytes is not None:
        out.append(f"{units.format_bytes(limits.network_bytes)} sent and received")
    return ", ".join(out)


def held_lines(held: Sequence[tuple[Enforcement, str]]) -> list[str]:
    """How limits are held: those that are held alike on one line, then each that is best effort with the reason."""
    by: dict[str, list[str]] = {}
    for each, _ in held:
        if each.strict:
            by.setdefault(each.how, []).append(each.limit)
    out = [f"{', '.join(limits)}: {how}" for how, limits in by.items()]
    for each, why in held:
        if not each.strict:
            out.append(f"{each.limit}: best effort, {each.how}" + (f" ({why})" if why else ""))
    return out


def _checks(checked: int, total: int) -> str:
    objectives = some(total, "objective")
    if checked == total:
        return f"{objectives}, all with a check"
    if checked == 0:
        return f"{objectives} without a check, which can only be claimed"
    return f"{checked} of {objectives} with a check; the others can only be claimed"


def capability_text(capability: Capability) -> str:
    """A capability with its first items."""
    name, colon, rest = capability.text.partition(": ")
    items = rest.split(", ")
    if len(items) <= ITEMS:
        return capability.text
    return f"{name}{colon}{', '.join(items[:ITEMS])} and {len(items) - ITEMS} more"


def _row(label: str, text: str, paint: Paint = plain, style: str = "") -> str:
    return f"    {paint(label.ljust(LABEL), style)}{line_of(text, WIDTH)}"


def by_agent(configs: Sequence[AgentConfig], findings: Sequence[Finding]) -> dict[AgentName, list[Finding]]:
    """The findings that are about each agent: those in its file, in a team file those from its name to the next."""
    files: dict[str, list[tuple[tuple[int, int], AgentName]]] = {}
    for config in configs:
        if config.source is not None:
            files.setdefault(label_of(config.source), []).append((config.origin.first, config.name))
    for starts in files.values():
        starts.sort()
    out: dict[AgentName, list[Finding]] = {}
    for finding in findings:
        starts = files.get(finding.file, [])
        place = bisect_right(starts, (finding.line, finding.column), key=lambda start: start[0])
        if place or len(starts) == 1:
            out.setdefault(starts[max(0, place - 1)][1], []).append(finding)
    return out


def _further(agent: AgentPlan, known: Sequence[Finding]) -> list[str]:
    """Warnings of the plan that the check has not found already."""
    said = {f.message for f in known}
    return [w for w in agent.warnings if w not in said]
