"""From a policy to the mounts of one sandbox: opened paths, and the arguments that make bwrap mount exactly those.

Invariant: a workspace path is resolved once, by us, name by name, never through a symbolic link. What is mounted is
the opened file or folder itself, by its descriptor's name or as a mount that was made of the descriptor, and the zygote
compares device and inode before the first command runs, so whoever swaps a path for a link gains nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from toka.errors import SandboxError
from toka.sandbox.bytecode import code_inside
from toka.sandbox.idmap import PYTHON
from toka.sandbox.policy import PathRule, SandboxPolicy
from toka.sandbox.protect import protect
from toka.sandbox.toolchain import OpenedToolchain, below, mounts_of, open_shown, open_toolchains

WORKSPACE: Final = "/workspace"
CAPABILITIES: Final = ("CAP_SYS_ADMIN", "CAP_SETPCAP", "CAP_SYS_CHROOT")
"""What the zygote keeps in its user namespace: to make namespaces, empty the bounding set, and jail the worker."""
CODE: Final = "/toka/lib/toka/sandbox"
"""Where our own code is inside."""
INSIDE: Final = (
    *("groundwork.py", "kernel.py", "listener.py", "probe.py", "roles.py"),
    *("streams.py", "worker.py", "zygote.py"),
)
"""The modules that run inside."""
User = tuple[int, int]
"""uid and gid."""
SYSTEM_FOLDERS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
ETC: Final = (
    "ld.so.cache", "alternatives", "localtime", "ssl/certs", "ssl/openssl.cnf", "ssl/cert.pem", "pki/tls/certs",
    "pki/tls/cert.pem", "pki/tls/openssl.cnf", "pki/ca-trust/extracted", "crypto-policies", "ca-certificates",
)  # fmt: skip
"""Below /etc: what programs need to load and to check certificates. Not the folders that also hold private keys."""
ETC_FILES: Final = {
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A granted path, held open.

    Attributes:
        rule: what was granted.
        fd: an O_PATH descriptor of the file or folder itself.
        device: st_dev of it.
        inode: st_ino of it.
    """

    rule: PathRule
    fd: int
    device: int
    inode: int

    @property
    def target(self) -> str:
        """Where it is mounted."""
        return WORKSPACE if self.rule.path == "." else f"{WORKSPACE}/{self.rule.path}"


@dataclass(frozen=True, slots=True)
class Granted:
    """All granted paths that exist, and notes about those that were left out or created.

    Attributes:
        opened: in mount order; the descriptors belong to the stack given to `open_granted`.
        notes: one sentence each, for the run's record.
        owner: uid and gid of the workspace.
        toolchains: in mount order, then what else is shown; their descriptors belong to that stack, too.
    """

    opened: tuple[Opened, ...] = ()
    notes: tuple[str, ...] = ()
    owner: tuple[int, int] = (0, 0)
    toolchains: tuple[OpenedToolchain, ...] = ()

    def replaced(self, workspace: Path) -> bool:
        """Whether somebody outside put another file in the place of a read-only or hidden one, or of a toolchain.

        The kernel then takes the mount over the old one away, everywhere: the new one lies open in the folder's mount.
        """
        for opened in self.opened:
            if opened.rule.access != "write" and opened.rule.path != ".":
                try:
                    now = os.lstat(workspace / opened.rule.path)
                except OSError:
                    return True
                if (now.st_dev, now.st_ino) != (opened.device, opened.inode):
                    return True
        return any(toolchain.replaced for toolchain in self.toolchains)

    def expected(self) -> list[list[Any]]:
        """What the zygote checks: [path, device, inode, writable]."""
        shown = [o for o in self.opened if o.rule.access != "hide"]
        workspace = [[o.target, o.device, o.inode, o.rule.access == "write"] for o in shown]
        return [*workspace, *(toolchain.expected for toolchain in self.toolchains)]


def open_granted(workspace: Path, policy: SandboxPolicy, stack: ExitStack, held: ExitStack) -> Granted:
    """Opens every granted path below the workspace, creating missing writable ones.

    Args:
        workspace: an existing folder; links in the way to it are the operator's and are followed.
        policy: says which paths.
        stack: closes the descriptors.
        held: lets go of what was created to be protected; for the end of the sandbox.

    Raises:
        SandboxError: the workspace or a toolchain cannot be opened, or something in the workspace cannot be protected.
    """
    try:
        root = os.open(workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(
            f"the workspace {workspace} cannot be opened: {error.strerror}", hint="create the folder, or name another"
        ) from None
    stack.callback(os.close, root)
    opened: list[Opened] = []
    protection = protect(root, policy, held)
    notes = list(protection.notes)
    rules = {rule.path: rule for rule in (*policy.rules, *protection.rules)}
    for rule in sorted(rules.values(), key=lambda r: r.order):
        try:
            fd, note = open_below(root, rule)
        except OSError as error:
            notes.append(_why_not(rule, error))
            continue
        stack.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            notes.append(f"{rule.path}: neither a file nor a folder, not mounted")
            continue
        notes.extend([note] if note else [])
        opened.append(Opened(rule, fd, status.st_dev, status.st_ino))
    status = os.fstat(root)
    toolchains = (*open_toolchains(policy.toolchains, workspace, stack), *open_shown(policy.shown, stack))
    return Granted(tuple(opened), tuple(notes), (status.st_uid, status.st_gid), toolchains)


def open_below(root: int, rule: PathRule) -> tuple[int, str]:
    """The descriptor of a path below `root`, and a note when it had to be created."""
    if rule.path == ".":
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root), ""
    *parents, name = rule.path.split("/")
    create = rule.access == "write"
    at, note = os.dup(root), ""
    try:
        for part in parents:
            deeper = _open_folder(at, part, create=create)
            os.close(at)
            at = deeper
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        except FileNotFoundError:
            if not create:
                raise
            note = f"{rule.path}: did not exist, created as {_create(at, name)}"
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, "symbolic link")
    return fd, note


def _open_folder(at: int, name: str, *, create: bool) -> int:
    if create:
        _make_folder(at, name)
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)


def _make_folder(at: int, name: str) -> None:
    """Makes a folder, if there is nothing yet."""
    try:
        os.mkdir(name, 0o777, dir_fd=at)
    except FileExistsError:
        return
    if os.geteuid() == 0:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
        try:
            _give(fd, at)
        finally:
            os.close(fd)


def _give(fd: int, at: int) -> None:
    """What root made in somebody's folder becomes theirs: root's own could not be written by the agent there."""
    status = os.fstat(at)
    if os.geteuid() == 0:
        os.fchown(fd, status.st_uid, status.st_gid)


def _create(at: int, name: str) -> str:
    """Creates an empty file where the name has an extension (`notes.md`), else a folder."""
    if "." in name.strip("."):
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=at)
        except FileExistsError:
            # another agent with the same grant came first; what is there is opened and checked like any other
            return "an empty file"
        try:
            _give(fd, at)
        finally:
            os.close(fd)
        return "an empty file"
    _make_folder(at, name)
    return "a folder"


def _why_not(rule: PathRule, error: OSError) -> str:
    # A link opened with O_NOFOLLOW | O_DIRECTORY answers ENOTDIR, so a file in the way looks the same.
    reason = {
        errno.ENOENT: "does not exist",
        errno.ELOOP: "is a symbolic link",
        errno.ENOTDIR: "leads through a symbolic link or a file",
    }.get(error.errno or 0, error.strerror or str(error))
    return f"{rule.path}: {reason}, not mounted"


@dataclass(frozen=True, slots=True)
class Layout:
    """What bwrap is told.

    Attributes:
        argv: the options, without the program to run.
        fds: descriptors that bwrap inherits, by the numbers that `argv` names.
    """

    argv: tuple[str, ...]
    fds: tuple[int, ...]


def lay_out(granted: Granted, policy: SandboxPolicy, sources: Sequence[str], user: User, stack: ExitStack) -> Layout:
    """The mounts, namespaces and environment of one sandbox.

    The workspace comes first: if one of its mount points is swapped for a link that leads into the sandbox's own
    folders, there are none yet, and what is mounted later lies on top.

    Args:
        granted: from `open_granted`.
        policy: for the size of /tmp.
        sources: where bwrap finds each opened path, then each toolchain: a mount that was staged for it, or the
            descriptor's name.
        user: who the sandbox's processes are.
        stack: closes the descriptors of generated files.
    """
    argv = [*namespaces(), "--dir", WORKSPACE]
    fds = [o.fd for o in (*granted.opened, *granted.toolchains)]
    own = len(granted.opened)
    for opened, source in zip(granted.opened, sources[:own], strict=True):
        if opened.rule.access == "hide":
            argv += ["--perms", "0555", "--tmpfs", opened.target, "--remount-ro", opened.target]
        else:
            argv += ["--bind" if opened.rule.access == "write" else "--ro-bind", source, opened.target]
    argv += ["--ro-bind", "/usr", "/usr", *system_folders(), "--perms", "0755", "--dir", "/etc"]
    beside = dict(zip(granted.toolchains, sources[own:], strict=True))
    covered = {each: beside.pop(each) for each in granted.toolchains if below(each.path, "/tmp")}
    argv += mounts_of(list(beside), beside.values())
    for name in ETC:
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    generated = {f"/etc/{name}": text.encode() for name, text in {**ETC_FILES, **_accounts(user)}.items()}
    inside = (code_inside(Path(__file__).parent / name, PYTHON) for name in INSIDE)
    generated |= {f"{CODE}/{name}": data for name, data in inside}
    for target, data in generated.items():
        fd = _pipe_with(data, stack)
        fds.append(fd)
        argv += ["--perms", "0444", "--ro-bind-data", str(fd), target]
    argv += ["--proc", "/proc", "--dev", "/dev", "--size", str(16 << 20), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    argv += ["--perms", "1777", "--size", str(policy.tmp_bytes), "--tmpfs", "/tmp"]
    argv += mounts_of(list(covered), covered.values())
    for folder in ("/toka/jail/workspace", "/toka/bin", "/toka/none"):
        argv += ["--dir", folder]
    argv += ["--remount-ro", "/", "--chdir", "/"]
    return Layout(tuple(argv), tuple(fds))


def namespaces(capabilities: Sequence[str] = CAPABILITIES) -> Iterator[str]:
    """What bwrap is told of namespaces, and of what the first process in them may do."""
    yield from ("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts")
    yield from (
        "--unshare-cgroup",
        "--hostname",
        "toka",
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
        "--clearenv",
    )
    for capability in capabilities:
        yield from ("--cap-add", capability)


def system_folders() -> Iterator[str]:
    """/bin and the like as this host has them: links into /usr, or folders of their own."""
    for name in SYSTEM_FOLDERS:
        path = Path(name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), name)
        elif path.is_dir():
            yield from ("--ro-bind", name, name)


def _accounts(user: User) -> dict[str, str]:
    """Users and groups as the sandbox sees them: the agent, and nobody, who owns what belongs to anyone else."""
    uid, gid = user
    name = "root" if uid == 0 else "agent"
    group = "root" if gid == 0 else "agent"
    return {
        "passwd": f"{name}:x:{uid}:{gid}::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        "group": f"{group}:x:{gid}:\nnogroup:x:65534:\n",
    }


def _pipe_with(data: bytes, stack: ExitStack) -> int:
    """A descriptor from which `data` can be read once."""
    fd = os.memfd_create("toka", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    view: Sequence[int] | memoryview = memoryview(data)
    while len(view):
        view = view[os.write(fd, bytes(view)) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
