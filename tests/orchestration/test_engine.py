from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from harness import ALWAYS, Team, agent, ask, call, eventually, fail, memory, succeed
from toka.core.ids import AgentName
from toka.errors import ConfigError, ModelUnavailable, UsageError
from toka.events.event import AgentStateChanged, CommandApplied, RunStateChanged, StepIntent, TaskStateChanged
from toka.events.lifecycle import AgentStatus, RunStatus
from toka.llm.model import ModelRequest
from toka.llm.script import ScriptedReply
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.orchestration.session import RunSession
from toka.testing import settle

REPORT = (("report", '{"status": "succeeded", "summary": "done"}'),)


class Crowd:
    """A model that notes how many of its calls overlap; each takes `seconds`."""

    name = "scripted:test"

    def __init__(self, seconds: float = 0.005) -> None:
        self.now = self.most = self.calls = 0
        self.seconds = seconds

    def __call__(self, request: ModelRequest) -> ScriptedReply:
        self.calls += 1
        return ScriptedReply(calls=REPORT)

    async def request(self, inner: Any, request: ModelRequest) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
            return await inner(request)
        finally:
            self.now -= 1


def crowded(team: Team) -> Crowd:
    crowd = Crowd()
    team.script = crowd
    team.__post_init__()
    inner = team.model.request
    team.model.request = lambda request: crowd.request(inner, request)  # type: ignore[method-assign]
    return crowd


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_agents_run_at_a_time_than_allowed(tmp_path: Path, limit: int) -> None:
    team = Team(tmp_path, journal=memory, execution={"max_concurrent_agents": limit})
    crowd = crowded(team)
    result = await team.run(*(agent(f"a{n}") for n in range(9)))
    assert result.exit_code == 0 and crowd.most == limit and crowd.calls == 9


@pytest.mark.parametrize("limit", [1, 2])
async def test_no_more_tasks_of_an_agent_run_at_a_time_than_allowed(tmp_path: Path, limit: int) -> None:
    team = Team(tmp_path, journal=memory, execution={"max_concurrent_tasks": limit})
    crowd = crowded(team)
    assert (await team.run(agent(tasks=list("abcdef")))).exit_code == 0
    assert crowd.most == limit


async def test_what_a_dependency_reported_reaches_the_prompts_of_its_dependents(tmp_path: Path) -> None:
    script = {"agents": {"first": {"*": [succeed("built 7 crates", artifacts=["out.bin"])]}, "*": {"*": [succeed()]}}}
    team = Team(tmp_path, script, journal=memory)
    await team.run(agent("second", dependencies={"required": ["first"]}), agent("first"), agent("third"))
    (prompt,) = team.prompts("second", "task-1")
    assert "Reports of the agents you depend on" in prompt
    assert "first: completed" in prompt and "built 7 crates" in prompt and "out.bin" in prompt
    assert "built 7 crates" not in "".join(team.prompts("third", "task-1"))
    order = [r.agent for r in team.model.requests]
    assert order.index(AgentName("first")) < order.index(AgentName("second"))


@pytest.mark.parametrize(
    ("replies", "status", "code", "dependent"),
    [
        ([succeed()], RunStatus.COMPLETED, 0, AgentStatus.COMPLETED),
        ([fail("no", "blocked")], RunStatus.FAILED, 1, AgentStatus.SKIPPED),
        ([{**call("list_dir"), "repeat": True}], RunStatus.FAILED, 6, AgentStatus.SKIPPED),
    ],
)
async def test_the_run_ends_as_its_agents_make_it(
    tmp_path: Path, replies: list[Any], status: RunStatus, code: int, dependent: AgentStatus
) -> None:
    team = Team(tmp_path, {"agents": {"first": {"*": replies}, "*": {"*": [succeed()]}}}, journal=memory)
    result = await team.run(
        agent("first", grant=["filesystem-read"], limits={"max_tool_calls": 2}),
        agent("second", dependencies={"required": ["first"]}),
        agent("third", dependencies={"optional": ["first"]}),
    )
    assert (result.status, result.exit_code) == (status, code)
    assert result.state.agents["second"].status is dependent
    assert result.state.agents["third"].status is AgentStatus.COMPLETED
    if dependent is AgentStatus.SKIPPED:
        assert result.state.agents["second"].reason == "needs first, which ended FAILED"
        assert result.to_json()["agents"]["second"]["error"] == "needs first, which ended FAILED"


async def test_an_agent_that_waits_for_a_person_keeps_the_run_open_though_another_failed(tmp_path: Path) -> None:
    """Otherwise nobody could ever answer it: a run that has ended cannot be resumed."""
    script = {"agents": {"bad": {"*": [fail("no", "blocked")]}}}
    team = Team(tmp_path, script)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("asks", [{"run": "true"}]), agent("bad"))
        intent = StepIntent("task-1/1/1/run/0", "k", "once", "true")
        record = session.context.recorder.record
        await record("asks", AgentStateChanged("STARTING"), AgentStateChanged("RUNNING"))
        await record("asks", TaskStateChanged("task-1", "RUNNING", 1), intent)
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        result = await again.run()
        await again.context.recorder.close()
        assert (result.status, result.exit_code) == (RunStatus.WAITING, 7)
        assert result.state.agents["bad"].status is AgentStatus.FAILED
        assert result.state.agents["asks"].tasks["task-1"].question
        before = len(runtime.journal.read(session.context.id, stream="asks"))
        third = await team.resume(runtime, session.context.id)
        assert (await third.run()).status is RunStatus.WAITING
        asked = [r.event for r in runtime.journal.read(session.context.id, stream="asks")[before:]]
        assert all(isinstance(e, AgentStateChanged) for e in asked), "a question that was asked is not asked again"


async def test_a_run_that_cannot_go_on_here_stays_what_it_was(tmp_path: Path) -> None:
    team = Team(tmp_path)

    async def away(session: RunSession) -> None:
        assert session.plan.graph.configs
        raise ModelUnavailable("the server is away")

    async with team.open() as runtime:
        session = await team.start(runtime, agent("asks", [{"run": "true"}]))
        await session.context.recorder.record("", RunStateChanged("WAITING", "asks: what?"))
        await session.context.recorder.close()
        run, before = session.context.id, runtime.journal.read(session.context.id)
        for _ in range(2):
            with pytest.raises(ModelUnavailable):
                await OrchestrationEngine(runtime).resume(run, ready=away)
        assert runtime.journal.read(run) == before
        again = await team.resume(runtime, run)
        assert (await again.run()).status is RunStatus.COMPLETED
        await again.context.recorder.close()


async def test_without_any_model_all_are_skipped_and_the_exit_code_says_what_is_missing(tmp_path: Path) -> None:
    team = Team(tmp_path, journal=memory)
    needs = agent("b", model="openai:x", dependencies={"required": ["a"]})
    result = await team.run(agent("a", model="openai:x"), needs)
    assert [a.why for a in result.state.agents.values()] == ["no_model", "no_model"]
    assert result.exit_code == 4


async def test_two_runs_in_one_process_do_not_meet(tmp_path: Path) -> None:
    team = Team(tmp_path)
    async with team.open() as runtime:
        engine = OrchestrationEngine(runtime)
        requests = [RunRequest([agent("a"), agent("b")], team.work) for _ in range(2)]
        one, two = await asyncio.gather(*(engine.run(r) for r in requests))
    assert one.run != two.run and (one.exit_code, two.exit_code) == (0, 0)
    assert one.state.agents.keys() == two.state.agents.keys() == {"a", "b"}


@pytest.mark.slow
async def test_a_thousand_agents_all_complete(tmp_path: Path) -> None:
    team = Team(tmp_path, execution={"max_concurrent_agents": 200})
    first = agent("agent-0")
    configs = [first] + [
        first.model_copy(update={"metadata": first.metadata.model_copy(update={"name": f"agent-{n}"})})
        for n in range(1, 1000)
    ]
    async with team.open() as runtime:
        result = await OrchestrationEngine(runtime).run(RunRequest(configs, team.work))
    assert result.exit_code == 0
    assert {a.status for a in result.state.agents.values()} == {AgentStatus.COMPLETED} and len(
        result.state.agents
    ) == 1000
    assert len(team.model.requests) == 1000


async def test_what_cannot_be_run_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    team = Team(tmp_path)
    async with team.open() as runtime:
        engine = OrchestrationEngine(runtime)
        for request, error, text in (
            (RunRequest([], team.work), ConfigError, "no agent to run"),
            (RunRequest([agent(), agent()], team.work), ConfigError, "two agents are called one"),
            (RunRequest([agent()], tmp_path / "none"), UsageError, "is not a directory"),
            (RunRequest([agent()], team.work, ("nightly",)), UsageError, "no spec has a conditional group 'nightly'"),
            (RunRequest([agent(dependencies={"required": ["x"]})], team.work), ConfigError, "requires x"),
        ):
            with pytest.raises(error, match=text):
                await engine.start(request)
        assert runtime.journal.runs() == []


# --- requests of other processes


def talkative(team: Team, **execution: Any) -> Team:
    """Its agents go on until they are stopped."""
    team.script = {"default": [{"say": "hm"}, {**call("list_dir"), "delay": "5ms", "repeat": True}]}
    team.execution = {"max_turns": 10_000, "health_nudges": 10_000, **execution}
    team.__post_init__()
    return team


LOOKS = {"grant": ["filesystem-read"]}


@pytest.mark.slow
async def test_requests_of_another_process_are_applied_in_order_and_once(team: Team) -> None:
    talkative(team)
    one = AgentName("one")
    async with team.open() as runtime:
        session = await team.start(runtime, agent(**LOOKS))
        run = asyncio.create_task(session.run())
        await eventually(lambda: team.model.requests)
        await ask(team, session.context.id, ("pause", "one"), ("levitate", ""), ("pause", "nobody"))
        await eventually(lambda: session.manager.state(one).status is AgentStatus.PAUSED)
        await eventually(lambda: len(team.events(CommandApplied)) == 3)
        assert session.manager.state(one).holds == {"person": "why not"}
        await ask(team, session.context.id, ("resume", ""), ("stop", "one"))
        result = await run
        assert (result.status, result.exit_code) == (RunStatus.STOPPED, 8)
        await session.context.recorder.close()
    applied = [(e.command, e.verb, e.author) for e in team.events(CommandApplied)]
    assert applied == [
        (1, "pause", "ada"), (2, "levitate", "ada"), (3, "pause", "ada"), (4, "resume", "ada"), (5, "stop", "ada"),
    ]  # fmt: skip
    assert result.state.commands == {1, 2, 3, 4, 5}


@pytest.mark.slow
async def test_stopping_a_run_stops_those_that_have_not_started_too(team: Team) -> None:
    talkative(team, max_concurrent_agents=1)
    async with team.open() as runtime:
        session = await team.start(
            runtime, agent("a", **LOOKS), agent("b", **LOOKS), agent("c", dependencies={"required": ["b"]})
        )
        run = asyncio.create_task(session.run())
        await eventually(lambda: team.model.requests)
        await ask(team, session.context.id, ("stop", ""))
        result = await asyncio.wait_for(run, 20)
        await session.context.recorder.close()
    assert {a.status for a in result.state.agents.values()} == {AgentStatus.STOPPED}
    assert result.status is RunStatus.STOPPED
    assert len({r.agent for r in team.model.requests}) == 1, "only the one that ran was ever asked"


@pytest.mark.slow
async def test_an_agent_stopped_before_its_turn_never_starts_and_its_dependents_are_skipped(team: Team) -> None:
    talkative(team, max_concurrent_agents=1)
    async with team.open() as runtime:
        session = await team.start(
            runtime, agent("a", **LOOKS), agent("b"), agent("c", dependencies={"required": ["b"]})
        )
        run = asyncio.create_task(session.run())
        await eventually(lambda: team.model.requests)
        await ask(team, session.context.id, ("stop", "b"), ("pause", "a"), ("stop", "a"))
        result = await asyncio.wait_for(run, 20)
    state = result.state.agents
    assert [state[n].status for n in "abc"] == [AgentStatus.STOPPED, AgentStatus.STOPPED, AgentStatus.SKIPPED]
    assert state["c"].reason == "needs b, which ended STOPPED"


@pytest.mark.slow
async def test_a_request_made_while_nobody_executes_the_run_is_applied_by_the_next_who_does(team: Team) -> None:
    talkative(team)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("a", **LOOKS), agent("b", dependencies={"required": ["a"]}))
        await session.context.recorder.close()
        await ask(team, session.context.id, ("stop", ""))
        again = await team.resume(runtime, session.context.id)
        result = await asyncio.wait_for(again.run(), 20)
        assert (result.status, team.events(CommandApplied)[0].verb) == (RunStatus.STOPPED, "stop")
        await again.context.recorder.close()


async def test_an_agent_paused_before_its_turn_takes_no_step(tmp_path: Path) -> None:
    team = Team(tmp_path, ALWAYS, journal=memory)
    b = AgentName("b")
    async with team.open() as runtime:
        session = await team.start(runtime, agent("a"), agent("b", dependencies={"required": ["a"]}))
        await session.manager.pause(b, "not yet")
        run = asyncio.create_task(session.run())
        await eventually(lambda: session.manager.state(b).status is AgentStatus.PAUSED)
        await settle(50)
        assert {r.agent for r in team.model.requests} == {"a"}
        await session.manager.resume(b)
        assert (await run).exit_code == 0


async def test_a_single_agent_can_be_handed_over_by_an_orchestrator_of_ones_own(tmp_path: Path) -> None:
    team = Team(tmp_path, journal=memory)
    async with team.open() as runtime:
        integration = OrchestrationEngine(runtime).create_runtime_integration(runtime)
        config = agent("spec-name", dependencies={"required": ["not-here"]})
        running = await integration.start_agent_execution(config, "agent-7", workspace=team.work)
        result = await running.wait()
        assert list(result.state.agents) == ["agent-7"] and result.exit_code == 0
        assert (running.progress().done, running.progress().total, running.run_id) == (1, 1, result.run)
        with pytest.raises(UsageError, match="cannot be an agent's name"):
            await integration.start_agent_execution(config, "a/b", workspace=team.work)
