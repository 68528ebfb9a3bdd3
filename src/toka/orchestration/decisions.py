"""Which parts of an event are Toka's decision, and what differs between one recorded and one taken now. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    Event,
    ExecutorAttached,
    HoldLifted,
    HoldPlaced,
    NetworkAttempted,
    RunStateChanged,
    SandboxReady,
    StepDenied,
    StepDone,
    StepFailed,
    StepIntent,
    StepLeft,
    StepPutBack,
    StepResolved,
    StepWaits,
    TaskStateChanged,
    Unknown,
)
from toka.events.flow import ApprovalAnswered
from toka.events.lifecycle import RunStatus
from toka.events.record import Record, payload

OUTSIDE: Final = (SandboxReady, NetworkAttempted, StepLeft, StepWaits, Unknown)
"""Events that tell what was found outside: nobody decided them."""

_FOUND: Final = frozenset({"wall_s", "usage", "cost_usd", "resources", "limit", "evidence", "expires_at", "until"})
"""Fields that were measured, or hang on the clock or a price."""
_OWN: Final[Mapping[type[Any], frozenset[str]]] = {
    ExecutorAttached: frozenset({"host", "pid", "epoch", "sandbox", "rules"}),
    StepDenied: frozenset({"place", "patch"}),  # where a file says it: the record has the specs, not their files
    StepDone: _FOUND | {"model"},
    StepPutBack: frozenset({"kept", "changed", "problem"}),
}
_STALLED_FOR: Final = re.compile(r"(has not ended after|no step was begun for) \d+ s")
"""How long a stalled agent was watched, within a text: measured as well."""
_EVIDENT: Final = frozenset({"evidence"})
"""Of these kinds' evidence is part of what was decided."""

_REQUESTS: Final = (CommandApplied, HoldPlaced, HoldLifted, StepResolved)
_ASKED_FOR: Final = frozenset({"PAUSING", "STOPPING"})
_HALTED: Final = frozenset({"PAUSED", "STOPPED"})


def decided(event: Event, *, served: bool = False) -> dict[str, Any]:
    """What an event decides, by field, as JSON.

    Args:
        event: the event.
        served: its result was not decided but came from the record.
    """
    if isinstance(event, RunStateChanged) and event.state == RunStatus.RUNNING.value:
        return {"state": event.state}
    kind, data = payload(event)
    left_out = _OWN.get(type(event), _FOUND if kind != "objective" else _FOUND - _EVIDENT)
    if served:
        left_out = left_out | {"result"}
    out = {name: value for name, value in data.items() if name not in left_out}
    if out.get("reserved"):
        out["reserved"] = out["reserved"][:2]  # the price may be another one by now; the tokens follow from the request
    return out


def differing(recorded: Event, now: Event, *, served: bool = False) -> tuple[str, ...]:
    """The fields in which two events decide otherwise; `kind` when they are of different kinds."""
    if type(recorded) is not type(now):
        return ("kind",)
    old, new = decided(recorded, served=served), decided(now, served=served)
    if "by" not in old:  # older records do not say what brought a change about
        new.pop("by", None)
    return tuple(name for name in (*old, *(n for n in new if n not in old)) if _text(old, name) != _text(new, name))


def alike(one: Event, other: Event) -> bool:
    """Whether two events are about the same thing, so that comparing them says something."""
    about = ("step", "task", "objective", "command", "approval", "hold")
    mine, theirs = ({name: getattr(e, name, None) for name in about} for e in (one, other))
    return type(one) is type(other) and mine == theirs


def is_asked(event: Event) -> bool:
    """Whether an event is what a person's request comes to, and not a step of the agent itself."""
    if isinstance(event, ApprovalAnswered):
        return event.answer != "unanswered"
    return isinstance(event, _REQUESTS) or (isinstance(event, AgentStateChanged) and event.state in _ASKED_FOR)


def is_halt(event: Event) -> bool:
    """Whether an event tells that an agent did not go on because it was asked not to."""
    if isinstance(event, StepFailed):
        return event.error == "cancelled"
    if isinstance(event, TaskStateChanged):
        return event.state == "CANCELLED"
    return isinstance(event, AgentStateChanged) and event.state in _HALTED


def is_wait(event: Event) -> bool:
    """Whether an event tells that an agent or a task waits for a person."""
    if isinstance(event, TaskStateChanged):
        return event.state in ("AWAITING_APPROVAL", "NEEDS_ATTENTION")
    return isinstance(event, AgentStateChanged) and event.state == "WAITING"


def is_life(event: Event) -> bool:
    """Whether a process begins to execute the run here."""
    return isinstance(event, ExecutorAttached)


def is_end(event: Event) -> bool:
    """Whether a process let go of the run here, with nothing left to do."""
    return isinstance(event, RunStateChanged) and event.state != RunStatus.RUNNING.value


def is_step(event: Event) -> bool:
    """Whether an event begins or answers a step."""
    return isinstance(event, StepIntent | StepDone | StepDenied)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where an agent would go another way now.

    Attributes:
        stream: the agent; empty for the run as a whole.
        record: what was recorded there; None when nothing was, and something follows now.
        now: what follows now; None when nothing does.
        fields: in which fields they differ; empty when they are about different things.
        instead: an agent and what it would do first, when nothing of this one follows.
    """

    stream: str
    record: Record | None
    now: Event | None
    fields: tuple[str, ...] = ()
    instead: tuple[str, Event] | None = None


def _text(data: Mapping[str, Any], name: str) -> str:
    text = json.dumps(data[name], sort_keys=True, ensure_ascii=False) if name in data else ""
    return _STALLED_FOR.sub(r"\1", text)
