"""What there is to say about checkpoints: how they are made, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from toka.sandbox.level import Level
from toka.workspace.claims import Note

GIB: Final = 1024**3
IDLE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How checkpoints of a workspace are made.

    Attributes:
        level: of the sandbox in which they are made; agents' own.
        quota_bytes: bytes that the workspace's store may have; None = no bound.
        ignored: whether files that .gitignore files name are recorded, too.
        longest_s: seconds after which one operation is given up.
        idle_s: seconds without use after which the process that makes them ends.
    """

    level: Level = "full"
    quota_bytes: int | None = 10 * GIB
    ignored: bool = True
    longest_s: float = 900.0
    idle_s: float = IDLE_S


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state of the workspace that can be put back.

    Attributes:
        id: its name, 40 hexadecimal digits.
        created: False when nothing had changed since the last one with the same scope: this is that one.
        files: files and links that it holds.
        changed: files and links that differ from the last one.
        uncovered: up to 200 paths that it does not hold, each with the reason: `x.sock is a socket`.
        uncovered_count: how many there are.
        wall_s: seconds it took.
    """

    id: str
    created: bool
    files: int
    changed: int
    uncovered: tuple[str, ...]
    uncovered_count: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Restored:
    """A workspace that was put back.

    Attributes:
        kept: the checkpoint of what was there before.
        changed: paths that were written, taken away, or given another mode or time.
        left: paths that are not as the checkpoint has them, each with the reason.
        wall_s: seconds it took.
    """

    kept: str
    changed: tuple[str, ...]
    left: tuple[str, ...]
    wall_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs.

    Attributes:
        status: `A`dded, `M`odified (contents, or whether it may be executed), `D`eleted, or of another `T`ype.
        path: relative to the workspace; bytes that are no UTF-8 are lone surrogates.
        old_mode, new_mode: git's: `100644`, `100755`, `120000`; `000000` for what is not there.
    """

    status: Literal["A", "M", "D", "T"]
    path: str
    old_mode: str
    new_mode: str


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs between two states.

    Attributes:
        changes: by path.
        text: a unified diff as git writes it, without git's own files; of binary files it says only that they differ.
        cut: whether that is only its beginning, 64 MiB.
    """

    changes: tuple[Change, ...]
    text: bytes
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint in a run's history.

    Attributes:
        id: its name.
        note: for which step it was first taken.
        at: seconds since the epoch.
        scope: what it holds.
        kept_for: when it was taken before going back to another one: that one; else empty.
    """

    id: str
    note: Note
    at: float
    scope: tuple[str, ...]
    kept_for: str = ""
