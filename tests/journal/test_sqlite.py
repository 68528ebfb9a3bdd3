from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from harness import eventually
from journal.conftest import OTHER, RUN, Python, event, hear, tell, texts
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import JournalCorrupt, JournalError, RunBusy, StaleEpoch
from toka.events.event import RunStateChanged
from toka.journal.audit import verify
from toka.journal.database import FILE, SCHEMA
from toka.journal.journal import LEASE_S, QUEUE_EVENTS, RENEW_S, Timing
from toka.journal.sqlite import SqliteJournal, SqliteReader


class LaterClock(SystemClock):
    """The machine's clock, with boot time ahead by `ahead` seconds."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def boottime(self) -> float:
        return super().boottime() + self.ahead


# --- several processes


@pytest.mark.slow
async def test_two_processes_write_their_runs_into_one_directory(sqlite: SqliteJournal, python: Python) -> None:
    other = python(
        """
        lease = await journal.acquire(run)
        say("ready"); listen()
        for n in range(200):
            await journal.append(lease, f"s{n % 3}", 1, [HoldPlaced("person", str(n))])
        say("done")
        await journal.aclose()
        """.replace("\n        ", "\n"),
        OTHER,
    )
    assert await hear(other) == "ready"
    lease = await sqlite.acquire(RUN)
    tell(other)
    for n in range(200):
        await sqlite.append(lease, "a", 1, [event(str(n))])
    assert await hear(other) == "done"
    for run in (RUN, OTHER):
        assert [r.event.reason for r in sqlite.read(run)] == [str(n) for n in range(200)]  # type: ignore[union-attr]
        assert verify(sqlite, run).problems == ()


HOLD = """
lease = await journal.acquire(run)
await journal.append(lease, "a", 1, [HoldPlaced("person", "mine")])
say(os.getpid())
while True:
    word = listen()
    if not word: break
    try:
        await journal.append(lease, "a", 1, [HoldPlaced("person", word)])
        say("written")
    except StaleEpoch as e:
        try:
            await journal.bump(lease, "a"); say("bumped")
        except StaleEpoch:
            say("stale")
"""


@pytest.mark.slow
async def test_a_live_holder_is_named_and_keeps_its_run(sqlite: SqliteJournal, python: Python) -> None:
    holder = python(HOLD)
    pid = await hear(holder)
    with pytest.raises(RunBusy, match=rf"run {RUN} is being executed by process {pid} on {os.uname().nodename}, since"):
        await sqlite.acquire(RUN)
    seen = sqlite.lease(RUN)
    assert seen is not None and seen.alive and str(seen.holder.pid) == pid
    tell(holder, "still mine")
    assert await hear(holder) == "written"


@pytest.mark.slow
async def test_a_run_of_a_killed_process_is_taken_over_at_once(sqlite: SqliteJournal, python: Python) -> None:
    holder = python(HOLD)
    await hear(holder)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (seen := sqlite.lease(RUN)) is not None and not seen.alive
    lease = await sqlite.acquire(RUN)
    assert lease.token == 2 and dict(lease.epochs) == {"a": 2}
    await sqlite.append(lease, "a", 2, [event("ours")])
    assert [r.seq for r in sqlite.read(RUN)] == [1, 2]


@pytest.mark.slow
async def test_a_frozen_holder_that_wakes_up_past_its_lease_commits_nothing(state: Path, python: Python) -> None:
    holder = python(HOLD)
    await hear(holder)
    holder.send_signal(signal.SIGSTOP)
    with closing(SqliteReader(state, LaterClock(LEASE_S - 1.0))) as early:
        assert (seen := early.lease(RUN)) is not None and seen.alive
    journal = SqliteJournal(state, LaterClock(LEASE_S + 1.0))
    lease = await journal.acquire(RUN)
    await journal.append(lease, "a", 2, [event("ours")])
    holder.send_signal(signal.SIGCONT)
    for _ in range(2):
        tell(holder, "theirs")
        assert await hear(holder) == "stale"
    await journal.append(lease, "a", 2, [event("ours again")])
    assert texts(state) == ["mine", "ours", "ours again"]
    assert dict(journal.heads(RUN))["a"][0] == 3
    await journal.aclose()


async def test_a_process_knows_when_its_lease_has_run_out(state: Path) -> None:
    clock = LaterClock()
    journal = SqliteJournal(state, clock)
    lease = await journal.acquire(RUN)
    assert journal.holds(lease)
    clock.ahead = LEASE_S - 1.0
    assert journal.holds(lease)
    clock.ahead = LEASE_S + 0.1
    assert not journal.holds(lease), "it may not act any more, though nobody else took the run yet"
    await journal.append(lease, "a", 1, [event()])
    assert journal.holds(lease), "the append renewed it: nobody had taken it"
    await journal.aclose()


@pytest.mark.parametrize("idle", [False, True])
async def test_a_lease_is_renewed_with_appends_and_without(state: Path, *, idle: bool) -> None:
    clock = LaterClock()
    journal = SqliteJournal(state, clock, Timing(renew_s=0.01))
    lease = await journal.acquire(RUN)
    first = journal.lease(RUN)
    clock.ahead = RENEW_S + 0.1
    if not idle:
        await journal.append(lease, "a", 1, [event()])
    end = time.monotonic() + 10
    while (seen := journal.lease(RUN)) and first and seen.until < first.until + RENEW_S:
        assert time.monotonic() < end
        await asyncio.sleep(0.002)
    await journal.aclose()


@pytest.mark.slow
async def test_a_new_directory_may_be_opened_by_many_processes_at_once(state: Path, python: Python) -> None:
    bodies = [python('say("open")\nawait journal.aclose()', RunId(f"20300101-000000-{c * 6}")) for c in "abcde"]
    assert [await hear(p) for p in bodies] == ["open"] * 5


# --- the disk


@pytest.mark.slow
async def test_a_full_disk_refuses_loses_nothing_and_recovers_unaided(state: Path, python: Python) -> None:
    """The limit on the size of files stands in for the disk: the kernel refuses to make the file longer."""
    process = python(
        """
import resource
lease = await journal.acquire(run)
used = max(p.stat().st_size for p in state.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (used + 200_000, resource.RLIM_INFINITY))
told, refused = [], None
for n in range(100):
    try:
        await journal.append(lease, "a", 1, [HoldPlaced("person", f"{n} " + "x" * 4000)])
        told.append(n)
    except JournalError as e:
        refused = e
        break
say(f"{type(refused).__name__}: {refused} // {refused.hint}")
try:
    await journal.put_blob(b"y" * 100_000); say("stored")
except JournalError:
    say("refused")
large = [journal.append(lease, s, 1, [HoldPlaced("person", f"{s} " + "z" * 50_000)]) for s in "bcd"]
for name, outcome in zip("bcd", await asyncio.gather(*large, return_exceptions=True)):
    if isinstance(outcome, JournalError):
        say("refused")
    else:
        told.append(name); say("acknowledged")
say(" ".join(map(str, told)))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
await journal.append(lease, "a", 1, [HoldPlaced("person", "after")])
say("recovered")
await journal.aclose()
""",
        stall_s=0.0,
    )
    message = await hear(process)
    assert message.startswith(f"JournalError: journal {state / FILE}: ") and "free some space" in message
    assert await hear(process) == "refused"
    assert "refused" in [await hear(process) for _ in range(3)]
    told = (await hear(process)).split()
    assert 3 < len(told) < 60
    assert await hear(process) == "recovered"
    assert process.wait() == 0
    assert [t.split()[0] for t in texts(state)] == [*told, "after"]
    with closing(SqliteReader(state, SystemClock())) as reader:
        assert verify(reader, RUN).problems == ()


async def test_a_database_that_may_grow_no_more_is_the_same(state: Path) -> None:
    sqlite = SqliteJournal(state, SystemClock(), Timing(stall_s=0.0))
    lease = await sqlite.acquire(RUN)
    await sqlite.append(lease, "a", 1, [event("kept")])
    connection = bounded(sqlite)
    with pytest.raises(JournalError, match="full") as error:
        await sqlite.append(lease, "a", 1, [event("x" * 100_000)])
    assert error.value.hint and "free some space" in error.value.hint
    connection.execute("PRAGMA max_page_count=1000000")
    await sqlite.append(lease, "a", 1, [event("next")])
    assert [r.seq for r in sqlite.read(RUN)] == [1, 2]
    assert verify(sqlite, RUN).problems == ()
    await sqlite.aclose()


def bounded(journal: SqliteJournal) -> sqlite3.Connection:
    """The writer's connection, of a database that may hardly grow any more."""
    connection = journal._writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages + 2}")
    return connection


@pytest.mark.slow
async def test_a_full_disk_is_waited_for_and_nothing_is_told_before_there_is_room(sqlite: SqliteJournal) -> None:
    lease = await sqlite.acquire(RUN)
    connection = bounded(sqlite)
    large = asyncio.create_task(sqlite.append(lease, "a", 1, [event("x" * 100_000)]))
    blob = asyncio.create_task(sqlite.put_blob(b"y" * 100_000))
    small = asyncio.create_task(sqlite.append(lease, "a", 1, [event("behind it")]))
    await eventually(lambda: sqlite._writer._stalled is not None, "the first refusal")
    await asyncio.sleep(0.25)
    assert not (large.done() or blob.done() or small.done()) and sqlite.read(RUN) == []
    connection.execute("PRAGMA max_page_count=1000000")
    assert [r.seq for r in await large] == [1] and [r.seq for r in await small] == [2]
    assert sqlite.blob(await blob) == b"y" * 100_000
    assert sqlite._writer._stalled is None and verify(sqlite, RUN).problems == ()


@pytest.mark.slow
async def test_a_disk_that_stays_full_is_waited_for_once_and_not_by_each(state: Path) -> None:
    sqlite = SqliteJournal(state, SystemClock(), Timing(stall_s=0.3))
    lease = await sqlite.acquire(RUN)
    bounded(sqlite)
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(JournalError, match="full"):
            await sqlite.append(lease, "a", 1, [event("x" * 100_000)])
    assert 0.3 <= time.monotonic() - began < 1.2
    await sqlite.aclose()


async def test_who_gives_a_run_back_waits_for_no_disk(sqlite: SqliteJournal) -> None:
    lease = await sqlite.acquire(RUN)
    bounded(sqlite)
    stuck = asyncio.create_task(sqlite.append(lease, "a", 1, [event("x" * 100_000)]))
    await eventually(lambda: sqlite._writer._stalled is not None, "the first refusal")
    async with asyncio.timeout(5):
        await sqlite.release(lease)
        with pytest.raises(JournalError, match="full"):
            await stuck
    assert (seen := sqlite.lease(RUN)) is None, seen


@pytest.mark.slow
async def test_a_locked_database_is_waited_for(sqlite: SqliteJournal, state: Path) -> None:
    lease = await sqlite.acquire(RUN)
    with closing(sqlite3.connect(state / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(sqlite.append(lease, "a", 1, [event("late")]))
        await asyncio.sleep(0.05)
        assert not waiting.done() and sqlite.read(RUN) == [], "readers are not held up"
        other.execute("COMMIT")
    assert [r.seq for r in await waiting] == [1]


async def test_a_database_locked_for_too_long_says_so_and_loses_nothing(state: Path) -> None:
    sqlite = SqliteJournal(state, SystemClock(), Timing(stall_s=0.0))
    sqlite._writer._connection.execute("PRAGMA busy_timeout=1")
    lease = await sqlite.acquire(RUN)
    with closing(sqlite3.connect(state / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalError, match="locked") as error:
            await sqlite.append(lease, "a", 1, [event("refused")])
        assert error.value.hint == "another process holds the database; try again"
    await sqlite.append(lease, "a", 1, [event("written")])
    assert texts(state) == ["written"]
    await sqlite.aclose()


# --- the directory and the file


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, python: Python) -> None:
    """In a child that is an ordinary user: root may write anywhere."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    for parent in (folder, *folder.parents):
        if parent != Path("/") and not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    folder.chmod(0o555)  # for an ordinary user, whose folder it is
    read_only = in_child_as_user(lambda: SqliteReader(folder, SystemClock()))
    missing = in_child_as_user(lambda: SqliteReader(folder / "deeper", SystemClock()))
    for message, path in ((read_only, folder), (missing, folder / "deeper")):
        assert message.startswith(
            f"JournalUnavailable: cannot use the state directory {path}: Permission denied // choose"
        )


def in_child_as_user(body: Callable[[], object]) -> str:
    """What `body` raises in a process without root's rights."""
    read, write = os.pipe()
    if pid := os.fork():
        os.close(write)
        os.waitpid(pid, 0)
        with os.fdopen(read) as pipe:
            return pipe.read()
    try:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        body()
        os.write(write, b"nothing")
    except JournalError as e:
        os.write(write, f"{type(e).__name__}: {e} // {e.hint}".encode())
    finally:
        os._exit(0)


def test_nobody_else_may_read_the_journal(state: Path) -> None:
    SqliteReader(state, SystemClock()).close()
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / FILE).stat().st_mode) == 0o600


NEWER = f"import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA user_version={SCHEMA + 1}')"


@pytest.mark.parametrize(
    "left",
    [
        pytest.param("; db.close()", id="closed"),
        pytest.param("; os._exit(0)", id="killed"),
        pytest.param("; db.execute('PRAGMA journal_mode=DELETE'); db.close()", id="without a log"),
    ],
)
def test_a_journal_of_a_newer_version_is_refused_and_left_alone(state: Path, left: str) -> None:
    """The killed one leaves its version in the log: the file itself still bears ours."""
    SqliteReader(state, SystemClock()).close()
    subprocess.run([sys.executable, "-c", NEWER + left, str(state / FILE)], check=True)
    before = contents(state)
    assert (f"{FILE}-wal" in before) == (left == "; os._exit(0)")
    for opens in (SqliteReader, lambda *place: asyncio.run(opened(*place))):
        with pytest.raises(JournalError, match=rf"newer Toka \(form {SCHEMA + 1}, this one knows {SCHEMA}\)") as error:
            opens(state, SystemClock())
        assert error.value.exit_code == 4 and error.value.hint == "use that version, or choose another --state DIR"
        assert contents(state) == before


async def opened(state: Path, clock: SystemClock) -> SqliteJournal:
    return SqliteJournal(state, clock)


def contents(state: Path) -> dict[str, bytes]:
    """All bytes of a state directory, but those of the shared memory, which belongs to whoever has it open."""
    return {path.name: path.read_bytes() for path in state.iterdir() if not path.name.endswith("-shm")}


def test_a_file_that_is_no_database_is_refused_and_left_alone(state: Path) -> None:
    state.mkdir()
    (state / FILE).write_bytes(b"this is somebody's letter" * 100)
    with pytest.raises(JournalError, match="not a database") as error:
        SqliteReader(state, SystemClock())
    assert error.value.hint and "damaged or is no journal" in error.value.hint
    assert (state / FILE).read_bytes().startswith(b"this is somebody's letter")


async def test_a_damaged_file_is_a_journal_error_wherever_it_is_noticed(state: Path) -> None:
    journal = SqliteJournal(state, SystemClock())
    lease = await journal.acquire(RUN)
    for n in range(50):
        await journal.append(lease, "a", 1, [event(f"{n}" * 200)])
    await journal.aclose()
    data = bytearray((state / FILE).read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    (state / FILE).write_bytes(data)
    with closing(SqliteReader(state, SystemClock())) as reader:
        for look in (
            lambda: reader.read(RUN),
            lambda: list(reader.stored(RUN)),
            lambda: reader.heads(RUN),
            lambda: reader.last_of(RUN, "a", "hold_placed"),
        ):
            with pytest.raises(JournalError, match="malformed"):
                look()


async def test_a_record_that_is_no_event_is_named(sqlite: SqliteJournal) -> None:
    lease = await sqlite.acquire(RUN)
    await sqlite.append(lease, "a", 1, [event(), event(), event()])
    sqlite._writer._connection.execute("UPDATE events SET body='{}' WHERE id=2")
    with pytest.raises(JournalCorrupt, match="record 2 is not a stored event") as error:
        sqlite.read(RUN)
    assert error.value.hint == "toka audit verify names every bad record"


# --- one process


async def test_appenders_beyond_the_bound_wait_for_room(sqlite: SqliteJournal, state: Path) -> None:
    lease = await sqlite.acquire(RUN)
    with closing(sqlite3.connect(state / FILE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        full = asyncio.create_task(sqlite.append(lease, "a", 1, [event()] * QUEUE_EVENTS))
        late = [asyncio.create_task(sqlite.append(lease, "b", 1, [event(str(n))])) for n in range(3)]
        given_up = asyncio.create_task(sqlite.append(lease, "b", 1, [event("given up")]))
        await asyncio.sleep(0.01)
        assert sqlite._pending == QUEUE_EVENTS and len(sqlite._waiting) == 4
        given_up.cancel()
        other.execute("COMMIT")
    await asyncio.gather(full, *late)
    assert texts(state, stream="b") == ["0", "1", "2"], "who was cancelled before there was room wrote nothing"
    assert sqlite._pending == 0


async def test_closing_writes_what_is_queued_and_refuses_what_waits_for_room(state: Path) -> None:
    journal = SqliteJournal(state, SystemClock())
    lease = await journal.acquire(RUN)
    full = asyncio.create_task(journal.append(lease, "a", 1, [event()] * QUEUE_EVENTS))
    late = asyncio.create_task(journal.append(lease, "b", 1, [event("late")]))
    await asyncio.sleep(0)
    await journal.aclose()
    assert len(await full) == QUEUE_EVENTS
    with pytest.raises(JournalError, match="closed"):
        await asyncio.wait_for(late, 5)
    with pytest.raises(JournalError, match="closed"):
        await journal.append(lease, "a", 1, [event()])
    with pytest.raises(JournalError, match="closed"):
        await journal.put_blob(b"")
    await journal.aclose()


async def test_a_batch_larger_than_a_transaction_is_whole_and_in_order(sqlite: SqliteJournal, state: Path) -> None:
    lease = await sqlite.acquire(RUN)
    sizes = [1, 3, 700, 1, 5000, 259, 17, 4]
    await asyncio.gather(*(sqlite.append(lease, "a", 1, [event(f"{n}")] * size) for n, size in enumerate(sizes)))
    assert texts(state) == [str(n) for n, size in enumerate(sizes) for _ in range(size)]
    assert [r.seq for r in sqlite.read(RUN)] == list(range(1, sum(sizes) + 1))
    assert verify(sqlite, RUN).problems == ()


async def test_many_appends_share_a_commit(sqlite: SqliteJournal) -> None:
    lease = await sqlite.acquire(RUN)
    commits: list[int] = []
    sqlite._writer._on_batch = lambda batch, told=sqlite._writer._on_batch: (commits.append(len(batch)), told(batch))
    await asyncio.gather(*(sqlite.append(lease, f"s{n}", 1, [event()]) for n in range(500)))
    assert sum(commits) == 500 and len(commits) <= 5


@pytest.mark.parametrize("bad", [{"x": {1}}, {"x": float}, {1: "\ud800"}])
async def test_a_request_that_cannot_be_stored_is_refused_and_the_journal_goes_on(
    sqlite: SqliteJournal, bad: dict[str, object]
) -> None:
    with pytest.raises(JournalError, match="cannot be stored"):
        await sqlite.submit(RUN, "pause", agent="", arguments=bad, by=("ada", "\ud800"))
    lease = await sqlite.acquire(RUN)
    await sqlite.append(lease, "a", 1, [event()])
    assert sqlite.commands(RUN) == []


async def test_a_stale_writer_does_not_disturb_its_batch_mates(state: Path) -> None:
    one = SqliteJournal(state, SystemClock())
    mine, lost = await one.acquire(OTHER), await one.acquire(RUN)
    await one.append(lost, "", 1, [RunStateChanged("RUNNING")])
    two = SqliteJournal(state, LaterClock(LEASE_S + 1.0))
    taken = await two.acquire(RUN)
    outcomes = await asyncio.gather(
        one.append(mine, "a", 1, [event("mine")]),
        one.append(lost, "a", 1, [event("lost")]),
        one.append(mine, "b", 1, [event("mine")]),
        return_exceptions=True,
    )
    assert [type(o) for o in outcomes] == [list, StaleEpoch, list]
    await two.append(taken, "", 2, [RunStateChanged("WAITING")])
    assert [r.seq for r in two.read(RUN)] == [1, 2]
    await one.aclose()
    await two.aclose()


def test_a_reader_writes_nothing(state: Path) -> None:
    with (
        closing(SqliteReader(state, SystemClock())) as reader,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        reader._db.execute("INSERT INTO blobs VALUES ('x', x'00')")


@pytest.mark.slow
async def test_a_second_reader_of_the_process_takes_no_lock_from_the_first(tmp_path: Path) -> None:
    """Closing any descriptor of the database drops the process's locks on it; then others delete the log under it."""
    state = tmp_path / "state"
    journal = SqliteJournal(state, SystemClock())
    try:
        run = RunId("20300101-000000-aaaaaa")
        assert journal.commands(run) == []
        SqliteReader(state, SystemClock()).close()
        SqliteReader(state, SystemClock()).close()
        submit = (
            "import asyncio, sys; from pathlib import Path; from toka.core.clock import SystemClock\n"
            "from toka.journal.sqlite import SqliteJournal\n"
            "async def main():\n"
            "    journal = SqliteJournal(Path(sys.argv[1]), SystemClock())\n"
            "    await journal.submit(sys.argv[2], 'pause', agent='', arguments={}, by=('ada', ''))\n"
            "    await journal.aclose()\n"
            "asyncio.run(main())\n"
        )
        for number in (1, 2):
            await asyncio.to_thread(subprocess.run, [sys.executable, "-c", submit, str(state), run], check=True)
            assert len(journal.commands(run)) == number
    finally:
        await journal.aclose()
