"""Files that commands write for people."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Writes beside the path and renames: a link in the way is replaced, not followed."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "w") as file:
            file.write(text)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
