"""Sandboxes that are held still, by real processes: at each level, with the cgroup freezer and without it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.conftest import living
from sandbox.test_limits import NO_CGROUPS
from sandbox.test_reduced import own
from toka.core.clock import SystemClock
from toka.errors import SandboxError
from toka.sandbox import execution, standstill
from toka.sandbox.cgroup_find import Hierarchies
from toka.sandbox.command import CommandResult
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.reduced import ReducedSandbox
from toka.sandbox.usage import read_stat

MOUNTS = Path("/proc/self/mountinfo").read_text().splitlines(True)
V1 = Hierarchies.find(mountinfo="".join(line for line in MOUNTS if " - cgroup2 " not in line))
V2 = Hierarchies.find(mountinfo="".join(line for line in MOUNTS if " - cgroup " not in line))
HOLDERS = {"signals": NO_CGROUPS}
HOLDERS |= {name: found for name, found in (("v1", V1), ("v2", V2)) if found.places.get("freeze")}
LEVELS = ("full", "reduced", "none")
KINDS = [(level, holder) for level in LEVELS for holder in HOLDERS]
BEATS = "while :; do echo >> src/{0}; sleep 0.01; done"
BUSY = f"(setsid sh -c '{BEATS.format('far')}' &) ; {BEATS.format('near')} & {BEATS.format('here')}"
Start = Callable[..., Awaitable[Sandbox]]


@pytest.fixture
def workspace() -> Iterator[Path]:
    """Where the agent's user can get to it."""
    place = Path(tempfile.mkdtemp(prefix="toka-freeze-"))
    place.chmod(0o755)
    for name in ("docs", "src"):
        (place / "ws" / name).mkdir(parents=True)
    (place / "ws/docs/a.txt").write_text("alpha\n")
    (place / "ws/src/main.py").touch()
    own(place / "ws")
    yield place / "ws"
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def marker() -> str:
    """A sleep whose command line occurs nowhere else on this machine."""
    return f"985{uuid.uuid4().int % 10**12}"


@pytest.fixture(params=KINDS, ids="-".join)
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The level, and what holds the processes still."""
    return request.param


by_signals = pytest.mark.parametrize("kind", [(level, "signals") for level in LEVELS], ids="-".join, indirect=True)


@pytest.fixture
async def start(workspace: Path, kind: tuple[str, str]) -> AsyncIterator[Start]:
    started: list[Sandbox] = []

    async def make(idle_s: float = 60.0, **changes: Any) -> Sandbox:
        level, holder = kind
        policy = SandboxPolicy(**{"reads": ("docs",), "writes": ("src",), "programs": None, **changes})
        around = Surroundings(SystemClock(), idle_s, hierarchies=HOLDERS[holder])
        if level == "full":
            sandbox = await Sandbox.start(workspace, policy, around)
        else:
            sandbox = await ReducedSandbox.open(workspace, policy, around, level)  # type: ignore[arg-type]
        started.append(sandbox)
        return sandbox

    yield make
    for sandbox in started:
        await sandbox.close()


async def until(ready: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < end, f"never happened: {what}"
        await asyncio.sleep(0.005)


def running(sandbox: Sandbox, command: str, timeout_s: float = 30, **more: Any) -> asyncio.Task[CommandResult]:
    return asyncio.create_task(sandbox.run(shell(command), timeout_s=timeout_s, **more))


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def grown(folder: Path, *names: str) -> Callable[[], bool]:
    """Whether each of these files is larger than when this was called."""
    before = sizes(folder)
    return lambda: all(sizes(folder).get(name, 0) > before.get(name, 0) for name in names)


@pytest.mark.slow
async def test_all_that_runs_stands_still_and_goes_on(start: Start, workspace: Path) -> None:
    sandbox, src = await start(), workspace / "src"
    command = running(sandbox, BUSY)
    await until(grown(src, "far", "near", "here"), "the beats")
    await sandbox.file("hash", path="docs/a.txt")
    for _ in range(2):
        await sandbox.freeze()
        await sandbox.freeze()
        before = sizes(src)
        await asyncio.sleep(0.15)
        assert sizes(src) == before
        await sandbox.thaw()
        await sandbox.thaw()
        await until(grown(src, "far", "near", "here"), "the beats again")
    assert not command.done()
    command.cancel()


@pytest.mark.slow
async def test_a_deadline_stands_still_and_has_its_rest_afterwards(
    start: Start,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The deadline inside, which the zygote keeps, and the one outside, which is a moment longer."""
    monkeypatch.setattr(execution, "GRACE_S", 0.3)
    sandbox = await start()
    ends = running(sandbox, "while [ ! -e src/go ]; do sleep 0.02; done; echo done", timeout_s=1.0)
    spins = running(sandbox, "touch src/on; while :; do sleep 0.02; done", timeout_s=1.0)
    await until((workspace / "src/on").exists, "the commands")
    await sandbox.freeze()
    await asyncio.sleep(1.5)
    assert not ends.done() and not spins.done()
    (workspace / "src/go").touch()
    thawed = time.monotonic()
    await sandbox.thaw()
    assert ((await ends).ended, (await ends).output) == ("exited", b"done\n")
    result = await spins
    assert (result.ended, result.wall_s > 2.3) == ("timeout", True)
    assert 0.3 < time.monotonic() - thawed < 1.2, "what was left of one second"
    assert result.exceeded is not None and 1.0 <= result.exceeded.used < 1.3, "only what ran counts"


@pytest.mark.slow
async def test_a_file_operation_and_a_command_wait_while_it_stands_still(
    start: Start,
    workspace: Path,
) -> None:
    sandbox = await start()
    await sandbox.freeze()
    asked = [
        running(sandbox, "echo ran; touch src/ran", timeout_s=5),
        asyncio.create_task(sandbox.file("write", path="src/new", body=b"x", timeout_s=0.1)),
    ]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in asked)
    assert set(sizes(workspace / "src")) == {"main.py"}
    await sandbox.thaw()
    assert (await asked[0]).output == b"ran\n"  # type: ignore[union-attr]
    assert "error" not in await asked[1]  # type: ignore[operator]


@pytest.mark.slow
async def test_what_waits_hears_that_it_was_closed(start: Start) -> None:
    sandbox = await start()
    await sandbox.freeze()
    asked = running(sandbox, "echo ran")
    await asyncio.sleep(0)
    await sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        await asked
    await sandbox.freeze()
    await sandbox.thaw()


@pytest.mark.slow
async def test_closing_kills_without_another_step(start: Start, marker: str, workspace: Path) -> None:
    sandbox, src = await start(), workspace / "src"
    command = running(sandbox, f"trap '' TERM HUP; exec 2>&-; sleep {marker} & {BUSY}")
    await until(grown(src, "far", "near", "here"), "the beats")
    await sandbox.file("hash", path="docs/a.txt")
    await sandbox.freeze()
    before, began = sizes(src), time.monotonic()
    await sandbox.close()
    assert time.monotonic() - began < 2
    assert (await command).ended in ("lost", "killed")
    assert living(marker) == []
    assert sizes(src) == before


@pytest.mark.slow
@pytest.mark.parametrize("what", ["command", "file"])
async def test_cancelling_kills_the_whole_of_it_and_it_can_be_used_again(
    start: Start, marker: str, workspace: Path, what: str
) -> None:
    sandbox, src = await start(), workspace / "src"
    command = running(sandbox, f"sleep {marker} & {BUSY}")
    await until(grown(src, "far", "near", "here"), "the beats")
    await sandbox.file("hash", path="docs/a.txt")
    cancelled: asyncio.Task[Any] = command
    if what == "file":
        pids = sandbox.processes()
        for pid in pids[1:]:
            os.kill(pid, signal.SIGSTOP)  # the worker, so that it does not answer before all is frozen
        cancelled = asyncio.create_task(sandbox.file("hash", path="docs/a.txt"))
        await asyncio.sleep(0.05)
    await sandbox.freeze()
    before, began = sizes(src), time.monotonic()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert time.monotonic() - began < 2
    await asyncio.wait({command})
    await until(lambda: not living(marker), "the end of all")
    assert sizes(src) == before
    waits = running(sandbox, "echo again")
    await asyncio.sleep(0.05)
    assert not waits.done(), "it is still held"
    await sandbox.thaw()
    assert (await waits).output == b"again\n"


@pytest.mark.slow
async def test_idle_time_stands_still(start: Start) -> None:
    sandbox = await start(idle_s=0.2)
    await sandbox.run(["true"], timeout_s=5)
    first = sandbox.processes()[0]
    await sandbox.freeze()
    await asyncio.sleep(0.5)
    assert sandbox.processes()[0] == first
    await sandbox.thaw()
    await until(lambda: not sandbox.processes(), "the end of its idle time")


@pytest.mark.slow
async def test_a_sandbox_that_nobody_used_yet_or_that_died_can_be_held(start: Start) -> None:
    sandbox = await start()
    assert sandbox._zygote is not None
    os.kill(sandbox._zygote.inner, signal.SIGKILL)
    await until(lambda: not sandbox.processes(), "its death")
    await sandbox.freeze()
    waits = running(sandbox, "echo anew")
    await asyncio.sleep(0.05)
    assert not waits.done()
    await sandbox.thaw()
    assert (await waits).output == b"anew\n"


@pytest.mark.slow
async def test_who_waited_for_a_start_meanwhile_starts_nothing_either(start: Start) -> None:
    sandbox = await start()
    assert sandbox._zygote is not None
    os.kill(sandbox._zygote.inner, signal.SIGKILL)
    await until(lambda: not sandbox.processes(), "its death")
    async with sandbox._starting:
        freezing = asyncio.create_task(sandbox.freeze())
        await asyncio.sleep(0)
        waits = running(sandbox, "echo anew")
        await asyncio.sleep(0.01)
    await freezing
    await asyncio.sleep(0.1)
    assert sandbox.processes() == [] and not waits.done()
    await sandbox.thaw()
    assert (await waits).output == b"anew\n"


@pytest.mark.slow
async def test_a_cancelled_freeze_leaves_it_running(start: Start, workspace: Path) -> None:
    sandbox, src = await start(), workspace / "src"
    command = running(sandbox, BUSY)
    await until(grown(src, "far", "near", "here"), "the beats")
    for turns in range(4):
        freezing = asyncio.create_task(sandbox.freeze())
        for _ in range(turns):
            await asyncio.sleep(0)
        freezing.cancel()
        await asyncio.wait({freezing})
        assert freezing.cancelled()
        await until(grown(src, "far", "near", "here"), "the beats again")
    command.cancel()


# ---- cancelling asks first


@pytest.mark.slow
@by_signals
async def test_a_cancelled_command_is_asked_to_end_first(start: Start, workspace: Path) -> None:
    sandbox, src = await start(), workspace / "src"
    heard: list[CommandResult] = []
    tidies = "trap 'sleep 0.1; echo tidy > src/tidy; exit 3' TERM; touch src/on; while :; do sleep 0.02; done"
    command = running(sandbox, tidies, told=heard.append)
    await until((src / "on").exists, "the command")
    began = time.monotonic()
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    assert time.monotonic() - began < execution.TERM_S
    assert (src / "tidy").read_text() == "tidy\n"
    assert [(result.ended, result.exit_code) for result in heard] == [("killed", None)]


@pytest.mark.slow
@by_signals
async def test_one_that_does_not_listen_is_killed_with_all_it_started(
    start: Start, workspace: Path, marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "TERM_S", 0.2)
    sandbox, src = await start(), workspace / "src"
    far = f"(setsid sh -c 'trap \"\" TERM; sleep {marker}; true' &)"
    command = running(sandbox, f"trap '' TERM; {far}; sleep {marker} & touch src/on; sleep {marker}; sleep {marker}")
    await until((src / "on").exists, "the command")
    await until(lambda: len(living(marker)) > 3, "all of it")
    began = time.monotonic()
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    assert 0.2 <= time.monotonic() - began < 2
    assert living(marker) == []
    assert (await sandbox.run(["true"], timeout_s=10)).exit_code == 0


@pytest.mark.slow
@by_signals
async def test_a_deadline_does_not_ask(start: Start, workspace: Path) -> None:
    sandbox = await start()
    result = await sandbox.run(shell("trap 'touch src/heard' TERM; while :; do sleep 0.02; done"), timeout_s=0.3)
    assert result.ended == "timeout"
    assert not (workspace / "src/heard").exists()


# ---- without a cgroup


CHAIN = """
import os, signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
open('src/on', 'w')
end = time.monotonic() + 30
while time.monotonic() < end:
    try:
        if os.fork():
            os._exit(0)
    except BlockingIOError:  # the dead wait to be reaped
        time.sleep(0.001)
        continue
    with open('src/links', 'a') as file:
        file.write('x')
"""


SHORT_CHAIN = """
open(my $on, '>', 'src/on'); open(my $links, '>>', 'src/links'); $links->autoflush;
my $end = time + 30;
while (time < $end) { my $child = fork; if ($child) { exit } print $links 'x' if defined $child }
"""


@pytest.mark.slow
@by_signals
@pytest.mark.parametrize("program", ["python3 -c", "perl -MIO::Handle -e"])
async def test_nothing_that_forks_all_the_time_escapes(start: Start, workspace: Path, program: str) -> None:
    """A child that outlives its parent by one step, again and again: whoever is signalled is gone already."""
    if shutil.which(program.split()[0], path="/usr/bin") is None:
        pytest.skip(f"needs {program.split()[0]}")
    sandbox, links = await start(), workspace / "src/links"
    keeps = f'{program} "$CHAIN" & {program} "$CHAIN" & sleep 30'
    command = running(sandbox, keeps, env={"CHAIN": CHAIN if "python" in program else SHORT_CHAIN})
    for _ in range(5):
        await until(links.exists, "the chain")
        await until(grown(links.parent, "links"), "the chain")
        await sandbox.freeze()
        before = links.stat().st_size
        await asyncio.sleep(0.1)
        assert links.stat().st_size == before
        await sandbox.thaw()
    command.cancel()


WAKERS = """
import os, signal, sys
def dance(other):
    signal.signal(signal.SIGCONT, lambda *_: None)
    while True:
        with open('src/dance', 'a') as file:
            file.write('x')
        os.kill(other, signal.SIGCONT)
        os.kill(os.getpid(), signal.SIGSTOP)
first = os.getpid()
second = os.fork()
dance(second if second else first)
"""


@pytest.mark.slow
@by_signals
async def test_processes_that_continue_each_other_stand_still_too(start: Start, workspace: Path) -> None:
    """One of the two always is stopped, and the other about to be: neither is seen to run at most looks."""
    sandbox, file = await start(), workspace / "src/dance"
    command = running(sandbox, 'python3 -c "$WAKERS" & sleep 30', env={"WAKERS": WAKERS})
    await until(file.exists, "the dance")
    for _ in range(10):
        await sandbox.freeze()
        before = file.stat().st_size
        await asyncio.sleep(0.03)
        assert file.stat().st_size == before
        await sandbox.thaw()
        await asyncio.sleep(0.02)
    command.cancel()


@pytest.mark.slow
@by_signals
async def test_what_had_stopped_by_itself_stays_stopped(start: Start, workspace: Path) -> None:
    sandbox = await start()
    stops = "sh -c 'kill -STOP $$; touch src/woken' & touch src/on; sleep 0.3"
    command = running(sandbox, f"{stops}; cat src/woken; kill -CONT $!; wait; echo over")
    await until((workspace / "src/on").exists, "the command")
    await asyncio.sleep(0.1)
    await sandbox.freeze()
    await sandbox.thaw()
    result = await command
    assert b"No such file" in result.output and result.output.endswith(b"over\n"), result.output
    assert (workspace / "src/woken").exists()


def test_a_child_that_is_gone_when_it_is_looked_at_shows_that_somebody_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = 1 << 22
    with subprocess.Popen(["sleep", "50"]) as process:
        try:
            held = standstill.stop(process.pid)
            assert held == {process.pid: started(process.pid)}
            monkeypatch.setattr(standstill, "children_of", lambda pid: [nobody] if pid == process.pid else [])
            seen = standstill._look(process.pid, started(process.pid))
            assert {pid: one.still for pid, one in seen.items()} == {process.pid: True, nobody: False}
        finally:
            process.kill()


def test_a_child_that_a_list_leaves_out_is_held_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may leave out one that lives beside one that ends."""
    real, listed = standstill.children_of, list[int]()
    with subprocess.Popen(["/bin/sh", "-c", "sleep 50; true"]) as process:
        began = started(process.pid)
        while not (children := real(process.pid)):
            time.sleep(0.01)

        def children_of(pid: int) -> list[int]:
            listed.append(pid)
            return real(pid) if listed.count(process.pid) > 3 else []  # those of the first two looks

        monkeypatch.setattr(standstill, "children_of", children_of)
        try:
            assert set(standstill.stop(process.pid)) == {process.pid, *children}
        finally:
            assert standstill.end(process.pid, began)


def test_a_tree_that_does_not_stand_still_in_time_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "AGREEING", 10**9)
    with subprocess.Popen(["/bin/sh", "-c", "sleep 50; true"]) as process:
        try:
            with pytest.raises(SandboxError, match=r"do not stand still within 0\.1 s"):
                standstill.stop(process.pid, 0.1)
            for pid in (process.pid, *standstill._look(process.pid, started(process.pid))):
                stat = read_stat(pid)
                assert stat is not None and stat.state != "T"
        finally:
            assert standstill.end(process.pid, started(process.pid))


SPAWNS = """
import os
os.mkfifo({path!r})
os.posix_spawn("/bin/true", ["true"], {{}}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, {path!r}, os.O_RDONLY, 0)])
"""


def test_who_waits_in_the_kernel_for_a_child_that_is_held_stands_still(tmp_path: Path) -> None:
    """As after vfork: it cannot even stop before its child has begun another program."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", SPAWNS.format(path=str(tmp_path / "fifo"))]) as process:
        began = started(process.pid)
        try:
            deadline = time.monotonic() + 5
            while (stat := read_stat(process.pid)) and stat.state != "D" and time.monotonic() < deadline:
                time.sleep(0.01)
            assert stat is not None and stat.state == "D"
            assert len(standstill.stop(process.pid, 1.0)) == 2
        finally:
            assert standstill.end(process.pid, began)


def started(pid: int) -> int:
    stat = read_stat(pid)
    assert stat is not None
    return stat.started


def test_a_number_that_belongs_to_another_process_by_now_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "50"]) as process:
        try:
            began = started(process.pid)
            standstill.go_on({process.pid: began - 1})
            assert standstill.end(process.pid, began - 1), "the one that was meant is gone"
            assert process.poll() is None
            assert standstill.stop(1 << 22) == {}
        finally:
            process.kill()


def test_a_stopped_tree_is_killed(marker: str) -> None:
    with subprocess.Popen(
        ["/bin/sh", "-c", f"trap '' TERM; sleep {marker} & setsid sleep {marker} & sleep {marker}; true"]
    ) as process:
        began = started(process.pid)
        deadline = time.monotonic() + 5
        while len(living(marker)) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(standstill.stop(process.pid)) == set(living(marker))
        assert standstill.end(process.pid, began)
        assert living(marker) == []


HEADLESS = """
import ctypes, threading, time
def beat():
    while True:
        time.sleep(0.01)
        with open({path!r}, "a") as file:
            file.write("x")
threading.Thread(target=beat).start()
ctypes.CDLL(None).syscall(60, 0)  # exit: of this thread alone
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of exit")
def test_a_process_whose_first_thread_has_ended_runs_and_is_held_and_killed(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", HEADLESS.format(path=str(beats))]) as process:
        try:
            began = started(process.pid)
            while not beats.exists():
                time.sleep(0.01)
            stat = read_stat(process.pid)
            assert stat is not None and (stat.state, stat.ended) == ("Z", False)
            assert standstill.stop(process.pid) == {process.pid: began}
            size = beats.stat().st_size
            time.sleep(0.1)
            assert beats.stat().st_size == size
            standstill.go_on({process.pid: began})
            deadline = time.monotonic() + 5
            while beats.stat().st_size == size and time.monotonic() < deadline:
                time.sleep(0.01)
            assert beats.stat().st_size > size
            assert standstill.end(process.pid, began)
        finally:
            process.kill()
        assert process.wait(5) == -signal.SIGKILL
