"""The checkpoints of one process: one store for each workspace."""

from __future__ import annotations

import asyncio
from pathlib import Path

from toka.core.clock import Clock
from toka.workspace.checkpoint import Settings
from toka.workspace.checkpoints import Checkpoints


class Stores:
    """Gives each workspace its checkpoints, and ends what they started when it is closed."""

    def __init__(self, state: Path, clock: Clock) -> None:
        """`state` is the state directory; stores lie below it."""
        self._state = state
        self._clock = clock
        self._known: dict[tuple[Path, Settings], Checkpoints] = {}

    def of(self, workspace: Path, settings: Settings) -> Checkpoints:
        """The checkpoints of a workspace; the same for the same settings."""
        key = (workspace, settings)
        if key not in self._known:
            self._known[key] = Checkpoints(workspace, self._state, self._clock, settings)
        return self._known[key]

    async def close(self) -> None:
        """Ends the processes that make checkpoints."""
        await asyncio.gather(*(each.close() for each in self._known.values()))
