"""The processes that wait for the next command: who gets them, and what happens when they cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from sandbox.conftest import Start, change
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.usage import children_of, read_stat


async def waiting(sandbox: Sandbox) -> list[int]:
    """The init that waits and its child, once they are there and wait."""
    for _ in range(500):
        found = children_of(sandbox.processes()[0])
        if len(found) == 1 and len(below := children_of(found[0])) == 1:
            stat = read_stat(below[0])
            if stat is not None and stat.state == "S":
                return [found[0], below[0]]
        await asyncio.sleep(0.01)
    raise AssertionError("nothing waits")


async def test_the_next_command_gets_the_processes_that_wait(start: Start) -> None:
    sandbox = await start()
    for _ in range(3):
        init, command = await waiting(sandbox)
        running = asyncio.create_task(sandbox.run(shell("echo $$; sleep 0.3"), timeout_s=5))
        await asyncio.sleep(0.15)
        assert children_of(sandbox.processes()[0]) == [init], "nothing else is started while it runs"
        assert Path(f"/proc/{command}/comm").read_text() == "sh\n"
        assert (await running).output == b"2\n"
        assert read_stat(init) is None


async def test_what_waits_is_locked_up_as_the_command_will_be(start: Start) -> None:
    sandbox = await start()
    init, command = await waiting(sandbox)
    for pid, filtered in ((init, "0"), (command, "2")):
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"].strip()[:1] >= filtered) == ("1", True)


async def test_a_command_of_a_person_does_not_get_what_waits_for_an_agents_and_the_other_way_round(
    start: Start,
) -> None:
    sandbox = await start(programs=("echo", "bash"))
    for _ in range(2):
        refused = await sandbox.run(["ls", "docs"], timeout_s=5)
        assert refused.exit_code in (126, 127), refused
        await waiting(sandbox)
        seen = await sandbox.run(["ls", "docs"], timeout_s=5, chosen_by="person")
        assert (seen.exit_code, seen.output) == (0, b"a.txt\n")
        await waiting(sandbox)


@pytest.mark.parametrize("which", [0, 1], ids=["init", "command"])
async def test_the_next_command_does_without_when_what_waited_is_dead(start: Start, which: int) -> None:
    sandbox = await start()
    for _ in range(3):
        os.kill((await waiting(sandbox))[which], signal.SIGKILL)
        await asyncio.sleep(0.02)
        result = await sandbox.run(shell("echo hello"), timeout_s=5)
        assert (result.ended, result.exit_code, result.output) == ("exited", 0, b"hello\n")
    assert [read_stat(pid) is not None for pid in await waiting(sandbox)] == [True, True]


async def test_a_command_that_meets_the_end_of_what_waits_is_served_or_reported(start: Start) -> None:
    sandbox = await start()
    for number in range(40):
        init, _ = await waiting(sandbox)
        running = asyncio.create_task(sandbox.run(["echo", "hello"], timeout_s=5))
        await asyncio.sleep(number * 0.0001)
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(init, signal.SIGKILL)
        result = await running
        assert (result.ended, result.output) in (("exited", b"hello\n"), ("killed", b""), ("killed", b"hello\n"))


async def test_one_of_many_commands_at_once_gets_them(start: Start) -> None:
    sandbox = await start()
    await waiting(sandbox)
    results = await asyncio.gather(*(sandbox.run(shell(f"sleep 0.05; echo {n}"), timeout_s=10) for n in range(8)))
    assert [r.output for r in results] == [b"%d\n" % n for n in range(8)]
    await waiting(sandbox)


async def test_a_large_request_is_served_as_well(start: Start) -> None:
    sandbox = await start()
    await waiting(sandbox)
    result = await sandbox.run(["sh", "-c", 'echo "${#LARGE}"'], env={"LARGE": "x" * 100_000}, timeout_s=5)
    assert result.output == b"100000\n"
    await waiting(sandbox)


async def test_they_go_when_no_command_comes(start: Start, code_inside: Path) -> None:
    change(code_inside / "zygote.py", "SPARE_S = 5.0", "SPARE_S = 0.2")
    sandbox = await start()
    pids = await waiting(sandbox)
    for _ in range(500):
        if not any(map(read_stat, pids)):
            break
        await asyncio.sleep(0.01)
    assert not any(map(read_stat, pids))
    assert len(sandbox.processes()) == 1
    assert (await sandbox.run(["echo", "hello"], timeout_s=5)).output == b"hello\n"


async def test_a_sandbox_that_ran_nothing_has_none(start: Start) -> None:
    sandbox = await start(warm=False)
    assert len(sandbox.processes()) == 1


async def test_they_end_with_the_sandbox(start: Start) -> None:
    sandbox = await start()
    pids = await waiting(sandbox)
    await sandbox.close()
    assert not any(map(read_stat, pids))


async def test_what_changed_in_a_granted_folder_since_is_seen_by_the_next_command(
    start: Start, workspace: Path
) -> None:
    sandbox = await start(reads=(), writes=("src",))
    await waiting(sandbox)
    (workspace / "src/new").mkdir()
    (workspace / "src/new/file").write_text("from outside")
    result = await sandbox.run(shell("cat src/new/file; echo more > src/new/other"), timeout_s=5)
    assert (result.exit_code, result.output) == (0, b"from outside")
