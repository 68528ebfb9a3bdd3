"""Who is this process, and does that other one still live?"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from toka.journal.journal import Holder


def this_holder() -> Holder:
    """The identity of this process."""
    return Holder(socket.gethostname(), _boot_id(), _pid_namespace(), os.getpid(), start_ticks(os.getpid()) or 0)


def holder_lives(holder: Holder) -> bool | None:
    """Whether the process still exists: True, False, or None when that cannot be told from here."""
    here = this_holder()
    if holder.host != here.host:
        return None
    if holder.boot != here.boot:
        return False
    if holder.pidns != here.pidns:
        return None
    return start_ticks(holder.pid) == holder.started


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _without_proc(pid)
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _without_proc(pid: int) -> int | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return 0
    return 0


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
