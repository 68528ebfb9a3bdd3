from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from toka.core.clock import SystemClock
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy
from toka.tools.tool import Hands, ToolContext

Room = Callable[..., ToolContext]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    (folder / "src").mkdir(parents=True)
    (folder / "src/a.py").write_text("one = 1\ntwo = 2\nthree = 3\n")
    (folder / "README.md").write_text("# Read me\n")
    return folder


class Watched:
    """A sandbox that tells what it was asked to run, and may run it as another kind or with more variables."""

    def __init__(self, sandbox: Sandbox, *, kind: str = "", env: dict[str, str] | None = None) -> None:
        self.sandbox = sandbox
        self.kind = kind
        self.env = env or {}
        self.runs: list[list[str]] = []

    async def run(self, argv: Any, **how: Any) -> Any:
        self.runs.append(list(argv))
        how["env"] = {**(how.get("env") or {}), **self.env}
        if self.kind:
            how["chosen_by"] = self.kind
        return await self.sandbox.run(argv, **how)

    async def file(self, op: str, **how: Any) -> dict[str, Any]:
        return await self.sandbox.file(op, **how)


@pytest.fixture
async def room(workspace: Path) -> AsyncIterator[Room]:
    """Makes contexts whose sandboxes have a policy, started at the first need; closes them."""
    started: list[Sandbox] = []

    def make(
        *, kind: str = "", env: dict[str, str] | None = None, around: Surroundings | None = None, **policy: Any
    ) -> ToolContext:
        mine: list[Watched] = []

        async def hands() -> Hands:
            if not mine:
                sandbox = await Sandbox.start(workspace, SandboxPolicy(**policy), around or Surroundings(SystemClock()))
                started.append(sandbox)
                mine.append(Watched(sandbox, kind=kind, env=env))
            return mine[0]

        return ToolContext(hands=hands, key="k" * 32, timeout_s=20, output_limit=20_000, agent="fixer")

    yield make
    for sandbox in started:
        await sandbox.close()


@pytest.fixture
async def ctx(workspace: Path) -> AsyncIterator[ToolContext]:
    """A context whose sandbox may read all and write src, started at the first need."""
    started: list[Sandbox] = []

    async def hands() -> Hands:
        if not started:
            policy = SandboxPolicy(reads=(".",), writes=("src",), programs=None)
            started.append(await Sandbox.start(workspace, policy, Surroundings(SystemClock())))
        return started[0]

    yield ToolContext(hands=hands, key="k" * 32, timeout_s=10, output_limit=20_000, agent="fixer")
    for sandbox in started:
        await sandbox.close()
