"""The trusted process inside a sandbox: starts commands and the file worker. Runs under the system's Python (>= 3.9).

One standalone file that imports nothing but the standard library, single-threaded on purpose: it forks without exec.

    host ── control socket (SEQPACKET, JSON) ──> zygote, pid 1 of the sandbox
              ├─ command: init (pid 1 of its own pid, mount and ipc namespaces) -> the command
              └─ file worker: its root holds the workspace and nothing else

Each request brings a *lifeline*, one end of a SEQPACKET pair. The zygote sends one JSON report on it when the process
and all that it started are gone. Anything the host sends on it, and the host closing it, kills the process. The kernel
kills a pid namespace with its pid 1, so one SIGKILL reaches daemons and trees that ignore every other signal.
"""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Role = Callable[[dict[str, Any], int, int], dict[str, Any]]
    """What a child does with a request, the descriptor that came with it and its report's pipe."""

WORKSPACE = "/workspace"
JAIL = "/toka/jail"
WORKER = "/toka/worker.py"
MAX_MESSAGE = 256 * 1024
MAX_WAIT = 3600.0
MAX_REASON = 1000  # keeps a report below PIPE_BUF: it is written whole or not at all
REFUSED = 126
NO_PROGRAM = 127

# ---- the kernel: the few calls that os does not have in every supported Python

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SYS_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}

# PyDLL keeps the interpreter's lock over the call, so that the child of a raw clone finds a consistent interpreter.
_libc = ctypes.PyDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, value: int = 0) -> None:
    """prctl(2) with one argument."""
    args = [ctypes.c_ulong(v) for v in (value, 0, 0, 0)]
    _checked(_libc.prctl(ctypes.c_int(option), *args), f"prctl {option}")


def mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    """mount(2) without data."""
    src, tgt, fs = (None if s is None else os.fsencode(s) for s in (source, target, kind))
    _checked(_libc.mount(src, tgt, fs, ctypes.c_ulong(flags), None), f"mount {target}")


def unshare(flags: int) -> None:
    """unshare(2); os has it from Python 3.12 on."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def clone(flags: int) -> int:
    """fork() into new namespaces; returns the pid, 0 in the child.

    A raw system call: unshare and fork would need the way back into our own pid namespace, which is not ours to enter
    when bwrap runs for an ordinary user.
    """
    number = SYS_CLONE[os.uname().machine]
    args = [ctypes.c_long(v) for v in (number, flags | signal.SIGCHLD, 0, 0, 0, 0)]
    return _checked(_libc.syscall(*args), "clone")


def drop_capabilities() -> None:
    """Gives up every capability. The bounding set is empty since start, so that no exec brings one back."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _checked(_libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(none)), "capset")


def set_limits(limits: dict[str, int]) -> None:
    """Applies rlimits by name without the RLIMIT_ prefix; a value above the hard limit is cut to it."""
    for name, value in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def add_mount_flags(target: str, flags: int) -> None:
    """Adds restrictions to a mount of our own namespace, keeping the ones it has."""
    have = os.statvfs(target).f_flag
    kept = sum(flag for flag in (MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC) if have & flag)
    mount(None, target, None, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | kept | flags)


def open_fds() -> list[int]:
    """Our open descriptors, and one that the listing itself used."""
    return [int(name) for name in os.listdir("/proc/self/fd")]


def is_open(fd: int) -> bool:
    """Whether the descriptor is open."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# ---- one command


def run_command(request: dict[str, Any], out: int, status: int) -> None:
    """The command itself, a child of its init: everything irreversible, then exec. Never returns."""
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        os.dup2(status, 3, inheritable=False)
        os.closerange(4, 4096)  # the zygote's own limit: it holds no descriptor above
        os.chdir(request["cwd"])
        os.umask(0o022)
        set_limits(request["rlimits"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
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


def run_init(request: dict[str, Any], out: int, status: int) -> dict[str, Any]:
    """Pid 1 of one command's namespaces: sets them up, starts the command, reaps. Its end is the end of all inside."""
    # Read-only: as root outside, the files below /proc/sys would obey us without any capability.
    mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for target in request["noexec"]:
        add_mount_flags(target, MS_NOEXEC)
    drop_capabilities()
    child = os.fork()
    if child == 0:
        run_command(request, out, status)
    os.close(out)
    while True:
        pid, code = os.wait()
        if pid == child:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    return {"code": os.waitstatus_to_exitcode(code), "cpu": cpu, "rss": used.ru_maxrss * 1024}


# ---- the file worker


def run_worker(request: dict[str, Any], fd: int, status: int) -> dict[str, Any]:
    """Serves files until the host closes the socket. Its root holds the workspace only, so that no link leaves it."""
    serve = runpy.run_path(WORKER)["serve"]
    unshare(CLONE_NEWNS)
    mount(WORKSPACE, JAIL + WORKSPACE, None, MS_BIND | MS_REC)
    connection = socket.socket(fileno=os.dup(fd))
    os.chroot(JAIL)
    os.chdir(WORKSPACE)
    drop_capabilities()
    set_limits(request["rlimits"])
    keep = (0, 1, 2, status, connection.fileno())
    for other in range(3, request["rlimits"]["NOFILE"]):
        if other not in keep and is_open(other):
            os.close(other)
    serve(connection)
    return {"code": 0}


def become(role: Role, request: dict[str, Any], fd: int, status: int) -> None:
    """What a forked child does: its role, one report, and nothing of the zygote's own code ever again."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        report = role(request, fd, status)
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

    def finish(self) -> None:
        """Reaps the dead process and reports. Closing the lifeline with something unread would lose the report."""
        _, code, used = os.wait4(self.pid, 0)
        with open(self.status, "rb") as pipe:
            lines = [json.loads(line) for line in (pipe.read(8192) or b"").splitlines()]
        report: dict[str, Any] = {"ended": self.cause or "killed", "cpu": used.ru_utime + used.ru_stime, "rss": 0}
        for line in reversed(lines):
            report.update(line)
        if "refused" in report:
            report["ended"] = "refused"
        elif "code" in report:  # it had ended by itself when the kill came
            report["ended"] = "exited"
        report["wait"] = code
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

    def __init__(self, control: socket.socket, noexec: list[str]) -> None:
        self.control = control
        self.noexec = noexec
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
                elif fd in self.by_lifeline:
                    self.by_lifeline[fd].kill("killed")
                    self.poll.unregister(fd)
                    del self.by_lifeline[fd]
            now = time.monotonic()
            for child in self.children.values():
                if child.deadline <= now:
                    child.kill("timeout")
                    child.deadline = float("inf")

    def accept(self) -> bool:
        """Takes one request; False at the end of the control socket."""
        data, fds = receive(self.control)
        if not data:
            return False
        lifeline = socket.socket(fileno=fds[1])
        try:
            self.start({**json.loads(data), "noexec": self.noexec}, fds[0], lifeline)
        except Exception as error:
            lifeline.send(json.dumps({"ended": "refused", "refused": str(error), "cpu": 0.0, "rss": 0}).encode())
            lifeline.close()
        os.close(fds[0])
        return True

    def start(self, request: dict[str, Any], fd: int, lifeline: socket.socket) -> None:
        """Forks a command's init or the file worker."""
        status, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(status, False)
        try:
            if request["op"] == "files":
                pid, role = os.fork(), run_worker
            else:
                pid, role = clone(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC), run_init
            if pid == 0:
                become(role, request, fd, theirs)
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


def receive(control: socket.socket) -> tuple[bytes, list[int]]:
    """One message with its descriptors; empty at the end."""
    fds = array.array("i")
    data, ancillary, _, _ = control.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(2 * fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    return data, list(fds)


def check_mounts(expected: list[list[Any]]) -> None:
    """Each granted path must be the very file or folder that the host opened, with no more access than granted.

    A path that is swapped for a link while bwrap mounts would otherwise lead the mount astray.
    """
    for path, device, inode, writable in expected:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) != (device, inode):
            raise OSError(errno.ESTALE, f"{path} changed while the sandbox started")
        if not writable and not os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EPERM, f"{path} is writable and should not be")


def main() -> None:
    """Locks itself down, checks what bwrap built, says ready, serves."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for fd in open_fds():
        if fd > 2 and fd != control.fileno() and is_open(fd):
            os.close(fd)  # bwrap hands on what it inherited, the opened workspace among it
    config = json.loads(control.recv(MAX_MESSAGE))
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_DUMPABLE, 0)  # nobody inside may look into us or our inits
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        for capability in range(64):
            try:
                prctl(PR_CAPBSET_DROP, capability)
            except OSError:  # past the last capability of this kernel
                break
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        set_limits({"CORE": 0, "NOFILE": 4096})
        check_mounts(config["mounts"])
    except Exception as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    gc.collect()
    gc.freeze()
    control.send(b'{"ready": true}')
    Zygote(control, config["noexec"]).serve()


if __name__ == "__main__":
    main()
