from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from toka.workspace.duplicate import duplicate


def copied(source: Path, target: Path, *left_out: str) -> None:
    target.mkdir()
    ends = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target)]
    try:
        duplicate(ends[0], ends[1], left_out, lambda: False)
    finally:
        for fd in ends:
            os.close(fd)


def picture(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    found: dict[str, tuple[int, int, int, bytes]] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        data = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[os.fsdecode(os.path.relpath(path, folder))] = (status.st_mode, status.st_mtime_ns, status.st_uid, data)
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/file").write_bytes(os.urandom(3_000_000))
    (folder / "empty").mkdir(mode=0o750)
    (folder / os.fsdecode(b"odd \xff\nname")).write_text("odd")
    (folder / "script").write_text("#!/bin/sh\n")
    (folder / "script").chmod(0o755)
    (folder / "link").symlink_to("deep/er/file")
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "folder-link").symlink_to("deep")
    for path in (folder / "deep/er/file", folder / "deep/er", folder / "deep"):
        os.utime(path, ns=(1_000_000_001, 1_234_567_890_123_456_789))
    return folder


def test_a_copy_has_the_same_contents_modes_times_and_links(source: Path, tmp_path: Path) -> None:
    copied(source, tmp_path / "target")
    assert picture(tmp_path / "target") == picture(source)


def test_a_copy_shares_nothing_with_its_source(source: Path, tmp_path: Path) -> None:
    os.link(source / "script", source / "second")
    copied(source, tmp_path / "target")
    before = picture(source)
    for path in (tmp_path / "target").rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.write_text("changed")
    assert picture(source) == before


def test_what_is_left_out_is_not_there(source: Path, tmp_path: Path) -> None:
    copied(source, tmp_path / "target", "deep/er")
    assert list((tmp_path / "target/deep").iterdir()) == []
    assert (tmp_path / "target/script").exists()


def test_sockets_and_pipes_are_left_out_and_special_modes_stay_behind(source: Path, tmp_path: Path) -> None:
    os.mkfifo(source / "pipe")
    (source / "script").chmod(0o4755)
    here = Path.cwd()
    os.chdir(source)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
    finally:
        os.chdir(here)
    copied(source, tmp_path / "target")
    assert not {"pipe", "socket"} & {path.name for path in (tmp_path / "target").iterdir()}
    assert (tmp_path / "target/script").stat().st_mode & 0o7777 == 0o755


def test_a_copy_that_is_stopped_says_so(source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    ends = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, tmp_path / "target")]
    with pytest.raises(InterruptedError):
        duplicate(ends[0], ends[1], (), lambda: True)
    for fd in ends:
        os.close(fd)
