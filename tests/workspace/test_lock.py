from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from toka.workspace.checkpoints import Checkpoints
from toka.workspace.lock import Holder, Note, read_holder
from workspace.conftest import Open

ONE, TWO = Note("run_1", "one", "task", "step"), Note("run_2", "two", "task", "step")
HOLDS = """
import asyncio, pathlib, sys
from toka.core.clock import SystemClock
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.lock import Note

async def main():
    checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), SystemClock())
    async with checkpoints.lock(Note("run_3", "other")) as lock:
        lock.record("c" * 40)
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
        assert one.last_holder() == Holder(ONE)
    async with asyncio.timeout(5), two.lock(TWO):
        assert one.last_holder() == Holder(TWO)


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


async def test_it_tells_who_held_it_last_and_where_to_go_back_to(checkpoints: Checkpoints) -> None:
    assert checkpoints.last_holder() is None
    async with checkpoints.lock(ONE) as lock:
        assert checkpoints.last_holder() == Holder(ONE)
        lock.record("a" * 40)
    assert checkpoints.last_holder() == Holder(ONE, "a" * 40)
    with pytest.raises(RuntimeError, match="not held"):
        lock.record("b" * 40)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"note": {"run": 1, "odd": 2}}', '{"note": {}}'])
def test_a_file_that_is_not_ours_tells_of_nobody(text: str, tmp_path: Path) -> None:
    (tmp_path / "holder.json").write_text(text)
    assert read_holder(tmp_path) is None


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
        assert checkpoints.last_holder() == Holder(Note("run_3", "other"), "c" * 40)
        other.kill()
        async with asyncio.timeout(5), checkpoints.lock(ONE):
            assert checkpoints.last_holder() == Holder(ONE)
