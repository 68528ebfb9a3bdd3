"""A person's own streams, joined to those of one command in a sandbox: a terminal to a terminal, pipes to pipes.

Nothing of the person's reaches the command itself: a descriptor of a terminal, a file or a folder would be a way out.
Threads copy the bytes, since a reader who does not read must not keep signals and deadlines waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
import tty
from collections.abc import Callable, Mapping
from typing import Any, Final

from toka.sandbox.command import Lifeline

LEAVE: Final = b"\x1d"
LEAVE_COUNT: Final = 3
LEAVE_S: Final = 1.0
"""Ctrl-]: so many of them within so many seconds kill a command that has the terminal."""
HASTE_S: Final = 1.0
"""Seconds that output may take to reach a reader when the person wants the end."""
_REOPENED_S: Final = 0.02
"""Seconds between two looks at a terminal that nobody inside has open, while the command runs."""
_BLOCK: Final = 64 * 1024
_END_OF_INPUT: Final = b"\x04"
_INTERRUPT: Final = b"\x03"


class Pump:
    """A thread that copies from one descriptor to another until there is nothing more, or nobody takes it.

    Attributes:
        ended: done when it has ended.
        problem: why the sink took no more; empty when it did, or when its reader went away.
    """

    def __init__(self, source: int, sink: int, close: int = -1) -> None:
        """Begins. `close` is the one of both that is closed at the end; -1 = neither."""
        self._source, self._sink, self._close = source, sink, close
        self._loop = asyncio.get_running_loop()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._over = threading.Event()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.problem = ""
        threading.Thread(target=self._run, name="toka-streams", daemon=True).start()

    def stop(self) -> None:
        """Ends it at once where it waits for something to read."""
        self._over.set()
        if not self.ended.done():
            os.eventfd_write(self._stop, 1)

    def over(self) -> None:
        """Ends it after what is there: nobody writes any more."""
        self._over.set()

    def _run(self) -> None:
        try:
            self._copy()
        finally:
            if self._close >= 0:
                os.close(self._close)
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        os.close(self._stop)
        self.ended.set_result(None)

    def _copy(self) -> None:
        poll = select.poll()
        for fd in (self._source, self._stop):
            poll.register(fd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop in ready:
                return
            try:
                block: bytes | None = os.read(self._source, _BLOCK)
            except BlockingIOError:  # somebody else took it
                continue
            except OSError:
                block = None
            try:
                if block:
                    self._take(block)
                elif not self._goes_on(block, hung_up=bool(ready[self._source] & select.POLLHUP)):
                    return
            except BrokenPipeError:
                return
            except OSError as error:
                self.problem = error.strerror or str(error)
                return

    def _take(self, block: bytes) -> None:
        write(self._sink, block)

    def _goes_on(self, block: bytes | None, *, hung_up: bool) -> bool:  # noqa: ARG002 - for those who do
        """Whether there may be more after an end, or after an error (None)."""
        return False


class Screen(Pump):
    """From the command's terminal. That nobody inside has it open is no end: somebody may open it again."""

    def _goes_on(self, block: bytes | None, *, hung_up: bool) -> bool:  # noqa: ARG002
        return not self._over.wait(_REOPENED_S)


class Keys(Pump):
    """To the command's terminal, from a raw one. Three Ctrl-] within a second kill."""

    def __init__(self, source: int, sink: int, kill: Callable[[], None]) -> None:
        self._kill = kill
        self._typed: list[float] = []
        super().__init__(source, sink)

    def _take(self, block: bytes) -> None:
        now = time.monotonic()
        self._typed = [*(t for t in self._typed if now - t < LEAVE_S), *[now] * block.count(LEAVE)]
        if len(self._typed) >= LEAVE_COUNT:
            self._loop.call_soon_threadsafe(self._kill)
        super()._take(block)


class Lines(Pump):
    """To the command's terminal, from one that is not raw and takes Ctrl-D for itself."""

    def _goes_on(self, block: bytes | None, *, hung_up: bool) -> bool:
        if block is None or hung_up:
            return False
        write(self._sink, _END_OF_INPUT)
        return True


def write(fd: int, data: bytes) -> None:
    """Writes all of it, also to a descriptor that is non-blocking. Raises OSError."""
    view = memoryview(data)
    while len(view):
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


class Streams:
    """A person's three streams for one command.

    Where standard input is a terminal, the command gets one of its own, and what is no terminal on our side is a pipe
    on its side. Ours is raw meanwhile when standard output is a terminal, too; else it may belong to a pager.

    Attributes:
        lifeline: of the command.
        theirs: what goes to the command.
        request: how it is told which is which.
        terminal: whether the command gets a terminal.
    """

    def __init__(self, owner: int, own: tuple[int, int, int] = (0, 1, 2)) -> None:
        """Opens what goes to the command.

        Args:
            owner: the user id of the sandbox, to whom pipes belong, so that /dev/stderr can be opened by its name.
            own: the person's input, output and errors.
        """
        self._own = own
        self._loop = asyncio.get_running_loop()
        self.lifeline = Lifeline()
        self.terminal = os.isatty(own[0])
        self._raw = self.terminal and os.isatty(own[1])
        self._modes: list[Any] | None = None
        self._far = -1
        self._socket: socket.socket | None = None
        self._ours: dict[int, int] = {}
        self._input: Pump | None = None
        self._outputs: list[Pump] = []
        self._haste = asyncio.Event()
        self.theirs: list[int] = []
        places: list[int | None] = []
        if self.terminal:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket.setblocking(False)
            self.theirs.append(theirs.detach())
        for number, fd in enumerate(own):
            if self.terminal and os.isatty(fd):
                places.append(None)
                continue
            read, written = os.pipe2(os.O_CLOEXEC)
            ours, its = (written, read) if number == 0 else (read, written)
            if os.geteuid() == 0:
                os.fchown(its, owner, -1)
            places.append(len(self.theirs))
            self.theirs.append(its)
            self._ours[number] = ours
        self.request: Mapping[str, Any] = {"streams": places}

    def bring(self, name: str, words: Mapping[str, Any], fd: int) -> None:
        """Sends one more descriptor along, which goes with the others; the request says what it is, and its place."""
        self.request = {**self.request, name: {**words, "at": len(self.theirs)}}
        self.theirs.append(fd)

    def sent(self) -> None:
        """The command has its ends: closes our copies and begins to copy."""
        self._let_go()
        for number, fd in self._ours.items():
            if number == 0:
                self._input = Pump(self._own[0], fd, close=fd)
            else:
                self._outputs.append(Pump(fd, self._own[number], close=fd))
        self._ours = {}
        if self._socket is not None:
            self._loop.add_reader(self._socket, self._join)

    def _let_go(self) -> None:
        for fd in self.theirs:
            os.close(fd)
        self.theirs = []

    def _join(self) -> None:
        """Takes the other end of the command's terminal, sets it up as the person's is, and lets the command go on."""
        assert self._socket is not None
        self._loop.remove_reader(self._socket)
        _, fds, _, _ = socket.recv_fds(self._socket, 16, 1, socket.MSG_CMSG_CLOEXEC)
        if not fds:  # it did not come as far as that; its report says why
            return
        self._far = fds[0]
        os.set_blocking(self._far, False)
        try:
            modes = termios.tcgetattr(self._own[0])
            if not self._raw:
                modes[1] &= ~termios.OPOST  # the person's terminal ends lines, and echoes
                modes[3] &= ~termios.ECHO
            termios.tcsetattr(self._far, termios.TCSANOW, modes)
            self.resize()
        except (OSError, termios.error):  # the person's terminal went away
            self.lifeline.cut()
            return
        self.enter()
        screen = next(fd for fd in (*self._own[1:], self._own[0]) if os.isatty(fd))
        self._outputs.append(Screen(self._far, screen))
        if self._raw:
            self._input = Keys(self._own[0], self._far, self.lifeline.cut)
        else:
            self._input = Lines(self._own[0], self._far)
        self._socket.send(b"g")

    def resize(self) -> None:
        """Gives the command's terminal the size of the person's."""
        if self._far >= 0:
            with contextlib.suppress(OSError):  # it went away
                size = fcntl.ioctl(self._own[0], termios.TIOCGWINSZ, struct.pack("4H", 0, 0, 0, 0))
                fcntl.ioctl(self._far, termios.TIOCSWINSZ, size)

    def enter(self) -> None:
        """Makes the person's terminal raw; in the background that stops us until we are in front."""
        if self._raw and self._far >= 0:
            with contextlib.suppress(termios.error):  # it went away
                self._modes = self._modes or termios.tcgetattr(self._own[0])
                tty.setraw(self._own[0], termios.TCSANOW)

    def leave(self) -> None:
        """Restores the person's terminal, unless another job has it."""
        if self._modes is not None and _in_front(self._own[0]):
            with contextlib.suppress(termios.error):  # it went away
                termios.tcsetattr(self._own[0], termios.TCSANOW, self._modes)

    @property
    def is_raw(self) -> bool:
        """Whether a line on the person's terminal needs its own carriage return."""
        return self._modes is not None

    def signal(self, number: int) -> None:
        """Hands a signal on: as the key that means it, as a terminal that goes away, or as it is."""
        if not self.terminal:
            self.lifeline.signal(number)
        elif number != signal.SIGINT:
            self.lifeline.signal(signal.SIGHUP)  # shells do not end for SIGTERM
        elif self._far >= 0:
            with contextlib.suppress(OSError):
                os.write(self._far, _INTERRUPT)

    def hurry(self) -> None:
        """The person wants the end: output that nobody reads is given up."""
        self._haste.set()

    async def finish(self) -> str:
        """After the command's end: waits until its output has been written. Why it could not be, or empty."""
        if self._input is not None:
            self._input.stop()
        for pump in self._outputs:
            pump.over()
        left = {pump.ended for pump in self._outputs}
        hasty = asyncio.ensure_future(self._haste.wait())
        try:
            while left and not hasty.done():
                _, left = await asyncio.wait({*left, hasty}, return_when=asyncio.FIRST_COMPLETED)
                left.discard(hasty)  # type: ignore[arg-type]
            if left:
                _, left = await asyncio.wait(left, timeout=HASTE_S)
            if self._input is not None:
                _, late = await asyncio.wait({self._input.ended}, timeout=_REOPENED_S)
                left |= late
        finally:
            hasty.cancel()
        if not left and self._far >= 0:
            os.close(self._far)
            self._far = -1
        return next((pump.problem for pump in self._outputs if pump.problem), "")

    def close(self) -> None:
        """Restores the terminal and lets go of what no thread uses any more. Kills a command that still runs."""
        self.leave()
        self._modes = None
        self._let_go()
        for fd in self._ours.values():
            os.close(fd)
        self._ours = {}
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self.lifeline.close()


def _in_front(fd: int) -> bool:
    """Whether no other job has the terminal; of one that does not control our session, none of our jobs has it."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True
