"""Deciding a recorded run once more: the same follows from the same record, and nothing else does."""

from __future__ import annotations

import asyncio
import heapq
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, ask, call, eventually, fail, succeed, survived
from toka.config.settings import ExecutionConfig
from toka.core.clock import SystemClock
from toka.core.ids import AgentName
from toka.errors import JournalCorrupt
from toka.events.event import (
    AgentStateChanged,
    Event,
    ExecutorAttached,
    ObjectiveChanged,
    OutputsMade,
    RunStateChanged,
    StepDenied,
    StepDone,
    StepFailed,
    StepIntent,
    TaskStateChanged,
)
from toka.events.lifecycle import AgentStatus, RunStatus
from toka.events.record import Record
from toka.journal.database import FILE
from toka.journal.sqlite import SqliteReader
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.replay import Replayed, Terms, replay
from toka.orchestration.schedule import Schedule
from toka.runtime.task import TaskExecutor

DRIVER = Path(__file__).parents[1] / "survival.py"
WRITES = {"grant": ["filesystem-write"]}
TOUCH = {"run": "echo x >> touched", "effect": "idempotent"}
LOOK = {"default": [call("list_dir"), succeed("looked")]}
NEEDED = {"dependencies": {"required": ["one"]}}


def read(folder: Path, number: int = 0) -> tuple[list[Record], Callable[[str], bytes]]:
    """The records of a run, and its large values, held in memory."""
    reader = SqliteReader(folder / "state", SystemClock())
    return reader.read(reader.runs()[number]), reader.blob


def replayed(team: Team, change: Callable[[Record], Sequence[Record]] | None = None) -> Replayed:
    records, blob = read(team.folder)
    if change is not None:
        records = [new for record in records for new in change(record)]
    return replay(records, blob, Terms())


def changing(kind: type[Any], one: Callable[[Any], Event | None], stream: str = "one") -> Any:
    """Changes, or with None takes away, the first record of a kind."""
    seen: list[int] = []

    def change(record: Record) -> list[Record]:
        if seen or record.stream != stream or not isinstance(record.event, kind):
            return [record]
        new = one(record.event)
        if new is record.event:
            return [record]
        seen.append(record.id)
        return [] if new is None else [replace(record, event=new)]

    return change


def ran(team: Team, script: Any, *configs: Any) -> Any:
    team.script = script
    team.__post_init__()
    return asyncio.run(team.run(*configs))


def test_a_completed_run_is_decided_the_same_without_its_workspace(team: Team) -> None:
    script = {
        "default": [
            call("write_file", path="a.txt", content="1"),
            call("write_file", path="../out", content="1"),
            call("nonsense"),
            succeed("written", outputs={"count": 3}),
        ]
    }
    flow = {
        "outputs": {
            "count": {"type": "integer", "source": "report"},
            "text": {"type": "text", "source": "file", "path": "a.txt"},
        }
    }
    first = agent("one", flow=flow, objectives=[{"description": "it is there", "check": "test -e a.txt"}], **WRITES)
    second = agent("two", ["Use ${one.count} and ${one.text}"], **NEEDED)
    assert ran(team, script, first, second).exit_code in (0, 1)
    before = (team.folder / "state" / FILE).read_bytes()
    shutil.rmtree(team.work)
    found = replayed(team)
    assert found.same and not found.unreached, found.divergences
    assert (found.agents, found.lives, found.state.ended) == (2, 1, True)
    assert (team.folder / "state" / FILE).read_bytes() == before
    assert not team.work.exists()


def test_every_step_counts_once(team: Team) -> None:
    ran(team, LOOK, agent(tasks=[TOUCH, "Look."], **WRITES))
    records, _ = read(team.folder)
    steps = {r.event.step for r in records if isinstance(r.event, StepIntent)}
    assert len(steps) == 4 and replayed(team).steps == 4


@pytest.mark.slow
def test_a_failed_run_with_retries_and_a_skipped_agent_is_decided_the_same(team: Team) -> None:
    team.execution = {"task_retries": 2, "retry_base_s": 0.01}
    script = {"default": [fail("no"), fail("still no"), {"error": "unavailable"}, fail("never")]}
    assert ran(team, script, agent(), agent("two", **NEEDED)).status is RunStatus.FAILED
    assert replayed(team).same


def test_limits_that_were_met_are_met_again(team: Team) -> None:
    ran(
        team,
        {"default": [call("list_dir"), call("list_dir"), succeed()]},
        agent(limits={"max_tool_calls": 1}, **WRITES),
    )
    records, _ = read(team.folder)
    assert any(isinstance(r.event, AgentStateChanged) and r.event.why == "limit" for r in records)
    assert replayed(team).same


@pytest.mark.slow
def test_time_that_was_up_is_up_again(team: Team) -> None:
    slow = {"run": "sleep 5", "timeout": "1s", "effect": "idempotent", "retries": 1}
    assert ran(team, LOOK, agent(tasks=[slow], **WRITES)).status is RunStatus.FAILED
    assert replayed(team).same


@pytest.mark.slow
async def test_a_paused_resumed_and_stopped_run_is_decided_the_same(team: Team) -> None:
    step = "[ -e go ] || { echo x >> steps; sleep 0.03; }"
    tasks = [{"id": f"t{n}", "run": step, "effect": "idempotent"} for n in range(300)]
    async with team.open() as runtime:
        session = await team.start(runtime, agent(tasks=tasks, **WRITES), agent("two", **NEEDED))
        running = asyncio.create_task(session.run())
        await eventually((team.work / "steps").exists)
        for verb, then in (("pause", "PAUSED"), ("resume", "RUNNING"), ("pause", "PAUSED"), ("stop", "STOPPED")):
            await ask(team, session.context.id, (verb, "one"))
            await eventually(lambda: session.manager.state(session.plan.graph.order[0]).status.value == then)  # noqa: B023
        result = await running
        await session.context.recorder.close()
    assert result.status is RunStatus.STOPPED
    found = await asyncio.to_thread(replayed, team)
    assert found.same, found.divergences


@pytest.mark.slow
async def test_a_pause_in_the_moment_between_two_steps_is_one_again(team: Team) -> None:
    """The agent finds itself held where it would have gone on: its next step must not be taken before the pause."""
    one = AgentName("one")
    async with team.open() as runtime:
        session = await team.start(runtime, agent(tasks=[TOUCH, TOUCH, TOUCH], **WRITES))
        pauses: list[asyncio.Task[None]] = []

        def listen(record: Record) -> None:
            event = record.event
            if isinstance(event, TaskStateChanged) and (event.task, event.state) == ("task-2", "RUNNING"):
                pauses.append(asyncio.create_task(session.manager.pause(one, "wait", "ada")))

        session.context.recorder.subscribe(listen)
        running = asyncio.create_task(session.run())
        await eventually(lambda: session.manager.state(one).status is AgentStatus.PAUSED)
        await session.manager.resume(one, "go on", "ada")
        assert (await running).status is RunStatus.COMPLETED
        await session.context.recorder.close()
    found = await asyncio.to_thread(replayed, team)
    assert found.same, found.divergences


@pytest.mark.slow
async def test_a_pause_that_a_resumption_lifts_is_lifted_again(team: Team) -> None:
    one = AgentName("one")
    async with team.open() as runtime:
        waits = {"run": "until [ -e go ]; do sleep 0.02; done", "effect": "idempotent"}
        session = await team.start(runtime, agent(tasks=[TOUCH, waits, TOUCH], **WRITES))
        running = asyncio.create_task(session.run())
        await eventually((team.work / "touched").exists)
        await ask(team, session.context.id, ("pause", "one"))
        await eventually(lambda: session.manager.state(one).status is AgentStatus.PAUSING)
        (team.work / "go").touch()
        await eventually(lambda: session.manager.state(one).status is AgentStatus.PAUSED)
        await session.shutdown(0.0)
        await running
        await session.context.recorder.close()
        session = await team.resume(runtime, session.context.id)
        assert (await session.run()).status is RunStatus.COMPLETED
        await session.context.recorder.close()
    found = await asyncio.to_thread(replayed, team)
    assert found.same and found.lives == 2, found.divergences


@pytest.mark.slow
async def test_a_stop_that_nobody_was_there_to_carry_out_is_carried_out_again(team: Team) -> None:
    """Whoever only carries it out starts nothing, though something could go on and take its place."""
    team.execution = {"max_concurrent_agents": 1}
    async with team.open() as runtime:
        busy = agent("busy", tasks=[{"run": "sleep 60"}], priority="critical", **WRITES)
        session = await team.start(runtime, busy, agent("one", priority="low"), agent("three", **NEEDED))
        running = asyncio.create_task(session.run())
        await eventually(lambda: team.events(StepIntent))
        await session.shutdown(0.0)
        await running
        await session.context.recorder.close()
        run = session.context.id
        await runtime.journal.submit(run, "stop", agent="one", arguments={}, by=("ada", "enough"))
        session = await OrchestrationEngine(runtime).resume(run, agent=None)
        state = await session.settle()
        await session.context.recorder.close()
        assert not state.ended and state.agents["three"].ended
    found = await asyncio.to_thread(replayed, team)
    assert found.same and found.lives == 2, found.divergences


@pytest.mark.slow
async def test_what_failed_and_was_tried_again_is_decided_the_same(team: Team) -> None:
    once = {"run": "test -e go", "effect": "idempotent"}
    async with team.open() as runtime:
        session = await team.start(runtime, agent(tasks=[once], **WRITES), agent("two", **NEEDED))
        result = await session.run()
        await session.context.recorder.close()
        assert result.status is RunStatus.FAILED
        (team.work / "go").touch()
        await runtime.journal.submit(result.run, "retry", agent="one", arguments={}, by=("ada", "again"))
        session = await team.resume(runtime, result.run)
        assert (await session.run()).status is RunStatus.COMPLETED
        await session.context.recorder.close()
    found = await asyncio.to_thread(replayed, team)
    assert found.same and found.lives == 2, found.divergences


@pytest.mark.slow
async def test_a_run_that_goes_on_is_decided_as_far_as_it_went(team: Team) -> None:
    async with team.open() as runtime:
        session = await team.start(runtime, agent(tasks=[TOUCH, {"run": "sleep 60", "effect": "idempotent"}], **WRITES))
        running = asyncio.create_task(session.run())
        await eventually(
            lambda: any(isinstance(r.event, StepIntent) and r.event.what == "sleep 60" for r in team.records)
        )
        found = await asyncio.to_thread(replayed, team)
        await session.shutdown(0.0)
        await running
        await session.context.recorder.close()
    assert found.same and not found.state.ended and found.steps == 2
    assert (await asyncio.to_thread(replayed, team)).same


def test_what_waits_for_a_person_is_decided_the_same(team: Team) -> None:
    flow = {"approve": {"question": "Ship it?"}}
    result = ran(team, LOOK, agent("ship", tasks=[TOUCH], flow=flow, **WRITES), agent("other", tasks=[TOUCH], **WRITES))
    assert result.status is RunStatus.WAITING
    found = replayed(team)
    assert found.same and found.state.status is RunStatus.WAITING


@pytest.mark.slow
async def test_answers_of_people_are_taken_up_where_they_were(team: Team) -> None:
    flow = {"approve": {"question": "Ship it?"}}
    async with team.open() as runtime:
        session = await team.start(runtime, agent("ship", tasks=[TOUCH], flow=flow, **WRITES), agent("other"))
        result = await session.run()
        await session.context.recorder.close()
        (asked,) = result.state.agents["ship"].asking
        await runtime.journal.submit(
            result.run, "approve", agent="ship", arguments={"approvals": [asked.id]}, by=("ada", "fine")
        )
        session = await team.resume(runtime, result.run)
        assert (await session.run()).status is RunStatus.COMPLETED
        await session.context.recorder.close()
    found = await asyncio.to_thread(replayed, team)
    assert found.same and found.lives == 2, found.divergences


def test_an_agent_for_each_element_is_decided_the_same(team: Team) -> None:
    names = {"outputs": {"names": {"type": "json", "source": "stdout"}}}
    survey = agent("one", tasks=[{"run": 'echo \'["a", "b", "c"]\'', "effect": "idempotent"}], flow=names)
    fan = agent("fix", ["Fix ${item}"], flow={"for_each": "${one.names}", "max_parallel": 2}, **NEEDED)
    assert ran(team, LOOK, survey, fan).status is RunStatus.COMPLETED
    found = replayed(team)
    assert found.same and found.agents == 4


@pytest.mark.slow
def test_killed_and_resumed_runs_are_decided_the_same(tmp_path: Path) -> None:
    kills = [[[at, before], [again, False]] for at, again in ((9, 7), (17, 12), (25, 9), (33, 20)) for before in (0, 1)]
    survived(DRIVER, tmp_path / "killed", [*kills, [[21, 0]], []])
    lives: list[int] = []
    for number in range(len(kills) + 2):
        records, blob = read(tmp_path / "killed" / str(number))
        found = replay(records, blob, Terms())
        assert found.same, found.divergences
        assert found.lives == sum(isinstance(r.event, ExecutorAttached) for r in records)
        lives.append(found.lives)
    assert max(lives) == 3 and min(lives) == 1


@pytest.mark.slow
def test_a_record_that_breaks_off_anywhere_is_decided_up_to_there(team: Team) -> None:
    objectives = [{"description": "right", "check": "test -e a.txt"}]
    script = {
        "agents": {
            "one": {
                "task-1": [succeed()],
                "repair-1": [call("write_file", path="a.txt", content="1"), succeed("mended")],
            }
        },
        "default": [succeed()],
    }
    ran(team, script, agent(objectives=objectives, **WRITES), agent("two", **NEEDED))
    records, blob = read(team.folder)
    assert any(isinstance(r.event, ObjectiveChanged) and r.event.round == 1 for r in records)
    for length in range(3, len(records) + 1):
        found = replay(records[:length], blob, Terms())
        assert found.same and found.last == records[length - 1].id, (length, found.divergences)


# --- what must not be called the same ------------------------------------------------------------------------------


def test_another_tool_result_shows_in_what_the_model_is_told_next(team: Team) -> None:
    ran(team, LOOK, agent(**WRITES))

    def other(event: StepDone) -> Event:
        return event if "/tool/" not in event.step else replace(event, result={"text": "nothing of the kind"})

    found = replayed(team, changing(StepDone, other))
    (d,) = found.divergences
    assert d.stream == "one" and d.record is not None and isinstance(d.record.event, StepIntent)
    assert d.record.event.step == "task-1/1/2/model/0" and d.fields == ("reserved",)


def test_another_output_of_a_command_shows_in_its_report(team: Team) -> None:
    ran(team, LOOK, agent(tasks=[{"run": "echo yes", "effect": "idempotent"}]))
    found = replayed(team, changing(StepDone, lambda e: replace(e, result={**e.result, "output": "no\n"})))
    (d,) = found.divergences
    assert d.record is not None and isinstance(d.record.event, TaskStateChanged) and d.fields == ("report",)


def test_another_reply_of_the_model_leads_elsewhere(team: Team) -> None:
    ran(team, LOOK, agent(**WRITES), agent("two", **NEEDED))

    def other(event: StepDone) -> Event:
        if "/model/" not in event.step:
            return event
        calls = [["call-1-1", "write_file", json.dumps({"path": "x", "content": "y"})]]
        return replace(event, result={**event.result, "calls": calls})

    found = replayed(team, changing(StepDone, other))
    (d,) = found.divergences
    assert d.stream == "one" and d.record is not None and isinstance(d.record.event, StepIntent)
    assert d.record.event.what == "list_dir" and isinstance(d.now, StepIntent) and d.now.what == "write_file"
    assert {"what", "arguments"} <= set(d.fields) and found.unreached == ("two",)


def test_a_denial_that_is_not_in_the_record_any_more_is_missed(team: Team) -> None:
    ran(team, {"default": [call("write_file", path="a", content="b"), succeed()]}, agent(grant=["filesystem-read"]))
    (d,) = replayed(team, changing(StepDenied, lambda _: None)).divergences
    assert isinstance(d.now, StepDenied) and d.record is not None and isinstance(d.record.event, StepIntent)


def test_a_denial_by_another_rule_is_told(team: Team) -> None:
    ran(team, {"default": [call("write_file", path="a", content="b"), succeed()]}, agent(grant=["filesystem-read"]))
    (d,) = replayed(team, changing(StepDenied, lambda e: replace(e, rule="because"))).divergences
    assert d.fields == ("rule",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "other"),
    [
        (TaskStateChanged, lambda e: replace(e, report={"status": "succeeded", "summary": "!"}) if e.report else e),
        (TaskStateChanged, lambda e: replace(e, attempt=2)),
        (ObjectiveChanged, lambda e: replace(e, state="verified") if e.state == "failed" else e),
        (AgentStateChanged, lambda e: replace(e, why="other") if e.state == "FAILED" else e),
        (AgentStateChanged, lambda e: replace(e, reason="other") if e.state == "FAILED" else e),
        (StepIntent, lambda e: replace(e, key="0" * 32)),
        (StepIntent, lambda e: replace(e, arguments={"path": "x"}) if "/tool/" in e.step else e),
        (StepIntent, lambda e: replace(e, messages=[]) if e.messages else e),
        (StepIntent, lambda e: replace(e, rule="none") if "/tool/" in e.step else e),
    ],
)
def test_each_changed_decision_is_named_at_its_record(team: Team, kind: type[Any], other: Any) -> None:
    team.execution = {"repair_rounds": 0}
    ran(team, LOOK, agent(objectives=[{"description": "no", "check": "false"}], **WRITES))
    records, _ = read(team.folder)
    change = changing(kind, other)
    changed = [r.id for r in records if (new := change(r)) and new[0] is not r]
    (d,) = replayed(team, changing(kind, other)).divergences
    assert d.record is not None and [d.record.id] == changed


def test_outputs_that_the_report_does_not_give_are_told(team: Team) -> None:
    flow = {"outputs": {"count": {"type": "integer", "source": "report"}}}
    ran(team, {"default": [succeed("ok", outputs={"count": 3})]}, agent(flow=flow))
    (d,) = replayed(team, changing(OutputsMade, lambda e: replace(e, values={"count": 4}))).divergences
    assert d.fields == ("values",)


def test_figures_and_times_are_no_decisions(team: Team) -> None:
    ran(team, LOOK, agent(**WRITES))

    def other(record: Record) -> list[Record]:
        event = record.event
        if isinstance(event, StepDone):
            event = replace(event, wall_s=event.wall_s + 9, resources={"cpu_s": 7})
        if isinstance(event, ExecutorAttached):
            event = replace(event, pid=1, host="elsewhere")
        return [replace(record, event=event, at=record.at + 5, epoch=9)]

    assert replayed(team, other).same


def test_another_end_of_the_run_is_told(team: Team) -> None:
    ran(team, LOOK, agent())

    def other(event: RunStateChanged) -> Event:
        return replace(event, state="FAILED") if event.state == "COMPLETED" else event

    (d,) = replayed(team, changing(RunStateChanged, other, "")).divergences
    assert d.stream == "" and d.fields == ("state",)


@pytest.mark.slow
def test_more_than_was_recorded_of_a_run_that_is_over_is_told(team: Team) -> None:
    ran(team, {"default": [call("list_dir"), succeed()]}, agent(**WRITES), agent("two"))
    records, blob = read(team.folder)
    last = max(n for n, r in enumerate(records) if r.stream == "two" and isinstance(r.event, StepIntent))
    kept = [r for n, r in enumerate(records) if r.stream != "two" or n < last]
    found = replay(kept, blob, Terms())
    assert not found.same and any(d.stream == "two" for d in found.divergences)


# --- other rules ---------------------------------------------------------------------------------------------------


def test_another_order_of_priorities_is_told(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.execution = {"max_concurrent_agents": 1}
    ran(team, LOOK, agent("one", priority="critical"), agent("two", priority="low"))
    assert replayed(team).same

    def backwards(self: Schedule, name: AgentName) -> None:
        self._known.add(name)
        heapq.heappush(self._ready, (-int(self._graph.configs[name].priority), 0, name))

    monkeypatch.setattr(Schedule, "_push", backwards)
    d = replayed(team).divergences[0]
    assert d.stream == "one" and d.record is not None and isinstance(d.record.event, AgentStateChanged)
    assert d.record.event.state == AgentStatus.STARTING.value and d.now is None
    assert d.instead is not None and d.instead[0] == "two"


def test_fewer_retries_are_told(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    team.execution = {"task_retries": 1, "retry_base_s": 0.01}
    ran(team, {"default": [fail("no"), succeed()]}, agent())
    assert replayed(team).same
    attempts = TaskExecutor._attempts

    async def once(self: TaskExecutor, work: Any, known: Any) -> Any:
        return await attempts(self, replace(work, retries=0), known)

    monkeypatch.setattr(TaskExecutor, "_attempts", once)
    (d,) = replayed(team).divergences
    assert (
        d.record is not None and isinstance(d.record.event, TaskStateChanged) and d.record.event.state == "RETRY_WAIT"
    )
    assert isinstance(d.now, TaskStateChanged) and d.now.state == "FAILED"


def test_other_prompts_are_told(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(team, LOOK, agent())
    monkeypatch.setattr("toka.runtime.executor.task_prompt", lambda *_: "Do something else.")
    (d,) = replayed(team).divergences
    assert d.fields == ("messages", "reserved")


def test_a_record_without_its_beginning_is_refused(team: Team) -> None:
    ran(team, LOOK, agent())
    records, blob = read(team.folder)
    with pytest.raises(JournalCorrupt, match="no first record"):
        replay(records[1:], blob, Terms())


def test_a_failure_of_the_model_is_served_as_it_was(team: Team) -> None:
    team.execution = {"task_retries": 0}
    ran(team, {"default": [{"error": "refused"}]}, agent())
    records, _ = read(team.folder)
    assert any(isinstance(r.event, StepFailed) for r in records)
    assert replayed(team).same
    assert ExecutionConfig().task_retries, "the recorded settings count, and not these"
