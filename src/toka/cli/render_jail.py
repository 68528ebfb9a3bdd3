"""What `toka jail` says on stderr: as far as it is known from outside, and no further."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toka.cli.text import Cell, Paint, columns, line_of, some
from toka.core.capability import Capability, Grant
from toka.core.catalogue import COMMAND_EXECUTION, FILESYSTEM_WRITE, GIT_ACCESS, NETWORK_ACCESS
from toka.core.operator import OperatorPolicy
from toka.core.units import format_bytes, format_cpu, format_duration, format_rate
from toka.sandbox.command import CommandResult
from toka.sandbox.egress_link import Attempt
from toka.sandbox.egress_rules import EgressRules
from toka.sandbox.host import Sandbox
from toka.sandbox.level import Level
from toka.sandbox.mounts import WORKSPACE
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import PROXY_PORT
from toka.sandbox.selftest import SelfTest

MOST: Final = 10
"""Different refusals that are shown."""
NO_PROGRAM: Final = 127


@dataclass(frozen=True, slots=True)
class Jailed:
    """A command to confine.

    Attributes:
        command: the program and its arguments.
        workspace: the folder on the host.
        policy: what the sandbox lets through.
        timeout_s: seconds after which it is killed; None = never.
        operator: the rules of the settings.
        grant: what was asked, before those rules.
        explain: whether to say what is in force.
    """

    command: tuple[str, ...]
    workspace: Path
    policy: SandboxPolicy
    timeout_s: float | None
    operator: OperatorPolicy
    grant: Grant
    explain: bool
    level: Level = "full"


def before(job: Jailed, home: Path) -> Iterator[str]:
    """What a person should know before the command starts."""
    bound = job.operator.bound(job.grant)
    for capability in job.grant.capabilities:
        if bound.covering(capability) is None:
            yield f"the settings' [policy] does not allow all of it: {capability.text}"
    place = job.workspace.resolve()
    if job.policy.reads and home.resolve().is_relative_to(place):
        yield f"the workspace {place} holds your home directory: what the grant covers of it can be read inside"


def ending(job: Jailed, result: CommandResult, attempts: Sequence[Attempt]) -> Iterator[str]:
    """What is known to have been refused, and the limits that were met."""
    if result.ended == "refused":
        yield f"nothing was run: {line_of(result.reason)}"
    if result.exceeded is not None and result.ended != "timeout":
        yield result.exceeded.text
    if result.ended == "timeout" and job.timeout_s is not None:
        yield f"timeout of {format_duration(job.timeout_s)} reached"
    program = job.command[0]
    if program in job.policy.refused_programs:
        yield f"{program} is refused: the settings' [policy] denies it"
    elif result.exit_code == NO_PROGRAM and _not_listed(program, job.policy):
        yield f"{line_of(program, 80)} is not among the granted programs: {', '.join(job.policy.programs or ())}"
        yield f"  {_flag(job, Capability(COMMAND_EXECUTION, programs=(program,)))}"
    yield from _refused_hosts(job, attempts)


def _not_listed(program: str, policy: SandboxPolicy) -> bool:
    return policy.programs is not None and "/" not in program and program not in policy.programs


def _refused_hosts(job: Jailed, attempts: Sequence[Attempt]) -> Iterator[str]:
    rules = EgressRules(job.policy.network, job.policy.refused)
    counted = Counter((a.host, a.port, a.reason) for a in attempts if not a.allowed)
    for (host, port, reason), count in list(counted.items())[:MOST]:
        place = f"{line_of(host)}:{port}" if host else "a connection"
        yield f"the proxy refused {place}{f' {count} times' if count > 1 else ''}: {line_of(reason)}"
        need = rules.decide(host, port).need
        if need is not None:
            yield f"  {_flag(job, need)}"
    if len(counted) > MOST:
        yield f"the proxy refused {some(len(counted) - MOST, 'more host')}"


def _flag(job: Jailed, need: Capability, text: str = "") -> str:
    """What would allow it, if anything can."""
    if not job.operator.bound(Grant((need,))).capabilities:
        return f"the settings' [policy] does not allow {need.text}"
    return f"--grant {shlex.quote(text or need.text)} allows it"


def layers(job: Jailed, sandbox: Sandbox, test: SelfTest | None) -> list[str]:
    """What is in force, one line per layer; what the self-test has seen, the limits as they are held."""
    policy = job.policy
    held = {e.limit: e.how for e in sandbox.keeper.enforced}
    amounts = {
        "memory": policy.memory_bytes and format_bytes(policy.memory_bytes),
        "cpu": policy.cpu_cores and format_cpu(policy.cpu_cores),
        "processes": str(policy.processes),
        "disk": policy.disk_bytes and format_bytes(policy.disk_bytes),
        "network": policy.network_bps and format_rate(policy.network_bps),
    }
    shown = {access: [o.target for o in sandbox.granted.opened if o.rule.access == access]
             for access in ("read", "write", "hide")}  # fmt: skip
    rows: list[Sequence[Cell]] = [
        ["mounts", f"read-only: {_listed([*shown['read'], '/usr', 'parts of /etc'])}"],
        ["", f"writable: {_listed([*shown['write'], f'/tmp ({format_bytes(policy.tmp_bytes)}, gone at the end)'])}"],
    ]
    if shown["hide"]:
        rows.append(["", f"empty: {_listed(shown['hide'])}"])
    version = test.landlock if test is not None else 0
    rows += [
        ["Landlock", f"version {version}, the same paths once more" if version else "not in this kernel"],
        ["seccomp", "no namespaces, mounts, tracing, kernel modules, foreign sockets, typing into terminals"],
        ["user", f"{sandbox.host_uid()} on this machine, without capabilities and ways to gain any"],
    ]
    for kind, amount in amounts.items():
        if amount:
            rows.append([f"limit {kind}", f"{amount}: {held.get(kind, '')}"])
    if job.timeout_s is not None:
        rows.append(["limit timeout", f"{format_duration(job.timeout_s)}: SIGKILL for all of it"])
    hosts = "; ".join(c.text for c in policy.network)
    rows.append(["network", f"only 127.0.0.1:{PROXY_PORT}, the proxy: {hosts}" if hosts else "none, and no proxy"])
    rows += [["note", line_of(note)] for note in sandbox.notes]
    return ["toka: in force:", *(f"  {line}" for line in columns(rows))]


def wider(job: Jailed, paint: Paint) -> list[str]:
    """After a command that failed: what is allowed, and the flags that allow more."""
    policy = job.policy
    reads = [_inside(p) for p in policy.reads]
    writes = [_inside(p) for p in policy.writes]
    programs = "any of the system" if policy.programs is None else ", ".join(policy.programs)
    rows: list[Sequence[Cell]] = [
        ["read", f"{_listed([*reads, *writes, '/usr'])}. Nothing else exists inside: no /root, /home, /run, /var"],
        ["write", f"{_listed([*writes, '/tmp'])}"],
        ["programs", programs + "".join(f", not {p}" for p in policy.refused_programs)],
        ["network", "; ".join(c.text for c in policy.network) or "none"],
    ]
    more: list[tuple[Capability, str, str]] = []
    if "." not in policy.writes:
        whole = Capability(FILESYSTEM_WRITE)
        more.append((whole, "filesystem-write: src", "makes src writable; filesystem-write alone, the whole workspace"))
    if policy.programs is not None:
        name = job.command[0] if _not_listed(job.command[0], policy) else "PROGRAM"
        more.append((Capability(COMMAND_EXECUTION), f"command-execution: {name}", "adds a program"))
    more.append((Capability(NETWORK_ACCESS), "network-access: HOST", "lets it reach a host, through the proxy"))
    if policy.git:
        rows.append([".git", "writable, but for hooks and config"])
    elif (job.workspace / ".git").exists():
        more.append((Capability(GIT_ACCESS), GIT_ACCESS, "makes .git writable, but for hooks and config"))
    for need, text, what in more:
        if job.operator.bound(Grant((need,))).capabilities:
            rows.append([("wider", "info"), f"--grant {shlex.quote(text)} {what}"])
    head = "toka: what was refused inside cannot be seen from outside; this is what was allowed:"
    return [
        head,
        *(f"  {line}" for line in columns(rows, paint=paint)),
        "toka: which layer an error comes from that the command printed:",
        *(f"  {line}" for line in columns(list(_errors(job)))),
    ]


def _errors(job: Jailed) -> Iterator[Sequence[Cell]]:
    """The errors that a program meets at each layer, as it prints them, and what would allow what was tried."""

    def granted(need: Capability, text: str) -> str:
        return f"; {_flag(job, need, text)}"

    write = granted(Capability(FILESYSTEM_WRITE), "filesystem-write: PATH")
    yield "No such file or directory", "mounts: what is not granted does not exist inside"
    yield "Read-only file system", f"mounts: the path may only be read{write} below /workspace"
    yield "Permission denied", "Landlock, a mount from which no program may be run, or the mode of the file"
    yield "Operation not permitted", "seccomp, or a capability that nobody has inside; no grant allows it"
    network = granted(Capability(NETWORK_ACCESS), "network-access: HOST")
    yield "Address family not supported", f"seccomp: no such sockets{'' if job.policy.network else network}"
    yield "Resource temporarily unavailable", f"the limit of processes, {job.policy.processes}; --limit processes=N"


def _inside(path: str) -> str:
    return WORKSPACE if path == "." else f"{WORKSPACE}/{path}"


def _listed(items: Sequence[str]) -> str:
    shown = [line_of(item, 80) for item in items[:MOST]]
    return ", ".join(shown) + (f" and {len(items) - MOST} more" if len(items) > MOST else "")
