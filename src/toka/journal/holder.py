"""Who is this process, does that other one still live, and which one has a run now?"""

from __future__ import annotations

import os
import socket
import sqlite3
from pathlib import Path

from toka.errors import StaleEpoch
from toka.journal.journal import Holder, Lease


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


def taken_over(db: sqlite3.Connection, lost: Lease) -> StaleEpoch:
    """What to say to whoever may append under a lease no more: which process has the run now, or had it since."""
    run = lost.run
    row = db.execute("SELECT token, pid, host, until FROM leases WHERE run=?", (run,)).fetchone()
    if row is None or row[0] == lost.token:
        return StaleEpoch(f"this process gave run {run} back", hint=f"go on with it: toka resume {run}")
    _, pid, host, until = row
    if until > 0:
        return StaleEpoch(
            f"run {run} is executed by process {pid} on {host} now; this process records nothing more of it",
            hint=f"follow it: toka events {run} --follow",
        )
    return StaleEpoch(
        f"run {run} was taken over by process {pid} on {host}; this process records nothing more of it",
        hint=f"see how it stands: toka show {run}",
    )


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
