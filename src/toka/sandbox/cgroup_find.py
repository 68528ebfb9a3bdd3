"""Where this process may make cgroups: per kind of control, which generation and which directory, or why none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal, get_args

from toka.sandbox.cgroup_files import Files
from toka.sandbox.usage import read_stat

Kind = Literal["memory", "cpu", "pids", "freeze", "kill", "cpuacct", "io"]
"""What a cgroup can do for us. `freeze`, `kill` and `cpuacct` (counting processor time) need no controller in v2;
`kill` does not exist in v1, where every process is signalled."""
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
V1: Final[Mapping[Kind, str]] = {
    "memory": "memory",
    "cpu": "cpu",
    "pids": "pids",
    "freeze": "freezer",
    "cpuacct": "cpuacct",
    "io": "blkio",
}
V2_CONTROLLERS: Final[tuple[Kind, ...]] = ("memory", "cpu", "pids", "io")
"""Those that v2 gives only when the parent's cgroup.subtree_control names them."""
LEAF: Final = "toka-runtime"
"""The cgroup that this process moves into when v2 wants the one around it empty."""
HINT: Final = "start it with `systemd-run --user --scope -p Delegate=yes`, or as a service with `Delegate=yes`"


_MARKS: Final[Mapping[tuple[Kind, int], str]] = {
    ("memory", 2): "memory.max",
    ("memory", 1): "memory.limit_in_bytes",
    ("cpu", 2): "cpu.max",
    ("cpu", 1): "cpu.cfs_quota_us",
    ("pids", 2): "pids.max",
    ("pids", 1): "pids.max",
    ("freeze", 2): "cgroup.freeze",
    ("freeze", 1): "freezer.state",
    ("kill", 2): "cgroup.kill",
    ("cpuacct", 2): "cpu.stat",
    ("cpuacct", 1): "cpuacct.usage",
    ("io", 2): "io.stat",
    ("io", 1): "blkio.throttle.io_service_bytes",
}
"""The file by which a new cgroup shows that it can do a thing."""
_OWNER: Final = re.compile(r"-(?:n(?P<pidns>\d+)-)?(?P<pid>\d+)-(?P<started>\d+)\Z")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted cgroup hierarchy.

    Attributes:
        point: where it is mounted.
        root: which of its cgroups is mounted there, as seen from our cgroup namespace.
        generation: 1 or 2.
        controllers: of v1, which controllers it carries; empty for v2.
    """

    point: PurePosixPath
    root: PurePosixPath
    generation: Literal[1, 2]
    controllers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Place:
    """A cgroup in which we may make children."""

    generation: Literal[1, 2]
    parent: Path

    @property
    def title(self) -> str:
        """As people read it."""
        return f"cgroup v{self.generation}"


@dataclass(frozen=True, slots=True)
class Claim:
    """The directories of one new cgroup.

    Attributes:
        at: kind -> generation and directory.
        why: kind -> why not, for kinds that have places; a kind in `at` too was found at the second place.
        directories: all that were made.
    """

    at: Mapping[str, tuple[int, Path]]
    why: Mapping[str, str]
    directories: Sequence[Path]


def parse_mounts(mountinfo: str) -> list[Mount]:
    """The cgroup hierarchies in the text of /proc/self/mountinfo, in its order. Pure."""
    found: list[Mount] = []
    for line in mountinfo.splitlines():
        left, dash, right = line.partition(" - ")
        before, after = left.split(" "), right.split(" ")
        if not dash or len(before) < 5 or len(after) < 3 or after[0] not in ("cgroup", "cgroup2"):
            continue
        root, point = (PurePosixPath(_unescape(before[i])) for i in (3, 4))
        if after[0] == "cgroup2":
            found.append(Mount(point, root, 2, frozenset()))
        else:
            found.append(Mount(point, root, 1, frozenset(after[2].split(","))))
    return found


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def parse_own(text: str) -> dict[str, PurePosixPath]:
    """Controller -> our cgroup in its hierarchy, from the text of /proc/self/cgroup; v2 is under "". Pure."""
    own: dict[str, PurePosixPath] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    return own


def directory_of(mount: Mount, own: PurePosixPath) -> PurePosixPath | None:
    """Where our own cgroup appears below a mount; None when it lies outside of what is mounted. Pure."""
    if ".." in own.parts or not own.is_relative_to(mount.root):
        return None
    return mount.point / own.relative_to(mount.root)


@dataclass(frozen=True)
class Hierarchies:
    """What this process may use of the machine's cgroups. Found once per process; finding changes nothing.

    Attributes:
        places: kind -> where it can be had, best first; a kind that cannot be had is missing.
        reasons: kind -> why not, where `places` has nothing.
        files: how the file systems are touched.
    """

    places: Mapping[Kind, Sequence[Place]] = field(default_factory=dict[Kind, Sequence[Place]])
    reasons: Mapping[Kind, str] = field(default_factory=dict[Kind, str])
    files: Files = field(default_factory=Files)

    @staticmethod
    def find(
        *, mountinfo: str | None = None, own: str | None = None, root: Path = Path("/"), files: Files | None = None
    ) -> Hierarchies:
        """Looks at the hierarchies that are mounted and at our own cgroup in each.

        Args:
            mountinfo: text as in /proc/self/mountinfo; None = that file.
            own: text as in /proc/self/cgroup; None = that file.
            root: goes before the paths in `mountinfo`.
            files: how to touch the file systems; None = directly.

        Returns:
            What can be had. Without /proc: nothing, with the reason.
        """
        files = files or Files()
        try:
            mounts = parse_mounts(files.read(Path("/proc/self/mountinfo")) if mountinfo is None else mountinfo)
            ours = parse_own(files.read(Path("/proc/self/cgroup")) if own is None else own)
        except (OSError, ValueError) as error:
            return Hierarchies(reasons=dict.fromkeys(KINDS, f"our own cgroup cannot be read: {error}"), files=files)
        look = _Look(mounts, ours, root, files)
        places: dict[Kind, list[Place]] = {}
        reasons: dict[Kind, str] = {}
        for kind in KINDS:
            answers = [look.v2(kind), look.v1(kind)]
            places[kind] = [a for a in answers if isinstance(a, Place)]
            reasons[kind] = "; ".join(a for a in answers if isinstance(a, str))
        return Hierarchies(
            {kind: found for kind, found in places.items() if found},
            {kind: why for kind, why in reasons.items() if not places[kind]},
            files,
        )

    def why_not(self, kind: Kind) -> str:
        """Why a kind cannot be had here, as a clause for a person; "" when it can."""
        return self.reasons.get(kind, "")

    def parents(self) -> list[Place]:
        """All directories in which we may make cgroups, v2 first, each once."""
        found = {place: None for kind in KINDS for place in self.places.get(kind, ())}
        return sorted(found, key=lambda place: -place.generation)

    def claim(self, name: str, obtain: Callable[[Files, Path], None]) -> Claim:
        """Finds for each kind the best directory called `name` that can do it.

        Args:
            name: of the cgroup.
            obtain: makes the directory; raises OSError when it cannot be. Called once for each.
        """
        at: dict[str, tuple[int, Path]] = {}
        why: dict[str, str] = {}
        tried: dict[Path, str] = {}
        for kind, places in self.places.items():
            for place in places:
                directory = place.parent / name
                try:
                    if directory not in tried:
                        obtain(self.files, directory)
                        tried[directory] = ""
                except OSError as error:
                    tried[directory] = f"{directory} cannot be made: {error.strerror}"
                mark = directory / _MARKS[kind, place.generation]
                if not tried[directory] and self.files.exists(mark):
                    at[kind] = (place.generation, directory)
                    break
                why[kind] = tried[directory] or f"{mark} does not exist"
        return Claim(at, why, tuple(directory for directory, problem in tried.items() if not problem))

    def open_v2(self) -> list[str]:
        """Switches on the v2 controllers that we may have, for the children of our cgroup; repeating it is harmless.

        v2 gives a cgroup's children controllers only while no process is in the cgroup itself. When nobody but this
        process is, it moves into a leaf, `toka-runtime`, first.

        Returns:
            What was done or could not be, in sentences; empty when all was switched on before.
        """
        notes: list[str] = []
        for parent in {place.parent for place in self.parents() if place.generation == 2}:
            wanted = [k for k in V2_CONTROLLERS if any(p.parent == parent for p in self.places.get(k, ()))]
            try:
                on = self.files.read(parent / "cgroup.subtree_control").split()
                missing = [kind for kind in wanted if kind not in on]
                if missing:
                    notes += self._leave(parent)
            except OSError as error:
                notes.append(f"{parent}: {error.strerror}")
                continue
            notes += [note for kind in missing if (note := self._switch_on(parent, kind))]
        return notes

    def _switch_on(self, parent: Path, kind: str) -> str:
        """One write per controller: one that the kernel refuses does not hold back the others."""
        try:
            self.files.write(parent / "cgroup.subtree_control", f"+{kind}")
        except OSError as error:
            return f"{parent}/cgroup.subtree_control does not take +{kind}: {error.strerror}"
        return ""

    def _leave(self, parent: Path) -> list[str]:
        """Moves this process out of `parent` into a leaf below it, where the kernel asks for that."""
        inside = str(os.getpid()) in self.files.read(parent / "cgroup.procs").split()
        if not inside or not self.files.exists(parent / "cgroup.type"):  # the root cgroup may have both
            return []
        leaf = parent / LEAF
        if not self.files.exists(leaf):
            self.files.make(leaf)
        self.files.write(leaf / "cgroup.procs", str(os.getpid()))
        return [f"this process moved into {leaf}: cgroup v2 wants the cgroup around the agents' empty"]


class _Look:
    """The answers for one process: per kind a Place, or a clause that says why not."""

    def __init__(self, mounts: Sequence[Mount], own: Mapping[str, PurePosixPath], root: Path, files: Files) -> None:
        self._mounts = mounts
        self._own = own
        self._root = root
        self._files = files

    def v1(self, kind: Kind) -> Place | str:
        """A child of our own v1 cgroup."""
        if kind not in V1:
            return f"cgroup v1 has no {kind}"
        controller = V1[kind]
        mounts = [m for m in self._mounts if controller in m.controllers]
        if not mounts or controller not in self._own:
            return f"no cgroup v1 hierarchy carries {controller}"
        where = self._place(mounts, self._own[controller])
        return where if isinstance(where, str) else Place(1, where)

    def v2(self, kind: Kind) -> Place | str:
        """A child of our own v2 cgroup, or of the one around it when we are in our leaf."""
        mounts = [m for m in self._mounts if m.generation == 2]
        if not mounts or "" not in self._own:
            return "cgroup v2 is not mounted"
        own = self._own[""]
        where = self._place(mounts, own.parent if own.name == LEAF else own)
        if isinstance(where, str):
            return where
        try:
            problem = next(self._problems_v2(where, kind), "")
        except OSError as error:
            problem = f"{where}: {error.strerror}"
        return problem or Place(2, where)

    def _place(self, mounts: Sequence[Mount], own: PurePosixPath) -> Path | str:
        """The directory of our own cgroup, through the first mount of its hierarchy that shows it."""
        directory = next((found for mount in mounts if (found := directory_of(mount, own))), None)
        if directory is None:
            return f"our cgroup v{mounts[0].generation} {own} lies outside of what {mounts[0].point} shows"
        path = self._root / directory.relative_to("/")
        if not self._files.exists(path):
            return f"our cgroup v{mounts[0].generation} {path} does not exist"
        if not self._files.writable(path):
            return f"{path} is not writable for uid {os.geteuid()}"
        return path

    def _problems_v2(self, where: Path, kind: Kind) -> Iterator[str]:
        if not self._files.writable(where / "cgroup.procs"):
            yield f"{where}/cgroup.procs is not writable for uid {os.geteuid()}: it is not delegated to us; {HINT}"
        if kind not in V2_CONTROLLERS:
            return
        if kind not in self._files.read(where / "cgroup.controllers").split():
            yield f"cgroup v2 at {where} does not have the {kind} controller"
        if kind in self._files.read(where / "cgroup.subtree_control").split():
            return
        if not self._files.writable(where / "cgroup.subtree_control"):
            yield f"{where}/cgroup.subtree_control is not writable for uid {os.geteuid()}; {HINT}"
        others = set(self._files.read(where / "cgroup.procs").split()) - {str(os.getpid())}
        if others and self._files.exists(where / "cgroup.type"):
            yield f"other processes are in {where} ({_some(others)}), so its children get no {kind} controller; {HINT}"


def _some(pids: set[str]) -> str:
    """Process ids for a sentence, the first few."""
    shown = sorted(pids, key=int)[:5]
    return f"pid {', '.join(shown)}{' ...' if len(pids) > len(shown) else ''}"


def owned_name(*parts: str) -> str:
    """A name for a cgroup that tells later who made it: this process, by pid namespace, pid and start time.

    Args:
        parts: what else to tell, such as "toka", the run and the agent; the first begins with a small letter. Signs
            other than letters, digits and `-` become `_`, and what is too long for a name is cut.
    """
    stat = read_stat(os.getpid())
    owner = f"-n{_pid_namespace()}-{os.getpid()}-{stat.started if stat else 0}"
    return re.sub(r"[^A-Za-z0-9-]", "_", "-".join(parts))[: 250 - len(owner)] + owner


def owner_is_gone(name: str) -> bool:
    """Whether a name says who made it, and that process is dead for certain; when in doubt, False."""
    match = _OWNER.search(name)
    if match is None or match["pidns"] not in (None, str(_pid_namespace())):
        return False
    pid = int(match["pid"])
    stat = read_stat(pid)
    if stat is not None:
        return stat.ended or stat.started != int(match["started"])
    try:
        os.kill(pid, 0)  # /proc may hide the processes of others; this tells them from no process
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _pid_namespace() -> int:
    """The number of our pid namespace; 0 without /proc."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
