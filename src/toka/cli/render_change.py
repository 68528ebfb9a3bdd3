"""One line or a few for each change of a run, an agent, a task or an objective. Pure."""

from __future__ import annotations

from typing import Any, Final, cast

from toka.cli.text import Paint, compact, line_of, lines_of, plain, some
from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    Event,
    ExecutorAttached,
    HoldLifted,
    HoldPlaced,
    ObjectiveChanged,
    RunCreated,
    RunStateChanged,
    SandboxReady,
    StepInDoubt,
    StepResolved,
    TaskStateChanged,
    Unknown,
)

MALFORMED: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What showing a record raises whose fields are not of the kind they should be: somebody edited it."""
_STYLES: Final = {
    "SUCCEEDED": "good", "COMPLETED": "good", "verified": "good", "FAILED": "bad", "failed": "bad",
    "NEEDS_ATTENTION": "warn", "WAITING": "warn", "STOPPED": "warn",
}  # fmt: skip


def change_lines(event: Event, paint: Paint = plain) -> list[str]:
    """What an event says to people; nothing for the steps, which a transcript shows."""
    match event:
        case RunCreated():
            model = f", model {line_of(event.model, 120)}" if event.model else ""
            return [f"created: {some(len(event.agents), 'agent')} in {line_of(event.workspace)}{model}"]
        case ExecutorAttached():
            return [f"executed by process {event.pid} on {line_of(event.host, 60)}"]
        case RunStateChanged() | AgentStateChanged():
            return _told(painted_state(event.state, paint), event.reason)
        case CommandApplied():
            whom = f" {line_of(event.agent, 60)}" if event.agent else ""
            asked = f"{line_of(event.verb, 40)}{whom}, asked by {line_of(event.author or 'somebody', 60)}"
            return _told(asked, event.reason)
        case HoldPlaced():
            return _told(f"held by {line_of(event.hold, 40)}", event.reason)
        case HoldLifted():
            return _told(f"no longer held by {line_of(event.hold, 40)}", event.reason)
        case SandboxReady():
            reads, writes = (_listed(event.policy.get(key)) for key in ("reads", "writes"))
            programs = _listed(event.policy.get("programs"), "any")
            head = f"sandbox: reads {reads}; writes {writes}; programs its tools may run: {programs}"
            return [head, *(f"  {line_of(str(note))}" for note in event.notes)]
        case TaskStateChanged():
            return _task(event, paint)
        case StepResolved():
            return [f"answered by {line_of(event.author) or 'somebody'}: {line_of(event.answer)}"]
        case StepInDoubt():
            return [f"{paint('in doubt', 'warn')}: {line_of(event.question)}"]
        case ObjectiveChanged():
            title = line_of(event.title.strip().partition("\n")[0], 200)
            return [f"objective {event.objective} {painted_state(event.state, paint)}: {title}"]
        case Unknown():
            return [f"{line_of(event.kind, 60)} (of a newer Toka): {compact(event.data)}"]
        case _:
            return []


def painted_state(state: str, paint: Paint) -> str:
    """A status word in its colour, which only repeats what the word says."""
    return paint(line_of(state, 40), _STYLES.get(state, ""))


def _task(event: TaskStateChanged, paint: Paint) -> list[str]:
    name = line_of(event.task, 60)
    if event.state == "RUNNING":
        again = f", attempt {event.attempt}" if event.attempt > 1 else ""
        return [paint(f"{name}{again}: {line_of(event.title.strip().partition(chr(10))[0], 200)}", "info")]
    said = event.reason or str((event.report or {}).get("summary", ""))
    return _told(f"{name} {painted_state(event.state, paint)}", said)


def _told(head: str, why: str) -> list[str]:
    """A head with its reason behind it; further lines of the reason below."""
    first, *rest = lines_of(why, 8) or [""]
    return [f"{head}: {first}" if first else head, *(f"  {line}" for line in rest)]


def _listed(items: Any, everything: str = "") -> str:
    """Paths or programs of a recorded policy; None stands for all of them."""
    if items is None and everything:
        return everything
    found = [line_of(str(item), 60) for item in cast("list[Any]", items)] if isinstance(items, list | tuple) else []
    return f"{', '.join(found[:8])} and {len(found) - 8} more" if len(found) > 8 else ", ".join(found) or "nothing"
