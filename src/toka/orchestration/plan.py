"""What will happen when a team is run: places, tasks, compiled grants, limits, warnings. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from toka.config.agent import AgentConfig
from toka.config.flow import Flow
from toka.config.settings import ExecutionConfig
from toka.core.capability import Capability, Grant
from toka.core.catalogue import without_key
from toka.core.ids import AgentName
from toka.core.limits import Limits
from toka.core.message import ToolSpec
from toka.core.reference import references
from toka.core.taken import Taken, taken_json
from toka.orchestration.apart import collisions
from toka.orchestration.dependency import DependencyResolver
from toka.orchestration.enforce import best_effort, held, once_only, why_not
from toka.orchestration.rights import Rights, Terms, limits_json, rights_of
from toka.sandbox.cgroup_find import Hierarchies
from toka.sandbox.enforcement import Enforcement
from toka.sandbox.policy import SandboxPolicy
from toka.tools.tool import spec_of


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent in a plan.

    Attributes:
        name, title, priority: from its spec.
        wave: its wave, from 1.
        needs: required dependencies; `after` are optional ones that are part of the team.
        tasks: (id, what, deterministic) in order.
        checks: how many objectives have a check, of how many there are.
        model: as written: None means the default.
        needs_model: whether a task of it needs one.
        grant: what it gets: what its spec asks for, as far as the operator allows it.
        taken: what the operator takes out of that.
        policy: the same, as the sandbox will be told.
        tools: what the model will be offered.
        limits: its limits.
        held: how each limit that its spec sets for the sandbox is held on this machine, with why no cgroup holds it;
            empty when nobody looked at the machine.
        warnings: what somebody should know before it runs.
        flow: what passes between it and others; None when nothing does.
    """

    name: AgentName
    title: str
    priority: str
    wave: int
    needs: tuple[str, ...]
    after: tuple[str, ...]
    tasks: tuple[tuple[str, str, bool], ...]
    checks: tuple[int, int]
    model: str | None
    needs_model: bool
    grant: Grant
    taken: tuple[Taken, ...]
    policy: SandboxPolicy
    tools: tuple[ToolSpec, ...]
    limits: Limits
    held: tuple[tuple[Enforcement, str], ...]
    warnings: tuple[str, ...]
    flow: Flow | None = None

    def to_json(self) -> dict[str, Any]:
        """The form of `toka plan --json`."""
        return {
            "title": self.title,
            "priority": self.priority,
            "wave": self.wave,
            "needs": list(self.needs),
            "after": list(self.after),
            "tasks": [{"id": i, "what": w, "deterministic": d} for i, w, d in self.tasks],
            "objectives": {"checked": self.checks[0], "total": self.checks[1]},
            "model": self.model,
            "needs_model": self.needs_model,
            "grant": [c.to_json() for c in self.grant.capabilities],
            "taken_out": taken_json(self.taken),
            "sandbox": self.policy.to_json(),
            "tools": [t.name for t in self.tools],
            "limits": limits_json(self.limits),
            "enforcement": [{"limit": e.limit, "how": e.how, "strict": e.strict, "why": why} for e, why in self.held],
            "findings": list(self.warnings),
            "flow": None if self.flow is None else _flow_json(self.flow),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """A team's plan. `waves` and `critical_path` are views of the graph; nothing waits for a wave."""

    agents: Mapping[AgentName, AgentPlan]
    waves: tuple[tuple[AgentName, ...], ...]
    critical_path: tuple[AgentName, ...]
    graph: DependencyResolver

    def to_json(self) -> dict[str, Any]:
        """The object that `toka plan --json` prints."""
        return {
            "waves": [list(w) for w in self.waves],
            "critical_path": list(self.critical_path),
            "agents": {name: agent.to_json() for name, agent in self.agents.items()},
        }


def make_plan(
    configs: Iterable[AgentConfig],
    *,
    enabled: Collection[str] = (),
    capabilities: Mapping[str, tuple[Capability, ...]] | None = None,
    terms: Terms | None = None,
    machine: Hierarchies | None = None,
) -> Plan:
    """Plans a team.

    Args:
        configs: its specs; names are unique.
        enabled: conditional task groups that are switched on.
        capabilities: presets from settings, when there are no `terms`.
        terms: what settings and the place of the run add to the specs; None = nothing but `capabilities`.
        machine: the cgroups that would hold the limits; None = nobody wants to know.

    Raises:
        ConfigError: a required dependency is missing or circular.
    """
    graph = DependencyResolver(configs)
    terms = terms or Terms(presets=capabilities or {})
    agents = {
        name: _agent(graph, name, number, enabled, terms, machine)
        for number, wave in enumerate(graph.waves, 1)
        for name in wave
    }
    told = collisions(graph, {n: each.policy for n, each in agents.items()}, terms.execution.max_concurrent_agents)
    for name, warning in told.items():
        agents[name] = replace(agents[name], warnings=(*agents[name].warnings, warning))
    return Plan(agents, graph.waves, graph.critical_path, graph)


def mermaid(plan: Plan) -> str:
    """The team as a Mermaid flowchart; optional dependencies are dotted."""
    lines = ["flowchart LR"]
    ids = {name: f"a{i}" for i, name in enumerate(plan.graph.order)}
    for name, id_ in ids.items():
        title = plan.agents[name].name.replace('"', "'")
        lines.append(f'  {id_}["{title}"]')
    lines += [f"  {ids[e.on]} {'-->' if e.required else '-.->'} {ids[e.agent]}" for e in plan.graph.edges]
    return "\n".join(lines)


def _agent(
    graph: DependencyResolver,
    name: AgentName,
    wave: int,
    enabled: Collection[str],
    terms: Terms,
    machine: Hierarchies | None,
) -> AgentPlan:
    config = graph.configs[name]
    rights = rights_of(config, terms)
    tasks = config.task_list(enabled)
    needs_model = any(t.run is None for t in tasks)
    checked = sum(1 for o in config.objectives if o.check is not None)
    by = _held(config, rights, machine) if machine is not None else ()
    notes = [note.text for note in config.grant_notes(terms.presets)]
    notes += without_key((request.name for request in config.security.capabilities_required), terms.tools.keyed)
    notes += [*once_only(config), *_refusals(config, rights.policy, by)]
    notes += [
        f"rests on claims: no objective of {edge.on} has a check"
        for edge in graph.before[name]
        if edge.required and (aims := graph.configs[edge.on].objectives) and not any(o.check for o in aims)
    ]
    return AgentPlan(
        name=name,
        title=config.title or name,
        priority=str(config.priority),
        wave=wave,
        needs=tuple(e.on for e in graph.before[name] if e.required),
        after=tuple(e.on for e in graph.before[name] if not e.required),
        tasks=tuple((t.id, t.run or t.description, t.run is not None) for t in tasks),
        checks=(checked, len(config.objectives) + sum(map(len, config.success_criteria.values()))),
        model=config.model,
        needs_model=needs_model,
        grant=rights.grant,
        taken=rights.taken,
        policy=rights.policy,
        tools=tuple(spec_of(t) for t in rights.tools) if needs_model else (),
        limits=_said(config, rights.limits),
        held=by,
        warnings=tuple(notes),
        flow=config.flow,
    )


def _flow_json(flow: Flow) -> dict[str, Any]:
    """The section without what only a run knows; of variables the names, with the secrets that they name."""
    out = flow.model_dump(mode="json", exclude={"env", "template", "item"})
    out["env"] = {name: [r.name for r in references(text) if r.kind == "secret"] for name, text in flow.env.items()}
    return out


def _held(config: AgentConfig, rights: Rights, machine: Hierarchies) -> tuple[tuple[Enforcement, str], ...]:
    """How the limits that a spec sets are held; the number of processes is always limited, and then not told."""
    return tuple(
        (each, why_not(each, machine))
        for each in held(rights.policy, machine, rights.level)
        if each.limit != "processes" or config.limits.processes is not None
    )


def _refusals(config: AgentConfig, policy: SandboxPolicy, by: Iterable[tuple[Enforcement, str]]) -> list[str]:
    """For an agent that wants its limits strict: those for which no run would start."""
    if config.security.enforcement != "strict":
        return []
    loose = [best_effort(policy, each, why) for each, why in by if not each.strict]
    return [f"no run starts here: enforcement is strict, and {said}" for said in loose]


def _said(config: AgentConfig, limits: Limits) -> Limits:
    """The limits, but for the bound of output that every agent has."""
    usual = config.limits.output_bytes is None and limits.output_bytes == ExecutionConfig().output_bytes
    return replace(limits, output_bytes=None) if usual else limits
