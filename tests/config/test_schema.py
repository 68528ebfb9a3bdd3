"""The JSON Schema accepts every spelling that the loader accepts, and refuses what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from toka.config.load import read_source, spec_files
from toka.config.nodes import plain
from toka.config.schema import DIALECT, spec_schema
from toka.config.yaml import read_nodes


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema_rs.validator_for(spec_schema())


def data(path: Path) -> Any:
    node = read_nodes(read_source(path))
    assert node is not None
    return plain(node)


def test_it_is_a_schema_with_descriptions() -> None:
    schema = spec_schema()
    jsonschema_rs.meta.validate(schema)
    assert schema["$schema"] == DIALECT
    assert schema["required"] == ["metadata", "spec", "tasks"]
    for section in schema["properties"].values():
        assert section["description"]
    for name in ("ResourceLimits", "Tasks"):
        for field in schema["$defs"][name]["properties"].values():
            assert field["description"]


def test_every_fixture_is_accepted(validator: Any, fixture_specs: Path) -> None:
    files, _ = spec_files(fixture_specs)
    assert len(files) == 5
    for path in files:
        assert [e.message for e in validator.iter_errors(data(path))] == []


def test_the_original_specs_are_accepted(validator: Any, shared_specs: Path) -> None:
    for path in spec_files(shared_specs)[0]:
        assert [e.message for e in validator.iter_errors(data(path))] == []


HEAD = {"metadata": {"name": "a"}, "spec": {}, "tasks": ["x"]}


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {}},
        {"metadata": {"name": "a b"}},
        {"spec": {"priority": "hgih"}},
        {"tasks": [[]]},
        {"tasks": [{"run": "x", "dependson": "y"}]},
        {"tasks": {"default": ["x"], "sometimes": []}},
        {"objectives": [{"deliverable": "x"}]},
        {"objectives": [{"description": "x", "check": {"rnu": "y"}}]},
        {"security": {"sandbx": True}},
        {"security": {"sandbox": "no"}},
        {"security": {"enforcement": "lax"}},
        {"security": {"resource_limits": {"max_memmory": "1GB"}}},
        {"security": {"capabilities_required": [{"filesystem-read": {"path": ["src"]}}]}},
        {"dependencies": {"requires": []}},
        {"dependencies": {"required": {"b": {"verified": "yes"}}}},
        {"success_criteria": {"phase": {"a": 1}}},
    ],
)
def test_what_the_loader_refuses_is_refused(validator: Any, change: dict[str, Any]) -> None:
    assert validator.is_valid(HEAD)
    assert not validator.is_valid(HEAD | change)


def test_unknown_sections_are_accepted(validator: Any) -> None:
    assert validator.is_valid(HEAD | {"my_section": {"a": [1]}})
