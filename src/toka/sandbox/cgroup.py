"""One cgroup per sandbox: limits that the kernel holds for the whole tree of processes, and a way to end them all.

v2 where it is delegated to us, else v1 below our own cgroup, else none. What is reported as enforced was read back.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from errno import EBUSY, ENODEV, ENOENT
from functools import partial
from pathlib import Path
from typing import Final

from toka.errors import SandboxError
from toka.sandbox.cgroup_files import Files, make_fresh
from toka.sandbox.cgroup_find import Hierarchies, Kind, owner_is_gone
from toka.sandbox.usage import Usage, children_of, parse_figure, read_stat, usage_of_cgroup

FREEZE_S: Final = 2.0
KILL_S: Final = 5.0
REMOVE_S: Final = 2.0
"""Seconds within which all stand still, all are gone, and the kernel lets go of what is empty."""
_PERIOD_US, _LEAST_QUOTA_US = 100_000, 1000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_BATCH: Final = 128
"""Processes signalled at once; each takes a descriptor."""
_NAME: Final = re.compile(r"[a-z][A-Za-z0-9_-]{0,254}")
"""Without dots, so that it can be no file of the kernel's."""
_GONE: Final = (ENOENT, ENODEV)
"""How the kernel answers about a cgroup that was removed."""


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """What the processes of one sandbox may use together; None = no bound.

    Attributes:
        memory_bytes: memory, file cache and tmpfs included; swap is not to be used.
        cpu_cores: cores (0.75 = three quarters of one core).
        processes: processes and threads at one time.
    """

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    processes: int | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """One value to write.

    Attributes:
        file: the name of the file.
        text: what is written, and what must be read back.
        slack: by how much the figure read back may be lower: the kernel rounds memory down to pages.
        without: what it means when the kernel has no such file; None = then the limit is not enforced.
    """

    file: str
    text: str
    slack: int = 0
    without: str | None = None

    def taken(self, now: str) -> bool:
        """Whether what was read back is what was asked for."""
        if not self.slack:
            return now.split() == self.text.split()
        return now.strip().isdigit() and 0 <= int(self.text) - int(now) <= self.slack


def settings_of(limits: CgroupLimits) -> dict[Kind, dict[int, tuple[Setting, ...]]]:
    """What to write for each limit that is set, by kind and generation, in order. Pure.

    memory.oom.group stays off: with it, one greedy command takes the zygote along. memory.use_hierarchy is left alone,
    as our cgroups have no children.
    """
    asked: dict[Kind, dict[int, tuple[Setting, ...]]] = {}
    if limits.memory_bytes is not None:
        size, slack, uncounted = str(limits.memory_bytes), _PAGE_BYTES - 1, "the kernel does not count swap"
        asked["memory"] = {
            2: (Setting("memory.max", size, slack), Setting("memory.swap.max", "0", without=uncounted)),
            1: (
                Setting("memory.limit_in_bytes", size, slack),
                Setting("memory.memsw.limit_in_bytes", size, slack, without=f"{uncounted} (it is asked not to swap)"),
                Setting("memory.swappiness", "0", without="the kernel cannot be asked not to swap"),
            ),
        }
    if limits.cpu_cores is not None:
        period = _PERIOD_US if limits.cpu_cores * _PERIOD_US >= _LEAST_QUOTA_US else 10 * _PERIOD_US
        quota = max(_LEAST_QUOTA_US, round(limits.cpu_cores * period))
        asked["cpu"] = {
            2: (Setting("cpu.max", f"{quota} {period}"),),
            1: (Setting("cpu.cfs_period_us", str(period)), Setting("cpu.cfs_quota_us", str(quota))),
        }
    if limits.processes is not None:
        asked["pids"] = dict.fromkeys((1, 2), (Setting("pids.max", str(limits.processes)),))
    return asked


@dataclass(frozen=True)
class Cgroup:
    """The cgroup of one sandbox: in v1 a directory in each hierarchy, in v2 one, on mixed machines both.

    Every call talks to the kernel and may wait for as long as it says, so call it in a thread.

    Attributes:
        name: as the caller gave it.
        enforced: kind -> "cgroup v2" or "cgroup v1", for the limits of `memory`, `cpu` and `pids` that were asked for,
            written and read back. Empty when nothing could be made.
        missing: kind -> why not, for the limits that were asked for and are not enforced.
        notes: what else a person should know: that this process moved, that swap is not counted.
        directories: what was made.
    """

    name: str
    enforced: Mapping[str, str] = field(default_factory=dict[str, str])
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: Sequence[str] = ()
    directories: Sequence[Path] = ()
    _at: Mapping[str, tuple[int, Path]] = field(default_factory=dict[str, tuple[int, Path]])
    _files: Files = field(default_factory=Files)

    @staticmethod
    def make(hierarchies: Hierarchies, name: str, limits: CgroupLimits) -> Cgroup:
        """Makes the cgroup and sets its limits.

        What the machine refuses is no error here: it is missing from `enforced`, and whoever wants strict limits looks
        there. On v2 it may move this process into a leaf; `notes` says so.

        Args:
            hierarchies: where to make it.
            name: unique, best from `owned_name`. An empty cgroup left with this name is replaced.
            limits: what to set.

        Raises:
            ValueError: the name is not letters, digits, `-` and `_` after a small letter.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a name for a cgroup: {name!r}")
        notes = hierarchies.open_v2()
        claim = hierarchies.claim(name, make_fresh)
        enforced: dict[str, str] = {}
        missing: dict[str, str] = {}
        for kind, settings in settings_of(limits).items():
            generation, directory = claim.at.get(kind, (0, Path()))
            if generation:
                problem, more = _apply(hierarchies.files, directory, settings[generation])
                notes += more
            else:
                problem = hierarchies.why_not(kind) or claim.why[kind]
            if problem:
                missing[kind] = problem
            else:
                enforced[kind] = f"cgroup v{generation}"
        return Cgroup(name, enforced, missing, tuple(notes), claim.directories, claim.at, hierarchies.files)

    def add(self, pid: int) -> None:
        """Moves one process in, with all its threads; its future children are born inside.

        Memory that it holds already stays charged to where it came from.

        Args:
            pid: as seen from our pid namespace; it has no children, or they were added before.

        Raises:
            SandboxError: it is gone, may not be moved, is not inside afterwards, or has a child that stayed outside.
                Then part of it may be inside: kill it.
        """
        for directory in self.directories:
            try:
                self._files.write(directory / "cgroup.procs", str(pid))
                inside = pid in self._members(directory)
            except OSError as error:
                raise SandboxError(f"process {pid} could not be put into {directory}: {error.strerror}") from error
            if not inside:
                raise SandboxError(f"process {pid} is not in {directory} after it was put there")
        if self.directories and (strays := [child for child in _children(pid) if not self._holds(child)]):
            raise SandboxError(f"process {pid} had children before its limits: {strays} stayed outside of {self.name}")

    def _holds(self, pid: int) -> bool:
        stat = read_stat(pid)
        return stat is None or stat.ended or all(pid in self._members(d) for d in self.directories)

    def pids(self) -> set[int]:
        """All processes inside, zombies left out; 0 stands for those that our pid namespace does not show.

        Raises:
            SandboxError: the kernel does not tell.
        """
        try:
            return {pid for directory in self.directories for pid in self._members(directory)}
        except OSError as error:
            raise SandboxError(f"the processes of cgroup {self.name} cannot be read: {error.strerror}") from error

    def _members(self, directory: Path) -> set[int]:
        try:
            return {int(pid) for pid in self._files.read(directory / "cgroup.procs").split()}
        except OSError as error:
            if error.errno in _GONE:
                return set()
            raise

    def usage(self) -> Usage:
        """What all processes inside used since it was made. After `remove`: all None."""
        return usage_of_cgroup(self._at, self._files.read)

    @property
    def can_freeze(self) -> bool:
        """Whether `freeze` can be had here."""
        return "freeze" in self._at

    def freeze(self) -> None:
        """Stops all processes inside; when it returns they stand still.

        Raises:
            SandboxError: this cannot be done here, or not within 2 seconds; then nothing stays frozen.
        """
        if not self.can_freeze:
            raise SandboxError(f"the processes of {self.name} cannot be frozen: no cgroup freezer was made for them")
        if not self._wait(self._is_frozen, FREEZE_S):
            self.thaw()
            raise SandboxError(f"the processes of {self.name} did not stand still within {FREEZE_S:g} s; they run on")

    def _is_frozen(self) -> bool:
        """Asks for it each time: v1 gives up on a task that was busy."""
        generation, directory = self._at["freeze"]
        self._tell(*(("cgroup.freeze", "1") if generation == 2 else ("freezer.state", "FROZEN")))
        try:
            if generation == 2:
                return parse_figure(self._files.read(directory / "cgroup.events"), "frozen") == 1
            return self._files.read(directory / "freezer.state").strip() == "FROZEN"
        except OSError as error:
            raise SandboxError(f"{directory} does not tell whether it is frozen: {error.strerror}") from error

    def thaw(self) -> None:
        """Lets all processes inside go on; nothing happens when they do already, or when it was removed.

        Raises:
            SandboxError: the kernel refuses.
        """
        self._tell("freezer.state", "THAWED")
        self._tell("cgroup.freeze", "0")

    def _tell(self, file: str, text: str) -> None:
        """Writes to a file wherever there is one of that name."""
        for directory in self.directories:
            try:
                if self._files.exists(directory / file):
                    self._files.write(directory / file, text)
            except OSError as error:
                if error.errno not in _GONE:
                    raise SandboxError(f"{directory / file} does not take {text}: {error.strerror}") from error

    def kill(self) -> None:
        """Kills all processes inside, frozen ones too, and returns when all are gone or wait to be reaped.

        Raises:
            SandboxError: some are still there after 5 seconds, or this process is one of them; then none was killed.
        """
        if os.getpid() in self.pids():
            raise SandboxError(f"cgroup {self.name} holds Toka itself; it is not killed")
        self._tell("cgroup.kill", "1")
        if not self._wait(self._killed, KILL_S):
            raise SandboxError(f"processes {sorted(self.pids())} of cgroup {self.name} live {KILL_S:g} s after SIGKILL")

    def _killed(self) -> bool:
        """One round: hold v1 still so that none forks away, signal, thaw, as a frozen one would not die."""
        try:
            if not self.pids():
                return True
            self._tell("freezer.state", "FROZEN")
            self._signal()
            return False
        except OSError as error:
            raise SandboxError(f"the processes of cgroup {self.name} cannot be killed: {error.strerror}") from error
        finally:
            self.thaw()

    def _signal(self) -> None:
        """SIGKILL to a batch; each was inside after its descriptor was taken, so no number can mean another process."""
        with ExitStack() as stack:
            fds: dict[int, int] = {}
            for pid in sorted(self.pids() - {0})[:_BATCH]:
                with suppress(ProcessLookupError):
                    fds[pid] = os.pidfd_open(pid)
                    stack.callback(os.close, fds[pid])
            for pid in self.pids() & fds.keys():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fds[pid], signal.SIGKILL)

    def remove(self) -> None:
        """Removes the empty cgroup; repeating it is harmless.

        Raises:
            SandboxError: processes are inside, or the kernel has not let go of it within 2 seconds.
        """
        for directory in self.directories:
            try:
                removed = self._wait(partial(_removed, self._files, directory), REMOVE_S)
            except OSError as error:
                raise SandboxError(f"{directory} cannot be removed: {error.strerror}") from error
            if not removed:
                raise SandboxError(f"{directory} is in use; processes inside: {sorted(self.pids()) or 'none'}")

    def end(self) -> None:
        """Kills all processes inside and removes the cgroup.

        Raises:
            SandboxError: as of `kill` and `remove`.
        """
        self.kill()
        self.remove()

    @staticmethod
    def _wait(done: Callable[[], bool], seconds: float) -> bool:
        deadline, pause = time.monotonic() + seconds, 0.0005
        while not done():
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        return True


def orphans(hierarchies: Hierarchies, prefix: str) -> list[Cgroup]:
    """The cgroups whose maker is dead, for `end()`; nothing is touched yet.

    The name only says who made it: one is an orphan when /proc shows no living process with that pid and start time.
    Names that `owned_name` did not make, and makers that cannot be judged from here, are left alone.

    Args:
        hierarchies: where to look.
        prefix: how the names begin, such as "toka-"; not empty.

    Raises:
        ValueError: the prefix is empty.
    """
    if not prefix:
        raise ValueError("a prefix is needed: without one, every cgroup would be looked at as ours")
    names: dict[str, None] = {}
    for place in hierarchies.parents():
        with suppress(OSError):
            names |= dict.fromkeys(n for n in hierarchies.files.folders(place.parent) if n.startswith(prefix))
    return [_existing(hierarchies, name) for name in names if owner_is_gone(name)]


def _existing(hierarchies: Hierarchies, name: str) -> Cgroup:
    """A cgroup that another process made, with every directory of that name: it may be frozen in any of them."""
    files = hierarchies.files
    found = [(place.generation, place.parent / name) for place in hierarchies.parents()]
    directories = tuple(directory for _, directory in found if files.exists(directory))
    return Cgroup(name, directories=directories, _files=files)


def _children(pid: int) -> list[int]:
    """The children of a process; empty when it is gone, or the kernel does not list them."""
    with suppress(NotImplementedError):
        return children_of(pid)
    return []


def _apply(files: Files, directory: Path, settings: Sequence[Setting]) -> tuple[str, list[str]]:
    """Writes settings in order and reads each back.

    Returns:
        Why the limit is not enforced, or ""; and what to note besides.
    """
    notes: list[str] = []
    for setting in settings:
        path = directory / setting.file
        if setting.without is not None and not files.exists(path):
            notes.append(f"{path} does not exist: {setting.without}")
            continue
        try:
            files.write(path, setting.text)
            now = files.read(path).strip()
        except OSError as error:
            return f"{path} does not take {setting.text!r}: {error.strerror}", notes
        if not setting.taken(now):
            return f"{path} holds {now!r} after {setting.text!r} was written", notes
    return "", notes


def _removed(files: Files, directory: Path) -> bool:
    """Removes it; False while the kernel holds it."""
    try:
        files.remove(directory)
    except OSError as error:
        if error.errno not in (*_GONE, EBUSY):
            raise
        return error.errno in _GONE
    return True
