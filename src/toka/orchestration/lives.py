"""What a record tells of the processes that executed its run: where each begins, what it was started for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from toka.events.event import AgentStateChanged, CommandApplied, ExecutorAttached, HoldLifted
from toka.events.flow import ApprovalAnswered
from toka.events.lifecycle import AgentStatus
from toka.events.record import Record
from toka.events.state import RunState
from toka.orchestration.decisions import is_asked


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
    return event.author, event.reason, min(names)


def _held(holds: Collection[str]) -> bool:
    return "person" in holds or "health" in holds


def lives_of(records: Sequence[Record]) -> list[Sequence[Record]]:
    """The records of each process that executed the run."""
    begins = [n for n, record in enumerate(records) if isinstance(record.event, ExecutorAttached)]
    return [records[at:end] for at, end in pairwise((*begins, len(records)))]


def may_settle(life: Sequence[Record]) -> bool:
    """Whether a process may only have ended what was to be stopped: it started nothing, as one that was killed then."""
    stops = any(isinstance(r.event, CommandApplied) and r.event.verb == "stop" for r in life)
    starts = any(isinstance(r.event, AgentStateChanged) and r.event.state == AgentStatus.STARTING.value for r in life)
    return stops and not starts
