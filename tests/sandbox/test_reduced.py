"""The sandbox without namespaces, by real processes: what holds, what is refused, and that all of a tree ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.conftest import living, names, open_fds
from sandbox.test_host import STUBBORN, until_running
from sandbox.test_seccomp import header
from toka.core.capability import Capability
from toka.core.clock import SystemClock
from toka.errors import SandboxError, SandboxUnavailable
from toka.sandbox import landlock, level, reduced, spawn
from toka.sandbox.cgroup_find import Hierarchies
from toka.sandbox.command import CommandResult
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.idmap import agent_uid
from toka.sandbox.keeper import Surroundings
from toka.sandbox.launch import Zygote
from toka.sandbox.level import NO_SANDBOX, Level
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.reduced import ReducedSandbox, reduced_test
from toka.sandbox.selftest import SelfTest
from toka.sandbox.shield import Order, Shield

NETWORK = (Capability("network-access", hosts=("api.example.org",), ports=("443",)),)
ROOT = os.getuid() == 0
Start = Callable[..., Awaitable[ReducedSandbox]]
TRY = """
import ctypes, os, resource, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try:
        act()
        print('DID', name)
    except OSError as error:
        pass
def call(*args):
    if libc.syscall(*(ctypes.c_long(a) for a in args)) < 0:
        raise OSError(ctypes.get_errno(), '')
"""


def uid() -> int:
    return agent_uid() if ROOT else os.getuid()


def own(path: Path) -> None:
    if ROOT:
        subprocess.run(["chown", "-R", str(uid()), str(path)], check=True)


CROWD = """
import subprocess, time
try:
    for _ in range(60):
        subprocess.Popen(['sleep', '9'])
except BlockingIOError:
    pass
time.sleep(0.5)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the agent's user can get to."""
    folder = Path(tempfile.mkdtemp(prefix="toka-reduced-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def workspace(place: Path) -> Path:
    folder = place / "ws"
    for name in ("docs", "src", "private"):
        (folder / name).mkdir(parents=True)
    (folder / "docs/a.txt").write_text("alpha\n")
    (folder / "src/main.py").write_text("print('hi')\n")
    (folder / "private/key").write_text("workspace-secret\n")
    own(folder)
    return folder


@pytest.fixture
async def start(workspace: Path) -> AsyncIterator[Start]:
    started: list[ReducedSandbox] = []

    async def make(level: Level = "reduced", around: Surroundings | None = None, **changes: Any) -> ReducedSandbox:
        options: dict[str, Any] = {"reads": ("docs",), "writes": ("src",), "programs": None, **changes}
        around = around or Surroundings(SystemClock())
        sandbox = await ReducedSandbox.open(workspace, SandboxPolicy(**options), around, level)
        started.append(sandbox)
        return sandbox

    yield make
    for sandbox in started:
        await sandbox.close()


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user that is nobody's business."""
    user = uid() if ROOT else None
    process = subprocess.Popen(["sleep", "60"], user=user, env={"SECRET": "victim-secret"}, cwd="/")
    yield process
    process.kill()
    process.wait()


async def said(sandbox: Sandbox, command: str, **more: Any) -> str:
    result = await sandbox.run(shell(command), timeout_s=20, **more)
    assert result.ended == "exited", result
    return result.output.decode()


async def did(sandbox: Sandbox, tries: str) -> list[str]:
    """What of these tries succeeded."""
    result = await sandbox.run(["python3", "-c", TRY + tries + "\nprint('OVER')"], timeout_s=20)
    lines = result.output.decode().splitlines()
    assert lines[-1] == "OVER", result
    return [line[4:] for line in lines if line.startswith("DID ")]


async def until_gone(marker: str) -> None:
    for _ in range(500):
        if not living(marker):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still there: {living(marker)}")


@pytest.fixture
def marker() -> str:
    return f"986{time.time_ns() % 10**12}{os.getpid()}"


# ---- paths


async def test_granted_paths_are_there_and_nothing_else(start: Start, workspace: Path) -> None:
    sandbox = await start()
    text = await said(
        sandbox,
        "pwd; cat docs/a.txt; echo new > src/new && cat src/new\n"
        "for path in docs/a.txt docs/x x private/x /tmp/x /x /usr/x /etc/x /dev/shm/x /var/tmp/x; do\n"
        "  (echo x > $path) 2>/dev/null && echo WROTE $path; done\n"
        "for path in private/key /etc/shadow /proc/1/environ /proc/1/cmdline /proc/self/maps /proc/net/tcp; do\n"
        "  (cat $path) 2>/dev/null && echo READ $path; done\n"
        "for path in . private / /tmp /home /root /var /run /proc /sys /dev; do\n"
        "  (ls $path) 2>/dev/null && echo LISTED $path; done; rm docs/a.txt 2>/dev/null; mv docs moved 2>/dev/null\n"
        "ln docs/a.txt src/link 2>/dev/null && echo LINKED; echo over",
    )
    assert text == f"{workspace}\nalpha\nnew\nover\n"
    assert names(workspace) == ["docs", "private", "src"]


async def test_a_link_leads_nowhere_and_a_swapped_path_is_not_the_granted_one(start: Start, workspace: Path) -> None:
    (workspace / "src/out").symlink_to(workspace / "private")
    sandbox = await start(writes=("src", "given"))
    assert "workspace-secret" not in await said(sandbox, "cat src/out/key; echo x > src/out/made; true")
    (workspace / "given").rmdir()
    (workspace / "given").symlink_to(workspace / "private")
    assert "workspace-secret" not in await said(sandbox, "cat given/key; echo x > given/made; true")
    assert names(workspace / "private") == ["key"]


async def test_the_existence_of_what_is_elsewhere_can_be_seen_and_that_is_told(start: Start, workspace: Path) -> None:
    """Landlock does not look at stat: if this fails, the kernel became better, and the note can go."""
    sandbox = await start()
    text = await said(sandbox, f"stat -c %s private/key; stat -c %n /proc/{os.getpid()}")
    assert text.splitlines() == [str(len("workspace-secret\n")), f"/proc/{os.getpid()}"]
    notes = " ".join(sandbox.notes)
    assert "names, sizes and times of files elsewhere can be seen" in notes
    assert "ids of other processes can be seen" in notes


async def test_modes_times_and_contents_of_files_elsewhere_stay(start: Start, place: Path) -> None:
    """Landlock looks at none of the calls that act on a path without opening it."""
    outside = place / "outside"
    outside.write_text("precious")
    outside.chmod(0o640 if not ROOT else 0o644)
    before = outside.stat()
    tries = f"""
p = {str(outside)!r}
attempt('chmod', lambda: os.chmod(p, 0o777))
attempt('fchmodat', lambda: os.chmod('outside', 0o777, dir_fd=os.open({str(place)!r}, os.O_PATH)))
attempt('chown', lambda: os.chown(p, os.getuid(), -1))
attempt('lchown', lambda: os.lchown(p, os.getuid(), -1))
attempt('utime', lambda: os.utime(p, (1, 1)))
attempt('setxattr', lambda: os.setxattr(p, 'user.x', b'1'))
attempt('truncate', lambda: os.truncate(p, 0))
attempt('unlink', lambda: os.unlink(p))
attempt('inotify', lambda: call(254 if os.uname().machine == 'x86_64' else 27, libc.inotify_init(), 0, 2))
"""
    assert await did(await start(), tries) == []
    after = outside.stat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (before.st_mode, before.st_size, before.st_mtime_ns)
    assert os.listxattr(outside) == []


async def test_what_programs_need_works(start: Start, workspace: Path) -> None:
    sandbox = await start()
    text = await said(
        sandbox,
        "echo 'echo ran' > src/t.sh; sh src/t.sh; mkdir src/d; mv src/t.sh src/d/; echo a | tr a b > src/p; cat src/p\n"
        "python3 -c 'import subprocess, threading, tempfile; t = threading.Thread(target=print, args=(7,)); t.start();"
        ' t.join(); print(subprocess.run(["echo", "sub"], capture_output=True).stdout); tempfile.TemporaryFile()\'\n'
        "(sleep 30 & kill $!; wait $!; echo $?) 2>&-",  # some shells say `Terminated`
    )
    assert text == "ran\nb\n7\nb'sub\\n'\n143\n"


async def test_file_tools_work_where_granted_only(start: Start, workspace: Path, place: Path) -> None:
    (place / "outside").write_text("outside")
    (workspace / "src/out").symlink_to(place / "outside")
    sandbox = await start()
    read: dict[str, Any] = {"start": 1, "lines": None, "limit": 1000}
    assert (await sandbox.file("read", path="docs/a.txt", **read))["body"] == b"alpha\n"
    assert (await sandbox.file("write", path="src/sub/b.txt", body=b"new"))["created"] is True
    assert (await sandbox.file("list", path="src", depth=2, limit=100))["entries"]
    for path in ("private/key", "src/out", "../outside", "/etc/passwd", str(place / "outside")):
        assert (await sandbox.file("read", path=path, **read))["error"] in ("denied", "bad-link"), path
    for path in ("docs/a.txt", "new", "../outside", "src/out", "private/key"):
        assert "error" in await sandbox.file("write", path=path, body=b"x"), path
    assert (place / "outside").read_text() == "outside"
    assert (workspace / "docs/a.txt").read_text() == "alpha\n"


# ---- protected paths


@pytest.fixture
def repository(workspace: Path) -> Path:
    for folder in (".git/hooks", ".git/objects", ".github/workflows", "src/.toka"):
        (workspace / folder).mkdir(parents=True)
    for file in (".git/config", ".git/hooks/sample", ".git/HEAD", ".github/workflows/ci.yml", ".github/other",
                 "toka.toml", "top.txt", "src/spec.yaml", "src/.toka/state"):  # fmt: skip
        (workspace / file).write_text("as it was\n")
    own(workspace)
    return workspace


ATTACKS = """
for path in toka.toml .git/config .git/hooks/sample .github/workflows/ci.yml src/spec.yaml; do
  (echo x >> $path) 2>/dev/null && echo WROTE $path; rm -f $path 2>/dev/null && echo REMOVED $path; done
for path in .envrc .mcp.json .vscode/tasks.json .git/hooks/pre-commit .github/workflows/new.yml new .git/new; do
  (mkdir -p $(dirname $path); echo x > $path) 2>/dev/null && echo MADE $path; done
for path in .git .git/hooks .github .github/workflows src/spec.yaml toka.toml; do
  mv $path $path.2 2>/dev/null && echo MOVED $path; done
ln .git/config src/sub/linked 2>/dev/null && echo LINKED; mv src/sub src/spec.yaml 2>/dev/null && echo OVER
mv docs/a.txt .git/hooks/pre-push 2>/dev/null && echo MOVED in; cp -f docs/a.txt toka.toml 2>/dev/null && echo COPIED
ln -sf /etc/passwd toka.toml 2>/dev/null && echo REPLACED
"""


async def test_protected_paths_stay_in_a_wide_grant(start: Start, repository: Path) -> None:
    """Landlock takes nothing out of a wider rule: what lies beside protected paths is granted one by one."""
    (repository / "src/sub").mkdir()
    own(repository)
    sandbox = await start(reads=(), writes=(".",), git=True, protected=("src/spec.yaml",))
    assert await said(sandbox, ATTACKS + "true") == ""
    for path in ("toka.toml", ".git/config", ".git/hooks/sample", ".github/workflows/ci.yml", "src/spec.yaml"):
        assert (repository / path).read_text() == "as it was\n", path
    assert names(repository / ".git/hooks") == ["sample"]
    works = (
        "echo x > top.txt; echo x > docs/new; echo x > src/main.py; echo x > src/sub/new; echo x > .git/objects/o; ls"
    )
    assert "top.txt" in await said(sandbox, works)
    assert (repository / "top.txt").read_text() == (repository / ".git/objects/o").read_text() == "x\n"
    told = [note.partition(":")[0] for note in sandbox.notes if "holds protected paths" in note]
    assert told == [".", ".git", ".github", "src"]


@pytest.mark.parametrize("access", [{"writes": (".",)}, {"reads": (".",), "writes": ()}], ids=["write", "read"])
async def test_a_hidden_folder_cannot_be_read_although_all_around_can(
    start: Start, repository: Path, access: dict[str, Any]
) -> None:
    sandbox = await start(**{"reads": (), **access}, hidden=("src/.toka",))
    text = await said(
        sandbox, "cat src/.toka/state; ls src/.toka; ls src; ls; cat src/main.py top.txt", env={"LC_ALL": "C"}
    )
    assert text.count("Permission denied") == 4
    assert text.endswith("print('hi')\nas it was\n")
    assert await reduced_test(sandbox, SystemClock())


# ---- programs


async def test_programs_that_are_not_listed_can_neither_be_executed_nor_read(start: Start, workspace: Path) -> None:
    sandbox = await start(programs=("sh", "cat", "echo"))
    loader = next(p for p in level.LOADERS if Path(p).exists())
    text = await said(
        sandbox,
        f"cat docs/a.txt; /usr/bin/id; {loader} /usr/bin/id; cat /usr/bin/id; cat /usr/bin/id > src/id\n"
        "/usr/sbin/chroot; cat /usr/bin/cat > src/cat; /usr/bin/python3 -c 'print(5)'; echo over",
    )
    assert text.startswith("alpha\n")
    assert text.endswith("over\n")
    assert "uid=" not in text
    assert "5" not in text.splitlines()
    assert "the list of programs does not hold" in " ".join(sandbox.notes)
    assert (await sandbox.run(["/usr/bin/id"], timeout_s=5, chosen_by="person")).exit_code == 0


async def test_a_refused_program_is_not_there_under_any_name(start: Start) -> None:
    perl = Path("/usr/bin/perl")
    others = [str(p) for p in perl.parent.glob("perl5*") if p.samefile(perl)]
    sandbox = await start(programs=None, refused_programs=("perl", "id"))
    command = f"for p in id perl {' '.join(others)}; do $p --version; done; ls src > src/x && echo listed"
    text = await said(sandbox, command)
    assert [line for line in text.splitlines() if "ermission denied" not in line] == ["listed"]


# ---- other processes


async def test_other_processes_of_the_same_user_are_out_of_reach(start: Start, victim: subprocess.Popen[bytes]) -> None:
    tries = f"""
import signal
v = {victim.pid}
x86 = os.uname().machine == 'x86_64'
for pid in (v, os.getppid(), {os.getpid()}):
    attempt('kill', lambda: os.kill(pid, 0))
    attempt('pidfd', lambda: signal.pidfd_send_signal(os.pidfd_open(pid), 0))
    attempt('prlimit', lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE))
    attempt('prlimit set', lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0)))
    attempt('affinity', lambda: os.sched_setaffinity(pid, {{0}}))
    attempt('scheduler', lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))
    attempt('priority', lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
    attempt('ioprio', lambda: call(251 if x86 else 30, 1, pid, 3 << 13))
    attempt('ptrace', lambda: call(101 if x86 else 117, 16, pid, 0, 0))
    for name in ('environ', 'mem', 'maps', 'cmdline', 'status', 'stat'):
        attempt(name, lambda: open('/proc/%d/%s' % (pid, name), 'rb').read(1))
    for name in ('exe', 'cwd', 'root'):
        attempt(name, lambda: os.readlink('/proc/%d/%s' % (pid, name)))
attempt('kill all', lambda: os.kill(-1, 0))
attempt('priority of all', lambda: os.setpriority(os.PRIO_USER, 0, 19))
attempt('ioprio of all', lambda: call(251 if x86 else 30, 3, 0, 3 << 13))
r, w = os.pipe()
import fcntl
attempt('owner', lambda: fcntl.fcntl(r, 8, v))
attempt('signal', lambda: fcntl.fcntl(r, 10, 9))
attempt('ioctl owner', lambda: fcntl.ioctl(socket.socketpair()[0], 0x8901, v.to_bytes(4, 'little')))
attempt('shm', lambda: call(29 if x86 else 194, 0, 4096, 0o1600))
attempt('sem', lambda: call(64 if x86 else 190, 0, 1, 0o1600))
attempt('msg', lambda: call(68 if x86 else 186, 0, 0o1600))
"""
    sandbox = await start()
    found = await did(sandbox, tries)
    # A process may signal those of its own domain: "all" are those, none here but itself.
    assert [name for name in found if name != "kill all"] == []
    assert victim.poll() is None


async def test_two_commands_of_one_agent_do_not_reach_each_other(start: Start, marker: str) -> None:
    sandbox = await start()
    other = asyncio.ensure_future(sandbox.run(["sleep", marker], timeout_s=20))
    await until_running(marker)
    pid = living(marker)[0]
    assert await did(sandbox, f"attempt('kill', lambda: os.kill({pid}, 9))") == []
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    assert living(marker) == []


@pytest.mark.parametrize("version", [1, 2, 3, 5])
async def test_older_kernels_get_what_landlock_lacks_from_the_filter(
    start: Start, workspace: Path, monkeypatch: pytest.MonkeyPatch, victim: subprocess.Popen[bytes], version: int
) -> None:
    """GHSA-72w7-mf9g-733p: a sandbox that was open on a kernel without the newest Landlock."""
    monkeypatch.setattr(landlock, "abi", lambda: version)
    sandbox = await start()
    await reduced_test(sandbox, SystemClock())
    tries = f"""
attempt('kill', lambda: os.kill({victim.pid}, 9))
attempt('kill all', lambda: os.kill(-1, 9))
attempt('truncate', lambda: os.truncate('docs/a.txt', 0))
attempt('open', lambda: os.open('docs/a.txt', os.O_RDONLY | os.O_TRUNC))
attempt('write', lambda: open('docs/a.txt', 'w'))
attempt('abstract', lambda: socket.socket(socket.AF_UNIX))
"""
    assert await did(sandbox, tries) == []
    assert (workspace / "docs/a.txt").read_text() == "alpha\n"
    assert victim.poll() is None
    assert await said(sandbox, "echo y > src/y; cat src/y") == "y\n"


async def test_nothing_is_inherited(start: Start) -> None:
    """Least of all the rules: whoever has them can add to what later commands may do."""
    tries = "for fd in range(3, 1024): attempt('fd %d' % fd, lambda: os.fstat(fd))"
    for chosen_by in ("agent", "person"):
        result = await (await start()).run(
            ["python3", "-c", TRY + tries], env={"PYTHONDONTWRITEBYTECODE": "1"}, timeout_s=20, chosen_by=chosen_by
        )
        assert result.output == b"", result


async def test_the_kernel_is_out_of_reach(start: Start) -> None:
    tries = """
attempt('unshare', lambda: call(272 if os.uname().machine == 'x86_64' else 97, 0x10000000))
attempt('chroot', lambda: os.chroot('/usr'))
attempt('netlink', lambda: socket.socket(16, socket.SOCK_RAW))
attempt('vsock', lambda: socket.socket(40, socket.SOCK_STREAM))
attempt('unix', lambda: socket.socket(socket.AF_UNIX))
attempt('tcp', lambda: socket.socket(socket.AF_INET))
attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW))
attempt('mptcp', lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
attempt('setuid', lambda: os.setuid(0))
print(open('/proc/version').read()[:5])
"""
    assert await did(await start(), tries) == []


# ---- network


@pytest.fixture
def elsewhere() -> Iterator[Callable[[str, int], list[socket.socket]]]:
    """Listens on an address of the loopback; what came in."""
    opened: list[socket.socket] = []

    def listen(host: str, port: int) -> list[socket.socket]:
        opened.append(socket.create_server((host, port)))
        return opened

    yield listen
    for one in opened:
        one.close()


async def test_only_the_agents_proxy_can_be_reached(
    start: Start, elsewhere: Callable[[str, int], list[socket.socket]]
) -> None:
    """Landlock knows ports and no addresses: the same port of another address must not be reachable."""
    sandbox = await start(network=NETWORK)
    await reduced_test(sandbox, SystemClock())
    port = sandbox.port
    heard = elsewhere("127.0.0.2", port)
    other = elsewhere("127.0.0.1", 0)[-1].getsockname()[1]
    tries = f"""
import struct, threading
def to(host, port):
    s = socket.socket(); s.settimeout(5); s.connect((host, port)); return s
attempt('other address', lambda: to('127.0.0.2', {port}))
attempt('other port', lambda: to('127.0.0.1', {other}))
attempt('fast open', lambda: socket.socket().sendto(b'x', 0x20000000, ('127.0.0.2', {port})))
attempt('fast open sendmsg', lambda: socket.socket().sendmsg([b'x'], [], 0x20000000, ('127.0.0.1', {other})))
attempt('mptcp', lambda: socket.socket(2, 1, 262))
attempt('sctp', lambda: socket.socket(2, 1, 132))
attempt('udp', lambda: socket.socket(2, 2))
attempt('v6', lambda: socket.socket(10, 1))
attempt('bind', lambda: socket.socket().bind(('127.0.0.1', 0)))
attempt('listen', lambda: socket.socket().listen())
attempt('no address', lambda: call(42 if os.uname().machine == 'x86_64' else 203, socket.socket().fileno(), -1, 16))
def again():
    s = to('127.0.0.1', {port})
    libc.connect(s.fileno(), struct.pack('=HHIQ', 0, 0, 0, 0), 16)
    s.connect(('127.0.0.2', {port}))
attempt('again', again)
peers = []
t = threading.Thread(target=lambda: peers.append(to('127.0.0.1', {port}).getpeername()[0]))
t.start(), t.join()
s = to('127.0.0.1', {port}); s.sendall(b'CONNECT evil.example.com:443 HTTP/1.1\\r\\n\\r\\n'); reply = s.recv(100)
print('DID', peers, b' 403 ' in reply)
"""
    assert await did(sandbox, tries) == ["['127.0.0.1'] True"], "what may be done, from any thread, and nothing else"
    for one in heard:
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            one.accept()
    text = await said(
        sandbox, "python3 -c \"import urllib.request as u; u.urlopen('https://evil.example.com')\" 2>&1 | tail -1"
    )
    assert "403" in text


async def test_threads_and_children_reach_the_proxy_too(start: Start) -> None:
    sandbox = await start(network=NETWORK)
    code = """
import os, socket, threading
port = int(os.environ['HTTPS_PROXY'].rpartition(':')[2])
def ask():
    s = socket.create_connection(('127.0.0.1', port), 5)
    s.sendall(b'CONNECT evil.example.com:443 HTTP/1.1\\r\\n\\r\\n')
    os.write(1, s.recv(12) + b'\\n')
t = threading.Thread(target=ask); t.start(); t.join()
if os.fork() == 0:
    ask(); os._exit(0)
os.wait()
"""
    result = await sandbox.run(["python3", "-c", code], timeout_s=20)
    assert result.output.splitlines() == [b"HTTP/1.1 403"] * 2, result


@pytest.mark.parametrize("version", [1, 3])
async def test_network_on_a_kernel_that_cannot_hold_it_is_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: version)
    with pytest.raises(SandboxUnavailable, match="newer Landlock"):
        await start(network=NETWORK)


# ---- ends


@pytest.fixture(params=["reduced", "none"])
def any_level(request: pytest.FixtureRequest) -> Level:
    return request.param


async def test_a_deadline_kills_the_whole_stubborn_tree(start: Start, marker: str, any_level: Level) -> None:
    sandbox = await start(any_level)
    result = await sandbox.run(shell(STUBBORN.format(marker)), timeout_s=0.3)
    assert (result.exit_code, result.ended) == (None, "timeout")
    assert living(marker) == []
    assert result.wall_s < 3


async def test_what_a_command_leaves_behind_dies_with_it(start: Start, marker: str, any_level: Level) -> None:
    sandbox = await start(any_level)
    result = await sandbox.run(shell(f"setsid sleep {marker} & (nohup sleep {marker} &) ; echo done"), timeout_s=5)
    assert (result.ended, result.exit_code, result.output) == ("exited", 0, b"done\n")
    assert living(marker) == []


CHAIN = """
import os, sys, time
end = time.monotonic() + 15
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
"""


@pytest.mark.parametrize("forks", [CHAIN, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"])
async def test_a_tree_that_never_stands_still_ends(start: Start, marker: str, forks: str) -> None:
    sandbox = await start(processes=64)
    result = await sandbox.run(["python3", "-c", forks, marker], timeout_s=0.5 if "try" in forks else 5)
    assert result.ended in ("timeout", "exited")
    assert living(marker) == []


async def test_a_child_that_ends_without_a_word_is_found(start: Start, marker: str) -> None:
    """Children that do not send SIGCHLD are not among those that an ordinary wait tells of."""
    clone = 56 if os.uname().machine == "x86_64" else 220
    code = f"""
import ctypes, os
if not ctypes.CDLL(None).syscall({clone}, 0, 0, 0, 0, 0):
    os.execvp('sleep', ['sleep', '{marker}'])
"""
    assert (await (await start()).run(["python3", "-c", code], timeout_s=10)).ended == "exited"
    assert living(marker) == []


@pytest.mark.parametrize("which", ["init", "guardian", "both"])
async def test_a_trusted_process_that_is_killed_leaves_nothing(start: Start, marker: str, which: str) -> None:
    sandbox = await start()
    running = asyncio.ensure_future(sandbox.run(shell(STUBBORN.format(marker)), timeout_s=30))
    await until_running(marker, 3)
    guardian, *inits = sandbox.processes()
    for pid in {"init": inits, "guardian": [guardian], "both": [*inits[:0], guardian]}[which]:
        os.kill(pid, signal.SIGKILL)
    result = await running
    assert result.ended in ("killed", "lost")
    await until_gone(marker)
    assert await said(sandbox, "echo again") == "again\n"


async def test_cancelling_and_closing_kill(start: Start, marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toka.sandbox.execution.TERM_S", 0.05)
    sandbox = await start()
    running = asyncio.ensure_future(sandbox.run(shell(STUBBORN.format(marker)), timeout_s=30))
    await until_running(marker, 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert living(marker) == []
    running = asyncio.ensure_future(sandbox.run(shell(STUBBORN.format(marker)), timeout_s=30))
    await until_running(marker, 3)
    await sandbox.close()
    assert (await running).ended in ("lost", "killed")
    await until_gone(marker)
    with pytest.raises(SandboxError, match="closed"):
        await sandbox.run(["true"], timeout_s=5)


async def test_a_runtime_that_is_killed_leaves_nothing(workspace: Path, marker: str) -> None:
    code = f"""
import asyncio
from pathlib import Path
from toka.core.clock import SystemClock
from toka.sandbox.keeper import Surroundings
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.reduced import ReducedSandbox
async def main():
    policy = SandboxPolicy(writes=("src",), programs=None)
    sandbox = await ReducedSandbox.open(Path({str(workspace)!r}), policy, Surroundings(SystemClock()), "reduced")
    await sandbox.run(["/bin/sh", "-c", {STUBBORN.format(marker)!r}], timeout_s=60)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    await until_running(marker, 3)
    process.kill()
    process.wait()
    await until_gone(marker)


async def test_floods_and_limits_hold(start: Start, any_level: Level) -> None:
    sandbox = await start(any_level, file_bytes=1 << 20, memory_bytes=128 << 20)
    assert (await sandbox.run(["yes"], timeout_s=30)).ended == "flood"
    kept = await sandbox.run(["head", "-c", "3000000", "/dev/zero"], timeout_s=5, output_limit=1000)
    assert (len(kept.output), kept.dropped) == (1000, 2_999_000)
    big = await sandbox.run(shell("head -c 3000000 /dev/zero > src/big"), timeout_s=5)
    assert big.exit_code != 0
    eats = await sandbox.run(
        ["python3", "-c", "b = bytearray(400 << 20); b[::4096] = b'x' * len(b[::4096])"], timeout_s=20
    )
    assert eats.exit_code != 0


async def test_processes_are_bounded_without_control_groups(start: Start) -> None:
    around = Surroundings(SystemClock(), hierarchies=Hierarchies.find(mountinfo="", own=""))
    sandbox = await start(around=around, processes=20)
    code = """
import os, time
n = 0
try:
    while n < 300:
        if not os.fork():
            time.sleep(30)
        n += 1
except OSError:
    pass
print(n)
"""
    made: list[int] = []
    while len(made) < 5 and not any(0 < n < 60 for n in made):  # other tests have processes of this user, too
        made.append(int((await sandbox.run(["python3", "-c", code], timeout_s=20)).output))
    assert any(0 < n < 60 for n in made), made
    held = {e.limit: e for e in sandbox.keeper.enforced}
    assert (held["processes"].strict, "other processes" in held["processes"].how) == (False, True)


async def test_the_limit_of_processes_is_told_as_far_as_it_is_seen(start: Start) -> None:
    around = Surroundings(SystemClock(), hierarchies=Hierarchies.find(mountinfo="", own=""))
    sandbox = await start(around=around, processes=20)
    few = await sandbox.run(shell("for i in $(seq 8); do sleep 0.5 & done; wait"), timeout_s=20)
    assert few.exceeded is None
    many = [
        await sandbox.run(shell("for i in $(seq 30); do sleep 0.5 & done; wait"), timeout_s=20),
        await sandbox.run(["python3", "-c", CROWD], timeout_s=20),
    ]
    for over in (result.exceeded for result in many):  # other tests have processes of this user, too
        assert over is None or (over.kind, over.limit, over.unit) == ("processes", 20, "processes")
        assert over is None or over.used >= 20


async def test_what_a_killed_command_used_is_told_whole(start: Start, any_level: Level) -> None:
    """Here somebody waits for all that is killed."""
    around = Surroundings(SystemClock(), hierarchies=Hierarchies.find(mountinfo="", own=""))
    sandbox = await start(any_level, around=around)
    heard: list[CommandResult] = []
    line = "(while :; do :; done) & (while :; do :; done) & wait"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await sandbox.run(shell(line), timeout_s=20, told=heard.append)
    await sandbox.run(shell(line), timeout_s=1.5, told=heard.append)
    assert [result.ended for result in heard] == ["killed", "timeout"]
    assert all(result.cpu_s > 0.4 for result in heard), heard


async def test_nothing_is_left_when_it_has_closed(start: Start) -> None:
    sandbox = await start("none")
    await sandbox.close()
    before = open_fds()
    sandbox = await start(network=NETWORK)
    home = (await said(sandbox, "mkdir $HOME/d; echo x > $TMPDIR/d/x; echo $HOME")).strip()
    assert Path(home).is_dir()
    await sandbox.file("list", path="src", depth=1, limit=10)
    await sandbox.close()
    await sandbox.close()
    assert not Path(home).exists()
    await asyncio.sleep(0.05)
    assert open_fds() <= before + 1


# ---- levels


async def test_a_kernel_without_landlock_is_an_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="needs Landlock"):
        await start()


async def test_a_full_sandbox_that_cannot_start_is_no_reduced_one(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise SandboxUnavailable("bwrap is not installed")

    monkeypatch.setattr(spawn, "find_bwrap", missing)
    monkeypatch.setattr(ReducedSandbox, "open", None)
    with pytest.raises(SandboxUnavailable, match="bwrap"):
        await Shield(SystemClock()).start(Order(workspace, SandboxPolicy()))


async def test_a_workspace_that_the_agents_user_cannot_write_is_refused(start: Start, workspace: Path) -> None:
    (workspace / "src").chmod(0o555)
    if ROOT:
        os.chown(workspace / "src", 0, 0)
    with pytest.raises(SandboxError, match=f"not writable for user id {uid()}") as caught:
        await start()
    assert ("chown" in (caught.value.hint or "")) == ROOT
    workspace.chmod(0o700 if ROOT else 0)
    os.chown(workspace, 0 if ROOT else -1, -1)
    try:
        with pytest.raises(SandboxError, match=r"closed to user id|cannot be opened"):
            await start(writes=())
    finally:
        workspace.chmod(0o755)


async def test_a_shield_gives_the_level_that_it_was_told_and_its_record_says_so(workspace: Path) -> None:
    order = Order(workspace, SandboxPolicy(writes=("src",), programs=None))
    for wanted, levels, note in (("reduced", ("reduced",), "reduced sandbox"), ("none", ("none",), NO_SANDBOX)):
        sandbox, test = await Shield(SystemClock(), level=wanted).start(order)
        try:
            assert test is not None
            assert test.to_json()["level"] in levels
            assert sandbox.notes[0].startswith(note)
            assert test.uid == (uid() if wanted == "reduced" else os.getuid())
        finally:
            await sandbox.close()


async def test_without_a_sandbox_a_command_can_do_what_its_user_can(start: Start, place: Path) -> None:
    (place / "outside").write_text("outside\n")
    sandbox = await start("none", network=NETWORK)
    text = await said(
        sandbox, f"id -u; cat {place}/outside; echo x > {place}/made; ls /proc/1 > /dev/null && echo seen"
    )
    assert text == f"{os.getuid()}\noutside\nseen\n"
    assert "PROXY" not in await said(sandbox, "env")
    assert sandbox.notes == (NO_SANDBOX, *sandbox.keeper.notes)
    assert (await sandbox.file("write", path="top.txt", body=b"x"))["created"] is True


# ---- the self-test


async def objections(sandbox: ReducedSandbox) -> str:
    with pytest.raises(SandboxError, match="does not hold") as caught:
        await reduced_test(sandbox, SystemClock())
    return str(caught.value)


@pytest.mark.parametrize(
    "policy",
    [{}, {"reads": (), "writes": ()}, {"writes": (".",), "reads": (), "git": True}, {"programs": ("ls",)},
     {"programs": ()}, {"network": NETWORK}],
    ids=["usual", "nothing", "all of it", "programs", "no programs", "network"],
)  # fmt: skip
async def test_a_reduced_sandbox_of_this_machine_passes(start: Start, policy: dict[str, Any]) -> None:
    sandbox = await start(**policy)
    passed = await reduced_test(sandbox, SystemClock())
    assert isinstance(passed, SelfTest)
    assert (passed.uid, passed.layers, passed.landlock) == (uid(), reduced.LAYERS, landlock.abi())
    assert json.loads(json.dumps(passed.to_json()))["level"] == "reduced"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('    kernel.call(kernel.SYS_LANDLOCK_RESTRICT, "landlock", profile["rules"], 0)\n', "", "read /tmp"),
        ("        kernel.seccomp(second)\n", "        pass\n", "shared memory"),
        ("    kernel.seccomp(first)\n", "", "tracing"),
        ("    kernel.seccomp(first)\n", "    if 0: pass\n", "unix sockets"),
    ],
)
async def test_a_layer_that_is_missing_is_found(
    start: Start, monkeypatch: pytest.MonkeyPatch, old: str, new: str, found: str
) -> None:
    archive = reduced._archive

    def broken() -> bytes:
        text = Path(reduced.__file__).with_name("reduced_child.py").read_text()
        assert text.count(old) == 1, old
        real = Path.read_bytes
        with monkeypatch.context() as patch:
            patch.setattr(
                Path,
                "read_bytes",
                lambda p: text.replace(old, new).encode() if p.name == "reduced_child.py" else real(p),
            )
            return archive()

    monkeypatch.setattr(reduced, "_archive", broken)
    assert found in await objections(await start())


async def test_rules_that_are_too_wide_are_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reduced.system_rules
    monkeypatch.setattr(reduced, "system_rules", lambda *a: {**real(*a), "/": landlock.READ})
    assert "read /var" in await objections(await start())
    monkeypatch.setattr(reduced, "system_rules", lambda *a: {**real(*a), "/dev/shm": landlock.WRITE})
    there = Path("/dev/shm/.toka-probe")
    there.touch()  # what a process of somebody else's left must not look like a refusal
    try:
        assert "write /dev/shm" in await objections(await start())
        assert [p.name for p in there.parent.glob(".toka-probe*")] == [there.name], "nothing is left behind"
    finally:
        there.unlink()


async def test_a_connection_past_the_proxy_is_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    real = level._cases
    monkeypatch.setattr(level, "_cases", lambda *a, **k: {**real(*a, **k), "connect": [level._accept()]})
    assert "connect: is not refused" in await objections(await start(network=NETWORK))


async def test_an_agents_user_that_is_root_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ROOT:
        monkeypatch.setattr(reduced, "agent_uid", lambda: 0)
        return
    monkeypatch.setattr(reduced, "agent_uid", lambda: 0)
    with pytest.raises(SandboxError, match="not the agent's user"):
        await start()


# ---- the second filter


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_number_is_the_kernels(machine: str) -> None:
    known = header(machine)
    column = ("x86_64", "aarch64").index(machine)
    tables = (level.REFUSED, level.MARKS, level.SIGNALS, level.OTHERS, level.ARGUED)
    ours = {name: pair[column] for table in tables for name, pair in table.items()}
    assert not {name: number for name, number in ours.items() if name in known and known[name] != number}
    newer = {name for name, number in ours.items() if number is not None} - set(known)
    assert newer <= {"fchmodat2", "setxattrat", "removexattrat", "file_setattr"}, newer


def test_the_zygotes_host_side_is_shared() -> None:
    assert issubclass(reduced.Tree, Zygote)
    assert issubclass(ReducedSandbox, Sandbox)


if ROOT:

    @pytest.mark.slow
    @pytest.mark.timeout(400)
    def test_all_of_it_holds_for_an_ordinary_user(
        tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sandbox import test_user

        monkeypatch.setattr(test_user, "SUITES", ("test_reduced.py",))
        test_user.test_all_of_it_holds_for_an_ordinary_user(tmp_path_factory)


async def test_without_a_sandbox_nothing_holds_the_network(start: Start) -> None:
    sandbox = await start("none", network_bps=1000, network_bytes=1000)
    (network,) = [e for e in sandbox.keeper.enforced if e.limit == "network"]
    assert not network.strict and "past the proxy" in network.how
    (held,) = [e for e in (await start("reduced", network_bps=1000)).keeper.enforced if e.limit == "network"]
    assert held.strict
