"""Programs that run inside the sandbox on behalf of tools: their text goes along with each call."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from toka.sandbox.profile import PYTHON

ALONE: Final = (PYTHON, "-I", "-S", "-B", "-c")
"""The system's Python with no settings, no packages, no files left behind, and nothing of the workspace."""


def inside(name: str) -> list[str]:
    """The beginning of a command line that runs one of this package's own programs, such as `inside_http.py`."""
    return [*ALONE, _text(name)]


@cache
def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
