"""Whether a conversation gets anywhere, and what is done when it does not. Pure: read off the transcript alone.

What is found after a turn depends on the turns up to it and on nothing else, so a replay finds the same.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from toka.config.settings import ExecutionConfig
from toka.core.limits import UNITS
from toka.core.message import ToolCall
from toka.events.health import Health, Rung
from toka.events.state import TaskState
from toka.runtime.resource import Scope

REPEATS: Final = 5
"""Times that the same call gets the same answer before that is a loop."""
WINDOW: Final = 20
"""Calls that are looked at for failures."""
BURNT: Final = 0.8
"""The part of a budget that may be used before its end is told of."""
_SHOWN: Final = 200
"""Characters of a call, in what is told of it."""


class Stuck(Exception):
    """A task gets nowhere, and only a person can help. Its text is the report."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A conversation gets nowhere.

    Attributes:
        health: how.
        reason: what was seen, for people.
        good: how many messages of the conversation came before what was seen; going on from there leaves it out.
    """

    health: Health
    reason: str
    good: int


@dataclass(frozen=True, slots=True)
class _Seen:
    call: str
    failed: bool
    at: int


class Watch:
    """Looks at the calls of one attempt.

    After a finding it counts anew: what is done about one must have the chance to help.
    """

    def __init__(self) -> None:
        self._calls: deque[_Seen] = deque(maxlen=WINDOW)
        self._counts: Counter[str] = Counter()
        self._first: dict[str, int] = {}
        self._told: set[str] = set()

    def saw(self, call: ToolCall, answer: str, *, failed: bool, at: int) -> None:
        """Notes one call with its answer; `at` is how many messages there were before the reply that made it."""
        said = hashlib.sha256(json.dumps([call.name, call.arguments, answer]).encode("utf-8", "replace")).hexdigest()
        self._counts[said] += 1
        self._first.setdefault(said, at)
        self._calls.append(_Seen(_words(call), failed, at))
        if self._counts[said] == REPEATS:
            self._told.add(said)

    def look(self) -> Finding | None:
        """What is to be said after a turn."""
        if self._told:
            said = self._told.pop()
            last = self._calls[-1].call
            found = Finding(Health.LOOPING, f"{last} got the same answer {REPEATS} times", self._first[said])
            self._anew()
            return found
        failed = [seen for seen in self._calls if seen.failed]
        if len(self._calls) == WINDOW and len(failed) > WINDOW / 2:
            most, times = Counter(seen.call for seen in failed).most_common(1)[0]
            which = f"most of all {most}" if times > 1 else f"no two alike; the last was {failed[-1].call}"
            reason = f"{len(failed)} of the last {WINDOW} calls failed, {which}"
            found = Finding(Health.FAILING, reason, self._calls[0].at)
            self._anew()
            return found
        return None

    def _anew(self) -> None:
        self._calls.clear()
        self._counts.clear()
        self._first.clear()
        self._told.clear()


def burning(scope: Scope) -> str:
    """Which of a scope's own budgets is nearly used up, for people; empty when none is."""
    limits = scope.limits
    budgets = (
        (scope.tokens, limits.tokens, UNITS["tokens"]),
        (scope.cost_usd, limits.cost_usd, UNITS["cost_usd"]),
        (scope.model_calls, limits.model_calls, UNITS["model_calls"]),
    )
    for spent, limit, unit in budgets:
        if limit is not None and BURNT * limit <= spent < limit:
            return f"{spent:.10g} of {limit:.10g} {unit} of {scope.name} are used"
    return ""


def rung(task: TaskState, health: Health, execution: ExecutionConfig) -> Rung:
    """What is done next about a task that gets nowhere, after what was done already."""
    nudges, restarts = _counted(task)
    if health is Health.BURNING or nudges < execution.health_nudges:
        return Rung.NUDGE
    return Rung.RESTART if restarts < execution.health_restarts else Rung.HOLD


def stuck(task: TaskState, found: Finding) -> str:
    """The report on a task that is held, for people: what was seen, and what was tried."""
    nudges, restarts = _counted(task)
    parts = [f"told {_times(nudges)}" if nudges else "", f"set back {_times(restarts)}" if restarts else ""]
    helped = " and ".join(filter(None, parts))
    tried = f"; being {helped} did not help" if helped else ""
    return f"{found.health.value}: {found.reason}{tried}"


def _counted(task: TaskState) -> tuple[int, int]:
    """Nudges and restarts since a person last let it go on."""
    return len(task.nudges) - task.spared[0], len(task.restarts) - task.spared[1]


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _words(call: ToolCall) -> str:
    text = f"{call.name} {call.arguments}"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
