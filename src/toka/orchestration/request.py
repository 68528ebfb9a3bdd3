"""What a run is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toka.config.agent import AgentConfig


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a run is made from.

    Attributes:
        configs: the agents; names are unique.
        workspace: the directory they work on; it must exist.
        enabled: conditional task groups that are switched on.
        model: overrides the specs' models; None does not.
        options: further JSON that a resume needs, such as the base URL.
    """

    configs: Sequence[AgentConfig]
    workspace: Path
    enabled: tuple[str, ...] = ()
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
