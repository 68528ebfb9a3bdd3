"""The head of a team file: its own keys, inputs, defaults, what it includes. `team_agent` expands the agents."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from toka.config.diagnostics import Nearest, quoted
from toka.config.inputs import Declared, Inputs, read_declarations, values_of
from toka.config.nodes import ListNode, MapNode, Node, ScalarNode, absent, at
from toka.config.source import Source
from toka.config.substitute import Substitution
from toka.config.team_keys import AGENT, DEFAULTS, TEAM, VERSION
from toka.config.team_parts import check_keys, is_mapping

MARK: Final = "toka"
"""The key that makes a file a team file."""
_MERGED: Final = ("grants", "limits", "env")


@dataclass
class Team:
    """A team file, its agents not yet expanded.

    Attributes:
        source: its text; what is wrong with the file as a whole goes there.
        declared: its inputs; `values` those that have a value.
        defaults: what each agent gets, as written.
        agents: each with the node of its name, in order.
        include: paths as written.
        workspace: as written; None = it names none.
        near: what the name of an unknown input may be meant to be.
    """

    source: Source
    declared: dict[str, Declared] = field(default_factory=dict[str, Declared])
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    defaults: MapNode = field(default_factory=lambda: MapNode(0, 0))
    agents: dict[str, tuple[ScalarNode, MapNode]] = field(default_factory=dict[str, tuple[ScalarNode, MapNode]])
    include: list[ScalarNode] = field(default_factory=list[ScalarNode])
    workspace: ScalarNode | None = None

    def __post_init__(self) -> None:
        self.near = Nearest(self.declared)


def is_team(root: Node | None) -> bool:
    """Whether the root of a file makes it a team file."""
    return isinstance(root, MapNode) and MARK in root.entries


def read_team(root: MapNode, source: Source, inputs: Inputs) -> Team:
    """Reads the head of a team file; nothing is raised.

    Args:
        root: its nodes.
        source: where findings go.
        inputs: the values that a person gave.
    """
    team = Team(source)
    given = {name: root.entries[name] for name in _keys(root, source)}
    mark = root.entries[MARK]
    if not isinstance(mark, ScalarNode) or mark.text != VERSION:
        source.add("TK2021", "this version of Toka reads team files of version 1", at(mark), label="expected 1")
    if "inputs" in given:
        team.declared.update(read_declarations(given["inputs"], source))
    team.values = values_of(team.declared, inputs, source)
    if "defaults" in given and is_mapping(given["defaults"], "defaults", "{grants: {read: [.]}}", source):
        team.defaults = _defaults(given["defaults"], source)
    for name in ("name", "description"):
        if name in given and not isinstance(given[name], ScalarNode):
            source.add("TK2002", f"{name} must be text", at(given[name]))
    _agents(team, given.get("agents"), source)
    head = Substitution(team.declared, team.values, source)
    team.include = _paths(team, head, given.get("include"), "include")
    team.workspace = next(iter(_paths(team, head, given.get("workspace"), "workspace")), None)
    if not team.agents and not team.include and not source.broken:
        source.add("TK2009", "a team has agents, or includes some", at(root.keys[MARK]), help="add agents: {NAME: ...}")
    return team


def _keys(root: MapNode, source: Source) -> list[str]:
    """The known keys that have a value. A key of an agent at the top is told where it belongs."""
    for name in [n for n in root.entries if n in AGENT and n not in TEAM]:
        help_ = "it is a key of an agent: put it below agents: NAME:"
        if name in DEFAULTS:
            help_ += ", or below defaults:"
        source.add("TK2003", f"unknown key {quoted(name)} of a team", at(root.keys[name]), help=help_)
    rest = MapNode(*at(root))
    for name, value in root.entries.items():
        if name not in AGENT or name in TEAM:
            rest.put(root.keys[name], value)
    return list(check_keys(rest, TEAM, source))


def _defaults(node: Node, source: Source) -> MapNode:
    out = MapNode(*at(node))
    for name, value in node.entries.items() if isinstance(node, MapNode) else ():
        key = node.keys[name] if isinstance(node, MapNode) else ScalarNode(name, *at(node))
        if name in AGENT and name not in DEFAULTS:
            help_ = f"only each agent itself can say it; here: {', '.join(DEFAULTS)}"
            source.add("TK2003", f"unknown default {quoted(name)}", at(key), help=help_)
        elif name in _MERGED and not absent(value) and not is_mapping(value, name, "{read: [.]}", source):
            continue
        elif name in AGENT and not absent(value):
            out.put(key, value)
    if isinstance(node, MapNode):
        for _ in check_keys(node, AGENT, source, "default"):
            pass
    return out


def _agents(team: Team, node: Node | None, source: Source) -> None:
    if node is None or not is_mapping(node, "agents", "{NAME: {run: make test}}", source):
        return
    assert isinstance(node, MapNode)
    empty = [name for name, value in node.entries.items() if absent(value) and name not in AGENT]
    beside = [name for name in node.entries if name in AGENT] if empty else []
    if beside:
        message = f"{quoted(beside[0])} stands beside the agents"
        help_ = f"indent it, and what belongs to it, below {quoted(empty[-1])}"
        source.add("TK2003", message, at(node.keys[beside[0]]), help=help_)
        return
    for name, value in node.entries.items():
        if absent(value) or isinstance(value, MapNode):
            team.agents[name] = node.keys[name], value if isinstance(value, MapNode) else MapNode(*at(node.keys[name]))
        else:
            is_mapping(value, f"the agent {quoted(name)}", "{run: make test}, or {goal: ...}", source)


def _paths(team: Team, head: Substitution, node: Node | None, what: str) -> list[ScalarNode]:
    """Paths, one or several."""
    if node is None:
        return []
    settled = head.walk(node, decides=True)
    items = settled.items if isinstance(settled, ListNode) and what == "include" else [settled] if settled else []
    out: list[ScalarNode] = []
    for item in items:
        if isinstance(item, ScalarNode) and item.text and not absent(item):
            out.append(item)
        else:
            label = "expected a list of paths" if what == "include" else "expected one path"
            team.source.add("TK2002", f"{what} names no path", at(item), label=label)
    return out
