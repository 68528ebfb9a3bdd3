from __future__ import annotations

from pathlib import Path

import pytest

from toka.journal import mounted
from toka.journal.mounted import network_filesystem

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
    monkeypatch.setattr(mounted, "_MOUNTS", tmp_path / "mounts")
    assert network_filesystem(Path(state)) == kind


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network_filesystem(tmp_path) == ""
    (tmp_path / "link").symlink_to("/net/state")
    (tmp_path / "mounts").write_text(MOUNTS, encoding="utf-8")
    monkeypatch.setattr(mounted, "_MOUNTS", tmp_path / "mounts")
    assert network_filesystem(tmp_path / "link/below") == "nfs4"


def test_where_mounts_cannot_be_read_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "_MOUNTS", tmp_path / "none")
    assert network_filesystem(tmp_path) == ""
