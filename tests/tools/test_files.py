from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from toka.core.capability import Capability, CapabilityError
from toka.tools.files import EditFile, ListDir, ReadFile, Search, WriteFile
from toka.tools.tool import ToolContext, ToolResult


def narrow(ctx: ToolContext, output_limit: int) -> ToolContext:
    return ToolContext(ctx.hands, ctx.key, ctx.timeout_s, output_limit, ctx.agent)


@pytest.mark.parametrize("tool", [ReadFile(), ListDir(), Search(), WriteFile(), EditFile()])
def test_needs_name_the_path_in_canonical_form(tool: Any) -> None:
    name = "filesystem-write" if isinstance(tool, WriteFile | EditFile) else "filesystem-read"
    for path in ("src/a.py", "./src//a.py", "src/x/../a.py", "/workspace/src/a.py"):
        assert tool.needs({"path": path}) == (Capability(name, paths=("src/a.py",)),)
    for path in ("../x", "/etc/passwd", "~/x", "a\0b", "/workspace/../etc", "/workspaces"):
        with pytest.raises(CapabilityError):
            tool.needs({"path": path})


def test_without_a_path_the_whole_workspace_is_needed() -> None:
    assert ListDir().needs({}) == (Capability("filesystem-read", paths=(".",)),)


async def test_read_file_gives_the_text(ctx: ToolContext) -> None:
    result = await ReadFile().call({"path": "src/a.py"}, ctx)
    assert result == ToolResult("one = 1\ntwo = 2\nthree = 3\n", data={"size": 26, "lines": 3})


async def test_read_file_gives_some_lines_and_says_so(ctx: ToolContext) -> None:
    result = await ReadFile().call({"path": "src/a.py", "start": 2, "limit": 1}, ctx)
    assert result.text == "two = 2\n[lines 2 to 2 of 3]"
    result = await ReadFile().call({"path": "src/a.py"}, narrow(ctx, 17))
    assert result.text == "one = 1\ntwo = 2\n[lines 1 to 2 of 3]"
    result = await ReadFile().call({"path": "src/a.py"}, narrow(ctx, 3))
    assert result.text == "one\n[lines 1 to 1 of 3; line 1 is cut short]"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"path": "none"}, "none does not exist"),
        ({"path": "src"}, "src is a folder"),
        ({"path": "src/bin"}, "src/bin is a binary file of 3 bytes"),
        ({"path": "src/pipe"}, "src/pipe is not a regular file"),
        ({"path": "src/a.py", "start": 9}, "src/a.py has 3 lines; there is no line 9"),
    ],
)
async def test_read_file_says_why_not(ctx: ToolContext, workspace: Path, args: dict[str, Any], says: str) -> None:
    (workspace / "src/bin").write_bytes(b"a\0b")
    os.mkfifo(workspace / "src/pipe")
    result = await ReadFile().call(args, ctx)
    assert result.failed
    assert says in result.text


async def test_read_file_of_an_empty_file(ctx: ToolContext, workspace: Path) -> None:
    (workspace / "empty").touch()
    assert (await ReadFile().call({"path": "empty"}, ctx)).text == "[the file is empty]"


async def test_list_dir(ctx: ToolContext, workspace: Path) -> None:
    (workspace / "link").symlink_to("src")
    (workspace / "nothing").mkdir()
    assert (await ListDir().call({}, ctx)).text == "README.md  10\nlink@\nnothing/\nsrc/"
    assert (await ListDir().call({"path": ".", "depth": 2}, ctx)).text.endswith("src/\nsrc/a.py  26")
    assert (await ListDir().call({"path": "nothing"}, ctx)).text == "[the folder is empty]"
    failed = await ListDir().call({"path": "README.md"}, ctx)
    assert (failed.failed, failed.data) == (True, {"error": "not-found"})


async def test_search(ctx: ToolContext) -> None:
    assert (await Search().call({"pattern": "two"}, ctx)).text == "src/a.py:2: two = 2"
    found = await Search().call({"pattern": r"^\w+ = [13]$", "regex": True, "glob": "*.py", "limit": 2}, ctx)
    assert found.text == "src/a.py:1: one = 1\nsrc/a.py:3: three = 3\n[stopped: the limit of matches]"
    assert (await Search().call({"pattern": "absent"}, ctx)).text == "no match in 2 files"
    assert (await Search().call({"pattern": "(", "regex": True}, ctx)).failed


async def test_write_file_leaves_evidence_that_a_probe_can_read(ctx: ToolContext, workspace: Path) -> None:
    tool, args = WriteFile(), {"path": "src/new/b.py", "content": "x = 'ä'\n"}
    after = hashlib.sha256(args["content"].encode()).hexdigest()
    evidence = await tool.evidence(args, ctx)
    assert evidence == {"path": "src/new/b.py", "before": None, "after": after}
    assert not (workspace / "src/new").exists()
    assert await tool.probe(args, evidence, ctx) == "not-happened"
    result = await tool.call(args, ctx)
    assert result == ToolResult("created src/new/b.py, 9 bytes", data={"path": "src/new/b.py", "sha256": after})
    assert (workspace / "src/new/b.py").read_text() == args["content"]
    assert await tool.probe(args, evidence, ctx) == "happened"
    assert tool.happened(args, evidence) == result
    (workspace / "src/new/b.py").write_text("someone else")
    assert await tool.probe(args, evidence, ctx) == "unknown"


async def test_write_file_replaces(ctx: ToolContext) -> None:
    args = {"path": "src/a.py", "content": ""}
    evidence = await WriteFile().evidence(args, ctx)
    result = await WriteFile().call(args, ctx)
    assert result.text == "wrote src/a.py, 0 bytes"
    assert WriteFile().happened(args, evidence) == result


async def test_write_file_says_why_not(ctx: ToolContext) -> None:
    result = await WriteFile().call({"path": "README.md", "content": "x"}, ctx)
    assert result == ToolResult("README.md is not writable here", failed=True, data={"error": "read-only"})
    assert (await WriteFile().call({"path": "src", "content": "x"}, ctx)).text == "src is a folder"


async def test_edit_file_leaves_evidence_that_a_probe_can_read(ctx: ToolContext, workspace: Path) -> None:
    tool, args = EditFile(), {"path": "src/a.py", "old": "two = 2", "new": "two = 22"}
    evidence = await tool.evidence(args, ctx)
    assert await tool.probe(args, evidence, ctx) == "not-happened"
    result = await tool.call(args, ctx)
    assert result.text == "edited src/a.py, 1 replacement"
    assert (workspace / "src/a.py").read_text() == "one = 1\ntwo = 22\nthree = 3\n"
    assert await tool.probe(args, evidence, ctx) == "happened"
    assert tool.happened(args, evidence) == result
    (workspace / "src/a.py").unlink()
    assert await tool.probe(args, evidence, ctx) == "unknown"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"old": "four", "new": "x"}, "does not contain the old text"),
        ({"old": " = ", "new": "x"}, "contains the old text 3 times, not 1"),
        ({"old": " = ", "new": "x", "count": 2}, "contains the old text 3 times, not 2"),
    ],
)
async def test_an_edit_that_cannot_be_made_has_not_happened(ctx: ToolContext, args: dict[str, Any], says: str) -> None:
    args = {"path": "src/a.py", **args}
    evidence = await EditFile().evidence(args, ctx)
    assert evidence["after"] is None
    result = await EditFile().call(args, ctx)
    assert result.failed
    assert says in result.text
    assert await EditFile().probe(args, evidence, ctx) == "not-happened"


async def test_edit_file_with_a_count(ctx: ToolContext, workspace: Path) -> None:
    result = await EditFile().call({"path": "src/a.py", "old": " = ", "new": "=", "count": 3}, ctx)
    assert result.text == "edited src/a.py, 3 replacements"
    assert (workspace / "src/a.py").read_text() == "one=1\ntwo=2\nthree=3\n"
