"""The table of mutations fits the code, so that `make mutate-sandbox` can be trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.mutations import MUTATIONS, Mutation
from toka.sandbox import host

SOURCES = Path(host.__file__).parent
TESTS = Path(__file__).parent


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_a_mutation_replaces_is_there_once(mutation: Mutation) -> None:
    for change in mutation.changes:
        assert (SOURCES / change.file).read_text().count(change.old) == 1, change
        assert change.old != change.new
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert not name or f"def {name.partition('[')[0]}(" in (TESTS / file).read_text(), test


def test_names_tell_mutations_apart() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) > 40
