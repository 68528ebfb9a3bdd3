"""Where a path of the canonical spec stands in the text."""

from __future__ import annotations

import pytest

from toka.config.faults import NOWHERE, path_text, place_of
from toka.config.source import Source
from toka.config.yaml import read_nodes

ROOT = read_nodes(Source("x.yaml", "a: 1\nb:\n  - c: [x, y]\n  - z\nd: {e: }\n"))


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ((), (1, 1, 1)),
        (("a",), (1, 4, 1)),
        (("b",), (2, 1, 1)),
        (("b", 0), (3, 5, 1)),
        (("b", 0, "c"), (3, 5, 1)),
        (("b", 0, "c", 1), (3, 12, 1)),
        (("b", 1), (4, 5, 1)),
        (("b", 7), (2, 1, 1)),
        (("b", 0, "missing", "more"), (3, 5, 1)),
        (("missing",), (1, 1, 1)),
        ((0,), (1, 1, 1)),
        (("d", "e"), (5, 8, 0)),
    ],
)
def test_places(path: tuple[str | int, ...], place: tuple[int, int, int]) -> None:
    assert place_of(ROOT, path) == place


def test_without_text_there_is_no_place() -> None:
    assert place_of(None, ("a",)) == NOWHERE


def test_paths_as_text() -> None:
    assert path_text(("tasks", "default", 2, "priority")) == "tasks.default[2].priority"
    assert path_text(()) == "the spec"
