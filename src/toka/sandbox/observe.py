"""Watching a person's command in `toka jail`: what it is refused is told, one refusal at a time.

One thread answers the kernel, another works out what a call met, so that a look at the machine that takes long holds
nobody up. The thread that answers decides nothing by itself (see `watched.py`), and when it ends, the listener closes:
from then on the kernel refuses every call that would have been asked about.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import queue
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from toka.sandbox.host import Sandbox
from toka.sandbox.profile import calls_of, profiles
from toka.sandbox.refusal import Refusal, Rules
from toka.sandbox.seen import Seen, Window
from toka.sandbox.terminal import Streams
from toka.sandbox.watched import NOTICE, Judge, answer, names_of, watching_filter

RECEIVE: Final = 0xC0502100
SEND: Final = 0xC0182101
"""SECCOMP_IOCTL_NOTIF_RECV and _SEND for structures of 80 and 24 bytes."""
WAITING: Final = 1000
"""Calls that may wait for their explanation; further ones are left out."""
DIFFERENT: Final = 1000
"""Refusals that are told apart; further ones are left out."""
LAST_S: Final = 0.5
"""Seconds that the last explanations may take after the command's end."""


def watch(
    sandbox: Sandbox,
    workspace: Path,
    streams: Streams,
    report: Callable[[Refusal], None],
    lost: Callable[[], None],
) -> Observer:
    """Watches the command that is attached to these streams next; see `Observer`."""
    policy, machine = sandbox.policy, os.uname().machine
    profile = profiles(policy, sandbox.granted)["agent"]
    judge = Judge(machine, bytes.fromhex(profile["seccomp"]))
    rules = Rules(workspace, policy, sandbox.granted, profile)
    observer = Observer(judge, rules, report, lost)
    asking = watching_filter(machine, calls_of(policy, policy.programs))
    streams.bring("watch", {"filter": asking.hex()}, observer.theirs)
    return observer


class Observer:
    """Watches one command.

    Attributes:
        theirs: the socket on which the inside sends the listener.
        seen: 1 when calls are looked at, 0 when the machine does not let us, -1 before that is known.
    """

    def __init__(self, judge: Judge, rules: Rules, report: Callable[[Refusal], None], lost: Callable[[], None]) -> None:
        """Begins to wait for the listener.

        Args:
            judge: answers the kernel.
            rules: of the sandbox.
            report: takes each different refusal, in the loop's thread.
            lost: called there when nobody can watch any more while the command still runs.
        """
        self._judge, self._rules, self._report, self._lost = judge, rules, report, lost
        self._names = names_of(judge.machine)
        self._loop = asyncio.get_running_loop()
        self._calls: queue.Queue[Seen | None] = queue.Queue(WAITING)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._ending = threading.Lock()
        self._told: set[Refusal] = set()
        self._over = asyncio.Event()
        self.seen = -1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs = theirs.detach()
        self._threads = [
            threading.Thread(target=self._watch, args=(ours,), name="toka-watch", daemon=True),
            threading.Thread(target=self._explain, name="toka-explain", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the watch; what still runs inside can do little more then. Idempotent."""
        with self._ending:
            if self._stop >= 0:
                os.eventfd_write(self._stop, 1)

    async def finish(self) -> None:
        """After the command's end: takes what is still to be told, and ends."""
        self.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                await self._over.wait()

    def _tell(self, act: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(act, *args)

    # ---- the thread that answers

    def _watch(self, ours: socket.socket) -> None:
        window, listener, lost = Window(), -1, True
        try:
            with ours:
                listener = self._receive(ours)
            lost = listener >= 0 and self._serve(listener, window)
        except Exception:  # noqa: BLE001 - whatever it is, the command is ended and says that
            pass
        finally:
            if listener >= 0:
                os.close(listener)
            window.close()
            self.seen = 0 if window.blind else self.seen
            if lost:
                self._tell(self._lost)
            self._calls.put(None)

    def _receive(self, ours: socket.socket) -> int:
        """The listener; -1 when there is none, or the command came to its end before."""
        if self._ends(ours.fileno()):
            return -1
        said, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
        self.seen = len(fds) if said else -1
        return fds[0] if fds else -1

    def _ends(self, fd: int) -> bool:
        """Waits until something can be read; whether the end came first."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        ready = dict(poll.poll())
        return not ready.get(fd, 0) & select.POLLIN

    def _serve(self, listener: int, window: Window) -> bool:
        """Answers until the command has ended, or the last process that could ask. Whether it broke off."""
        while not self._ends(listener):
            notice = bytearray(NOTICE.size)
            try:
                fcntl.ioctl(listener, RECEIVE, notice)
            except (FileNotFoundError, InterruptedError):  # the one who asked was killed
                continue
            except OSError as error:
                return error.errno != errno.ENOTCONN
            self._answer(listener, notice, window)
        return False

    def _answer(self, listener: int, notice: bytearray, window: Window) -> None:
        number, error = NOTICE.unpack(notice)[3], self._judge.error_of(notice)
        seen: Seen | None = None
        with contextlib.suppress(OSError, ValueError, OverflowError):  # it is not explained
            seen = window.see(notice, self._names.get(number, f"call {number}"), error)
        try:
            fcntl.ioctl(listener, SEND, answer(NOTICE.unpack_from(notice)[0], error))
        except FileNotFoundError:  # the one who asked was killed: its number may mean another process by now
            window.close()
            return
        if seen is not None and seen.telling:
            with contextlib.suppress(queue.Full):
                self._calls.put_nowait(seen)

    # ---- the thread that explains

    def _explain(self) -> None:
        while (seen := self._calls.get()) is not None:
            refusal: Refusal | None = None
            with contextlib.suppress(Exception):  # what inside looks strange to us is not explained
                refusal = self._rules.explain(seen)
            if refusal is not None and refusal not in self._told and len(self._told) < DIFFERENT:
                self._told.add(refusal)
                self._tell(self._report, refusal)
        with self._ending:
            os.close(self._stop)  # the thread that answers has ended
            self._stop = -1
        self._tell(self._over.set)
