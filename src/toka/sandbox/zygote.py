"""The trusted process inside a sandbox: starts commands and the file worker. Runs under the system's Python (>= 3.9).

Imports the standard library and `kernel.py` only; single-threaded on purpose: it forks without exec.

    host ── control socket (SEQPACKET, JSON) ──> zygote, pid 1 of the sandbox
              ├─ command: init (pid 1 of its own pid, mount and ipc namespaces) -> the command
              └─ file worker: its root holds the workspace and nothing else

Each request brings a *lifeline*, one end of a SEQPACKET pair. The zygote sends one JSON report on it when the process
and all that it started are gone. A number that the host sends on it is a signal for the command; anything else, and the
host closing it, kills the process. The kernel kills a pid namespace with its pid 1, so one SIGKILL reaches daemons and
trees that ignore every other signal.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":  # inside a sandbox, where only these few files of the package are
    sys.path.insert(0, "/toka/lib")

from toka.sandbox.groundwork import PROGRAMS, check_mounts, gather_programs, is_open, keep, listen, open_fds
from toka.sandbox.kernel import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    add_mount_flags,
    clone,
    drop_capabilities,
    empty_bounding_set,
    landlock,
    mount,
    prctl,
    seccomp,
    set_limits,
    unshare,
)

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Role = Callable[[dict[str, Any], list[int], int], dict[str, Any]]
    """What a child does with a request, the descriptors that came with it and its report's pipe."""

WORKSPACE = "/workspace"
JAIL = "/toka/jail"
NOTHING = "/toka/none"
KEPT = ("/tmp", "/dev/shm")
"""What outlives a command: gone with the sandbox."""
MAX_MESSAGE = 256 * 1024
MAX_FDS = 5
MAX_WAIT = 3600.0
MAX_REASON = 1000  # keeps a report below PIPE_BUF: it is written whole or not at all
REFUSED = 126
NO_PROGRAM = 127


# ---- one command


def lock(profile: dict[str, Any]) -> None:
    """Everything that a process cannot undo, the last step before untrusted code: it may not mount or open after it."""
    landlock(profile["landlock"])
    seccomp(bytes.fromhex(profile["seccomp"]))


def run_command(request: dict[str, Any], fds: list[int], status: int) -> None:
    """The command itself, a child of its init: everything irreversible, then exec. Never returns."""
    try:
        os.setsid()
        for target, source in enumerate(streams_of(request, fds)):
            os.dup2(source, target)
        watch: dict[str, Any] = request.get("watch", {})
        keep(status, fds[int(watch["at"])] if watch else -1)
        os.chdir(request["cwd"])
        os.umask(0o022)
        set_limits(request["rlimits"])
        os.nice(request.get("nice", 0))
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if request["op"] == "probe":
            run_probe(request)
        if watch:
            from toka.sandbox.listener import lock_watched  # before the lock; no agent's command needs it

            lock_watched(request["profile"], watch["filter"], 4)
        else:
            lock(request["profile"])
    except BaseException as error:
        os.write(3 if is_open(3) else status, json.dumps({"refused": str(error)[:MAX_REASON]}).encode() + b"\n")
        os._exit(REFUSED)
    program = request["argv"][0]
    try:
        os.execvpe(program, request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"toka: {program}: {error.strerror}\n".encode("utf-8", "replace"))
        os._exit(NO_PROGRAM if error.errno == errno.ENOENT else REFUSED)
    except BaseException as error:
        os.write(2, f"toka: {program}: {error}\n".encode("utf-8", "replace"))
        os._exit(REFUSED)


def streams_of(request: dict[str, Any], fds: list[int]) -> list[int]:
    """What becomes standard input, output and error: a person's streams, or no input and one or two pipes."""
    if "streams" not in request:
        return [os.open("/dev/null", os.O_RDWR), fds[0], fds[1 if request.get("apart") else 0]]
    from toka.sandbox.streams import gather  # before the lock: this file may not be read after it

    return gather(request["streams"], fds)


def run_probe(request: dict[str, Any]) -> None:
    """The self-test in the place of a command, locked up as one. Never returns."""
    from toka.sandbox.probe import probe  # before the lock: this file may not be read after it

    lock(request["profile"])
    os.write(1, json.dumps(probe(request["wanted"])).encode())
    os._exit(0)


def run_init(request: dict[str, Any], fds: list[int], status: int) -> dict[str, Any]:
    """Pid 1 of one command's namespaces: sets them up, starts the command, reaps. Its end is the end of all inside."""
    # Read-only: as root outside, the files below /proc/sys would obey us without any capability.
    mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for target in request["profile"]["noexec"]:
        add_mount_flags(target, MS_NOEXEC)
    if request["profile"]["listed"]:
        mount(PROGRAMS, "/usr/bin", None, MS_BIND | MS_REC)
        for folder in request["profile"]["hidden"]:
            if os.path.isdir(folder):
                mount(NOTHING, folder, None, MS_BIND)
    for program in request["profile"]["masked"]:
        if os.path.lexists(program):  # it may be hidden with its folder
            mount("/dev/null", program, None, MS_BIND)
    drop_capabilities()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() if "streams" in request else ())  # until hand_on
    child = os.fork()
    if child == 0:
        run_command(request, fds, status)
    for fd in fds:
        os.close(fd)
    if "streams" in request:
        from toka.sandbox.streams import hand_on  # no agent's command needs it

        hand_on(child)
    while True:
        pid, code = os.wait()
        if pid == child:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    return {"code": os.waitstatus_to_exitcode(code), "cpu": cpu, "rss": used.ru_maxrss * 1024}


# ---- the file worker


def run_worker(request: dict[str, Any], fds: list[int], status: int) -> dict[str, Any]:
    """Serves files until the host closes the socket. Its root holds the workspace only, so that no link leaves it."""
    from toka.sandbox.worker import serve  # the zygote itself has no use for it

    unshare(CLONE_NEWNS)
    mount(WORKSPACE, JAIL + WORKSPACE, None, MS_BIND | MS_REC)
    connection = socket.socket(fileno=os.dup(fds[0]))
    os.chroot(JAIL)
    os.chdir(WORKSPACE)
    drop_capabilities()
    set_limits(request["rlimits"])
    keep = (0, 1, 2, status, connection.fileno())
    for other in range(3, request["rlimits"]["NOFILE"]):
        if other not in keep and is_open(other):
            os.close(other)
    lock(request["profile"])
    serve(connection)
    return {"code": 0}


def become(role: Role, request: dict[str, Any], fds: list[int], status: int) -> None:
    """What a forked child does: its role, one report, and nothing of the zygote's own code ever again."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        report = role(request, fds, status)
    except BaseException as error:
        report = {"refused": str(error)[:MAX_REASON] or type(error).__name__}
    try:
        os.write(status, json.dumps(report).encode() + b"\n")
    finally:
        os._exit(0)


# ---- the zygote


class Child:
    """One process under the zygote's care: a command's init or the file worker."""

    def __init__(self, pid: int, lifeline: socket.socket, status: int, deadline: float) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.lifeline = lifeline
        self.status = status
        self.deadline = deadline
        self.cause = ""

    def kill(self, cause: str) -> None:
        """SIGKILL; the first cause is the one reported."""
        if not self.cause:
            self.cause = cause
            os.kill(self.pid, signal.SIGKILL)

    def hear(self) -> bool:
        """Takes one word of the host; False when there is nothing more to listen to."""
        try:
            word = self.lifeline.recv(16)
        except OSError:
            word = b""
        if word.isdigit():
            os.kill(self.pid, int(word))
            return True
        self.kill("killed")
        return False

    def finish(self) -> None:
        """Reaps the dead process and reports. Closing the lifeline with something unread would lose the report."""
        _, code, used = os.wait4(self.pid, 0)
        with open(self.status, "rb") as pipe:
            lines = [json.loads(line) for line in (pipe.read(8192) or b"").splitlines()]
        report: dict[str, Any] = {"ended": self.cause or "killed", "rss": 0, "wait": code}
        report |= {"cpu": used.ru_utime + used.ru_stime, "written": used.ru_oublock * 512}
        for line in reversed(lines):
            report.update(line)
        if "refused" in report:
            report["ended"] = "refused"
        elif "code" in report:  # it had ended by itself when the kill came
            report["ended"] = "exited"
        self.lifeline.setblocking(False)
        for act in (lambda: self.lifeline.recv(16), lambda: self.lifeline.send(json.dumps(report).encode())):
            try:
                act()
            except OSError:
                pass
        self.lifeline.close()
        os.close(self.pidfd)


class Zygote:
    """The loop: requests come in, children end, deadlines pass, lifelines break."""

    def __init__(self, control: socket.socket, profiles: dict[str, dict[str, Any]]) -> None:
        self.control = control
        self.profiles = profiles
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self.children: dict[int, Child] = {}
        self.by_lifeline: dict[int, Child] = {}

    def serve(self) -> None:
        """Until the host closes the control socket. Leaving is enough: we are pid 1, the kernel kills the rest."""
        while True:
            nearest = min((c.deadline for c in self.children.values()), default=float("inf"))
            wait = max(0.0, min(nearest - time.monotonic(), MAX_WAIT))
            for fd, _ in self.poll.poll(wait * 1000 + 1):
                if fd == self.control.fileno():
                    if not self.accept():
                        return
                elif fd in self.children:
                    self.retire(self.children[fd])
                elif fd in self.by_lifeline and not self.by_lifeline[fd].hear():
                    self.poll.unregister(fd)
                    del self.by_lifeline[fd]
            now = time.monotonic()
            for child in self.children.values():
                if child.deadline <= now:
                    child.kill("timeout")
                    child.deadline = float("inf")

    def accept(self) -> bool:
        """Takes one request; False at the end of the control socket."""
        data, fds, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        lifeline = socket.socket(fileno=fds.pop())
        try:
            request = json.loads(data)
            if request["op"] == "leave":
                return self.leave(lifeline)
            request["profile"] = self.profiles[request["profile"]]
            self.start(request, fds, lifeline)
        except Exception as error:
            lifeline.send(json.dumps({"ended": "refused", "refused": str(error), "cpu": 0.0, "rss": 0}).encode())
            lifeline.close()
        for fd in fds:
            os.close(fd)
        return True

    def leave(self, lifeline: socket.socket) -> bool:
        """Ends the sandbox, unless commands left something in it that the next one may look for."""
        left = [folder for folder in KEPT if os.listdir(folder)]
        lifeline.send(json.dumps({"ended": "exited", "left": left}).encode())
        return bool(left)

    def start(self, request: dict[str, Any], fds: list[int], lifeline: socket.socket) -> None:
        """Forks a command's init or the file worker."""
        status, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(status, False)
        try:
            if request["op"] == "files":
                pid, role = os.fork(), run_worker
            else:
                pid, role = clone(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC), run_init
            if pid == 0:
                become(role, request, fds, theirs)
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(theirs)
        child = Child(pid, lifeline, status, time.monotonic() + request["timeout"])
        self.children[child.pidfd] = child
        self.by_lifeline[lifeline.fileno()] = child
        self.poll.register(child.pidfd, select.POLLIN)
        self.poll.register(lifeline, select.POLLIN)

    def retire(self, child: Child) -> None:
        """Forgets a child that ended, after its report."""
        self.poll.unregister(child.pidfd)
        if self.by_lifeline.pop(child.lifeline.fileno(), None):
            self.poll.unregister(child.lifeline)
        del self.children[child.pidfd]
        child.finish()


def prepare(config: dict[str, Any]) -> list[int]:
    """Locks the zygote down and checks what bwrap built; the descriptors that go to the host."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_DUMPABLE, 0)  # nobody inside may look into us or our inits
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    empty_bounding_set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_limits({"CORE": 0, "NOFILE": 4096})
    check_mounts(config["mounts"])
    if config["programs"] is not None:
        unshare(CLONE_NEWNS)  # bwrap's own namespace may belong to an outer user, where we may not mount
        gather_programs(config["programs"])
    return [listen(config["port"]).detach()] if config["port"] else []


def main() -> None:
    """Locks itself down, checks what bwrap built, says ready, serves."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for fd in open_fds():
        if fd > 2 and fd != control.fileno() and is_open(fd):
            os.close(fd)  # bwrap hands on what it inherited, the opened workspace among it
    control.send(b'{"hello": true}')  # the host puts us into a control group before it answers
    config = json.loads(control.recv(MAX_MESSAGE))
    try:
        handed = prepare(config)
    except Exception as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    gc.collect()
    gc.freeze()
    socket.send_fds(control, [b'{"ready": true}'], handed)
    for fd in handed:
        os.close(fd)
    Zygote(control, config["profiles"]).serve()


if __name__ == "__main__":
    main()
