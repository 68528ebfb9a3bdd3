"""Toolchains of the operator's own where there are no mounts: the same rules, by Landlock alone."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.conftest import make_toolchain, names
from sandbox.test_reduced import Start, own, said
from toka.core.clock import SystemClock
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.keeper import Surroundings
from toka.sandbox.level import Level
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.reduced import ReducedSandbox, reduced_test

ROOT = os.getuid() == 0


@pytest.fixture
def workspace() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="toka-reduced-"))
    folder.chmod(0o755)
    (folder / "ws/src").mkdir(parents=True)
    own(folder / "ws")
    yield folder / "ws"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def start(workspace: Path) -> AsyncIterator[Start]:
    started: list[ReducedSandbox] = []

    async def make(level: Level = "reduced", **changes: Any) -> ReducedSandbox:
        policy = SandboxPolicy(**{"writes": ("src",), "programs": None, **changes})
        sandbox = await ReducedSandbox.open(workspace, policy, Surroundings(SystemClock()), level)
        started.append(sandbox)
        return sandbox

    yield make
    for sandbox in started:
        await sandbox.close()


@pytest.fixture
def kit(toolchains: Path) -> Path:
    """Root's agents are another user, to whom nothing can be mounted: they need a folder that is open to all."""
    if ROOT:
        toolchains.chmod(0o755)
    folder = make_toolchain(toolchains / "kit", caller="friend; echo the end", friend='echo "friend at $0"')
    shutil.copy("/usr/bin/env", folder / "bin/envy")
    (toolchains / "secret").write_text("beside-the-kit\n")
    return folder


async def ran(sandbox: Sandbox, *argv: str) -> tuple[int | None, str]:
    result = await sandbox.run(list(argv), timeout_s=20)
    assert result.ended == "exited", result
    return result.exit_code, result.output.decode()


async def test_its_programs_run_and_it_cannot_be_changed(start: Start, kit: Path) -> None:
    sandbox = await start(toolchains=(str(kit),))
    before = names(kit / "bin")
    assert await ran(sandbox, "caller") == (0, f"friend at {kit}/bin/friend\nthe end\n")
    assert (await said(sandbox, "echo $PATH")).startswith(f"{kit}/bin:/usr/local/bin:")
    for act in ("echo x >> bin/friend", "touch new", "rm bin/caller", "mv bin bin2", "chmod 777 bin"):
        assert (await ran(sandbox, "sh", "-c", f"cd {kit} && {act}"))[0], act
    assert names(kit / "bin") == before
    assert (kit / "bin").stat().st_mode & 0o777 == 0o755
    assert (await reduced_test(sandbox, SystemClock())).level == "reduced"


async def test_what_lies_around_it_and_where_its_links_lead_is_closed(start: Start, kit: Path) -> None:
    (kit / "out").symlink_to(kit.parent / "secret")
    sandbox = await start(toolchains=(str(kit),))
    for path in (f"{kit}/out", f"{kit.parent}/secret"):
        assert (await ran(sandbox, "cat", path)) == (1, f"cat: {path}: Permission denied\n")
    assert (await ran(sandbox, "ls", str(kit.parent)))[0]


async def test_lists_of_programs(start: Start, kit: Path, toolchains: Path) -> None:
    other = make_toolchain(toolchains / "other", stranger="echo stranger")
    sandbox = await start(toolchains=(str(other), str(kit)), programs=("caller", "cat", "sh", "cp"))
    assert await ran(sandbox, "caller") == (0, f"friend at {kit}/bin/friend\nthe end\n")
    assert (await ran(sandbox, "stranger"))[0] == 126
    assert (await ran(sandbox, "cat", f"{other}/bin/stranger"))[0] == 1
    assert (await ran(sandbox, "cp", f"{kit}/bin/envy", "src/mine"))[0] == 0
    assert (await ran(sandbox, "src/mine", "true"))[0] == 126
    person = await sandbox.run(shell("stranger"), timeout_s=5, chosen_by="person")
    assert person.output == b"stranger\n"
    git = await sandbox.run([f"{kit}/bin/envy", "true"], timeout_s=5, chosen_by="git")
    assert git.exit_code == 126


@pytest.mark.parametrize("programs", [None, ("caller", "sh")], ids=["any", "listed"])
async def test_what_the_operator_denies(start: Start, kit: Path, programs: tuple[str, ...] | None) -> None:
    shutil.move(kit / "bin/friend", kit / "hidden")
    (kit / "bin/friend").symlink_to("../hidden")
    sandbox = await start(toolchains=(str(kit),), programs=programs, refused_programs=("friend",))
    for name in ("friend", f"{kit}/bin/friend", f"{kit}/hidden"):
        assert (await ran(sandbox, name))[0] == 126, name
    assert (await ran(sandbox, "caller"))[1].endswith("Permission denied\nthe end\n")


async def test_without_a_sandbox_they_are_in_the_path(start: Start, kit: Path) -> None:
    sandbox = await start("none", toolchains=(str(kit),))
    assert await ran(sandbox, "caller") == (0, f"friend at {kit}/bin/friend\nthe end\n")
