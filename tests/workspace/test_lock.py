from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.claims import Claim, Claims, Note, overlap
from toka.workspace.lock import WriteLocks
from workspace.conftest import Open

ONE, TWO = Note("run_1", "one", "task", "step"), Note("run_2", "two", "task", "step")
HOLDS = """
import asyncio, pathlib, sys
from toka.core.clock import SystemClock
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.claims import Note

async def main():
    checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), SystemClock())
    async with checkpoints.lock(Note("run_3", "other"), ["src"]):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_one_at_a_time_in_the_order_in_which_they_came(checkpoints: Checkpoints) -> None:
    order: list[str] = []

    async def work(note: Note) -> None:
        async with checkpoints.lock(note):
            order.append(f"{note.agent} begins")
            await asyncio.sleep(0.01)
            order.append(f"{note.agent} ends")

    await asyncio.gather(*(work(Note("r", name)) for name in "abc"))
    assert order == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


async def test_two_of_them_in_one_process_exclude_each_other(open_checkpoints: Open) -> None:
    one, two = open_checkpoints(), open_checkpoints()
    async with one.lock(ONE):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), two.lock(TWO):
                pass
    async with asyncio.timeout(5), two.lock(TWO):
        pass


async def test_whoever_gives_up_waiting_leaves_the_lock_to_the_next(checkpoints: Checkpoints) -> None:
    async with checkpoints.lock(ONE):
        waiting = asyncio.ensure_future(checkpoints.lock(TWO).__aenter__())
        await asyncio.sleep(0.03)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(5), checkpoints.lock(TWO):
        pass


async def test_an_error_inside_lets_go_of_it(checkpoints: Checkpoints) -> None:
    with pytest.raises(ZeroDivisionError):
        async with checkpoints.lock(ONE):
            _ = 1 / 0
    async with asyncio.timeout(5), checkpoints.lock(TWO):
        pass


@pytest.mark.parametrize(
    ("one", "two", "met"),
    [
        (["."], ["a"], True),
        (["a"], ["a"], True),
        (["a/b"], ["a"], True),
        (["a"], ["a/b/c"], True),
        (["a"], ["ab"], False),
        (["a/b"], ["a/c"], False),
        (["x", "a/b"], ["y", "a"], True),
        ([], ["."], False),
    ],
)
def test_parts_overlap_where_one_lies_in_the_other(one: list[str], two: list[str], *, met: bool) -> None:
    assert overlap(one, two) is met
    assert overlap(two, one) is met


async def test_who_writes_elsewhere_is_not_waited_for(checkpoints: Checkpoints) -> None:
    async with checkpoints.lock(ONE, ["a"]), asyncio.timeout(5), checkpoints.lock(TWO, ["b"]):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), checkpoints.lock(Note("r", "three"), ["a/x", "c"]):
                pass
    async with checkpoints.lock(ONE, []), asyncio.timeout(5), checkpoints.lock(TWO):
        pass  # who writes nowhere is in nobody's way


async def test_whoever_waits_for_two_parts_is_not_passed_by_for_ever(checkpoints: Checkpoints) -> None:
    order: list[str] = []

    async def work(name: str, *scope: str) -> None:
        async with checkpoints.lock(Note("r", name), scope):
            order.append(name)
            await asyncio.sleep(0.01)

    async with checkpoints.lock(ONE, ["a"]):
        both = asyncio.ensure_future(work("both", "a", "b"))
        await asyncio.sleep(0)
        late = asyncio.ensure_future(work("late", "b"))
        await asyncio.sleep(0.03)
        assert order == []
    await asyncio.gather(both, late)
    assert order == ["both", "late"]


async def test_it_is_told_whether_somebody_wrote_there_since(open_checkpoints: Open) -> None:
    one, two = open_checkpoints(), open_checkpoints()
    assert one.overtaken(ONE, ["a"]) == "who wrote there since is not known any more"
    async with one.lock(ONE, ["a"]):
        pass
    async with one.lock(TWO, ["b"]):
        pass
    assert two.overtaken(ONE, ["a"]) == ""
    async with two.lock(ONE, ["a"]):
        assert two.overtaken(ONE, ["a"]) == "", "that it holds it again does not count"
    async with one.lock(ONE, ["a"]):
        assert one.overtaken(ONE, ["a"]) == "", "also in one process"
    async with one.lock(TWO, ["a/deep"]):
        pass
    async with two.lock(Note("run_9", "late"), ["c"]):
        pass
    assert two.overtaken(ONE, ["a"]) == "agent two of run run_2 has written there since"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "h", "h000000000000001", "h000000000000001 {}\n", "h00000000000000x {}\n", "\0" * 300),
        'h000000000000001 {"note": {"run": "r"}, "scope": ["a"], "shared": false}',
        'h000000000000001 {"note": {"run": 1, "odd": 2}, "scope": ["a"]}\n',
        '!000000000000001 {"note": {"run": "r"}, "scope": ["a"], "shared": false}\n',
    ],
)
async def test_what_is_no_whole_claim_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    with (tmp_path / "live/0").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (tmp_path / "live/0.rows").write_text(text)
        async with asyncio.timeout(5), WriteLocks(tmp_path, SystemClock()).lock(ONE, ["a"]):
            pass


async def test_what_is_remembered_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toka.workspace.claims.REMEMBERED", 5)
    for process in range(9):
        locks, other = (WriteLocks(tmp_path, SystemClock()) for _ in range(2))
        async with locks.lock(ONE, ["kept"]):
            for number in range(40):
                async with locks.lock(Note("r", f"a{number}"), ["x"]), other.lock(TWO, ["y"], shared=True):
                    pass
            rows = [file.read_text().splitlines() for file in (tmp_path / "live").glob("*.rows")]
            assert max(map(len, rows)) <= 12 and len(rows) <= 2 * (process + 1) <= 18
            assert any(line.startswith("h") and "kept" in line for lines in rows for line in lines), "it is held"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), other.lock(TWO, ["kept"]):
                    pass
        assert locks.overtaken(TWO, ["y"]) == "", "the same again and again is remembered once"
        locks.close()
        other.close()
    assert {file.suffix for file in (tmp_path / "live").iterdir()} == {".rows"}
    assert len(list((tmp_path / "live").iterdir())) < 6


@pytest.mark.parametrize("shared", [False, True])
def test_who_claims_first_is_before_the_other_until_its_end(tmp_path: Path, *, shared: bool) -> None:
    for n in range(10):  # whatever names they give themselves
        one, two = Claims(tmp_path / str(n)), Claims(tmp_path / str(n))
        (tmp_path / str(n)).mkdir()
        first = one.make(ONE, ["a"], shared=shared)
        second = two.make(TWO, ["a/b", "c"], shared=False)
        elsewhere = two.make(TWO, ["d"], shared=False)
        for _ in ("it waits", "it holds"):
            assert [c.note for c in two.before(second)] == [ONE]
            assert not list(one.before(first)) and not list(two.before(elsewhere))
            one.hold(first)
        one.end(first)
        assert not list(two.before(second))
        two.close()
        assert not list(one.before(one.make(ONE, ["a", "d"], shared=False))), "who has ended is before nobody"
        one.close()


def test_who_is_still_choosing_may_be_before(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    mine = claims.make(ONE, ["a"], shared=False)
    text = Claim(TWO, ("a",), shared=False, live="0").line()
    with (tmp_path / "live/0").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (tmp_path / "live/0.rows").write_bytes(text)
        assert [c.note for c in claims.before(mine)] == [TWO]
    assert not list(claims.before(mine)), "it has ended"
    claims.close()


async def test_a_disk_that_is_full_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = WriteLocks(tmp_path, SystemClock()), WriteLocks(tmp_path, SystemClock())
    real, room = os.pwrite, 40

    def full(file: int, data: bytes, at: int) -> int:
        return real(file, data[: max(0, room - at)], at)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        await one.lock(ONE, ["a"]).__aenter__()
    monkeypatch.setattr(os, "pwrite", real)
    for locks in (two, one):
        async with asyncio.timeout(5), locks.lock(TWO, ["a"]):
            pass


CLAIMS = """
import asyncio, pathlib, sys
from toka.core.clock import SystemClock
from toka.workspace.claims import Note
from toka.workspace.lock import WriteLocks

async def main():
    folder, name, times = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    locks, count = WriteLocks(folder, SystemClock()), folder / "count"
    for n in range(times):
        async with locks.lock(Note("r", name), [sys.argv[4]], shared=name == "shares"):
            if name == "adds":
                seen = int(count.read_text())
                await asyncio.sleep(0.002)
                count.write_text(str(seen + 1))
                print(n, flush=True)
            elif name == "looks":
                seen = count.read_text()
                await asyncio.sleep(0.005)
                assert count.read_text() == seen, "somebody was there meanwhile"

asyncio.run(main())
"""


def claiming(folder: Path, name: str, times: int, path: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CLAIMS, str(folder), name, str(times), path]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_several_processes_exclude_each_other_also_when_some_are_killed(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    doomed = claiming(tmp_path, "adds", 10_000, "src/deep")
    said = doomed.stdout
    assert said is not None and said.readline() == b"0\n"
    workers = [
        claiming(tmp_path, *each) for each in (("adds", 60, "src"), ("adds", 60, "."), ("looks", 40, "src/deep"))
    ]
    for _ in range(20):
        said.readline()
    doomed.kill()
    doomed.wait()
    lost = len(said.read().splitlines()) + 21
    said.close()
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    done = sum(len(worker.communicate()[0].splitlines()) for worker in workers)
    assert done == 120
    assert int((tmp_path / "count").read_text()) - done - lost in (0, 1), "one may have died before it could say so"


@pytest.mark.slow
async def test_a_process_that_stands_still_keeps_out_those_alone_who_want_its_part(tmp_path: Path) -> None:
    """At whatever moment of claiming: nobody waits for a file of the others'."""
    locks, shares = WriteLocks(tmp_path, SystemClock()), claiming(tmp_path, "shares", 10**9, "src")
    try:
        async with asyncio.timeout(20):
            while not list(tmp_path.glob("live/*.rows")):
                await asyncio.sleep(0.01)
        for n in range(60):
            await asyncio.sleep(0.003 + n % 7 / 1000)
            os.kill(shares.pid, signal.SIGSTOP)
            for shared, path in ((True, "src/deep"), (False, "docs")):
                async with asyncio.timeout(5), locks.lock(ONE, [path], shared=shared):
                    pass
            os.kill(shares.pid, signal.SIGCONT)
    finally:
        shares.kill()
        shares.communicate()
        locks.close()


@pytest.mark.slow
async def test_it_excludes_other_processes_and_dies_with_them(
    checkpoints: Checkpoints, workspace: Path, state: Path
) -> None:
    argv = [sys.executable, "-c", HOLDS, str(workspace), str(state)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert (await asyncio.to_thread(other.stdout.readline)).strip() == "held"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), checkpoints.lock(ONE):
                pass
        async with asyncio.timeout(5), checkpoints.lock(ONE, ["docs"]):
            pass
        other.kill()
        async with asyncio.timeout(5), checkpoints.lock(ONE):
            pass


async def test_who_waits_for_long_is_told_for_whom(open_checkpoints: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next before it: of this process, or whoever holds it in another; and once."""
    monkeypatch.setattr("toka.workspace.lock.WAIT_S", 0.05)
    one, two, seen = open_checkpoints(), open_checkpoints(), list[tuple[str, str]]()

    async def take(checkpoints: Checkpoints, name: str, *scope: str) -> None:
        async def told(whom: Note) -> None:
            seen.append((name, whom.agent))

        async with checkpoints.lock(Note("r", name), scope, told):
            pass

    async with one.lock(ONE, ["src"]), one.lock(Note("r", "elsewhere"), ["docs"]):
        waiting = [asyncio.ensure_future(take(one, name, "src/a")) for name in ("mine", "next")]
        waiting.append(asyncio.ensure_future(take(two, "other", "src/b", "docs")))
        await asyncio.sleep(0.4)
        assert sorted(seen) == [("mine", "one"), ("next", "mine"), ("other", "one")]
    await asyncio.gather(*waiting)
    assert len(seen) == 3


async def test_who_waits_only_shortly_is_told_nothing(checkpoints: Checkpoints) -> None:
    async def told(whom: Note) -> None:
        raise AssertionError(whom)

    held = checkpoints.lock(ONE)
    await held.__aenter__()
    waiting = asyncio.ensure_future(checkpoints.lock(TWO, ["."], told).__aenter__())
    await asyncio.sleep(0.05)
    await held.__aexit__(None, None, None)
    await waiting
    await asyncio.sleep(1.1)


async def test_what_is_never_put_back_shares_its_part_and_keeps_out_what_may_be(open_checkpoints: Open) -> None:
    one, two = open_checkpoints(), open_checkpoints()
    async with one.lock(ONE, ["src"], shared=True), two.lock(TWO, ["src/a"], shared=True):
        for checkpoints in (one, two):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), checkpoints.lock(Note("r", "alone"), ["src"]):
                    pass
    async with asyncio.timeout(5), one.lock(Note("r", "alone"), ["src"]):
        for checkpoints in (one, two):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), checkpoints.lock(TWO, ["src/a"], shared=True):
                    pass


async def test_who_shares_does_not_pass_one_that_waits_to_be_alone(checkpoints: Checkpoints) -> None:
    first = checkpoints.lock(ONE, ["src"], shared=True)
    await first.__aenter__()
    alone = asyncio.ensure_future(checkpoints.lock(Note("r", "alone"), ["src"]).__aenter__())
    await asyncio.sleep(0.02)
    later = asyncio.ensure_future(checkpoints.lock(TWO, ["src"], shared=True).__aenter__())
    await asyncio.sleep(0.05)
    assert not alone.done() and not later.done()
    await first.__aexit__(None, None, None)
    held = await alone
    await asyncio.sleep(0.02)
    assert not later.done()
    await held.__aexit__(None, None, None)
    await (await later).__aexit__(None, None, None)


async def test_two_of_one_agent_that_share_end_one_by_one(open_checkpoints: Open) -> None:
    one, two = open_checkpoints(), open_checkpoints()
    async with one.lock(ONE, ["src"], shared=True):
        async with one.lock(ONE, ["src"], shared=True):
            pass
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), two.lock(TWO, ["src"]):
                pass
    async with asyncio.timeout(5), two.lock(TWO, ["src"]):
        pass


async def test_what_was_shared_after_a_step_that_died_is_not_undone(open_checkpoints: Open) -> None:
    """It cannot be told apart from what the step left."""
    dead, lives = open_checkpoints(), open_checkpoints()
    await dead.lock(ONE, ["src"]).__aenter__()
    await dead.close()
    async with lives.lock(TWO, ["src/a"], shared=True):
        pass
    assert lives.overtaken(ONE, ["src"]) == "agent two of run run_2 has written there since"
    assert lives.overtaken(ONE, ["docs"]) == ""
