"""The tools of a process, its own and others', and which of them a grant gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from toka.core.capability import Capability, CapabilityError, Grant
from toka.core.catalogue import COMMAND_EXECUTION, FILESYSTEM_READ, FILESYSTEM_WRITE, GIT_ACCESS, NETWORK_ACCESS, REMOTE
from toka.core.limits import Limits
from toka.errors import UsageError
from toka.sandbox.policy import compile_policy
from toka.tools.files import EditFile, ListDir, ReadFile, Search, WriteFile
from toka.tools.git import Git
from toka.tools.http import HttpRequest
from toka.tools.python import PROGRAM, Python
from toka.tools.script import ScriptTool
from toka.tools.shell import RunCommand
from toka.tools.tool import Tool

_EVERYTHING = Capability(FILESYSTEM_READ, paths=(".",))
_PYTHON = Capability(COMMAND_EXECUTION, programs=(PROGRAM,))
_SAMPLES: Final = (".", "https://example.org/", "true")
"""Texts of which one is an acceptable argument of most tools."""
_NO_HOSTS: Final[Mapping[str, int]] = MappingProxyType({})


def builtin_tools() -> tuple[Tool, ...]:
    """Every tool, as an agent with all rights has them."""
    return (
        ReadFile(), ListDir(), Search(), WriteFile(), EditFile(), RunCommand(), Python(), Git(), HttpRequest(),
    )  # fmt: skip


def tools_for(grant: Grant, keyed: Mapping[str, int] = _NO_HOSTS, toolchains: tuple[str, ...] = ()) -> tuple[Tool, ...]:
    """The built-in tools that are of any use with a grant. Each call is checked against it again, with its arguments.

    Args:
        grant: an agent's.
        keyed: hosts to which the proxy adds a key, with the port where they take HTTPS.
        toolchains: folders of programs that the sandbox shows.
    """
    tools: list[Tool] = []
    writing, network = grant.named(FILESYSTEM_WRITE), grant.named(NETWORK_ACCESS)
    if grant.named(FILESYSTEM_READ) or writing:
        tools += [ReadFile(), ListDir(), Search()]
    if writing:
        tools += [WriteFile(), EditFile()]
    if grant.named(COMMAND_EXECUTION):
        tools.append(RunCommand(compile_policy(grant, Limits()).programs, network, toolchains))
    if grant.covering(_PYTHON):
        tools.append(Python())
    if grant.named(GIT_ACCESS):
        tools.append(Git())
    elif grant.covering(_EVERYTHING):
        tools.append(Git(commits=False))
    if any(c.ports not in REMOTE.values() for c in network):
        tools.append(HttpRequest(keyed))
    return tuple(tools)


@dataclass(frozen=True, slots=True)
class Toolbox:
    """All tools of a process.

    Attributes:
        further: tools beyond the built-in ones.
        keyed: hosts to which the proxy adds a key, with the port where they take HTTPS.
        toolchains: folders of programs that sandboxes show.

    Raises:
        UsageError: two tools have one name.
    """

    further: tuple[Tool, ...] = ()
    keyed: Mapping[str, int] = field(default_factory=lambda: _NO_HOSTS)
    toolchains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what a model could not tell apart."""
        taken: set[str] = set()
        for tool in self:
            if tool.name in taken:
                own = " that comes with Toka" if tool.name in {t.name for t in builtin_tools()} else ""
                raise UsageError(f"another tool{own} is called {tool.name}", hint="give yours another name")
            taken.add(tool.name)

    def __iter__(self) -> Iterator[Tool]:
        """Every tool, the built-in ones first."""
        yield from (*builtin_tools(), *self.further)

    def find(self, name: str) -> Tool | None:
        """The tool of a name, granted or not."""
        return next((tool for tool in self if tool.name == name), None)

    def offered(self, grant: Grant) -> tuple[Tool, ...]:
        """The tools that are of any use with a grant: what a model is shown."""
        return (*tools_for(grant, self.keyed, self.toolchains), *(tool for tool in self.further if _fits(tool, grant)))


def needed_names(tool: Tool) -> tuple[str, ...]:
    """The names of the capabilities that a call of a tool needs; empty when that depends on the call."""
    if isinstance(tool, ScriptTool):
        return tool.capabilities
    required = set(tool.parameters.get("required", ()))
    properties: Mapping[str, Mapping[str, Any]] = tool.parameters.get("properties", {})
    for text in _SAMPLES:
        arguments = {name: _sample(schema, text) for name, schema in properties.items() if name in required}
        try:
            needs = tool.needs(arguments)
        except (CapabilityError, LookupError, TypeError, ValueError):
            continue
        return tuple(dict.fromkeys(need.name for need in needs))
    return ()


def _fits(tool: Tool, grant: Grant) -> bool:
    if isinstance(tool, ScriptTool):
        return tool.fits(grant)
    return all(grant.named(name) for name in needed_names(tool))


def _sample(schema: Mapping[str, Any], text: str) -> Any:
    """A value that a schema accepts, more or less."""
    if options := schema.get("enum"):
        return options[0]
    values: dict[str, Any] = {"integer": schema.get("minimum", 1), "boolean": False, "array": [text], "object": {}}
    return values.get(schema.get("type", "string"), text)
