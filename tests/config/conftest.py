"""Specs to test with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding
from toka.errors import ConfigError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "specs"
SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "specs"
"""The specs that the project was made for; they are not part of it."""

HEAD = "metadata: {name: one}\nspec: {name: One}\n"
"""Two lines; what a test adds starts on line 3."""
TASKS = "tasks: [Do it]\n"


@pytest.fixture
def fixture_specs() -> Path:
    return FIXTURES


@pytest.fixture
def shared_specs() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the original specs are not on this machine")
    return SHARED.resolve()


Findings = Callable[[str], list[Finding]]


@pytest.fixture
def findings() -> Findings:
    """All findings about a spec, errors or not."""

    def find(text: str) -> list[Finding]:
        try:
            return list(AgentConfig.parse(text, "one.yaml").findings)
        except ConfigError as error:
            return [f for f in error.findings if isinstance(f, Finding)]

    return find
