"""What will happen when a team is run: places, tasks, compiled grants, limits, warnings. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from toka.config.agent import AgentConfig
from toka.core.capability import Capability, Grant
from toka.core.ids import AgentName
from toka.core.limits import KINDS, Limits
from toka.core.message import ToolSpec
from toka.orchestration.dependency import DependencyResolver
from toka.orchestration.enforce import unenforced, unopened
from toka.sandbox.policy import SandboxPolicy, compile_policy
from toka.tools.builtin import tools_for
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
        grant: what its spec is granted.
        policy: the same, as the sandbox will be told.
        tools: what the model will be offered.
        limits: its limits.
        warnings: what somebody should know before it runs.
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
    policy: SandboxPolicy
    tools: tuple[ToolSpec, ...]
    limits: Limits
    warnings: tuple[str, ...]

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
            "grant": [_capability(c) for c in self.grant.capabilities],
            "sandbox": self.policy.to_json(),
            "tools": [t.name for t in self.tools],
            "limits": {k: getattr(self.limits, k) for k in KINDS if getattr(self.limits, k) is not None},
            "findings": list(self.warnings),
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
    root: bool = False,
) -> Plan:
    """Plans a team.

    Args:
        configs: its specs; names are unique.
        enabled: conditional task groups that are switched on.
        capabilities: presets from settings.
        root: the run would be executed by root, whom some limits do not bind.

    Raises:
        ConfigError: a required dependency is missing or circular.
    """
    graph = DependencyResolver(configs)
    agents = {
        name: _agent(graph, name, number, enabled, capabilities or {}, root)
        for number, wave in enumerate(graph.waves, 1)
        for name in wave
    }
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
    capabilities: Mapping[str, tuple[Capability, ...]],
    root: bool,  # noqa: FBT001 - one of six of its caller's values
) -> AgentPlan:
    config = graph.configs[name]
    grant = config.grant(capabilities)
    tasks = config.task_list(enabled)
    needs_model = any(t.run is None for t in tasks)
    checked = sum(1 for o in config.objectives if o.check is not None)
    notes = [note.text for note in config.grant_notes(capabilities)]
    notes += [*unenforced(config, root=root), *unopened(config, capabilities)]
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
        grant=grant,
        policy=compile_policy(grant, config.limits),
        tools=tuple(spec_of(t) for t in tools_for(grant)) if needs_model else (),
        limits=config.limits,
        warnings=tuple(notes),
    )


def _capability(capability: Capability) -> dict[str, Any]:
    out: dict[str, Any] = {"name": capability.name}
    for argument in ("paths", "hosts", "programs", "ports"):
        items = getattr(capability, argument)
        if items is not None:
            out[argument] = list(items)
    return out
