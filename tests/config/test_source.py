"""Text is decoded as UTF-8 only, screened, and knows where things stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.config.source import MAX_FINDINGS, Source, decode, screen


@given(st.text(st.sampled_from("ab\né\r"), max_size=40), st.data())
def test_line_and_column_lead_back_to_the_character(text: str, data: st.DataObject) -> None:
    text = text.replace("\r", "\r\n") or "x"
    index = data.draw(st.integers(0, len(text) - 1))
    source = Source("x", text)
    line, column = source.place(index)
    shown = source.line(line)
    if text[index] not in "\r\n":
        assert shown[column - 1] == text[index]
    assert "\n" not in shown


def test_lines_that_do_not_exist_are_empty() -> None:
    source = Source("x", "a\r\nb")
    assert [source.line(n) for n in (-1, 0, 1, 2, 3)] == ["", "", "a", "b", ""]


def test_findings_are_bounded() -> None:
    source = Source("x", "a")
    for _ in range(1000):
        source.add("TK2001", "m", (1, 1, 1))
    assert len(source.findings) == MAX_FINDINGS
    assert source.broken


@pytest.mark.parametrize("char", ["\u202e", "\u2066", "\U000e0041\U000e0042", "\ufeff"])
def test_hidden_text_is_a_warning(char: str) -> None:
    source = Source("x", f"a: b{char}c\n")
    screen(source)
    (found,) = source.findings
    assert (found.code, found.severity, found.column, found.length) == ("TK1015", "warning", 5, len(char))
    assert not source.broken


def test_ordinary_text_of_any_script_passes() -> None:
    source = Source("x", "a: größe 日本語 العربية 👩‍🔧 \t x\r\n")
    screen(source)
    assert source.findings == []


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=4))
def test_utf_8_is_decoded_unchanged(text: str) -> None:
    source = Source("x")
    decode(source, text.encode())
    if not source.broken:
        assert source.text == text.removeprefix("\ufeff")
    else:
        assert "\0" in text
