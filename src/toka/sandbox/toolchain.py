"""Toolchains: folders of programs that the operator keeps beside /usr, such as those of rustup, nvm, pyenv and uv.

A sandbox shows them read-only and at their own paths, which scripts, libraries and settings in them may name. The
folders above them are the sandbox's own: they can be passed through and not listed.

Invariant: what is mounted is the folder that was opened and looked at; none is reached through a link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from toka.errors import SandboxError, SandboxUnavailable
from toka.sandbox.idmap import mapping, mount_mapped, mount_plain

SHOWN: Final = "/usr/"
"""Below it, every sandbox shows all there is."""


@dataclass(frozen=True, slots=True)
class OpenedToolchain:
    """A toolchain, held open.

    Attributes:
        path: on the host and inside.
        fd: an O_PATH descriptor of the folder itself.
        device, inode: st_dev and st_ino of it.
        owner: uid and gid of it.
    """

    path: str
    fd: int
    device: int
    inode: int
    owner: tuple[int, int]

    @property
    def replaced(self) -> bool:
        """Whether another folder is at its path by now, or none."""
        try:
            now = os.lstat(self.path)
        except OSError:
            return True
        return (now.st_dev, now.st_ino) != (self.device, self.inode)

    @property
    def expected(self) -> list[Any]:
        """What the zygote checks: path, device, inode, not writable."""
        return [self.path, self.device, self.inode, False]


def why_unusable(path: str, workspace: Path) -> tuple[str, str] | None:
    """Why a toolchain cannot be shown, and what to do; None when it can. Its place as such is the settings' matter.

    Args:
        path: absolute and normalised.
        workspace: of the agent.
    """
    real, place = os.path.realpath(path), str(workspace.resolve())
    elsewhere = "install it apart from what agents work on"
    if real != path:
        return f"{path} is or leads through a symbolic link", f'name the folder that it leads to: "{real}"'
    if below(path, place) or below(place, path):
        return f"{path} meets the workspace {place}", elsewhere
    name_it = "name the folder that holds the toolchain's bin folder"
    try:
        if not stat.S_ISDIR(Path(path).stat().st_mode):
            return f"{path} is no folder", name_it
    except FileNotFoundError:
        return f"there is no {path}", "install it, correct the path, or take it out"
    except OSError as error:
        return f"{path} cannot be opened: {error.strerror}", "make it readable, or take it out"
    try:
        if not stat.S_ISDIR(Path(path, "bin").lstat().st_mode):
            return f"{path}/bin is no folder of its own", name_it
    except OSError as error:
        return f"there is no folder bin in {path}: {error.strerror}", name_it
    return None


def open_toolchains(paths: Iterable[str], workspace: Path, stack: ExitStack) -> tuple[OpenedToolchain, ...]:
    """Opens those that have to be mounted, in the order in which that is done: what contains before what is contained.

    Raises:
        SandboxError: one of them cannot be used.
    """
    out: list[OpenedToolchain] = []
    for path in sorted(paths):
        if problem := why_unusable(path, workspace):
            raise SandboxError(f"a toolchain cannot be shown: {problem[0]}", hint=problem[1])
        if path.startswith(SHOWN):
            continue
        fd = _open(path)
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        out.append(OpenedToolchain(path, fd, status.st_dev, status.st_ino, (status.st_uid, status.st_gid)))
    return tuple(out)


def open_shown(paths: Iterable[str], stack: ExitStack) -> tuple[OpenedToolchain, ...]:
    """Opens folders that are shown beside toolchains.

    Raises:
        SandboxError: one of them is not there, is no folder, or is reached through a link.
    """
    out: list[OpenedToolchain] = []
    for path in sorted(paths):
        fd = _open(path, "folder")
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        out.append(OpenedToolchain(path, fd, status.st_dev, status.st_ino, (status.st_uid, status.st_gid)))
    return tuple(out)


def _open(path: str, what: str = "toolchain") -> int:
    """A folder, name by name, so that no link is followed."""
    at = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in path.strip("/").split("/"):
        try:
            deeper = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
        except OSError as error:
            raise SandboxError(f"the {what} {path} cannot be opened: {error.strerror}") from None
        finally:
            os.close(at)
        at = deeper
    return at


def staged(toolchains: Iterable[OpenedToolchain], user: tuple[int, int], stage: str) -> Iterator[str]:
    """Mounts each below `stage`, its owner shown as `user`, who can then read what only the owner may; where.

    On a file system without such mounts it keeps its owner: what is closed to others stays closed.
    """
    for number, toolchain in enumerate(toolchains):
        target = f"{stage}/toolchain{number}"
        Path(target).mkdir()
        try:
            mount_mapped(toolchain.fd, target, mapping(toolchain.owner, user))
        except SandboxUnavailable:
            mount_plain(toolchain.fd, target)
        yield target


def mounts_of(toolchains: Sequence[OpenedToolchain], sources: Iterable[str]) -> Iterator[str]:
    """What bwrap is told. Their parents can be passed through and not listed."""
    mounted = {toolchain.path for toolchain in toolchains}
    parents = {str(parent) for path in mounted for parent in list(Path(path).parents)[:-1]} - {"/tmp"}
    inside = {p for p in parents if any(below(p, path) for path in mounted)}
    for parent in sorted(parents - inside):
        yield from ("--perms", "0111", "--dir", parent)
    for toolchain, source in zip(toolchains, sources, strict=True):
        yield from ("--ro-bind", source, toolchain.path)


def find_in(name: str, toolchains: Sequence[str]) -> tuple[str, str] | None:
    """The toolchain that has a program of this name, and the program's file in it or another; None: none has."""
    for folder in toolchains:
        file = f"{folder}/bin/{name}"
        if "/" not in name and os.path.isfile(file) and os.access(file, os.X_OK):  # noqa: PTH113
            real = os.path.realpath(file)
            if real.startswith(SHOWN) or any(below(real, other) for other in toolchains):
                return folder, real
    return None


def needed_by(programs: Iterable[str], toolchains: Sequence[str]) -> list[str]:
    """Those that programs come from, and those that hold the files of such programs, where these are links."""
    found = [found for name in programs if (found := find_in(name, toolchains)) is not None]
    holding = {max((t for t in toolchains if below(file, t)), key=len, default=folder) for folder, file in found}
    return [t for t in toolchains if t in holding or any(t == folder for folder, _ in found)]


def bin_folders(toolchains: Iterable[str]) -> list[str]:
    """Where their programs are."""
    return [f"{folder}/bin" for folder in toolchains]


def closed_hint(message: str, toolchains: Iterable[str]) -> str | None:
    """What to do when a toolchain is closed to the agent's user id where nothing can be mounted; None: it is not that.

    Args:
        message: what was said of a path.
        toolchains: those wanted.
    """
    if not any(message.find(f"{path} ") >= 0 for path in bin_folders(toolchains)):
        return None
    return "let others read it and pass the folders above it, install it elsewhere, or use the full sandbox"


def below(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
