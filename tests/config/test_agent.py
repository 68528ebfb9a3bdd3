"""AgentConfig: both generations of specs load unchanged, and its attributes are what the rest of Toka uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from toka.config.agent import AgentConfig, Priority
from toka.core.capability import Capability
from toka.core.effect import Effect
from toka.core.limits import Limits
from toka.errors import ConfigError

HEAD = "metadata: {name: one}\nspec: {name: One}\n"


def test_the_original_specs_load_unchanged(shared_specs: Path) -> None:
    configs = {c.name: c for c in AgentConfig.load_directory(shared_specs)}
    assert sorted(configs) == [
        "build-system-stabilization", "github-cli-integration", "kernel-events-enhancement", "testing-infrastructure",
    ]  # fmt: skip
    assert [f.text for c in configs.values() for f in c.findings] == []
    build = configs["build-system-stabilization"]
    assert build.priority is Priority.CRITICAL
    assert len(build.task_list()) == 8
    assert build.limits == Limits(wall_s=7200.0, cpu_cores=0.75, memory_bytes=512 * 1024**2)
    assert build.reporting.metrics[0].name == "dependency-conflicts"
    github = configs["github-cli-integration"]
    assert [t.id for t in github.task_list({"enterprise"})][-2:] == ["enterprise-1", "enterprise-2"]
    assert list(github.extensions) == ["github_integration"]
    assert github.risk_mitigation.high_priority_risks[0].probability == "medium"
    assert github.metadata.modified == "2025-07-06T03:24:55.376618+00:00"
    assert list(configs["kernel-events-enhancement"].dependencies.required) == ["build-system-stabilization"]
    assert list(configs["testing-infrastructure"].success_criteria) == ["phase_1", "phase_2", "final_validation"]


def test_the_older_generation(fixture_specs: Path) -> None:
    config = AgentConfig.load_from_file(fixture_specs / "parser-repair.yaml")
    assert (config.name, config.title, config.domain) == ("parser-repair", "Parser repair agent", "compilers")
    assert config.metadata.version == "v0.2.1"
    assert config.capabilities.primary == ("grammar-reading", "error-recovery")
    assert [o.check for o in config.objectives] == [None, None]
    assert [t.id for t in config.task_list()] == ["task-1", "task-2", "task-3", "task-4"]
    assert config.task_list()[0].priority is Priority.HIGH
    assert config.dependencies.required == {}
    assert config.dependencies.optional["docs-site"].reason == "The manual quotes error messages"
    assert [(m.name, m.type) for m in config.reporting.metrics] == [("open-cases", "gauge"), ("recovery-rate", "gauge")]
    assert config.limits == Limits(wall_s=5400.0, cpu_cores=0.6, memory_bytes=384 * 1024**2)
    assert config.behavioral_directives["operational_focus"] == ("Change one rule at a time",)
    assert config.risk_mitigation.high_priority_risks[0].mitigation == "Keep them all as tests"
    assert config.success_criteria["phase_1"] == ("The new tests pass",)
    notes = config.extensions["grammar_notes"]
    assert notes == {
        "numbers": [{"rule": "number", "parts": ["digits", "fraction", "exponent"], "width": 64}], "strict": True,
    }  # fmt: skip


def test_the_newer_generation(fixture_specs: Path) -> None:
    config = AgentConfig.load_from_file(fixture_specs / "docs-site.yaml")
    assert config.metadata.created == "2026-05-02"
    assert config.metadata.schema_version == "1.0.0"
    assert config.spec.description.endswith("one page at a time.")
    assert config.objectives[0].priority is Priority.HIGH
    assert config.task_list()[1].estimated_duration == "1d"
    assert [t.id for t in config.task_list(["print_edition", "nonsense"])] == ["task-1", "task-2", "print_edition-1"]
    assert [t.group for t in config.task_list(["print_edition"])] == [None, None, "print_edition"]
    assert config.dependencies.required["linked-checks"].reason == "Error messages must have settled"
    assert [(m.name, m.type, m.unit) for m in config.reporting.metrics][1] == ("pages-written", "counter", "pages")
    assert config.risk_mitigation.high_priority_risks[0].impact == "low"
    assert config.limits.disk_bytes == 1024**3


def test_the_executable_form(fixture_specs: Path) -> None:
    config = AgentConfig.load_from_file(fixture_specs / "linked-checks.yaml")
    tests, report = (o.check for o in config.objectives)
    assert tests is not None
    assert (tests.run, tests.expect_exit, tests.timeout) == ("python3 -m unittest -q", 0, 300.0)
    assert report is not None
    assert (report.run, report.expect_exit, report.timeout) == ("test -s report.txt", 0, None)
    build, write, read, tag = config.task_list({"release"})
    assert (build.id, build.run, build.timeout_s, build.retries) == ("build", "make all", 600.0, 1)
    assert build.effect is Effect.WORKSPACE
    assert write.depends_on == ("build",)
    assert (read.id, read.depends_on, read.effect) == ("task-3", ("report",), Effect.PURE)
    assert (tag.id, tag.description, tag.group) == ("tag", "git tag v1", "release")
    assert config.security.enforcement == "strict"
    assert config.limits == Limits(
        tokens=200_000, cost_usd=2.5, model_calls=100, tool_calls=400, wall_s=5400.0, cpu_cores=2.0,
        memory_bytes=1024**3, processes=64, disk_bytes=2 * 1024**3, output_bytes=2 * 1024**2, network_bps=10_000_000,
    )  # fmt: skip
    grant = config.grant()
    assert grant.named("filesystem-write") == (Capability("filesystem-write", paths=("build", "report.txt")),)
    assert grant.named("network-access") == (
        Capability("network-access", hosts=("*.pythonhosted.org", "pypi.org"), ports=("443",)),
    )
    assert grant.covering(Capability("command-execution", programs=("python3",)))
    assert config.grant_notes() == ()


def test_short_forms_mean_the_long_ones(fixture_specs: Path) -> None:
    config = AgentConfig.load_from_file(fixture_specs / "short-forms.yaml")
    long = AgentConfig.parse("""
metadata: {name: short-forms, version: '1.10'}
spec: {priority: low}
capabilities: {primary: [haste], secondary: []}
objectives: [{description: Something is achieved}]
tasks: {default: [{description: Do the first thing}, {run: make second}], conditional: {}}
dependencies: {required: {smallest: {reason: ''}, linked-checks: {reason: its report is read, verified: false}}}
reporting: {channels: [all], metrics: [{name: mood}, {name: speed, unit: m/s, type: gauge}]}
security:
  sandbox: true
  capabilities_required:
  - filesystem-read: {paths: [src]}
  - filesystem-write: {paths: [src]}
behavioral_directives: {general: [Be brief]}
success_criteria: {criteria: [It is short]}
""")
    assert config == long
    assert hash(config) == hash(long)
    assert config.metadata.version == "1.10"
    assert config.title == "short-forms"


def test_the_smallest_spec_has_sensible_defaults(fixture_specs: Path) -> None:
    config = AgentConfig.load_from_file(fixture_specs / "smallest.yaml")
    assert (config.priority, config.domain, config.model) == (Priority.MEDIUM, "general", None)
    assert config.security.sandbox
    assert config.grant().capabilities == ()
    assert config.limits == Limits()
    assert [t.description for t in config.task_list()] == ["Say which files the workspace holds"]
    assert dict(config.extensions) == {}
    assert config.source == fixture_specs / "smallest.yaml"


def test_priorities_sort_critical_first() -> None:
    assert [str(p) for p in sorted(Priority)] == ["critical", "high", "medium", "low"]


def test_extensions_keep_their_order() -> None:
    config = AgentConfig.parse(HEAD + "zebra: 1\ntasks: [x]\nalpha: [2]\nmiddle: {b: 1, a: 2}\n")
    assert list(config.extensions) == ["zebra", "alpha", "middle"]
    again = AgentConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert json.dumps(again.to_json()) == json.dumps(config.to_json())
    assert list(again.extensions["middle"]) == ["b", "a"]  # type: ignore[arg-type]


def test_every_fixture_survives_its_record(fixture_specs: Path) -> None:
    for config in AgentConfig.load_directory(fixture_specs):
        record = json.loads(json.dumps(config.to_json()))
        again = AgentConfig.from_json(record)
        assert again == config
        assert again.to_json() == config.to_json()
        assert again.source == config.source
        assert again.task_list(again.tasks.conditional) == config.task_list(config.tasks.conditional)
        assert again.limits == config.limits
        assert again.grant() == config.grant()
        assert again.position("metadata", "name").line == 0
        assert [f.code for f in again.findings] == [f.code for f in config.findings]


@pytest.mark.parametrize(
    "record",
    [{}, {"version": 1}, {"version": 2, "spec": {}}, {"version": 1, "spec": []}, {"version": 1, "spec": {}},
     {"version": 1, "spec": {"metadata": {"name": "a"}, "spec": {}, "tasks": {"default": []}}},
     {"version": 1, "spec": {"metadata": {"name": "a"}, "spec": {}, "x": 1, "tasks": {"default": [{"run": "x"}]}}},
     {"version": 1, "source": 3, "spec": {"metadata": 1}}],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        AgentConfig.from_json(record)


def test_the_digest_is_that_of_the_meaning() -> None:
    one = AgentConfig.parse(HEAD + "tasks: [x]\nsecurity: {resource_limits: {max_memory: 1GB, timeout: 90m}}\n")
    same = AgentConfig.parse(HEAD + "security: {resource_limits: {timeout: 1h30m, max_memory: 1024MB}}\ntasks: [x]\n")
    other = AgentConfig.parse(HEAD + "tasks: [x]\nsecurity: {resource_limits: {max_memory: 2GB, timeout: 90m}}\n")
    assert one.digest == same.digest != other.digest
    assert one == same != other
    assert len(one.digest) == 64
    assert one != "one"


def test_positions_lead_to_the_text() -> None:
    config = AgentConfig.parse(
        HEAD + "tasks:\n- x\nsecurity:\n  capabilities_required:\n  - git-access\n  - filesystem-read: {paths: [src]}\n"
        "dependencies:\n  required: [a, {b: why}]\n",
        "f.yaml",
    )
    assert config.position("metadata", "name").text == "f.yaml:1:18"
    assert config.position("security", "capabilities_required").text == "f.yaml:6:3"
    assert config.position("security", "capabilities_required", 1).text == "f.yaml:8:5"
    assert config.position("security", "capabilities_required", 1, "arguments", "paths", 0).text == "f.yaml:8:31"
    assert [r.position and r.position.line for r in config.security.capabilities_required] == [7, 8]
    assert config.position("dependencies", "required", "b").text == "f.yaml:10:18"
    assert config.position("tasks", "default", 0).text == "f.yaml:4:3"
    assert config.position("security", "resource_limits", "timeout").text == "f.yaml:5:1"
    assert config.position().line == 1


def test_a_config_is_frozen() -> None:
    config = AgentConfig.parse(HEAD + "tasks: [x]\n")
    with pytest.raises(ValidationError):
        config.model = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.security.sandbox = False  # type: ignore[misc]


def test_json_is_read_too() -> None:
    data = {"metadata": {"name": "j"}, "spec": {}, "tasks": ["x"]}
    assert AgentConfig.parse(json.dumps(data)).name == "j"


def test_text_of_more_than_1_mb_is_refused() -> None:
    with pytest.raises(ConfigError, match="TK1004"):
        AgentConfig.parse("#" * 1_100_000)


def test_surrogates_in_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="TK1003"):
        AgentConfig.parse("a: \ud800")


def test_grant_notes_say_which_requests_grant_nothing(fixture_specs: Path) -> None:
    config = AgentConfig.load_from_file(fixture_specs / "parser-repair.yaml")
    (note,) = config.grant_notes()
    assert (note.request.name, note.empty) == ("telepathy", True)
    assert config.grant_notes({"telepathy": (Capability("filesystem-read"),)}) == ()
    (wide,) = AgentConfig.load_from_file(fixture_specs / "docs-site.yaml").grant_notes()
    assert (wide.request.name, wide.empty) == ("network-access", False)


def test_a_directory_is_loaded_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.yaml").write_text("metadata: {name: zed}\nspec: {}\ntasks: [x]\n")
    (tmp_path / "deep" / "a.yml").write_text("metadata: {name: abc}\nspec: {}\ntasks: [x]\n")
    (tmp_path / "notes.txt").write_text("no spec")
    assert [c.name for c in AgentConfig.load_directory(tmp_path)] == ["abc", "zed"]
    (tmp_path / "c.yaml").write_text("a: [\n")
    (tmp_path / "deep" / "d.yaml").write_text("metadata: {}\n")
    with pytest.raises(ConfigError, match="errors in 2 files") as caught:
        AgentConfig.load_directory(tmp_path)
    assert {Path(f.text.partition(":")[0]).name for f in caught.value.findings} == {"c.yaml", "d.yaml"}


def test_a_file_named_twice_is_read_once(fixture_specs: Path) -> None:
    configs = AgentConfig.read([fixture_specs, fixture_specs / "smallest.yaml"]).configs
    assert sorted(c.name for c in configs) == sorted({c.name for c in configs})


def test_importing_the_loader_is_light() -> None:
    code = "import sys, toka.config.check, toka.config.settings; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {m.partition(".")[0] for m in loaded} & {"pydantic_ai", "aiohttp", "rich", "click", "fastapi", "openai"}
