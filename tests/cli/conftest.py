"""Runs to look at, and the command line to look with."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from cli.records import Ran, Recorded, Toka, run_team
from toka.cli.main import main


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    if not shutil.which("bwrap"):
        pytest.skip("no bwrap: agents cannot run here")
    root = tmp_path_factory.mktemp("team")
    return Recorded(root / "state", asyncio.run(run_team(root)), root / "work")


@pytest.fixture
def recorded(original: Recorded, tmp_path: Path) -> Recorded:
    """A copy of the run, to read or to spoil."""
    state = tmp_path / "state"
    shutil.copytree(original.state, state)
    return Recorded(state, original.run, original.workspace)


@pytest.fixture
def toka(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Toka:
    """Runs the command line in this process, in an environment of its own: `toka("ps", "--json")`."""
    for name in list(os.environ):
        if name.startswith(("TOKA_", "XDG_", "ANTHROPIC", "OPENAI", "OLLAMA", "FORCE_COLOR", "NO_COLOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run
