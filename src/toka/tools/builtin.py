"""The tools that come with Toka, and which of them a grant gives."""

from __future__ import annotations

from toka.core.capability import Grant
from toka.core.catalogue import COMMAND_EXECUTION, FILESYSTEM_READ, FILESYSTEM_WRITE
from toka.core.limits import Limits
from toka.sandbox.policy import compile_policy
from toka.tools.files import EditFile, ListDir, ReadFile, Search, WriteFile
from toka.tools.shell import RunCommand
from toka.tools.tool import Tool


def builtin_tools() -> tuple[Tool, ...]:
    """Every tool, as an agent with all rights has them."""
    return (ReadFile(), ListDir(), Search(), WriteFile(), EditFile(), RunCommand())


def tools_for(grant: Grant) -> tuple[Tool, ...]:
    """The tools that are of any use with a grant. Each call is checked against the grant again, with its arguments."""
    tools: list[Tool] = []
    writing = grant.named(FILESYSTEM_WRITE)
    if grant.named(FILESYSTEM_READ) or writing:
        tools += [ReadFile(), ListDir(), Search()]
    if writing:
        tools += [WriteFile(), EditFile()]
    if grant.named(COMMAND_EXECUTION):
        tools.append(RunCommand(compile_policy(grant, Limits()).programs))
    return tuple(tools)
