"""What still stands of a spec that its models refuse, so that the rules can speak of it in the same pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from toka.config.nodes import ListNode, MapNode, Node, ScalarNode

Path = tuple[str | int, ...]
"""Keys and indexes from the root of a spec."""
UNNAMED: Final = "unnamed"
"""The name of a draft whose own name was refused; `("metadata", "name")` is lost then."""
ROUNDS: Final = 8
"""Taking something out can uncover another error, which is taken out in the next round."""

_NAME: Final = ("metadata", "name")
_WHAT_TO_DO: Final = ("description", "run")


def standing(validate: Callable[[MapNode], object], root: MapNode, error: ValidationError) -> frozenset[Path] | None:
    """Takes out what the models refuse until they accept the rest. `root` is changed.

    Args:
        validate: builds the model from nodes, or raises ValidationError.
        root: the canonical nodes of a spec.
        error: what the models said about them.

    Returns:
        The paths that were taken out; None when the rest still is refused.
    """
    lost: set[Path] = set()
    for _ in range(ROUNDS):
        # From the last to the first, so that the places of earlier list entries stay right.
        gone = [_take_out(root, _target(detail)) for detail in reversed(error.errors(include_url=False))]
        found = {path for path in gone if path is not None}
        if not found:
            return None
        lost |= found
        try:
            validate(root)
        except ValidationError as again:
            error = again
        else:
            return frozenset(lost)
    return None


def without(root: MapNode, paths: Collection[Path]) -> frozenset[Path]:
    """Takes out the list entries in which these paths are, at the third level. `root` is changed.

    Returns:
        The paths that were taken out.
    """
    entries = sorted({path[:3] for path in paths}, reverse=True, key=lambda p: p[-1])
    return frozenset(p for p in (_take_out(root, entry) for entry in entries) if p is not None)


def unreliable(code: str, path: Sequence[str | int], lost: Collection[Path]) -> bool:
    """Whether a finding may be there only because of what was taken out.

    Args:
        code: of the finding.
        path: what it is about.
        lost: the paths that were taken out; empty for a sound spec.
    """
    if code in ("TK2009", "TK3004"):
        return any(p[0] == "tasks" and (len(p) <= 3 or p[-1] == "id") for p in lost)
    if code == "TK2001":
        place = tuple(path)
        return any(p[: len(place)] == place and (p == place or p[-1] in _WHAT_TO_DO) for p in lost)
    if code == "TK4004":
        return any(p[0] == "security" for p in lost)
    return False


def _target(detail: ErrorDetails) -> Path:
    """What to take out for one error: what is refused, or what lacks something."""
    path = tuple(step for step in detail["loc"] if step != "[key]")
    return path[:-1] if detail["type"] == "missing" and path not in (_NAME, ("metadata",), ("spec",)) else path


def _take_out(root: MapNode, path: Path) -> Path | None:
    """Removes the node at a path, or the deepest one on the way to it.

    Returns:
        The path of what was removed; None when there is nothing.
    """
    if path in (("metadata",), _NAME, ("spec",)):
        return _stand_in(root, str(path[0]))
    node: Node = root
    for depth, step in enumerate(path):
        inner = _child(node, step)
        if inner is None:
            return None
        last = depth + 1 == len(path) or _child(inner, path[depth + 1]) is None
        if not last:
            node = inner
        elif isinstance(node, MapNode):
            del node.entries[str(step)], node.keys[str(step)]
            return path[: depth + 1]
        elif isinstance(node, ListNode) and isinstance(step, int):
            if path[0] == "tasks" and "depends_on" not in path:
                # Later tasks are called by their place, so this one keeps its own.
                node.items[step] = _entry(inner, "description", "…")
            else:
                del node.items[step]
            return path[: depth + 1]
    return None


def _stand_in(root: MapNode, section: str) -> Path:
    """Replaces a required section, or the name in it, by one that says nothing."""
    old = root.entries.get(section)
    at = old or root
    if section == "spec":
        root.put(ScalarNode(section, at.line, at.column), MapNode(at.line, at.column))
        return ("spec",)
    rest = old if isinstance(old, MapNode) else MapNode(at.line, at.column)
    rest.put(ScalarNode("name", at.line, at.column), ScalarNode(UNNAMED, at.line, at.column))
    root.put(root.keys.get(section) or ScalarNode(section, at.line, at.column), rest)
    return _NAME


def _entry(old: Node, key: str, text: str) -> MapNode:
    out = MapNode(old.line, old.column)
    out.put(ScalarNode(key, old.line, old.column), ScalarNode(text, old.line, old.column))
    return out


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(node, MapNode):
        return node.entries.get(str(step))
    if isinstance(node, ListNode) and isinstance(step, int) and 0 <= step < len(node.items):
        return node.items[step]
    return None
