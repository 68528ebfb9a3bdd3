"""Who may write the same paths at the same time, and whose workspace can be made: what a plan says of it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from harness import agent
from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig
from toka.orchestration.apart import INSTEAD, private_findings
from toka.orchestration.plan import make_plan
from toka.orchestration.rights import Terms
from workspace.test_repository import commit, git


def writer(name: str, *paths: str, **more: Any) -> AgentConfig:
    return agent(name, grant=[{"filesystem-write": {"paths": list(paths) or ["."]}}], **more)


def told(*configs: AgentConfig, at_once: int = 8) -> dict[str, list[str]]:
    terms = Terms(execution=ExecutionConfig(max_concurrent_agents=at_once))
    found = {n: [w for w in a.warnings if "same time" in w] for n, a in make_plan(configs, terms=terms).agents.items()}
    return {str(name): warnings for name, warnings in found.items() if warnings}


def after(*names: str) -> dict[str, Any]:
    return {"dependencies": {"required": list(names)}}


def test_agents_that_may_write_the_same_paths_at_the_same_time_are_told_once() -> None:
    text = "a and b may write at the same time to the same paths: docs and docs/api; "
    assert told(writer("a", "docs", "mine"), writer("b", "docs/api", "other")) == {"a": [text + INSTEAD]}


@pytest.mark.parametrize(
    "configs",
    [
        [writer("a", "docs"), writer("b", "src", "docs2")],
        [writer("a"), writer("b", **after("a"))],
        [writer("a"), writer("m", "apart", workspace="copy", **after("a")), writer("b", **after("m"))],
        [writer("a"), writer("b", workspace="worktree"), writer("c", workspace="copy")],
        [writer("a"), agent("b", grant=["filesystem-read"])],
    ],
    ids=["other paths", "one waits", "one waits through another", "apart", "only reads"],
)
def test_agents_that_do_not_meet_are_not_told_of(configs: list[AgentConfig]) -> None:
    assert told(*configs) == {}


def test_where_one_agent_runs_at_a_time_nothing_meets() -> None:
    assert told(writer("a"), writer("b"), at_once=1) == {}


def test_a_repository_that_two_may_commit_to_is_a_path_too() -> None:
    both = [writer(name, path) for name, path in (("a", "x"), ("b", "y"))]
    assert told(*both) == {}
    grants = [agent(n, grant=[{"filesystem-write": {"paths": [p]}}, "git-access"]) for n, p in (("a", "x"), ("b", "y"))]
    assert ": .git; " in told(*grants)["a"][0]


def test_sets_that_do_not_meet_are_told_apart_and_only_so_many_are_named() -> None:
    found = told(*(writer(f"a{n}", "one") for n in range(8)), *(writer(f"b{n}", "two") for n in range(2)))
    assert list(found) == ["a0", "b0"]
    assert found["a0"][0].startswith("a0, a1, a2, a3, a4 and 3 more may write at the same time to the same paths: one;")


@pytest.mark.parametrize(("most", "warned"), [(None, True), (2, True), (1, False)])
def test_instances_of_one_agent_meet_one_another(most: int | None, warned: bool) -> None:
    flow = {"for_each": [1, 2], **({} if most is None else {"max_parallel": most})}
    found = told(writer("a", "src", flow=flow))
    text = "instances of a may write at the same time to the same paths: src; say `max_parallel: 1`"
    assert [w.startswith(text) for each in found.values() for w in each] == [True] * warned
    assert told(writer("a", "src", flow=flow, workspace="copy")) == {}


@pytest.mark.slow
def test_a_plan_of_500_agents_costs_little_more_for_it() -> None:
    for paths in (lambda n: f"p{n}", lambda _: "same", lambda n: f"p{n % 25}/f{n}"):
        configs = [writer(f"a{n}", paths(n), **(after(f"a{n - 7}") if n > 6 else {})) for n in range(500)]
        make_plan(configs)
        terms = Terms(execution=ExecutionConfig(max_concurrent_agents=1))
        began = time.perf_counter()
        make_plan(configs, terms=terms)
        between = time.perf_counter()
        make_plan(configs)
        assert time.perf_counter() - between < 2 * (between - began) + 0.1


def findings(configs: list[AgentConfig], folder: Path, **more: Any) -> list[tuple[str, str]]:
    return [(f.severity, f.text) for f in private_findings(configs, folder, more.pop("level", "full"), **more)]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "one")
    return folder


def cloned(name: str, branch: str | None = None, **more: Any) -> AgentConfig:
    metadata = {"name": name, **({} if branch is None else {"branch": branch})}
    return agent(name, grant=["filesystem-write", "git-access"], workspace="worktree", **{"metadata": metadata, **more})


def test_a_worktree_needs_a_repository_and_a_branch_of_its_own(repository: Path, tmp_path: Path) -> None:
    assert findings([cloned("a"), cloned("b", "work")], repository) == []
    assert findings([cloned("a", "main")], repository)[0][0] == "error"
    assert "the branch main is checked out" in findings([cloned("a", "main")], repository)[0][1]
    assert "the branch work is that of a, too" in findings([cloned("a", "work"), cloned("b", "work")], repository)[0][1]
    (tmp_path / "plain").mkdir()
    assert "needs a repository" in findings([cloned("a")], tmp_path / "plain")[0][1]
    assert findings([cloned("a")], tmp_path / "plain", started=["a"]) == [], "its clone is there"
    assert findings([agent("a", workspace="copy"), agent("b")], tmp_path / "plain") == []


def test_a_worktree_without_the_right_to_commit_is_warned_of(repository: Path) -> None:
    (found,) = findings([agent("a", grant=["filesystem-write"], workspace="worktree")], repository)
    assert found[0] == "warning"
    assert "a may not commit, so that nothing of its worktree comes back" in found[1]


@pytest.mark.skipif(os.getuid() != 0, reason="only root's agents have another user id")
def test_roots_agents_in_a_reduced_sandbox_have_no_workspace_of_their_own(repository: Path) -> None:
    for config in (cloned("a"), agent("a", workspace="copy")):
        ((severity, text),) = findings([config], repository, level="reduced")
        assert severity == "error"
        assert "root's agents reach no workspace in the state directory" in text
