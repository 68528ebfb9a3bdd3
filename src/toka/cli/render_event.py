"""A recorded event on one line. Pure."""

from __future__ import annotations

from typing import Final

from toka.cli.render_change import MALFORMED, change_lines
from toka.cli.text import clock, compact, line_of, needed, span
from toka.events.event import Event, StepDenied, StepDone, StepFailed, StepIntent, StepLeft
from toka.events.record import Record, payload

TEXT: Final = 160
"""Characters of what happened."""


def event_line(record: Record) -> str:
    """`id  time  agent  kind  what happened`."""
    kind, _ = payload(record.event)
    who = line_of(record.stream or "-", 60)
    try:
        text = event_text(record.event)
    except MALFORMED as e:
        text = f"cannot be shown: {line_of(str(e), TEXT)}"
    return f"{record.id:>7}  {clock(record.at)}  {who:<20}  {line_of(kind, 40):<17}  {text}".rstrip()


def event_text(event: Event) -> str:
    """What happened, in a few words."""
    match event:
        case StepIntent():
            again = ", again" if event.again else ""
            return f"{line_of(event.step, 60)}: {line_of(event.what, TEXT)}{again}"
        case StepDone():
            tokens = f", {sum(event.usage[:2]):,} tokens" if event.usage else ""
            word = "failed" if event.failed else "done"
            return f"{line_of(event.step, 60)}: {word} in {span(event.wall_s)}{tokens}"
        case StepFailed():
            return f"{line_of(event.step, 60)}: {line_of(event.error, 40)}: {line_of(event.message, TEXT)}"
        case StepLeft():
            return f"{line_of(event.step, 60)}: killed after {span(event.wall_s)}, as Toka was to end"
        case StepDenied():
            said = f"{line_of(event.step, 60)}: {line_of(event.what, 60)} denied: {line_of(event.reason, TEXT)}"
            fix = line_of(needed(event.place, event.patch), TEXT)
            return f"{said} (rule: {line_of(event.rule, TEXT)}){f'; {fix}' if fix else ''}"
        case _:
            lines = change_lines(event)
            return lines[0] if lines else compact(payload(event)[1], TEXT)
