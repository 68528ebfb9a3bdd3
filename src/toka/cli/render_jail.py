"""What `toka jail` says on stderr of a command and of what it was refused: what was seen, and no further."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toka.cli.text import SHORT, line_of, some
from toka.core.capability import Capability, Grant
from toka.core.catalogue import COMMAND_EXECUTION
from toka.core.operator import OperatorPolicy
from toka.core.units import format_duration
from toka.sandbox.command import CommandResult
from toka.sandbox.egress_link import Attempt
from toka.sandbox.egress_rules import EgressRules
from toka.sandbox.level import Level
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.refusal import PROGRAM_LIST as PROGRAMS
from toka.sandbox.refusal import Refusal

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
        level: how strongly it is confined.
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


def refused(job: Jailed, refusal: Refusal) -> str:
    """One refusal as a line: what was tried, which layer refuses it by which rule, and what would allow it."""
    why = f"{refusal.layer}: {refusal.rule}" if refusal.rule else refusal.layer
    if refusal.need is not None:
        remedy = flag(job, refusal.need, refusal.example)
    elif refusal.outside:
        remedy = "no grant reaches outside the workspace"
    else:
        remedy = "no grant allows it"
    tried = f"{refusal.what} {line_of(refusal.subject, SHORT)}".strip()
    return f"refused: {tried} ({line_of(why, SHORT)}); {remedy}"


def ending(
    job: Jailed, result: CommandResult, attempts: Sequence[Attempt], told: Sequence[Refusal] = (), already: int = 0
) -> Iterator[str]:
    """What is known to have been refused, and the limits that were met.

    Args:
        job: the command.
        result: how it ended.
        attempts: its attempts to reach the network.
        told: what was seen to be refused.
        already: how many of these were told when they happened.
    """
    for refusal in told[already:MOST]:
        yield refused(job, refusal)
    if len(told) > MOST:
        yield f"refused: {some(len(told) - MOST, 'more', 'more')}, not shown"
    if result.ended == "refused":
        yield f"nothing was run: {line_of(result.reason)}"
    if result.exceeded is not None and result.ended != "timeout":
        yield result.exceeded.text
    if result.ended == "timeout" and job.timeout_s is not None:
        yield f"timeout of {format_duration(job.timeout_s)} reached"
    if job.level != "none" and not any(refusal.layer == PROGRAMS for refusal in told):
        yield from _refused_program(job, result)
    yield from _refused_hosts(job, attempts)


def _refused_program(job: Jailed, result: CommandResult) -> Iterator[str]:
    """The command itself, where nobody saw that it was refused."""
    program = job.command[0]
    if program in job.policy.refused_programs:
        yield f"{program} is refused: the settings' [policy] denies it"
    elif result.exit_code == NO_PROGRAM and not_listed(program, job.policy):
        yield f"{line_of(program, 80)} is not among the granted programs: {', '.join(job.policy.programs or ())}"
        yield f"  {flag(job, Capability(COMMAND_EXECUTION, programs=(program,)))}"


def not_listed(program: str, policy: SandboxPolicy) -> bool:
    """Whether a list of programs was granted, and it does not hold this one."""
    return policy.programs is not None and "/" not in program and program not in policy.programs


def _refused_hosts(job: Jailed, attempts: Sequence[Attempt]) -> Iterator[str]:
    rules = EgressRules(job.policy.network, job.policy.refused)
    counted = Counter((a.host, a.port, a.reason) for a in attempts if not a.allowed)
    for (host, port, reason), count in list(counted.items())[:MOST]:
        place = f"{line_of(host)}:{port}" if host else "a connection"
        yield f"the proxy refused {place}{f' {count} times' if count > 1 else ''}: {line_of(reason)}"
        need = rules.decide(host, port).need
        if need is not None:
            yield f"  {flag(job, need)}"
    if len(counted) > MOST:
        yield f"the proxy refused {some(len(counted) - MOST, 'more host')}"


def flag(job: Jailed, need: Capability, text: str = "") -> str:
    """What would allow it, if anything can."""
    if not job.operator.bound(Grant((need,))).capabilities:
        return f"the settings' [policy] does not allow {need.text}"
    return f"--grant {shlex.quote(text or need.text)} allows it"
