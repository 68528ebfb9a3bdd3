"""Limits: scopes only ever get stricter."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from toka.core.limits import KINDS, UNITS, Limits

values = st.none() | st.integers(0, 10)
limits = st.builds(Limits, **dict.fromkeys(KINDS, values))


def amount(value: Any) -> float:
    return float("inf") if value is None else value


@given(limits, limits)
def test_tightening_takes_the_stricter_of_each_kind(one: Limits, two: Limits) -> None:
    tight = one.tighten(two)
    for kind in KINDS:
        assert amount(getattr(tight, kind)) == min(amount(getattr(one, kind)), amount(getattr(two, kind)))


@given(limits, limits, limits)
def test_the_order_of_scopes_does_not_matter(a: Limits, b: Limits, c: Limits) -> None:
    assert a.tighten(b) == b.tighten(a)
    assert a.tighten(b).tighten(c) == a.tighten(b.tighten(c))
    assert a.tighten(a) == a
    assert a.tighten(Limits()) == a


def test_every_kind_has_a_unit() -> None:
    assert set(UNITS) == set(KINDS)
