from __future__ import annotations

from typing import Any

import pytest

from harness import ALWAYS, Team, agent, call, fail, said, succeed
from toka.events.event import StepDone, StepFailed, StepIntent
from toka.events.lifecycle import AgentStatus, TaskStatus
from toka.llm.script import ScriptedReply

WRITER = {"grant": ["filesystem-write"]}


def script(*replies: Any, task: str = "task-1") -> dict[str, Any]:
    return {"agents": {"one": {task: list(replies)}}}


async def ended(team: Team, *replies: Any, retries: int = 0, **sections: Any) -> tuple[TaskStatus, str, str]:
    """Status, cause and reason of a single task that gets these replies."""
    team.script = script(*replies)
    team.__post_init__()
    team.execution = {"task_retries": retries, **team.execution}
    result = await team.run(agent(**sections))
    task = result.state.agents["one"].tasks["task-1"]
    return task.status, task.why, task.reason


@pytest.mark.parametrize(
    "words",
    [
        "An error occurred: the task failed with exit code 1.",
        "FATAL ERROR. Traceback (most recent call last): boom. I could not do it.",
        "Task completed successfully! All done. status: succeeded",
        '{"status": "succeeded", "summary": "done"}',
        "failed",
    ],
)
async def test_words_neither_end_nor_fail_a_task(fast: Team, words: str) -> None:
    assert (await ended(fast, {"say": words}, {"say": words}, succeed("really")))[0] is TaskStatus.SUCCEEDED
    assert len(fast.model.requests) == 3
    assert "Your reply had no tool call" in fast.model.requests[1].messages[-1].text


async def test_a_report_that_mentions_errors_is_believed_by_its_status(fast: Team) -> None:
    status, _, _ = await ended(fast, succeed("Fixed the error that failed the build; 0 failures, exit code 1 is gone."))
    assert status is TaskStatus.SUCCEEDED


async def test_who_never_reports_fails_after_two_reminders(fast: Team) -> None:
    status, why, reason = await ended(fast, {"say": "hm", "repeat": True})
    assert (status, why, reason) == (TaskStatus.FAILED, "no_report", "3 replies without a tool call or a report")
    assert len(fast.model.requests) == 3


@pytest.mark.parametrize(("status", "attempts"), [("failed", 2), ("blocked", 1)])
async def test_a_report_of_failure_fails_the_attempt_and_a_blocked_one_is_not_tried_again(
    slow_motion: Team, status: str, attempts: int
) -> None:
    slow_motion.execution = {"retry_base_s": 0}
    outcome = await ended(slow_motion, {**fail("no disk", status), "repeat": True}, retries=1)
    assert outcome == (TaskStatus.FAILED, status, "no disk")
    assert len(slow_motion.model.requests) == attempts


async def test_a_malformed_call_gets_one_error_to_learn_from(fast: Team) -> None:
    bad = {"raw_calls": [{"name": "read_file", "arguments": "{not json"}]}
    status, _, _ = await ended(fast, bad, succeed(), **WRITER)
    assert status is TaskStatus.SUCCEEDED
    answer = fast.model.requests[1].messages[-1]
    assert answer.role == "tool" and answer.failed and "not valid JSON" in answer.text
    assert "Nothing was run" in answer.text
    assert [e.step for e in fast.events(StepIntent) if "/tool/" in e.step] == [], "no act was begun"


@pytest.mark.parametrize(
    "bad",
    [
        {"raw_calls": [{"name": "read_file", "arguments": "{not json"}]},
        {"raw_calls": [{"name": "read_file", "arguments": "{}"}]},
        {"raw_calls": [{"name": "read_file", "arguments": '{"path": 7}'}]},
        {"raw_calls": [{"name": "read_file", "arguments": '{"path": "a", "more": 1}'}]},
        {"raw_calls": [{"name": "report", "arguments": '{"status": "perhaps", "summary": "x"}'}]},
        {"raw_calls": [{"name": "report", "arguments": '{"status": "succeeded"}'}]},
        {"raw_calls": [{"name": "fly", "arguments": "{}"}]},
        call("write_file", path="../outside", content=""),
    ],
)
async def test_two_malformed_calls_in_a_row_fail_the_attempt(fast: Team, bad: dict[str, Any]) -> None:
    status, why, reason = await ended(fast, {**bad, "repeat": True}, **WRITER)
    assert (status, why) == (TaskStatus.FAILED, "malformed") and "2 malformed tool calls in a row" in reason
    assert len(fast.model.requests) == 2


async def test_a_good_call_between_makes_up_for_a_malformed_one(fast: Team) -> None:
    bad = {"raw_calls": [{"name": "read_file", "arguments": "[]"}]}
    good = call("list_dir")
    status, _, _ = await ended(fast, bad, good, bad, good, bad, succeed(), **WRITER)
    assert status is TaskStatus.SUCCEEDED


async def test_an_unknown_tool_is_answered_with_the_known_ones(fast: Team) -> None:
    await ended(fast, call("teleport", to="mars"), succeed(), **WRITER)
    text = fast.model.requests[1].messages[-1].text
    assert "There is no tool named 'teleport'" in text and "edit_file, list_dir, read_file, report, search" in text


async def test_calls_beside_each_other_are_answered_in_order_and_a_report_ends_them(fast: Team) -> None:
    several = {"calls": [{"list_dir": {}}, {"read_file": {"path": "none"}}, {"list_dir": {"path": "."}}]}
    last = {"calls": [{"list_dir": {}}, {"report": {"status": "succeeded", "summary": "x"}}, {"list_dir": {}}]}
    await ended(fast, several, last, **WRITER)
    answers = [m.call_id for m in fast.model.requests[1].messages if m.role == "tool"]
    assert answers == ["call-1-1", "call-1-2", "call-1-3"]
    assert [e.step for e in fast.events(StepDone) if "/tool/" in e.step][3:] == ["task-1/1/2/tool/0"]


async def test_an_endless_conversation_ends_at_the_turn_limit(fast: Team) -> None:
    fast.execution = {"max_turns": 4}
    outcome = await ended(fast, {**call("list_dir"), "repeat": True}, **WRITER)
    assert outcome == (TaskStatus.FAILED, "turns", "no report after 4 turns")
    assert len(fast.model.requests) == 4


@pytest.mark.parametrize(
    ("limits", "unit"),
    [
        ({"max_model_calls": 3}, "model calls"),
        ({"max_tool_calls": 2}, "tool calls"),
        ({"max_tokens": 20000}, "tokens"),
    ],
)
async def test_a_limit_that_is_used_up_fails_the_agent_and_no_retry_is_made(
    fast: Team, limits: dict[str, Any], unit: str
) -> None:
    fast.script = script({**call("list_dir"), "usage": {"input": 3000, "output": 100}, "repeat": True})
    fast.__post_init__()
    fast.execution = {"task_retries": 5, "max_turns": 30}
    result = await fast.run(agent(limits=limits, **WRITER))
    one = result.state.agents["one"]
    assert (one.status, one.why, result.exit_code) == (AgentStatus.FAILED, "limit", 6)
    assert "agent one: " in one.reason and unit in one.reason
    assert one.tasks["task-1"].attempt == 1
    used = {"model calls": len(fast.model.requests), "tool calls": one.tool_calls}
    assert used.get(unit, 0) in (0, *limits.values())


async def test_a_model_that_refuses_fails_the_task_at_once(fast: Team) -> None:
    outcome = await ended(fast, {"say": "I will not do that.", "finish": "refused"}, retries=3)
    assert outcome == (TaskStatus.FAILED, "refused", "the model declined: I will not do that.")
    assert len(fast.model.requests) == 1


async def test_a_rejected_request_is_not_tried_again_and_an_unavailable_model_is(slow_motion: Team) -> None:
    slow_motion.execution = {"retry_base_s": 0}
    status, why, _ = await ended(slow_motion, {"error": "refused"}, retries=3)
    assert (status, why, len(slow_motion.model.requests)) == (TaskStatus.FAILED, "invalid_request", 1)
    assert [(e.error, e.retryable) for e in slow_motion.events(StepFailed)] == [("invalid_request", False)]


async def test_the_conversation_grows_by_what_is_new_and_the_record_holds_it_once(fast: Team) -> None:
    await ended(fast, call("list_dir"), {"say": "hm"}, succeed(), **WRITER)
    intents = [e for e in fast.events(StepIntent) if "/model/" in e.step]
    assert [[m["role"] for m in e.messages or []] for e in intents] == [["system", "user"], [], ["user"]]
    roles = [[m.role for m in r.messages] for r in fast.model.requests]
    assert roles[0] == ["system", "user"]
    assert roles[1] == [*roles[0], "assistant", "tool"]
    assert roles[2] == [*roles[1], "assistant", "user"]


async def test_calls_are_numbered_over_all_attempts_of_a_task(slow_motion: Team) -> None:
    slow_motion.execution = {"retry_base_s": 0}
    await ended(slow_motion, call("list_dir"), fail("first"), call("list_dir"), succeed(), retries=1, **WRITER)
    assert [r.call for r in slow_motion.model.requests] == [1, 2, 3, 4]
    assert len({r.key for r in slow_motion.model.requests}) == 4


async def test_half_a_character_from_a_model_is_recorded_and_goes_on(team: Team) -> None:
    replies = [
        ScriptedReply(say="odd \ud83d half"),
        ScriptedReply(calls=(("report", '{"status":"succeeded","summary":"s"}'),)),
    ]
    team.script = lambda request: replies[request.call - 1]
    team.__post_init__()
    result = await team.run(agent())
    assert result.exit_code == 0
    assert "odd \ud83d half" in said(team.model.requests[1])


async def test_a_model_that_always_succeeds_needs_one_call_a_task(fast: Team) -> None:
    fast.script = ALWAYS
    await fast.run(agent(tasks=["a", "b", "c"]))
    assert len(fast.model.requests) == 3
