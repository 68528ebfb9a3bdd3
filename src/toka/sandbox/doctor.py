"""What this machine offers a sandbox, layer by layer, and how to get what is missing. Everything is tried for real."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from toka.core.capability import Capability
from toka.core.clock import SystemClock
from toka.errors import SandboxError, SandboxUnavailable, TokaError
from toka.sandbox import landlock
from toka.sandbox.cgroup import Cgroup, CgroupLimits
from toka.sandbox.cgroup_find import HINT, Hierarchies, owned_name
from toka.sandbox.host import Sandbox
from toka.sandbox.idmap import PYTHON, UNMAPPABLE_HINT, USERNS_HINT, agent_uid, mapping, mount_mapped
from toka.sandbox.kernel import umount
from toka.sandbox.landlock import OLDEST
from toka.sandbox.level import NETWORK_FROM, NO_LANDLOCK_HINT, Level
from toka.sandbox.policy import MIB, SandboxPolicy
from toka.sandbox.seccomp import AUDIT
from toka.sandbox.selftest import SelfTest
from toka.sandbox.shield import Order, Shield
from toka.sandbox.spawn import INSTALL_HINT, PYTHON_HINT, find_bwrap, starter

T = TypeVar("T")
OLDEST_BWRAP = (0, 6)
OLDEST_PYTHON = (3, 9)
MACHINES = tuple(AUDIT)
LIMITS: Final = {"cgroup memory": "memory", "cgroup cpu": "cpu", "cgroup pids": "pids"}
"""Layers that hold limits: without them agents are confined all the same, and these limits are best effort."""
WITHOUT_NAMESPACES: Final = ("system", "python", "landlock", "seccomp", "user")
"""What the level `reduced` rests on."""
GRANTED: Final = Capability("network-access", hosts=("granted.invalid",), ports=("443",))
"""What the trial of the proxy may reach: a name that no machine can have."""
ASK_PROXY: Final = """
import os, socket, urllib.parse
proxy = urllib.parse.urlsplit(os.environ["HTTPS_PROXY"])
with socket.create_connection((proxy.hostname, proxy.port), 5) as asked:
    asked.sendall(b"CONNECT other.invalid:443 HTTP/1.1\\r\\nHost: other.invalid:443\\r\\n\\r\\n")
    print(asked.recv(200).decode("ascii", "replace").partition("\\r\\n")[0])
"""
FILTERS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")
_TIMEOUT_S = 10.0
_TRY = (
    "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
    "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One layer of the sandbox on this machine.

    Attributes:
        layer: its name, such as `bwrap`.
        wanted: what the sandbox needs.
        got: what was found.
        ok: whether that is enough.
        why: what the layer is for.
        fix: what to do; empty when `ok`.
    """

    layer: str
    wanted: str
    got: str
    ok: bool
    why: str
    fix: str = ""


def probe() -> list[Check]:
    """Tries each layer for real; takes some 50 ms and blocks meanwhile. Works on every system, fails on none."""
    checks = [_system(), _bwrap()]
    if all(c.ok for c in checks):
        checks.append(_namespaces())
    checks.append(_python())
    return checks


def deeper() -> list[Check]:
    """Tries what further confines and limits: the kernel's own layers, the user id, cgroups. Empty but on Linux.

    Makes a cgroup and removes it, and on cgroup v2 may move this process into a leaf, as a run does.
    """
    if platform.system() != "Linux":
        return []
    return [_landlock(), _seccomp(), _user(), _mapped(), *_cgroups()]


def trials(before: Sequence[Check], level: Level = "full", toolchains: tuple[str, ...] = ()) -> list[Check]:
    """Starts real sandboxes on an empty folder: each tests itself, as before an agent's first step; one asks its proxy.

    Args:
        before: the other layers; with one missing that the level needs, nothing is tried.
        level: `full` or `reduced`.
        toolchains: those that the sandbox shows.
    """
    return [_self_test(before, level, toolchains), _egress(before, level)]


def needed(layer: str, level: Level) -> bool:
    """Whether no agent can run at this level without a layer; limits and the network can be done without."""
    if level == "reduced":
        return layer in WITHOUT_NAMESPACES or layer == "self-test"
    return layer not in LIMITS


def _untried(before: Sequence[Check], level: Level) -> str:
    """Why a sandbox cannot even be tried; empty when it can."""
    missing = [c.layer for c in before if not c.ok and needed(c.layer, level)]
    return f"not tried: {', '.join(missing)}" if missing else ""


def _self_test(before: Sequence[Check], level: Level, toolchains: tuple[str, ...]) -> Check:
    wanted, why = "what must fail in a sandbox fails", "the same test comes before each agent's first step"
    if untried := _untried(before, level):
        return Check("self-test", wanted, untried, ok=False, why=why, fix="mend those first")
    try:
        test = asyncio.run(_tried(level, SandboxPolicy(toolchains=toolchains), _its_test))
    except (TokaError, OSError) as error:
        hint = error.hint if isinstance(error, TokaError) else None
        return Check("self-test", wanted, str(error), ok=False, why=why, fix=hint or "do not run agents here")
    got = f"passed in {test.wall_s * 1000:.0f} ms as user id {test.uid}: {', '.join(test.layers)}"
    return Check("self-test", wanted, got, ok=True, why=why)


def _egress(before: Sequence[Check], level: Level) -> Check:
    wanted, why = "a proxy that refuses other hosts", "the only way out, for agents with network-access"
    if untried := _untried(before, level):
        return Check("egress", wanted, untried, ok=False, why=why, fix="mend those first")
    if level == "reduced" and landlock.abi() < NETWORK_FROM:
        got = f"Landlock {landlock.abi()} holds no connections"
        return Check("egress", wanted, got, ok=False, why=why, fix="use Linux 6.7 or newer, or the full sandbox")
    try:
        said = asyncio.run(_tried(level, SandboxPolicy(network=(GRANTED,)), _ask_proxy))
    except (TokaError, OSError) as error:
        return Check("egress", wanted, str(error), ok=False, why=why, fix="do not grant network-access here")
    ok = " 403 " in f"{said} "
    got = "it answers, and refuses what was not granted" if ok else f"it says: {said}"
    return _check("egress", wanted, got, ok, why, "do not grant network-access here")


async def _tried(level: Level, more: SandboxPolicy, act: Callable[[Sandbox, SelfTest], Awaitable[T]]) -> T:
    """What `act` finds out in a sandbox that has passed its self-test."""
    with tempfile.TemporaryDirectory(prefix="toka-doctor-") as folder:
        made = [Path(folder), Path(folder, "read"), Path(folder, "write")]
        for path in made:
            path.mkdir(exist_ok=True)
            if level == "reduced" and os.geteuid() == 0:
                os.chown(path, agent_uid(), -1)
        paths: dict[str, Any] = {"reads": ("read",), "writes": ("write",), "programs": None}
        policy = replace(more, **paths, memory_bytes=256 * MIB, cpu_cores=1.0, disk_bytes=MIB)
        order = Order(made[0], policy, ("doctor",))
        sandbox, test = await Shield(SystemClock(), level=level).start(order)
        try:
            assert test is not None
            return await act(sandbox, test)
        finally:
            await sandbox.close()


async def _its_test(_: Sandbox, test: SelfTest) -> SelfTest:
    return test


async def _ask_proxy(sandbox: Sandbox, _: SelfTest) -> str:
    """The first line that the proxy answers to a request from inside for a host that was not granted."""
    result = await sandbox.run([PYTHON, "-c", ASK_PROXY], timeout_s=_TIMEOUT_S)
    return " ".join(result.output.decode("utf-8", "replace").split())[-200:] or result.ended


def level_of(checks: Sequence[Check]) -> Level:
    """The strongest level that this machine can give; agents run in `full` only, unless another was asked for by name.

    `full`: every layer holds; those of LIMITS are no matter of confinement. `reduced`: at least Landlock and the
    system-call filter do.
    """
    failed = {c.layer for c in checks if not c.ok and c.layer not in LIMITS}
    if not failed:
        return "full"
    return "none" if failed.intersection(WITHOUT_NAMESPACES) else "reduced"


def _landlock() -> Check:
    version = landlock.abi()
    got = f"version {version}" if version else "none, or it is switched off"
    return _check(
        "landlock", f"version {OLDEST} or newer", got, version >= OLDEST, "holds paths a second time", NO_LANDLOCK_HINT
    )


def _seccomp() -> Check:
    wanted, why = "filters of system calls", "refuses what programs do not need of the kernel"
    try:
        known = FILTERS.read_text(encoding="ascii").split()
    except OSError:
        known = []
    ok = {"errno", "kill_process"} <= set(known)
    return _check("seccomp", wanted, "they work" if ok else "none", ok, why, "boot a kernel with CONFIG_SECCOMP_FILTER")


def _user() -> Check:
    wanted, why = "an ordinary user id", "sandboxes never run as root"
    if os.geteuid() != 0:
        return Check("user", wanted, f"user id {os.geteuid()}", ok=True, why=why)
    try:
        return Check("user", wanted, f"user id {agent_uid()}, in place of root", ok=True, why=why)
    except SandboxUnavailable as error:
        return Check("user", wanted, error.message, ok=False, why=why, fix="run toka as an ordinary user")


def _mapped() -> Check:
    wanted, why = "id-mapped mounts, for root", "shows root's files to that user as its own"
    if os.geteuid() != 0:
        return Check("id mapping", wanted, "not needed: this is not root", ok=True, why=why)
    with tempfile.TemporaryDirectory(prefix="toka-doctor-") as folder:
        try:
            owner = starter().submit(_try_mapping, folder).result()
        except (SandboxUnavailable, OSError) as error:
            return Check("id mapping", wanted, str(error), ok=False, why=why, fix=UNMAPPABLE_HINT)
        ok = owner == agent_uid()
        got = f"they work in {tempfile.gettempdir()}" if ok else f"a folder of root's shows as user id {owner}'s"
        return _check("id mapping", wanted, got, ok, why, UNMAPPABLE_HINT)


def _try_mapping(folder: str) -> int:
    """Whom a folder belongs to once it is mounted with its owner mapped; for the thread that has mounts of its own."""
    source, target = Path(folder, "source"), Path(folder, "target")
    for path in (source, target):
        path.mkdir()
    user = agent_uid()
    fd = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mount_mapped(fd, str(target), mapping((0, 0), (user, user)))
        try:
            return target.stat().st_uid
        finally:
            umount(str(target))
    finally:
        os.close(fd)


def _cgroups() -> list[Check]:
    """Makes a cgroup with all limits, and reads back which of them hold."""
    holds = {"memory": "max_memory", "cpu": "max_cpu", "pids": "max_processes"}
    made = Cgroup.make(Hierarchies.find(), owned_name("toka", "doctor"), CgroupLimits(64 * MIB, 1.0, 64))
    with contextlib.suppress(SandboxError):
        made.end()
    out: list[Check] = []
    for layer, kind in LIMITS.items():
        by = made.enforced.get(kind)
        got, why = by or f"none: {made.missing.get(kind, 'unknown')}", f"holds {holds[kind]}; else it is best effort"
        out.append(_check(layer, "cgroup v2 or v1", got, by is not None, why, f"{HINT}; v1: as root"))
    return out


def _check(layer: str, wanted: str, got: str, ok: bool, why: str, fix: str) -> Check:  # noqa: FBT001
    return Check(layer, wanted, got, ok, why, "" if ok else fix)


def _system() -> Check:
    got = f"{platform.system()} {platform.machine()}"
    ok = platform.system() == "Linux" and platform.machine() in MACHINES
    fix = "run agents on Linux: a virtual machine (Lima, WSL2) or a container will do"
    return _check("system", f"Linux on {', '.join(MACHINES)}", got, ok, "the kernel confines the agents", fix)


def _bwrap() -> Check:
    wanted, why = f"bwrap {_dotted(OLDEST_BWRAP)} or newer", "makes the namespaces and mounts"
    try:
        path = find_bwrap()
    except SandboxUnavailable as missing:
        return _check("bwrap", wanted, "not installed", False, why, missing.hint or "")
    said = _said([path, "--version"])
    version = _version(said)
    return _check("bwrap", wanted, f"{said} ({path})", version >= OLDEST_BWRAP, why, INSTALL_HINT)


def _namespaces() -> Check:
    said = _said([find_bwrap(), *_TRY])
    return _check(
        "namespaces", "bwrap may make them", said or "it may", not said, "without them nothing is apart", USERNS_HINT
    )


def _python() -> Check:
    wanted, why = f"{PYTHON} {_dotted(OLDEST_PYTHON)} or newer with ctypes", "starts commands inside the sandbox"
    if not os.access(PYTHON, os.X_OK):
        return _check("python", wanted, "not installed", False, why, PYTHON_HINT)
    said = _said([PYTHON, "-I", "-S", "-c", "import ctypes, platform; print(platform.python_version())"])
    return _check("python", wanted, said, _version(said) >= OLDEST_PYTHON, why, PYTHON_HINT)


def _said(argv: list[str]) -> str:
    """What a program prints, on one line; its error when it fails without a word."""
    try:
        done = subprocess.run(argv, capture_output=True, check=False, timeout=_TIMEOUT_S, text=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    text = " ".join((done.stdout + done.stderr).split())
    return text or (f"exit code {done.returncode}" if done.returncode else "")


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"(?<![\d.])(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
