"""All that `toka show` knows of a run: its folded state and what the fold leaves out. Pure, given the records."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from toka.errors import ConfigError, NotFound
from toka.events.event import StepDenied, StepIntent
from toka.events.lifecycle import RunStatus, TaskStatus
from toka.events.record import Record
from toka.events.state import AgentState, RunState
from toka.journal.journal import Command, LeaseView


@dataclass(frozen=True, slots=True)
class Denial:
    """Tool calls that policy refused for one reason.

    Attributes:
        task: the task of the first one.
        tool: what was called.
        rule: the rule that decided.
        reason: as the model was told.
        arguments: of the first one.
        count: how many there were.
        place: where the spec would have to say otherwise; empty when that is not known.
        patch: the smallest change that would allow it; empty when none is known.
    """

    task: str
    tool: str
    rule: str
    reason: str
    arguments: Any
    count: int = 1
    place: str = ""
    patch: str = ""


@dataclass(frozen=True, slots=True)
class Planned:
    """What an agent's spec says, as far as `show` needs it.

    Attributes:
        tasks: id -> title, in order.
        needs: the agents that must be done before.
    """

    tasks: Mapping[str, str] = field(default_factory=dict[str, str])
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as it is shown.

    Attributes:
        state: the fold of its records.
        status: how it stands, INTERRUPTED included.
        now: wall-clock seconds.
        lease: who executes it, or did.
        planned: by agent; empty when the specs cannot be read.
        models: model strings, as asked for or as used.
        denials: by agent.
        options: what commands shown for copying need at their end: ` --state DIR`, or nothing.
        values: what agents left for others, by agent and name.
        items: the element that each instance is for, by its name.
        unkept: why the workspace could not be kept before a command; empty when it could.
        noted: what people asked for and no process has taken up yet.
    """

    state: RunState
    status: RunStatus
    now: float
    lease: LeaseView | None = None
    planned: Mapping[str, Planned] = field(default_factory=dict[str, Planned])
    models: tuple[str, ...] = ()
    denials: Mapping[str, tuple[Denial, ...]] = field(default_factory=dict[str, tuple[Denial, ...]])
    options: str = ""
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    items: Mapping[str, Any] = field(default_factory=dict[str, Any])
    unkept: str = ""
    noted: tuple[Command, ...] = ()

    @property
    def going(self) -> bool:
        """Whether a living process executes it."""
        return self.lease is not None and self.lease.alive and not self.state.ended

    def done(self, agent: AgentState) -> tuple[int, int]:
        """Tasks of an agent that succeeded, and all that are known, without repairs."""
        planned = self.planned.get(agent.name, Planned()).tasks
        known = {**planned, **{t: "" for t in agent.tasks if not t.startswith("repair-")}}
        return sum(1 for t in known if t in agent.tasks and agent.tasks[t].status is TaskStatus.SUCCEEDED), len(known)


def is_meant(only: str | None, name: str) -> bool:
    """Whether an agent is the one that is asked for, an instance of it, or anybody is."""
    return only in (None, name) or name.startswith(f"{only}[")


def planned_of(specs: bytes, enabled: Collection[str], names: Collection[str] | None = None) -> dict[str, Planned]:
    """What the specs of a run say, from the blob that holds them; empty when this version cannot read it.

    With `names` only of those agents: reading thousands of specs takes seconds.
    """
    try:
        from toka.config.agent import AgentConfig  # a list of runs needs none of it

        configs = [AgentConfig.from_json(spec) for spec in json.loads(specs) if names is None or _name(spec) in names]
    except (ConfigError, LookupError, ValueError, TypeError, AttributeError):
        return {}
    return {
        c.name: Planned({t.id: t.description for t in c.task_list(enabled)}, tuple(c.dependencies.required))
        for c in configs
    }


def _name(spec: Any) -> Any:
    return spec["spec"]["metadata"]["name"]


def values_of(state: RunState, blob: Callable[[str], bytes]) -> dict[str, Mapping[str, Any]]:
    """What agents left for others, by agent and name; nothing of an agent whose values cannot be loaded."""
    out: dict[str, Mapping[str, Any]] = {}
    for name, agent in state.agents.items():
        if (left := agent.outputs) is not None:
            with suppress(NotFound, ValueError):
                out[name] = json.loads(blob(left.blob)) if left.blob else left.values
    return out


def items_of(state: RunState, blob: Callable[[str], bytes]) -> dict[str, Any]:
    """The element that each instance is for, by its name."""
    out: dict[str, Any] = {}
    for name, agent in state.agents.items():
        if (made := agent.made) is not None:
            with suppress(NotFound, ValueError):
                items: list[Any] = json.loads(blob(made.blob)) if made.blob else made.items
                out.update((f"{name}[{number}]", item) for number, item in enumerate(items, 1))
    return out


def models_of(asked: str | None, records: Iterable[Record]) -> tuple[str, ...]:
    """The models that were used; the one asked for when none was."""
    used = {
        record.event.what: None
        for record in records
        if isinstance(record.event, StepIntent) and record.event.step.split("/")[3:4] == ["model"]
    }
    return tuple(used) or ((asked,) if asked else ())


def denials_of(records: Iterable[Record]) -> dict[str, tuple[Denial, ...]]:
    """Refused tool calls by agent, those with the same tool, rule and reason together."""
    found: dict[str, dict[tuple[str, str, str], Denial]] = {}
    for record in records:
        event = record.event
        if isinstance(event, StepDenied):
            same = found.setdefault(record.stream, {})
            key = (event.what, event.rule, event.reason)
            old = same.get(key)
            task = old.task if old else event.step.partition("/")[0]
            arguments = old.arguments if old else event.arguments
            same[key] = Denial(task, *key, arguments, old.count + 1 if old else 1, event.place, event.patch)
    return {agent: tuple(denials.values()) for agent, denials in found.items()}


def unkept_of(records: Iterable[Record]) -> str:
    """Why the workspace could first not be kept before a step that may change it; empty when it always could."""
    return next((why for r in records if isinstance(r.event, StepIntent) and (why := r.event.unkept)), "")
