"""What a grant comes to on this machine: mounts, Landlock's rules, system calls, programs, the way out, limits.

`toka plan` and `toka explain grant` show it. Looks at the machine and the workspace, and changes nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from toka.errors import SandboxError
from toka.orchestration.enforce import held, machine, why_not
from toka.orchestration.rights import Rights
from toka.orchestration.unmet import look
from toka.sandbox.enforcement import Enforcement
from toka.sandbox.landlock import EXECUTE, READ_DIR, READ_FILE, WRITE_FILE, abi
from toka.sandbox.mounts import Granted, Opened
from toka.sandbox.policy import PathRule, SandboxPolicy
from toka.sandbox.profile import PROXY_PORT, Kind, find_program, profiles
from toka.sandbox.protect import protect
from toka.sandbox.seccomp import ABSENT, AUDIT, DENIED, numbers
from toka.sandbox.trusted import GIT

GROUPS: Final = {
    "ptrace": "other processes",
    "unshare": "namespaces and mounts",
    "bpf": "the kernel",
    "settimeofday": "clocks",
}
"""The first call of each group in the table of refused calls, with the group's name."""
BY_ARGUMENT: Final = (
    "clone with new namespaces", "ioctl TIOCSTI and TIOCLINUX", "memfd_create where programs are listed",
    "mknod of devices", "personality", "socket", "socketpair",
)  # fmt: skip
"""Calls that are refused with some arguments only."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """One path of the workspace as the sandbox shows it, and why.

    `granted`, or granted and `missing` (read: left out; write: created), `git-access`, `protected`, `hidden`, and
    `above` for the folders on the way to what is protected.
    """

    rule: PathRule
    why: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a grant comes to on this machine.

    Attributes:
        rights: the agent's.
        mounts: paths of the workspace.
        landlock: the kernel's version; 0 = none.
        rules: for files and for commands: a right -> the paths that have it; empty elsewhere than on Linux.
        calls: group -> refused system calls; empty on machines that are not supported.
        absent: listed programs that are not installed.
        held: how each limit is held, with why no cgroup does it.
    """

    rights: Rights
    mounts: tuple[Mounted, ...]
    landlock: int
    rules: Mapping[str, Mapping[str, Sequence[str]]]
    calls: Mapping[str, Sequence[str]]
    absent: tuple[str, ...]
    held: tuple[tuple[Enforcement, str], ...]

    def to_json(self) -> dict[str, Any]:
        """What it is beyond `rights`, the same in `toka plan --json` and `toka explain grant --json`."""
        policy = self.rights.policy
        calls = [name for names in self.calls.values() for name in names]
        return {
            "mounts": [{"path": m.rule.path, "access": m.rule.access, "why": m.why} for m in self.mounts],
            "not_installed": list(self.absent),
            "landlock": {"version": self.landlock, "rules": {title: dict(of) for title, of in self.rules.items()}},
            "system_calls": {"refused": len(calls), "groups": dict(self.calls), "by_argument": list(BY_ARGUMENT)},
            "sockets": ["inet stream", "inet6 stream"] if policy.network else [],
            "egress": {
                "proxy": f"127.0.0.1:{PROXY_PORT}" if policy.network else None,
                "allow": [c.to_json() for c in policy.network],
                "refuse": [c.to_json() for c in policy.refused] if policy.network else [],
            },
            "enforcement": [{"limit": e.limit, "how": e.how, "strict": e.strict, "why": why} for e, why in self.held],
        }


def compile_here(rights: Rights, workspace: Path) -> Compiled:
    """What rights come to on this machine and in this workspace. Changes nothing in it."""
    policy = rights.policy
    mounts = tuple(mounts_of(policy, workspace))
    linux = sys.platform.startswith("linux") and os.uname().machine in AUDIT
    hierarchies = machine()
    return Compiled(
        rights,
        mounts,
        abi() if linux else 0,
        dict(_landlock(policy, mounts)) if linux else {},
        refused_calls(os.uname().machine) if linux else {},
        tuple(p for p in policy.programs or () if find_program(p, policy.toolchains) is None) if linux else (),
        tuple((each, why_not(each, hierarchies)) for each in held(policy, hierarchies, rights.level)),
    )


def mounts_of(policy: SandboxPolicy, workspace: Path) -> Iterator[Mounted]:
    """The paths that a sandbox mounts of a workspace, in the order in which it does.

    What is protected is created where it is missing, so this asks in an empty folder that has of the workspace only
    what makes a difference: whether there is a repository, and which of the given paths exist.
    """
    with tempfile.TemporaryDirectory(prefix="toka-") as folder, ExitStack() as stack:
        copy = Path(folder)
        if policy.git and (workspace / GIT).is_dir():
            (copy / GIT).mkdir()
        for path in (p for p in (*policy.hidden, *policy.protected) if (workspace / p).exists()):
            (copy / path).mkdir(parents=True, exist_ok=True)
        root = os.open(copy, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        try:
            further = protect(root, policy, stack).rules
        except SandboxError:  # a finding says so
            further = ()
    words = {"read": "protected", "hide": "hidden", "write": "above"}
    found = {
        rule.path: Mounted(rule, "missing" if look(workspace, rule.path) == "absent" else "granted")
        for rule in policy.rules
    }
    found |= {rule.path: Mounted(rule, words[rule.access]) for rule in further}
    if GIT in found and policy.git and found[GIT].rule.access == "write":
        found[GIT] = Mounted(found[GIT].rule, "git-access")
    yield from sorted(found.values(), key=lambda mounted: mounted.rule.order)


def _landlock(policy: SandboxPolicy, mounts: Sequence[Mounted]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """For the file tools and for the agent's commands: a right -> the paths that have it."""
    opened = tuple(Opened(mounted.rule, -1, 0, 0) for mounted in mounts)
    made = profiles(policy, Granted(opened))
    kinds: tuple[tuple[str, Kind], ...] = (("files", "files"), ("commands", "agent"))
    for title, kind in kinds:
        rules: dict[str, list[str]] = {}
        for path, rights in made[kind]["landlock"]["paths"]:
            words = [word for bit, word in _RIGHTS if rights & bit]
            rules.setdefault(", ".join(words) or ("list" if rights & READ_DIR else "nothing"), []).append(path)
        if title == "files" or policy.programs != ():
            yield title, rules


_RIGHTS: Final = ((READ_FILE, "read"), (WRITE_FILE, "write"), (EXECUTE, "execute"))


def refused_calls(architecture: str) -> dict[str, list[str]]:
    """The system calls that every process in a sandbox is refused on an architecture, by group."""
    known = numbers(architecture)
    out: dict[str, list[str]] = {}
    group = ""
    for name in DENIED:
        group = GROUPS.get(name, group)
        if name in known:
            out.setdefault(group, []).append(name)
    return {**out, "as if the kernel had none": [name for name in ABSENT if name in known]}
