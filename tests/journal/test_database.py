"""A state directory that goes away while it is in use."""

from __future__ import annotations

import asyncio
import errno
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from journal.conftest import OTHER, RUN, event, texts
from toka.core.clock import SystemClock
from toka.errors import JournalGone, JournalUnavailable, StaleEpoch
from toka.journal.database import FILE, OpenFile
from toka.journal.sqlite import SqliteJournal, SqliteReader


def deleted(state: Path) -> None:
    shutil.rmtree(state)


def moved(state: Path) -> None:
    state.rename(state.with_name("elsewhere"))


def replaced(state: Path) -> None:
    """By a process that was started with the same directory, and made it anew."""
    shutil.rmtree(state)
    SqliteReader(state, SystemClock()).close()


def replaced_by_a_file(state: Path) -> None:
    shutil.rmtree(state)
    state.write_text("this is no directory")


@pytest.mark.parametrize("goes", [deleted, moved, replaced, replaced_by_a_file])
async def test_nothing_is_acknowledged_that_nobody_will_find(
    sqlite: SqliteJournal, state: Path, goes: Callable[[Path], None]
) -> None:
    lease = await sqlite.acquire(RUN)
    await sqlite.append(lease, "a", 1, [event("kept")])
    published: list[object] = []
    sqlite.on_commit(RUN, published.extend)
    goes(state)
    for attempt in (
        lambda: sqlite.append(lease, "a", 1, [event("lost")]),
        lambda: sqlite.put_blob(b"lost"),
        lambda: sqlite.bump(lease, "a"),
        lambda: sqlite.acquire(OTHER),
        lambda: sqlite.submit(RUN, "pause", agent="", arguments={}, by=("ada", "")),
        lambda: sqlite.release(lease),
    ):
        with pytest.raises(JournalGone, match=f"{state / FILE} is gone: its directory was deleted or moved") as error:
            await attempt()
        assert error.value.exit_code == JournalUnavailable.exit_code == 4
        assert error.value.hint and "--state DIR" in error.value.hint
    outcomes = await asyncio.gather(
        *(sqlite.append(lease, s, 1, [event("lost")]) for s in "abc"), return_exceptions=True
    )
    assert [type(o) for o in outcomes] == [JournalGone] * 3
    assert published == []


@pytest.mark.parametrize("goes", [deleted, moved, replaced])
async def test_who_asks_again_and_again_hears_of_it_without_writing(
    sqlite: SqliteJournal, state: Path, goes: Callable[[Path], None]
) -> None:
    await sqlite.acquire(RUN)
    with closing(SqliteReader(state, SystemClock())) as reader:
        goes(state)
        for journal in (sqlite, reader):
            with pytest.raises(JournalGone):
                journal.commands(RUN)
            with pytest.raises(JournalGone):
                journal.lease(RUN)


async def test_all_appends_of_a_batch_are_refused(sqlite: SqliteJournal, state: Path) -> None:
    lease = await sqlite.acquire(RUN)
    deleted(state)
    appends = (sqlite.append(lease, f"s{n}", 1, [event()]) for n in range(50))
    outcomes = await asyncio.gather(*appends, return_exceptions=True)
    assert {type(o) for o in outcomes} == {JournalGone}


async def test_whatever_sqlite_says_of_it_the_cause_is_told(sqlite: SqliteJournal, state: Path) -> None:
    await sqlite.put_blob(b"kept")
    sqlite._writer._connection.execute("PRAGMA max_page_count=1")
    deleted(state)
    with pytest.raises(JournalGone):
        await sqlite.put_blob(b"x" * 1_000_000)


async def test_what_was_acknowledged_before_a_move_is_found_where_it_went(sqlite: SqliteJournal, state: Path) -> None:
    lease = await sqlite.acquire(RUN)
    await sqlite.append(lease, "a", 1, [event("kept")])
    moved(state)
    with pytest.raises(JournalGone):
        await sqlite.append(lease, "a", 1, [event("refused")])
    with pytest.raises(JournalGone):
        await sqlite.append(lease, "a", 1, [event("not written")])
    await sqlite.aclose()
    assert texts(state.with_name("elsewhere"))[0] == "kept"
    assert "not written" not in texts(state.with_name("elsewhere"))


async def test_a_journal_that_took_the_place_of_another_is_left_alone(sqlite: SqliteJournal, state: Path) -> None:
    lost = await sqlite.acquire(RUN)
    deleted(state)
    other = SqliteJournal(state, SystemClock())
    lease = await other.acquire(RUN)
    await other.append(lease, "a", 1, [event("its own")])
    with pytest.raises(StaleEpoch):
        await sqlite.append(lost, "a", 1, [event("lost")])
    await sqlite.aclose()
    await other.append(lease, "a", 1, [event("goes on")])
    assert texts(state) == ["its own", "goes on"]
    await other.aclose()
    assert texts(state) == ["its own", "goes on"], "closing the lost one removed none of its files"


def test_a_file_that_is_missing_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(JournalGone):
        OpenFile(tmp_path / FILE)


@pytest.mark.parametrize(("number", "gone"), [(errno.EACCES, False), (errno.EIO, False), (errno.ESTALE, True)])
def test_who_may_not_look_does_not_say_that_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, gone: bool
) -> None:
    (tmp_path / FILE).touch()
    file = OpenFile(tmp_path / FILE)

    def refuse(_: Path) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "stat", refuse)
    if gone:
        with pytest.raises(JournalGone):
            file.check()
    else:
        file.check()
