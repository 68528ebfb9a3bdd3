"""Whatever a workspace holds and whatever is done to it, going back gives the same to the last bit."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from toka.core.clock import SystemClock
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.operations import Operations
from toka.workspace.store import Store
from workspace.conftest import NOTE
from workspace.trees import Act, Folder, act, acts, clear, make, snapshot, workspaces

GIT = "/usr/bin/git"


class Directly:
    """The code that runs inside, without the sandbox around it."""

    def __init__(self, workspace: Path) -> None:
        store = Store(GIT, None)
        store.prepare()
        self.operations = Operations(store, {"git": GIT, "workspace": str(workspace), "excluded": []})
        self.store = store
        self.opened = False

    def ask(self, op: str, **more: Any) -> dict[str, Any]:
        return self.operations.answer({"op": op, "note": {"run": "r"}, **more})[0]

    def take(self) -> str:
        return self.ask("take", scope=["."], ignored=True, objects=False)["id"]

    def restore(self, checkpoint: str) -> str:
        """What was there before, as `Checkpoints.restore` does it; `opened` says whether modes changed for that."""
        plan = self.ask("plan", id=checkpoint, scope=None, opening=True)
        self.opened = "open" in plan
        if self.opened:
            self.ask("open", plan=plan["open"])
            plan = self.ask("plan", id=checkpoint, scope=None, opening=False)
        assert plan["left"] == {}
        if plan["plan"]:
            done = self.ask("apply", plan=plan["plan"])
            assert done == {"raced": [], "left": {}}
        return plan["kept"]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two empty folders, store and workspace; the first is the working folder."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "store").mkdir()
        (Path(folder) / "ws").mkdir()
        monkeypatch.chdir(Path(folder) / "store")
        yield Path(folder)
        clear(Path(folder) / "ws")
        monkeypatch.undo()


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=workspaces, changes=acts)
def test_whatever_is_done_can_be_taken_back(place: Path, before: Folder, changes: list[Act]) -> None:
    workspace = place / "ws"
    clear(workspace)
    make(os.fsencode(workspace), before)
    there = snapshot(workspace)
    direct = Directly(workspace)
    try:
        taken = direct.take()
        assert direct.take() == taken, "nothing had changed"
        act(workspace, changes, closing=os.geteuid() == 0)
        changed = snapshot(workspace)
        kept = direct.restore(taken)
        assert snapshot(workspace) == there
        opened = direct.opened
        direct.restore(kept)
        found = snapshot(workspace)
        if opened:  # what nobody could read was given to its owner first
            found, changed = ({p: (v[0], *v[2:]) for p, v in s.items()} for s in (found, changed))
        assert found == changed, "what was found is kept"
        direct.restore(taken)
        assert snapshot(workspace) == there
    finally:
        direct.store.close()


@pytest.mark.slow
@pytest.mark.timeout(200)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(before=workspaces, changes=acts)
def test_the_same_holds_in_the_sandbox(place: Path, before: Folder, changes: list[Act]) -> None:
    workspace = place / "ws"
    clear(workspace)
    make(os.fsencode(workspace), before)
    there = snapshot(workspace)

    async def check() -> None:
        checkpoints = Checkpoints(workspace, place / "store", SystemClock())
        try:
            taken = await checkpoints.take(NOTE)
            assert taken.uncovered == ()
            act(workspace, changes)
            restored = await checkpoints.restore(taken.id, NOTE)
            assert restored.left == ()
            assert snapshot(workspace) == there
            assert (await checkpoints.restore(taken.id, NOTE)).changed == ()
        finally:
            await checkpoints.close()

    asyncio.run(check())
