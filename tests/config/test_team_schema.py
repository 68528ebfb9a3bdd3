"""The JSON Schema of team files accepts every sound one and refuses what it can see is wrong; the manual follows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from config.test_team import SAME, TEXT
from config.test_team_findings import FINDINGS
from toka.config.agent import AgentConfig
from toka.config.convert import team_text
from toka.config.manual import manual
from toka.config.nodes import plain
from toka.config.schema import spec_schema
from toka.config.source import Source
from toka.config.team_keys import AGENT, DEFAULTS, GRANTS, INPUT, LIMITS, NEED, OUTPUT, TEAM
from toka.config.team_schema import as_draft_7, both_schema, team_schema
from toka.config.yaml import read_nodes

SCHEMAS = {
    "both": both_schema(),
    "team": team_schema(),
    "both, draft 7": as_draft_7(both_schema()),
    "team, draft 7": as_draft_7(team_schema()),
}
VALIDATORS = {name: jsonschema_rs.validator_for(schema) for name, schema in SCHEMAS.items()}
DOCS = Path(__file__).resolve().parents[2] / "docs"


def data(text: str) -> Any:
    node = read_nodes(Source("team.yaml", text))
    assert node is not None
    return plain(node)


def body(name: str) -> str:
    lines = "".join(f"    {line}\n" for line in SAME[name][0].splitlines())
    return f"toka: 1\nagents:\n  a:\n{lines}"


@pytest.mark.parametrize("name", SCHEMAS)
def test_it_is_a_schema_of_its_draft(name: str) -> None:
    schema = SCHEMAS[name]
    jsonschema_rs.meta.validate(schema)
    assert schema["$schema"].partition("org/")[2] == ("draft-07/schema#" if "7" in name else "draft/2020-12/schema")
    assert ("$defs" in json.dumps(schema)) == ("7" not in name)


@pytest.mark.parametrize("name", SCHEMAS)
def test_sound_teams_are_accepted(name: str, fixture_specs: Path) -> None:
    texts = [TEXT, *(body(case) for case in SAME), team_text(AgentConfig.load_directory(fixture_specs))]
    for text in texts:
        errors = [f"{e.message} at {e.instance_path}" for e in VALIDATORS[name].iter_errors(data(text))]
        assert errors == [], text


def test_the_original_specs_as_a_team_are_accepted(shared_specs: Path) -> None:
    text = team_text(AgentConfig.load_directory(shared_specs))
    for validator in VALIDATORS.values():
        assert [e.message for e in validator.iter_errors(data(text))] == []


def test_specs_are_accepted_by_the_one_for_both(fixture_specs: Path) -> None:
    for path in fixture_specs.glob("*.yaml"):
        for name in ("both", "both, draft 7"):
            assert [e.message for e in VALIDATORS[name].iter_errors(data(path.read_text()))] == []
        assert not VALIDATORS["team"].is_valid(data(path.read_text()))
    assert not VALIDATORS["both"].is_valid({"metadata": {"name": "a"}, "spec": {}})
    assert not VALIDATORS["both"].is_valid({"metadata": {"name": "a b"}, "spec": {}, "tasks": ["x"]})


SEEN = [
    "key", "topkey", "toplevel agent key", "version", "empty", "nothing to do", "two", "agents list", "agent text",
    "foreach prose", "foreach empty", "foreach 10000", "when true", "name", "dot", "bad name", "file w/o path",
    "no from", "wrong from", "wrong as", "wrong type", "limit", "grants list", "needs", "needs num", "approve type",
    "env", "defaults", "words", "refs bad", "tasks",
]  # fmt: skip
"""Mistakes of the list that a schema can see."""


@pytest.mark.parametrize("case", SEEN)
def test_wrong_teams_are_refused(case: str) -> None:
    for name, validator in VALIDATORS.items():
        assert not validator.is_valid(data(FINDINGS[case][0])), name


@pytest.mark.parametrize(
    "change",
    [
        {"run": 5},
        {"run": "x", "goal": "y"},
        {"run": "x", "sandbox": "no"},
        {"run": "x", "priority": "hgih"},
        {"run": "x", "enforcement": "lax"},
        {"run": "x", "checks": [[]]},
        {"run": "x", "check": {"rnu": "y"}},
        {"run": "x", "limits": {"max_cost": 1}},
        {"run": "x", "outputs": {"o": "file"}},
        {"run": "x", "outputs": {"a b": "stdout"}},
        {"run": "x", "needs": {"b": {"verified": "yes"}}},
        {"run": "x", "grants": {"git": "push"}},
        {"run": "x", "security": {"sandbx": True}},
        {"run": "x", "objectives": [{"deliverable": "x"}]},
        {"run": "x", "env": {"A-B": "x"}},
    ],
)
def test_what_the_loader_refuses_is_refused(change: dict[str, Any]) -> None:
    for name, validator in VALIDATORS.items():
        assert validator.is_valid({"toka": 1, "agents": {"a": {"run": "x"}}})
        assert not validator.is_valid({"toka": 1, "agents": {"a": change}}), name


def keys(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each key of each definition, in whatever spelling."""
    for name, definition in {"": schema, **schema["$defs"]}.items():
        for option in (definition, *definition.get("anyOf", ())):
            for key, field in option.get("properties", {}).items():
                yield name, key, field


def test_every_key_has_a_description_and_an_example() -> None:
    for schema in (team_schema(), spec_schema()):
        bare = [f"{n}.{k}" for n, k, f in keys(schema) if not ({"description", "examples"} <= f.keys() or "$ref" in f)]
        bare = [b for b in bare if not b.startswith((".if", "Grants.properties"))]
        assert bare == []


@pytest.mark.slow
def test_examples_are_accepted() -> None:
    definitions = team_schema()["$defs"]
    for name, key, field in keys(team_schema()):
        if "$ref" in field:
            continue
        validator = jsonschema_rs.validator_for({**field, "$defs": definitions})
        for example in field["examples"]:
            assert [e.message for e in validator.iter_errors(example)] == [], f"{name}.{key}"


def test_every_key_of_the_reader_is_in_the_schema_and_the_manual() -> None:
    schema, text = team_schema(), manual()
    definitions = schema["$defs"]
    assert schema["properties"].keys() == TEAM.keys()
    for name, known in {
        "TeamAgent": AGENT, "Input": INPUT, "Grants": GRANTS, "Limits": LIMITS, "Need": NEED, "TeamOutput": OUTPUT,
    }.items():  # fmt: skip
        assert definitions[name]["properties"].keys() == known.keys()
        assert all(f"| `{key}` |" in text for key in known)
    assert schema["properties"]["defaults"]["anyOf"][0]["properties"].keys() == set(DEFAULTS)


def test_the_manual_is_up_to_date() -> None:
    """Else: toka schema --markdown > docs/spec.md"""
    assert (DOCS / "spec.md").read_text() == manual()


def test_the_team_of_the_manual_is_sound() -> None:
    text = manual().partition("```yaml\n")[2].partition("```")[0]
    reading = AgentConfig.read([Source("team.yaml", text)])
    assert reading.findings == ()
    assert [c.name for c in reading.configs] == ["survey", "fix"]
    for validator in VALIDATORS.values():
        assert validator.is_valid(data(text))
