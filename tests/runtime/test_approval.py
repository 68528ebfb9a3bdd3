"""Questions to a person: asked once, bound to what is shown, answered once, unanswered after their time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness import Team, agent, ask, call, eventually, fail, succeed
from toka.core.clock import SystemClock
from toka.core.ids import AgentName
from toka.events.event import StepDenied, StepIntent, TaskStateChanged
from toka.events.flow import ApprovalAnswered, ApprovalAsked
from toka.events.lifecycle import AgentStatus, TaskStatus
from toka.journal.poke import poke
from toka.journal.sqlite import SqliteJournal
from toka.testing import ManualClock

WRITE = ["filesystem-write"]
ASK = '[policy]\nask = ["write_file(secret*)"]\n'
DAY = 86_400.0


def ship(question: str = "Ship it?", run: str = "touch shipped", **more: Any) -> Any:
    flow = {"approve": {"question": question, **more.pop("approve", {})}, **more.pop("flow", {})}
    return agent("ship", tasks=[{"run": run}], grant=WRITE, flow=flow, **more)


async def answer(
    team: Team, run: str, verb: str, ids: list[str], name: str = "ship", at: float | None = None, who: str = "ada"
) -> None:
    """As `toka approve` and `toka deny` do it."""
    arguments = {"approvals": ids, "at": at if at is not None else (team.clock or SystemClock()).now()}
    journal = SqliteJournal(team.folder / "state", SystemClock())
    await journal.submit(run, verb, agent=name, arguments=arguments, by=(who, "as agreed"))  # type: ignore[arg-type]
    await journal.aclose()
    poke(team.folder / "state", run)  # type: ignore[arg-type]


async def go_on(team: Team, run: Any) -> Any:
    async with team.open() as runtime:
        session = await team.resume(runtime, run)
        result = await session.run()
        await session.context.recorder.close()
        return result


def open_ids(result: Any, name: str = "ship") -> list[str]:
    return [each.id for each in result.state.agents[name].asking]


# ---- before an agent's first task


async def test_an_agent_asks_before_its_first_task_and_the_run_waits(team: Team) -> None:
    team.secrets = {"key": "hunter2"}
    inputs = {"inputs": {"area": "docs"}, "env": {"B": "x", "A": "${secret:key}"}}
    checks = [{"description": "there", "check": "test -e ${inputs.area}"}]
    spec = ship("Ship ${inputs.area}?", "touch ${inputs.area}", flow=inputs, limits={"max_cost": 2}, objectives=checks)
    result = await team.run(spec)
    assert (result.exit_code, result.status.value, result.reason) == (7, "WAITING", "ship: Ship docs?")
    assert not list(team.work.iterdir()), "nothing was done"
    (asked,) = team.events(ApprovalAsked)
    assert (asked.question, asked.task, asked.within_s) == ("Ship docs?", "", 7 * DAY)
    assert asked.shown == {
        "may": ["filesystem-read", "filesystem-write"],
        "tasks": ["run: touch docs"],
        "checks": ["test -e docs"],
        "variables": {"A": "${secret:key}", "B": "x"},
        "cost_usd": 2.0,
    }
    state = result.state.agents["ship"]
    assert (state.status, state.reason, state.why) == (AgentStatus.WAITING, "Ship docs?", "approval")
    assert not state.tasks
    assert result.to_json()["agents"]["ship"]["approvals"] == [asked.approval] == open_ids(result)


async def test_approved_it_goes_on_and_is_not_asked_again(team: Team) -> None:
    result = await team.run(ship())
    await answer(team, result.run, "approve", open_ids(result))
    result = await go_on(team, result.run)
    assert result.exit_code == 0, result.reason
    assert (team.work / "shipped").exists()
    assert len(team.events(ApprovalAsked)) == 1
    (given,) = team.events(ApprovalAnswered)
    assert (given.answer, given.author, given.reason) == ("approved", "ada", "as agreed")


async def test_denied_it_is_stopped_and_what_needs_it_is_skipped(team: Team) -> None:
    after = agent("after", tasks=[{"run": "true"}], dependencies={"required": {"ship": {}}})
    result = await team.run(ship(), after)
    await answer(team, result.run, "deny", open_ids(result))
    result = await go_on(team, result.run)
    state = result.state.agents["ship"]
    assert (state.status, state.reason, state.why) == (AgentStatus.STOPPED, "denied by ada: as agreed", "denied")
    assert state.tasks["task-1"].status is TaskStatus.SKIPPED
    assert result.state.agents["after"].status is AgentStatus.SKIPPED
    assert (result.exit_code, result.reason) == (8, "ship: denied by ada: as agreed")
    assert not (team.work / "shipped").exists()


async def test_it_goes_on_at_once_while_others_work(team: Team) -> None:
    other = agent("other", tasks=[{"run": "until [ -e shipped ]; do sleep 0.02; done", "effect": "pure"}], grant=WRITE)
    async with team.open() as runtime:
        session = await team.start(runtime, ship(), other)
        running = asyncio.create_task(session.run())
        (asked,) = await eventually(lambda: team.events(ApprovalAsked))
        await eventually(lambda: session.context.recorder.state.agents["ship"].status is AgentStatus.WAITING)
        await answer(team, session.context.id, "approve", [asked.approval])
        result = await running
        await session.context.recorder.close()
    assert result.exit_code == 0, result.reason
    assert len(team.events(ApprovalAsked)) == 1


async def test_an_answer_that_comes_before_the_agent_has_come_to_rest_counts(fast: Team) -> None:
    """The question is answered in the moment in which it is recorded."""
    async with fast.open() as runtime:
        session = await fast.start(runtime, agent("ship", flow={"approve": {"question": "Go?"}}))
        recorder = session.context.recorder
        asks = asyncio.Event()
        recorder.subscribe(lambda r: asks.set() if isinstance(r.event, ApprovalAsked) else None)

        async def at_once() -> None:
            await asks.wait()
            (asked,) = fast.events(ApprovalAsked)
            given = {"approvals": [asked.approval]}
            command = await runtime.journal.submit(
                session.context.id, "approve", agent="ship", arguments=given, by=("a", "")
            )
            (found,) = [c for c in runtime.journal.commands(session.context.id) if c.id == command]
            await session._apply(found)  # pyright: ignore[reportPrivateUsage]

        answering = asyncio.create_task(at_once())
        result = await session.run()
        await answering
        assert result.exit_code == 0, result.reason


async def test_an_answer_to_another_question_changes_nothing(team: Team) -> None:
    result = await team.run(ship())
    await answer(team, result.run, "approve", ["0123456789abcdef"])
    result = await go_on(team, result.run)
    assert result.exit_code == 7
    assert not team.events(ApprovalAnswered)
    assert len(team.events(ApprovalAsked)) == 1, "the same question is asked once"


async def test_the_first_answer_counts(team: Team) -> None:
    result = await team.run(ship())
    for verb, who in (("deny", "ada"), ("approve", "bob")):
        await answer(team, result.run, verb, open_ids(result), who=who)
    result = await go_on(team, result.run)
    assert result.state.agents["ship"].reason == "denied by ada: as agreed"
    assert len(team.events(ApprovalAnswered)) == 1


async def test_what_is_shown_is_what_was_agreed_to(team: Team) -> None:
    """Other rights by the time it goes on: a new question."""
    result = await team.run(ship())
    await answer(team, result.run, "approve", open_ids(result))
    (team.folder / "toka.toml").write_text('[policy]\nallow = ["filesystem-write: docs"]\n')
    (team.work / "docs").mkdir()
    result = await go_on(team, result.run)
    first, second = team.events(ApprovalAsked)
    assert result.exit_code == 7
    assert (first.question, first.approval == second.approval) == (second.question, False)
    assert open_ids(result) == [second.approval]


async def test_each_instance_asks_for_itself_and_keeps_its_place_in_the_row(team: Team) -> None:
    flow = {"for_each": ["a", "b", "c"], "max_parallel": 1}
    result = await team.run(ship("Mend ${item}?", "mkdir lock; sleep 0.1; rmdir lock; touch ${item}", flow=flow))
    names = ["ship[1]", "ship[2]", "ship[3]"]
    assert result.reason == "ship[1]: Mend a?; ship[2]: Mend b?; ship[3]: Mend c?"
    for name, verb in zip(names, ("approve", "deny", "approve"), strict=True):
        await answer(team, result.run, verb, open_ids(result, name), name)
    result = await go_on(team, result.run)
    assert {p.name for p in team.work.iterdir()} == {"a", "c"}
    assert [result.state.agents[n].status.value for n in names] == ["COMPLETED", "STOPPED", "COMPLETED"]
    assert result.state.agents["ship"].status is AgentStatus.STOPPED


async def test_answered_while_it_lives_instances_still_work_one_at_a_time(team: Team) -> None:
    flow = {"for_each": ["a", "b", "c"], "max_parallel": 1}
    other = agent("other", tasks=[{"run": "until [ -e c ]; do sleep 0.02; done", "effect": "pure"}], grant=WRITE)
    async with team.open() as runtime:
        line = "mkdir lock && sleep 0.2 && rmdir lock && touch ${item}"
        session = await team.start(runtime, ship("Mend ${item}?", line, flow=flow), other)
        running = asyncio.create_task(session.run())
        await eventually(lambda: len(team.events(ApprovalAsked)) == 3)
        for number in (1, 2, 3):
            (asked,) = team.events(ApprovalAsked, f"ship[{number}]")
            await answer(team, session.context.id, "approve", [asked.approval], f"ship[{number}]")
        result = await running
        await session.context.recorder.close()
    assert result.exit_code == 0, result.reason


async def test_the_time_of_the_person_is_not_the_agents(team: Team) -> None:
    clock = team.clock = ManualClock()
    result = await team.run(ship(limits={"timeout": "1h"}))
    clock.jump(3 * DAY)
    await answer(team, result.run, "approve", open_ids(result))
    result = await go_on(team, result.run)
    assert result.exit_code == 0, result.reason
    assert result.state.agents["ship"].active_s < 60


# ---- time runs out


@pytest.mark.parametrize(("approve", "within"), [({"expires": "2h"}, 7_200.0), ({}, 7 * DAY)])
async def test_a_question_nobody_answered_fails_the_agent_and_is_no_denial(
    team: Team, approve: dict[str, str], within: float
) -> None:
    clock = team.clock = ManualClock()
    result = await team.run(ship(approve=approve))
    clock.jump(within - 1)
    assert (await go_on(team, result.run)).exit_code == 7
    clock.jump(1)
    result = await go_on(team, result.run)
    state = result.state.agents["ship"]
    words = "2h" if approve else "7d"
    assert (state.status, state.reason, state.why) == (
        AgentStatus.FAILED, f"nobody answered within {words}", "unanswered",
    )  # fmt: skip
    assert result.exit_code == 1
    (given,) = team.events(ApprovalAnswered)
    assert (given.answer, given.author) == ("unanswered", "")


async def test_time_runs_out_while_the_run_lives(team: Team) -> None:
    clock = team.clock = ManualClock()
    other = agent("other", tasks=[{"run": "until [ -e over ]; do sleep 0.02; done"}], grant=WRITE)
    async with team.open() as runtime:
        session = await team.start(runtime, ship(approve={"expires": "2h"}), other)
        running = asyncio.create_task(session.run())
        await eventually(lambda: session.context.recorder.state.agents["ship"].status is AgentStatus.WAITING)
        clock.jump(7_200)
        await eventually(lambda: session.context.recorder.state.agents["ship"].ended)
        (team.work / "over").touch()
        result = await running
        await session.context.recorder.close()
    assert result.state.agents["ship"].reason == "nobody answered within 2h"
    assert result.state.agents["other"].status is AgentStatus.COMPLETED


async def test_a_setting_says_how_long_and_zero_is_for_ever(team: Team) -> None:
    clock = team.clock = ManualClock()
    (team.folder / "toka.toml").write_text("[execution]\napproval_timeout = 0\n")
    result = await team.run(ship())
    clock.jump(1_000 * DAY)
    assert (await go_on(team, result.run)).exit_code == 7
    assert result.state.agents["ship"].asking[0].expires_at is None


async def test_an_answer_given_in_time_counts_though_it_is_taken_up_later(team: Team) -> None:
    clock = team.clock = ManualClock()
    result = await team.run(ship(approve={"expires": "2h"}))
    await answer(team, result.run, "approve", open_ids(result), at=clock.now() + 7_199)
    clock.jump(9_000)
    assert (await go_on(team, result.run)).exit_code == 0


async def test_an_answer_given_too_late_does_not(team: Team) -> None:
    clock = team.clock = ManualClock()
    result = await team.run(ship(approve={"expires": "2h"}))
    await answer(team, result.run, "approve", open_ids(result), at=clock.now() + 7_200)
    clock.jump(9_000)
    assert (await go_on(team, result.run)).state.agents["ship"].why == "unanswered"


# ---- calls that the operator wants to be asked about


def secretive(*calls: dict[str, Any], **tail: Any) -> dict[str, Any]:
    """A model that writes, and reports what it was told last."""
    return {"agents": {"one": {"task-1": [*calls, tail.get("end") or succeed("wrote")]}}}


def writes(text: str = "x", path: str = "secret.txt") -> dict[str, Any]:
    return call("write_file", path=path, content=text)


def asking(team: Team, script: dict[str, Any]) -> None:
    (team.folder / "toka.toml").write_text(ASK)
    team.script = script
    team.__post_init__()


async def test_a_call_waits_for_a_person_and_is_made_once_after_it(team: Team) -> None:
    asking(team, secretive(writes("first", "plain.txt"), writes()))
    result = await team.run(agent(grant=WRITE))
    assert result.exit_code == 7
    assert result.reason == "one: task task-1: write_file: secret.txt?"
    state = result.state.agents["one"]
    assert (state.status, state.why) == (AgentStatus.WAITING, "approval")
    assert state.tasks["task-1"].status is TaskStatus.AWAITING_APPROVAL
    assert [p.name for p in team.work.iterdir()] == ["plain.txt"], "the call was not made"
    (asked,) = team.events(ApprovalAsked)
    assert asked.shown == {
        "tool": "write_file",
        "arguments": {"path": "secret.txt", "content": "x"},
        "rule": "policy: ask write_file(secret*)",
        "step": "task-1/1/2/tool/0",
    }
    calls = len(team.model.requests)
    await answer(team, result.run, "approve", open_ids(result, "one"), "one")
    result = await go_on(team, result.run)
    assert result.exit_code == 0, result.reason
    assert (team.work / "secret.txt").read_text() == "x"
    assert len(team.model.requests) == calls + 1, "what was recorded is not asked of the model again"
    (made,) = [e for e in team.events(StepIntent) if e.step == "task-1/1/2/tool/0"]
    assert made.rule == "policy: ask write_file(secret*), approved by ada"
    assert len(team.events(ApprovalAsked)) == 1
    assert result.state.agents["one"].tool_calls == 2
    states = [e.state for e in team.events(TaskStateChanged)]
    assert states == ["RUNNING", "AWAITING_APPROVAL", "RUNNING", "SUCCEEDED"]


async def test_denied_the_model_is_told_and_goes_on(team: Team) -> None:
    asking(team, secretive(writes()))
    result = await team.run(agent(grant=WRITE))
    await answer(team, result.run, "deny", open_ids(result, "one"), "one")
    result = await go_on(team, result.run)
    assert result.exit_code == 0, result.reason
    (refused,) = team.events(StepDenied)
    assert (refused.rule, refused.reason) == ("policy: ask write_file(secret*)", "denied by ada: as agreed")
    assert "denied by ada: as agreed" in team.model.requests[-1].messages[-1].text
    assert "denied: denied" not in team.model.requests[-1].messages[-1].text
    assert not (team.work / "secret.txt").exists()


async def test_the_same_call_a_second_time_is_asked_about_again(team: Team) -> None:
    asking(team, secretive(writes(), writes()))
    result = await team.run(agent(grant=WRITE))
    await answer(team, result.run, "approve", open_ids(result, "one"), "one")
    result = await go_on(team, result.run)
    assert result.exit_code == 7
    first, second = team.events(ApprovalAsked)
    assert (first.question, first.approval == second.approval) == (second.question, False)
    await answer(team, result.run, "approve", [second.approval], "one")
    assert (await go_on(team, result.run)).exit_code == 0


def _same_id(*_: object) -> str:
    return "0" * 16


async def test_an_answer_to_another_call_under_the_same_id_is_a_denial(team: Team, monkeypatch: Any) -> None:
    """Whoever found two calls with one id gains nothing by it."""
    monkeypatch.setattr("toka.runtime.approval.Ask.id", _same_id)
    asking(team, secretive(writes("harmless"), writes("harm")))
    result = await team.run(agent(grant=WRITE))
    await answer(team, result.run, "approve", ["0" * 16], "one")
    result = await go_on(team, result.run)
    assert (team.work / "secret.txt").read_text() == "harmless"
    (refused,) = team.events(StepDenied)
    assert "another question" in refused.reason


async def test_nobody_answers_about_a_call(team: Team) -> None:
    clock = team.clock = ManualClock()
    asking(team, secretive(writes()))
    team.execution = {"approval_timeout_s": 7_200.0, "task_retries": 3}
    result = await team.run(agent(grant=WRITE))
    clock.jump(7_200)
    result = await go_on(team, result.run)
    task = result.state.agents["one"].tasks["task-1"]
    assert (task.status, task.reason, task.why) == (TaskStatus.FAILED, "nobody answered within 2h", "unanswered")
    state = result.state.agents["one"]
    assert (state.status, state.reason, state.why) == (
        AgentStatus.FAILED, "task task-1: nobody answered within 2h", "unanswered",
    )  # fmt: skip
    assert not team.events(StepDenied), "nobody said no"
    assert result.exit_code == 1


async def test_large_arguments_are_bound_as_a_whole(team: Team) -> None:
    asking(team, secretive(writes("x" * 40_000)))
    result = await team.run(agent(grant=WRITE))
    (asked,) = team.events(ApprovalAsked)
    assert set(asked.shown["arguments"]) == {"cut", "characters", "sha256"}
    await answer(team, result.run, "approve", open_ids(result, "one"), "one")
    assert (await go_on(team, result.run)).exit_code == 0
    assert len((team.work / "secret.txt").read_text()) == 40_000


async def test_two_tasks_ask_at_one_time_and_each_answer_frees_its_own(team: Team) -> None:
    script = {"agents": {"one": {"a": [writes("1", "secret.a"), succeed()], "b": [writes("2", "secret.b"), succeed()]}}}
    asking(team, script)
    team.execution = {"max_concurrent_tasks": 2}
    tasks = [{"id": "a", "description": "A."}, {"id": "b", "description": "B."}]
    result = await team.run(agent(tasks=tasks, grant=WRITE))
    first, second = result.state.agents["one"].asking
    await answer(team, result.run, "approve", [first.id], "one")
    result = await go_on(team, result.run)
    assert result.exit_code == 7
    assert [each.id for each in result.state.agents["one"].asking] == [second.id]
    assert {p.name for p in team.work.iterdir()} == {f"secret.{first.task}"}
    await answer(team, result.run, "approve", [second.id], "one")
    assert (await go_on(team, result.run)).exit_code == 0


async def test_a_rule_that_is_gone_by_then_asks_nobody(team: Team) -> None:
    asking(team, secretive(writes(), end=fail("no luck")))
    team.execution = {"task_retries": 1, "retry_base_s": 0.01}
    team.script = {"agents": {"one": {"task-1": [writes(), fail("no luck"), succeed("better")]}}}
    team.__post_init__()
    result = await team.run(agent(grant=WRITE))
    (team.folder / "toka.toml").write_text("")
    result = await go_on(team, result.run)
    assert result.exit_code == 0, result.reason
    states = [e.state for e in team.events(TaskStateChanged)]
    assert states == ["RUNNING", "AWAITING_APPROVAL", "RUNNING", "RETRY_WAIT", "RUNNING", "SUCCEEDED"]


async def test_a_stop_ends_an_agent_that_waits(team: Team) -> None:
    asking(team, secretive(writes()))
    result = await team.run(agent(grant=WRITE))
    journal = SqliteJournal(team.folder / "state", SystemClock())
    await journal.submit(result.run, "stop", agent="one", arguments={}, by=("ada", "enough"))
    await journal.aclose()
    result = await go_on(team, result.run)
    state = result.state.agents["one"]
    assert state.status is AgentStatus.STOPPED
    assert not state.asking
    assert state.tasks["task-1"].status is TaskStatus.CANCELLED


async def test_a_stop_ends_an_agent_that_waits_while_others_work(team: Team) -> None:
    other = agent("other", tasks=[{"run": "until [ -e over ]; do sleep 0.02; done"}], grant=WRITE)
    async with team.open() as runtime:
        session = await team.start(runtime, ship(), other)
        state = session.context.recorder
        running = asyncio.create_task(session.run())
        await eventually(lambda: state.state.agents["ship"].status is AgentStatus.WAITING)
        await ask(team, session.context.id, ("stop", "ship"))
        await eventually(lambda: state.state.agents["ship"].status is AgentStatus.STOPPED)
        (team.work / "over").touch()
        assert (await running).exit_code == 8
        await session.context.recorder.close()


async def test_a_stop_in_the_moment_of_asking_cancels_the_task(team: Team) -> None:
    asking(team, secretive(writes()))
    async with team.open() as runtime:
        session = await team.start(runtime, agent(grant=WRITE))
        stops: list[asyncio.Task[None]] = []

        def listen(record: Any) -> None:
            if isinstance(record.event, ApprovalAsked):
                stops.append(asyncio.create_task(session.manager.stop(AgentName("one"), "enough", "ada")))

        session.context.recorder.subscribe(listen)
        result = await session.run()
        await asyncio.gather(*stops)
        await session.context.recorder.close()
    state = result.state.agents["one"]
    assert (state.status, state.tasks["task-1"].status) == (AgentStatus.STOPPED, TaskStatus.CANCELLED)
