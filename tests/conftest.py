from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness import Team, illegal
from torture.table import Line, table


class Session:
    """The lines of this session's table."""

    lines: ClassVar[list[Line]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="where the chance of the reliability tests begins; default: anywhere")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if (marker := item.get_closest_marker("torture")) is not None:
            row, bar, *_ = (*marker.args, "", "")
            item.user_properties.append(("torture", {"row": row, "bar": bar, "figures": {}}))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    found: dict[str, Any] | None = dict(report.user_properties).get("torture")  # type: ignore[assignment]
    if found is None or not (report.when == "call" or report.failed or report.skipped):
        return
    why = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    name = report.nodeid.rpartition("::")[2]
    line = Line(found["row"], name, found["bar"], found["figures"], report.outcome, report.duration, why)
    Session.lines.append(line)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    if Session.lines:
        terminalreporter.section("reliability")
        for text in table(Session.lines):
            terminalreporter.write_line(text)


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a reliability test counts goes here, by name: the table after the long forms shows it."""
    for name, found in request.node.user_properties:
        if name == "torture":
            return found["figures"]
    return {}


@pytest.fixture
def seed(request: pytest.FixtureRequest, counted: dict[str, Any]) -> int:
    """Where the chance of a test begins: `--seed`, else 1 in a short form and anywhere in a long one."""
    given: int | None = request.config.getoption("--seed")
    long = request.node.get_closest_marker("torture") is not None
    counted["seed"] = given if given is not None else random.SystemRandom().randrange(10**6) if long else 1
    return counted["seed"]


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
