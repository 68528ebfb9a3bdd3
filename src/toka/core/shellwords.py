"""Values in a shell command: each becomes one word of data, never source text (pure).

A reference in a command line is replaced by a quoted shell variable, and the value goes into the environment, so that
the shell never reads it as code, whatever it holds. For that it matters where the reference stands: outside quotes or
in double quotes it can become one word. In single quotes, comments, here-documents, arithmetic, backquotes and the
shell's own `${...}` it cannot, and is refused.

A reference in a program's text for another interpreter (`sh -c "... ${x}"`) would be read by that, and is refused, too.

The grammar is that of POSIX sh (IEEE Std 1003.1-2017, 2.2 Quoting and 2.6 Word Expansions), as far as it decides on
quotes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from toka.core.reference import Malformed, Reference, as_text, find_references, references, value_of

VARIABLE: Final = "TOKA_VALUE_"
"""Names of the variables that carry values: this and a number from 1."""
MAX_VALUE: Final = 100_000
"""Bytes of one value in a command; Linux takes 128 KiB for one variable."""

_HEREDOC: Final = re.compile(r"<<-?[ \t]*(?:'([^'\n]+)'|\"([^\"\n]+)\"|\\?([A-Za-z0-9_.-]+))")
_PLACES: Final = {
    "single": "in single quotes",
    "comment": "in a comment",
    "heredoc": "in a here-document",
    "arithmetic": "in an arithmetic expression",
    "backquote": "in backquotes",
    "parameter": "inside the shell's own ${...}",
    "case": "in or after a case within $(...)",
    "program": "in the text of a program",
}
_CASE: Final = re.compile(r"case[ \t\n]")
_TEXT_OPTIONS: Final = (
    (re.compile(r"(?:ba|da|z|k|mk|a|pdk)?sh|python[0-9.]*"), re.compile(r"-[A-Za-z]*c")),
    (re.compile(r"(?:perl|ruby|lua)[0-9.]*|node(?:js)?"), re.compile(r"-[A-Za-z]*[eE]|--eval|--print|-p")),
    (re.compile(r"php[0-9.]*"), re.compile(r"-r")),
)
"""Interpreters, and the option after which the text of a program comes."""
_SEPARATORS: Final = frozenset(";&|()\n")


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A reference where no value can stand as one word.

    Attributes:
        reference: which.
        place: where it stands: `in single quotes`.
    """

    reference: Reference
    place: str


@dataclass(frozen=True, slots=True)
class ShellCommand:
    """A command line without references, and what it needs in its environment.

    Attributes:
        line: for the shell.
        environment: the values, by variable.
    """

    line: str
    environment: Mapping[str, str]


class ValueRefused(ValueError):
    """A value that cannot be handed to a command: it holds a NUL character, or is too large."""


def misplaced(line: str) -> list[Misplaced]:
    """The references of a command line that stand where no value can.

    Programs that are handed to an interpreter are found where its name, the option and the text stand side by side:
    `sh -c "..."`, `python3 -c ...`, `eval ...`. What else a program makes of its arguments is its own affair.
    """
    programs = _programs(line)
    return [
        Misplaced(reference, _PLACES["program" if reference.start in programs else place])
        for reference, place in _placed(line)
        if place not in ("plain", "double") or reference.start in programs
    ]


def _programs(line: str) -> set[int]:
    """Where references stand that are part of a program's text, by their beginnings."""
    found = references(line)
    if not found:
        return set()
    marked: list[str] = []
    at = 0
    for number, each in enumerate(found):
        marked += [line[at : each.start], f"\ue000{number}\ue001"]
        at = each.end
    lexer = shlex.shlex("".join([*marked, line[at:]]).replace("\n", " ; "), posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    out: set[int] = set()
    before: list[str] = []
    try:
        for word in lexer:
            if word and set(word) <= _SEPARATORS:
                before = []
                continue
            if _is_program(before):
                out.update(found[int(n)].start for n in re.findall("\ue000([0-9]+)\ue001", word))
            before.append(word)
    except ValueError:  # quotes that are not closed: the shell will say so
        return out
    return out


def _is_program(before: Sequence[str]) -> bool:
    """Whether what follows these words of a command is the text of a program."""
    if "eval" in before[:3]:
        return True
    if not before or not before[-1].startswith("-"):
        return False
    names = [word.rpartition("/")[2] for word in before if not word.startswith("-")]
    return any(
        name.fullmatch(names[-1]) is not None and option.fullmatch(before[-1]) is not None
        for name, option in _TEXT_OPTIONS
        if names
    )


def shell_command(line: str, values: Mapping[str, Any]) -> ShellCommand:
    """A command line with its references replaced.

    Args:
        line: as in a spec; `$${` stands for `${`.
        values: see `reference.value_of`.

    Raises:
        KeyError: a value is missing; the key is the argument.
        ValueRefused: a value cannot be handed over.
        ValueError: a reference is misplaced.
    """
    out: list[str] = []
    environment: dict[str, str] = {}
    names: dict[str, str] = {}
    at = 0
    for reference, place in _placed(line):
        out.append(line[at : reference.start].replace("$${", "${"))
        at = reference.end
        if place not in ("plain", "double"):
            raise ValueError(f"{reference.text} stands {_PLACES[place]}")
        name = names.setdefault(reference.key, f"{VARIABLE}{len(names) + 1}")
        environment[name] = _handed(reference, values)
        out.append(f"${{{name}}}" if place == "double" else f'"${{{name}}}"')
    return ShellCommand("".join([*out, line[at:].replace("$${", "${")]), environment)


def line_of_words(words: Sequence[str]) -> str:
    """A command given word by word as a command line: each word is one word, its references included."""
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """One word; references stay outside the quotes, so that they become part of it as values."""
    out: list[str] = []
    at = 0
    for each in find_references(word):
        if isinstance(each, Malformed):
            continue
        out += [_literal(word[at : each.start]), each.text]
        at = each.end
    return "".join([*out, _literal(word[at:])]) or "''"


def _literal(text: str) -> str:
    """Text in quotes where it needs them; `$${` stays what it is, to be read again."""
    return shlex.quote(text) if text else ""


def _handed(reference: Reference, values: Mapping[str, Any]) -> str:
    text = as_text(value_of(reference, values))
    if "\0" in text:
        raise ValueRefused(f"the value of {reference.text} holds a NUL character, which no command can be given")
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_VALUE:
        raise ValueRefused(
            f"the value of {reference.text} has {size} bytes; a command takes {MAX_VALUE}, a file takes more"
        )
    return text


def _placed(line: str) -> list[tuple[Reference, str]]:
    """Each reference of a command line with where it stands: a key of _PLACES, `plain` or `double`."""
    at = {each.start: each for each in find_references(line) if isinstance(each, Reference)}
    return _Scanner(line, at).scan() if at else []


class _Scanner:
    """Walks over a command line and keeps what it is inside of."""

    def __init__(self, line: str, references: Mapping[int, Reference]) -> None:
        self._line = line
        self._at = references
        self._stack = ["plain"]
        self._depths: list[int] = [0]
        self._heredocs: list[str] = []
        self._found: list[tuple[Reference, str]] = []
        self._lost = False
        """Whether a `case` within $(...) was met: its patterns end with parentheses that close nothing."""

    def scan(self) -> list[tuple[Reference, str]]:
        index = 0
        while index < len(self._line):
            reference = self._at.get(index)
            if reference is not None:
                inside = next((s for s in reversed(self._stack) if s in _PLACES), None)
                self._found.append((reference, "case" if self._lost else inside or self._stack[-1]))
                index = reference.end
                continue
            index = self._step(index)
        return self._found

    def _push(self, state: str) -> None:
        self._stack.append(state)
        self._depths.append(0)

    def _pop(self) -> None:
        if len(self._stack) > 1:
            self._stack.pop()
            self._depths.pop()

    def _step(self, index: int) -> int:
        """Reads one piece; returns where the next begins."""
        state, character = self._stack[-1], self._line[index]
        if state == "single":
            if character == "'":
                self._pop()
            return index + 1
        if state == "comment":
            if character == "\n":
                self._pop()
                return self._newline(index)
            return index + 1
        if character == "\\":
            return index + 2
        if state == "backquote":
            if character == "`":
                self._pop()
            return index + 1
        if (after := self._dollar(index)) is not None:
            return after
        if character == "`":
            self._push("backquote")
        elif character == '"':
            self._pop() if state == "double" else self._push("double")
        elif state == "parameter":
            if character == "}":
                self._pop()
            elif character == "'" and "double" not in self._stack:
                self._push("single")
        elif state == "arithmetic":
            return self._parenthesis(index, 2)
        elif state == "plain":
            return self._plain(index)
        return index + 1

    def _dollar(self, index: int) -> int | None:
        """What begins with a dollar; None when nothing does here."""
        for start, state in (("$${", "parameter"), ("$((", "arithmetic"), ("$(", "plain")):
            if self._line.startswith(start, index):
                self._push(state)
                return index + len(start)
        return None

    def _parenthesis(self, index: int, closing: int) -> int:
        character = self._line[index]
        if character == "(":
            self._depths[-1] += 1
        elif character == ")":
            if self._depths[-1]:
                self._depths[-1] -= 1
            else:
                self._pop()
                return index + closing
        return index + 1

    def _plain(self, index: int) -> int:
        character = self._line[index]
        if character == "c" and len(self._stack) > 1 and self._line[index - 1] in " \t\n;&|(":
            self._lost |= _CASE.match(self._line, index) is not None
        if character == "'":
            self._push("single")
        elif character == "#" and (index == 0 or self._line[index - 1] in " \t\n;&|("):
            self._push("comment")
        elif (
            character == "<" and (found := _HEREDOC.match(self._line, index)) and self._line[index : index + 3] != "<<<"
        ):
            self._heredocs.append(next(group for group in found.groups() if group))
            return found.end()
        elif character == "\n":
            return self._newline(index)
        elif character in "()" and (len(self._stack) > 1 or self._depths[-1] or character == "("):
            return self._parenthesis(index, 1)
        return index + 1

    def _newline(self, index: int) -> int:
        """After a line with `<<END`, the text up to END is data."""
        index += 1
        while self._heredocs:
            end = self._heredocs.pop(0)
            found = re.compile(rf"^\t*{re.escape(end)}$", re.MULTILINE).search(self._line, index)
            stop = found.end() if found else len(self._line)
            for start, reference in self._at.items():
                if index <= start < stop:
                    self._found.append((reference, "heredoc"))
            index = stop
        return index
