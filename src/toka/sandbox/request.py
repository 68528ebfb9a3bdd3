"""A command as the zygote takes it, checked before anything is sent. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from toka.core.capability import CapabilityError, normal_path
from toka.sandbox.keeper import OWN_PROCESSES
from toka.sandbox.mounts import WORKSPACE
from toka.sandbox.policy import SandboxPolicy

OPEN_FILES: Final = 1024
"""Descriptors that a process may have open."""
NICE: Final = 10
"""How much commands give way to others where no cgroup holds their share of the processors."""
LONGEST_S: Final = 366 * 86_400.0
"""No command is allowed more seconds of processor time than its share of these."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_command(argv: Sequence[str], cwd: str, env: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """What a request says of a command itself; see `Sandbox.run` for the arguments.

    Raises:
        ValueError: it cannot be run at all.
    """
    if not timeout_s > 0:
        raise ValueError(f"a deadline of {timeout_s} seconds leaves no time to run")
    if not argv or not argv[0] or any("\0" in part for part in (*argv, *env.values())):
        raise ValueError("a command is a program and its arguments, without NUL")
    if bad := next((name for name in env if not _VARIABLE.fullmatch(name)), None):
        raise ValueError(f"{bad!r} is not a variable's name")
    try:
        folder = normal_path(cwd)
    except CapabilityError as error:
        raise ValueError(str(error)) from None
    return {
        "argv": list(argv),
        "cwd": WORKSPACE if folder == "." else f"{WORKSPACE}/{folder}",
        "timeout": timeout_s,
    }


def bounds_of(policy: SandboxPolicy, holds: Callable[[str], bool], timeout_s: float) -> dict[str, Any]:
    """What a request says of limits: those of a process, and what stands in for a cgroup.

    Args:
        policy: the limits.
        holds: whether a cgroup holds `memory`, `cpu` or `pids` for all processes together.
        timeout_s: the command's deadline.
    """
    # Where a cgroup holds it, that one is to refuse first: it counts how often it does.
    processes = policy.processes + (OWN_PROCESSES + 1 if holds("pids") else 0)
    limits = {"NPROC": processes, "FSIZE": policy.file_bytes, "NOFILE": OPEN_FILES}
    if policy.memory_bytes is not None and not holds("memory"):
        limits["DATA"] = policy.memory_bytes
    if policy.cpu_cores is None or holds("cpu"):
        return {"rlimits": limits}
    limits["CPU"] = max(1, math.ceil(policy.cpu_cores * min(timeout_s, LONGEST_S)))
    return {"rlimits": limits, "nice": NICE}
