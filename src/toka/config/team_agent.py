"""One agent of a team file -> the same agent as a spec, in nodes that know where they stand in the team file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from toka.config.diagnostics import quoted
from toka.config.nodes import ListNode, MapNode, Node, ScalarNode, absent, at, copied, mapping, node_of, plain
from toka.config.source import Source
from toka.config.substitute import Substitution
from toka.config.team import Team
from toka.config.team_keys import AGENT, DEFAULTS
from toka.config.team_parts import (
    check_keys,
    check_of,
    command,
    is_mapping,
    limits,
    needs,
    outputs,
    requests,
    truth,
)
from toka.core.ids import NAME
from toka.core.reference import RESERVED

LIVE: Final = frozenset({"goal", "run", "when", "env"})
"""Keys whose texts are resolved while the agent runs."""
_PARTLY: Final[Mapping[str, tuple[frozenset[str], bool]]] = {
    "check": (frozenset({"run"}), True),
    "checks": (frozenset({"run"}), True),
    "tasks": (frozenset({"description", "run"}), True),
    "objectives": (frozenset({"description", "check", "run"}), True),
    "outputs": (frozenset({"path"}), False),
    "approve": (frozenset({"question"}), True),
    "for_each": (frozenset(), True),
}
"""Others with the keys in them that are, and whether texts without a key are."""
_PROSE: Final = frozenset({
    "description", "title", "metadata", "spec", "capabilities", "reporting", "behavioral_directives",
    "risk_mitigation", "success_criteria", "extensions",
})  # fmt: skip
"""Keys that decide nothing."""
_SECTIONS: Final = (
    "capabilities", "reporting", "behavioral_directives", "risk_mitigation", "success_criteria",
)  # fmt: skip
_WORK: Final = ("goal", "run", "tasks")
_FLOW: Final = ("for_each", "max_parallel", "when", "approve", "env")


def expand(team: Team, name: str, source: Source) -> MapNode:
    """One agent of a team as a spec in the dialect that `dialect.canonical` reads.

    Args:
        team: the file.
        name: the key of the agent.
        source: where findings go.
    """
    key, node = team.agents[name]
    return _Writer(team, key, node, source).spec()


class _Writer:
    """Writes the sections of one agent."""

    def __init__(self, team: Team, key: ScalarNode, node: MapNode, source: Source) -> None:
        self._key = key
        self._source = source
        self._repairs: Node | None = None
        self._keys: dict[str, ScalarNode] = dict(node.keys)
        own = {name: node.entries[name] for name in check_keys(node, AGENT, source, "key of an agent")}
        shared = {name: value for name, value in team.defaults.entries.items() if name in DEFAULTS}
        self._refers = self._flag(own.get("references", shared.get("references")))
        own_inputs = _inputs_of(own.get("flow"))
        self._values = Substitution({*team.declared, *own_inputs}, {**team.values, **own_inputs}, source, team.near)
        self._own = self._settled(own)
        self._shared = self._settled(shared)
        for name, default in team.defaults.keys.items():
            self._keys.setdefault(name, default)

    def spec(self) -> MapNode:
        """All sections. What has no place of its own stands at the agent's name."""
        self._check_name()
        out = mapping(self._key, {"metadata": self._metadata(), "spec": self._spec()})
        sections = {
            "model": self._either("model"),
            "restart": self._either("restart"),
            "workspace": self._either("workspace"),
            "tasks": self._tasks(),
            "objectives": self._objectives(),
            "dependencies": self._dependencies(),
            "security": self._security(),
            **{name: self._own.get(name) for name in _SECTIONS},
            "flow": self._flow(),
        }
        for name, section in sections.items():
            if section is not None:
                out.put(self._keys.get(name) or ScalarNode(name, *at(self._key)), section)
        extensions = self._section("extensions")
        for name, value in extensions.entries.items():
            if name in out.entries or name in ("metadata", "spec"):
                message = f"{quoted(name)} is a section of its own"
                self._source.add("TK1006", message, at(extensions.keys[name]))
            else:
                out.put(extensions.keys[name], value)
        return out

    # --- what is given

    def _flag(self, node: Node | None) -> bool | None:
        value = None if node is None else truth(node)
        if node is not None and value is None:
            self._source.add("TK2002", "references is true or false", at(node))
        return value

    def _settled(self, given: Mapping[str, Node]) -> dict[str, Node]:
        """The values with inputs put in where that is settled now."""
        if self._refers is False:
            return {name: copied(node) for name, node in given.items()}
        out: dict[str, Node] = {}
        for name, node in given.items():
            if name in LIVE:
                out[name] = self._values.kept(node)
                continue
            live, bare = _PARTLY.get(name, (frozenset[str](), False))
            bare = bare and not (name == "for_each" and not isinstance(node, ScalarNode))
            if name == "check" and isinstance(node, ListNode):
                out[name] = self._values.kept(node)
            elif settled := self._values.walk(node, live, bare=bare, decides=name not in _PROSE):
                out[name] = settled
        return out

    def _either(self, name: str) -> Node | None:
        return self._own.get(name, self._shared.get(name))

    def _section(self, name: str, example: str = "{}") -> MapNode:
        """A section of a spec that is written out, as a mapping of our own."""
        node = self._own.get(name)
        if node is None:
            return MapNode(*at(self._key))
        if is_mapping(node, name, example, self._source) and isinstance(node, MapNode):
            return node
        return MapNode(*at(node))

    def _into(self, section: MapNode, name: str, short: str, value: Node, where: str) -> None:
        """Puts what a short key says into a section, unless that says it already."""
        key = self._keys.get(short, self._key)
        if name not in section.entries:
            section.put(ScalarNode(name, *at(key)), value)
        elif short in self._own:
            message = f"{quoted(name)} is given twice: by {quoted(short)} and in {where}"
            label = f"also on line {section.keys[name].line}"
            self._source.add("TK1006", message, at(key), label=label)

    # --- the sections

    def _check_name(self) -> None:
        name = self._key.text
        given = self._own.get("metadata")
        if isinstance(given, MapNode) and "name" in given.entries:
            return
        if name in RESERVED:
            message = f"an agent of a team cannot be called {quoted(name)}: references could not tell it apart"
            self._source.add("TK2020", message, at(self._key))
        elif "." in name and NAME.fullmatch(name):
            message = f"the name {quoted(name)} of an agent of a team has a dot, which references use"
            self._source.add("TK2020", message, at(self._key), help="use '-' or '_'")

    def _metadata(self) -> MapNode:
        section = self._section("metadata", "{version: v1.0.0}")
        if "name" not in section.entries:
            section.put(ScalarNode("name", *at(self._key)), ScalarNode(self._key.text, *at(self._key)))
        return section

    def _spec(self) -> MapNode:
        section = self._section("spec")
        for short, name in (("title", "name"), ("domain", "domain"), ("priority", "priority"),
                            ("description", "description")):  # fmt: skip
            if (value := self._either(short)) is not None:
                self._into(section, name, short, value, "spec")
        return section

    def _tasks(self) -> Node | None:
        said = [name for name in _WORK if name in self._own]
        for name in said[1:]:
            message = f"{quoted(said[0])} and {quoted(name)} both say what the agent does"
            help_ = "write both as tasks:"
            self._source.add("TK1006", message, at(self._keys[name]), help=help_)
        if not said:
            return None
        node = self._own[said[0]]
        key = self._keys[said[0]]
        if said[0] == "tasks":
            tasks = node
        else:
            what = "description" if said[0] == "goal" else "run"
            entry = MapNode(*at(key))
            entry.put(ScalarNode(what, *at(key)), node if what == "description" else command(node, self._source))
            tasks = ListNode([entry], node.line, node.column)
        extra = {name: value for name in ("retries", "timeout") if (value := self._either(name)) is not None}
        return self._filled(tasks, extra) if extra else tasks

    def _filled(self, node: Node, extra: Mapping[str, Node]) -> Node:
        """Tasks, with what they do not say themselves."""
        if isinstance(node, MapNode):
            for name, group in node.entries.items():
                inner = group.entries if isinstance(group, MapNode) and name == "conditional" else {}
                for each in inner:
                    inner[each] = self._filled(inner[each], extra)
                if isinstance(group, ListNode):
                    node.entries[name] = self._filled(group, extra)
            return node
        if not isinstance(node, ListNode):
            return node
        for place, entry in enumerate(node.items):
            filled = mapping(entry, {"description": entry}) if isinstance(entry, ScalarNode) else entry
            if isinstance(filled, MapNode) and not absent(entry):
                for name, value in extra.items():
                    if name not in filled.entries:
                        filled.put(ScalarNode(name, *at(self._keys[name])), value)
                node.items[place] = filled
        return node

    def _objectives(self) -> Node | None:
        more = self._own.get("checks")
        given = [self._own["check"]] if "check" in self._own else []
        if more is not None:
            given += more.items if isinstance(more, ListNode) else [more]
        made: list[Node] = []
        for node in given:
            check = check_of(node, self._source)
            run = check.entries.get("run") if isinstance(check, MapNode) else check
            goal = self._own.get("goal") if not made else None
            said = goal if isinstance(goal, ScalarNode) else run
            made.append(mapping(node, {"description": said, "check": check} if said else {"check": check}))
        rest = self._own.get("objectives")
        if rest is None:
            return ListNode(made, *at(made[0])[:2]) if made else None
        if isinstance(rest, ListNode):
            rest.items[:0] = made
        return rest

    def _dependencies(self) -> Node | None:
        section = self._own.get("dependencies")
        if "needs" not in self._own:
            return section
        made = needs(self._own["needs"], self._source)
        if isinstance(section, ListNode):
            section = mapping(section, {"required": section})
        out = section if isinstance(section, MapNode) else MapNode(*at(self._own["needs"]))
        for kind, names in made.items():
            there = out.entries.get(kind)
            if there is None or absent(there):
                out.put(ScalarNode(kind, *at(self._keys["needs"])), names)
                continue
            edges = _edges(there)
            for name, edge in names.entries.items():
                items = [mapping(names.keys[name], {})]
                items[0].put(names.keys[name], edge)
                edges.items += items
            out.entries[kind] = edges
        return out

    def _security(self) -> Node | None:
        section = self._section("security", "{sandbox: true}")
        grants = self._merged("grants", "{read: [.], run: [python3]}")
        if grants is not None:
            asked = list(requests(grants, self._source))
            there = section.entries.get("capabilities_required")
            if there is None or absent(there):
                key = ScalarNode("capabilities_required", *at(self._keys["grants"]))
                section.put(key, ListNode(asked, grants.line, grants.column))
            elif isinstance(there, ListNode):
                there.items[:0] = asked
            else:
                section.entries["capabilities_required"] = ListNode([*asked, there], there.line, there.column)
        bounds = self._merged("limits", "{cost: $1, time: 30m}")
        if bounds is not None:
            self._limits(section, bounds)
        for name in ("sandbox", "enforcement"):
            if (value := self._either(name)) is not None:
                self._into(section, name, name, value, "security")
        return section if section.entries else None

    def _limits(self, section: MapNode, bounds: MapNode) -> None:
        made, self._repairs = limits(bounds, self._source)
        there = section.entries.get("resource_limits")
        if not isinstance(there, MapNode):
            section.put(ScalarNode("resource_limits", *at(self._keys["limits"])), made)
            return
        own = self._own.get("limits")
        mine = own.entries.values() if isinstance(own, MapNode) else ()
        for name, value in made.entries.items():
            if name not in there.entries:
                there.put(made.keys[name], value)
            elif value in mine:
                message = f"{quoted(name)} is given twice: in limits and in security.resource_limits"
                label = f"also on line {there.keys[name].line}"
                self._source.add("TK1006", message, at(made.keys[name]), label=label)

    def _merged(self, name: str, example: str) -> MapNode | None:
        """A mapping of the agent over that of the defaults, in the order of the defaults; None without both."""
        own, shared = self._own.get(name), self._shared.get(name)
        for node in (own, shared):
            if node is not None and not is_mapping(node, name, example, self._source):
                return None
        out = MapNode(*at(own or shared or self._key))
        for node in (shared, own):
            for key, value in node.entries.items() if isinstance(node, MapNode) else ():
                out.put(node.keys[key], value) if isinstance(node, MapNode) else None
        return out if own is not None or shared is not None else None

    def _flow(self) -> MapNode | None:
        section = self._section("flow")
        if "outputs" in self._own:
            made = self._own["outputs"]
            if is_mapping(made, "outputs", "{NAME: {from: stdout}}", self._source) and isinstance(made, MapNode):
                self._into(section, "outputs", "outputs", outputs(made, self._source), "flow")
        for name in _FLOW:
            value = self._merged("env", "{NAME: value}") if name == "env" else self._own.get(name)
            if name == "approve" and value is not None and truth(value) is not None:
                told = "approve is the question that a person is asked"
                self._source.add("TK2002", told, at(value), label='expected such as "Merge the repairs?"')
            elif value is not None:
                self._into(section, name, name, value, "flow")
        if self._repairs is not None:
            self._into(section, "repairs", "limits", self._repairs, "flow")
        if self._refers is False:
            for key in section.keys.values():
                message = f"{quoted(key.text)} needs references, which this agent does without"
                self._source.add("TK2015", message, at(key), help="remove references: false, and write $${ for ${")
            return None
        self._add_inputs(section)
        return section if section.entries or self._values.live or self._refers else None

    def _add_inputs(self, section: MapNode) -> None:
        """The values of the inputs that its texts name."""
        used: dict[str, Any] = self._values.used
        there = section.entries.get("inputs")
        given = there if isinstance(there, MapNode) else None
        if not used or (there is not None and given is None):
            return
        out = given or MapNode(*at(self._key))
        for name, value in used.items():
            if name not in out.entries:
                out.put(ScalarNode(name, *at(self._key)), node_of(value, at(self._key)))
        if given is None:
            section.put(ScalarNode("inputs", *at(self._key)), out)


def _inputs_of(flow: Node | None) -> dict[str, Any]:
    """The inputs that an agent has of its own."""
    inputs = flow.entries.get("inputs") if isinstance(flow, MapNode) else None
    return {name: plain(node) for name, node in inputs.entries.items()} if isinstance(inputs, MapNode) else {}


def _edges(node: Node) -> ListNode:
    """Dependencies in any spelling, as a list of them."""
    if isinstance(node, ListNode):
        return node
    if isinstance(node, MapNode):
        items: list[Node] = []
        for name, value in node.entries.items():
            one = MapNode(*at(node.keys[name]))
            one.put(node.keys[name], value)
            items.append(one)
        return ListNode(items, node.line, node.column)
    return ListNode([node], node.line, node.column)
