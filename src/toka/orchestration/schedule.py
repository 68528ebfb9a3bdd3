"""Which agents may start now, which never will, and why. Pure: told of ends, asked for starts."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from toka.core.ids import AgentName
from toka.events.lifecycle import AGENT_ENDS, AgentStatus, ObjectiveStatus
from toka.events.state import AgentState
from toka.orchestration.dependency import DependencyResolver, Edge

BENIGN: Final = frozenset({"no_model", "when", "empty"})
"""Causes for which an agent is skipped and nobody failed; what depends on it is skipped for the same."""


_BEFORE: Final = frozenset({AgentStatus.CONFIGURED, AgentStatus.READY})


@dataclass(frozen=True, slots=True)
class Blocked:
    """An agent that can never start.

    Attributes:
        agent: which.
        reason: why, for people.
        why: the cause as a word: `dependency`, or one of BENIGN when all goes back to that.
    """

    agent: AgentName
    reason: str
    why: str


class Schedule:
    """The ready agents of a team, by priority, then by the work on the heaviest path behind them, then by name.

    Invariant: an agent is ready exactly when every required dependency is COMPLETED (and verified, where demanded) and
    every optional one has ended somehow.
    """

    def __init__(self, graph: DependencyResolver) -> None:
        self._graph = graph
        self._open = {n: {e.on for e in graph.before[n]} for n in graph.names}
        self._ready: list[tuple[int, int, AgentName]] = []
        self._known: set[AgentName] = set()
        for name in graph.names:
            if not self._open[name]:
                self._push(name)

    def next(self) -> AgentName | None:
        """Takes the most urgent ready agent; None when none is ready."""
        return heapq.heappop(self._ready)[2] if self._ready else None

    def ended(self, state: AgentState) -> list[Blocked]:
        """Notes that an agent ended; returns the agents that can never start because of it, the nearest first.

        Each blocked agent counts as ended: its own dependents are among the returned ones.
        """
        blocked: list[Blocked] = []
        ends = deque([state])
        while ends:
            state = ends.popleft()
            for edge in self._graph.after.get(AgentName(state.name), ()):
                if edge.agent in self._known:
                    continue
                problem = _unmet(edge, state) if edge.required else None
                if problem is not None:
                    self._known.add(edge.agent)
                    why = state.why if state.why in BENIGN else "dependency"
                    blocked.append(Blocked(edge.agent, problem, why))
                    ends.append(AgentState(edge.agent, AgentStatus.SKIPPED, problem, why))
                    continue
                self._open[edge.agent].discard(edge.on)
                if not self._open[edge.agent]:
                    self._push(edge.agent)
        return blocked

    def under_way(self, names: Iterable[AgentName]) -> None:
        """Notes that agents have begun: what they needed was there, whatever has become of it since."""
        for name in names:
            if name not in self._known:
                self._push(name)

    def forget(self, names: Collection[AgentName]) -> None:
        """Takes agents out, now and later: they have ended already, or somebody else takes care of them."""
        self._known |= set(names)
        self._ready = [entry for entry in self._ready if entry[2] not in names]
        heapq.heapify(self._ready)

    def _push(self, name: AgentName) -> None:
        self._known.add(name)
        heapq.heappush(self._ready, (int(self._graph.configs[name].priority), -self._graph.work_behind[name], name))


def recovered(graph: DependencyResolver, states: Mapping[str, AgentState]) -> tuple[Schedule, list[Blocked]]:
    """The schedule of a run that was interrupted: ends are noted, agents that had not ended may start again.

    One in the middle of its work does not wait for an optional one that is being tried again; a READY one does.
    """
    schedule = Schedule(graph)
    schedule.under_way(n for n in graph.names if n in states and states[n].status not in _BEFORE | AGENT_ENDS)
    blocked: list[Blocked] = []
    for name in graph.order:
        state = states.get(name)
        if state is not None and state.status in AGENT_ENDS:
            blocked += [b for b in schedule.ended(state) if not _has_ended(states, b.agent)]
    schedule.forget({n for n in graph.names if _has_ended(states, n)})
    return schedule, blocked


def _has_ended(states: Mapping[str, AgentState], name: str) -> bool:
    state = states.get(name)
    return state is not None and state.status in AGENT_ENDS


def satisfied(edge: Edge, state: AgentState) -> bool:
    """Whether a required dependency stands as the dependent needs it, or has not ended yet."""
    return state.status not in AGENT_ENDS or _unmet(edge, state) is None


def _unmet(edge: Edge, state: AgentState) -> str | None:
    """Why a required dependency that ended does not satisfy the dependent; None when it does."""
    if state.status is not AgentStatus.COMPLETED:
        return f"needs {edge.on}, which ended {state.status.value}"
    if edge.verified:
        claimed = [o.number for o in state.objectives.values() if o.status is not ObjectiveStatus.VERIFIED]
        if claimed:
            return f"needs {edge.on} verified, and its objective {claimed[0]} is only claimed"
    return None
