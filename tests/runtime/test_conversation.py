from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from harness import ALWAYS, Team, agent, call, eventually, fail, said, succeed
from toka.core.message import Message, ToolCall
from toka.events.event import StepDenied, StepDone, StepFailed, StepIntent
from toka.events.lifecycle import AgentStatus, TaskStatus
from toka.llm.model import ModelRequest
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
    ],
)
async def test_two_malformed_calls_in_a_row_fail_the_attempt(fast: Team, bad: dict[str, Any]) -> None:
    status, why, reason = await ended(fast, {**bad, "repeat": True}, **WRITER)
    assert (status, why) == (TaskStatus.FAILED, "malformed") and "2 malformed tool calls in a row" in reason
    assert len(fast.model.requests) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (call("write_file", path="../outside", content=""), "leaves the workspace"),
        (call("read_file", path="/etc/passwd"), "not relative to the workspace"),
        (call("run_command", command="cd src && make"), "no shell is one of them"),
        (call("run_command", command="make 2>&1 | tail"), "no shell is one of them"),
    ],
)
async def test_what_nothing_can_grant_is_denied_as_often_as_it_is_tried(
    fast: Team, bad: dict[str, Any], reason: str
) -> None:
    rights = {"grant": ["filesystem-write", {"command-execution": {"programs": ["make"]}}]}
    status, _, _ = await ended(fast, bad, bad, bad, succeed(), **rights)
    assert status is TaskStatus.SUCCEEDED
    denials = fast.events(StepDenied)
    assert [d.rule for d in denials] == ["nothing can grant this"] * 3 and reason in denials[0].reason
    assert fast.model.requests[1].messages[-1].failed


async def test_a_reply_with_one_good_call_is_not_counted_as_malformed(fast: Team) -> None:
    bad = {"name": "read_file", "arguments": "[]"}
    mixed = {"raw_calls": [bad, {"name": "list_dir", "arguments": "{}"}]}
    status, _, _ = await ended(fast, mixed, mixed, mixed, succeed(), **WRITER)
    assert status is TaskStatus.SUCCEEDED


async def test_a_good_call_between_makes_up_for_a_malformed_one(fast: Team) -> None:
    bad = {"raw_calls": [{"name": "read_file", "arguments": "[]"}]}
    good = call("list_dir")
    status, _, _ = await ended(fast, bad, good, bad, good, bad, succeed(), **WRITER)
    assert status is TaskStatus.SUCCEEDED


async def test_an_unknown_tool_is_answered_with_the_known_ones(fast: Team) -> None:
    await ended(fast, call("teleport", to="mars"), succeed(), **WRITER)
    text = fast.model.requests[1].messages[-1].text
    assert "There is no tool named 'teleport'" in text and "edit_file, git, list_dir, read_file, report, search" in text


async def test_calls_beside_each_other_are_answered_in_order_and_a_report_ends_them(fast: Team) -> None:
    several = {"calls": [{"list_dir": {}}, {"read_file": {"path": "none"}}, {"list_dir": {"path": "."}}]}
    last = {"calls": [{"list_dir": {}}, {"report": {"status": "succeeded", "summary": "x"}}, {"list_dir": {}}]}
    await ended(fast, several, last, **WRITER)
    answers = [m.call_id for m in fast.model.requests[1].messages if m.role == "tool"]
    assert answers == ["call-1-1", "call-1-2", "call-1-3"]
    assert [e.step for e in fast.events(StepDone) if "/tool/" in e.step][3:] == ["task-1/1/2/tool/0"]


def repeated(*calls: ToolCall) -> ScriptedReply:
    """A reply with these calls, whatever their ids."""
    return ScriptedReply(message=Message("assistant", calls=calls))


def answered(request: ModelRequest) -> list[tuple[str, bool]]:
    """(id, failed) of the answers to all calls of a conversation; asserts that providers would take it."""
    ids = [c.id for m in request.messages for c in m.calls]
    answers = [(m.call_id, m.failed) for m in request.messages if m.role == "tool"]
    assert len(set(ids)) == len(ids) and [id_ for id_, _ in answers] == ids
    return answers


REPORT = ToolCall("same", "report", '{"status": "succeeded", "summary": "s"}')
LOOK = ToolCall("same", "list_dir", "{}")


@pytest.mark.parametrize(
    "first", [(LOOK, LOOK), (LOOK, REPORT), (REPORT, LOOK), (REPORT, REPORT), (LOOK, ToolCall("same", "fly", "{"))]
)
async def test_calls_with_the_same_id_are_not_run_and_the_next_turn_goes_on(
    fast: Team, first: tuple[ToolCall, ...]
) -> None:
    replies = [repeated(*first), repeated(LOOK), repeated(REPORT)]
    fast.script = lambda request: replies[request.call - 1]
    fast.__post_init__()
    result = await fast.run(agent(**WRITER))
    assert (result.exit_code, len(fast.model.requests)) == (0, 3)
    assert answered(fast.model.requests[1]) == [("same", True), ("same-2", True)]
    assert answered(fast.model.requests[2])[2:] == [("same-3", False)], "alone in its reply, it is run"
    told = fast.model.requests[1].messages[-1].text
    assert "2 calls of one reply have the same id" in told and "None of them was run" in told
    assert [e.step for e in fast.events(StepIntent) if "/tool/" in e.step] == ["task-1/1/2/tool/0"]
    rejected = [e for e in fast.events(StepDone) if e.step.startswith("task-1/1/1/tool/")]
    assert [e.result["invalid"] for e in rejected] == [
        "2 calls of one reply have the same id, so that their results could not be told apart"
    ] * 2


async def test_a_call_with_an_id_of_its_own_beside_them_is_run(fast: Team) -> None:
    other = ToolCall("same-2", "list_dir", "{}")
    fast.script = lambda _: repeated(LOOK, LOOK, other)
    fast.__post_init__()
    fast.execution = {"task_retries": 0, "max_turns": 3}
    result = await fast.run(agent(**WRITER))
    task = result.state.agents["one"].tasks["task-1"]
    assert (task.why, len(fast.model.requests)) == ("turns", 3)
    assert answered(fast.model.requests[1]) == [("same", True), ("same-2", True), ("same-2-2", False)]


async def test_a_conversation_with_repeated_ids_goes_on_in_another_process_as_it_was(team: Team) -> None:
    replies = [repeated(LOOK, LOOK), repeated(LOOK), ScriptedReply(say="hm"), repeated(REPORT)]
    asked: list[ModelRequest] = []

    def answer(request: ModelRequest) -> ScriptedReply:
        asked.append(request)
        reply = replies[request.call - 1]
        return replace(reply, delay_s=60.0) if len(asked) == 3 else reply

    team.script = answer
    team.__post_init__()
    async with team.open() as runtime:
        session = await team.start(runtime, agent(**WRITER))
        run = asyncio.create_task(session.run())
        await eventually(lambda: len(asked) == 3)
        await session.shutdown(0.0)
        await run
        await session.context.recorder.close()
        again = await team.resume(runtime, session.context.id)
        assert (await again.run()).exit_code == 0
    assert [r.call for r in asked] == [1, 2, 3, 3, 4]
    assert asked[2].messages == asked[3].messages
    assert answered(asked[4]) == [("same", True), ("same-2", True), ("same-3", False)]


CUT = {"say": "In this essay I shall", "finish": "length", "usage": {"input": 10, "output": 64}, "repeat": True}


async def test_a_reply_that_was_cut_off_is_told_so_and_the_error_says_it_too(fast: Team) -> None:
    fast.execution = {"max_output_tokens": 64}
    _, why, reason = await ended(fast, CUT)
    assert (why, reason) == (
        "no_report",
        "3 replies without a tool call or a report; the last reply was cut off at 64 tokens"
        " (execution.max_output_tokens is 64)",
    )
    for request in fast.model.requests[1:]:
        told = request.messages[-1]
        assert told.role == "user" and told.text.startswith("Your last reply was cut off at 64 tokens: ")
        assert "Your reply had no tool call" in told.text


async def test_a_call_that_was_cut_off_is_answered_and_told_so(fast: Team) -> None:
    cut = {"raw_calls": [{"name": "write_file", "arguments": '{"path": "a", "content": "x'}], "finish": "length",
           "usage": {"input": 10, "output": 50}}  # fmt: skip
    assert (await ended(fast, cut, succeed(), **WRITER))[0] is TaskStatus.SUCCEEDED
    answer, advice = fast.model.requests[1].messages[-2:]
    assert (answer.role, answer.failed) == ("tool", True) and "not valid JSON" in answer.text
    assert (advice.role, advice.text.partition(":")[0]) == ("user", "Your last reply was cut off at 50 tokens")
    _, why, reason = await ended(fast, {**cut, "repeat": True}, **WRITER)
    assert why == "malformed" and reason.endswith("cut off at 50 tokens (execution.max_output_tokens is 8192)")


async def test_a_reply_that_ended_by_itself_is_not_said_to_be_cut(fast: Team) -> None:
    once = {**CUT, "repeat": False}
    _, _, reason = await ended(fast, once, {"say": "hm", "repeat": True})
    assert reason == "3 replies without a tool call or a report"
    assert ["cut off" in r.messages[-1].text for r in fast.model.requests] == [False, True, False]


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
    assert one.tasks["task-1"].attempt == 1
    used = {"model calls": len(fast.model.requests), "tool calls": one.tool_calls, "tokens": one.usage.tokens}
    (limit,) = limits.values()
    assert f"agent one: {used[unit]} of {limit} {unit} used; the refused call needs up to " in one.reason
    assert used[unit] <= limit and f"raise security.resource_limits.{next(iter(limits))}" in one.reason


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
