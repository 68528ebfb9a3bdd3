"""The calls that `toka jail` looks at to tell what was refused, and what is answered to each (pure).

A person's command has one filter in the place of an agent's: it asks a listener about what the agent's filter refuses,
and about the calls below, which the file layers may refuse. The answer to a call is what the agent's own filter says of
it, by the numbers that the kernel saw: nobody can change them meanwhile. So the listener refuses with the very error of
an agent's sandbox, and lets through only what is let through there, whatever else it finds out about a call. Without a
listener the kernel answers ENOSYS: nothing is let through.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from toka.sandbox.seccomp import AUDIT, X86_64, Syscalls, compile_filter, numbers

Action = Literal["open", "look", "make", "remove", "move", "change", "run", "connect", "bind"]
Place = tuple[int, int]
"""Which arguments are the descriptor of a folder (-1 = none, the working folder) and the address of a path."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A call that somebody looks at before the kernel decides.

    Attributes:
        numbers: on x86_64 and aarch64; None where the machine has no such call.
        action: what it does to its places.
        places: its paths.
        empty: which argument says that there is no path; -1 = none.
    """

    numbers: tuple[int | None, int | None]
    action: Action
    places: tuple[Place, ...]
    empty: int = -1


WATCHED: Final[Mapping[str, Watched]] = {
    "open": Watched((2, None), "open", ((-1, 0),)),
    "openat": Watched((257, 56), "open", ((0, 1),)),
    "creat": Watched((85, None), "open", ((-1, 0),)),
    "stat": Watched((4, None), "look", ((-1, 0),)),
    "lstat": Watched((6, None), "look", ((-1, 0),)),
    "newfstatat": Watched((262, 79), "look", ((0, 1),), empty=3),
    "statx": Watched((332, 291), "look", ((0, 1),), empty=2),
    "access": Watched((21, None), "look", ((-1, 0),)),
    "faccessat": Watched((269, 48), "look", ((0, 1),)),
    "faccessat2": Watched((439, 439), "look", ((0, 1),), empty=3),
    "chdir": Watched((80, 49), "look", ((-1, 0),)),
    "mkdir": Watched((83, None), "make", ((-1, 0),)),
    "mkdirat": Watched((258, 34), "make", ((0, 1),)),
    "mknod": Watched((133, None), "make", ((-1, 0),)),
    "mknodat": Watched((259, 33), "make", ((0, 1),)),
    "link": Watched((86, None), "make", ((-1, 1),)),
    "linkat": Watched((265, 37), "make", ((2, 3),)),
    "symlink": Watched((88, None), "make", ((-1, 1),)),
    "symlinkat": Watched((266, 36), "make", ((1, 2),)),
    "unlink": Watched((87, None), "remove", ((-1, 0),)),
    "unlinkat": Watched((263, 35), "remove", ((0, 1),)),
    "rmdir": Watched((84, None), "remove", ((-1, 0),)),
    "rename": Watched((82, None), "move", ((-1, 0), (-1, 1))),
    "renameat": Watched((264, 38), "move", ((0, 1), (2, 3))),
    "renameat2": Watched((316, 276), "move", ((0, 1), (2, 3))),
    "truncate": Watched((76, 45), "change", ((-1, 0),)),
    "chmod": Watched((90, None), "change", ((-1, 0),)),
    "fchmodat": Watched((268, 53), "change", ((0, 1),)),
    "fchmodat2": Watched((452, 452), "change", ((0, 1),)),
    "chown": Watched((92, None), "change", ((-1, 0),)),
    "lchown": Watched((94, None), "change", ((-1, 0),)),
    "fchownat": Watched((260, 54), "change", ((0, 1),), empty=4),
    "utimensat": Watched((280, 88), "change", ((0, 1),)),
    "execve": Watched((59, 221), "run", ((-1, 0),)),
    "execveat": Watched((322, 281), "run", ((0, 1),)),
    "connect": Watched((42, 203), "connect", ()),
    "bind": Watched((49, 200), "bind", ()),
}
"""By name. None of them is more than the file layers and Landlock decide on: only these may ever be let through."""

NOTICE: Final = struct.Struct("=QIIiIQ6Q")
"""struct seccomp_notif: id, pid, flags; then struct seccomp_data: number, architecture, address, six arguments."""
_ANSWER: Final = struct.Struct("=QqiI")
_DATA_AT: Final = 16
_CONTINUE: Final = 1
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06


def watched(machine: str) -> dict[int, str]:
    """Number -> name of each call of the table that a machine has."""
    column = 0 if machine == X86_64 else 1
    pairs = ((call.numbers[column], name) for name, call in WATCHED.items())
    return {number: name for number, name in pairs if number is not None}


def names_of(machine: str) -> dict[int, str]:
    """Number -> name of each call that can be asked about."""
    return {number: name for name, number in numbers(machine).items()} | watched(machine)


def watching_filter(machine: str, allowed: Syscalls) -> bytes:
    """The filter of a command that is looked at, under the rules of an agent's; see `compile_filter`."""
    return compile_filter(machine, allowed, {n: WATCHED[name].empty for n, name in watched(machine).items()})


class Judge:
    """Answers for one filter.

    Attributes:
        machine: whose numbers count.
    """

    def __init__(self, machine: str, program: bytes) -> None:
        """Takes an agent's filter."""
        self.machine = machine
        self._steps = list(struct.iter_unpack("=HBBI", program))
        self._may = frozenset(watched(machine))
        heads = (struct.pack("=II", number, AUDIT[machine]) for number in self._may)
        self._free = frozenset(head for head in heads if self._whatever(head))

    def _whatever(self, head: bytes) -> bool:
        """Whether a call is let through with any arguments."""
        try:
            return run_filter(self._steps, head) == _ALLOW
        except struct.error:  # it looks at them
            return False

    def error_of(self, notice: bytes | bytearray) -> int:
        """The error number with which a call is refused; 0 when the kernel may go on with it.

        It may when the agent's filter lets the call through, and the table above has it.
        """
        if bytes(notice[_DATA_AT : _DATA_AT + 8]) in self._free:
            return 0
        said = run_filter(self._steps, bytes(notice[_DATA_AT:]))
        if said == _ALLOW:
            (number,) = struct.unpack_from("=i", notice, _DATA_AT)
            return 0 if number in self._may else errno.EPERM
        return said & 0xFFFF or errno.EPERM if said & ~0xFFFF == _ERRNO else errno.EPERM


def answer(identifier: int, error: int) -> bytes:
    """struct seccomp_notif_resp: a refusal, or that the kernel goes on with the call."""
    return _ANSWER.pack(identifier, 0, -error, 0 if error else _CONTINUE)


def run_filter(steps: list[tuple[int, ...]], data: bytes) -> int:
    """What a filter says of a call, by the few instructions that ours are made of.

    Args:
        steps: instructions: code, jump if true, jump if false, constant.
        data: struct seccomp_data.

    Raises:
        ValueError: it holds another instruction.
    """
    at = held = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == _LOAD:
            (held,) = struct.unpack_from("=I", data, value)
        elif code == _EQUAL:
            at += yes if held == value else no
        elif code == _RETURN:
            return value
        elif code == _ANY_BIT:
            at += yes if held & value else no
        elif code == _AND:
            held &= value
        elif code == _AT_LEAST:
            at += yes if held >= value else no
        else:
            raise ValueError(f"no instruction of ours: {code:#x}")
