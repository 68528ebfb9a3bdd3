"""YAML text -> nodes with positions.

PyYAML's C parser gives events; this module builds its own nodes from them, with the rules of YAML 1.2's core schema
(`no` and `1:30` are text) and with every guard checked before the value is built. PyYAML's own loaders are not used:
they keep the last of duplicate keys silently, guess types, and the C one crashes on deep nesting.
"""

from __future__ import annotations

import re
from typing import Final, Protocol, cast

import yaml as pyyaml
from yaml import events as ev

from toka.config.diagnostics import quoted
from toka.config.lookalike import problem_of
from toka.config.nodes import ListNode, MapNode, Node, ScalarNode, value_of
from toka.config.source import Source

MAX_DEPTH: Final = 64
MAX_VALUES: Final = 50_000
MAX_ALIASED: Final = 200_000
"""Characters and values that all aliases of one file together may stand for."""
MAX_DIRECTIVES: Final = 8
"""The C parser compares each %TAG directive with all others, so thousands of them would take minutes."""


class _Mark(Protocol):
    line: int
    column: int


class _Event(Protocol):
    """What is used of PyYAML's events, as they really are: their stubs allow None everywhere."""

    start_mark: _Mark
    end_mark: _Mark
    anchor: str | None
    tag: str | None


class _Scalar(_Event, Protocol):
    value: str
    implicit: tuple[bool, bool]


class _Document(_Event, Protocol):
    tags: dict[str, str] | None


class _Parser(Protocol):
    def get_event(self) -> _Event | None: ...


class _Frame:
    """A collection that is still open."""

    __slots__ = ("anchor", "height", "key", "node", "weight")

    def __init__(self, node: ListNode | MapNode, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: ScalarNode | None = None
        self.weight = 1
        self.height = 1


class _Stop(Exception):
    """Reading cannot go on; the reason is recorded."""


class _Builder:
    """Turns events into nodes, one document, all guards included."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.root: Node | None = None
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Node, int, int]] = {}
        self.values = 0
        self.aliased = 0
        self.documents = 0

    def take(self, event: _Event) -> None:
        """Handles one event. Raises _Stop after recording why."""
        if isinstance(event, ev.ScalarEvent):
            self._scalar(cast(_Scalar, event))
        elif isinstance(event, (ev.MappingStartEvent, ev.SequenceStartEvent)):
            self._open(event, mapping=isinstance(event, ev.MappingStartEvent))
        elif isinstance(event, (ev.MappingEndEvent, ev.SequenceEndEvent)):
            self._close()
        elif isinstance(event, ev.AliasEvent):
            self._alias(event)
        elif isinstance(event, ev.DocumentStartEvent):
            self._document(cast(_Document, event))

    def _scalar(self, event: _Scalar) -> None:
        start, end = event.start_mark, event.end_mark
        length = end.column - start.column if end.line == start.line else 1
        node = ScalarNode(event.value, start.line + 1, start.column + 1, length, bare=event.implicit[0])
        if event.tag is not None:
            node.bare = False
            self._tag(event.tag, node)
        weight = 1 + len(event.value)
        if event.anchor is not None:
            self.anchors[event.anchor] = (node, weight, 0)
        self._add(node, weight, 0)

    def _open(self, event: _Event, *, mapping: bool) -> None:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if len(self.stack) >= MAX_DEPTH:
            self.source.add("TK1005", f"nested deeper than {MAX_DEPTH} levels", (line, column, 1))
            raise _Stop
        node = MapNode(line, column) if mapping else ListNode([], line, column)
        if event.tag is not None:
            self._tag(event.tag, node)
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)
        self.stack.append(_Frame(node, event.anchor))

    def _close(self) -> None:
        frame = self.stack.pop()
        if frame.anchor is not None:
            self.anchors[frame.anchor] = (frame.node, frame.weight, frame.height)
        self._add(frame.node, frame.weight, frame.height)

    def _alias(self, event: _Event) -> None:
        mark, anchor = event.start_mark, event.anchor or ""
        at = (mark.line + 1, mark.column + 1, len(anchor) + 1)
        found = self.anchors.get(anchor)
        if found is None:
            inside = any(f.anchor == anchor for f in self.stack)
            why = "contains itself" if inside else "names no anchor that stands before it"
            self.source.add("TK1010", f"alias {quoted('*' + anchor)} {why}", at)
            found = (ScalarNode("", *at), 1, 0)
        node, weight, height = found
        if self.stack and isinstance(self.stack[-1].node, MapNode) and self.stack[-1].key is None:
            self.source.add("TK1014", "an alias cannot be a key", at)
            node = ScalarNode(f"*{anchor}", *at)
        self.aliased += weight
        if self.aliased > MAX_ALIASED:
            self.source.add("TK1010", f"aliases stand for more than {MAX_ALIASED:,} characters", at)
            raise _Stop
        if len(self.stack) + height > MAX_DEPTH:
            self.source.add("TK1005", f"nested deeper than {MAX_DEPTH} levels", at)
            raise _Stop
        self._add(node, weight, height)

    def _document(self, event: _Document) -> None:
        self.documents += 1
        at = (event.start_mark.line + 1, event.start_mark.column + 1, 3)
        if self.documents > 1:
            self.source.add("TK1011", "a second document starts here", at, help="put it in a file of its own")
            raise _Stop
        if event.tags:
            self.source.add("TK1009", "%TAG directives are not accepted", at)

    def _tag(self, tag: str, node: Node) -> None:
        at = (node.line, node.column, node.length)
        if tag == "!":
            message = "a ! before a value is a tag of YAML, and would be lost"
            self.source.add("TK1009", message, at, help="put quotes around a text that begins with !")
        elif tag != "tag:yaml.org,2002:str" or not isinstance(node, ScalarNode):
            self.source.add("TK1009", f"tag {quoted(tag)} is not accepted", at, help="remove the tag")

    def _add(self, node: Node, weight: int, height: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            self.source.add("TK1004", f"more than {MAX_VALUES:,} values", (node.line, node.column, 1))
            raise _Stop
        if not self.stack:
            self.root = node
            return
        frame = self.stack[-1]
        frame.weight += weight
        frame.height = max(frame.height, height + 1)
        if isinstance(frame.node, ListNode):
            frame.node.items.append(node)
        elif frame.key is None:
            frame.key = self._key(frame, node)
        else:
            if frame.key.text not in frame.node.entries:
                frame.node.put(frame.key, node)
            frame.key = None

    def _key(self, frame: _Frame, node: Node) -> ScalarNode:
        """Checks a key and returns it; an unusable one is reported and gets a name that nothing else has."""
        at = (node.line, node.column, node.length)
        if not isinstance(node, ScalarNode) or not node.text:
            what = "an empty key" if isinstance(node, ScalarNode) else "a list or mapping as a key"
            self.source.add("TK1014", f"{what} is not accepted; keys are text", at)
            return ScalarNode(f"\0{self.values}", *at)
        key = node.text
        entries = cast(MapNode, frame.node).entries
        if key in entries:
            first = cast(MapNode, frame.node).keys[key]
            self.source.add("TK1006", f"duplicate key {quoted(key)}", at, label=f"first on line {first.line}")
        elif key == "<<" and node.bare:
            self.source.add("TK1008", "merge keys are not part of YAML 1.2", at, help="write the keys out")
        elif problem := problem_of(key):
            self.source.add("TK1007", f"key {quoted(key)} {problem}", at, help="type it again in plain letters")
        return node


def read_nodes(source: Source) -> Node | None:
    """Parses the text of a source.

    Returns:
        The root of its one document; None when there is none or when reading had to stop. Everything that is wrong
        becomes a finding of the source; nothing is raised.
    """
    builder = _Builder(source)
    if len(re.findall(r"(?m)^%", source.text)) > MAX_DIRECTIVES:
        source.add("TK1009", f"more than {MAX_DIRECTIVES} directives", (*source.place(source.text.index("%")), 1))
        return None
    try:
        parser = _parser(source.text)
        while (event := parser.get_event()) is not None and not isinstance(event, ev.StreamEndEvent):
            builder.take(event)
    except _Stop:
        return None
    except pyyaml.MarkedYAMLError as error:
        _syntax(source, error)
        return None
    except pyyaml.YAMLError as error:
        source.add("TK1001", f"not valid YAML: {str(error).splitlines()[0]}", (1, 1, 1))
        return None
    if builder.root is None or (isinstance(builder.root, ScalarNode) and value_of(builder.root) is None):
        source.add("TK1012", "the file holds nothing but blank lines and comments", (1, 1, 1))
        return None
    return builder.root


def _parser(text: str) -> _Parser:
    """The C parser; the pure one, which obeys the same guards, where PyYAML was built without it."""
    if pyyaml.__with_libyaml__:
        return cast(_Parser, pyyaml.CSafeLoader(text))
    return cast(_Parser, pyyaml.SafeLoader(text))


_PLAINER: Final = {
    "mapping values are not allowed": 'a ":" where no key can stand; quote the text if the colon belongs to it',
    "did not find expected key": "the indentation does not line up with the lines above",
    "did not find expected '-' indicator": "the indentation does not line up with the list above",
    "could not find expected ':'": 'a key without a ":" after it',
    "found unexpected end of stream": "a quote or bracket is never closed",
    "found character that cannot start any token": "an unquoted value cannot start with this character",
    "found undefined tag handle": "a tag whose prefix nobody defines",
}


def _syntax(source: Source, error: pyyaml.MarkedYAMLError) -> None:
    mark = error.problem_mark or error.context_mark
    at = (mark.line + 1, mark.column + 1, 1) if mark else (1, 1, 1)
    problem = error.problem or error.context or "unreadable"
    told = next((text for start, text in _PLAINER.items() if problem.startswith(start)), problem)
    line = source.line(at[0])
    if line[at[1] - 1 : at[1]] == "\t":
        told = "a tab cannot be used as indentation"
    where = error.context_mark
    label = f"{error.context}, line {where.line + 1}" if where and error.context else ""
    help_ = "use spaces" if "tab" in told else None
    if "${" in line and "flow" in (error.context or ""):
        help_ = 'inside { } and [ ], put quotes around what holds ${...}: "${...}"'
    source.add("TK1001", told, at, label=label, help=help_)
