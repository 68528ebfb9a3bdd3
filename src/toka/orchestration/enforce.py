"""How the limits of a spec will be held on this machine: said before a run.

Looks at the machine's cgroups and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

from toka.config.agent import AgentConfig
from toka.core.capability import Grant
from toka.core.effect import Effect
from toka.core.units import format_bytes, format_cpu, format_rate
from toka.errors import MissingError
from toka.sandbox.cgroup_find import Hierarchies, Kind
from toka.sandbox.enforcement import Enforcement, enforcements
from toka.sandbox.level import Level
from toka.sandbox.policy import SandboxPolicy, compile_policy

BY_CGROUP: Final[Mapping[str, Kind]] = {"memory": "memory", "cpu": "cpu", "processes": "pids"}
"""Limits that a cgroup can hold, and what it must be able to do."""
NO_QUOTA: Final = "no quota of a file system holds it"
KEYS: Final = {
    "memory": "max_memory", "cpu": "max_cpu", "processes": "max_processes", "disk": "max_disk_usage",
    "network": "max_network_bandwidth",
}  # fmt: skip
"""What a spec calls each limit."""


@cache
def machine() -> Hierarchies:
    """The cgroups of this machine, looked for once. Changes nothing."""
    return Hierarchies.find()


def held(policy: SandboxPolicy, hierarchies: Hierarchies, level: Level = "full") -> tuple[Enforcement, ...]:
    """How each limit that is set will be held: what `Keeper.enforced` says once the sandbox runs at that level."""
    places = ((kind, hierarchies.places.get(kind, ())) for kind in BY_CGROUP.values())
    return enforcements(policy, {kind: found[0].title for kind, found in places if found}, level)


def unenforced(config: AgentConfig, *, hierarchies: Hierarchies | None = None, level: Level = "full") -> list[str]:
    """Limits of a spec that can only be best effort here, one clause each with the reason; empty when all hold.

    Args:
        config: the spec.
        hierarchies: where cgroups are; None = as this machine has them.
        level: how strongly its sandbox confines.
    """
    hierarchies = hierarchies or machine()
    policy = limits_of(config)
    return [
        best_effort(policy, each, why_not(each, hierarchies))
        for each in held(policy, hierarchies, level)
        if not each.strict
    ]


def strict_refusal(config: AgentConfig, gaps: Sequence[str]) -> MissingError:
    """What to say of an agent that wants its limits strict where some can only be best effort.

    Args:
        config: its spec.
        gaps: those limits, as `best_effort` says them.
    """
    at = config.position("security", "enforcement")
    place = f"{at.file}:{at.line}: " if at.line else ""
    return MissingError(
        f"{place}agent {config.name} asks for strict limits, and these cannot be given here: {'; '.join(gaps)}",
        hint="remove security.enforcement: strict, or these limits; `toka doctor` says what this machine lacks",
    )


def limits_of(config: AgentConfig) -> SandboxPolicy:
    """A sandbox with the limits of a spec and nothing granted."""
    return compile_policy(Grant(), config.limits)


def best_effort(policy: SandboxPolicy, limit: Enforcement, why: str) -> str:
    """`max_memory 512MB is best effort (looked at 20 times a second while commands run): cgroup v2 is not mounted`."""
    shown = {
        "memory": format_bytes(policy.memory_bytes or 0),
        "cpu": format_cpu(policy.cpu_cores or 0.0),
        "processes": str(policy.processes),
        "disk": format_bytes(policy.disk_bytes or 0),
        "network": format_rate(policy.network_bps) if policy.network_bps else format_bytes(policy.network_bytes or 0),
    }
    in_all = limit.limit == "network" and policy.network_bps is None
    key = "max_network_usage" if in_all else KEYS[limit.limit]
    said = f"{key} {shown[limit.limit]} is best effort ({limit.how})"
    return f"{said}: {why}" if why else said


def why_not(limit: Enforcement, hierarchies: Hierarchies) -> str:
    """Why nothing holds a limit strictly; empty when something does."""
    if limit.strict or limit.limit == "network":
        return ""
    return hierarchies.why_not(BY_CGROUP[limit.limit]) if limit.limit in BY_CGROUP else NO_QUOTA


def once_only(config: AgentConfig) -> list[str]:
    """Tasks whose declared effect counts as `once`, as no probe belongs to a command; one sentence each."""
    return [
        f"task {task.id}: effect {task.effect} counts as once: after a crash in the middle a person is asked"
        for task in config.task_list(config.tasks.conditional)
        if task.run is not None and task.effect is Effect.CHECKABLE
    ]
