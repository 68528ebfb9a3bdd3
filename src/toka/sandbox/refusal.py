"""Which layer of a sandbox refuses a call that was seen, by which rule, and which capability would allow it.

It is worked out from the mounts as they are inside, the policy and the calls' arguments; what would be refused by the
mode of a file or does not exist anywhere is no refusal of the sandbox. Programs look for much that they can do without:
that is left out, see `QUIET`.
"""

# ruff: noqa: PTH116, PTH119, PTH120 - paths stay text

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from toka.core.capability import Capability, CapabilityError
from toka.core.catalogue import COMMAND_EXECUTION, FILESYSTEM_READ, FILESYSTEM_WRITE, GIT_ACCESS, NETWORK_ACCESS
from toka.sandbox.landlock import EXECUTE, abi
from toka.sandbox.mounts import WORKSPACE, Granted
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import HIDDEN, PROGRAMS, PROXY_PORT, SEARCHED, find_program
from toka.sandbox.protect import MARK
from toka.sandbox.seccomp import SET_IDS, TIOCLINUX, TIOCSTI
from toka.sandbox.seen import Found, Seen, named, writes
from toka.sandbox.trusted import ALWAYS, GIT, GIT_TRUSTED, TRUSTED

QUIET: Final = (
    "/etc", "/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/dev", "/proc", "/sys", "/run", "/tmp",
    "/var/cache", "/var/lib", "/var/mail", "/var/run", "/var/spool", "/var/tmp",
)  # fmt: skip
"""Below these, programs look for settings, services and caches out of habit. What is missing there is told when the
command line names it; of /etc, also when on the machine not everybody may read it."""
HABITUAL: Final = ("set_mempolicy",)
"""Calls that a common library (of numa) makes at each start."""
PROGRAM_LIST: Final = "programs"
"""The layer that a list of programs is."""
HABITS: Final = ("__pycache__",)
"""Folders that programs try to write and can do without."""
FAMILIES: Final = {1: "AF_UNIX", 2: "AF_INET", 10: "AF_INET6", 16: "AF_NETLINK", 17: "AF_PACKET", 40: "AF_VSOCK"}
KINDS: Final = {1: "", 2: " datagram", 3: " raw", 5: " packet"}
_FOLDERS: Final = frozenset((*SEARCHED.split(":"), *HIDDEN))
_NSCD: Final = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
"""How the C library asks for a unix socket to look for a cache of user names, at each start of many programs."""
_LANDLOCK_PORTS: Final = 4
_NOEXEC: Final = getattr(os, "ST_NOEXEC", 8)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that the sandbox did not allow.

    Attributes:
        what: what was tried, such as `write`; empty for a call, which is the subject then.
        subject: the path, call, address or program.
        layer: what refuses it.
        rule: why; may be empty.
        need: what would allow it; None = nothing would.
        example: how that is written, where the capability alone says too much.
        outside: whether it lies outside of the workspace, where no capability reaches.
    """

    what: str
    subject: str
    layer: str
    rule: str = ""
    need: Capability | None = None
    example: str = ""
    outside: bool = False


class Rules:
    """The rules of one sandbox."""

    def __init__(self, workspace: Path, policy: SandboxPolicy, granted: Granted, profile: dict[str, Any]) -> None:
        """Takes the workspace on the host, the policy, what is mounted and what an agent's command is locked into."""
        self._workspace = workspace
        self._policy = policy
        self._access = {o.rule.path: o.rule.access for o in granted.opened}
        self._rights = {os.path.realpath(path): rights for path, rights in profile["landlock"]["paths"]}
        self._repository = _is_there(workspace / GIT / "HEAD")
        self._handled: int = profile["landlock"]["handled"]
        if profile["listed"]:
            self._rights["/usr/bin"] = self._rights.get(PROGRAMS, 0)

    def explain(self, seen: Seen) -> Refusal | None:
        """The refusal that a call met, if it met one of the sandbox's."""
        if seen.error:
            return self._call(seen)
        if seen.address:
            return self._address(seen)
        if seen.action == "move" and not seen.found[0].exists:
            return None
        return next((refusal for found in seen.found if (refusal := self._path(seen, found)) is not None), None)

    # ---- paths

    def _path(self, seen: Seen, found: Found) -> Refusal | None:
        action, place = seen.action, found.real or found.path
        if _below(place, "/proc") and not _below(place, "/proc/sys"):
            return None  # it differs for who looks
        if action == "run":
            return self._run(found) if found.exists else self._missing("run", seen, found)
        if action == "look":
            return None if found.exists else self._missing("read", seen, found)
        if action == "open" and (not writes(seen.opens) or (found.exists and _only_reads(seen.opens))):
            if found.exists:
                return self._unreadable(found)
            return self._missing("read", seen, found)
        if not found.exists and action in ("open", "make", "move") and not found.real:
            return self._missing("write", seen, found)
        exists_already = found.exists and action == "make"
        absent = not found.exists and action in ("remove", "change")
        if exists_already or absent or not _is_file(found.mode, action) or _habit(seen, place):
            return None
        return self._unwritable(action, found)

    def _unwritable(self, action: str | None, found: Found) -> Refusal | None:
        what = {"remove": "remove", "move": "rename"}.get(action or "", "write")
        inside = _inside(found.real)
        if found.mounted:
            why = "it is, or holds, what is protected or granted apart"
            return Refusal(what, found.real, "mounts", why)
        if not found.flags & os.ST_RDONLY:
            return None
        if inside is None:
            top = "/" + found.real.split("/")[1]
            folder = top if top != found.real else "/"
            return Refusal(what, found.real, "mounts", f"{folder} is read-only", outside=True)
        return self._protected(what, found, inside) or self._read_only(what, found, inside)

    def _protected(self, what: str, found: Found, inside: str) -> Refusal | None:
        """Why a path stays as it is although what is around it may be granted."""

        def refusal(rule: str, need: Capability | None = None) -> Refusal:
            return Refusal(what, found.real, "protected", rule, need)

        if _any(self._policy.protected, inside):
            return refusal("the settings' [policy] denies it")
        if _any(GIT_TRUSTED, inside):
            return refusal("git runs or obeys what lies there")
        if _within(inside, GIT):
            if self._repository:
                return refusal("git-access is not granted", Capability(GIT_ACCESS))
            return refusal("no repository can be made here")
        if (trusted := _any(TRUSTED, inside)) is not None:
            own = trusted not in ALWAYS and _is_own(self._workspace / trusted)
            need = Capability(FILESYSTEM_WRITE, paths=(trusted,)) if own else None
            return refusal("others run or trust what lies there", need)
        if self._access.get(inside) == "read" and any(_within(inside, w) for w in self._policy.writes):
            return refusal("git runs or obeys what lies there")
        return None

    def _read_only(self, what: str, found: Found, inside: str) -> Refusal:
        """A path of the workspace that may only be read, or is not granted at all."""
        rule = self._rule(inside)
        if rule is not None and self._access[rule] == "hide":
            return Refusal(what, found.real, "mounts", "Toka's own state is not shown")
        folder = os.path.dirname(inside) or "."
        file = found.exists and stat.S_ISREG(found.mode) and what == "write"
        need = _paths(FILESYSTEM_WRITE, inside if folder == "." and file else folder)
        shown = "the workspace" if rule == "." else rule
        return Refusal(what, found.real, "mounts", f"{shown} is read-only" if shown else "not granted", need)

    def _rule(self, inside: str) -> str | None:
        """The path that decides on a path of the workspace: the nearest one around it."""
        return max((p for p in self._access if _within(inside, p)), key=lambda p: (p != ".", len(p)), default=None)

    def _unreadable(self, found: Found) -> Refusal | None:
        if _below(found.real, "/toka") and stat.S_ISREG(found.mode) and self._handled:
            return Refusal("read", found.real, "Landlock", "Toka's own", outside=True)
        return None

    def _missing(self, what: str, seen: Seen, found: Found) -> Refusal | None:
        """What is not there, but is on the machine."""
        path = found.path
        program = self._program(path)
        if program is not None:
            return program
        inside = _inside(path)
        wanted = os.path.dirname(path) if what == "write" else path
        if inside is not None:
            access = self._access.get(self._rule(inside) or "")
            if access in ("read", "write") or not _is_there(self._workspace / wanted[len(WORKSPACE) + 1 :]):
                return None  # it is shown as it is
            if access == "hide":
                return Refusal(what, path, "mounts", "Toka's own state is not shown")
            name = FILESYSTEM_WRITE if what == "write" else FILESYSTEM_READ
            granted = os.path.dirname(inside) or "." if what == "write" else inside
            return Refusal(what, path, "mounts", "not granted", _paths(name, granted))
        quiet = _any(QUIET, path) and path.count("/") > 1
        if not _is_there(Path(wanted)) or (quiet and not _told(path, seen.argv)):
            return None
        return Refusal(what, path, "mounts", "not in this sandbox", outside=True)

    # ---- programs

    def _program(self, path: str) -> Refusal | None:
        """A program that is not in the list, where one is."""
        folder, name = os.path.split(path)
        listed = self._policy.programs
        if listed is None or name in listed or folder not in _FOLDERS or find_program(name) is None:
            return None
        try:
            need = Capability(COMMAND_EXECUTION, programs=(name,))
        except CapabilityError:
            need = None
        return Refusal("run", name, PROGRAM_LIST, f"not among {_some(listed)}", need)

    def _run(self, found: Found) -> Refusal | None:
        name = os.path.basename(found.path)
        if stat.S_ISCHR(found.mode) and name in self._policy.refused_programs:
            return Refusal("run", name, PROGRAM_LIST, "the settings' [policy] denies it")
        if not stat.S_ISREG(found.mode) or not found.mode & 0o111:
            return None
        any_program = Capability(COMMAND_EXECUTION) if self._policy.programs is not None else None
        if found.flags & _NOEXEC:
            return Refusal("run", found.real, "mounts", "what can be written cannot be run", any_program)
        if self._handled & EXECUTE and not self._may(found.real, EXECUTE):
            return Refusal("run", found.real, "Landlock", "not a granted program", any_program)
        return None

    def _may(self, real: str, right: int) -> bool:
        while True:
            if self._rights.get(real, 0) & right:
                return True
            if real in ("/", ""):
                return False
            real = os.path.dirname(real)

    # ---- calls

    def _address(self, seen: Seen) -> Refusal | None:
        """A connection, or a server, that Landlock refuses by its port."""
        shown = _address(seen.address)
        if shown is None or abi() < _LANDLOCK_PORTS:
            return None
        host, port = shown
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if seen.action == "bind":
            return Refusal("listen at", place, "Landlock", "no server may be started")
        if port == PROXY_PORT:
            return None
        return Refusal("connect to", place, "Landlock", f"only the proxy, 127.0.0.1:{PROXY_PORT}, can be reached")

    def _call(self, seen: Seen) -> Refusal | None:
        """A call that the filter refuses."""
        args = seen.args
        match seen.name:
            case "socket":
                return self._socket(*(a & 0xFFFFFFFF for a in args[:3]))
            case "socketpair":
                return Refusal("", "socketpair", "seccomp", "only unix streams")
            case "ioctl":
                name = {TIOCSTI: "TIOCSTI", TIOCLINUX: "TIOCLINUX"}.get(args[1] & 0xFFFFFFFF, "")
                return Refusal("", f"ioctl {name}", "seccomp", "nobody types into terminals")
            case "clone":
                return Refusal("", "clone", "seccomp", "no new namespaces")
            case "memfd_create":
                rule = "a list of programs is granted"
                return Refusal("", "memfd_create", "seccomp", rule, Capability(COMMAND_EXECUTION))
            case "mknod" | "mknodat":
                mode = args[1 if seen.name == "mknod" else 2]
                return Refusal("", "mknod", "seccomp", "no set-id bits" if mode & SET_IDS else "no devices")
            case "open" | "openat" | "creat" | "chmod" | "fchmod" | "fchmodat" | "fchmodat2":
                return Refusal("", seen.name, "seccomp", "no set-id bits")
            case name:
                return None if name in HABITUAL else Refusal("", name, "seccomp")

    def _socket(self, family: int, kind: int, protocol: int) -> Refusal | None:
        network = bool(self._policy.network)
        raw = family == socket.AF_NETLINK and kind & 0xF == socket.SOCK_RAW and protocol == 0
        probe = family == socket.AF_INET6 and kind & 0xF == socket.SOCK_DGRAM
        if (family == socket.AF_UNIX and kind == _NSCD) or (network and (raw or probe)):
            return None
        shown = FAMILIES.get(family, f"of family {family}")
        if family not in (socket.AF_INET, socket.AF_INET6):
            return Refusal("", f"socket {shown}", "seccomp")
        if network:
            return Refusal("", f"socket {shown}{KINDS.get(kind & 0xF, '')}", "seccomp", "TCP to the proxy only")
        need = Capability(NETWORK_ACCESS)
        return Refusal("", f"socket {shown}", "seccomp", "no network is granted", need, "network-access: HOST")


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _inside(path: str) -> str | None:
    """A path of the sandbox as one of the workspace; None when it is none."""
    if path == WORKSPACE:
        return "."
    return path[len(WORKSPACE) + 1 :] if path.startswith(WORKSPACE + "/") else None


def _within(path: str, folder: str) -> bool:
    return folder in (".", path) or path.startswith(folder + "/")


def _any(folders: Sequence[str] | dict[str, Any], path: str) -> str | None:
    """The first of the folders that holds a path or is it."""
    return next((f for f in folders if _within(path, f)), None)


def _paths(name: str, path: str) -> Capability:
    """A capability for a path; for the whole workspace where the path cannot be written as an argument."""
    try:
        if path != "." and "," not in path:
            return Capability(name, paths=(path,))
    except CapabilityError:
        pass
    return Capability(name)


def _only_reads(flags: int) -> bool:
    """Whether opening a file that is there changes nothing."""
    return flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC


def _is_file(mode: int, action: str | None) -> bool:
    """Whether writing to it is a matter of its mount: not so for devices and pipes, and folders are not opened."""
    if action != "open" or not mode:
        return True
    return stat.S_ISREG(mode)


def _habit(seen: Seen, path: str) -> bool:
    """Whether a program writes this because it always tries, and goes on when it cannot."""
    if any(f"/{name}" in path for name in HABITS):
        return True
    # A git that only shows something would also like to note what it found.
    return path.endswith("/index.lock") and any(word in ("status", "diff", "describe") for word in seen.argv)


def _is_there(path: Path) -> bool:
    """Whether the machine has a path; what we may not look at counts as there."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.EACCES
    except ValueError:
        return False
    return True


def _is_own(path: Path) -> bool:
    """Whether a path is there for itself, and not made for the sandbox to protect it."""
    try:
        os.getxattr(path, MARK, follow_symlinks=False)
    except OSError:
        return _is_there(path)
    return False


def _told(path: str, argv: Sequence[str]) -> bool:
    """Whether somebody asked for a path that programs look for by habit."""
    if named(path, argv) or not path.startswith("/etc/"):
        return named(path, argv)
    try:
        return not os.stat(path).st_mode & 0o004
    except (OSError, ValueError):
        return False


def _address(data: bytes) -> tuple[str, int] | None:
    """Host and port of a socket's address; None when it is of another family."""
    try:
        (family,) = struct.unpack_from("=H", data)
        (port,) = struct.unpack_from("!H", data, 2)
        if family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, data[4:8]), port
        if family == socket.AF_INET6:
            return socket.inet_ntop(socket.AF_INET6, data[8:24]), port
    except (struct.error, ValueError):
        pass
    return None


def _some(names: Sequence[str], most: int = 6) -> str:
    return (", ".join(names[:most]) or "any") + (f" and {len(names) - most} more" if len(names) > most else "")
