from __future__ import annotations

import json

import pytest

from toka.cli import text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[2Jgone", "␛[2Jgone"),
        ("a\nb\tc", "a␊b c"),
        ("\x9b31m", "\N{REPLACEMENT CHARACTER}31m"),
        ("user\u202etxt", "user\N{REPLACEMENT CHARACTER}txt"),
        ("half \ud800", "half \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_nothing_that_a_terminal_obeys_passes(raw: str, shown: str) -> None:
    assert text.line_of(raw) == shown


def test_a_long_line_is_cut_with_a_note_of_what_is_missing() -> None:
    shown = text.line_of("x" * 100_000, 10)
    assert shown == "x" * 10 + " [... 99,990 more characters]"


def test_lines_keep_their_beginning_and_end() -> None:
    shown = text.lines_of("\n".join(map(str, range(100))), 6)
    assert shown == ["0", "1", "2", "3", "[... 94 more lines]", "98", "99"]
    assert text.lines_of("a\r\nb\n\n", 6) == ["a", "b"]
    assert text.lines_of("", 6) == []
    assert len(text.lines_of("\n".join(map(str, range(100))), None)) == 100


def test_columns_align_and_do_not_trail() -> None:
    rows = [["a", "1", "x"], ["bbb", "22", ""]]
    assert text.columns(rows, right=(1,)) == ["a     1  x", "bbb  22"]
    assert text.columns([[("a", "good"), "b"]], paint=text.painted) == ["\x1b[32ma\x1b[0m  b"]
    assert text.columns([]) == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.004, "4ms"), (0.31, "0.3s"), (12, "12s"), (185, "3m05s"), (7_800, "2h10m"), (273_600, "3d04h"), (-1, "0ms")],
)
def test_spans(seconds: float, shown: str) -> None:
    assert text.span(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(5.9, "5s"), (720, "12m"), (10_900, "3h"), (800_000, "9d"), (-3, "0s")])
def test_ages(seconds: float, shown: str) -> None:
    assert text.age(seconds) == shown


@pytest.mark.parametrize(
    ("usd", "shown"), [(0.0, "$0.00"), (0.01234, "$0.0123"), (1234.5, "$1,234.50"), (None, "unknown")]
)
def test_money(usd: float | None, shown: str) -> None:
    assert text.money(usd) == shown


def test_json_lines_are_one_line_of_printable_text_and_round_trip() -> None:
    value = {"a": "é\x1b\x9b\u2028\ud800"}
    line = text.json_line(value)
    assert line.isprintable()
    assert json.loads(line) == value
    assert text.json_line({"a": "é"}) == '{"a": "é"}'


def test_counts() -> None:
    assert text.some(1, "spec") == "1 spec"
    assert text.some(1200, "process", "processes") == "1,200 processes"
