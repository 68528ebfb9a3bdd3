from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy
from toka.tools.tool import Hands, ToolContext


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    (folder / "src").mkdir(parents=True)
    (folder / "src/a.py").write_text("one = 1\ntwo = 2\nthree = 3\n")
    (folder / "README.md").write_text("# Read me\n")
    return folder


@pytest.fixture
async def ctx(workspace: Path) -> AsyncIterator[ToolContext]:
    """A context whose sandbox may read all and write src, started at the first need."""
    started: list[Sandbox] = []

    async def hands() -> Hands:
        if not started:
            policy = SandboxPolicy(reads=(".",), writes=("src",), programs=None)
            started.append(await Sandbox.start(workspace, policy, Surroundings(SystemClock())))
        return started[0]

    yield ToolContext(hands=hands, key="k" * 32, timeout_s=10, output_limit=20_000)
    for sandbox in started:
        await sandbox.close()
