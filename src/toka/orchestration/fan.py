"""Agents with `for_each`: one instance for each element, few at a time; the agent ends when all have."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.events.lifecycle import AgentStatus, ObjectiveStatus
from toka.events.state import AgentState, ObjectiveState
from toka.runtime.executor import AgentOutcome
from toka.runtime.values import instance_name

MAX_TOLD: Final = 5
"""Instances that are named in a reason."""


def is_template(config: AgentConfig) -> bool:
    """Whether an agent is there once for each element of something."""
    return config.flow is not None and config.flow.for_each is not None


def instances_of(config: AgentConfig, items: Sequence[Any]) -> dict[AgentName, AgentConfig]:
    """The spec of each instance, by name, in order."""
    assert config.flow is not None
    out: dict[AgentName, AgentConfig] = {}
    for number, item in enumerate(items, 1):
        name = instance_name(config.name, number)
        metadata = config.metadata.model_copy(update={"name": name})
        own = {"for_each": None, "max_parallel": None, "template": str(config.name), "item": item}
        flow = config.flow.model_copy(update=own)
        out[name] = config.model_copy(update={"metadata": metadata, "flow": flow})
    return out


@dataclass(slots=True)
class Fan:
    """The instances of one agent, in this process.

    Attributes:
        config: the agent.
        instances: their specs, by name, in order.
        waiting: those that have not been started here and have not ended.
        running: those that this process executes, or that wait for a person.
    """

    config: AgentConfig
    instances: dict[AgentName, AgentConfig]
    waiting: deque[AgentName] = field(default_factory=deque[AgentName])
    running: set[AgentName] = field(default_factory=set[AgentName])

    @staticmethod
    def of(config: AgentConfig, items: Sequence[Any], states: Mapping[str, AgentState]) -> Fan:
        """The instances for these elements; those that have ended are not waiting."""
        made = instances_of(config, items)
        ended = {name for name in made if name in states and states[name].ended}
        return Fan(config, made, deque(name for name in made if name not in ended))

    def next(self) -> AgentName | None:
        """An instance that may start now."""
        most = self.config.flow.max_parallel if self.config.flow is not None else None
        if not self.waiting or (most is not None and len(self.running) >= most):
            return None
        name = self.waiting.popleft()
        self.running.add(name)
        return name

    def over(self, states: Mapping[str, AgentState]) -> bool:
        """Whether all of them have ended."""
        return all(name in states and states[name].ended for name in self.instances)


def outcome_of(states: Iterable[AgentState]) -> AgentOutcome:
    """How an agent ends whose instances ended like this."""
    ends = list(states)
    for status, word in ((AgentStatus.FAILED, "failed"), (AgentStatus.STOPPED, "were stopped")):
        bad = [s for s in ends if s.status is status]
        if bad:
            named = "; ".join(f"{s.name}: {s.reason.strip().partition(chr(10))[0][:200]}" for s in bad[:MAX_TOLD])
            why = "limit" if any(s.why == "limit" for s in bad) else bad[0].why
            return AgentOutcome(status, f"{len(bad)} of {len(ends)} instances {word}: {named}", why or "instances")
    if ends and all(s.status is AgentStatus.SKIPPED for s in ends):
        return AgentOutcome(AgentStatus.SKIPPED, f"all instances were skipped: {ends[0].reason}", ends[0].why)
    return AgentOutcome(AgentStatus.COMPLETED)


def together(state: AgentState, states: Mapping[str, AgentState]) -> AgentState:
    """The state of an agent with what is known of its instances' objectives: those that depend on it look at them."""
    if state.made is None:
        return state
    objectives: dict[int, ObjectiveState] = {}
    for number in range(state.made.count):
        one = states.get(instance_name(state.name, number + 1))
        for each in one.objectives.values() if one is not None else ():
            objectives[len(objectives) + 1] = each
    if not objectives:
        return state
    weakest = [o for o in objectives.values() if o.status is not ObjectiveStatus.VERIFIED]
    return replace(state, objectives={o.number: o for o in weakest} or {1: objectives[1]})
