from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import ALWAYS, Team, agent, call, eventually, fail, memory, pass_time, succeed
from toka.core.clock import SystemClock
from toka.errors import SandboxUnavailable
from toka.events.event import StepIntent, TaskStateChanged
from toka.events.lifecycle import AgentStatus, TaskStatus
from toka.llm.script import ScriptedReply
from toka.runtime.agent import prepare
from toka.runtime.control import AgentControl
from toka.runtime.task import TaskExecutor
from toka.testing import ManualClock

WRITES = {"grant": ["filesystem-write"]}


def states(team: Team, task: str) -> list[tuple[str, int]]:
    return [(e.state, e.attempt) for e in team.events(TaskStateChanged) if e.task == task]


async def in_time(team: Team, clock: ManualClock, *configs: Any, step: float = 0.25) -> Any:
    async with team.open() as runtime:
        session = await team.start(runtime, *configs)
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step)
        return await run


async def test_a_failed_attempt_is_followed_by_another_that_knows_why(slow_motion: Team, clock: ManualClock) -> None:
    slow_motion.script = {
        "agents": {"one": {"*": [fail("the disk is made of cheese"), fail("still cheese"), succeed()]}}
    }
    slow_motion.execution = {"task_retries": 2, "retry_base_s": 4.0, "retry_cap_s": 6.0}
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        run = asyncio.create_task((await slow_motion.start(runtime, agent())).run())
        for wait in (4.0, 6.0):  # it doubles up to its cap
            await eventually(lambda wait=wait: wait in clock.sleeping())
            await clock.advance(wait)
        result = await run
    assert result.exit_code == 0
    assert states(slow_motion, "task-1") == [
        ("RUNNING", 1), ("RETRY_WAIT", 1), ("RUNNING", 2), ("RETRY_WAIT", 2), ("RUNNING", 3), ("SUCCEEDED", 3),
    ]  # fmt: skip
    first, second, third = slow_motion.prompts("one", "task-1")
    assert "This is attempt" not in first
    assert "This is attempt 2" in second and "the disk is made of cheese" in second
    assert "take a different approach" in second
    assert "still cheese" in third and "made of cheese" not in third


async def test_what_a_failed_task_reported_is_kept_and_told_to_those_who_come_after(fast: Team) -> None:
    report = {"status": "blocked", "summary": "two tests fail", "metrics": {"failing": 2}}
    fast.script = {"agents": {"one": {"*": [{"report": report}]}, "two": {"*": [succeed()]}}}
    fast.__post_init__()
    result = await fast.run(agent(), agent("two", dependencies={"optional": {"one": {}}}))
    one = result.state.agents["one"]
    assert (one.tasks["task-1"].status, one.tasks["task-1"].report) == (TaskStatus.FAILED, report)
    assert one.metrics == {"failing": 2}
    assert '{"metrics": {"failing": 2}}' in fast.prompts("two", "task-1")[0]


async def test_retries_run_out(slow_motion: Team, clock: ManualClock) -> None:
    slow_motion.script = {"default": [{**fail("no"), "repeat": True}]}
    slow_motion.execution = {"task_retries": 5}
    slow_motion.__post_init__()
    result = await in_time(slow_motion, clock, agent(tasks=[{"description": "a", "retries": 1}, "b"]), step=5.0)
    tasks = result.state.agents["one"].tasks
    assert (tasks["task-1"].status, tasks["task-1"].attempt) == (TaskStatus.FAILED, 2)
    assert tasks["task-2"].status is TaskStatus.SKIPPED and result.exit_code == 1
    assert result.state.agents["one"].reason == "task task-1: no"


@pytest.mark.parametrize(("setting", "own", "expected"), [(60.0, None, 60), (60.0, "20s", 20), (None, "20s", 20)])
async def test_a_task_past_its_time_fails(
    slow_motion: Team, clock: ManualClock, setting: float | None, own: str | None, expected: float
) -> None:
    slow_motion.script = lambda _: ScriptedReply(say="...", delay_s=15.0)
    slow_motion.execution = {"task_timeout_s": setting, "task_retries": 0}
    slow_motion.__post_init__()
    result = await in_time(
        slow_motion, clock, agent(tasks=[{"description": "a", **({"timeout": own} if own else {})}]), step=5.0
    )
    task = result.state.agents["one"].tasks["task-1"]
    if expected == 60:
        assert (task.status, task.why) == (TaskStatus.FAILED, "no_report"), "three replies in 45 s"
    else:
        assert (task.status, task.why, task.reason) == (TaskStatus.FAILED, "timeout", f"timed out after {expected} s")
    assert not task.in_flight


@pytest.mark.slow
async def test_a_command_past_its_time_is_killed_and_fails_its_task(team: Team) -> None:
    result = await team.run(agent(tasks=[{"run": "sleep 4343.4343", "timeout": "0.2s"}]))
    task = result.state.agents["one"].tasks["task-1"]
    assert (task.status, task.why) == (TaskStatus.FAILED, "timeout")


async def test_tasks_go_by_priority_then_by_place_and_after_what_they_depend_on(fast: Team) -> None:
    fast.script = ALWAYS
    tasks = [
        {"id": "low", "description": "x", "priority": "low"},
        {"id": "needy", "description": "x", "priority": "critical", "depends_on": ["low"]},
        {"id": "b", "description": "x"},
        {"id": "a", "description": "x"},
        {"id": "high", "description": "x", "priority": "high"},
    ]
    await fast.run(agent(tasks=tasks))
    assert [r.task for r in fast.model.requests] == ["high", "b", "a", "low", "needy"]


async def test_reports_of_earlier_tasks_are_told_to_later_ones(fast: Team) -> None:
    fast.script = {"agents": {"one": {"task-1": [succeed("found three files")], "task-2": [succeed()]}}}
    fast.__post_init__()
    await fast.run(agent(tasks=["look", "act"]))
    assert "found three files" in fast.prompts("one", "task-2")[0]
    assert "Task 2 of 2: act" in fast.prompts("one", "task-2")[0]


async def test_groups_run_only_when_they_are_enabled(tmp_path: Path) -> None:
    group = {
        "release": [{"description": "tag"}, {"id": "push", "description": "push"}],
        "nightly": [{"description": "x"}],
    }
    for enabled, expected in (((), ["task-1"]), (("release",), ["task-1", "release-1", "push"])):
        team = Team(tmp_path, journal=memory)
        result = await team.run(agent(conditional=group), enabled=enabled)
        assert [r.task for r in team.model.requests] == expected and result.exit_code == 0


async def test_tasks_beside_each_other_all_end_when_one_fails(tmp_path: Path) -> None:
    script = {
        "agents": {
            "one": {"task-1": [{**fail("no", "blocked"), "delay": "5ms"}], "*": [{**succeed(), "delay": "20ms"}]}
        }
    }
    team = Team(tmp_path, script, journal=memory, execution={"max_concurrent_tasks": 2})
    result = await team.run(agent(tasks=["a", "b", "c", "d"]))
    tasks = result.state.agents["one"].tasks
    assert [tasks[f"task-{n}"].status for n in range(1, 5)] == [
        TaskStatus.FAILED, TaskStatus.SUCCEEDED, TaskStatus.SKIPPED, TaskStatus.SKIPPED,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "status"), [("true", TaskStatus.SUCCEEDED), ("echo broken; exit 3", TaskStatus.FAILED)]
)
async def test_a_command_is_judged_by_its_exit_alone(tmp_path: Path, line: str, status: TaskStatus) -> None:
    team = Team(tmp_path, journal=memory)
    result = await team.run(agent(tasks=[{"run": line}]))
    task = result.state.agents["one"].tasks["task-1"]
    assert task.status is status and team.model.requests == []
    if status is TaskStatus.FAILED:
        assert (task.why, task.reason) == ("exit", f"`{line}` exited with 3\nbroken")
    ok = await Team(tmp_path, journal=memory).run(agent(tasks=[{"run": "echo ERROR: failed >&2"}]))
    assert ok.exit_code == 0, "words in the output decide nothing"


async def test_a_command_finds_the_key_of_its_step(team: Team) -> None:
    await team.run(agent(tasks=[{"run": 'echo "$TOKA_IDEMPOTENCY_KEY $TOKA_AGENT" > key'}], **WRITES))
    (intent,) = team.events(StepIntent)
    assert (team.work / "key").read_text() == f"{intent.key} one\n"
    assert (intent.effect, intent.rule) == ("workspace", "written by a person")


async def test_a_denied_call_is_recorded_told_and_not_run(fast: Team) -> None:
    fast.script = {
        "default": [call("run_command", command="touch made"), call("write_file", path="b/x", content=""), succeed()]
    }
    fast.__post_init__()
    result = await fast.run(agent(grant=["kernel-modification", {"filesystem-write": {"paths": ["a/"]}}]))
    one = result.state.agents["one"]
    assert (result.exit_code, one.denied, one.tool_calls) == (0, 2, 0)
    assert not list(fast.work.rglob("*"))
    answers = [m.text for m in fast.model.requests[2].messages if m.role == "tool"]
    assert "denied: this agent has no command-execution" in answers[0]
    assert "denied: b/x is outside the granted filesystem-write: a" in answers[1]


async def test_without_a_sandbox_an_agent_fails_and_leaves_nothing_open(tmp_path: Path) -> None:
    async def none(*_: Any) -> Any:
        raise SandboxUnavailable("no bubblewrap on this machine")

    team = Team(tmp_path, {"default": [call("list_dir"), succeed()]}, journal=memory)
    async with team.open() as runtime:
        session = await team.start(replace(runtime, start_sandbox=none), agent(tasks=["a", "b"], **WRITES))
        result = await session.run()
    one = result.state.agents["one"]
    assert (one.status, one.why, one.reason) == (AgentStatus.FAILED, "sandbox", "no bubblewrap on this machine")
    assert [t.status for t in one.tasks.values()] == [TaskStatus.FAILED, TaskStatus.SKIPPED]
    assert not any(t.in_flight for t in one.tasks.values())


def open_control() -> AgentControl:
    async def nothing() -> None: ...

    async def at_once() -> bool:
        return True

    return AgentControl(SystemClock(), nothing, at_once)


async def test_every_change_of_a_task_is_legal_or_refused(fast: Team) -> None:
    config = agent(tasks=["begun", "new", "over"])
    begun, new, over = config.task_list()
    async with fast.open() as runtime:
        session = await fast.start(runtime, config)
        record = session.context.recorder.record
        await record("one", TaskStateChanged(begun.id, "RUNNING", 1), TaskStateChanged(over.id, "RUNNING", 1))
        await record("one", TaskStateChanged(over.id, "SUCCEEDED", 1))
        prepared = await prepare(session.context, config, open_control(), resumed=True)
        tasks = TaskExecutor(prepared.context)
        for task in (begun, new, over, new):
            await tasks.skip(task, "the team gave up")
        ends = {t.id: t.status.value for t in session.manager.state(config.name).tasks.values()}
        assert ends == {"task-1": "CANCELLED", "task-2": "SKIPPED", "task-3": "SUCCEEDED"}
        with pytest.raises(AssertionError, match="task task-3: SUCCEEDED -> RUNNING by work is no legal transition"):
            await tasks._change(TaskStateChanged(over.id, "RUNNING", 2))
        assert session.manager.state(config.name).tasks["task-3"].status is TaskStatus.SUCCEEDED


async def test_a_task_whose_start_is_still_being_written_when_its_time_is_up_fails(team: Team) -> None:
    """The folded state does not know yet that it runs; the executor does."""
    config = agent()
    (task,) = config.task_list()
    async with team.open() as runtime:
        session = await team.start(runtime, config)
        prepared = await prepare(session.context, config, open_control(), resumed=False)
        tasks = TaskExecutor(prepared.context)
        start = asyncio.create_task(tasks.run(task, lambda: "Do it."))
        await asyncio.sleep(0)
        assert task.id not in session.manager.state(config.name).tasks
        start.cancel()
        await tasks.cancel_open(TaskStatus.FAILED, "timed out after 1 s")
        await tasks.skip(task, "timed out after 1 s")
        await asyncio.gather(start, return_exceptions=True)
    assert states(team, task.id) == [("RUNNING", 1), ("FAILED", 0)]


async def test_a_tool_call_that_was_in_flight_counts_once_towards_the_limit(team: Team) -> None:
    team.script = {"default": [call("list_dir"), succeed()]}
    team.__post_init__()
    config = agent(limits={"max_tool_calls": 1}, **WRITES)
    async with team.open() as runtime:
        session = await team.start(runtime, config)
        run = asyncio.create_task(session.run())
        await eventually(lambda: [e for e in team.events(StepIntent) if "/tool/" in e.step])
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        assert (await again.run()).exit_code == 0
