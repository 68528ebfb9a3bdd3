"""The resolver against a brute-force oracle over small random graphs."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import agent
from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.errors import ConfigError
from toka.orchestration.dependency import DependencyResolver

NAMES = "abcdef"
PRIORITIES = ("critical", "high", "medium", "low")
PLAIN = {(n, p): agent(n, priority=p) for n, p in product(NAMES, PRIORITIES)}

edges = st.sets(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=9)
priorities = st.fixed_dictionaries({n: st.sampled_from(PRIORITIES) for n in NAMES})


def configs(
    required: set[tuple[str, str]], optional: set[tuple[str, str]], priority: dict[str, str]
) -> list[AgentConfig]:
    out: list[AgentConfig] = []
    for name in NAMES:
        plain = PLAIN[name, priority[name]]
        needs = {
            "required": {on: {} for n, on in sorted(required) if n == name},
            "optional": {on: {} for n, on in sorted(optional) if n == name},
        }
        out.append(plain.model_copy(update={"dependencies": type(plain.dependencies).model_validate(needs)}))
    return out


def circular(pairs: set[tuple[str, str]]) -> bool:
    """No order of the names puts each after what it depends on. `pairs` are (agent, on)."""
    return not any(all(order.index(on) < order.index(name) for name, on in pairs) for order in permutations(NAMES))


def depth(name: str, pairs: set[tuple[str, str]]) -> int:
    return max((depth(on, pairs) + 1 for n, on in pairs if n == name), default=0)


def longest(pairs: set[tuple[str, str]]) -> int:
    return max(depth(n, pairs) for n in NAMES) + 1


@settings(max_examples=150, deadline=None)
@given(required=edges, optional=edges, priority=priorities)
def test_the_graph_is_what_brute_force_finds(
    required: set[tuple[str, str]], optional: set[tuple[str, str]], priority: dict[str, str]
) -> None:
    team = configs(required, optional, priority)
    if circular(required):
        with pytest.raises(ConfigError, match="in a circle: ") as error:
            DependencyResolver(team)
        path = str(error.value).rpartition(": ")[2].split(" -> ")
        assert path[0] == path[-1] and len(set(path)) == len(path) - 1
        assert all((a, b) in required for a, b in pairwise(path)), "the circle that is shown is real"
        return
    graph = DependencyResolver(team)
    kept = {(str(e.agent), str(e.on)) for e in graph.edges}
    assert required <= kept <= required | optional
    assert not circular(kept)
    dropped = optional - kept - {(n, n) for n in NAMES}
    assert all(circular(kept | {edge}) for edge in dropped), "an optional edge is dropped only where it closes a circle"
    assert sorted(graph.order) == sorted(NAMES)
    assert all(graph.order.index(AgentName(on)) < graph.order.index(AgentName(n)) for n, on in kept)
    waves = {str(n): number for number, wave in enumerate(graph.waves) for n in wave}
    assert waves == {n: depth(n, kept) for n in NAMES}
    path = graph.critical_path
    assert len(path) == longest(kept)
    assert all((str(b), str(a)) in kept for a, b in pairwise(path))


@settings(max_examples=100, deadline=None)
@given(priority=priorities, required=edges)
def test_ties_in_the_order_go_by_priority_then_name(priority: dict[str, str], required: set[tuple[str, str]]) -> None:
    if circular(required):
        return
    left, expected = set(NAMES), list[str]()
    while left:
        ready = [n for n in left if not any(a == n and on in left for a, on in required)]
        expected.append(min(ready, key=lambda n: (PRIORITIES.index(priority[n]), n)))
        left.discard(expected[-1])
    assert list(DependencyResolver(configs(required, set(), priority)).order) == expected


def test_a_missing_required_agent_is_an_error_and_a_missing_optional_one_is_not() -> None:
    with pytest.raises(ConfigError, match="agent a requires ghost, which is not among the agents") as error:
        DependencyResolver([agent("a", dependencies={"required": ["ghost"]})])
    assert error.value.hint
    assert DependencyResolver([agent("a", dependencies={"optional": ["ghost"]})]).edges == ()


def test_an_agent_that_requires_itself_is_a_circle_and_an_optional_one_is_nothing() -> None:
    with pytest.raises(ConfigError, match="a -> a"):
        DependencyResolver([agent("a", dependencies={"required": ["a"]})])
    assert DependencyResolver([agent("a", dependencies={"optional": ["a"]})]).order == ("a",)


def test_no_agents_make_an_empty_graph() -> None:
    graph = DependencyResolver([])
    assert (graph.order, graph.waves, graph.critical_path) == ((), (), ())
