"""What tokens cost, in US dollars.

Prices come, in this order, from the operator (`pricing` in settings), from the rule that a model running on the
operator's own machine costs no money, and from the tables of genai-prices, which are imported only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from toka.core.message import Usage

MILLION: Final = 1_000_000
TABLE_PROVIDERS: Final[Mapping[str, str]] = {"openai": "openai", "anthropic": "anthropic"}
"""Provider prefix -> provider id of the price tables."""
FREE_PROVIDERS: Final = frozenset({"scripted", "ollama", "llama-server"})
"""Prefixes of models that run on the operator's own machine."""
CONDITIONAL_TTL_S: Final = 60.0
"""How long a price that depends on date or time of day is kept, in seconds."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens.

    Attributes:
        input: tokens read.
        output: tokens written, reasoning included.
        cache_read: tokens served from the provider's cache; None: as `input`.
        cache_write: tokens written to the provider's cache; None: as `input`.
        tiers: (start, price) in rising order: a call that reads more than `start` tokens pays that price for all of
            its tokens.
    """

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None
    tiers: tuple[tuple[int, Price], ...] = ()

    def cost(self, usage: Usage) -> float:
        """What `usage` of one call costs."""
        rates = self._rates(usage.input_tokens)
        read, write = usage.cache_read_tokens, usage.cache_write_tokens
        plain = max(0, usage.input_tokens - read - write)
        dollars = plain * rates.input + usage.output_tokens * rates.output
        if read:
            dollars += read * (rates.input if rates.cache_read is None else rates.cache_read)
        if write:
            dollars += write * (rates.input if rates.cache_write is None else rates.cache_write)
        return dollars / MILLION

    def most(self, input_tokens: int, output_tokens: int) -> float:
        """The most that a call of at most so many tokens can cost, whatever its cache does."""
        options = [self, *(price for start, price in self.tiers if input_tokens > start)]
        return (
            max(
                input_tokens * max(p.input, p.cache_read or 0.0, p.cache_write or 0.0) + output_tokens * p.output
                for p in options
            )
            / MILLION
        )

    def _rates(self, input_tokens: int) -> Price:
        rates = self
        for start, price in self.tiers:
            if input_tokens > start:
                rates = price
        return rates


FREE: Final = Price(0.0, 0.0)


class PriceList:
    """Finds the price of a model string. Prices found are kept; a model that nobody priced stays None."""

    def __init__(self, now: Callable[[], float], overrides: Mapping[str, Price] | None = None) -> None:
        """Makes a price list.

        Args:
            now: wall-clock time, seconds since the epoch: some prices change by date or time of day.
            overrides: model string, or `provider:*` for all of a provider, -> price.
        """
        self._now = now
        self._overrides = dict(overrides or {})
        self._found: dict[str, tuple[float, Price | None]] = {}

    def of(self, model: str) -> Price | None:
        """The price of a model string; None when it is unknown."""
        now = self._now()
        found = self._found.get(model)
        if found is None or found[0] <= now:
            found = self._found[model] = self._look_up(model, now)
        return found[1]

    def _look_up(self, model: str, now: float) -> tuple[float, Price | None]:
        forever = float("inf")
        provider, _, name = model.partition(":")
        override = self._overrides.get(model) or self._overrides.get(f"{provider}:*")
        if override is not None:
            return forever, override
        if provider in FREE_PROVIDERS and not name.endswith("-cloud"):
            return forever, FREE
        if provider not in TABLE_PROVIDERS:
            return forever, None
        price, conditional = _from_tables(TABLE_PROVIDERS[provider], name, now)
        return (now + CONDITIONAL_TTL_S if conditional else forever), price


def _from_tables(provider: str, name: str, now: float) -> tuple[Price | None, bool]:
    """The price in the tables, and whether it depends on the time."""
    from genai_prices import data_snapshot  # 0.3 s to import

    try:
        _, model = data_snapshot.get_snapshot().find_provider_model(name, None, provider, None)
    except LookupError:
        return None, False
    return _converted(model.get_prices(datetime.fromtimestamp(now, UTC))), isinstance(model.prices, list)


def _converted(table: Any) -> Price | None:
    """A row of the tables as a Price; None when it prices no text."""
    columns = [getattr(table, f"{k}_mtok", None) for k in ("input", "output", "cache_read", "cache_write")]
    if columns[0] is None or columns[1] is None:
        return None
    starts = sorted({tier.start for column in columns for tier in getattr(column, "tiers", ())})
    at = [(start, Price(*(_rate(column, start) for column in columns))) for start in starts]  # type: ignore[arg-type]
    base = [_rate(column, None) for column in columns]
    return Price(base[0] or 0.0, base[1] or 0.0, base[2], base[3], tuple(at))


def _rate(column: Any, start: int | None) -> float | None:
    """One rate at the tier that begins at `start` (None: below all tiers)."""
    if column is None:
        return None
    rate = getattr(column, "base", column)
    for tier in getattr(column, "tiers", ()):
        if start is not None and tier.start <= start:
            rate = tier.price
    return float(rate)
