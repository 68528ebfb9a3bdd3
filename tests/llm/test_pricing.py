from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from genai_prices import Usage as TableUsage
from genai_prices import calc_price
from hypothesis import given
from hypothesis import strategies as st

from toka.core.message import Usage
from toka.llm.pricing import FREE, Price, PriceList

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize("size", [1000, 150_000, 250_000, 900_000])
@pytest.mark.parametrize(
    "model",
    [
        "openai:gpt-4o",
        "openai:gpt-5.4",
        "openai:gpt-6.1-terra",
        "anthropic:claude-sonnet-5-5",
        "anthropic:claude-sonnet-4-5",
        "anthropic:claude-haiku-5-5",
    ],
)
def test_prices_are_those_of_the_tables(model: str, size: int) -> None:
    price = PriceList(NOW.timestamp).of(model)
    assert price is not None
    usage = Usage(size, 2000, size // 10, size // 5 if price.cache_write else 0, calls=1)
    provider, name = model.split(":")
    expected = calc_price(
        TableUsage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
        ),
        name,
        provider_id=provider,
        genai_request_timestamp=NOW,
    )
    assert price.cost(usage) == pytest.approx(float(expected.total_price))


RATES = st.floats(0, 100)


@given(
    st.builds(Price, RATES, RATES, st.none() | RATES, st.none() | RATES),
    st.none() | st.builds(Price, RATES, RATES, st.none() | RATES, st.none() | RATES),
    st.integers(0, 10_000),
    st.integers(0, 1000),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
)
def test_nothing_costs_more_than_the_most(
    base: Price, above: Price | None, read: int, written: int, cached: int, stored: int
) -> None:
    price = Price(base.input, base.output, None, base.cache_write, ((5000, above),) if above else ())
    usage = Usage(read, written, min(cached, read), min(stored, max(0, read - cached)))
    assert price.cost(usage) <= price.most(10_000, 1000) * (1 + 1e-9) + 1e-12


def test_overrides_go_first() -> None:
    prices = PriceList(time.time, {"openai:gpt-4o": Price(1, 2), "server:*": Price(3, 4)})
    assert prices.of("openai:gpt-4o") == Price(1, 2)
    assert prices.of("server:anything") == Price(3, 4)


@pytest.mark.parametrize("model", ["ollama:qwen3", "llama-server:x", "scripted:x.yaml"])
def test_the_own_machine_costs_no_money(model: str) -> None:
    assert PriceList(time.time).of(model) is FREE
    assert FREE.cost(Usage(10**9, 10**9)) == 0.0


@pytest.mark.parametrize(
    "model", ["openai:no-such-model", "server:x", "ollama:gpt-oss:120b-cloud", "openai:dall-e", ""]
)
def test_unknown_prices_stay_unknown(model: str) -> None:
    prices = PriceList(time.time)
    assert prices.of(model) is None
    assert prices.of(model) is None


def test_prices_found_are_kept() -> None:
    prices = PriceList(time.time)
    assert prices.of("openai:gpt-4o") is prices.of("openai:gpt-4o")
