"""Values between agents, by whole runs: outputs, references in commands and sentences, variables, what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from harness import Team, agent, call, succeed
from toka.config.agent import AgentConfig
from toka.core.shellwords import MAX_VALUE
from toka.events.event import StepDone, StepIntent
from toka.events.flow import OutputsMade
from toka.events.lifecycle import AgentStatus
from toka.runtime.outputs import parse_output
from toka.runtime.values import MAX_INLINE, ValueMissing

READ = ["filesystem-read"]


def survey(line: str, **outputs: Any) -> AgentConfig:
    return agent("survey", tasks=[{"run": line}], grant=["filesystem-write"], flow={"outputs": outputs})


def use(line: str, **more: Any) -> AgentConfig:
    needs = {"required": {"survey": {}}}
    return agent("use", tasks=[{"run": line}], grant=["filesystem-write"], dependencies=needs, flow=more)


def left(team: Team, name: str = "survey") -> Any:
    (event,) = [r.event for r in team.records if r.stream == name and isinstance(r.event, OutputsMade)]
    return event.values


async def test_what_a_command_printed_is_the_word_of_another(team: Team) -> None:
    nasty = 'it\'s "$(touch owned)"; touch owned2 `id` \\ * \t end'
    (team.work / "data").write_text(nasty)
    first = survey("cat data; echo noise >&2", said={"source": "stdout"})
    second = use('printf "%s" ${survey.said} > got; printf "%s" "<${survey.said}>" > quoted')
    result = await team.run(first, second)
    assert result.exit_code == 0, result.reason
    assert left(team) == {"said": nasty}
    assert (team.work / "got").read_text() == nasty
    assert (team.work / "quoted").read_text() == f"<{nasty}>"
    assert {p.name for p in team.work.iterdir()} == {"data", "got", "quoted"}
    (intent,) = [r.event for r in team.records if r.stream == "use" and isinstance(r.event, StepIntent)]
    assert intent.arguments == {"survey.said": nasty}, "the record shows what was handed over"
    assert "${survey.said}" in intent.what


async def test_types_are_kept(team: Team) -> None:
    (team.work / "n.json").write_text('{"a": [1, 2.5, true]}')
    first = survey(
        "printf 'one\\n\\ntwo\\n'",
        lines={"source": "stdout", "type": "lines"},
        whole={"source": "file", "path": "n.json", "type": "json"},
    )
    assert (await team.run(first, use("true"))).exit_code == 0
    assert left(team) == {"lines": ["one", "two"], "whole": {"a": [1, 2.5, True]}}


async def test_values_stand_in_sentences_and_large_ones_beside_them(team: Team) -> None:
    big = "line\n" * 100
    (team.work / "big").write_text(big)
    first = survey("echo short", said={"source": "stdout"}, big={"source": "file", "path": "big"})
    second = agent(
        "use",
        tasks=["Mend ${survey.said}, see ${survey.big}. $${kept}"],
        objectives=[{"description": "${survey.said} works"}],
        dependencies={"required": {"survey": {}}},
        flow={},
    )
    assert (await team.run(first, second)).exit_code == 0
    system, task = team.model.requests[0].messages[:2]
    assert "Mend short, see (the value survey.big, given below). ${kept}" in task.text
    assert "the value survey.big" in task.text and "line\nline" in task.text
    assert "short works" in system.text
    assert len(big) > MAX_INLINE


async def test_a_model_reports_values_and_must_give_all_of_them(team: Team) -> None:
    outputs = {"count": {"source": "report", "type": "integer"}, "names": {"source": "report", "type": "lines"}}
    team.script = {
        "agents": {
            "one": {
                "task-1": [
                    succeed(),
                    succeed(outputs={"count": "three", "names": []}),
                    succeed(outputs={"count": 3, "names": ["a", "b"]}),
                ]
            }
        },
        "default": [succeed()],
    }
    team.execution = {"task_retries": 3}
    team.__post_init__()
    second = agent(
        "two",
        tasks=[{"run": 'echo ${one.count} > n; printf "%s" ${one.names} > names'}],
        grant=["filesystem-write"],
        dependencies={"required": {"one": {}}},
        flow={},
    )
    result = await team.run(agent("one", flow={"outputs": outputs}), second)
    assert result.exit_code == 0, result.reason
    assert left(team, "one") == {"count": 3, "names": ["a", "b"]}
    assert (team.work / "n").read_text() == "3\n"
    assert (team.work / "names").read_text() == '["a","b"]'
    rejected = [e for e in team.events(StepDone) if e.failed]
    assert "outputs lacks count, names" in str(rejected[0].result)


@pytest.mark.parametrize(
    ("line", "output", "reason"),
    [
        ("true", {"source": "file", "path": "absent"}, "the output x is not there: absent does not exist"),
        ("echo no", {"source": "stdout", "type": "integer"}, "the output x is no integer: no"),
        ("echo '[1,2'", {"source": "stdout", "type": "list"}, "the output x is no list: [1,2"),
        ("head -c 1100000 /dev/zero | tr '\\0' x > f", {"source": "file", "path": "f"}, "has 1100000 bytes in f"),
        ("head -c 5 /dev/zero > f", {"source": "file", "path": "f"}, "f is a binary file"),
    ],
)
async def test_an_output_that_is_not_what_it_must_be_fails_its_agent(
    team: Team, line: str, output: dict[str, Any], reason: str
) -> None:
    result = await team.run(survey(line, x=output), use("true"))
    state = result.state.agents["survey"]
    assert (state.status, state.why) == (AgentStatus.FAILED, "output")
    assert reason in state.reason
    assert result.state.agents["use"].status is AgentStatus.SKIPPED


async def test_a_value_too_large_for_a_command_fails_the_task_that_names_it(team: Team) -> None:
    first = survey(f"head -c {MAX_VALUE + 1} /dev/zero | tr '\\0' x", big={"source": "stdout"})
    result = await team.run(first, use("echo ${survey.big}"))
    task = result.state.agents["use"].tasks["task-1"]
    assert task.why == "value"
    assert f"has {MAX_VALUE + 1} bytes" in task.reason


async def test_built_in_values_of_every_agent(team: Team) -> None:
    first = agent(
        "survey",
        tasks=[{"run": "true"}],
        grant=READ,
        objectives=[{"description": "it is there", "check": {"run": "true"}}],
        flow={},
    )
    line = "echo ${survey.status} ${survey.verified} ${survey.completed} ${survey.failed} ${survey.total} > got"
    assert (await team.run(first, use(line))).exit_code == 0
    assert (team.work / "got").read_text() == "completed 1 1 0 1\n"


async def test_variables_are_those_of_one_agent_and_secrets_are_never_written(team: Team) -> None:
    first = agent(
        "survey",
        tasks=[{"run": "echo $TOKEN $AREA > got; echo $TOKEN"}],
        grant=["filesystem-write"],
        flow={"env": {"TOKEN": "Bearer ${secret:key}", "AREA": "${inputs.area}"}, "inputs": {"area": "tests/"}},
    )
    team.secrets = {"key": "s3cr3t-value"}
    result = await team.run(first, use("echo -$TOKEN- > other"))
    assert result.exit_code == 0, result.reason
    assert (team.work / "got").read_text() == "Bearer s3cr3t-value tests/\n"
    assert (team.work / "other").read_text() == "--\n"
    assert all("s3cr3t" not in repr(r.event) for r in team.records)


async def test_a_model_has_the_variables_of_its_agent(team: Team) -> None:
    team.script = {"default": [call("run_command", command="sh -c 'echo $AREA'"), succeed()]}
    team.__post_init__()
    one = agent("one", grant=["command-execution"], flow={"env": {"AREA": "north"}})
    assert (await team.run(one)).exit_code == 0
    assert "north" in team.model.requests[1].messages[-1].text


async def test_a_secret_that_nobody_defines_fails_its_agent_before_it_starts(team: Team) -> None:
    result = await team.run(agent("one", tasks=[{"run": "true"}], flow={"env": {"A": "${secret:none}"}}))
    state = result.state.agents["one"]
    assert (state.status, state.why) == (AgentStatus.FAILED, "value")
    assert "there is no secret none" in state.reason


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("text", "a\nb\n", "a\nb"),
        ("lines", "a\n\n b \r\n", ["a", " b "]),
        ("integer", " 12\n", 12),
        ("number", "1.5", 1.5),
        ("boolean", "true\n", True),
        ("list", '["a", 1]', ["a", 1]),
        ("json", "null", None),
    ],
)
def test_texts_become_values(kind: Any, text: str, value: Any) -> None:
    assert parse_output(kind, text) == value


@pytest.mark.parametrize(
    ("kind", "text"),
    [("integer", "1.5"), ("integer", "true"), ("number", "NaN"), ("boolean", "yes"), ("list", "{}"), ("json", "")],
)
def test_what_is_none_is_refused(kind: Any, text: str) -> None:
    with pytest.raises(ValueMissing):
        parse_output(kind, text)
