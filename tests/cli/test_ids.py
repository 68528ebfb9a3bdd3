from __future__ import annotations

import pytest

from toka.cli.ids import match_name, match_run
from toka.core.ids import RunId
from toka.errors import NotFound, UsageError

RUNS = [RunId(r) for r in ("20261101-101010-abcdef", "20261101-111111-abzzzz", "20261102-101010-qrstuv")]


@pytest.mark.parametrize(
    ("text", "run"),
    [(RUNS[0], RUNS[0]), ("@last", RUNS[2]), ("20261102", RUNS[2]), ("abz", RUNS[1]), ("20261101-11", RUNS[1])],
)
def test_a_run_is_found_by_id_beginning_or_last_part(text: str, run: RunId) -> None:
    assert match_run(RUNS, text) == run


def test_an_ambiguous_beginning_lists_the_candidates_newest_first() -> None:
    with pytest.raises(UsageError, match="2 runs: 20261101-111111-abzzzz, 20261101-101010-abcdef") as error:
        match_run(RUNS, "20261101")
    assert error.value.exit_code == 2


def test_many_candidates_are_counted() -> None:
    runs = [RunId(f"2026-{i:04d}") for i in range(100)]
    with pytest.raises(UsageError, match="and 92 more"):
        match_run(runs, "2026")


@pytest.mark.parametrize(
    ("text", "hint"), [("qrstvu", "20261102-101010-qrstuv"), ("zz", "the newest is 20261102-101010-qrstuv"), ("", "ps")]
)
def test_an_unknown_run_has_near_ones_in_the_hint(text: str, hint: str) -> None:
    with pytest.raises(NotFound) as error:
        match_run(RUNS, text)
    assert hint in (error.value.hint or "")
    assert error.value.exit_code == 9


def test_no_runs_at_all_says_how_to_start_one() -> None:
    with pytest.raises(NotFound) as error:
        match_run([], "@last")
    assert "toka demo" in (error.value.hint or "")


def test_names_are_found_by_their_beginning() -> None:
    names = ["parser", "printer", "lexer"]
    assert match_name(names, "lexer") == "lexer"
    assert match_name(names, "le") == "lexer"
    with pytest.raises(UsageError, match="parser, printer"):
        match_name(names, "p")
    with pytest.raises(NotFound) as error:
        match_name(names, "parsr")
    assert error.value.hint == "did you mean parser?"


def test_what_was_typed_cannot_drive_the_terminal() -> None:
    with pytest.raises(NotFound) as error:
        match_run(RUNS, "\x1b[2J" + "x" * 10_000)
    assert "\x1b" not in error.value.message
    assert len(error.value.message) < 200
