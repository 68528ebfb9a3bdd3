"""What a step is about to do and how it ended, as values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from toka.core.effect import Effect
from toka.core.ids import StepKey
from toka.core.message import Usage
from toka.errors import LimitExceeded
from toka.events.steps import StepIntent, StepPutBack


class StepFailure(Exception):
    """An act could not be carried through. Recorded; a replay raises it again.

    Attributes:
        error: the cause as a word.
        message: for people.
        retryable: whether trying again may help.
        usage, cost_usd: what was charged all the same.
    """

    def __init__(
        self,
        error: str,
        message: str,
        *,
        retryable: bool = True,
        usage: Usage | None = None,
        cost_usd: float | None = 0.0,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.retryable = retryable
        self.usage = usage
        self.cost_usd = cost_usd


class InDoubt(Exception):
    """Whether an act happened is unknown, and it must not happen twice. `question` is for a person."""

    def __init__(self, step: str, question: str) -> None:
        super().__init__(question)
        self.step = step
        self.question = question


def _nothing() -> None:
    """Of an act that runs no command."""


Told = Callable[[str, str], Awaitable[None]]
"""Called with the run, empty when it is the same, and the agent that are waited for."""


class Turn(Protocol):
    """What keeps acts apart that would undo each other's work."""

    def hold(self, told: Told | None = None) -> AbstractAsyncContextManager[Any]:
        """Around the act: nobody who may be put back writes to what it may write to, and nobody at all if it may.

        `told` is called once, if it takes longer than a second.
        """
        ...


class Guard(Turn, Protocol):
    """What keeps the workspace as it was before an act, so that the act can run again."""

    async def checkpoint(self) -> tuple[Effect, dict[str, Any]]:
        """The act's effect with what `put_back` will need, as JSON: ONCE when the workspace cannot be kept."""
        ...

    async def put_back(self, step: str, noted: dict[str, Any]) -> StepPutBack:
        """Makes the workspace as it was before a step in its turn, if that undoes nobody's work; for the record."""
        ...


@dataclass(frozen=True, slots=True)
class Act:
    """What is about to be done.

    Attributes:
        key: which step it is.
        effect: what a crash in flight means.
        what: tool, model or command line, for the record.
        arguments: a JSON value for the record; cut when large.
        rule: the policy rule that allows it.
        messages: added to the conversation since the last recorded step.
        reserved: what was reserved for it: [tokens, USD].
        lost: what the start before is charged with, when its answer was lost: usage and cost.
        assumed: the result to go on with when a person says that it happened and its own result is lost.
        evidence: what `probe` will need.
        used: what its commands used of the machine until now, as JSON; None when it ran none.
        probe: of a checkable act: did it happen? Called with the evidence of the recorded intent.
        within_s: how long it may take, in seconds; None = as long as it likes.
        turn: of one that may change the workspace: its turn to do so; a guard's own, where there is one.
        guard: of one that may be put back: keeps and puts back what was there.
    """

    key: StepKey
    effect: Effect
    what: str
    arguments: Any = None
    rule: str = ""
    messages: list[dict[str, Any]] | None = None
    reserved: list[float] | None = None
    lost: tuple[Usage, float | None] | None = None
    assumed: Any = None
    used: Callable[[], dict[str, Any] | None] = _nothing
    evidence: Callable[[], Awaitable[dict[str, Any]]] | None = None
    probe: Callable[[dict[str, Any]], Awaitable[tuple[Literal["happened", "not-happened", "unknown"], Any]]] | None = (
        None
    )
    within_s: float | None = None
    turn: Turn | None = None
    guard: Guard | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How an act ended.

    Attributes:
        value: a JSON value: what the caller goes on with, now or in a replay.
        failed: the act ended, but its answer is an error.
        usage, cost_usd, model: of a model call.
        limit: what was met while it ran, so that it or a part of it was ended; None = nothing.
        lost: its sandbox died before it ended: it may have done anything or nothing.
    """

    value: Any
    failed: bool = False
    usage: Usage | None = None
    cost_usd: float | None = None
    model: str = ""
    limit: LimitExceeded | None = None
    lost: bool = False


def at_worst(intent: StepIntent) -> tuple[list[int] | None, float | None]:
    """What a step is charged with whose act may have been paid for: usage and cost, as it was reserved."""
    reserved = intent.reserved
    if not reserved:
        return None, None
    return Usage(int(reserved[0]), int(reserved[1]), calls=1).to_json(), reserved[2] if len(reserved) > 2 else None
