"""What `toka jail --explain` says is in force, and what more could be granted: at each level as it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from toka.cli.render_jail import MOST, Jailed, flag, not_listed
from toka.cli.text import Cell, Paint, columns, line_of
from toka.core.capability import Capability, Grant
from toka.core.catalogue import COMMAND_EXECUTION, FILESYSTEM_WRITE, GIT_ACCESS, NETWORK_ACCESS
from toka.core.units import format_bytes, format_cpu, format_duration, format_rate
from toka.sandbox.host import Sandbox
from toka.sandbox.level import NO_SANDBOX, REDUCED_SANDBOX
from toka.sandbox.mounts import WORKSPACE
from toka.sandbox.profile import PROXY_PORT
from toka.sandbox.reduced import ReducedSandbox
from toka.sandbox.selftest import SelfTest


def layers(job: Jailed, sandbox: Sandbox, test: SelfTest | None) -> list[str]:
    """What is in force, one line per layer; what the self-test has seen, the limits as they are held."""
    policy = job.policy
    rows: list[Sequence[Cell]] = []
    if isinstance(sandbox, ReducedSandbox):
        rows += _nothing(sandbox) if job.level == "none" else _reduced(job, sandbox, test)
        port = sandbox.port
    else:
        rows += _full(job, sandbox, test)
        port = PROXY_PORT
    held = {e.limit: e.how for e in sandbox.keeper.enforced}
    amounts = {
        "memory": policy.memory_bytes and format_bytes(policy.memory_bytes),
        "cpu": policy.cpu_cores and format_cpu(policy.cpu_cores),
        "processes": str(policy.processes),
        "disk": policy.disk_bytes and format_bytes(policy.disk_bytes),
        "network": policy.network_bps and format_rate(policy.network_bps),
    }
    for kind, amount in amounts.items():
        if amount:
            rows.append([f"limit {kind}", f"{amount}: {held.get(kind, '')}"])
    if job.timeout_s is not None:
        rows.append(["limit timeout", f"{format_duration(job.timeout_s)}: SIGKILL for all of it"])
    hosts = "; ".join(c.text for c in policy.network)
    if job.level == "none":
        rows.append(["network", "all that this machine can reach"])
    else:
        rows.append(["network", f"only 127.0.0.1:{port}, the proxy: {hosts}" if hosts else "none, and no proxy"])
    rows += [["note", line_of(note)] for note in sandbox.notes if note not in (NO_SANDBOX, REDUCED_SANDBOX)]
    return ["toka: in force:", *(f"  {line}" for line in columns(rows))]


def _full(job: Jailed, sandbox: Sandbox, test: SelfTest | None) -> Iterator[Sequence[Cell]]:
    shown = {access: [o.target for o in sandbox.granted.opened if o.rule.access == access]
             for access in ("read", "write", "hide")}  # fmt: skip
    tmp = f"/tmp ({format_bytes(job.policy.tmp_bytes)}, gone at the end)"
    yield ["mounts", f"read-only: {_listed([*shown['read'], '/usr', *job.policy.toolchains, 'parts of /etc'])}"]
    yield ["", f"writable: {_listed([*shown['write'], tmp])}"]
    if shown["hide"]:
        yield ["", f"empty: {_listed(shown['hide'])}"]
    version = test.landlock if test is not None else 0
    yield ["Landlock", f"version {version}, the same paths once more" if version else "not in this kernel"]
    yield ["seccomp", "no namespaces, mounts, tracing, kernel modules, foreign sockets, typing into terminals"]
    yield ["user", f"{sandbox.host_uid()} on this machine, without capabilities and ways to gain any"]


def _reduced(job: Jailed, sandbox: ReducedSandbox, test: SelfTest | None) -> Iterator[Sequence[Cell]]:
    shown = {access: [_outside(job, o.rule.path) for o in sandbox.granted.opened if o.rule.access == access]
             for access in ("read", "write", "hide")}  # fmt: skip
    yield ["level", REDUCED_SANDBOX]
    yield ["mounts", "none of its own: it finds the machine's files, of which Landlock opens few"]
    yield ["Landlock", f"version {test.landlock if test is not None else 0}, on the machine's own paths"]
    yield ["", f"read-only: {_listed([*shown['read'], '/usr', *job.policy.toolchains, 'parts of /etc'])}"]
    yield ["", f"writable: {_listed([*shown['write'], f'{sandbox.home} (gone at the end)'])}"]
    if shown["hide"]:
        yield ["", f"closed: {_listed(shown['hide'])}"]
    yield ["seccomp", "no tracing, kernel modules, foreign sockets, typing into terminals, shared memory"]
    yield ["user", f"{sandbox.host_uid()} on this machine, without capabilities and ways to gain any"]


def _nothing(sandbox: ReducedSandbox) -> Iterator[Sequence[Cell]]:
    yield ["level", NO_SANDBOX]
    yield ["mounts", "none of its own"]
    yield ["Landlock", "not in force"]
    yield ["seccomp", "not in force"]
    yield ["user", f"{sandbox.host_uid()} on this machine: yours, with all that it may do"]


def unseen(job: Jailed, *, watched: bool) -> str:
    """Why refusals inside cannot be told one by one; empty where they can."""
    if job.level == "none" or watched:
        return ""
    why = "at the level reduced" if job.level == "reduced" else "on this machine"
    return f"toka: what is refused inside cannot be seen from outside {why}"


def wider(job: Jailed, paint: Paint, *, watched: bool) -> list[str]:
    """After a command that failed: what is allowed, and the flags that allow more.

    Args:
        job: the command.
        paint: how to colour it.
        watched: whether what was refused inside has been told.
    """
    if job.level == "none":
        return ["toka: nothing was refused: nothing was confined"]
    policy = job.policy
    reads = [_shown(job, p) for p in policy.reads]
    writes = [_shown(job, p) for p in policy.writes]
    anything = "any of the system" + (" and the toolchains" if policy.toolchains else "")
    programs = anything if policy.programs is None else ", ".join(policy.programs)
    beyond = " more of" if policy.toolchains else ""
    rest = (
        f"Nothing else exists inside: no{beyond} /root, /home, /run, /var"
        if job.level == "full"
        else "Nothing else opens"
    )
    tmp = "/tmp" if job.level == "full" else "$HOME"
    rows: list[Sequence[Cell]] = [
        ["read", f"{_listed([*reads, *writes, '/usr', *policy.toolchains])}. {rest}"],
        ["write", f"{_listed([*writes, tmp])}"],
        ["programs", programs + "".join(f", not {p}" for p in policy.refused_programs)],
        ["network", "; ".join(c.text for c in policy.network) or "none"],
    ]
    more: list[tuple[Capability, str, str]] = []
    if "." not in policy.writes:
        whole = Capability(FILESYSTEM_WRITE)
        more.append((whole, "filesystem-write: src", "makes src writable; filesystem-write alone, the whole workspace"))
    if policy.programs is not None:
        name = job.command[0] if not_listed(job.command[0], policy) else "PROGRAM"
        more.append((Capability(COMMAND_EXECUTION), f"command-execution: {name}", "adds a program"))
    more.append((Capability(NETWORK_ACCESS), "network-access: HOST", "lets it reach a host, through the proxy"))
    if policy.git:
        rows.append([".git", "writable, but for hooks and config"])
    elif (job.workspace / ".git").exists():
        more.append((Capability(GIT_ACCESS), GIT_ACCESS, "makes .git writable, but for hooks and config"))
    for need, text, what in more:
        if job.operator.bound(Grant((need,))).capabilities:
            rows.append([("wider", "info"), f"--grant {shlex.quote(text)} {what}"])
    errors = "what cannot be told one by one" if watched else "which layer an error comes from that the command printed"
    return [
        "toka: what was allowed:",
        *(f"  {line}" for line in columns(rows, paint=paint)),
        f"toka: {errors}:",
        *(f"  {line}" for line in columns(list(_errors(job, watched=watched)))),
    ]


def _errors(job: Jailed, *, watched: bool) -> Iterator[Sequence[Cell]]:
    """The errors that a program meets at each layer, as it prints them, and what would allow what was tried."""

    def granted(need: Capability, text: str) -> str:
        return f"; {flag(job, need, text)}"

    write = granted(Capability(FILESYSTEM_WRITE), "filesystem-write: PATH")
    network = granted(Capability(NETWORK_ACCESS), "network-access: HOST")
    if not watched and job.level == "full":
        yield "No such file or directory", "mounts: what is not granted does not exist inside"
        yield "Read-only file system", f"mounts: the path may only be read{write} below /workspace"
        yield "Permission denied", "Landlock, a mount from which no program may be run, or the mode of the file"
    elif not watched:
        yield "Permission denied", f"Landlock: the path is not granted{write} below the workspace; or the file's mode"
    if not watched:
        yield "Operation not permitted", "seccomp, or a capability that nobody has inside; no grant allows it"
        yield "Address family not supported", f"seccomp: no such sockets{'' if job.policy.network else network}"
    yield "Resource temporarily unavailable", f"the limit of processes, {job.policy.processes}; --limit processes=N"


def _shown(job: Jailed, path: str) -> str:
    """A path of the workspace as the command sees it."""
    if job.level != "full":
        return _outside(job, path)
    return WORKSPACE if path == "." else f"{WORKSPACE}/{path}"


def _outside(job: Jailed, path: str) -> str:
    return str(job.workspace.resolve() / path)


def _listed(items: Sequence[str]) -> str:
    shown = [line_of(item, 80) for item in items[:MOST]]
    return ", ".join(shown) + (f" and {len(items) - MOST} more" if len(items) > MOST else "")
