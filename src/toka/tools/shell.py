"""The tool that runs commands in the agent's sandbox."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any, Final

from toka.core.capability import Capability, CapabilityError
from toka.core.catalogue import COMMAND_EXECUTION, DEFAULT_PORTS
from toka.core.effect import Effect
from toka.sandbox.command import CommandResult
from toka.sandbox.host import shell
from toka.sandbox.profile import SEARCHED, find_program
from toka.sandbox.toolchain import bin_folders
from toka.tools.inside import inside
from toka.tools.tool import Arguments, ToolContext, ToolResult

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
    inside the same mounts, limits and way out.

    A listed psql reaches its server although it knows no proxy; see `inside_psql.py`.
    """

    name = "run_command"
    effect: Effect = Effect.WORKSPACE

    def __init__(
        self,
        programs: tuple[str, ...] | None = None,
        network: Sequence[Capability] = (),
        toolchains: tuple[str, ...] = (),
    ) -> None:
        """Makes the tool for a grant.

        Args:
            programs: the programs that may be named; None: any.
            network: what may be reached.
            toolchains: folders of programs beside the system's.
        """
        self._programs = programs
        self._toolchains = toolchains
        self._databases = [[list(c.hosts), list(c.ports)] for c in network if c.hosts and c.ports and _odd(c.ports)]
        if programs is None:
            how = "The command line is interpreted by /bin/sh."
        else:
            how = f"One program with its arguments, without a shell. Programs: {', '.join(programs)}."
        self.description = (
            f"Run a command in the workspace, {_way_out(network)}. Gives standard output and standard error together, "
            f"and the exit code if it is not 0. {how} All it started ends with it."
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
        how: dict[str, Any] = {"env": {"TOKA_IDEMPOTENCY_KEY": ctx.key}, "timeout_s": ctx.timeout_s}
        if self._programs is not None and argv[0] == "psql" and self._databases and (psql := find_program("psql")):
            argv = [*inside("inside_psql.py"), json.dumps(self._databases), psql, *argv[1:]]
            return told(await hands.run(argv, **how, chosen_by="tool"), ctx)
        result = await hands.run(argv, **how)
        if self._programs is not None and result.exit_code == 127 and not find_program(argv[0], self._toolchains):
            looked = ":".join((*bin_folders(self._toolchains), SEARCHED))
            return ToolResult(f"{argv[0]} is not installed on this machine where sandboxes look: {looked}", failed=True)
        return told(result, ctx)


def _odd(ports: Sequence[str]) -> bool:
    """Whether there are other ports than that of the web."""
    return tuple(ports) != DEFAULT_PORTS


def _way_out(network: Sequence[Capability]) -> str:
    if not network:
        return "without network"
    return f"with {'; '.join(c.text for c in network)} through the proxy that HTTPS_PROXY names"


def told(result: CommandResult, ctx: ToolContext) -> ToolResult:
    """A command's output and how it ended, when there is something to say about that."""
    text = ctx.shown(result.output.decode("utf-8", "replace"), missing=result.dropped)
    if note := ending(result, ctx.timeout_s):
        text = f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}[{note}]"
    return ToolResult(
        text or "[no output]",
        failed=result.failed,
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


def ending(result: CommandResult, timeout_s: float) -> str:
    """How a command ended; empty when it ended well."""
    over = result.exceeded if result.exceeded is not None and not result.exceeded.of_command else None
    if over is not None and (over.kind == "processes" or over.best_effort) and result.ended == "exited":
        return "; ".join(filter(None, (over.text, _exit(result.exit_code or 0))))
    if over is not None:
        killed = result.ended == "killed" or over.kind == "memory"
        return f"killed: {over.text}" if killed else over.text
    match result.ended:
        case "exited":
            return _exit(result.exit_code or 0)
        case "timeout":
            return f"killed after {timeout_s:g} seconds"
        case "flood":
            return "killed: far too much output"
        case "killed":
            return "killed"
        case "lost":
            return "the sandbox died; the command may have done anything or nothing"
        case "refused":
            return f"not run: {result.reason}"


def _exit(code: int) -> str:
    return "" if not code else f"exit code {code}" if code > 0 else f"ended by signal {-code}"
