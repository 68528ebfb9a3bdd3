"""Tools of others that the operator lets work in the process of Toka itself: whatever they do wrong stays a value.

They are trusted with everything this process can do. What is checked is their form, and what is caught is what they
raise; one that blocks the loop blocks every agent of the process, which nothing here can prevent.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any, Final, cast

from toka.core.capability import Capability, CapabilityError
from toka.core.effect import Effect
from toka.errors import SandboxError
from toka.tools.script import EFFECTS, Unfit, checked_parameters
from toka.tools.tool import Arguments, Tool, ToolContext, ToolResult, cut

_MEMBERS: Final = ("name", "description", "parameters", "effect", "needs", "call")


class HostedTool:
    """See Tool: somebody else's, with its form checked once and its exceptions caught in each call."""

    def __init__(self, tool: Tool) -> None:
        """Takes over a tool of the right form; see `load_hosted`."""
        self._tool = tool
        self.name: str = tool.name
        self.description: str = tool.description
        self.parameters: Mapping[str, Any] = tool.parameters
        self.effect: Effect = Effect(tool.effect)

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """See Tool. What it raises instead is a refusal."""
        try:
            return tuple(self._tool.needs(args))
        except CapabilityError:
            raise
        except Exception as error:  # somebody else's code, of which anything may come
            raise CapabilityError(f"the tool {self.name} cannot say what it needs: {_said(error)}") from error

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool. One that raises gives a failure with its kind in `data`, as a script does."""
        try:
            result = cast(object, await self._tool.call(args, ctx))
        except (TimeoutError, SandboxError):
            raise
        except Exception as error:  # noqa: BLE001 - somebody else's code, of which anything may come
            return self._failure("raised", _said(error), ctx)
        if not isinstance(result, ToolResult):
            return self._failure("no-result", f"it gave {type(result).__name__}, no ToolResult", ctx)
        return result

    def _failure(self, kind: str, why: str, ctx: ToolContext) -> ToolResult:
        text = cut(f"the tool {self.name} failed: {why}", ctx.output_limit)
        return ToolResult(text, failed=True, data={"tool_error": kind})


def load_hosted(point: EntryPoint) -> HostedTool:
    """Imports a tool that runs outside the sandbox.

    Raises:
        Unfit: it cannot be imported, or is no tool.
    """
    try:
        loaded = point.load()
        tool: Any = loaded() if isinstance(loaded, type) else loaded
        members = {member: getattr(tool, member) for member in _MEMBERS}
    except Exception as error:  # somebody else's module, of which anything may come
        raise Unfit(f"{point.value} cannot be loaded: {_said(error)}") from error
    if members["name"] != point.name:
        raise Unfit(f"{point.value} calls itself {members['name']!r}")
    if not isinstance(members["description"], str) or not members["description"].strip():
        raise Unfit("it has no description")
    if members["effect"] not in EFFECTS:
        raise Unfit(f"effect is one of {', '.join(EFFECTS)}")
    if not callable(members["needs"]) or not callable(members["call"]):
        raise Unfit("needs and call are methods")
    checked_parameters(members["parameters"])
    return HostedTool(cast(Tool, tool))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
