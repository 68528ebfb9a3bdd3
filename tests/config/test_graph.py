"""Circles are found exactly where there are some."""

from __future__ import annotations

from itertools import pairwise, permutations

from hypothesis import given
from hypothesis import strategies as st

from toka.config.graph import cycle_text, find_cycles

nodes = st.sampled_from("abcde")
graphs = st.dictionaries(nodes, st.lists(nodes, max_size=3), max_size=5)


def brute_force(edges: dict[str, list[str]]) -> list[frozenset[str]]:
    """All sets of names that form a circle, by trying every order of every subset."""
    out: set[frozenset[str]] = set()
    for size in range(1, len(edges) + 1):
        for path in permutations(edges, size):
            if all(b in edges[a] for a, b in pairwise((*path, path[0]))):
                out.add(frozenset(path))
    return list(out)


@given(graphs)
def test_finds_a_circle_exactly_where_there_is_one(edges: dict[str, list[str]]) -> None:
    found = find_cycles(edges)
    expected = brute_force(edges)
    assert bool(found) == bool(expected)
    for cycle in found:
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1
        assert all(b in edges[a] for a, b in pairwise(cycle))
    covered = [set(c) for c in found]
    stuck = set().union(*expected) if expected else set()
    for name in stuck:
        around = [set(c) for c in expected if name in c]
        assert any(c & other for c in around for other in covered) or any(
            _reachable(edges, name, one) and _reachable(edges, one, name) for c in covered for one in c
        )


def _reachable(edges: dict[str, list[str]], start: str, goal: str) -> bool:
    seen, front = {start}, [start]
    while front:
        for target in edges.get(front.pop(), ()):
            if target == goal:
                return True
            if target not in seen and target in edges:
                seen.add(target)
                front.append(target)
    return False


@given(graphs)
def test_the_circle_shown_is_a_shortest_one_through_its_first_name(edges: dict[str, list[str]]) -> None:
    for cycle in find_cycles(edges):
        through = [len(c) for c in brute_force(edges) if cycle[0] in c]
        assert len(cycle) - 1 == min(through)


def test_groups_are_reported_once_each_in_order() -> None:
    edges = {"x": ["y"], "y": ["x", "z"], "z": ["z"], "q": ["x"]}
    assert find_cycles(edges) == (("x", "y", "x"), ("z", "z"))
    assert cycle_text(("x", "y", "x")) == "x -> y -> x"


def test_long_chains_need_no_recursion() -> None:
    count = 20_000
    chain = {str(n): [str(n + 1)] for n in range(count)}
    assert find_cycles(chain) == ()
    chain[str(count)] = ["0"]
    (cycle,) = find_cycles(chain)
    assert len(cycle) == count + 2
