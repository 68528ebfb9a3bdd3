from __future__ import annotations

import ast
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.errors import SandboxError, SandboxUnavailable
from toka.sandbox import doctor, launch, spawn
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.mounts import INSIDE
from toka.sandbox.policy import SandboxPolicy

SOURCES = Path(spawn.__file__).parent


async def begin(workspace: Path, **changes: object) -> Sandbox:
    return await Sandbox.start(workspace, SandboxPolicy(reads=("docs",)), Surroundings(SystemClock()))


async def test_no_bwrap_is_an_error_with_the_way_to_get_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn.os, "access", lambda *args: False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable, match="not installed") as caught:
        await begin(workspace)
    assert "apt install bubblewrap" in (caught.value.hint or "")
    checks = {c.layer: c for c in doctor.probe()}
    assert not checks["bwrap"].ok
    assert "dnf install bubblewrap" in checks["bwrap"].fix
    assert "namespaces" not in checks


@pytest.mark.parametrize(
    "script", ["echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1", "exec sleep 1000"]
)
async def test_a_bwrap_that_does_not_work_is_an_error_and_nothing_runs(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, script: str
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="toka-test-"))  # other users may enter it
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o755)
    fake = folder / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(spawn, "find_bwrap", lambda: str(fake))
    monkeypatch.setattr(launch, "START_S", 0.1)
    monkeypatch.setattr(launch, "LEAVE_S", 0.05)
    with pytest.raises(
        SandboxUnavailable, match="uid map: Permission denied" if "echo" in script else "did not start"
    ) as caught:
        await begin(workspace)
    assert "unprivileged_userns_clone" in (caught.value.hint or "")


async def test_no_python_is_an_error(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "PYTHON", "/usr/bin/python3-none")
    with pytest.raises(SandboxUnavailable, match="python3-none is missing"):
        await begin(workspace)


async def test_a_mount_that_is_not_what_was_opened_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = spawn.open_granted

    def other(*args: object) -> object:
        granted = real(*args)  # type: ignore[arg-type]
        object.__setattr__(granted.opened[0], "inode", 1)
        return granted

    monkeypatch.setattr(spawn, "open_granted", other)
    with pytest.raises(SandboxError, match="changed while the sandbox started"):
        await begin(workspace)


async def test_a_mount_with_more_rights_than_granted_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = spawn.lay_out

    def writable(*args: object, **options: object) -> object:
        layout = real(*args, **options)  # type: ignore[arg-type]
        object.__setattr__(layout, "argv", tuple("--bind" if a == "--ro-bind" else a for a in layout.argv))
        return layout

    monkeypatch.setattr(spawn, "lay_out", writable)
    with pytest.raises(SandboxError, match="is writable and should not be"):
        await begin(workspace)


async def test_the_zygote_keeps_no_descriptor_of_what_was_mounted(workspace: Path) -> None:
    sandbox = await begin(workspace)
    try:
        assert (await sandbox.run(["cat", "docs/a.txt"], timeout_s=5, chosen_by="person")).output == b"alpha\n"
        if os.getuid() == 0:  # only root may look into the zygote
            assert sandbox._zygote is not None
            held: list[str] = []
            for fd in Path(f"/proc/{sandbox._zygote._inner}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it makes the next command's processes just now
                    held.append(str(fd.readlink()))
            assert {h.split(":")[0] for h in held} <= {"/dev/null", "pipe", "socket", "anon_inode"}, held
    finally:
        await sandbox.close()


async def test_a_missing_workspace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="cannot be opened"):
        await begin(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root maps owners")
async def test_a_workspace_that_cannot_be_mapped_says_so_and_leaves_nothing_staged() -> None:
    before = spawn.starter().submit(os.listdir, spawn.stage_folder()).result()
    with pytest.raises(SandboxUnavailable, match="owner cannot be mapped"):
        await Sandbox.start(Path("/proc"), SandboxPolicy(reads=(".",)), Surroundings(SystemClock()))
    assert set(spawn.starter().submit(os.listdir, spawn.stage_folder()).result()) <= set(before)


def test_the_doctor_is_content_here() -> None:
    checks = doctor.probe()
    assert [c.layer for c in checks] == ["system", "bwrap", "namespaces", "python"]
    assert all(c.ok and not c.fix for c in checks)


def test_the_doctor_knows_old_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_said", lambda argv: "bubblewrap 0.4.1" if "--version" in argv else "3.8.10")
    checks = {c.layer: c for c in doctor.probe()}
    assert not checks["bwrap"].ok
    assert not checks["python"].ok


def test_the_doctor_works_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    assert not doctor.probe()[0].ok


@pytest.mark.parametrize("name", INSIDE)
def test_what_runs_inside_needs_only_an_old_python(name: str) -> None:
    tree = ast.parse((SOURCES / name).read_text(), feature_version=(3, 9))
    imported = {
        module.split(".")[0]
        for node in ast.walk(tree)
        for module in (
            [a.name for a in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported - {"toka"} <= set(sys.stdlib_module_names)
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))
