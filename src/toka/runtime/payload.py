"""Arguments and results as the journal keeps them: small ones in their record, large ones beside it, or cut."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from toka.journal.recorder import Recorder

INLINE_BYTES: Final = 16_384
"""Results above this size go to a blob."""
INLINE_ARGUMENTS: Final = 2_048
"""Arguments above this size are recorded cut."""


async def stored(recorder: Recorder, value: Any) -> Any:
    """A result as its record holds it: as it is, or {"blob": digest}. Raises JournalError."""
    if value is None:
        return None
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text) <= INLINE_BYTES and not _is_reference(value):
        return value
    return {"blob": await recorder.put_blob(text.encode("utf-8", "surrogatepass"))}


def loaded(recorder: Recorder, value: Any) -> Any:
    """The inverse of `stored`. Raises JournalError."""
    if not _is_reference(value):
        return value
    digest: str = value["blob"]
    return json.loads(recorder.blob(digest).decode("utf-8", "surrogatepass"))


def _is_reference(value: Any) -> bool:
    """Whether a stored result names a blob. A result that looks like that is stored as one itself."""
    return isinstance(value, dict) and "blob" in value


def cut(arguments: Any) -> Any:
    """Arguments for the record: as they are, or the beginning of their text when they are large."""
    if arguments is None:
        return None
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if len(text) <= INLINE_ARGUMENTS:
        return arguments
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"cut": text[: INLINE_ARGUMENTS // 2], "characters": len(text), "sha256": digest}


def shortened(arguments: Any) -> str:
    """Arguments as a sentence to a person quotes them: at most 300 characters; empty when there are none."""
    text = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return text if len(text) <= 300 else text[:299] + "…"
