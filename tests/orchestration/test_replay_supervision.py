"""Deciding again runs in which agents crashed, stalled, were held, stopped or tried again, whatever came in between."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

import runtime.test_process as process
import runtime.test_supervision as supervision
from harness import Team, agent, ask, eventually, illegal
from orchestration import test_fan as fan
from orchestration import test_odd_moments as odd_moments
from orchestration.test_replay import read
from runtime.test_lifecycle_machine import NAMES, Lifecycle
from runtime.test_process import ONE, Door
from toka.core.clock import Clock
from toka.errors import SandboxUnavailable
from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    HoldLifted,
    HoldPlaced,
    StepDone,
    StepFailed,
    StepIntent,
    StepWaits,
    TaskStateChanged,
)
from toka.events.health import HealthChanged
from toka.events.lifecycle import AgentStatus, RunStatus
from toka.events.record import Record
from toka.journal.poke import poke
from toka.orchestration.replay import Replayed, Terms, replay
from toka.testing import ManualClock, MemoryJournal, settle
from toka.tools.builtin import Toolbox

WRITES = {"grant": ["filesystem-write"]}
Seen = list[MemoryJournal]


def again(journal: Any, run: Any, *tools: Any) -> Replayed:
    return replay(journal.read(run), journal.blob, Terms(tools=Toolbox(tools)))


def remembering(seen: Seen) -> Callable[[Path, Clock], MemoryJournal]:
    """For `Team.journal`: keeps what it made."""

    def made(_: Path, clock: Clock) -> MemoryJournal:
        seen.append(MemoryJournal(clock))
        return seen[-1]

    return made


@pytest.fixture
def seen() -> Seen:
    return []


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def fast(tmp_path: Path, seen: Seen) -> Team:
    return Team(tmp_path, journal=remembering(seen))


@pytest.fixture
def slow_motion(tmp_path: Path, seen: Seen, clock: ManualClock) -> Team:
    return Team(tmp_path, journal=remembering(seen), clock=clock)


SCENARIOS: list[Callable[..., Any]] = [
    supervision.test_an_agent_whose_policy_is_never_fails_at_its_first_crash,
    supervision.test_the_setting_holds_for_specs_that_do_not_say,
    supervision.test_an_agent_whose_policy_is_always_is_tried_again_when_it_failed,
    supervision.test_an_agent_that_always_fails_does_not_go_on_for_ever,
    supervision.test_failures_in_a_row_are_waited_for_longer_and_end_in_a_crash_loop,
    supervision.test_a_task_that_succeeded_meanwhile_begins_the_count_of_failures_anew,
    supervision.test_repairs_that_mend_nothing_are_no_progress,
    supervision.test_the_restarts_of_a_run_have_a_budget_that_its_agents_share,
    supervision.test_crashes_are_counted_over_processes_and_the_wait_goes_on,
    supervision.test_ten_minutes_without_a_crash_clear_the_count,
    supervision.test_an_agent_that_waits_to_be_restarted_takes_nobodys_place,
    supervision.test_an_agent_that_is_slow_to_start_is_started_again,
    supervision.test_a_crash_loop_is_left_by_resume_and_by_retry,
    supervision.test_a_retry_of_an_agent_that_waits_to_be_restarted_starts_it_now,
    supervision.test_time_stands_still_for_an_agent_that_rests,
    supervision.test_a_pause_waits_so_long_for_a_model_and_then_its_call_is_lost_and_charged,
    supervision.test_the_deadline_of_a_run_ends_what_runs_and_what_waits,
    supervision.test_leaving_a_step_on_purpose_is_no_death,
    supervision.test_a_loop_is_told_of_then_set_back_then_held,
    supervision.test_held_for_its_health_an_agent_goes_on_with_all_chances_again,
    supervision.test_a_health_hold_of_one_lets_the_others_go_on_and_who_needs_it_waits,
    supervision.test_a_replay_of_nudges_and_setbacks_asks_nothing_again,
    supervision.test_an_agent_that_stalls_is_started_again,
    process.test_a_stop_beats_a_pause_and_a_wait,
    odd_moments.test_an_agent_that_is_stopped_between_two_starts_leaves_no_task_and_no_step_open,
    odd_moments.test_an_agent_ends_after_its_instances,
    fan.test_no_instance_begins_that_was_stopped_with_its_agent_while_nobody_executed_it,
]
SLOW_SCENARIOS: list[Callable[..., Any]] = [
    supervision.test_what_failed_is_tried_again_and_what_was_skipped_for_it_waits_again,
    supervision.test_a_second_try_has_all_retries_and_repairs_again,
    supervision.test_a_retry_that_its_process_did_not_live_to_carry_out_is_taken_up,
    supervision.test_a_person_is_asked_about_a_step_in_which_the_process_died_three_times,
]


async def acted(scenario: Callable[..., Any], request: pytest.FixtureRequest) -> list[Team]:
    given = {name: request.getfixturevalue(name) for name in inspect.signature(scenario).parameters}
    await scenario(**given)
    return [value for value in given.values() if isinstance(value, Team)]


def same(teams: Sequence[Team], seen: Seen) -> None:
    """All that these teams recorded is decided the same."""
    (team,) = teams
    runs = [(journal, run) for journal in seen for run in journal.runs()]
    found = [again(journal, run, *team.tools) for journal, run in runs]
    if not seen:
        records, blob = read(team.folder)
        found = [replay(records, blob, Terms(tools=Toolbox(team.tools)))]
    assert found
    for each in found:
        assert each.same and not each.unreached, each.divergences


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda f: f.__name__.removeprefix("test_"))
def test_what_supervision_did_is_decided_the_same(
    scenario: Callable[..., Any], request: pytest.FixtureRequest, seen: Seen
) -> None:
    same(asyncio.run(acted(scenario, request)), seen)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SLOW_SCENARIOS, ids=lambda f: f.__name__.removeprefix("test_"))
def test_what_several_processes_did_is_decided_the_same(
    scenario: Callable[..., Any], request: pytest.FixtureRequest, seen: Seen
) -> None:
    same(asyncio.run(acted(scenario, request)), seen)


@pytest.mark.parametrize("verb", ["resume", "retry"])
async def test_a_crash_loop_that_is_left_in_the_same_process_is_left_again(
    slow_motion: Team, clock: ManualClock, seen: Seen, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    scenario = supervision.test_a_crash_loop_is_left_although_the_request_came_while_it_was_recorded
    await scenario(slow_motion, clock, monkeypatch, verb)
    await asyncio.to_thread(same, [slow_motion], seen)


async def test_two_tasks_of_which_one_breaks_the_agent_end_in_their_order(fast: Team, seen: Seen) -> None:
    """The crash is recorded after steps of the other task: it must not come before them."""

    class Breaks(Door):
        async def call(self, args: Any, ctx: Any) -> Any:
            self.calls += 1
            if self.calls == 1:
                await self.open.wait()
                raise RuntimeError("broken: at last")
            return await super().call(args, ctx)

    door = Breaks()
    supervision.with_door(fast, door, max_concurrent_tasks=2, restart="never")
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent(tasks=["a", {"description": "b", "timeout": "9m"}]))
        run = asyncio.create_task(session.run())
        await eventually(lambda: door.inside)
        door.open.set()
        assert (await run).state.agents["one"].why == "crash"
    await asyncio.to_thread(same, [fast], seen)


async def test_a_sandbox_that_is_not_there_for_a_tool_is_not_there_again(fast: Team, seen: Seen) -> None:
    async def none(*_: Any) -> Any:
        raise SandboxUnavailable("no bubblewrap on this machine")

    fast.script = {"default": [supervision.call("list_dir"), supervision.succeed()]}
    fast.__post_init__()
    async with fast.open() as runtime:
        session = await fast.start(replace(runtime, start_sandbox=none), agent(tasks=["a", "b"], **WRITES))
        assert (await session.run()).state.agents["one"].why == "sandbox"
    await asyncio.to_thread(same, [fast], seen)


@pytest.mark.slow
async def test_who_stood_still_with_all_it_runs_goes_on_again(team: Team) -> None:
    async with team.open() as runtime:
        waits = {"run": "until [ -e go ]; do sleep 0.02; done", "effect": "idempotent"}
        session = await team.start(runtime, agent(tasks=[waits, {"run": "true"}], **WRITES), agent("two"))
        running = asyncio.create_task(session.run())
        await eventually(lambda: team.events(StepIntent, "one"))
        run = session.context.id
        for verb, arguments, then in (("pause", {"now": True}, "PAUSED"), ("resume", {}, "RUNNING")) * 2:
            await runtime.journal.submit(run, verb, agent="one", arguments=arguments, by=("ada", "lunch"))
            await eventually(lambda: session.manager.state(ONE).status.value == then)  # noqa: B023
        (team.work / "go").touch()
        assert (await running).status is RunStatus.COMPLETED
        await session.context.recorder.close()
    await asyncio.to_thread(same, [team], [])


@pytest.mark.slow
async def test_who_waited_for_its_turn_to_write_waits_again_also_over_processes(team: Team) -> None:
    holds = {"run": "until [ -e go ]; do sleep 0.02; done; echo x >> done"}
    async with team.open() as runtime:
        both = [agent(name, tasks=[holds, {"run": "echo y >> done"}], **WRITES) for name in ("one", "two")]
        session = await team.start(runtime, *both)
        running = asyncio.create_task(session.run())
        await eventually(lambda: team.events(StepWaits))
        await session.shutdown(0.0)
        assert (await running).status is RunStatus.INTERRUPTED
        await session.context.recorder.close()
        session = await team.resume(runtime, session.context.id)
        running = asyncio.create_task(session.run())
        await eventually(lambda: len(team.events(StepWaits)) == 2)
        await ask(team, session.context.id, ("pause", "one"))
        await eventually(lambda: session.manager.state(ONE).holds)
        (team.work / "go").touch()
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        await ask(team, session.context.id, ("resume", "one"))
        assert (await running).status is RunStatus.COMPLETED
        await session.context.recorder.close()
    await asyncio.to_thread(same, [team], [])


# --- requests that come at an odd moment ---------------------------------------------------------------------------


def asked(records: Sequence[Record], before: Callable[[Record], bool], *verbs: str) -> list[Record]:
    """The records with requests to agent one, recorded right before the last record of which `before` is true."""
    place = max(n for n, record in enumerate(records) if before(record))
    requests = [
        replace(records[place], stream="", event=CommandApplied(number, verb, "one", {}, "ada", "enough"))
        for number, verb in enumerate(verbs, 1)
    ]
    out = [*records[:place], *requests, *records[place:]]
    return [replace(record, id=number) for number, record in enumerate(out, 1)]


def succeeded(record: Record) -> bool:
    return record.stream == "one" and getattr(record.event, "state", "") == "SUCCEEDED"


def answered(record: Record) -> bool:
    return record.stream == "one" and isinstance(record.event, StepDone)


def completed(record: Record) -> bool:
    return record.stream == "one" and getattr(record.event, "state", "") == "COMPLETED"


@pytest.mark.parametrize("verb", ["stop", "pause"])
@pytest.mark.parametrize("before", [succeeded, completed])
async def test_a_request_may_come_too_late(fast: Team, seen: Seen, verb: str, before: Any) -> None:
    """The agent's end was about to be written: whoever asked then found it ended."""
    run = (await fast.run(agent())).run
    (journal,) = seen
    records = asked(journal.read(run), before, verb)
    found = await asyncio.to_thread(replay, records, journal.blob, Terms())
    assert found.same, found.divergences


async def test_requests_are_taken_up_while_an_agent_is_about_to_start(fast: Team, seen: Seen) -> None:
    fast.execution = {"max_concurrent_agents": 1}
    run = (await fast.run(agent("one", priority="low"), agent("two", priority="high"))).run
    (journal,) = seen

    def starts(record: Record) -> bool:
        return record.stream == "one" and getattr(record.event, "state", "") == "STARTING"

    records = asked(journal.read(run), starts, "resume", "resume", "resume")
    found = await asyncio.to_thread(replay, records, journal.blob, Terms())
    assert found.same, found.divergences


def put(records: Sequence[Record], place: int, *events: tuple[str, Any]) -> list[Record]:
    """The records with others at a place."""
    new = [replace(records[place], stream=stream, event=event) for stream, event in events]
    return [replace(r, id=n) for n, r in enumerate([*records[:place], *new, *records[place:]], 1)]


def first(records: Sequence[Record], stream: str, kind: type[Any], number: int = 1, **fields: str) -> int:
    """Where the record of a kind is that is number `number` of those with these fields."""
    found = (n for n, r in enumerate(records) if r.stream == stream and isinstance(r.event, kind))
    return [n for n in found if all(getattr(records[n].event, k) == v for k, v in fields.items())][number - 1]


STOP = ("", CommandApplied(1, "stop", "", {}, "ada", "enough"))
PAUSE = ("", CommandApplied(1, "pause", "one", {}, "ada", "enough"))
RESUME = ("", CommandApplied(2, "resume", "one", {}, "ada", "on"))
PLACED = ("one", HoldPlaced("person", "enough", "ada"))
LIFTED = ("one", HoldLifted("person", "on", "ada"))
PAUSING = ("one", AgentStateChanged("PAUSING", "enough", by="person"))
PAUSED = ("one", AgentStateChanged("PAUSED", "enough", by="work"))
RUNNING = ("one", AgentStateChanged("RUNNING", by="person"))


async def decided(seen: Seen, records: Sequence[Record]) -> None:
    found = await asyncio.to_thread(replay, records, seen[0].blob, Terms())
    assert found.same, found.divergences


async def one_then_two(fast: Team, seen: Seen, *tasks: Any) -> list[Record]:
    fast.execution = {"max_concurrent_agents": 1}
    one = agent("one", tasks=tasks, priority="high", **WRITES)
    run = (await fast.run(one, agent("two", priority="low"))).run
    return seen[0].read(run)


@pytest.mark.parametrize(("task", "after"), [({"run": "true"}, 0), ({"run": "true"}, 1), ("Look.", 1)])
async def test_a_stop_finds_agents_that_have_no_place_yet(fast: Team, seen: Seen, task: Any, after: int) -> None:
    """Also in the moment in which the sandbox of the one before is ended, whoever used it."""
    fast.script = {"default": [supervision.call("list_dir"), {**supervision.succeed(), "repeat": True}]}
    fast.__post_init__()
    records = await one_then_two(fast, seen, task)
    place = first(records, "one", AgentStateChanged, state="COMPLETED")
    stopped = ("two", AgentStateChanged("STOPPED", "enough (ada)", "stopped", "person"))
    records = put(records, place + 1, stopped)[: place + 2]
    await decided(seen, put(records, place + after, STOP))


async def test_who_takes_the_place_of_another_while_a_stop_is_recorded_takes_it_again(fast: Team, seen: Seen) -> None:
    records = await one_then_two(fast, seen, {"run": "true"})
    begun = first(records, "two", AgentStateChanged, state="RUNNING")
    records = put(records, begun + 1, ("two", AgentStateChanged("STOPPING", "enough (ada)", by="person")))[: begun + 2]
    await decided(seen, put(records, first(records, "two", AgentStateChanged, state="STARTING"), STOP))


async def test_a_step_that_was_begun_while_a_stop_was_recorded_is_begun_again(fast: Team, seen: Seen) -> None:
    records = await one_then_two(fast, seen, "a")
    begun = first(records, "one", StepIntent)
    records = put(records, begun + 1, ("one", AgentStateChanged("STOPPING", "enough (ada)", by="person")))[: begun + 2]
    await decided(seen, put(records, first(records, "one", TaskStateChanged, state="RUNNING"), STOP))


async def test_a_step_that_was_begun_before_its_pause_came_through_is_begun_again(fast: Team, seen: Seen) -> None:
    records = await one_then_two(fast, seen, "a", "b")
    begun = first(records, "one", StepIntent, 2)
    records = put(records[: begun + 2], begun + 1, PLACED, PAUSING)[: begun + 3]
    await decided(seen, put(records, first(records, "one", TaskStateChanged, state="SUCCEEDED"), PAUSE))


async def test_who_came_to_rest_while_its_hold_was_lifted_rests_again(fast: Team, seen: Seen) -> None:
    records = await one_then_two(fast, seen, "a", "b")
    begun = first(records, "one", TaskStateChanged, 2, state="RUNNING")
    records = put(records, begun + 1, LIFTED, PAUSED, RUNNING)
    await decided(seen, put(records, begun, PAUSE, PLACED, PAUSING, RESUME))


async def test_who_rests_for_a_moment_keeps_its_place(fast: Team, seen: Seen) -> None:
    records = await one_then_two(fast, seen, "a", "b")
    begun = first(records, "one", TaskStateChanged, 2, state="RUNNING")
    records = put(records, begun + 1, RESUME, PAUSED, LIFTED, RUNNING)
    await decided(seen, put(records, begun, PAUSE, PLACED, PAUSING))


class Requests(Lifecycle):
    """The same sequences by requests in the journal, as people make them; what is recorded is decided again."""

    different: ClassVar[list[Any]] = []

    def _submit(self, verb: str, name: str) -> None:
        async def submit() -> None:
            journal = self.runtime.journal
            await journal.submit(self.session.context.id, verb, agent=name, arguments={}, by=("ada", "so be it"))
            await asyncio.sleep(0.6)

        self.run(submit())

    @rule(name=NAMES)
    @precondition(lambda self: not self.over)
    def pause(self, name: str) -> None:
        self._submit("pause", name)

    @rule(name=NAMES)
    @precondition(lambda self: not self.over)
    def resume(self, name: str) -> None:
        self._submit("resume", name)

    @rule(name=NAMES)
    @precondition(lambda self: not self.over)
    def stop(self, name: str) -> None:
        self._submit("stop", name)

    @rule(name=NAMES)
    @precondition(lambda self: not self.over)
    def retry(self, name: str) -> None:
        self._submit("retry", name)

    def teardown(self) -> None:
        """As above; then decided again."""
        journal, run = self.runtime.journal, self.session.context.id
        super().teardown()
        found = again(journal, run, self.tool)
        assert found.same, found.divergences


@pytest.mark.slow
def test_any_sequence_of_requests_and_ends_of_the_process_is_decided_the_same() -> None:
    every = list(HealthCheck)
    profile = settings(
        max_examples=30,
        stateful_step_count=12,
        deadline=None,
        suppress_health_check=every,
        database=None,
        derandomize=True,
        print_blob=False,
    )
    run_state_machine_as_test(Requests, settings=profile)
    illegal.clear()


@pytest.mark.parametrize("who", ["one", ""])
@pytest.mark.parametrize("verb", ["stop", "pause"])
@pytest.mark.parametrize("turns", range(2, 60, 6))
async def test_what_an_agent_began_while_a_request_was_recorded_is_decided_the_same(
    fast: Team, seen: Seen, turns: int, verb: str, who: str
) -> None:
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent(tasks=["a", "b", "c", "d"]), agent("two", ["a", "b", "c", "d"]))
        run = asyncio.create_task(session.run())
        await settle(turns)
        await runtime.journal.submit(session.context.id, verb, agent=who, arguments={}, by=("ada", "enough"))
        poke(runtime.state, session.context.id)
        if verb == "pause":
            await eventually(lambda: run.done() or session.manager.state(ONE).status is AgentStatus.PAUSED)
            await runtime.journal.submit(session.context.id, "stop", agent="", arguments={}, by=("ada", "enough"))
        await run
    await asyncio.to_thread(same, [fast], seen)


# --- what must not be called the same ------------------------------------------------------------------------------


async def test_a_stall_that_is_not_one_is_told(slow_motion: Team, clock: ManualClock, seen: Seen) -> None:
    await supervision.test_an_agent_that_stalls_is_started_again(slow_motion, clock)
    (journal,) = seen
    records = journal.read(journal.runs()[0])
    found = next(n for n, r in enumerate(records) if isinstance(r.event, HealthChanged))
    early = [replace(r, at=records[found - 1].at) if n >= found else r for n, r in enumerate(records)]
    terms = Terms(tools=Toolbox(slow_motion.tools))
    told = await asyncio.to_thread(replay, early, journal.blob, terms)
    assert not told.same


async def test_a_policy_that_is_not_kept_is_told(slow_motion: Team, seen: Seen) -> None:
    """An agent that failed at its first crash although it was to be started again."""
    supervision.with_door(slow_motion, Door(breaks=9), restart="never")
    run = (await slow_motion.run(agent())).run
    (journal,) = seen
    first, *rest = journal.read(run)
    options: Any = first.event
    changed = {**options.options["execution"], "restart": "on_failure"}
    records = [replace(first, event=replace(options, options={**options.options, "execution": changed})), *rest]
    terms = Terms(tools=Toolbox(slow_motion.tools))
    (divergence,) = (await asyncio.to_thread(replay, records, journal.blob, terms)).divergences
    assert divergence.record is not None and isinstance(divergence.record.event, StepFailed)
    assert isinstance(divergence.now, AgentStateChanged) and divergence.now.state == "BACKOFF"
