from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness import Team, agent, call, eventually, pass_time, succeed
from toka.core.capability import Capability
from toka.core.effect import Effect
from toka.core.ids import AgentName
from toka.errors import NotFound, UsageError
from toka.events.event import AgentStateChanged, HoldLifted, HoldPlaced, StepIntent
from toka.events.lifecycle import AgentStatus, RunStatus, TaskStatus
from toka.llm.model import ModelRequest
from toka.llm.script import ScriptedReply
from toka.llm.scripted import Answer
from toka.testing import ManualClock, settle
from toka.tools.tool import Arguments, ToolContext, ToolResult

ONE = AgentName("one")


class Door:
    """A tool whose calls wait until they are let through, or break."""

    name = "door"
    description = "Waits."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}

    def __init__(self, effect: Effect = Effect.PURE, breaks: int = 0) -> None:
        self.effect = effect
        self.breaks = breaks
        self.calls = 0
        self.inside = 0
        self.cancelled = 0
        self.open = asyncio.Event()

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        return ()

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        self.calls += 1
        if self.calls <= self.breaks:
            raise RuntimeError("the tool broke")
        self.inside += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        return ToolResult("through")


KNOCKS = {"agents": {"*": {"*": [call("door"), call("door"), succeed()]}}}


def with_door(team: Team, door: Door, **execution: Any) -> Team:
    team.script, team.tools, team.execution = KNOCKS, (door,), execution
    team.__post_init__()
    return team


def statuses(team: Team, name: str = "one") -> list[str]:
    return [e.state for e in team.events(AgentStateChanged, name)]


async def test_an_agent_goes_from_starting_over_running_to_completed(fast: Team) -> None:
    await fast.run(agent())
    assert statuses(fast) == ["STARTING", "RUNNING", "COMPLETED"]


async def test_a_paused_agent_finishes_what_is_in_flight_and_starts_nothing(fast: Team) -> None:
    door = Door()
    with_door(fast, door)
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        await session.manager.pause(ONE, "lunch", "ada")
        await session.manager.pause(ONE, "again", "bob")
        assert session.manager.state(ONE).status is AgentStatus.PAUSING
        door.open.set()
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        steps = len(fast.events(StepIntent))
        await settle(100)
        assert (len(fast.events(StepIntent)), door.calls) == (steps, 1)
        assert fast.events(HoldPlaced) == [HoldPlaced("person", "lunch", "ada")]
        await session.manager.resume(ONE, "back", "ada")
        await session.manager.resume(ONE, "back", "ada")
        assert (await run).exit_code == 0 and door.calls == 2
    assert fast.events(HoldLifted) == [HoldLifted("person", "back", "ada")]
    assert statuses(fast) == ["STARTING", "RUNNING", "PAUSING", "PAUSED", "RUNNING", "COMPLETED"]


@pytest.mark.parametrize("turns", range(0, 12, 2))
async def test_no_step_is_recorded_after_the_hold_whenever_the_pause_comes(fast: Team, turns: int) -> None:
    fast.script = {"default": [{**call("write_file", path="a", content="x"), "repeat": True}]}
    fast.__post_init__()
    fast.execution = {"max_turns": 500}
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent(grant=["filesystem-write"]))
        run = asyncio.create_task(session.run())
        await eventually(lambda: len(fast.events(StepIntent)) >= 3)
        await settle(turns)
        await session.manager.pause(ONE)
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        kinds = [type(r.event) for r in fast.records if isinstance(r.event, StepIntent | HoldPlaced)]
        assert kinds[-1] is HoldPlaced, "a step was begun after the pause was recorded"
        for _ in range(3):
            await asyncio.gather(session.manager.resume(ONE), session.manager.pause(ONE))
        await session.manager.stop(ONE)
        assert (await run).status is RunStatus.STOPPED


async def test_a_pause_outlives_a_crash_of_the_agent(slow_motion: Team, clock: ManualClock) -> None:
    door = Door(breaks=1)
    with_door(slow_motion, door)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: statuses(slow_motion)[-1:] == ["BACKOFF"])
        await session.manager.pause(ONE)
        await pass_time(clock, lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        assert door.calls == 1
        door.open.set()
        await session.manager.resume(ONE)
        assert (await run).exit_code == 0


async def test_a_hold_outlives_the_process_and_resuming_the_run_lifts_a_persons(team: Team) -> None:
    door = Door()
    with_door(team, door)
    async with team.open() as runtime:
        session = await team.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        await session.manager.pause(ONE)
        await session.context.recorder.record("one", HoldPlaced("budget", "spent"))
        await session.shutdown(0.0)
        assert (await run).status is RunStatus.INTERRUPTED
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        door.open.set()
        second = asyncio.create_task(again.run())
        await eventually(lambda: again.manager.state(ONE).status is AgentStatus.PAUSED)
        assert again.manager.state(ONE).holds == {"budget": "spent"}
        assert door.calls == 1
        await again.manager.stop(ONE)
        assert (await second).exit_code == 8


async def test_a_stopped_agent_is_over_when_stop_returns(fast: Team) -> None:
    door = Door()
    with_door(fast, door, grace_s=0.05)
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent(tasks=["first", "second"]))
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        await asyncio.gather(*(session.manager.stop(ONE, "enough", "ada") for _ in range(3)))
        one = session.manager.state(ONE)
        assert (one.status, one.why, door.inside, door.cancelled) == (AgentStatus.STOPPED, "stopped", 0, 1)
        assert [t.status for t in one.tasks.values()] == [TaskStatus.CANCELLED, TaskStatus.SKIPPED]
        assert not any(t.in_flight for t in one.tasks.values())
        await session.manager.stop(ONE)
        await session.manager.pause(ONE)
        await session.manager.resume(ONE)
        assert session.manager.state(ONE) == one, "an end is final"
        result = await run
        assert (result.status, result.exit_code) == (RunStatus.STOPPED, 8)
    assert statuses(fast) == ["STARTING", "RUNNING", "STOPPING", "STOPPED"]


async def test_a_step_that_ends_within_the_grace_is_kept(fast: Team) -> None:
    door = Door()
    with_door(fast, door)
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        stop = asyncio.create_task(session.manager.stop(ONE))
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.STOPPING)
        door.open.set()
        await stop
        assert (door.calls, door.cancelled, session.manager.state(ONE).steps) == (1, 0, 2)
        await run


async def test_a_stop_beats_a_pause_and_a_wait(slow_motion: Team, clock: ManualClock) -> None:
    door = Door()
    with_door(slow_motion, door)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        await session.manager.pause(ONE)
        door.open.set()
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        await session.manager.stop(ONE)
        assert (await run).status is RunStatus.STOPPED
    crashing = with_door(slow_motion, Door(breaks=99))
    async with crashing.open() as runtime:
        session = await crashing.start(runtime, agent("two"))
        run = asyncio.create_task(session.run())
        await eventually(lambda: session.manager.state(AgentName("two")).status is AgentStatus.BACKOFF)
        await session.manager.stop(AgentName("two"))
        assert (await run).status is RunStatus.STOPPED


@pytest.mark.parametrize("turns", range(24))
async def test_a_stop_at_any_moment_of_the_start_ends_legally(fast: Team, turns: int) -> None:
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent(tasks=["a", "b", "c", "d"]))
        run = asyncio.create_task(session.run())
        await settle(turns)
        await session.manager.stop(ONE)
        assert (await run).status in (RunStatus.STOPPED, RunStatus.COMPLETED)
        assert session.manager.state(ONE).ended


@pytest.mark.parametrize(("random", "waits"), [(1.0, [1.0, 2.0, 4.0]), (0.0, [0.5, 1.0, 2.0])])
async def test_a_crash_is_followed_by_restarts_and_the_agent_goes_on(
    slow_motion: Team, clock: ManualClock, random: float, waits: list[float]
) -> None:
    slow_motion.random = random
    door = Door(breaks=3)
    door.open.set()
    with_door(slow_motion, door)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        for crashes, wait in enumerate(waits, 1):
            await eventually(lambda wait=wait: wait in clock.sleeping())
            assert statuses(slow_motion).count("BACKOFF") == crashes
            await clock.advance(wait)
        assert (await run).exit_code == 0
    assert statuses(slow_motion).count("BACKOFF") == 3
    assert len(slow_motion.model.requests) == 3, "recorded answers were not asked for again"


async def test_too_many_crashes_without_a_new_step_end_in_a_crash_loop(slow_motion: Team, clock: ManualClock) -> None:
    door = Door(breaks=99)
    with_door(slow_motion, door, max_restarts=5)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(tasks=["a", "b"]), agent("two", [{"run": "true"}]))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step=2.0)
        result = await run
    one = result.state.agents["one"]
    assert door.calls == 6, "one start and five restarts"
    assert statuses(slow_motion)[-2:] == ["BACKOFF", "CRASH_LOOP"]
    assert (one.status, one.why, one.crashes, one.restarts) == (AgentStatus.CRASH_LOOP, "crash_loop", 6, 5)
    assert one.reason == "crashed 6 times in a row without a new step: RuntimeError: the tool broke"
    assert one.holds == {"health": one.reason}
    assert [t.status for t in one.tasks.values()] == [TaskStatus.RUNNING], "its work is not lost"
    assert (result.status, result.exit_code) == (RunStatus.WAITING, 7)
    assert result.state.agents["two"].status is AgentStatus.COMPLETED, "a sibling is not affected"


async def test_a_model_that_breaks_its_caller_ends_in_a_crash_loop_too(slow_motion: Team, clock: ManualClock) -> None:
    asked: list[ModelRequest] = []

    def broken(request: ModelRequest) -> Answer:
        asked.append(request)
        raise RuntimeError("a defect of the model")

    slow_motion.script = broken
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step=2.0)
        assert (await run).state.agents["one"].why == "crash_loop"
    assert len(asked) == 6
    assert len({r.key for r in asked}) == 1


async def test_restarts_in_one_process_charge_the_run_once(slow_motion: Team, clock: ManualClock) -> None:
    door = Door(breaks=2)
    door.open.set()
    with_door(slow_motion, door)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(), agent("two"))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done)
        state = (await run).state
    total = session.context.resources.run
    assert total.tokens == sum(a.usage.tokens for a in state.agents.values())
    assert total.model_calls == sum(a.usage.calls for a in state.agents.values()) == 6
    assert total.tool_calls == sum(a.tool_calls for a in state.agents.values()) == 4


async def test_a_shutdown_writes_no_status_and_the_agent_can_be_resumed(team: Team) -> None:
    door = Door()
    with_door(team, door)
    async with team.open() as runtime:
        session = await team.start(runtime, agent(), agent("two", [{"run": "true"}]))
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        before = len(team.records)
        closing = asyncio.create_task(session.shutdown(5.0))
        await settle()
        door.open.set()
        await closing
        result = await run
        assert result.status is RunStatus.INTERRUPTED
        late = [r.event for r in team.records[before:] if r.stream == "one"]
        assert not any(isinstance(e, AgentStateChanged) for e in late)
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        assert (await again.run()).exit_code == 0
    assert len(team.model.requests) == 3 and door.calls == 2


@pytest.mark.parametrize(("own", "setting"), [("90s", None), (None, 90.0), ("90s", 200.0), ("1h", 90.0)])
async def test_an_agent_past_its_time_fails_with_its_tasks(
    slow_motion: Team, clock: ManualClock, own: str | None, setting: float | None
) -> None:
    door = Door()
    with_door(slow_motion, door, workstream_timeout_s=setting)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(tasks=["a", "b"], limits={"timeout": own} if own else {}))
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        await pass_time(clock, run.done, step=10.0)
        one = (await run).state.agents["one"]
    assert (one.status, one.why, one.reason) == (AgentStatus.FAILED, "limit", "timed out after 90 s")
    assert [t.status for t in one.tasks.values()] == [TaskStatus.FAILED, TaskStatus.SKIPPED]
    assert one.ended_at and one.started_at and one.ended_at - one.started_at == 90.0
    assert door.inside == 0 and not any(t.in_flight for t in one.tasks.values())


async def test_without_a_model_an_agent_is_skipped_and_one_that_needs_none_runs(tmp_path: Path) -> None:
    team = Team(tmp_path)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("talker", model="openai:gpt-none"), agent("doer", [{"run": "true"}]))
        result = await session.run()
    assert (result.state.agents["talker"].status, result.state.agents["talker"].why) == (
        AgentStatus.SKIPPED,
        "no_model",
    )
    assert result.state.agents["doer"].status is AgentStatus.COMPLETED
    assert result.exit_code == 0


async def test_requests_for_agents_that_are_not_there_or_have_ended_are_refused(fast: Team) -> None:
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent())
        with pytest.raises(NotFound, match="has no agent nobody"):
            await session.manager.stop(AgentName("nobody"))
        await session.run()
        with pytest.raises(UsageError, match="agent one has ended"):
            session.manager.launch(agent())


async def test_a_reply_that_takes_long_is_waited_for(slow_motion: Team, clock: ManualClock) -> None:
    report = ("report", '{"status": "succeeded", "summary": "s"}')
    slow_motion.script = lambda _: ScriptedReply(calls=(report,), delay_s=60.0)
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step=5.0)
        assert (await run).exit_code == 0


async def test_a_model_call_that_a_crash_lost_counts_towards_the_limit(team: Team) -> None:
    report = ("report", '{"status": "succeeded", "summary": "s"}')
    asked: list[ModelRequest] = []

    def slow_at_first(request: ModelRequest) -> Answer:
        asked.append(request)
        return ScriptedReply(calls=(report,), delay_s=60.0 if len(asked) == 1 else 0.0)

    team.script = slow_at_first
    team.__post_init__()
    async with team.open() as runtime:
        session = await team.start(runtime, agent(limits={"max_model_calls": 1}))
        run = asyncio.create_task(session.run())
        await eventually(lambda: asked)
        await session.shutdown(0.0)
        await run
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        result = await again.run()
    one = result.state.agents["one"]
    assert (one.why, result.exit_code, one.usage.calls, len(asked)) == ("limit", 6, 1, 1)
