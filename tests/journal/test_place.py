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
from toka.journal import place
from toka.journal.database import FILE
from toka.journal.place import make, network_filesystem
from toka.journal.sqlite import SqliteReader

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 21 0:40 / /net rw shared:7 master:2 - nfs4 server:/export rw,vers=4.2
41 40 0:41 / /net/mine rw - tmpfs none rw
42 21 0:42 / /with\\040room/\u00fcber rw - cifs //server/share rw
43 21 0:43 / /twice rw - nfs server:/x rw
44 21 0:43 / /twice rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("/home/ada/toka", ""), ("/net", "nfs4"), ("/net/state/below", "nfs4"), ("/network", ""), ("/net/mine/x", ""),
        ("/with room/\u00fcber/x", "cifs"), ("/twice/x", ""),
    ],
)  # fmt: skip
def test_the_innermost_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, kind: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS, encoding="utf-8")
    monkeypatch.setattr(place, "_MOUNTS", tmp_path / "mounts")
    assert network_filesystem(Path(state)) == kind


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network_filesystem(tmp_path) == ""
    (tmp_path / "link").symlink_to("/net/state")
    (tmp_path / "mounts").write_text(MOUNTS, encoding="utf-8")
    monkeypatch.setattr(place, "_MOUNTS", tmp_path / "mounts")
    assert network_filesystem(tmp_path / "link/below") == "nfs4"


def test_where_mounts_cannot_be_read_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_MOUNTS", tmp_path / "none")
    assert network_filesystem(tmp_path) == ""


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
        "    except JournalUnavailable as e: print(e)\n"
    )
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    folders = [str(tmp_path / "state"), str(tmp_path / "new")]
    command = ["unshare", "-m", "sh", "-c", mount, str(tmp_path), sys.executable, "-c", code, *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [f"cannot use the state directory {folder}: Read-only file system" for folder in folders]
    assert done.stdout.splitlines() == said
