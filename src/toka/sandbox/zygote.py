"""The trusted process inside a sandbox: starts commands and the file worker. Runs under the system's Python (>= 3.9).

Imports the standard library and our own files inside only; single-threaded on purpose: it forks without exec.

    host ── control socket (SEQPACKET, JSON) ──> zygote, pid 1 of the sandbox
              ├─ command: init (pid 1 of its own pid, mount and ipc namespaces) -> the command
              └─ file worker: its root holds the workspace and nothing else

Each request brings a *lifeline*, one end of a SEQPACKET pair. The zygote sends one JSON report on it when the process
and all that it started are gone. A number that the host sends on it is a signal for the command; anything else, and the
host closing it, kills the process. The kernel kills a pid namespace with its pid 1, so one SIGKILL reaches daemons and
trees that ignore every other signal.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":  # inside a sandbox, where only these few files of the package are
    sys.path.insert(0, "/toka/lib")

from toka.sandbox.groundwork import check_mounts, gather_programs, is_open, listen, open_fds
from toka.sandbox.kernel import (
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    clone,
    empty_bounding_set,
    prctl,
    set_limits,
    unshare,
)
from toka.sandbox.roles import MAX_FDS, MAX_MESSAGE, become, run_init, run_spare, run_worker

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from typing import Any

    from toka.sandbox.roles import Role

KEPT = ("/tmp", "/dev/shm")
"""What outlives a command: gone with the sandbox."""
MAX_WAIT = 3600.0
OF_COMMAND = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC
"""The namespaces that each command has of its own."""
SPARE_S = 5.0
"""Seconds for which processes wait for a command before they are let go."""


class Child:
    """One process under the zygote's care: a command's init or the file worker.

    Args:
        kind: of a command, which profile it is locked into, so that the next one may be prepared; else empty.
    """

    def __init__(self, pid: int, status: int, lifeline: socket.socket, timeout: float, kind: str = "") -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.lifeline = lifeline
        self.status = status
        self.started = time.monotonic()
        self.deadline = self.started + timeout
        self.kind = kind
        self.hands_on = False
        """Whether its init hands signals on to the command."""
        self.cause = ""

    def kill(self, cause: str) -> None:
        """SIGKILL; the first cause is the one reported."""
        if not self.cause:
            self.cause = cause
            os.kill(self.pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Sends a signal to the command and its process group."""
        if self.hands_on:
            os.kill(self.pid, number)
            return
        try:
            with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as file:
                command = int(file.read().split()[0])  # the first is the one that the init started
        except (OSError, IndexError):  # it has ended, or has not begun
            return
        for send in (os.killpg, os.kill):  # at its very beginning it leads no group yet
            try:
                send(command, number)
                return
            except OSError:
                pass

    def hear(self) -> bool:
        """Takes one word of the host; False when there is nothing more to listen to."""
        try:
            word = self.lifeline.recv(16)
        except OSError:
            word = b""
        if word.isdigit():
            self.signal(int(word))
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


def forked(role: Role, request: dict[str, Any], fds: list[int], namespaces: int = 0) -> tuple[int, int]:
    """Starts a child in its role; its pid, and our end of its report's pipe. Raises OSError."""
    status, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(status, False)
    try:
        pid = clone(namespaces) if namespaces else os.fork()
        if pid == 0:
            become(role, request, fds, theirs)
    except BaseException:
        os.close(status)
        raise
    finally:
        os.close(theirs)
    return pid, status


class Spare:
    """A command's init and the process that becomes the command, locked up, and waiting for which command it is.

    Namespaces, two forks and the lock are a third of what a command takes to start.
    """

    def __init__(self, kind: str, profile: dict[str, Any]) -> None:
        self.kind = kind
        self.until = time.monotonic() + SPARE_S
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.pid, self.status = forked(run_spare, profile, [theirs.fileno()], OF_COMMAND)
            except BaseException:
                self.socket.close()
                raise

    def take(self, request: dict[str, Any], fds: list[int]) -> bool:
        """Gives it its command; False when it is dead or cannot take it."""
        try:
            socket.send_fds(self.socket, [json.dumps(request).encode()], fds)
        except OSError:
            return False
        self.socket.close()
        return True

    def drop(self) -> None:
        """Ends and reaps it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.socket.close()
        os.close(self.status)


class Zygote:
    """The loop: requests come in, children end, deadlines pass, lifelines break."""

    spare: Spare | None = None
    """Only while no command runs: limits are all the command's then."""

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
            nearest = min(nearest, self.spare.until) if self.spare is not None else nearest
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
            due = [child for child in self.children.values() if child.deadline <= now]
            if due and select.select([self.control], [], [], 0)[0]:
                continue  # the host may say that we all stood still: it does so before it lets us go on
            for child in due:
                child.kill("timeout")
                child.deadline = float("inf")
            if self.spare is not None and self.spare.until <= now:
                self.drop_spare()

    def accept(self) -> bool:
        """Takes one request; False at the end of the control socket."""
        data, fds, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        if not fds:
            said = json.loads(data)
            self.stood(said["since"], said["until"])
            return True
        lifeline = socket.socket(fileno=fds.pop())
        try:
            request = json.loads(data)
            if request["op"] == "leave":
                return self.leave(lifeline)
            self.start(request, fds, lifeline)
        except Exception as error:
            lifeline.send(json.dumps({"ended": "refused", "refused": str(error), "cpu": 0.0, "rss": 0}).encode())
            lifeline.close()
        for fd in fds:
            os.close(fd)
        return True

    def stood(self, since: float, until: float) -> None:
        """Nothing of us ran between two moments: that time does not count."""
        for child in self.children.values():
            child.deadline += max(0.0, until - max(since, child.started))

    def leave(self, lifeline: socket.socket) -> bool:
        """Ends the sandbox, unless commands left something in it that the next one may look for."""
        left = [folder for folder in KEPT if os.listdir(folder)]
        lifeline.send(json.dumps({"ended": "exited", "left": left}).encode())
        return bool(left)

    def start(self, request: dict[str, Any], fds: list[int], lifeline: socket.socket) -> None:
        """Starts a command's init or the file worker."""
        confined = request | {"profile": self.profiles[request["profile"]]}
        if request["op"] == "files":
            self.attend(Child(*forked(run_worker, confined, fds), lifeline, request["timeout"]))
            return
        started = self.from_spare(request, fds) or forked(run_init, confined, fds, OF_COMMAND)
        child = Child(*started, lifeline, request["timeout"], request["profile"])
        child.hands_on = "streams" in request
        self.attend(child)

    def attend(self, child: Child) -> None:
        """From now on its end, its deadline and its lifeline count."""
        self.children[child.pidfd] = child
        self.by_lifeline[child.lifeline.fileno()] = child
        self.poll.register(child.pidfd, select.POLLIN)
        self.poll.register(child.lifeline, select.POLLIN)

    def from_spare(self, request: dict[str, Any], fds: list[int]) -> tuple[int, int] | None:
        """Starts a command in the init that stands ready; None when there is none for this kind of command."""
        spare, plain = self.spare, request["op"] == "run" and not {"streams", "watch"} & request.keys()
        if plain and spare is not None and spare.kind == request["profile"] and spare.take(request, fds):
            self.spare = None
            return spare.pid, spare.status
        self.drop_spare()
        return None

    def drop_spare(self) -> None:
        """Lets the one go that stands ready."""
        if self.spare is not None:
            self.spare.drop()
            self.spare = None

    def retire(self, child: Child) -> None:
        """Forgets a child that ended, after its report."""
        self.poll.unregister(child.pidfd)
        if self.by_lifeline.pop(child.lifeline.fileno(), None):
            self.poll.unregister(child.lifeline)
        del self.children[child.pidfd]
        child.finish()
        if child.kind and not any(c.kind for c in self.children.values()):
            try:
                self.spare = Spare(child.kind, self.profiles[child.kind])
            except OSError:  # the next command tells, if that is still so
                pass


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
