"""The self-test: tries from inside what must fail there. Run by the zygote, locked up exactly as a command is.

Standard library only: it runs inside the sandbox, under the system's Python (>= 3.9).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

AF_VSOCK, AF_NETLINK = 40, 16
SYS_UNSHARE = {"x86_64": 272, "aarch64": 97}
SYS_PTRACE = {"x86_64": 101, "aarch64": 117}
TIOCSTI_HIGH = 0x5412 | 1 << 40
_libc = ctypes.PyDLL(None, use_errno=True)


def probe(wanted: dict[str, Any]) -> dict[str, str]:
    """Tries every layer once.

    Args:
        wanted: "write": paths that must not be writable; "read": paths that must not be readable; "network": whether
            internet sockets may be made.

    Returns:
        Layer -> what is wrong with it; empty when everything holds.
    """
    status = _status()
    found = {
        "capabilities": "" if int(status["CapEff"], 16) | int(status["CapBnd"], 16) == 0 else "not all are dropped",
        "no new privileges": "" if status["NoNewPrivs"] == "1" else "programs may gain privileges",
        "system calls": "" if status["Seccomp"] == "2" else "no filter is in force",
        "namespaces": "unshare succeeded" if _call(SYS_UNSHARE, 0x10000000) else "",
        "tracing": "ptrace is not refused" if _call(SYS_PTRACE, 0) else "",
        "sockets": "; ".join(_sockets(network=wanted["network"])),
        "terminal": "" if _terminal_refused() else "TIOCSTI is not refused",
        "processes": "" if _alone() else "processes of others can be seen",
        "network": "; ".join(f"the interface {name} can be seen" for name in _interfaces()),
    }
    for path in wanted["write"]:
        found["write " + path] = "it can be written" if _can(lambda p=path: _create(p)) else ""
    for path in wanted["read"]:
        found["read " + path] = "it can be read" if _can(lambda p=path: _look(p)) else ""
    return {layer: problem for layer, problem in found.items() if problem}


def _look(path: str) -> None:
    """Opens a file or lists a folder."""
    if os.path.isdir(path):
        os.listdir(path)
    else:
        with open(path, "rb") as file:
            file.read(1)


def _status() -> dict[str, str]:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def _can(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return False
    return True


def _create(path: str) -> None:
    if os.path.isfile(path):
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
        return
    made = os.path.join(path, ".toka-probe")
    os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    os.unlink(made)


def _alone() -> bool:
    """Our init and we: nobody else is in this namespace."""
    return len([name for name in os.listdir("/proc") if name.isdigit()]) <= 2


def _call(numbers: dict[str, int], *args: int) -> bool:
    words = [ctypes.c_long(a) for a in (numbers[os.uname().machine], *args, 0, 0, 0)]
    return _libc.syscall(*words) >= 0


def _sockets(*, network: bool) -> list[str]:
    families = {"unix": socket.AF_UNIX, "vsock": AF_VSOCK, "netlink": AF_NETLINK}
    if not network:
        families["internet"] = socket.AF_INET
    out: list[str] = []
    for name, family in families.items():
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                socket.socket(family, kind).close()
                out.append(name + " sockets can be made")
                break
            except OSError:
                continue
    return out


def _terminal_refused() -> bool:
    """Only the filter answers EPERM for a descriptor that is no terminal."""
    typed = ctypes.create_string_buffer(b"x")
    ctypes.set_errno(0)
    _libc.ioctl(ctypes.c_int(0), ctypes.c_ulong(TIOCSTI_HIGH), typed)
    return ctypes.get_errno() == errno.EPERM


def _interfaces() -> list[str]:
    """The network interfaces of this network namespace, but for the loopback one."""
    with open("/proc/self/net/dev", encoding="ascii") as file:
        names = [line.partition(":")[0].strip() for line in file.readlines()[2:]]
    return [name for name in names if name != "lo"]
