"""`toka resolve`: which answer counts, whom it is for, and what is refused."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cli.records import COMMAND, Toka, commands, write_run
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.events.event import (
    AgentStateChanged,
    Event,
    ExecutorAttached,
    RunCreated,
    RunStateChanged,
    StepDone,
    StepInDoubt,
    StepIntent,
    StepResolved,
    TaskStateChanged,
)
from toka.journal.sqlite import SqliteJournal

RUN = "20261101-101010-abcdef"
BEGUN = [RunCreated(["pub", "other"], "0" * 64, "/w"), ExecutorAttached("h", 1, 1), RunStateChanged("RUNNING")]
WAITS = RunStateChanged("WAITING", "pub: publish needs an answer")
STEP = "publish/1/1/run/0"


def started(step: str = STEP, effect: str = "once") -> list[Event]:
    task = step.partition("/")[0]
    return [
        AgentStateChanged("STARTING"),
        AgentStateChanged("RUNNING"),
        TaskStateChanged(task, "RUNNING", 1, title=f"echo {task}"),
        StepIntent(step, "key", effect, f"echo {task}", {}, "written by a person"),
    ]


def asking(step: str = STEP) -> list[Event]:
    question = "echo was started and Toka ended before it did. Did it happen?"
    return [
        *started(step),
        StepInDoubt(step, question),
        TaskStateChanged(step.partition("/")[0], "NEEDS_ATTENTION", 1, question, why="in_doubt"),
        AgentStateChanged("WAITING", question, "in_doubt"),
    ]


def waits(state: Path, *more: Event, other: tuple[Event, ...] = ()) -> None:
    write_run(state, RUN, [("", [*BEGUN, WAITS]), ("pub", [*asking(), *more]), ("other", other)])


def test_the_first_answer_counts_and_the_second_is_told_of_it(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path)
    first = toka("resolve", RUN, "publish", "--not-happened", "--reason", "looked", "--state", tmp_path)
    assert (first.code, "noted: pub, task publish: not-happened" in first.err) == (0, True)
    for answer in ("--happened", "--not-happened", "--abandon"):
        again = toka("resolve", RUN, "publish", answer, "--state", tmp_path)
        assert again.code == 2
        assert "pub, task publish, was answered already: not-happened by " in again.err
        assert ": looked" in again.err and "the first answer counts" in again.err
    assert [c.arguments["answer"] for c in commands(tmp_path, RUN)] == ["not-happened"]


def test_an_answer_that_was_taken_up_counts_too(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, StepResolved(STEP, "happened", "ada", "the ledger"), StepDone(STEP, {"exit": 0}))
    for arguments in (("publish",), ("publish", "--agent", "pub")):
        again = toka("resolve", RUN, *arguments, "--not-happened", "--state", tmp_path)
        assert (again.code, "answered already: happened by ada: the ledger" in again.err) == (2, True)
    assert toka("resolve", RUN, "publish", "--agent", "other", "--happened", "--state", tmp_path).code == 9
    assert not commands(tmp_path, RUN)


def test_what_is_asked_anew_takes_a_new_answer(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, StepResolved(STEP, "not-happened", "ada", ""), *asking()[2:])
    assert toka("resolve", RUN, "publish", "--happened", "--state", tmp_path).code == 0


async def test_two_answers_at_one_time_the_later_is_told(toka: Toka, tmp_path: Path, monkeypatch: Any) -> None:
    """Both looked while the question was open; the request that came first counts."""
    await asyncio.to_thread(waits, tmp_path)

    async def first(settings: Any, run: RunId, verb: str, **more: Any) -> int:
        journal = SqliteJournal(tmp_path, SystemClock())
        earlier = {"task": "publish", "answer": "abandon"}
        try:
            await journal.submit(run, verb, agent="pub", arguments=earlier, by=("bob", "no"))
            return await journal.submit(run, verb, agent="pub", arguments=more["arguments"], by=more["by"])
        finally:
            await journal.aclose()

    monkeypatch.setattr("toka.cli.resolve.submit_command", first)
    done = await asyncio.to_thread(toka, "resolve", RUN, "publish", "--happened", "--state", tmp_path)
    assert (done.code, "answered already: abandon by bob: no" in done.err) == (2, True)


def test_an_answer_to_one_agent_is_none_to_another(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path, other=tuple(asking()))
    both = toka("resolve", RUN, "publish", "--happened", "--state", tmp_path)
    assert (both.code, "say which one: --agent NAME" in both.err) == (2, True)
    assert toka("resolve", RUN, "publish", "--happened", "--agent", "pub", "--state", tmp_path).code == 0
    unsaid = toka("resolve", RUN, "publish", "--abandon", "--state", tmp_path)
    assert (unsaid.code, "say which one: --agent NAME" in unsaid.err) == (2, True)
    assert toka("resolve", RUN, "publish", "--abandon", "--agent", "other", "--state", tmp_path).code == 0
    answers = [(c.agent, c.arguments["answer"]) for c in commands(tmp_path, RUN)]
    assert answers == [("pub", "happened"), ("other", "abandon")]


@pytest.mark.parametrize("task", ["publish", "nothing"])
def test_nothing_to_answer(toka: Toka, tmp_path: Path, task: str) -> None:
    write_run(tmp_path, RUN, [("", [*BEGUN, WAITS]), ("pub", [TaskStateChanged("publish", "SUCCEEDED", 1)])])
    done = toka("resolve", RUN, task, "--happened", "--state", tmp_path)
    assert (done.code, "waits for an answer" in done.err) == (9, True)


@pytest.mark.parametrize("said", [("--happened", "--not-happened"), ("--abandon", "--happened"), ()])
def test_exactly_one_answer_is_taken(toka: Toka, tmp_path: Path, said: tuple[str, ...]) -> None:
    waits(tmp_path)
    done = toka("resolve", RUN, "publish", *said, "--state", tmp_path)
    assert done.code == 2
    for answer in said or ("--happened", "--not-happened", "--abandon"):
        assert answer in done.err
    assert not commands(tmp_path, RUN)


def test_show_tells_what_was_asked_and_is_not_taken_up_yet(toka: Toka, tmp_path: Path) -> None:
    waits(tmp_path)
    resolving = f"toka resolve {RUN} publish --happened|--not-happened|--abandon --state {tmp_path}"
    before = toka("show", RUN, "--state", tmp_path)
    assert resolving in before.out and "noted" not in before.out
    assert toka("show", RUN, "--json", "--state", tmp_path).json["requests"] == []
    assert toka("resolve", RUN, "publish", "--abandon", "--reason", "why", "--state", tmp_path).code == 0
    assert toka("pause", RUN, "pub", "--state", tmp_path).code == 0
    shown = toka("show", RUN, "--state", tmp_path).out
    assert "noted, and not taken up yet: resolve task publish: abandon of pub, by " in shown and " (why)" in shown
    assert "noted, and not taken up yet: pause pub, by " in shown
    assert "task publish is answered: abandon by " in shown and resolving not in shown
    said = toka("show", RUN, "--json", "--state", tmp_path).json["requests"]
    assert [(each["verb"], each["agent"], each["reason"]) for each in said] == [
        ("resolve", "pub", "why"),
        ("pause", "pub", ""),
    ]
    assert said[0]["arguments"] == {"task": "publish", "answer": "abandon"} and said[0]["author"]


def test_the_command_that_answers_names_the_agent_where_it_must(toka: Toka, tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", [*BEGUN, WAITS]), ("pub[1]", asking()), ("pub[2]", asking())])
    shown = toka("show", RUN, "--state", tmp_path).out
    assert f"toka resolve {RUN} publish --agent 'pub[2]' --happened|" in shown
    assert toka("resolve", RUN, "publish", "--agent", "pub", "--happened", "--state", tmp_path).code == 2
    assert toka("resolve", RUN, "publish", "--agent", "pub[2]", "--happened", "--state", tmp_path).code == 0
    assert [c.agent for c in commands(tmp_path, RUN)] == ["pub[2]"]


def test_the_only_instance_that_asks_is_meant_by_its_agents_name(toka: Toka, tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", [*BEGUN, WAITS]), ("pub[1]", asking())])
    assert toka("resolve", RUN, "publish", "--agent", "pub", "--happened", "--state", tmp_path).code == 0
    assert [c.agent for c in commands(tmp_path, RUN)] == ["pub[1]"]


def test_who_answers_before_the_question_is_told_who_asks_it(toka: Toka, tmp_path: Path) -> None:
    write_run(tmp_path, RUN, [("", BEGUN), ("pub", started())])
    early = toka("resolve", RUN, "publish", "--happened", "--state", tmp_path)
    assert (early.code, f"toka resume {RUN} asks first" in early.err) == (9, True)


PRINTS = """
toka: 1
agents:
  pub:
    grants: {write: [.]}
    outputs: {n: {as: integer, from: stdout}}
    tasks:
      - {id: first, run: "echo begin; touch first; while [ ! -e go ]; do sleep 0.05; done", effect: once}
      - {id: count, run: "touch second; while [ ! -e on ]; do sleep 0.05; done; echo 4", effect: once}
"""


@pytest.mark.slow
def test_what_printed_a_value_that_is_needed_is_not_taken_as_done(toka: Toka, tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    (tmp_path / "team.yaml").write_text(PRINTS)

    def killed(*command: str, at: str) -> None:
        process = subprocess.Popen([*COMMAND, *command, "-q"], cwd=tmp_path, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 20
            while not (tmp_path / "ws" / at).exists() and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()

    killed("run", "team.yaml", "--workspace", "ws", "--state", "st", at="first")
    assert toka("resume", "@last", "--state", "st", "-q").code == 7
    assert toka("resolve", "@last", "first", "--happened", "--state", "st").code == 0, "its output is not needed"
    killed("resume", "@last", "--state", "st", at="second")
    waited = toka("resume", "@last", "--state", "st", "-q")
    assert (waited.code, " count --happened|--not-happened|--abandon --state st" in waited.err) == (7, True)
    refused = toka("resolve", "@last", "count", "--happened", "--state", "st")
    assert (refused.code, "pub leaves n from what task count printed, and that is lost" in refused.err) == (2, True)
    assert "--not-happened" in refused.err
    (tmp_path / "ws" / "on").touch()
    assert toka("resolve", "@last", "count", "--not-happened", "--state", "st").code == 0
    assert toka("resume", "@last", "--state", "st", "-q").code == 0
    assert toka("show", "@last", "--json", "--state", "st").json["agents"]["pub"]["outputs"] == {"n": 4}
