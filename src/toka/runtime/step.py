"""One journaled step. Recorded? Its result is returned. Else intent, act, result, each durable before the next.

A recorded step never runs again. A step in flight at a crash runs again only if its effect class says that this is
safe; otherwise a person is asked.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NoReturn

from toka.core.clock import Clock
from toka.core.decision import Decision
from toka.core.effect import Effect
from toka.core.ids import AgentName, RunId, StepKey, TaskId, idempotency_key
from toka.core.message import Usage
from toka.errors import JournalError, LimitExceeded
from toka.events.event import (
    StepDenied,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    StepLeft,
    StepPutBack,
    StepWaits,
)
from toka.events.record import Record
from toka.journal.recorder import Recorder
from toka.runtime.act import Act, InDoubt, Result, StepFailure, at_worst
from toka.runtime.aftermath import POISON, Aftermath, named
from toka.runtime.control import Gate, Interrupted, OpenGate
from toka.runtime.payload import cut, loaded, stored

ABANDONED: Final = "given up by a person, who could not tell whether it happened"
LEFT: Final = "it was in flight when its execution was cut off, and may have happened"


@dataclass(frozen=True, slots=True)
class _Flight:
    """An act that was begun and has not ended; `due` is when it should have, in the gate's time."""

    intent: StepIntent
    began: float
    due: float | None
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
        gate: Gate | None = None,
        history: Iterable[Record] = (),
    ) -> None:
        """Reads what `history`, the records of the agent's stream, says of earlier steps. None: a gate always open."""
        self._run = run
        self._agent = agent
        self._recorder = recorder
        self._clock = clock
        self._gate = gate or OpenGate()
        self._intents: dict[str, StepIntent] = {}
        self._ends: dict[str, StepDone | StepFailed | StepDenied] = {}
        self._started: dict[str, int] = {}
        self._open: dict[str, _Flight] = {}
        self._turns: dict[tuple[str, int], int] = {}
        self._past = Aftermath()
        self._left: dict[str, StepIntent] = {}
        self._patient = 0
        self._boundary = self._gate.time()
        for record in history:
            self._read(record.event)

    def _read(self, event: Any) -> None:
        self._past.read(event)
        if isinstance(event, StepIntent):
            self._begun(event)
        elif isinstance(event, StepDone | StepFailed | StepDenied):
            self._ends[event.step] = event
            self._left.pop(event.step, None)

    def _begun(self, intent: StepIntent) -> None:
        self._intents[intent.step] = self._left[intent.step] = intent
        self._count(StepKey.parse(intent.step))
        self._started[intent.step] = self._started.get(intent.step, 0) + 1

    def key(self, step: StepKey) -> str:
        """The step's idempotency key."""
        return idempotency_key(self._run, self._agent, step)

    def recorded_messages(self, step: StepKey) -> list[dict[str, Any]] | None:
        """The messages an earlier process recorded with this step's intent; None when it recorded none."""
        intent = self._intents.get(step.text)
        return intent.messages if intent else None

    def last_answer(self, task: str) -> str:
        """See Aftermath."""
        return self._past.last_answer(task)

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
        return Result(loaded(self._recorder, end.result), end.failed, usage, end.cost_usd, end.model)

    async def run(self, act: Act, do: Callable[[], Awaitable[Result]]) -> Result:
        """Runs a step, or returns what is recorded of it.

        Raises:
            StepFailure: `do` raised it, now or in an earlier process.
            InDoubt: an earlier process, or its sandbox, died in it, and whether it happened is unknown.
            Interrupted: a pause ended it; it has no end, and may be run again.
            JournalError: the record cannot be written; `do` was not called, or its result is not recorded.
        """
        text = act.key.text
        if (known := self.recorded(act.key)) is not None:
            return known
        if self._started.get(text):
            known = await self._after_crash(act, self._intents[text])
            if known is not None:
                return known
        while True:
            await self._gate.open()
            async with self._turn(act):
                if self._gate.held:
                    continue  # whoever rests keeps nobody from writing
                effect, evidence = await self._evidence(act)
                async with self._gate:  # what held the agent meanwhile holds this step too
                    return await self._act(act, do, effect, evidence)

    @asynccontextmanager
    async def _turn(self, act: Act) -> AsyncGenerator[None]:
        """Waits for its turn to write to the workspace, where it needs one."""
        turn = act.guard or act.turn
        if turn is None:
            yield
            return
        self._patient += 1
        waits = True
        try:
            async with turn.hold(partial(self._waits, act.key.text)):
                self._patient -= 1
                waits = False
                yield
        finally:
            self._patient -= waits
            self._boundary = self._gate.time()

    async def _waits(self, step: str, run: str, agent: str) -> None:
        with suppress(JournalError):  # who has waited long enough finds it broken, too
            await self._recorder.record(self._agent, StepWaits(step, agent, run))

    def flying(self, kind: str) -> bool:
        """Whether an act of a kind (`model`, `tool`, `run`, `check`) is under way."""
        return any(StepKey.parse(text).kind == kind for text in self._open)

    def stalled(self, factor: float, idle_s: float) -> str:
        """What should have ended long ago; empty when all is well.

        Args:
            factor: as often the time that an act may take, it may.
            idle_s: how long no act at all may be under way, in seconds.
        """
        now = self._gate.time()
        for text, flight in self._open.items():
            if flight.due is not None and now > flight.began + factor * (flight.due - flight.began):
                return f"{flight.intent.what} ({text}) has not ended after {now - flight.began:.0f} s"
        if not self._open and not self._patient and now > self._boundary + idle_s:
            return f"no step was begun for {now - self._boundary:.0f} s"
        return ""

    async def _evidence(self, act: Act) -> tuple[Effect, dict[str, Any] | None]:
        """What a crash in the act will mean, and what will have to be known then."""
        if act.guard is not None:
            async with self._gate:
                return await act.guard.checkpoint()
        if act.evidence is not None:
            async with self._gate:
                return act.effect, await act.evidence()
        return act.effect, None

    async def _act(
        self, act: Act, do: Callable[[], Awaitable[Result]], effect: Effect, evidence: dict[str, Any] | None
    ) -> Result:
        text = act.key.text
        intent = StepIntent(
            text,
            self.key(act.key),
            effect.value,
            act.what,
            cut(act.arguments),
            act.rule,
            act.messages,
            evidence,
            act.reserved,
            self._started.get(text, 0),
            [*act.lost[0].to_json(), act.lost[1]] if act.lost else None,
        )
        # Before the wait: whoever is cancelled in it leaves an intent that is durable.
        began, due = self._gate.time(), None if act.within_s is None else self._gate.time() + act.within_s
        self._open[text] = _Flight(intent, began, due, act.used)
        self._left.pop(text, None)
        await self._recorder.record(self._agent, intent)
        self._count(act.key)
        self._recorder.check_lease()
        began = self._clock.monotonic()
        try:
            if act.key.kind == "model":
                with self._gate.interruptible():
                    result = await do()
            else:
                result = await do()
        except StepFailure as f:
            self._open.pop(text, None)
            wall = round(self._clock.monotonic() - began, 4)
            usage = f.usage.to_json() if f.usage else None
            failed = StepFailed(text, f.error, f.message, f.retryable, usage, f.cost_usd, wall, resources=act.used())
            await self._recorder.record(self._agent, failed)
            raise
        except Interrupted:
            self._begun(intent)
            await self._leave(text, self._open.pop(text))
            raise
        finally:
            self._boundary = self._gate.time()
        wall = round(self._clock.monotonic() - began, 4)
        self._open.pop(text, None)
        if result.lost and effect is Effect.ONCE:
            self._begun(intent)
            await self._ask(text, f"{named(intent)} was started and its sandbox died before it ended. Did it happen?")
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

        A model call that was cut off may have been paid for: it is charged at its reservation. Steps in which an
        earlier execution was cut off, and which nobody took up again, are ended as well.

        Args:
            error: the cause as a word.
            message: for people.
            task: whose steps; None: those of all tasks of the agent.
            limit: for what they were cancelled; None = for nothing that is a limit.
        """
        met = limit.to_json() if limit is not None else None
        for text in [t for t in self._open if task is None or t.startswith(f"{task}/")]:
            flight = self._open.pop(text)
            wall = round(self._gate.time() - flight.began, 4)
            event = StepFailed(text, error, message, True, *at_worst(flight.intent), wall, met, flight.used())
            await self._recorder.record(self._agent, event)
        for text in [t for t in self._left if task is None or t.startswith(f"{task}/")]:
            event = StepFailed(text, error, f"{message}; {LEFT}", True, *at_worst(self._left.pop(text)))
            await self._recorder.record(self._agent, event)

    async def leave(self) -> None:
        """Records that the steps in flight were cut off because this process is to end; their acts have ended."""
        for text, flight in tuple(self._open.items()):
            await self._leave(text, flight)

    async def _leave(self, text: str, flight: _Flight) -> None:
        wall = round(self._gate.time() - flight.began, 4)
        await self._recorder.record(self._agent, StepLeft(text, wall, flight.used()))

    async def _after_crash(self, act: Act, intent: StepIntent) -> Result | None:
        """What to do about a step whose process died in it: None runs it again."""
        text, answer = act.key.text, self._past.answers.get(act.key.text)
        match answer:
            case "happened" if (
                act.key.kind == "model"
            ):  # what it answered is lost: it is asked again, and charged twice
                return None
            case "happened":
                return await self._taken(text, act.assumed)
            case "abandon":
                self._left.pop(text, None)
                event = StepFailed(text, "abandoned", ABANDONED, False, *at_worst(intent))
                await self._recorder.record(self._agent, event)
                raise StepFailure("abandoned", ABANDONED, retryable=False)
            case _:
                pass
        effect = Effect(intent.effect)
        again = effect in (Effect.PURE, Effect.IDEMPOTENT)
        if effect is Effect.CHECKABLE and answer is None and act.probe is not None and intent.evidence is not None:
            verdict, value = await act.probe(intent.evidence)
            if verdict == "happened":
                return await self._taken(text, value)
            again = verdict == "not-happened"
        back = await self._restored(act, intent)
        if answer is not None:
            again = back is None or not back.problem or back.problem in self._past.doubts.get(text, "")
        elif back is not None:
            again = not back.problem
        if again and self._past.deaths(text) < POISON:
            return None
        if answer is not None or text not in self._past.doubts:
            await self._ask(text, self._past.question(intent))
        raise InDoubt(text, self._past.doubts[text])

    async def _ask(self, step: str, question: str) -> NoReturn:
        """Records that a person must say whether a step happened."""
        event = StepInDoubt(step, question)
        await self._recorder.record(self._agent, event)
        self._past.read(event)
        raise InDoubt(step, question)

    async def _restored(self, act: Act, intent: StepIntent) -> StepPutBack | None:
        """What came of putting back what a step left in the workspace; None where that is not done, or not yet."""
        back = self._past.put_back.get(intent.step)
        workspace = Effect(intent.effect) is Effect.WORKSPACE and act.guard is not None
        if back is None and workspace and intent.evidence is not None and not self._past.stays(intent.step):
            assert act.guard is not None
            back = await act.guard.put_back(intent.step, intent.evidence)
            await self._recorder.record(self._agent, back)
            self._past.read(back)
        return back

    async def _taken(self, text: str, value: Any) -> Result:
        """Takes a step as done that an earlier process did."""
        result = Result(value)
        await self._record_done(text, result, 0.0)
        return result

    def _count(self, step: StepKey) -> None:
        if step.kind == "model":
            self._turns[step.task, step.attempt] = step.turn

    async def _record_done(
        self, text: str, result: Result, wall: float, resources: dict[str, Any] | None = None
    ) -> None:
        usage = result.usage.to_json() if result.usage else None
        value = await stored(self._recorder, result.value)
        limit = result.limit.to_json() if result.limit is not None else None
        self._left.pop(text, None)
        done = StepDone(text, value, usage, result.cost_usd, result.model, wall, result.failed, limit, resources)
        await self._recorder.record(self._agent, done)
        if StepKey.parse(text).kind == "run":  # the only ones that are asked for later: for what they printed
            self._ends[text] = done
