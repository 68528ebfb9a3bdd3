from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from sandbox.conftest import Start, names
from toka.errors import SandboxError
from toka.sandbox.host import Sandbox, shell


async def said(sandbox: Sandbox, command: str, timeout_s: float = 10) -> str:
    result = await sandbox.run(shell(command), timeout_s=timeout_s)
    assert result.ended == "exited", result
    return result.output.decode()


async def python(sandbox: Sandbox, source: str) -> object:
    """The JSON that a script prints inside."""
    result = await sandbox.run(["/usr/bin/python3", "-I", "-S", "-c", source], timeout_s=10)
    assert result.exit_code == 0, result
    return json.loads(result.output)


async def test_the_system_cannot_be_written(start: Start) -> None:
    sandbox = await start()
    for path in ("/x", "/usr/x", "/usr/bin/x", "/etc/x", "/etc/passwd", "/toka/zygote.py", "/dev/x", "/workspace/x"):
        text = await said(sandbox, f"echo x 2>/dev/null > {path} && echo wrote || echo refused")
        assert "refused" in text, path


async def test_only_the_allowed_folders_exist(start: Start) -> None:
    sandbox = await start()
    names = set((await said(sandbox, "ls -A /")).split())
    assert names <= {
        "bin",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "sbin",
        "tmp",
        "toka",
        "usr",
        "workspace",
    }
    assert (await said(sandbox, "ls -A /root /home /run /var /sys /opt /srv /mnt 2>/dev/null")) == ""


async def test_only_granted_paths_of_the_workspace_exist(start: Start) -> None:
    sandbox = await start()
    assert set((await said(sandbox, "find . -mindepth 1")).split()) == {
        "./docs",
        "./docs/a.txt",
        "./src",
        "./src/main.py",
    }


async def test_an_empty_policy_shows_an_empty_workspace(start: Start) -> None:
    sandbox = await start(reads=(), writes=())
    assert await said(sandbox, "ls -A /workspace") == ""


async def test_read_paths_cannot_be_written_and_write_paths_can(start: Start, workspace: Path) -> None:
    sandbox = await start()
    text = await said(
        sandbox, "cat docs/a.txt; echo b > docs/a.txt; mv docs docs2; rm -rf docs; echo new > src/new.txt"
    )
    assert text.startswith("alpha")
    assert (workspace / "docs/a.txt").read_text() == "alpha\n"
    assert (workspace / "src/new.txt").read_text() == "new\n"


async def test_a_write_path_inside_a_read_path(start: Start, workspace: Path) -> None:
    sandbox = await start(reads=(".",), writes=("src",))
    await said(sandbox, "echo x > top; echo x > private/y; echo x > src/ok; mv src src2")
    assert (workspace / "src/ok").exists()
    assert not (workspace / "top").exists()
    assert not (workspace / "private/y").exists()
    assert "workspace-secret" in await said(sandbox, "cat private/key")


async def test_single_files_can_be_granted(start: Start, workspace: Path) -> None:
    sandbox = await start(reads=("docs/a.txt",), writes=("src/main.py",))
    await said(sandbox, "cat docs/a.txt > src/main.py; echo x > src/other")
    assert (workspace / "src/main.py").read_text() == "alpha\n"
    assert not (workspace / "src/other").exists()


async def test_host_secrets_are_out_of_reach(start: Start, workspace: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host-secret")
    for name, target in {
        "abs": secret, "rel": Path("../../secret"), "up": Path("../private/key"), "etc": Path("/etc/shadow"),
        "proc": Path("/proc/1/environ"), "cwd": Path("/proc/1/cwd"), "dir": tmp_path,
    }.items():  # fmt: skip
        (workspace / "src" / name).symlink_to(target)
    sandbox = await start()
    text = await said(sandbox, f"cat src/* src/dir/secret {secret} /workspace/../secret private/key 2>/dev/null")
    assert "secret" not in text
    for name in ("abs", "rel", "up", "etc", "proc", "cwd", "dir", "dir/secret"):
        answer = await sandbox.file("read", path=f"src/{name}", start=1, lines=None, limit=1000)
        assert answer.get("error"), name


async def test_links_out_of_the_workspace_lead_nowhere_even_inside_the_sandbox(start: Start, workspace: Path) -> None:
    (workspace / "src/passwd").symlink_to("/etc/passwd")
    (workspace / "src/usr").symlink_to("/usr")
    (workspace / "src/inner").symlink_to("/workspace/docs/a.txt")
    sandbox = await start()
    args = {"start": 1, "lines": None, "limit": 1000}
    assert (await sandbox.file("read", path="src/passwd", **args))["error"] == "bad-link"
    assert (await sandbox.file("list", path="src/usr", depth=1, limit=10))["error"] == "bad-link"
    assert (await sandbox.file("write", path="src/usr/x", body=b"x")).get("error")
    assert (await sandbox.file("read", path="../../etc/passwd", **args)).get("error")
    assert (await sandbox.file("read", path="/etc/passwd", **args)).get("error")
    assert (await sandbox.file("read", path="src/inner", **args))["body"] == b"alpha\n"


async def test_a_link_planted_at_a_granted_path_is_not_mounted(start: Start, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("host-secret")
    (workspace / "planted").symlink_to(tmp_path / "host")
    sandbox = await start(reads=("planted",), writes=())
    assert await said(sandbox, "ls -A /workspace") == ""
    assert sandbox.notes == ("planted: is a symbolic link, not mounted",)


@pytest.mark.slow
async def test_swapping_a_granted_path_for_a_link_while_starting_wins_nothing(
    start: Start, workspace: Path, tmp_path: Path
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "secret").write_text("host-secret")
    (workspace / "link").symlink_to(host)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (workspace / "docs").rename(workspace / "away")
            (workspace / "link").rename(workspace / "docs")
            (workspace / "docs").rename(workspace / "link")
            (workspace / "away").rename(workspace / "docs")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(15):
            try:
                sandbox = await start(reads=("docs",), writes=())
                text = await said(sandbox, "ls -R /workspace; cat docs/secret")
            except SandboxError as refused:
                assert "changed while the sandbox started" in str(refused)
                continue
            assert "host-secret" not in text
            await sandbox.close()
    finally:
        stop.set()
        thread.join()


@pytest.mark.slow
async def test_swapping_links_under_the_file_worker_wins_nothing(start: Start, workspace: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "f").write_text("host-secret")
    (workspace / "src/real").mkdir()
    (workspace / "src/real/f").write_text("harmless")
    (workspace / "src/d").symlink_to(host)
    sandbox = await start()
    swapping = asyncio.create_task(
        sandbox.run(shell(f"cd src; while :; do ln -sfn {host} d; ln -sfn real d; ln -sfn /etc d; done"), timeout_s=5)
    )
    seen: set[object] = set()
    for number in range(5000):
        answer = await sandbox.file("read", path="src/d/f", start=1, lines=None, limit=1000)
        seen.add(answer["body"] if "error" not in answer else answer["error"])
        await sandbox.file("write", path="src/d/w", body=str(number).encode())
        if number > 300 and len(seen) > 1:
            break
    swapping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await swapping
    assert b"harmless" in seen
    assert seen <= {b"harmless", "bad-link", "not-found"}
    assert names(host) == ["f"]


async def test_there_is_no_network(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        sandbox = await start()
        outcome = await python(
            sandbox,
            "import json, socket\n"
            "def to(address):\n"
            "    try: socket.create_connection(address, 1); return 'connected'\n"
            "    except OSError as e: return e.strerror\n"
            "net = [l.split(':')[0].strip() for l in open('/proc/self/net/dev').readlines()[2:]]\n"
            f"print(json.dumps([to(('127.0.0.1', {port})), net]))",
        )
        assert outcome == ["Address family not supported by protocol", ["lo"]]
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_abstract_sockets_of_the_host_are_out_of_reach(start: Start) -> None:
    name = f"\0toka-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        sandbox = await start()
        source = (
            "import socket, json\n"
            f"try: socket.socket(socket.AF_UNIX).connect({name!r}); print('1')\n"
            "except OSError: print('0')"
        )
        assert await python(sandbox, source) == 0


async def test_the_environment_is_cleared(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    sandbox = await start()
    result = await sandbox.run(["/usr/bin/env"], timeout_s=5, env={"MORE": "1"})
    assert set(result.output.decode().split()) == {
        "PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/tmp", "LANG=C.UTF-8", "MORE=1",
    }  # fmt: skip


async def test_a_command_has_no_privileges(start: Start) -> None:
    sandbox = await start()
    status = dict(
        line.split(":\t", 1) for line in (await said(sandbox, "cat /proc/self/status")).splitlines() if ":\t" in line
    )
    assert {status[k] for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    for act in ("mount -t tmpfs none /tmp", "umount /proc", "mount -o remount,rw /usr", "hostname x", "chroot / true"):
        assert "refused" in await said(sandbox, f"{act} 2>/dev/null && echo did || echo refused"), act


async def test_kernel_settings_cannot_be_written(start: Start) -> None:
    sandbox = await start()
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/proc/1/oom_score_adj",
        "/proc/sys/vm/overcommit_memory",
    ):
        assert "refused" in await said(sandbox, f"echo x 2>/dev/null > {path} && echo wrote || echo refused"), path
    text = await said(
        sandbox, "unshare -rmpf sh -c 'mount -t proc p /tmp && echo x > /tmp/sys/kernel/core_pattern' 2>&1; echo $?"
    )
    assert text.splitlines()[-1] != "0"


async def test_a_command_sees_only_itself(start: Start) -> None:
    sandbox = await start()
    other = asyncio.create_task(sandbox.run(["sleep", "4.75"], timeout_s=5))
    text = await said(
        sandbox,
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ls -l /proc/1/fd /proc/1/cwd 2>&1; "
        "kill -9 1; kill -9 -1; echo still here",
    )
    other.cancel()
    await asyncio.wait({other})
    assert "4.75" not in text
    assert text.count("ermission denied") >= 2
    assert "still here" in text
    assert await said(sandbox, "echo alive") == "alive\n"


async def test_no_descriptor_is_inherited(start: Start, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    fd = os.open(secret, os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        sandbox = await start()
        fds = await python(
            sandbox,
            "import os, json; fds = sorted(os.listdir('/proc/self/fd'))[:-1]\n"
            "print(json.dumps([os.readlink('/proc/self/fd/' + fd) for fd in fds]))",
        )
    finally:
        os.close(fd)
    assert isinstance(fds, list)
    assert fds[0] == "/dev/null"
    assert len(fds) == 3
    assert all(name.startswith("pipe:") for name in fds[1:])


async def test_zombies_are_reaped(start: Start) -> None:
    sandbox = await start()
    text = await said(
        sandbox, "for i in 1 2 3 4 5 6 7 8 9; do (sh -c 'true &') ; done; sleep 0.1; cat /proc/[0-9]*/stat 2>/dev/null"
    )
    assert len(text.splitlines()) <= 4
    assert ") Z " not in text


async def test_memory_of_a_process_is_bounded(start: Start) -> None:
    sandbox = await start(memory_bytes=100 << 20)
    result = await sandbox.run(["/usr/bin/python3", "-c", "bytearray(200 << 20)"], timeout_s=10)
    if sandbox.keeper.holds("memory"):
        assert result.exceeded is not None
        assert result.exceeded.text == "memory limit of 100MB reached"
    else:
        assert b"MemoryError" in result.output
    assert (await sandbox.run(["true"], timeout_s=5)).exit_code == 0


async def test_size_of_a_file_is_bounded(start: Start, workspace: Path) -> None:
    sandbox = await start(file_bytes=1 << 20)
    result = await sandbox.run(["/usr/bin/head", "-c", "2000000", "/dev/zero"], timeout_s=10)
    assert result.exit_code == 0
    result = await sandbox.run(shell("exec cp /dev/zero src/big"), timeout_s=10)
    assert result.exit_code == -25
    assert (workspace / "src/big").stat().st_size == 1 << 20
    answer = await sandbox.file("write", path="src/big2", body=b"x" * (2 << 20))
    assert answer["error"] == "no-space"


async def test_tmp_is_bounded(start: Start) -> None:
    sandbox = await start(tmp_bytes=1 << 20)
    assert "No space left" in await said(
        sandbox, "head -c 3000000 /dev/zero 2>&1 > /tmp/x; head -c 3000000 /dev/zero > /tmp/x"
    )


@pytest.mark.skipif(
    os.getuid() == 0, reason="the kernel exempts root from RLIMIT_NPROC; test_user.py runs this as a user"
)
async def test_a_fork_bomb_is_bounded(start: Start) -> None:
    sandbox = await start(processes=30)
    source = (
        "import os, time\nmade = 0\n"
        "while made < 200:\n"
        "    try:\n        if not os.fork(): time.sleep(60)\n        made += 1\n"
        "    except BlockingIOError: break\n"
        "print(made)"
    )
    made = await python(sandbox, source)
    assert isinstance(made, int)
    assert 10 < made < 30
    assert await said(sandbox, "echo alive") == "alive\n"


async def test_a_program_list_forbids_to_bring_programs_along(start: Start, workspace: Path) -> None:
    (workspace / "src/tool").write_text("#!/bin/sh\necho ran\n")
    (workspace / "src/tool").chmod(0o755)
    result = await (await start(programs=None)).run(["/workspace/src/tool"], timeout_s=5)
    assert result.output == b"ran\n"
    listed = await start(programs=("cp",))
    assert (await listed.run(["/workspace/src/tool"], timeout_s=5)).exit_code == 126
    assert (await listed.run(["cp", "src/tool", "/tmp/t"], timeout_s=5)).exit_code == 0
    assert (await listed.run(["/tmp/t"], timeout_s=5)).exit_code == 126
    assert (await listed.run(shell("true"), timeout_s=5)).exit_code == 127
    assert (await listed.run(shell("/workspace/src/tool"), timeout_s=5, chosen_by="person")).output == b"ran\n"


async def test_tmp_is_private(start: Start) -> None:
    one, two = await start(), await start()
    await said(one, "echo 1 > /tmp/mark")
    assert await said(two, "ls -A /tmp") == ""
    assert await said(one, "cat /tmp/mark") == "1\n"
