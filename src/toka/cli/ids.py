"""What people write for a run or an agent -> which one they mean. Pure, given the names there are."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Final

from toka.cli.text import line_of
from toka.core.ids import RunId
from toka.errors import NotFound, UsageError
from toka.journal.journal import Reader

LAST: Final = "@last"
SHOWN: Final = 8
"""Candidates that a message lists."""


def find_run(reader: Reader, text: str) -> RunId:
    """The run that `text` names: see `match_run`.

    Raises:
        NotFound: there is none.
        UsageError: there are several.
    """
    return match_run(reader.runs(), text)


def match_run(runs: Sequence[RunId], text: str) -> RunId:
    """The run that `text` names.

    Args:
        runs: all of them, oldest first.
        text: an id, `@last` for the newest, or the beginning of one id, or of its last part (`nqp` for
            `20261123-053628-nqpzwj`).

    Raises:
        NotFound: there is none; near ones are in the hint.
        UsageError: there are several; they are listed.
    """
    if not runs:
        raise NotFound("no runs are recorded here", hint="start one: toka run SPEC, or toka demo")
    if text == LAST:
        return runs[-1]
    if text in runs:
        return RunId(text)
    found = [r for r in runs if r.startswith(text) or r.rpartition("-")[2].startswith(text)] if text else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{line_of(text, 60)!r} is the beginning of {len(found)} runs: {_listed(found[::-1])}",
            hint="write more of the id, or @last for the newest",
        )
    raise NotFound(f"no run {line_of(text, 60)!r}", hint=_near(text, runs))


def match_name(names: Collection[str], text: str, what: str = "agent") -> str:
    """The agent (or another named thing) that `text` names: in full, or by its unique beginning.

    Raises:
        NotFound: there is none; near ones are in the hint.
        UsageError: there are several; they are listed.
    """
    if text in names:
        return text
    found = [n for n in names if n.startswith(text)] if text else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{line_of(text, 60)!r} is the beginning of {len(found)} {what}s: {_listed(sorted(found))}")
    near = difflib.get_close_matches(text, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {_listed(sorted(names)) or 'none'}"
    raise NotFound(f"no {what} {line_of(text, 60)!r}", hint=line_of(hint))


def _near(text: str, runs: Sequence[RunId]) -> str:
    tails = {r.rpartition("-")[2]: r for r in runs[-1_000:]}
    near = difflib.get_close_matches(text, [*runs[-1_000:], *tails], 3, cutoff=0.6)
    found = list(dict.fromkeys(tails.get(n, n) for n in near))
    if found:
        return f"did you mean {_listed(found)}?"
    return f"the newest is {line_of(runs[-1], 60)}; list them: toka ps"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(line_of(n, 60) for n in names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
