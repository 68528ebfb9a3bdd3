from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import usable

ROOT = Path(__file__).parents[2]
UID = 54_321
SUITES = (
    "test_confinement.py", "test_host.py", "test_worker.py", "test_escapes.py", "test_limits.py", "test_network.py",
    "test_selftest.py", "test_spare.py", "test_freeze.py", "test_orphans.py",
    "test_toolchains.py", "test_toolchains_reduced.py",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(os.getuid() != 0, reason="already an ordinary user")
def test_all_of_it_holds_for_an_ordinary_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """An uid without an account is as ordinary as one with: only the kernel is asked."""
    home = Path("/tmp") / f"toka-user-{os.getpid()}"
    place = Path("/opt") / f"toka-user-{os.getpid()}"
    try:
        shutil.copytree(ROOT / "src", home / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests/sandbox", home / "tests/sandbox", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "tests/harness.py", home / "tests")
        shutil.copy(ROOT / "pyproject.toml", home)
        place.mkdir()
        subprocess.run(["chown", "-R", f"{UID}:{UID}", str(home), str(place)], check=True)
        user = {"user": UID, "group": UID, "extra_groups": [], "cwd": home, "capture_output": True, "text": True}
        if not usable(user, "pytest, pytest_asyncio"):
            pytest.skip(f"{sys.executable} cannot be used by another user")
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(home / "t"), "-rs"]
        path = f"{home / 'src'}:{home / 'tests'}"
        env = {**os.environ, "PYTHONPATH": path, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
        env["TOOLCHAINS_IN"] = str(place)
        done = subprocess.run([*argv, *(f"tests/sandbox/{s}" for s in SUITES)], env=env, **user)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
        assert all("only root can" in line for line in skipped), skipped
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
