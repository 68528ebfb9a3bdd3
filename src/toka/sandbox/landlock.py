"""Landlock: what a process may do with paths and ports, whatever mounts and descriptors it finds (pure but for `abi`).

The mounts say what exists in a sandbox; Landlock says once more what may be done with it, in a second mechanism of the
kernel. The rules are compiled here and applied by the zygote in each command's own process.

Source: linux/landlock.h and the kernel's Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

SYS_CREATE_RULESET: Final = 444
"""The same number on x86_64 and aarch64."""
_CREATE_VERSION: Final = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK = 16, 32, 64, 128, 256, 512
MAKE_FIFO, MAKE_BLOCK, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = 1024, 2048, 4096, 8192, 16384, 32768

READ: Final = READ_FILE | READ_DIR
WRITE: Final = (
    READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER
    | TRUNCATE
)  # fmt: skip
"""Everything but devices and executing."""
DEVICE: Final = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
NEWEST: Final = 7
"""The newest interface version whose rights are known here; a newer kernel is asked for these."""
OLDEST: Final = 1
_NETWORK_FROM, _SCOPES_FROM = 4, 6
_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What a process may do.

    Attributes:
        paths: paths inside the sandbox with their rights, as bits; a path that does not exist is left out.
        connect_ports: TCP ports that may be connected to.
        bind: whether TCP ports may be bound, for servers of one's own.
    """

    paths: tuple[tuple[str, int], ...]
    connect_ports: tuple[int, ...] = ()
    bind: bool = False

    def to_json(self, version: int) -> dict[str, Any]:
        """What the zygote needs on a kernel with this interface version; the rights it does not know are left out."""
        network = 0 if version < _NETWORK_FROM else _CONNECT_TCP | (0 if self.bind else _BIND_TCP)
        handled = handled_rights(version)
        return {
            "handled": handled,
            "network": network,
            "scopes": _ABSTRACT_SOCKETS | _SIGNALS if version >= _SCOPES_FROM else 0,
            "paths": [[path, rights & handled] for path, rights in self.paths],
            "ports": list(self.connect_ports) if network else [],
        }


def handled_rights(version: int) -> int:
    """The rights on paths that an interface version knows, as bits; none without Landlock (version 0)."""
    if version < OLDEST:
        return 0
    newer = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
    known = (EXECUTE | WRITE | MAKE_CHAR | MAKE_BLOCK) & ~REFER & ~TRUNCATE
    return known | sum(right for since, right in newer.items() if version >= since)


def system_rules(*, folders: Iterable[str], execute: Iterable[str], programs_only: bool) -> list[tuple[str, int]]:
    """The rules of everything that is no workspace.

    Args:
        folders: where the system's files are, such as /usr.
        execute: folders and files from which programs may be executed.
        programs_only: whether only listed programs may be executed; files that were written may not be then.
    """
    rules = dict.fromkeys(("/etc", "/proc", *folders), READ) | dict.fromkeys(execute, READ | EXECUTE)
    # The folder /dev is read-only as a mount; what counts are the devices in it.
    rules |= {"/": READ_DIR, "/dev": DEVICE | READ, "/dev/shm": WRITE}
    return [*rules.items(), ("/tmp", WRITE if programs_only else WRITE | EXECUTE)]


@cache
def abi() -> int:
    """The version of this kernel's Landlock; 0 when it has none or it is switched off."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(ctypes.c_long(SYS_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(_CREATE_VERSION))
    return min(max(0, version), NEWEST)
