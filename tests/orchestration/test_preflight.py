from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness import Team, agent
from toka.errors import ConfigError, MissingError, ModelUnavailable
from toka.llm.resolve import SLOW
from toka.orchestration.enforce import once_only, unenforced
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.preflight import model_findings, preflight
from toka.orchestration.request import RunRequest
from toka.runtime.context import Runtime
from toka.sandbox.cgroup_find import Hierarchies, Place
from toka.sandbox.enforcement import WITHOUT


def request(team: Team, *configs: object, model: str | None = None) -> RunRequest:
    return RunRequest(list(configs), team.work, model=model)  # type: ignore[arg-type]


async def checked(team: Team, runtime: Runtime, *configs: object, started: tuple[str, ...] = ()) -> list[str]:
    return await preflight(runtime, request(team, *configs), started)


async def test_a_cost_limit_needs_a_price(team: Team) -> None:
    async def itself(model: str) -> str:
        return model

    costly = agent("one", model="server:odd", security={"resource_limits": {"max_cost": "$1"}})
    async with team.open() as runtime:
        object.__setattr__(runtime, "resolve_model", itself)
        with pytest.raises(ConfigError) as caught:
            await checked(team, runtime, costly)
        assert await checked(team, runtime, agent("one", model="server:odd")) == []
    assert [f.code for f in caught.value.findings] == ["TK6002"]
    assert "server:odd" in caught.value.findings[0].text
    (team.folder / "toka.toml").write_text('[pricing."server:odd"]\ninput = 1\noutput = 2\n')
    async with team.open() as runtime:
        object.__setattr__(runtime, "resolve_model", itself)
        assert await checked(team, runtime, costly) == []


async def test_strict_limits_that_do_not_hold_refuse_the_run(team: Team) -> None:
    """Nothing but a quota of the file system could hold a limit of bytes written, so this refuses on every machine."""
    strict = agent("one", security={"enforcement": "strict", "resource_limits": {"max_disk_usage": "1GB"}})
    loose = agent("one", security={"resource_limits": {"max_disk_usage": "1GB"}})
    bound = agent("one", security={"enforcement": "strict", "resource_limits": {"timeout": "1h", "max_processes": 50}})
    async with team.open() as runtime:
        engine = OrchestrationEngine(runtime)
        with pytest.raises(MissingError, match=r"max_disk_usage 1GB is best effort \(counted") as caught:
            await engine.start(request(team, strict))
        assert caught.value.exit_code == 4
        assert "enforcement: strict" in (caught.value.hint or "")
        with pytest.raises(MissingError, match="max_disk_usage 1GB is best effort"):
            await checked(team, runtime, strict)
        assert runtime.journal.runs() == [], "nothing was started"
        for fine in (loose, bound):
            assert list(engine.check(request(team, fine))) == ["one"]
            assert await checked(team, runtime, fine) == []


def test_without_cgroups_limits_of_memory_and_processors_are_best_effort() -> None:
    nothing = Hierarchies({}, {"memory": "cgroup v2 is not mounted", "cpu": "no such controller", "pids": "nor this"})
    limits = {"max_memory": "512MB", "max_cpu": "50%", "max_processes": 5, "max_network_bandwidth": "1Mbps"}
    strict = agent("one", limits=limits)
    assert unenforced(strict, hierarchies=nothing) == [
        f"max_memory 512MB is best effort ({WITHOUT['memory']}): cgroup v2 is not mounted",
        f"max_cpu 50% is best effort ({WITHOUT['cpu']}): no such controller",
    ]
    every = Hierarchies({kind: [Place(2, Path("/nowhere"))] for kind in ("memory", "cpu", "pids")}, {})
    assert unenforced(strict, hierarchies=every) == []
    for limit, title in (("max_memory", "memory"), ("max_cpu", "cpu")):
        one = agent("one", limits={limit: limits[limit]})
        some = Hierarchies({k: p for k, p in every.places.items() if k != title}, {title: "gone"})
        assert [text.partition(" ")[0] for text in unenforced(one, hierarchies=some)] == [limit]


async def test_agents_without_a_model_are_skipped_unless_none_is_left_or_one_has_worked(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(model: str) -> str:
        raise ModelUnavailable("no model found", tried=["nobody"])

    command = agent("runs", tasks=[{"description": "x", "run": "true"}])
    thinks = agent("thinks", model="auto")
    async with team.open() as runtime:
        object.__setattr__(runtime, "resolve_model", nothing)
        assert await checked(team, runtime, command, thinks) == ["no model: thinks will be skipped"]
        with pytest.raises(ModelUnavailable):
            await checked(team, runtime, thinks)
        with pytest.raises(ModelUnavailable):
            await checked(team, runtime, command, thinks, started=("thinks",))
        with pytest.raises(ModelUnavailable):
            await checked(team, runtime, command, agent("named", model="server:x"))


async def test_a_server_that_is_slow_to_answer_is_not_said_to_be_none(team: Team) -> None:
    async def slow(model: str) -> str:
        raise ModelUnavailable("no model found", tried=["OPENAI_API_KEY: not set", f"http://x/v1: {SLOW}"])

    command = agent("runs", tasks=[{"description": "x", "run": "true"}])
    async with team.open() as runtime:
        object.__setattr__(runtime, "resolve_model", slow)
        (told,) = await checked(team, runtime, command, agent("thinks", model="auto"))
    assert told == "no model answered in time: thinks will be skipped unless one does when it starts"


async def test_all_models_that_lead_nowhere_are_told_at_once(team: Team) -> None:
    wrong = [agent("one", model="gpt-4"), agent("two", model="opnai:x"), agent("three", model="gpt-4")]
    async with team.open() as runtime:
        with pytest.raises(ConfigError) as caught:
            await checked(team, runtime, *wrong)
    assert caught.value.exit_code == 3
    assert sorted(f.text.partition(":")[0] for f in caught.value.findings) == ["one.yaml", "three.yaml", "two.yaml"]
    assert {f.code for f in caught.value.findings} == {"TK6001"}


def test_what_shows_of_a_model_without_a_network(tmp_path: Path) -> None:
    script = tmp_path / "s.yaml"
    script.write_text("script: 1\nagents: {a: {t: [{say: 4}]}}\n")
    good = tmp_path / "good.yaml"
    good.write_text("script: 1\ndefault: [{say: hi}]\n")
    names = ["gpt-4", None, "auto", "openai:x", f"scripted:{script}", f"scripted:{good}", "scripted:nowhere"]
    found = model_findings([agent(f"a{n}", **({"model": m} if m else {})) for n, m in enumerate(names)])
    assert [(f.code, f.file) for f in found] == [
        ("TK6001", "a0.yaml"),
        ("TK6101", str(script)),
        ("TK6001", "a6.yaml"),
    ]
    assert found[0].line == 1
    assert found[0].column > 1
    assert "openai:gpt-4" in (found[0].help or "")


async def test_agents_run_on_linux_only(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    async with team.open() as runtime:
        monkeypatch.setattr(sys, "platform", "darwin")
        with pytest.raises(MissingError, match="agents run on Linux") as caught:
            await checked(team, runtime, agent("one"))
    assert caught.value.exit_code == 4
    assert "Lima" in (caught.value.hint or "")


def test_an_effect_that_counts_as_once_is_told() -> None:
    tasks = [{"id": "t", "description": "t", "run": "true", "effect": "checkable"}]
    assert once_only(agent("one", tasks=tasks)) == [
        "task t: effect checkable counts as once: after a crash in the middle a person is asked"
    ]
    assert once_only(agent("one", tasks=[{**tasks[0], "effect": "idempotent"}])) == []
