"""What a run looks like while it runs and when it has ended."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from harness import Team, agent, call, memory, pass_time, succeed
from toka.cli.live import Lines, LiveView, headline, table, view
from toka.cli.rows import Row, clean, event_line, event_text, heartbeat_line, row_of, rows_of
from toka.cli.summary import summary_lines
from toka.core.ids import RunId
from toka.core.message import Usage
from toka.events.event import RunCreated
from toka.events.lifecycle import AgentStatus, ObjectiveStatus, RunStatus, TaskStatus
from toka.events.state import AgentState, ObjectiveState, RunState, TaskState
from toka.orchestration.result import RunResult
from toka.runtime.progress import ProgressEvent
from toka.testing import ManualClock

RUN = RunId("20261123-053626-wua9rr")
VERIFIED = ObjectiveState(1, status=ObjectiveStatus.VERIFIED)
CLAIMED = ObjectiveState(2, status=ObjectiveStatus.CLAIMED)
EVIL = "a\x1b[2Jb\rc\x07\x9b31m\u202e"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lines show local time; here that is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def event(kind: str, text: str, task: str = "", who: str = "fixer") -> ProgressEvent:
    return ProgressEvent(kind, who, task, text, 45_296.0)


def state(*agents: AgentState, model: str | None = None, status: RunStatus = RunStatus.RUNNING) -> RunState:
    created = RunCreated([a.name for a in agents], "", "/w", model=model)
    return RunState(RUN, status, created=created, agents={a.name: a for a in agents}, started_at=10.0, changed_at=12.5)


def drawn(renderable: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, height=30, color_system=None)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


# --- one line for each change


def test_line_has_time_tasks_agent_and_what_happened() -> None:
    line = event_line(event("task_started", "Repair the sum", "fix"), 7, 12, 8)
    assert line == "12:34:56   7/12  fixer     fix: Repair the sum"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("task_succeeded", "all good", "fix done: all good"),
        ("task_failed", "exit 2", "fix failed: exit 2"),
        ("task_retrying", "attempt 1 failed: no", "fix attempt 1 failed: no"),
        ("repair_started", "repair it", "fix: repair it"),
        ("tool_denied", "write_file denied: outside", "write_file denied: outside"),
        ("something_newer", "and new", "fix and new"),
        ("task_succeeded", "`make test > out", "fix done: `make test > out …`"),
    ],
)
def test_kinds_read_as_sentences(kind: str, text: str, expected: str) -> None:
    assert event_text(event(kind, text, "fix")) == expected


def test_line_about_the_run_has_no_agent_and_no_trailing_space() -> None:
    assert event_line(event("run_completed", "run completed", who=""), 2, 2, 5).endswith("2/2         run completed")


def test_control_characters_never_reach_the_terminal() -> None:
    whole = event_line(event("task_failed", EVIL, EVIL, EVIL), 1, 1)
    shown = [whole, clean(EVIL), drawn(table([row_of(AgentState("a", AgentStatus.FAILED, EVIL), 1)]))]
    shown += summary_lines(RunResult(RUN, RunStatus.FAILED, state(AgentState(EVIL, AgentStatus.FAILED, EVIL)), EVIL))
    for text in shown:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_long_texts_are_cut_and_further_lines_only_hinted_at() -> None:
    assert len(clean("x" * 5_000)) == 200
    assert clean("first\nsecond") == "first …"


def test_heartbeat_says_who_works_and_who_waits() -> None:
    busy = AgentState("fixer", AgentStatus.RUNNING, tasks={"fix": TaskState("fix", status=TaskStatus.RUNNING)})
    line = heartbeat_line(state(busy, AgentState("reviewer")), 3, 10, 45_296.0)
    assert line == "12:34:56   3/10  running: fixer fix; waiting: reviewer"


# --- rows


def test_row_of_a_waiting_agent_names_what_it_waits_for() -> None:
    assert row_of(AgentState("c"), 1, ("a", "b")).note == "after a, b"
    assert row_of(AgentState("c"), 1).note == "waits for its turn"


def test_row_of_a_working_agent_has_task_attempt_and_tokens() -> None:
    tasks = {
        "one": TaskState("one", status=TaskStatus.SUCCEEDED),
        "two": TaskState("two", "Do it", TaskStatus.RUNNING, 2),
    }
    row = row_of(AgentState("a", AgentStatus.RUNNING, tasks=tasks, usage=Usage(100, 20, calls=1)), 2)
    assert row == Row("a", AgentStatus.RUNNING, "two: Do it", 2, 1, 2, 120, "")


@pytest.mark.parametrize(
    ("agent_state", "note"),
    [
        (AgentState("a", AgentStatus.PAUSED, holds={"person": "lunch"}), "held: person (lunch)"),
        (AgentState("a", AgentStatus.FAILED, "it broke"), "it broke"),
        (
            AgentState(
                "a",
                AgentStatus.RUNNING,
                tasks={"t": TaskState("t", status=TaskStatus.RETRY_WAIT, attempt=1, reason="429")},
            ),
            "tries again: 429",
        ),
        (
            AgentState(
                "a", AgentStatus.WAITING, tasks={"t": TaskState("t", "", TaskStatus.NEEDS_ATTENTION, question="?")}
            ),
            "?",
        ),
        (
            AgentState(
                "a",
                AgentStatus.COMPLETED,
                objectives={1: VERIFIED, 2: CLAIMED},
                denied=1,
            ),
            "1 verified, 1 claimed, 1 denied",
        ),
    ],
)
def test_note_gives_the_reason(agent_state: AgentState, note: str) -> None:
    assert row_of(agent_state, 1).note == note


def test_many_agents_are_bounded_and_the_urgent_ones_stay() -> None:
    agents = [AgentState(f"a{n:03}", AgentStatus.COMPLETED) for n in range(500)]
    agents[300] = AgentState("a300", AgentStatus.FAILED, "broken")
    rows, left_out = rows_of(state(*agents), {a.name: () for a in agents}, {}, 10)
    assert [r.agent for r in rows] == [*(f"a{n:03}" for n in range(9)), "a300"]
    assert left_out == "and 490 more: 490 COMPLETED"


def test_view_fits_its_width_and_shows_everything() -> None:
    rows = [Row("fixer", AgentStatus.RUNNING, "fix: " + "x" * 300, 2, 1, 3, 12_345, "note")]
    text = drawn(view("head", rows, "and 3 more", [event("task_started", "y" * 300, "fix")]), 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count("\n") == 6
    for word in ("head", "agent", "fixer", "RUNNING", "1/3", "12,345", "note", "and 3 more", "12:34:56"):
        assert word in text


def test_headline_says_when_the_model_is_scripted() -> None:
    assert headline(state(), (1, 2), 15.0, scripted=True).endswith("SCRIPTED model")
    assert headline(replace(state(), level="none"), (1, 2), 15.0).startswith("NO SANDBOX  ")
    assert headline(state(AgentState("a", level="reduced")), (1, 2), 15.0).startswith("reduced sandbox  ")
    assert headline(state(AgentState("a", cost_usd=None)), (1, 2), 15.0).endswith("5.0s  0 tokens  cost unknown")


# --- views of a real session


class Stopwatch(Lines):
    """Lines that are kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)


async def test_lines_count_tasks_and_a_quiet_run_has_a_heartbeat(tmp_path: Path) -> None:
    clock = ManualClock()
    slow = {**succeed(), "delay": "70s"}
    team = Team(tmp_path, {"agents": {"one": {"task-1": [succeed()], "task-2": [slow]}}}, clock, journal=memory)
    lines = Stopwatch()
    async with team.open() as runtime:
        session = await team.start(runtime, agent(tasks=["first", "second"]))
        session.reporter.subscribe(lines.on_event)
        lines.start(session)
        running = asyncio.create_task(session.run())
        await pass_time(clock, running.done, step=5.0)
        lines.stop()
        assert (await running).status is RunStatus.COMPLETED
        await session.context.recorder.close()
    beats = [line for line in lines.lines if "running:" in line]
    assert len(beats) == 2
    assert beats[0].endswith("1/2  running: one task-2")
    assert lines.lines[-1].endswith("2/2       run completed")


async def test_lines_that_nobody_reads_any_more_do_not_hurt_the_run(tmp_path: Path) -> None:
    def gone(line: str) -> None:
        raise BrokenPipeError(line)

    team = Team(tmp_path, journal=memory)
    lines = Lines(gone)
    async with team.open() as runtime:
        session = await team.start(runtime, agent())
        session.reporter.subscribe(lines.on_event)
        lines.start(session)
        assert (await session.run()).status is RunStatus.COMPLETED
        lines.stop()
        await session.context.recorder.close()


async def test_tasks_of_an_agent_that_is_skipped_count_as_ended(tmp_path: Path) -> None:
    team = Team(tmp_path, journal=memory)
    lines = Stopwatch()
    bad = agent("bad", [{"description": "fails", "run": "false"}], grant=["filesystem-read"])
    after = agent("then", ["a", "b"], dependencies={"required": {"bad": "it must work"}})
    async with team.open() as runtime:
        session = await team.start(runtime, bad, after)
        session.reporter.subscribe(lines.on_event)
        lines.start(session)
        await session.run()
        lines.stop()
        await session.context.recorder.close()
    assert "  3/3  " in lines.lines[-1]


@pytest.mark.slow
async def test_live_view_draws_the_run_and_leaves_the_cursor_visible(tmp_path: Path) -> None:
    team = Team(tmp_path, {"default": [call("list_dir"), {**succeed("all done"), "repeat": True}]}, journal=memory)
    console = Console(file=io.StringIO(), force_terminal=True, width=90, height=20, color_system=None)
    shows = LiveView(console)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("reader", grant=["filesystem-read"]), agent("other"))
        session.reporter.subscribe(shows.on_event)
        shows.start(session)
        await session.run()
        shows.stop()
        shows.stop()
        await session.context.recorder.close()
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    last = text[text.rindex("COMPLETED  2/2 tasks") :]
    assert "reader" in last and "run completed" in last
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


class Deaf(io.StringIO):
    """A terminal that must not be written to."""

    def write(self, text: str, /) -> int:
        raise AssertionError(f"written: {text!r}")


def test_events_are_noted_and_not_written_so_that_a_stopped_terminal_holds_nobody_up() -> None:
    shows = LiveView(Console(file=Deaf(), force_terminal=True))
    for _ in range(1_000):
        shows.on_event(event("task_started", "x", "t"))
