"""What a sandbox lets through, compiled from a grant and limits. Pure: touches neither disk nor kernel.

Default deny: a policy without paths shows an empty workspace, and every sandbox is without network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from toka.core.capability import Capability, Grant
from toka.core.catalogue import COMMAND_EXECUTION, FILESYSTEM_READ, FILESYSTEM_WRITE, GIT_ACCESS, NETWORK_ACCESS
from toka.core.limits import Limits

MIB: Final = 1024 * 1024
DEFAULT_PROCESSES: Final = 256
DEFAULT_FILE_BYTES: Final = 1024 * MIB
DEFAULT_OUTPUT_BYTES: Final = MIB
DEFAULT_TMP_BYTES: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class PathRule:
    """One path of the workspace as the sandbox shows it.

    Attributes:
        path: relative to the workspace, normalised; `.` is the workspace itself.
        access: `read` is a read-only mount, `write` a writable one, `hide` an empty folder in its place.
    """

    path: str
    access: Literal["read", "write", "hide"]

    @property
    def order(self) -> tuple[str, ...]:
        """Sorts what contains before what is contained."""
        return () if self.path == "." else tuple(self.path.split("/"))


@dataclass(frozen=True, slots=True)
class SandboxPolicy:
    """Everything a sandbox is built from; equal policies build equal sandboxes.

    Attributes:
        reads: readable paths relative to the workspace, sorted; none lies below another or below one of `writes`.
        writes: writable (and readable) paths, sorted; none lies below another. They may lie below `reads`.
        programs: file names of the programs the agent may name in a command, sorted; None = any, () = no commands.
        refused_programs: programs that the agent may not run although it may run any other.
        network: what of the network its proxy lets through; () = no network.
        refused: what of that it does not.
        git: whether .git is writable, but for what git executes or takes orders from.
        protected: files of the workspace that stay as they are, such as the agents' own specs; further ones, such as
            git hooks, always do (see `protect`).
        hidden: folders of the workspace that are shown empty: the state of Toka itself.
        named: paths that are writable although they are protected within a wider grant, for a spec names them.
        toolchains: folders of this machine with a `bin` folder in them, shown read-only at their own paths; in the
            order in which programs are looked for in them, before the system's.
        shown: further folders of this machine, shown read-only at their own paths; nothing in them can be executed.
        memory_bytes: memory of all processes together; None = no bound here.
        cpu_cores: share of the processors, in cores; None = no bound here.
        processes: processes and threads at one time, all commands of the sandbox together.
        file_bytes: size that one written file may reach.
        disk_bytes: bytes that may be written to storage, all commands together; None = no bound.
        network_bps: bits per second through the proxy; None = no bound.
        network_bytes: bytes through the proxy, both directions together; None = no bound.
        output_bytes: bytes kept of one command's output when the caller names no other figure.
        tmp_bytes: size of /tmp, which lives in memory.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    programs: tuple[str, ...] | None = ()
    network: tuple[Capability, ...] = ()
    refused: tuple[Capability, ...] = ()
    refused_programs: tuple[str, ...] = ()
    git: bool = False
    protected: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    toolchains: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    memory_bytes: int | None = None
    cpu_cores: float | None = None
    processes: int = DEFAULT_PROCESSES
    file_bytes: int = DEFAULT_FILE_BYTES
    disk_bytes: int | None = None
    network_bps: int | None = None
    network_bytes: int | None = None
    output_bytes: int = DEFAULT_OUTPUT_BYTES
    tmp_bytes: int = DEFAULT_TMP_BYTES

    @property
    def rules(self) -> tuple[PathRule, ...]:
        """All paths in the order in which they are mounted: what contains comes before what is contained."""
        rules = [PathRule(p, "read") for p in self.reads] + [PathRule(p, "write") for p in self.writes]
        return tuple(sorted(rules, key=lambda r: r.order))

    @property
    def changeable(self) -> tuple[str, ...]:
        """What commands can change of the workspace: the writable paths, and the repository where that is writable."""
        return (*self.writes, ".git") if self.git and "." not in self.writes else self.writes

    def to_json(self) -> dict[str, Any]:
        """A JSON object with one key per attribute."""
        data = asdict(self)
        for name in _LISTS:
            data[name] = None if data[name] is None else list(data[name])
        for name in ("network", "refused"):
            data[name] = [capability.to_json() for capability in getattr(self, name)]
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SandboxPolicy:
        """The inverse of `to_json`; unknown keys are ignored, so that an older Toka reads a newer record."""
        known = {k: v for k, v in data.items() if k in SandboxPolicy.__dataclass_fields__}
        for name in _LISTS & known.keys():
            known[name] = None if known[name] is None else tuple(known[name])
        for name in ("network", "refused"):
            known[name] = tuple(Capability.from_json(c) for c in data.get(name, ()))
        return SandboxPolicy(**known)


_LISTS: Final = frozenset(
    {"reads", "writes", "programs", "refused_programs", "protected", "hidden", "named", "toolchains", "shown"}
)


@dataclass(frozen=True, slots=True)
class Place:
    """What the place of a run, and its settings, add to a grant.

    Attributes:
        protected, hidden, toolchains: see SandboxPolicy.
        named: paths that a spec asks to write by name; those among them that it does not get are left out.
    """

    protected: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    toolchains: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


NOWHERE: Final = Place()


def compile_policy(
    grant: Grant,
    limits: Limits,
    *,
    denied: Sequence[Capability] = (),
    place: Place = NOWHERE,
) -> SandboxPolicy:
    """The sandbox that a grant and limits ask for, and nothing more.

    Capabilities that are no matter of the sandbox, or that it cannot give, add nothing.

    Args:
        grant: what the agent may do. A write grant lets it read there as well.
        limits: the agent's bounds; a kind left at None gets this module's default.
        denied: what the operator takes out of a wider grant: paths are read-only or hidden, hosts refused, programs
            not there.
        place: what the place of the run adds.
    """
    writes = _paths(grant.named(FILESYSTEM_WRITE))
    reads = _paths((*grant.named(FILESYSTEM_READ), *grant.named(FILESYSTEM_WRITE)))
    writable = Capability(FILESYSTEM_WRITE, paths=writes)
    return SandboxPolicy(
        reads=tuple(p for p in reads if not writable.covers(Capability(FILESYSTEM_WRITE, paths=(p,)))),
        writes=writes,
        programs=_programs(grant.named(COMMAND_EXECUTION)),
        refused_programs=tuple(p for c in denied if c.name == COMMAND_EXECUTION for p in c.programs or ()),
        network=grant.named(NETWORK_ACCESS),
        refused=tuple(c for c in denied if c.name == NETWORK_ACCESS),
        git=bool(grant.named(GIT_ACCESS)),
        protected=tuple(sorted({*place.protected, *_items(denied, FILESYSTEM_WRITE)})),
        hidden=tuple(sorted({*place.hidden, *_items(denied, FILESYSTEM_READ)})),
        named=tuple(sorted({p for p in place.named if writable.covers(Capability(FILESYSTEM_WRITE, paths=(p,)))})),
        toolchains=tuple(dict.fromkeys(place.toolchains)),
        memory_bytes=limits.memory_bytes,
        cpu_cores=limits.cpu_cores,
        processes=DEFAULT_PROCESSES if limits.processes is None else limits.processes,
        file_bytes=DEFAULT_FILE_BYTES if limits.disk_bytes is None else limits.disk_bytes,
        disk_bytes=limits.disk_bytes,
        network_bps=limits.network_bps,
        network_bytes=limits.network_bytes,
        output_bytes=DEFAULT_OUTPUT_BYTES if limits.output_bytes is None else limits.output_bytes,
    )


def _items(denied: Iterable[Capability], name: str) -> list[str]:
    return [path for c in denied if c.name == name for path in c.paths or () if path != "."]


def _paths(capabilities: Iterable[Capability]) -> tuple[str, ...]:
    """The smallest set of paths that holds all of them; no paths at all when there are no capabilities."""
    every = [p for c in capabilities for p in (c.paths if c.paths is not None else (".",))]
    return Capability(FILESYSTEM_READ, paths=tuple(every)).paths or ()


def _programs(capabilities: Iterable[Capability]) -> tuple[str, ...] | None:
    every: set[str] = set()
    for capability in capabilities:
        if capability.programs is None:
            return None
        every.update(capability.programs)
    return tuple(sorted(every))
