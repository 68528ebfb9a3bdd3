from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sandbox.conftest import open_fds
from toka.errors import SandboxError
from toka.sandbox.mounts import Granted, lay_out, open_granted
from toka.sandbox.policy import SandboxPolicy


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def paths(granted: Granted) -> list[str]:
    return [o.rule.path for o in granted.opened]


def test_existing_paths_are_opened_as_they_are(workspace: Path, stack: ExitStack) -> None:
    granted = open_granted(workspace, SandboxPolicy(reads=(".", "docs/a.txt"), writes=("src",)), stack, stack)
    assert paths(granted) == [".", "docs/a.txt", "src"]
    assert granted.notes == ()
    for opened, real in zip(granted.opened, (workspace, workspace / "docs/a.txt", workspace / "src"), strict=True):
        assert (opened.device, opened.inode) == (real.stat().st_dev, real.stat().st_ino)


def test_a_missing_read_path_is_left_out_with_a_note(workspace: Path, stack: ExitStack) -> None:
    granted = open_granted(workspace, SandboxPolicy(reads=("nowhere/at/all",)), stack, stack)
    assert not granted.opened
    assert granted.notes == ("nowhere/at/all: does not exist, not mounted",)
    assert not (workspace / "nowhere").exists()


def test_a_missing_write_folder_is_created(workspace: Path, stack: ExitStack) -> None:
    granted = open_granted(workspace, SandboxPolicy(writes=("out/deep",)), stack, stack)
    assert (workspace / "out/deep").is_dir()
    assert granted.notes == ("out/deep: did not exist, created as a folder",)


def test_a_missing_write_path_with_an_extension_is_created_as_a_file(workspace: Path, stack: ExitStack) -> None:
    open_granted(workspace, SandboxPolicy(writes=("out/notes.md", ".cache")), stack, stack)
    assert (workspace / "out/notes.md").is_file()
    assert (workspace / ".cache").is_dir()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what is not its own")
def test_what_root_creates_belongs_to_the_owner_of_the_folder(workspace: Path, stack: ExitStack) -> None:
    """Else the agent, who is shown the workspace's owner as itself, could not write there."""
    os.chown(workspace, 1234, 1235)
    policy = SandboxPolicy(writes=("made/deep/folder", "made/file.txt"))
    open_granted(workspace, policy, stack, stack)
    for path in ("made", "made/deep", "made/deep/folder", "made/file.txt"):
        status = (workspace / path).stat()
        assert (status.st_uid, status.st_gid) == (1234, 1235), path


@pytest.mark.parametrize("access", ["reads", "writes"])
@pytest.mark.parametrize("path", ["link", "link/inner", "link/new", "dangling", "dangling/new"])
def test_no_link_at_or_above_a_granted_path_is_followed(
    workspace: Path, tmp_path: Path, stack: ExitStack, access: str, path: str
) -> None:
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (workspace / "link").symlink_to(outside)
    (workspace / "dangling").symlink_to(tmp_path / "made")
    granted = open_granted(workspace, SandboxPolicy(**{access: (path,)}), stack, stack)
    assert not granted.opened
    assert "not mounted" in granted.notes[0]
    assert not (outside / "new").exists()
    assert not (tmp_path / "made").exists()


def test_what_is_neither_file_nor_folder_is_left_out(workspace: Path, stack: ExitStack) -> None:
    os.mkfifo(workspace / "pipe")
    granted = open_granted(workspace, SandboxPolicy(reads=("pipe",)), stack, stack)
    assert not granted.opened
    assert granted.notes == ("pipe: neither a file nor a folder, not mounted",)


def test_a_missing_workspace_is_an_error(tmp_path: Path, stack: ExitStack) -> None:
    with pytest.raises(SandboxError, match="cannot be opened"):
        open_granted(tmp_path / "none", SandboxPolicy(), stack, stack)


def test_every_descriptor_is_closed(workspace: Path) -> None:
    before = open_fds()
    with ExitStack() as stack:
        granted = open_granted(workspace, SandboxPolicy(reads=(".", "none/x"), writes=("src", "a/b")), stack, stack)
        lay_out(granted, SandboxPolicy(), ["/x"] * len(granted.opened), (1, 1), stack)
        assert open_fds() > before
    assert open_fds() == before


def test_the_workspace_is_mounted_before_all_else(workspace: Path, stack: ExitStack) -> None:
    policy = SandboxPolicy(reads=("docs",), writes=("src",))
    layout = lay_out(open_granted(workspace, policy, stack, stack), policy, ["/one", "/two"], (1, 1), stack)
    assert not any(str(workspace) in part for part in layout.argv)
    assert layout.argv.index("/workspace/src") < layout.argv.index("/usr")


def test_folders_with_private_keys_are_not_mounted(workspace: Path, stack: ExitStack) -> None:
    layout = lay_out(Granted(), SandboxPolicy(), [], (1, 1), stack)
    assert not {"/etc", "/etc/ssl", "/etc/ssl/private", "/etc/pki/tls", "/run", "/var", "/sys", "/"} & {
        source for option, source in zip(layout.argv, layout.argv[1:], strict=False) if "bind" in option
    }
