"""Values in command lines, judged by a real shell: each is one word of data, whatever it holds."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from toka.core.shellwords import MAX_VALUE, ValueRefused, line_of_words, misplaced, shell_command

NASTY = st.text(
    st.one_of(st.sampled_from("'\"`$(){};&|<>\n\t #\\*?~!=-"), st.characters(exclude_characters="\0", codec="utf-8")),
    max_size=40,
)
SHOW = "printf '%s\\0' "


def words(line: str, values: dict[str, Any], shell: str = "/bin/sh") -> list[str]:
    """What a real shell makes of a command line that prints its words."""
    command = shell_command(line, values)
    environment = {"PATH": os.environ["PATH"], **command.environment}
    done = subprocess.run([shell, "-c", command.line], env=environment, capture_output=True, check=True, timeout=20)
    assert done.stderr == b""
    return done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]


PLACES = [
    ("${item}", ["{}"]),
    ("a${item}b", ["a{}b"]),
    ('"${item}"', ["{}"]),
    ('"a ${item} b"', ["a {} b"]),
    ("'x y'${item}", ["x y{}"]),
    ("one ${item} two", ["one", "{}", "two"]),
    ('"$(printf %s "${item}.")"', ["{}."]),
    ('"$(printf "%s" ${item}.)"', ["{}."]),
    ("(a) ${item}", None),
    ("x; " + SHOW + "${item}", ["x", "{}"]),
    ("x # it's a comment\n" + SHOW + '"${item}"', ["x", "{}"]),
    ('"\\"${item}\\""', ['"{}"']),
    ("\\'${item}", ["'{}"]),
    ("$${x:-d}${item}", ["d{}"]),
    ('"$${x:-"d"}${item}"', ["d{}"]),
    ("x <<'END'\n it's `data` $(( \nEND\n" + SHOW + "${item}", ["x", "{}"]),
    ("$((1 + 2))${item}", ["3{}"]),
    ("x; y=${item}; " + SHOW + '"$y"', ["x", "{}"]),
]


@pytest.mark.parametrize(("place", "expected"), [p for p in PLACES if p[1]])
@settings(max_examples=15, deadline=None)
@given(value=NASTY)
@example("'; touch /tmp/x; '")
@example("$(id)")
@example("`id`")
@example('"; id; "')
@example("-n")
@example("")
def test_a_value_is_one_word_wherever_it_may_stand(place: str, expected: list[str], value: str) -> None:
    assert words(SHOW + place, {"item": value}) == [text.replace("{}", value) for text in expected]


@settings(max_examples=60, deadline=None)
@given(before=NASTY, value=NASTY, other=NASTY)
def test_a_command_given_word_by_word_has_these_words(before: str, value: str, other: str) -> None:
    plain = before.replace("${", "$ {")
    line = line_of_words(["printf", "%s\\0", plain, "x${item}y", "${inputs.z}${item}", "$${literal}"])
    assert words(line, {"item": value, "inputs.z": other}) == [plain, f"x{value}y", other + value, "${literal}"]


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("echo '${item}'", "in single quotes"),
        ("echo \"$(echo '${item}')\"", "in single quotes"),
        ("echo `echo ${item}`", "in backquotes"),
        ("echo $((1 + ${item}))", "in an arithmetic expression"),
        ("echo $(( $(echo ${item}) ))", "in an arithmetic expression"),
        ("cat <<END\n${item}\nEND\n", "in a here-document"),
        ("cat <<-'E O'\n${item}\nE O\n", "in a here-document"),
        ("echo a # ${item}", "in a comment"),
        ("echo $${x:-${item}}", "inside the shell's own ${...}"),
    ],
)
def test_a_place_where_no_value_can_stand_is_told_and_refused(line: str, place: str) -> None:
    assert [(m.reference.text, m.place) for m in misplaced(line)] == [("${item}", place)]
    with pytest.raises(ValueError, match="stands"):
        shell_command(line, {"item": "x"})


def test_one_value_is_handed_over_once() -> None:
    command = shell_command('a ${item} "${item}" ${inputs.b}', {"item": "1", "inputs.b": [1, "two"]})
    assert command.line == 'a "${TOKA_VALUE_1}" "${TOKA_VALUE_1}" "${TOKA_VALUE_2}"'
    assert command.environment == {"TOKA_VALUE_1": "1", "TOKA_VALUE_2": '[1,"two"]'}


def test_a_line_without_references_stays_as_it_is() -> None:
    assert shell_command("echo '$HOME' $((1)) `id`", {}).line == "echo '$HOME' $((1)) `id`"


@pytest.mark.parametrize("value", ["a\0b", "x" * (MAX_VALUE + 1)])
def test_what_no_command_can_be_given_is_refused(value: str) -> None:
    with pytest.raises(ValueRefused, match=r"\$\{item\}"):
        shell_command("echo ${item}", {"item": value})


def test_the_largest_value_arrives() -> None:
    value = "x" * MAX_VALUE
    assert words(SHOW + "${item}", {"item": value}) == [value]


def test_a_value_that_is_missing_is_named() -> None:
    with pytest.raises(KeyError, match=r"survey\.failing"):
        shell_command("echo ${survey.failing}", {})
    with pytest.raises(KeyError, match=r"item\.path"):
        shell_command("echo ${item.path}", {"item": {"name": "x"}})
