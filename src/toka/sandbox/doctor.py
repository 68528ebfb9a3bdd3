"""What this machine offers a sandbox, layer by layer, and how to get what is missing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass

from toka.errors import SandboxUnavailable
from toka.sandbox.idmap import PYTHON
from toka.sandbox.launch import USERNS_HINT
from toka.sandbox.spawn import INSTALL_HINT, PYTHON_HINT, find_bwrap

OLDEST_BWRAP = (0, 6)
OLDEST_PYTHON = (3, 9)
MACHINES = ("x86_64", "aarch64", "riscv64")
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
