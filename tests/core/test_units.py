"""Quantities: one strict grammar each, and formatters whose text reads back to the same value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.core import units


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (units.parse_bytes, "512MB", 512 * 1024**2),
        (units.parse_bytes, "1.5GB", 3 * 512 * 1024**2),
        (units.parse_bytes, "2 KB", 2048),
        (units.parse_bytes, "100", 100),
        (units.parse_bytes, 100, 100),
        (units.parse_cpu, "75%", 0.75),
        (units.parse_cpu, "250%", 2.5),
        (units.parse_cpu, "0.5", 0.5),
        (units.parse_cpu, 2, 2.0),
        (units.parse_duration, "2h", 7200.0),
        (units.parse_duration, "1h30m", 5400.0),
        (units.parse_duration, "1d2h3m4s5ms", 93784.005),
        (units.parse_duration, "90m", 5400.0),
        (units.parse_duration, "250ms", 0.25),
        (units.parse_duration, "0.5s", 0.5),
        (units.parse_money, "$2.50", 2.5),
        (units.parse_money, "0.4", 0.4),
        (units.parse_money, 0, 0.0),
        (units.parse_rate, "100Mbps", 100_000_000),
        (units.parse_count, "200k", 200_000),
        (units.parse_count, "1.5M", 1_500_000),
        (units.parse_count, 7, 7),
    ],
)
def test_reads_the_documented_forms(read: Callable[[Any], float], text: object, value: float) -> None:
    assert read(text) == value


WRONG = {
    units.parse_bytes: ["", "MB", "1.5", "-1", "1 PB", "1mb", "512 MB ", "٥MB", "1e3", -1, True, None, "1.5B"],
    units.parse_cpu: ["", "0", "0%", "-1", "75 percent", "nan", "inf", 0, -1, True, float("nan"), 10**400],
    units.parse_duration: [
        "", "0s", "30", "1:30", "h", "30m1h", "-5s", "1w", "٣s", "1h 30m", 30, True, "9" * 70 + "s", "200000d",
    ],
    units.parse_money: ["", "$", "-1", "1€", "$1,000", "1e3", True, -0.5, float("nan"), float("inf"), 10**400],
    units.parse_rate: ["", "0bps", "100", "100MBps", "1Tbps", 100, True],
    units.parse_count: ["", "-1", "1.5", "1.5555k", "1e3", "1_000", 1.5, True, -1],
}  # fmt: skip


@pytest.mark.parametrize(("read", "value"), [(r, v) for r, values in WRONG.items() for v in values])
def test_guesses_no_other_form(read: Callable[[Any], object], value: object) -> None:
    with pytest.raises(units.UnitError, match="write"):
        read(value)


@given(st.integers(0, 10**18 - 1))
def test_sizes_read_back(size: int) -> None:
    assert units.parse_bytes(units.format_bytes(size)) == size


@given(st.integers(1, 10**14))
def test_cpu_shares_read_back(billionths: int) -> None:
    cores = units.parse_cpu(billionths / 1e9)
    assert units.parse_cpu(units.format_cpu(cores)) == cores


@given(st.integers(1, 10**12))
def test_durations_read_back_to_the_millisecond(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.floats(0, 1e9))
def test_money_reads_back(dollars: float) -> None:
    amount = units.parse_money(dollars)
    assert units.parse_money(units.format_money(amount)) == amount


@given(st.integers(1, 10**17))
def test_rates_read_back(bits: int) -> None:
    assert units.parse_rate(units.format_rate(bits)) == bits


@given(st.one_of(st.text(max_size=70), st.floats(), st.integers(), st.none(), st.booleans()))
def test_nothing_but_a_unit_error_is_raised(value: Any) -> None:
    for read in WRONG:
        try:
            read(value)
        except units.UnitError:
            continue


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.format_bytes(0), "0B"),
        (units.format_bytes(1023), "1023B"),
        (units.format_bytes(3 * 1024**3), "3GB"),
        (units.format_cpu(0.125), "0.125"),
        (units.format_cpu(1.5), "150%"),
        (units.format_duration(5400), "1h30m"),
        (units.format_duration(0.0001), "1ms"),
        (units.format_money(2.5), "$2.50"),
        (units.format_money(0.000125), "$0.000125"),
        (units.format_rate(1_500), "1500bps"),
    ],
)
def test_formats_the_largest_exact_unit(text: str, expected: str) -> None:
    assert text == expected
