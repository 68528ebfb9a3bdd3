"""The table of mutations fits the code, so that `make mutate-sandbox` can be trusted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox.mutations import HOST, MUTATIONS, Mutation
from toka.sandbox import host

SOURCES = Path(host.__file__).parent
TESTS = Path(__file__).parent
LIST = TESTS.parents[1] / "docs/escapes.md"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_a_mutation_replaces_is_there_once(mutation: Mutation) -> None:
    for change in mutation.changes:
        assert (SOURCES / change.file).read_text().count(change.old) == 1, change
        assert change.old != change.new
    assert HOST not in mutation.tests, "a test of it is the control, which must come first"
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert not name or f"def {name.partition('[')[0]}(" in (TESTS / file).read_text(), test


def test_names_tell_mutations_apart() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) > 40


def test_the_list_of_escapes_names_tests_that_are_there() -> None:
    named = 0
    for file, tests in re.findall(r"(\w+): ((?:`test_\w+`(?:, )?)+)", LIST.read_text()):
        text = (TESTS / f"test_{file}.py").read_text()
        for test in re.findall(r"`(test_\w+)`", tests):
            named += 1
            assert f"def {test}(" in text, f"{file}: {test}"
    assert named == LIST.read_text().count("`test_") - 1 > 80  # one is a file
