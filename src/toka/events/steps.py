"""Events of steps: what an agent is about to do, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

JSON = dict[str, Any]
SETTLED: Final = ("happened", "abandon")
"""Answers of a person after which a step is not run again."""
UNKEPT: Final = "the workspace is not kept before commands: {why}; after a crash in the middle of one a person is asked"
"""What follows from a workspace of which no checkpoint can be taken."""


@dataclass(frozen=True, slots=True)
class StepWaits:
    """An act may change the workspace, and another is at it that writes to the same paths: it waits for its turn.

    Attributes:
        step: the step's key as text.
        agent: who has its turn before.
        run: in which run; empty = in this one.
    """

    KIND: ClassVar[str] = "step_waits"
    step: str
    agent: str
    run: str = ""


@dataclass(frozen=True, slots=True)
class StepIntent:
    """An act is about to start.

    Attributes:
        step: the step's key as text.
        key: idempotency key, the same over restarts.
        effect: what a crash in flight means.
        what: the tool's name, the model, or the command line.
        arguments: the arguments; of large ones their beginning, their length and their SHA-256.
        rule: the policy rule that allowed it.
        messages: messages added to the conversation since the last recorded step, for a model call.
        evidence: what a probe needs after a crash, for a checkable act.
        reserved: what was reserved in the budgets: tokens, USD.
        again: how often this step was started before.
        lost: usage and cost charged for the start before, whose answer was lost: [five token counts, USD or None].
    """

    KIND: ClassVar[str] = "step_intent"
    step: str
    key: str
    effect: str
    what: str
    arguments: Any = None
    rule: str = ""
    messages: list[JSON] | None = None
    evidence: JSON | None = None
    reserved: list[float] | None = None
    again: int = 0
    lost: list[Any] | None = None

    @property
    def unkept(self) -> str:
        """Why the workspace could not be kept before this act, which may change it; empty when nothing went wrong."""
        noted = self.evidence
        return str(noted.get("why") or "") if noted is not None and noted.get("checkpoint", "") is None else ""


@dataclass(frozen=True, slots=True)
class StepDone:
    """An act ended and its result is known.

    Attributes:
        result: what a replay returns in place of the act: a JSON value, or {"blob": digest} for a large one.
        usage: tokens of a model call: [input, output, cache read, cache write, calls].
        cost_usd: what it cost; None when the price is unknown.
        model: the model that answered.
        wall_s: how long the act took.
        failed: the act ended, and its answer is an error (a tool's, a command's).
        limit: what was met while it ran: {"scope", "limit", "used", "unit"}; None = nothing.
        resources: what its commands used of the machine; None = it ran none.
    """

    KIND: ClassVar[str] = "step_done"
    step: str
    result: Any = None
    usage: list[int] | None = None
    cost_usd: float | None = None
    model: str = ""
    wall_s: float = 0.0
    failed: bool = False
    limit: JSON | None = None
    resources: JSON | None = None


@dataclass(frozen=True, slots=True)
class StepFailed:
    """An act could not be carried through; a replay raises the same failure.

    Attributes:
        error: the cause as a word: timeout, rate_limit, malformed ...
        message: for people.
        retryable: whether trying again may help.
        usage, cost_usd: what was charged all the same.
        wall_s: how long it took until then.
        limit: for what it was ended: {"scope", "limit", "used", "unit"}; None = for nothing that is a limit.
        resources: what its commands used of the machine, those that were killed with it included; None = it ran none.
    """

    KIND: ClassVar[str] = "step_failed"
    step: str
    error: str
    message: str
    retryable: bool = True
    usage: list[int] | None = None
    cost_usd: float | None = None
    wall_s: float = 0.0
    limit: JSON | None = None
    resources: JSON | None = None


@dataclass(frozen=True, slots=True)
class StepLeft:
    """An act was killed because the process that did it was to end. The step has no end yet: see `StepIntent`.

    Attributes:
        wall_s, resources: see StepFailed.
    """

    KIND: ClassVar[str] = "step_left"
    step: str
    wall_s: float = 0.0
    resources: JSON | None = None


@dataclass(frozen=True, slots=True)
class StepPutBack:
    """What a step left in the workspace when its process died was undone, so that it can run again.

    Attributes:
        step: its key.
        checkpoint: the state that was put back.
        kept: the checkpoint of what was there before; empty when nothing was recorded.
        changed: how many paths were changed.
        problem: why it was not put back, for people; empty when it was.
    """

    KIND: ClassVar[str] = "step_put_back"
    step: str
    checkpoint: str = ""
    kept: str = ""
    changed: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StepDenied:
    """A tool call was refused before it started; the model gets the reason as its answer.

    Attributes:
        step: its key.
        what: the tool.
        rule: what decided: a capability, the absence of one, or a rule of the operator.
        reason: one sentence.
        arguments: of the call.
        place: where the spec or the settings say so: `agents/a.yaml:12`; empty when it is not known.
        patch: the smallest change that would allow it; empty when none is known.
    """

    KIND: ClassVar[str] = "step_denied"
    step: str
    what: str
    rule: str
    reason: str
    arguments: Any = None
    place: str = ""
    patch: str = ""


@dataclass(frozen=True, slots=True)
class StepInDoubt:
    """The process died while an act that must not run twice was in flight. A person answers the question."""

    KIND: ClassVar[str] = "step_in_doubt"
    step: str
    question: str


@dataclass(frozen=True, slots=True)
class StepResolved:
    """A person answered whether a step in doubt happened.

    Attributes:
        answer: `happened`, `not-happened` (it runs again) or `abandon` (it counts as failed).
    """

    KIND: ClassVar[str] = "step_resolved"
    step: str
    answer: str
    author: str = ""
    reason: str = ""
