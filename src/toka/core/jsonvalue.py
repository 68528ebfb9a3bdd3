"""JSON that comes from models, tools and people: how deep it is, and numbers that are none. Pure."""

from __future__ import annotations

import math
from typing import Any, Final, cast

MAX_DEPTH: Final = 60
"""Levels of lists and mappings that a value may have: what reads it again, YAML among it, takes no more."""


def deeper_than(limit: int, value: Any) -> bool:
    """Whether a JSON value has more levels of lists and mappings than that. Does not recurse."""
    level: list[Any] = [value]
    for _ in range(limit + 1):
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return False
    return True


def _inner(value: Any) -> list[Any]:
    """What a list or mapping holds; of other values nothing."""
    if isinstance(value, dict):
        return list(cast("dict[str, Any]", value).values())
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple) else []


def finite(text: str) -> float:
    """A number with a fraction or exponent. Raises ValueError when it is too large for one."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number
