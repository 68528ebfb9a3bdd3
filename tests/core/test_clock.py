"""The machine's clock."""

from __future__ import annotations

import time

import pytest

from toka.core.clock import SystemClock

DAY = 86_400.0


@pytest.mark.parametrize("jump", [30 * DAY, -3600.0])
def test_setting_the_machines_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    clock, real = SystemClock(), time.time
    before = clock.now()
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert 0 <= clock.now() - before < 10
    assert SystemClock().now() == pytest.approx(before + jump, abs=10), "who comes later sees the clock as it is"


def test_time_asleep_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = SystemClock(), time.clock_gettime
    before = clock.now()
    monkeypatch.setattr(time, "clock_gettime", lambda which: real(which) + 3600.0)
    assert clock.now() == pytest.approx(before + 3600.0, abs=10)


def test_without_boot_time_the_wall_clock_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    clock = SystemClock()
    assert clock.now() == pytest.approx(time.time(), abs=10)
    monkeypatch.setattr(time, "time", lambda: 7.0)
    assert clock.now() == 7.0
