"""Inputs in those texts of a team file that are settled before anything runs, and a look at those that are not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from toka.config.diagnostics import Nearest, quoted
from toka.config.nodes import ListNode, MapNode, Node, ScalarNode, at, node_of
from toka.config.source import Source
from toka.core.reference import Malformed, Reference, as_text, find_references, only_reference, substitute

NO_REFERENCE: Final = "write $${ for the two characters as they are; in a command, $NAME is the shell's own variable"
_NOTHING: Final[frozenset[str]] = frozenset()


class Substitution:
    """Puts the values of inputs in; one for each agent.

    Attributes:
        used: the inputs that texts name which are resolved while the agent runs.
        live: whether such a text holds a reference or an escaped one.
    """

    def __init__(
        self, declared: Collection[str], values: Mapping[str, Any], source: Source, near: Nearest | None = None
    ) -> None:
        self._declared = declared
        self._values = values
        self._source = source
        self._near = near or Nearest(declared)
        self.used: dict[str, Any] = {}
        self.live = False

    def walk(self, node: Node, live: Collection[str] = _NOTHING, *, bare: bool = False, decides: bool) -> Node | None:
        """A node with the values of inputs; it shares no list and no mapping with what was given.

        Args:
            node: as written.
            live: keys whose single values and lists are resolved later: they stay as they are.
            bare: whether texts in lists, and the node itself, are such too.
            decides: whether these texts decide what is granted, or only say something.

        Returns:
            None when nothing is left of it, because an input has no value or a reference cannot stand there.
        """
        if isinstance(node, ScalarNode):
            return self.kept(node) if bare else self._scalar(node, decides=decides)
        if isinstance(node, ListNode):
            items: list[Node] = []
            lost = False
            for item in node.items:
                inner = self.walk(item, live, bare=bare, decides=decides)
                lost |= inner is None
                spliced = isinstance(item, ScalarNode) and isinstance(inner, ListNode)
                items += inner.items if spliced and isinstance(inner, ListNode) else [inner] if inner else []
            return ListNode(items, node.line, node.column) if items or not lost else None
        out = MapNode(*at(node))
        for name, value in node.entries.items():
            if name in live and not isinstance(value, MapNode):
                inner = self.kept(value)
            else:
                inner = self.walk(value, live, bare=bare and not isinstance(value, ScalarNode), decides=decides)
            if inner is not None:
                out.put(node.keys[name], inner)
        return out

    def kept(self, node: Node) -> Node:
        """A text, or texts, that are resolved while the agent runs; notes which inputs they name."""
        if isinstance(node, ListNode):
            return ListNode([self.kept(item) for item in node.items], node.line, node.column)
        if isinstance(node, MapNode):
            out = MapNode(*at(node))
            for name, value in node.entries.items():
                out.put(node.keys[name], self.kept(value))
            return out
        if "${" in node.text:
            self.live = True
            for each in find_references(node.text):
                if isinstance(each, Reference) and each.kind == "input":
                    known = self._known(each, node)
                    self.used[each.name] = self._values.get(each.name, "") if known else ""
        return node

    def _known(self, reference: Reference, node: Node) -> bool:
        if reference.name in self._declared:
            return True
        message = f"this team declares no input {quoted(reference.name)}"
        near = self._near.to(reference.name) or f"declare it: inputs: {{{reference.name}: ...}}"
        self._source.add("TK2017", message, self._source.within(at(node), reference.text), help=near)
        return False

    def _scalar(self, node: ScalarNode, *, decides: bool) -> Node | None:
        if "${" not in node.text:
            return node
        sound = True
        for each in find_references(node.text):
            place = self._source.within(at(node), each.text, node.text[: each.start].count(each.text))
            if isinstance(each, Malformed):
                message = f"{quoted(each.text)} is no reference"
                self._source.add("TK2014", message, place, help=NO_REFERENCE)
                sound = False
            elif each.kind == "input":
                sound = self._known(each, node) and each.name in self._values and sound
            else:
                self._refuse(each, place, decides=decides)
                sound = False
        if not sound:
            return None
        alone = only_reference(node.text)
        if alone is not None:
            return node_of(self._values[alone.name], at(node))
        return ScalarNode(substitute(node.text, lambda r: as_text(self._values[r.name])), *at(node))

    def _refuse(self, reference: Reference, place: tuple[int, int, int], *, decides: bool) -> None:
        if reference.kind == "secret":
            message = f"the secret {reference.text} cannot stand here"
            self._source.add("TK4007", message, place, help="a secret is given to commands by env: {NAME: ...}")
        elif decides:
            message = f"{reference.text} comes from a model or a tool and cannot decide what is granted"
            self._source.add("TK4006", message, place, help="write it out, or make it an input")
        else:
            message = f"{reference.text} is not known before the agent runs; here only inputs can stand"
            self._source.add("TK2015", message, place, help="name it in goal, run, tasks, check, env or approve")
