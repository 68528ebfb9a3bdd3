"""Paths that stay as they are: seen from inside, where every trick ends, and from outside, where nothing is left."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.conftest import Start, names
from toka.errors import SandboxError
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.trusted import TRUSTED

WHOLE = {"reads": (), "writes": (".",)}


@pytest.fixture
def repository(workspace: Path) -> Path:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    for line in ("init -q -b main .", "config user.name A", "config user.email a@b", "add -A", "commit -q -m one"):
        subprocess.run(["git", "-C", str(workspace), *line.split()], check=True, env=environment)
    return workspace


async def tries(sandbox: Sandbox, *lines: str) -> list[str]:
    """The lines that succeeded."""
    done: list[str] = []
    for line in lines:
        result = await sandbox.run(shell(line), timeout_s=10)
        if result.exit_code == 0:
            done.append(line)
    return done


async def test_hooks_and_settings_of_a_repository_cannot_be_changed(start: Start, repository: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (repository / ".git").rglob("*") if p.is_file()}
    sandbox = await start(**WHOLE, git=True)
    assert not await tries(
        sandbox,
        "echo x > .git/hooks/pre-commit", "echo x >> .git/config", "git config core.fsmonitor /tmp/x",
        "rm -r .git/hooks", "rm -f .git/config", "mv .git/config .git/config2", "mv .git/hooks .git/hooks2",
        "ln -s /tmp .git/info/x", "mkdir .git/modules/x", "echo '*' > .git/info/attributes",
    )  # fmt: skip
    assert {p: p.stat().st_mtime_ns for p in before} == before


async def test_the_parent_of_a_protected_path_cannot_be_replaced(start: Start, repository: Path) -> None:
    """`mv .git .git2` and a new .git/hooks would put a hook on the host."""
    sandbox = await start(**WHOLE, git=True)
    assert not await tries(sandbox, "mv .git .git2", "rm -rf .git", "mkdir -p x && mv -T x .git", "mv .github x")
    await tries(sandbox, "rm -rf .git/* 2>/dev/null; mkdir -p .git/hooks; echo x > .git/hooks/post-checkout")
    assert "post-checkout" not in names(repository / ".git/hooks")


async def test_with_git_access_an_agent_commits_and_without_it_sees(start: Start, repository: Path) -> None:
    granted = await start(reads=(".",), writes=("src",), git=True)
    line = "echo 2 >> src/main.py && git -c user.name=a -c user.email=a@b commit -q -am two && git log --oneline"
    result = await granted.run(shell(line), timeout_s=10)
    assert result.exit_code == 0, result.output
    assert result.output.count(b"\n") == 2
    without = await start(**WHOLE)
    assert (await without.run(shell("git log --oneline"), timeout_s=10)).output.count(b"\n") == 2
    assert not await tries(without, "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x", "mv .git x")


async def test_every_trusted_path_is_protected_although_it_is_missing(start: Start, workspace: Path) -> None:
    """CVE-2026-25725: a protected file that did not exist at the start could be created."""
    sandbox = await start(**WHOLE)
    for path, kind in {**TRUSTED, ".git": "folder"}.items():
        inner = f"{path}/new" if kind == "folder" else path
        assert not await tries(sandbox, f"echo x > {inner}", f"mv -T {path} /tmp/x", f"rm -rf {path}"), path
    assert not await tries(sandbox, "mv .github gone", "rm -rf .github")
    assert await tries(sandbox, "echo x > .github/other")
    await sandbox.close()
    assert names(workspace) == [".github", "docs", "private", "src"], "what was created and not filled is gone"
    assert names(workspace / ".github") == ["other"]


async def test_what_was_created_goes_with_the_last_sandbox(start: Start, workspace: Path) -> None:
    one, two = await start(**WHOLE), await start(**WHOLE)
    await one.close()
    assert (workspace / ".git").is_dir()
    assert not await tries(two, "echo x > .git/config", "echo x > .envrc")
    await two.close()
    assert names(workspace) == ["docs", "private", "src"]


HOST = """
import asyncio, sys
from pathlib import Path
from toka.core.clock import SystemClock
from toka.sandbox.keeper import Surroundings
from toka.sandbox.host import Sandbox
from toka.sandbox.policy import SandboxPolicy

async def main():
    sandbox = await Sandbox.start(Path(sys.argv[1]), SandboxPolicy(writes=(".",)), Surroundings(SystemClock()))
    print("started", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_what_a_killed_process_left_is_removed_by_the_next(start: Start, workspace: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    argv = [sys.executable, "-c", HOST, str(workspace)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"started\n"
        beside = await start(**WHOLE)
        await beside.close()
        assert ".envrc" in names(workspace), "another process still needs it"
        host.kill()
    assert ".envrc" in names(workspace)
    await (await start(**WHOLE)).close()
    assert names(workspace) == ["docs", "private", "src"]


async def test_an_empty_file_of_the_user_stays(start: Start, workspace: Path) -> None:
    (workspace / ".envrc").touch()
    (workspace / ".claude").mkdir()
    await (await start(**WHOLE)).close()
    assert {".envrc", ".claude"} <= set(names(workspace))


async def test_a_grant_that_names_a_trusted_path_opens_it_and_no_other(start: Start) -> None:
    sandbox = await start(reads=(".",), writes=(".vscode", ".github/workflows/ci.yml", "src"))
    assert await tries(sandbox, "echo x > .vscode/settings.json", "echo x > .github/workflows/ci.yml")
    assert not await tries(sandbox, "echo x > .github/workflows/other.yml", "echo x > .envrc")


async def test_settings_are_never_opened(start: Start, workspace: Path) -> None:
    (workspace / "toka.toml").write_text("[policy]\n")
    sandbox = await start(reads=(), writes=("toka.toml", "src"))
    assert not await tries(sandbox, "echo x > toka.toml", "rm toka.toml")
    assert await tries(sandbox, "cat toka.toml")


async def test_own_specs_are_protected_and_states_hidden(start: Start, workspace: Path) -> None:
    (workspace / "agents/deep").mkdir(parents=True)
    (workspace / "agents/deep/me.yaml").write_text("a: 1\n")
    (workspace / ".toka/state").mkdir(parents=True)
    (workspace / ".toka/state/toka.db").write_text("record\n")
    sandbox = await start(**WHOLE, protected=("agents/deep/me.yaml", "agents/none.yaml"), hidden=(".toka/state",))
    assert not await tries(
        sandbox, "echo x > agents/deep/me.yaml", "rm agents/deep/me.yaml", "mv agents a2", "mv agents/deep agents/d2",
        "cat .toka/state/toka.db", "ls .toka/state | grep .", "echo x > .toka/state/x", "mv .toka x",
    )  # fmt: skip
    assert await tries(sandbox, "echo x > agents/deep/other.yaml")
    assert not (await sandbox.file("read", path=".toka/state/toka.db", start=1, lines=None, limit=9)).get("body")


@pytest.mark.parametrize(
    "plant",
    [".git -> /tmp", ".github -> /tmp", ".github/workflows -> /tmp", ".envrc -> /etc/passwd", ".claude -> nowhere"],
)
async def test_a_planted_link_at_a_protected_path_is_refused(start: Start, workspace: Path, plant: str) -> None:
    path, _, target = plant.partition(" -> ")
    (workspace / path).parent.mkdir(exist_ok=True)
    (workspace / path).symlink_to(target)
    with pytest.raises(SandboxError, match="symbolic link"):
        await start(**WHOLE)
    assert names(workspace) == sorted({"docs", "private", "src", path.split("/")[0]})


async def test_a_git_file_is_read_only_without_git_access_and_refused_with_it(start: Start, workspace: Path) -> None:
    (workspace / ".git").write_text("gitdir: /somewhere/else\n")
    sandbox = await start(**WHOLE)
    assert not await tries(sandbox, "echo gitdir: /tmp > .git", "rm .git", "mv .git x")
    with pytest.raises(SandboxError, match="is a file") as caught:
        await start(**WHOLE, git=True)
    assert "main checkout" in (caught.value.hint or "")


async def test_git_access_without_a_repository_says_so(start: Start) -> None:
    sandbox = await start(**WHOLE, git=True)
    assert any("no .git" in note for note in sandbox.notes)
    assert not await tries(sandbox, "echo x > .git/config")


async def test_no_part_of_git_is_granted_by_a_path(start: Start, repository: Path) -> None:
    with pytest.raises(SandboxError, match="may not be granted"):
        await start(reads=(), writes=(".git/hooks",))


async def test_a_race_for_a_protected_path_is_lost(start: Start, workspace: Path) -> None:
    """Links that come and go at a protected path while sandboxes start never lead a mount astray."""
    outside = workspace.parent / "outside"
    outside.mkdir()
    stop = asyncio.Event()

    async def swap() -> None:
        link = workspace / ".vscode"
        while not stop.is_set():
            link.symlink_to(outside)
            await asyncio.sleep(0)
            link.unlink()
            await asyncio.sleep(0.0005)

    swapping = asyncio.create_task(swap())
    for _ in range(15):
        try:
            sandbox = await start(**WHOLE)
        except (SandboxError, FileExistsError):
            continue
        finally:
            await asyncio.sleep(0.001)
        await tries(sandbox, "echo x > .vscode/settings.json")
        await sandbox.close()
        break
    stop.set()
    try:
        await swapping
    except OSError:
        pass
    assert names(outside) == []


async def test_a_placeholder_that_git_reads_is_what_git_needs_and_goes(start: Start, workspace: Path) -> None:
    git = ["git", "-C", str(workspace), "-c", "safe.directory=*"]
    subprocess.run([*git, "init", "-q"], check=True)
    sandbox = await start(writes=(".",), git=True)
    place = workspace / ".git/commondir"
    assert place.read_bytes() == b"."
    subprocess.run([*git, "status"], check=True, capture_output=True)
    await sandbox.close()
    assert not place.exists()
