"""What a run is made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toka.config.agent import AgentConfig
from toka.errors import UsageError


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a run is made from.

    Attributes:
        configs: the agents; names are unique.
        workspace: the directory they work on; it must exist.
        enabled: conditional task groups that are switched on.
        model: overrides the specs' models; None does not.
        options: further JSON that a resume needs, such as the base URL.
        toolchains: those with which a run was made that goes on; None = the runtime's.
    """

    configs: Sequence[AgentConfig]
    workspace: Path
    enabled: tuple[str, ...] = ()
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    toolchains: tuple[str, ...] | None = None


def check_groups(configs: Sequence[AgentConfig], enabled: Collection[str]) -> None:
    """Raises UsageError when an enabled conditional group exists in no spec: a typing mistake would do nothing."""
    known = {group for config in configs for group in config.tasks.conditional}
    for group in enabled:
        if group not in known:
            offered = f"there are: {', '.join(sorted(known))}" if known else "no spec has conditional tasks"
            raise UsageError(f"no spec has a conditional group {group!r}", hint=offered)
