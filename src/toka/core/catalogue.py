"""The capability names that Toka knows, as data.

A *primitive* is what policies, tools and the sandbox understand. An *alias* is another spelling of one. A *preset*
stands for primitives with arguments. Every other name grants nothing, and validation says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from toka.core.capability import Capability

FILESYSTEM_READ: Final = "filesystem-read"
FILESYSTEM_WRITE: Final = "filesystem-write"
COMMAND_EXECUTION: Final = "command-execution"
NETWORK_ACCESS: Final = "network-access"
GIT_ACCESS: Final = "git-access"

PRIMITIVES: Final[Mapping[str, tuple[str, ...]]] = {
    FILESYSTEM_READ: ("paths",),
    FILESYSTEM_WRITE: ("paths",),
    COMMAND_EXECUTION: ("programs",),
    NETWORK_ACCESS: ("hosts", "ports"),
    GIT_ACCESS: (),
}
"""Each primitive with the arguments it takes."""

ALIASES: Final[Mapping[str, str]] = {
    "file-system-read": FILESYSTEM_READ,
    "file-system-write": FILESYSTEM_WRITE,
    "file-read": FILESYSTEM_READ,
    "file-write": FILESYSTEM_WRITE,
    "network": NETWORK_ACCESS,
    "network-access-limited": NETWORK_ACCESS,
    "git": GIT_ACCESS,
    "git-operations": GIT_ACCESS,
    "shell-execution": COMMAND_EXECUTION,
}

DEFAULT_PORTS: Final = ("443",)
"""The ports of a network-access that names none."""

NEEDS_ARGUMENTS: Final = frozenset({"network-access-limited"})
"""Names that grant nothing until `hosts` says what they are limited to."""

COREUTILS: Final = (
    "awk", "basename", "cat", "chmod", "cmp", "comm", "cp", "cut", "date", "diff", "dirname", "du", "echo", "env",
    "expr", "false", "find", "grep", "gzip", "head", "install", "ln", "ls", "md5sum", "mkdir", "mktemp", "mv", "nl",
    "nproc", "od", "paste", "printf", "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "seq", "sha256sum", "sleep",
    "sort", "split", "stat", "tac", "tail", "tar", "tee", "test", "timeout", "touch", "tr", "true", "uname", "uniq",
    "wc", "which", "xargs", "yes",
)  # fmt: skip
COMPILERS: Final = (
    "ar", "as", "c++", "cc", "g++", "gcc", "ld", "nm", "objcopy", "objdump", "pkg-config", "ranlib", "strip",
)  # fmt: skip
"""What a C compiler calls, and what builds call beside it."""
_CARGO: Final = (
    "cargo", "cargo-clippy", "cargo-fmt", "clippy-driver", "rustc", "rustdoc", "rustfmt", *COMPILERS,
)  # fmt: skip

PRESETS: Final[Mapping[str, tuple[Capability, ...]]] = {
    "cargo-execution": (Capability(COMMAND_EXECUTION, programs=_CARGO),),
    "cargo-test-execution": (Capability(COMMAND_EXECUTION, programs=_CARGO),),
    "python-execution": (Capability(COMMAND_EXECUTION, programs=("python", "python3")),),
    "node-execution": (Capability(COMMAND_EXECUTION, programs=("env", "node", "npm", "npx", "sh")),),
    "make-execution": (Capability(COMMAND_EXECUTION, programs=("make", "sh", *COMPILERS, *COREUTILS)),),
    "git-execution": (Capability(GIT_ACCESS), Capability(COMMAND_EXECUTION, programs=("git",))),
    "script-execution": (Capability(COMMAND_EXECUTION, programs=("bash", "sh", *COREUTILS)),),
    "database-access": (Capability(COMMAND_EXECUTION, programs=("sqlite3", "psql")),),
    "github-api-access": (Capability(NETWORK_ACCESS, hosts=("api.github.com",), ports=("443",)),),
}

REMOTE: Final[Mapping[str, tuple[str, ...]]] = {"database-access": ("5432",)}
"""Presets that reach hosts when `hosts` names them, with the ports that are meant when `ports` names none."""

KEYED: Final[Mapping[str, str]] = {"github-api-access": "api.github.com"}
"""Presets whose host lets do little without a key: it belongs into the settings' [credentials]."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What one declared name stands for.

    Attributes:
        capabilities: the primitives it grants; empty when it grants nothing.
        note: why it grants nothing or less than one may think; empty when there is nothing to say.
    """

    capabilities: tuple[Capability, ...]
    note: str = ""


def resolve(
    name: str,
    arguments: Mapping[str, Sequence[str]],
    custom: Mapping[str, tuple[Capability, ...]] | None = None,
) -> Resolution:
    """Turns a declared name with its arguments into primitives.

    Args:
        name: as written in the spec.
        arguments: `paths`, `hosts`, `programs`, `ports`; a missing key restricts nothing.
        custom: further presets, from settings; they cannot redefine a known name.

    Raises:
        CapabilityError: an argument is malformed.
    """
    target = ALIASES.get(name, name)
    if target in PRIMITIVES:
        if name in NEEDS_ARGUMENTS and "hosts" not in arguments:
            return Resolution((), f"{name} grants nothing until it says which hosts: {name}: {{hosts: [...]}}")
        taken = PRIMITIVES[target]
        wrong = [a for a in arguments if a not in taken]
        if wrong:
            accepted = f"it takes {', '.join(taken)}" if taken else "it takes none"
            return Resolution((), f"{name} does not take {', '.join(wrong)}; {accepted}, so it grants nothing")
        if target == NETWORK_ACCESS and "ports" not in arguments:
            arguments = {**arguments, "ports": DEFAULT_PORTS}  # said, so that nobody reads it as any port
        capability = Capability(target, **{k: tuple(v) for k, v in arguments.items()})
        if capability.empty:
            return Resolution((), f"the arguments of {name} leave nothing of it")
        if target == FILESYSTEM_WRITE:
            return Resolution((capability, Capability(FILESYSTEM_READ, paths=capability.paths)))
        return _network(name, capability) if target == NETWORK_ACCESS else Resolution((capability,))
    preset = PRESETS.get(name) or (custom or {}).get(name)
    if preset is None:
        return Resolution((), f"nobody defines {name}; it grants nothing")
    return _narrowed(name, preset, arguments)


def _network(name: str, capability: Capability) -> Resolution:
    """Hosts that can be reached, with a note where that is more or less than it seems."""
    if capability.hosts is None:
        ports = ", ".join(capability.ports or DEFAULT_PORTS)
        return Resolution((capability,), f"{name} without hosts means any public host on port {ports}")
    local = [host for host in capability.hosts if "." not in host]
    public = tuple(host for host in capability.hosts if host not in local)
    if not public:
        return Resolution((), f"{name}: {', '.join(local)} is no public host, and no other can be reached")
    wide = [host for host in public if host.startswith("*.") and host.count(".") == 1]
    notes = [f"{host} means any host whose name ends in {host[1:]}" for host in wide]
    notes += [f"{', '.join(local)} is no public host, so it cannot be reached"] if local else []
    return Resolution((replace(capability, hosts=public),), "; ".join(notes))


def _narrowed(name: str, preset: tuple[Capability, ...], arguments: Mapping[str, Sequence[str]]) -> Resolution:
    """A preset may be narrowed by arguments, never widened; an argument that narrows no part of it is not ignored."""
    nothing = Resolution((), f"the arguments of {name} leave nothing of it")
    reached: list[Capability] = []
    if name in REMOTE and "hosts" in arguments:
        ports = tuple(arguments.get("ports", REMOTE[name]))
        reached = [Capability(NETWORK_ACCESS, hosts=tuple(arguments["hosts"]), ports=ports)]
        if reached[0].empty:
            return nothing
        arguments = {a: v for a, v in arguments.items() if a not in ("hosts", "ports")}
    taken = {a for capability in preset for a in PRIMITIVES[capability.name]}
    wrong = [a for a in arguments if a not in taken]
    if wrong:
        return Resolution((), f"{name} does not take {', '.join(wrong)}, so it grants nothing")
    out: list[Capability] = []
    for capability in preset:
        mine = {k: tuple(v) for k, v in arguments.items() if k in PRIMITIVES[capability.name]}
        narrowed = capability.intersect(Capability(capability.name, **mine))
        if narrowed is not None:
            out.append(narrowed)
    return Resolution((*out, *reached)) if out else nothing


def without_key(names: Iterable[str], credentials: Collection[str]) -> tuple[str, ...]:
    """Notes about presets that were asked for and whose host gets no key.

    Args:
        names: as declared in a spec.
        credentials: the hosts for which the settings hold a key.
    """
    missing = ((name, KEYED[name]) for name in dict.fromkeys(names) if name in KEYED)
    return tuple(
        f'{name}: requests carry no key; [credentials."{host}"] in your settings adds one outside the sandbox'
        for name, host in missing
        if host not in credentials
    )


def known_names() -> tuple[str, ...]:
    """All names that grant something, sorted: for did-you-mean and for the reference."""
    return tuple(sorted({*PRIMITIVES, *ALIASES, *PRESETS}))
