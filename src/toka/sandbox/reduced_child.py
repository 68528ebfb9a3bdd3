"""The trusted process of a sandbox without namespaces: starts commands and the file worker, and ends all of a tree.

It serves the requests that the zygote serves (see `zygote.py`). What differs is what holds a command: no namespaces,
but Landlock rules that the host made beforehand, and two filters; and what ends it: its init adopts whatever loses its
parent, and kills until nothing is left. Should an init itself be killed, this process adopts.

Standard library only: it runs under the system's Python (>= 3.9), from an archive in memory, as the agent's user.
"""

# ruff: noqa: PTH108, PTH110, PTH112, PTH123, PTH208, BLE001 - paths stay text, and no request may end this process

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time

from toka.sandbox import kernel
from toka.sandbox.roles import MAX_MESSAGE, NO_PROGRAM, REFUSED, streams_of
from toka.sandbox.streams import HANDED_ON
from toka.sandbox.worker import serve
from toka.sandbox.zygote import Child, Zygote, forked

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PR_SET_CHILD_SUBREAPER, SYS_PIDFD_GETFD, NEW_LISTENER = 36, 438, 8
RECEIVE, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_*
ANY_CHILD = 0x40000000  # __WALL
STOP = signal.SIGUSR1
"""Tells an init to end its tree."""
_libc = ctypes.CDLL(None, use_errno=True)


# ---- trees of processes


def children(pid: int) -> list[int]:
    """The children of a process, of all its threads; empty when it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += [int(word) for word in file.read().split()]
    except OSError:  # it is gone
        pass
    return found


def strike(pid: int, parents: set[int]) -> None:
    """SIGKILL, if it still is a child of one of these: the number may mean another process by now."""
    try:
        with open(os.pidfd_open(pid), "rb", buffering=0) as process, open(f"/proc/{pid}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) in parents:
                signal.pidfd_send_signal(process.fileno(), signal.SIGKILL)
    except OSError:  # it is gone
        pass


def kill_tree(spared: set[int]) -> None:
    """Kills all descendants of this process, and reaps, until none is left but those spared with what is below them."""
    me, quiet = os.getpid(), 0
    while quiet < 2:  # the kernel may leave one out of the list that lives beside one that ends
        ours = [pid for pid in children(me) if pid not in spared]
        known, todo = {me}, list(ours)
        while todo:
            pid = todo.pop()
            strike(pid, known)
            known.add(pid)
            todo += children(pid)
        for pid in ours:
            os.waitpid(pid, os.WNOHANG | ANY_CHILD)
        quiet = 0 if ours else quiet + 1
        time.sleep(0.0005 if ours else 0)


# ---- one command


def lock(profile: dict[str, Any], ask: int = -1) -> None:
    """Everything that a process cannot undo, the last step before untrusted code. Our init, at the other end of `ask`,
    is given the listener for connections; -1: nobody is, as no socket can be made."""
    if not profile["filters"]:
        return
    kernel.call(kernel.SYS_LANDLOCK_RESTRICT, "landlock", profile["rules"], 0)
    os.close(profile["rules"])  # whoever has it can add to what later commands may do
    first, second = (bytes.fromhex(text) for text in profile["filters"])
    if ask < 0:
        kernel.seccomp(second)
    else:
        buffer = ctypes.create_string_buffer(second, len(second))
        program = struct.pack("=HxxxxxxQ", len(second) // 8, ctypes.addressof(buffer))
        number = kernel.SYS_SECCOMP[os.uname().machine]
        listener = kernel.call(
            number, "seccomp", kernel.SECCOMP_SET_MODE_FILTER, NEW_LISTENER, ctypes.c_char_p(program)
        )
        with socket.socket(fileno=os.dup(ask)) as init:
            socket.send_fds(init, [b"l"], [listener])
        os.close(listener)
    kernel.seccomp(first)


def keep_only(kept: list[int]) -> None:
    """Closes every descriptor from 3 on but these."""
    low = 3
    for fd in [*sorted(fd for fd in kept if fd > 2), 0xFFFFFFFF]:
        if low < fd:
            kernel.call(kernel.SYS_CLOSE_RANGE, "close_range", low, fd - 1, 0)
        low = fd + 1


def run_command(request: dict[str, Any], fds: list[int], status: int, ask: int) -> None:
    """The command itself, a child of its init: everything irreversible, then exec. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, STOP, *HANDED_ON):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        for target, source in enumerate(streams_of(request, fds)):
            os.dup2(source, target)
        keep_only([status, ask, request["profile"]["rules"]])
        os.chdir(request["cwd"])
        os.umask(0o022)
        kernel.set_limits(request["rlimits"])
        status_file = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC) if request["op"] == "probe" else -1
        lock(request["profile"], ask)
        if status_file >= 0:
            os.write(1, json.dumps(tries(request["wanted"], status_file)).encode())
            os._exit(0)
    except BaseException as error:
        os.write(status, json.dumps({"refused": str(error)[:1000]}).encode() + b"\n")
        os._exit(REFUSED)
    program = request["argv"][0]
    try:
        os.execvpe(program, request["argv"], request["env"])
    except BaseException as error:
        text = f"toka: {program}: {getattr(error, 'strerror', None) or error}\n"
        os.write(2, text.encode("utf-8", "replace"))
        os._exit(NO_PROGRAM if isinstance(error, FileNotFoundError) else REFUSED)


def run_init(request: dict[str, Any], fds: list[int], status: int) -> dict[str, Any]:
    """The parent of one command and in the end of all that it starts. Its end is the end of them all."""
    kernel.prctl(PR_SET_CHILD_SUBREAPER, 1)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, STOP)  # without its parent it must end the tree, not leave it behind
    words, word = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for number in (signal.SIGCHLD, STOP, *HANDED_ON):
        signal.signal(number, lambda _, __: None)
    signal.set_wakeup_fd(word, warn_on_full_buffer=False)
    if os.getppid() != request["parent"]:
        return {}
    asked, ask = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        run_command(request, fds, status, ask.fileno() if request["profile"]["port"] else -1)
    ask.close()
    keep_only([status, words, word, asked.fileno()])
    report = watch(child, words, asked, request["profile"]["port"])
    kill_tree(set())
    return report


def watch(child: int, words: int, asked: socket.socket, port: int) -> dict[str, Any]:
    """Waits for the end of a command, hands signals on to it, and makes its connections. Its report; empty: stopped."""
    poll = select.poll()
    poll.register(words, select.POLLIN)
    poll.register(asked, select.POLLIN)
    while True:
        for fd, event in poll.poll():
            if fd == words:
                for number in os.read(words, 64):
                    if number == STOP:
                        return {}
                    if number in HANDED_ON:
                        attempt(lambda n=number: os.killpg(child, n))
            elif fd == asked.fileno():
                poll.unregister(asked)
                for listener in socket.recv_fds(asked, 1, 1, socket.MSG_CMSG_CLOEXEC)[1]:
                    poll.register(listener, select.POLLIN)
            elif event & select.POLLIN:
                connect_for(fd, port)
            else:
                poll.unregister(fd)  # the last process that could ask is gone
        while (ended := os.waitpid(-1, os.WNOHANG | ANY_CHILD))[0]:
            if ended[0] == child:
                used = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu, rss = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
                return {"code": os.waitstatus_to_exitcode(ended[1]), "cpu": cpu, "rss": rss}


# ---- connections


def connect_for(listener: int, port: int) -> None:
    """Answers one `connect`: made here, from our own copy of the address, which nobody can change meanwhile.

    Landlock knows ports, not addresses: without this, every machine could be reached on the proxy's port.
    """
    notice = ctypes.create_string_buffer(80)
    if _libc.ioctl(ctypes.c_int(listener), ctypes.c_ulong(RECEIVE), notice):
        return
    number, pid = struct.unpack_from("=QI", notice.raw)
    fd, address, size = struct.unpack_from("=3Q", notice.raw, 32)
    code = 0
    try:
        connect_to(pid, fd & 0xFFFFFFFF, address, size & 0xFFFFFFFF, port)
    except Exception as error:
        code = getattr(error, "errno", 0) or errno.EPERM
    answer = ctypes.create_string_buffer(struct.pack("=QqiI", number, 0, -code, 0), 24)
    _libc.ioctl(ctypes.c_int(listener), ctypes.c_ulong(SEND), answer)


def connect_to(pid: int, fd: int, address: int, size: int, port: int) -> None:
    """Connects a socket of another process, if it is to go to the proxy. Raises OSError."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        wanted = memory.read(min(size, 128))
    if wanted[:8] != struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + bytes((127, 0, 0, 1)):
        raise OSError(errno.EACCES, "not the proxy")
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        leader = next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))
    with open(os.pidfd_open(leader), "rb", buffering=0) as process:
        taken = kernel.call(SYS_PIDFD_GETFD, "pidfd_getfd", process.fileno(), fd, 0)
    with socket.socket(fileno=taken) as ours:
        if _libc.connect(ctypes.c_int(ours.fileno()), ctypes.c_char_p(wanted[:16]), ctypes.c_uint(16)):
            raise OSError(ctypes.get_errno(), "connect")


# ---- the self-test


def tries(wanted: dict[str, Any], status_file: int) -> dict[str, str]:
    """Tries every layer once; layer -> what is wrong with it. Empty when everything holds.

    Args:
        wanted: "write" and "read": paths that must not be writable, readable; "network": whether TCP sockets may be
            made, which then connect to the proxy only.
        status_file: our own status, opened before the lock.
    """
    lines = os.read(status_file, 65536).decode("ascii", "replace").splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    above, watch_ = os.getppid(), _libc.inotify_init()
    found = {
        "user": 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()),
        "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) != 0,
        "no new privileges": status["NoNewPrivs"] != "1",
        "system calls": status["Seccomp"] != "2",
        "namespaces": _libc.unshare(0x10000000) == 0,
        "tracing": _libc.ptrace(0, 0, 0, 0) == 0,
        "signals": attempt(lambda: os.kill(above, 0)),
        "limits of others": attempt(lambda: resource.prlimit(above, resource.RLIMIT_CORE)),
        "shared memory": _libc.shmget(0, 4096, 0o1600) >= 0,
        "watching": _libc.inotify_add_watch(watch_, b"/", 0x100) >= 0,
        "processes": attempt(lambda: os.listdir("/proc")),
    }
    for path in wanted["write"]:
        made = f"{path}/.toka-probe-{os.urandom(4).hex()}" if os.path.isdir(path) else ""  # never one that is there
        found["write " + path] = attempt(lambda p=made or path: open(p, "ab").close())
        attempt(lambda p=made: os.unlink(p))
    for path in wanted["read"]:
        found["read " + path] = attempt(lambda p=path: os.close(os.open(p, os.O_RDONLY | os.O_CLOEXEC)))
    return sockets(network=wanted["network"]) | {what: "it does not hold" for what, worked in found.items() if worked}


def attempt(act: Callable[[], object]) -> bool:
    """Whether something succeeds."""
    try:
        return act() is not NotImplemented
    except OSError:
        return False


def sockets(*, network: bool) -> dict[str, str]:
    """What is wrong with sockets. Nothing leaves the machine: connections are tried on the loopback only."""
    inet, stream = socket.AF_INET, socket.SOCK_STREAM
    kinds = {"unix": (1, stream, 0), "vsock": (40, stream, 0), "netlink": (16, 2, 0), "udp": (inet, 2, 0)}
    kinds.update({"mptcp": (inet, stream, 262), "sctp": (inet, stream, 132)})
    kinds.update({} if network else {"internet": (inet, stream, 0)})
    out = {name + " sockets": "can be made" for name, k in kinds.items() if attempt(lambda k=k: socket.socket(*k))}
    for name, arguments in (("connect", [("127.0.0.1", 1)]), ("listen", [])) if network else ():
        try:
            getattr(socket.socket(inet, stream), name)(*arguments)
        except PermissionError:  # and nothing else: a refusal by the other side means that it was asked
            continue
        except OSError:
            pass
        out[name] = "is not refused"
    return out


# ---- the file worker, and the process that starts it all


def run_files(request: dict[str, Any], fds: list[int], status: int) -> dict[str, Any]:
    """Serves files until the host closes the socket. What it may open, Landlock says, wherever a link leads."""
    connection = socket.socket(fileno=os.dup(fds[0]))
    os.chdir(request["workspace"])
    keep_only([status, connection.fileno(), request["profile"]["rules"]])
    kernel.set_limits(request["rlimits"])
    lock(request["profile"])
    serve(connection)
    return {"code": 0}


class TreeChild(Child):
    """An init or the file worker."""

    number = STOP

    def kill(self, cause: str) -> None:
        """Ends it, an init with its tree; the first cause is the one reported."""
        if not self.cause:
            self.cause = cause
            os.kill(self.pid, self.number)


class Guardian(Zygote):
    """The loop of the zygote over processes without namespaces."""

    def __init__(self, control: socket.socket, config: dict[str, Any]) -> None:
        super().__init__(control, config["profiles"])
        self.home, self.workspace = str(config["home"]), str(config["workspace"])

    def leave(self, lifeline: socket.socket) -> bool:
        """See Zygote."""
        lifeline.send(json.dumps({"ended": "exited", "left": (left := bool(os.listdir(self.home)))}).encode())
        return left

    def start(self, request: dict[str, Any], fds: list[int], lifeline: socket.socket) -> None:
        """See Zygote."""
        files = request["op"] == "files"
        profile = self.profiles[request["profile"]]
        request |= {"parent": os.getpid(), "workspace": self.workspace, "profile": profile}
        started = forked(run_files if files else run_init, request, fds)
        child = TreeChild(*started, lifeline, request["timeout"])
        child.number = signal.SIGKILL if files else STOP
        child.hands_on = True
        self.attend(child)

    def retire(self, child: Child) -> None:
        """See Zygote. First ends what an init may have left that was killed itself."""
        kill_tree({c.pid for c in self.children.values()})
        super().retire(child)


def prepare(config: dict[str, Any]) -> None:
    """Locks this process down and checks what it was given. Raises OSError."""
    kernel.prctl(PR_SET_CHILD_SUBREAPER, 1)
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        raise OSError(errno.ENOSYS, "this kernel does not list the children of a process")
    if config["level"] == "none":
        return
    if os.getresuid() != (config["uid"],) * 3 or 0 in (config["uid"], *os.getresgid(), *os.getgroups()):
        raise OSError(errno.EPERM, "it is not the agent's user")
    if closed := [path for path in config["open"] if not os.access(path, os.X_OK)]:
        raise OSError(errno.EACCES, f"{closed[0]} is closed to user id {config['uid']}")
    for path in config["writable"]:
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, f"{path} is not writable for user id {config['uid']}")
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # nobody of the same user may look into us or our inits
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.drop_capabilities()


def main() -> None:
    """Locks itself down, says ready, serves, and ends all that is left."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.send(b'{"hello": true}')  # the host puts us into a control group before it answers
    config = json.loads(control.recv(MAX_MESSAGE))
    try:
        kernel.set_limits({"CORE": 0})
        prepare(config)
    except Exception as error:
        control.send(json.dumps({"error": getattr(error, "strerror", None) or str(error)}).encode())
        return
    control.send(b'{"ready": true}')
    try:
        Guardian(control, config).serve()
    finally:
        kill_tree(set())
