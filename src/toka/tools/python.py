"""The tool that runs a piece of Python in the agent's sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toka.core.capability import Capability
from toka.core.catalogue import COMMAND_EXECUTION
from toka.core.effect import Effect
from toka.tools.shell import told
from toka.tools.tool import Arguments, ToolContext, ToolResult

PROGRAM = "python3"


class Python:
    """Runs a snippet as `python3 -c`. It may do what any command of the agent may do, and no more."""

    name = "python"
    effect: Effect = Effect.WORKSPACE
    description = (
        "Run a piece of Python 3 in the workspace: a new process of python3 each time, no input. Gives what "
        "it prints, and the exit code if it is not 0. All it started ends with it."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "code": {"type": "string", "minLength": 1, "maxLength": 30_000, "description": "The program's text."}
        },
        "required": ["code"],
        "additionalProperties": False,
    }

    def needs(self, args: Arguments) -> tuple[Capability, ...]:  # noqa: ARG002 - the same for any code
        """Running python3."""
        return (Capability(COMMAND_EXECUTION, programs=(PROGRAM,)),)

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        hands = await ctx.hands()
        argv = [PROGRAM, "-u", "-c", args["code"]]
        return told(await hands.run(argv, env={"TOKA_IDEMPOTENCY_KEY": ctx.key}, timeout_s=ctx.timeout_s), ctx)
