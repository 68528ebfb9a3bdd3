"""Every spelling of a spec -> one canonical spelling, still as nodes with positions.

Two generations of specs exist, and each section has short forms. This module knows them all, so that the models in
`parts` and `tasks` know one. It also decides what happens to keys that the schema does not know.

| section | also accepted | canonical |
| --- | --- | --- |
| tasks | a list; entries that are bare text | mapping with `default`; entries are mappings |
| objectives | entries that are bare text; `check: COMMAND` | mappings; `check: {run: COMMAND}` |
| dependencies | a list; lists of `name: reason`; bare names; nothing | `name: {reason, verified}` |
| reporting.metrics | list of `name: text`; mapping; bare names | list of `{name, description, type, unit}` |
| security.capabilities_required | bare names; `name: {paths: ...}`; a mapping | list of `{name, arguments}` |
| behavioral_directives, success_criteria | a list; bare text | mapping of lists |
| any list of texts | one text | a list with it |
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from pydantic import BaseModel

from toka.config import flow, parts, tasks
from toka.config.codes import Severity
from toka.config.diagnostics import closest, quoted
from toka.config.fields import keys_of
from toka.config.nodes import ListNode, MapNode, Node, ScalarNode, absent, at, value_of
from toka.config.source import Source

CAPABILITY_LIST: Final = "capabilities_required"
SECTIONS: Final = (
    "metadata", "spec", "model", "restart", "workspace", "capabilities", "objectives", "tasks", "dependencies",
    "reporting", "security", "flow", "behavioral_directives", "risk_mitigation", "success_criteria",
)  # fmt: skip
"""The sections that Toka knows. Every other one is an extension."""
GUARDED: Final = frozenset({"security", "tasks", "dependencies", "objectives"})
"""Sections whose misspelled name is an error: the section would silently be dropped."""

Known = Collection[str]


def canonical(root: Node, source: Source) -> MapNode | None:
    """Rewrites a spec into canonical form; findings go to `source`. None when it is no mapping at all.

    Unknown sections are collected, in order, under the key `extensions`.
    """
    if not isinstance(root, MapNode):
        source.add("TK2002", "a spec is a mapping of sections", at(root), label="expected such as metadata:")
        return None
    out = MapNode(root.line, root.column)
    extensions = MapNode(root.line, root.column)
    writer = _Writer(source)
    for name, value in root.entries.items():
        key = root.keys[name]
        if name in SECTIONS:
            if not absent(value):
                out.put(key, writer.section(name, value))
            continue
        near = closest(name, SECTIONS, 0.85)
        if near is not None and near not in root.entries:
            severity: Severity = "error" if near in GUARDED else "warning"
            writer.unknown(key, "section", near, severity)
        extensions.put(key, value)
    out.put(ScalarNode("extensions", root.line, root.column), extensions)
    return out


class _Writer:
    """Rewrites sections; one method for each spelling rule."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rules: dict[str, Callable[[Node], Node]] = {
            "metadata": self._metadata,
            "spec": lambda n: self._checked(n, parts.AgentSpec),
            "capabilities": lambda n: self._lists(self._checked(n, parts.Skills)),
            "objectives": lambda n: self._each(n, self._objective),
            "tasks": self._tasks,
            "dependencies": self._dependencies,
            "reporting": self._reporting,
            "security": self._security,
            "flow": self._flow,
            "behavioral_directives": lambda n: self._lists(self._grouped(n, "general")),
            "success_criteria": lambda n: self._lists(self._grouped(n, "criteria")),
            "risk_mitigation": self._risks,
        }

    def section(self, name: str, value: Node) -> Node:
        """The canonical form of one known section."""
        rule = self.rules.get(name)
        return rule(value) if rule else value

    def unknown(self, key: ScalarNode, what: str, near: str | None, severity: Severity) -> None:
        """Reports a key that the schema does not know."""
        told = f'did you mean "{near}"?' if near else None
        self.source.add("TK2003", f"unknown {what} {quoted(key.text)}", at(key), help=told, severity=severity)

    def _checked(self, node: Node, model: type[BaseModel], *, near: Severity = "warning") -> Node:
        """Reports unknown keys: errors where the model forbids them (they are dropped), else `near` or a warning."""
        if not isinstance(node, MapNode):
            return node
        known = keys_of(model)
        closed = model.model_config.get("extra") == "forbid"
        out = MapNode(node.line, node.column)
        for name, value in node.entries.items():
            key = node.keys[name]
            if name not in known:
                meant = closest(name, known)
                self.unknown(key, "key", meant, "error" if closed else near if meant else "warning")
                if closed:
                    continue
            elif absent(value) and not model.model_fields[name].is_required():
                continue
            out.put(key, value)
        return out

    def _metadata(self, node: Node) -> Node:
        """Further keys of metadata are welcome; only those that look like a known one are reported."""
        if not isinstance(node, MapNode):
            return node
        known = keys_of(parts.Metadata)
        for name, key in node.keys.items():
            if name not in known and (near := closest(name, known, 0.85)) and near not in node.entries:
                self.unknown(key, "key", near, "warning")
        return _without_absent(node, keep=("name",))

    def _objective(self, node: Node) -> Node:
        node = self._checked(_as_map(node, "description"), parts.Objective, near="error")
        return self._inside(node, "check", lambda n: self._checked(_as_map(n, "run"), parts.Check))

    def _task(self, node: Node) -> Node:
        node = self._checked(_as_map(node, "description"), tasks.TaskEntry)
        return self._inside(node, "depends_on", _as_list)

    def _tasks(self, node: Node) -> Node:
        if isinstance(node, ListNode):
            node = _map(node, "default", node)
        node = self._checked(node, tasks.Tasks)
        node = self._inside(node, "default", lambda n: self._each(n, self._task))
        return self._inside(node, "conditional", self._groups)

    def _groups(self, node: Node) -> Node:
        if not isinstance(node, MapNode):
            return node
        out = MapNode(node.line, node.column)
        for name, value in node.entries.items():
            group = ListNode([], value.line, value.column) if absent(value) else self._each(value, self._task)
            out.put(node.keys[name], group)
        return out

    def _dependencies(self, node: Node) -> Node:
        if isinstance(node, ListNode):
            node = _map(node, "required", node)
        node = self._checked(node, parts.Dependencies)
        for kind in ("required", "optional"):
            node = self._inside(node, kind, lambda n: self._named(n, self._dependency))
        return node

    def _dependency(self, node: Node) -> Node:
        return self._checked(_as_map(node, "reason"), parts.Dependency)

    def _reporting(self, node: Node) -> Node:
        node = self._checked(node, parts.Reporting)
        node = self._inside(node, "channels", _as_list)
        return self._inside(node, "metrics", self._metrics)

    def _metrics(self, node: Node) -> Node:
        named = self._named(node, lambda n: self._checked(_as_map(n, "description"), parts.Metric))
        if not isinstance(named, MapNode):
            return named
        return ListNode([_entry(named, name) for name in named.entries], node.line, node.column)

    def _security(self, node: Node) -> Node:
        node = self._checked(node, parts.Security)
        node = self._inside(node, "resource_limits", lambda n: self._checked(n, parts.ResourceLimits))
        return self._inside(node, CAPABILITY_LIST, self._capabilities)

    def _capabilities(self, node: Node) -> Node:
        """Entries keep their order and may repeat a name: two requests of one name are alternatives."""
        if isinstance(node, MapNode):
            items = [self._capability(node.keys[k], v) for k, v in node.entries.items()]
        elif isinstance(node, ListNode):
            items = [c for item in node.items for c in self._requests(item)]
        else:
            items = [self._capability(node, None)]
        return ListNode(items, node.line, node.column)

    def _requests(self, item: Node) -> list[Node]:
        if isinstance(item, ScalarNode):
            return [self._capability(item, None)]
        if isinstance(item, MapNode):
            return [self._capability(item.keys[k], v) for k, v in item.entries.items()]
        return [item]

    def _capability(self, name: ScalarNode, arguments: Node | None) -> Node:
        out = MapNode(*at(name))
        out.put(ScalarNode("name", name.line, name.column), name)
        if arguments is None:
            return out
        if not isinstance(arguments, MapNode):
            # `filesystem-write:` with nothing behind it may be half a sentence: the whole workspace is not guessed.
            self.source.add(
                "TK2002",
                f"the arguments of {quoted(name.text)} are a mapping",
                at(arguments),
                label="expected such as {paths: [src]}",
                help="without the colon, the name alone asks for all of it",
            )
            return out
        out.put(ScalarNode("arguments", arguments.line, arguments.column), self._lists(arguments))
        return out

    def _flow(self, node: Node) -> Node:
        node = self._checked(node, flow.Flow)
        node = self._inside(node, "outputs", lambda n: self._named(n, lambda o: self._checked(o, flow.Output)))
        node = self._inside(node, "when", _as_list)
        node = self._inside(node, "env", _as_texts)
        return self._inside(node, "approve", lambda n: self._checked(_as_map(n, "question"), flow.Approval))

    def _risks(self, node: Node) -> Node:
        node = self._checked(node, parts.RiskMitigation)
        node = self._inside(node, "monitoring", _as_list)
        return self._inside(node, "high_priority_risks", lambda n: self._each(n, self._risk))

    def _risk(self, node: Node) -> Node:
        return self._checked(_as_map(node, "risk"), parts.Risk)

    def _grouped(self, node: Node, name: str) -> Node:
        return node if isinstance(node, MapNode) else _map(node, name, node)

    def _lists(self, node: Node) -> Node:
        """A mapping whose values are lists; one text stands for a list with it."""
        if not isinstance(node, MapNode):
            return node
        out = MapNode(node.line, node.column)
        for name, value in node.entries.items():
            out.put(node.keys[name], _as_list(value))
        return out

    def _each(self, node: Node, rule: Callable[[Node], Node]) -> Node:
        if not isinstance(node, ListNode):
            return node
        return ListNode([rule(item) for item in node.items], node.line, node.column)

    def _inside(self, node: Node, name: str, rule: Callable[[Node], Node]) -> Node:
        """Applies a rule to one entry, if it is there. The node was built here, so it may be changed."""
        if isinstance(node, MapNode) and name in node.entries:
            node.entries[name] = rule(node.entries[name])
        return node

    def _named(self, node: Node, rule: Callable[[Node], Node]) -> Node:
        """A mapping of names, from a mapping, a list of `NAME: value`, of objects with a `name`, or of bare names."""
        if isinstance(node, MapNode):
            pairs = [(node.keys[k], v) for k, v in node.entries.items()]
        elif isinstance(node, ListNode):
            pairs = [pair for item in node.items for pair in self._pairs(item)]
        else:
            pairs = self._pairs(node)
        out = MapNode(node.line, node.column)
        for key, value in pairs:
            if key.text in out.entries:
                first = out.keys[key.text].line
                self.source.add("TK1006", f"{quoted(key.text)} twice", at(key), label=f"first on line {first}")
            else:
                out.put(key, rule(value))
        return out

    def _pairs(self, item: Node) -> list[tuple[ScalarNode, Node]]:
        if isinstance(item, ScalarNode) and isinstance(value_of(item, numbers=False), str):
            return [(item, MapNode(item.line, item.column))]
        if isinstance(item, MapNode):
            name = item.entries.get("name")
            if isinstance(name, ScalarNode):
                rest = MapNode(item.line, item.column)
                for key, value in item.entries.items():
                    if key != "name":
                        rest.put(item.keys[key], value)
                return [(name, rest)]
            return [(item.keys[k], v) for k, v in item.entries.items()]
        self.source.add("TK2002", "this is no name", at(item), label="expected a name, or NAME: text")
        return []


def _without_absent(node: MapNode, keep: Collection[str]) -> MapNode:
    out = MapNode(node.line, node.column)
    for name, value in node.entries.items():
        if name in keep or not absent(value):
            out.put(node.keys[name], value)
    return out


def _map(place: Node, name: str, value: Node) -> MapNode:
    out = MapNode(*at(place))
    out.put(ScalarNode(name, place.line, place.column), value)
    return out


def _as_map(node: Node, name: str) -> Node:
    """Bare text becomes a mapping with one entry; nothing becomes an empty mapping."""
    if absent(node):
        return MapNode(node.line, node.column)
    return _map(node, name, node) if isinstance(node, ScalarNode) else node


def _as_list(node: Node) -> Node:
    """One text becomes a list with it; nothing becomes an empty list."""
    if absent(node):
        return ListNode([], node.line, node.column)
    return ListNode([node], node.line, node.column) if isinstance(node, ScalarNode) else node


def _as_texts(node: Node) -> Node:
    """A mapping whose single values are text as it was written: `1.10` stays what it is."""
    if not isinstance(node, MapNode):
        return node
    out = MapNode(*at(node))
    for name, value in node.entries.items():
        if isinstance(value, ScalarNode) and not absent(value):
            value = ScalarNode(value.text, *at(value))
        out.put(node.keys[name], value)
    return out


def _entry(named: MapNode, name: str) -> Node:
    """One entry of a mapping as an object that holds its own name."""
    key, value = named.keys[name], named.entries[name]
    out = MapNode(*at(key))
    out.put(ScalarNode("name", key.line, key.column), key)
    if isinstance(value, MapNode):
        for inner, node in value.entries.items():
            out.put(value.keys[inner], node)
    else:  # the models will refuse it where it stands
        out.put(ScalarNode("description", key.line, key.column), value)
    return out
