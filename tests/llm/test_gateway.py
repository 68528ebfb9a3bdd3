from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llm.conftest import FakeClock, Ledger, ask
from toka.core.message import Message, Usage
from toka.errors import LimitExceeded, ModelError, ModelRefused, ModelUnavailable
from toka.llm.failure import failed
from toka.llm.gateway import DEFAULT_MAX_TOKENS, LlmGateway, RetrySettings
from toka.llm.model import ModelReply, ModelRequest
from toka.llm.pricing import Price, PriceList
from toka.llm.scripted import ScriptedModel


class Model:
    """Does what the list says, one entry per attempt."""

    name = "fake:model"

    def __init__(self, *plan: Any) -> None:
        self.plan = list(plan)
        self.asked: list[ModelRequest] = []

    async def request(self, request: ModelRequest) -> ModelReply:
        self.asked.append(request)
        step = self.plan.pop(0)
        if isinstance(step, BaseException):
            raise step
        if callable(step):
            return await step(request)
        return ModelReply(Message("assistant", text="ok"), step or Usage(10, 5, calls=1), "m", None, "stop")

    async def aclose(self) -> None:
        pass


def gateway(model: Any, clock: FakeClock, *, random: Callable[[], float] = lambda: 0.5, **settings: Any) -> LlmGateway:
    prices = PriceList(clock.now, {"fake:*": Price(input=2.0, output=10.0)})
    return LlmGateway(lambda _: model, clock, random, RetrySettings(**settings), prices)


@pytest.mark.parametrize("slow", [False, True])
async def test_each_attempt_is_reserved_and_settled_once(clock: FakeClock, slow: bool) -> None:
    model = Model(failed("server", "1"), failed("rate_limit", "2"), None)
    meter = Ledger(slow=slow)
    reply = await gateway(model, clock).complete(ask(model="fake:m"), meter)
    assert reply.message.text == "ok"
    assert [a for a, _ in meter.reserved] == [1, 2, 3] == [s[0] for s in meter.settled]
    assert [s[3] for s in meter.settled] == ["server", "rate_limit", None]
    assert [r.attempt for r in model.asked] == [1, 2, 3]


async def test_the_reply_is_priced(clock: FakeClock) -> None:
    meter = Ledger()
    reply = await gateway(Model(Usage(1_000_000, 100_000, calls=1)), clock).complete(ask(model="fake:m"), meter)
    assert reply.cost_usd == pytest.approx(3.0)
    assert meter.settled == [(1, reply.usage, reply.cost_usd, None)]


async def test_without_a_price_the_cost_is_unknown(clock: FakeClock) -> None:
    meter = Ledger()
    reply = await gateway(Model(None), clock).complete(ask(model="elsewhere:m"), meter)
    assert reply.cost_usd is None
    assert meter.reserved[0][1].cost_usd is None


async def test_a_cost_that_the_model_knows_stands(clock: FakeClock) -> None:
    model = ScriptedModel({"default": [{"say": "x", "cost": 0.25}]})
    assert (await gateway(model, clock).complete(ask(model="scripted:x"), Ledger())).cost_usd == 0.25


async def test_reservation_bounds_bytes_and_price(clock: FakeClock) -> None:
    meter = Ledger()
    request = ask(Message("user", "ä" * 1000), tools=(), max_tokens=100, model="fake:m")
    await gateway(Model(None), clock).complete(request, meter)
    estimate = meter.reserved[0][1]
    assert 2000 <= estimate.input_tokens < 2100
    assert estimate.max_tokens == 100
    assert estimate.cost_usd == pytest.approx((estimate.input_tokens * 2 + 100 * 10) / 1e6)


async def test_a_request_without_bound_gets_one(clock: FakeClock) -> None:
    model, meter = Model(None), Ledger()
    await gateway(model, clock).complete(ask(max_tokens=None), meter)
    assert model.asked[0].max_tokens == DEFAULT_MAX_TOKENS == meter.reserved[0][1].max_tokens


async def test_a_refused_reservation_sends_nothing(clock: FakeClock) -> None:
    model, meter = Model(), Ledger(allowed=0)
    with pytest.raises(LimitExceeded):
        await gateway(model, clock).complete(ask(), meter)
    assert model.asked == []
    assert meter.settled == []


async def test_a_refused_reservation_ends_the_repeats(clock: FakeClock) -> None:
    model, meter = Model(failed("server", "x")), Ledger(allowed=1)
    with pytest.raises(LimitExceeded):
        await gateway(model, clock).complete(ask(), meter)
    assert len(model.asked) == 1
    assert len(meter.settled) == 1


async def test_waits_double_with_equal_jitter_and_a_cap(clock: FakeClock) -> None:
    model = Model(*(failed("server", "x") for _ in range(6)), None)
    await gateway(model, clock, attempts=7, cap_s=3.0, random=lambda: 0.0).complete(ask(timeout_s=99.0), Ledger())
    assert clock.slept == [0.25, 0.5, 1.0, 1.5, 1.5, 1.5]
    again, clock.slept = Model(*(failed("server", "x") for _ in range(3)), None), []
    await gateway(again, clock, attempts=7, random=lambda: 0.999).complete(ask(timeout_s=99.0), Ledger())
    assert clock.slept == pytest.approx([0.4998, 0.9995, 1.999], abs=1e-3)


async def test_all_attempts_share_one_deadline(clock: FakeClock) -> None:
    model = Model(*(failed("server", "x") for _ in range(50)))
    with pytest.raises(ModelUnavailable):
        await gateway(model, clock, attempts=50).complete(ask(timeout_s=5.0), Ledger())
    assert sum(clock.slept) <= 5.0
    assert [r.timeout_s for r in model.asked] == sorted((r.timeout_s for r in model.asked), reverse=True)
    assert model.asked[-1].timeout_s < 5.0


async def test_a_model_that_ignores_its_deadline_is_cut_off(clock: FakeClock) -> None:
    async def forever(_: ModelRequest) -> ModelReply:
        await asyncio.Event().wait()
        raise AssertionError

    meter = Ledger()
    with pytest.raises(ModelUnavailable) as caught:
        await gateway(Model(forever), clock, attempts=1).complete(ask(timeout_s=0.05), meter)
    assert caught.value.retryable
    assert meter.settled[0][3] == "timeout"


@pytest.mark.parametrize(
    ("error", "kind_of_error"),
    [
        (failed("auth", "no"), ModelRefused),
        (failed("invalid_request", "no"), ModelRefused),
        (failed("too_large", "no"), ModelError),
        (ModelUnavailable("own", retryable=False), ModelUnavailable),
        (ModelError("own", kind="odd", retryable=False), ModelError),
    ],
)
async def test_what_cannot_help_is_not_repeated(
    clock: FakeClock, error: Exception, kind_of_error: type[Exception]
) -> None:
    model, meter = Model(error), Ledger()
    with pytest.raises(kind_of_error):
        await gateway(model, clock).complete(ask(), meter)
    assert len(model.asked) == len(meter.settled) == 1


async def test_failures_are_charged_by_what_is_known(clock: FakeClock) -> None:
    known = Usage(100, 20, calls=1)
    model = Model(failed("connect", "no"), failed("timeout", "lost"), failed("malformed", "bad", usage=known), None)
    meter = Ledger()
    await gateway(model, clock).complete(ask(model="fake:m"), meter)
    nothing, lost, bad, _ = meter.settled
    bound = meter.reserved[0][1]
    assert nothing[1:3] == (Usage(), 0.0)
    assert lost[1:3] == (Usage(bound.input_tokens, bound.max_tokens, calls=1), bound.cost_usd)
    assert bad[1:3] == (known, pytest.approx(0.0004))


async def test_cancelling_settles_the_attempt_at_its_reservation(clock: FakeClock) -> None:
    begun = asyncio.Event()

    async def wait(_: ModelRequest) -> ModelReply:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    meter = Ledger(slow=True)
    call = asyncio.create_task(gateway(Model(wait), clock).complete(ask(), meter))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [(s[0], s[3]) for s in meter.settled] == [(1, "cancelled")]
    assert meter.settled[0][1].output_tokens == 500


async def test_a_defect_of_a_model_is_settled_and_passed_on(clock: FakeClock) -> None:
    meter = Ledger()
    with pytest.raises(ZeroDivisionError):
        await gateway(Model(ZeroDivisionError()), clock).complete(ask(), meter)
    assert len(meter.settled) == 1


async def test_cancelling_between_attempts_leaves_nothing_reserved(clock: FakeClock) -> None:
    class Stuck(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    meter = Ledger()
    call = asyncio.create_task(gateway(Model(failed("server", "x")), Stuck()).complete(ask(), meter))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(meter.reserved) == len(meter.settled) == 1


async def test_closing_closes_the_registry(clock: FakeClock) -> None:
    closed: list[int] = []

    class Registry:
        def __call__(self, model: str) -> Any:
            raise AssertionError

        async def aclose(self) -> None:
            closed.append(1)

    await LlmGateway(Registry(), clock, lambda: 0.5).aclose()
    assert closed == [1]
    await gateway(Model(), clock).aclose()
