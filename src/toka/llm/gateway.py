"""The one door to models: asks the meter, makes the call, repeats what may be repeated, prices the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from toka.core.clock import Clock
from toka.core.message import Usage
from toka.errors import ModelError, ModelUnavailable
from toka.llm.estimate import Bounds
from toka.llm.failure import CallError, failed, failure_of
from toka.llm.model import Estimate, Meter, Model, ModelReply, ModelRequest
from toka.llm.pricing import Price, PriceList

DEFAULT_MAX_TOKENS: Final = 8192
"""Bound of a reply whose request sets none: what has no bound cannot be reserved."""
MIN_ATTEMPT_S: Final = 0.05
"""With less time left than this, in seconds, no further attempt is made."""

CANCELLED: Final = "cancelled"
"""What `Meter.settle` is told when the caller cancelled the call."""


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How often and when a failed attempt is repeated.

    Attributes:
        attempts: attempts per call, the first included.
        base_s: the first wait is between half of this and this, in seconds; each further one up to twice as long.
        cap_s: the longest wait of our own choice, in seconds.
        retry_after_cap_s: the longest wait a provider can ask for, in seconds.
    """

    attempts: int = 4
    base_s: float = 0.5
    cap_s: float = 20.0
    retry_after_cap_s: float = 60.0


class LlmGateway:
    """Calls models for all agents of a process.

    Invariant: every attempt lies between one `reserve` and one `settle` of its meter, also when it is cancelled.
    """

    def __init__(
        self,
        models: Callable[[str], Model],
        clock: Clock,
        random: Callable[[], float],
        retry: RetrySettings | None = None,
        prices: PriceList | None = None,
        *,
        default_max_tokens: int = DEFAULT_MAX_TOKENS,
    ) -> None:
        """Makes a gateway.

        Args:
            models: model string -> model, the same object for the same string. Closed with the gateway when it has an
                `aclose`.
            clock: time for deadlines and waits.
            random: uniform in [0, 1).
            retry: None: the defaults.
            prices: None: the price tables without overrides.
            default_max_tokens: the bound of a reply when a request sets none.
        """
        self._models = models
        self._clock = clock
        self._random = random
        self._retry = retry or RetrySettings()
        self._prices = prices or PriceList(clock.now)
        self._default_max_tokens = default_max_tokens
        self._bounds = Bounds()

    def price(self, model: str) -> Price | None:
        """The price of a model string; None when it is unknown."""
        return self._prices.of(model)

    def estimate(self, request: ModelRequest) -> Estimate:
        """The most that one attempt at `request` can cost."""
        tokens = self._bounds.input(request.messages, request.tools)
        most = self._default_max_tokens if request.max_tokens is None else request.max_tokens
        price = self._prices.of(request.model)
        return Estimate(tokens, most, None if price is None else price.most(tokens, most))

    async def complete(self, request: ModelRequest, meter: Meter) -> ModelReply:
        """Gets one reply: at most `attempts` attempts within `request.timeout_s` seconds in total.

        Only what the adapter calls retryable is repeated. Waits follow the provider's Retry-After, up to its cap, else
        double with jitter (d/2 + U[0, d/2), "equal jitter"); a wait that does not fit into the time left ends the call.
        Time spent in the meter counts, but is not cut short. Cancelling ends the attempt in flight, closes its
        connection, and settles it at its reservation.

        Raises:
            LimitExceeded: the meter refuses an attempt.
            ModelUnavailable: no answer within the attempts and the time; `retryable` says whether later may help.
            ModelRefused: the provider rejects the request.
            ModelError: the answer cannot be used.
            UsageError: the model string names no known provider.
        """
        model = self._models(request.model)
        clock = self._clock
        end = clock.monotonic() + request.timeout_s
        if request.max_tokens is None:
            request = replace(request, max_tokens=self._default_max_tokens)
        estimate = self.estimate(request)
        attempt = 1
        while True:
            if (outcome := meter.reserve(attempt, estimate)) is not None:
                await outcome
            left = max(MIN_ATTEMPT_S, end - clock.monotonic())
            result = await self._attempt(model, request, attempt, left, estimate, meter)
            if isinstance(result, ModelReply):
                return result
            wait = self._wait(result, attempt, end - clock.monotonic())
            if wait is None:
                raise result
            await clock.sleep(wait)
            attempt += 1

    async def _attempt(
        self, model: Model, request: ModelRequest, attempt: int, left: float, estimate: Estimate, meter: Meter
    ) -> ModelReply | ModelError | ModelUnavailable:
        """One attempt, settled. A model's failure is returned, everything else is raised."""
        if attempt > 1 or left < request.timeout_s:
            request = replace(request, attempt=attempt, timeout_s=left)
        try:
            async with self._clock.timeout(left):
                reply = await model.request(request)
        except TimeoutError:
            error = _too_late(request)
        except (ModelError, ModelUnavailable) as raised:
            error = raised
        except BaseException:  # cancelled, or a defect of the model: the attempt is settled all the same
            await _done(meter.settle(attempt, _worst(estimate), estimate.cost_usd, CANCELLED))
            raise
        else:
            reply = self._priced(reply, request, estimate)
            await _done(meter.settle(attempt, reply.usage, reply.cost_usd, None))
            return reply
        await self._settle_failure(error, request, attempt, estimate, meter)
        return error

    async def _settle_failure(
        self,
        error: ModelError | ModelUnavailable,
        request: ModelRequest,
        attempt: int,
        estimate: Estimate,
        meter: Meter,
    ) -> None:
        failure = failure_of(error)
        kind = failure.kind if failure else "malformed"
        if failure is not None and failure.usage is not None:
            price = self._prices.of(request.model)
            cost = None if price is None else price.cost(failure.usage)
            await _done(meter.settle(attempt, failure.usage, cost, kind))
        elif failure is None or failure.billed:
            await _done(meter.settle(attempt, _worst(estimate), estimate.cost_usd, kind))
        else:
            await _done(meter.settle(attempt, Usage(), 0.0, kind))

    def _priced(self, reply: ModelReply, request: ModelRequest, estimate: Estimate) -> ModelReply:
        """The reply with usage (bounds, where the provider told none) and cost."""
        usage = reply.usage
        if reply.estimated:
            written = min(self._bounds.output(reply.message), estimate.max_tokens)
            usage = Usage(input_tokens=estimate.input_tokens, output_tokens=written, calls=1)
        cost = reply.cost_usd
        if cost is None and (price := self._prices.of(request.model)) is not None:
            cost = price.cost(usage)
        return replace(reply, usage=usage, cost_usd=cost)

    def _wait(self, error: ModelError | ModelUnavailable, attempt: int, left: float) -> float | None:
        """Seconds until the next attempt; None when there is none."""
        if not error.retryable or attempt >= self._retry.attempts:
            return None
        failure = failure_of(error)
        asked = failure.retry_after_s if failure else None
        if asked is not None:
            wait = min(asked, self._retry.retry_after_cap_s)
        else:
            longest = min(self._retry.cap_s, self._retry.base_s * 2.0 ** min(attempt - 1, 60))
            wait = longest / 2 + self._random() * longest / 2
        return wait if wait + MIN_ATTEMPT_S <= left else None

    async def aclose(self) -> None:
        """Closes all models. Safe to call twice."""
        close = getattr(self._models, "aclose", None)
        if close is not None:
            await close()


async def _done(outcome: Awaitable[None] | None) -> None:
    if outcome is not None:
        await outcome


def _worst(estimate: Estimate) -> Usage:
    return Usage(input_tokens=estimate.input_tokens, output_tokens=estimate.max_tokens, calls=1)


def _too_late(request: ModelRequest) -> CallError:
    seconds = round(request.timeout_s, 1)
    text = f"{request.model} did not answer within {seconds:g} s (agent {request.agent}, task {request.task})"
    return failed("timeout", text)
