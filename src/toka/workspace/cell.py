"""The sandbox in which checkpoints are made and put back: one process of ours, a workspace, the private store.

With the levels `reduced` and `none` there are no mounts: the same process is locked up by Landlock and a filter where
the kernel has them, and works at the real paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from toka.errors import CheckpointUnavailable, SandboxError, SandboxUnavailable
from toka.sandbox import mounts
from toka.sandbox.idmap import PYTHON, agent_uid, mapping, mount_mapped
from toka.sandbox.landlock import DEVICE, EXECUTE, READ, WRITE, Ruleset, abi
from toka.sandbox.launch import Zygote, to_the_end
from toka.sandbox.level import Level
from toka.sandbox.mounts import Granted, Opened, namespaces, open_below, system_folders
from toka.sandbox.policy import PathRule
from toka.sandbox.profile import HELPERS, LOADERS, find_program
from toka.sandbox.reduced import Tree
from toka.sandbox.seccomp import AUDIT, Syscalls, compile_filter
from toka.sandbox.spawn import (
    INSTALL_HINT,
    PYTHON_HINT,
    Spawned,
    find_bwrap,
    stage_all,
    stage_folder,
    starter,
    unstage,
)

STORE: Final = "/store"
NO_GIT: Final = "git is not installed; checkpoints of the workspace need it"
GIT_HINT: Final = "install it: `apt install git`, `dnf install git` or `pacman -S git`"
INSIDE: Final = {
    "sandbox": ("groundwork.py", "kernel.py"),
    "workspace": (
        *("ignored.py", "inside.py", "operations.py", "packs.py"),
        *("putback.py", "store.py", "trees.py", "walk.py"),
    ),
}
"""The modules that run inside, by room."""
LARGEST: Final = 256 * 1024 * 1024
"""Bytes of an answer."""
_BOOT: Final = "import sys; sys.path.insert(0, sys.argv.pop()); from toka.workspace.inside import main; main()"


@dataclass(frozen=True, slots=True)
class Plan:
    """A process that is wanted.

    Attributes:
        workspace: the folder on the host, at its real path.
        store: the repository's folder; it exists.
        level: of the sandbox.
        writable: folders of the workspace that may be written; the store is read-only then. Empty: the other way
            round.
        excluded: paths of the workspace that are not of it.
        quota: bytes that the store may have; None = no bound.
    """

    workspace: Path
    store: Path
    level: Level
    writable: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    quota: int | None = None

    @property
    def user(self) -> int:
        """The user id of the process."""
        return agent_uid() if os.geteuid() == 0 and self.level != "none" else os.geteuid()


def find_git() -> str:
    """The file of git as sandboxes see it.

    Raises:
        CheckpointUnavailable: there is none.
    """
    path = find_program("git")
    if path is None:
        raise CheckpointUnavailable(NO_GIT, hint=GIT_HINT)
    return path


@cache
def archive() -> bytes:
    """The code that runs inside, as a file that Python imports from: it may lie where that user may not read."""
    packed = io.BytesIO()
    here = Path(__file__).parents[1]
    with zipfile.ZipFile(packed, "w") as archived:
        archived.writestr("toka/__init__.py", b"")
        for room, names in INSIDE.items():
            archived.writestr(f"toka/{room}/__init__.py", b"")
            for name in names:
                archived.writestr(f"toka/{room}/{name}", (here / room / name).read_bytes())
    return packed.getvalue()


# ---- starting


def spawn(plan: Plan) -> tuple[Spawned, dict[str, Any]]:
    """Starts the process; it and its configuration. Runs in `starter`.

    Raises:
        CheckpointUnavailable, SandboxUnavailable, SandboxError: see `start_cell`.
    """
    git = find_git()
    if not os.access(PYTHON, os.X_OK):
        raise SandboxUnavailable(f"{PYTHON} is missing; it runs inside every sandbox", hint=PYTHON_HINT)
    with ExitStack() as stack:
        workspace, store = _opened(plan, stack)
        full = plan.level == "full"
        folder = mounts.WORKSPACE if full else str(plan.workspace)
        config: dict[str, Any] = {
            "workspace": folder, "git": git, "quota": plan.quota, "excluded": plan.excluded,
            "writable": not plan.writable, "mounts": [], "landlock": _rules(plan, git, folder).to_json(abi()),
            "seccomp": _filter(),
        }  # fmt: skip
        if full:
            config["mounts"] = [*workspace.expected(), [STORE, store.device, store.inode, not plan.writable]]
        failed = stack.enter_context(ExitStack())
        process, control, errors, info, stage = _started(plan, workspace, store, stack, failed)
        failed.pop_all()
        return Spawned(process, control, errors, info, workspace, stage, ExitStack()), config


def _opened(plan: Plan, stack: ExitStack) -> tuple[Granted, Opened]:
    """The workspace with its writable folders, and the store, all held open."""
    found: list[Opened] = []
    try:
        root = os.open(plan.workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        rules = {".": PathRule(".", "read")} | {path: PathRule(path, "write") for path in plan.writable}
        for rule in sorted(rules.values(), key=lambda r: r.order):
            fd = open_below(root, PathRule(rule.path, "read"))[0]
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            found.append(Opened(rule, fd, status.st_dev, status.st_ino))
    except OSError as error:
        what = f"the workspace {plan.workspace} cannot be opened: {error.strerror}"
        raise SandboxError(what, hint="create the folder, or name another") from None
    store = os.open(plan.store, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    stack.callback(os.close, store)
    status = os.fstat(store)
    owner = os.fstat(root)
    granted = Granted(tuple(found), (), (owner.st_uid, owner.st_gid))
    return granted, Opened(PathRule(".", "write"), store, status.st_dev, status.st_ino)


def _rules(plan: Plan, git: str, workspace: str) -> Ruleset:
    """What the process may do with paths; the store is its working folder."""
    folders = [f for f in ("/usr", *mounts.SYSTEM_FOLDERS) if Path(f).is_dir() and not Path(f).is_symlink()]
    rules = dict.fromkeys((*folders, "/proc", "/etc/ld.so.cache"), READ)
    rules |= dict.fromkeys((git, *HELPERS["git"], *LOADERS), READ | EXECUTE)
    rules |= {"/dev/null": DEVICE, "/dev/urandom": READ, workspace: READ, ".": READ if plan.writable else WRITE}
    for path in plan.writable:
        rules[workspace if path == "." else f"{workspace}/{path}"] = WRITE
    return Ruleset(tuple(rules.items()))


def _filter() -> str:
    machine = os.uname().machine
    return compile_filter(machine, Syscalls(memfd=False)).hex() if machine in AUDIT else ""


def _started(
    plan: Plan, workspace: Granted, store: Opened, stack: ExitStack, failed: ExitStack
) -> tuple[subprocess.Popen[bytes], socket.socket, int, int, str]:
    """The process, our end of its control socket, its standard error, the file with its pid, and where it is staged."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stack.callback(theirs.close)
    failed.callback(control.close)
    control.setblocking(False)
    errors, errors_w = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, errors_w)
    failed.callback(os.close, errors)
    os.set_blocking(errors, False)
    info = os.memfd_create("toka-info", os.MFD_CLOEXEC)
    failed.callback(os.close, info)
    code = os.memfd_create("toka", os.MFD_CLOEXEC)
    stack.callback(os.close, code)
    with open(os.dup(code), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(archive())
    user, stage = plan.user, ""
    argv = [PYTHON, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, str(theirs.fileno()), f"/proc/self/fd/{code}"]
    fds = [theirs.fileno(), code, info]
    if plan.level == "full":
        stage, sources = _sources(workspace, store, user, failed)
        argv = [find_bwrap(), "--info-fd", str(info), *_layout(workspace, sources), "--", *argv]
        fds += [store.fd, *(opened.fd for opened in workspace.opened)]
    own = None if user == os.geteuid() else user
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors_w, env={},
            cwd="/" if plan.level == "full" else f"/proc/self/fd/{store.fd}", pass_fds=tuple(fds),
            start_new_session=True, user=own, group=own, extra_groups=None if own is None else [],
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxUnavailable(f"the sandbox did not start: {error}", hint=INSTALL_HINT) from None
    if plan.level != "full":
        os.write(info, json.dumps({"child-pid": process.pid}).encode())
    return process, control, errors, info, stage


def _sources(workspace: Granted, store: Opened, user: int, failed: ExitStack) -> tuple[str, list[str]]:
    """Where bwrap finds the opened folders of the workspace, then the store; and the folder of their mounts, if any."""
    if os.geteuid() != 0:
        return "", [f"/proc/self/fd/{opened.fd}" for opened in (*workspace.opened, store)]
    stage = tempfile.mkdtemp(dir=stage_folder())
    failed.callback(unstage, stage)
    sources = stage_all(workspace, (user, user), stage)
    inner = f"{stage}/store"
    Path(inner).mkdir()
    status = os.fstat(store.fd)
    mount_mapped(store.fd, inner, mapping((status.st_uid, status.st_gid), (user, user)))
    return stage, [*sources, inner]


def _layout(workspace: Granted, sources: Sequence[str]) -> Iterator[str]:
    """What bwrap is told: no network, the system read-only, and two folders."""
    yield from (*namespaces(()), "--dir", mounts.WORKSPACE, "--dir", STORE)
    writes = any(opened.rule.access == "write" for opened in workspace.opened)
    for opened, source in zip(workspace.opened, sources[:-1], strict=True):
        yield from ("--bind" if opened.rule.access == "write" else "--ro-bind", source, opened.target)
    yield from ("--ro-bind" if writes else "--bind", sources[-1], STORE)
    yield from ("--ro-bind", "/usr", "/usr", *system_folders(), "--perms", "0755", "--dir", "/etc")
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")
    yield from ("--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", STORE)


# ---- using it


class Cell:
    """A running process; it answers one request at a time."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        self._busy = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self._zygote.alive

    def stale(self, workspace: Path) -> bool:
        """Whether another folder has taken the workspace's place: the process still sees the old one."""
        seen = self._zygote.granted.opened[0]
        try:
            now = workspace.stat()
        except OSError:
            return True
        return (now.st_dev, now.st_ino) != (seen.device, seen.inode)

    @property
    def pid(self) -> int:
        """The process's id on the host."""
        return self._zygote.inner

    async def ask(self, request: dict[str, Any], timeout: Callable[[], Any]) -> tuple[dict[str, Any], bytes]:
        """One request and its answer. When it is cancelled or takes too long, the process is killed.

        Raises:
            TimeoutError: it took too long.
            EOFError: the process died.
        """
        loop = asyncio.get_running_loop()
        async with self._busy:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.setblocking(False)
            data = bytearray()
            try:
                async with timeout():
                    with theirs:
                        await self._zygote.send(request, (theirs.fileno(),))
                    while block := await loop.sock_recv(ours, 1 << 18):
                        data += block
                        if len(data) > LARGEST:
                            raise EOFError
            except BaseException as error:
                await to_the_end(self.end(at_once=True))
                if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                    raise EOFError from None
                raise
            finally:
                ours.close()
        if len(data) < 4:
            await self.end()
            raise EOFError
        (size,) = struct.unpack_from("!I", data)
        return json.loads(bytes(data[4 : 4 + size])), bytes(data[4 + size :])

    async def end(self, *, at_once: bool = False) -> None:
        """Ends the process, which first writes down what it knows, unless `at_once`; returns when it is gone."""
        await self._zygote.end(at_once=at_once)


async def start_cell(plan: Plan) -> Cell:
    """Starts the process and waits until it is ready.

    Raises:
        CheckpointUnavailable: git is missing.
        SandboxUnavailable: this machine cannot run it at that level.
        SandboxError: the workspace cannot be used, or was tampered with during the start.
    """
    starting = asyncio.get_running_loop().run_in_executor(starter(), spawn, plan)
    kind = Zygote if plan.level == "full" else Tree
    try:
        spawned, config = await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(SandboxError, SandboxUnavailable, CheckpointUnavailable):
            spawned, _ = await to_the_end(starting)
            await to_the_end(kind(spawned).end(at_once=True))
        raise
    zygote = kind(spawned)
    try:
        await zygote.ready(config, lambda _: None)
    except BaseException:
        await to_the_end(zygote.end())
        raise
    finally:
        starter().submit(unstage, zygote.stage)
    return Cell(zygote)
