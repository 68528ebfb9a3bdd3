"""What an agent effectively gets: the same as a run gives, and every part of it with its rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Team, agent
from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig
from toka.core.capability import Capability
from toka.core.operator import OperatorPolicy, parse_rule
from toka.core.taken import Taken
from toka.events.event import SandboxReady, StepDone
from toka.orchestration.rights import Rights, Terms, ToolRight, rights_of
from toka.orchestration.unmet import inside, spec_places
from toka.runtime.capability import CapabilityValidator
from toka.tools.builtin import builtin_tools

GRANT: list[Any] = [
    {"filesystem-write": {"paths": ["docs", "src/secret"]}},
    "filesystem-read",
    {"command-execution": {"programs": ["python3", "rm"]}},
    {"network-access": {"hosts": ["*.example.org"]}},
]
RULES = (
    "filesystem-write: src/secret",
    "command-execution: rm",
    "network-access: bad.example.org",
    "filesystem-read: priv",
)


def policy(*deny: str, allow: tuple[str, ...] | None = None, ask: tuple[str, ...] = ()) -> OperatorPolicy:
    allowed = None if allow is None else tuple(r for text in allow for r in parse_rule(text, takes_away=False))
    return OperatorPolicy(
        allowed,  # type: ignore[arg-type]
        tuple(r for text in deny for r in parse_rule(text)),
        tuple(r for text in ask for r in parse_rule(text)),
    )


def rights(config: AgentConfig, *deny: str, **rules: Any) -> Rights:
    return rights_of(config, Terms(policy=policy(*deny, **rules)))


def table(found: Rights) -> dict[str, ToolRight]:
    return {right.tool: right for right in found.table}


async def test_a_plan_and_a_run_cannot_differ(team: Team) -> None:
    """`rights_of` says what the sandbox of a real run is told, under operator's rules, settings and protected files."""
    agents = team.work / "agents"
    agents.mkdir()
    spec = agents / "one.yaml"
    spec.write_text(
        json.dumps(
            {
                "metadata": {"name": "one"},
                "spec": {"name": "One"},
                "tasks": [{"description": "x", "run": "env"}, "Think."],
                "security": {
                    "capabilities_required": GRANT,
                    "resource_limits": {"max_memory": "512MB", "max_processes": 40},
                },
            }
        )
    )
    (team.folder / "toka.toml").write_text(
        f"[execution]\noutput_bytes = 5000\n[policy]\ndeny = {json.dumps(list(RULES))}\nallow = {json.dumps(ALLOW)}\n"
    )
    (team.work / "priv").mkdir()
    config = AgentConfig.load_from_file(spec)
    async with team.open() as runtime:
        session = await team.start(runtime, config)
        await session.run()
        await session.context.recorder.close()
        terms = Terms(
            runtime.capabilities,
            runtime.policy,
            runtime.execution,
            inside(team.work, spec_places([spec])),
            inside(team.work, [runtime.state] if runtime.state else []),
        )
    found = rights_of(config, terms)
    (ready,) = team.events(SandboxReady)
    assert ready.policy == json.loads(json.dumps(found.policy.to_json()))
    assert ready.policy["protected"] == ["agents", "agents/one.yaml", "src/secret"], "and the test tells something"
    assert ready.policy["hidden"] == ["priv"]
    assert ready.policy["output_bytes"] == 5000
    offered = [t.name for t in team.model.requests[0].tools]
    assert offered[: len(found.tools)] == [t.name for t in found.tools]
    printed: str = team.events(StepDone)[0].result["output"]
    seen = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
    given = set(found.to_json()["environment"])
    assert {k for k in seen if k not in ("PWD", "SHLVL", "_", "OLDPWD")} == given
    assert all(seen[k] == v for k, v in found.environment.items())


ALLOW = ["filesystem-write", "filesystem-read", "command-execution", "network-access"]


def test_what_the_operator_denies_is_told_with_its_rule() -> None:
    found = rights(agent("one", grant=GRANT), *RULES)
    assert {t.text for t in found.taken} == {
        "filesystem-write: src/secret (policy: deny filesystem-write: src/secret)",
        "command-execution: rm (policy: deny command-execution: rm)",
        "network-access: bad.example.org (policy: deny network-access: bad.example.org)",
        "filesystem-read: priv (policy: deny filesystem-read: priv)",
    }
    assert found.policy.writes == ("docs",)
    assert found.policy.programs == ("python3",)
    assert found.policy.refused_programs == ("rm",)
    assert [c.text for c in found.policy.refused] == ["network-access: bad.example.org"]


def test_what_is_beyond_the_allowed_is_told() -> None:
    config = agent("one", grant=[{"filesystem-write": {"paths": ["docs", "src"]}}, "git-access", "command-execution"])
    found = rights(config, allow=("filesystem-write: docs/a, src", "command-execution: ls"))
    assert [(t.what.text, t.rule) for t in found.taken] == [
        ("command-execution", "policy: allow only command-execution: ls"),
        ("filesystem-read: docs", "policy: allow only filesystem-read: docs/a, src"),
        ("filesystem-write: docs", "policy: allow only filesystem-write: docs/a, src"),
        ("git-access", "policy: not among what is allowed"),
    ]
    assert rights(config).taken == ()
    assert rights(config, allow=("filesystem-write", "git-access", "command-execution")).taken == ()


def test_every_request_says_what_it_became() -> None:
    text = """
metadata: {name: one}
spec: {name: One}
tasks: [Do it]
security:
  capabilities_required:
    - file-write: {paths: [docs]}
    - telepathy
    - git-access
    - network-access
"""
    found = rights(AgentConfig.parse(text, "a.yaml"), "git-access").asked
    assert [(a.text, a.place) for a in found] == [
        ("file-write: docs", "a.yaml:7"),
        ("telepathy", "a.yaml:8"),
        ("git-access", "a.yaml:9"),
        ("network-access", "a.yaml:10"),
    ]
    assert [[c.text for c in a.granted] for a in found] == [
        ["filesystem-read: docs", "filesystem-write: docs"], [], [], ["network-access"],
    ]  # fmt: skip
    assert found[1].note == "nobody defines telepathy; it grants nothing"
    assert found[2].taken == (Taken(Capability("git-access"), "policy: deny git-access"),)
    assert "any public host" in found[3].note


def test_every_tool_is_allowed_or_denied_by_a_rule() -> None:
    config = agent("one", grant=[{"filesystem-read": {"paths": ["docs"]}}, "command-execution", "filesystem-write"])
    found = table(rights(config, "filesystem-write", "command-execution: rm", "run_command(git push*)"))
    assert found.keys() == {t.name for t in builtin_tools()}
    assert found["read_file"] == ToolRight("read_file", ("filesystem-read",), "allowed", "filesystem-read", ()), (
        "asking to write asks to read as well"
    )
    assert found["write_file"] == ToolRight(
        "write_file", ("filesystem-write",), "denied", "policy: deny filesystem-write", ()
    )
    assert found["run_command"].but == ("deny command-execution: rm", "deny run_command(git push*)")
    assert (found["http_request"].outcome, found["http_request"].rule) == ("denied", "no network-access")
    nothing = table(rights(agent("one")))
    assert {right.outcome for right in nothing.values()} == {"denied"}
    asked = table(rights(config, ask=("command-execution",)))
    assert (asked["run_command"].outcome, asked["run_command"].rule) == ("ask", "policy: ask command-execution")


@pytest.mark.parametrize(
    ("deny", "rules"),
    [
        ((), {}),
        (("git-access",), {}),
        ((), {"allow": ("filesystem-read",)}),
        ((), {"allow": ("command-execution: ls",), "ask": ("command-execution: python3",)}),
        ((), {"ask": ("git-access", "command-execution")}),
        (("command-execution",), {"ask": ("command-execution: python3",)}),
    ],
)
def test_a_plan_names_the_rule_that_decides_a_call(deny: tuple[str, ...], rules: dict[str, Any]) -> None:
    config = agent("one", grant=["git-access", {"command-execution": {"programs": ["python3"]}}])
    found = rights(config, *deny, **rules)
    validator = CapabilityValidator(found.grant, policy(*deny, **rules), asked=config.grant())
    for tool, need in (
        ("git", Capability("git-access")),
        ("run_command", Capability("command-execution", programs=("python3",))),
        ("http_request", Capability("network-access", hosts=("example.org",))),
    ):
        decision = validator.check((need,), tool, "")
        planned = table(found)[tool]
        assert (decision.outcome, decision.rule) == (planned.outcome, planned.rule), tool


def test_limits_are_the_least_of_spec_and_settings() -> None:
    config = agent("one", limits={"timeout": "5m", "max_memory": "64MB", "max_output": "2MB"})
    found = rights_of(config, Terms(execution=ExecutionConfig(workstream_timeout_s=60.0, output_bytes=10)))
    assert (found.limits.wall_s, found.limits.output_bytes, found.policy.memory_bytes) == (60.0, 10, 64 << 20)
    assert found.to_json()["limits"] == {"wall_s": 60.0, "memory_bytes": 64 << 20, "output_bytes": 10}


def test_without_network_there_is_no_proxy_in_the_environment() -> None:
    assert set(rights(agent("one")).environment) == {"PATH", "HOME", "LANG"}
    assert "HTTPS_PROXY" in rights(agent("one", grant=[{"network-access": {"hosts": ["a.org"]}}])).environment


def test_rights_are_json() -> None:
    data = rights(agent("one", grant=GRANT), *RULES).to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["environment"]["TOKA_RUN"] is None


def test_files_below_a_workspace_are_named_as_its_sandboxes_name_them(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "agents").mkdir(parents=True)
    (tmp_path / "link").symlink_to(work)
    given = [work / "agents/a.yaml", tmp_path / "other.yaml", work, tmp_path / "link/b.yaml", work / "../work/c.yaml"]
    assert inside(work, given) == ("agents/a.yaml", "b.yaml", "c.yaml")


def test_the_folder_of_many_specs_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []
    iterdir = Path.iterdir

    def noted(folder: Path) -> Iterator[Path]:
        listed.append(folder)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", noted)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "readme.txt").touch()
    files = [folder / f"{n}.yaml" for folder in (tmp_path / "specs", mixed) for n in range(5)]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert set(spec_places(files)) == {*files, tmp_path / "specs"}, "and the folder that holds nothing else"
    assert sorted(listed) == [mixed, tmp_path / "specs"]
