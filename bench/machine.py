"""What the measured processes and the harness read of the machine: processor time, memory, cores, the kind of disk."""

from __future__ import annotations

import os
import resource
from pathlib import Path

BENCH_CORE = 0
STUB_CORE = 1


def cpu_s(*, children: bool = False) -> float:
    """Processor seconds so far, user and system: of this process with all its threads, or of its ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss_kb(field: str = "VmRSS") -> int:
    """Memory of this process in KiB: `VmRSS` now, `VmHWM` at its most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def waited_s() -> float:
    """Seconds the main thread was ready to run but had no core: other processes, or other threads of this one."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def pin(core: int) -> bool:
    """Keeps this process (and what it starts) on one core. False where there is only one, or the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return False
    os.sched_setaffinity(0, {cores[core % len(cores)]})
    return True


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, such as ext4 or tmpfs; empty when that is unknown."""
    found = ("", "")
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in mounts:
        _, where, kind, *_ = line.split()
        if path.resolve().is_relative_to(where) and len(where) >= len(found[0]):
            found = (where, kind)
    return found[1]
