"""What happens when something is missing: each row of the table, with that thing really taken away."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from cli.records import COMMAND, Ran
from cli.records import Toka as InProcess
from llm.model_server import openai_body
from toka.cli.degradation import ROWS, Row, markdown
from toka.journal import mounted

DOCS = Path(__file__).parents[2] / "docs"
ROOT = os.getuid() == 0
NOWHERE = "http://127.0.0.1:9/v1"
Take = Callable[["Scene"], "Missed"]


# ---- the place


@dataclass
class Scene:
    """A folder with a workspace and a state directory, in which the real command runs."""

    folder: Path
    ran: list[str] = field(default_factory=list[str])

    def spec(self, text: str, name: str = "one") -> str:
        """Writes a spec; returns its file's name."""
        (self.folder / f"{name}.yaml").write_text(text)
        return f"{name}.yaml"

    def environment(self, **more: str) -> dict[str, str]:
        own = {"HOME": str(self.folder), "NO_COLOR": "1", "CI": "true", "OLLAMA_HOST": "127.0.0.1:9"}
        return {**own, "PATH": "/usr/bin:/bin:/usr/sbin", "PYTHONPATH": os.pathsep.join(sys.path), **more}

    def toka(self, *arguments: str, before: Sequence[str] = (), command: Sequence[str] = COMMAND, **more: Any) -> Ran:
        """Runs Toka to its end; `more` is for subprocess, and variables in capitals."""
        variables = {name: more.pop(name) for name in [*more] if name.isupper()}
        self.ran.append(" ".join(("toka", arguments[0], *(("--json",) if "--json" in arguments else ()))))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.folder, "timeout": 90}
        done = subprocess.run([*before, *command, *arguments], env=self.environment(**variables), **(pipes | more))
        return Ran(done.returncode, done.stdout or "", done.stderr or "")

    def run(self, spec: str, *options: str, **more: Any) -> Ran:
        return self.toka("run", spec, "--workspace", "ws", "--state", "state", *options, **more)

    def again(self, *arguments: str) -> Ran:
        """A command that looks at what another one left; it is not the one that the row is about."""
        done = self.toka(*arguments, "--state", "state")
        self.ran.pop()
        return done


@dataclass(frozen=True)
class Missed:
    """What the command of a row did, and what stands for the words in angle brackets."""

    done: Ran
    values: dict[str, str] = field(default_factory=dict[str, str])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    (tmp_path / "ws/out").mkdir(parents=True)
    return Scene(tmp_path)


LOOK = """
metadata: {name: look}
spec: {name: Look, domain: testing}
tasks:
  - {id: look, description: look, run: "echo x > out/x"}
security:
  capabilities_required: [{filesystem-write: {paths: [out]}}]
"""
THINK = """
metadata: {name: think}
spec: {name: Think, domain: testing}
tasks:
  - {id: first, description: think}
security:
  capabilities_required: [filesystem-read]
"""
CHECK = "security: {capabilities_required: [filesystem-read]}\n"


def limited(limits: str, more: str = "") -> str:
    return LOOK.replace("security:\n", f"security:\n{more}  resource_limits: {{{limits}}}\n")


# ---- how things are taken away


def in_mounts(script: str) -> tuple[str, ...]:
    """What comes before a command so that it runs in mounts of its own, changed by a shell script first."""
    if not ROOT:
        pytest.skip("only root can take that away")
    return ("unshare", "-m", "sh", "-ec", f'{script}; exec "$@"', "sh")


def covered(program: str) -> tuple[str, ...]:
    return in_mounts(f"mount --bind /dev/null {program}")


FILTER = """
import ctypes, os, struct, sys
kind, machine = sys.argv[1], os.uname().machine
unshare, clone, argument = (272, 56, 16) if machine == "x86_64" else (97, 220, 16)
load, equal, has, give = 0x20, 0x15, 0x45, 6
refuse, allow = 0x50000, 0x7fff0000
if kind == "landlock":
    program = [(load, 0, 0, 0), (equal, 0, 1, 444), (give, 0, 0, refuse | 38), (give, 0, 0, allow)]
else:
    program = [(load, 0, 0, 0), (equal, 2, 0, unshare), (equal, 3, 0, 435), (equal, 0, 4, clone),
               (load, 0, 0, argument), (has, 1, 2, 0x10000000), (give, 0, 0, refuse | 38), (give, 0, 0, refuse | 1),
               (give, 0, 0, allow)]
data = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid():
    assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program), ctypes.addressof(data))), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Executes a command to which the kernel says that it has no Landlock, or that user namespaces are refused."""


def filtered(kind: str) -> tuple[str, ...]:
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("no numbers of system calls for this machine")
    return (sys.executable, "-c", FILTER, kind)


SSHFS = """
import ctypes, os, struct, sys
device = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
assert libc.mount(b"far", sys.argv[1].encode(), b"fuse.sshfs", 0, options) == 0, os.strerror(ctypes.get_errno())
if os.fork():
    os.close(device)
    os.execv(sys.argv[2], sys.argv[2:])
libc.prctl(1, 9, 0, 0, 0)  # it ends when the command does, and holds none of its streams
os.closerange(0, device)
attributes = struct.pack("6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 512, 0)
while True:
    asked = os.read(device, 1 << 20)
    length, kind, unique = struct.unpack_from("IIQ", asked)
    error, body = -38, b""
    if kind == 26:
        error, body = 0, struct.pack("4I4HI28x", 7, 31, 0, 0, 0, 0, 0, 0, 4096)[:64].ljust(64, bytes(1))
    elif kind == 3:
        error, body = 0, struct.pack("QII", 1, 0, 0) + attributes
    elif kind == 1:
        error = -2
    elif kind in (2, 42):
        continue
    os.write(device, struct.pack("IiQ", 16 + len(body), error, unique) + body)
"""
"""Executes a command where a folder is on a network file system, whose server knows of no file."""


@contextmanager
def serving(answers: int) -> Iterator[str]:
    """A model server that answers so many calls, and is gone before its last answer arrives."""
    report = json.dumps({"status": "succeeded", "summary": "done"})
    body = json.dumps(openai_body(calls=[("c1", "report", report)])).encode()
    left = [answers]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            left[0] -= 1
            if not left[0]:
                ending.start()
                self.server.socket.close()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        ending = threading.Thread(target=server.shutdown)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def has_left_nothing(scene: Scene) -> None:
    assert scene.again("ps").out.startswith("No runs"), "nothing is half-started"
    assert [*(scene.folder / "ws/out").iterdir()] == []


# ---- one function for each row

TAKEN: dict[str, Take] = {}


def takes(name: str) -> Callable[[Take], Take]:
    def note(take: Take) -> Take:
        assert name not in TAKEN
        TAKEN[name] = take
        return take

    return note


def refused(scene: Scene, before: Sequence[str], **values: str) -> Missed:
    """A run that does not start; specs can be looked at all the same."""
    done = scene.run(scene.spec(LOOK), before=before)
    has_left_nothing(scene)
    assert subprocess.run([*before, *COMMAND, "validate", "one.yaml"], cwd=scene.folder, env=scene.environment(),
                          capture_output=True).returncode == 0  # fmt: skip
    return Missed(done, values)


@takes("bubblewrap")
def _bubblewrap(scene: Scene) -> Missed:
    return refused(scene, covered("/usr/bin/bwrap"))


@takes("namespaces")
def _namespaces(scene: Scene) -> Missed:
    doctor = scene.again("doctor")
    assert "ok       namespaces" in doctor.out
    return refused(scene, filtered("namespaces"))


@takes("landlock")
def _landlock(scene: Scene) -> Missed:
    return refused(scene, filtered("landlock"))


@takes("python")
def _python(scene: Scene) -> Missed:
    if Path(sys.executable).resolve() == Path("/usr/bin/python3"):
        pytest.skip("it is the interpreter of these tests, too")
    over = scene.folder / "over"
    over.mkdir()
    script = f"mount -t tmpfs none {over}; mkdir {over}/up {over}/work; mount -t overlay none -o "
    script += f"lowerdir=/usr/bin,upperdir={over}/up,workdir={over}/work /usr/bin; rm /usr/bin/python3"
    return refused(scene, in_mounts(script))


@takes("id-mapping")
def _id_mapping(scene: Scene) -> Missed:
    over = scene.folder / "over"
    over.mkdir()
    script = f"mount -t tmpfs none {over}; mkdir -p {over}/up/out {over}/work {over}/low; mount -t overlay none -o "
    script += f"lowerdir={over}/low,upperdir={over}/up,workdir={over}/work ws"
    return refused(scene, in_mounts(script))


@takes("linux")
def _linux(scene: Scene) -> Missed:
    code = "import sys, asyncio, toka.cli.run; sys.platform = 'darwin'; from toka.cli.main import main; main()"
    done = scene.run(scene.spec(LOOK), command=(sys.executable, "-c", code))
    has_left_nothing(scene)
    return Missed(done, {"system": "darwin"})


@takes("program")
def _program(scene: Scene) -> Missed:
    spec = LOOK.replace("required: [", "required: [command-execution: {programs: [no-such-program]}, ")
    done = scene.run(scene.spec(spec))
    has_left_nothing(scene)
    return Missed(done, {"program": "no-such-program"})


def without_cgroups() -> tuple[str, ...]:
    return in_mounts("umount -lR /sys/fs/cgroup")


@takes("cgroup")
def _cgroup(scene: Scene) -> Missed:
    return Missed(scene.toka("doctor", "--state", "state", before=without_cgroups()))


@takes("cgroup-shown")
def _cgroup_shown(scene: Scene) -> Missed:
    spec = scene.spec(limited("max_memory: 256MB"))
    assert scene.run(spec, before=without_cgroups()).code == 0
    assert "best effort: memory" in scene.again("show", "@last").out
    return Missed(scene.toka("plan", spec, "--workspace", "ws", before=without_cgroups()))


@takes("strict")
def _strict(scene: Scene) -> Missed:
    spec = scene.spec(limited("max_disk_usage: 1GB", "  enforcement: strict\n"))
    done = scene.run(spec)
    has_left_nothing(scene)
    return Missed(done, {"spec": "one.yaml:7", "agent": "look", "limit": "1GB"})


@takes("git")
def _git(scene: Scene) -> Missed:
    before = covered("/usr/bin/git")
    done = scene.run(scene.spec(LOOK), before=before)
    assert done.err.count("not kept before commands") == 1, "it is said once"
    assert "is not kept before commands: git is not installed" in scene.again("show", "@last").out
    table = scene.toka("doctor", "--state", "state", before=before).out
    scene.ran.pop()
    assert re.search(r"^without  git +git +not installed +keeps the workspace before commands", table, re.MULTILINE)
    again = LOOK.replace('x > out/x"', 'x > out/x", effect: idempotent')
    reads = LOOK.replace("write: {", "read: {")
    asks = LOOK.replace("required: [", "required: [network-access: {hosts: [example.org]}, ")
    for quiet in (again, reads, asks):
        assert "git" not in scene.run(scene.spec(quiet.replace("echo x > out/x", "true")), before=before).err
    return Missed(done)


@takes("git-access")
def _git_access(scene: Scene) -> Missed:
    spec = scene.spec(THINK.replace("filesystem-read", "git-access"))
    calls = "script: 1\ndefault:\n  - calls: [{git_status: {}}]\n  - report: {status: succeeded, summary: done}\n"
    (scene.folder / "words.yaml").write_text(calls)
    done = scene.run(spec, "--model", "scripted:words.yaml", before=covered("/usr/bin/git"))
    return Missed(done, {"agent": "think"})


@takes("quota")
def _quota(scene: Scene) -> Missed:
    (scene.folder / "ws/out/large").write_bytes(os.urandom(3_000_000))
    spec = LOOK.replace("security:", '  - {id: more, description: more, run: "echo y > out/y"}\nsecurity:')
    done = scene.run(scene.spec(spec), TOKA_CHECKPOINT_QUOTA="1MB")
    assert done.err.count("not kept before commands") == 1, "it is said once"
    shown = scene.again("show", "@last")
    assert "its store may have 1048576 bytes" in shown.lines[1]
    told = json.loads(scene.again("show", "@last", "--json").out)["explanation"]
    assert [line for line in told if "not kept before commands" in line]
    return Missed(Ran(done.code, "", done.err.replace("0/2", "0/1")), {"quota": "1048576"})


@takes("checkpoint-disk")
def _checkpoint_disk(scene: Scene) -> Missed:
    (scene.folder / "ws/out/large").write_bytes(os.urandom(3_000_000))
    scene.spec(LOOK)
    line = "run one.yaml --workspace ws --state state --quiet"
    script = f"mkdir state; mount -t tmpfs -o size=1m none state; {sys.executable} -m toka {line} >&2"
    return Missed(scene.toka("show", "@last", "--state", "state", before=in_mounts(script)))


@takes("model")
def _model(scene: Scene) -> Missed:
    done = scene.run(scene.spec(THINK))
    has_left_nothing(scene)
    assert done.err.count("  tried: ") == 4
    return Missed(done)


@takes("model-of-one")
def _model_of_one(scene: Scene) -> Missed:
    done = scene.run(scene.spec(LOOK), scene.spec(THINK, "two"))
    assert {n: a["state"] for n, a in agents(scene).items()} == {"look": "COMPLETED", "think": "SKIPPED"}
    return Missed(done, {"agent": "think"})


def agents(scene: Scene) -> dict[str, Any]:
    return scene.again("show", "@last", "--json").json["agents"]


@takes("server")
def _server(scene: Scene) -> Missed:
    done = scene.run(scene.spec(THINK), "--model", "server:odd", "--base-url", NOWHERE)
    has_left_nothing(scene)
    return Missed(done, {"address": NOWHERE})


@takes("server-gone")
def _server_gone(scene: Scene) -> Missed:
    spec = scene.spec(THINK.replace("security:", "  - {id: second, description: more}\nsecurity:"))
    with serving(1) as url:
        done = scene.run(spec, "--model", "server:odd", "--base-url", url, TOKA_TASK_RETRIES="0")
    tasks = {t["id"]: t["state"] for t in agents(scene)["think"]["tasks"]}
    assert tasks == {"first": "SUCCEEDED", "second": "FAILED"}
    assert scene.again("retry", "@last").code == 4
    assert scene.again("show", "@last", "--json").json["state"] == "FAILED", "it stays what it was"
    address = url.removeprefix("http://").removesuffix("/v1")
    return Missed(done, {"agent": "think", "task": "second", "model": "server:odd", "address": address})


@takes("price")
def _price(scene: Scene) -> Missed:
    spec = scene.spec(THINK.replace("security:\n", 'security:\n  resource_limits: {max_cost: "$1"}\n'))
    with serving(2) as url:
        done = scene.run(spec, "--model", "server:odd", "--base-url", url)
        has_left_nothing(scene)
        (scene.folder / "toka.toml").write_text('[pricing."server:odd"]\ninput = 1\noutput = 2\n')
        assert scene.run(spec, "--model", "server:odd", "--base-url", url).code == 0
    return Missed(done, {"model": "server:odd"})


@takes("price-unlimited")
def _price_unlimited(scene: Scene) -> Missed:
    with serving(2) as url:
        return Missed(
            scene.run(scene.spec(THINK), "--model", "server:odd", "--base-url", url), {"tokens": "120 tokens"}
        )


@takes("secret")
def _secret(scene: Scene) -> Missed:
    agent = '{run: "true", env: {T: "${secret:TOKEN}"}, grants: {read: true}}'
    done = scene.run(scene.spec(f"toka: 1\nagents:\n  one: {agent}\n"))
    has_left_nothing(scene)
    return Missed(done, {"place": "one.yaml:3:31"})


def depending(kind: str) -> str:
    return (
        f"""
metadata: {{name: needy}}
spec: {{name: Needy, domain: testing}}
dependencies: {{{kind}: {{ghost: {{}}}}}}
tasks: [{{id: a, description: a, run: "true"}}]
"""
        + CHECK
    )


GHOST = "metadata: {name: ghost}\nspec: {name: Ghost, domain: testing}\n"
GHOST += 'tasks: [{id: a, description: a, run: "false"}]\n' + CHECK


@takes("required")
def _required(scene: Scene) -> Missed:
    done = scene.run(scene.spec(depending("required")))
    has_left_nothing(scene)
    return Missed(done, {"agent": "ghost"})


@takes("optional")
def _optional(scene: Scene) -> Missed:
    spec = scene.spec(depending("optional"))
    assert scene.run(spec).code == 0
    assert agents(scene)["needy"]["state"] == "COMPLETED"
    return Missed(scene.toka("plan", spec), {"agent": "ghost", "line": "4"})


@takes("optional-failed")
def _optional_failed(scene: Scene) -> Missed:
    done = scene.run(scene.spec(depending("optional")), scene.spec(GHOST, "two"))
    assert {n: a["state"] for n, a in agents(scene).items()} == {"needy": "COMPLETED", "ghost": "FAILED"}
    return Missed(done, {"agent": "ghost"})


@takes("workspace")
def _workspace(scene: Scene) -> Missed:
    done = scene.toka("run", scene.spec(LOOK), "--workspace", "nowhere", "--state", "state")
    has_left_nothing(scene)
    return Missed(done, {"workspace": "nowhere"})


@takes("directory")
def _directory(scene: Scene) -> Missed:
    (scene.folder / "gone").mkdir()
    before = ("sh", "-ec", 'cd gone; rmdir ../gone; exec "$@"', "sh")
    return Missed(scene.toka("run", str(scene.folder / scene.spec(LOOK)), before=before))


@takes("state")
def _state(scene: Scene) -> Missed:
    before = in_mounts("mkdir -p state; mount -t tmpfs -o ro none state")
    return Missed(scene.run(scene.spec(LOOK), before=before), {"state": str(scene.folder / "state")})


@takes("state-full")
def _state_full(scene: Scene) -> Missed:
    before = in_mounts("mkdir -p state; mount -t tmpfs -o size=64k none state")
    done = scene.run(scene.spec(LOOK), before=before)
    has_left_nothing(scene)
    return Missed(done, {"journal": str(scene.folder / "state/journal.db")})


@takes("state-filled")
def _state_filled(scene: Scene) -> Missed:
    tasks = [{"id": f"t{n}", "description": "t", "run": "seq 3000", "effect": "idempotent"} for n in range(60)]
    spec = scene.spec(LOOK.split("tasks:")[0] + f"tasks: {json.dumps(tasks)}\n" + CHECK)
    more = f"mount -o remount,size=64m state; {sys.executable} -m toka resume @last --state state --quiet; "
    script = f'mkdir state; mount -t tmpfs -o size=700k none state; code=0; "$@" || code=$?; {more} echo resumed $?; '
    done = scene.run(spec, before=in_mounts(f"{script} exit $code"))
    assert "t0 done" in done.err, "it had begun"
    assert done.out == "resumed 0\n"
    return Missed(done)


def unaltered(scene: Scene) -> Ran:
    """A run that meets a journal it cannot use, and leaves it alone."""
    file = scene.folder / "state/journal.db"
    before = file.read_bytes()
    done = scene.run(scene.spec(LOOK))
    assert file.read_bytes() == before
    return done


@takes("journal")
def _journal(scene: Scene) -> Missed:
    (scene.folder / "state").mkdir()
    (scene.folder / "state/journal.db").write_bytes(b"this is no journal " * 500)
    return Missed(unaltered(scene), {"journal": str(scene.folder / "state/journal.db")})


@takes("version")
def _version(scene: Scene) -> Missed:
    (scene.folder / "state").mkdir()
    file = scene.folder / "state/journal.db"
    with sqlite3.connect(file) as newer:
        newer.execute("PRAGMA journal_mode=WAL")
        newer.execute("PRAGMA user_version=1000")
    newer.close()
    return Missed(unaltered(scene), {"journal": str(file), "form": "1000"})


@takes("network-disk")
def _network_disk(scene: Scene) -> Missed:
    state = scene.folder / "state"
    before = (*in_mounts("mkdir -p state"), sys.executable, "-c", SSHFS, str(state))
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("no FUSE here, in which to mount it")
    return Missed(scene.toka("doctor", "--state", "state", before=before), {"state": str(state), "kind": "fuse.sshfs"})


@takes("socket")
def _socket(scene: Scene) -> Missed:
    state = "/".join(["x" * 60] * 2)
    tasks = [{"id": f"t{n}", "description": "t", "run": "date >> out/steps; sleep 0.05", "effect": "idempotent"}
             for n in range(400)]  # fmt: skip
    spec = LOOK.split("tasks:")[0] + f"tasks: {json.dumps(tasks)}\nsecurity:" + LOOK.split("security:")[1]
    line = [*COMMAND, "run", scene.spec(spec), "--workspace", "ws", "--state", state, "--quiet"]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, cwd=scene.folder, env=scene.environment(), stdout=pipe, stderr=pipe) as process:
        try:
            until((scene.folder / "ws/out/steps").exists)
            assert not [*(scene.folder / state).glob("*.sock")], "there was room for it"
            began = time.monotonic()
            done = scene.toka("pause", "@last", "look", "--state", state)
            assert time.monotonic() - began < 4
            before = (scene.folder / "ws/out/steps").read_text()
            time.sleep(0.5)
            assert (scene.folder / "ws/out/steps").read_text() == before
        finally:
            process.kill()
    return Missed(done, {"agent": "look"})


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@takes("webhook")
def _webhook(scene: Scene) -> Missed:
    (scene.folder / "toka.toml").write_text('[channels.team]\nwebhook = "http://127.0.0.1:9/hook"\n')
    done = scene.run(scene.spec(LOOK + "reporting: {channels: [team], frequency: on-completion}\n"))
    return Missed(done, {"channel": "team"})


@takes("terminal")
def _terminal(scene: Scene) -> Missed:
    done = scene.run(scene.spec(LOOK))
    assert "\x1b" not in done.err
    return Missed(done)


ON_A_TERMINAL = """
import fcntl, os, pty, struct, sys, termios
pid, master = pty.fork()
if not pid:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 30, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])
try:
    while got := os.read(master, 65536):
        os.write(1, got)
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@takes("width")
def _width(scene: Scene) -> Missed:
    before = (sys.executable, "-c", ON_A_TERMINAL)
    done = scene.run(scene.spec(LOOK), before=before, CI="", TERM="xterm")
    view, _, rest = done.out.partition("\x1b[?25l")[2].rpartition("\x1b[?25h")
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line) for line in view.split("\n")]
    assert "run completed" in "".join(drawn)
    assert max(map(len, drawn)) <= 30
    return Missed(Ran(done.code, rest.replace("\r", ""), ""), {"agent": "look"})


def goes_on(scene: Scene) -> None:
    """A run whose output nobody took can be resumed."""
    assert scene.again("resume", "@last").code == 0
    assert agents(scene)["look"]["state"] == "COMPLETED"


@takes("stdout")
def _stdout(scene: Scene) -> Missed:
    with Path("/dev/full").open("w") as full:
        done = scene.run(scene.spec(LOOK), "--json", stdout=full)
    assert "internal error" not in done.err
    goes_on(scene)
    return Missed(done)


@takes("reader")
def _reader(scene: Scene) -> Missed:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = scene.run(scene.spec(LOOK), "--json", stdout=writing)
    finally:
        os.close(writing)
    goes_on(scene)
    return Missed(done)


# ---- the tests


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_without_it_what_the_row_says_happens(row: Row, scene: Scene) -> None:
    missed = TAKEN[row.name](scene)
    said = missed.done.out + missed.done.err
    assert missed.done.code == row.exit_code, said
    assert scene.ran[-1] == row.command or row.command in scene.ran
    if row.seen:
        assert row.line(missed.values).search(said), said
    else:
        assert said == ""
    assert "Traceback" not in said


def test_each_row_is_tried_and_nothing_else() -> None:
    assert [*TAKEN] == [row.name for row in ROWS]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
def test_where_nothing_is_missing_no_such_line_shows(scene: Scene) -> None:
    spec = scene.spec(LOOK)
    said = scene.run(spec).err + scene.again("show", "@last").out + scene.toka("plan", spec, "--workspace", "ws").out
    ordinary = {"terminal", "width", "socket"}
    assert [r.name for r in ROWS if r.seen and r.name not in ordinary and r.line({}).search(said)] == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bwrap"), reason="no bwrap: agents cannot run here")
def test_a_run_that_is_recorded_on_a_network_file_system_is_warned_and_runs(
    toka: InProcess, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scene.folder / "mounts").write_text(f"1 1 0:1 / {scene.folder} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(mounted, "_MOUNTS", scene.folder / "mounts")
    done = toka("run", scene.spec(LOOK), "--workspace", "ws", "--state", "state", "--quiet")
    assert done.code == 0
    assert "toka: the state directory lies on nfs4, a network file system: no other machine" in done.err


def test_the_page_is_made_of_the_table() -> None:
    """Else: toka explain degradation --markdown > docs/degradation.md"""
    assert (DOCS / "degradation.md").read_text() == markdown()


def test_the_table_is_explained(toka: InProcess) -> None:
    done = toka("explain", "degradation")
    assert (done.code, done.err) == (0, "")
    for row in ROWS:
        assert f"  seen     {row.command}: {row.seen or 'nothing'}\n" in done.out
    assert [json.loads(line)["name"] for line in toka("explain", "degradation", "--json").lines] == [*TAKEN]
    assert toka("explain", "degradation", "--markdown").out == markdown()
