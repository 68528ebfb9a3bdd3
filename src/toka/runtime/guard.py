"""Keeps the workspace as it was before a step that may change it, so that the step can run again after a crash."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from toka.core.effect import Effect
from toka.core.ids import AgentName, RunId, StepKey
from toka.errors import CheckpointRefused, CheckpointUnavailable, NotFound, SandboxError, TokaError
from toka.events.event import RunStateChanged
from toka.events.lifecycle import RUN_ENDS
from toka.events.steps import StepIntent, StepPutBack
from toka.runtime.act import Told
from toka.runtime.aftermath import Aftermath
from toka.runtime.context import AgentContext, RunContext
from toka.runtime.private import checkpoints_of, site_of
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.claims import Note
from toka.workspace.private import FOLDER, prune


class WorkspaceTurn:
    """See Turn. Many may have theirs at one time, unless one of them may be put back."""

    def __init__(self, checkpoints: Checkpoints, note: Note, scope: tuple[str, ...]) -> None:
        self._checkpoints = checkpoints
        self._note = note
        self._scope = scope

    @asynccontextmanager
    async def hold(self, told: Told | None = None) -> AsyncGenerator[None]:
        """See Turn. Who writes elsewhere is not waited for."""
        lock = partial(self._checkpoints.lock, self._note, self._scope, shared=True)
        async with AsyncExitStack() as stack:
            with contextlib.suppress(CheckpointRefused, OSError):  # then nothing is put back here either
                await stack.enter_async_context(lock(_telling(self._note, told)))
            yield


def _telling(note: Note, told: Told | None) -> Callable[[Note], Awaitable[None]] | None:
    if told is None:
        return None

    async def tell(whom: Note) -> None:
        await told("" if whom.run == note.run else whom.run, whom.agent)

    return tell


class WorkspaceGuard:
    """See Guard. What the agent may write is kept, and nothing else is put back."""

    def __init__(self, checkpoints: Checkpoints, note: Note, scope: tuple[str, ...]) -> None:
        self._checkpoints = checkpoints
        self._note = note
        self._scope = scope

    @asynccontextmanager
    async def hold(self, told: Told | None = None) -> AsyncGenerator[None]:
        """See Turn. Who writes elsewhere is not waited for."""
        async with AsyncExitStack() as stack:
            try:
                lock = self._checkpoints.lock(self._note, self._scope, _telling(self._note, told))
                await stack.enter_async_context(lock)
            except (CheckpointRefused, OSError) as e:
                self._checkpoints.given_up = str(e)
            yield

    async def checkpoint(self) -> tuple[Effect, dict[str, Any]]:
        """See Guard."""
        if self._checkpoints.given_up:
            return Effect.ONCE, {"checkpoint": None, "why": self._checkpoints.given_up}
        if not self._scope:
            return Effect.WORKSPACE, {"checkpoint": "", "scope": []}
        try:
            taken = await self._checkpoints.take(self._note, self._scope)
        except (CheckpointRefused, CheckpointUnavailable, SandboxError) as e:
            self._checkpoints.given_up = e.message  # it would cost as much each time
            return Effect.ONCE, {"checkpoint": None, "why": e.message}
        noted: dict[str, Any] = {"checkpoint": taken.id, "scope": list(self._scope)}
        if taken.uncovered:
            noted["uncovered"] = list(taken.uncovered[:20])
        return Effect.WORKSPACE, noted

    async def put_back(self, step: str, noted: dict[str, Any]) -> StepPutBack:
        """See Guard."""
        scope, checkpoint = noted.get("scope") or (), noted.get("checkpoint") or ""
        if not scope:
            return StepPutBack(step)
        if problem := self._checkpoints.overtaken(self._note, scope):  # before the turn: it would count as one since
            return StepPutBack(step, checkpoint, problem=problem)
        async with self.hold():
            if problem := self._checkpoints.overtaken(self._note, scope):
                return StepPutBack(step, checkpoint, problem=problem)
            try:
                restored = await self._checkpoints.restore(checkpoint, self._note, scope)
            except (CheckpointRefused, CheckpointUnavailable, NotFound, SandboxError) as e:
                return StepPutBack(step, checkpoint, problem=e.message)
        left = restored.left[0] if restored.left else ""
        return StepPutBack(step, checkpoint, restored.kept, len(restored.changed), left)


async def put_back_all(run: RunContext) -> None:
    """Puts back what steps left in the workspace whose process died, before anybody else works there.

    Not what a step left about which a person is asked: whether it happened they could not tell any more.

    Raises:
        JournalError: the record cannot be written.
    """
    for state in run.recorder.state.agents.values():
        flying = {step for task in state.tasks.values() for step in task.in_flight}
        if not flying or state.ended:
            continue
        for step, noted in _left(run, AgentName(state.name), flying).items():
            key = StepKey.parse(step)
            scope = tuple(noted.get("scope") or ())
            checkpoints = checkpoints_of(run, site_of(run, state).workspace)
            if checkpoints is None:
                return
            guard = WorkspaceGuard(checkpoints, Note(run.id, state.name, key.task, step), scope)
            back = await guard.put_back(step, noted)
            await run.recorder.record(AgentName(state.name), back)


async def forget_old(run: RunContext) -> None:
    """Drops the checkpoints and private workspaces of runs that ended long ago; best effort.

    Checkpoints only where some were taken just now.
    """
    await _forget_private(run)
    checkpoints, journal = run.checkpoints, run.runtime.journal
    if checkpoints is None or not checkpoints.used:
        return
    ended: dict[str, float] = {}
    with contextlib.suppress(TokaError):
        for name in {entry.note.run for entry in await checkpoints.history()} - {run.id}:
            last = journal.last_of(RunId(name), "", RunStateChanged.KIND)
            if last is None or (isinstance(last.event, RunStateChanged) and last.event.state in RUN_ENDS):
                ended[name] = last.at if last is not None else 0.0
        if ended:
            await checkpoints.prune(ended, run.execution.checkpoint_keep_s / 86_400)


async def _forget_private(run: RunContext) -> None:
    state, clock, journal = run.runtime.state, run.runtime.clock, run.runtime.journal
    if state is None:
        return
    ended: dict[str, float] = {}
    with contextlib.suppress(OSError, TokaError):
        for folder in (state / FOLDER).iterdir():
            last = journal.last_of(RunId(folder.name), "", RunStateChanged.KIND)
            if last is not None and isinstance(last.event, RunStateChanged) and last.event.state in RUN_ENDS:
                ended[folder.name] = last.at
        if ended:
            await asyncio.to_thread(prune, state, ended, run.execution.checkpoint_keep_s, clock.now())


def _left(run: RunContext, agent: AgentName, flying: Collection[str]) -> dict[str, dict[str, Any]]:
    """Of the steps in flight those that are to be put back and have not been, with what is noted of them."""
    found: dict[str, dict[str, Any]] = {}
    past = Aftermath()
    for record in run.recorder.history(agent):
        event = record.event
        past.read(event)
        if isinstance(event, StepIntent) and event.step in flying:
            found.pop(event.step, None)
            if event.effect == Effect.WORKSPACE and event.evidence is not None:
                found[event.step] = event.evidence
        elif isinstance(event, StepPutBack):
            found.pop(event.step, None)
    return {step: noted for step, noted in found.items() if not past.stays(step)}


class Care(NamedTuple):
    """What is done about an act that may change the workspace.

    Attributes:
        effect: what a crash in it means.
        guard: of one that can be put back.
        turn: of another one; None where it changes nothing.
    """

    effect: Effect
    guard: WorkspaceGuard | None = None
    turn: WorkspaceTurn | None = None


def cared_for(agent: AgentContext, key: StepKey, effect: Effect | None, scope: Sequence[str] | None = None) -> Care:
    """What a crash in a step that may change the workspace means, and what keeps it from others' changes.

    Args:
        agent: whose step it is.
        key: the step.
        effect: as it is declared; None = it is not.
        scope: the paths that it may change; None = all that the agent may.

    Returns:
        The effect as declared, where that is none of the workspace. Else WORKSPACE with its guard; but ONCE, unless a
        person declared otherwise, where the agent may reach the network: what it did there nobody can put back.
    """
    checkpoints, policy = agent.checkpoints, agent.policy
    if checkpoints is None:
        return Care(Effect.ONCE if effect in (None, Effect.WORKSPACE) else effect)
    if effect is Effect.PURE:
        return Care(effect)
    paths = policy.changeable if scope is None else tuple(scope)
    if effect is Effect.WORKSPACE or (effect is None and not policy.network):
        note = Note(agent.run.id, agent.name, key.task, key.text)
        return Care(Effect.WORKSPACE, guard=WorkspaceGuard(checkpoints, note, paths))
    turn = WorkspaceTurn(checkpoints, Note(agent.run.id, agent.name), paths) if paths else None
    return Care(effect or Effect.ONCE, turn=turn)
