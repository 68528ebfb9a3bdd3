"""How a run ended, in words and as a record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness import Team, agent, call, succeed
from runtime.test_process import Door, with_door
from toka.cli import door
from toka.cli.summary import SHOWN, Details, details_of, done_json, summary_lines
from toka.cli.view import Denial
from toka.core.ids import RunId
from toka.core.message import Usage
from toka.events.event import RunCreated
from toka.events.lifecycle import AgentStatus, ObjectiveStatus, RunStatus, TaskStatus
from toka.events.state import AgentState, ObjectiveState, RunState, TaskState
from toka.orchestration.result import RunResult

RUN = RunId("20261123-053626-wua9rr")
EVIL = "a\x1b[2Jb\rc\x07\x9b31m\u202e"


def state(*agents: AgentState, model: str | None = None, status: RunStatus = RunStatus.RUNNING) -> RunState:
    created = RunCreated([a.name for a in agents], "", "/w", model=model)
    return RunState(RUN, status, created=created, agents={a.name: a for a in agents}, started_at=10.0, changed_at=12.5)


def lines(*agents: AgentState, reason: str = "", details: Details | None = None) -> list[str]:
    return summary_lines(RunResult(RUN, RunStatus.FAILED, state(*agents), reason), details=details)


def test_summary_tells_state_agents_objectives_denials_cost_and_where_to_look() -> None:
    fixer = AgentState(
        "fixer",
        AgentStatus.COMPLETED,
        tasks={name: TaskState(name, status=TaskStatus.SUCCEEDED) for name in ("fix", "repair-1")},
        objectives={
            1: ObjectiveState(1, "All tests pass", ObjectiveStatus.VERIFIED, 1),
            2: ObjectiveState(2, "It reads well", ObjectiveStatus.CLAIMED),
        },
        usage=Usage(1_000, 234, calls=2),
        cost_usd=0.0123,
        denied=1,
        tool_calls=3,
        started_at=10.0,
    )
    late = AgentState("a-skipped", AgentStatus.SKIPPED, "no model: none found", "no_model")
    details = Details(
        {"fixer": (Denial("fix", "write_file", "filesystem-write: docs", "README.md is outside", {}),)}, ()
    )
    result = RunResult(RUN, RunStatus.COMPLETED, state(late, fixer, status=RunStatus.COMPLETED))
    text = "\n".join(summary_lines(result, options=" --state /s", details=details))
    assert (
        text
        == f"""\
run {RUN} COMPLETED after 2.5s

  fixer      COMPLETED  2/2 tasks  1,234 tokens  1 verified, 1 claimed; 1 repair; 1 denied
  a-skipped  SKIPPED                             no model: none found

objectives
  verified  fixer  All tests pass (after repair 1)
  claimed   fixer  It reads well

denied
  fixer  write_file: README.md is outside   rule: filesystem-write: docs

1,234 tokens in 2 model calls, 3 tool calls, cost $0.0123

look further
  toka show {RUN} --state /s
  toka logs {RUN} fixer --state /s
  toka events {RUN} --state /s
  toka audit verify {RUN} --state /s"""
    )


def test_summary_without_the_record_counts_denials_and_knows_a_script_by_the_command() -> None:
    result = RunResult(
        RUN, RunStatus.FAILED, state(AgentState("a", AgentStatus.FAILED, denied=2), model="scripted:x.yaml")
    )
    text = "\n".join(summary_lines(result))
    assert "SCRIPTED" in text
    assert "denied: 2 tool calls" in text


def test_summary_of_a_large_run_is_bounded_and_begins_with_what_failed() -> None:
    many = [AgentState(f"a{n:03}", AgentStatus.COMPLETED, objectives={1: ObjectiveState(1, "t")}) for n in range(400)]
    lines = summary_lines(RunResult(RUN, RunStatus.FAILED, state(*many, AgentState("zz", AgentStatus.FAILED, "why"))))
    assert len(lines) < 100
    assert lines[2].strip().startswith("zz")
    assert "  and 371 more agents" in lines
    assert f"  toka logs {RUN} zz" in lines


def test_names_of_instances_are_quoted_in_commands_for_a_shell() -> None:
    lines = summary_lines(RunResult(RUN, RunStatus.FAILED, state(AgentState("fix[3]", AgentStatus.FAILED, "why"))))
    assert f"  toka logs {RUN} 'fix[3]'" in lines


@pytest.mark.slow
async def test_details_come_from_the_record(tmp_path: Path) -> None:
    script = {"default": [call("write_file", path="no.txt", content=""), call("read_file", path="x"), succeed()]}
    team = Team(tmp_path, script)
    async with team.open() as runtime:
        session = await team.start(runtime, agent(grant=["filesystem-read"]))
        await session.run()
        await session.context.recorder.close()
        details = details_of(runtime.journal, session.context.id)
    (denial,) = details.denied["one"]
    assert (denial.tool, denial.rule) == ("write_file", "no filesystem-write")
    assert details.models == ("scripted:test",)


async def test_tasks_that_an_agent_did_not_come_to_are_counted(tmp_path: Path) -> None:
    team = Team(tmp_path)
    with_door(team, Door(breaks=9), max_restarts=0)
    async with team.open() as runtime:
        sound = agent("sound", [{"run": "true"}])
        session = await team.start(runtime, agent("pub", ["a", "b", "c"]), sound)
        result = await session.run()
        await session.context.recorder.close()
        details = details_of(runtime.journal, session.context.id, result.state)
    assert {name: len(tasks) for name, tasks in details.tasks.items()} == {"pub": 3}
    lines = summary_lines(result, details=details)
    assert any(line.split()[:4] == ["pub", "CRASH_LOOP", "0/3", "tasks"] for line in lines), lines
    assert any(line.split()[:3] == ["pub", "CRASH_LOOP", "0/1"] for line in summary_lines(result)), "else unknown"
    assert any(line.split()[:4] == ["sound", "COMPLETED", "1/1", "tasks"] for line in lines), lines


async def test_details_are_read_a_page_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "PAGE", 2)
    team = Team(tmp_path, {"default": [call("write_file", path=f"{n}", content="") for n in range(5)] + [succeed()]})
    async with team.open() as runtime:
        other = await team.start(runtime, agent("other"))  # its records come first: ids are no count
        await other.context.recorder.close()
        session = await team.start(runtime, agent(grant=["filesystem-read"]))
        await session.run()
        sizes = [len(page) for page in door.pages(runtime.journal, session.context.id)]
        assert set(sizes[:-1]) == {2}
        assert sum(sizes) == len(runtime.journal.read(session.context.id))
        denials = details_of(runtime.journal, session.context.id).denied["one"]
        assert [d.arguments["path"] for d in denials] == ["0", "1", "2", "3", "4"]
        await session.context.recorder.close()


def test_a_call_of_unknown_price_makes_the_cost_unknown() -> None:
    priced = AgentState("a", AgentStatus.COMPLETED, usage=Usage(5, 5, calls=1), cost_usd=1.5)
    assert "10 tokens in 1 model call, 0 tool calls, cost $1.50" in lines(priced)
    odd = AgentState("b", AgentStatus.COMPLETED, usage=Usage(1, 1, calls=1), cost_usd=None, tool_calls=1)
    assert "12 tokens in 2 model calls, 1 tool call, cost unknown" in lines(priced, odd)


def test_the_reason_stands_below_the_head_and_an_agents_beside_it() -> None:
    shown = lines(AgentState("a", AgentStatus.FAILED, "line one\nline two"), reason="a: line one")
    assert shown[:2] == [f"run {RUN} FAILED after 2.5s", "  a: line one"]
    assert "  a  FAILED      line one …" in shown


def test_restarts_are_counted_and_that_none_is_left_is_told() -> None:
    often = AgentState("often", AgentStatus.FAILED, "it broke", restarts=3)
    text = lines(often, AgentState("other", AgentStatus.COMPLETED))
    assert "3 restarts; it broke" in text[2]
    assert not any("used up" in line for line in text)
    text = lines(replace(often, restarts=20), AgentState("other", AgentStatus.COMPLETED))
    assert "  the 20 restarts of this run are used up: whoever crashes or fails now is not restarted" in text


def test_who_is_held_for_its_health_is_told_with_the_commands_that_go_on() -> None:
    busy = AgentState("busy", AgentStatus.COMPLETED, usage=Usage(1, 1, calls=1))
    loop, stuck = AgentState("al[1]", AgentStatus.CRASH_LOOP), AgentState("stuck", AgentStatus.QUARANTINED)
    result = RunResult(RUN, RunStatus.WAITING, state(busy, stuck, loop, AgentState("pub", AgentStatus.WAITING)))
    text = "\n".join(summary_lines(result, options=" --state /s"))
    assert (
        f"""
held until a person decides
  stuck is in QUARANTINED; one of
    toka retry {RUN} stuck --state /s
    toka resume {RUN} stuck --state /s
    toka stop {RUN} --state /s
  al[1] is in CRASH_LOOP; one of
    toka retry {RUN} 'al[1]' --state /s
    toka resume {RUN} 'al[1]' --state /s
    toka stop {RUN} --state /s
"""
        in text
    )
    assert f"  toka logs {RUN} 'al[1]' --state /s" in text
    assert f"  toka logs {RUN} pub" in lines(busy, AgentState("pub", AgentStatus.WAITING))


def test_denials_are_counted_cut_and_told_with_their_rule() -> None:
    many = tuple(Denial("t", f"tool{n}", "rule", "reason", {}, count=1 + n % 2) for n in range(SHOWN + 5))
    shown = lines(AgentState("a", AgentStatus.FAILED, denied=99), details=Details({"a": many}))
    assert "  a  tool0: reason   rule: rule" in shown
    assert "  a  tool1, 2 times: reason   rule: rule" in shown
    assert "  and 5 more kinds of denied calls" in shown
    assert len([line for line in shown if line.endswith("rule: rule")]) == SHOWN


def test_of_many_objectives_those_that_failed_are_shown() -> None:
    fine = {n: ObjectiveState(n, f"fine {n}", ObjectiveStatus.VERIFIED) for n in range(1, SHOWN + 10)}
    bad = {SHOWN + 10: ObjectiveState(SHOWN + 10, "bad", ObjectiveStatus.FAILED)}
    shown = lines(AgentState("a", AgentStatus.FAILED, objectives={**fine, **bad}))
    assert shown[shown.index("objectives") + 1] == "  failed    a  bad"
    assert "  and 10 more objectives" in shown


@pytest.mark.parametrize(
    ("agents", "curious"),
    [
        ([AgentState("a", AgentStatus.COMPLETED), AgentState("b", AgentStatus.FAILED)], "b"),
        ([AgentState("a", AgentStatus.COMPLETED), AgentState("b", AgentStatus.COMPLETED, denied=1)], "b"),
        ([AgentState("a", AgentStatus.SKIPPED), AgentState("b", AgentStatus.COMPLETED, usage=Usage(calls=1))], "b"),
        ([AgentState("a", AgentStatus.COMPLETED), AgentState("b", AgentStatus.COMPLETED)], "a"),
    ],
)
def test_the_logs_to_look_at_are_those_of_whom_one_wonders_about(agents: list[AgentState], curious: str) -> None:
    assert f"  toka logs {RUN} {curious}" in lines(*agents)


def test_a_run_without_agents_has_an_end_too() -> None:
    shown = lines()
    assert "0 tokens in 0 model calls, 0 tool calls, cost $0.00" in shown
    assert not any("toka logs" in line for line in shown)


def test_nothing_that_agents_wrote_reaches_the_terminal_as_it_is() -> None:
    hostile = AgentState(
        EVIL, AgentStatus.FAILED, EVIL, objectives={1: ObjectiveState(1, EVIL)}, denied=1, usage=Usage(calls=1)
    )
    details = Details({EVIL: (Denial(EVIL, EVIL, EVIL, EVIL, {}),)})
    text = "".join(lines(hostile, reason=EVIL, details=details))
    assert text.isprintable()


@pytest.mark.parametrize(("models", "scripted"), [((), False), (("openai:x",), False), (("a:b", "scripted:s"), True)])
def test_the_done_record_says_whether_a_script_answered(models: tuple[str, ...], scripted: bool) -> None:
    result = RunResult(RUN, RunStatus.COMPLETED, state(AgentState("a", AgentStatus.COMPLETED)))
    record = done_json(result, Details(models=models))
    assert record == {**result.to_json(), "scripted": scripted}
    assert (record["type"], record["run_id"], list(record["agents"])) == ("done", RUN, ["a"])
