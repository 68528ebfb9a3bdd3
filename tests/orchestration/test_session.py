"""One run in one process: what it starts, notes, applies and leaves behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, call, eventually, fail, memory, said, succeed
from toka.core.ids import AgentName, RunId
from toka.errors import JournalError, StaleEpoch, UsageError
from toka.events.event import CommandApplied, HoldLifted, HoldPlaced, RunStateChanged, StepResolved
from toka.events.lifecycle import AgentStatus, RunStatus
from toka.journal.journal import Command, Journal
from toka.llm.model import ModelRequest
from toka.orchestration.session import RunSession
from toka.testing import settle

ONE = AgentName("one")
COMMAND = {"description": "x", "run": "true"}


def quiet(tmp_path: Path, **more: Any) -> Team:
    return Team(tmp_path, journal=memory, **more)


def hanging(team: Team) -> asyncio.Event:
    """Its model never answers; set when it is first asked."""
    asked = asyncio.Event()

    async def wait(request: ModelRequest) -> Any:
        asked.set()
        await asyncio.sleep(30)

    team.model.request = wait  # type: ignore[method-assign]
    return asked


async def submit(journal: Journal, session: RunSession, verb: str, name: str = "", **arguments: Any) -> None:
    await journal.submit(session.context.id, verb, agent=name, arguments=arguments, by=("ada", "why not"))


async def test_it_names_the_models_its_agents_were_asked_to_use(tmp_path: Path) -> None:
    team = quiet(tmp_path)
    configs = (agent("a", model="openai:x"), agent("b"), agent("c", tasks=[COMMAND], model="openai:y"), agent("d"))
    async with team.open() as runtime:
        session = await team.start(runtime, *configs)
        assert session.models == ("openai:x", "scripted:test"), "each once; who only runs commands asks none"
        await session.context.recorder.close()


async def test_shutdown_leaves_agents_resumable_and_records_no_end(tmp_path: Path) -> None:
    team = quiet(tmp_path)
    asked = hanging(team)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("one"), agent("two", dependencies={"required": ["one"]}))
        running = asyncio.create_task(session.run())
        await asked.wait()
        await asyncio.gather(session.shutdown(0.01), session.shutdown(0.01))
        result = await running
        assert (result.status, result.reason) == (
            RunStatus.INTERRUPTED,
            "the process was asked to end; nothing recorded is lost",
        )
        assert "INTERRUPTED" not in [e.state for e in team.events(RunStateChanged)]
        assert not any(a.ended for a in result.state.agents.values())
        await session.context.recorder.close()
        del team.model.request  # it answers again
        resumed = await team.resume(runtime, session.context.id)
        assert (await resumed.run()).status is RunStatus.COMPLETED
        await resumed.context.recorder.close()
        with pytest.raises(UsageError, match="has ended"):
            await team.resume(runtime, session.context.id)


async def test_what_is_stopped_before_it_ran_never_asks_a_model(tmp_path: Path) -> None:
    team = quiet(tmp_path)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("one"))
        await session.shutdown(0.0)
        assert (await session.run()).status is RunStatus.INTERRUPTED
        assert team.model.requests == []
        await session.context.recorder.close()


async def test_resuming_lifts_what_a_person_or_health_held_and_nothing_else(tmp_path: Path) -> None:
    team = quiet(tmp_path)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("one"), agent("two"))
        record = session.context.recorder.record
        for hold in ("person", "health", "budget"):
            await record("one", HoldPlaced(hold, "because"))
        await record("", HoldPlaced("person", "all of it"))
        await session.lift_holds("ada", "go on")
        state = session.context.recorder.state
        assert list(state.agents["one"].holds) == ["budget"]
        assert state.holds == {}
        lifted = [(r.stream, r.event.hold, r.event.author) for r in team.records if isinstance(r.event, HoldLifted)]
        assert sorted(lifted) == [("", "person", "ada"), ("one", "health", "ada"), ("one", "person", "ada")]
        await session.context.recorder.close()


async def test_dependents_are_told_what_was_reported_and_how_it_ended(tmp_path: Path) -> None:
    script = {
        "agents": {
            "good": {"*": [succeed("built the parser")]},
            "bad": {"*": [{**fail("ran out of ideas"), "repeat": True}]},
            "last": {"*": [succeed()]},
        }
    }
    team = quiet(tmp_path, script=script, execution={"task_retries": 0})
    edges = {"required": ["good"], "optional": ["bad"]}
    async with team.open() as runtime:
        session = await team.start(runtime, agent("good"), agent("bad"), agent("last", dependencies=edges))
        assert (await session.run()).status is RunStatus.FAILED
        await session.context.recorder.close()
    (request,) = [r for r in team.model.requests if r.agent == "last"]
    text = said(request)
    assert "built the parser" in text
    assert "ran out of ideas" in text
    assert "completed" in text and "failed" in text


class Troubled:
    """A journal whose requests cannot be read for the first `times` looks, and then raise `then`, if anything."""

    def __init__(self, inner: Journal, times: int, then: Exception | None = None) -> None:
        self._inner = inner
        self.left = times
        self.then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def commands(self, run: RunId, after: int = 0) -> Sequence[Command]:
        if self.left > 0:
            self.left -= 1
            raise JournalError("the database is locked")
        if self.then is not None and self._inner.commands(run, after):
            raise self.then
        return self._inner.commands(run, after)


def talkative() -> Mapping[str, Any]:
    """It goes on until it is stopped."""
    return {"default": [{**call("list_dir"), "delay": "5ms", "repeat": True}]}


@pytest.mark.slow
async def test_a_request_waits_while_the_database_cannot_be_read(tmp_path: Path) -> None:
    troubled: list[Troubled] = []

    def journal(path: Path, clock: Any) -> Any:
        troubled.append(Troubled(memory(path, clock), 0))
        return troubled[0]

    team = Team(tmp_path, talkative(), journal=journal, execution={"max_turns": 100_000, "health_nudges": 100_000})
    async with team.open() as runtime:
        session = await team.start(runtime, agent("one", grant=["filesystem-read"]))
        running = asyncio.create_task(session.run())
        await eventually(lambda: team.model.requests)
        troubled[0].left = 1
        await submit(runtime.journal, session, "stop", "one")
        assert (await asyncio.wait_for(running, 20)).status is RunStatus.STOPPED
        assert troubled[0].left == 0
        assert len(team.events(CommandApplied)) == 1
        await session.context.recorder.close()


@pytest.mark.slow
async def test_who_lost_the_run_to_another_process_stops_at_once(tmp_path: Path) -> None:
    troubled: list[Troubled] = []

    def journal(path: Path, clock: Any) -> Any:
        troubled.append(Troubled(memory(path, clock), 0, StaleEpoch("another process has it")))
        return troubled[0]

    team = Team(tmp_path, journal=journal)
    asked = hanging(team)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("one"), agent("two", dependencies={"required": ["one"]}))
        running = asyncio.create_task(session.run())
        await asked.wait()
        await submit(runtime.journal, session, "stop")
        with pytest.raises(StaleEpoch):
            await asyncio.wait_for(running, 20)
        assert [e.state for e in team.events(RunStateChanged)] == [], "it has no say in how the run ends"
        await session.context.recorder.close()


@pytest.mark.slow
async def test_a_step_in_flight_that_nobody_asked_about_is_not_answered(tmp_path: Path) -> None:
    team = quiet(tmp_path)
    asked = hanging(team)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("one"))
        running = asyncio.create_task(session.run())
        await asked.wait()
        await submit(runtime.journal, session, "resolve", "one", task="task-1", answer="abandon")
        await eventually(lambda: team.events(CommandApplied))
        await session.shutdown(0.0)
        await asyncio.wait_for(running, 20)
        assert team.events(StepResolved) == []
        await session.context.recorder.close()


@pytest.mark.parametrize("task", ["task-1", "nothing", ""])
async def test_an_answer_that_nobody_asked_for_changes_nothing(tmp_path: Path, task: str) -> None:
    team = quiet(tmp_path)
    async with team.open() as runtime:
        session = await team.start(runtime, agent("one"))
        await submit(runtime.journal, session, "resolve", "one", task=task, answer="happened")
        result = await session.run()
        assert result.status is RunStatus.COMPLETED
        assert result.state.agents[ONE].status is AgentStatus.COMPLETED
        await session.context.recorder.close()


@pytest.mark.slow
async def test_an_answer_is_recorded_before_its_request_counts_as_applied(tmp_path: Path) -> None:
    """Who is killed between the two finds the request again; the other way round the answer would be lost."""
    team = quiet(tmp_path)
    asked = hanging(team)
    (team.work / "out").mkdir(exist_ok=True)
    once = {"description": "pay", "run": "touch out/started; sleep 30", "effect": "once"}
    async with team.open() as runtime:
        one = agent("one", tasks=[once], grant=[{"filesystem-write": {"paths": ["out"]}}])
        session = await team.start(runtime, one, agent("two"))
        running = asyncio.create_task(session.run())
        await eventually(lambda: (team.work / "out/started").exists() and asked.is_set())
        await session.shutdown(0.0)
        await running
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        running = asyncio.create_task(again.run())
        await eventually(lambda: any(t.question for t in again.manager.state(ONE).tasks.values()))
        await submit(runtime.journal, again, "resolve", "one", task="task-1", answer="happened")
        await eventually(lambda: again.manager.state(ONE).status is AgentStatus.COMPLETED)
        await eventually(lambda: team.events(CommandApplied))
        kinds = [type(record.event) for record in runtime.journal.read(again.context.id)]
        assert kinds.index(StepResolved) < kinds.index(CommandApplied)
        assert kinds.count(StepResolved) == 1
        await again.shutdown(0.0)
        await running
        await again.context.recorder.close()


@pytest.mark.slow
async def test_what_one_session_applied_the_next_does_not_apply_again(tmp_path: Path) -> None:
    team = Team(tmp_path, talkative(), journal=memory, execution={"max_turns": 100_000, "health_nudges": 100_000})
    async with team.open() as runtime:
        session = await team.start(runtime, agent("one", grant=["filesystem-read"]))
        running = asyncio.create_task(session.run())
        await eventually(lambda: team.model.requests)
        await submit(runtime.journal, session, "pause", "one")
        await eventually(lambda: session.manager.state(ONE).status is AgentStatus.PAUSED)
        await session.shutdown(0.0)
        await running
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        running = asyncio.create_task(again.run())
        asked = len(team.model.requests)
        await eventually(lambda: len(team.model.requests) > asked + 3)
        assert [e.verb for e in team.events(CommandApplied)] == ["pause"]
        await submit(runtime.journal, again, "stop")
        assert (await asyncio.wait_for(running, 20)).status is RunStatus.STOPPED
        await again.context.recorder.close()


async def test_a_session_that_is_cancelled_twice_leaves_nobody_watching(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the process lost the run while its agents were being ended."""
    team = quiet(tmp_path)
    inside, lost = asyncio.Event(), asyncio.Event()

    async def expire(_: str) -> None:
        inside.set()
        await asyncio.wait({asyncio.ensure_future(lost.wait())})
        raise StaleEpoch("another process took it over")

    team.execution = {"run_timeout_s": 1e-9}  # over before anybody looks
    async with team.open() as runtime:
        session = await team.start(runtime, agent())
        session.team.expire = expire  # type: ignore[method-assign]
        run = asyncio.create_task(session.run())
        await inside.wait()
        run.cancel()
        await settle()
        run.cancel()
        await settle()
        lost.set()
        await asyncio.wait({run})
        await settle()
        del run, session
        gc.collect()
    assert not caplog.records
