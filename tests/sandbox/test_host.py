from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from sandbox.conftest import Start, living, open_fds
from toka.core.clock import SystemClock
from toka.errors import SandboxError
from toka.sandbox import filework
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy

STUBBORN = "trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; sleep {0}; true' &); nohup sleep {0} & sleep {0}; true"
"""A tree that ignores polite signals, leaves its session and is adopted by init."""


@pytest.fixture
def marker() -> str:
    """A sleep whose command line occurs nowhere else on this machine."""
    return f"987{uuid.uuid4().int % 10**12}"


async def until_running(marker: str, count: int = 1) -> None:
    for _ in range(1000):
        if len(living(marker)) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the command did not start")


async def test_a_command_gives_output_in_order_and_its_exit_code(start: Start) -> None:
    sandbox = await start()
    result = await sandbox.run(shell("echo one; echo two >&2; echo three; exit 7"), timeout_s=5)
    assert (result.exit_code, result.output, result.ended) == (7, b"one\ntwo\nthree\n", "exited")
    assert result.dropped == 0
    assert 0 < result.wall_s < 5
    assert result.max_rss_bytes > 1_000_000


async def test_a_signal_is_a_negative_exit_code(start: Start) -> None:
    result = await (await start()).run(shell("kill -SEGV $$"), timeout_s=5)
    assert (result.exit_code, result.ended) == (-11, "exited")


async def test_the_working_folder_is_the_workspace_or_one_below(start: Start) -> None:
    sandbox = await start()
    assert (await sandbox.run(["pwd"], timeout_s=5)).output == b"/workspace\n"
    assert (await sandbox.run(["pwd"], cwd="src", timeout_s=5)).output == b"/workspace/src\n"


@pytest.mark.parametrize("cwd", ["..", "/etc", "src/../..", "nowhere", "docs/a.txt"])
async def test_no_other_folder_is_one(start: Start, cwd: str) -> None:
    result = await (await start()).run(["pwd"], cwd=cwd, timeout_s=5)
    assert (result.exit_code, result.ended, result.output) == (126, "refused", b"")
    assert result.reason


async def test_a_missing_program_is_127_and_one_that_cannot_run_126(start: Start) -> None:
    sandbox = await start()
    missing = await sandbox.run(["no-such-program"], timeout_s=5)
    assert (missing.exit_code, missing.ended) == (127, "exited")
    assert b"no-such-program: No such file" in missing.output
    assert (await sandbox.run(["/workspace/docs/a.txt"], timeout_s=5)).exit_code == 126


@pytest.mark.parametrize(
    ("argv", "env"),
    [([], {}), ([""], {}), (["a\0b"], {}), (["true"], {"A=B": "x"}), (["true"], {"A": "\0"}), (["x" * 200_000], {})],
)
async def test_what_cannot_be_a_command_is_refused(start: Start, argv: list[str], env: dict[str, str]) -> None:
    sandbox = await start()
    result = await sandbox.run(argv, env=env, timeout_s=5)
    assert (result.exit_code, result.ended) == (126, "refused")
    assert (await sandbox.run(["true"], timeout_s=5)).exit_code == 0


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
async def test_a_deadline_that_leaves_no_time_is_refused(start: Start, timeout_s: float) -> None:
    result = await (await start()).run(["true"], timeout_s=timeout_s)
    assert (result.ended, "deadline" in result.reason) == ("refused", True)


async def test_standard_input_is_empty(start: Start) -> None:
    result = await (await start()).run(["cat"], timeout_s=5)
    assert (result.exit_code, result.output) == (0, b"")


async def test_a_deadline_kills_the_whole_stubborn_tree(start: Start, marker: str) -> None:
    sandbox = await start()
    result = await sandbox.run(shell(STUBBORN.format(marker)), timeout_s=0.2)
    assert (result.exit_code, result.ended) == (None, "timeout")
    assert living(marker) == []
    assert result.wall_s < 2


async def test_what_a_command_leaves_behind_dies_with_it(start: Start, marker: str) -> None:
    result = await (await start()).run(shell(f"setsid sleep {marker} & echo done"), timeout_s=5)
    assert (result.ended, result.output) == ("exited", b"done\n")
    assert living(marker) == []


async def test_output_beyond_the_limit_is_counted(start: Start) -> None:
    result = await (await start()).run(["head", "-c", "3000000", "/dev/zero"], timeout_s=5, output_limit=1000)
    assert (result.exit_code, len(result.output), result.dropped) == (0, 1000, 2_999_000)


@pytest.mark.parametrize("source", ["yes", "tr '\\0' x < /dev/zero"])
async def test_a_flood_is_killed(start: Start, source: str) -> None:
    result = await (await start()).run(shell(source), timeout_s=30)
    assert (result.exit_code, result.ended) == (None, "flood")
    assert len(result.output) == 1 << 20
    assert 64 << 20 <= result.dropped + len(result.output) < 70 << 20


@pytest.mark.slow
async def test_commands_run_at_the_same_time(start: Start) -> None:
    sandbox = await start()
    began = time.monotonic()
    results = await asyncio.gather(*(sandbox.run(shell(f"sleep 0.5; echo {n}"), timeout_s=5) for n in range(10)))
    assert [r.output for r in results] == [b"%d\n" % n for n in range(10)]
    assert time.monotonic() - began < 4


async def test_the_loop_keeps_turning(start: Start) -> None:
    sandbox = await start()
    command = asyncio.create_task(sandbox.run(shell("sleep 0.2"), timeout_s=5))
    turns = 0
    while not command.done():
        await asyncio.sleep(0.005)
        turns += 1
    assert turns > 20


async def test_cancelling_kills_before_it_returns(start: Start, marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toka.sandbox.execution.TERM_S", 0.05)
    sandbox = await start()
    command = asyncio.create_task(sandbox.run(shell(STUBBORN.format(marker)), timeout_s=30))
    await until_running(marker, 3)
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    assert living(marker) == []
    assert (await sandbox.run(["true"], timeout_s=5)).exit_code == 0


async def test_cancelling_again_and_again_changes_nothing(start: Start, marker: str) -> None:
    sandbox = await start()
    command = asyncio.create_task(sandbox.run(["sleep", marker], timeout_s=30))
    await until_running(marker)
    while not command.done():
        command.cancel()
        await asyncio.sleep(0)
    assert command.cancelled()
    assert living(marker) == []


async def test_a_dead_zygote_is_told_and_replaced(start: Start, marker: str) -> None:
    sandbox = await start()
    command = asyncio.create_task(sandbox.run(["sleep", marker], timeout_s=30))
    await until_running(marker)
    assert sandbox._zygote is not None
    sandbox._zygote.kill()
    result = await command
    assert (result.exit_code, result.ended) == (None, "lost")
    assert (await sandbox.run(["echo", "again"], timeout_s=5)).output == b"again\n"
    assert living(marker) == []


async def test_a_zygote_found_dead_got_nothing_so_the_command_runs_in_a_new_one(start: Start) -> None:
    sandbox = await start()
    await sandbox.file("hash", path="docs/a.txt")
    zygote = sandbox._zygote
    assert zygote is not None
    os.kill(zygote._inner, signal.SIGKILL)
    time.sleep(0.05)  # dead, and the loop has not heard of it
    assert (await sandbox.run(["echo", "ran"], timeout_s=5)).output == b"ran\n"
    assert (await sandbox.file("hash", path="docs/a.txt"))["exists"]


async def test_a_frozen_zygote_cannot_hold_a_deadline_up(
    start: Start, marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toka.sandbox.execution.GRACE_S", 0.1)
    sandbox = await start()
    assert sandbox._zygote is not None
    command = asyncio.create_task(sandbox.run(["sleep", marker], timeout_s=2))
    await until_running(marker)
    os.kill(sandbox._zygote._inner, signal.SIGSTOP)
    assert (await command).ended == "timeout"
    assert living(marker) == []


async def test_closing_ends_what_runs(start: Start, marker: str) -> None:
    sandbox = await start()
    command = asyncio.create_task(sandbox.run(["sleep", marker], timeout_s=30))
    await until_running(marker)
    await sandbox.close()
    assert (await command).ended == "lost"
    assert living(marker) == []
    await sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        await sandbox.run(["true"], timeout_s=5)


async def test_nothing_stays_open(workspace: Path, marker: str) -> None:
    async def life() -> None:
        sandbox = await Sandbox.start(
            workspace, SandboxPolicy(writes=("src",), programs=None), Surroundings(SystemClock())
        )
        await sandbox.run(["true"], timeout_s=5)
        await sandbox.run(["sleep", "9"], timeout_s=0.05)
        await sandbox.file("read", path="src/main.py", start=1, lines=None, limit=100)
        await sandbox.close()

    await life()
    before = open_fds()
    await life()
    assert open_fds() == before


async def test_a_cancelled_start_leaves_nothing(workspace: Path) -> None:
    before = open_fds()
    for delay in (0.0, 0.005, 0.015):
        starting = asyncio.create_task(Sandbox.start(workspace, SandboxPolicy(), Surroundings(SystemClock())))
        await asyncio.sleep(delay)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert open_fds() == before


HOST = """
import asyncio, sys
from pathlib import Path
from toka.core.clock import SystemClock
from toka.sandbox import host
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy

async def main(workspace, command):
    policy = SandboxPolicy(writes=("src",), programs=None)
    sandbox = await Sandbox.start(Path(workspace), policy, Surroundings(SystemClock()))
    await sandbox.file("hash", path="src/main.py")
    print(sandbox._zygote.pid, sandbox._zygote._inner, flush=True)
    await sandbox.run(shell(command), timeout_s=60)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
async def test_everything_dies_with_a_killed_runtime(workspace: Path, marker: str) -> None:
    argv = [sys.executable, "-c", HOST, str(workspace), STUBBORN.format(marker)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}) as host:
        assert host.stdout is not None
        pids = [int(p) for p in host.stdout.readline().split()]
        await until_running(marker, 4)  # three sleeps, and the host itself
        host.kill()
        host.wait()
    for _ in range(1000):
        left = [p for p in pids if Path(f"/proc/{p}").exists()] + living(marker)
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{left} outlived the runtime")


STARTER = """
import asyncio, sys
from pathlib import Path
from toka.core.clock import SystemClock
from toka.sandbox.keeper import Surroundings
from toka.sandbox.host import Sandbox
from toka.sandbox.policy import SandboxPolicy

async def one():
    while True:
        folder = Path(sys.argv[1])
        sandbox = await Sandbox.start(folder, SandboxPolicy(), Surroundings(SystemClock()))
        print("started", flush=True)
        await sandbox.close()

async def main():
    await asyncio.gather(*(one() for _ in range(6)))

asyncio.run(main())
"""


@pytest.mark.slow
async def test_everything_dies_with_a_runtime_killed_while_it_starts_sandboxes(workspace: Path) -> None:
    for delay in range(10):
        argv = [sys.executable, "-c", STARTER, str(workspace)]
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
        ) as host:
            assert host.stdout is not None
            assert host.stdout.readline() == b"started\n"
            await asyncio.sleep(delay * 0.004)
            host.kill()
    for _ in range(1000):
        left = living(str(workspace))
        for pid in filter(unborn, left):
            os.kill(pid, signal.SIGKILL)
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{left} outlived the runtime")


def unborn(pid: int) -> bool:
    """Whether a process is bwrap's child still waiting for its identity, from a parent that is dead.

    Between its birth and that moment nothing tells it of the death, and it waits for ever. It is nobody, has mounted
    nothing and runs nothing.
    """
    try:
        return (
            Path(f"/proc/{pid}/uid_map").read_text() == "" and "PPid:\t1\n" in Path(f"/proc/{pid}/status").read_text()
        )
    except OSError:
        return False


async def until_gone(sandbox: Sandbox) -> None:
    for _ in range(500):
        if sandbox._zygote is None or not sandbox._zygote.alive:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the sandbox is still there")


async def test_an_idle_sandbox_is_stopped_and_comes_back(start: Start) -> None:
    sandbox = await start(idle_s=0.05)
    assert (await sandbox.run(["true"], timeout_s=5)).exit_code == 0
    await until_gone(sandbox)
    assert (await sandbox.file("read", path="docs/a.txt", start=1, lines=None, limit=100))["body"] == b"alpha\n"
    await until_gone(sandbox)
    assert (await sandbox.run(["cat", "docs/a.txt"], timeout_s=5)).output == b"alpha\n"


async def test_a_sandbox_is_not_stopped_while_it_works_or_while_something_is_in_tmp(start: Start) -> None:
    sandbox = await start(idle_s=0.02)
    slow, _ = await asyncio.gather(
        sandbox.run(shell("sleep 0.3; echo done"), timeout_s=5), sandbox.run(["true"], timeout_s=5)
    )
    assert slow.output == b"done\n"
    await sandbox.run(shell("echo kept > /tmp/mark"), timeout_s=5)
    await asyncio.sleep(0.2)
    assert (await sandbox.run(shell("cat /tmp/mark; rm /tmp/mark"), timeout_s=5)).output == b"kept\n"
    await until_gone(sandbox)


async def test_uses_that_meet_the_stop_of_an_idle_sandbox_are_served(start: Start) -> None:
    sandbox = await start(idle_s=0.001)
    for number in range(60):
        result = await sandbox.run(["echo", str(number)], timeout_s=5)
        assert (result.ended, result.output) == ("exited", b"%d\n" % number)
        await asyncio.sleep(number % 7 * 0.001)


async def test_a_file_worker_that_nobody_uses_ends_and_comes_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filework, "WORKER_IDLE_S", 0.05)
    sandbox = await start()
    for _ in range(3):
        assert (await sandbox.file("read", path="docs/a.txt", start=1, lines=None, limit=100))["body"] == b"alpha\n"
        for _ in range(500):
            if len(sandbox.processes()) == 1:
                break
            await asyncio.sleep(0.01)
        assert len(sandbox.processes()) == 1, "only the zygote is left"
