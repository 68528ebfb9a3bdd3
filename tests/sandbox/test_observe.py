"""Watching a command: what is answered to the kernel, what is told, and that nothing more is let through than without.

The other suites run once more with every command watched, see `test_watched_suites.py`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import subprocess
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sandbox.conftest import Start, change, names, open_fds
from sandbox.test_escapes import CALLS, inside
from sandbox.test_seccomp import ALLOW, ERRNO, KILL, answer, header
from sandbox.watching import MACHINE, SEND, Watch
from toka.core.capability import Capability
from toka.sandbox import observe
from toka.sandbox.host import Sandbox, shell
from toka.sandbox.refusal import Refusal
from toka.sandbox.seccomp import ABSENT, AUDIT, DENIED, Syscalls, compile_filter, numbers
from toka.sandbox.watched import WATCHED, Judge, names_of, watched, watching_filter
from toka.sandbox.watched import answer as answer_of

ASK, EBUSY = 0x7FC00000, 16
NETWORK = {"network": (Capability("network-access", hosts=("api.example.org",), ports=("443",)),)}
POLICIES = (Syscalls(), Syscalls((2, 10)), Syscalls(memfd=False))
WORDS = (0, 1, 2, 3, 5, 8, 10, 16, 17, 40, 0o100, 0o1000, 0o2000, 0o4755, 0o20666, 0x1000, 0x5412, 0x541C,
         0x10000, 0x20000, 0x10000000, 0x80002, 0x80802, 1 << 32 | 0x5412, 0xFFFFFFFF, 2**64 - 1)  # fmt: skip


def notice(number: int, *args: int, machine: str = MACHINE) -> bytearray:
    return bytearray(struct.pack("=QIIiIQ6Q", 7, 1, 0, number, AUDIT[machine], 0, *args, *[0] * (6 - len(args))))


# ---- what is answered


@pytest.mark.parametrize("machine", AUDIT)
@pytest.mark.parametrize("allowed", POLICIES, ids=["plain", "network", "a list"])
def test_a_call_is_answered_as_the_agents_filter_answers(machine: str, allowed: Syscalls) -> None:
    """For every call that is known, with arguments that matter to some of them: never more, and no other error."""
    agents, asking = compile_filter(machine, allowed), watching_filter(machine, allowed)
    judge, asked = Judge(machine, agents), 0
    calls = {name: number for number, name in names_of(machine).items()}
    some = [*product(WORDS, WORDS[:3], WORDS[:3]), *product(WORDS[:3], WORDS, WORDS[:3]), *product((0,), (0,), WORDS)]
    every = {**dict.fromkeys(calls, some), "socket": [*product(WORDS, WORDS, WORDS[:8])]}
    for number, args in ((calls[name], args) for name, tries in every.items() for args in tries):
        words = (*args, args[2])
        unwatched, now = answer(agents, machine, number, *words), answer(asking, machine, number, *words)
        if now == ASK:
            asked += 1
            error = judge.error_of(notice(number, *words, machine=machine))
            assert (ERRNO | error if error else ALLOW) == unwatched, (names_of(machine)[number], words)
        elif number != numbers(machine)["seccomp"]:
            assert now == unwatched, (names_of(machine)[number], words)
    assert asked > 20_000


@pytest.mark.parametrize("machine", AUDIT)
def test_only_calls_of_the_table_ever_go_on(machine: str) -> None:
    """Also if somebody is asked about others, which the agent's filter lets through."""
    judge = Judge(machine, compile_filter(machine, Syscalls()))
    for number in range(600):
        assert (judge.error_of(notice(number, machine=machine)) == 0) == (number in watched(machine)), number
    nothing = Judge(machine, struct.pack("=HBBI", 0x06, 0, 0, KILL))
    assert {nothing.error_of(notice(number, machine=machine)) for number in watched(machine)} == {errno.EPERM}
    with pytest.raises(ValueError, match="no instruction"):
        Judge(machine, struct.pack("=HBBI", 0x99, 0, 0, 0))


def test_an_answer_is_one_or_the_other() -> None:
    assert struct.unpack("=QqiI", answer_of(7, 0)) == (7, 0, 0, 1)
    assert struct.unpack("=QqiI", answer_of(7, 97)) == (7, 0, -97, 0)


@pytest.mark.parametrize("machine", AUDIT)
def test_the_watched_calls_have_the_kernels_numbers_and_are_none_that_are_always_refused(machine: str) -> None:
    known = header(machine)
    ours = {name: number for number, name in watched(machine).items()}
    assert not {name: number for name, number in ours.items() if known.get(name, number) != number}
    other = {"newfstatat"} if machine == "aarch64" else set[str]()  # the header calls it fstatat
    assert set(ours) - set(known) - other <= {"fchmodat2"}
    assert not {name for name in WATCHED if name in known} - set(ours)
    assert not WATCHED.keys() & (DENIED.keys() | ABSENT.keys() | {"socket", "ioctl", "clone", "prctl", "seccomp"})


@pytest.mark.parametrize("machine", AUDIT)
def test_nobody_inside_becomes_a_listener(machine: str) -> None:
    asking = watching_filter(machine, Syscalls())
    seccomp = numbers(machine)["seccomp"]
    assert answer(asking, machine, seccomp, 1, 8) == answer(asking, machine, seccomp, 1, 8 | 32) == ERRNO | EBUSY
    assert answer(asking, machine, seccomp, 1, 0) == ALLOW


def test_foreign_architectures_still_end_the_process() -> None:
    asking = watching_filter("x86_64", Syscalls())
    assert answer(asking, "x86_64", 2, arch=0x40000003) == answer(asking, "x86_64", 0x40000000 | 2) == KILL


# ---- real commands


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Every command of the test is watched."""
    watch = Watch()
    monkeypatch.setattr(Sandbox, "_send", watch.replacement())
    return watch


async def told(watch: Watch) -> list[Refusal]:
    """What was told, when nothing more comes."""
    for observer in watch.observers:
        await observer.finish()
    return watch.refusals


ERRORS = f"""
for name in {sorted(CALLS)}:
    if name not in ('personality', 'prctl', 'capset'):
        found[name] = call(name, *[-1] * 6)
for family in (1, 2, 10, 16, 17, 40, 99):
    for kind in (1, 2, 3, 5, 1 | 0o2000000):
        found[f'socket {{family}} {{kind}}'] = call('socket', family, kind, 0)
for path in ('/usr/new', '/workspace/docs/new', '/workspace/src/new', '/new', '/proc/sys/new', '/root/x', '/tmp/y'):
    found['make ' + path] = tried(os.mkdir, path)
    found['write ' + path] = looked(path, os.O_WRONLY | os.O_CREAT)
    found['read ' + path] = looked(path)
    found['remove ' + path] = tried(os.rmdir, path)
found['set-id'] = tried(os.chmod, '/tmp', 0o4755)
found['fifo'] = tried(os.mkfifo, '/tmp/fifo')
found['device'] = tried(os.mknod, '/tmp/null', 0o20666, os.makedev(1, 3))
found['exec'] = tried(os.execv, '/none', ['none'])
found['connect'] = tried(socket.create_connection, ('127.0.0.1', 22))
found['listen'] = tried(lambda: socket.socket().bind(('127.0.0.1', 8000)))
found['bad path'] = call('mknodat', -100, 1, 0o10666, 0)
"""


async def test_every_error_is_that_of_an_agents_sandbox(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({}, NETWORK):
        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, "_send", SEND)
            unwatched = await inside(await start(**options), ERRORS)
        watch = Watch()
        with monkeypatch.context() as patch:
            patch.setattr(Sandbox, "_send", watch.replacement())
            assert await inside(await start(**options), ERRORS) == unwatched
        assert watch.lost == 0
        assert await told(watch)


async def test_each_refusal_is_told_with_its_layer_and_need(start: Start, watch: Watch, workspace: Path) -> None:
    sandbox = await start(git=False)
    (workspace / "secret").write_text("x")
    script = "echo x > docs/new; rm docs/a.txt; mv docs/a.txt src/; cat secret; cat private/key; unshare -r true;" \
        "echo x > src/ok; cat /etc/shadow; echo x > /usr/x; mkdir /x"  # fmt: skip
    await sandbox.run(shell(f"cd /workspace; {script}"), timeout_s=20)

    def write(path: str) -> Capability:
        return Capability("filesystem-write", paths=(path,))

    def read(path: str) -> Capability:
        return Capability("filesystem-read", paths=(path,))

    assert await told(watch) == [
        Refusal("write", "/workspace/docs/new", "mounts", "docs is read-only", write("docs")),
        Refusal("remove", "/workspace/docs/a.txt", "mounts", "docs is read-only", write("docs")),
        Refusal("rename", "/workspace/docs/a.txt", "mounts", "docs is read-only", write("docs")),
        Refusal("read", "/workspace/secret", "mounts", "not granted", read("secret")),
        Refusal("read", "/workspace/private/key", "mounts", "not granted", read("private/key")),
        Refusal("", "unshare", "seccomp"),
        Refusal("read", "/etc/shadow", "mounts", "not in this sandbox", outside=True),
        Refusal("write", "/usr/x", "mounts", "/usr is read-only", outside=True),
        Refusal("write", "/x", "mounts", "/ is read-only", outside=True),
    ]
    assert (workspace / "src/ok").read_text() == "x\n"


async def test_protected_paths_say_why(start: Start, watch: Watch, workspace: Path) -> None:
    subprocess.run(["git", "init", "-q", str(workspace)], check=True)
    (workspace / ".mcp.json").write_text("{}")
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", str(workspace.stat().st_uid), str(workspace)], check=True)
    sandbox = await start(reads=(), writes=(".",), git=True)
    script = "echo x > .git/hooks/post-commit; echo x >> .git/config; mv .git .g; rm -r .git/hooks; echo x > .envrc;" \
        "echo x > toka.toml; echo x > .mcp.json; git add docs"  # fmt: skip
    await sandbox.run(shell(script), timeout_s=20)
    git = "git runs or obeys what lies there"
    others = "others run or trust what lies there"
    assert {(r.subject, r.layer, r.rule, r.need and r.need.text) for r in await told(watch)} >= {
        ("/workspace/.git/hooks/post-commit", "protected", git, None),
        ("/workspace/.git/config", "protected", git, None),
        ("/workspace/.git", "mounts", "it is, or holds, what is protected or granted apart", None),
        ("/workspace/.envrc", "protected", others, None),  # it is only there to be protected
        ("/workspace/.mcp.json", "protected", others, "filesystem-write: .mcp.json"),
        ("/workspace/toka.toml", "protected", others, None),
    }
    assert not [r for r in watch.refusals if "index" in r.subject]


async def test_programs_connections_and_links(start: Start, watch: Watch) -> None:
    sandbox = await start(programs=("bash", "python3"), warm=False, **NETWORK)
    script = """
import os, socket
for act in (lambda: socket.create_connection(("127.0.0.1", 22)), lambda: socket.socket().bind(("0.0.0.0", 8000)),
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), lambda: socket.socket(socket.AF_UNIX),
            lambda: os.memfd_create("x"), lambda: os.symlink("/etc/shadow", "/tmp/l"), lambda: open("/tmp/l")):
    try: act()
    except OSError: pass
open("/tmp/tool", "w").write("x"); os.chmod("/tmp/tool", 0o755)
"""
    await sandbox.run(["bash", "-c", f"python3 -c '{script}'; ls; /tmp/tool; exec 3<>/dev/null"], timeout_s=20)
    found = {(r.what, r.subject, r.layer, r.need and r.need.text) for r in await told(watch)}
    assert found == {
        ("connect to", "127.0.0.1:22", "Landlock", None), ("listen at", "0.0.0.0:8000", "Landlock", None),
        ("", "socket AF_INET datagram", "seccomp", None), ("", "socket AF_UNIX", "seccomp", None),
        ("", "memfd_create", "seccomp", "command-execution"), ("read", "/etc/shadow", "mounts", None),
        ("run", "ls", "programs", "command-execution: ls"), ("run", "/tmp/tool", "mounts", "command-execution"),
    }  # fmt: skip


QUIET = """
import asyncio, json, multiprocessing, sqlite3, socket, ssl, subprocess, tempfile, threading
subprocess.run(["true"]); threading.Thread(target=print).start(); tempfile.mkdtemp()
try: open("/etc/inputrc")
except OSError: pass
"""


async def test_a_session_that_does_nothing_forbidden_is_quiet(start: Start, watch: Watch, workspace: Path) -> None:
    subprocess.run(["git", "init", "-q", str(workspace)], check=True)
    (workspace / "m.py").write_text(QUIET)
    (workspace / "Makefile").write_text("all:\n\tcat docs/a.txt\n")
    (workspace / "link").symlink_to("/root")
    sandbox = await start(reads=(".",), writes=())
    script = "ls -la . / /etc /usr; cd src; cd ..; git status; git log; git diff; python3 -c 'import m'; make;" \
        "find . > /tmp/x; sort < /tmp/x | head; id; ps; df; date; env; cat < /dev/null > /dev/zero;" \
        "(echo 'int main(){}' > /tmp/a.c; gcc /tmp/a.c -o /tmp/a && /tmp/a); test -e /usr/none; cat no; :"  # fmt: skip
    result = await sandbox.run(["bash", "-lc", script], timeout_s=60)
    assert result.exit_code == 0, result
    assert await told(watch) == []


async def test_threads_and_children_share_one_listener_and_a_flood_ends(start: Start, watch: Watch) -> None:
    found = await inside(
        await start(),
        """
        import threading
        def work(n):
            for i in range(300):
                found[looked(f'/workspace/docs/{n}', os.O_WRONLY | os.O_CREAT)] = 1
                found[call('unshare', 0x10000000)] = 1
        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads: thread.start()
        pids = []
        for n in range(8, 12):
            pid = os.fork()
            if pid == 0:
                work(n)
                os._exit(set(found) != {'EROFS', 'EPERM'})
            pids.append(pid)
        for thread in threads: thread.join()
        found['children'] = [os.waitpid(pid, 0)[1] for pid in pids]
        """,
    )
    assert found == {"EROFS": 1, "EPERM": 1, "children": [0] * 4}
    refusals = await told(watch)
    assert {r.subject for r in refusals} == {"unshare", *(f"/workspace/docs/{n}" for n in range(12))}
    assert len(refusals) == 13


async def test_a_command_that_never_stops_asking_is_killed_at_its_deadline(start: Start, watch: Watch) -> None:
    sandbox = await start()
    script = "while :; do true > docs/x; done 2> /dev/null & while :; do true > docs/y; done 2> /dev/null"
    began = time.monotonic()
    result = await sandbox.run(shell(script), timeout_s=1)
    assert result.ended == "timeout"
    assert time.monotonic() - began < 5
    await told(watch)
    assert (await sandbox.run(["true"], timeout_s=10)).exit_code == 0


async def test_arguments_that_make_no_sense_are_the_kernels_business(start: Start, watch: Watch) -> None:
    calls = {name: number for number, name in watched(MACHINE).items() if WATCHED[name].action != "run"}
    found = await inside(
        await start(),
        f"""
        for name, number in {calls}.items():
            for value in (-1, 0, 1, 4096, 2**63 - 1, -2**63, 0x7ffffffff000):
                found[f'{{name}} {{value}}'] = call(number, *[value] * 6)
            found[name + ' long'] = call(number, *[b'x' * 5000] * 6)
        found = {{'did': sorted(set(k.split()[0] for k, v in found.items() if v == 'did'))}}
        """,
    )
    assert found["did"] == ["utimensat"] or found["did"] == []
    assert watch.lost == 0


# ---- when nobody watches


@pytest.mark.parametrize("where", ["error_of", "answer"])
async def test_a_watch_that_breaks_off_lets_nothing_through(
    start: Start, watch: Watch, workspace: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The kernel answers in its place: such calls do not exist any more."""
    sandbox = await start(writes=(".",), reads=())

    def broken(*_: object) -> Any:
        if (workspace / "go").exists():
            raise RuntimeError("broken")
        return original(*_)

    place: Any = Judge if where == "error_of" else observe
    original = getattr(place, where)
    monkeypatch.setattr(place, where, broken)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    source = """
        try: open('go', 'w').close()
        except OSError: pass
        found['write'] = looked('late', os.O_WRONLY | os.O_CREAT)
        found['unshare'] = call('unshare', 0x10000000)
        found['socket'] = call('socket', 1, 1, 0)
        found['mkdir'] = tried(os.mkdir, 'later')
        found['exec'] = tried(os.execv, '/bin/true', ['true'])
        """
    assert set((await inside(sandbox, source)).values()) == {"ENOSYS"}
    assert "late" not in names(workspace)
    assert watch.lost == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    program = program_of(instructions)", "    raise OSError(errno.EBUSY, '')"),
        ("(80, 24, 64)", "(80, 32, 64)"),
    ],
    ids=["another one listens", "a kernel that asks otherwise"],
)
async def test_where_no_listener_can_be_had_the_agents_filter_holds(
    start: Start,
    watch: Watch,
    code_inside: Path,
    old: str,
    new: str,
) -> None:
    change(code_inside / "listener.py", old, new)
    found = await inside(
        await start(),
        """
        found['unshare'] = call('unshare', 0x10000000)
        found['socket'] = call('socket', 1, 1, 0)
        found['io_uring'] = call('io_uring_setup', 1, 0)
        """,
    )
    assert found == {"unshare": "EPERM", "socket": "EAFNOSUPPORT", "io_uring": "ENOSYS"}
    assert await told(watch) == []
    assert watch.observers[-1].seen == 0


async def test_another_error_of_the_kernel_refuses_the_command(
    start: Start,
    watch: Watch,
    code_inside: Path,
) -> None:
    change(code_inside / "listener.py", "    program = program_of(instructions)", "    raise OSError(errno.ENOMEM, '')")
    result = await (await start()).run(["true"], timeout_s=10)
    assert result.ended == "refused"
    await told(watch)
    assert watch.lost == 0
    assert watch.observers[-1].seen == -1


@pytest.mark.parametrize(
    ("says", "error"), [(ALLOW, "EPERM"), (0x7FF00000, "EPERM"), (0x7FFC0000, "EPERM"), (ASK, "ENOSYS")]
)
async def test_no_filter_of_ones_own_lets_anything_through(start: Start, watch: Watch, says: int, error: str) -> None:
    """Of several filters the strictest counts; that of equals which came last, and nobody listens to it."""
    found = await inside(
        await start(),
        f"""
        steps = [(0x20, 0, 0, 0), (0x15, 0, 1, N['unshare']), (6, 0, 0, {says}), (6, 0, 0, {ALLOW})]
        steps = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *step) for step in steps))
        program = ctypes.create_string_buffer(struct.pack('=HxxxxxxQ', 4, ctypes.addressof(steps)))
        found['listener'] = call({numbers(MACHINE)["seccomp"]}, 1, 8, program)
        pid = os.fork()
        if pid == 0:
            if call('prctl', 22, 2, program, 0, 0) != 'did':
                os._exit(1)
            os._exit(2 if call('unshare', 0x10000000) == 'did' else 3 if ctypes.get_errno() == errno.{error} else 4)
        found['code'] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        """,
    )
    assert found == {"listener": "EBUSY", "code": 3}


async def test_nothing_of_a_watch_is_left(start: Start, watch: Watch) -> None:
    sandbox = await start()
    await sandbox.run(["true"], timeout_s=10)
    await told(watch)
    before = open_fds()
    for _ in range(5):
        await sandbox.run(shell("echo x > docs/x"), timeout_s=10)
    await told(watch)
    await asyncio.sleep(0.1)
    assert open_fds() == before


async def test_a_command_finds_no_descriptor_of_the_watch(start: Start, watch: Watch) -> None:
    found = await inside(await start(), "found['fds'] = os.listdir('/proc/self/fd')")
    assert sorted(found["fds"]) == ["0", "1", "2", "3"]  # the last is the listing's own
    await told(watch)
