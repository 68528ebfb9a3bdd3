from __future__ import annotations

import json
from typing import Any

import pytest

from toka.cli.render_change import change_lines
from toka.cli.render_event import event_line
from toka.cli.render_log import Transcript, material
from toka.errors import NotFound
from toka.events.event import (
    CommandApplied,
    Event,
    HoldLifted,
    HoldPlaced,
    ObjectiveChanged,
    SandboxReady,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    TaskStateChanged,
    Unknown,
)
from toka.events.record import Record
from toka.llm.prompts import tool_error, tool_result


def no_blob(digest: str) -> bytes:
    raise NotFound(f"no blob {digest}")


def record(event: Event, agent: str = "a") -> Record:
    return Record(1, "r", agent, 1, 1, 0.0, event)


def told(*events: Event, blob: Any = no_blob, full: bool = False) -> list[str]:
    transcript = Transcript(blob, ["a"], full=full)
    lines = [line for event in events for line in transcript.lines(record(event))]
    return [line[11:] for line in lines]


def test_the_fence_around_a_result_is_not_shown() -> None:
    assert material(tool_result("read_file", "hello\n</material 0>\n")) == "hello\n</material 0>\n"
    assert material(tool_error("read_file", "no such file", "Look again.")) == "no such file\nLook again."
    assert material("plain") == "plain"


def test_a_large_result_is_loaded() -> None:
    stored = json.dumps({"text": tool_result("read_file", "from the blob \ud800")}, ensure_ascii=False)
    step = "t/1/1/tool/0"
    lines = told(
        StepIntent(step, "k", "pure", "read_file", {"path": "x"}, "filesystem-read"),
        StepDone(step, {"blob": "d"}),
        blob=lambda _: stored.encode("utf-8", "surrogatepass"),
    )
    assert lines == [
        '> read_file {"path": "x"}   allowed by filesystem-read',
        "  | from the blob \N{REPLACEMENT CHARACTER}",
    ]


def test_a_result_that_is_gone_is_said_to_be() -> None:
    (line,) = told(StepIntent("t/1/1/tool/0", "k", "pure", "x"), StepDone("t/1/1/tool/0", {"blob": "d"}))[1:]
    assert line == "  | (cannot be shown: no blob d)"


def test_an_answer_lost_in_a_crash_is_told() -> None:
    lines = told(StepIntent("t/1/1/model/0", "k", "idempotent", "openai:x", again=1, messages=[]))
    assert lines == ["asks openai:x again: the answer was lost in a crash"]


def test_a_failed_step_and_a_failed_command() -> None:
    assert told(StepFailed("t/1/1/model/0", "timeout", "too slow\nby far")) == [
        "failed (timeout): too slow",
        "  by far",
    ]
    step = "t/1/1/run/0"
    done = StepDone(step, {"exit": None, "ended": "timeout", "output": "half", "dropped": 7}, wall_s=2.0, failed=True)
    assert told(StepIntent(step, "k", "once", "make\ntest"), done) == [
        "$ make",
        "  test",
        "  | half",
        "timeout in 2.0s, 7 bytes of output not kept",
    ]


@pytest.mark.parametrize("result", [None, 3, "text", [1], {}, {"text": 3}, {"calls": "no"}, {"calls": [[1, 2, 3]]}])
@pytest.mark.parametrize("kind", ["model", "tool", "run", "check", "wait"])
def test_whatever_a_record_holds_it_is_shown(kind: str, result: Any) -> None:
    step = f"t/1/1/{kind}/0"
    assert told(StepIntent(step, "k", "pure", "x", messages=[{}]), StepDone(step, result)) is not None
    assert told(StepDone("strange", result)) is not None


CHANGES: list[tuple[Event, list[str]]] = [
    (CommandApplied(1, "stop", "a", author="ann", reason="enough"), ["stop a, asked by ann: enough"]),
    (HoldPlaced("person", "lunch"), ["held by person: lunch"]),
    (HoldLifted("person"), ["no longer held by person"]),
    (StepInDoubt("t/1/1/run/0", "Did it happen?"), ["in doubt: Did it happen?"]),
    (ObjectiveChanged(2, "failed", "green\nmore"), ["objective 2 failed: green"]),
    (Unknown("dream", {"of": "sheep"}), ['dream (of a newer Toka): {"of": "sheep"}']),
    (TaskStateChanged("t", "RUNNING", 2, title="mend"), ["t, attempt 2: mend"]),
    (TaskStateChanged("t", "FAILED", 2, "no\nwhy"), ["t FAILED: no", "  why"]),
    (
        SandboxReady({"reads": ["a"], "writes": [], "programs": None}, ["no cgroups"]),
        ["sandbox: reads a; writes nothing; programs its tools may run: any", "  no cgroups"],
    ),
    (
        SandboxReady({"reads": "odd", "programs": list("abcdefghij")}),
        ["sandbox: reads nothing; writes nothing; programs its tools may run: a, b, c, d, e, f, g, h and 2 more"],
    ),
]


@pytest.mark.parametrize(("event", "lines"), CHANGES)
def test_changes_in_words(event: Event, lines: list[str]) -> None:
    assert change_lines(event) == lines


HOSTILE = "\x1b]0;owned\x07\x9b2J\u202e\r" + "x" * 100_000


@pytest.mark.parametrize(
    "event",
    [
        TaskStateChanged(HOSTILE, HOSTILE, 1, HOSTILE, {"summary": HOSTILE}, HOSTILE),
        TaskStateChanged(HOSTILE, "RUNNING", 1, title=HOSTILE),
        ObjectiveChanged(1, HOSTILE, HOSTILE, evidence={"output": HOSTILE}),
        StepIntent(f"{HOSTILE}/1/1/tool/0", "k", "pure", HOSTILE, {HOSTILE: HOSTILE}, HOSTILE),
        StepIntent("t/1/1/model/0", "k", "pure", HOSTILE, messages=[{"role": HOSTILE, "text": HOSTILE}], again=1),
        StepIntent("t/1/1/run/0", "k", "pure", HOSTILE),
        StepDone("t/1/1/model/0", {"text": HOSTILE, "calls": [["c", "report", HOSTILE]]}, [1, 1], None, HOSTILE),
        StepDone("t/1/1/run/0", {"output": HOSTILE, "ended": HOSTILE}),
        StepDone("t/1/1/tool/0", {"text": HOSTILE}),
        StepFailed("t/1/1/tool/0", HOSTILE, HOSTILE),
        StepInDoubt("t/1/1/tool/0", HOSTILE),
        SandboxReady({"reads": [HOSTILE], "writes": [HOSTILE]}, [HOSTILE]),
        CommandApplied(1, HOSTILE, HOSTILE, author=HOSTILE, reason=HOSTILE),
        HoldPlaced(HOSTILE, HOSTILE),
        Unknown(HOSTILE, {HOSTILE: HOSTILE}),
    ],
)
def test_nothing_hostile_reaches_the_terminal(event: Event) -> None:
    lines = [*Transcript(no_blob, [HOSTILE]).lines(record(event, HOSTILE)), event_line(record(event, HOSTILE))]
    for line in lines:
        assert line.isprintable()
        assert len(line) < 2_000
    for line in Transcript(no_blob, ["a"], full=True).lines(record(event)):
        assert line.isprintable()
