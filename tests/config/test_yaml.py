"""Text -> nodes: the rules of YAML 1.2, positions, and the same guards whichever parser PyYAML has."""

from __future__ import annotations

import pytest
import yaml as pyyaml

from toka.config.nodes import MapNode, ScalarNode, plain, value_of
from toka.config.source import Source
from toka.config.yaml import read_nodes


def parse(text: str) -> object:
    source = Source("x.yaml", text)
    node = read_nodes(source)
    assert source.findings == []
    assert node is not None
    return plain(node)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None), ("~", None), ("Null", None), ("nULL", "nULL"),
        ("true", True), ("False", False), ("tRUE", "tRUE"), ("yes", "yes"), ("no", "no"), ("on", "on"), ("y", "y"),
        ("0", 0), ("-12", -12), ("+3", 3), ("010", 10), ("0o10", 8), ("0x1f", 31), ("1_000", "1_000"), ("0b1", "0b1"),
        ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("-1E-2", -0.01), (".", "."), ("+", "+"), ("-.", "-."),
        (".inf", ".inf"), ("-.INF", "-.INF"), (".nan", ".nan"), ("1e999", "1e999"), ("9" * 19, "9" * 19),
        ("1:30", "1:30"), ("2026-01-02", "2026-01-02"), ("1.2.3", "1.2.3"), ("٣", "٣"), ("=", "="), ("0o8", "0o8"),
        ("'1'", "1"), ('"true"', "true"), ("!!str 1", "1"),
    ],
)  # fmt: skip
def test_core_schema(text: str, value: object) -> None:
    found = parse(f"- {text}\n")
    assert found == [value]
    assert isinstance(found, list)
    assert type(found[0]) is type(value)


def test_numbers_may_be_kept_as_text() -> None:
    assert value_of(ScalarNode("1.10", 1, 1, bare=True), numbers=False) == "1.10"
    assert value_of(ScalarNode("true", 1, 1, bare=True), numbers=False) is True


def test_keys_are_text() -> None:
    assert parse("1: a\ntrue: b\nnull: c\n1.10: d\n") == {"1": "a", "true": "b", "null": "c", "1.10": "d"}


def test_blocks_and_folds() -> None:
    assert parse("a: |\n  x\n   y\nb: >-\n  x\n  y\nc: x\n  y\n") == {"a": "x\n y\n", "b": "x y", "c": "x y"}


def test_aliases_stand_for_whole_values() -> None:
    assert parse("a: &x {b: [1]}\nc: *x\nd: &x 2\ne: *x\n") == {"a": {"b": [1]}, "c": {"b": [1]}, "d": 2, "e": 2}


def test_positions_count_characters() -> None:
    node = read_nodes(Source("x.yaml", "é: 日本\nb:\n  - c: d\n"))
    assert isinstance(node, MapNode)
    first = node.entries["é"]
    assert (first.line, first.column, first.length) == (1, 4, 2)
    assert (node.keys["b"].line, node.keys["b"].column) == (2, 1)
    assert (node.entries["b"].line, node.entries["b"].column) == (3, 3)


def test_a_version_directive_and_a_document_start_are_fine() -> None:
    assert parse("%YAML 1.2\n---\na: 1\n...\n") == {"a": 1}


def test_the_pure_parser_obeys_the_same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyyaml, "__with_libyaml__", False)
    assert parse("a: [no, 1:30, {b: 0o17}]\nc: &x y\nd: *x\n") == {"a": ["no", "1:30", {"b": 15}], "c": "y", "d": "y"}
    for text, code in [("[" * 1000, "TK1005"), ("a: 1\na: 2\n", "TK1006"), ("a: [", "TK1001"), ("a: \x07", "TK1001")]:
        source = Source("x.yaml", text)
        read_nodes(source)
        assert [f.code for f in source.findings] == [code]
