"""The few calls to the kernel that Python's os module does not have, as the zygote needs them.

Standard library only: it runs inside the sandbox, under the system's Python (>= 3.9).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from typing import Any

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_SLAVE = 4096, 16384, 1 << 19
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SYS_CLONE = {"x86_64": 56, "aarch64": 220}
SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 444, 445, 446
SYS_CLOSE_RANGE = 436
SECCOMP_SET_MODE_FILTER = 1
LANDLOCK_PATH, LANDLOCK_PORT = 1, 2
CONNECT_TCP = 2
RULES_OF_FILES = 1 | 2 | 4 | 16384 | 32768
"""Landlock's rights that a file, not a folder, can have."""

# PyDLL keeps the interpreter's lock over the call, so that the child of a raw clone finds a consistent interpreter.
_libc = ctypes.PyDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog: a filter's length in instructions, and where it is."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def call(number: int, what: str, *args: Any) -> int:
    """A raw system call; whole numbers go as long, None as a null pointer."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _checked(_libc.syscall(ctypes.c_long(number), *words), what)


def prctl(option: int, value: int = 0) -> None:
    """prctl(2) with one argument."""
    args = [ctypes.c_ulong(v) for v in (value, 0, 0, 0)]
    _checked(_libc.prctl(ctypes.c_int(option), *args), f"prctl {option}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    src, tgt, fs, text = (None if s is None else os.fsencode(s) for s in (source, target, kind, data))
    _checked(_libc.mount(src, tgt, fs, ctypes.c_ulong(flags), text), f"mount {target}")


def umount(target: str) -> None:
    """umount2(2), at once for names, later for what still uses it."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), f"umount {target}")


def close_from(first: int) -> None:
    """Closes every descriptor from `first` on; close_range(2), Linux 5.9."""
    call(SYS_CLOSE_RANGE, "close_range", first, 0xFFFFFFFF, 0)


def unshare(flags: int) -> None:
    """unshare(2); os has it from Python 3.12 on."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def clone(flags: int) -> int:
    """fork() into new namespaces; returns the pid, 0 in the child.

    A raw system call: unshare and fork would need the way back into our own pid namespace, which is not ours to enter
    when bwrap runs for an ordinary user.
    """
    return call(SYS_CLONE[os.uname().machine], "clone", flags | signal.SIGCHLD, 0, 0, 0, 0)


def drop_capabilities() -> None:
    """Gives up every capability. The bounding set is empty since start, so that no exec brings one back."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _checked(_libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(none)), "capset")


def empty_bounding_set() -> None:
    """Makes sure that no program ever gains a capability again."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # past the last capability of this kernel
            return


def set_limits(limits: dict[str, int]) -> None:
    """Applies rlimits by name without the RLIMIT_ prefix; a value above the hard limit is cut to it."""
    for name, value in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def add_mount_flags(target: str, flags: int) -> None:
    """Adds restrictions to a mount of our own namespace, keeping the ones it has."""
    have = os.statvfs(target).f_flag
    kept = sum(flag for flag in (MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC) if have & flag)
    mount(None, target, None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | kept | flags)


def landlock(ruleset: dict[str, Any]) -> None:
    """Restricts this process for good. Nothing is restricted where `handled` is 0: the kernel has no Landlock.

    Args:
        ruleset: `Ruleset.to_json` of landlock.py. What is not a folder gets the rights of files only.
    """
    if not ruleset["handled"]:
        return
    attributes = struct.pack("=QQQ", ruleset["handled"], ruleset["network"], ruleset["scopes"])
    size = 24 if ruleset["scopes"] else 16 if ruleset["network"] else 8
    rules = call(SYS_LANDLOCK_CREATE, "landlock", ctypes.c_char_p(attributes), size, 0)
    try:
        for path, rights in ruleset["paths"]:
            _landlock_path(rules, path, rights)
        for port in ruleset["ports"]:
            rule = struct.pack("=QQ", CONNECT_TCP, port)
            call(SYS_LANDLOCK_ADD, "landlock port", rules, LANDLOCK_PORT, ctypes.c_char_p(rule), 0)
        call(SYS_LANDLOCK_RESTRICT, "landlock", rules, 0)
    finally:
        os.close(rules)


def _landlock_path(rules: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if os.fstat(fd).st_mode & 0o170000 != 0o040000:
            rights &= RULES_OF_FILES
        rule = struct.pack("=Qi", rights, fd)
        call(SYS_LANDLOCK_ADD, f"landlock {path}", rules, LANDLOCK_PATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(fd)


def program_of(instructions: bytes) -> ctypes.Structure:
    """A filter as the kernel takes it, for as long as the instructions live."""
    return _Program(len(instructions) // 8, instructions)


def seccomp(instructions: bytes) -> None:
    """Filters this process's system calls for good, and those of all it starts.

    Args:
        instructions: an array of struct sock_filter.
    """
    program = program_of(instructions)
    number = SYS_SECCOMP[os.uname().machine]
    call(number, "seccomp", SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program))
