"""How strongly agents are confined, and what the level `reduced` is made of: Landlock's rules and a second filter.

| level | what it is | who may ask for it |
| --- | --- | --- |
| full | namespaces, mounts, Landlock, the filter | nobody needs to |
| reduced | Landlock and two filters, on the machine's own file system | `sandbox` in the user's own config.toml |
| none | limits and deadlines only | a person, by `--dangerously-no-sandbox` |

Nothing falls from one level to another by itself.

In `reduced` everything that namespaces take away elsewhere is still there, so a second filter refuses the calls that
Landlock does not look at: those that change modes and times by path, reach processes of the same user, use the
machine's shared memory and queues, or make connections that Landlock does not count as TCP.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal

from toka.errors import SandboxUnavailable
from toka.sandbox import landlock
from toka.sandbox.idmap import agent_uid
from toka.sandbox.kernel import LANDLOCK_PATH, RULES_OF_FILES, SYS_LANDLOCK_ADD, SYS_LANDLOCK_CREATE, call
from toka.sandbox.landlock import DEVICE, EXECUTE, READ, Ruleset
from toka.sandbox.mounts import ETC, Granted
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import HELPERS, HIDDEN, LOADERS, SEARCHED, find_program
from toka.sandbox.seccomp import AUDIT, X86_64
from toka.sandbox.toolchain import bin_folders, needed_by

Level = Literal["full", "reduced", "none"]
NO_SANDBOX: Final = "NO SANDBOX: commands can do whatever you can"
"""What a person reads at the start, and in the record."""
REDUCED_SANDBOX: Final = "reduced sandbox: Landlock and filters, no namespaces"
NETWORK_FROM, SIGNALS_FROM, TRUNCATE_FROM = 4, 6, 3
"""Versions of Landlock that hold connections, signals to others, and truncation."""
NO_LANDLOCK_HINT: Final = "use a kernel with Landlock (Linux 5.13, with landlock in /sys/kernel/security/lsm)"
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
"""The last is a process's own terminal, which a person's command has, and nothing else."""
MACHINE: Final = ("/proc/cpuinfo", "/proc/meminfo", "/proc/version", "/proc/filesystems", "/proc/sys/kernel/osrelease")
"""Of /proc, what tells nothing of anybody's processes."""
ACCOUNTS: Final = ("passwd", "group", "nsswitch.conf", "hosts", "ld.so.preload", "ld.so.conf")

Numbers = Mapping[str, tuple[int | None, int | None]]
REFUSED: Final[Numbers] = {
    # shared with everybody without an ipc namespace
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    # tells what happens in folders that may not be read
    "inotify_add_watch": (254, 27),
    # answers to the world without asking Landlock
    "listen": (50, 201),
}  # fmt: skip
"""Refused with EPERM: name -> numbers on x86_64 and aarch64."""
MARKS: Final[Numbers] = {
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
}  # fmt: skip
"""Change modes, owners, times and attributes by path: of any file of the same user. Refused unless that is the agent's
own user id."""
SIGNALS: Final[Numbers] = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
}  # fmt: skip
"""Refused where Landlock does not hold signals: they reach every process of the same user."""
OTHERS: Final[Numbers] = {
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274),
}  # fmt: skip
"""Refused for any process but the caller: the first argument must be 0."""
ARGUED: Final[Numbers] = {
    "setpriority": (141, 140), "ioprio_set": (251, 30), "fcntl": (72, 25), "ioctl": (16, 29), "socket": (41, 198),
    "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269), "utimensat": (280, 88), "connect": (42, 203),
    "truncate": (76, 45), "open": (2, None), "openat": (257, 56), "openat2": (437, 437),
}  # fmt: skip
"""Calls that depend on their arguments or on the kernel."""

Instruction = tuple[int, int, int, int]
_LOAD, _AND, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06
_ALLOW, _ERRNO, _ASK = 0x7FFF0000, 0x00050000, 0x7FC00000
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 8, 10, 15, 0x8901, 0x8902
_FASTOPEN, _O_TRUNC, _TCP = 0x20000000, 0o1000, 6
_IOPRIO_PROCESS = 1


def second_filter(machine: str, version: int, *, own_user: bool) -> bytes:
    """The calls that only `reduced` must refuse, beside the filter of every level, as `struct sock_filter`s.

    Every `connect` is referred to the trusted process that started the command.

    Args:
        machine: `x86_64` or `aarch64`; others have no filter at all (see `seccomp.compile_filter`).
        version: of the kernel's Landlock.
        own_user: whether the agent's user id owns nothing outside the workspace.
    """
    column = 0 if machine == X86_64 else 1
    cases = _cases(version, own_user=own_user)
    numbers = {name: pair[column] for t in (REFUSED, MARKS, SIGNALS, OTHERS, ARGUED) for name, pair in t.items()}
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, AUDIT[machine]), _refuse(), (_LOAD, 0, 0, _NUMBER_AT),
    ]  # fmt: skip
    for name, body in cases.items():
        if (number := numbers[name]) is not None:
            program += [(_EQUAL, 0, len(body), number), *body]
    program.append(_accept())
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _cases(version: int, *, own_user: bool) -> dict[str, list[Instruction]]:
    """What happens at each named call; every body ends with a return."""
    refused = [*REFUSED, *(() if own_user else MARKS), *(SIGNALS if version < SIGNALS_FROM else ())]
    cases = {name: [_refuse()] for name in refused}
    cases |= {name: _need(0, 0) for name in OTHERS}
    cases["setpriority"] = [*_need(0, 0)[:-1], *_need(1, 0)]
    cases["ioprio_set"] = [*_need(0, _IOPRIO_PROCESS)[:-1], *_need(1, 0)]
    cases["fcntl"] = [
        _argument(1),
        *_refuse_if(_F_SETOWN),
        *_refuse_if(_F_SETSIG),
        *_refuse_if(_F_SETOWN_EX),
        _accept(),
    ]
    cases["ioctl"] = [_argument(1), *_refuse_if(_FIOSETOWN), *_refuse_if(_SIOCSPGRP), _accept()]
    # MPTCP, SCTP and the like are no TCP to Landlock, and fast open connects without a connect.
    cases["socket"] = [_argument(2), (_EQUAL, 1, 0, 0), (_EQUAL, 0, 1, _TCP), _accept(), _refuse(errno.EPROTONOSUPPORT)]
    cases |= {name: _without(at, _FASTOPEN) for name, at in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3))}
    cases["connect"] = [(_RETURN, 0, 0, _ASK)]
    if not own_user:  # without a path it acts on a descriptor that was opened
        no_path = [_load(8), (_EQUAL, 0, 2, 0), _load(12), (_EQUAL, 1, 0, 0)]
        cases["utimensat"] = [*no_path, _refuse(), _accept()]
    if version < TRUNCATE_FROM:
        # Opening to read with O_TRUNC empties a file that may only be read.
        empties: list[Instruction] = [(_AND, 0, 0, _O_TRUNC | os.O_ACCMODE), *_refuse_if(_O_TRUNC), _accept()]
        cases |= {"truncate": [_refuse()], "openat2": [_refuse(errno.ENOSYS)]}
        cases |= {"open": [_argument(1), *empties], "openat": [_argument(2), *empties]}
    return cases


def _load(offset: int) -> Instruction:
    return (_LOAD, 0, 0, _ARGUMENTS_AT + offset)


def _argument(index: int) -> Instruction:
    return _load(8 * index)


def _accept() -> Instruction:
    return (_RETURN, 0, 0, _ALLOW)


def _refuse(number: int = errno.EPERM) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | number)


def _refuse_if(value: int) -> list[Instruction]:
    return [(_EQUAL, 0, 1, value), _refuse()]


def _need(index: int, value: int) -> list[Instruction]:
    return [_argument(index), (_EQUAL, 1, 0, value), _refuse(), _accept()]


def _without(index: int, bit: int) -> list[Instruction]:
    return [_argument(index), (_ANY_BIT, 0, 1, bit), _refuse(), _accept()]


# ---- the system's files


def system_rules(
    programs: Iterable[str] | None, refused: Iterable[str] = (), toolchains: Sequence[str] = ()
) -> dict[str, int]:
    """Path -> rights of Landlock on the system's own files.

    Args:
        programs: the names that may be executed; None = any.
        refused: names that may not although any other may.
        toolchains: folders of programs beside the system's.
    """
    rules = dict.fromkeys((f"/etc/{name}" for name in (*ETC, *ACCOUNTS)), READ)
    rules |= dict.fromkeys(MACHINE, READ) | dict.fromkeys(DEVICES, DEVICE)
    folders = ["/usr", *(f for f in ("/bin", "/sbin", "/lib", "/lib32", "/lib64") if not os.path.islink(f))]  # noqa: PTH114
    if programs is None:
        return rules | _beside([*folders, *toolchains], _files_of(refused, toolchains), READ | EXECUTE)
    named = list(programs)
    helpers = [folder for name in named for folder in HELPERS.get(name, ())]
    hidden = {
        f for f in ("/usr/bin", "/bin", "/sbin", *HIDDEN) if not any((h + "/").startswith(f + "/") for h in helpers)
    }
    rules |= _beside(folders, hidden, READ)
    execute = [*LOADERS, *helpers, *(file for name in named if (file := find_program(name)))]
    rules |= dict.fromkeys((os.path.realpath(path) for path in execute), READ | EXECUTE)
    return rules | _beside(needed_by(named, toolchains), _files_of(refused, toolchains), READ | EXECUTE)


def _files_of(programs: Iterable[str], toolchains: Iterable[str]) -> set[str]:
    """Every file by which these programs could be started by name."""
    folders = (*SEARCHED.split(":"), *bin_folders(toolchains))
    return {os.path.realpath(f"{folder}/{name}") for name in programs for folder in folders}


def _beside(folders: Iterable[str], left_out: Iterable[str], rights: int) -> dict[str, int]:
    """Rules for all that is below the folders but for some paths, of which Landlock can take nothing away."""
    out = set(left_out)
    gone = {_identity(path) for path in out}
    rules: dict[str, int] = {}
    for folder in folders:
        if folder in out or not os.path.isdir(folder):  # noqa: PTH112
            continue
        if not any(path.startswith(folder + "/") for path in out):
            rules[folder] = rights
            continue
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not e.is_symlink() and _identity(e.path) not in gone]
        rules |= dict.fromkeys((e.path for e in kept if not e.is_dir(follow_symlinks=False)), rights)
        rules |= _beside((e.path for e in kept if e.is_dir(follow_symlinks=False)), out, rights)
    return rules


def _identity(path: str) -> tuple[int, int]:
    """A file has one, whatever it is called."""
    try:
        status = os.lstat(path)
    except OSError:
        return (-1, -1)
    return (status.st_dev, status.st_ino)


# ---- the workspace


def path_rules(granted: Granted, rights: Mapping[str, int]) -> tuple[list[tuple[int, int]], list[str], ExitStack]:
    """Landlock's rules on the workspace.

    Args:
        granted: opened paths, protected and hidden ones among them.
        rights: by access, `read` and `write`.

    Returns:
        (descriptor, rights) of each rule, a sentence for each folder that had to be taken apart, and what closes the
        descriptors.
    """
    access = {o.rule.path: o.rule.access for o in granted.opened}
    rules: list[tuple[int, int]] = []
    notes: list[str] = []
    stack = ExitStack()

    def less(path: str, than: str) -> set[str]:
        """What is below a path and gets less than it."""
        start = "" if path == "." else path + "/"
        below = {p: a for p, a in access.items() if p not in (path, ".") and p.startswith(start)}
        return {a for a in below.values() if a == "hide" or (a == "read" and than == "write")}

    def spread(fd: int, path: str, kind: str) -> None:
        weaker = less(path, kind)
        if not weaker:
            rules.append((fd, rights[kind]))
            return
        if "hide" not in weaker:
            rules.append((fd, rights["read"]))
        notes.append(f"{path}: holds protected paths, so nothing can be created, renamed or removed in it itself")
        for name in _listed(fd):
            child = name if path == "." else f"{path}/{name}"
            if child in access:
                continue
            inner = _opened(name, fd, stack)
            if inner >= 0:
                spread(inner, child, kind)

    for opened in granted.opened:
        if opened.rule.access != "hide":
            spread(opened.fd, opened.rule.path, opened.rule.access)
    return rules, list(dict.fromkeys(notes)), stack


def _listed(fd: int) -> list[str]:
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    finally:
        os.close(folder)


def _opened(name: str, folder: int, stack: ExitStack) -> int:
    """A file or folder itself; -1 when it is gone, a link, or neither."""
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return -1
    stack.callback(os.close, fd)
    mode = os.fstat(fd).st_mode
    return fd if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else -1


def ruleset(paths: Mapping[str, int], opened: Sequence[tuple[int, int]]) -> int:
    """Makes rules for processes to lock themselves into, as a descriptor. Connections are all refused but by `connect`.

    Raises:
        OSError: the kernel refuses.
    """
    version = landlock.abi()
    attributes = Ruleset(()).to_json(version)
    network = attributes["network"] and attributes["network"] & ~2  # connections are made by the trusted process
    packed = struct.pack("=QQQ", attributes["handled"], network, attributes["scopes"])
    size = 24 if attributes["scopes"] else 16 if network else 8
    rules = call(SYS_LANDLOCK_CREATE, "landlock", ctypes.c_char_p(packed), size, 0)
    try:
        for path, rights in paths.items():
            with contextlib.suppress(FileNotFoundError, PermissionError):
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    _add(rules, fd, rights & attributes["handled"])
                finally:
                    os.close(fd)
        for fd, rights in opened:
            _add(rules, fd, rights & attributes["handled"])
    except BaseException:
        os.close(rules)
        raise
    return rules


def _add(rules: int, fd: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= RULES_OF_FILES
    rule = struct.pack("=Qi", rights, fd)
    call(SYS_LANDLOCK_ADD, "landlock rule", rules, LANDLOCK_PATH, ctypes.c_char_p(rule), 0)


# ---- what a person must know


def check(policy: SandboxPolicy) -> None:
    """Raises SandboxUnavailable when this kernel cannot hold a reduced sandbox with that policy."""
    version = landlock.abi()
    if not version:
        raise SandboxUnavailable("a reduced sandbox needs Landlock, which this kernel has not", hint=NO_LANDLOCK_HINT)
    if policy.network and version < NETWORK_FROM:
        raise SandboxUnavailable(
            "network-access in a reduced sandbox needs a newer Landlock than this kernel's",
            hint="use Linux 6.7 or newer, or the full sandbox",
        )


def check_owner(workspace: Path) -> None:
    """Raises SandboxUnavailable when agents of root's could not work in a folder, which no mount maps to their user."""
    with contextlib.suppress(OSError):  # whoever opens it says what is wrong
        owner = workspace.stat().st_uid
        if os.geteuid() == 0 and owner != (uid := agent_uid()):
            raise SandboxUnavailable(
                f"in a reduced sandbox root's agents run as user id {uid}, and {workspace} belongs to user id {owner}",
                hint=f"give it away: `chown -R {uid} {workspace}`; or run toka as an ordinary user",
            )


def reduced_notes(version: int, *, own_user: bool, network: bool, programs: bool) -> tuple[str, ...]:
    """What `reduced` does not hold here, one sentence each, for the record."""
    notes = [
        REDUCED_SANDBOX,
        "names, sizes and times of files elsewhere can be seen, not their contents",
        "ids of other processes can be seen, nothing else of them",
    ]
    if own_user:
        notes.append("modes and times of the workspace's files can be changed where it is read-only, too")
    else:
        notes.append("chmod, chown, touch -d and the like are refused by path: agents run as your own user")
    if version < SIGNALS_FROM:
        notes.append("processes cannot send signals at all: this kernel cannot tell whose they reach")
    if programs:
        notes.append("the list of programs does not hold against programs that the agent brings along")
    if network:
        notes.append("other processes of this machine can use the agent's proxy")
    return tuple(notes)
