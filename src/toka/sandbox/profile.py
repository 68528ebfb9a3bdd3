"""From a policy to what the zygote locks each kind of process into: Landlock rules, system calls, mounts.

| kind | what it is | programs |
| --- | --- | --- |
| person | a command that a person wrote into the spec: `run:`, `check:` | any of the system and the toolchains |
| agent | a command that the model chose | those of the grant |
| tool | a program of Toka's own tools, or of a tool that the operator allows | python3, psql |
| git | git, as the tool of that name calls it | git, without network |
| files | the file worker | none |

All kinds share the agent's mounts, network and limits. What runs as `tool` or `git` works for an agent that may not
have these programs itself, so it can start nothing else: no hook, filter or pager, whatever a repository says. Landlock
holds that; a kernel without it leaves it to the options that git is called with.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from toka.sandbox.landlock import EXECUTE, READ, READ_DIR, WRITE, Ruleset, abi, system_rules
from toka.sandbox.mounts import WORKSPACE, Granted
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.seccomp import Syscalls, compile_filter
from toka.sandbox.toolchain import below, bin_folders, find_in, needed_by

Kind = Literal["person", "agent", "tool", "git", "files"]
PROXY_PORT: Final = 3128
"""Where the way out is inside, on 127.0.0.1, when there is one."""
PROGRAMS: Final = "/toka/bin"
SEARCHED: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
VISIBLE: Final = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/")
LOADERS: Final = (
    "/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
)  # fmt: skip
"""What starts every dynamically linked program."""
HELPERS: Final = {
    "git": ("/usr/lib/git-core", "/usr/libexec/git-core"),
    **dict.fromkeys(("cc", "gcc", "g++", "c++"), ("/usr/lib/gcc", "/usr/libexec/gcc")),
    **dict.fromkeys(("cargo", "rustc", "rustdoc"), ("/usr/lib/gcc", "/usr/libexec/gcc", "/usr/lib/rustlib")),
    **dict.fromkeys(("node", "npm", "npx"), ("/usr/lib/node_modules", "/usr/share/nodejs", "/usr/share/npm")),
}  # fmt: skip
"""Folders with programs that a program needs beside itself."""
BUILDERS: Final = frozenset(
    ("cargo", "rustc", "cc", "gcc", "c++", "g++", "clang", "clang++", "tcc", "go", "ld", "npm", "npx")
)  # fmt: skip
"""Programs that make programs. Where one is listed, files that were written may be executed: the list is no boundary
then, and what it makes is meant to run."""
BEHIND: Final = {"psql": "/usr/lib/postgresql/*/bin/psql"}
"""Programs that a script in another language stands in front of, on Debian: the newest one behind it is taken."""
PYTHON: Final = "/usr/bin/python3"
HIDDEN: Final = (
    "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/games", "/usr/libexec", "/usr/lib/apt", "/usr/lib/dpkg",
    "/usr/lib/git-core", "/usr/lib/gcc", "/usr/lib/openssh", "/usr/lib/postgresql", "/usr/lib/systemd", "/usr/lib/sudo",
)  # fmt: skip
"""Folders of programs that a command with a list of programs does not see, unless a listed one needs them."""


def find_program(name: str, toolchains: Sequence[str] = ()) -> str | None:
    """The file of a program as the sandbox sees it; None when this machine has it not where sandboxes look."""
    if (found := find_in(name, toolchains)) is not None:
        return found[1]
    behind = [str(p) for p in Path("/").glob(BEHIND[name].lstrip("/"))] if name in BEHIND else []
    if behind:
        return max(behind, key=lambda path: [int(number) for number in re.findall("[0-9]+", path)])
    found = shutil.which(name, path=SEARCHED)
    if found is None:
        return None
    real = str(Path(found).resolve())
    return real if real.startswith(VISIBLE) else None


def programs_of(policy: SandboxPolicy) -> list[list[str]] | None:
    """[name, file] of each listed program that the system has; None when any program may run.

    Those of a toolchain are executed where they are: what belongs to them lies beside them.
    """
    if not policy.programs:
        return None
    found = ((name, find_program(name)) for name in policy.programs)
    return [[name, file] for name, file in found if file is not None]


def profiles(policy: SandboxPolicy, granted: Granted) -> dict[Kind, dict[str, Any]]:
    """What each kind of process is locked into, as the zygote takes it."""
    return {
        "person": _commands(policy, granted, None),
        "agent": {**_commands(policy, granted, policy.programs), "masked": _files_of(policy)},
        "tool": _own(policy, granted, [PYTHON, *_files(("psql",))], network=True),
        "git": _own(policy, granted, [*_files(("git",)), *HELPERS["git"]], network=False),
        "files": _profile(Ruleset((("/", READ_DIR), *_workspace(granted, 0))), Syscalls(spawn=False, memfd=False)),
    }


def _commands(policy: SandboxPolicy, granted: Granted, programs: tuple[str, ...] | None) -> dict[str, Any]:
    """The profile of commands that may name these programs only; None = any."""
    listed = programs is not None
    fixed = listed and BUILDERS.isdisjoint(programs)
    helpers = {folder for name in programs or () for folder in HELPERS.get(name, ())}
    toolchains = policy.toolchains if programs is None else needed_by(programs, policy.toolchains)
    folders = [*_system_folders(), *toolchains]
    execute = [PROGRAMS, *LOADERS, *sorted(helpers), *toolchains] if listed else folders
    rules = system_rules(folders=folders, execute=execute, programs_only=fixed)
    rules += [*_shown(policy), *_workspace(granted, 0 if fixed else EXECUTE)]
    ports = (PROXY_PORT,) if policy.network else ()
    profile = _profile(Ruleset(tuple(rules), connect_ports=ports), calls_of(policy, programs))
    if listed:
        others = (t for t in policy.toolchains if t not in toolchains)
        hidden = [f for f in (*HIDDEN, *others) if not any(below(h, f) for h in (*helpers, *toolchains))]
        profile |= {"listed": True, "noexec": _writable(granted) if fixed else ["/dev/shm"], "hidden": hidden}
    return profile


def _shown(policy: SandboxPolicy) -> list[tuple[str, int]]:
    """What is shown beside the workspace and may only be read."""
    return [(path, READ) for path in policy.shown]


def calls_of(policy: SandboxPolicy, programs: tuple[str, ...] | None) -> Syscalls:
    """The system calls of commands that may name these programs only; None = any."""
    return Syscalls((socket.AF_INET, socket.AF_INET6) if policy.network else (), memfd=programs is None)


def _own(policy: SandboxPolicy, granted: Granted, execute: Sequence[str], *, network: bool) -> dict[str, Any]:
    """The profile of programs that Toka itself names: nothing but these can be started.

    With a network they may connect to one another, inside the sandbox, at the ports that are granted: a client that
    knows no proxy is shown its way out there.
    """
    network = network and bool(policy.network)
    rules = system_rules(folders=_system_folders(), execute=[*execute, *LOADERS], programs_only=True)
    ports = (PROXY_PORT, *(int(port) for c in policy.network for port in c.ports or ())) if network else ()
    families = (socket.AF_INET, socket.AF_INET6) if network else ()
    rules += [*_shown(policy), *_workspace(granted, 0)]
    profile = _profile(Ruleset(tuple(rules), connect_ports=ports, bind=network), Syscalls(families, memfd=False))
    return {**profile, "noexec": _writable(granted)}


def _files(programs: Iterable[str]) -> list[str]:
    return [file for name in programs if (file := find_program(name)) is not None]


def _files_of(policy: SandboxPolicy) -> list[str]:
    """Every file by which the refused programs could be started by name."""
    found: set[str] = set()
    for name in policy.refused_programs:
        for folder in (*SEARCHED.split(":"), *bin_folders(policy.toolchains)):
            path = Path(folder, name)
            if path.exists():
                found.update({str(path.parent.resolve() / name), str(path.resolve())})
    return sorted(p for p in found if p.startswith(VISIBLE) or any(below(p, t) for t in policy.toolchains))


def _system_folders() -> list[str]:
    """/usr, and /bin and the like where they are no links into it."""
    names = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
    return ["/usr", *(name for name in names if os.path.isdir(name) and not os.path.islink(name))]


def _workspace(granted: Granted, more: int) -> list[tuple[str, int]]:
    rules = {WORKSPACE: READ}
    rules |= {o.target: (WRITE if o.rule.access == "write" else READ) | more for o in granted.opened}
    return list(rules.items())


def _writable(granted: Granted) -> list[str]:
    """Where files can be created, so that an agent with a list of programs could bring others along."""
    return ["/tmp", "/dev/shm", *(o.target for o in granted.opened if o.rule.access == "write")]


def _profile(rules: Ruleset, calls: Syscalls) -> dict[str, Any]:
    return {
        "landlock": rules.to_json(abi()),
        "seccomp": compile_filter(os.uname().machine, calls).hex(),
        "listed": False,
        "noexec": [],
        "hidden": [],
        "masked": [],
    }
