"""The text of one file: decoded, screened for characters that hide something, and able to say where things stand."""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from typing import Final

from toka.config.codes import Severity
from toka.config.diagnostics import Finding, Position, severity_of

MAX_BYTES: Final = 1024 * 1024
"""The largest file that is read."""
REACH: Final = 100_000
"""Characters in which a piece of a value is looked for."""
MAX_FINDINGS: Final = 50
"""Findings reported per file; more would only bury the first ones."""

_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]|\r(?!\n)")
_HIDING: Final = re.compile("[\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f\ufeff]+")
_WIDE_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class Source:
    """One file's text, its label, and the findings about it.

    Invariant: lines end at LF or CR LF only; a text with any other line break is refused by `screen`.
    """

    __slots__ = ("_starts", "file", "findings", "text")

    def __init__(self, file: str, text: str = "") -> None:
        self.file = file
        self.text = text
        self.findings: list[Finding] = []
        self._starts: list[int] | None = None

    @property
    def broken(self) -> bool:
        """Whether an error was found."""
        return any(f.severity == "error" for f in self.findings)

    def line(self, number: int) -> str:
        """A line without its end; empty when there is no such line. Numbers start at 1."""
        if self._starts is None:
            self._starts = [0, *(m.end() for m in re.finditer("\n", self.text))]
        if not 0 < number <= len(self._starts):
            return ""
        start = self._starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start : end if end >= 0 else None].removesuffix("\r")

    def place(self, index: int) -> tuple[int, int]:
        """Line and column, from 1, of the character at `index`."""
        before = self.text.rfind("\n", 0, index) + 1
        return self.text.count("\n", 0, index) + 1, index - before + 1

    def within(self, at: tuple[int, int, int], text: str, skip: int = 0) -> tuple[int, int, int]:
        """Where a piece of text stands from a place on, but for its first `skip` occurrences; else the place itself."""
        if not at[0] or not self.line(at[0]) or self._starts is None:
            return at
        start = self._starts[at[0] - 1] + at[1] - 1
        index = end = start - 1
        for _ in range(skip + 1):
            index = self.text.find(text, end + 1, start + REACH)
            if index < 0:
                break
            end = index
        if index < 0:
            return at
        row = bisect_right(self._starts, index)
        return row, index - self._starts[row - 1] + 1, len(text)

    def beside(self) -> Source:
        """A source of the same text, with findings of its own."""
        other = Source(self.file, self.text)
        self.line(1)
        other._starts = self._starts
        return other

    def add(
        self,
        code: str,
        message: str,
        at: tuple[int, int, int] = (0, 0, 1),
        *,
        label: str = "",
        help: str | None = None,  # noqa: A002 - the word of the output
        severity: Severity | None = None,
    ) -> None:
        """Records a finding. `at` is line, column and length; beyond MAX_FINDINGS it is dropped."""
        if len(self.findings) < MAX_FINDINGS:
            line, column, length = at
            shown = severity or severity_of(code)
            position = Position(self.file, line, column)
            self.findings.append(
                Finding(code, message, position, shown, max(1, length), label, help, self.line(line)[:4000])
            )


def decode(source: Source, data: bytes) -> None:
    """Sets the text of a source from the bytes of its file; whatever cannot be decoded becomes a finding."""
    if len(data) > MAX_BYTES:
        source.add("TK1004", "the file is larger than 1 MB", (1, 1, 1))
        return
    wide = next((name for mark, name in _WIDE_MARKS if data.startswith(mark)), None)
    if wide is None and len(data) > 3 and (data[0:4:2] == b"\0\0" or data[1:4:2] == b"\0\0"):
        wide = "UTF-16 without a byte order mark"
    if wide is not None:
        source.add("TK1002", f"the file is {wide}, not UTF-8", (1, 1, 1), help="save it as UTF-8")
        return
    marked = data.startswith(codecs.BOM_UTF8)
    if marked:
        source.add("TK1002", "the file starts with a byte order mark, which is skipped", (1, 1, 1), severity="note")
        data = data[3:]
    try:
        source.text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        source.text = data.decode("utf-8", "replace")
        index = len(data[: error.start].decode("utf-8"))
        source.add(
            "TK1002", f"byte 0x{data[error.start]:02x} is not UTF-8", (*source.place(index), 1), help="save it as UTF-8"
        )


def screen(source: Source) -> None:
    """Finds characters that are refused, and warns of those that hide text."""
    if source.text.isascii() and source.text.isprintable():
        return
    for match in _FORBIDDEN.finditer(source.text):
        name = f"U+{ord(match.group()):04X}"
        what = "a lone carriage return" if match.group() == "\r" else f"the character {name}"
        source.add("TK1003", f"{what} is not allowed", (*source.place(match.start()), 1))
        if len(source.findings) >= 5:
            return
    if source.text.isascii():
        return
    for match in _HIDING.finditer(source.text):
        at = (*source.place(match.start()), len(match.group()))
        source.add("TK1015", f"hidden text: U+{ord(match.group()[0]):04X} reorders or hides what follows", at)
        if len(source.findings) >= 10:
            return
