"""What a crash in the middle of a step means for it."""

from __future__ import annotations

from enum import StrEnum


class Effect(StrEnum):
    """Whether a step that was in flight when the process died may run again."""

    PURE = "pure"
    """Changes nothing: runs again."""
    IDEMPOTENT = "idempotent"
    """Runs again with the same key."""
    CHECKABLE = "checkable"
    """A probe tells whether it happened."""
    WORKSPACE = "workspace"
    """The workspace is put back to the checkpoint, then it runs again."""
    ONCE = "once"
    """Never runs again by itself: a person answers whether it happened."""
