from __future__ import annotations

import os
import signal
import socket
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from journal.conftest import OTHER, RUN, Python, hear, tell
from toka.core.ids import RunId
from toka.journal.database import FILE
from toka.journal.holder import this_holder
from toka.journal.journal import Holder
from toka.journal.poke import Inbox, poke
from toka.journal.sqlite import SqliteJournal

THIRD = RunId("20300101-000000-cccccc")
DEAD = replace(this_holder(), started=1)
EXECUTES = """
from toka.journal.poke import Inbox
lease = await journal.acquire(run)
inbox = Inbox(state, run)
inbox.__enter__()
say(os.getpid())
while word := listen():
    if word == "release":
        await journal.release(lease)
    elif word == "leave":
        inbox.__exit__()
    say(word)
"""


def sockets(state: Path) -> set[str]:
    return {path.stem for path in state.iterdir() if stat.S_ISSOCK(path.lstat().st_mode)}


def held_by(state: Path, holder: Holder) -> None:
    """RUN was executed last by this process."""
    with closing(sqlite3.connect(state / FILE)) as db:
        db.execute("INSERT INTO leases VALUES (?,?,?,?,?,?,?,?,?)", (RUN, 1, *astuple(holder), 0.0, 0.0))
        db.commit()


@contextmanager
def bound(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fsencode(path))
        yield


async def test_a_nudge_ends_the_wait(sqlite: SqliteJournal, state: Path) -> None:
    assert not poke(state, RUN)
    with Inbox(state, RUN) as inbox:
        assert stat.S_IMODE((state / f"{RUN}.sock").stat().st_mode) == 0o600
        assert poke(state, RUN)
        await inbox.wait(30.0)
    assert sockets(state) == set() and not poke(state, RUN)


async def test_what_is_left_of_a_run_does_not_hinder_who_executes_it_next(sqlite: SqliteJournal, state: Path) -> None:
    with bound(state / f"{RUN}.sock"):
        pass
    with Inbox(state, RUN) as inbox:
        assert poke(state, RUN)
        await inbox.wait(30.0)


async def test_who_lost_its_run_leaves_the_socket_of_who_took_it(sqlite: SqliteJournal, state: Path) -> None:
    lost = Inbox(state, RUN)
    lost.__enter__()
    with Inbox(state, RUN) as taken:
        lost.__exit__()
        assert poke(state, RUN), "it can still be reached"
        await taken.wait(30.0)
    assert sockets(state) == set()


@pytest.mark.slow
async def test_the_next_start_removes_the_sockets_of_the_dead_and_no_other(
    sqlite: SqliteJournal, state: Path, python: Python
) -> None:
    killed, alive = python(EXECUTES, RUN), python(EXECUTES, OTHER)
    pid = int(await hear(killed))
    await hear(alive)
    os.kill(pid, signal.SIGKILL)
    killed.wait()
    (state / "notes.sock").write_text("a file of somebody else")
    with bound(state / "elsewhere.sock"):
        assert sockets(state) == {RUN, OTHER, "elsewhere"}
        lease = await sqlite.acquire(THIRD)
        assert sockets(state) == {OTHER, "elsewhere"}, "no run is called `elsewhere`: nobody knows whose it is"
    assert (state / "notes.sock").exists()
    tell(alive, "release")
    assert await hear(alive) == "release"
    await sqlite.release(lease)
    await sqlite.acquire(THIRD)
    assert OTHER in sockets(state), "it gave its run back, and lives"
    assert poke(state, OTHER)
    tell(alive, "leave")
    assert await hear(alive) == "leave"
    assert OTHER not in sockets(state)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, True),
        ({"started": 1}, False),  # the pid was given to another process since
        ({"boot": "another"}, False),
        ({"pidns": "pid:[1]"}, True),
        ({"host": "elsewhere"}, True),
    ],
)
async def test_an_owner_is_dead_only_when_that_is_certain(
    sqlite: SqliteJournal, state: Path, changes: dict[str, object], left: bool
) -> None:
    held_by(state, replace(this_holder(), **changes))  # type: ignore[arg-type]
    with bound(state / f"{RUN}.sock"):
        await sqlite.acquire(OTHER)
        assert (RUN in sockets(state)) is left


@pytest.mark.parametrize("link", [False, True])
async def test_what_is_no_socket_stays_whatever_its_name(sqlite: SqliteJournal, state: Path, link: bool) -> None:
    held_by(state, DEAD)
    with bound(state / "elsewhere.sock"):
        path = state / f"{RUN}.sock"
        if link:
            path.symlink_to("elsewhere.sock")
        else:
            path.write_text("a file of somebody else")
        await sqlite.acquire(OTHER)
        assert path.exists()


async def test_a_name_that_is_no_text_is_nobodys(sqlite: SqliteJournal, state: Path) -> None:
    path = state / os.fsdecode(b"\xff.sock")
    with bound(path):
        await sqlite.acquire(OTHER)
        assert path.exists()


async def test_a_socket_that_cannot_be_removed_stops_nobody(
    sqlite: SqliteJournal, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    held_by(state, DEAD)
    with bound(state / f"{RUN}.sock"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", refuse)
            await sqlite.acquire(OTHER)
        assert RUN in sockets(state)
