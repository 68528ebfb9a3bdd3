"""What of a spec this version's sandbox does not enforce, said before a run instead of found out after it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from toka.config.agent import AgentConfig
from toka.core.capability import Capability
from toka.core.catalogue import GIT_ACCESS, NETWORK_ACCESS
from toka.core.effect import Effect


def unenforced(config: AgentConfig, *, root: bool) -> list[str]:
    """Limits of a spec that are not enforced, or only in part, one sentence each; empty when all hold.

    Args:
        config: the spec.
        root: the runtime runs as root, whom the kernel allows any number of processes.
    """
    limits = config.limits
    out: list[str] = []
    if limits.processes is not None and root:
        out.append("max_processes does not bind root: run Toka as an ordinary user")
    if limits.cpu_cores is not None:
        out.append("max_cpu is not enforced: commands share the processor as any other process does")
    if limits.memory_bytes is not None:
        out.append("max_memory bounds each process of the agent, not all of them together")
    if limits.disk_bytes is not None:
        out.append("max_disk_usage bounds each file the agent writes, not all of them together")
    if limits.network_bps is not None:
        out.append("max_network_bandwidth has nothing to bound: the sandbox has no network")
    return out


def unopened(config: AgentConfig, capabilities: Mapping[str, tuple[Capability, ...]]) -> list[str]:
    """What a spec asks for that is known and has no effect in this version, one sentence each."""
    grant = config.grant(capabilities)
    out: list[str] = []
    if grant.named(NETWORK_ACCESS):
        out.append("network-access opens nothing: the sandbox has no network")
    if grant.named(GIT_ACCESS):
        out.append("git-access adds nothing: a repository is as open as its path is granted")
    out += [
        f"task {task.id}: effect {task.effect} counts as once: after a crash in the middle a person is asked"
        for task in config.task_list(config.tasks.conditional)
        if task.run is not None and task.effect in (Effect.WORKSPACE, Effect.CHECKABLE)
    ]
    return out
