"""Where a journal may lie."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.errors import JournalUnavailable
from toka.journal import place
from toka.journal.database import FILE
from toka.journal.place import NETWORK, file_system, make, refuse_network
from toka.journal.sqlite import SqliteReader

PROC = 0x9FA0
TMPFS = 0x01021994


def test_the_kernel_tells_what_holds_a_directory() -> None:
    assert file_system(Path("/proc/self")) == PROC
    assert file_system(Path("/dev/shm")) == TMPFS or not os.path.ismount("/dev/shm")
    assert file_system(Path("/nowhere/at/all")) == 0


def test_it_says_what_stat_says(tmp_path: Path) -> None:
    told = subprocess.run(["stat", "-f", "-c", "%t", str(tmp_path)], capture_output=True, text=True, check=True)
    assert file_system(tmp_path) == int(told.stdout, 16)


@pytest.mark.parametrize("number", NETWORK)
def test_a_directory_of_another_machine_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    asked: list[Path] = []

    def answer(path: Path) -> int:
        asked.append(path)
        return number

    monkeypatch.setattr(place, "file_system", answer)
    state = tmp_path / "deep" / "state"
    with pytest.raises(JournalUnavailable, match=f"lies on {NETWORK[number]}, a file system of another") as error:
        SqliteReader(state, SystemClock())
    assert error.value.exit_code == 4
    assert error.value.hint == "choose a directory on a disk of this machine: --state DIR or TOKA_STATE"
    assert asked == [tmp_path], "the nearest that is there"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_told_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "file_system", lambda _: 0)
    refuse_network(tmp_path)


def test_what_is_made_is_private_and_made_once(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    path = make(state, FILE)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700 and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"kept")
    assert make(state, FILE).read_bytes() == b"kept"


def test_the_names_of_what_is_made_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    make(tmp_path / "deep" / "state", FILE)
    assert set(synced) == {str(tmp_path), str(tmp_path / "deep"), str(tmp_path / "deep" / "state")}
    synced.clear()
    make(tmp_path / "deep" / "state", FILE)
    assert synced == []


@pytest.mark.slow
def test_a_file_system_that_is_mounted_for_reading_says_so(tmp_path: Path) -> None:
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root can mount")
    with closing(SqliteReader(tmp_path / "state", SystemClock())):
        pass
    code = (
        "import sys; from pathlib import Path; from toka.core.clock import SystemClock; from toka.errors import *\n"
        "from toka.journal.sqlite import SqliteReader\n"
        "for folder in sys.argv[1:]:\n"
        "    try: SqliteReader(Path(folder), SystemClock())\n"
        "    except JournalUnavailable as e: print(e, '/', 'copy it' in e.hint)\n"
    )
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    folders = [str(tmp_path / "state"), str(tmp_path / "new")]
    command = ["unshare", "-m", "sh", "-c", mount, str(tmp_path), sys.executable, "-c", code, *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [f"cannot use the state directory {folder}: Read-only file system" for folder in folders]
    said = [f"{told[0]} / True", f"{told[1]} / False"]  # what is there can be looked at elsewhere
    assert done.stdout.splitlines() == said
