"""Starting the process of a sandbox: bwrap with the zygote inside, as an ordinary user whoever we are.

One thread does it for the whole process, since the kernel kills a sandbox with the thread that started it. When we are
root, that thread has a mount namespace of its own, where each granted path is mounted with the owner that the sandbox
will be (see `idmap`).
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from toka.errors import SandboxUnavailable
from toka.sandbox.bytecode import runs_us
from toka.sandbox.idmap import PYTHON, STAGES, agent_uid, mapping, mount_mapped
from toka.sandbox.kernel import CLONE_NEWNS, MS_NODEV, MS_NOSUID, MS_REC, MS_SLAVE, mount, umount, unshare
from toka.sandbox.mounts import CODE, Granted, User, lay_out, open_granted
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.toolchain import staged

INSTALL_HINT: Final = "install it: `apt install bubblewrap`, `dnf install bubblewrap` or `pacman -S bubblewrap`"
PYTHON_HINT: Final = "install it: `apt install python3`, `dnf install python3` or `pacman -S python`"


@dataclass(frozen=True, slots=True)
class Spawned:
    """A bwrap that was just started.

    Attributes:
        process: bwrap.
        control: our end of the zygote's control socket, non-blocking.
        errors: what bwrap and the zygote say on standard error, non-blocking.
        info: a file in which bwrap says the pid of its child.
        granted: the mounts, as they were opened.
        stage: where its paths were mounted for it; empty when they were not.
        held: what to let go of when the sandbox is gone.
    """

    process: subprocess.Popen[bytes]
    control: socket.socket
    errors: int
    info: int
    granted: Granted
    stage: str
    held: ExitStack


def find_bwrap() -> str:
    """The path of bwrap; /usr/bin is preferred, as distributions tie their exceptions to that path.

    Raises:
        SandboxUnavailable: there is none.
    """
    path = "/usr/bin/bwrap" if os.access("/usr/bin/bwrap", os.X_OK) else shutil.which("bwrap")
    if path is None:
        raise SandboxUnavailable("bwrap (bubblewrap) is not installed", hint=INSTALL_HINT)
    return path


@cache
def starter() -> ThreadPoolExecutor:
    """The one thread that starts sandboxes."""
    initializer = _leave_mounts if os.geteuid() == 0 else None
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="toka-sandbox", initializer=initializer)


def _leave_mounts() -> None:
    """Gives this thread mounts of its own, which still follow the machine's, and an empty folder to stage in."""
    unshare(CLONE_NEWNS)
    mount(None, "/", None, MS_REC | MS_SLAVE)
    mount("toka", stage_folder(), "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")


@cache
def stage_folder() -> str:
    """An empty one if there is one: what is in the others can be a workspace or a toolchain, and would be covered."""
    there = [folder for folder in STAGES if Path(folder).is_dir()]
    return next((folder for folder in there if not any(Path(folder).iterdir())), there[0])


def spawn(workspace: Path, policy: SandboxPolicy) -> Spawned:
    """Starts one sandbox; runs in `starter`.

    Raises:
        SandboxUnavailable, SandboxError: see `start_zygote`.
    """
    bwrap = find_bwrap()
    if not os.access(PYTHON, os.X_OK):
        raise SandboxUnavailable(f"{PYTHON} is missing; it runs inside every sandbox", hint=PYTHON_HINT)
    user = (agent_uid(), agent_uid()) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    with ExitStack() as stack, ExitStack() as held:
        granted = open_granted(workspace, policy, stack, held)
        stage = ""
        if os.geteuid() == 0:
            stage = tempfile.mkdtemp(dir=stage_folder())
            failed = stack.enter_context(ExitStack())
            failed.callback(unstage, stage)
            sources = stage_all(granted, user, stage)
        else:
            failed = ExitStack()
            sources = [f"/proc/self/fd/{opened.fd}" for opened in (*granted.opened, *granted.toolchains)]
        layout = lay_out(granted, policy, sources, user, stack)
        process, control, errors, info = _started([bwrap, *layout.argv], layout.fds, user, stack)
        failed.pop_all()
        return Spawned(process, control, errors, info, granted, stage, held.pop_all())


def _started(
    options: Sequence[str], fds: Sequence[int], user: User, stack: ExitStack
) -> tuple[subprocess.Popen[bytes], socket.socket, int, int]:
    """The process, our end of the control socket, its standard error, and the file for its words about itself."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stack.callback(theirs.close)
    control.setblocking(False)
    errors, errors_w = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, errors_w)
    os.set_blocking(errors, False)
    # Not a pipe: bwrap writes to it before it lets its child go on. If we were dead then, SIGPIPE would kill bwrap and
    # leave the child waiting for ever.
    info = os.memfd_create("toka-info", os.MFD_CLOEXEC)
    bwrap, *rest = options
    zygote = "zygote.pyc" if runs_us(PYTHON) else "zygote.py"
    argv = [bwrap, "--info-fd", str(info), *rest, "--", PYTHON, "-I", "-S", "-B", f"{CODE}/{zygote}"]
    uid, gid = user if os.geteuid() == 0 else (None, None)
    process = subprocess.Popen(
        [*argv, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors_w,
        env={},
        cwd="/",
        pass_fds=(*fds, theirs.fileno(), info),
        user=uid,
        group=gid,
        extra_groups=None if uid is None else [],
        start_new_session=True,  # a Ctrl-C at our terminal is for us alone
    )
    return process, control, errors, info


def stage_all(granted: Granted, user: User, stage: str) -> list[str]:
    """Mounts each granted path below `stage` with its owner mapped; where, in their order."""
    users = mapping(granted.owner, user)
    os.chmod(stage, 0o755)  # noqa: S103 - the sandbox is another user, who must get through
    sources: list[str] = []
    for number, opened in enumerate(granted.opened):
        target = f"{stage}/{number}"
        sources.append(target)
        if stat.S_ISDIR(os.fstat(opened.fd).st_mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o600))
        mount_mapped(opened.fd, target, users)
    return [*sources, *staged(granted.toolchains, user, stage)]


def unstage(stage: str) -> None:
    """Takes the staged mounts away, which bwrap has mounted by now; empty: nothing. Runs in `starter`."""
    if not stage:
        return
    for entry in list(os.scandir(stage)):
        with suppress(OSError):  # the last one was not mounted when something failed
            umount(entry.path)
        (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
    os.rmdir(stage)
