from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import usable

ROOT = Path(__file__).parents[2]
UID = 54_322


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.getuid() != 0, reason="already an ordinary user")
def test_all_of_it_holds_for_an_ordinary_user() -> None:
    """An uid without an account is as ordinary as one with: only the kernel is asked."""
    home = Path("/tmp") / f"toka-checkpoints-{os.getpid()}"
    try:
        for part in ("src", "tests/workspace"):
            shutil.copytree(ROOT / part, home / part, ignore=shutil.ignore_patterns("__pycache__", "test_user.py"))
        shutil.copy(ROOT / "pyproject.toml", home)
        subprocess.run(["chown", "-R", f"{UID}:{UID}", str(home)], check=True)
        user = {"user": UID, "group": UID, "extra_groups": [], "cwd": home, "capture_output": True, "text": True}
        if not usable(user, "pytest, pytest_asyncio, hypothesis"):
            pytest.skip(f"{sys.executable} cannot be used by another user")
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(home / "t"), "-rs"]
        env = {**os.environ, "PYTHONPATH": str(home / "src"), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([*argv, "tests/workspace"], env=env, **user)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "2 skipped" in done.stdout.splitlines()[-1], done.stdout[-2000:]  # what only root can try
    finally:
        shutil.rmtree(home, ignore_errors=True)
