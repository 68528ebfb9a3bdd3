"""What becomes of a command whose sandbox died, and Toka did not."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, call, eventually, succeed
from orchestration.test_replay import read
from toka.events.lifecycle import RunStatus
from toka.events.steps import StepDone, StepInDoubt, StepIntent
from toka.orchestration.replay import Terms, replay

ONCE = "echo start >> log.txt; while [ ! -e go ]; do sleep 0.05; done; echo published >> log.txt"
WRITES = {"grant": ["filesystem-write"]}
NET = {"grant": ["filesystem-write", "command-execution", {"network-access": {"hosts": ["example.org"]}}]}


def kill_sandboxes() -> None:
    """Kills those that this process started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
                zygote = b"zygote" in (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == os.getpid() and zygote:
                os.kill(int(entry.name), signal.SIGKILL)


async def replayed_the_same(team: Team) -> None:
    found = await asyncio.to_thread(lambda: replay(*read(team.folder), Terms()))
    assert found.same and not found.unreached, found.divergences


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a command of the spec", "a command of the model"])
async def test_what_must_not_run_twice_is_asked_about(team: Team, kind: str) -> None:
    task: dict[str, Any] = {"id": "publish", "run": ONCE, "effect": "once", "retries": 2}
    one = agent(tasks=[task, {"run": "echo after >> log.txt"}], **WRITES)
    if kind == "a command of the model":
        team.script = {"default": [call("run_command", command=ONCE), succeed()]}
        team.__post_init__()
        one = agent(tasks=[{"id": "publish", "description": "Publish."}], **NET)
    log = team.work / "log.txt"
    async with team.open() as runtime:
        session = await team.start(runtime, one)
        run = asyncio.create_task(session.run())
        await eventually(log.exists)
        kill_sandboxes()
        asked = await run
        await session.context.recorder.close()
    assert (asked.status, asked.exit_code) == (RunStatus.WAITING, 7), asked.reason
    assert log.read_text() == "start\n"
    (doubt,) = team.events(StepInDoubt)
    assert "was started and its sandbox died before it ended. Did it happen?" in doubt.question
    await replayed_the_same(team)
    team.progress.clear()
    async with team.open() as runtime:
        answer = {"task": "publish", "answer": "happened"}
        journal = runtime.journal
        await journal.submit(session.context.id, "resolve", agent="one", arguments=answer, by=("ada", ""))
        session = await team.resume(runtime, session.context.id)
        done = await session.run()
        await session.context.recorder.close()
    assert done.exit_code == 0, done.reason
    assert log.read_text().split() == (["start", "after"] if kind == "a command of the spec" else ["start"])
    told = [e for e in team.progress if e.task == "publish"]
    assert "task_started" not in {e.kind for e in told}, "nothing was started"
    if kind == "a command of the spec":
        assert told[-1].text == "(a person says that this happened; its output is lost)"
    await replayed_the_same(team)


@pytest.mark.slow
async def test_an_answer_is_taken_up_by_the_same_process(team: Team) -> None:
    other = agent("two", tasks=[{"run": "until [ -e on ]; do sleep 0.05; done", "effect": "pure"}], **WRITES)
    task: dict[str, Any] = {"id": "publish", "run": ONCE, "effect": "once", "retries": 2}
    async with team.open() as runtime:
        session = await team.start(runtime, agent(tasks=[task], **WRITES), other)
        run = asyncio.create_task(session.run())
        await eventually((team.work / "log.txt").exists)
        kill_sandboxes()
        await eventually(lambda: team.events(StepInDoubt))
        (team.work / "go").touch()
        answer = {"task": "publish", "answer": "not-happened"}
        await runtime.journal.submit(session.context.id, "resolve", agent="one", arguments=answer, by=("ada", ""))
        await eventually(lambda: [e for e in team.events(StepDone) if e.step.startswith("publish/")])
        (team.work / "on").touch()
        await run
        await session.context.recorder.close()
    assert [i.again for i in team.events(StepIntent) if i.step.startswith("publish/")] == [0, 1]
    assert [e.kind for e in team.progress if e.task == "publish"].count("task_started") == 2
    assert (team.work / "log.txt").read_text() == "start\nstart\npublished\n"
    await replayed_the_same(team)


@pytest.mark.slow
async def test_what_may_run_again_is_tried_again(team: Team) -> None:
    task: dict[str, Any] = {"id": "publish", "run": ONCE, "effect": "idempotent", "retries": 1}
    async with team.open() as runtime:
        session = await team.start(runtime, agent(tasks=[task], **WRITES))
        run = asyncio.create_task(session.run())
        await eventually((team.work / "log.txt").exists)
        kill_sandboxes()
        (team.work / "go").touch()
        assert (await run).exit_code == 0
        await session.context.recorder.close()
    assert not team.events(StepInDoubt)
    await replayed_the_same(team)
