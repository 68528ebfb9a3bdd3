"""Toolchains where only root can try them: below /usr, without mapped owners, and closed to root's agents."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sandbox.conftest import Start, make_toolchain
from sandbox.test_toolchains import ran
from toka.core.clock import SystemClock
from toka.errors import SandboxError
from toka.sandbox.idmap import STAGES, agent_uid
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.reduced import ReducedSandbox

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can make these places")
ALONE = """
import asyncio, sys
from pathlib import Path
from toka.core.clock import SystemClock
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy

async def main(workspace, toolchain):
    policy = SandboxPolicy(programs=None, toolchains=(toolchain,))
    sandbox = await Sandbox.start(Path(workspace), policy, Surroundings(SystemClock()))
    try:
        for argv in (["hello"], ["closed"]):
            result = await sandbox.run(argv, timeout_s=20)
            print(result.exit_code, result.output.decode(), end="")
    finally:
        await sandbox.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_toolchain_below_usr(start: Start) -> None:
    folder = Path(tempfile.mkdtemp(prefix="toka-test-", dir="/usr/local"))
    try:
        folder.chmod(0o755)
        make_toolchain(folder / "kit", local="echo local")
        for programs in (None, ("local", "sh")):
            sandbox = await start(toolchains=(f"{folder}/kit",), programs=programs)
            assert await ran(sandbox, "local") == (0, "local\n")
        hidden = await start(toolchains=(f"{folder}/kit",), programs=("sh", "ls"))
        assert await ran(hidden, "ls", f"{folder}/kit") == (0, "")
    finally:
        shutil.rmtree(folder)


def test_without_mapped_owners_what_is_open_to_all_works(toolchains: Path, workspace: Path) -> None:
    """An overlay has none. What only its owner may use stays closed."""
    kit = make_toolchain(toolchains / "lower/kit", hello="echo hello", closed="echo closed")
    (kit / "bin/closed").chmod(0o700)
    for name in ("upper", "work", "there"):
        (toolchains / name).mkdir()
    options = f"lowerdir={kit.parent},upperdir={toolchains}/upper,workdir={toolchains}/work"
    mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, f"{toolchains}/there"], check=False)
    if mounted.returncode:
        pytest.skip("no overlay can be mounted here")
    try:
        argv = [sys.executable, "-c", ALONE, str(workspace), f"{toolchains}/there/kit"]
        env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.stdout == "0 hello\n126 toka: closed: Permission denied\n", done.stderr
    finally:
        subprocess.run(["umount", f"{toolchains}/there"], check=True)


def test_mounts_are_staged_where_nothing_is_covered(workspace: Path) -> None:
    here, *others = (Path(folder) for folder in STAGES if Path(folder).is_dir())
    if not any(not list(other.iterdir()) for other in others):
        pytest.skip("no other folder to stage in is empty")
    folder = Path(tempfile.mkdtemp(prefix="toka-test-", dir=here))
    try:
        kit = make_toolchain(folder / "kit", hello="echo hello", closed="echo not closed")
        argv = [sys.executable, "-c", ALONE, str(workspace), str(kit)]
        env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.stdout == "0 hello\n0 not closed\n", done.stderr
    finally:
        shutil.rmtree(folder)


async def test_one_that_is_closed_to_roots_agents_is_refused_where_nothing_can_be_mounted(toolchains: Path) -> None:
    kit = make_toolchain(toolchains / "kit", hello="echo hello")
    with tempfile.TemporaryDirectory(prefix="toka-reduced-") as folder:
        os.chown(folder, agent_uid(), -1)
        policy = SandboxPolicy(programs=None, toolchains=(str(kit),))
        with pytest.raises(SandboxError, match=f"{kit}/bin is closed to user id {agent_uid()}") as refused:
            await ReducedSandbox.open(Path(folder), policy, Surroundings(SystemClock()), "reduced")
    assert "use the full sandbox" in (refused.value.hint or "")
