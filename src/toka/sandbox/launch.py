"""Starting bwrap with a zygote inside, and owning the process: no thread, no child watcher, everything reaped."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from toka.errors import SandboxError, SandboxUnavailable
from toka.sandbox.idmap import USERNS_HINT
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import PROXY_PORT, profiles, programs_of
from toka.sandbox.spawn import Spawned, spawn, starter, unstage

START_S: Final = 10.0
"""Seconds within which a zygote must say ready."""
LEAVE_S: Final = 2.0
"""Seconds a zygote gets to leave by itself before it is killed."""
MAX_MESSAGE: Final = 150 * 1024
"""Bytes of one request; the kernel's default socket buffer carries it."""
_MOVED: Final = re.compile(r"source|race condition", re.IGNORECASE)
"""In bwrap's complaints: what it was to mount is not there any more. We had it open, so it was moved."""
T = TypeVar("T")


class Zygote:
    """One running bwrap with our zygote inside.

    `gone` is done when bwrap was reaped. bwrap outlives everything inside unless it is killed itself; then the kernel
    kills what is inside a moment later.
    """

    def __init__(self, spawned: Spawned) -> None:
        self._process = process = spawned.process
        self._control = spawned.control
        self._errors = errors = spawned.errors
        self._info = spawned.info
        self._held = spawned.held
        self.stage = spawned.stage
        self._said = bytearray()
        self._inner = 0
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._pidfd = os.pidfd_open(process.pid)
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.granted = spawned.granted
        self.listener: socket.socket | None = None
        self._loop.add_reader(self._pidfd, self._reap)
        self._loop.add_reader(errors, self._hear)

    @property
    def pid(self) -> int:
        """bwrap's process id on the host."""
        return self._process.pid

    @property
    def inner(self) -> int:
        """The host's id of the sandbox's pid 1; 0 before it is known."""
        return self._inner

    @property
    def alive(self) -> bool:
        """Whether requests can still be answered."""
        return not self.gone.done() and self._control.fileno() >= 0

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self._hear()
        self._loop.remove_reader(self._errors)
        for fd in (self._errors, self._info):
            os.close(fd)
        self._held.close()
        if not self.gone.done():
            self.gone.set_result(None)

    def _hear(self) -> None:
        """Keeps the first words of bwrap and the zygote on standard error, for the message of a failed start."""
        with contextlib.suppress(BlockingIOError):
            heard = os.read(self._errors, 65536)
            self._said += heard[: max(0, 8192 - len(self._said))]
            if not heard:
                self._loop.remove_reader(self._errors)

    async def ready(self, config: dict[str, Any], join: Callable[[int], None]) -> None:
        """Hands the zygote what it must find and how to lock up its children, and waits until it has checked.

        Args:
            config: see `prepare` in zygote.py.
            join: puts a process, by its pid on the host, under the agent's limits, before it starts another.

        Raises:
            SandboxUnavailable: bwrap did not get as far as the zygote.
            SandboxError: the zygote refuses what bwrap built.
        """
        try:
            async with asyncio.timeout(START_S):
                answer = await self._loop.sock_recv(self._control, 65536)
                self._inner = self._child_pid()
                if answer:
                    join(self._inner)
                    await self._loop.sock_sendall(self._control, json.dumps(config).encode())
                    answer = await self._receive()
        except (OSError, TimeoutError) as error:
            answer, self._said = b"", self._said or bytearray(str(error).encode())
        if not answer:
            await self.end()
            if _MOVED.search(self._words()):
                raise SandboxError(f"the workspace changed while the sandbox started: {self._words()}")
            raise SandboxUnavailable(f"the sandbox did not start: {self._words()}", hint=USERNS_HINT)
        if problem := json.loads(answer).get("error"):
            await self.end()
            raise SandboxError(f"the sandbox refused to start: {problem}")

    async def _receive(self) -> bytes:
        """One message, and the listening socket that may come with it."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, 65536, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)
                continue
            if fds:
                self.listener = socket.socket(fileno=fds[0])
                self.listener.setblocking(False)
            return data

    def _child_pid(self) -> int:
        """The host's pid of the sandbox's pid 1, from bwrap's --info-fd; 0 when it did not say."""
        if self.gone.done():
            return 0
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(os.pread(self._info, 4096, 0))["child-pid"])
        return 0

    def uid(self) -> int:
        """The user id of the sandbox's pid 1 on the host; -1 when it cannot be read."""
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{self._inner}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("Uid:")).split()[1])
        return -1

    def _words(self) -> str:
        return self._said.decode("utf-8", "replace").strip() or "bwrap ended without a word"

    async def send(self, request: dict[str, Any], fds: Sequence[int]) -> None:
        """Sends one request with its descriptors; when it returns, the zygote will act on it.

        Raises:
            ValueError: the request is too long; nothing was sent.
            OSError: the zygote is gone.
        """
        data = json.dumps(request).encode()
        if len(data) > MAX_MESSAGE:
            raise ValueError(f"the command is too long: {len(data)} bytes of {MAX_MESSAGE}")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        async with self._sending:
            while True:
                try:
                    self._control.sendmsg([data], rights)
                    return
                except BlockingIOError:
                    await self._wait(self._loop.add_writer, self._loop.remove_writer)

    def tell_stood(self, since: float, until: float) -> None:
        """Says that all of it stood still between two moments of monotonic time, for deadlines. It need not run now."""
        with contextlib.suppress(OSError):  # gone, or so much was asked that the socket is full
            self._control.send(json.dumps({"op": "stood", "since": since, "until": until}).encode())

    async def _wait(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        """Waits until the control socket can be read or written, or the sandbox is gone."""
        possible = self._loop.create_future()
        fd = self._control.fileno()
        add(fd, lambda: possible.done() or possible.set_result(None))
        try:
            await asyncio.wait({possible, self.gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            remove(fd)

    def kill(self) -> None:
        """SIGKILL to pid 1 of the sandbox; the kernel kills the rest, and bwrap leaves by itself.

        bwrap is killed only when it has no child: a child that it has not released yet would wait for ever.
        """
        if self.gone.done():
            return
        inner = self._inner or self._child_pid() or _only_child(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            if inner:
                os.kill(inner, signal.SIGKILL)
            else:
                self._process.kill()

    async def end(self, *, at_once: bool = False) -> None:
        """Ends everything inside and waits for it; polite for a moment, unless `at_once`, then by SIGKILL."""
        if at_once:
            self.kill()
        self._control.close()
        await asyncio.wait({self.gone}, timeout=LEAVE_S)
        while not self.gone.done():
            self.kill()
            await asyncio.wait({self.gone}, timeout=LEAVE_S)


def _only_child(pid: int) -> int:
    """The process that bwrap made, from /proc; 0 when there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
    return 0


async def to_the_end(act: Awaitable[T]) -> T:
    """Finishes `act` even when the task is cancelled meanwhile; the caller raises the cancellation afterwards."""
    task = asyncio.ensure_future(act)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()


async def start_zygote(workspace: Path, policy: SandboxPolicy, join: Callable[[int], None]) -> Zygote:
    """Starts one sandbox and waits until it is ready.

    Args:
        workspace: the folder on the host.
        policy: what the sandbox lets through.
        join: see `Zygote.ready`.

    Raises:
        SandboxUnavailable: bwrap or Python is missing, bwrap may not make namespaces here, or the workspace's owner
            cannot be mapped.
        SandboxError: the workspace cannot be used, or it was tampered with during the start.
    """
    starting = asyncio.get_running_loop().run_in_executor(starter(), spawn, workspace, policy)
    try:
        zygote = Zygote(await asyncio.shield(starting))
    except asyncio.CancelledError:
        with contextlib.suppress(SandboxError, SandboxUnavailable):
            zygote = Zygote(await to_the_end(starting))
            await to_the_end(zygote.end())
        raise
    try:
        config = {
            "mounts": zygote.granted.expected(),
            "profiles": profiles(policy, zygote.granted),
            "programs": programs_of(policy),
            "port": PROXY_PORT if policy.network else 0,
        }
        await zygote.ready(config, join)
    except BaseException:
        await to_the_end(zygote.end())
        raise
    finally:
        starter().submit(unstage, zygote.stage)
    return zygote
