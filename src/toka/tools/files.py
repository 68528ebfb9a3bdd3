"""Tools for files of the workspace. All work happens inside the agent's sandbox."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from toka.core.capability import Capability, normal_path
from toka.core.catalogue import FILESYSTEM_READ, FILESYSTEM_WRITE
from toka.core.effect import Effect
from toka.tools.tool import Arguments, Probed, ToolContext, ToolResult, cut

PATH: Final = {"type": "string", "minLength": 1, "description": "Path relative to the workspace."}
MOUNT: Final = "/workspace"
SEARCH_S: Final = 30.0
"""Longest time of one search, in seconds: a regular expression can be made to take for ever."""


def path_of(args: Arguments) -> str:
    """The call's path in canonical form. Commands see the workspace at /workspace, so that spelling is taken too.

    Raises:
        CapabilityError: the path is not in the workspace.
    """
    path: str = args.get("path", ".")
    if path == MOUNT or path.startswith(MOUNT + "/"):
        path = path[len(MOUNT) :].lstrip("/") or "."
    return normal_path(path)


def _schema(required: tuple[str, ...], **properties: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _failed(answer: Mapping[str, Any]) -> ToolResult:
    return ToolResult(answer["message"], failed=True, data={"error": answer["error"]})


class _Reading:
    effect: Effect = Effect.PURE

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """Reading the path."""
        return (Capability(FILESYSTEM_READ, paths=(path_of(args),)),)


class ReadFile(_Reading):
    """Reads a text file, or some lines of one."""

    name = "read_file"
    description = (
        "Read a text file. Gives its lines as they are; long files are cut, and a last line in brackets says so. "
        "Use start and limit to read on."
    )
    parameters = _schema(
        ("path",),
        path=PATH,
        start={"type": "integer", "minimum": 1, "description": "First line, counted from 1. Default 1."},
        limit={"type": "integer", "minimum": 1, "description": "Number of lines. Default: as many as fit."},
    )

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        start = args.get("start", 1)
        hands = await ctx.hands()
        answer = await hands.file(
            "read",
            timeout_s=ctx.timeout_s,
            path=path_of(args),
            start=start,
            lines=args.get("limit"),
            limit=ctx.output_limit,
        )
        if "error" in answer:
            return _failed(answer)
        size, total = answer["size"], answer.get("total", 0)
        if answer["binary"]:
            return ToolResult(
                f"{path_of(args)} is a binary file of {size} bytes; it cannot be shown as text", failed=True
            )
        if start > max(1, total):
            return ToolResult(f"{path_of(args)} has {total} lines; there is no line {start}", failed=True)
        text = answer["body"].decode("utf-8", "replace")
        last = start + answer["count"] - 1
        if answer["cut"] or last < total:
            at = f"; line {last} is cut short" if answer["cut"] else ""
            text += f"{'' if text.endswith(chr(10)) else chr(10)}[lines {start} to {last} of {total}{at}]"
        elif not size:
            text = "[the file is empty]"
        return ToolResult(text, data={"size": size, "lines": total})


class ListDir(_Reading):
    """Lists a folder."""

    name = "list_dir"
    description = "List a folder of the workspace: folders end with /, links with @, files have their size in bytes."
    parameters = _schema(
        (),
        path={**PATH, "description": "Folder relative to the workspace. Default: the workspace."},
        depth={"type": "integer", "minimum": 1, "maximum": 10, "description": "How many levels deep. Default 1."},
    )
    limit: Final = 1000

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        hands = await ctx.hands()
        answer = await hands.file(
            "list", timeout_s=ctx.timeout_s, path=path_of(args), depth=args.get("depth", 1), limit=self.limit
        )
        if "error" in answer:
            return _failed(answer)
        marks = {"folder": "/", "link": "@", "other": "?"}
        rows = [f"{name}{marks.get(kind, f'  {size}')}" for name, kind, size in answer["entries"]]
        if answer["more"]:
            rows.append(f"[only the first {len(rows)} entries are shown]")
        return ToolResult(cut("\n".join(rows) or "[the folder is empty]", ctx.output_limit))


class Search(_Reading):
    """Finds lines in files."""

    name = "search"
    description = (
        "Find lines in the files of the workspace. Gives path:line: text for each match. Left out are binary files, "
        "files over 16 MiB, and the folders .git, node_modules, __pycache__, .venv and target."
    )
    parameters = _schema(
        ("pattern",),
        pattern={"type": "string", "minLength": 1, "maxLength": 1000, "description": "What to find."},
        regex={"type": "boolean", "description": "True: a Python regular expression. Default: literal text."},
        ignore_case={"type": "boolean", "description": "Default false."},
        path={**PATH, "description": "File or folder to search. Default: the workspace."},
        glob={"type": "string", "minLength": 1, "description": "Only files with such a name or path, e.g. *.py"},
        limit={"type": "integer", "minimum": 1, "maximum": 1000, "description": "Number of matches. Default 100."},
    )

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        hands = await ctx.hands()
        answer = await hands.file(
            "search",
            timeout_s=min(ctx.timeout_s, SEARCH_S),
            path=path_of(args),
            pattern=args["pattern"],
            regex=args.get("regex", False),
            ignore_case=args.get("ignore_case", False),
            glob=args.get("glob"),
            limit=args.get("limit", 100),
        )
        if "error" in answer:
            return _failed(answer)
        rows = [f"{path}:{number}: {line}" for path, number, line in answer["matches"]]
        rows = rows or [f"no match in {answer['files']} files"]
        if answer["stopped"]:
            rows.append(f"[stopped: {answer['stopped']}]")
        return ToolResult(ctx.shown("\n".join(rows)), data={"matches": len(answer["matches"])})


class _Writing:
    effect: Effect = Effect.CHECKABLE

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """Writing the path."""
        return (Capability(FILESYSTEM_WRITE, paths=(path_of(args),)),)

    async def probe(self, args: Arguments, evidence: dict[str, Any], ctx: ToolContext) -> Probed:
        """Compares the file with what it was before and what it would be after."""
        hands = await ctx.hands()
        now = await hands.file("hash", timeout_s=ctx.timeout_s, path=path_of(args))
        if "error" in now:
            return "unknown"
        if evidence["after"] is not None and now["sha256"] == evidence["after"]:
            return "happened"
        return "not-happened" if now["sha256"] == evidence["before"] else "unknown"


class WriteFile(_Writing):
    """Creates a file or replaces its contents."""

    name = "write_file"
    description = "Create a file, or replace all of its contents. Missing parent folders are created."
    parameters = _schema(
        ("path", "content"), path=PATH, content={"type": "string", "description": "The whole new contents."}
    )

    async def evidence(self, args: Arguments, ctx: ToolContext) -> dict[str, Any]:
        """The file's SHA-256 before (None: there is none) and after."""
        hands = await ctx.hands()
        now = await hands.file("hash", timeout_s=ctx.timeout_s, path=path_of(args))
        after = hashlib.sha256(args["content"].encode()).hexdigest()
        return {"path": path_of(args), "before": now.get("sha256"), "after": after}

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        hands = await ctx.hands()
        answer = await hands.file(
            "write", timeout_s=ctx.timeout_s, path=path_of(args), token=ctx.key, body=args["content"].encode()
        )
        if "error" in answer:
            return _failed(answer)
        return self._done(args, "created" if answer["created"] else "wrote", answer["sha256"])

    def happened(self, args: Arguments, evidence: dict[str, Any]) -> ToolResult:
        """See CheckableTool."""
        return self._done(args, "created" if evidence["before"] is None else "wrote", evidence["after"])

    def _done(self, args: Arguments, verb: str, sha256: str) -> ToolResult:
        size = len(args["content"].encode())
        return ToolResult(f"{verb} {path_of(args)}, {size} bytes", data={"path": path_of(args), "sha256": sha256})


class EditFile(_Writing):
    """Replaces an exact piece of a file."""

    name = "edit_file"
    description = (
        "Replace an exact piece of text in a file. The old text must match to the last space and occur exactly once, "
        "or exactly `count` times."
    )
    parameters = _schema(
        ("path", "old", "new"),
        path=PATH,
        old={"type": "string", "minLength": 1, "description": "The text to replace."},
        new={"type": "string", "description": "The text to put in its place."},
        count={"type": "integer", "minimum": 1, "description": "How often the old text occurs. Default 1."},
    )

    async def _edit(self, args: Arguments, ctx: ToolContext, *, dry: bool) -> dict[str, Any]:
        hands = await ctx.hands()
        return await hands.file(
            "edit",
            timeout_s=ctx.timeout_s,
            path=path_of(args),
            old=args["old"],
            new=args["new"],
            count=args.get("count", 1),
            dry=dry,
            token=ctx.key,
        )

    async def evidence(self, args: Arguments, ctx: ToolContext) -> dict[str, Any]:
        """The file's SHA-256 before and after; `after` is None when the edit cannot be made."""
        answer = await self._edit(args, ctx, dry=True)
        if "error" not in answer:
            return {"path": path_of(args), "before": answer["before"], "after": answer["after"]}
        now = await (await ctx.hands()).file("hash", timeout_s=ctx.timeout_s, path=path_of(args))
        return {"path": path_of(args), "before": now.get("sha256"), "after": None}

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        answer = await self._edit(args, ctx, dry=False)
        return _failed(answer) if "error" in answer else self._done(args, answer["after"])

    def happened(self, args: Arguments, evidence: dict[str, Any]) -> ToolResult:
        """See CheckableTool."""
        return self._done(args, evidence["after"])

    def _done(self, args: Arguments, sha256: str) -> ToolResult:
        count = args.get("count", 1)
        times = "1 replacement" if count == 1 else f"{count} replacements"
        return ToolResult(f"edited {path_of(args)}, {times}", data={"path": path_of(args), "sha256": sha256})
