"""What a recorded run kept of workspaces, and where its agents worked: nothing is kept or made any more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.errors import CheckpointRefused, UsageError
from toka.events.event import RunCreated, StepDenied
from toka.events.record import Record
from toka.events.workspace import BranchReturned, WorkspaceMade
from toka.orchestration.recorded import Recorded
from toka.orchestration.unmet import inside
from toka.runtime.context import KeepWorkspace, RunContext
from toka.workspace.checkpoint import Checkpoint, Restored
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.claims import Note
from toka.workspace.lock import Told


class RecordedCheckpoints:
    """The checkpoints of a run, of which none is made. See Checkpoints."""

    used = False

    def __init__(self, recorded: Recorded) -> None:
        """Tells what is recorded of them."""
        self._recorded = recorded
        self.given_up = ""

    def lock(
        self,
        note: Note,  # noqa: ARG002
        scope: Sequence[str] = (".",),  # noqa: ARG002
        told: Told | None = None,  # noqa: ARG002
        *,
        shared: bool = False,  # noqa: ARG002
    ) -> AbstractAsyncContextManager[None]:
        """Nobody is waited for: what each writes comes at its recorded place."""
        return nullcontext()

    def overtaken(self, note: Note, scope: Sequence[str]) -> str:  # noqa: ARG002
        """Why it was not put back then; empty when it was."""
        back = self._recorded.put_back(note.agent, note.step)
        return "" if back.kept else back.problem

    async def take(self, note: Note, scope: Sequence[str] | None = None) -> Checkpoint:  # noqa: ARG002
        """The one that was taken then. Raises CheckpointRefused when there was none."""
        kept, why, uncovered = self._recorded.checkpoint(note.agent, note.step)
        if why:
            raise CheckpointRefused(why, reason="disk")
        return Checkpoint(
            kept, created=True, files=0, changed=0, uncovered=tuple(uncovered), uncovered_count=0, wall_s=0
        )

    async def restore(self, id: str, note: Note, scope: Sequence[str] | None = None) -> Restored:  # noqa: A002, ARG002
        """What was put back then."""
        back = self._recorded.put_back(note.agent, note.step)
        return Restored(back.kept, ("",) * back.changed, (back.problem,) if back.problem else (), 0.0)


class RecordedWorkspaces:
    """The private workspaces of a run, of which none is made. See PrivateWorkspaces."""

    def __init__(self, recorded: Recorded) -> None:
        """Tells what is recorded of them."""
        self._recorded = recorded

    async def make(self, run: RunContext, config: AgentConfig) -> WorkspaceMade:  # noqa: ARG002
        """The one that was made then. Raises UsageError: as then."""
        found = self._recorded.private(config.name)
        if isinstance(found, str):
            raise UsageError(found)
        return found or WorkspaceMade(config.workspace, "")

    def need(self, run: RunContext, made: WorkspaceMade, agent: AgentName) -> None:  # noqa: ARG002
        """See PrivateWorkspaces."""
        found = self._recorded.private(agent)
        if isinstance(found, str):
            raise UsageError(found)

    async def bring_back(self, run: RunContext, made: WorkspaceMade, agent: AgentName) -> BranchReturned:  # noqa: ARG002
        """What became of it then."""
        return self._recorded.returned(agent, made.branch)


def keep_recorded(created: RunCreated, recorded: Recorded) -> KeepWorkspace:
    """A KeepWorkspace that keeps nothing, for runs whose settings had it kept."""
    execution: dict[str, Any] = created.options.get("execution") or {}
    kept = bool(execution.get("checkpoints"))
    return lambda _workspace, _execution: cast("Checkpoints", RecordedCheckpoints(recorded)) if kept else None


def state_within(created: RunCreated, state: Path | None, folder: Path) -> Path | None:
    """Where the state directory would lie in the folder that stands for the workspace, if in that; never made."""
    names = inside(Path(created.workspace), [state]) if state is not None else ()
    return folder / names[0] if names else None


def like_workspace(folder: Path, records: Sequence[Record]) -> None:
    """Makes git's settings lead where they did: to what agents were refused because git obeys it."""
    led = {
        r.event.rule.removeprefix("protected: ")
        for r in records
        if isinstance(r.event, StepDenied) and r.event.rule.startswith("protected: ") and "git" in r.event.reason
    }
    if led:
        (folder / ".git").mkdir()
        hooks = "".join(f"[core]\n\thooksPath = {path}\n" for path in sorted(led) if not path.startswith(".git"))
        (folder / ".git" / "config").write_text(hooks)
