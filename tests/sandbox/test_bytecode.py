from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.sandbox import bytecode, mounts, spawn
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy


def test_what_is_compiled_is_a_program_and_knows_when_its_source_changed(tmp_path: Path) -> None:
    source = tmp_path / "said.py"
    for word in ("one", "two"):
        source.write_text(f'"""A docstring."""\nprint("{word}")\n')
        name, data = bytecode.code_inside(source, sys.executable)
        (tmp_path / name).write_bytes(data)
        assert name == "said.pyc" and b"docstring" not in data
        done = subprocess.run([sys.executable, "-I", "-S", str(tmp_path / name)], capture_output=True, text=True)
        assert done.stdout == f"{word}\n"


def test_another_python_gets_the_source(tmp_path: Path) -> None:
    (tmp_path / "said.py").write_text("print(1)\n")
    assert bytecode.code_inside(tmp_path / "said.py", "/bin/false") == ("said.py", b"print(1)\n")


@pytest.mark.parametrize("same", [True, False])
async def test_a_sandbox_works_with_both(workspace: Path, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    """Bytecode may only be used where the system's Python runs us; what is tried here is the rest of the way."""
    if same and not bytecode.runs_us(mounts.PYTHON):
        pytest.skip("another Python runs these tests")
    monkeypatch.setattr(bytecode, "runs_us", lambda _: same)
    monkeypatch.setattr(spawn, "runs_us", lambda _: same)
    around = Surroundings(SystemClock())
    sandbox = await Sandbox.start(workspace, SandboxPolicy(reads=("docs",), programs=None), around)
    try:
        said = await sandbox.run(shell("echo out; ls /toka/lib/toka/sandbox"), timeout_s=10)
        assert said.output.decode().splitlines()[0] == "out"
        assert any(line.endswith(".pyc") for line in said.output.decode().splitlines()) == same or not same
        assert await sandbox.file("read", path="docs/a.txt", start=1, lines=None, limit=100)
    finally:
        await sandbox.close()
