"""Findings: what is wrong with a spec or a setting, where, and what to do about it.

A finding has a stable code (see `codes`), a place and a sentence. `render` draws it with the line it is about,
`to_json` gives it to programs. Text that comes from a file is shown with its control characters replaced, so that a
spec cannot drive the terminal of the person who validates it.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypedDict

from toka.config.codes import CODES, Severity

WINDOW: Final = 110
"""Columns of a source line that a snippet shows."""
MAX_CANDIDATES: Final = 200
"""Known words that are compared with a misspelled one; comparing is slow."""


MAX_LOOKUPS: Final = 100
"""Misspelled words for which one is found that may be meant."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file.

    Attributes:
        file: the path as the user named it, or a label such as `<text>`.
        line: from 1; 0 when unknown (a file as a whole, a value that was rebuilt from a record).
        column: from 1, in characters; 0 when unknown.
    """

    file: str
    line: int = 0
    column: int = 0

    @property
    def text(self) -> str:
        """`file:line:column`, or the file alone."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class FindingJson(TypedDict):
    """The JSON form of a finding."""

    code: str
    severity: Severity
    message: str
    file: str
    line: int
    column: int
    end_column: int
    label: str
    help: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        code: TKnnnn, a key of `CODES`.
        message: one line, without a full stop.
        position: where.
        severity: `error` stops; `warning` and `note` do not.
        length: how many characters are meant, from the column on; at least 1.
        label: what stands beside the carets, such as what was expected; may be empty.
        help: what to do; None when there is nothing sensible to add.
        source: the line of the file, empty when there is none.
    """

    code: str
    message: str
    position: Position
    severity: Severity = "error"
    length: int = 1
    label: str = ""
    help: str | None = None
    source: str = ""

    @property
    def file(self) -> str:
        """The file as the user named it."""
        return self.position.file

    @property
    def line(self) -> int:
        """From 1; 0 when unknown."""
        return self.position.line

    @property
    def column(self) -> int:
        """From 1; 0 when unknown."""
        return self.position.column

    @property
    def end_column(self) -> int:
        """The first column after what is meant; 0 when unknown."""
        return self.column + self.length if self.column else 0

    @property
    def text(self) -> str:
        """One line: `file:line:column: error[TK2004]: message`."""
        return visible(f"{self.position.text}: {self.severity}[{self.code}]: {self.message}")

    def render(self) -> str:
        """The finding with its source line, several lines without a final newline."""
        head = visible(f"{self.severity}[{self.code}]: {self.message}")
        number = str(self.line) if self.line else ""
        margin = " " * (len(number) + 2)
        out = [head, visible(f"{margin[1:]}--> {self.position.text}")]
        if self.source and self.line:
            shown, before = _window(self.source, self.column - 1)
            carets = "^" * max(1, min(self.length, len(shown) - (self.column - 1 - before)))
            pad = " " * sum(_width(c) for c in shown[: self.column - 1 - before])
            out.append(f"{margin}|")
            out.append(f" {number} | {shown}")
            out.append(visible(f"{margin}| {pad}{carets} {self.label}".rstrip()))
        elif self.label:
            out.append(visible(f"{margin}= note: {self.label}"))
        if self.help:
            out.append(visible(f"{margin}= help: {self.help}"))
        return "\n".join(out)

    def to_json(self) -> FindingJson:
        """The finding as plain data, without the source line."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "end_column": self.end_column,
            "label": self.label,
            "help": self.help,
        }


def severity_of(code: str) -> Severity:
    """What a finding of this code is unless the place says otherwise."""
    return CODES[code].severity


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings by file, line, column and code, each once."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda f: (f.file, f.line, f.column, f.code, f.message)))


def summary(findings: Iterable[Finding]) -> str:
    """One sentence for an exception: how many errors in how many files, and the first of them."""
    errors = [f for f in findings if f.severity == "error"]
    if len(errors) == 1:
        return errors[0].text
    files = len({f.file for f in errors})
    return f"{len(errors)} errors in {files} {'file' if files == 1 else 'files'}; the first: {errors[0].text}"


_OTHER_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "type": ("as",), "kind": ("as",), "format": ("as",), "source": ("from",), "file": ("path",),
    "command": ("run",), "cmd": ("run",), "shell": ("run",), "exec": ("run",), "test": ("check",),
    "expect": ("expect_exit",), "exit_code": ("expect_exit",), "exit": ("expect_exit",),
    "prompt": ("goal",), "instructions": ("goal",), "task": ("goal", "tasks"), "steps": ("tasks",),
    "depends_on": ("needs",), "after": ("needs",), "requires": ("needs",),
    "if": ("when",), "condition": ("when",), "matrix": ("for_each",), "loop": ("for_each",),
    "parallel": ("max_parallel",), "concurrency": ("max_parallel",), "approval": ("approve",),
    "internet": ("network",), "net": ("network",), "web": ("network",), "http": ("network",), "https": ("network",),
    "int": ("integer",), "bool": ("boolean",), "str": ("string", "text"), "float": ("number",), "array": ("list",),
    "desc": ("description",), "summary": ("description",), "agent": ("agents",), "programs": ("run",),
    "permissions": ("grants",), "tools": ("grants",), "allow": ("grants",), "environment": ("env",),
    "budget": ("limits", "cost"), "ram": ("memory",), "wall": ("time",), "timeout": ("time",),
    "retry": ("retries",), "imports": ("include",), "variables": ("inputs",), "parameters": ("inputs",),
}  # fmt: skip
"""What other tools call a thing -> what it is called here."""


def closest(word: str, known: Iterable[str], cutoff: float = 0.75) -> str | None:
    """The known word that `word` may have been meant to be; None when none is near."""
    known = list(known)
    for meant in _OTHER_WORDS.get(word, ()):
        if meant in known:
            return meant
    wanted = word[:100].casefold().replace("-", "_")
    reach = max(2, len(wanted) // 3)
    names = [name for name in known if abs(len(name) - len(wanted)) <= reach]
    if len(names) > MAX_CANDIDATES:
        names = [name for name in names if name[:1].casefold() == wanted[:1]][:MAX_CANDIDATES]
    folded = {name.casefold().replace("-", "_"): name for name in reversed(names)}
    found = difflib.get_close_matches(wanted, folded, n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean "high"?`; None when no known word is near."""
    near = closest(word, known)
    return f'did you mean "{near}"?' if near else None


class Nearest:
    """Finds what words may have been meant to be: each word once, and no more than MAX_LOOKUPS of them."""

    def __init__(self, known: Collection[str]) -> None:
        self._known = known
        self._found: dict[str, str | None] = {}

    def to(self, word: str) -> str | None:
        """As `did_you_mean`; None also for a word too many."""
        if word not in self._found and len(self._found) < MAX_LOOKUPS:
            self._found[word] = did_you_mean(word, self._known)
        return self._found.get(word)


def one_of(words: Iterable[str]) -> str:
    """`critical, high, medium or low`."""
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def quoted(text: str, limit: int = 60) -> str:
    """The text in double quotes, shortened, with control characters replaced."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return f'"{visible(short)}"'


def visible(text: str) -> str:
    """The text with every control and format character, and every surrogate, replaced by a visible one."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _stand_in(c) for c in text)


def _stand_in(char: str) -> str:
    if char == "\t":
        return " "
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"


def _width(char: str) -> int:
    if unicodedata.east_asian_width(char) in "WF":
        return 2
    return 0 if unicodedata.combining(char) else 1


def _window(line: str, column: int) -> tuple[str, int]:
    """The part of a line around a column, made visible, and how many characters were left out before it."""
    start = 0 if column < WINDOW - 20 else column - WINDOW // 2
    return visible(line[start : start + WINDOW]), start
