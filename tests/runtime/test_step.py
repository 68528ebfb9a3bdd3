from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from toka.core.clock import SystemClock
from toka.core.decision import Decision
from toka.core.effect import Effect
from toka.core.ids import AgentName, RunId, StepKey, TaskId
from toka.core.message import Usage
from toka.errors import JournalError, StaleEpoch
from toka.events.event import Event, StepDenied, StepDone, StepFailed, StepInDoubt, StepIntent
from toka.events.record import Record, payload
from toka.journal.journal import Lease
from toka.journal.recorder import Recorder
from toka.runtime.act import Act, InDoubt, Result, StepFailure
from toka.runtime.control import OpenGate
from toka.runtime.payload import INLINE_ARGUMENTS, INLINE_BYTES
from toka.runtime.step import Steps
from toka.testing import MemoryJournal

RUN, ONE = RunId("20300101-000000-aaaaaa"), AgentName("one")
KEY = StepKey(TaskId("task-1"), 1, 1, "tool")


class OrderedJournal(MemoryJournal):
    """Writes down when each event became durable, in `order`; `broken` refuses all appends."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.order: list[str] = []
        self.broken = False

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        if self.broken:
            raise JournalError("the disk is full")
        records = await super().append(lease, stream, epoch, events)
        self.order += [payload(e)[0] for e in events]
        return records


@pytest.fixture
def journal() -> OrderedJournal:
    return OrderedJournal()


Process = Callable[[], Awaitable[Steps]]


class NotedGate(OpenGate):
    """An open gate that writes down who passes it."""

    def __init__(self, order: list[str]) -> None:
        self.order = order

    async def __aenter__(self) -> None:
        self.order.append("gate")


@pytest.fixture
def process(journal: OrderedJournal) -> Process:
    """A process that takes the agent over, with what its predecessors left."""

    async def start() -> Steps:
        if RUN in journal._held:
            await journal.release(Lease(RUN, journal._tokens[RUN], {}))
        recorder = Recorder(journal, await journal.acquire(RUN))

        return Steps(RUN, ONE, recorder, SystemClock(), NotedGate(journal.order), recorder.history(ONE))

    return start


def acting(journal: OrderedJournal, value: Any = "answer", **more: Any) -> Callable[[], Awaitable[Result]]:
    async def do() -> Result:
        journal.order.append("act")
        return Result(value, **more)

    return do


class Crash(BaseException):
    pass


async def crash() -> Result:
    raise Crash


def act(effect: Effect = Effect.PURE, key: StepKey = KEY, **more: Any) -> Act:
    return Act(key, effect, "tool", **more)


async def test_the_intent_is_durable_before_the_act_and_the_result_before_it_is_returned(
    journal: OrderedJournal, process: Process
) -> None:
    steps = await process()
    await steps.run(act(), acting(journal))
    journal.order.append("returned")
    assert journal.order == ["gate", "step_intent", "act", "step_done", "returned"]


async def test_no_act_starts_whose_intent_cannot_be_written(journal: OrderedJournal, process: Process) -> None:
    steps = await process()
    journal.broken = True
    with pytest.raises(JournalError, match="disk is full"):
        await steps.run(act(), acting(journal))
    assert "act" not in journal.order
    journal.broken = False
    assert (await steps.run(act(), acting(journal))).value == "answer"


async def test_no_act_starts_after_the_lease_was_lost(journal: OrderedJournal, process: Process) -> None:
    steps = await process()
    await process()
    with pytest.raises(StaleEpoch):
        await steps.run(act(), acting(journal))
    assert "act" not in journal.order


@pytest.mark.parametrize(
    "value", ["answer", None, 0, {"blob": 1}, [1, {"x": None}], "x" * INLINE_BYTES, {"y": "\ud800" * 20_000}]
)
async def test_a_recorded_step_is_returned_and_never_run_again(
    journal: OrderedJournal, process: Process, value: Any
) -> None:
    steps = await process()
    result = Result(value, failed=True, usage=Usage(1, 2, 0, 0, 1), cost_usd=0.5, model="m")

    async def do() -> Result:
        return result

    assert await steps.run(act(Effect.ONCE), do) == result
    later = await process()
    assert await later.run(act(Effect.ONCE), crash) == result
    assert later.recorded(KEY) == result
    assert journal.order.count("step_intent") == 1


async def test_a_large_result_lies_in_a_blob_and_comes_back(journal: OrderedJournal, process: Process) -> None:
    steps = await process()
    value = {"text": "z" * (INLINE_BYTES + 1)}
    await steps.run(act(), acting(journal, value))
    (done,) = [r.event for r in journal.read(RUN) if isinstance(r.event, StepDone)]
    assert list(done.result) == ["blob"] and len(journal.blob(done.result["blob"])) > INLINE_BYTES
    again = (await process()).recorded(KEY)
    assert again is not None and again.value == value


async def test_large_arguments_are_recorded_cut(journal: OrderedJournal, process: Process) -> None:
    steps = await process()
    await steps.run(act(arguments={"content": "c" * 10_000}), acting(journal))
    (intent,) = [r.event for r in journal.read(RUN) if isinstance(r.event, StepIntent)]
    assert intent.arguments["characters"] > 10_000 and len(intent.arguments["cut"]) < INLINE_ARGUMENTS


@pytest.mark.parametrize("effect", [Effect.PURE, Effect.IDEMPOTENT])
async def test_after_a_crash_in_flight_what_is_safe_runs_again_under_the_same_key(
    journal: OrderedJournal, process: Process, effect: Effect
) -> None:
    steps = await process()
    with pytest.raises(Crash):
        await steps.run(act(effect), crash)
    assert (await (await process()).run(act(effect), acting(journal))).value == "answer"
    intents = [r.event for r in journal.read(RUN) if isinstance(r.event, StepIntent)]
    assert [i.again for i in intents] == [0, 1] and intents[0].key == intents[1].key == steps.key(KEY)


@pytest.mark.parametrize("effect", [Effect.ONCE, Effect.WORKSPACE, Effect.CHECKABLE])
async def test_after_a_crash_in_flight_the_rest_is_asked_once_and_never_run(
    journal: OrderedJournal, process: Process, effect: Effect
) -> None:
    with pytest.raises(Crash):
        await (await process()).run(act(effect), crash)
    for _ in range(3):
        with pytest.raises(InDoubt, match=r"tool was started .* Did it happen\?"):
            await (await process()).run(act(effect), acting(journal))
    assert "act" not in journal.order
    assert sum(isinstance(r.event, StepInDoubt) for r in journal.read(RUN)) == 1


@pytest.mark.parametrize("verdict", ["happened", "not-happened", "unknown"])
async def test_a_probe_decides_about_a_checkable_act(journal: OrderedJournal, process: Process, verdict: Any) -> None:
    seen: list[dict[str, Any]] = []

    async def evidence() -> dict[str, Any]:
        journal.order.append("evidence")
        return {"before": len(journal.order)}

    async def probe(noted: dict[str, Any]) -> Any:
        seen.append(noted)
        return verdict, "found done"

    checkable = act(Effect.CHECKABLE, evidence=evidence, probe=probe)
    with pytest.raises(Crash):
        await (await process()).run(checkable, crash)
    assert journal.order == ["gate", "evidence", "gate", "step_intent"], "a hold that came meanwhile holds it too"
    later = await process()
    if verdict == "unknown":
        with pytest.raises(InDoubt):
            await later.run(checkable, acting(journal))
    else:
        result = await later.run(checkable, acting(journal))
        assert result.value == ("found done" if verdict == "happened" else "answer")
        assert (await (await process()).run(checkable, crash)).value == result.value
    assert seen == [{"before": 2}], "it is asked with what was noted before the act"
    assert journal.order.count("act") == (verdict == "not-happened")


async def test_a_failure_is_recorded_with_its_charge_and_raised_again(
    journal: OrderedJournal, process: Process
) -> None:
    async def do() -> Result:
        raise StepFailure("timeout", "too late", retryable=False, usage=Usage(5, 6, 0, 0, 1), cost_usd=0.25)

    for _ in range(2):
        steps = await process()
        with pytest.raises(StepFailure, match="too late") as error:
            await steps.run(act(), do)
        assert (error.value.error, error.value.retryable) == ("timeout", False)
    (failed,) = [r.event for r in journal.read(RUN) if isinstance(r.event, StepFailed)]
    assert (failed.usage, failed.cost_usd) == ([5, 6, 0, 0, 1], 0.25)


async def test_a_denial_is_recorded_once_with_its_rule(journal: OrderedJournal, process: Process) -> None:
    for _ in range(2):
        steps = await process()
        refused = Decision("denied", "no command-execution", "not granted", "a.yaml:3", "- command-execution")
        result = await steps.deny(KEY, "run_command", refused, {"command": "id"})
        assert result == Result({"text": "not granted", "denied": "no command-execution"}, failed=True)
    denials = [r.event for r in journal.read(RUN) if isinstance(r.event, StepDenied)]
    assert denials == [
        StepDenied(
            KEY.text, "run_command", "no command-execution", "not granted", {"command": "id"}, "a.yaml:3",
            "- command-execution",
        )
    ]  # fmt: skip


async def test_an_answer_without_an_act_is_recorded_once(journal: OrderedJournal, process: Process) -> None:
    for _ in range(2):
        steps = await process()
        assert (await steps.answer(KEY, {"text": "no such tool"})).failed
    assert journal.order == ["step_done"]


async def test_steps_cancelled_in_flight_are_recorded_as_failed(journal: OrderedJournal, process: Process) -> None:
    steps = await process()
    with pytest.raises(Crash):
        await steps.run(act(), crash)
    await steps.abandon("cancelled", "stopped by a person")
    await steps.abandon("cancelled", "stopped by a person")
    failed = [r.event for r in journal.read(RUN) if isinstance(r.event, StepFailed)]
    assert [(f.error, f.message) for f in failed] == [("cancelled", "stopped by a person")]


async def test_model_calls_of_earlier_attempts_are_counted_from_the_record(
    journal: OrderedJournal, process: Process
) -> None:
    steps = await process()
    for attempt, turns in ((1, 3), (2, 2)):
        for turn in range(1, turns + 1):
            await steps.run(act(key=StepKey(TaskId("task-1"), attempt, turn, "model")), acting(journal))
            await steps.run(act(key=StepKey(TaskId("task-1"), attempt, turn, "tool")), acting(journal))
    for each in (steps, await process()):
        assert [each.model_calls("task-1", before) for before in (1, 2, 3)] == [0, 3, 5]
        assert each.model_calls("task-2", 9) == 0


async def test_only_a_step_without_an_end_is_unanswered(journal: OrderedJournal, process: Process) -> None:
    with pytest.raises(Crash):
        await (await process()).run(act(reserved=[10.0, 5.0]), crash)
    later = await process()
    assert (intent := later.unanswered(KEY)) is not None and intent.reserved == [10.0, 5.0]
    await later.run(act(), acting(journal))
    assert (await process()).unanswered(KEY) is None


async def test_no_act_starts_when_the_lease_ran_out_while_its_intent_was_written(
    journal: OrderedJournal, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = await process()
    monkeypatch.setattr(journal, "holds", lambda _: False)
    with pytest.raises(StaleEpoch, match="lost run"):
        await steps.run(act(), acting(journal))
    assert "act" not in journal.order
