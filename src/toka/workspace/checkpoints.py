"""Checkpoints of one workspace: what it was before a step, what changed since, and the way back.

See docs/adr/0012-checkpoints.md for what is recorded and what is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from toka.core.clock import Clock
from toka.errors import CheckpointRefused, NotFound, SandboxError, TokaError
from toka.sandbox.idmap import agent_uid
from toka.sandbox.level import check_owner
from toka.workspace.cell import Cell, Plan, find_git, start_cell
from toka.workspace.checkpoint import Change, Checkpoint, Diff, Entry, Restored, Settings
from toka.workspace.claims import Note
from toka.workspace.lock import Told, WriteLock, WriteLocks

CROWDED: Final = 64
"""Packs of the store from which on they are made one, when nobody waits."""
DEFAULTS: Final = Settings()
ROUNDS: Final = 6
"""How often a workspace that keeps changing is recorded and put back before that is given up."""


class Checkpoints:
    """All that one process does with the checkpoints of one workspace.

    Attributes:
        given_up: why no more checkpoints are to be taken; empty = they are. Set by who takes them.

    Operations run one after the other. Those that write the workspace or depend on it standing still belong under
    `lock`; nothing here takes it. Leaving `close` out leaves a process until this one ends.
    """

    def __init__(self, workspace: Path, state: Path, clock: Clock, settings: Settings = DEFAULTS) -> None:
        """Args:
        workspace: an existing folder.
        state: Toka's state directory; what lies below it is not of the workspace.
        clock: all time.
        settings: see there.
        """
        self._workspace = workspace.resolve()
        self._folder = store_of(self._workspace, state)
        self._clock = clock
        self._settings = settings
        self._excluded = _part_of(self._workspace, state.resolve())
        self._cell: Cell | None = None
        self._using = asyncio.Lock()
        self._locks = WriteLocks(self._folder, clock)
        self.given_up = ""
        self._made = False
        self._packs = 0
        self._idle: asyncio.TimerHandle | None = None
        self._resting: asyncio.Task[None] | None = None

    @property
    def folder(self) -> Path:
        """Where the store is."""
        return self._folder

    @property
    def used(self) -> bool:
        """Whether the process that makes checkpoints runs."""
        return self._cell is not None and self._cell.alive

    # ---- the write lock

    def lock(
        self, note: Note, scope: Sequence[str] = (".",), told: Told | None = None, *, shared: bool = False
    ) -> WriteLock:
        """The workspace's write lock, for `async with`: whoever holds an overlapping part is waited for.

        Args:
            note: who takes it.
            scope: paths relative to the workspace, normalised.
            told: called once with whoever is waited for, if it takes longer than a second.
            shared: for what is never put back: others that share it are not waited for.

        Raises:
            CheckpointRefused: the store cannot be made (reason `disk`).
        """
        self._make()
        return self._locks.lock(note, scope, told, shared=shared)

    def overtaken(self, note: Note, scope: Sequence[str]) -> str:
        """Why going back to what `note` held may undo another's work, for people; empty when it cannot."""
        return self._locks.overtaken(note, scope)

    # ---- checkpoints

    async def take(self, note: Note, scope: Sequence[str] | None = None) -> Checkpoint:
        """Records the workspace.

        Args:
            note: for which step.
            scope: paths relative to the workspace, normalised; None = all of it.

        Returns:
            The checkpoint: a new one, or the last one of the same scope if nothing has changed since.

        Raises:
            CheckpointUnavailable: git is missing.
            CheckpointRefused: it would exceed the quota or the disk; nothing of it is kept.
            SandboxUnavailable, SandboxError: the sandbox for it cannot be started, or died.
        """
        started = self._clock.monotonic()
        answer, _ = await self._ask({"op": "take", "note": _noted(note), **self._recording(scope)})
        self._packs = answer["packs"]
        uncovered = tuple(f"{shown(path)} {why}" for path, why in answer["uncovered"])
        wall = self._clock.monotonic() - started
        count = answer["uncovered_count"]
        return Checkpoint(answer["id"], answer["created"], answer["files"], answer["changed"], uncovered, count, wall)

    async def restore(self, id: str, note: Note, scope: Sequence[str] | None = None) -> Restored:  # noqa: A002 - its name
        """Puts the workspace back. Run again after it was cut off anywhere, it comes to the same end.

        What is found is recorded first. A file that changes in between is let be, recorded, and put back then.

        Args:
            id: the checkpoint.
            note: for whom, for the checkpoint of what was found.
            scope: what to put back; None = all that the checkpoint holds. Nothing else is touched.

        Raises:
            NotFound: there is no such checkpoint.
            CheckpointRefused: what is there cannot be recorded; the checkpoint does not hold that scope (`scope`) or
                is `damaged`; the workspace did not stand still (`changed`).
            CheckpointUnavailable, SandboxUnavailable, SandboxError: see `take`.
        """
        started = self._clock.monotonic()
        wanted = None if scope is None else _normal(scope)
        first, opening = "", True
        raced: list[str] = []
        changed: dict[str, None] = {}
        for _ in range(ROUNDS):
            request = {"op": "plan", "id": id, "scope": wanted, "note": _noted(note), "opening": opening}
            plan, _ = await self._ask(request)
            if "open" in plan:  # what was recorded just now lacks what is closed
                opening = False  # what is closed after that is somebody else's
                await self._carried_out(plan["writable"], {"op": "open", "plan": plan["open"]})
                continue
            first = first or plan["kept"]
            changed.update(dict.fromkeys(map(shown, plan["changed"])))
            done: dict[str, Any] = {"raced": [], "left": {}}
            if plan["plan"]:
                done = await self._carried_out(plan["writable"], {"op": "apply", "plan": plan["plan"]})
            if not done["raced"]:
                left = tuple(f"{shown(path)}: {why}" for path, why in {**plan["left"], **done["left"]}.items())
                return Restored(first, tuple(changed), left, self._clock.monotonic() - started)
            raced = done["raced"]
        raise CheckpointRefused(
            f"{shown(raced[0]) if raced else '.'} changes while the workspace is put back", reason="changed",
            hint="end what writes there, and try again",
        )  # fmt: skip

    async def diff(self, old: str, new: str | None = None, paths: Iterable[str] = ()) -> Diff:
        """What differs between a checkpoint and another one, or the workspace as it is now (None).

        Args:
            old, new: checkpoints.
            paths: only these and what lies below them; none = all.

        Raises:
            NotFound, CheckpointRefused, CheckpointUnavailable, SandboxUnavailable, SandboxError: see `restore`.
        """
        request = {"op": "diff", "old": old, "new": new, "paths": list(paths)}
        answer, text = await self._ask(request)
        return Diff(tuple(Change(*change) for change in answer["changes"]), text, answer["cut"])

    async def history(self, run: str | None = None) -> list[Entry]:
        """All checkpoints that are kept for a run (None: for any), oldest first. Raises as `take` does."""
        answer, _ = await self._ask({"op": "history", "run": run})
        return [_entry(found) for found in answer["checkpoints"]]

    async def prune(self, ended: dict[str, float], keep_days: float) -> tuple[int, int]:
        """Drops the checkpoints of runs that ended long ago, and whatever nobody needs then.

        Safe beside other processes that take checkpoints of the same workspace.

        Args:
            ended: run -> when it ended, seconds since the epoch.
            keep_days: how long the checkpoints of a run are kept after its end.

        Returns:
            How many were dropped, and how many bytes are free again. Raises as `take` does.
        """
        oldest = self._clock.now() - keep_days * 86_400
        answer, _ = await self._ask({"op": "forget", "runs": [run for run, at in ended.items() if at <= oldest]})
        return answer["dropped"], answer["freed"]

    async def close(self) -> None:
        """Ends the process that makes checkpoints, and lets go of all locks. Idempotent; later use begins anew."""
        await self._end_cell()
        self._locks.close()

    async def _end_cell(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        async with self._using:
            cell, self._cell = self._cell, None
            if cell is not None:
                await cell.end()

    # ---- the process

    def _recording(self, scope: Sequence[str] | None) -> dict[str, Any]:
        paths = ["."] if scope is None else _normal(scope)
        return {"scope": paths, "ignored": self._settings.ignored, "objects": False}

    def _make(self) -> None:
        """Makes the store's folder, closed to everybody else."""
        if self._made:
            return
        try:
            git = self._folder / "git"
            git.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self._folder.parent, self._folder, git):
                folder.chmod(0o700)
            (self._folder / "workspace").write_bytes(os.fsencode(self._workspace) + b"\n")
            if os.geteuid() == 0 and self._settings.level == "reduced":
                for path in (git, *git.rglob("*")):
                    os.chown(path, agent_uid(), agent_uid(), follow_symlinks=False)
        except OSError as error:
            raise CheckpointRefused(
                f"checkpoints cannot be kept in {self._folder}: {error.strerror}", reason="disk",
                hint="free some space, or name another state directory",
            ) from None  # fmt: skip
        self._made = True

    def _plan(self, writable: tuple[str, ...] = ()) -> Plan:
        settings = self._settings
        git = self._folder / "git"
        return Plan(self._workspace, git, settings.level, writable, self._excluded, settings.quota_bytes)

    async def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Asks the process that records, starting it if there is none."""
        async with self._using:
            if self._idle is not None:
                self._idle.cancel()
            if self._cell is None or not self._cell.alive or self._cell.stale(self._workspace):
                await self._start()
            assert self._cell is not None
            try:
                return await self._answered(self._cell, request)
            finally:
                self._idle = asyncio.get_running_loop().call_later(self._settings.idle_s, self._rest)

    async def _start(self) -> None:
        find_git()
        if self._settings.level == "reduced":
            check_owner(self._workspace)
        self._make()
        old, self._cell = self._cell, None
        if old is not None:
            await old.end()
        self._cell = await start_cell(self._plan())

    async def _carried_out(self, writable: list[str], request: dict[str, Any]) -> dict[str, Any]:
        """Has a plan carried out, and forgotten."""
        try:
            return await self._change(tuple(writable), request)
        finally:
            await self._ask({"op": "done", "plan": request["plan"]})

    async def _change(self, writable: tuple[str, ...], request: dict[str, Any]) -> dict[str, Any]:
        """Asks a process of its own that may write folders of the workspace."""
        cell = await start_cell(self._plan(writable))
        try:
            return (await self._answered(cell, request))[0]
        finally:
            await cell.end()

    async def _answered(self, cell: Cell, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        try:
            answer, body = await cell.ask(request, lambda: self._clock.timeout(self._settings.longest_s))
        except EOFError:
            raise SandboxError(f"the sandbox of checkpoints died while it was asked to {request['op']}") from None
        except TimeoutError:
            told = f"a checkpoint took longer than {self._settings.longest_s:g} seconds ({request['op']})"
            raise SandboxError(told) from None
        if "error" in answer:
            _raise(answer["error"], answer["message"])
        return answer, body

    def _rest(self) -> None:
        if not self._using.locked():
            self._resting = asyncio.ensure_future(self._end_idle())

    async def _end_idle(self) -> None:
        with contextlib.suppress(TokaError):
            if self._packs > CROWDED:
                self._packs = 0
                await self._ask({"op": "forget", "runs": []})
            await self._end_cell()


def store_of(workspace: Path, state: Path) -> Path:
    """Where the checkpoints of a workspace are kept.

    Args:
        workspace: at its real path.
        state: Toka's state directory.
    """
    digest = hashlib.sha256(os.fsencode(workspace)).hexdigest()[:32]
    return state.resolve() / "checkpoints" / digest


def shown(path: str) -> str:
    """A path for people: what is no text in it as escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _noted(note: Note) -> dict[str, str]:
    return {"run": note.run, "agent": note.agent, "task": note.task, "step": note.step}


def _normal(scope: Sequence[str]) -> list[str]:
    """Paths in one order, without those that lie below another.

    Raises:
        ValueError: one is not relative and normalised.
    """
    for path in scope:
        parts = path.split("/")
        if path != "." and ("" in parts or "." in parts or ".." in parts or "\0" in path):
            raise ValueError(f"{path!r} is not a normalised path relative to the workspace")
    found = set(scope)
    around = {p for p in found if not any(q == "." or p.startswith(q + "/") for q in found - {p})}
    return sorted(around)


def _entry(found: dict[str, Any]) -> Entry:
    note = Note(found["of"], found.get("agent", ""), found.get("task", ""), found.get("step", ""))
    return Entry(found["id"], note, float(found["time"]), tuple(found["scope"]), found.get("kept", ""))


def _part_of(workspace: Path, state: Path) -> tuple[str, ...]:
    """The state directory as a path of the workspace, if it lies in it."""
    return (state.relative_to(workspace).as_posix(),) if state.is_relative_to(workspace) else ()


def _raise(code: str, message: str) -> None:
    if code == "not-found":
        raise NotFound(message)
    hint = {
        "quota": "prune the checkpoints of old runs, or raise the quota",
        "disk": "free some space",
        "damaged": "the store of checkpoints was changed from outside; remove it, and take new ones",
    }.get(code)
    if code == "failed":
        raise SandboxError(f"a checkpoint failed: {message}")
    raise CheckpointRefused(message, reason=code, hint=hint)
