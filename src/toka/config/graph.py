"""Graphs of names that wait for each other (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=str)


def find_cycles(edges: Mapping[K, Iterable[K]]) -> tuple[tuple[K, ...], ...]:
    """Finds circles.

    Args:
        edges: for each name, the names it waits for. Names that are no key have no edges.

    Returns:
        One shortest circle for each group of names that wait for each other, as a closed path (`a, b, c, a`) that
        starts at the group's first name in the order of `edges`; groups in that order too. Empty when all could be
        started in some order.
    """
    graph = {name: [t for t in dict.fromkeys(targets) if t in edges] for name, targets in edges.items()}
    rank = {name: place for place, name in enumerate(graph)}
    out: list[tuple[K, ...]] = []
    for group in _components(graph):
        start = min(group, key=rank.__getitem__)
        if len(group) > 1 or start in graph[start]:
            out.append(_circle(graph, start, set(group)))
    return tuple(sorted(out, key=lambda path: rank[path[0]]))


def cycle_text(path: Iterable[str]) -> str:
    """`a -> b -> c -> a`."""
    return " -> ".join(path)


def _components(graph: Mapping[K, list[K]]) -> list[list[K]]:
    """Strongly connected components, after Tarjan (1972), without recursion."""
    index: dict[K, int] = {}
    low: dict[K, int] = {}
    open_names: list[K] = []
    on_stack: set[K] = set()
    out: list[list[K]] = []
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(graph[root]))]
        while work:
            name, targets = work[-1]
            if name not in index:
                index[name] = low[name] = len(index)
                open_names.append(name)
                on_stack.add(name)
            step = next(targets, None)
            if step is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    group = [open_names.pop()]
                    while group[-1] != name:
                        group.append(open_names.pop())
                    on_stack.difference_update(group)
                    out.append(group)
            elif step not in index:
                work.append((step, iter(graph[step])))
            elif step in on_stack:
                low[name] = min(low[name], index[step])
    return out


def _circle(graph: Mapping[K, list[K]], start: K, group: set[K]) -> tuple[K, ...]:
    """The shortest way from `start` back to itself inside its group, breadth first."""
    came: dict[K, K] = {}
    front = [start]
    while front:
        following: list[K] = []
        for name in front:
            for target in graph[name]:
                if target == start:
                    path = [name]
                    while path[-1] != start:
                        path.append(came[path[-1]])
                    return (*reversed(path), start)
                if target in group and target not in came:
                    came[target] = name
                    following.append(target)
        front = following
    raise AssertionError("a group of more than one name always has a circle")
