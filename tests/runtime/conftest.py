from __future__ import annotations

from pathlib import Path

import pytest

from harness import Team, memory
from toka.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fast(tmp_path: Path) -> Team:
    """A team whose journal is in memory; for what starts no sandbox, and for much of it."""
    return Team(tmp_path, journal=memory)


@pytest.fixture
def slow_motion(tmp_path: Path, clock: ManualClock) -> Team:
    """A team whose time moves only when a test says so."""
    return Team(tmp_path, journal=memory, clock=clock)
