"""What the processes of a sandbox use: as their cgroup counts it, or sampled from /proc where none does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_REST: Final = 4.0
"""How many times as long as measuring PSS took we go without it: a tree built to be slow to measure costs us a fifth of
one core at most."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What all processes of one sandbox use together; None is what cannot be read here.

    Attributes:
        memory_bytes: memory now. A cgroup counts file cache and tmpfs too; a sampler counts what is mapped.
        memory_peak_bytes: the most there was; of a sampler, the most that it saw.
        cpu_s: seconds of processor time, processes that ended included.
        throttled_s: seconds that processes waited because the limit on processor time was used up.
        processes: processes and threads now, zombies included.
        oom_kills: processes killed because of the memory limit.
        read_bytes: bytes fetched from storage; what the file cache holds already is not counted.
        written_bytes: bytes sent to storage. A cgroup v1 is not asked for either: it misses what is written back later,
            which is nearly all.
        refused_forks: how often no process or thread could be started because of the limit on them.
    """

    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    cpu_s: float | None = None
    throttled_s: float | None = None
    processes: int | None = None
    oom_kills: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    refused_forks: int | None = None


_Figure = tuple[str, str, float]
"""Where the kernel keeps a figure: the file, the word before it or "", and what to multiply it by."""
_FIGURES: Final[Mapping[str, tuple[str, _Figure, _Figure]]] = {
    "memory_bytes": ("memory", ("memory.current", "", 1), ("memory.usage_in_bytes", "", 1)),
    "memory_peak_bytes": ("memory", ("memory.peak", "", 1), ("memory.max_usage_in_bytes", "", 1)),
    "cpu_s": ("cpuacct", ("cpu.stat", "usage_usec", 1e-6), ("cpuacct.usage", "", 1e-9)),
    "throttled_s": ("cpu", ("cpu.stat", "throttled_usec", 1e-6), ("cpu.stat", "throttled_time", 1e-9)),
    "processes": ("pids", ("pids.current", "", 1), ("pids.current", "", 1)),
    "oom_kills": ("memory", ("memory.events", "oom_kill", 1), ("memory.oom_control", "oom_kill", 1)),
    "refused_forks": ("pids", ("pids.events", "max", 1), ("pids.events", "max", 1)),
}
"""Field of Usage -> what a cgroup needs to know it, and where v2 and v1 keep it."""


def usage_of_cgroup(at: Mapping[str, tuple[int, Path]], read: Callable[[Path], str]) -> Usage:
    """What a cgroup has counted since it was made.

    Args:
        at: which generation and which directory counts "memory", "cpu", "cpuacct", "pids" and "io"; those missing here
            give None.
        read: the text of a file, or OSError.
    """
    found: dict[str, Any] = {}
    for field, (kind, *where) in _FIGURES.items():
        if kind in at:
            generation, directory = at[kind]
            file, word, unit = where[0] if generation == 2 else where[1]
            with suppress(OSError, ValueError):
                text = read(directory / file)
                found[field] = (parse_figure(text, word) if word else int(text)) * unit
    if "io" in at and at["io"][0] == 2:
        with suppress(OSError, ValueError):
            text = read(at["io"][1] / "io.stat")
            found["read_bytes"], found["written_bytes"] = parse_io(text)
    return Usage(**found)


def parse_figure(text: str, word: str) -> int:
    """The figure after a word that begins a line.

    Raises:
        ValueError: no line begins with that word.
    """
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == word:
            return int(value)
    raise ValueError(f"no {word} in {text!r}")


def parse_io(text: str) -> tuple[int, int]:
    """Bytes read and written on all devices, from io.stat."""
    read = written = 0
    for line in text.splitlines():
        for key, _, value in (word.partition("=") for word in line.split()[1:]):
            read += int(value) if key == "rbytes" else 0
            written += int(value) if key == "wbytes" else 0
    return read, written


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The part of /proc/<pid>/stat that we use.

    Attributes:
        state: one letter; Z and X have ended.
        cpu_ticks: clock ticks used by it and by those children that it has waited for.
        threads: at least 1.
        started: clock ticks since boot; with the pid it names one process for good.
        rss_bytes: memory present, shared pages counted in full.
    """

    state: str
    cpu_ticks: int
    threads: int
    started: int
    rss_bytes: int

    @property
    def ended(self) -> bool:
        """Whether it has ended and only waits to be reaped. The first thread may have ended while others run."""
        return self.state in "ZX" and self.threads == 1


def parse_stat(text: str) -> ProcessStat:
    """Reads one line of /proc/<pid>/stat; the name in it may hold anything, parentheses and line ends too."""
    fields = text.rpartition(")")[2].split()
    ticks = sum(int(f) for f in fields[11:15])
    return ProcessStat(fields[0], ticks, max(1, int(fields[17])), int(fields[19]), int(fields[21]) * _PAGE_BYTES)


def read_stat(pid: int, proc: Path = Path("/proc")) -> ProcessStat | None:
    """What /proc tells of a process; None when there is no such process, or it is hidden from us."""
    text = _read(f"{proc}/{pid}/stat")
    return parse_stat(text) if text else None


def children_of(pid: int, threads: int = 0, proc: Path = Path("/proc")) -> list[int]:
    """The children of a process, of all its threads; empty when it is gone.

    Exact while no child ends; the kernel may skip some that live beside one that ends.

    Args:
        pid: the process.
        threads: 1 when it is known to have one thread, which saves a look.
        proc: where proc is mounted.

    Raises:
        NotImplementedError: this kernel does not list children (built without CONFIG_PROC_CHILDREN).
    """
    folder = f"{proc}/{pid}/task"
    found: list[int] = []
    for thread in _names(folder) if threads != 1 else [str(pid)]:
        text = _read(f"{folder}/{thread}/children")
        if text:
            found += map(int, text.split())
        elif text is None and Path(folder, thread, "stat").exists() and not Path(folder, thread, "children").exists():
            raise NotImplementedError(f"{folder}/{thread}/children does not exist")
    return found


class Sampler:
    """Measures a process and all that descend from it, from outside.

    Given pid 1 of a pid namespace it sees everything in there: whoever loses their parent becomes a child of pid 1.
    A sample is not one instant: a process that starts or ends meanwhile may be missed. Memory that no process has
    mapped (files in tmpfs) is not seen.
    """

    def __init__(self, pid: int, *, proc: Path = Path("/proc")) -> None:
        self._pid = pid
        self._proc = proc
        root = read_stat(pid, proc)
        self._started = root.started if root else None
        self._peak = 0
        self._ticks = 0
        self._io: tuple[int, int] = (0, 0)
        self._gone: tuple[int, int, int] = (0, 0, 0)
        """Ticks, bytes read and written of processes that nobody waited for: see `settle`."""
        self._exact = 0
        self._exact_due = 0.0

    def sample(self, *, exact_from: int = 0) -> Usage:
        """Measures now.

        Sums of processor time and of bytes never go back. Memory is PSS: shared pages are divided among those who share
        them, so that a sum is true. RSS, which counts them in full, stands in where PSS may not be read. Reading PSS
        takes time in proportion to the memory mapped (0.1 ms for a small process, 4 ms for 300 MiB, 0.8 s for 200
        processes that share 300 MiB), so do it in a thread; after a slow one the last figure is given again for four
        times as long. The rest takes 0.02 ms a process.

        Args:
            exact_from: bytes. PSS is never more than RSS: while the sum of RSS is below this, that sum is given as it
                is. A watchdog passes its limit. 0 = always PSS.

        Returns:
            Usage without `throttled_s`, `oom_kills` and `refused_forks`, which only a cgroup counts. The bytes read and
            written are None when one process does not let us read them. Zero processes when the first one has ended;
            all None when this kernel does not list children.
        """
        ticks, *io = self._gone  # as of now: a tree seen before `settle` is not to be added to what it keeps
        try:
            tree = dict(self._walk())
        except NotImplementedError:
            return Usage()
        memory = sum(stat.rss_bytes for stat in tree.values())
        if memory >= exact_from:
            memory = min(memory, self._exact_memory(tree))
        self._peak = max(self._peak, memory)
        self._ticks = max(self._ticks, ticks + sum(stat.cpu_ticks for stat in tree.values()))
        read, written = self._count_io(tree, io)
        return Usage(
            memory_bytes=memory,
            memory_peak_bytes=self._peak,
            cpu_s=self._ticks / _TICKS_PER_S,
            processes=sum(stat.threads for stat in tree.values()),
            read_bytes=read,
            written_bytes=written,
        )

    def settle(self) -> None:
        """Keeps what was seen of processes that nobody waited for, and lets later use add to it.

        The kernel hands the figures of a process on to whoever waits for it; those of processes that are killed with
        the first one of their namespace are lost, and the sum is lower afterwards. Call it when a tree was killed and
        nothing is about to start or end.
        """
        try:
            tree = dict(self._walk())
        except NotImplementedError:
            return
        if not tree:
            return
        read, written = self._read_io(tree)
        ticks = sum(stat.cpu_ticks for stat in tree.values())
        known = (self._ticks, *self._io)
        gone = [max(0, k - now) for k, now in zip(known, (ticks, read or 0, written or 0), strict=True)]
        self._gone = (gone[0], gone[1], gone[2])

    def _walk(self) -> Iterator[tuple[int, ProcessStat]]:
        """Every process of the tree once; nothing when the first is gone or its number belongs to another by now."""
        todo, seen = [self._pid], {self._pid}
        while todo:
            pid = todo.pop()
            stat = read_stat(pid, self._proc)
            if stat is None:
                continue
            if pid == self._pid and (stat.started != self._started or stat.ended):
                return
            yield pid, stat
            fresh = [child for child in children_of(pid, stat.threads, self._proc) if child not in seen]
            seen.update(fresh)
            todo += fresh

    def _exact_memory(self, tree: dict[int, ProcessStat]) -> int:
        began = time.monotonic()
        if began >= self._exact_due:
            self._exact = sum(self._pss(pid, stat) for pid, stat in tree.items())
            ended = time.monotonic()
            self._exact_due = ended + _REST * (ended - began)
        return self._exact

    def _pss(self, pid: int, stat: ProcessStat) -> int:
        if stat.ended:
            return 0
        text = _read(f"{self._proc}/{pid}/smaps_rollup")
        _, found, rest = (text or "").partition("\nPss:")
        return int(rest.split(None, 1)[0]) * 1024 if found else stat.rss_bytes

    def _count_io(self, tree: dict[int, ProcessStat], gone: Sequence[int]) -> tuple[int | None, int | None]:
        read, written = self._read_io(tree)
        if read is None or written is None:
            return None, None
        self._io = (max(self._io[0], gone[0] + read), max(self._io[1], gone[1] + written))
        return self._io

    def _read_io(self, tree: dict[int, ProcessStat]) -> tuple[int | None, int | None]:
        read = written = 0
        for pid, stat in tree.items():
            text = _read(f"{self._proc}/{pid}/io")
            if text is None and not stat.ended and read_stat(pid, self._proc):
                return None, None
            for line in (text or "").splitlines():
                key, _, value = line.partition(":")
                read += int(value) if key == "read_bytes" else 0
                written += int(value) if key == "write_bytes" else 0
        return read, written


def _read(path: str) -> str | None:
    """A small file of /proc; None when it cannot be read. Not pathlib: this runs hundreds of times a second."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = [os.read(fd, 16384)]
        while parts[-1]:  # of a long list the kernel gives a page at a time, however much is asked for
            parts.append(os.read(fd, 16384))
        return b"".join(parts).decode("utf-8", "surrogateescape")
    except OSError:
        return None
    finally:
        os.close(fd)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []
