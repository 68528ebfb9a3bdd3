"""What a record tells of the processes that executed its run: where each begins, what it was started for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    Event,
    ExecutorAttached,
    HoldLifted,
    HoldPlaced,
    StepFailed,
    StepIntent,
    StepResolved,
    TaskStateChanged,
)
from toka.events.flow import ApprovalAnswered
from toka.events.lifecycle import AgentStatus, Trigger
from toka.events.record import Record
from toka.events.state import RunState
from toka.orchestration.decisions import OUTSIDE, is_asked, is_halt, is_wait

_OVER: Final = ("COMPLETED", "FAILED", "WAITING", "BACKOFF", "QUARANTINED", "PAUSED")
"""What an agent comes to by itself while it works."""
_RESTS: Final = ("WAITING", "PAUSED", "BACKOFF", "CRASH_LOOP", "QUARANTINED")
"""What an agent comes to that does nothing more for the time being."""
_AT_ONCE: Final = ("COMPLETED", "FAILED")
"""What it is about to record already, when nothing else of it is recorded before."""


def lifting(life: Sequence[Record], before: RunState) -> tuple[str, str, str] | None:
    """Whose holds a process lifted before anything else, and for whom; None when it lifted none."""
    lifted: dict[str, HoldLifted] = {}
    asked: set[str] = set()
    for record in life[2:]:
        event = record.event
        if isinstance(event, CommandApplied) and event.verb == "resume":
            asked |= {event.agent} if event.agent else set(before.agents)
        elif isinstance(event, HoldLifted) and record.stream not in asked:
            lifted.setdefault(record.stream, event)
        elif not is_asked(event) and not isinstance(event, ApprovalAnswered):
            break
    if not lifted:
        return None
    event = next(iter(lifted.values()))
    held = {a.name for a in before.agents.values() if not a.ended and _held(a.holds)}
    held |= {""} if _held(before.holds) else set()
    if held <= lifted.keys():
        return event.author, event.reason, ""
    names = {name.partition("[")[0] for name in lifted}
    return event.author, event.reason, next(iter(lifted)) if len(lifted) == 1 else min(names)


def _held(holds: Collection[str]) -> bool:
    return "person" in holds or "health" in holds


def lives_of(records: Sequence[Record]) -> list[Sequence[Record]]:
    """The records of each process that executed the run."""
    begins = [n for n, record in enumerate(records) if isinstance(record.event, ExecutorAttached)]
    return [records[at:end] for at, end in pairwise((*begins, len(records)))]


def too_late(asked: Event, coming: Sequence[Record]) -> bool:
    """Whether an agent that is to pause or stop got its word in first: it starts or ended, stands still, takes a step.

    Args:
        asked: what was just recorded.
        coming: the records after it.
    """
    if not isinstance(asked, CommandApplied) or asked.verb not in ("pause", "stop"):
        return False
    said: set[str] = set()
    told: set[str] = set()
    started: set[str] = set()
    for record in coming:
        stream, event = record.stream, record.event
        if not stream or asked.agent not in ("", stream) or stream in told or isinstance(event, OUTSIDE):
            continue
        if is_start(event) and stream not in said:
            started.add(stream)
        elif stream in started and isinstance(event, HoldPlaced):
            return True
        elif is_asked(event) or (stream not in started and isinstance(event, AgentStateChanged)):
            told.add(stream)
        if stream in started and asked.verb == "stop":
            return True
        if isinstance(event, StepIntent) and stream in said:
            return True
        if isinstance(event, AgentStateChanged) and event.state in _OVER and event.by != Trigger.PERSON:
            at_once = stream not in said and event.state in _AT_ONCE
            if not at_once:
                return True
        said.add(stream)
    return False


def rests_first(hold: Record, coming: Sequence[Record]) -> bool:
    """Whether an agent came to rest while a hold of it was being recorded, or lifted: then it says so itself."""
    event = hold.event
    if not isinstance(event, HoldPlaced | HoldLifted):
        return False
    said = next((r.event for r in coming if r.stream == hold.stream), None)
    if not isinstance(said, AgentStateChanged):
        return False
    if isinstance(event, HoldLifted):
        return said.state in (AgentStatus.PAUSING.value, AgentStatus.PAUSED.value)
    return said.state == AgentStatus.PAUSING.value and said.reason != event.reason


def goes_on_at_once(stream: str, event: Event, coming: Sequence[Record]) -> bool:
    """Whether an agent that just came to rest was let go on before anybody took its place."""
    if not isinstance(event, AgentStateChanged) or event.state != AgentStatus.PAUSED.value:
        return False
    lifted = False
    for record in coming:
        now = record.event
        if record.stream == stream and not isinstance(now, OUTSIDE):
            if lifted or not isinstance(now, HoldLifted):
                return lifted and isinstance(now, AgentStateChanged) and now.state == AgentStatus.RUNNING.value
            lifted = True
        elif is_start(now):
            return False
    return False


def is_halted_next(stream: str, coming: Sequence[Record], over: Over | None = None) -> bool:
    """Whether the next that an agent does itself, it does only since it was asked to, or since the time was over.

    Args:
        stream: the agent.
        coming: the records that come.
        over: see `over_at`.
    """
    answered = False
    for record in coming:
        event = record.event
        if record.stream != stream or isinstance(event, OUTSIDE):
            continue
        if not is_asked(event):
            expired = over is not None and over.told_by(record)
            return expired or is_halt(event) or (answered and not is_wait(event))
        answered = answered or isinstance(event, ApprovalAnswered | StepResolved)
    return False


@dataclass(frozen=True, slots=True)
class Over:
    """Where a process ended the agents since the time of the run was over.

    What is recorded before was asked for before, whatever of it was still being written then.

    Attributes:
        first: the first record that tells of it.
        reason: what each of them says.
    """

    first: Record
    reason: str

    def told_by(self, record: Record) -> bool:
        """Whether this record tells of it."""
        return record.id >= self.first.id and _ends(record.event, self.reason)


def over_at(life: Sequence[Record], reason: str) -> Over | None:
    """Where a process ended its agents for this reason; None when it did not."""
    first = next((r for r in life if r.stream and _ends(r.event, reason)), None)
    return None if first is None else Over(first, reason)


def _ends(event: Event, reason: str) -> bool:
    if isinstance(event, StepFailed):
        return event.message.startswith(reason)
    if not isinstance(event, AgentStateChanged | TaskStateChanged):
        return False
    return event.state in ("FAILED", "SKIPPED") and event.reason == reason


def rests(event: Event) -> bool:
    """Whether an agent takes no further step by itself after this."""
    return isinstance(event, AgentStateChanged) and event.state in _RESTS


def is_start(event: Event) -> bool:
    """Whether an agent begins to start here."""
    return isinstance(event, AgentStateChanged) and event.state == AgentStatus.STARTING.value


def starts_next(stream: str, coming: Sequence[Record]) -> bool:
    """Whether the next that is recorded of an agent's status is that it starts."""
    return (record := _status(stream, coming)) is not None and is_start(record.event)


def starts_no_more(stream: str, came: Sequence[Record], coming: Sequence[Record], over: Over | None) -> bool:
    """Whether the time was over before an agent was started, or started again.

    Args:
        stream: the agent.
        came: the records of its process that came, the last one first.
        coming, over: as for `is_halted_next`.
    """
    then, now = _status(stream, coming), _status(stream, came)
    ended = over is not None and then is not None and over.told_by(then)
    return ended and (now is None or rests(now.event))


def _status(stream: str, records: Sequence[Record]) -> Record | None:
    own = (r for r in records if r.stream == stream and isinstance(r.event, AgentStateChanged))
    return next(own, None)


def may_settle(life: Sequence[Record]) -> bool:
    """Whether a process may only have ended what was to be stopped: it started nothing, as one that was killed then."""
    stops = any(isinstance(r.event, CommandApplied) and r.event.verb == "stop" for r in life)
    starts = any(isinstance(r.event, AgentStateChanged) and r.event.state == AgentStatus.STARTING.value for r in life)
    return stops and not starts
