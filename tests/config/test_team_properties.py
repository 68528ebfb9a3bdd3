"""Whatever a team file says, the loader answers with agents or with findings that have a place."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from config.test_team import SAME, TEXT
from config.test_team_convert import JSON, LINE
from config.test_team_findings import FINDINGS
from toka.config.agent import AgentConfig
from toka.config.check import check
from toka.config.emit import to_yaml
from toka.config.source import Source
from toka.config.team_keys import AGENT, TEAM
from toka.core.shellwords import shell_command
from toka.errors import ConfigError

PIECES = [
    "- ", ": ", "\n", "  ", "{", "}", "[", "]", "&a ", "*a", '"', "'", "#", "| ", "> ", "toka: 1\n", "agents:\n",
    "  a:\n",
    "    run: x\n", "${", "$${", "}", "item", "inputs.", "secret:", "a.status", "for_each", "when", "env", "grants",
    "true",
    "null", "1", "é", "inputs:\n", "defaults:\n", "include: ", "workspace: ",
    "${inputs.x}", "${a.o}", "${item.k}",
]  # fmt: skip


def attempt(text: str, **inputs: object) -> None:
    reading = AgentConfig.read([Source("team.yaml", text)], inputs)
    found = [*reading.findings, *check((*reading.configs, *reading.drafts), complete=reading.complete)]
    lines = text.count("\n") + text.count("\r") + 2
    for finding in found:
        assert finding.file in ("team.yaml", "<inputs>")
        assert finding.file == "<inputs>" or 1 <= finding.line <= lines
        assert finding.render()
        assert finding.text.isprintable()
    for config in (*reading.configs, *reading.drafts):
        config.position("metadata", "name")
        config.position("tasks", "default", 0, "run")
    try:
        assert AgentConfig.parse(text, "team.yaml", inputs) == reading.configs[0]
    except ConfigError as error:
        assert error.findings
    for config in reading.configs:
        assert AgentConfig.from_json(config.to_json()) == config
        assert config.task_list()
        config.grant()


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@example("toka: 1\nagents: {a: {tasks: {conditional: 5}, timeout: 1m}}\n")
@example("toka: 1\nagents: {a: {run: x, flow: [1], needs: [[]]}}\n")
@example("toka: &a 1\nagents: {*a: x}\n")
def test_any_sequence_of_pieces(text: str) -> None:
    attempt("toka: 1\n" + text)
    attempt("toka: 1\nagents:\n  a:\n    run: x\n" + text)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from([*AGENT, "goall"]), JSON, max_size=5), JSON)
def test_any_values_of_any_keys(agent: dict[str, Any], value: object) -> None:
    attempt(to_yaml({"toka": 1, "agents": {"a": agent, "b": {"run": "x", "needs": ["a"]}}}))
    attempt(to_yaml({"toka": 1, "defaults": agent, "agents": {"b": {"run": "x"}}}), x=value)


@pytest.mark.slow
@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([name for name in TEAM if name != "include"]), JSON, max_size=4))
def test_any_values_at_the_top(team: dict[str, Any]) -> None:
    attempt(to_yaml({"agents": {"a": {"run": "x"}}, **team, "toka": 1}))


TEXTS = [TEXT, *(text for text, _ in FINDINGS.values() if "10_000" not in text and len(text) < 2_000)]


@settings(deadline=None)
@given(st.data())
def test_any_changed_team(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 8))
        text = text[:at] + data.draw(st.sampled_from(["", *PIECES])) + text[at + cut :]
    if "include" not in text:
        attempt(text)


@given(
    st.lists(
        st.sampled_from(["a", "b c", "$x", "'", '"', "$(id)", ";", "", "\\", "*", "${item}", "a${item}b"]), min_size=1
    )
)
@example(["printf", "%s", "${item}"])
def test_words_stay_words(words: list[str]) -> None:
    text = to_yaml({"toka": 1, "agents": {"a": {"for_each": ["x"], "run": words}}})
    (config,) = AgentConfig.read([Source("t", text)]).configs
    line = config.task_list()[0].run
    assert line is not None
    command = shell_command(line, {"item": "o'n \"e"})
    expanded = command.line
    for name in command.environment:
        expanded = expanded.replace(f'"${{{name}}}"', shlex.quote("o'n \"e"))
    assert shlex.split(expanded) == [word.replace("${item}", "o'n \"e") for word in words]


@given(LINE)
def test_an_escape_is_text_in_the_end(line: str) -> None:
    text = to_yaml({"toka": 1, "agents": {"a": {"run": "x", "description": line.replace("${", "$${")}}})
    reading = AgentConfig.read([Source("t", text)])
    assert [f.code for f in reading.findings] == []
    assert reading.configs[0].spec.description == line


@pytest.mark.parametrize("name", SAME)
def test_the_same_agent_twice_is_a_clash_and_nothing_worse(name: str) -> None:
    body = "".join(f"    {line}\n" for line in SAME[name][0].splitlines())
    attempt(f"toka: 1\nagents:\n  a:\n{body}  b:\n{body}")


def test_the_team_of_the_manual_of_specs_is_sound() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/specs.md").read_text()
    reading = AgentConfig.read([Source("t", text.partition("```yaml\n")[2].partition("```")[0])])
    assert (reading.findings, [c.name for c in reading.configs]) == ((), ["survey", "review"])
