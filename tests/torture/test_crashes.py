"""R8: a thousand agents that crash as they start do not keep the machine busy with that, and who is well works on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, memory, pass_time, succeed
from runtime.test_process import Door
from toka.core.ids import AgentName
from toka.events.event import AgentStateChanged
from toka.events.lifecycle import AgentStatus
from toka.testing import ManualClock

BAR = "at most 50 starts a second once one crashed; each in CRASH_LOOP after 5 restarts; a sound sibling is done first"


async def crash(folder: Path, agents: int, counted: dict[str, Any]) -> None:
    clock = ManualClock()
    script = {"agents": {"sound": {"*": [succeed()]}, "*": {"*": [{"calls": [{"door": {}}]}]}}}
    execution = {"max_concurrent_agents": 8}
    team = Team(folder, script, clock=clock, journal=memory, tools=(Door(breaks=10**9),), execution=execution)
    async with team.open() as runtime:
        broken = [agent(f"a{number:04}", priority="critical") for number in range(agents)]
        session = await team.start(runtime, *broken, agent("sound", priority="low"))
        run = asyncio.create_task(session.run())
        sound = AgentName("sound")
        await pass_time(clock, lambda: session.manager.state(sound).ended or run.done(), step=1.0)
        before = sum(1 for a in session.context.recorder.state.agents.values() if a.status is AgentStatus.CRASH_LOOP)
        await pass_time(clock, run.done, step=1.0)
        result = await run
        await session.context.recorder.close()
    states = result.state.agents
    assert states["sound"].status is AgentStatus.COMPLETED
    looping = [a for a in states.values() if a.status is AgentStatus.CRASH_LOOP]
    assert len(looping) == agents
    assert {a.restarts for a in looping} == {5}, "the crash that ended them brought no restart"
    starts = [r.at for r in team.records if isinstance(r.event, AgentStateChanged) and r.event.state == "STARTING"]
    most = max(sum(1 for at in starts[n : n + 200] if at < starts[n] + 0.999) for n in range(8, len(starts), 10))
    counted |= {"agents": agents, "starts": len(starts), "most in a second": most, "looping before": before}
    assert most <= 50
    assert before == 0, "it had to wait for those that crash"


@pytest.mark.slow
async def test_agents_that_crash_as_they_start_are_kept_apart(tmp_path: Path, counted: dict[str, Any]) -> None:
    await crash(tmp_path, 60, counted)


@pytest.mark.torture("R8", BAR)
async def test_a_thousand_agents_that_crash_as_they_start(
    tmp_path: Path, counted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.BOUND_S", 900.0)
    await crash(tmp_path, 1000, counted)
