"""What only shows among several specs, and with the settings at hand: dependencies, clashes of names, empty grants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from toka.config.agent import AgentConfig, Presets
from toka.config.codes import Severity
from toka.config.diagnostics import Finding, did_you_mean, in_order, quoted
from toka.config.flow_check import Upstream, reference_problems
from toka.config.graph import cycle_text, find_cycles
from toka.config.inputs import Inputs
from toka.config.rules import Problem
from toka.core.catalogue import known_names
from toka.core.ids import AgentName


def check(
    configs: Sequence[AgentConfig], custom: Presets | None = None, *, complete: bool = True
) -> tuple[Finding, ...]:
    """Checks specs that are to run together.

    Args:
        configs: the specs, and drafts of those with errors.
        custom: capabilities that the settings define; None = only the known ones.
        complete: False when further specs exist whose names are not known: unknown agents are not reported then.

    Returns:
        All findings, those about single specs included, by file and line. Nothing is raised.
    """
    first: dict[AgentName, AgentConfig] = {}
    for config in configs:
        if not config.lacks("metadata", "name"):
            first.setdefault(config.name, config)
    circles = _circles(first)
    edges = (t for c in configs for t in (*c.dependencies.required, *c.dependencies.optional))
    missing = {t for t in edges if AgentName(t) not in first}
    near = {name: did_you_mean(name, first) for name in missing if complete}
    upstream = Upstream(first)
    out: list[Finding] = []
    for config in configs:
        out += config.findings
        problems = [*_clashes(config, first), *_grants(config, custom), *_edges(config, first, near, complete=complete)]
        problems += reference_problems(config, first, upstream, complete=complete)
        if first.get(config.name) is config:
            problems += circles.get(config.name, ())
        if problems:
            out += config.report(*problems)
    return in_order(out)


class Checked(NamedTuple):
    """What `check_paths` read and found.

    Attributes:
        configs: the sound specs, sorted by name.
        drafts: what stands of those with errors; see `AgentConfig.read`.
        findings: all of them. When one is an error, the specs must not be run.
    """

    configs: tuple[AgentConfig, ...]
    drafts: tuple[AgentConfig, ...]
    findings: tuple[Finding, ...]


def check_paths(
    paths: Iterable[str | Path],
    custom: Presets | None = None,
    inputs: Inputs | Mapping[str, object] | None = None,
) -> Checked:
    """Reads files and directories and checks what could be read, all in one pass.

    Args:
        paths: team files, specs, and directories of them.
        custom: capabilities that the settings define; None = only the known ones.
        inputs: values for the inputs of team files, by name; None = their defaults.
    """
    configs, drafts, found, complete = AgentConfig.read(paths, inputs)
    specs = sorted((*configs, *drafts), key=lambda c: str(c.source))
    findings = in_order((*found, *check(specs, custom, complete=complete)))
    return Checked(tuple(sorted(configs, key=lambda c: c.name)), drafts, findings)


def _clashes(config: AgentConfig, first: dict[AgentName, AgentConfig]) -> Iterator[Problem]:
    other = first.get(config.name, config)
    if other is not config and not config.lacks("metadata", "name"):
        label = f"first in {other.position('metadata', 'name').text}"
        yield Problem("TK2008", f"a second agent is called {quoted(config.name)}", ("metadata", "name"), label)


def _edges(
    config: AgentConfig, known: dict[AgentName, AgentConfig], near: dict[str, str | None], *, complete: bool
) -> Iterator[Problem]:
    """Dependencies on agents that are not there, and verified ones that rest on claims."""
    for kind, edges in (("required", config.dependencies.required), ("optional", config.dependencies.optional)):
        for name, edge in edges.items():
            path = ("dependencies", kind, name)
            target = known.get(AgentName(name))
            if target is None and complete:
                code = "TK3001" if kind == "required" else "TK3002"
                message = f"{kind} agent {quoted(name)} is not part of this set"
                meant = near.get(name)
                severity: Severity | None = "warning" if meant and kind == "optional" else None
                yield Problem(code, message, path, help=meant, severity=severity)
            elif target is not None and edge.verified and _claims(target):
                message = f"{quoted(name)} has objectives or criteria without a check, which cannot be verified"
                yield Problem("TK3006", message, path)


def _claims(target: AgentConfig) -> bool:
    """Whether an agent has an objective that no check can verify; success criteria are such."""
    if target.lacks("objectives"):
        return False
    return any(o.check is None for o in target.objectives) or any(target.success_criteria.values())


def _circles(known: dict[AgentName, AgentConfig]) -> dict[AgentName, list[Problem]]:
    """Circles of required edges (errors), and those that only optional edges close (warnings), by their first agent."""
    required = {n: [AgentName(t) for t in c.dependencies.required] for n, c in known.items()}
    both = {n: [*required[n], *map(AgentName, c.dependencies.optional)] for n, c in known.items()}
    out: dict[AgentName, list[Problem]] = {}
    hard = find_cycles(required)
    stuck = {name for cycle in hard for name in cycle}
    for cycle in hard:
        path = ("dependencies", "required", cycle[1])
        out.setdefault(cycle[0], []).append(Problem("TK3003", f"circular dependency: {cycle_text(cycle)}", path))
    for cycle in find_cycles(both):
        if stuck.isdisjoint(cycle):
            kind = "required" if cycle[1] in required[cycle[0]] else "optional"
            message = f"circular through optional dependencies: {cycle_text(cycle)}"
            problem = Problem("TK3003", message, ("dependencies", kind, cycle[1]), severity="warning")
            out.setdefault(cycle[0], []).append(problem)
    return out


def _grants(config: AgentConfig, custom: Presets | None) -> Iterator[Problem]:
    """Capabilities that grant nothing or more than they seem to, and an agent that may do nothing."""
    requests = config.security.capabilities_required
    known = (*known_names(), *(custom or ()))
    for note in config.grant_notes(custom):
        path = ("security", "capabilities_required", requests.index(note.request))
        near = did_you_mean(note.request.name, known) if note.empty and note.request.name not in known else None
        yield Problem("TK4001" if note.empty else "TK4002", note.text, path, help=near)
    if config.grant(custom).capabilities:
        return
    commands = any(t.run for t in config.tasks.default) or any(o.check for o in config.objectives)
    if requests or commands:
        message = "nothing is granted, so the agent sees no file of the workspace"
        path = ("security", "capabilities_required") if requests else ("tasks",)
        example = "grants: {read: [.]}" if config.origin.team else "filesystem-read or filesystem-write"
        yield Problem("TK4004", message, path, help=f"ask for {example}")
