from __future__ import annotations

from typing import Any

from harness import Team, agent, call, fail, succeed
from toka.events.event import ObjectiveChanged
from toka.events.lifecycle import AgentStatus, ObjectiveStatus

WRITES = {"grant": ["filesystem-write"]}
CHECKED = {"description": "there is a result", "check": "echo looking; test -f result"}


def script(*repairs: list[Any]) -> dict[str, Any]:
    return {"agents": {"one": {"task-1": [succeed("it is there, verified, all tests pass")]} | {
        f"repair-{n}": list(replies) for n, replies in enumerate(repairs, 1)
    }}}  # fmt: skip


async def test_words_only_claim_and_a_passing_check_verifies(fast: Team) -> None:
    objectives = [{"description": "well written"}, {"description": "true is true", "check": "true"}]
    result = await fast.run(agent(objectives=objectives, success_criteria={"phase_1": ["everybody likes it"]}))
    state = result.state.agents["one"].objectives
    assert [(n, o.status.value) for n, o in sorted(state.items())] == [(1, "claimed"), (2, "verified"), (3, "claimed")]
    assert state[2].evidence == {"command": "true", "exit": 0, "ended": "exited", "output": ""}
    assert result.exit_code == 0


async def test_a_failing_check_is_repaired_with_its_output_in_hand(fast: Team) -> None:
    fast.script = script([call("write_file", path="result", content="x"), succeed("mended")])
    fast.__post_init__()
    result = await fast.run(agent(objectives=[CHECKED], **WRITES))
    assert result.exit_code == 0
    assert [(e.state, e.round) for e in fast.events(ObjectiveChanged)] == [("failed", 0), ("verified", 1)]
    prompt = fast.prompts("one", "repair-1")[0]
    assert "repair round 1 of 2" in prompt and "there is a result" in prompt
    assert "echo looking; test -f result" in prompt and "Exit code: 1" in prompt and "looking" in prompt


async def test_repairs_that_do_not_help_run_out_and_the_agent_fails(fast: Team) -> None:
    fast.script = script([succeed("fixed it!")], [succeed("now really")])
    fast.__post_init__()
    result = await fast.run(agent(objectives=[CHECKED], **WRITES))
    one = result.state.agents["one"]
    assert (one.status, one.why, result.exit_code) == (AgentStatus.FAILED, "check_failed", 1)
    assert one.reason == f"objective 1 is not met: `{CHECKED['check']}` exited with 1"
    assert (one.objectives[1].status, one.objectives[1].round) == (ObjectiveStatus.FAILED, 2)
    assert [r.task for r in fast.model.requests] == ["task-1", "repair-1", "repair-2"]


async def test_a_repair_that_gives_up_fails_the_agent(fast: Team) -> None:
    fast.script = script([fail("impossible", "blocked")])
    fast.__post_init__()
    result = await fast.run(agent(objectives=[CHECKED], **WRITES))
    assert (result.state.agents["one"].reason, result.exit_code) == ("repair 1: impossible", 1)


async def test_without_a_model_nothing_is_repaired(fast: Team) -> None:
    result = await fast.run(agent(tasks=[{"run": "true"}], objectives=[CHECKED]))
    assert result.state.agents["one"].why == "check_failed"
    assert fast.model.requests == []


async def test_an_objective_that_a_repair_breaks_is_noticed(fast: Team) -> None:
    fast.script = script(
        [call("write_file", path="result", content="x"), call("write_file", path="extra", content=""), succeed()],
        [succeed()],
    )
    fast.__post_init__()
    second = {"description": "nothing else is there", "check": "test ! -f extra"}
    result = await fast.run(agent(objectives=[CHECKED, second], **WRITES))
    assert [(e.objective, e.state) for e in fast.events(ObjectiveChanged)][:4] == [
        (1, "failed"), (2, "verified"), (1, "verified"), (2, "failed"),
    ]  # fmt: skip
    assert result.exit_code == 1


async def test_a_check_may_expect_another_exit_and_has_its_own_time(fast: Team) -> None:
    objectives = [
        {"description": "fails as it should", "check": {"run": "exit 3", "expect_exit": 3}},
        {"description": "in time", "check": {"run": "sleep 60", "timeout": "0.1s"}},
    ]
    fast.execution = {"repair_rounds": 0}
    result = await fast.run(agent(objectives=objectives))
    state = result.state.agents["one"]
    assert [o.status.value for _, o in sorted(state.objectives.items())] == ["verified", "failed"]
    assert state.reason == "objective 2 is not met: `sleep 60` was killed after 0.1 s"
