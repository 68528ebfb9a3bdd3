from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from toka.core.clock import SystemClock
from toka.workspace.checkpoint import Settings
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.claims import Note

NOTE = Note("run_1", "fixer", "task_1", "step_1")
Open = Callable[..., Checkpoints]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    (folder / "src").mkdir(parents=True)
    (folder / "docs").mkdir()
    (folder / "src/main.py").write_text("print('hi')\n")
    (folder / "src/run.sh").write_text("#!/bin/sh\n")
    (folder / "src/run.sh").chmod(0o755)
    (folder / "docs/a.txt").write_bytes(b"alpha\r\n")
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
async def open_checkpoints(workspace: Path, state: Path) -> AsyncIterator[Open]:
    """Opens checkpoints of the workspace, as often as a test wants, and closes them."""
    opened: list[Checkpoints] = []

    def make(**settings: Any) -> Checkpoints:
        opened.append(Checkpoints(workspace, state, SystemClock(), Settings(**settings)))
        return opened[-1]

    yield make
    for checkpoints in opened:
        await checkpoints.close()


@pytest.fixture
def checkpoints(open_checkpoints: Open) -> Checkpoints:
    return open_checkpoints()
