"""The steps of a run before which the workspace was kept, and how a person names one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toka.errors import NotFound, UsageError
from toka.events.event import StepIntent
from toka.events.record import Record
from toka.events.steps import StepPutBack
from toka.workspace.claims import overlap


@dataclass(frozen=True, slots=True)
class Kept:
    """One such step.

    Attributes:
        number: its place among them in the run, from 1.
        agent, step: whose it is, and its key as text.
        what: what was to be done.
        at: wall-clock seconds.
        checkpoint: the state before it.
        scope: the paths that it could write.
    """

    number: int
    agent: str
    step: str
    what: str
    at: float
    checkpoint: str
    scope: tuple[str, ...]


def kept_steps(records: Iterable[Record]) -> list[Kept]:
    """The steps of a run before which the workspace was kept, in order, and before what it was put back.

    Of a step that was started again the first start counts.
    """
    found: dict[tuple[str, str], Kept] = {}
    for record in records:
        event, at = record.event, record.at
        if isinstance(event, StepIntent) and (noted := event.evidence) and noted.get("checkpoint"):
            key, scope = (record.stream, event.step), tuple(map(str, noted.get("scope") or ()))
            if key not in found:
                number, state = len(found) + 1, str(noted["checkpoint"])
                found[key] = Kept(number, record.stream, event.step, event.what, at, state, scope)
        elif isinstance(event, StepPutBack) and event.kept and (of := found.get((record.stream, event.step))):
            number, what = len(found) + 1, f"put back to before step {of.number}"
            found[record.stream, f"{event.step} {record.id}"] = Kept(
                number, record.stream, f"put-back-{record.id}", what, at, event.kept, of.scope
            )
    return list(found.values())


def named(steps: Sequence[Kept], text: str) -> Kept:
    """The step that a person names: by its number, its key, or the beginning of its checkpoint's id.

    Raises:
        NotFound: there is none.
        UsageError: there are several.
    """
    hint = "list them: toka diff RUN --steps"
    if text.isdigit() and len(text) < 6:
        chosen = [each for each in steps if each.number == int(text)]
    else:
        chosen = [each for each in steps if each.step == text]
        chosen = chosen or [each for each in steps if len(text) >= 6 and each.checkpoint.startswith(text)]
    if not chosen:
        raise NotFound(f"there is no step {text} before which the workspace was kept", hint=hint)
    if len({each.checkpoint for each in chosen}) > 1:
        raise UsageError(f"several steps are meant by {text}", hint=hint)
    return chosen[0]


def after(steps: Sequence[Kept], step: Kept) -> str | None:
    """The state after a step: that before the next one that could write to the same paths; None = as it is now."""
    later = (each for each in steps if each.number > step.number and overlap(each.scope, step.scope))
    return next((each.checkpoint for each in later), None)
