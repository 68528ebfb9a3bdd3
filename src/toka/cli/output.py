"""Where output goes: results to stdout, messages to stderr; colour only where a person looks."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, Final

from toka.cli.text import json_line
from toka.errors import ConfigError, ModelUnavailable, TokaError


class ReaderGone(Exception):
    """Whoever read stdout went away, or where it goes takes no more: the rest of the result is not to be had."""


def say(text: str) -> None:
    """A message for the person at the terminal, on stderr. Where nobody takes it, it is lost, and that is all."""
    try:
        # In one write: what others write to the terminal does not get in between.
        print(f"{text}\n", end="", file=sys.stderr, flush=True)  # noqa: T201 - the one place that prints messages
    except OSError:
        sys.stderr = None


EXIT_BROKEN_PIPE: Final = 141
"""As a shell reports a program that SIGPIPE ended."""


def emit(text: str) -> None:
    """A part of the result, on stdout.

    Raises:
        ReaderGone: the reader went away, or the disk is full, which is said. (click would take a BrokenPipeError for
            its own business.)
    """
    try:
        print(text, flush=True)  # noqa: T201 - this is the one place that prints results
    except OSError as e:
        sys.stdout = None  # or the interpreter tries to flush it at its end
        if not isinstance(e, BrokenPipeError):
            say(f"toka: stdout cannot be written: {e.strerror or e}; nothing recorded is lost")
        raise ReaderGone from e


def emit_json(value: dict[str, Any]) -> None:
    """One JSON line of the result."""
    emit(json_line(value))


def fail(error: TokaError) -> int:
    """Prints an error and what to do about it; returns the exit code."""
    found = error.findings if isinstance(error, ConfigError) else ()
    for finding in found:
        say(finding.render() + "\n")
    if all(finding.text not in error.message for finding in found):  # one finding is its own message
        say(f"toka: {error.message}")
    if isinstance(error, ModelUnavailable):
        for line in error.tried:
            say(f"  tried: {line}")
    if error.hint:
        say(f"  help: {error.hint}")
    return error.exit_code


def internal(error: Exception) -> int:
    """Prints a defect of Toka, with its traceback when TOKA_DEBUG is set; returns the exit code."""
    if os.environ.get("TOKA_DEBUG"):
        traceback.print_exception(error)
    say(f"toka: internal error: {type(error).__name__}: {error}")
    say("  help: this is a defect of Toka; set TOKA_DEBUG=1 to see where. Nothing recorded is lost")
    return 70


def coloured(stream: Any = None) -> bool:
    """Whether a stream gets colour: FORCE_COLOR, then NO_COLOR and TERM=dumb, then whether it is a terminal."""
    if os.environ.get("FORCE_COLOR"):
        return True
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return (stream or sys.stdout).isatty()


def live(stream: Any = None) -> bool:
    """Whether a live view may redraw lines: a real terminal, outside CI."""
    terminal = (stream or sys.stderr).isatty()
    return terminal and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")
