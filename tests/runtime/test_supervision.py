"""Restarts, second tries, health and places: what is done about agents that crash, fail or get nowhere."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness import Team, agent, call, eventually, fail, pass_time, succeed
from runtime.test_process import ONE, Door, statuses, with_door
from toka.core.effect import Effect
from toka.core.ids import AgentName
from toka.errors import JournalError
from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    HealthChanged,
    StepInDoubt,
    StepIntent,
    StepLeft,
    TaskStateChanged,
)
from toka.events.health import Health
from toka.events.lifecycle import AgentStatus, RunStatus, TaskStatus
from toka.journal.journal import Journal
from toka.llm.model import ModelRequest
from toka.llm.script import ScriptedReply
from toka.llm.scripted import Answer
from toka.orchestration.session import RunSession
from toka.testing import ManualClock, settle

TWO = AgentName("two")
LOOKS: dict[str, Any] = {"grant": ["filesystem-read"]}
REPORT = ("report", '{"status": "succeeded", "summary": "s"}')


async def submit(journal: Journal, session: RunSession, verb: str, name: str = "", **arguments: Any) -> None:
    await journal.submit(session.context.id, verb, agent=name, arguments=arguments, by=("ada", "see to it"))


# --- restarts


async def test_an_agent_whose_policy_is_never_fails_at_its_first_crash(fast: Team) -> None:
    with_door(fast, Door(breaks=9))
    result = await fast.run(agent(restart="never"), agent("two", [{"run": "true"}]))
    one = result.state.agents["one"]
    assert (one.status, one.why, one.reason) == (AgentStatus.FAILED, "crash", "crashed: RuntimeError: the tool broke")
    assert [t.status for t in one.tasks.values()] == [TaskStatus.FAILED]
    assert result.state.agents["two"].status is AgentStatus.COMPLETED


async def test_the_setting_holds_for_specs_that_do_not_say(fast: Team) -> None:
    with_door(fast, Door(breaks=9), restart="never")
    assert (await fast.run(agent())).state.agents["one"].why == "crash"


async def test_an_agent_whose_policy_is_always_is_tried_again_when_it_failed(
    slow_motion: Team, clock: ManualClock
) -> None:
    slow_motion.script = {"agents": {"one": {"task-2": [fail(), fail(), succeed()], "*": [succeed()]}}}
    slow_motion.execution = {"task_retries": 0}
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(tasks=["a", "b", "c"], restart="always"))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done)
        assert (await run).status is RunStatus.COMPLETED
    assert statuses(slow_motion).count("BACKOFF") == 2
    asked = [r.task for r in slow_motion.model.requests]
    assert asked == ["task-1", "task-2", "task-2", "task-2", "task-3"], "what succeeded stays done"


async def test_an_agent_that_always_fails_does_not_go_on_for_ever(slow_motion: Team, clock: ManualClock) -> None:
    slow_motion.script = {"default": [{**fail(), "repeat": True}]}
    slow_motion.execution = {"task_retries": 0, "run_restarts": 3}
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(restart="always"))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step=2.0)
        one = (await run).state.agents["one"]
    assert (one.status, one.restarts, len(slow_motion.model.requests)) == (AgentStatus.FAILED, 3, 4)
    assert one.reason.endswith("; the 3 restarts of this run are used up")


async def test_failures_in_a_row_are_waited_for_longer_and_end_in_a_crash_loop(
    slow_motion: Team, clock: ManualClock
) -> None:
    slow_motion.script = {"default": [{**fail(), "repeat": True}]}
    slow_motion.execution = {"task_retries": 0, "max_restarts": 3}
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(restart="always"))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done)
        one = (await run).state.agents["one"]
    assert (one.status, one.restarts, one.failures) == (AgentStatus.CRASH_LOOP, 3, 4)
    assert one.reason.startswith("failed 4 times in a row without a newly completed task: ")
    backoffs = [(r.at, r.event.until) for r in slow_motion.records if getattr(r.event, "state", "") == "BACKOFF"]
    assert [until is None for _, until in backoffs] == [False, False, False, True]
    waits = [until - at for at, until in backoffs if until is not None]
    assert all(longest / 2 <= wait <= longest for wait, longest in zip(waits, (1, 2, 4), strict=True)), waits


async def test_a_task_that_succeeded_meanwhile_begins_the_count_of_failures_anew(
    slow_motion: Team, clock: ManualClock
) -> None:
    tries = [fail(), fail(), succeed()]
    slow_motion.script = {"agents": {"one": {"task-1": tries, "task-2": tries}}}
    slow_motion.execution = {"task_retries": 0, "max_restarts": 2}
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(tasks=["a", "b"], restart="always"))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done)
        one = (await run).state.agents["one"]
    assert (one.status, one.restarts) == (AgentStatus.COMPLETED, 4)


async def test_repairs_that_mend_nothing_are_no_progress(slow_motion: Team, clock: ManualClock) -> None:
    slow_motion.script = {"default": [{**succeed(), "repeat": True}]}
    slow_motion.execution = {"repair_rounds": 1, "max_restarts": 2}
    slow_motion.__post_init__()
    check = {"description": "there", "check": "false"}
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(objectives=[check], restart="always", **LOOKS))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done)
        one = (await run).state.agents["one"]
    assert (one.status, one.restarts) == (AgentStatus.CRASH_LOOP, 2)
    assert [t.id for t in one.tasks.values() if t.status is TaskStatus.SUCCEEDED] == [
        "task-1", "repair-1", "repair-3", "repair-5"
    ]  # fmt: skip


async def test_the_restarts_of_a_run_have_a_budget_that_its_agents_share(slow_motion: Team, clock: ManualClock) -> None:
    door = Door(breaks=99)
    with_door(slow_motion, door, max_restarts=50, run_restarts=2)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(), agent("two"))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step=2.0)
        agents = (await run).state.agents
    assert {a.status for a in agents.values()} == {AgentStatus.CRASH_LOOP}
    assert sum(statuses(slow_motion, name).count("STARTING") for name in ("one", "two")) == 2 + 4
    assert all("the 4 restarts of this run are used up" in a.reason for a in agents.values())


async def test_crashes_are_counted_over_processes_and_the_wait_goes_on(team: Team) -> None:
    clock = ManualClock()
    team.clock = clock
    with_door(team, Door(breaks=99), max_restarts=3)
    async with team.open() as runtime:
        session = await team.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await pass_time(clock, lambda: session.manager.state(ONE).crashes == 3)
        await session.shutdown(0.0)
        await run
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        run = asyncio.create_task(again.run())
        await asyncio.sleep(0.05)
        assert again.manager.state(ONE).status is AgentStatus.BACKOFF, "four seconds were to be waited"
        await pass_time(clock, run.done)
        assert (await run).state.agents["one"].status is AgentStatus.CRASH_LOOP
    assert statuses(team).count("STARTING") == 4


async def test_ten_minutes_without_a_crash_clear_the_count(slow_motion: Team, clock: ManualClock) -> None:
    door = Door(breaks=2)
    with_door(slow_motion, door)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await pass_time(clock, lambda: door.inside)
        state = session.manager.state(ONE)
        assert state.crashes == 2
        assert state.stint_at is not None
        assert state.crashes_at(state.stint_at + 599) == 3
        assert state.crashes_at(state.stint_at + 600) == 1
        door.open.set()
        await pass_time(clock, run.done)


async def test_starts_are_fifty_a_second_at_most_while_agents_crash(slow_motion: Team, clock: ManualClock) -> None:
    with_door(slow_motion, Door(breaks=10_000), max_restarts=2, max_concurrent_agents=1000)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, *(agent(f"a{n}") for n in range(100)), agent("sound", ["x"]))
        slow_motion.model._inner = None  # type: ignore[assignment]
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done)
        await run
    starts = sorted(r.at for r in slow_motion.records if getattr(r.event, "state", "") == "STARTING")
    later = starts[101:]  # nobody had crashed when the first ones started
    assert len(later) == 202
    assert all(b - a >= 0.99 for a, b in zip(later, later[50:], strict=False))


async def test_an_agent_that_waits_to_be_restarted_takes_nobodys_place(slow_motion: Team, clock: ManualClock) -> None:
    door = Door(breaks=1)
    door.open.set()
    with_door(slow_motion, door, max_concurrent_agents=1)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(priority="high"), agent("two", [{"run": "true"}]))
        run = asyncio.create_task(session.run())
        await eventually(lambda: session.manager.state(TWO).ended)
        assert session.manager.state(ONE).status is AgentStatus.BACKOFF
        await pass_time(clock, run.done)
        assert (await run).exit_code == 0


async def test_an_agent_that_is_slow_to_start_is_started_again(slow_motion: Team, clock: ManualClock) -> None:
    slow_motion.execution = {"agent_spawn_timeout_s": 5.0, "max_restarts": 1}
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())

        async def hangs(chosen: str) -> str:
            await asyncio.Event().wait()
            return chosen

        object.__setattr__(session.context.runtime, "resolve_model", hangs)
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step=1.0)
        one = (await run).state.agents["one"]
    assert (one.status, one.reason) == (
        AgentStatus.CRASH_LOOP,
        "crashed 2 times in a row without a new step: did not start within 5 s",
    )


# --- a second try


async def test_a_crash_loop_is_left_by_resume_and_by_retry(slow_motion: Team, clock: ManualClock) -> None:
    door = Door(breaks=4)
    door.open.set()
    with_door(slow_motion, door, max_restarts=1)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done)
        assert (await run).status is RunStatus.WAITING
        await session.context.recorder.close()
        again = await slow_motion.resume(runtime, session.context.id)
        run = asyncio.create_task(again.run())
        await pass_time(clock, run.done)
        assert (await run).status is RunStatus.WAITING
        await again.context.recorder.close()
        await submit(runtime.journal, session, "retry", "one")
        last = await slow_motion.resume(runtime, session.context.id)
        run = asyncio.create_task(last.run())
        await pass_time(clock, run.done)
        assert (await run).exit_code == 0
    assert door.calls == 6
    assert statuses(slow_motion).count("CRASH_LOOP") == 2


@pytest.mark.parametrize("verb", ["resume", "retry"])
async def test_a_crash_loop_is_left_although_the_request_came_while_it_was_recorded(
    slow_motion: Team, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The agent's execution is not over yet, and neither is it at work any more."""
    door = Door(breaks=2)
    door.open.set()
    with_door(slow_motion, door, max_restarts=1)
    monkeypatch.setattr("toka.orchestration.session.POLL_S", 0.01)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        recorder, asked = session.context.recorder, asyncio.Event()
        record = recorder.record

        async def slowly(stream: str, *events: Any) -> Any:
            done = await record(stream, *events)
            if any(getattr(e, "state", "") == "CRASH_LOOP" for e in events) and not asked.is_set():
                await submit(runtime.journal, session, verb, "one")
                asked.set()
                await eventually(lambda: any(isinstance(r.event, CommandApplied) for r in slow_motion.records))
                await settle()
            return done

        monkeypatch.setattr(recorder, "record", slowly)
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done)
        assert (await run).exit_code == 0
    assert statuses(slow_motion).count("CRASH_LOOP") == 1


async def failed_run(team: Team, *configs: Any) -> str:
    async with team.open() as runtime:
        session = await team.start(runtime, *configs)
        result = await session.run()
        assert result.status is RunStatus.FAILED
        await session.context.recorder.close()
    return result.run


async def retried(team: Team, run: Any, *names: str) -> Any:
    async with team.open() as runtime:
        for name in names:
            await runtime.journal.submit(run, "retry", agent=name, arguments={}, by=("ada", "mended"))
        session = await team.resume(runtime, run)
        result = await session.run()
        await session.context.recorder.close()
        return result


@pytest.mark.slow
async def test_what_failed_is_tried_again_and_what_was_skipped_for_it_waits_again(team: Team) -> None:
    team.execution = {"task_retries": 0}
    write = {"grant": ["filesystem-write"]}
    first = agent("first", [{"run": "echo x >> done"}, {"run": "test -e mended"}, {"run": "echo y >> done"}], **write)
    after = {"required": ["first"]}
    then = agent("then", [{"run": "echo z >> done"}], dependencies=after, **write)
    last = agent("last", [{"run": "echo e >> done"}], dependencies={"required": ["then"]}, **write)
    run = await failed_run(team, first, then, last)
    assert (team.work / "done").read_text() == "x\n"
    (team.work / "mended").touch()
    result = await retried(team, run, "first")
    assert result.status is RunStatus.COMPLETED
    assert (team.work / "done").read_text() == "x\ny\nz\ne\n"
    agents = result.state.agents
    assert [t.attempt for t in agents["first"].tasks.values()] == [1, 2, 1]
    assert (agents["first"].tries, agents["then"].status) == (1, AgentStatus.COMPLETED)


@pytest.mark.slow
async def test_a_second_try_has_all_retries_and_repairs_again(team: Team) -> None:
    team.script = {"default": [{**succeed(), "repeat": True}]}
    check = {"description": "there", "check": "test -e mended"}
    team.execution = {"repair_rounds": 1}
    run = await failed_run(team, agent(objectives=[check], **LOOKS))
    assert len(team.model.requests) == 2, "the task and one repair"
    result = await retried(team, run, "one")
    assert (result.status, len(team.model.requests)) == (RunStatus.FAILED, 3)
    assert list(result.state.agents["one"].tasks) == ["task-1", "repair-1", "repair-3"]
    (team.work / "mended").touch()
    assert (await retried(team, run, "")).status is RunStatus.COMPLETED
    assert len(team.model.requests) == 3


@pytest.mark.slow
async def test_a_retry_that_its_process_did_not_live_to_carry_out_is_taken_up(team: Team) -> None:
    team.execution = {"task_retries": 0}
    run = await failed_run(team, agent("first", [{"run": "test -e mended"}], **LOOKS))
    async with team.open() as runtime:
        await runtime.journal.submit(run, "retry", agent="first", arguments={}, by=("ada", "mended"))
        session = await team.resume(runtime, run)
        (command,) = runtime.journal.commands(run)
        await session.context.recorder.record("", CommandApplied(command.id, "retry", "first", {}, "ada", "mended"))
        await session.context.recorder.close()
    (team.work / "mended").touch()
    async with team.open() as runtime:
        session = await team.resume(runtime, run)
        assert (await session.run()).status is RunStatus.COMPLETED
        await session.context.recorder.close()


async def test_a_retry_of_an_agent_that_waits_to_be_restarted_starts_it_now(slow_motion: Team) -> None:
    door = Door(breaks=1)
    door.open.set()
    with_door(slow_motion, door)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.BACKOFF)
        assert not await session.manager.retry(ONE)
        assert (await run).exit_code == 0, "no time has passed"


async def test_who_runs_or_has_succeeded_is_not_tried_again(fast: Team) -> None:
    door = Door()
    with_door(fast, door)
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        assert not await session.manager.retry(ONE)
        door.open.set()
        assert (await run).exit_code == 0
        before = len(fast.records)
        assert not await session.manager.retry(ONE)
        assert len(fast.records) == before


# --- places and clocks


async def test_a_paused_agent_takes_nobodys_place_and_waits_for_one_to_go_on(fast: Team) -> None:
    door = Door()
    with_door(fast, door, max_concurrent_agents=1)
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent(priority="high"), agent("two"))
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        await session.manager.pause(ONE)
        assert session.manager.state(TWO).status is AgentStatus.CONFIGURED, "a call is in flight"
        door.open.set()
        door.open = asyncio.Event()  # it shuts behind the one
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        await eventually(lambda: door.inside)
        assert session.manager.state(TWO).status is AgentStatus.RUNNING
        await session.manager.resume(ONE)
        await asyncio.sleep(0.02)
        assert session.manager.state(ONE).status is AgentStatus.PAUSED, "there is one place, and it is taken"
        door.open.set()
        assert (await run).exit_code == 0


async def test_time_stands_still_for_an_agent_that_rests(slow_motion: Team, clock: ManualClock) -> None:
    door = Door()
    with_door(slow_motion, door, task_timeout_s=100.0, workstream_timeout_s=150.0)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        await clock.advance(60.0)
        await session.manager.pause(ONE)
        door.open.set()
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        await clock.advance(3600.0)
        door.open.clear()
        await session.manager.resume(ONE)
        await eventually(lambda: door.inside)
        await clock.advance(39.0)
        assert session.manager.state(ONE).status is AgentStatus.RUNNING
        await clock.advance(2.0)
        await pass_time(clock, run.done)
        one = (await run).state.agents["one"]
    assert one.tasks["task-1"].reason == "timed out after 100 s"
    assert one.active_s == pytest.approx(100.0, abs=1.0)


async def test_a_pause_waits_so_long_for_a_model_and_then_its_call_is_lost_and_charged(
    slow_motion: Team, clock: ManualClock
) -> None:
    asked: list[ModelRequest] = []

    def slow_at_first(request: ModelRequest) -> Answer:
        asked.append(request)
        return ScriptedReply(calls=(REPORT,), delay_s=90.0 if len(asked) == 1 else 0.0)

    slow_motion.script = slow_at_first
    slow_motion.execution = {"pause_timeout_s": 30.0}
    slow_motion.__post_init__()
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await eventually(lambda: asked)
        await session.manager.pause(ONE)
        await settle()
        await clock.advance(29.0)
        assert session.manager.state(ONE).status is AgentStatus.PAUSING
        await clock.advance(2.0)
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        await session.manager.resume(ONE)
        assert (await run).exit_code == 0
        one = session.manager.state(ONE)
    first, second = slow_motion.events(StepIntent)
    assert (first.step, first.key, second.again) == (second.step, second.key, 1)
    assert len(slow_motion.events(StepLeft)) == 1
    assert (len(asked), one.usage.calls, one.tasks["task-1"].attempt) == (2, 2, 1), "no retry was used up"
    assert session.context.resources.run.tokens == one.usage.tokens


async def test_the_deadline_of_a_run_ends_what_runs_and_what_waits(slow_motion: Team, clock: ManualClock) -> None:
    with_door(
        slow_motion, Door(), run_timeout_s=60.0, max_concurrent_agents=1, command_timeout_s=1e9, task_timeout_s=None
    )
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent(priority="high"), agent("two"))
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step=5.0)
        result = await run
    agents = result.state.agents
    assert (result.status, result.exit_code) == (RunStatus.FAILED, 6)
    assert (agents["one"].status, agents["one"].why) == (AgentStatus.FAILED, "limit")
    assert (agents["two"].status, agents["two"].why) == (AgentStatus.SKIPPED, "limit")
    assert agents["one"].reason == agents["two"].reason == "the run took longer than 1m"
    assert not any(t.in_flight for t in agents["one"].tasks.values())


# --- poison and health


@pytest.mark.slow
async def test_a_person_is_asked_about_a_step_in_which_the_process_died_three_times(team: Team) -> None:
    door = Door(Effect.IDEMPOTENT)
    with_door(team, door)
    run: Any = None
    for life in range(4):
        async with team.open() as runtime:
            session = await (team.start(runtime, agent()) if life == 0 else team.resume(runtime, run))
            run = session.context.id
            task = asyncio.create_task(session.run())
            if life == 3:
                assert (await task).status is RunStatus.WAITING
                await session.context.recorder.close()
                break
            await eventually(lambda: door.inside)
            session.context.recorder.record = gone  # type: ignore[method-assign]  # as a killed process
            await session.shutdown(0.0)
            await asyncio.gather(task, return_exceptions=True)
            await runtime.journal.release(session.context.recorder.lease)
    (doubt,) = team.events(StepInDoubt)
    assert doubt.question == "door {} was started 3 times, and each time Toka died before it ended. Did it happen?"
    async with team.open() as runtime:
        await runtime.journal.submit(
            run, "resolve", agent="one", arguments={"task": "task-1", "answer": "not-happened"}, by=("ada", "")
        )
        door.open.set()
        session = await team.resume(runtime, run)
        assert (await session.run()).exit_code == 0
        await session.context.recorder.close()


async def gone(*_: Any) -> Any:
    raise JournalError("the process is dead")


async def test_leaving_a_step_on_purpose_is_no_death(team: Team) -> None:
    door = Door(Effect.IDEMPOTENT)
    with_door(team, door)
    run: Any = None
    for life in range(5):
        async with team.open() as runtime:
            session = await (team.start(runtime, agent()) if life == 0 else team.resume(runtime, run))
            run = session.context.id
            task = asyncio.create_task(session.run())
            await eventually(lambda: door.inside)
            if life == 4:
                door.open.set()
            else:
                await session.shutdown(0.0)
            result = await task
            await session.context.recorder.close()
    assert result.exit_code == 0
    assert not team.events(StepInDoubt)


def health(team: Team) -> list[tuple[str, str]]:
    return [(e.health, e.rung) for e in team.events(HealthChanged)]


async def test_a_loop_is_told_of_then_set_back_then_held(fast: Team) -> None:
    fast.script = {"default": [{**call("list_dir"), "repeat": True}]}
    fast.__post_init__()
    result = await fast.run(agent(**LOOKS))
    one = result.state.agents["one"]
    assert health(fast) == [("looping", "nudge"), ("looping", "nudge"), ("looping", "restart"), ("looping", "hold")]
    assert (one.status, one.health, result.exit_code) == (AgentStatus.QUARANTINED, Health.LOOPING, 7)
    assert one.holds == {"health": one.reason}
    assert "list_dir {} got the same answer 5 times; being told 2 times and set back once did not help" in one.reason
    assert one.tasks["task-1"].status is TaskStatus.RUNNING
    requests = fast.model.requests
    assert len(requests) == 20
    assert "You get nowhere: list_dir {} got the same answer 5 times." in requests[5].messages[-1].text
    assert len(requests[15].messages) < len(requests[14].messages), "what came of the loop is out of sight"
    assert requests[15].messages[-1].text.startswith("You were set back to this point")


async def test_a_word_can_help(fast: Team) -> None:
    def heeds(request: ModelRequest) -> Answer:
        told = any("You get nowhere" in m.text for m in request.messages)
        return ScriptedReply(calls=(REPORT,)) if told else ScriptedReply(calls=(("list_dir", "{}"),))

    fast.script = heeds
    fast.__post_init__()
    result = await fast.run(agent(**LOOKS))
    one = result.state.agents["one"]
    assert (result.exit_code, one.health, health(fast)) == (0, Health.HEALTHY, [("looping", "nudge")])


async def test_calls_that_differ_are_no_loop(fast: Team) -> None:
    turns = [call("list_dir", path=".") if n % 2 else call("read_file", path=f"f{n}") for n in range(8)]
    fast.script = {"default": [*turns, succeed()]}
    fast.__post_init__()
    assert (await fast.run(agent(**LOOKS))).exit_code == 0
    assert not health(fast)


async def test_many_failures_are_told_of_though_no_two_are_alike(fast: Team) -> None:
    fast.script = {"default": [*(call("read_file", path=f"f{n}") for n in range(20)), succeed()]}
    fast.__post_init__()
    assert (await fast.run(agent(**LOOKS))).exit_code == 0
    assert health(fast) == [("failing", "nudge")]
    told = fast.events(HealthChanged)[0].reason
    assert told == '20 of the last 20 calls failed, no two alike; the last was read_file {"path": "f19"}'


async def test_of_many_failures_the_one_that_came_most_often_is_named(fast: Team) -> None:
    fast.script = {"default": [*(call("read_file", path=f"f{n // 2}") for n in range(20)), succeed()]}
    fast.__post_init__()
    assert (await fast.run(agent(**LOOKS))).exit_code == 0
    told = fast.events(HealthChanged)[0].reason
    assert told == '20 of the last 20 calls failed, most of all read_file {"path": "f0"}'


async def test_a_budget_that_is_nearly_used_up_is_told_of_once(fast: Team) -> None:
    turns = [call("read_file", path=f"f{n}") for n in range(8)]
    fast.script = {"default": [*turns, succeed()]}
    fast.__post_init__()
    result = await fast.run(agent(**LOOKS, limits={"max_model_calls": 10}))
    assert (result.exit_code, health(fast)) == (0, [("burning", "nudge")])
    assert "8 of 10 model calls of agent one are used" in fast.model.requests[8].messages[-1].text


async def test_held_for_its_health_an_agent_goes_on_with_all_chances_again(team: Team) -> None:
    team.script = {"default": [{**call("list_dir"), "repeat": True}]}
    team.__post_init__()
    async with team.open() as runtime:
        session = await team.start(runtime, agent(**LOOKS))
        run = session.context.id
        assert (await session.run()).exit_code == 7
        await session.context.recorder.close()
        again = await team.resume(runtime, run)
        assert (await again.run()).exit_code == 7
        await again.context.recorder.close()
    rungs = [rung for _, rung in health(team)]
    assert rungs == ["nudge", "nudge", "restart", "hold", "nudge", "nudge", "restart", "hold"]
    assert len(team.model.requests) == 35, "five turns before each rung; what was recorded is not asked again"


async def test_a_health_hold_of_one_lets_the_others_go_on_and_who_needs_it_waits(fast: Team) -> None:
    fast.script = {"agents": {"one": {"*": [{**call("list_dir"), "repeat": True}]}, "*": {"*": [succeed()]}}}
    fast.__post_init__()
    needs = agent("three", dependencies={"required": ["one"]})
    result = await fast.run(agent(**LOOKS), agent("two"), needs)
    assert {n: a.status.value for n, a in result.state.agents.items()} == {
        "one": "QUARANTINED",
        "two": "COMPLETED",
        "three": "CONFIGURED",
    }
    assert result.status is RunStatus.WAITING


async def test_a_replay_of_nudges_and_setbacks_asks_nothing_again(team: Team) -> None:
    calls = 17

    def loops(request: ModelRequest) -> Answer:
        if len(team.model.requests) > calls:
            return ScriptedReply(calls=(REPORT,), delay_s=60.0 if len(team.model.requests) == calls + 1 else 0.0)
        return ScriptedReply(calls=(("list_dir", "{}"),))

    team.script = loops
    team.__post_init__()
    async with team.open() as runtime:
        session = await team.start(runtime, agent(**LOOKS))
        task = asyncio.create_task(session.run())
        await eventually(lambda: len(team.model.requests) == calls + 1)
        await session.shutdown(0.0)
        await task
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        assert (await again.run()).exit_code == 0
    before, after = team.model.requests[-2:]
    assert (before.key, before.messages) == (after.key, after.messages)
    assert [rung for _, rung in health(team)] == ["nudge", "nudge", "restart"]


async def test_an_agent_that_stalls_is_started_again(slow_motion: Team, clock: ManualClock) -> None:
    stuck: list[int] = []

    class Wedge(Door):
        async def call(self, args: Any, ctx: Any) -> Any:
            stuck.append(1)
            while len(stuck) == 1:  # deaf to its deadline
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if clock.monotonic() > 300:
                        raise
            return await super().call(args, ctx)

    door = Wedge(Effect.IDEMPOTENT)
    door.open.set()
    with_door(slow_motion, door, command_timeout_s=100.0, grace_s=10.0, task_timeout_s=None)
    async with slow_motion.open() as runtime:
        session = await slow_motion.start(runtime, agent())
        run = asyncio.create_task(session.run())
        await pass_time(clock, run.done, step=10.0)
        assert (await run).exit_code == 0
    assert health(slow_motion) == [("stalled", "restart")]
    (backoff,) = [e for e in slow_motion.events(AgentStateChanged) if e.state == "BACKOFF"]
    assert (backoff.by, "door (task-1/1/1/tool/0) has not ended after" in backoff.reason) == ("health", True)


async def test_every_change_says_who_brought_it_about(fast: Team) -> None:
    fast.script = {"default": [fail(), fail(), fail(), succeed()]}
    fast.execution = {"retry_base_s": 0.001}
    fast.__post_init__()
    await fast.run(agent(), agent("two", dependencies={"required": ["one"]}))
    events = [*fast.events(AgentStateChanged), *fast.events(TaskStateChanged)]
    assert events
    assert all(event.by for event in events)
    assert [(e.state, e.by) for e in fast.events(AgentStateChanged, "two")] == [("SKIPPED", "schedule")]
