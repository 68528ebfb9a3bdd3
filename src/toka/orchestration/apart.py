"""Agents beside one another: whether they can have workspaces of their own, and who writes the same paths of one."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding, in_order
from toka.config.rules import Problem
from toka.core.catalogue import GIT_ACCESS
from toka.core.ids import AgentName
from toka.errors import UsageError
from toka.orchestration.dependency import DependencyResolver
from toka.runtime.values import branch_of
from toka.sandbox.level import Level
from toka.sandbox.policy import SandboxPolicy
from toka.workspace.claims import overlap
from toka.workspace.repository import Repository, look_at, unfit

NAMED: Final = 5
"""Agents and paths that a warning names."""
INSTEAD: Final = "let one wait for the other, grant other paths, or say `workspace: worktree`"


def private_findings(
    configs: Sequence[AgentConfig], workspace: Path, level: Level, started: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Why the private workspaces of agents cannot be made, or their branches could not come back.

    Args:
        configs: the agents.
        workspace: of the run.
        level: how strongly they are confined.
        started: those that have worked already: theirs are there.

    Returns:
        TK4209: errors; and a warning for a worktree whose agent cannot commit.
    """
    wanted = [c for c in configs if c.workspace != "shared" and c.name not in started]
    if not wanted:
        return ()
    if level == "reduced" and os.geteuid() == 0:
        problem = "in a reduced sandbox root's agents reach no workspace in the state directory"
        found = Problem("TK4209", problem, ("workspace",), help="run toka as an ordinary user, or say `shared`")
        return in_order(finding for config in wanted for finding in config.report(found))
    clones = [c for c in wanted if c.workspace == "worktree"]
    repository: Repository | UsageError | None = None
    if clones:
        try:
            repository = look_at(workspace)
        except UsageError as error:
            repository = error
    owners: dict[str, AgentName] = {}
    found = ((config, [*_of_clone(config, repository, owners)]) for config in clones)
    return in_order(finding for config, problems in found if problems for finding in config.report(*problems))


def _of_clone(
    config: AgentConfig, repository: Repository | UsageError | None, owners: dict[str, AgentName]
) -> Iterator[Problem]:
    if isinstance(repository, UsageError):
        yield Problem("TK4209", repository.message, ("workspace",), help=repository.hint)
        return
    named = config.metadata.branch
    if named is not None and repository is not None:
        other = owners.setdefault(named, config.name)
        why = unfit(repository, branch_of(config, ""))
        if other != config.name:
            why = f"the branch {named} is that of {other}, too"
        if why:
            yield Problem("TK4209", why, ("metadata", "branch"), help="name another branch, or none: toka/RUN/AGENT")
    if not config.grant({}).named(GIT_ACCESS):
        yield Problem(
            "TK4209", f"{config.name} may not commit, so that nothing of its worktree comes back", ("workspace",),
            severity="warning", help="grant git-access, or say `workspace: copy`",
        )  # fmt: skip


def collisions(
    graph: DependencyResolver, policies: Mapping[AgentName, SandboxPolicy], at_once: int
) -> dict[AgentName, str]:
    """A warning for each set of agents that may run together and write the same paths of the shared workspace.

    Args:
        graph: the team.
        policies: what each agent's sandbox lets through.
        at_once: how many agents run at one time.

    Returns:
        By the first agent of each set, in the order in which they start.
    """
    if at_once < 2:
        return {}
    paths = {n: policies[n].changeable for n in graph.order if graph.configs[n].workspace == "shared"}
    paths = {name: each for name, each in paths.items() if each}
    out: dict[AgentName, str] = {}
    for group in _sets(graph, paths):
        first = group[0]
        if len(group) > 1:
            shared = sorted({p for n in group for p in paths[n] if _others(p, n, group, paths)})
            also = [n for n in group if _many(graph.configs[n])]
            more = f" (so may the instances of {_listed(also)})" if also else ""
            out[first] = (
                f"{_listed(group)} may write at the same time to the same paths: {_listed(shared)}{more}; {INSTEAD}"
            )
        elif _many(graph.configs[first]):
            told = f"instances of {first} may write at the same time to the same paths: {_listed(paths[first])}"
            out[first] = f"{told}; say `max_parallel: 1`, or `workspace: worktree`"
    return out


def _sets(graph: DependencyResolver, paths: Mapping[AgentName, tuple[str, ...]]) -> Iterator[list[AgentName]]:
    """Agents that collide, directly or through others, in the order of the graph; alone those that do with none."""
    order = {name: number for number, name in enumerate(graph.order)}
    before: dict[AgentName, int] = {}
    for name in graph.order:
        bits = 0
        for edge in graph.before[name]:
            bits |= before[edge.on] | 1 << order[edge.on]
        before[name] = bits
    behind, beside = _behind(graph, order), _Writers({order[name]: scope for name, scope in paths.items()})
    left = sum(1 << order[name] for name in paths)
    while left:
        group: list[AgentName] = []
        found = left & -left
        while found:
            left &= ~found
            number = (found & -found).bit_length() - 1
            name = graph.order[number]
            group.append(name)
            found &= found - 1
            found |= beside.of(paths[name]) & ~before[name] & ~behind[name] & left
        yield sorted(group, key=order.__getitem__)


class _Writers:
    """Who writes which paths; sets of agents are the bits of a number."""

    def __init__(self, scopes: Mapping[int, tuple[str, ...]]) -> None:
        self._at: dict[str, int] = {}
        self._below: dict[str, int] = {}
        for number, scope in scopes.items():
            for path in scope:
                self._at[path] = self._at.get(path, 0) | 1 << number
                for around in (path, *_around(path)):
                    self._below[around] = self._below.get(around, 0) | 1 << number

    def of(self, scope: Sequence[str]) -> int:
        """All that write one of these paths, something in it, or a folder around it."""
        bits = 0
        for path in scope:
            bits |= self._below.get(path, 0)
            for around in _around(path):
                bits |= self._at.get(around, 0)
        return bits


def _around(path: str) -> list[str]:
    """The folders around a path, the workspace itself among them."""
    parts = path.split("/")
    return [] if path == "." else [".", *("/".join(parts[:n]) for n in range(1, len(parts)))]


def _behind(graph: DependencyResolver, order: Mapping[AgentName, int]) -> dict[AgentName, int]:
    """All that comes after each agent, as bits."""
    out: dict[AgentName, int] = {}
    for name in reversed(graph.order):
        bits = 0
        for edge in graph.after[name]:
            bits |= out[edge.agent] | 1 << order[edge.agent]
        out[name] = bits
    return out


def _many(config: AgentConfig) -> bool:
    """Whether several instances of it may run at one time."""
    flow = config.flow
    return flow is not None and flow.for_each is not None and flow.max_parallel != 1


def _others(path: str, name: AgentName, group: Sequence[AgentName], paths: Mapping[AgentName, tuple[str, ...]]) -> bool:
    return any(other != name and overlap((path,), paths[other]) for other in group)


def _listed(names: Sequence[str]) -> str:
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
