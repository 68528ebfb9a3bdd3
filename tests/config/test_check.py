"""What only shows among several specs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from toka.config.agent import AgentConfig
from toka.config.check import check, check_paths
from toka.core.capability import Capability


def agent(name: str, rest: str = "") -> AgentConfig:
    text = f"metadata: {{name: {name}}}\nspec: {{}}\ntasks: [x]\n{rest}\n"
    return AgentConfig.parse(text, f"{name}.yaml")


def needs(name: str, *required: str, optional: str = "") -> AgentConfig:
    return agent(name, f"dependencies: {{required: [{', '.join(required)}], optional: [{optional}]}}")


def told(*configs: AgentConfig) -> list[str]:
    return [f.text for f in check(configs)]


def test_a_sound_set_has_no_findings() -> None:
    assert told(needs("a", "b", "c"), needs("b", "c"), agent("c")) == []


def test_an_unknown_required_agent_is_an_error_with_a_suggestion() -> None:
    (found,) = check([needs("a", "bulid"), agent("build")])
    assert found.text == 'a.yaml:4:27: error[TK3001]: required agent "bulid" is not part of this set'
    assert found.help == 'did you mean "build"?'
    assert found.source.startswith("dependencies:")


def test_an_unknown_optional_agent_is_a_note() -> None:
    (found,) = check([needs("a", optional="b")])
    assert (found.code, found.severity) == ("TK3002", "note")


def test_unknown_agents_are_not_reported_when_some_specs_are_unknown() -> None:
    assert check([needs("a", "b", optional="c")], complete=False) == ()


def test_a_circle_is_shown_as_a_path() -> None:
    found = check([needs("a", "b"), needs("b", "c"), needs("c", "a"), needs("d", "a")])
    assert [f.text for f in found] == ["a.yaml:4:27: error[TK3003]: circular dependency: a -> b -> c -> a"]


def test_an_agent_that_waits_for_itself() -> None:
    assert told(needs("a", "a")) == ["a.yaml:4:27: error[TK3003]: circular dependency: a -> a"]


def test_every_circle_is_reported_in_one_pass() -> None:
    found = told(needs("a", "b"), needs("b", "a"), needs("c", "d"), needs("d", "c"))
    assert [t.rpartition(": ")[2] for t in found] == ["a -> b -> a", "c -> d -> c"]


def test_a_circle_that_an_optional_edge_closes_is_a_warning() -> None:
    (found,) = check([needs("a", "b"), needs("b", optional="a")])
    assert (found.code, found.severity) == ("TK3003", "warning")
    assert "a -> b -> a" in found.text


def test_two_agents_of_one_name_show_both_places() -> None:
    one = AgentConfig.parse("metadata: {name: a}\nspec: {}\ntasks: [x]\n", "one.yaml")
    two = AgentConfig.parse("metadata:\n  name: a\nspec: {}\ntasks: [x]\n", "two.yaml")
    (found,) = check([one, two])
    assert (found.code, found.position.text, found.label) == ("TK2008", "two.yaml:2:9", "first in one.yaml:1:18")


def test_a_verified_dependency_on_claims_is_a_warning() -> None:
    needy = agent("a", "dependencies: {required: {b: {verified: true}}}")
    claims = agent("b", "objectives: [Be good]")
    checked = agent("b", "objectives: [{description: Be good, check: 'true'}]")
    assert [f.code for f in check([needy, claims])] == ["TK3006"]
    assert "TK3006" not in [f.code for f in check([needy, checked])]


def test_capabilities_that_grant_nothing_are_named_at_their_place() -> None:
    config = agent(
        "a", "security:\n  capabilities_required:\n  - filesystem-read\n  - filesystem-raed\n  - network-access"
    )
    nothing, wide = check([config])
    assert (nothing.code, nothing.line, nothing.column, nothing.length) == ("TK4001", 7, 5, 15)
    assert nothing.help == 'did you mean "filesystem-read"?'
    assert (wide.code, wide.severity, wide.line) == ("TK4002", "warning", 8)
    assert [f.code for f in check([config], {"filesystem-raed": (Capability("git-access"),)})] == ["TK4002"]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("security: {capabilities_required: [telepathy]}", ["TK4001", "TK4004"]),
        ("objectives: [{description: x, check: 'true'}]", ["TK4004"]),
        ("security: {capabilities_required: [filesystem-read]}", []),
        ("", []),
    ],
)
def test_an_empty_grant_is_reported_when_something_needs_one(rest: str, expected: list[str]) -> None:
    assert sorted(f.code for f in check([agent("a", rest)])) == expected


def test_findings_about_single_specs_are_included() -> None:
    assert [f.code for f in check([agent("a", "reporting: {frequency: sometimes}")])] == ["TK2004"]


def test_the_fixtures_are_a_sound_set(fixture_specs: Path) -> None:
    configs, _, findings = check_paths([fixture_specs])
    assert [c.name for c in configs] == ["docs-site", "linked-checks", "parser-repair", "short-forms", "smallest"]
    assert sorted((f.code, f.severity) for f in findings) == [
        ("TK3002", "note"), ("TK4001", "warning"), ("TK4002", "warning"),
    ]  # fmt: skip


def test_the_original_specs_are_a_sound_set(shared_specs: Path) -> None:
    configs, _, findings = check_paths([shared_specs])
    assert len(configs) == 4
    assert not [f.text for f in findings if f.severity == "error"]
    assert sum(f.code == "TK4001" for f in findings) == 4


def test_broken_files_do_not_hide_the_findings_of_sound_ones(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("metadata: {name: a}\nspec: {}\ntasks: [x]\ndependencies: [b, a]\n")
    (tmp_path / "b.yaml").write_text("metadata: {name: b}\nspec: {}\ntasks: [[]]\n")
    configs, _, findings = check_paths([tmp_path])
    assert [c.name for c in configs] == ["a"]
    assert [f.code for f in findings] == ["TK3003", "TK2002"]


def test_a_thousand_specs_are_read_and_checked_within_the_bound(fixture_specs: Path, tmp_path: Path) -> None:
    texts = [(fixture_specs / f"{n}.yaml").read_text() for n in ("parser-repair", "docs-site")]
    for n in range(200):
        name = ("parser-repair", "docs-site")[n % 2]
        text = texts[n % 2].replace(f"name: {name}", f"name: {name}-{n}").replace(f'"{name}"', f'"{name}-{n}"', 1)
        (tmp_path / f"{n}.yaml").write_text(text)
    started = time.process_time()
    configs, _, _ = check_paths([tmp_path])
    assert len(configs) == 200
    assert time.process_time() - started < 1.0, "1,000 specs take at most 5 s"
