"""DependencyResolver: the graph of a team's agents. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from toka.config.agent import AgentConfig
from toka.config.graph import cycle_text, find_cycles
from toka.core.ids import AgentName
from toka.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Edge:
    """`agent` comes after `on`.

    Attributes:
        required: False for an optional dependency: it orders, and never blocks.
        verified: the dependent also demands that every objective of `on` is verified.
    """

    agent: AgentName
    on: AgentName
    required: bool
    verified: bool = False


class DependencyResolver:
    """Order, waves, critical path and cycles of a set of agents.

    Optional dependencies on agents that are not there are ignored. A cycle through an optional edge is broken at that
    edge; a cycle of required ones is an error.
    """

    def __init__(self, configs: Iterable[AgentConfig]) -> None:
        """Builds the graph.

        Raises:
            ConfigError: a required dependency is missing, or required dependencies form a cycle (shown as a path).
        """
        self.configs: dict[AgentName, AgentConfig] = {c.name: c for c in configs}
        self.names = tuple(self.configs)
        self.edges = tuple(self._acyclic(self._wanted()))
        self.before: dict[AgentName, tuple[Edge, ...]] = dict.fromkeys(self.names, ())
        self.after: dict[AgentName, tuple[Edge, ...]] = dict.fromkeys(self.names, ())
        before: dict[AgentName, list[Edge]] = {n: [] for n in self.names}
        after: dict[AgentName, list[Edge]] = {n: [] for n in self.names}
        for edge in self.edges:
            before[edge.agent].append(edge)
            after[edge.on].append(edge)
        self.before.update((n, tuple(e)) for n, e in before.items())
        self.after.update((n, tuple(e)) for n, e in after.items())

    @cached_property
    def order(self) -> tuple[AgentName, ...]:
        """Every agent after all it depends on; ties by priority, then by name."""
        left = {n: len(self.before[n]) for n in self.names}
        ready = [(self.configs[n].priority, n) for n, count in left.items() if count == 0]
        heapq.heapify(ready)
        out: list[AgentName] = []
        while ready:
            _, name = heapq.heappop(ready)
            out.append(name)
            for edge in self.after[name]:
                left[edge.agent] -= 1
                if left[edge.agent] == 0:
                    heapq.heappush(ready, (self.configs[edge.agent].priority, edge.agent))
        return tuple(out)

    @cached_property
    def waves(self) -> tuple[tuple[AgentName, ...], ...]:
        """Agents by their longest distance from a start: a view of the graph; nothing waits for a wave."""
        depth: dict[AgentName, int] = {}
        for name in self.order:
            depth[name] = max((depth[e.on] + 1 for e in self.before[name]), default=0)
        rows: list[list[AgentName]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
        for name in self.order:
            rows[depth[name]].append(name)
        return tuple(tuple(row) for row in rows)

    @cached_property
    def remaining(self) -> Mapping[AgentName, int]:
        """How many agents the longest path that starts at each agent has, itself included."""
        out: dict[AgentName, int] = {}
        for name in reversed(self.order):
            out[name] = 1 + max((out[e.agent] for e in self.after[name]), default=0)
        return out

    @cached_property
    def work_behind(self) -> Mapping[AgentName, int]:
        """How many tasks the heaviest path that starts at each agent has, its own included; an agent has one at least.

        How long a task takes nobody knows before; that each takes as long as another is the best guess there is.
        """
        out: dict[AgentName, int] = {}
        for name in reversed(self.order):
            own = max(1, len(self.configs[name].tasks.default))
            out[name] = own + max((out[e.agent] for e in self.after[name]), default=0)
        return out

    @cached_property
    def critical_path(self) -> tuple[AgentName, ...]:
        """One longest path through the graph; the more urgent agent where two are equally long."""
        path: list[AgentName] = []
        choice = [n for n in self.names if not self.before[n]]
        while choice:
            name = min(choice, key=lambda n: (-self.remaining[n], self.configs[n].priority, n))
            path.append(name)
            choice = [e.agent for e in self.after[name]]
        return tuple(path)

    def _wanted(self) -> list[Edge]:
        edges: list[Edge] = []
        missing: list[str] = []
        for name, config in self.configs.items():
            for on, dependency in config.dependencies.required.items():
                if on in self.configs:
                    edges.append(Edge(name, AgentName(on), required=True, verified=dependency.verified))
                else:
                    missing.append(f"agent {name} requires {on}, which is not among the agents")
            edges += [
                Edge(name, AgentName(on), required=False)
                for on in config.dependencies.optional
                if on in self.configs and on != name
            ]
        if missing:
            raise ConfigError("; ".join(missing), hint="add the missing specs to the command line, or the directory")
        return edges

    def _acyclic(self, edges: list[Edge]) -> list[Edge]:
        required = [e for e in edges if e.required]
        upstream: dict[AgentName, list[AgentName]] = {n: [] for n in self.names}
        for edge in required:
            upstream[edge.agent].append(edge.on)
        if circles := find_cycles(upstream):
            raise ConfigError(f"the agents depend on each other in a circle: {cycle_text(circles[0])}")
        kept = list(required)
        reach = _Reach(self.names, [(e.agent, e.on) for e in required])
        for edge in edges:
            if not edge.required and not reach.reaches(edge.on, edge.agent):
                kept.append(edge)
                reach.add(edge.agent, edge.on)
        return kept


class _Reach:
    """Which agents lie upstream of which, while edges are being added."""

    def __init__(self, names: Iterable[AgentName], edges: Iterable[tuple[AgentName, AgentName]]) -> None:
        self._on: dict[AgentName, list[AgentName]] = {n: [] for n in names}
        for agent, on in edges:
            self._on[agent].append(on)

    def add(self, agent: AgentName, on: AgentName) -> None:
        self._on[agent].append(on)

    def reaches(self, start: AgentName, goal: AgentName) -> bool:
        stack, seen = [start], {start}
        while stack:
            name = stack.pop()
            if name == goal:
                return True
            fresh = [n for n in self._on[name] if n not in seen]
            seen.update(fresh)
            stack += fresh
        return False
