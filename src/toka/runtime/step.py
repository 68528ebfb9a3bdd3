"""One journaled step. Recorded? Its result is returned. Else intent, act, result, each durable before the next.

A recorded step never runs again. A step in flight at a crash runs again only if its effect class says that this is
safe; otherwise a person is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from toka.core.clock import Clock
from toka.core.decision import Decision
from toka.core.effect import Effect
from toka.core.ids import AgentName, RunId, StepKey, TaskId, idempotency_key
from toka.core.message import Usage
from toka.errors import LimitExceeded
from toka.events.event import (
    StepDenied,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    StepLeft,
    StepResolved,
)
from toka.events.record import Record
from toka.journal.recorder import Recorder

INLINE_BYTES: Final = 16_384
"""Results above this size go to a blob."""
ABANDONED: Final = "given up by a person, who could not tell whether it happened"
INLINE_ARGUMENTS: Final = 2_048
"""Arguments above this size are recorded cut."""


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


@dataclass(frozen=True, slots=True)
class Result:
    """How an act ended.

    Attributes:
        value: a JSON value: what the caller goes on with, now or in a replay.
        failed: the act ended, but its answer is an error.
        usage, cost_usd, model: of a model call.
        limit: what was met while it ran, so that it or a part of it was ended; None = nothing.
    """

    value: Any
    failed: bool = False
    usage: Usage | None = None
    cost_usd: float | None = None
    model: str = ""
    limit: LimitExceeded | None = None


@dataclass(frozen=True, slots=True)
class _Flight:
    """An act that was begun and has not ended."""

    intent: StepIntent
    began: float
    used: Callable[[], dict[str, Any] | None]


class Steps:
    """The steps of one agent.

    Before each act the gate is awaited: it returns when nothing holds the agent, so a held agent starts no step.
    """

    def __init__(
        self,
        run: RunId,
        agent: AgentName,
        recorder: Recorder,
        clock: Clock,
        gate: Callable[[], Awaitable[None]] | None = None,
        history: Iterable[Record] = (),
    ) -> None:
        """Reads what `history`, the records of the agent's stream, says of earlier steps."""
        self._run = run
        self._agent = agent
        self._recorder = recorder
        self._clock = clock
        self._gate = gate
        self._intents: dict[str, StepIntent] = {}
        self._ends: dict[str, StepDone | StepFailed | StepDenied] = {}
        self._started: dict[str, int] = {}
        self._open: dict[str, _Flight] = {}
        self._turns: dict[tuple[str, int], int] = {}
        self._doubts: dict[str, str] = {}
        self._answers: dict[str, str] = {}
        for record in history:
            event = record.event
            if isinstance(event, StepIntent):
                self._intents[event.step] = event
                self._count(StepKey.parse(event.step))
                self._doubts.pop(event.step, None)  # it was started again: an answer was about the start before
                self._answers.pop(event.step, None)
                self._started[event.step] = self._started.get(event.step, 0) + 1
            elif isinstance(event, StepDone | StepFailed | StepDenied):
                self._ends[event.step] = event
            elif isinstance(event, StepInDoubt):
                self._doubts[event.step] = event.question
            elif isinstance(event, StepResolved):
                self._answers[event.step] = event.answer

    def key(self, step: StepKey) -> str:
        """The step's idempotency key."""
        return idempotency_key(self._run, self._agent, step)

    def recorded_messages(self, step: StepKey) -> list[dict[str, Any]] | None:
        """The messages an earlier process recorded with this step's intent; None when it recorded none."""
        intent = self._intents.get(step.text)
        return intent.messages if intent else None

    def unanswered(self, step: StepKey) -> StepIntent | None:
        """The intent of a step that an earlier process started and did not end; None when there is none."""
        return None if step.text in self._ends else self._intents.get(step.text)

    def model_calls(self, task: str, before: int) -> int:
        """How many model calls the attempts of a task before number `before` made."""
        return sum(turns for (t, attempt), turns in self._turns.items() if t == task and attempt < before)

    def recorded(self, step: StepKey) -> Result | None:
        """The recorded end of a step; None when it has none. Raises StepFailure for a recorded failure."""
        end = self._ends.get(step.text)
        if end is None:
            return None
        if isinstance(end, StepFailed):
            raise StepFailure(end.error, end.message, retryable=end.retryable)
        if isinstance(end, StepDenied):
            return Result({"text": end.reason, "denied": end.rule}, failed=True)
        usage = Usage.from_json(end.usage) if end.usage else None
        return Result(self._loaded(end.result), end.failed, usage, end.cost_usd, end.model)

    async def run(self, act: Act, do: Callable[[], Awaitable[Result]]) -> Result:
        """Runs a step, or returns what is recorded of it.

        Raises:
            StepFailure: `do` raised it, now or in an earlier process.
            InDoubt: an earlier process died in it, and whether it happened is unknown.
            JournalError: the record cannot be written; `do` was not called, or its result is not recorded.
        """
        text = act.key.text
        if (known := self.recorded(act.key)) is not None:
            return known
        started = self._started.get(text, 0)
        if started:
            known = await self._after_crash(act, self._intents[text])
            if known is not None:
                return known
        await self._open_gate()
        evidence = None
        if act.evidence is not None:
            evidence = await act.evidence()
            await self._open_gate()  # what held the agent meanwhile holds this step too
        intent = StepIntent(
            text,
            self.key(act.key),
            act.effect.value,
            act.what,
            cut(act.arguments),
            act.rule,
            act.messages,
            evidence,
            act.reserved,
            started,
            [*act.lost[0].to_json(), act.lost[1]] if act.lost else None,
        )
        # Before the wait: whoever is cancelled in it leaves an intent that is durable.
        self._open[text] = _Flight(intent, self._clock.monotonic(), act.used)
        await self._recorder.record(self._agent, intent)
        self._count(act.key)
        self._recorder.check_lease()
        began = self._clock.monotonic()
        try:
            result = await do()
        except StepFailure as f:
            self._open.pop(text, None)
            wall = round(self._clock.monotonic() - began, 4)
            usage = f.usage.to_json() if f.usage else None
            failed = StepFailed(text, f.error, f.message, f.retryable, usage, f.cost_usd, wall, resources=act.used())
            await self._recorder.record(self._agent, failed)
            raise
        wall = round(self._clock.monotonic() - began, 4)
        self._open.pop(text, None)
        await self._record_done(text, result, wall, act.used())
        return result

    async def deny(self, step: StepKey, what: str, decision: Decision, arguments: Any) -> Result:
        """Records that a call was refused; returns what the model is told."""
        if (known := self.recorded(step)) is not None:
            return known
        d = decision
        event = StepDenied(step.text, what, d.rule, d.reason, cut(arguments), d.place, d.patch)
        await self._recorder.record(self._agent, event)
        return Result({"text": d.reason, "denied": d.rule}, failed=True)

    async def answer(self, step: StepKey, value: Any) -> Result:
        """Records an answer that needed no act, such as the error for a malformed call."""
        if (known := self.recorded(step)) is not None:
            return known
        result = Result(value, failed=True)
        await self._record_done(step.text, result, 0.0)
        return result

    async def abandon(
        self, error: str, message: str, task: TaskId | None = None, limit: LimitExceeded | None = None
    ) -> None:
        """Records a failure for every step that was cancelled in flight; their acts have ended by now.

        A model call that was cut off may have been paid for: it is charged at its reservation.

        Args:
            error: the cause as a word.
            message: for people.
            task: whose steps; None: those of all tasks of the agent.
            limit: for what they were cancelled; None = for nothing that is a limit.
        """
        met = limit.to_json() if limit is not None else None
        for text in [t for t, _ in self._open.items() if task is None or t.startswith(f"{task}/")]:
            flight = self._open.pop(text)
            wall, reserved = round(self._clock.monotonic() - flight.began, 4), flight.intent.reserved
            usage = Usage(int(reserved[0]), int(reserved[1]), calls=1).to_json() if reserved else None
            cost = (reserved[2] if len(reserved) > 2 else None) if reserved else None
            event = StepFailed(text, error, message, True, usage, cost, wall, met, flight.used())
            await self._recorder.record(self._agent, event)

    async def leave(self) -> None:
        """Records what the commands of steps used that were killed because this process is to end."""
        for text, flight in tuple(self._open.items()):
            if (used := flight.used()) is not None:
                wall = round(self._clock.monotonic() - flight.began, 4)
                await self._recorder.record(self._agent, StepLeft(text, wall, used))

    async def _open_gate(self) -> None:
        if self._gate is not None:
            await self._gate()

    async def _after_crash(self, act: Act, intent: StepIntent) -> Result | None:
        """What to do about a step whose process died in it: None runs it again."""
        effect = Effect(intent.effect)
        if effect in (Effect.PURE, Effect.IDEMPOTENT):
            return None
        if effect is Effect.CHECKABLE and act.probe is not None and intent.evidence is not None:
            verdict, value = await act.probe(intent.evidence)
            if verdict == "not-happened":
                return None
            if verdict == "happened":
                result = Result(value)
                await self._record_done(act.key.text, result, 0.0)
                return result
        text = act.key.text
        match self._answers.get(text):
            case "not-happened":
                return None
            case "happened":
                result = Result(act.assumed)
                await self._record_done(text, result, 0.0)
                return result
            case "abandon":
                await self._recorder.record(self._agent, StepFailed(text, "abandoned", ABANDONED, retryable=False))
                raise StepFailure("abandoned", ABANDONED, retryable=False)
            case _:
                pass
        if text not in self._doubts:
            what = f"{intent.what} {_short(intent.arguments)}".strip()
            question = f"{what} was started and Toka ended before it did. Did it happen?"
            await self._recorder.record(self._agent, StepInDoubt(text, question))
            self._doubts[text] = question
        raise InDoubt(text, self._doubts[text])

    def _count(self, step: StepKey) -> None:
        if step.kind == "model":
            self._turns[step.task, step.attempt] = step.turn

    async def _record_done(
        self, text: str, result: Result, wall: float, resources: dict[str, Any] | None = None
    ) -> None:
        usage = result.usage.to_json() if result.usage else None
        value = await self._stored(result.value)
        limit = result.limit.to_json() if result.limit is not None else None
        done = StepDone(text, value, usage, result.cost_usd, result.model, wall, result.failed, limit, resources)
        await self._recorder.record(self._agent, done)
        if StepKey.parse(text).kind == "run":  # the only ones that are asked for later: for what they printed
            self._ends[text] = done

    async def _stored(self, value: Any) -> Any:
        if value is None:
            return None
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        if len(text) <= INLINE_BYTES and not _is_reference(value):
            return value
        return {"blob": await self._recorder.put_blob(text.encode("utf-8", "surrogatepass"))}

    def _loaded(self, value: Any) -> Any:
        if not _is_reference(value):
            return value
        digest: str = value["blob"]
        return json.loads(self._recorder.blob(digest).decode("utf-8", "surrogatepass"))


def _is_reference(value: Any) -> bool:
    """Whether a stored result names a blob. A result that looks like that is stored as one itself."""
    return isinstance(value, dict) and "blob" in value


def _short(arguments: Any) -> str:
    text = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return text if len(text) <= 300 else text[:299] + "…"


def cut(arguments: Any) -> Any:
    """Arguments for the record: as they are, or the beginning of their text when they are large."""
    if arguments is None:
        return None
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if len(text) <= INLINE_ARGUMENTS:
        return arguments
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"cut": text[: INLINE_ARGUMENTS // 2], "characters": len(text), "sha256": digest}
