"""Starting bwrap with a zygote inside, and owning the process: no thread, no child watcher, everything reaped."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from toka.errors import SandboxError, SandboxUnavailable
from toka.sandbox.mounts import Granted, lay_out, open_granted
from toka.sandbox.policy import SandboxPolicy

PYTHON: Final = "/usr/bin/python3"
START_S: Final = 10.0
"""Seconds within which a zygote must say ready."""
LEAVE_S: Final = 2.0
"""Seconds a zygote gets to leave by itself before it is killed."""
MAX_MESSAGE: Final = 150 * 1024
"""Bytes of one request; the kernel's default socket buffer carries it."""
INSTALL_HINT: Final = "install it: `apt install bubblewrap`, `dnf install bubblewrap` or `pacman -S bubblewrap`"
PYTHON_HINT: Final = "install it: `apt install python3`, `dnf install python3` or `pacman -S python`"
USERNS_HINT: Final = (
    "allow user namespaces: `sysctl kernel.unprivileged_userns_clone=1` (Debian), "
    "`sysctl user.max_user_namespaces=10000`, or an AppArmor profile for /usr/bin/bwrap "
    "(Ubuntu; see `sysctl kernel.apparmor_restrict_unprivileged_userns`)"
)
_MOVED: Final = re.compile(r"source|race condition", re.IGNORECASE)
"""In bwrap's complaints: what it was to mount is not there any more. We had it open, so it was moved."""
T = TypeVar("T")


def find_bwrap() -> str:
    """The path of bwrap; /usr/bin is preferred, as distributions tie their exceptions to that path.

    Raises:
        SandboxUnavailable: there is none.
    """
    path = "/usr/bin/bwrap" if os.access("/usr/bin/bwrap", os.X_OK) else shutil.which("bwrap")
    if path is None:
        raise SandboxUnavailable("bwrap (bubblewrap) is not installed", hint=INSTALL_HINT)
    return path


@cache
def has_bind_fd(bwrap: str) -> bool:
    """Whether this bwrap mounts descriptors; asked once per process."""
    shown = subprocess.run([bwrap, "--help"], capture_output=True, check=False, timeout=START_S)
    return b"--ro-bind-fd" in shown.stdout + shown.stderr


class Zygote:
    """One running bwrap with our zygote inside.

    `gone` is done when bwrap was reaped. bwrap outlives everything inside unless it is killed itself; then the kernel
    kills what is inside a moment later.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, errors: int, info: int) -> None:
        self._process = process
        self._control = control
        self._errors = errors
        self._info = info
        self._said = bytearray()
        self._inner = 0
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._pidfd = os.pidfd_open(process.pid)
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self.granted = Granted()
        self._loop.add_reader(self._pidfd, self._reap)
        self._loop.add_reader(errors, self._hear)

    @property
    def pid(self) -> int:
        """bwrap's process id on the host."""
        return self._process.pid

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
        if not self.gone.done():
            self.gone.set_result(None)

    def _hear(self) -> None:
        """Keeps the first words of bwrap and the zygote on standard error, for the message of a failed start."""
        with contextlib.suppress(BlockingIOError):
            heard = os.read(self._errors, 65536)
            self._said += heard[: max(0, 8192 - len(self._said))]
            if not heard:
                self._loop.remove_reader(self._errors)

    async def ready(self, granted: Granted, noexec: list[str]) -> None:
        """Hands the zygote what it must find and waits until it has.

        Args:
            granted: the mounts to compare with what was opened.
            noexec: mounts from which commands may not execute anything.

        Raises:
            SandboxUnavailable: bwrap did not get as far as the zygote.
            SandboxError: the zygote refuses what bwrap built.
        """
        self.granted = granted
        config = json.dumps({"mounts": granted.expected(), "noexec": noexec}).encode()
        try:
            async with asyncio.timeout(START_S):
                await self._loop.sock_sendall(self._control, config)
                answer = await self._loop.sock_recv(self._control, 65536)
        except (OSError, TimeoutError) as error:
            answer, self._said = b"", self._said or bytearray(str(error).encode())
        self._inner = self._child_pid()
        if not answer:
            await self.end()
            if _MOVED.search(self._words()):
                raise SandboxError(f"the workspace changed while the sandbox started: {self._words()}")
            raise SandboxUnavailable(f"the sandbox did not start: {self._words()}", hint=USERNS_HINT)
        if problem := json.loads(answer).get("error"):
            await self.end()
            raise SandboxError(f"the sandbox refused to start: {problem}")

    def _child_pid(self) -> int:
        """The host's pid of the sandbox's pid 1, from bwrap's --info-fd; 0 when it did not say."""
        if self.gone.done():
            return 0
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(os.pread(self._info, 4096, 0))["child-pid"])
        return 0

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
                    await self._wait_writable()

    async def _wait_writable(self) -> None:
        writable = self._loop.create_future()
        fd = self._control.fileno()
        self._loop.add_writer(fd, lambda: writable.done() or writable.set_result(None))
        try:
            await asyncio.wait({writable, self.gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._loop.remove_writer(fd)

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

    async def end(self) -> None:
        """Ends everything inside and waits for it; polite for a moment, then by SIGKILL."""
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


async def start_zygote(workspace: Path, policy: SandboxPolicy, scratch: Path | None) -> Zygote:
    """Starts one sandbox and waits until it is ready.

    Raises:
        SandboxUnavailable: bwrap or Python is missing, or bwrap may not make namespaces here.
        SandboxError: the workspace cannot be used, or it was tampered with during the start.
    """
    with ExitStack() as stack:
        bwrap = find_bwrap()
        if not os.access(PYTHON, os.X_OK):
            raise SandboxUnavailable(f"{PYTHON} is missing; it runs inside every sandbox", hint=PYTHON_HINT)
        granted = open_granted(workspace, policy, stack)
        layout = lay_out(granted, policy, scratch=scratch, bind_fd=has_bind_fd(bwrap), stack=stack)
        zygote = _spawn(bwrap, layout.argv, layout.fds, stack)
    try:
        await zygote.ready(granted, _writable(granted) if policy.programs is not None else [])
    except asyncio.CancelledError:
        await to_the_end(zygote.end())
        raise
    return zygote


def _writable(granted: Granted) -> list[str]:
    """Where files can be created, so that an agent with a list of programs could bring others along."""
    return ["/tmp", "/dev/shm", *(o.target for o in granted.opened if o.rule.access == "write")]


def _spawn(bwrap: str, options: Sequence[str], fds: Sequence[int], stack: ExitStack) -> Zygote:
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stack.callback(theirs.close)
    control.setblocking(False)
    errors, errors_w = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, errors_w)
    os.set_blocking(errors, False)
    # Not a pipe: bwrap writes to it before it lets its child go on. If we were dead then, SIGPIPE would kill bwrap and
    # leave the child waiting for ever.
    info = os.memfd_create("toka-info", os.MFD_CLOEXEC)
    argv = [bwrap, "--info-fd", str(info), *options, "--"]
    argv += [PYTHON, "-I", "-S", "-B", "/toka/zygote.py", str(theirs.fileno())]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors_w,
        env={},
        pass_fds=(*fds, theirs.fileno(), info),
    )
    return Zygote(process, control, errors, info)
