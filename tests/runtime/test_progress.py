"""What a person following a run is told: the exact sequence of events, and digests as often as asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness import Team, agent, call, fail, pass_time, succeed
from toka.core.ids import AgentName
from toka.events.event import AgentStateChanged, ObjectiveChanged, TaskStateChanged
from toka.journal.recorder import Recorder
from toka.runtime.progress import KEPT_EVENTS, Digest, ProgressReporter
from toka.testing import ManualClock, MemoryJournal

CHECKED = {"description": "there is a result", "check": "test -f result"}
MENDS = [call("write_file", path="result", content="x"), succeed()]
OK = ["task_started", "task_succeeded"]


@pytest.mark.parametrize(
    ("script", "spec", "expected"),
    [
        ({"*": [succeed()]}, {}, [*OK, "agent_completed"]),
        (
            {"*": [fail(), succeed()]},
            {},
            ["task_started", "task_retrying", "task_retried", "task_succeeded", "agent_completed"],
        ),
        ({"*": [fail("no", "blocked")]}, {}, ["task_started", "task_failed", "agent_failed"]),
        (
            {"*": [call("run_command", command="id"), succeed()]},
            {},
            ["task_started", "tool_denied", "task_succeeded", "agent_completed"],
        ),
        ({"*": [succeed()]}, {"objectives": ["nice"]}, [*OK, "objective_claimed", "agent_completed"]),
        (
            {"task-1": [succeed()], "repair-1": MENDS},
            {"objectives": [CHECKED]},
            [*OK, "check_failed", "repair_started", "repair_succeeded", "objective_verified", "agent_completed"],
        ),
        (
            {"task-1": [succeed()], "repair-1": [succeed()], "repair-2": [succeed()]},
            {"objectives": [CHECKED]},
            [*OK, *["check_failed", "repair_started", "repair_succeeded"] * 2, "check_failed", "agent_failed"],
        ),
        (
            {"*": [{"say": "hm", "delay": "100s"}]},
            {"tasks": [{"description": "a", "timeout": "30s"}, "b"]},
            ["task_started", "limit_exceeded", "task_failed", "task_skipped", "agent_failed"],
        ),
    ],
    ids=["success", "retry", "failure", "denial", "claim", "repair", "repairs run out", "timeout"],
)
async def test_each_story_is_told_in_exactly_these_events(
    slow_motion: Team, clock: ManualClock, script: Any, spec: Any, expected: list[str]
) -> None:
    slow_motion.script = {"agents": {"one": script}}
    slow_motion.execution = {"task_retries": 1}
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(grant=["filesystem-write"], **spec))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, 1.0)
        result = await run
    assert slow_motion.kinds("one") == ["agent_started", *expected]
    assert slow_motion.kinds("") == [f"run_{result.status.value.lower()}"]
    assert all(e.text and "\n" not in e.text for e in slow_motion.progress)


async def test_progress_counts_tasks_and_metrics_keep_what_was_declared(fast: Team) -> None:
    report = succeed("ok", metrics={"coverage": 81.5, "invented": 3.0})
    bad = {"report": {"status": "blocked", "summary": "no", "metrics": {"defects": 2}}}
    fast.script = {"agents": {"one": {"task-1": [report], "task-2": [bad]}}}
    fast.__post_init__()
    declared = [{"coverage": "lines covered"}, {"defects": "found"}, {"never": "filled"}]
    config = agent(tasks=["a", "b", "c"], reporting={"metrics": declared})
    async with fast.open() as runtime:
        session = await fast.start(runtime, config)
        before = session.reporter.progress("one")
        assert (before.done, before.total, before.status) == (0, 3, "CONFIGURED")
        await session.run()
        after = session.reporter.progress("one")
        assert (after.done, after.total, after.status, after.reason) == (3, 3, "FAILED", "task task-2: no")
        assert session.reporter.metrics("one") == {"coverage": 81.5, "defects": 2}
        assert session.context.recorder.state.agents["one"].metrics["invented"] == 3.0, "kept, and no gauge"
        assert session.reporter.metrics("nobody") == {}
        clock = runtime.clock
        later = ProgressReporter(session.context.recorder, {config.name: config}, clock)
        assert later.metrics("one") == {"coverage": 81.5, "defects": 2}, "a process that takes over knows them"


async def reporter(clock: ManualClock, frequency: str | None) -> tuple[Recorder, ProgressReporter, list[Digest]]:
    journal = MemoryJournal(clock)
    recorder = Recorder(journal, await journal.acquire("20300101-000000-aaaaaa"))  # type: ignore[arg-type]
    reporting = {"channels": ["builds", "all"], **({"frequency": frequency} if frequency else {})}
    config = agent(reporting=reporting)
    made = ProgressReporter(recorder, {AgentName("one"): config}, clock)
    digests: list[Digest] = []
    made.subscribe_channel("builds", digests.append)
    return recorder, made, digests


TASK = TaskStateChanged("task-1", "RUNNING", 1, title="build")
DONE = TaskStateChanged("task-1", "SUCCEEDED", 1, report={"status": "succeeded", "summary": "built"})
CHECK = ObjectiveChanged(1, "verified", "it builds")
END = AgentStateChanged("COMPLETED")


@pytest.mark.parametrize(
    ("frequency", "expected"),
    [
        ("real-time", [["task_started"], ["task_succeeded"], ["objective_verified"], ["agent_completed"]]),
        ("on-milestone", [["task_started", "task_succeeded"], ["objective_verified"], ["agent_completed"]]),
        ("on-completion", [["task_started", "task_succeeded", "objective_verified", "agent_completed"]]),
        (None, [["task_started", "task_succeeded", "objective_verified", "agent_completed"]]),
        ("now and then", [["task_started", "task_succeeded", "objective_verified", "agent_completed"]]),
        ("daily", [["task_started", "task_succeeded", "objective_verified", "agent_completed"]]),
    ],
)
async def test_a_digest_comes_as_often_as_asked_and_once_at_the_end(
    clock: ManualClock, frequency: str | None, expected: list[list[str]]
) -> None:
    recorder, _, digests = await reporter(clock, frequency)
    for event in (TASK, DONE, CHECK, END):
        await recorder.record("one", event)
    assert [[e.kind for e in d.events] for d in digests] == expected
    assert [d.cause for d in digests] == [frequency] * (len(expected) - 1) + ["end"]
    assert {(d.channel, d.agent) for d in digests} == {("builds", "one")}
    assert digests[-1].progress.status == "COMPLETED"


@pytest.mark.parametrize(("frequency", "period"), [("hourly", 3600.0), ("daily", 86400.0), ("weekly", 604800.0)])
async def test_a_period_ends_with_time_alone(clock: ManualClock, frequency: str, period: float) -> None:
    recorder, made, digests = await reporter(clock, frequency)
    made.tick()
    await recorder.record("one", TASK)
    await clock.advance(period - 1.0)
    made.tick()
    assert digests == []
    await clock.advance(1.0)
    made.tick()
    made.tick()
    assert [(d.cause, [e.kind for e in d.events]) for d in digests] == [(frequency, ["task_started"])]
    await clock.advance(10 * period)
    made.tick()
    assert len(digests) == 1, "there is no digest of nothing"


async def test_a_digest_lists_the_latest_events_and_counts_the_others(clock: ManualClock) -> None:
    recorder, _, digests = await reporter(clock, "on-completion")
    for number in range(KEPT_EVENTS + 5):
        await recorder.record("one", TaskStateChanged(f"t{number}", "RUNNING", 1, title="x"))
    await recorder.record("one", END)
    (digest,) = digests
    assert (len(digest.events), digest.left_out, digest.events[-1].kind) == (KEPT_EVENTS, 6, "agent_completed")


async def test_listeners_can_leave_and_a_closed_reporter_says_nothing(clock: ManualClock) -> None:
    recorder, made, digests = await reporter(clock, "real-time")
    heard: list[str] = []
    leave = made.subscribe(lambda event: heard.append(event.kind))
    await recorder.record("one", TASK)
    leave()
    await recorder.record("one", DONE)
    made.close()
    await recorder.record("one", END)
    assert heard == ["task_started"] and len(digests) == 2
