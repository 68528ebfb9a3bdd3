"""R11: somebody sets the machine's clock while agents work. Nothing that is timed comes early, or twice."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent, fail, succeed
from toka.core.clock import Clock, SystemClock
from toka.errors import RunBusy
from toka.events.event import AgentStateChanged, ExecutorAttached, StepFailed, StepIntent, TaskStateChanged
from toka.events.flow import ApprovalAnswered, ApprovalAsked
from toka.events.lifecycle import AgentStatus, TaskStatus
from toka.journal.journal import Journal, Timing
from toka.journal.sqlite import SqliteJournal
from toka.llm.model import ModelRequest
from toka.llm.script import ScriptedReply
from toka.llm.scripted import Answer

DAY = 86_400.0
HOUR = 3_600.0
HANG_S = 1.2
"""Until a task whose model never answers is given up."""
RETRY_S = 0.6
"""Between a task's failure and its next attempt."""
RENEW_S = 0.2
CALLS = 20
"""Model calls of the agent that takes long."""


@dataclass
class Wall:
    """The machine's wall clock, which somebody sets."""

    ahead: float = 0.0
    real: Any = time.time
    jumps: list[float] = field(default_factory=list[float])

    def __call__(self) -> float:
        return self.real() + self.ahead

    def jump(self, seconds: float) -> None:
        self.ahead += seconds
        self.jumps.append(seconds)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    clock = Wall()
    monkeypatch.setattr(time, "time", clock)
    return clock


class Moments:
    """When, by a clock that nobody sets, each model call was made."""

    def __init__(self) -> None:
        self.calls: dict[str, list[float]] = {}

    def answer(self, request: ModelRequest) -> Answer:
        self.calls.setdefault(request.agent, []).append(time.monotonic())
        match request.agent:
            case "hangs":
                return ScriptedReply(delay_s=HOUR)
            case "long" if request.call <= CALLS:
                return ScriptedReply(calls=(("read_file", json.dumps({"path": f"{request.call}.txt"})),), delay_s=0.1)
            case _:
                failed = request.agent == "fails" and len(self.calls["fails"]) == 1
                return ScriptedReply(calls=(("report", json.dumps((fail if failed else succeed)()["report"])),))


def journal(state: Path, clock: Clock) -> Journal:
    return SqliteJournal(state, clock, Timing(lease_s=3 * RENEW_S, renew_s=RENEW_S))


def crew() -> list[Any]:
    """An agent for each thing that is timed."""
    return [
        agent("hangs", tasks=[{"description": "wait", "timeout": f"{HANG_S}s", "retries": 0}]),
        agent("fails", tasks=[{"description": "again", "retries": 1}]),
        agent("asks", tasks=[{"run": "true"}], flow={"approve": {"question": "Shall I?"}}),
        agent("long", grant=["filesystem-read"], limits={"timeout": "1h"}),
        agent("runs", tasks=[{"run": "sleep 1.5", "timeout": "20s", "effect": "idempotent"}]),
    ]


async def live_through(team: Team, wall: Wall, jumps: list[tuple[float, float]]) -> dict[str, Any]:
    """One run in which the clock jumps: (seconds to wait before, by how much). Returns what was counted."""
    moments = Moments()
    team.script = moments.answer
    team.__post_init__()
    for number in range(1, CALLS + 1):
        (team.work / f"{number}.txt").write_text(f"line {number}\n")
    team.journal = journal
    team.execution = {
        "retry_base_s": RETRY_S, "run_timeout_s": 2 * HOUR, "health_nudges": 0, "approval_timeout_s": 7 * DAY,
    }  # fmt: skip
    began = time.monotonic()
    async with team.open() as runtime:
        session = await team.start(runtime, *crew())
        running = asyncio.create_task(session.run())
        renewals: set[float] = set()
        other = SqliteJournal(team.folder / "state", SystemClock(), Timing(lease_s=3 * RENEW_S, renew_s=RENEW_S))
        for wait_s, by in jumps:
            await asyncio.sleep(wait_s)
            if running.done():
                break
            wall.jump(by)
            with pytest.raises(RunBusy):
                await other.acquire(session.context.id)
            if (lease := other.lease(session.context.id)) is not None:
                renewals.add(lease.until)
        await other.aclose()
        result = await running
        took = time.monotonic() - began
        await session.context.recorder.close()
    judge(team, result, moments, took)
    return {"jumps": len(wall.jumps), "timers": 5, "lease renewals seen": len(renewals), "within": round(took, 1)}


def judge(team: Team, result: Any, moments: Moments, took: float) -> None:
    """Each thing came when it should, and once."""
    agents = result.state.agents
    assert (result.status.value, agents["asks"].status) == ("WAITING", AgentStatus.WAITING), result.reason
    assert len(team.events(ApprovalAsked)) == 1 and not team.events(ApprovalAnswered), "a question came to its end"
    assert agents["hangs"].tasks["task-1"].status is TaskStatus.FAILED
    assert len(moments.calls["hangs"]) == 1 and len(team.events(StepFailed, "hangs")) == 1
    begun, over = (
        next(r.at for r in team.records if r.stream == "hangs" and isinstance(r.event, kind))
        for kind in (StepIntent, StepFailed)
    )
    assert HANG_S - 0.05 <= over - begun < HANG_S + 10, "a timeout came early or late"
    assert agents["fails"].status is AgentStatus.COMPLETED
    first, again = moments.calls["fails"]
    assert RETRY_S / 2 <= again - first < RETRY_S + 5, "a retry came early or late"
    waits = [e for e in team.events(TaskStateChanged, "fails") if e.state == TaskStatus.RETRY_WAIT]
    assert len(waits) == 1
    assert agents["long"].status is AgentStatus.COMPLETED and agents["runs"].status is AgentStatus.COMPLETED
    assert len(moments.calls["long"]) == CALLS + 1
    assert len(team.events(ExecutorAttached)) <= 1, "the lease was taken once"
    starts = [e for e in team.events(AgentStateChanged) if e.state == AgentStatus.STARTING]
    assert len(starts) == 5, "each was started once"
    assert 2.0 <= took < 30 and agents["long"].active_s < took + 1


@pytest.mark.slow
@pytest.mark.parametrize("by", [30 * DAY, -HOUR])
async def test_one_jump_moves_no_timer(team: Team, wall: Wall, counted: dict[str, Any], by: float) -> None:
    counted.update(await live_through(team, wall, [(0.5, by), (0.7, 0.0)]))


@pytest.mark.torture("R11", "clock jumps of +30 d and -1 h: no timer early or twice, no lease storm")
async def test_the_clock_jumps_all_the_time(tmp_path: Path, wall: Wall, seed: int, counted: dict[str, Any]) -> None:
    chance = random.Random(seed)
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        jumps = [(chance.uniform(0.01, 0.2), chance.choice((30 * DAY, -HOUR, -29 * DAY, 1.0))) for _ in range(200)]
        counted.update(await live_through(Team(tmp_path / str(number)), wall, jumps))
    assert counted["jumps"] > 100
