"""Findings look as documented, and cannot drive a terminal."""

from __future__ import annotations

import json
import re

import pytest

from toka.config.agent import AgentConfig
from toka.config.codes import CODES, FAMILIES
from toka.config.diagnostics import Finding, Position, closest, did_you_mean, in_order, one_of, quoted, summary, visible
from toka.errors import ConfigError


def only(text: str) -> Finding:
    with pytest.raises(ConfigError) as caught:
        AgentConfig.parse(text, "agents/build.yaml")
    (found,) = caught.value.findings
    assert isinstance(found, Finding)
    return found


def test_a_finding_is_drawn_with_its_line() -> None:
    text = "metadata:\n  name: build\ntasks: [x]\nspec:\n  domain: tools\n  priority: hgih\n"
    assert (
        only(text).render()
        == """\
error[TK2004]: unknown priority "hgih"
  --> agents/build.yaml:6:13
   |
 6 |   priority: hgih
   |             ^^^^ expected critical, high, medium or low
   = help: did you mean "high"?"""
    )


def test_line_numbers_of_two_digits_widen_the_margin() -> None:
    text = "\n" * 9 + "metadata: {name: a}\ntasks: [x]\nspec: {priority: x}\n"
    assert only(text).render().splitlines()[1:4] == [
        "   --> agents/build.yaml:12:18",
        "    |",
        " 12 | spec: {priority: x}",
    ]


def test_the_json_form_is_plain_data() -> None:
    found = only("metadata: {name: a}\ntasks: [x]\nspec: {priority: hgih}\n")
    assert json.loads(json.dumps(found.to_json())) == {
        "code": "TK2004", "severity": "error", "message": 'unknown priority "hgih"', "file": "agents/build.yaml",
        "line": 3, "column": 18, "end_column": 22, "label": "expected critical, high, medium or low",
        "help": 'did you mean "high"?',
    }  # fmt: skip
    assert found.text == 'agents/build.yaml:3:18: error[TK2004]: unknown priority "hgih"'


def test_a_finding_about_a_whole_file_has_no_snippet() -> None:
    found = Finding("TK1013", "there is no such file", Position("x.yaml"), label="why")
    assert found.render() == "error[TK1013]: there is no such file\n --> x.yaml\n  = note: why"
    assert found.text == "x.yaml: error[TK1013]: there is no such file"
    assert found.end_column == 0


def test_control_characters_of_a_spec_are_shown_not_sent() -> None:
    found = only('metadata: {name: a}\ntasks: [x]\nspec: {priority: "\\e]0;owned\\a\\u202e"}\n')
    shown = found.render() + found.text + str(found.to_json()["message"])
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", shown)
    assert "␛" in found.text


def test_a_long_line_is_shown_around_the_place() -> None:
    shown = only("metadata: {name: a}\ntasks: [x]\nspec: {description: " + "y" * 3000 + ", priority: hgih}\n").render()
    line, carets = shown.splitlines()[3:5]
    assert len(line) < 130
    start = carets.index("^")
    assert line[start : start + 4] == "hgih"


def test_wide_characters_keep_the_carets_below_their_text() -> None:
    found = only("metadata: {name: a}\ntasks: [x]\nspec: {name: 日本, priority: hgih}\n")
    line, carets = found.render().splitlines()[3:5]
    assert carets.index("^") == line.index("hgih") + 2


def test_tabs_count_as_one_column() -> None:
    line, carets = only("metadata: {name: a}\ntasks: [x]\nspec: {priority:\thgih}\n").render().splitlines()[3:5]
    assert carets.index("^") == line.index("hgih")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("hgih", "high"), ("HIGH", "high"), ("medum", "medium"), ("max-memory", "max_memory"), ("zzz", None), ("", None)],
)
def test_near_words_are_suggested(word: str, meant: str | None) -> None:
    assert closest(word, ["critical", "high", "medium", "low", "max_memory"]) == meant
    assert did_you_mean(word, ["high"]) == ('did you mean "high"?' if meant == "high" else None)


def test_suggestions_among_thousands_of_names_stay_quick() -> None:
    names = [f"agent-{n}" for n in range(20_000)] + ["build-system"]
    assert closest("biuld-system", names) == "build-system"


def test_words() -> None:
    assert one_of(["a"]) == "a"
    assert one_of(["a", "b", "c"]) == "a, b or c"
    assert quoted("x" * 100) == '"' + "x" * 59 + '…"'
    assert visible("a\0b\x7fc\td") == "a␀b␡c d"


def test_findings_are_ordered_and_each_is_said_once() -> None:
    a = Finding("TK2001", "m", Position("a", 2, 1))
    b = Finding("TK2001", "m", Position("a", 10, 1))
    c = Finding("TK1001", "m", Position("b", 1, 1))
    assert in_order([c, b, a, b]) == (a, b, c)
    assert summary([a]) == a.text
    assert summary([a, c]) == f"2 errors in 2 files; the first: {a.text}"


def test_every_code_is_explained() -> None:
    for code, entry in CODES.items():
        assert re.fullmatch(r"TK[1-6][0-9]{3}", code)
        assert code[:3] in FAMILIES
        assert len(entry.explanation) > 60
        assert entry.explanation.endswith(".")
        assert not entry.title.endswith(".")
    assert list(CODES) == sorted(CODES)
