"""Short forms of a team file -> the sections of a spec: grants, limits, needs, outputs, commands.

Nodes go in and come out, so that each finding has its place in the team file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, get_args

from toka.config.diagnostics import closest, did_you_mean, one_of, quoted
from toka.config.flow import ValueType
from toka.config.nodes import ListNode, MapNode, Node, ScalarNode, absent, at, mapping, value_of
from toka.config.source import Source
from toka.config.team_keys import GRANTS, LIMITS, NEED, OUTPUT
from toka.core.capability import ARGUMENTS, Capability
from toka.core.catalogue import ALIASES, GIT_ACCESS, PRESETS, PRIMITIVES, known_names
from toka.core.shellwords import line_of_words

CAPABILITIES: Final = {
    "read": "filesystem-read", "write": "filesystem-write", "run": "command-execution", "network": "network-access",
    "git": GIT_ACCESS, "python": "python-execution", "cargo": "cargo-execution", "node": "node-execution",
    "make": "make-execution", "script": "script-execution", "database": "database-access",
    "github-api": "github-api-access",
}  # fmt: skip
"""What each short name of a grant stands for."""
TYPES: Final[tuple[str, ...]] = get_args(ValueType)
_GIT: Final = {"commit": GIT_ACCESS, "read": "filesystem-read"}
_NONE: Final = "…"
"""Stands for a command, after a finding that there is none."""
_EVERYTHING: Final = frozenset({"yes", "no", "on", "off", "all", "any", "everything", "none", "workspace", "*"})
"""Words that say how much, where a name is expected."""
_LONG_LIMITS: Final = {long: short for short, (long, _) in LIMITS.items()}


def is_mapping(node: Node, what: str, example: str, source: Source) -> bool:
    """Whether it is a mapping; a finding says so when it is not."""
    if isinstance(node, MapNode):
        return True
    source.add("TK2002", f"{what} must be a mapping", at(node), label=f"expected such as {example}")
    return False


def check_keys(node: MapNode, known: Collection[str], source: Source, what: str = "key") -> Iterator[str]:
    """The known keys of a mapping that have a value; a finding for each that is not known."""
    lines = [key.line for key in node.keys.values()]
    for name, value in node.entries.items():
        if name in known:
            if not absent(value):
                yield name
        else:
            told = did_you_mean(name, known)
            if told is None and absent(value) and lines.count(node.keys[name].line) > 1:
                told = "inside { } a comma ends a value: put quotes around a text that holds one"
            source.add("TK2003", f"unknown {what} {quoted(name)}", at(node.keys[name]), help=told)


def truth(node: Node) -> bool | None:
    """true or false; None when it is neither."""
    value = value_of(node) if isinstance(node, ScalarNode) else None
    return value if isinstance(value, bool) else None


def command(node: Node, source: Source) -> Node:
    """A command: text as it is, a list of words as the command line of these words."""
    if not isinstance(node, ListNode):
        return node
    words = [item.text for item in node.items if isinstance(item, ScalarNode) and not absent(item)]
    if len(words) != len(node.items) or not words:
        label = "expected such as [python3, -m, unittest]"
        source.add("TK2002", "a command is text, or a list of at least one word", at(node), label=label)
        words = words or [_NONE]
    return ScalarNode(line_of_words(words), *at(node))


def check_of(node: Node, source: Source) -> Node:
    """One check; its command may be words."""
    if isinstance(node, MapNode) and "run" in node.entries:
        node.entries["run"] = command(node.entries["run"], source)
        return node
    if isinstance(node, MapNode):
        if not any(closest(name, ("run",)) for name in node.entries):
            source.add("TK2001", "the check has no command", at(node), label="expected such as {run: make test}")
        node.put(ScalarNode("run", *at(node)), ScalarNode(_NONE, *at(node)))
        return node
    return command(node, source)


def requests(grants: MapNode, source: Source) -> Iterator[Node]:
    """The requests of a mapping of grants, in its order, as items of `capabilities_required`."""
    for name, given in grants.entries.items():
        key = grants.keys[name]
        capability = CAPABILITIES.get(name, name)
        if truth(given) is False:
            continue
        if name == "git" and isinstance(given, ScalarNode) and truth(given) is None:
            if given.text not in _GIT:
                near = did_you_mean(given.text, _GIT)
                message = f"unknown word {quoted(given.text)}"
                source.add("TK2004", message, at(given), label="expected commit, read or true", help=near)
                continue
            capability, given = _GIT[given.text], ScalarNode("true", *at(given), bare=True)
        if name not in CAPABILITIES and name not in known_names() and (near := closest(name, GRANTS)):
            source.add("TK2003", f"unknown grant {quoted(name)}", at(key), help=f'did you mean "{near}"?')
            continue
        asked = ScalarNode(capability, *at(key))
        if truth(given):
            yield asked
            continue
        arguments = given if isinstance(given, MapNode) else _argument(name, capability, given, source)
        if arguments is not None:
            out = MapNode(*at(key))
            out.put(asked, arguments)
            yield out


def grant_line(capability: Capability) -> str:
    """What an agent of a team would say to ask for it: `grants: {write: [docs]}`."""
    name = next((short for short, long in CAPABILITIES.items() if long == capability.name), capability.name)
    given = {a: items for a in ARGUMENTS if (items := getattr(capability, a)) not in (None, ("443",))}
    if not given:
        return f"grants: {{{name}: true}}"
    if list(given) == [first_argument(capability.name)]:
        return f"grants: {{{name}: [{', '.join(*given.values())}]}}"
    arguments = ", ".join(f"{argument}: [{', '.join(items)}]" for argument, items in given.items())
    return f"grants: {{{name}: {{{arguments}}}}}"


def _argument(name: str, capability: str, given: Node, source: Source) -> Node | None:
    """The one argument that a list, or one text, stands for."""
    first = first_argument(capability)
    if isinstance(given, ScalarNode) and given.text.casefold() in _EVERYTHING:
        help_ = f"write {name}: true for everything, {name}: false for nothing, [{given.text}] for what is called so"
        source.add("TK2002", f"{quoted(given.text)} is a name here", at(given), help=help_)
    elif absent(given):
        help_ = f"write {name}: true for all of it"
        source.add("TK2002", f"the grant {quoted(name)} says nothing", at(given), help=help_)
    elif first is None:
        known = capability in PRIMITIVES or capability in PRESETS
        label = "expected true" if known else f"expected true, or a mapping such as {{{ARGUMENTS[0]}: [src]}}"
        help_ = None if known else f"usual grants: {one_of(GRANTS)}"
        message = f"what {quoted(name)} is narrowed to has to be named"
        source.add("TK2002", message, at(given), label=label, help=help_)
    else:
        return mapping(given, {first: given})
    return None


def first_argument(capability: str) -> str | None:
    """What a list narrows a capability to: paths, programs or hosts; None when it takes nothing or nobody knows it."""
    target = ALIASES.get(capability, capability)
    names = [target, *(preset.name for preset in PRESETS.get(target, ()))]
    return next((PRIMITIVES[name][0] for name in names if PRIMITIVES.get(name)), None)


def limits(node: MapNode, source: Source) -> tuple[MapNode, Node | None]:
    """`resource_limits`, and how many repairs."""
    out = MapNode(*at(node))
    repairs = None
    for name, value in node.entries.items():
        key = node.keys[name]
        if name not in LIMITS:
            near = _LONG_LIMITS.get(name) or closest(name, LIMITS)
            help_ = f'did you mean "{near}"?' if near else f"known: {one_of(LIMITS)}"
            source.add("TK2003", f"unknown limit {quoted(name)}", at(key), help=help_)
        elif absent(value):
            continue
        elif name == "repairs":
            repairs = value
        else:
            out.put(ScalarNode(LIMITS[name][0], *at(key)), value)
    return out, repairs


def needs(node: Node, source: Source) -> dict[str, MapNode]:
    """`dependencies.required` and `.optional`."""
    out = {"required": MapNode(*at(node)), "optional": MapNode(*at(node))}
    for key, value in _needed(node, source):
        kind = "required"
        edge = MapNode(*at(key))
        if isinstance(value, MapNode):
            for name in check_keys(value, NEED, source):
                inner = value.entries[name]
                if name != "optional":
                    edge.put(value.keys[name], inner)
                elif (optional := truth(inner)) is None:
                    source.add("TK2002", "optional is true or false", at(inner))
                elif optional:
                    kind = "optional"
        elif not absent(value):
            edge.put(ScalarNode("reason", *at(key)), value)
        taken = next((section for section in out.values() if key.text in section.entries), None)
        if taken is not None:
            first = taken.keys[key.text].line
            source.add("TK1006", f"{quoted(key.text)} twice", at(key), label=f"first on line {first}")
        else:
            out[kind].put(key, edge)
    return {kind: section for kind, section in out.items() if section.entries}


def _needed(node: Node, source: Source) -> Iterator[tuple[ScalarNode, Node]]:
    if isinstance(node, MapNode):
        yield from ((node.keys[name], value) for name, value in node.entries.items())
        return
    for item in node.items if isinstance(node, ListNode) else [node]:
        if isinstance(item, MapNode):
            yield from _needed(item, source)
        elif isinstance(item, ScalarNode) and not absent(item):
            yield item, MapNode(*at(item))
        else:
            label = "expected a name, or NAME: {verified: true}"
            source.add("TK2002", "this names no agent", at(item), label=label)


def outputs(node: MapNode, source: Source) -> MapNode:
    """`flow.outputs`. A text alone says where the value comes from."""
    out = MapNode(*at(node))
    for name, value in node.entries.items():
        one = MapNode(*at(node.keys[name]))
        if isinstance(value, MapNode):
            for key in check_keys(value, OUTPUT, source):
                one.put(ScalarNode(OUTPUT[key][0], *at(value.keys[key])), value.entries[key])
            if "source" not in one.entries and not any(key not in OUTPUT for key in value.entries):
                message = f"the output {quoted(name)} does not say where it comes from"
                source.add("TK2001", message, at(node.keys[name]), label="expected from: stdout, file or report")
                one.put(ScalarNode("source", *at(node.keys[name])), ScalarNode("stdout", *at(node.keys[name])))
        elif isinstance(value, ScalarNode) and value.text in TYPES:
            message = f"the output {quoted(name)} does not say where it comes from"
            help_ = f"write {{from: stdout, as: {value.text}}}"
            source.add("TK2001", message, at(value), label="expected stdout, file or report", help=help_)
            one.put(ScalarNode("source", *at(value)), ScalarNode("stdout", *at(value)))
            one.put(ScalarNode("type", *at(value)), value)
        elif isinstance(value, ScalarNode) and not absent(value):
            one.put(ScalarNode("source", *at(value)), value)
        else:
            is_mapping(value, f"the output {quoted(name)}", "{from: stdout, as: lines}", source)
            continue
        out.put(node.keys[name], one)
    return out
