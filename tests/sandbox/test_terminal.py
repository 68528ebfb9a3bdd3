"""A person's streams at a command in a sandbox, through pipes and terminals of this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sandbox.conftest import Start, change, living, open_fds
from toka.errors import SandboxError
from toka.sandbox import terminal
from toka.sandbox.command import CommandResult, Lifeline
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.terminal import Pump, Streams, write

PATIENCE_S = 10.0


class Desk:
    """A person's side: three pipes."""

    def __init__(self) -> None:
        self.stdin, self.keys = os.pipe()
        self.screen, self.stdout = os.pipe()
        self.complaints, self.stderr = os.pipe()

    @property
    def own(self) -> tuple[int, int, int]:
        return self.stdin, self.stdout, self.stderr

    def close(self) -> None:
        for fd in (self.stdin, self.keys, self.screen, self.stdout, self.complaints, self.stderr):
            try:
                os.close(fd)
            except OSError:
                pass


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.close()


@asynccontextmanager
async def streams_of(sandbox: Sandbox, own: tuple[int, int, int]) -> AsyncIterator[Streams]:
    streams = Streams(sandbox.host_uid(), own)
    try:
        yield streams
    finally:
        streams.close()


async def attached(sandbox: Sandbox, command: str, own: tuple[int, int, int], timeout_s: float = 20) -> CommandResult:
    async with streams_of(sandbox, own) as streams:
        result = await sandbox.attach(shell(command), streams, timeout_s=timeout_s)
        assert await streams.finish() == ""
    return result


async def until_lives(marker: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not living(marker):
            await asyncio.sleep(0.01)


async def test_a_command_on_a_persons_streams_is_reported_as_any_other(start: Start, desk: Desk) -> None:
    sandbox = await start()
    os.write(desk.keys, b"typed\n")
    result = await attached(sandbox, "read x; echo $x; echo err >&2; exit 9", desk.own)
    assert (result.exit_code, result.ended, result.output) == (9, "exited", b"")
    assert result.spent.cpu_s is not None
    assert os.read(desk.screen, 99) == b"typed\n"
    assert os.read(desk.complaints, 99) == b"err\n"


async def test_nothing_stays_open(start: Start, desk: Desk) -> None:
    sandbox = await start()
    await attached(sandbox, "true", desk.own)
    before = open_fds()
    for _ in range(3):
        await attached(sandbox, "echo x", desk.own)
    screen, own = pty.openpty()
    await attached(sandbox, "echo x", (own, own, own))
    os.close(screen)
    os.close(own)
    assert open_fds() == before


async def test_it_is_locked_up_as_a_command_of_an_agent(start: Start, desk: Desk) -> None:
    sandbox = await start(programs=("cat",))
    async with streams_of(sandbox, desk.own) as streams:
        result = await sandbox.attach(["ls"], streams, timeout_s=5)
        await streams.finish()
    assert result.exit_code == 127
    assert b"ls: No such file" in os.read(desk.complaints, 99)
    sandbox = await start()
    await attached(sandbox, "cat /proc/self/status; echo fds $(ls /proc/self/fd)", desk.own)
    status = os.read(desk.screen, 65536).decode()
    for line in ("Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000", "fds 0 1 2 3"):  # ls itself has 3
        assert line in status


async def test_other_commands_run_beside_it_as_ever(start: Start, desk: Desk) -> None:
    sandbox = await start()
    task = asyncio.create_task(attached(sandbox, "cat", desk.own))
    await asyncio.sleep(0.1)
    result = await sandbox.run(shell("cat; echo done"), timeout_s=5)
    assert result.output == b"done\n"
    os.close(desk.keys)
    assert (await task).exit_code == 0


async def test_what_cannot_be_run_is_a_result(start: Start, desk: Desk) -> None:
    sandbox = await start()
    async with streams_of(sandbox, desk.own) as streams:
        result = await sandbox.attach(["a\0b"], streams, timeout_s=5)
        assert (result.ended, result.exit_code) == ("refused", 126)
        result = await sandbox.attach(["echo", "x" * 200_000], streams, timeout_s=5)
        assert (result.ended, result.exit_code) == ("refused", 126)
        await streams.finish()
    await sandbox.close()
    async with streams_of(sandbox, desk.own) as streams:
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.attach(["true"], streams, timeout_s=5)


async def test_a_deadline_kills(start: Start, desk: Desk) -> None:
    sandbox = await start()
    result = await attached(sandbox, "trap '' TERM; sleep 77.5; sleep 77.5", desk.own, timeout_s=0.2)
    assert result.ended == "timeout"
    assert not living("77.5")


async def test_a_cancelled_one_is_dead_and_the_sandbox_lives(start: Start, desk: Desk) -> None:
    sandbox = await start()
    task = asyncio.create_task(attached(sandbox, "sleep 78.25", desk.own))
    await until_lives("78.25")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not living("78.25")
    assert (await sandbox.run(["echo", "x"], timeout_s=5)).output == b"x\n"


async def test_signals_reach_the_group_of_the_command_only(start: Start, desk: Desk) -> None:
    sandbox = await start()
    other = "sleep\0" + "79.125"  # as an argument of its own, not as a word of the script
    script = (
        "trap 'echo hup' HUP; trap 'echo int; exit 4' INT; setsid sleep 79.125 & echo on; while :; do sleep 0.05; done"
    )
    async with streams_of(sandbox, desk.own) as streams:
        task = asyncio.create_task(sandbox.attach(shell(script), streams, timeout_s=20))
        await until_lives(other)
        reader = asyncio.get_running_loop()
        assert await reader.run_in_executor(None, os.read, desk.screen, 99) == b"on\n"
        streams.signal(signal.SIGHUP)
        assert await reader.run_in_executor(None, os.read, desk.screen, 99) == b"hup\n"
        assert len(living(other)) == 1
        streams.signal(signal.SIGINT)
        assert (await task).exit_code == 4
        assert os.read(desk.screen, 99) == b"int\n"
    assert not living(other)


async def test_a_signal_that_comes_before_its_handler_is_not_lost(
    start: Start,
    desk: Desk,
    code_inside: Path,
) -> None:
    """The command may run, and say so, before its init has got as far as to hand signals on."""
    change(
        code_inside / "roles.py",
        "        begun(child)",
        "        import time\n        time.sleep(0.5)\n        begun(child)",
    )
    sandbox = await start()
    async with streams_of(sandbox, desk.own) as streams:
        task = asyncio.create_task(sandbox.attach(shell("echo on; sleep 9"), streams, timeout_s=20))
        assert await asyncio.to_thread(os.read, desk.screen, 99) == b"on\n"
        streams.signal(signal.SIGTERM)
        assert (await task).exit_code == -signal.SIGTERM


async def until_executed(*argv: str) -> None:
    wanted = "".join(f"{word}\0" for word in argv).encode()
    for _ in range(1000):
        for pid in living(argv[-1]):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes() == wanted:
                    return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never executed: {argv}")


async def test_a_signal_reaches_the_command_of_an_agent_and_any_other_word_kills(start: Start) -> None:
    """Its init takes none, so the zygote sends it to the command's process group."""
    sandbox = await start()
    line = Lifeline()
    script = "trap 'echo heard' TERM; while :; do sleep 80.5; done"
    request = {**sandbox._request(["sh", "-c", script], ".", {}, 20), "profile": "agent"}
    out, theirs = os.pipe()
    await sandbox._send(request, (theirs, line.theirs.fileno()))
    os.close(theirs)
    line.theirs.close()
    await until_executed("sleep", "80.5")  # until then a shell's child may take the signal for the shell
    line.signal(signal.SIGTERM)
    heard = b""
    while not heard.endswith(b"heard\n"):  # not before the sleep, which is of its group, has ended as well
        word = await asyncio.to_thread(os.read, out, 99)
        assert word, heard
        heard += word
    await until_executed("sleep", "80.5")
    line.cut()
    report = await line.report()
    assert report["ended"] == "killed"
    line.close()
    os.close(out)
    assert not living("80.5")


async def test_a_sandbox_that_dies_is_told(start: Start, desk: Desk) -> None:
    sandbox = await start()
    task = asyncio.create_task(attached(sandbox, "sleep 81.5", desk.own))
    await until_lives("81.5")
    assert sandbox._zygote is not None
    sandbox._zygote.kill()
    assert (await task).ended == "lost"


async def test_output_waits_for_its_reader(start: Start, desk: Desk) -> None:
    sandbox = await start()
    async with streams_of(sandbox, desk.own) as streams:
        result = await sandbox.attach(shell("head -c 100000 /dev/zero"), streams, timeout_s=20)
        assert result.exit_code == 0
        finishing = asyncio.create_task(streams.finish())
        _, pending = await asyncio.wait({finishing}, timeout=0.2)
        assert pending  # our pipe holds 64 KiB of it, the rest waits for us
        got = b""
        while len(got) < 100_000:
            got += await asyncio.to_thread(os.read, desk.screen, 65536)
        assert await finishing == ""
        assert got == bytes(100_000)


async def test_haste_gives_output_up(start: Start, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "HASTE_S", 0.05)
    sandbox = await start()
    async with streams_of(sandbox, desk.own) as streams:
        await sandbox.attach(shell("head -c 100000 /dev/zero"), streams, timeout_s=20)
        streams.hurry()
        async with asyncio.timeout(2):
            await streams.finish()
    os.close(desk.screen)  # lets the thread go


async def test_a_terminal_may_be_closed_and_opened_again_inside(start: Start) -> None:
    sandbox = await start()
    screen, own = pty.openpty()
    script = "echo one; exec </dev/null >/dev/null 2>&1; sleep 0.3; echo two > /dev/tty; sleep 0.1"
    result = await attached(sandbox, script, (own, own, own))
    assert result.exit_code == 0
    assert os.read(screen, 99) == b"one\r\ntwo\r\n"
    os.close(screen)
    os.close(own)


async def test_the_terminal_belongs_to_the_command_and_to_no_other(start: Start) -> None:
    sandbox = await start()
    screen, own = pty.openpty()
    task = asyncio.create_task(attached(sandbox, "read x", (own, own, own)))
    await asyncio.sleep(0.2)
    other = await sandbox.run(shell("echo x > /dev/tty; tty"), timeout_s=5)
    assert b"cannot create /dev/tty" in other.output
    assert b"not a tty" in other.output
    os.write(screen, b"\r")
    assert (await task).exit_code == 0
    os.close(screen)
    os.close(own)


async def test_the_persons_terminal_is_raw_meanwhile_and_restored(start: Start) -> None:
    sandbox = await start()
    screen, own = pty.openpty()
    modes = termios.tcgetattr(own)
    async with streams_of(sandbox, (own, own, own)) as streams:
        task = asyncio.create_task(sandbox.attach(shell("read x; exit 3"), streams, timeout_s=20))
        async with asyncio.timeout(PATIENCE_S):
            while not streams.is_raw:
                await asyncio.sleep(0.01)
        assert not termios.tcgetattr(own)[3] & termios.ICANON
        os.write(screen, b"\r")
        assert (await task).exit_code == 3
        await streams.finish()
    assert termios.tcgetattr(own) == modes
    os.close(screen)
    os.close(own)


async def test_the_persons_terminal_is_restored_after_a_defect(start: Start) -> None:
    sandbox = await start()
    screen, own = pty.openpty()
    modes = termios.tcgetattr(own)
    task: asyncio.Task[CommandResult] | None = None
    with pytest.raises(ZeroDivisionError):
        async with streams_of(sandbox, (own, own, own)) as streams:
            task = asyncio.create_task(sandbox.attach(shell("stty raw; sleep 82.5"), streams, timeout_s=20))
            async with asyncio.timeout(PATIENCE_S):
                while not streams.is_raw or not living("sleep\0" + "82.5"):
                    await asyncio.sleep(0.01)
            assert termios.tcgetattr(own) != modes
            raise ZeroDivisionError
    assert termios.tcgetattr(own) == modes
    assert task is not None
    await asyncio.wait({task}, timeout=PATIENCE_S)
    assert not living("sleep\0" + "82.5")
    os.close(screen)
    os.close(own)


async def test_all_of_it_goes_to_a_sink_that_does_not_block() -> None:
    data = os.urandom(3_000_000)
    read, written = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(read, True)
    writing = asyncio.to_thread(write, written, data)
    task = asyncio.create_task(writing)
    got = b""
    while len(got) < len(data):
        got += await asyncio.to_thread(os.read, read, 100_000)
    await task
    assert got == data
    os.close(read)
    os.close(written)


async def test_a_source_that_cannot_be_read_is_an_end(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    read, written = os.pipe()
    pump = Pump(folder, written, close=written)
    async with asyncio.timeout(PATIENCE_S):
        await pump.ended
    assert os.read(read, 1) == b""
    os.close(read)
    os.close(folder)


async def test_a_pump_stops_while_it_waits() -> None:
    read, written = os.pipe()
    pump = Pump(read, written)
    pump.stop()
    async with asyncio.timeout(PATIENCE_S):
        await pump.ended
    pump.stop()  # twice does no harm
    os.close(read)
    os.close(written)
