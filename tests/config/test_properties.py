"""Whatever the text, the loader answers with a configuration or with findings."""

from __future__ import annotations

from pathlib import Path

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding
from toka.config.load import read_source
from toka.config.nodes import plain
from toka.config.schema import spec_schema
from toka.config.source import Source
from toka.config.yaml import read_nodes
from toka.errors import ConfigError

FIXTURES = [p.read_text() for p in sorted((Path(__file__).resolve().parents[1] / "fixtures" / "specs").glob("*.yaml"))]
SCHEMA = jsonschema_rs.validator_for(spec_schema())
PIECES = ["- ", ": ", "\n", "  ", "{", "}", "[", "]", "&a ", "*a", "<<: *a", "!!str ", "? ", "| ", "> ", '"', "'", "#",
          "---\n", "...\n", "%TAG ! x\n", "\t", "metadata", "security", "tasks", "null", "true", "1", "\u200b", "\x00",
          "é", "name", "run", "a", "b", "\\u", "\r", "\ufeff", "\ud800"]  # fmt: skip


def attempt(text: str) -> None:
    """Loads text; findings, if any, can all be rendered and have a place inside the text."""
    try:
        config = AgentConfig.parse(text)
        found = list(config.findings)
        assert AgentConfig.from_json(config.to_json()) == config
        assert config.task_list()
        config.grant()
    except ConfigError as error:
        found = [f for f in error.findings if isinstance(f, Finding)]
        assert any(f.severity == "error" for f in found)
    lines = text.count("\n") + text.count("\r") + 2
    for finding in found:
        assert 1 <= finding.line <= lines
        assert finding.column >= 1
        assert finding.render()
        assert finding.text.isprintable()


@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    attempt(text)


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
@example("? - - *a\n")
def test_any_sequence_of_yaml_pieces(text: str) -> None:
    attempt(text)


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_pieces_after_a_sound_start(text: str) -> None:
    attempt("metadata: {name: a}\nspec: {}\ntasks: [x]\n" + text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
@example(b"\xff")
@example(b"a\x00b\x00")
@example(b"\xef\xbb\xbf\xef\xbb\xbf")
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        AgentConfig.load_from_file(path)
    read_source(path)


def mutations(texts: list[str]) -> st.SearchStrategy[str]:
    @st.composite
    def mutated(draw: st.DrawFn) -> str:
        text = draw(st.sampled_from(texts))
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(text)))
            length = draw(st.sampled_from([0, 0, 1, 2, 10]))
            piece = draw(st.sampled_from([*PIECES, ""]) | st.characters())
            text = text[:start] + piece + text[start + length :]
        return text

    return mutated()


@settings(max_examples=300)
@given(mutations(FIXTURES))
def test_any_mutated_spec(text: str) -> None:
    attempt(text)


@given(st.data())
def test_any_mutated_original_spec(shared_texts: list[str], data: st.DataObject) -> None:
    attempt(data.draw(mutations(shared_texts)))


@pytest.fixture(scope="module")
def shared_texts() -> list[str]:
    shared = Path(__file__).resolve().parents[2] / ".." / "shared" / "specs"
    if not shared.is_dir():
        pytest.skip("the original specs are not on this machine")
    return [p.read_text() for p in sorted(shared.glob("*.yaml"))]


KEYS = ["metadata", "spec", "tasks", "security", "dependencies", "reporting", "objectives", "success_criteria",
        "risk_mitigation", "capabilities", "behavioral_directives", "model", "x"]  # fmt: skip
INNER = [
    "name",
    "default",
    "conditional",
    "required",
    "capabilities_required",
    "resource_limits",
    "metrics",
    "check",
    "description",
    "run",
    "channels",
    "paths",
    "high_priority_risks",
    "monitoring",
    "primary",
    "timeout",
    "sandbox",
]
leaves = st.sampled_from(["a", "1", "true", "~", "''", "1h", "git-access", "[]", "{}"])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(INNER), inner, max_size=3).map(
            lambda entries: "{" + ", ".join(f"{k}: {v}" for k, v in entries.items()) + "}"
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
def test_any_shape_of_known_sections(sections: dict[str, str]) -> None:
    attempt(written(sections))


def written(sections: dict[str, str]) -> str:
    sound = {"metadata": "{name: a}", "spec": "{}", "tasks": "[x]"}
    return "".join(f"{k}: {v}\n" for k, v in (sound | sections).items())


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=3))
def test_the_schema_accepts_whatever_the_loader_accepts(sections: dict[str, str]) -> None:
    text = written(sections)
    try:
        AgentConfig.parse(text)
    except ConfigError:
        return
    node = read_nodes(Source("x", text))
    assert node is not None
    assert [e.message for e in SCHEMA.iter_errors(plain(node))] == []
