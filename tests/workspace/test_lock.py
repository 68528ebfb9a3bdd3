from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.lock import Note, WriteLocks, overlap
from workspace.conftest import Open

ONE, TWO = Note("run_1", "one", "task", "step"), Note("run_2", "two", "task", "step")
HOLDS = """
import asyncio, pathlib, sys
from toka.core.clock import SystemClock
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.lock import Note

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
    async with one.lock(TWO, ["a/deep"]):
        pass
    async with two.lock(Note("run_9", "late"), ["c"]):
        pass
    assert two.overtaken(ONE, ["a"]) == "agent two of run run_2 has written there since"


@pytest.mark.parametrize("text", ["", "{", "{}", '[{"note": {"run": 1, "odd": 2}}]', '[{"note": {}}]', "[1]"])
async def test_a_table_that_is_not_ours_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "holders.json").write_text(text)
    async with asyncio.timeout(5), WriteLocks(tmp_path, SystemClock()).lock(ONE, ["a"]):
        pass


async def test_the_table_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toka.workspace.lock.REMEMBERED", 5)
    locks = WriteLocks(tmp_path, SystemClock())
    async with locks.lock(ONE, ["kept"]):
        for number in range(40):
            async with locks.lock(Note("r", f"a{number}"), ["x"]):
                pass
        rows = json.loads((tmp_path / "holders.json").read_text())
        assert len(rows) <= 12
        assert rows[0]["scope"] == ["kept"], "who holds it is never forgotten"
    locks.close()
    assert not list((tmp_path / "live").iterdir())


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
