"""The tool that runs commands in the agent's sandbox."""

from __future__ import annotations

import shlex
from typing import Final

from toka.core.capability import Capability, CapabilityError
from toka.core.catalogue import COMMAND_EXECUTION
from toka.core.effect import Effect
from toka.sandbox.command import CommandResult
from toka.sandbox.host import shell
from toka.tools.tool import Arguments, ToolContext, ToolResult, cut

_UNQUOTED: Final = frozenset(";&|<>()$`*?[{\n")
_IN_DOUBLE_QUOTES: Final = frozenset("$`")


def shell_syntax(command: str) -> str:
    """The first character that only a shell would understand; empty when there is none.

    Quoted and escaped characters are plain text, as in a shell.
    """
    quote = ""
    escaped = False
    for at, char in enumerate(command):
        if escaped:
            escaped = False
            if quote and char in _IN_DOUBLE_QUOTES:  # shlex would keep the backslash, a shell would not
                return char
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            if char == quote:
                quote = ""
            elif quote == '"' and char in _IN_DOUBLE_QUOTES:
                return char
        elif char in "'\"":
            quote = char
        elif char in _UNQUOTED or (char in "~#" and (not at or command[at - 1].isspace())):
            return char
    return ""


def split(command: str) -> list[str]:
    """The words of a command that needs no shell.

    Raises:
        CapabilityError: it does need one, or it is empty or badly quoted.
    """
    if found := shell_syntax(command):
        sign = "a line break" if found == "\n" else found
        raise CapabilityError(
            f"only listed programs may run, and no shell is one of them: {sign} has no meaning here; give one program "
            "with its arguments, in quotes where they hold special characters"
        )
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CapabilityError(f"the command cannot be split into words: {error}") from None
    if not words:
        raise CapabilityError("the command is empty")
    return words


class RunCommand:
    """Runs a command line.

    With any program granted, /bin/sh interprets the line. With a list, the line is one listed program with arguments.
    The list is what the agent may name; a listed program that starts others, such as an interpreter, does so freely
    inside the same mounts, limits and lack of network.
    """

    name = "run_command"
    effect: Effect = Effect.ONCE

    def __init__(self, programs: tuple[str, ...] | None = None) -> None:
        """Makes the tool for a grant.

        Args:
            programs: the programs that may be named; None: any.
        """
        self._programs = programs
        if programs is None:
            how = "The command line is interpreted by /bin/sh."
        else:
            how = f"One program with its arguments, without a shell. Programs: {', '.join(programs)}."
        self.description = (
            "Run a command in the workspace, without network. Gives standard output and standard error together, and "
            f"the exit code if it is not 0. {how} All it started ends with it."
        )
        self.parameters = {
            "type": "object",
            "properties": {"command": {"type": "string", "minLength": 1, "description": "The command line."}},
            "required": ["command"],
            "additionalProperties": False,
        }

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """Any program at all, or the named one.

        Raises:
            CapabilityError: with a list, the command needs a shell or names no program.
        """
        if self._programs is None:
            return (Capability(COMMAND_EXECUTION),)
        return (Capability(COMMAND_EXECUTION, programs=(split(args["command"])[0],)),)

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        command: str = args["command"]
        argv = shell(command) if self._programs is None else split(command)
        hands = await ctx.hands()
        result = await hands.run(argv, env={"TOKA_IDEMPOTENCY_KEY": ctx.key}, timeout_s=ctx.timeout_s)
        return _told(result, ctx)


def _told(result: CommandResult, ctx: ToolContext) -> ToolResult:
    text = cut(result.output.decode("utf-8", "replace"), ctx.output_limit, missing=result.dropped)
    if note := _note(result, ctx):
        text = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}[{note}]"
    return ToolResult(
        text or "[no output]",
        failed=result.exit_code != 0,
        data={
            "ended": result.ended,
            "exit_code": result.exit_code,
            "output_bytes": len(result.output) + result.dropped,
            "wall_s": round(result.wall_s, 3),
            "cpu_s": round(result.cpu_s, 3),
            "max_rss_bytes": result.max_rss_bytes,
            **result.resources,
        },
    )


def _note(result: CommandResult, ctx: ToolContext) -> str:
    """How it ended, when there is something to say."""
    if result.exceeded is not None:
        return f"killed: {result.exceeded.text}"
    match result.ended:
        case "exited":
            code = result.exit_code or 0
            return "" if not code else f"exit code {code}" if code > 0 else f"ended by signal {-code}"
        case "timeout":
            return f"killed after {ctx.timeout_s:g} seconds"
        case "flood":
            return "killed: far too much output"
        case "killed":
            return "killed"
        case "lost":
            return "the sandbox died; the command may have done anything or nothing"
        case "refused":
            return f"not run: {result.reason}"
