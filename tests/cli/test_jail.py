"""`toka jail`, as a person meets it: real processes, real terminals."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import re
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cli.records import COMMAND, Toka
from toka import version
from toka.cli.jail import GRACE_S, read_grant, read_limits
from toka.cli.render_jail import Jailed, ending
from toka.cli.render_layers import unseen, wider
from toka.cli.text import plain
from toka.config.settings import Settings
from toka.core.capability import Capability, Grant
from toka.core.limits import Limits
from toka.core.operator import OperatorPolicy
from toka.errors import UsageError
from toka.sandbox.command import CommandResult
from toka.sandbox.egress_link import Attempt
from toka.sandbox.policy import SandboxPolicy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here"),
]
PATIENCE_S = 20.0


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "ws"
    (folder / "src").mkdir(parents=True)
    (folder / "a.txt").write_text("alpha\n")
    (folder / "src/b.txt").write_text("beta\n")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    source = str(Path(version.__file__).parents[1])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": source, "HOME": str(tmp_path / "home"),
            "TERM": "xterm-test", "SECRET": "of-the-person"}  # fmt: skip


Jail = Callable[..., subprocess.CompletedProcess[str]]
Begin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def jail(workspace: Path, environment: dict[str, str]) -> Jail:
    """Runs one to its end, through pipes."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, "text": True, "capture_output": True, "timeout": 60, **options}
        return subprocess.run([*COMMAND, "jail", *arguments], cwd=workspace, env=environment, **options)

    return run


@pytest.fixture
def begin(workspace: Path, environment: dict[str, str]) -> Iterator[Begin]:
    """Starts one with pipes, and kills it at the end of the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen([*COMMAND, "jail", *arguments], cwd=workspace, env=environment, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()


class Terminal:
    """A terminal with a jail in it, and the person in front of it."""

    def __init__(self, begin: Begin, *arguments: str, **streams: Any) -> None:
        self.screen, self.fd = pty.openpty()
        self.resize(33, 101)
        self.modes = termios.tcgetattr(self.fd)
        fd = self.fd
        own = {"stdin": fd, "stdout": fd, "stderr": fd, **streams}
        self.process = begin(
            *arguments,
            **own,
            start_new_session=True,
            pass_fds=(fd,),
            preexec_fn=lambda: fcntl.ioctl(fd, termios.TIOCSCTTY, 0),
        )
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def read(self) -> bytes:
        """What can be read now; empty when nothing comes for a moment."""
        ready, _, _ = select.select([self.screen], [], [], 0.2)
        block = os.read(self.screen, 65536) if ready else b""
        self.seen += block
        return block

    def until(self, pattern: str) -> str:
        """Reads until the screen shows something; what came by then, which is forgotten."""
        end = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern.encode(), self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            self.read()
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text.decode()

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def ask(self, line: str, pattern: str) -> str:
        """Types a line and waits for an answer that is not the line's echo."""
        self.type(line + "\n")
        return self.until(pattern)

    def end(self) -> int:
        """The exit code; the screen is read meanwhile, as a person's is."""
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end, self.seen
            self.read()
        while self.read():
            pass
        return self.process.returncode

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was."""
        return termios.tcgetattr(self.fd) == self.modes

    def close(self) -> None:
        os.close(self.screen)
        os.close(self.fd)


@pytest.fixture
def terminal(begin: Begin) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_(*arguments: str, **streams: Any) -> Terminal:
        opened.append(Terminal(begin, *arguments, **streams))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


Open = Callable[..., Terminal]
BASH = ("--", "bash", "--norc", "--noediting")


def living(marker: str) -> list[int]:
    """Processes of this machine, but for toka itself, whose command line holds the marker."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if marker.encode() in line and b"toka.cli.main" not in line:
                found.append(int(folder.name))
    return found


def gone(marker: str) -> bool:
    """Whether no process with the marker lives, or none after a moment: the kernel kills what is inside, then reaps."""
    end = time.monotonic() + 2
    while living(marker):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def wait_for(marker: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not living(marker):
        assert time.monotonic() < end
        time.sleep(0.02)


def unique() -> str:
    """A number of seconds that no other test sleeps for."""
    return f"{600 + secrets.randbelow(10**6)}.{secrets.randbelow(10**9)}"


# ---- pipes


def test_streams_are_kept_apart_and_the_code_is_the_commands(jail: Jail) -> None:
    done = jail("--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143), ("exec /none", 127)],
)
def test_exit_codes_are_as_a_shell_gives_them(jail: Jail, command: str, code: int) -> None:
    assert jail("--", "sh", "-c", command).returncode == code


def test_a_program_that_is_missing_or_none_has_the_code_of_a_shell(jail: Jail) -> None:
    missing = jail("--", "no-such-program")
    assert missing.returncode == 127
    assert "no-such-program: No such file" in missing.stderr
    assert jail("--", "./a.txt").returncode == 126


def test_all_bytes_pass_both_ways(begin: Begin) -> None:
    data = secrets.token_bytes(1 << 20) * 40 + secrets.token_bytes(12345)  # more than any pipe, or any limit of output
    process = begin("--", "tee", "/dev/stderr")
    out, err = process.communicate(data, timeout=60)
    assert process.returncode == 0
    for copy in (out, err):
        assert len(copy) == len(data)
        assert hashlib.sha256(copy).digest() == hashlib.sha256(data).digest()


def test_files_serve_as_streams(jail: Jail, tmp_path: Path) -> None:
    data = secrets.token_bytes(3_000_001)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        done = jail("--", "cat", stdin=source, stdout=sink, stderr=None, capture_output=False)
    assert done.returncode == 0
    assert (tmp_path / "out").read_bytes() == data


def test_a_reader_that_leaves_ends_the_command(begin: Begin) -> None:
    process = begin("--", "yes")
    assert process.stdout is not None
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(20) == 128 + signal.SIGPIPE


def test_input_that_nobody_reads_holds_nothing_up(begin: Begin) -> None:
    process = begin("--", "true")  # our end of its input stays open
    assert process.wait(20) == 0


def test_output_that_cannot_be_written_is_told(jail: Jail) -> None:
    with Path("/dev/full").open("w") as full:
        done = jail("--", "sh", "-c", "echo x; echo x; sleep 0.2; echo y", stdout=full, stderr=subprocess.PIPE,
                    capture_output=False)  # fmt: skip
    assert "not all output could be written: No space left" in done.stderr


def test_closed_streams_are_empty_ones(begin: Begin) -> None:
    process = begin("--", "sh", "-c", "cat; exit 3", preexec_fn=lambda: (os.close(0), os.close(2)))
    assert process.wait(20) == 3


def test_no_descriptor_of_the_person_comes_in(jail: Jail, workspace: Path) -> None:
    with workspace.parent.joinpath("secret").open("w+") as secret:
        inside = "import os; print([os.readlink(f'/proc/self/fd/{fd}').split(':')[0] for fd in range(3)])"
        done = jail("--", "python3", "-c", inside, stdin=secret)
    assert done.stdout == "['pipe', 'pipe', 'pipe']\n"


def test_the_streams_can_be_opened_by_name(jail: Jail) -> None:
    done = jail("--", "sh", "-c", "cat /dev/stdin; echo err > /dev/stderr; echo out > /dev/stdout", input="in\n",
                stdin=None)  # fmt: skip
    assert (done.stdout, done.stderr) == ("in\nout\n", "err\n")


# ---- what holds


def test_the_way_out_is_shut(jail: Jail, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret\n")
    tries = f"""
        ls /root /home /run {tmp_path} 2>&1 | grep -v 'No such file'
        unshare -r true && echo unshare
        echo x > /workspace/new && echo wrote
        echo x > /usr/new && echo wrote /usr
        mount -t tmpfs none /tmp && echo mount
        echo $SECRET
        id -u
        cat a.txt
    """
    done = jail("--", "sh", "-c", tries)
    uid, *rest = done.stdout.split()
    assert int(uid) == os.getuid() or os.getuid() == 0
    assert uid != "0"
    assert rest == ["alpha"]
    assert sorted(p.name for p in workspace.iterdir()) == ["a.txt", "src"]


def test_a_grant_opens_what_it_names_and_keeps_the_rest(jail: Jail, workspace: Path) -> None:
    done = jail("--grant", "filesystem-write: src", "--", "sh", "-c", "echo new > src/c; cat a.txt; echo x > d")
    assert (workspace / "src/c").read_text() == "new\n"
    assert not (workspace / "d").exists()
    assert done.stdout == "alpha\n"
    assert done.returncode != 0


def test_a_grant_of_paths_to_read_takes_the_place_of_the_default(jail: Jail) -> None:
    done = jail("--grant", "filesystem-read: src", "--", "sh", "-c", "cat src/b.txt a.txt 2>&1")
    assert done.stdout == "beta\ncat: a.txt: No such file or directory\n"


def test_a_grant_of_programs_takes_the_place_of_the_default(jail: Jail) -> None:
    assert jail("--grant", "python-execution", "--", "python3", "-c", "print(1)").stdout == "1\n"
    done = jail("--grant", "command-execution: cat", "--", "bash", "-c", "echo x")
    assert done.returncode == 127
    assert sorted(done.stderr.splitlines()) == [
        "toka: bash: No such file or directory",
        "toka: refused: run bash (programs: not among cat); --grant 'command-execution: bash' allows it",
    ]


CONNECT = """
import os, socket, sys
host, port = os.environ["HTTPS_PROXY"].removeprefix("http://").split(":")
for wanted in sys.argv[1:]:
    with socket.create_connection((host, int(port))) as s:
        s.sendall(f"CONNECT {wanted} HTTP/1.1\\r\\nHost: {wanted}\\r\\n\\r\\n".encode())
        print(s.recv(12).decode())
"""


def test_a_refused_host_is_told_with_the_grant_that_would_allow_it(jail: Jail) -> None:
    done = jail("--grant", "network-access: *.example.org", "--", "python3", "-c", CONNECT, "other.test:443",
                "other.test:443", "x.example.org:8443", "127.0.0.1:443")  # fmt: skip
    assert done.stdout == "HTTP/1.1 403\n" * 3 + "HTTP/1.1 403\n"
    assert "toka: the proxy refused other.test:443 2 times: other.test is refused" in done.stderr
    assert "toka:   --grant 'network-access: other.test' allows it" in done.stderr
    assert "toka:   --grant 'network-access: x.example.org:8443' allows it" in done.stderr
    assert "127.0.0.1:443: the host is not a plain DNS name" in done.stderr
    assert done.stderr.count("allows it") == 2
    assert "in force" not in done.stderr


def test_without_a_grant_there_is_no_network_at_all(jail: Jail) -> None:
    inside = "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM)"
    done = jail("--", "python3", "-c", inside)
    assert "Address family not supported" in done.stderr


def test_explain_tells_the_layers_and_what_is_wider(jail: Jail, workspace: Path) -> None:
    done = jail("--explain", "--limit", "memory=256MB", "--limit", "timeout=1m", "--grant", "filesystem-write: src",
                "--", "sh", "-c", "echo inside; exit 1")  # fmt: skip
    assert done.stdout == "inside\n"
    for line in (
        "mounts +read-only: /workspace, ", " +writable: /workspace/src, /tmp ", r"Landlock +(version \d|not in)",
        "seccomp ", r"user +\d+ on this machine", "limit memory +256MB: .", "limit processes +256: .",
        "limit timeout +1m: ", "network +none", "write +/workspace/src, /tmp", "wider +--grant 'network-access: HOST'",
    ):  # fmt: skip
        assert re.search(line, done.stderr), f"no {line!r} in {done.stderr}"
    assert f"user             {os.getuid() or 64000}" in done.stderr
    fine = jail("--explain", "--", "true").stderr
    assert "wider" not in fine
    assert "which layer" not in fine


NO_GRANT = "no grant allows it"
OUTSIDE = "no grant reaches outside the workspace"


@pytest.mark.parametrize(
    ("script", "error", "told"),
    [
        ("cat /etc/shadow", "No such file or directory", f"read /etc/shadow (mounts: not in this sandbox); {OUTSIDE}"),
        ("ls /root", "No such file or directory", f"read /root (mounts: not in this sandbox); {OUTSIDE}"),
        (
            "echo x > src/new",
            "Read-only file system",
            "write /workspace/src/new (mounts: the workspace is read-only); --grant 'filesystem-write: src' allows it",
        ),
        (
            "echo x > a.txt",
            "Read-only file system",
            "write /workspace/a.txt (mounts: the workspace is read-only); --grant 'filesystem-write: a.txt' allows it",
        ),
        ("mkdir /usr/new", "Read-only file system", f"write /usr/new (mounts: /usr is read-only); {OUTSIDE}"),
        (
            "cp /usr/bin/cat /tmp/x; /tmp/x",
            "Permission denied",
            "run /tmp/x (mounts: what can be written cannot be run); --grant command-execution allows it",
        ),
        ("mknod /tmp/n c 1 5", "Operation not permitted", f"mknod (seccomp: no devices); {NO_GRANT}"),
        ("unshare -r true", "Operation not permitted", f"unshare (seccomp); {NO_GRANT}"),
        (
            "python3 -c 'import socket; socket.socket()'",
            "Address family not supported",
            "socket AF_INET (seccomp: no network is granted); --grant 'network-access: HOST' allows it",
        ),
        (
            "python3 -c 'import socket; socket.socket(socket.AF_UNIX)'",
            "Address family not supported",
            f"socket AF_UNIX (seccomp); {NO_GRANT}",
        ),
        (
            "mkdir .git; git init -q .",
            "Read-only file system",
            f"write /workspace/.git (protected: no repository can be made here); {NO_GRANT}",
        ),
        (
            "echo x > .envrc",
            "Read-only file system",
            f"write /workspace/.envrc (protected: others run or trust what lies there); {NO_GRANT}",
        ),
        (
            "echo x > .mcp.json",
            "Read-only file system",
            "write /workspace/.mcp.json (protected: others run or trust what lies there); "
            "--grant 'filesystem-write: .mcp.json' allows it",
        ),
        (
            "head a.txt",
            "command not found",
            "run head (programs: not among bash, cat, cp, git, ls, mkdir and 4 more); "
            "--grant 'command-execution: head' allows it",
        ),
    ],
)
def test_each_refusal_is_told_with_its_layer_and_what_would_allow_it(
    jail: Jail, workspace: Path, script: str, error: str, told: str
) -> None:
    (workspace / ".mcp.json").write_text("{}")
    names = ("sh", "bash", "cat", "cp", "git", "ls", "mkdir", "mknod", "unshare", "python3")
    done = jail("--grant", "command-execution: " + ", ".join(names), "--", "bash", "-c", f"({script}) 2>&1")
    assert error in done.stdout
    assert re.findall("toka: (.*)", done.stderr) == [f"refused: {told}"]  # what the command prints may be around it


def test_what_is_told_would_allow_it(jail: Jail, workspace: Path) -> None:
    """The flag of each line, given to the same command, lets it through."""
    (workspace / "private").mkdir()
    (workspace / "private/key").write_text("secret\n")
    given: list[str] = ["--grant", "command-execution: bash", "--grant", "filesystem-read: src"]
    script = "cat private/key && echo x > src/new && cp src/b.txt src/tool"
    for _ in range(6):
        done = jail(*given, "--", "bash", "-c", script)
        if done.returncode == 0:
            break
        (flag,) = re.findall("refused: .*--grant (?:'([^']+)'|([a-z-]+)) allows it", done.stderr)
        given += ["--grant", flag[0] or flag[1]]
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (workspace / "src").iterdir()) == ["b.txt", "new", "tool"]
    assert given[4::2] == ["--grant"] * 4
    assert given[5::2] == ["command-execution: cat", "filesystem-read: private/key", "filesystem-write: src",
                           "command-execution: cp"]  # fmt: skip


def test_a_refusal_is_told_when_it_happens(begin: Begin) -> None:
    process = begin("--", "sh", "-c", "mkdir src/new 2> /dev/null; read x")
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"toka: refused: write /workspace/src/new (mounts: ")
    assert process.poll() is None
    process.communicate(b"\n", timeout=20)


def test_refusals_are_told_once_and_many_are_cut(jail: Jail) -> None:
    done = jail("--", "bash", "-c", "for i in {1..25} {1..25}; do mkdir src/$i; done 2> /dev/null")
    lines = done.stderr.splitlines()
    assert len(lines) == 11
    assert len(set(lines)) == 11
    assert lines[-1] == "toka: refused: 15 more, not shown"


def test_a_hostile_path_does_not_drive_the_terminal(jail: Jail) -> None:
    done = jail("--", "python3", "-c", "open('/workspace/\x1b[2J\\x1b]0;x\\x07\\nnew\\udcff', 'w')")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("toka: refused")]
    assert line.isprintable()
    assert "(mounts: the workspace is read-only); --grant filesystem-write allows it" in line


def test_a_session_that_does_nothing_forbidden_says_nothing(jail: Jail, workspace: Path) -> None:
    subprocess.run(["git", "init", "-q", str(workspace)], check=True)
    (workspace / "Makefile").write_text("all:\n\tcat a.txt\n")
    script = "ls -la . /; cd src; cd ..; git status; make; python3 -c 'import json, ssl'; cat a.txt | sort > /tmp/x; id"
    assert jail("--", "bash", "-lc", script).stderr == ""


def test_with_a_terminal_refusals_are_told_at_the_end(terminal: Open) -> None:
    t = terminal(*BASH)
    t.until(r"\$ ")
    t.ask("mkdir src/new; echo x > new; ls /root; echo done", r"[^;] done\r\n|\ndone\r\n")
    assert b"refused" not in t.seen
    t.type("exit 3\n")
    assert t.end() == 3
    lines = [line for line in t.seen.decode().split("\r\n") if line.startswith("toka:")]
    assert [line.partition(" (")[0] for line in lines] == [
        "toka: refused: write /workspace/src/new", "toka: refused: write /workspace/new", "toka: refused: read /root",
    ]  # fmt: skip
    assert t.restored


def test_a_command_that_asks_without_end_can_be_ended(begin: Begin, terminal: Open) -> None:
    loop = "while :; do mkdir src/new; done 2> /dev/null"
    process = begin("--", "bash", "-c", f"echo on; {loop}")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (130, 1)
    t = terminal("--", "bash", "-c", f"trap '' INT; echo on; {loop}")
    t.until("on")
    t.type("\x1d\x1d\x1d")
    assert t.end() == 137
    assert t.restored


BREAKS = """
from pathlib import Path
from toka.sandbox.watched import Judge
whole = Judge.error_of
def broken(self, notice):
    assert not Path("src/go").exists()
    return whole(self, notice)
Judge.error_of = broken
from toka.cli.main import main
main()
"""


def test_a_command_that_nobody_watches_any_more_is_ended(workspace: Path, environment: dict[str, str]) -> None:
    marker = unique()
    script = f"sleep {marker} & touch src/go; while :; do :> src/late; unshare -r true && :> src/out; done"
    arguments = ["jail", "--grant", "filesystem-write: src", "--", "bash", "-c", script]
    whole = [sys.executable, "-c", BREAKS, *arguments]
    done = subprocess.run(whole, cwd=workspace, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 137
    assert "toka: the watch over the command broke off, so it is ended\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in (workspace / "src").iterdir()) == ["b.txt", "go"]
    assert gone(marker)


def test_the_limit_of_processes_is_explained(jail: Jail) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; exit 1"
    done = jail("--explain", "--limit", "processes=6", "--", "bash", "-c", script)
    assert "Resource temporarily unavailable" in done.stderr.partition("toka: in force:")[0]
    assert re.search(r"told one by one:\n +Resource temp\w+ unavailable +the limit of processes, 6", done.stderr)


def test_explain_says_why_refusals_are_not_told(tmp_path: Path) -> None:
    job = Jailed(("ls",), tmp_path, SandboxPolicy(programs=None), None, OperatorPolicy(), Grant(), explain=True)
    assert unseen(job, watched=True) == ""
    assert unseen(job, watched=False).endswith("cannot be seen from outside on this machine")
    table = "\n".join(wider(job, plain, watched=False))
    for error in ("No such file or directory", "Read-only file system", "Permission denied", "Operation not permitted"):
        assert error in table
        assert error not in "\n".join(wider(job, plain, watched=True))


def test_explain_tells_refusals_while_it_runs(begin: Begin) -> None:
    script = CONNECT + "import sys; sys.stdin.read()"
    process = begin(
        "--explain", "--grant", "network-access: *.example.org", "--", "python3", "-c", script, "a.test:443"
    )
    assert process.stderr is not None
    assert process.stderr.readline() == (
        b"toka: the proxy refused: a.test is refused: this agent may reach *.example.org\n"
    )
    assert process.poll() is None
    process.communicate(b"")


def test_the_operators_policy_binds_a_person_too(jail: Jail, workspace: Path) -> None:
    (workspace / "toka.toml").write_text(
        '[policy]\ndeny = ["command-execution: cat", "filesystem-write: src", "network-access"]\n'
    )
    done = jail("--explain", "--grant", "filesystem-write: src", "--", "sh", "-c", "cat a.txt; echo x > src/c")
    assert done.stdout == ""
    assert not (workspace / "src/c").exists()
    assert "the settings' [policy] does not allow all of it: filesystem-write: src" in done.stderr
    assert "wider  --grant 'network-access" not in done.stderr
    assert "toka: refused: run cat (programs: the settings' [policy] denies it); no grant" in jail("--", "cat").stderr
    (workspace / "toka.toml").write_text('[policy]\ndeny = ["command-execution"]\n')
    done = jail("--", "true")
    assert done.returncode == 5
    assert "lets no program run" in done.stderr


def test_a_refused_host_that_the_operator_denies_has_no_flag(jail: Jail, workspace: Path) -> None:
    (workspace / "toka.toml").write_text('[policy]\nallow = ["network-access: *.example.org", "command-execution"]\n')
    done = jail("--grant", "network-access", "--", "python3", "-c", CONNECT, "other.test:443")
    assert "toka:   the settings' [policy] does not allow network-access: other.test" in done.stderr


def test_the_state_directory_is_not_to_be_seen(jail: Jail, workspace: Path) -> None:
    (workspace / "runs").mkdir()
    (workspace / "runs/journal").write_text("secret\n")
    assert jail("--state", "runs", "--", "ls", "runs").stdout == ""


def test_a_home_directory_as_workspace_is_told(jail: Jail, environment: dict[str, str], workspace: Path) -> None:
    environment["HOME"] = str(workspace / "src")
    assert "holds your home directory" in jail("--", "true").stderr
    assert "holds your home" not in jail("--grant", "filesystem-read: a.txt", "--workspace", ".", "--", "true").stdout


# ---- limits


def test_a_timeout_is_a_limit(jail: Jail) -> None:
    marker = unique()
    done = jail("--limit", "timeout=300ms", "--", "sleep", marker)
    assert done.returncode == 6
    assert done.stderr == "toka: timeout of 300ms reached\n"
    assert gone(marker)


def test_the_memory_limit_is_told(jail: Jail) -> None:
    done = jail("--limit", "memory=64MB", "--", "python3", "-c", "b = bytearray(200 << 20); print(len(b))")
    assert done.stdout == ""
    assert done.returncode in (1, 6)  # as its allocation failed, or it was killed by us or by the kernel
    if done.returncode != 1:
        assert "toka: memory limit of 64MB reached" in done.stderr


def test_processes_are_limited(jail: Jail) -> None:
    done = jail("--limit", "processes=8", "--", "bash", "-c", "for i in {1..20}; do sleep 5 & done; jobs | wc -l")
    assert "fork" in done.stderr


# ---- signals, without a terminal


def test_a_signal_goes_to_the_command_first(begin: Begin) -> None:
    process = begin("--", "sh", "-c", "trap 'echo got it; exit 5' INT; echo on; while :; do sleep 0.05; done")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"got it\n"
    assert process.wait(20) == 5


def test_ctrl_c_twice_ends_what_does_not_listen(begin: Begin) -> None:
    marker = unique()
    process = begin("--", "sh", "-c", f"trap '' INT TERM; echo on; sleep {marker}; sleep {marker}")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    wait_for(marker)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert gone(marker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ignores_a_request_to_end_is_killed(begin: Begin, number: int) -> None:
    marker = unique()
    process = begin("--", "sh", "-c", f"trap '' INT TERM HUP; echo on; setsid sleep {marker} & sleep {marker}; sleep 9")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    wait_for(marker)
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert time.monotonic() - began < GRACE_S + 2
    assert gone(marker)


def test_a_signal_that_is_ignored_stays_ignored(begin: Begin) -> None:
    process = begin("--", "sh", "-c", "echo on; cat", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGHUP)  # as under nohup
    out, _ = process.communicate(b"still\n", timeout=20)
    assert (out, process.returncode) == (b"still\n", 0)


def test_output_that_nobody_reads_does_not_hold_up_the_end(begin: Begin) -> None:
    process = begin("--", "yes")
    assert process.stdout is not None
    assert process.stdout.read(1) == b"y"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143


def test_a_signal_during_the_start_ends_it(begin: Begin) -> None:
    for wait_s in (0.1, 0.2, 0.25, 0.3, 0.35, 0.4):
        marker = unique()
        process = begin("--", "sleep", marker)
        time.sleep(wait_s)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (143, -15), process.communicate()
        assert gone(marker)


def test_nothing_survives_a_kill(begin: Begin) -> None:
    marker = unique()
    process = begin("--", "sh", "-c", f"trap '' HUP; setsid sleep {marker} & echo on; sleep {marker}")
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    wait_for(marker)
    process.kill()
    assert gone(marker)


# ---- terminals


def test_the_command_has_a_terminal_of_its_own(terminal: Open) -> None:
    t = terminal("--", "sh", "-c", "tty; test -t 0 -a -t 1 -a -t 2 && echo all; stty size; echo $TERM; tty </dev/tty")
    assert t.end() == 0
    assert t.seen.decode().split() == ["/dev/pts/0", "all", "33", "101", "xterm-test", "/dev/tty"]
    assert t.restored


def test_it_has_the_modes_of_the_persons(terminal: Open) -> None:
    t = terminal("--", "sh", "-c", "read x; stty -a")
    modes = termios.tcgetattr(t.fd)
    assert modes[3] & termios.ECHO
    t.type("x\n")
    assert t.end() == 0
    assert b"erase = ^?" in t.seen
    assert b" echo " in t.seen


def test_the_size_follows(terminal: Open) -> None:
    t = terminal("--", "sh", "-c", "trap 'stty size; exit 3' WINCH; stty size; while :; do sleep 0.05; done")
    t.until("33 101")
    t.resize(40, 90)
    t.until("40 90")
    assert t.end() == 3


def test_ctrl_c_ends_a_command(terminal: Open) -> None:
    marker = unique()
    t = terminal("--", "sleep", marker)
    wait_for(marker)
    t.type("\x03")
    assert t.end() == 130
    assert t.restored
    assert gone(marker)


def test_bash_has_job_control(terminal: Open) -> None:
    marker = unique()
    t = terminal(*BASH)
    assert "no job control" not in t.until(r"\$ ")
    t.type(f"sleep {marker}\n")
    wait_for(marker)
    t.type("\x1a")
    t.until(r"Stopped +sleep")
    t.ask("bg; jobs", r"Running +sleep")
    t.ask("fg", rf"[\n ]sleep {marker}\r\n")
    for _ in range(50):  # bash says so before it has handed the terminal over
        t.type("\x03")
        t.read()
        if not living(marker):
            break
    t.until(r"\$ ")
    t.ask("echo code $?", "code 130")
    t.type("exit 7\n")
    assert t.end() == 7
    assert t.restored


def test_ctrl_z_does_nothing_to_a_command_that_nobody_could_continue(terminal: Open) -> None:
    """It has no shell beside it, so the kernel does not stop it; else it would hang until it is killed."""
    t = terminal("--", "sh", "-c", "echo on; read x; echo got $x; exit 4")
    t.until("on")
    t.type("\x1a")
    t.ask("it", "got it")
    assert t.end() == 4
    assert t.restored


def test_ctrl_backslash_ends_a_command(terminal: Open) -> None:
    marker = unique()
    t = terminal("--", "sleep", marker)
    wait_for(marker)
    t.type("\x1c")
    assert t.end() == 131
    assert t.restored
    assert gone(marker)


def test_the_terminal_is_restored_after_the_command_was_killed(terminal: Open) -> None:
    t = terminal("--", "bash", "--norc", "-c", "stty raw -echo; echo on; kill -9 $$")
    assert t.end() == 137
    assert t.restored


def test_keys_reach_a_raw_program_untouched(terminal: Open) -> None:
    inside = "import os, tty; tty.setraw(0); print('on', end='\\r\\n', flush=True); print(os.read(0, 9).hex())"
    t = terminal("--", "python3", "-c", inside)
    t.until("on\r\n")
    t.type("\x03\x1a\x1c\x04\x1d\r\xff")
    t.until("031a1c041d0dc3bf")
    assert t.end() == 0


def test_typing_into_the_persons_terminal_is_refused(terminal: Open) -> None:
    inside = (
        "import fcntl, termios\n"
        "for number in (termios.TIOCSTI, termios.TIOCSTI | 1 << 32):\n"
        "    try: fcntl.ioctl(0, termios.TIOCSTI, b'x'); print('typed')\n"
        "    except OSError as e: print(e.errno)\n"
    )
    t = terminal("--", "python3", "-c", inside)
    assert t.end() == 0
    assert t.seen.split(b"\r\n")[:2] == [b"1", b"1"]
    assert b"refused: ioctl TIOCSTI (seccomp: nobody types into terminals)" in t.seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_the_terminal_is_restored_after_a_signal(terminal: Open, number: int) -> None:
    marker = unique()
    t = terminal(*BASH)
    t.until(r"\$ ")
    t.ask("stty -echo -icanon", r"\$ ")  # modes of its own do not matter either
    t.type(f"sleep {marker}\n")
    wait_for(marker)
    assert not t.restored
    t.process.send_signal(number)
    assert t.end() == 128 + number
    assert t.restored
    assert gone(marker)


def test_the_terminal_is_restored_after_a_timeout(terminal: Open) -> None:
    t = terminal("--limit", "timeout=1s", "--", "sh", "-c", "stty raw; echo on; sleep 100")
    t.until("on")
    assert t.end() == 6
    assert b"timeout of 1s reached\r\n" in t.seen
    assert t.restored


def test_ctrl_c_goes_inside_and_three_ctrl_brackets_kill(terminal: Open) -> None:
    marker = unique()
    t = terminal("--", "sh", "-c", f"trap '' INT QUIT TERM HUP TSTP; echo on; sleep {marker}; sleep {marker}")
    t.until("on")
    wait_for(marker)
    t.type("\x03\x03\x1c\x1d\x1d")
    time.sleep(1.2)
    t.type("\x1d\x1d")
    time.sleep(0.2)
    assert t.process.poll() is None
    t.type("\x1d")
    assert t.end() == 137
    assert t.restored
    assert gone(marker)


def test_a_terminal_that_goes_away_ends_it(terminal: Open) -> None:
    marker = unique()
    t = terminal("--", "sh", "-c", f"trap '' HUP; echo on; sleep {marker}; sleep {marker}")
    t.until("on")
    wait_for(marker)
    os.close(t.screen)
    t.screen = os.open("/dev/null", os.O_RDWR)
    assert t.process.wait(20) in (129, 137)
    assert gone(marker)


def test_a_stopped_jail_gives_the_terminal_back_and_takes_it_again(terminal: Open) -> None:
    t = terminal(*BASH)
    t.until(r"\$ ")
    t.process.send_signal(signal.SIGTSTP)
    end = time.monotonic() + PATIENCE_S
    while not t.restored:
        assert time.monotonic() < end
        time.sleep(0.02)
    t.process.send_signal(signal.SIGCONT)
    while t.restored:
        assert time.monotonic() < end
        time.sleep(0.02)
    t.ask("echo $((40 + 2))", "42")
    t.type("exit\n")
    assert t.end() == 0
    assert t.restored


def test_what_is_no_terminal_stays_a_pipe(terminal: Open, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        t = terminal(
            "--", "sh", "-c", r"test -t 0 && test -t 2 && printf 'a\nb\0'; read x; echo $x; cat >&2", stdout=out
        )
        t.type("typed\n")
        t.until("typed\r\n")  # the person's own terminal echoes it
        assert t.restored  # a pager may have it
        t.type("more\n")
        t.until("more\r\nmore\r\n")
        t.type("\x04")
        assert t.end() == 0
    assert (tmp_path / "out").read_bytes() == b"a\nb\0typed\n"


def test_ctrl_c_reaches_the_foreground_job_when_our_terminal_is_not_raw(terminal: Open, tmp_path: Path) -> None:
    marker = unique()
    with (tmp_path / "out").open("wb") as out:
        t = terminal(*BASH, stdout=out)
        t.type(f"sleep {marker}\n")
        wait_for(marker)
        t.type("\x03")
        assert gone(marker)
        t.type("echo still; exit 4\n")
        assert t.end() == 4, t.seen
    assert (tmp_path / "out").read_bytes().endswith(b"still\n")


def test_explain_keeps_to_the_left_edge_of_a_raw_terminal(terminal: Open) -> None:
    script = CONNECT + "import sys; sys.stdin.read(1)"
    t = terminal("--explain", "--grant", "network-access: *.example.org", "--", "python3", "-c", script, "a.test:443")
    t.until("\rtoka: the proxy refused: a.test is refused: this agent may reach [*].example.org\r\n")
    t.type("x\n")
    assert t.end() == 0
    assert b"\r\n  Landlock" in t.seen


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Missing argument"),
        (["--grant", "filesystem-wrte: src", "--", "true"], 2, "did you mean filesystem-write?"),
        (["--grant", "nonsense", "--", "true"], 2, "nobody defines nonsense"),
        (["--grant", "filesystem-write: /etc", "--", "true"], 2, "'/etc' is not relative to the workspace"),
        (["--grant", "run_command(ls)", "--", "true"], 2, "a rule about calls is no capability"),
        (["--limit", "memory=lots", "--", "true"], 2, "'lots' is not a size; write"),
        (["--limit", "memory", "--", "true"], 2, "write KIND=VALUE"),
        (["--limit", "colour=3", "--", "true"], 2, "KIND is memory, cpu, processes, timeout, disk, network"),
        (["--limit", "processes=0", "--", "true"], 2, "nothing runs with 0"),
        (["--limit", "memory=1KB", "--", "true"], 2, "1KB is too little for a sandbox"),
        (["--workspace", "none", "--", "true"], 2, "is not a directory"),
        (["--grant", "filesystem-read: none", "--", "true"], 2, "none is not there, or is a link"),
        (["--grant", "filesystem-write: none", "--", "true"], 2, "none is not there, or is a link"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(toka: Toka, arguments: Sequence[str], code: int, words: str) -> None:
    done = toka("jail", *arguments)
    assert done.code == code
    assert done.out == ""
    assert words in done.err
    assert "Traceback" not in done.err


def test_no_bwrap_is_missing(toka: Toka, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, *how, **more: "bwrap" not in str(path) and real(path, *how, **more))
    monkeypatch.setenv("PATH", "/nowhere")
    done = toka("jail", "--", "true")
    assert done.code == 4
    assert "bwrap (bubblewrap) is not installed" in done.err
    assert "help: install it" in done.err


def test_limits_are_read_and_the_strictest_counts(tmp_path: Path) -> None:
    read = read_limits(["memory=1GB", "cpu=75%", "processes=64", "timeout=10m", "disk=1GB", "network=1Mbps",
                        "memory=512MB"])  # fmt: skip
    assert read == Limits(memory_bytes=512 << 20, cpu_cores=0.75, processes=64, wall_s=600.0, disk_bytes=1 << 30,
                          network_bps=10**6)  # fmt: skip


def test_the_least_memory_is_enough(jail: Jail) -> None:
    done = jail("--limit", "memory=20MB", "--", "echo", "enough")
    assert (done.returncode, done.stdout) == (0, "enough\n")


@pytest.mark.parametrize(
    ("texts", "granted"),
    [
        ([], ["command-execution", "filesystem-read"]),
        (["filesystem-write: src"], ["command-execution", "filesystem-read", "filesystem-write: src"]),
        (["filesystem-read: docs"], ["command-execution", "filesystem-read: docs"]),
        (["filesystem-read: docs", "filesystem-write: src"],
         ["command-execution", "filesystem-read: docs", "filesystem-read: src", "filesystem-write: src"]),
        (["network-access: a.org"], ["command-execution", "filesystem-read", "network-access: a.org"]),
        (["command-execution: cat"], ["command-execution: cat", "filesystem-read"]),
    ],
)  # fmt: skip
def test_defaults_give_way_to_what_is_named(tmp_path: Path, texts: Sequence[str], granted: Sequence[str]) -> None:
    assert [c.text for c in read_grant(texts, Settings(tmp_path)).capabilities] == granted


def test_a_grant_may_be_a_preset_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_grant(["mine"], Settings(tmp_path))
    settings = Settings(tmp_path, capabilities={"mine": (Capability("network-access", hosts=("a.org",)),)})
    assert "network-access: a.org" in {c.text for c in read_grant(["mine"], settings).capabilities}


def test_it_loads_nothing_that_talks_to_models(workspace: Path) -> None:
    code = (
        "import sys, toka.cli.jail; print(*(m for m in sys.modules if m.startswith(('toka.llm', 'aiohttp', 'rich'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_many_refused_hosts_are_cut(tmp_path: Path) -> None:
    attempts = [Attempt(f"h{n}.test", 443, False, "no", None, 0, 0, 0.0) for n in range(12)]
    job = Jailed(("ls",), tmp_path, SandboxPolicy(programs=None), None, OperatorPolicy(), Grant(), explain=False)
    ended = CommandResult(0, b"", 0, "exited", 0.0, 0.0, 0)
    lines = [line for line in ending(job, ended, attempts) if "refused" in line]
    assert len(lines) == 11
    assert lines[-1] == "the proxy refused 2 more hosts"
