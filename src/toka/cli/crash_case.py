"""A crash test: a run that nobody disturbs, then the same one killed at many writes, each resumed and compared."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from toka.cli.crash_left import ASKING, Left, differences, left_in
from toka.cli.crash_life import NEVER, WORK, Kill, Target, begin_life
from toka.core.effect import Effect
from toka.errors import TokaError, UsageError

AT_ONE_TIME: Final = 4
"""Most cases at one time for each two processors: they mostly wait for disks and sandboxes."""
LOOK_S: Final = 0.005
LEAST_BOUND_S: Final = 30.0
"""How long a process may take at least before it counts as stuck, in seconds."""
SLOWER: Final = 20
"""The same in times of the undisturbed run."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The undisturbed run.

    Attributes:
        left: what it left.
        writes: of its journal.
        wall_s: seconds it took.
        loose: what differs between two such runs, and is not compared.
    """

    left: Left
    writes: int
    wall_s: float
    loose: frozenset[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one killed run.

    Attributes:
        kill: where it was killed.
        killed: whether it was; a run with fewer writes than the undisturbed one may live.
        differences: how it ended otherwise, one sentence each.
        asks: tasks that wait for a person since a step of theirs was in flight that may not run twice: `fixer/push`.
        repeated: keys of steps that were taken again although they must not be.
        again: keys of steps that were in flight and were taken again with the same key, as they may.
        folder: where it lies, when it is kept.
    """

    kill: Kill
    killed: bool
    differences: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def right(self) -> bool:
        """Whether it ended as it should."""
        return not self.differences and not self.repeated


@dataclass(slots=True)
class _Case:
    kill: Kill
    folder: Path
    life: int
    pid: int
    began: float
    after_kill: Left = field(default_factory=lambda: Left(None))


class CrashTest:
    """One test, in a scratch directory. Processes that it started are gone when it ends, however it ends."""

    def __init__(self, target: Target, scratch: Path) -> None:
        """`scratch` is an empty directory."""
        self._target = target
        self._scratch = scratch
        self._original = scratch / "original"
        self._running: dict[int, _Case] = {}
        self._count = 0
        self._kept: Path | None = None
        _copy(target.workspace, self._original)

    def whole(self) -> Whole:
        """Runs the team twice without disturbing it.

        Raises:
            TokaError: it cannot run.
        """
        first, second = self._undisturbed(), self._undisturbed()
        facts = {*first.left.facts, *second.left.facts}
        loose = {f for f in facts if first.left.facts.get(f) != second.left.facts.get(f)}
        return Whole(first.left, first.writes, max(first.wall_s, second.wall_s), frozenset(loose))

    def kills(self, whole: Whole, kills: Sequence[Kill]) -> Iterator[Outcome]:
        """Kills a run at each of these places and resumes it; yields what became of each, as they end."""
        most = max(1, AT_ONE_TIME * (os.cpu_count() or 1) // 2)
        left = list(reversed(kills))
        try:
            while left or self._running:
                while left and len(self._running) < most:
                    kill = left.pop()
                    self._start(_Case(kill, self._folder(), 0, 0, 0.0))
                yield from self._ended(whole)
        finally:
            self.close()

    def close(self) -> None:
        """Ends what still runs."""
        for pid in list(self._running):
            _end(pid)
        self._running.clear()

    def _undisturbed(self) -> Whole:
        folder = self._folder()
        began = time.monotonic()
        pid = begin_life(self._target, folder, 0, NEVER)
        try:
            os.waitpid(pid, 0)
        except BaseException:
            _end(pid)
            raise
        said = _said(folder, 0)
        if "error" in said:
            told = type("CannotRun", (TokaError,), {"exit_code": int(said["code"])})
            raise told(str(said["error"]), hint=said["hint"])
        whole = Whole(left_in(folder), int(said["writes"]), time.monotonic() - began, frozenset())
        shutil.rmtree(folder, ignore_errors=True)
        return whole

    def _folder(self) -> Path:
        self._count += 1
        folder = self._scratch / str(self._count)
        folder.mkdir(mode=0o700)
        _copy(self._original, folder / WORK)
        return folder

    def _start(self, case: _Case) -> None:
        case.began = time.monotonic()
        case.pid = begin_life(self._target, case.folder, case.life, case.kill if not case.life else NEVER)
        self._running[case.pid] = case

    def _ended(self, whole: Whole) -> Iterator[Outcome]:
        """Looks after the running cases once; yields those that are over."""
        bound = max(LEAST_BOUND_S, SLOWER * whole.wall_s)
        for pid, case in list(self._running.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found and time.monotonic() - case.began < bound:
                continue
            if not found:
                _end(pid)
            del self._running[pid]
            outcome = self._next(whole, case, status if found else None)
            if outcome is not None:
                yield self._over(case, outcome)
        time.sleep(LOOK_S)

    def _next(self, whole: Whole, case: _Case, status: int | None) -> Outcome | None:
        """What comes after a process: another one (None), or the outcome. A `status` of None: it got stuck."""
        if status is None:
            return Outcome(case.kill, killed=True, differences=("it did not end",))
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        said = {} if died else _said(case.folder, case.life)
        if not died and "writes" not in said:
            return Outcome(
                case.kill, killed=bool(case.life), differences=(f"it broke: {said.get('error', 'see log')}",)
            )
        left = left_in(case.folder)
        if case.life == 0:
            if not died:
                return Outcome(case.kill, killed=False, differences=tuple(differences(whole.left, left, whole.loose)))
            case.after_kill = left
            if not left.over:
                case.life = 1
                self._start(case)
                return None
        elif died:
            return Outcome(case.kill, killed=True, differences=("the process that went on was killed by somebody",))
        return judge(whole, case.kill, case.after_kill, left, [_ledger(case.folder, n) for n in (0, 1)])

    def _over(self, case: _Case, outcome: Outcome) -> Outcome:
        """Removes what a case left, but for the first that went wrong."""
        if outcome.right or self._kept is not None:
            shutil.rmtree(case.folder, ignore_errors=True)
            return outcome
        self._kept = case.folder
        return Outcome(
            outcome.kill,
            outcome.killed,
            outcome.differences,
            outcome.asks,
            outcome.repeated,
            outcome.again,
            case.folder,
        )


def judge(whole: Whole, kill: Kill, killed: Left, left: Left, ledgers: Sequence[Sequence[str]]) -> Outcome:
    """What became of a run that was killed and resumed.

    Args:
        whole: the undisturbed one.
        kill: where it was killed.
        killed: what it left then.
        left: what it left in the end.
        ledgers: what the two processes noted of what they did outside: `run KEY` and `ask KEY`.
    """
    found = differences(whole.left, left, whole.loose)
    for place in sorted(left.asked):
        if killed.flying.get(place, "") not in ASKING:
            found.append(f"task {place[1]} of {place[0]} asks a person although nothing of it was in flight")
    for place, effect in sorted(killed.flying.items()):
        if effect == Effect.ONCE.value and place not in left.asked:
            found.append(
                f"task {place[1]} of {place[0]} went on, although a step that must not run twice was in flight"
            )
    before, after = (set(lines) for lines in ledgers)
    keys = {line.partition(" ")[2] for line in after}
    again = {line.partition(" ")[2] for line in before & after}
    repeated = (keys & killed.ended) | (again & killed.once)
    return Outcome(
        kill,
        killed=True,
        differences=tuple(found),
        asks=tuple(f"{agent}/{task}" for agent, task in sorted(left.asked)),
        repeated=tuple(sorted(repeated)),
        again=tuple(sorted(again - repeated)),
    )


def places(writes: int, most: int | None, seed: int) -> list[Kill]:
    """Where to kill: before each write and once it is durable, or a sample of that.

    Args:
        writes: how many there are.
        most: how many kills; None: all there are.
        seed: the same one draws the same sample.
    """
    every = [(at, before) for at in range(1, writes + 1) for before in (True, False)]
    if most is None or most >= len(every):
        return every
    return sorted(random.Random(seed).sample(every, most))


def _said(folder: Path, life: int) -> dict[str, Any]:
    """What a process said at its end; of one that broke the last line of its log."""
    try:
        return json.loads((folder / f"life-{life}.json").read_text())
    except (OSError, ValueError):
        log = (folder / f"log-{life}").read_text(errors="replace").strip() if (folder / f"log-{life}").exists() else ""
        return {"error": log.rpartition("\n")[2] or "it broke", "hint": None, "code": 70}


def _ledger(folder: Path, life: int) -> list[str]:
    try:
        return (folder / f"ledger-{life}").read_text().splitlines()
    except FileNotFoundError:
        return []


def _end(pid: int) -> None:
    """Kills a process of ours and everything it started, and waits for it."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _copy(source: Path, target: Path) -> None:
    """Copies a workspace: links as links, modes and times kept, without sockets and the like. Raises UsageError."""

    def ignore(folder: str, names: list[str]) -> Collection[str]:
        return [n for n in names if not _is_plain(Path(folder, n))]

    try:
        shutil.copytree(source, target, symlinks=True, ignore=ignore)
    except (shutil.Error, OSError) as e:
        first: Any = e.args[0][0][2] if isinstance(e, shutil.Error) else e.strerror or e
        raise UsageError(f"cannot copy the workspace {source}: {first}", hint="name another: --workspace DIR") from e


def _is_plain(path: Path) -> bool:
    return path.is_symlink() or path.is_file() or path.is_dir()
