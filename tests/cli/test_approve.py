"""`toka approve` and `toka deny`, and where a question is shown."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cli.records import COMMAND, Ran, Toka, commands, write_run
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.events.event import AgentStateChanged, Event, ExecutorAttached, RunCreated, RunStateChanged, TaskStateChanged
from toka.events.flow import ApprovalAnswered, ApprovalAsked
from toka.journal.sqlite import SqliteJournal

RUN = "20261101-101010-abcdef"
BEGUN = [RunCreated(["ship", "other"], "0" * 64, "/w"), ExecutorAttached("h", 1, 1), RunStateChanged("RUNNING")]
WAITS = RunStateChanged("WAITING", "ship: Ship it?")
IDS = ("aaaa000011112222", "bbbb000011112222", "cccc000011112222")
SHOWN = {"may": ["filesystem-write: docs"], "tasks": ["run: touch a", "write the text"], "cost_usd": 0.4}


def asked(id_: str = IDS[0], question: str = "Ship it?", within: float | None = 7_200.0, **more: Any) -> ApprovalAsked:
    expires = None if within is None else more.pop("since", time.time()) + within
    return ApprovalAsked(id_, more.pop("task", ""), question, more.pop("shown", SHOWN), expires, within)


def waiting(question: str = "Ship it?") -> list[Event]:
    return [
        AgentStateChanged("STARTING"),
        AgentStateChanged("RUNNING"),
        AgentStateChanged("WAITING", question, "approval"),
    ]


def waits(state: Path, *events: Event, other: tuple[Event, ...] = (), release: bool = True) -> None:
    write_run(state, RUN, [("", [*BEGUN, WAITS]), ("ship", [*events, *waiting()]), ("other", other)], release=release)


# ---- answers


def test_an_answer_is_recorded_for_the_question_that_was_shown(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, asked())
    done = toka("approve", "@last", "--reason", "looked at it", "--state", tmp_path)
    assert (done.code, done.out) == (0, "")
    head, *about, last = done.err.splitlines()
    assert head == "ship asks: Ship it?"
    assert [line.split() for line in about[:4]] == [
        ["may", "filesystem-write:", "docs"],
        ["tasks", "run:", "touch", "a"],
        ["write", "the", "text"],
        ["cost", "at", "most", "$0.40"],
    ]
    assert about[4].split()[0] == "asked" and " ago, until 20" in about[4]
    assert last == f"noted: approved. Go on with: toka resume {RUN} --state {tmp_path}"
    (command,) = commands(tmp_path, RUN)
    assert (command.verb, command.agent, command.reason) == ("approve", "ship", "looked at it")
    assert command.arguments["approvals"] == [IDS[0]]
    assert abs(command.arguments["at"] - time.time()) < 60
    assert command.author


def test_a_denial_needs_a_reason(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, asked())
    assert toka("deny", RUN, "ship", "--state", tmp_path).code == 2
    blank = toka("deny", RUN, "ship", "--reason", " ", "--state", tmp_path)
    assert (blank.code, "--reason is empty" in blank.err) == (2, True)
    assert not commands(tmp_path, RUN)
    assert toka("deny", "abc", "sh", "--reason", "not today", "--state", tmp_path).code == 0
    assert [(c.verb, c.agent, c.reason) for c in commands(tmp_path, RUN)] == [("deny", "ship", "not today")]


def test_json(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, asked(task="write"))
    said = toka("deny", "@last", "--reason", "no", "--json", "--state", tmp_path).json
    question = said.pop("question")
    assert said.pop("author")
    assert said == {
        "type": "answer", "run_id": RUN, "agent": "ship", "answer": "denied", "reason": "no", "executor": None,
        "next": f"toka resume {RUN} --state {tmp_path}",
    }  # fmt: skip
    assert (question["id"], question["task"], question["question"]) == (IDS[0], "write", "Ship it?")
    assert (question["shown"], question["answer"]) == (SHOWN, None)


def test_with_several_questions_one_must_be_named(toka: Toka, tmp_path: Path) -> None:
    other = (asked(IDS[2], "Do it?"), *waiting("Do it?"))
    waits(tmp_path, asked(), asked(IDS[1], "Push?"), other=other)
    done = toka("approve", "@last", "--state", tmp_path)
    assert done.code == 2
    assert "3 questions wait" in done.err
    assert "ship --id aaaa0000: Ship it?; ship --id bbbb0000: Push?; other --id cccc0000: Do it?" in done.err
    assert toka("approve", "@last", "ship", "--state", tmp_path).code == 2
    assert not commands(tmp_path, RUN)
    assert toka("approve", "@last", "ship", "--id", "bbbb", "--state", tmp_path).code == 0
    assert toka("approve", "@last", "ship", "--state", tmp_path).code == 0
    assert toka("approve", "@last", "--state", tmp_path).code == 0
    assert [c.arguments["approvals"] for c in commands(tmp_path, RUN)] == [[IDS[1]], [IDS[0]], [IDS[2]]]


def test_an_older_id_is_not_taken_for_a_newer_question(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, asked(), ApprovalAnswered(IDS[0], "approved", "ada", "fine"), asked(IDS[1], "Push?"))
    done = toka("approve", "@last", "ship", "--id", "aaaa0000", "--state", tmp_path)
    assert (done.code, "answered already: approved by ada: fine" in done.err) == (2, True)
    assert not commands(tmp_path, RUN)


def test_the_second_answer_is_told_of_the_first(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, asked())
    assert toka("deny", RUN, "--reason", "no", "--state", tmp_path).code == 0
    for arguments in (("approve", RUN), ("approve", RUN, "ship"), ("deny", RUN, "--reason", "x")):
        again = toka(*arguments, "--state", tmp_path)
        assert again.code == 2
        assert "answered already: denied by " in again.err
        assert "the first answer counts" in again.err
    assert len(commands(tmp_path, RUN)) == 1


@pytest.mark.parametrize("recorded", [True, False])
def test_after_its_time_a_question_takes_no_answer(toka: Toka, tmp_path: Path, recorded: bool) -> None:
    since = time.time() - 8_000
    waits(tmp_path, asked(since=since), *([ApprovalAnswered(IDS[0], "unanswered")] if recorded else []))
    done = toka("approve", RUN, "ship", "--state", tmp_path)
    assert done.code == 2
    assert "takes no answer any more: nobody answered within 2h, until 20" in done.err
    assert "not as denied" in done.err
    assert not commands(tmp_path, RUN)


def test_nothing_to_answer(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, asked(), ApprovalAnswered(IDS[0], "approved", "ada", ""))
    nothing = toka("approve", RUN, "--state", tmp_path)
    assert (nothing.code, f"no question of run {RUN} waits" in nothing.err) == (9, True)
    already = toka("approve", RUN, "ship", "--state", tmp_path)
    assert (already.code, "answered already: approved by ada" in already.err) == (2, True)
    none = toka("approve", RUN, "other", "--state", tmp_path)
    assert (none.code, "agent other asks nothing; it is CONFIGURED" in none.err) == (9, True)
    nobody = toka("approve", RUN, "shop", "--state", tmp_path)
    assert (nobody.code, "did you mean ship?" in nobody.err) == (9, True)
    assert toka("approve", "zzz", "--state", tmp_path).code == 9
    assert toka("approve", RUN, "--id", "dddd", "--state", tmp_path).code == 9


def test_an_agent_that_ended_asks_no_more(toka: Toka, tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", [*BEGUN, WAITS]), ("ship", [asked(), *waiting(), AgentStateChanged("STOPPED")])])
    assert toka("approve", RUN, "--state", tmp_path).code == 9
    assert " asks: " not in toka("ps", "--state", tmp_path).out


def test_what_an_agent_wrote_does_not_drive_the_terminal(toka: Toka, tmp_path: Path) -> None:
    shown = {
        "tool": "run_command",
        "arguments": {"command": "git\x1b[2J push\nrm -rf x"},
        "rule": "policy: ask \x1b[1m",
    }
    waits(tmp_path, asked(question="run_command: git\x1b[2J?", shown=shown))
    for done in (toka("show", RUN, "--state", tmp_path), toka("ps", "--state", tmp_path)):
        assert "\x1b[2J" not in done.out + done.err
    done = toka("approve", RUN, "--state", tmp_path)
    assert "\x1b" not in done.err
    assert "rm -rf x" in done.err


def test_the_whole_of_what_is_shown_is_printed(toka: Toka, tmp_path: Path) -> None:
    text = "\n".join(f"line {n}" for n in range(400)) + "\n" + "y" * 3_000
    waits(tmp_path, asked(shown={"tool": "write_file", "arguments": {"path": "a", "content": text}, "rule": "r"}))
    done = toka("approve", RUN, "--state", tmp_path)
    assert "line 399" in done.err and "y" * 3_000 in done.err


# ---- where it is shown


def test_show_and_ps_tell_what_is_asked_and_how_to_answer(toka: Toka, tmp_path: Path) -> None:
    task = (
        TaskStateChanged("write", "RUNNING", 1, title="Write it."),
        TaskStateChanged("write", "AWAITING_APPROVAL", 1, "Ship it?"),
    )
    waits(tmp_path, *task, asked(task="write"))
    text = toka("show", RUN, "--state", tmp_path).out
    assert "awaits approval since 20" in text and ": Ship it?" in text
    assert f'toka approve {RUN} ship --reason "..." --id aaaa0000 --state {tmp_path}' in text
    assert f'toka deny {RUN} ship --reason "..." --id aaaa0000 --state {tmp_path}' in text
    assert "AWAITING_APPROVAL  Write it." in text
    shown = toka("show", RUN, "--json", "--state", tmp_path).json["agents"]["ship"]
    (question,) = shown["approvals"]
    assert (question["question"], question["answer"], question["shown"]) == ("Ship it?", None, SHOWN)
    assert shown["why"] == "approval"
    listed = toka("ps", "--state", tmp_path).lines
    assert listed[2:] == ["  ship asks: Ship it?", f"  toka show {RUN} --state {tmp_path}"]
    assert toka("ps", "--json", "--state", tmp_path).json["asks"] == [{"agent": "ship", "question": "Ship it?"}]
    events = toka("events", RUN, "--state", tmp_path).out
    assert "approval_asked" in events and "write asks: Ship it? (until 20" in events


def test_a_settled_question_is_no_longer_shown_as_open(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, asked(), ApprovalAnswered(IDS[0], "approved", "ada", "fine"))
    assert "toka approve" not in toka("show", RUN, "--state", tmp_path).out
    assert toka("ps", "--json", "--state", tmp_path).json["asks"] == []
    (question,) = toka("show", RUN, "--json", "--state", tmp_path).json["agents"]["ship"]["approvals"]
    assert (question["answer"], question["author"], question["reason"]) == ("approved", "ada", "fine")
    assert "approved by ada: fine" in toka("events", RUN, "--state", tmp_path).out


def test_a_question_whose_time_is_over_offers_no_command(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, asked(since=time.time() - 8_000))
    text = toka("show", RUN, "--state", tmp_path).out
    assert "nobody answered within 2h" in text
    assert "toka approve" not in text


# ---- whole commands


TEAM = """
toka: 1
agents:
  survey: {run: "true"}
  ship:
    needs: [survey]
    approve: {question: "Ship it?", expires: 2h}
    grants: {write: [.]}
    run: touch shipped
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "ws").mkdir()
    (tmp_path / "team.yaml").write_text(TEAM)
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TOKA_", "XDG_", "ANTHROPIC", "OPENAI", "OLLAMA"))}
    return {**kept, "HOME": str(place), "TOKA_STATE": str(place / "state"), "CI": "1"}


def command(place: Path, *arguments: str) -> Ran:
    done = subprocess.run(
        [*COMMAND, *arguments], cwd=place, env=environment(place), capture_output=True, text=True, timeout=60
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_run_waits_says_how_to_answer_and_goes_on(place: Path) -> None:
    waited = command(place, "run", "team.yaml", "--workspace", "ws")
    assert waited.code == 7
    (copied,) = [line.strip() for line in waited.err.splitlines() if line.strip().startswith("toka approve ")]
    assert waited.err.count("toka deny ") == 1
    assert "ship asks: Ship it?" in waited.err
    run, agent = copied.split()[2:4]
    assert agent == "ship"
    told = command(place, "approve", run, agent, "--id", copied.split()[-1], "--reason", "fine")
    assert told.code == 0 and f"Go on with: toka resume {run}" in told.err
    assert not (place / "ws" / "shipped").exists()
    done = command(place, "resume", run, "--json")
    assert done.code == 0, done.err
    assert (place / "ws" / "shipped").exists()
    assert command(place, "approve", run, agent).code == 2


@pytest.mark.slow
def test_denied_the_exit_code_is_that_of_a_stop(place: Path) -> None:
    assert command(place, "run", "team.yaml", "--workspace", "ws", "-q").code == 7
    assert command(place, "deny", "@last", "ship", "--reason", "not today").code == 0
    done = command(place, "resume", "@last", "--json")
    last = done.json_lines()[-1]
    assert (done.code, last["state"]) == (8, "STOPPED")
    assert last["agents"]["ship"]["error"].startswith("denied by ")
    assert last["agents"]["ship"]["error"].endswith(": not today")


@pytest.mark.slow
def test_a_living_process_takes_the_answer_up_at_once(place: Path) -> None:
    busy = (
        '  other: {tasks: [{run: "until [ -e shipped ]; do sleep 0.05; done", effect: pure}], grants: {write: [.]}}\n'
    )
    (place / "team.yaml").write_text(TEAM + busy)
    start = [*COMMAND, "run", "team.yaml", "--workspace", "ws", "--json"]
    process = subprocess.Popen(start, cwd=place, env=environment(place), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if '"approval_asked"' in line:
                break
        listed = command(place, "ps")
        assert "RUNNING" in listed.out and "ship asks: Ship it?" in listed.out
        told = command(place, "approve", "@last", "--reason", "fine")
        assert told.code == 0, told.err
        assert f"approved: process {process.pid} goes on with it" in told.err
        out, _ = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["agents"]["ship"]["state"] == "COMPLETED"


async def test_two_answers_at_one_time_the_later_is_told(toka: Toka, tmp_path: Path, monkeypatch: Any) -> None:
    """Both looked while the question was open; the request that came first counts."""
    await asyncio.to_thread(waits, tmp_path, asked())

    async def first(settings: Any, run: RunId, verb: str, **more: Any) -> int:
        journal = SqliteJournal(tmp_path, SystemClock())
        try:
            await journal.submit(run, "deny", agent="ship", arguments=more["arguments"], by=("bob", "no"))
            return await journal.submit(run, verb, agent="ship", arguments=more["arguments"], by=more["by"])
        finally:
            await journal.aclose()

    monkeypatch.setattr("toka.cli.approve.submit_command", first)
    done = await asyncio.to_thread(toka, "approve", RUN, "--state", tmp_path)
    assert (done.code, "answered already: denied by bob: no" in done.err) == (2, True)
