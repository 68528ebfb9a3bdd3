"""Specs become a team file and come back as they were, whatever they say."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from toka.config.agent import AgentConfig
from toka.config.convert import spec_text, team_text
from toka.config.diagnostics import Finding
from toka.config.emit import to_yaml
from toka.config.nodes import plain
from toka.config.source import Source
from toka.config.written import spec_data
from toka.config.yaml import read_nodes
from toka.core.catalogue import known_names
from toka.errors import ConfigError


def again(text: str) -> tuple[AgentConfig, ...]:
    reading = AgentConfig.read([Source("team.yaml", text)])
    assert [f.text for f in reading.findings if f.severity == "error"] == []
    return reading.configs


def same(configs: Iterable[AgentConfig]) -> None:
    wanted = {c.name: c.digest for c in configs}
    text = team_text(configs)
    found = again(text)
    assert {c.name: c.digest for c in found} == wanted
    assert {c.name: AgentConfig.parse(spec_text(c)).digest for c in found} == wanted
    assert team_text(sorted(found, key=lambda c: list(wanted).index(c.name))) == text


def test_the_fixtures_are_the_same_after_both_ways(fixture_specs: Path) -> None:
    same(AgentConfig.load_directory(fixture_specs))


def test_the_original_specs_are_the_same_after_both_ways(shared_specs: Path) -> None:
    same(AgentConfig.load_directory(shared_specs))


LINE = st.sampled_from(
    ["x", "a b", "true", "null", "1.10", "- a", "# no", "a: b", "${x}", "$${x}", "${inputs.n}", "a ${b.c}", "it's",
     '"q"', "é☃",
     "yes", "0o17", "2026-01-01", "a #b", "end:", "*star", "&and", "{a}", "[a]", "trailing ", "%TAG", "!x", "|", ">",
     "~", "1e3", "\U0001f600", "@x", "`y`", "="]
)  # fmt: skip
PROSE = st.one_of(
    LINE, st.sampled_from(["two\nlines", "ends\n", "many\n\n\n", " first\nindented", "\nblank", "a\n  b\n", "t\tab\nx"])
)
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True) | st.sampled_from(
    ["item", "model", "secret", "inputs", "a.b", "null", "true", "1", "tasks"]
)
DURATION = st.sampled_from(["1s", "90m", "1500ms", "0.25s", "2d"])


def maybe(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | PROSE,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b c", "1", "null", "k:"]), inner)
    ),
    max_leaves=5,
)
TASK = st.builds(
    lambda what, more: {**what, **more},
    st.builds(lambda t: {"description": t}, PROSE) | st.builds(lambda t: {"run": t}, PROSE)
    | st.builds(lambda t, u: {"description": t, "run": u}, PROSE, PROSE),
    maybe(timeout=DURATION, retries=st.integers(0, 3), priority=st.sampled_from(["low", "high"])),
)  # fmt: skip
CHECK = st.builds(lambda run, more: {"run": run, **more}, PROSE, maybe(expect_exit=st.integers(0, 3), timeout=DURATION))
REQUEST = st.one_of(
    st.sampled_from([*known_names(), "telepathy", "read", "git", "raed"]),
    st.builds(lambda name, paths: {name: {"paths": paths}}, st.sampled_from(["filesystem-read", "file-write"]),
              st.lists(st.sampled_from(["src", ".", "a b", "true"]), max_size=2)),
    st.builds(lambda hosts, more: {"network-access": {"hosts": hosts, **more}},
              st.lists(st.sampled_from(["example.org", "*.pypi.org"]), max_size=2), maybe(ports=st.just(["443"]))),
    st.just({"command-execution": {"programs": ["git", "true"]}}),
)  # fmt: skip
FLOW = maybe(
    inputs=st.dictionaries(st.sampled_from(["n", "unused"]), JSON, max_size=2).map(lambda d: {**d, "l": ["a", "${x}"]}),
    outputs=st.dictionaries(st.sampled_from(["out", "more"]), st.sampled_from(
        [{"source": "file", "path": "a/${item}"}, {"source": "stdout"}, {"source": "stdout", "type": "lines"},
         {"source": "file", "path": "b", "type": "json", "description": "${x}"}, {"source": "report"}]
    )),
    for_each=st.lists(JSON, min_size=1, max_size=3) | st.sampled_from(["${b.list}", "${inputs.l}"]),
    max_parallel=st.integers(1, 9),
    when=st.lists(st.sampled_from(["model.available", "not model.available", "not ${b.ok}"]), max_size=2),
    approve=st.sampled_from([{"question": "${item}?"}, {"question": "go?", "expires": "90m"}]),
    env=st.dictionaries(st.sampled_from(["A", "B"]), st.sampled_from(["x", "${secret:s}", "1.10", "true", "${b.c}"])),
    repairs=st.integers(0, 5),
)  # fmt: skip


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(NAME)
    spec: dict[str, Any] = {
        "metadata": {"name": name, **draw(maybe(version=LINE, created=LINE, owner=LINE))},
        "spec": draw(maybe(name=LINE, domain=LINE, priority=st.sampled_from(["low", "critical"]), description=PROSE,
                           owner=LINE)),
        "tasks": {"default": draw(st.lists(TASK, min_size=1, max_size=3)),
                  **draw(maybe(conditional=st.dictionaries(st.sampled_from(["g", "h"]), st.lists(TASK, max_size=2))))},
        **draw(maybe(
            model=st.sampled_from(["auto", "openai:x"]),
            objectives=st.lists(st.builds(lambda t, m: {"description": t, **m}, PROSE,
                                          maybe(check=CHECK, deliverable=PROSE)), max_size=3),
            dependencies=maybe(required=st.dictionaries(NAME, maybe(reason=PROSE, verified=st.booleans()), max_size=2),
                               optional=st.dictionaries(NAME, maybe(reason=PROSE), max_size=2)),
            security=maybe(capabilities_required=st.lists(REQUEST, max_size=4), sandbox=st.booleans(),
                           enforcement=st.sampled_from(["strict", "best-effort"]),
                           resource_limits=maybe(timeout=DURATION, max_cost=st.sampled_from(["$1", "0.123456789"]),
                                                 max_cpu=st.sampled_from(["75%", "0.333"]), max_memory=st.just("64MB"),
                                                 max_network_bandwidth=st.sampled_from(["1Mbps", "801bps"]),
                                                 max_tokens=st.just("20k"), max_output=st.just("1MB"))),
            reporting=maybe(frequency=st.just("daily"), channels=st.lists(LINE, max_size=2)),
            behavioral_directives=st.dictionaries(LINE, st.lists(PROSE, max_size=2), max_size=2),
            success_criteria=st.dictionaries(LINE, st.lists(PROSE, max_size=2), max_size=2),
            notes_of_ours=JSON,
            extensions=JSON,
            flow=FLOW,
        )),
    }  # fmt: skip
    goal = spec["tasks"]["default"][0].get("description")
    if goal and draw(st.booleans()):
        spec["objectives"] = [{"description": goal, "check": draw(CHECK)}, *spec.get("objectives", [])]
    return spec


def parsed(data: dict[str, Any]) -> AgentConfig | None:
    try:
        return AgentConfig.parse(to_yaml(data))
    except ConfigError:
        return None


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(st.lists(specs(), min_size=1, max_size=3))
@example([{"metadata": {"name": "item"}, "spec": {}, "tasks": {"default": [{"run": "echo ${HOME}"}]}}])
@example([{"metadata": {"name": "a"}, "spec": {}, "tasks": {"default": [{"run": "x"}]}, "flow": {}}])
def test_whatever_specs_say_they_are_the_same_after_both_ways(data: list[dict[str, Any]]) -> None:
    configs = {c.name: c for c in map(parsed, data) if c is not None}
    if configs:
        same(tuple(configs.values()))


@pytest.mark.slow
@settings(max_examples=300)
@given(st.one_of(JSON, st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=20))))
def test_what_is_emitted_is_read_as_the_same_data(value: Any) -> None:
    text = to_yaml({"value": value})
    source = Source("x", text)
    node = read_nodes(source)
    if not source.findings:  # keys that look like others are refused, as they are in a spec
        assert node is not None
        assert plain(node) == {"value": value}


@pytest.mark.parametrize("value", ["x" * 2_000, {"k" * 2_000: [1]}, 2**60 - 1, [[], {}, [[]]], "a\n" * 3])
def test_awkward_values_are_read_as_they_were(value: Any) -> None:
    node = read_nodes(Source("x", to_yaml({"value": value})))
    assert node is not None
    assert plain(node) == {"value": value}


def test_quantities_are_written_as_people_do() -> None:
    config = AgentConfig.parse(
        "metadata: {name: a}\nspec: {}\ntasks: [{run: x, timeout: 90s}]\n"
        "security: {resource_limits: {max_memory: 512MB, timeout: 90m, max_cost: 0.4,\n"
        "  max_network_bandwidth: 8000bps}}\n"
    )
    limits = spec_data(config)["security"]["resource_limits"]
    assert limits == {"max_memory": "512MB", "timeout": "1h30m", "max_cost": "$0.40", "max_network_bandwidth": "8Kbps"}
    assert spec_data(config)["tasks"]["default"] == [{"run": "x", "timeout": "1m30s"}]


@pytest.mark.slow
@pytest.mark.parametrize("notes", [["x" * 19_000] * 30, ["x"] * 26_000])
def test_what_would_be_too_large_for_one_file_is_refused(notes: list[str]) -> None:
    specs = [{"metadata": {"name": name}, "spec": {}, "tasks": ["x"], "notes": notes} for name in ("a", "b")]
    configs = [AgentConfig.parse(to_yaml(spec)) for spec in specs]
    with pytest.raises(ConfigError, match="this cannot be written as one file") as caught:
        team_text(configs)
    assert [f.code for f in caught.value.findings if isinstance(f, Finding)] == ["TK1004"]
    assert team_text(configs[:1])


def test_short_keys_are_used_where_they_say_the_same() -> None:
    config = AgentConfig.parse(
        "metadata: {name: fix}\nspec: {name: Fixer}\ntasks: [Make it pass]\n"
        "objectives: [{description: Make it pass, check: make test}]\ndependencies: [survey]\n"
        "security: {capabilities_required: [{filesystem-write: {paths: [src]}}, git-access]}\n"
    )
    assert team_text([config]).splitlines()[1:] == [
        "toka: 1", "agents:", "  fix:", "    title: Fixer", "    needs: [survey]", "    goal: Make it pass",
        "    check: make test", "    grants:", "      write: [src]", "      git: true",
    ]  # fmt: skip
