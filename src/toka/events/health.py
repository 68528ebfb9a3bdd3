"""Whether an agent gets anywhere, and what was done about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar


class Health(StrEnum):
    """How an agent fares."""

    HEALTHY = "healthy"
    STALLED = "stalled"
    """No step ended within twice the time that its step may take."""
    LOOPING = "looping"
    """The same call got the same answer again and again."""
    BURNING = "burning"
    """Its budget is nearly used up, and its task is not done."""
    FAILING = "failing"
    """More than half of its latest calls failed."""


class Rung(StrEnum):
    """What is done about an agent that gets nowhere, from the mildest on."""

    NUDGE = "nudge"
    """Its model is told what repeats."""
    RESTART = "restart"
    """It goes on from where it last got somewhere."""
    HOLD = "hold"
    """It takes no step until a person lets it."""


@dataclass(frozen=True, slots=True)
class HealthChanged:
    """An agent was found to get nowhere, and something is done about it.

    Attributes:
        health: see Health.
        rung: see Rung.
        task: the task that it is about.
        step: the step after which it was found, as text: what is found there again is no second finding.
        reason: what was seen, for people.
    """

    KIND: ClassVar[str] = "health"
    health: str
    rung: str
    task: str = ""
    step: str = ""
    reason: str = ""

    @property
    def seen(self) -> str:
        """The reason without the word for its health, with which that of an agent that is held begins."""
        return self.reason.removeprefix(f"{self.health}: ")
