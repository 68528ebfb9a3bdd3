"""References: what is one, what only looks like one, and what becomes of a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.core.reference import (
    Malformed,
    Reference,
    as_text,
    find_references,
    only_reference,
    parse_reference,
    references,
    substitute,
)


@pytest.mark.parametrize(
    ("inner", "kind", "agent", "name"),
    [
        ("item", "item", "", ""),
        ("item.path", "item", "", "path"),
        ("inputs.area", "input", "", "area"),
        ("survey.failing", "output", "survey", "failing"),
        ("a.b.c", "output", "a.b", "c"),
        ("secret:github", "secret", "", "github"),
    ],
)
def test_the_forms(inner: str, kind: str, agent: str, name: str) -> None:
    found = parse_reference(inner)
    assert found is not None
    assert (found.kind, found.agent, found.name, found.key) == (kind, agent, name, inner)


@pytest.mark.parametrize(
    "inner",
    ["", "HOME", "x:-1", "#x", "a b.c", "a.", ".b", "inputs", "secret:", "secret:a b", "model.x", "a.1", "a..b!"],
)
def test_what_is_none(inner: str) -> None:
    assert parse_reference(inner) is None
    (found,) = find_references(f"x ${{{inner}}} y")
    assert isinstance(found, Malformed)
    assert found.text == f"${{{inner}}}"


def test_a_text_is_searched_in_order_and_an_escape_is_none() -> None:
    text = "a ${inputs.x} $${b.c} ${d.e} ${ $"
    assert [f.text for f in find_references(text)] == ["${inputs.x}", "${d.e}", "${"]
    assert [r.key for r in references(text)] == ["inputs.x", "d.e"]
    assert substitute(text, lambda r: f"<{r.key}>") == "a <inputs.x> ${b.c} <d.e> ${ $"


def test_a_text_that_is_one_reference() -> None:
    assert only_reference("${a.b}") == Reference("output", "a", "b", 0, 6)
    for text in ("", " ${a.b}", "${a.b}${a.b}", "$${a.b}", "${a}"):
        assert only_reference(text) is None


@given(st.text())
def test_a_text_without_dollars_stays(text: str) -> None:
    assert substitute(text.replace("$", ""), lambda _: "x") == text.replace("$", "")


def test_values_as_text() -> None:
    assert [as_text(v) for v in ("a b", 1, 1.5, True, None, ["ä", 1], {"k": "v"})] == [
        "a b", "1", "1.5", "true", "null", '["ä",1]', '{"k":"v"}',
    ]  # fmt: skip
