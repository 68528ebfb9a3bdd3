"""What a run used, as the least set of capabilities that would have allowed it. Pure.

It is learnt from the record: from the tool calls that were made, the hosts that were reached, and what was refused.
What a command did by itself, such as the files it opened, is not in the record; `Lesson.unseen` says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from toka.core.capability import Capability, CapabilityError, Grant
from toka.core.catalogue import (
    COMMAND_EXECUTION,
    FILESYSTEM_READ,
    FILESYSTEM_WRITE,
    GIT_ACCESS,
    NETWORK_ACCESS,
    PRIMITIVES,
)
from toka.events.event import NetworkAttempted, RunCreated, SandboxReady, StepDenied, StepDone, StepIntent
from toka.events.record import Record
from toka.sandbox.policy import SandboxPolicy
from toka.tools.builtin import builtin_tools
from toka.tools.http import HttpRequest
from toka.tools.shell import RunCommand
from toka.tools.tool import Tool

FILES: Final = (FILESYSTEM_READ, FILESYSTEM_WRITE)
HTTP: Final = HttpRequest.name
ATTEMPTS: Final = 200
"""Attempts to reach the network that are recorded of one agent: after as many there may have been more."""
_GIT: Final = re.compile(r"(?:^|[\s;&|(/])git(?:\s|$)")
_KEY: Final = re.compile(r'[\s,]*("(?:[^"\\]|\\.)*")\s*:\s*')
_DECODER: Final = json.JSONDecoder()
_SHELL: Final = RunCommand(())
"""Names the program of a command that needs no shell."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was asked for and refused.

    Attributes:
        what: the tool, or the host and port.
        rule: what decided, or why.
        patch: what would allow it; empty when nothing would.
        count: how often.
    """

    what: str
    rule: str
    patch: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is learnt about one agent.

    Attributes:
        capabilities: the least set that allows what it did, files of one folder together.
        calls: how many acts this rests on.
        unused: what its sandbox let through and nobody used, in words.
        refused: what was asked for and refused; not part of the set.
        unreached: hosts that it was let out to and that did not answer, with the reason; not part of the set.
        unseen: what the record cannot tell, one sentence each.
    """

    capabilities: tuple[Capability, ...] = ()
    calls: int = 0
    unused: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    unreached: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass(slots=True)
class _Seen:
    """What one agent's records say, as they come."""

    calls: dict[str, StepIntent] = field(default_factory=dict[str, StepIntent])
    vain: set[str] = field(default_factory=set[str])
    hosts: dict[tuple[str, int], None] = field(default_factory=dict[tuple[str, int], None])
    unreached: dict[str, None] = field(default_factory=dict[str, None])
    attempts: int = 0
    refused: dict[tuple[str, str, str], int] = field(default_factory=dict[tuple[str, str, str], int])
    policy: SandboxPolicy | None = None


def lessons_of(records: Iterable[Record], load: Callable[[str], Any], tools: Iterable[Tool] = ()) -> dict[str, Lesson]:
    """What is learnt about each agent of a run.

    Args:
        records: of the run, in order.
        load: a large result by its digest; None when it cannot be had.
        tools: beyond the built-in ones; what a call of any other needed cannot be told.
    """
    known = {tool.name: tool for tool in (*builtin_tools(), *tools, _SHELL)}
    seen: dict[str, _Seen] = {}
    for record in records:
        if isinstance(record.event, RunCreated):
            for name in record.event.agents:
                seen.setdefault(name, _Seen())
        if record.stream:
            _look(record.event, seen.setdefault(record.stream, _Seen()), load)
    return {agent: _lesson(each, known) for agent, each in seen.items()}


def _look(event: object, seen: _Seen, load: Callable[[str], Any]) -> None:
    match event:
        case StepIntent() if _kind(event.step) in ("tool", "run", "check"):
            seen.calls[event.step] = event
        case StepDone() if (
            event.failed and _kind(event.step) == "tool" and _in_vain(seen.calls.get(event.step), event.result, load)
        ):
            seen.vain.add(event.step)
        case StepDenied():
            key = (event.what, event.rule, event.patch)
            seen.refused[key] = seen.refused.get(key, 0) + 1
        case NetworkAttempted():
            seen.attempts += 1
            if event.allowed and not event.address:
                seen.unreached[f"{event.host}:{event.port}: {event.reason}"] = None
            elif event.allowed:
                seen.hosts[event.host, event.port] = None
            else:
                key = (f"{event.host}:{event.port}" if event.port else event.host, event.reason, event.patch)
                seen.refused[key] = seen.refused.get(key, 0) + 1
        case SandboxReady():
            seen.policy = SandboxPolicy.from_json(event.policy)
        case _:
            pass


def _in_vain(call: StepIntent | None, result: Any, load: Callable[[str], Any]) -> bool:
    """Whether a call got nothing: the file was not there or not what was expected, the host did not answer."""
    value = _mapping(result)
    if isinstance(digest := value.get("blob"), str):
        value = _mapping(load(digest))
    data = _mapping(value.get("data"))
    return "error" in data or (call is not None and call.what == HTTP and "status" not in data)


def _whole(arguments: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The arguments of a call, and the name of one of which only the beginning is recorded.

    Of large arguments the record holds the beginning of their text: those before that one are whole, those after it
    are lost.
    """
    text: object = arguments.get("cut")
    if not isinstance(text, str) or arguments.keys() != {"cut", "characters", "sha256"}:
        return arguments, ""
    out: dict[str, Any] = {}
    at = 1
    while found := _KEY.match(text, at):
        name: str = json.loads(found[1])
        try:
            value, at = _DECODER.raw_decode(text, found.end())
        except ValueError:
            return out, name
        if not text.startswith((",", "}"), at):
            return out, name  # a number that may go on
        out[name] = value
    return out, ""


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


@dataclass(slots=True)
class _Needs:
    """What the acts of one agent needed: capabilities, lines for a shell, lines of commands, tools nobody knows."""

    found: list[Capability] = field(default_factory=list[Capability])
    shells: list[str] = field(default_factory=list[str])
    lines: list[str] = field(default_factory=list[str])
    persons: int = 0
    ran: int = 0
    unknown: dict[str, None] = field(default_factory=dict[str, None])


def _needs(calls: Iterable[StepIntent], tools: Mapping[str, Tool]) -> _Needs:
    out = _Needs()
    for call in calls:
        if _kind(call.step) != "tool":
            out.lines.append(call.what)
            out.persons += 1
            continue
        arguments, begun = _whole(_mapping(call.arguments))
        line = str(arguments.get("command", ""))
        out.lines.append(line)
        try:
            tool = tools[call.what]
            required: Sequence[str] = tool.parameters.get("required", [])
            if any(name not in arguments and name != begun for name in required):
                raise LookupError(call.what)
            needs = tool.needs(arguments)
        except CapabilityError:  # a line for a shell: any program at all
            needs = (Capability(COMMAND_EXECUTION),)
            out.shells.append(line)
        except (AttributeError, LookupError, TypeError, ValueError):
            out.unknown[call.what] = None
            continue
        out.found += needs
        out.ran += any(need.name == COMMAND_EXECUTION for need in needs)
    return out


def _lesson(seen: _Seen, tools: Mapping[str, Tool]) -> Lesson:
    used = [call for step, call in seen.calls.items() if step not in seen.vain]
    needs = _needs(used, tools)
    git = seen.policy is not None and seen.policy.git and any(_GIT.search(line) for line in needs.lines)
    further = [Capability(GIT_ACCESS)] if git else []
    capabilities = tuple(_least((*needs.found, *_network(seen.hosts), *further)))
    return Lesson(
        capabilities,
        len(used),
        tuple(_unused(seen.policy, capabilities)) if seen.policy is not None else (),
        tuple(Refusal(*key, count) for key, count in seen.refused.items()),
        tuple(seen.unreached),
        tuple(_unseen(seen, needs)),
    )


def _network(hosts: Iterable[tuple[str, int]]) -> Iterator[Capability]:
    for host, port in hosts:
        try:
            yield Capability(NETWORK_ACCESS, hosts=(host,), ports=(str(port),))
        except CapabilityError:  # an older record's, or somebody edited it
            continue


def _least(needs: Iterable[Capability]) -> Iterator[Capability]:
    """Needs of one name as one capability, files that share a folder as that folder."""
    by: dict[tuple[str, tuple[str, ...] | None], list[Capability]] = {}
    for need in Grant(tuple(needs)).capabilities:
        by.setdefault((need.name, need.ports), []).append(need)
    found: list[Capability] = []
    for (name, ports), alike in by.items():
        taken = [a for a in PRIMITIVES.get(name, ()) if a != "ports"]
        items: dict[str, tuple[str, ...] | None] = {}
        for argument in taken:
            values: list[tuple[str, ...] | None] = [getattr(each, argument) for each in alike]
            items[argument] = None if None in values else tuple(v for value in values for v in value or ())
        if name in FILES and (paths := items["paths"]) is not None:
            items["paths"] = grouped(paths)
        found.append(Capability(name, ports=ports, **items))
    writes = [c for c in found if c.name == FILESYSTEM_WRITE]
    for each in found:
        if each.name == FILESYSTEM_READ and writes and each.paths is not None:
            left = tuple(p for p in each.paths if not any(w.covers(_write(p)) for w in writes))
            each = Capability(FILESYSTEM_READ, paths=left)
        if not each.empty:
            yield each


def _write(path: str) -> Capability:
    return Capability(FILESYSTEM_WRITE, paths=(path,))


def grouped(paths: Iterable[str]) -> tuple[str, ...]:
    """Paths, those of one folder as the folder when there are several. Files of the workspace itself stay single."""
    folders: dict[str, list[str]] = {}
    for path in sorted(set(paths)):
        folders.setdefault(path.rpartition("/")[0], []).append(path)
    out: list[str] = []
    for folder, inside in folders.items():
        out += [folder] if folder and len(inside) > 1 else inside
    return Capability(FILESYSTEM_READ, paths=tuple(out)).paths or ()


def _unused(policy: SandboxPolicy, used: Sequence[Capability]) -> Iterator[str]:
    """What a sandbox let through beyond what was used, in words."""
    names = {capability.name for capability in used}
    grant = Grant(tuple(used))
    for path in policy.writes:
        if not _touched(path, grant.named(FILESYSTEM_WRITE)):
            yield f"filesystem-write: {path}"
    for path in policy.reads:
        if not _touched(path, (*grant.named(FILESYSTEM_READ), *grant.named(FILESYSTEM_WRITE))):
            yield f"filesystem-read: {path}"
    if COMMAND_EXECUTION not in names and policy.programs != ():
        yield COMMAND_EXECUTION
    if NETWORK_ACCESS not in names and policy.network:
        yield NETWORK_ACCESS
    if GIT_ACCESS not in names and policy.git:
        yield GIT_ACCESS


def _touched(path: str, used: Iterable[Capability]) -> bool:
    """Whether something at or below a granted path was used."""
    granted = Capability(FILESYSTEM_READ, paths=(path,))
    return any(granted.intersect(Capability(FILESYSTEM_READ, paths=each.paths)) for each in used)


def _unseen(seen: _Seen, needs: _Needs) -> Iterator[str]:
    if commands := needs.persons + needs.ran:
        yield f"which files {_counted(commands, 'command')} touched by themselves: they need their paths, too"
    if needs.persons:
        yield f"what {_counted(needs.persons, 'command')} of `run:` and `check:` started: that needs no capability"
    if needs.shells:
        yield f"which programs {_counted(len(needs.shells), 'line')} for a shell started, such as `{needs.shells[0]}`"
    for tool in needs.unknown:
        yield f"what the tool {tool} needs"
    if seen.attempts >= ATTEMPTS:
        yield f"hosts after the first {ATTEMPTS} attempts"


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def _kind(step: str) -> str:
    return step.split("/")[3] if step.count("/") == 4 else ""
