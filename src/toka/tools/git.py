"""The tool for the workspace's git repository: it reads, and commits paths on the branch that is checked out.

Git runs inside the sandbox, locked into the profile `git`: it can start nothing but itself and reaches no network. The
options say the same once more, since a repository's own settings can name programs to run: hooks, filters, pagers,
signers. So a repository whose files go through a filter, such as git-lfs, cannot be committed to with this tool.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from toka.core.capability import Capability, CapabilityError
from toka.core.catalogue import FILESYSTEM_READ, FILESYSTEM_WRITE, GIT_ACCESS
from toka.core.effect import Effect
from toka.sandbox.command import CommandResult
from toka.sandbox.trusted import TRUSTED
from toka.tools.files import MOUNT, path_of
from toka.tools.shell import ending
from toka.tools.tool import Arguments, Hands, Probed, ToolContext, ToolResult, cut

ENVIRONMENT: Final[Mapping[str, str]] = {
    "GIT_DIR": f"{MOUNT}/.git", "GIT_COMMON_DIR": f"{MOUNT}/.git", "GIT_WORK_TREE": MOUNT,
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ATTR_NOSYSTEM": "1",
    "GIT_LITERAL_PATHSPECS": "1", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1",
    "GIT_ALLOW_PROTOCOL": "", "LC_ALL": "C.UTF-8",
}  # fmt: skip
"""This repository and no other, no settings but its own, paths by their names alone, no questions, no network."""
SETTINGS: Final = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.pager=cat", "core.editor=false", "core.askPass=",
    "core.sshCommand=false", "core.alternateRefsCommand=", "core.quotePath=false", "core.checkStat=minimal",
    "credential.helper=", "protocol.allow=never", "commit.gpgSign=false", "log.showSignature=false",
    "submodule.recurse=false", "diff.ignoreSubmodules=all", "status.submoduleSummary=false", "gc.auto=0",
    "maintenance.auto=false",
)  # fmt: skip
"""What goes before the repository's own settings: nothing that names a program."""
PLAIN_DIFF: Final = ("--no-ext-diff", "--no-textconv", "--no-color")
REVISION: Final = re.compile(r"[A-Za-z0-9@_][A-Za-z0-9@_./^~{}+-]{0,199}")
"""A commit or a range of commits: never an option, and no file in a commit (fullmatch)."""
TRAILER: Final = "Toka-Step"
"""The last line of each commit's message says with this name which step made it."""
TAKES: Final[Mapping[str, tuple[str, ...]]] = {
    "status": ("paths",),
    "diff": ("paths", "revision", "staged"),
    "log": ("paths", "revision", "limit"),
    "commit": ("paths", "message"),
}
_TRAILER_LINE: Final = re.compile(r"[A-Za-z0-9-]+: .+")
_PLACEHOLDERS: Final = tuple(path for path, kind in TRUSTED.items() if kind == "file")
"""Files that the sandbox puts, empty, where none may be created: nobody wants to see or commit those."""
MISSING: Final = 127


class Git:
    """Status, diff, log and commit.

    Reading needs git-access, or the right to read the whole workspace, in which .git lies: it holds every version of
    every file. A commit needs git-access and the right to write each of its paths. It stays on the branch that is
    checked out; no operation switches branches.
    """

    name = "git"
    effect: Effect = Effect.CHECKABLE

    def __init__(self, *, commits: bool = True) -> None:
        """Makes the tool for a grant.

        Args:
            commits: whether it has git-access; without, the tool only reads.
        """
        self._commits = commits
        can = "look at changes and history, and commit" if commits else "look at changes and history"
        self.description = (
            f"The workspace's git repository: {can}. status, diff (of the files; staged: of what is staged; revision: "
            "against or between commits), log" + (", commit (all changes below the paths)." if commits else ".")
        )
        names = [name for name in TAKES if commits or name != "commit"]
        text: dict[str, Any] = {"type": "string", "minLength": 1}
        properties: dict[str, Any] = {
            "command": {"enum": names, "description": "What to do."},
            "paths": {
                "type": "array", "items": {**text, "maxLength": 1000}, "minItems": 1, "maxItems": 200,
                "description": "Files and folders, relative to the workspace, by name: no patterns. Default: all.",
            },
            "revision": {**text, "description": "diff, log: a commit or a range, such as HEAD~1 or main..HEAD."},
            "staged": {"type": "boolean", "description": "diff: what is staged. Default false."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "description": "log: commits. Default 20."},
        }  # fmt: skip
        if commits:
            properties["message"] = {**text, "maxLength": 20_000, "description": "commit: what changed, and why."}
        self.parameters = {
            "type": "object",
            "properties": properties,
            "required": ["command"],
            "additionalProperties": False,
        }

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """See the class.

        Raises:
            CapabilityError: an argument is no path of the workspace, no revision, or does not belong to the command.
        """
        command: str = args["command"]
        if odd := [name for name in args if name != "command" and name not in TAKES[command]]:
            raise CapabilityError(f"git {command} takes no {odd[0]}; it takes {', '.join(TAKES[command])}")
        paths = _paths(args)
        if "revision" in args and not REVISION.fullmatch(args["revision"]):
            raise CapabilityError(f"{args['revision']!r} is not a commit or a range of commits")
        if command != "commit":
            return (Capability(GIT_ACCESS) if self._commits else Capability(FILESYSTEM_READ, paths=(".",)),)
        if not paths or not args.get("message", "").strip():
            raise CapabilityError("git commit needs a message, and the paths whose changes are meant")
        return Capability(GIT_ACCESS), Capability(FILESYSTEM_WRITE, paths=tuple(paths))

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        run = _Run(await ctx.hands(), ctx)
        match args["command"]:
            case "commit":
                return await _commit(run, _paths(args), _message(args["message"], ctx.key))
            case "status":
                return run.told(await run(*_STATUS, "--", *_paths(args)), "[nothing has changed]", _changes)
            case "diff":
                staged = ["--cached"] if args.get("staged") else []
                argv = ["diff", *PLAIN_DIFF, "--ignore-submodules=all", *staged, *_selected(args)]
                return run.told(await run(*argv), "[no difference]")
            case _:
                argv = ["log", *PLAIN_DIFF, "--no-show-signature", f"--max-count={args.get('limit', 20)}"]
                argv += ["--date=iso-strict", "--format=%h %ad %an: %s", *_selected(args)]
                return run.told(await run(*argv), "[no commit]")

    async def evidence(self, args: Arguments, ctx: ToolContext) -> dict[str, Any]:
        """Of a commit: the one before it, None when there is none."""
        if args["command"] != "commit":
            return {"reads": True}
        return {"head": await _Run(await ctx.hands(), ctx).head()}

    async def probe(self, args: Arguments, evidence: dict[str, Any], ctx: ToolContext) -> Probed:  # noqa: ARG002
        """Whether a commit with this step's key was added since. Reading may always be done again."""
        if "reads" in evidence:
            return "not-happened"
        run = _Run(await ctx.hands(), ctx)
        before, now = evidence["head"], await run.head()
        if now == before:
            return "not-happened"
        search = ["log", "-1", "--format=%H", "--fixed-strings", f"--grep={TRAILER}: {ctx.key}"]
        found = await run(*search, "--end-of-options", f"{before}..HEAD" if before else "HEAD", "--")
        return "happened" if found.exit_code == 0 and found.output.strip() else "unknown"

    def happened(self, args: Arguments, evidence: dict[str, Any]) -> ToolResult:  # noqa: ARG002
        """See CheckableTool."""
        return ToolResult(f"committed {', '.join(_paths(args))}")


class _Run:
    """Calls git for one tool call."""

    def __init__(self, hands: Hands, ctx: ToolContext) -> None:
        self._hands = hands
        self._ctx = ctx
        who = {"NAME": ctx.agent, "EMAIL": f"{ctx.agent}@toka.invalid"}
        self._environment = dict(ENVIRONMENT)
        self._environment |= {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in who.items()}

    async def __call__(self, *argv: str) -> CommandResult:
        settings = [part for setting in SETTINGS for part in ("-c", setting)]
        return await self._hands.run(
            ["git", "--no-pager", *settings, *argv],
            env=self._environment,
            timeout_s=self._ctx.timeout_s,
            chosen_by="git",
        )

    async def head(self) -> str | None:
        """The commit that is checked out."""
        found = await self("rev-parse", "--quiet", "--verify", "--end-of-options", "HEAD^{commit}")
        return found.output.decode().strip() if found.exit_code == 0 else None

    def told(self, result: CommandResult, silence: str, shown: Callable[[str], str] = str) -> ToolResult:
        """A result for the model: what git printed, as `shown` changes it, or why it failed."""
        text = result.output.decode("utf-8", "replace")
        if result.exit_code == 0:
            text = self._ctx.shown(shown(text), missing=result.dropped)
            return ToolResult(text if text.strip() else silence)
        if result.exit_code == MISSING:
            return ToolResult("git is not installed on this machine", failed=True)
        if "not a git repository" in text:
            return ToolResult("the workspace is not a git repository, or its .git may not be read", failed=True)
        note = ending(result, self._ctx.timeout_s)
        return ToolResult(cut(f"{text.strip()}\n[{note}]".lstrip(), self._ctx.output_limit), failed=True)


_STATUS: Final = ("status", "--short", "--branch", "--untracked-files=normal", "--ignore-submodules=all")


async def _commit(run: _Run, paths: Sequence[str], message: str) -> ToolResult:
    on = await run("symbolic-ref", "--quiet", "--short", "HEAD")
    if on.exit_code == 1:
        return ToolResult("no branch is checked out, so a commit would belong to none", failed=True)
    others = await run("ls-files", "-z", "--others", "--", *_PLACEHOLDERS)
    added = await run("add", "--all", "--", *paths)
    if others.exit_code or added.exit_code:
        return run.told(others if others.exit_code else added, "")
    unwanted = [name for name in others.output.decode().split("\0") if name and name not in paths]
    if unwanted:
        await run("rm", "--quiet", "--cached", "--ignore-unmatch", "--", *unwanted)
    if (await run("diff", *PLAIN_DIFF, "--ignore-submodules=all", "--cached", "--quiet", "--", *paths)).exit_code == 0:
        return ToolResult("nothing to commit: these paths are as in the last commit", failed=True)
    made = await run("commit", "--no-verify", "--no-gpg-sign", "--cleanup=whitespace", "--only", f"--message={message}",
                     "--", *paths)  # fmt: skip
    result = run.told(made, "committed")
    if result.failed:
        return result
    branch = on.output.decode("utf-8", "replace").strip()
    return ToolResult(result.text, data={"commit": await run.head(), "branch": branch})


def _paths(args: Arguments) -> list[str]:
    """The call's paths in canonical form."""
    paths = [path_of({"path": path}) for path in args.get("paths", ())]
    if own := [path for path in paths if path.split("/")[0].lower() == ".git"]:
        raise CapabilityError(f"{own[0]} belongs to git itself")
    return paths


def _selected(args: Arguments) -> list[str]:
    """The end of a command line: revision and paths, where nothing can be an option."""
    revision = ["--end-of-options", args["revision"]] if "revision" in args else []
    return [*revision, "--", *_paths(args)]


def _message(text: str, key: str) -> str:
    """A commit message with the step's key as its last trailer."""
    text = text.strip()
    *body, last = text.split("\n\n")
    trailers = body and all(_TRAILER_LINE.fullmatch(line) for line in last.splitlines())
    return f"{text}{chr(10) if trailers else chr(10) * 2}{TRAILER}: {key}"


def _changes(text: str) -> str:
    """The status without what the sandbox itself put there; empty when nothing is left but the branch."""
    lines = [line for line in text.splitlines() if line not in [f"?? {name}" for name in _PLACEHOLDERS]]
    if len(lines) == 1 and lines[0].startswith("##"):
        lines.append("[nothing has changed]")
    return "\n".join(lines)
