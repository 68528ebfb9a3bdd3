"""A person's streams for a command: pipes from outside, or a terminal of the sandbox's own.

The terminal is made in here, so that the command finds it below /dev/pts and may open it by its name; nothing of the
person's own terminal comes in. Standard library only: it runs inside the sandbox, under the system's Python (>= 3.9).
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import termios

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def gather(streams: list[int | None], fds: list[int]) -> list[int]:
    """What becomes standard input, output and error of this process, the leader of a session without a terminal.

    Args:
        streams: for each, its place in `fds`; None is the terminal.
        fds: what came with the request; with a terminal, the first is the socket on which the host gets its other end.
    """
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    terminal = make_terminal(fds[0]) if None in streams else -1
    return [terminal if at is None else fds[at] for at in streams]


def make_terminal(fd: int) -> int:
    """Makes a terminal, this session's own from now on. Returns once the host has set its size and modes."""
    ours, terminal = os.openpty()
    with socket.socket(fileno=fd) as host:
        socket.send_fds(host, [b"terminal"], [ours])
        os.close(ours)
        if not host.recv(1):
            raise OSError("the host did not take the terminal")
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    return terminal


def hand_on(leader: int) -> None:
    """From now on, signals that the zygote sends to this process, an init, go to a command and its process group.

    Those that came before were blocked and wait: an init would never see a signal that it has no handler for.
    """

    def act(number: int, _: object) -> None:
        try:
            os.killpg(leader, number)
        except OSError:  # it has ended, or does not lead a group yet
            pass

    for number in HANDED_ON:
        signal.signal(number, act)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
