from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.watching import watch_if_wanted
from toka.core.clock import SystemClock
from toka.sandbox import mounts
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy

Start = Callable[..., Awaitable[Sandbox]]
watch_if_wanted()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    for name in ("docs", "src", "private"):
        (folder / name).mkdir(parents=True)
    (folder / "docs/a.txt").write_text("alpha\n")
    (folder / "src/main.py").write_text("print('hi')\n")
    (folder / "private/key").write_text("workspace-secret\n")
    return folder


@pytest.fixture
async def start(workspace: Path) -> AsyncIterator[Start]:
    """Starts sandboxes that may read docs, write src and run anything, unless told otherwise; closes them.

    Each has run a command, so that the next one finds processes that wait for it; `warm=False` leaves that out.
    """
    started: list[Sandbox] = []

    async def make(**changes: Any) -> Sandbox:
        options: dict[str, Any] = {"reads": ("docs",), "writes": ("src",), "programs": None, **changes}
        idle_s, warm = options.pop("idle_s", 60.0), options.pop("warm", True)
        sandbox = await Sandbox.start(workspace, SandboxPolicy(**options), Surroundings(SystemClock(), idle_s))
        started.append(sandbox)
        if warm:
            await sandbox.run(["true"], timeout_s=10)
        return sandbox

    yield make
    for sandbox in started:
        await sandbox.close()


@pytest.fixture
def toolchains() -> Iterator[Path]:
    """A folder that only its owner may enter, where toolchains may lie: sandboxes have a /tmp of their own."""
    usual = "/opt" if os.getuid() == 0 else str(Path.home())
    folder = Path(tempfile.mkdtemp(prefix="toka-toolchains-", dir=os.environ.get("TOOLCHAINS_IN", usual)))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def make_toolchain(folder: Path, **programs: str) -> Path:
    """A toolchain of shell scripts, by name."""
    (folder / "bin").mkdir(parents=True)
    for name, text in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture
def code_inside(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The code that runs inside, as a copy that a test may break."""
    folder = tmp_path_factory.mktemp("code")
    for name in mounts.INSIDE:
        shutil.copy(Path(mounts.__file__).parent / name, folder)
    monkeypatch.setattr(mounts, "__file__", str(folder / "mounts.py"))
    yield folder


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new))


def living(marker: str) -> list[int]:
    """Processes of this machine whose command line contains the marker."""
    return [pid for pid, line in _command_lines() if marker.encode() in line]


def _command_lines() -> Iterator[tuple[int, bytes]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "cmdline").read_bytes()
            except OSError:
                continue


def names(folder: Path | str) -> list[str]:
    """What a folder holds."""
    return sorted(p.name for p in Path(folder).iterdir())


def open_fds() -> int:
    """How many descriptors this process has open."""
    return len(names("/proc/self/fd"))
