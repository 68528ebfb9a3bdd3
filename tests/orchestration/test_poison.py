"""What a command left in the workspace that died with Toka three times: a person says first whether it happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from harness import Team, agent, eventually
from orchestration.test_replay import read
from toka.errors import JournalError
from toka.events.lifecycle import RunStatus
from toka.events.steps import StepInDoubt, StepPutBack
from toka.orchestration.replay import Terms, replay
from toka.orchestration.result import RunResult
from toka.orchestration.session import RunSession

WRITES = {"grant": [{"filesystem-write": {"paths": ["out"]}}, "filesystem-read"]}
BUILD = "echo result >> out/result.txt; until [ -e go ]; do sleep 0.05; done"
TASKS: list[dict[str, Any]] = [{"id": "build", "run": BUILD}, {"id": "use", "run": "cat out/result.txt"}]


async def gone(*_: Any) -> Any:
    raise JournalError("the process is dead")


@asynccontextmanager
async def life(team: Team, run: Any, *more: Any) -> AsyncIterator[RunSession]:
    """One process of the run; None begins one."""
    async with team.open() as runtime:
        one = agent(tasks=TASKS, priority="high", **WRITES)
        session = await (team.start(runtime, one, *more) if run is None else team.resume(runtime, run))
        try:
            yield session
        finally:
            await session.context.recorder.close()


async def die_three_times(team: Team, *more: Any) -> Any:
    """The run, whose first step was in flight each time."""
    (team.work / "out").mkdir()
    run: Any = None
    result = team.work / "out" / "result.txt"
    for _ in range(3):
        result.unlink(missing_ok=True)
        async with life(team, run, *more) as session:
            run = session.context.id
            task = asyncio.create_task(session.run())
            await eventually(result.exists)
            session.context.recorder.record = gone  # type: ignore[method-assign]  # as a killed process
            await session.shutdown(0.0)
            await asyncio.gather(task, return_exceptions=True)
            await session.context.runtime.journal.release(session.context.recorder.lease)
    return run


async def go_on(team: Team, run: Any, answer: str = "") -> RunResult:
    async with life(team, run) as session:
        if answer:
            arguments = {"task": "build", "answer": answer}
            journal = session.context.runtime.journal
            await journal.submit(run, "resolve", agent="one", arguments=arguments, by=("ada", ""))
        return await session.run()


async def decided_the_same(team: Team) -> None:
    found = await asyncio.to_thread(lambda: replay(*read(team.folder), Terms()))  # it has a loop of its own
    assert found.same and not found.unreached, found.divergences


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "left", "code"),
    [("happened", "result\n", 0), ("not-happened", "result\n", 0), ("abandon", "result\n", 1)],
)
async def test_nothing_is_put_back_before_a_person_has_answered(team: Team, answer: str, left: str, code: int) -> None:
    run = await die_three_times(team)
    before = len(team.events(StepPutBack))
    asked = await go_on(team, run)
    assert (asked.status, asked.exit_code) == (RunStatus.WAITING, 7)
    assert (team.work / "out" / "result.txt").read_text() == "result\n"
    question = asked.state.agents["one"].tasks["build"].question
    assert "started 3 times" in question and "is still there" in question
    (team.work / "go").touch()
    done = await go_on(team, run, answer)
    assert done.exit_code == code, done.reason
    assert (team.work / "out" / "result.txt").read_text() == left
    assert len(team.events(StepPutBack)) - before == (answer == "not-happened")
    await decided_the_same(team)


@pytest.mark.slow
async def test_what_others_wrote_since_is_not_undone_and_a_person_is_asked_again(team: Team) -> None:
    """After the answer it is to run again, on what the last start and the other agent left: a person is told so."""
    team.execution = {"max_concurrent_agents": 1}  # the other one begins when the first waits
    run = await die_three_times(team, agent("two", tasks=[{"run": "echo x > out/theirs"}], **WRITES))
    assert (await go_on(team, run)).status is RunStatus.WAITING
    again = await go_on(team, run, "not-happened")
    assert again.status is RunStatus.WAITING
    assert "as it was left: agent two of run" in again.state.agents["one"].tasks["build"].question
    assert "two" not in {each.stream for each in team.records if isinstance(each.event, StepInDoubt)}
    assert (await go_on(team, run)).status is RunStatus.WAITING, "it was asked anew, and not answered"
    (team.work / "go").touch()
    done = await go_on(team, run, "not-happened")
    assert done.exit_code == 0, done.reason
    assert (team.work / "out" / "theirs").read_text() == "x\n"
    assert (team.work / "out" / "result.txt").read_text() == "result\nresult\n"
    await decided_the_same(team)
