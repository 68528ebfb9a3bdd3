"""What holds for agents holds for commands that are watched, as those of `toka jail` are: the same tests once more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import usable
from sandbox.watching import VARIABLE

ROOT = Path(__file__).parents[2]
UID = 54_321
SUITES = ("test_confinement.py", "test_escapes.py", "test_network.py")


@pytest.fixture
def copied() -> Iterator[Path]:
    """The sources and suites where an ordinary user gets to them."""
    home = Path("/tmp") / f"toka-watched-{os.getpid()}"
    ignore = shutil.ignore_patterns("__pycache__")
    try:
        shutil.copytree(ROOT / "src", home / "src", ignore=ignore)
        shutil.copytree(ROOT / "tests/sandbox", home / "tests/sandbox", ignore=ignore)
        shutil.copy(ROOT / "tests/harness.py", home / "tests/harness.py")
        shutil.copy(ROOT / "pyproject.toml", home)
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_all_walls_hold_for_commands_that_are_watched(copied: Path, user: str) -> None:
    if user == "root" and os.getuid() != 0:
        pytest.skip("this is not root")
    suites = SUITES if user == "root" else (*SUITES, "test_observe.py")
    identity: dict[str, Any] = {"cwd": copied, "capture_output": True, "text": True}
    if user == "ordinary" and os.getuid() == 0:
        subprocess.run(["chown", "-R", f"{UID}:{UID}", str(copied)], check=True)
        identity |= {"user": UID, "group": UID, "extra_groups": []}
        if not usable(identity, "pytest, pytest_asyncio"):
            pytest.skip(f"{sys.executable} cannot be used by another user")
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(copied / "t"), "-q"]
    environment = {**os.environ, "PYTHONPATH": f"{copied}/src:{copied}/tests", "HOME": str(copied), VARIABLE: "1"}
    files = [f"tests/sandbox/{suite}" for suite in suites]
    done = subprocess.run([*argv, *files], env=environment, **identity)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
