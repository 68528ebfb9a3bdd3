"""How each limit of an agent is held, at each level of confinement (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from toka.sandbox.level import Level
from toka.sandbox.policy import SandboxPolicy

WITHOUT: Final[Mapping[str, str]] = {
    "memory": "looked at 20 times a second while commands run",
    "cpu": "a lower priority, and a bound on seconds",
    "processes": "RLIMIT_NPROC",
}
"""How those are held where there is no cgroup."""
BY_USER: Final = "RLIMIT_NPROC, counted with the user's other processes"
NO_SANDBOX_PROCESSES: Final = "nothing: without a sandbox only a cgroup holds it"
PAST_PROXY: Final = "nothing: without a sandbox commands reach the network past the proxy"


@dataclass(frozen=True, slots=True)
class Enforcement:
    """How one limit is held.

    Attributes:
        limit: `memory`, `cpu`, `processes`, `disk`, `network`.
        how: by what, in a few words.
        strict: whether the kernel or the proxy holds it; False = best effort.
    """

    limit: str
    how: str
    strict: bool


def enforcements(policy: SandboxPolicy, held: Mapping[str, str], level: Level = "full") -> tuple[Enforcement, ...]:
    """How each limit that is set is held.

    Args:
        policy: the limits.
        held: `memory`, `cpu`, `pids`: by which cgroup, in words; those that none holds are missing.
        level: how strongly the sandbox confines.
    """
    out: list[Enforcement] = []
    if policy.memory_bytes is not None:
        by = held.get("memory")
        out.append(Enforcement("memory", by or WITHOUT["memory"], by is not None))
    if policy.cpu_cores is not None:
        by = held.get("cpu")
        out.append(Enforcement("cpu", by or WITHOUT["cpu"], by is not None))
    by = held.get("pids")
    without = {"full": WITHOUT["processes"], "reduced": BY_USER, "none": NO_SANDBOX_PROCESSES}[level]
    out.append(Enforcement("processes", by or without, by is not None or level == "full"))
    if policy.disk_bytes is not None:
        out.append(Enforcement("disk", "counted while commands run; RLIMIT_FSIZE for one file", strict=False))
    if policy.network_bps is not None or policy.network_bytes is not None:
        out.append(Enforcement("network", PAST_PROXY if level == "none" else "the proxy", level != "none"))
    return tuple(out)
