"""The settings that a run was made with, from its first record."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from toka.config.settings import ExecutionConfig
from toka.events.event import RunCreated

FORMER: Final = {"agent_timeout_s": "workstream_timeout_s"}
"""Fields of ExecutionConfig under the names that older records give them."""


def recorded_execution(created: RunCreated) -> ExecutionConfig:
    """The settings a run was made with; what an older version did not know has its default."""
    recorded: dict[str, Any] = created.options.get("execution") or {}
    known = {f.name for f in fields(ExecutionConfig)}
    return ExecutionConfig(**{n: v for k, v in recorded.items() if (n := FORMER.get(k, k)) in known})
