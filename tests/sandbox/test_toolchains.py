"""Toolchains of the operator's own in full sandboxes: what runs, what is shown, and what nobody gains by them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.conftest import Start, make_toolchain, names
from toka.core.clock import SystemClock
from toka.errors import SandboxError
from toka.sandbox.environment import environment_of
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import Kind, find_program
from toka.sandbox.selftest import self_test

LIBRARY = "int answer(void) { return 42; }"
PROGRAM = '#include <stdio.h>\nint answer(void);\nint main(void) { printf("%d\\n", answer()); return 0; }'


@pytest.fixture
def kit(toolchains: Path) -> Path:
    """Scripts that start one another, a real program, and a file that only the owner may read."""
    folder = make_toolchain(
        toolchains / "kit", caller="friend; echo the end", friend='echo "friend at $0"; cat "${0%/bin/*}/data"'
    )
    (folder / "data").write_text("the kit's data\n")
    (folder / "data").chmod(0o600)
    shutil.copy("/usr/bin/env", folder / "bin/envy")
    (toolchains / "secret").write_text("beside-the-kit\n")
    return folder


async def said(sandbox: Sandbox, command: str, **more: str) -> tuple[int | None, str]:
    result = await sandbox.run(shell(command), timeout_s=20, **more)
    assert result.ended == "exited", result
    return result.exit_code, result.output.decode()


async def ran(sandbox: Sandbox, *argv: str) -> tuple[int | None, str]:
    result = await sandbox.run(list(argv), timeout_s=20)
    assert result.ended == "exited", result
    return result.exit_code, result.output.decode()


async def test_programs_run_at_their_own_place_and_find_what_lies_beside_them(start: Start, kit: Path) -> None:
    (kit / "bin/named").write_text(f"#!{kit}/bin/envy sh\necho by an absolute name\n")
    (kit / "bin/named").chmod(0o755)
    sandbox = await start(toolchains=(str(kit),))
    assert await ran(sandbox, "caller") == (0, f"friend at {kit}/bin/friend\nthe kit's data\nthe end\n")
    assert await ran(sandbox, "envy", "A=1", "sh", "-c", "echo $A; command -v envy") == (0, f"1\n{kit}/bin/envy\n")
    assert await ran(sandbox, "named") == (0, "by an absolute name\n")
    code, path = await said(sandbox, "echo $PATH")
    assert (code, path) == (0, f"{kit}/bin:/usr/local/bin:/usr/bin:/bin\n")


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
async def test_a_compiled_program_finds_its_library(start: Start, kit: Path) -> None:
    (kit / "lib").mkdir()
    for name, text in (("answer.c", LIBRARY), ("main.c", PROGRAM)):
        (kit / name).write_text(text)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "lib/libanswer.so", "answer.c"], cwd=kit, check=True)
    argv = ["cc", "-o", "bin/answer", "main.c", "-Llib", "-lanswer", "-Wl,-rpath,$ORIGIN/../lib"]
    subprocess.run(argv, cwd=kit, check=True)
    for programs in (None, ("answer",)):
        sandbox = await start(toolchains=(str(kit),), programs=programs)
        assert await ran(sandbox, "answer") == (0, "42\n")


async def test_toolchains_go_before_the_system_in_their_order(start: Start, toolchains: Path) -> None:
    one = make_toolchain(toolchains / "one", tac="echo one", whoami="echo first")
    two = make_toolchain(toolchains / "two", tac="echo two", nproc="echo second")
    sandbox = await start(toolchains=(str(two), str(one)))
    assert await said(sandbox, "tac; whoami; nproc; id -un") == (0, "two\nfirst\nsecond\nagent\n")


async def test_a_toolchain_inside_another(start: Start, kit: Path) -> None:
    inner = make_toolchain(kit / "deep/inner", inside="echo inside")
    sandbox = await start(toolchains=(str(inner), str(kit)))
    assert await said(sandbox, "inside; caller | tail -1") == (0, "inside\nthe end\n")
    listed = await start(toolchains=(str(kit), str(inner)), programs=("inside", "sh"))
    assert await ran(listed, "inside") == (0, "inside\n")
    assert (await ran(listed, f"{kit}/bin/caller"))[0] == 126


async def test_nothing_in_it_can_be_changed(start: Start, kit: Path) -> None:
    sandbox = await start(toolchains=(str(kit),))
    before = names(kit / "bin")
    for act in ("echo x >> bin/friend", "touch new", "rm bin/caller", "mv bin bin2", "chmod 777 .", "ln -s a b"):
        code, text = await said(sandbox, f"cd {kit} && {act}")
        assert code, act
        assert "Read-only file system" in text or "Permission denied" in text, text
    for act in (f"mv {kit} /tmp/x", f"mkdir {kit.parent}/new", f"chmod 755 {kit.parent}", f"rmdir {kit.parent}"):
        assert (await said(sandbox, act))[0], act
    assert names(kit / "bin") == before
    assert (await self_test(sandbox, SystemClock())).layers


async def test_what_lies_around_it_is_not_there(start: Start, kit: Path) -> None:
    sandbox = await start(toolchains=(str(kit),))
    for folder in (kit.parent, kit.parent.parent):
        code, text = await said(sandbox, f"ls {folder}")
        assert code
        assert "Permission denied" in text
    code, text = await said(sandbox, f"cat {kit.parent}/secret")
    assert code
    assert "No such file" in text


async def test_a_link_out_of_it_leads_nowhere(start: Start, kit: Path, workspace: Path) -> None:
    for name, target in (
        ("out", kit.parent / "secret"),
        ("up", Path("../../secret")),
        ("ws", workspace / "private/key"),
    ):
        (kit / name).symlink_to(target)
    (kit / "bin/away").symlink_to(kit.parent / "away")
    shutil.copy("/usr/bin/true", kit.parent / "away")
    sandbox = await start(toolchains=(str(kit),))
    code, text = await said(sandbox, f"cat {kit}/out {kit}/up {kit}/ws; away")
    assert code
    assert "secret\n" not in text
    assert text.count("No such file") == 3
    assert find_program("away", (str(kit),)) is None
    assert find_program("caller", (str(kit),)) == str(kit / "bin/caller")


async def test_set_id_files_gain_nothing(start: Start, kit: Path) -> None:
    shutil.copy("/usr/bin/id", kit / "bin/setid")
    (kit / "bin/setid").chmod(0o6755)
    sandbox = await start(toolchains=(str(kit),))
    code, text = await said(sandbox, f"setid -u; setid -g; id -u; id -g; grep ' {kit} ' /proc/self/mountinfo")
    *ids, mount = text.splitlines()
    assert code == 0
    assert ids[:2] == ids[2:]
    assert {"ro", "nosuid", "nodev"} <= set(mount.split()[5].split(","))


# ---- lists of programs


async def test_a_listed_program_brings_its_toolchain_and_no_other(start: Start, kit: Path, toolchains: Path) -> None:
    other = make_toolchain(toolchains / "other", stranger="echo stranger")
    both = (str(other), str(kit))
    sandbox = await start(toolchains=both, programs=("caller", "cat", "sh"))
    assert await ran(sandbox, "caller") == (0, f"friend at {kit}/bin/friend\nthe kit's data\nthe end\n")
    assert await ran(sandbox, f"{other}/bin/stranger") == (
        127, f"toka: {other}/bin/stranger: No such file or directory\n"
    )  # fmt: skip
    person = await sandbox.run(shell("stranger"), timeout_s=5, chosen_by="person")
    assert (person.exit_code, person.output) == (0, b"stranger\n")
    assert (await self_test(sandbox, SystemClock())).layers


async def test_a_list_without_it_shows_nothing_of_it(start: Start, kit: Path) -> None:
    sandbox = await start(toolchains=(str(kit),), programs=("ls", "cat", "sh"))
    assert await ran(sandbox, "ls", "-A", str(kit)) == (0, "")
    assert (await ran(sandbox, f"{kit}/bin/envy", "true"))[0] == 127


async def test_with_a_fixed_list_nothing_that_is_written_can_be_executed(start: Start, kit: Path) -> None:
    sandbox = await start(toolchains=(str(kit),), programs=("envy", "cp", "sh", "ln"))
    for place in ("/workspace/src", "/tmp", "/dev/shm"):
        assert (await ran(sandbox, "cp", f"{kit}/bin/envy", f"{place}/mine"))[0] == 0
        assert (await ran(sandbox, f"{place}/mine", "true"))[0] == 126
    assert (await ran(sandbox, "ln", f"{kit}/bin/envy", "/workspace/src/linked"))[0]
    assert (await ran(sandbox, "envy", "A=1", "sh", "-c", "echo $A")) == (0, "1\n")


@pytest.mark.parametrize("programs", [None, ("caller", "cat", "sh")], ids=["any", "listed"])
async def test_what_the_operator_denies_is_not_in_it_either(
    start: Start, kit: Path, programs: tuple[str, ...] | None
) -> None:
    (kit / "bin/alias").symlink_to("friend")
    (kit / "bin/alsoalias").symlink_to("../hidden")
    shutil.move(kit / "bin/friend", kit / "hidden")
    (kit / "bin/friend").symlink_to("../hidden")
    sandbox = await start(toolchains=(str(kit),), programs=programs, refused_programs=("friend",))
    for name in ("friend", f"{kit}/bin/friend", f"{kit}/hidden", "alias", "alsoalias"):
        code, _ = await ran(sandbox, name)
        assert code == 126, name
    assert (await ran(sandbox, "caller"))[1].endswith("Permission denied\nthe end\n")
    free = await sandbox.run(shell("friend"), timeout_s=5, chosen_by="person")
    assert free.exit_code == 0


async def test_tools_of_toka_use_the_systems_programs(start: Start, toolchains: Path) -> None:
    fake = make_toolchain(toolchains / "fake")
    for name in ("git", "python3", "psql"):
        shutil.copy("/usr/bin/env", fake / "bin" / name)
    sandbox = await start(toolchains=(str(fake),))
    assert (await ran(sandbox, "git", "--version"))[1].startswith("env ")
    kinds: tuple[Kind, ...] = ("git", "tool")
    for kind in kinds:
        own = await sandbox.run(["git", "--version"], timeout_s=10, chosen_by=kind)
        assert not own.output.startswith(b"env ")
        assert (own.exit_code == 0) == (kind == "git")
        its = await sandbox.run([f"{fake}/bin/git", "--version"], timeout_s=10, chosen_by=kind)
        assert its.exit_code == 126


# ---- starting


async def test_one_that_was_installed_anew_is_shown_anew(start: Start, kit: Path) -> None:
    sandbox = await start(toolchains=(str(kit),))
    assert (await ran(sandbox, "caller"))[0] == 0
    kit.rename(kit.parent / "old")
    make_toolchain(kit, caller="echo new")
    assert await ran(sandbox, "caller") == (0, "new\n")
    shutil.rmtree(kit)
    with pytest.raises(SandboxError, match="there is no"):
        await ran(sandbox, "caller")


async def test_what_cannot_be_shown_keeps_the_sandbox_from_starting(start: Start, kit: Path, workspace: Path) -> None:
    (kit.parent / "link").symlink_to(kit)
    (kit.parent / "file").write_text("")
    (kit.parent / "empty").mkdir()
    (kit.parent / "odd").mkdir()
    (kit.parent / "odd/bin").symlink_to(kit / "bin")
    make_toolchain(workspace / "src/kit", x="")
    cases = {
        "nowhere": "there is no", "link": "symbolic link", "link/bin/..": "symbolic link", "file": "is no folder",
        "empty": "no folder bin", "odd": "no folder of its own",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(SandboxError, match=message) as refused:
            await start(toolchains=(f"{kit.parent}/{name}",))
        assert refused.value.hint
    for folder in (workspace / "src/kit", workspace, workspace.parent):
        with pytest.raises(SandboxError, match="meets the workspace"):
            await start(toolchains=(str(folder),))


def test_policies_differ_by_their_toolchains() -> None:
    policy = SandboxPolicy(toolchains=("/opt/b", "/opt/a"))
    assert SandboxPolicy.from_json(policy.to_json()) == policy != SandboxPolicy(toolchains=("/opt/a", "/opt/b"))
    assert environment_of(policy)["PATH"] == "/opt/b/bin:/opt/a/bin:/usr/local/bin:/usr/bin:/bin"
    assert environment_of(SandboxPolicy())["PATH"] == "/usr/local/bin:/usr/bin:/bin"
