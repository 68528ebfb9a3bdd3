"""What a hostile program tries, for real, inside real sandboxes.

| bullet of the design | tested in |
| --- | --- |
| system read-only; secrets, homes, /run absent | test_confinement, and here: names of the machine, sockets of daemons |
| symlink leaks, symlink-swap races (commands, starts, file tools) | test_confinement, test_mounts |
| hardlink leaks, handles, magic links | here |
| hooks and settings, rename or replace of protected paths and their parents, own spec | test_protect, and here |
| capabilities, no_new_privs, seccomp mode | test_confinement, test_selftest, and here: they cannot be taken back |
| namespaces, mounts, io_uring, bpf, perf, keyctl, modules, kexec, clocks, ptrace, memfd | here; numbers: test_seccomp |
| TIOCSTI with high bits, 32-bit and x32 calls, socket families, mknod, set-user-ID, /sys, /dev, /proc/sys | here |
| /proc/1, kill -1, zombies, environment, inherited descriptors | test_confinement, test_launch, and here |
| another agent, what outlives a command | here; daemons and trees that ignore SIGTERM: test_host |
| every limit | test_limits; output flood and one endless line: test_host |
| the network | test_network; tricks against the proxy: test_egress, test_egress_rules |
| program list, dropped ELF, ld.so | here; scripts: test_confinement |
| fail closed: no bwrap, bad mount, planted link | test_launch, test_confinement, test_protect |
| fail closed: dead zygote, host killed | test_host, and here; cgroup killed: test_limits; old Landlock: test_selftest |

Each try is made with arguments with which it would succeed were it not for the sandbox, where that is harmless.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import textwrap
import uuid
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from sandbox.conftest import Start, change, living, names
from sandbox.test_confinement import said
from sandbox.test_protect import WHOLE, tries
from toka.core.capability import Capability
from toka.errors import SandboxError, SandboxUnavailable
from toka.sandbox import profile
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.profile import HIDDEN, LOADERS
from toka.sandbox.seccomp import ABSENT, DENIED, numbers

MACHINE = os.uname().machine
CALLS = {
    "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "capset": (126, 91), "chroot": (161, 51),
    "clock_adjtime": (305, 266), "clock_settime": (227, 112), "clone": (56, 220), "clone3": (435, 435),
    "delete_module": (176, 106), "execveat": (322, 281), "fanotify_init": (300, 262), "finit_module": (313, 273),
    "fsopen": (430, 430), "fspick": (433, 433), "init_module": (175, 105), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "io_uring_setup": (425, 425), "ioctl": (16, 29), "kcmp": (312, 272),
    "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219), "memfd_secret": (447, 447),
    "mknodat": (259, 33), "mount": (165, 40), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "open_tree": (428, 428),
    "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438), "pivot_root": (155, 41),
    "prctl": (157, 167), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "renameat2": (316, 276), "request_key": (249, 218), "set_mempolicy": (238, 237), "setns": (308, 268),
    "settimeofday": (164, 170), "socket": (41, 198), "swapon": (167, 224), "syslog": (103, 116),
    "umount2": (166, 39), "unshare": (272, 97), "userfaultfd": (323, 282), "vmsplice": (278, 75),
}  # fmt: skip
"""Numbers of system calls on x86_64 and aarch64, written down once more: not those that the filter is made of."""
NEW = {
    "mount": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000, "user": 0x10000000,
    "pid": 0x20000000, "net": 0x40000000,
}  # fmt: skip
"""CLONE_NEW*."""
LOADER = next(path for path in LOADERS if Path(path).exists())
NETWORK = {"network": (Capability("network-access", hosts=("api.example.org",), ports=("443",)),)}

RAW = f"""
import ctypes, errno, json, mmap, os, signal, socket, stat, struct, sys
N = {json.dumps({name: pair[MACHINE == "aarch64"] for name, pair in CALLS.items()})}
found = {{}}
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def word(a):
    return ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) if isinstance(a, bytes) else a
def call(number, *args):
    "The name of the error of a raw system call, or that it did."
    ctypes.set_errno(0)
    words = [word(a) for a in (N[number] if isinstance(number, str) else number, *args)]
    if libc.syscall(*words) >= 0:
        return "did"
    code = ctypes.get_errno()
    return errno.errorcode.get(code, str(code))
def tried(act, *args, **options):
    "The same of a function of Python's."
    try:
        act(*args, **options)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "did"
def looked(path, how=os.O_RDONLY):
    def look():
        fd = os.open(path, how)
        try:
            os.listdir(fd) if os.path.isdir(path) else os.read(fd, 1) if how == os.O_RDONLY else None
        finally:
            os.close(fd)
    return tried(look)
"""


async def inside(sandbox: Sandbox, body: str, python: str = "/usr/bin/python3", **options: Any) -> dict[str, Any]:
    """What a program found out: it runs after `RAW` and fills `found`."""
    source = f"{RAW}\n{textwrap.dedent(body)}\nprint(json.dumps(found))"
    result = await sandbox.run([python, "-I", "-S", "-c", source], timeout_s=20, **options)
    assert result.exit_code == 0, result
    return json.loads(result.output)


def did(found: dict[str, Any]) -> dict[str, Any]:
    """The tries that were not refused."""
    return {what: how for what, how in found.items() if how == "did"}


# ---- the kernel's calls


@pytest.mark.parametrize("programs", [None, ("python3",)], ids=["any program", "a list"])
async def test_every_call_of_the_table_is_answered_by_the_filter(start: Start, programs: tuple[str, ...]) -> None:
    """With arguments that mean nothing: only the filter answers all of them alike."""
    sandbox = await start(programs=programs)
    refused = {name: number for name, number in numbers(MACHINE).items() if name in {**DENIED, **ABSENT}}
    found = await inside(
        sandbox,
        f"for name, number in {refused}.items(): found[name] = call(number, *[-1] * 6)",
        python="python3" if programs else "/usr/bin/python3",
    )
    assert found == {name: "ENOSYS" if name in ABSENT else "EPERM" for name in refused}


async def test_no_namespace_can_be_made_or_entered(start: Start) -> None:
    found = await inside(
        await start(),
        f"""
        before = [os.readlink('/proc/self/ns/' + n) for n in sorted(os.listdir('/proc/self/ns'))]
        for name, flag in {NEW}.items():
            found['unshare ' + name] = call('unshare', flag)
            child = libc.syscall(ctypes.c_long(N['clone']), *map(ctypes.c_long, (flag | signal.SIGCHLD, 0, 0, 0, 0)))
            if child == 0:
                os._exit(0)
            found['clone ' + name] = 'did' if child > 0 else errno.errorcode[ctypes.get_errno()]
        arguments = struct.pack('=8Q', 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
        found['clone3'] = call('clone3', arguments, len(arguments))
        for name in ('user', 'mnt', 'net', 'pid'):
            found['setns ' + name] = call('setns', os.open('/proc/self/ns/' + name, os.O_RDONLY), 0)
        found['setns by pidfd'] = call('setns', os.pidfd_open(os.getpid()), 0x10000000)
        now = [os.readlink('/proc/self/ns/' + n) for n in sorted(os.listdir('/proc/self/ns'))]
        found['changed'] = 'did' if now != before else ''
        """,
    )
    assert found.pop("clone3") == "ENOSYS"
    assert found.pop("changed") == ""
    assert set(found.values()) == {"EPERM"}, found


async def test_nothing_can_be_mounted_or_uncovered(start: Start) -> None:
    found = await inside(
        await start(),
        """
        os.mkdir('/tmp/m')
        found['mount tmpfs'] = call('mount', b'none', b'/tmp/m', b'tmpfs', 0, None)
        found['mount proc'] = call('mount', b'proc', b'/tmp/m', b'proc', 0, None)
        found['bind'] = call('mount', b'/usr', b'/tmp/m', None, 4096, None)
        found['remount /usr'] = call('mount', None, b'/usr', None, 32 | 4096, None)
        found['remount docs'] = call('mount', None, b'/workspace/docs', None, 32 | 4096, None)
        found['propagation'] = call('mount', None, b'/', None, 1 << 20 | 16384, None)
        found['umount docs'] = call('umount2', b'/workspace/docs', 2)
        found['umount /proc'] = call('umount2', b'/proc', 2)
        found['pivot_root'] = call('pivot_root', b'/tmp', b'/tmp/m')
        found['chroot'] = call('chroot', b'/tmp')
        found['open_tree'] = call('open_tree', -100, b'/workspace', 0)
        found['open_tree clone'] = call('open_tree', -100, b'/workspace', 1)
        found['move_mount'] = call('move_mount', -100, b'/workspace/src', -100, b'/workspace/docs', 0)
        found['fsopen'] = call('fsopen', b'tmpfs', 0)
        found['fspick'] = call('fspick', -100, b'/tmp', 0)
        found['mount_setattr'] = call('mount_setattr', -100, b'/workspace/docs', 0, struct.pack('=4Q', 0, 1, 0, 0), 32)
        handle = ctypes.create_string_buffer(struct.pack('=Ii', 128, 0) + bytes(128))
        found['name_to_handle_at'] = call('name_to_handle_at', -100, b'/etc', handle, ctypes.byref(ctypes.c_int()), 0)
        root = os.open('/workspace/src', os.O_RDONLY)
        handle = ctypes.create_string_buffer(struct.pack('=Ii', 8, 1) + struct.pack('=II', 2, 0) + bytes(128))
        found['open_by_handle_at'] = call('open_by_handle_at', root, handle, os.O_RDONLY)
        """,
    )
    assert set(found.values()) == {"EPERM"}, found


async def test_the_kernel_takes_no_programs_no_modules_and_no_time(start: Start) -> None:
    found = await inside(
        await start(),
        """
        import time
        room = ctypes.create_string_buffer(256)
        found['bpf map'] = call('bpf', 0, struct.pack('=5I', 2, 4, 8, 1, 0) + bytes(60), 72)
        found['perf'] = call('perf_event_open', struct.pack('=IIQ', 1, 112, 1) + bytes(96), 0, -1, -1, 0)
        found['userfaultfd'] = call('userfaultfd', 1)
        found['keyctl'] = call('keyctl', 0, -3, 1)
        found['add_key'] = call('add_key', b'user', b'toka', b'x', 1, -3)
        found['request_key'] = call('request_key', b'user', b'toka', None, 0)
        found['init_module'] = call('init_module', b'x', 1, b'')
        found['finit_module'] = call('finit_module', 0, b'', 0)
        found['delete_module'] = call('delete_module', b'toka_none', 0)
        found['kexec_load'] = call('kexec_load', 0, 0, None, 0)
        found['kexec_file_load'] = call('kexec_file_load', 0, 0, 1, b'', 8)
        now = struct.pack('=qq', int(time.time()), 0)
        found['clock_settime'] = call('clock_settime', 0, now)
        found['settimeofday'] = call('settimeofday', now, None)
        found['clock_adjtime'] = call('clock_adjtime', 0, ctypes.create_string_buffer(256))
        found['adjtimex'] = call('adjtimex', ctypes.create_string_buffer(256))
        found['syslog'] = call('syslog', 10, None, 0)
        found['fanotify_init'] = call('fanotify_init', 0x200, 0)
        found['set_mempolicy'] = call('set_mempolicy', 0, None, 0)
        found['memfd_secret'] = call('memfd_secret', 0)
        found['personality'] = call('personality', 0x0040000)
        read, write = os.pipe()
        found['vmsplice'] = call('vmsplice', write, struct.pack('=QQ', ctypes.addressof(room), 1), 1, 0)
        """,
    )
    assert set(found.values()) == {"EPERM"}, found


async def test_io_uring_is_not_there(start: Start) -> None:
    """Its operations would go past the filter."""
    found = await inside(
        await start(),
        """
        found['setup'] = call('io_uring_setup', 4, ctypes.create_string_buffer(120))
        found['enter'] = call('io_uring_enter', 0, 0, 0, 0, None, 0)
        found['register'] = call('io_uring_register', 0, 0, None, 0)
        """,
    )
    assert set(found.values()) == {"ENOSYS"}, found


async def test_no_process_can_be_traced_or_read_not_even_a_child(start: Start) -> None:
    found = await inside(
        await start(),
        """
        secret = ctypes.create_string_buffer(b'kept')
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
        room = ctypes.create_string_buffer(8)
        here = struct.pack('=QQ', ctypes.addressof(room), 4)
        there = struct.pack('=QQ', ctypes.addressof(secret), 4)
        for name, pid in (('child', child), ('self', os.getpid()), ('init', 1)):
            found['attach ' + name] = call('ptrace', 16, pid, 0, 0)
            found['seize ' + name] = call('ptrace', 0x4206, pid, 0, 0)
            found['read ' + name] = call('process_vm_readv', pid, here, 1, there, 1, 0)
            found['write ' + name] = call('process_vm_writev', pid, here, 1, there, 1, 0)
            found['kcmp ' + name] = call('kcmp', pid, pid, 1, 0, 0)
            found['getfd ' + name] = call('pidfd_getfd', os.pidfd_open(pid), 0, 0)
        found['traceme'] = call('ptrace', 0, 0, 0, 0)
        os.kill(child, signal.SIGKILL)
        """,
    )
    assert set(found.values()) == {"EPERM"}, found


async def test_a_terminal_cannot_be_typed_into(start: Start) -> None:
    """CVE-2019-10063: the kernel reads the low 32 bits of a request only. Tried on a real terminal of one's own."""
    found = await inside(
        await start(),
        """
        import pty
        found['tty'] = tried(os.open, '/dev/tty', os.O_RDWR)
        outer, inner = pty.openpty()
        found['others work'] = 'works' if call('ioctl', inner, 0x540E, 0) == 'did' else 'broken'  # now it is ours
        for shift in (None, 32, 40, 63):
            for name, request, data in (('sti', 0x5412, b'x'), ('linux', 0x541C, bytes([2]) + bytes(16))):
                number = request if shift is None else request | 1 << shift
                number -= (number >> 63) << 64
                found[f'{name} {shift}'] = call('ioctl', inner, number, data)
        """,
    )
    assert found.pop("others work") == "works"
    assert found.pop("tty") == "ENXIO", "a controlling terminal"
    assert set(found.values()) == {"EPERM"}, found


@pytest.mark.skipif(MACHINE != "x86_64", reason="calls of another architecture exist on x86_64")
@pytest.mark.parametrize(
    "attempt",
    [
        # push rbx; mov eax, 20 (getpid of i386); int 0x80; pop rbx; ret
        "code = mmap.mmap(-1, 4096, prot=7); code.write(bytes.fromhex('53b814000000cd805bc3'))\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()",
        "call(0x40000000 | 39)",
        "call(0x40000000 | N['ptrace'], 0, 0, 0, 0)",
    ],
    ids=["int 0x80", "x32 getpid", "x32 ptrace"],
)
async def test_a_call_of_another_architecture_ends_the_process(start: Start, attempt: str) -> None:
    """Its numbers mean other calls, so no filter by number would hold."""
    sandbox = await start()
    result = await sandbox.run(["/usr/bin/python3", "-I", "-S", "-c", f"{RAW}\n{attempt}"], timeout_s=10)
    assert result.exit_code == -31, f"not SIGSYS: {result}"


@pytest.mark.parametrize("network", [False, True], ids=["no network", "network"])
async def test_only_stream_sockets_of_the_internet_can_be_made_and_only_with_network(
    start: Start, network: bool
) -> None:
    """AF_UNIX reaches daemons through any mount, AF_VSOCK the machine's host, AF_NETLINK and AF_PACKET the kernel."""
    sandbox = await start(**NETWORK if network else {})
    found = await inside(
        sandbox,
        """
        for family in range(46):
            for kind in (1, 2, 3, 5):
                for more in (0, socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK):
                    found[f'{family} {kind} {more}'] = tried(socket.socket, family, kind | more)
        found['high bits'] = call('socket', 1 | 1 << 32, 1, 0)
        """,
    )
    families = (socket.AF_INET, socket.AF_INET6) if network else ()
    more = int(socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    assert set(did(found)) == {f"{int(family)} 1 {m}" for family in families for m in (0, more)}
    assert {how for how in found.values() if how != "did"} == {"EAFNOSUPPORT"}


@pytest.mark.parametrize("network", [False, True], ids=["no network", "network"])
async def test_no_pair_of_sockets_can_be_turned_to_another(start: Start, workspace: Path, network: bool) -> None:
    """A datagram pair could be connected anew to any socket with a name; one of streams or packets cannot."""
    with closing(daemon(workspace / "src/daemon")) as server:
        sandbox = await start(**NETWORK if network else {})
        found = await inside(
            sandbox,
            """
            for kind in (2, 3):
                found[f'pair {kind}'] = tried(socket.socketpair, socket.AF_UNIX, kind)
            found['pair inet'] = tried(socket.socketpair, socket.AF_INET, 1)

            def forget(fd):
                if libc.connect(fd, bytes(16), 16):
                    raise OSError(ctypes.get_errno(), '')

            for kind in (1, 5):
                one, two = socket.socketpair(socket.AF_UNIX, kind)
                found[f'connect {kind}'] = tried(one.connect, '/workspace/src/daemon')
                found[f'forget {kind}'] = tried(forget, one.fileno())
                if kind == 1:  # of packets the address is not looked at
                    found['sendto'] = tried(one.sendto, b'x', '/workspace/src/daemon')
                found[f'listen {kind}'] = tried(one.listen)
                two.close()
                found[f'connect when alone {kind}'] = tried(one.connect, '/workspace/src/daemon')
                one.close()
            """,
        )
        assert not did(found)
        assert waiting(server) == 0


def daemon(path: Path) -> socket.socket:
    """A service that listens at a path, however long."""
    server = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        server.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(0o777)
    server.listen()
    server.setblocking(False)
    return server


def waiting(server: socket.socket) -> int:
    """How many connections a service got."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count


@pytest.mark.parametrize("network", [False, True], ids=["no network", "network"])
@pytest.mark.parametrize("folder", ["docs", "src"], ids=["read-only", "writable"])
async def test_a_service_is_out_of_reach_although_its_socket_is_mounted(
    start: Start, workspace: Path, folder: str, network: bool
) -> None:
    """docker.sock through a read-only /run: a read-only mount does not keep anybody from connecting."""
    with closing(daemon(workspace / folder / "docker.sock")) as server:
        sandbox = await start(**NETWORK if network else {})
        path = f"/workspace/{folder}/docker.sock"
        found = await inside(
            sandbox,
            f"""
            found['there'] = 'yes' if stat.S_ISSOCK(os.stat({path!r}).st_mode) else 'no'
            for kind in (1, 2, 5):
                found[f'connect {{kind}}'] = tried(lambda: socket.socket(socket.AF_UNIX, kind).connect({path!r}))
            found['open'] = tried(os.open, {path!r}, os.O_RDWR)
            """,
        )
        assert found.pop("there") == "yes"
        assert not did(found)
        if shutil.which("curl"):
            await said(sandbox, f"curl -s --max-time 2 --unix-socket {path} http://localhost/ || true")
        assert waiting(server) == 0


async def test_the_users_service_manager_is_out_of_reach(start: Start, workspace: Path) -> None:
    """`systemd-run --user` starts programs outside of any sandbox, through a socket that it finds by environment."""
    with closing(daemon(workspace / "src/bus")) as server:
        sandbox = await start()
        bus = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/workspace/src/bus", "XDG_RUNTIME_DIR": "/workspace/src"}
        for program in ("systemd-run --user --wait true", "busctl --user list", "dbus-send --session / a.b.c"):
            result = await sandbox.run(shell(f"exec {program}"), env=bus, timeout_s=5)
            assert result.exit_code != 0, program
        found = await inside(
            sandbox, "found['connect'] = tried(lambda: socket.socket(socket.AF_UNIX).connect('src/bus'))"
        )
        assert not did(found)
        assert waiting(server) == 0


@pytest.mark.parametrize("folder", ["/workspace/src", "/tmp", "/dev/shm"])
async def test_no_device_can_be_made(start: Start, folder: str) -> None:
    found = await inside(
        await start(),
        f"""
        os.chdir({folder!r})
        for name, kind in (('char', stat.S_IFCHR), ('block', stat.S_IFBLK)):
            found[name] = tried(os.mknod, name, kind | 0o666, os.makedev(1, 5))
            found[name + ' high bits'] = call('mknodat', -100, b'x' + name.encode(), kind | 0o666 | 1 << 32, 0x105)
        found['pipe'] = 'works' if tried(os.mkfifo, 'pipe') == 'did' else 'broken'
        found['made'] = sorted(n for n in os.listdir('.') if n != 'pipe' and not stat.S_ISREG(os.lstat(n).st_mode))
        """,
    )
    assert found.pop("pipe") == "works"
    assert found.pop("made") == []
    assert set(found.values()) == {"EPERM"}, found


# ---- privileges


async def test_a_program_with_the_set_user_id_bit_gains_nothing(start: Start, workspace: Path) -> None:
    tool = workspace / "src/id"
    shutil.copy("/usr/bin/id", tool)
    tool.chmod(0o6755)
    assert stat.S_IMODE(tool.stat().st_mode) == 0o6755
    sandbox = await start()
    plain = (await said(sandbox, "id -u; id -g; id -Gn")).split()
    assert (await said(sandbox, "src/id -u; src/id -g; src/id -Gn")).split() == plain
    assert plain[0] != "0" or os.getuid() == 0
    for program in ("su -c true", "newgrp root", "mount -t tmpfs x /tmp", "passwd -d agent", "sudo -n true"):
        assert (await sandbox.run(shell(f"exec {program} < /dev/null"), timeout_s=5)).exit_code, program


async def test_no_mount_takes_set_user_id_bits_or_devices_and_few_can_be_written(start: Start) -> None:
    sandbox = await start()
    options: dict[str, set[str]] = {}
    for line in (await said(sandbox, "cat /proc/self/mountinfo")).splitlines():
        fields = line.split(" ")
        place, options[fields[4]] = fields[4], set(fields[5].split(","))  # the last one at a place covers the others
        assert "nosuid" in options[place], line
        assert place.startswith("/dev/") or "nodev" in options[place], line
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts", "shm")}
    assert {place for place, held in options.items() if "ro" not in held} - devices == {"/tmp", "/workspace/src"}


async def test_what_was_given_up_cannot_be_taken_back(start: Start) -> None:
    found = await inside(
        await start(),
        """
        def prctl(*args): return call('prctl', *args)
        header = struct.pack('=Ii', 0x20080522, 0)
        found['no_new_privs off'] = prctl(38, 0, 0, 0, 0)
        found['seccomp off'] = prctl(22, 0, 0, 0, 0)
        found['ambient'] = prctl(47, 2, 21, 0, 0)
        found['inheritable'] = call('capset', header, struct.pack('=6I', 0, 0, 1 << 21, 0, 0, 0))
        found['effective'] = call('capset', header, struct.pack('=6I', 1 << 21, 1 << 21, 0, 0, 0, 0))
        found['setuid'] = tried(os.setuid, 0 if os.getuid() else 1)
        found['setgid'] = tried(os.setgid, 0 if os.getgid() else 1)
        found['setgroups'] = tried(os.setgroups, [0])
        for name in ('uid_map', 'gid_map', 'setgroups'):
            found[name] = looked('/proc/self/' + name, os.O_WRONLY)
        status = open('/proc/self/status').read()
        found['state'] = [l.split()[1] for l in status.splitlines() if l.startswith(('NoNewPrivs', 'Seccomp:'))]
        """,
    )
    assert found.pop("state") == ["1", "2"]
    assert not did(found)


# ---- what can be seen


async def test_the_file_worker_is_locked_up_like_a_command(start: Start) -> None:
    sandbox = await start(warm=False)
    assert (await sandbox.file("hash", path="docs/a.txt"))["exists"]
    assert sandbox._zygote is not None
    inner = sandbox._zygote.inner
    (worker,) = Path(f"/proc/{inner}/task/{inner}/children").read_text().split()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines() if ":\t" in line
    )
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


async def test_the_devices_are_harmless_ones(start: Start) -> None:
    sandbox = await start()
    devices = set((await said(sandbox, "ls -A /dev")).split())
    assert devices <= {
        "console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    }  # fmt: skip
    assert "null" in devices


async def test_no_setting_of_the_kernel_can_be_written(start: Start) -> None:
    found = await inside(
        await start(),
        """
        count = 0
        for folder, _, files in os.walk('/proc/sys'):
            for name in files:
                count += 1
                path = os.path.join(folder, name)
                if looked(path, os.O_WRONLY) == 'did':
                    found[path] = 'did'
        for name in ('sysrq-trigger', 'self/oom_score_adj', 'self/coredump_filter', 'self/loginuid', 'self/mem',
                     'self/attr/current', 'self/timerslack_ns', 'irq/default_smp_affinity', 'mtrr', 'self/clear_refs'):
            if looked('/proc/' + name, os.O_WRONLY) == 'did':
                found[name] = 'did'
        found['count'] = count
        """,
    )
    assert found.pop("count") > 100
    assert not found


async def test_nothing_tells_of_the_kernels_memory_or_log(start: Start) -> None:
    found = await inside(
        await start(),
        """
        for path in ('/proc/kcore', '/proc/kmsg', '/dev/kmsg', '/dev/mem', '/dev/kmem', '/dev/port', '/dev/fuse',
                     '/dev/kvm', '/dev/net/tun', '/dev/vhost-vsock', '/dev/vsock', '/dev/loop0', '/dev/sda', '/dev/vda',
                     '/sys', '/sys/fs/cgroup', '/sys/kernel/debug', '/sys/class', '/dev/disk', '/dev/input'):
            found[path] = looked(path)
        try:
            found['addresses'] = sorted({line.split()[0].strip('0') for line in open('/proc/kallsyms')})
        except OSError:
            found['addresses'] = ['']
        """,
    )
    assert found.pop("addresses") in ([], [""])
    assert not did(found)


async def test_nothing_of_the_machines_accounts_and_daemons_can_be_seen(start: Start) -> None:
    sandbox = await start()
    accounts = [line.split(":")[0] for line in (await said(sandbox, "cat /etc/passwd /etc/group")).splitlines()]
    assert set(accounts) <= {"agent", "root", "nobody", "nogroup"}
    assert set((await said(sandbox, "ls -A /etc")).split()) <= {
        "alternatives", "ca-certificates", "crypto-policies", "group", "hosts", "ld.so.cache", "localtime",
        "nsswitch.conf", "passwd", "pki", "ssl",
    }  # fmt: skip
    found = await inside(
        sandbox,
        """
        for path in ('/run/docker.sock', '/var/run/docker.sock', '/run/podman', '/run/containerd', '/run/systemd',
                     '/run/dbus', '/run/user', '/run/secrets', '/root/.ssh', '/root/.aws', '/home', '/etc/shadow',
                     '/etc/ssl/private', '/etc/ssh', '/etc/sudoers', '/etc/resolv.conf', '/etc/machine-id',
                     '/var/lib', '/boot', '/tmp/.X11-unix', '/proc/self/root/root', '/proc/self/cwd/../../root'):
            found[path] = looked(path)
        """,
    )
    assert not did(found)
    assert (await said(sandbox, "hostname; cat /proc/sys/kernel/domainname")).split() == ["toka", "(none)"]


# ---- processes


async def test_pid_1_is_deaf_and_shows_nothing(start: Start) -> None:
    found = await inside(
        await start(),
        """
        for name in ('environ', 'mem', 'maps', 'auxv', 'fd', 'fdinfo', 'root', 'cwd', 'exe', 'io', 'stack', 'syscall',
                     'map_files', 'pagemap', 'smaps', 'ns', 'task/1/environ', 'task/1/fd'):
            found[name] = looked('/proc/1/' + name)
        found['root link'] = tried(os.readlink, '/proc/1/root')
        found['ns link'] = tried(os.readlink, '/proc/1/ns/pid')
        for number in range(1, 65):
            tried(os.kill, 1, number)
        found['alive'] = 'yes' if os.getppid() == 1 and looked('/proc/1/status') == 'did' else 'no'
        states = open('/proc/1/stat').read().rpartition(')')[2].split()[0]
        found['stopped'] = 'did' if states in 'TtZX' else ''
        """,
    )
    assert found.pop("alive") == "yes"
    assert not did(found)


async def test_another_agents_processes_and_memory_do_not_exist(start: Start) -> None:
    one, two = await start(), await start()
    marker = f"987{uuid.uuid4().int % 10**12}"
    secret = f"""
import subprocess
key = libc.shmget(ctypes.c_int(0x70CA), ctypes.c_size_t(4096), ctypes.c_int(0o1666))
found['made'] = key >= 0
queue = libc.msgget(ctypes.c_int(0x70CA), ctypes.c_int(0o1666))
open('/dev/shm/mark', 'w').write('secret')
open('/tmp/mark', 'w').write('secret')
subprocess.run(['sleep', '{marker}'])
"""
    running = asyncio.create_task(one.run(["/usr/bin/python3", "-c", RAW + secret], timeout_s=30))
    while not living(f"sleep\0{marker}"):
        await asyncio.sleep(0.01)
    pids = living(f"sleep\0{marker}")
    try:
        for sandbox in (two, one):
            found = await inside(
                sandbox,
                f"""
                found['seen'] = [p for p in os.listdir('/proc') if p.isdigit()
                                 and b'{marker}' in open('/proc/' + p + '/cmdline', 'rb').read()
                                 and p != str(os.getpid())]
                found['killed'] = [tried(os.kill, pid, 9) for pid in {pids}]
                found['shared memory'] = libc.shmget(ctypes.c_int(0x70CA), ctypes.c_size_t(0), ctypes.c_int(0))
                found['queue'] = libc.msgget(ctypes.c_int(0x70CA), ctypes.c_int(0))
                found['files'] = sorted(os.listdir('/dev/shm') + os.listdir('/tmp'))
                """,
            )
            assert found["seen"] == []
            assert set(found["killed"]) == {"ESRCH"}
            assert found["shared memory"] == found["queue"] == -1
            assert found["files"] == ([] if sandbox is two else ["mark", "mark"])
        assert living(f"sleep\0{marker}") == pids
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.mark.slow
async def test_a_tree_that_stops_adopts_and_hides_itself_dies_at_its_deadline(start: Start) -> None:
    marker = f"987{uuid.uuid4().int % 10**12}"
    source = f"""
import subprocess, time
libc.prctl(36, 1, 0, 0, 0)
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
for _ in range(4):
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        libc.prctl(15, b'kworker/0:1', 0, 0, 0)
        child = subprocess.Popen(['sleep', '{marker}'], preexec_fn=lambda: os.setpgid(0, 0))
        os.kill(child.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(60)
"""
    sandbox = await start()
    result = await sandbox.run(["/usr/bin/python3", "-c", RAW + source], timeout_s=1)
    assert result.ended == "timeout"
    assert result.wall_s < 4
    assert living(marker) == []


async def test_a_command_leaves_nothing_for_the_next_but_files(start: Start) -> None:
    sandbox = await start()
    await inside(
        sandbox,
        """
        libc.shmget(ctypes.c_int(7), ctypes.c_size_t(4096), ctypes.c_int(0o1666))
        libc.semget(ctypes.c_int(7), ctypes.c_int(1), ctypes.c_int(0o1666))
        libc.msgget(ctypes.c_int(7), ctypes.c_int(0o1666))
        os.umask(0); os.nice(5)
        """,
    )
    found = await inside(
        sandbox,
        """
        found['ipc'] = [len(open('/proc/sysvipc/' + n).readlines()) - 1 for n in ('shm', 'sem', 'msg')]
        found['umask'], found['nice'] = os.umask(0), os.nice(0)
        found['processes'] = len([p for p in os.listdir('/proc') if p.isdigit()])
        """,
    )
    assert found == {"ipc": [0, 0, 0], "umask": 0o022, "nice": 0, "processes": 2}


# ---- files


async def test_no_hard_link_leads_around_a_mount(start: Start, workspace: Path) -> None:
    """A file that may only be read, or not be seen, must not get a second name where it may be written."""
    (workspace / "own.yaml").write_text("a: 1\n")
    sandbox = await start(reads=(), writes=(".",), protected=("own.yaml",))
    read = await start(reads=(".",), writes=("src",))
    body = """
        for path in PATHS:
            for name, act in (
                ('link', lambda: os.link(path, 'src/l', follow_symlinks=False)),
                ('fd', lambda: os.link(f'/proc/self/fd/{os.open(path, os.O_RDONLY)}', 'src/l', follow_symlinks=True)),
                ('o_path', lambda: os.link(f'/proc/self/fd/{os.open(path, os.O_PATH)}', 'src/l', follow_symlinks=True)),
                ('rename', lambda: os.rename(path, 'src/l')),
            ):
                found[path + ' ' + name] = tried(act)
                if os.path.lexists('src/l'):
                    found[path + ' ' + name] = 'did'
                    os.unlink('src/l')
        """
    paths = ["own.yaml", ".envrc", "toka.toml", "/etc/passwd", "/usr/bin/id"]
    assert not did(await inside(sandbox, body.replace("PATHS", repr(paths))))
    assert not did(await inside(read, body.replace("PATHS", "['docs/a.txt', 'private/key', '/etc/passwd']")))
    assert (workspace / "own.yaml").read_text() == "a: 1\n"


async def test_a_protected_folder_cannot_be_exchanged(start: Start, workspace: Path) -> None:
    (workspace / "agents/deep").mkdir(parents=True)
    (workspace / "agents/deep/me.yaml").write_text("a: 1\n")
    sandbox = await start(**WHOLE, protected=("agents/deep/me.yaml",))
    found = await inside(
        sandbox,
        """
        os.makedirs('other/workflows/deep')
        open('other/file', 'w').write('x')
        for path in ('.github', '.github/workflows', '.vscode', 'agents', 'agents/deep', '.claude', '.git'):
            for flags in (0, 1, 2):
                found[f'{path} {flags}'] = call('renameat2', -100, b'other', -100, path.encode(), flags)
                away = b'elsewhere' if flags < 2 else b'other'
                found[f'{path} away {flags}'] = call('renameat2', -100, path.encode(), -100, away, flags)
            found[path + ' rmdir'] = tried(os.rmdir, path)
            found[path + ' symlink'] = tried(os.symlink, '/tmp', path)
        for path in ('.envrc', 'toka.toml', 'agents/deep/me.yaml', '.gitmodules', '.mcp.json'):
            for flags in (0, 2):
                found[f'{path} {flags}'] = call('renameat2', -100, b'other/file', -100, path.encode(), flags)
            found[path + ' unlink'] = tried(os.unlink, path)
        """,
    )  # fmt: skip
    assert not did(found)


async def test_what_may_be_read_keeps_its_owner_mode_times_and_marks(start: Start, workspace: Path) -> None:
    before = (workspace / "docs/a.txt").stat()
    sandbox = await start(reads=("docs", "private"), writes=("src",))
    found = await inside(
        sandbox,
        """
        for path in ('docs', 'docs/a.txt', '/usr', '/etc/passwd', '/workspace'):
            found[path + ' chmod'] = tried(os.chmod, path, 0o777)
            found[path + ' chown'] = tried(os.chown, path, os.getuid(), os.getgid())
            found[path + ' utime'] = tried(os.utime, path, (1, 1))
            found[path + ' setxattr'] = tried(os.setxattr, path, 'user.x', b'1')
            found[path + ' by fd'] = tried(os.fchmod, os.open(path, os.O_RDONLY), 0o777)
        found['truncate'] = tried(os.truncate, 'docs/a.txt', 0)
        found['reopen'] = tried(os.open, f"/proc/self/fd/{os.open('docs/a.txt', os.O_RDONLY)}", os.O_RDWR)
        found['temporary'] = tried(os.open, 'docs', os.O_TMPFILE | os.O_RDWR)
        found['swap'] = call('swapon', b'/workspace/docs/a.txt', 0)
        """,
    )
    assert not did(found)
    after = (workspace / "docs/a.txt").stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns, after.st_size) == (
        before.st_mode, before.st_uid, before.st_mtime_ns, before.st_size,
    )  # fmt: skip


async def test_no_way_leads_above_the_workspace(start: Start, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host-secret")
    sandbox = await start(**WHOLE)
    found = await inside(
        sandbox,
        f"""
        fd = os.open('/workspace', os.O_RDONLY)
        for name, path in (('above', '..'), ('root', '/proc/self/root/..'), ('cwd', '/proc/self/cwd/..'),
                           ('fd', f'/proc/self/fd/{{fd}}/..'), ('deep', 'src/../../..')):
            found[name] = sorted(os.listdir(path))
        os.fchdir(fd)
        os.chdir('..')
        found['moved'] = os.getcwd()
        found['secret'] = looked({str(tmp_path / "secret")!r})
        """,
    )
    assert found.pop("moved") == "/"
    assert found.pop("secret") == "ENOENT"
    for way, entries in found.items():
        assert "workspace" in entries, way
        assert "root" not in entries, way


async def test_the_file_tools_meet_the_same_walls_as_commands(start: Start, workspace: Path, tmp_path: Path) -> None:
    """Claude Code's file tools ran outside of its sandbox. Ways with links were made by a command before."""
    (tmp_path / "host").mkdir()
    (workspace / "own.yaml").write_text("a: 1\n")
    (workspace / ".toka").mkdir()
    (workspace / ".toka/toka.db").write_text("record")
    sandbox = await start(**WHOLE, protected=("own.yaml",), hidden=(".toka",))
    await said(
        sandbox,
        f"cd src; ln -s .. up; ln -s ../.vscode v; ln -s /workspace/.github/workflows w; ln -s ../own.yaml o; "
        f"ln -s {tmp_path}/host h; ln -s /etc e; ln -s /proc/self/root r; ln -s ../.toka t",
    )
    ways = (
        ".vscode/s.json", "src/v/s.json", "src/up/.vscode/s.json", "src/../.vscode/s.json", "/workspace/.vscode/s.json",
        ".github/workflows/x.yml", "src/w/x.yml", ".envrc", "src/up/.envrc", "own.yaml", "src/o", "src/up/own.yaml",
        "toka.toml", ".git/hooks/pre-commit", "src/h/x", "src/e/x", "src/r/tmp/x", "/etc/x", "/usr/x",
        ".toka/x", "src/t/x", "../outside", ".claude/settings.json", ".codex/config.toml", ".mcp.json", ".gitmodules",
    )  # fmt: skip
    for way in ways:
        answer = await sandbox.file("write", path=way, body=b"x")
        assert "error" in answer, way
    edited = await sandbox.file("edit", path="src/o", old="a", new="b", count=1, dry=False)
    assert "error" in edited
    for way in (".toka/toka.db", "src/t/toka.db", "src/r/etc/passwd", f"{tmp_path}/secret", "src/e/passwd"):
        assert "error" in await sandbox.file("read", path=way, start=1, lines=None, limit=100), way
    assert names(tmp_path / "host") == []
    assert (workspace / "own.yaml").read_text() == "a: 1\n"
    assert "body" in await sandbox.file("write", path="src/ok", body=b"x")


async def test_the_working_folder_gives_no_right(start: Start, workspace: Path) -> None:
    """CVE-2025-59532: a working folder that the model chose became a folder it could write to."""
    sandbox = await start(reads=(".",), writes=("src",))
    (workspace / "src/out").symlink_to("../docs")
    for cwd in ("docs", "private", ".", "src/out", "docs/../docs"):
        result = await sandbox.run(shell("echo x > planted; echo x > a.txt; echo x > ../planted"), cwd=cwd, timeout_s=5)
        assert result.ended == "refused" or result.exit_code, cwd
    assert not list(workspace.rglob("planted"))
    assert (workspace / "docs/a.txt").read_text() == "alpha\n"
    elsewhere = await sandbox.run(shell("echo x > planted"), cwd="src", timeout_s=5)
    assert elsewhere.exit_code == 0


async def test_a_granted_folder_swapped_for_a_link_while_the_sandbox_rests_is_not_followed(
    start: Start, workspace: Path, tmp_path: Path
) -> None:
    """sandlock#112: the supervisor followed a link that the sandboxed process had planted."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("host-secret")
    sandbox = await start(reads=(), writes=("src/out",))
    await stopped(sandbox)
    (workspace / "src").rename(workspace / "src2")
    (workspace / "src").mkdir()
    (workspace / "src/out").symlink_to(tmp_path / "host")
    text = await said(sandbox, "cat src/out/secret; echo x > src/out/planted; ls -la src 2>&1")
    assert "host-secret" not in text
    assert names(tmp_path / "host") == ["secret"]
    (workspace / "src/out").unlink()
    (workspace / "src").rmdir()
    (workspace / "src").symlink_to(tmp_path)
    await stopped(sandbox)
    await said(sandbox, "echo x > src/out/planted; echo over")
    assert names(tmp_path / "host") == ["secret"]
    assert not (tmp_path / "out").exists()


async def stopped(sandbox: Sandbox) -> None:
    """As when it was idle for long: the next use starts it anew."""
    assert sandbox._zygote is not None
    await sandbox._zygote.end()


async def test_no_file_of_the_project_switches_anything_off(
    start: Start, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claude Code: settings in the project disabled the sandbox, and an edit of them while it ran did as well."""
    monkeypatch.setattr("toka.sandbox.egress.Dialer.dial", None)  # whatever happens, nothing is sent
    sandbox = await start(reads=("docs",), writes=("src",), **NETWORK)
    await said(sandbox, "echo plain")
    off = '{"sandbox": {"enabled": false}, "permissions": {"allow": ["*"]}}'
    (workspace / ".claude").mkdir()
    (workspace / ".claude/settings.json").write_text(off)
    (workspace / "toka.toml").write_text("[policy]\nsandbox = false\nallow_unsandboxed = true\n")
    (workspace / "agent.yaml").write_text("sandbox: false\ncapabilities: [network-access, command-execution]\n")
    (workspace / ".env").write_text("TOKA_SANDBOX=none\n")
    for one in (sandbox, await start(reads=("docs",), writes=("src",), **NETWORK)):
        for round_ in range(2):
            found = await inside(
                one,
                """
                found['docs'] = looked('/workspace/docs/a.txt', os.O_WRONLY)
                found['unshare'] = call('unshare', 0x10000000)
                found['root'] = looked('/root')
                proxy = socket.create_connection(('127.0.0.1', 3128), 5)
                proxy.sendall(b'CONNECT other.example.org:443 HTTP/1.1\\r\\n\\r\\n')
                found['other host'] = proxy.recv(100).split()[1].decode()
                """,
                env={"TOKA_SANDBOX": "none", "IS_SANDBOX": "0"} if round_ else None,
            )
            assert found == {"docs": "EROFS", "unshare": "EPERM", "root": "ENOENT", "other host": "403"}


async def test_a_repository_that_is_not_there_cannot_be_planted(start: Start, workspace: Path, tmp_path: Path) -> None:
    """Codex: a workspace without .git could be given one, whose hooks and settings git on the host then obeyed."""
    mark = tmp_path / "ran"
    sandbox = await start(**WHOLE)
    done = await tries(
        sandbox,
        "mkdir -p .git/hooks",
        f"echo 'touch {mark}' > .git/hooks/post-checkout",
        "git init -q .",
        "mv .git .git2",
        "rmdir .git",
        "rm -rf .git",
        "echo 'gitdir: evil' > .git",
        "ln -sfn evil .git && test -L .git",
        "mkdir evil && mv -T evil .git",
    )
    assert not done
    assert names(workspace / ".git") == []
    await sandbox.close()
    assert not (workspace / ".git").exists()


@pytest.mark.parametrize("path", [".envrc", ".git", ".github/workflows"])
async def test_a_socket_at_a_protected_path_is_refused(start: Start, workspace: Path, path: str) -> None:
    """It could not be mounted over, and so be replaced."""
    (workspace / path).parent.mkdir(exist_ok=True)
    with (
        closing(daemon(workspace / path)),
        pytest.raises(SandboxError, match=rf"{path} is protected, and \S+ is neither"),
    ):
        await start(**WHOLE)


async def test_a_pipe_at_a_protected_path_does_not_hold_all_starts_up(start: Start, workspace: Path) -> None:
    """Whoever opens one waits for its other end, and sandboxes are started one after the other."""
    os.mkfifo(workspace / ".envrc")
    async with asyncio.timeout(10):
        with pytest.raises(SandboxError, match=r"\.envrc is protected, and \.envrc is neither a file nor a folder"):
            await start(**WHOLE)


# ---- running programs


PROGRAMS = {"programs": ("cp", "python3", "ls")}


async def test_a_program_that_is_not_listed_does_not_exist(start: Start) -> None:
    sandbox = await start(**PROGRAMS)
    assert set((await sandbox.run(["ls", "/usr/bin"], timeout_s=5)).output.split()) == {b"cp", b"python3", b"ls"}
    for argv in (
        ["true"], ["/usr/bin/true"], ["/bin/true"], ["/usr/bin/env", "true"], ["/bin/sh", "-c", "true"],
        ["/workspace/../usr/bin/true"], [LOADER, "/usr/bin/true"], [LOADER, "/bin/true"], ["/usr/sbin/ldconfig"],
        ["/toka/bin/true"], ["/proc/self/root/usr/bin/true"],
    ):  # fmt: skip
        result = await sandbox.run(argv, timeout_s=5)
        assert result.exit_code in (126, 127), (argv, result)
    assert (await sandbox.run(["true"], timeout_s=5, chosen_by="person")).exit_code == 0


async def test_folders_with_other_programs_are_empty_for_agents_and_not_for_people(start: Start) -> None:
    sandbox = await start(**PROGRAMS)
    for folder in (folder for folder in HIDDEN if Path(folder).is_dir() and names(folder)):
        seen = await sandbox.run(["ls", "-A", folder], timeout_s=5)
        assert (seen.exit_code, seen.output) == (0, b""), folder
        assert (await sandbox.run(["ls", "-A", folder], timeout_s=5, chosen_by="person")).output, folder


@pytest.mark.parametrize("folder", ["/workspace/src", "/tmp", "/dev/shm"])
async def test_a_program_brought_along_is_run_by_nobody(start: Start, workspace: Path, folder: str) -> None:
    """A dropped ELF file: directly, by the loader, by descriptor, as a library, from a nameless file."""
    shutil.copy("/usr/bin/true", workspace / "src/elf")
    (workspace / "src/elf").chmod(0o755)
    library = workspace / "src/lib.so"
    shutil.copy(Path(await library_of("/usr/bin/true")), library)
    sandbox = await start(**PROGRAMS)
    found = await inside(
        sandbox,
        f"""
        import shutil, subprocess
        os.chdir({folder!r})
        for name in ('elf', 'lib.so'):
            if not os.path.exists(name):
                open(name, 'wb').write(open('/workspace/src/' + name, 'rb').read())
        os.chmod('elf', 0o755)
        def ran(*argv, **options):
            try:
                done = subprocess.run(argv, capture_output=True, **options)
            except OSError as error:
                return errno.errorcode[error.errno]
            return 'did' if done.returncode == 0 else 'failed'
        found['exec'] = ran('./elf')
        found['loader'] = ran({LOADER!r}, './elf')
        found['loader absolute'] = ran({LOADER!r}, os.path.abspath('elf'))
        fd = os.open('elf', os.O_RDONLY)
        found['descriptor'] = ran(f'/proc/self/fd/{{fd}}', pass_fds=[fd])
        temporary = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o755)
        os.write(temporary, open('elf', 'rb').read())
        found['nameless'] = ran(f'/proc/self/fd/{{temporary}}', pass_fds=[temporary])
        found['execveat'] = call('execveat', temporary, b'', None, None, 0x1000)
        found['map'] = tried(mmap.mmap, fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
        def load():
            try: ctypes.CDLL(os.path.abspath('lib.so'))
            except OSError as error: raise OSError(errno.EPERM, str(error))
        found['library'] = tried(load)
        open('script', 'w').write('#!/usr/bin/python3\\nprint(1)')
        os.chmod('script', 0o755)
        found['script'] = ran('./script')
        """,
        python="python3",
    )
    assert not did(found)
    person = await sandbox.run(["/workspace/src/elf"], timeout_s=5, chosen_by="person")
    assert person.exit_code == 0, "the same file runs where it may"


async def library_of(program: str) -> str:
    """A shared library that a program needs."""
    lines = subprocess.run([LOADER, "--list", program], capture_output=True, text=True, check=True).stdout.splitlines()
    return next(line.split("=>")[1].split()[0] for line in lines if "=>" in line)


async def test_a_file_in_memory_cannot_be_made_and_so_not_run(start: Start) -> None:
    """memfd_create: a program without any path."""
    body = "found['memfd'] = tried(os.memfd_create, 'x')\nfound['secret'] = call('memfd_secret', 0)"
    assert await inside(await start(**PROGRAMS), body, python="python3") == {"memfd": "EPERM", "secret": "EPERM"}


async def test_the_folder_of_programs_cannot_be_changed_or_uncovered(start: Start) -> None:
    sandbox = await start(**PROGRAMS)
    found = await inside(
        sandbox,
        """
        for folder in ('/usr/bin', '/toka/bin', '/toka/none', '/toka/lib', '/usr/local/bin', '/bin'):
            found[folder] = tried(os.open, folder + '/new', os.O_WRONLY | os.O_CREAT, 0o755)
            found[folder + ' over'] = tried(os.open, folder + '/python3', os.O_WRONLY)
            found[folder + ' link'] = tried(os.symlink, '/workspace/src/elf', folder + '/x')
            found[folder + ' rename'] = tried(os.rename, folder, '/tmp/x')
            found[folder + ' umount'] = call('umount2', folder.encode(), 2)
        """,
        python="python3",
    )
    assert not did(found)


# ---- failing closed


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    ["raise SystemExit(1)", "raise RuntimeError('no')", "import no_such_module", "import time; time.sleep(60)"],
)
async def test_a_zygote_that_does_not_come_up_is_an_error(
    start: Start, code_inside: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toka.sandbox.launch.START_S", 2.0)
    monkeypatch.setattr("toka.sandbox.launch.LEAVE_S", 0.1)
    change(code_inside / "zygote.py", "TYPE_CHECKING = False", f"{broken}\nTYPE_CHECKING = False")
    with pytest.raises(SandboxUnavailable, match="did not start"):
        await start()


async def test_a_command_for_a_zygote_that_dies_is_lost_and_runs_nowhere_else(
    start: Start, workspace: Path, code_inside: Path
) -> None:
    change(code_inside / "zygote.py", "            request = json.loads(data)", "            os._exit(1)")
    sandbox = await start()
    result = await sandbox.run(shell("echo ran | tee src/ran"), timeout_s=5)
    assert (result.ended, result.output) == ("lost", b"")
    assert (await sandbox.file("read", path="docs/a.txt", start=1, lines=None, limit=10))["error"] == "lost"
    assert not (workspace / "src/ran").exists()


@pytest.mark.parametrize(
    "broken",
    [
        ("kernel.py", "    return _Program(len(instructions) // 8, instructions)", "    return _Program(0, b'')"),
        ("kernel.py", "def landlock(ruleset", "def landlock(_):\n    raise OSError(1, 'no')\ndef unused(ruleset"),
        ("kernel.py", "    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)", "    raise OSError(1, 'no')"),
        ("roles.py", "    os.umask(0o022)", "    set_limits({'NONE': 1})"),
    ],
    ids=["seccomp", "landlock", "capabilities", "limits"],
)  # fmt: skip
async def test_a_command_that_cannot_be_locked_up_is_refused(
    start: Start, workspace: Path, code_inside: Path, broken: tuple[str, str, str]
) -> None:
    change(code_inside / broken[0], *broken[1:])
    sandbox = await start()
    result = await sandbox.run(shell("echo ran | tee src/ran"), timeout_s=5)
    assert (result.ended, result.exit_code, result.output) == ("refused", 126, b"")
    assert result.reason
    assert not (workspace / "src/ran").exists()
    if broken[0] == "kernel.py":
        assert (await sandbox.file("write", path="src/ran", body=b"x"))["error"] == "lost"
        assert not (workspace / "src/ran").exists()


async def test_an_unknown_machine_is_no_reason_to_go_without_a_filter(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile.os, "uname", lambda: os.uname_result(("Linux", "x", "6", "1", "mips")))
    with pytest.raises(ValueError, match="mips"):
        await start()


# ---- holes that were known and are closed


@pytest.fixture
def git(workspace: Path) -> Path:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    for line in ("init -q -b main .", "config user.name A", "config user.email a@b", "add -A", "commit -q -m one"):
        subprocess.run(["git", "-C", str(workspace), *line.split()], check=True, env=environment)
    return workspace


async def test_git_outside_takes_its_orders_from_nowhere_else(start: Start, git: Path, tmp_path: Path) -> None:
    """.git/commondir says where settings and hooks are: anywhere, also where the agent may write."""
    sandbox = await start(**WHOLE, git=True)
    mark = tmp_path / "ran"
    await said(
        sandbox,
        "mkdir evil; cp -r .git/objects .git/refs .git/HEAD evil; echo ../evil > .git/commondir; "
        f"printf '[core]\\nrepositoryformatversion=0\\nfsmonitor=touch {mark};false\\n' > evil/config; echo over",
    )
    await sandbox.close()
    subprocess.run(["git", "-C", str(git), "-c", "safe.directory=*", "status"], capture_output=True)
    assert not mark.exists()


@pytest.mark.parametrize("path", [".envrc", "toka.toml"])
async def test_a_protected_path_replaced_from_outside_stays_protected(start: Start, workspace: Path, path: str) -> None:
    """An editor saves by renaming: the kernel then takes the mount over the old file away in every namespace."""
    (workspace / path).write_text("one\n")
    sandbox = await start(**WHOLE)
    assert not await tries(sandbox, f"echo x >> {path}")
    (workspace / "saved").write_text("two\n")
    (workspace / "saved").replace(workspace / path)
    done = await tries(sandbox, f"echo x >> {path}", f"rm {path}")
    assert not done


async def test_a_folder_that_was_closed_to_us_is_protected_all_the_same(start: Start, git: Path) -> None:
    """Who owns a folder may close it, which hides what is in it from the next start, and open it again."""
    sandbox = await start(**WHOLE, git=True)
    await said(sandbox, "chmod 000 .git .github; echo over")
    await sandbox.close()
    try:
        with suppress(SandboxError):
            sandbox = await start(**WHOLE, git=True)
            await said(sandbox, "chmod 755 .git .github; echo over")
            assert not await tries(sandbox, "echo x > .git/hooks/x", "echo x > .github/workflows/x.yml")
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", str(git)], check=True)


SET_IDS = """
import ctypes, os, stat, struct
def openat2():
    how = struct.pack('=QQQ', os.O_CREAT | os.O_WRONLY, 0o4755, 0)
    if ctypes.CDLL(None).syscall(437, -100, b'src/new2', how, len(how)) < 0:
        raise OSError
os.close(os.open('src/plain', os.O_CREAT | os.O_WRONLY, 0o755))
for name, act in (
    ('chmod', lambda: os.chmod('src/plain', 0o4755)),
    ('group', lambda: os.chmod('src/plain', 0o2755)),
    ('fchmod', lambda: os.fchmod(os.open('src/plain', os.O_RDONLY), 0o6755)),
    ('open', lambda: os.open('src/new', os.O_CREAT | os.O_WRONLY, 0o4755)),
    ('unnamed', lambda: os.open('src', os.O_TMPFILE | os.O_WRONLY, 0o4755)),
    ('mknod', lambda: os.mknod('src/node', stat.S_IFREG | 0o4755)),
    ('openat2', openat2),
):
    try:
        act()
        print('DID', name)
    except OSError:
        pass
os.chmod('src/plain', 0o700)
print(sorted(os.listdir('src')))
"""


async def test_no_file_gets_the_right_to_run_as_its_owner(start: Start, workspace: Path) -> None:
    """Outside, its owner is whoever owns the workspace, which may be root."""
    sandbox = await start(writes=("src",), programs=None)
    result = await sandbox.run(["/usr/bin/python3", "-I", "-S", "-c", SET_IDS], timeout_s=10)
    assert "DID" not in result.output.decode()
    assert not [p.name for p in (workspace / "src").rglob("*") if p.lstat().st_mode & 0o6000]


@pytest.mark.parametrize(
    ("setting", "path"),
    [("core.hooksPath=.husky", ".husky/pre-commit"), ("include.path=../.gitsettings", ".gitsettings")],
)
async def test_where_the_settings_of_git_lead_is_protected(start: Start, git: Path, setting: str, path: str) -> None:
    subprocess.run(["git", "-C", str(git), "-c", "safe.directory=*", "config", *setting.split("=")], check=True)
    sandbox = await start(**WHOLE, git=True)
    top = path.partition("/")[0]
    assert not await tries(sandbox, f"echo x > {path}", f"mv {top} other", f"rm -r {top}")


async def test_settings_of_linked_worktrees_are_protected(start: Start, git: Path, tmp_path: Path) -> None:
    linked = ["git", "-C", str(git), "-c", "safe.directory=*", "worktree", "add", "-q", str(tmp_path / "linked")]
    subprocess.run(linked, check=True, capture_output=True)
    sandbox = await start(**WHOLE, git=True)
    assert not await tries(
        sandbox,
        "echo ../e > .git/worktrees/linked/commondir",
        "mkdir .git/worktrees/e",
        "echo '[core]' > .git/config.worktree",
    )
