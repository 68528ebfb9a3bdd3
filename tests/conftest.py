from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Team, illegal


@pytest.fixture
def team(tmp_path: Path) -> Team:
    """A team over SQLite and real sandboxes, with a model that reports success at once."""
    return Team(tmp_path)


@pytest.fixture(autouse=True)
def every_change_of_status_is_legal() -> Iterator[None]:
    """All sessions that a test watched kept to the transition tables."""
    illegal.clear()
    yield
    broken = [text for watcher in illegal for text in watcher.broken]
    illegal.clear()
    assert not broken, "; ".join(broken)
