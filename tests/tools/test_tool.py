from __future__ import annotations

import json

import pytest

from toka.core.capability import Capability, Grant
from toka.core.effect import Effect
from toka.tools.builtin import builtin_tools, tools_for
from toka.tools.files import ReadFile, Search
from toka.tools.tool import CheckableTool, Tool, cut, spec_of, validate


def test_valid_arguments_come_back_as_they_are() -> None:
    assert validate(ReadFile(), '{"path": "a", "start": 3}') == {"path": "a", "start": 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("{'path': 'a'}", "not valid JSON"),
        ('{"path": "a"} x', "not valid JSON"),
        ('{"path": "a", "path": "b"}', "a key is given twice"),
        ('{"path": "a", "start": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "must be one JSON object, not list"),
        ("null", "must be one JSON object"),
        ("{}", '"path" is a required property'),
        ('{"path": 3}', "path: 3 is not of type"),
        ('{"path": "a", "start": "3"}', "start: "),
        ('{"path": "a", "start": true}', "start: "),
        ('{"path": "a", "start": 0}', "start: 0 is less than"),
        ('{"path": "a", "colour": 1}', "'colour' was unexpected"),
        ('{"path": ""}', "path: "),
        ('{"path": "\\ud800"}', "surrogate"),
    ],
)
def test_every_fault_is_one_clear_text_and_nothing_is_repaired(text: str, says: str) -> None:
    found = validate(ReadFile(), text)
    assert isinstance(found, str)
    assert found.startswith("read_file: ")
    assert says in found
    assert len(found) < 500


def test_a_long_value_does_not_flood_the_error() -> None:
    found = validate(Search(), json.dumps({"pattern": "x" * 100_000}))
    assert isinstance(found, str)
    assert len(found) < 500


def test_several_faults_are_told_at_once() -> None:
    found = validate(ReadFile(), '{"start": 0, "limit": "x"}')
    assert isinstance(found, str)
    assert found.count(";") == 2


@pytest.mark.parametrize(
    ("text", "limit", "missing", "result"),
    [
        ("abc", 3, 0, "abc"),
        ("abcdefgh", 4, 0, "ab\n[... 4 bytes are missing here ...]\ngh"),
        ("ääää", 5, 0, "ä\n[... 3 bytes are missing here ...]\nä"),
        ("abc", 3, 7, "abc\n[... 7 more bytes of output were not kept]"),
        ("abc", 0, 0, "\n[... 3 bytes are missing here ...]\n"),
    ],
)
def test_cut_tells_what_is_missing(text: str, limit: int, missing: int, result: str) -> None:
    assert cut(text, limit, missing=missing) == result


def test_every_builtin_tool_is_complete() -> None:
    names = [t.name for t in builtin_tools()]
    assert names == [
        "read_file", "list_dir", "search", "write_file", "edit_file", "run_command", "python", "git", "http_request",
    ]  # fmt: skip
    for tool in builtin_tools():
        spec = spec_of(tool)
        assert spec.description
        assert spec.parameters["additionalProperties"] is False
        assert isinstance(tool, CheckableTool) == (tool.effect is Effect.CHECKABLE)


@pytest.mark.parametrize(
    ("capabilities", "names"),
    [
        ((), []),
        ((Capability("network-access"),), ["http_request"]),
        ((Capability("network-access", hosts=("db.example.org",), ports=("5432",)),), []),
        ((Capability("filesystem-read", paths=("docs",)),), ["read_file", "list_dir", "search"]),
        ((Capability("filesystem-read"),), ["read_file", "list_dir", "search", "git"]),
        ((Capability("filesystem-write"),), ["read_file", "list_dir", "search", "write_file", "edit_file"]),
        ((Capability("git-access"),), ["git"]),
        ((Capability("command-execution", programs=("git",)),), ["run_command"]),
        ((Capability("command-execution", programs=("python3",)),), ["run_command", "python"]),
    ],
)
def test_a_grant_gives_the_tools_it_has_a_use_for(capabilities: tuple[Capability, ...], names: list[str]) -> None:
    assert [t.name for t in tools_for(Grant(capabilities))] == names


def test_the_command_tool_knows_its_list() -> None:
    (tool,) = tools_for(Grant((Capability("command-execution", programs=("git", "ls")),)))
    assert "Programs: git, ls." in tool.description
    tool, *_ = tools_for(Grant((Capability("command-execution"),)))
    assert "/bin/sh" in tool.description
    assert "without network" in tool.description
    tool, *_ = tools_for(Grant((Capability("command-execution"), Capability("network-access", hosts=("a.org",)))))
    assert "network-access: a.org through the proxy that HTTPS_PROXY names" in tool.description


def test_only_who_may_commit_is_offered_it() -> None:
    both = Grant((Capability("git-access"), Capability("filesystem-read")))
    for grant, commits in ((both, True), (Grant((Capability("filesystem-read"),)), False)):
        (git,) = [t for t in tools_for(grant) if t.name == "git"]
        assert ("message" in git.parameters["properties"]) is commits


@pytest.mark.parametrize("tool", builtin_tools(), ids=lambda tool: tool.name)
def test_a_schema_is_plain_enough_for_every_provider(tool: Tool) -> None:
    """No condition at the top, which some refuse; every argument says what it is."""
    assert set(tool.parameters) == {"type", "properties", "required", "additionalProperties"}
    assert all(p.get("description") for p in tool.parameters["properties"].values())
    assert len(tool.description) < 500
