"""The lock of a person's command in `toka jail`: as an agent's, but that its calls are also looked at from outside.

Standard library and `kernel.py` only: it runs inside the sandbox, under the system's Python (>= 3.9).
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket
import struct

from toka.sandbox.kernel import SECCOMP_SET_MODE_FILTER, SYS_SECCOMP, call, landlock, program_of, seccomp

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from typing import Any

NEW_LISTENER, WAIT_KILLABLE, GET_NOTIF_SIZES = 8, 32, 3
SIZES = (80, 24, 64)
"""Bytes of a question, of an answer, and of the call in a question."""
LISTENER, NONE = b"l", b"n"
"""What the host reads: with the listener, or that there is none."""


def lock_watched(profile: dict[str, Any], watching: str, fd: int) -> None:
    """Locks this process up for good, as the last step before untrusted code.

    Where no listener can be made the agent's own filter is installed, and nobody looks.

    Args:
        profile: the Landlock rules, and the agent's filter.
        watching: the filter that asks, hexadecimal.
        fd: the socket on which the host gets the listener; closed.

    Raises:
        OSError: the kernel refuses.
    """
    landlock(profile["landlock"])
    with socket.socket(fileno=fd) as host:
        try:
            listener = _listen(bytes.fromhex(watching))
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EINVAL):
                raise
            seccomp(bytes.fromhex(profile["seccomp"]))
            host.send(NONE)
            return
        host.sendmsg([LISTENER], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
        os.close(listener)


def _listen(instructions: bytes) -> int:
    """Installs a filter; the descriptor on which it asks. Signals do not disturb a call that is looked at, if it can be
    had (Linux 5.19)."""
    program = program_of(instructions)
    number = SYS_SECCOMP[os.uname().machine]
    sizes = ctypes.create_string_buffer(6)
    call(number, "seccomp", GET_NOTIF_SIZES, 0, sizes)
    if struct.unpack("=3H", sizes.raw) != SIZES:  # the host would not understand what the kernel asks
        raise OSError(errno.EINVAL, "seccomp")
    try:
        flags = NEW_LISTENER | WAIT_KILLABLE
        return call(number, "seccomp", SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return call(number, "seccomp", SECCOMP_SET_MODE_FILTER, NEW_LISTENER, ctypes.byref(program))
