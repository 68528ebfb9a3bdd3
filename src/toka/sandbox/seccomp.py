"""The system calls that a sandboxed process may not make, compiled to a seccomp filter (pure).

The filter allows what it does not name: a list of the calls that programs need would break programs with each new C
library. What it names are calls that make namespaces or mounts, look into other processes, load code into the kernel,
set clocks, or have a long history of kernel bugs, and every socket family that was not granted.

Calls are refused with an error number, so that programs see an ordinary failure; a call of a foreign architecture
(32-bit programs, x32) ends the process, as its numbers mean something else.

Source of the instruction format: linux/filter.h and linux/seccomp.h, the kernel's Documentation/userspace-api/
seccomp_filter.rst. A test compares the numbers with the kernel's own headers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

X86_64: Final = "x86_64"
AARCH64: Final = "aarch64"
AUDIT: Final[Mapping[str, int]] = {X86_64: 0xC000003E, AARCH64: 0xC00000B7}
"""AUDIT_ARCH_* of each machine that is supported."""

DENIED: Final[Mapping[str, tuple[int | None, int | None]]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "move_pages": (279, 239), "migrate_pages": (256, 238),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "statmount": (457, 457),
    "listmount": (458, 458), "open_tree_attr": (467, 467), "listns": (470, 470),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None), "vhangup": (153, 58),
    "lookup_dcookie": (212, 18), "fanotify_init": (300, 262), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "memfd_secret": (447, 447), "vmsplice": (278, 75), "nfsservctl": (180, 42), "_sysctl": (156, None),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "sethostname": (170, 161), "setdomainname": (171, 162), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    # clocks
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
}  # fmt: skip
"""Refused with EPERM: name -> numbers on x86_64 and aarch64; None where the machine has no such call."""

ABSENT: Final[Mapping[str, tuple[int, int]]] = {
    "clone3": (435, 435), "openat2": (437, 437),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip
"""Refused with ENOSYS, as on a kernel without them: programs then use the older call, whose arguments can be read."""

SPECIAL: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "clone": (56, 220), "ioctl": (16, 29), "socket": (41, 198), "socketpair": (53, 199), "personality": (135, 92),
    "mknod": (133, None), "mknodat": (259, 33), "memfd_create": (319, 279), "execve": (59, 221),
    "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "prctl": (157, 167), "seccomp": (317, 277),
    "open": (2, None), "openat": (257, 56), "creat": (85, None), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "fchmodat2": (452, 452),
}  # fmt: skip
"""Calls that depend on their arguments or on the policy."""

NEW_NAMESPACES: Final = 0x7E020080
"""CLONE_NEW*: mount, cgroup, uts, ipc, user, pid, net and time, as clone takes them."""
TIOCSTI: Final = 0x5412
TIOCLINUX: Final = 0x541C
X32_BIT: Final = 0x40000000
CHARACTER_DEVICE: Final = 0o020000
BLOCK_DEVICE: Final = 0o060000
FILE_TYPE: Final = 0o170000
SET_IDS: Final = 0o6000
"""Mode bits that let a program run as the file's owner or group: outside, that is whoever owns the workspace."""
EMPTY_PATH: Final = 0x1000
"""AT_EMPTY_PATH."""
CREATES: Final = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)
"""Flags of open with which its mode counts."""
THREAD: Final = 0x10000
"""CLONE_THREAD."""
NEW_LISTENER: Final = 8
"""The flag with which a filter is installed whose calls somebody is asked about."""

_LOAD, _AND, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO, _ASK = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16

Instruction = tuple[int, int, int, int]
"""Code, how far to jump if true, if false, and the constant."""


@dataclass(frozen=True, slots=True)
class Syscalls:
    """What a filter lets through.

    Attributes:
        stream_families: socket families of which stream sockets may be made (AF_INET, AF_INET6); no other sockets are.
        memfd: whether memory files may be made, which can be executed without any path.
        spawn: whether processes may be started and programs executed; threads may always be.
    """

    stream_families: tuple[int, ...] = ()
    memfd: bool = True
    spawn: bool = True


def numbers(machine: str) -> dict[str, int]:
    """Every call this module knows, by name, with its number on a machine."""
    column = (X86_64, AARCH64).index(machine)
    table: dict[str, tuple[int | None, int | None]] = {**DENIED, **ABSENT, **SPECIAL}
    return {name: number for name, pair in table.items() if (number := pair[column]) is not None}


def compile_filter(machine: str, allowed: Syscalls, asked: Mapping[int, int] | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`.

    Args:
        machine: `x86_64` or `aarch64`, as `os.uname` says.
        allowed: what the policy lets through.
        asked: None: the filter decides by itself. Else its listener is asked about each call that it would refuse, but
            for those that do not exist (ENOSYS), and about these further calls: number -> which argument with the bit
            AT_EMPTY_PATH, so without a path, lets it through unasked; -1 = none. No other listener can be installed.

    Raises:
        ValueError: the machine is not supported; nothing must run there.
    """
    if machine not in AUDIT:
        raise ValueError(f"no table of system calls for {machine}")
    number = numbers(machine)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_EQUAL, 1, 0, AUDIT[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == X86_64:
        program += [(_JUMP_GREATER_EQUAL, 0, 1, X32_BIT), (_RETURN, 0, 0, _KILL)]
    cases = {number[name]: body for name, body in _cases(allowed).items() if name in number}
    if asked is not None:
        cases = {call: [_ask(step) for step in body] for call, body in cases.items()}
        cases |= {call: _ask_unless(argument) for call, argument in asked.items()}
        only = [_argument(1), (_JUMP_ANY_BIT, 0, 1, NEW_LISTENER), _refuse(errno.EBUSY), _accept()]
        cases[number["seccomp"]] = only
    for call, body in cases.items():
        program += [(_JUMP_EQUAL, 0, len(body), call), *body]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _cases(allowed: Syscalls) -> dict[str, list[Instruction]]:
    """What happens at each named call; every body ends with a return."""
    cases = {name: [_refuse(errno.EPERM)] for name in DENIED} | {name: [_refuse(errno.ENOSYS)] for name in ABSENT}
    cases["clone"] = [_argument(0), (_JUMP_ANY_BIT, 0, 1, NEW_NAMESPACES), _refuse(errno.EPERM), _accept()]
    # The kernel looks at the low 32 bits of a request only, so we must as well (CVE-2019-10063).
    cases["ioctl"] = [_argument(1), *_refuse_if(TIOCSTI), *_refuse_if(TIOCLINUX), _accept()]
    cases["personality"] = [_argument(0), *_accept_if(0), *_accept_if(0xFFFFFFFF), _refuse(errno.EPERM)]
    no_set_ids = [(_JUMP_ANY_BIT, 0, 1, SET_IDS), _refuse(errno.EPERM)]
    for name, at in (("creat", 1), ("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2)):
        cases[name] = [_argument(at), *no_set_ids, _accept()]
    for name, at in (("open", 1), ("openat", 2)):
        creates = (_JUMP_ANY_BIT, 1, 0, CREATES)
        cases[name] = [_argument(at), creates, _accept(), _argument(at + 1), *no_set_ids, _accept()]
    devices = [*_refuse_if(CHARACTER_DEVICE), *_refuse_if(BLOCK_DEVICE)]
    no_device = [*no_set_ids, (_AND, 0, 0, FILE_TYPE), *devices, _accept()]
    cases |= {"mknod": [_argument(1), *no_device], "mknodat": [_argument(2), *no_device]}
    cases["socket"] = _socket(allowed.stream_families)
    # A pair is private, but a datagram one can be turned to any socket with a name: connected kinds cannot. Rust's
    # standard library starts processes with a pair of packets.
    cases["socketpair"] = [
        _argument(0), (_JUMP_EQUAL, 1, 0, socket.AF_UNIX), _refuse(errno.EAFNOSUPPORT),
        _argument(1), (_AND, 0, 0, 0xF), *_accept_if(socket.SOCK_STREAM), *_accept_if(socket.SOCK_SEQPACKET),
        _refuse(errno.EAFNOSUPPORT),
    ]  # fmt: skip
    if not allowed.memfd:
        cases["memfd_create"] = [_refuse(errno.EPERM)]
    if not allowed.spawn:
        cases |= {name: [_refuse(errno.EPERM)] for name in ("execve", "execveat", "fork", "vfork")}
        # Threads share memory; anything else is a new process.
        cases["clone"] = [_argument(0), (_JUMP_ANY_BIT, 1, 0, THREAD), _refuse(errno.EPERM), *cases["clone"][1:]]
    return cases


def _socket(families: Sequence[int]) -> list[Instruction]:
    """Stream sockets of these families; every other one is refused as a family that the kernel does not have.

    So are protocols other than TCP: Landlock's rules about ports do not hold for multipath TCP.
    """
    body: list[Instruction] = [_argument(1), (_AND, 0, 0, 0xF), (_JUMP_EQUAL, 1, 0, socket.SOCK_STREAM)]
    body += [_refuse(errno.EAFNOSUPPORT), _argument(2), (_JUMP_EQUAL, 2, 0, 0), (_JUMP_EQUAL, 1, 0, socket.IPPROTO_TCP)]
    body += [_refuse(errno.EPROTONOSUPPORT), _argument(0)]
    for family in families:
        body += _accept_if(family)
    return [*body, _refuse(errno.EAFNOSUPPORT)]


def _ask(step: Instruction) -> Instruction:
    """The same step of a filter, asking where it would refuse what exists."""
    refuses = step[0] == _RETURN and step[3] & ~0xFFFF == _ERRNO and step[3] & 0xFFFF != errno.ENOSYS
    return (_RETURN, 0, 0, _ASK) if refuses else step


def _ask_unless(argument: int) -> list[Instruction]:
    """Asks, but for a call whose argument says that there is no path."""
    unless = [_argument(argument), (_JUMP_ANY_BIT, 0, 1, EMPTY_PATH), _accept()] if argument >= 0 else []
    return [*unless, (_RETURN, 0, 0, _ASK)]


def _argument(index: int) -> Instruction:
    """Loads the low 32 bits of an argument; both machines are little-endian."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)


def _accept() -> Instruction:
    return (_RETURN, 0, 0, _ALLOW)


def _refuse(number: int) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _accept_if(value: int) -> list[Instruction]:
    return [(_JUMP_EQUAL, 0, 1, value), _accept()]


def _refuse_if(value: int) -> list[Instruction]:
    return [(_JUMP_EQUAL, 0, 1, value), _refuse(errno.EPERM)]
