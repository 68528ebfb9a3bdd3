"""Holding a tree of processes still without a cgroup: SIGSTOP until nothing runs, SIGCONT to go on.

Nothing is signalled by its number alone: a descriptor is taken first, and the start time compared after that.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from toka.errors import SandboxError
from toka.sandbox.usage import children_of, read_stat

STILL_S: Final = 2.0
"""Seconds within which all must stand still."""
END_S: Final = 5.0
"""Seconds within which all must be gone after SIGKILL."""
AGREEING: Final = 3
"""Looks in a row that must show the same before a tree counts as still: the kernel may leave a process out of a list
that lives beside one that ends."""
_PAUSE_S: Final = 0.001
_STOPPED: Final = "TtZX"
_SIGSTOP_BIT: Final = 1 << (signal.SIGSTOP - 1)

Tree = Mapping[int, int]
"""Processes: pid -> start time, in clock ticks since boot."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One process, as one look shows it.

    Attributes:
        started: clock ticks since boot.
        still: whether no thread of it will execute another instruction until somebody continues it.
        switches: thread -> how often it was taken off a processor. The same in two looks, and still in both: it did
            not run in between.
    """

    started: int
    still: bool
    switches: tuple[tuple[str, str], ...]


_VANISHED: Final = Seen(-1, still=False, switches=())
"""Listed, and gone when it was looked at: somebody ran."""


def stop(root: int, seconds: float = STILL_S) -> Tree:
    """Holds a process and all that descend from it; when it returns, none of them runs.

    A tree is still when several looks in a row find every thread stopped, and none that ran in between: at the end of
    the first of them nothing ran, and from there on nothing inside can continue anything.

    Args:
        root: the first process; nothing happens when it is gone.
        seconds: after which it gives up.

    Returns:
        What `go_on` is to continue. What had stopped by itself is not among it.

    Raises:
        SandboxError: they did not stand still in time, or cannot be seen from here; then they run on.
    """
    first = read_stat(root)
    if first is None and _is_there(root):
        raise SandboxError(f"process {root} cannot be held still: /proc hides it")
    return {} if first is None else _stop(root, first.started, seconds)


def _stop(root: int, started: int, seconds: float) -> Tree:
    chase = _Chase(root, started)
    deadline, before, agreeing = time.monotonic() + seconds, dict[int, Seen](), 0
    while True:
        try:
            running = chase.once()
            now = {} if running else _look(root, started)
        except NotImplementedError as error:
            go_on(chase.held)
            raise SandboxError(f"the processes below {root} cannot be held still: {error}") from None
        if not running:
            running = [pid for pid, seen in now.items() if not seen.still]
            agreeing = agreeing + 1 if not running and now == before else 1
            if agreeing == AGREEING or not now:
                return {pid: begun for pid, begun in chase.held.items() if pid in now}
            for pid in running:
                chase.hold(pid, now[pid].started)
            time.sleep(_PAUSE_S)
        if time.monotonic() >= deadline:
            go_on(chase.held)
            raise SandboxError(f"processes {running[:5]} below {root} do not stand still within {seconds:g} s")
        before = now


class _Chase:
    """Stops what runs below a process as soon as it is met, the youngest first.

    One that lives only until it has started the next is gone before a look at the whole tree ends.

    Attributes:
        held: what was stopped here, to be continued later.
    """

    def __init__(self, root: int, started: int) -> None:
        self._root, self._started = root, started
        self._ended: set[int] = set()
        self.held: dict[int, int] = {}

    def once(self) -> list[int]:
        """Goes through the tree once.

        Returns:
            Who ran since the last time: what was stopped now, and what has ended.

        Raises:
            NotImplementedError: this kernel does not list children.
        """
        met, todo, seen = list[int](), [self._root], set(self._ended)
        while todo:
            pid = todo.pop()  # the kernel lists the youngest last
            if pid in seen:
                continue
            seen.add(pid)
            stat = read_stat(pid)
            if stat is None or (pid == self._root and stat.started != self._started):
                met += [] if pid == self._root else [pid]
                continue
            if stat.ended:
                self._ended.add(pid)  # and is not read again: it is listed for as long as its parent stands still
                met.append(pid)
                continue
            if stat.state not in _STOPPED and (stat.state != "D" or pid not in self.held):
                met.append(pid)
                self.hold(pid, stat.started)
            todo += children_of(pid)
        return met

    def hold(self, pid: int, started: int) -> None:
        """Stops a process."""
        if _signal(pid, started, signal.SIGSTOP):
            self.held[pid] = started


def go_on(tree: Tree) -> None:
    """Continues processes that `stop` held; those that are gone are left out."""
    for pid, started in tree.items():
        _signal(pid, started, signal.SIGCONT)


def end(root: int, started: int) -> bool:
    """Kills a process and all that descend from it, stopped ones too; the first one last, as it adopts.

    Args:
        root: the first process.
        started: when it started, in clock ticks since boot; with another start time it is another process.

    Returns:
        Whether it is gone; False when it was not within 5 seconds.
    """
    deadline = time.monotonic() + END_S
    while _lives(root, started):
        if time.monotonic() >= deadline:
            return False
        below: Mapping[int, Seen] = {}
        with suppress(SandboxError, NotImplementedError):
            _stop(root, started, STILL_S / 10)  # else one could fork away, again and again
        with suppress(NotImplementedError):
            below = _look(root, started)
        others = {pid: seen.started for pid, seen in below.items() if pid != root and _lives(pid, seen.started)}
        for pid, begun in (others or {root: started}).items():
            _signal(pid, begun, signal.SIGKILL)
        time.sleep(_PAUSE_S)
    return True


def _lives(pid: int, started: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and not stat.ended and stat.started == started


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _signal(pid: int, started: int, number: signal.Signals) -> bool:
    """Signals a process, if that is the one that started then; whether it was."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _lives(pid, started):
            return False
        signal.pidfd_send_signal(process, number)
    except OSError:
        return False
    finally:
        os.close(process)
    return True


def _look(root: int, started: int) -> dict[int, Seen]:
    """All processes of a tree, those too that wait to be reaped; empty when the first is gone.

    Raises:
        NotImplementedError: this kernel does not list children.
    """
    found: dict[int, Seen] = {}
    todo = [root]
    while todo:
        pid = todo.pop()
        stat = read_stat(pid)
        if stat is None or (pid == root and stat.started != started):
            found |= {} if pid == root else {pid: _VANISHED}
            continue
        threads = _threads(pid)
        still = bool(threads) and all(s in _STOPPED or (s == "D" and stopping) for _, s, stopping, _ in threads)
        found[pid] = Seen(stat.started, still, tuple((thread, switches) for thread, _, _, switches in threads))
        todo += (child for child in _children(pid) if child not in found)
    return found


def _children(pid: int) -> list[int]:
    """As two looks in a row show them."""
    before = children_of(pid)
    while (now := children_of(pid)) != before:
        before = now
    return now


def _threads(pid: int) -> list[tuple[str, str, bool, str]]:
    """Of each thread of a process: its id, its state, whether it is about to stop, how often it was switched."""
    found: list[tuple[str, str, bool, str]] = []
    folder = Path(f"/proc/{pid}/task")
    with suppress(OSError):
        for thread in sorted(entry.name for entry in folder.iterdir()):
            with suppress(OSError):
                found.append((thread, *_status((folder / thread / "status").read_text())))
    return found


def _status(text: str) -> tuple[str, bool, str]:
    fields = {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    stopping = bool((int(fields["ShdPnd"], 16) | int(fields["SigPnd"], 16)) & _SIGSTOP_BIT)
    switches = f"{fields['voluntary_ctxt_switches']}+{fields['nonvoluntary_ctxt_switches']}"
    return fields["State"][:1], stopping, switches
