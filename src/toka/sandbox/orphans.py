"""What a dead runtime left behind: its sandboxes, found by what it noted while it lived, and ended.

A runtime notes each sandbox in a small file in the state directory before anything of an agent runs in it, and takes
the note away when the sandbox is gone. Whoever starts next reads the notes of runtimes that are dead. A process is
meant by its number together with its start time and the boot it belongs to; never by its name.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from toka.core.clock import Clock
from toka.errors import SandboxError
from toka.sandbox.cgroup import Cgroup, orphans
from toka.sandbox.cgroup_find import Hierarchies, owned_name, owner_is_gone
from toka.sandbox.standstill import end
from toka.sandbox.usage import read_stat

FOLDER: Final = "sandboxes"
PREFIX: Final = "toka-"
"""How the names of our cgroups begin."""
ROOM_S: Final = 30.0
"""How long a start waits for room on a full disk."""
AGAIN_S: Final = 0.2
"""Between two attempts."""
T = TypeVar("T")
_NOTE: Final = re.compile(r"n\d+-\d+-\d+-\d+\.json(\.new)?")
"""The pid namespace, pid and start time of the runtime, and a number of its own."""
_NUMBERS: Final = itertools.count()


class NoRoom(SandboxError):
    """The disk of the state directory is full; the same start may succeed later."""


async def with_room(start: Callable[[], Awaitable[T]], clock: Clock) -> T:
    """What `start` returns, attempted again for ROOM_S while there is no room for its note.

    A full disk is nothing that an agent did: it waits, as it does for the record.

    Raises:
        NoRoom: there was none in all that time.
    """
    end = clock.monotonic() + ROOM_S
    while True:
        try:
            return await start()
        except NoRoom:
            if clock.monotonic() >= end:
                raise
        await clock.sleep(AGAIN_S)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The notes of this runtime about its sandboxes.

    Attributes:
        state: the state directory.
    """

    state: Path

    @property
    def _folder(self) -> Path:
        return self.state / FOLDER

    def open(self) -> Note:
        """A note about one sandbox; nothing is written yet."""
        return Note(self._folder / f"{_this_process()}-{next(_NUMBERS)}.json")

    def left(self) -> list[Path]:
        """The notes of this user's runtimes that are dead for certain."""
        with suppress(OSError):
            files = sorted(file for file in self._folder.iterdir() if _NOTE.fullmatch(file.name))
            return [file for file in files if file.lstat().st_uid == os.geteuid() and _is_left(file)]
        return []


@dataclass(frozen=True, slots=True)
class Note:
    """What is noted about one sandbox."""

    file: Path

    def write(self, root: int, cgroup: str, directories: Sequence[Path]) -> None:
        """Notes its first process and its cgroup, in the place of what was noted before; whole or not at all.

        Raises:
            NoRoom: its disk is full.
            SandboxError: the state directory cannot be written.
        """
        stat = read_stat(root)
        said = {
            "boot": _boot(), "root": [root, stat.started if stat else 0],
            "cgroup": cgroup, "directories": [str(directory) for directory in directories],
        }  # fmt: skip
        new = self.file.with_name(f"{self.file.name}.new")
        try:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:  # noqa: PTH123
                file.write(json.dumps(said))
            new.replace(self.file)
        except OSError as error:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            kind = NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT) else SandboxError
            raise kind(
                f"the sandbox cannot be noted in {self.file.parent}: {error.strerror}",
                hint="nothing was run in it: without the note, what a kill leaves would not be found again",
            ) from None

    def remove(self) -> None:
        """The sandbox is gone. Idempotent."""
        with suppress(OSError):
            self.file.unlink(missing_ok=True)


def end_orphans(found: Hierarchies, ledger: Ledger | None) -> None:
    """Ends the sandboxes of dead runtimes: what is frozen is thawed and killed, what is stopped is killed.

    What cannot be ended or judged is left, with its note, for the next one who looks. Blocks for as long as it takes.

    Args:
        found: where the cgroups are of which the names tell who made them.
        ledger: whose notes to read; None: there are none.
    """
    for cgroup in orphans(found, PREFIX):
        with suppress(SandboxError):
            cgroup.end()
    for file in ledger.left() if ledger is not None else ():
        if _end(_read(file), found):
            with suppress(OSError):
                file.unlink(missing_ok=True)


def _end(said: dict[str, Any], found: Hierarchies) -> bool:
    """Ends what one note tells of; whether nothing is left. A note that says nothing tells of nothing."""
    if said.get("boot") != _boot():
        return True
    try:
        (root, started), name = map(int, said["root"]), str(said["cgroup"])
        directories = [Path(directory) for directory in said["directories"]]
    except (KeyError, TypeError, ValueError):
        return True
    # Our own cgroup may be another than that of the dead runtime, so that `orphans` did not look there.
    mine = [d for d in directories if d.name == name and (d / "cgroup.procs").exists()]
    if mine and name.startswith(PREFIX) and owner_is_gone(name):
        try:
            Cgroup(name, directories=mine, _files=found.files).end()
        except SandboxError:
            return False
    return end(root, started)


def _read(file: Path) -> dict[str, Any]:
    """What a note says; empty when it says nothing."""
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}


def _is_left(file: Path) -> bool:
    name = file.name.partition(".")[0].rpartition("-")[0]
    return owner_is_gone(f"-{name}") or _read(file).get("boot", _boot()) != _boot()


def _this_process() -> str:
    """As `owner_is_gone` reads it at the end of a name."""
    return owned_name("x")[2:]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
