"""What a child of the zygote becomes: a command with the init of its namespaces, or the file worker.

Like the zygote: standard library and our own files inside only, under the system's Python (>= 3.9), single-threaded.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket

from toka.sandbox.groundwork import PROGRAMS, is_open, keep, open_fds
from toka.sandbox.kernel import (
    CLONE_NEWNS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    PR_SET_PDEATHSIG,
    add_mount_flags,
    drop_capabilities,
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
MAX_MESSAGE = 256 * 1024
MAX_FDS = 5
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
    reports = [status]
    try:
        os.setsid()
        dress(request, fds, reports)
        if request["op"] == "probe":
            run_probe(request)
        if "watch" in request:
            from toka.sandbox.listener import lock_watched  # before the lock; no agent's command needs it

            lock_watched(request["profile"], request["watch"]["filter"], 4)
        else:
            lock(request["profile"])
    except BaseException as error:
        refuse(error, reports[0])
    execute(request)


def run_command_to_come(profile: dict[str, Any], connection: int, status: int) -> None:
    """The same where the request comes over the descriptor when all but it is done. Never returns."""
    reports = [status]
    request: dict[str, Any] = {}
    try:
        os.setsid()
        lock(profile)
        with socket.socket(fileno=connection) as orders:
            data, fds, _, _ = socket.recv_fds(orders, MAX_MESSAGE, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        request = json.loads(data)
        dress(request, fds, reports)
    except BaseException as error:
        refuse(error, reports[0])
    execute(request)


def dress(request: dict[str, Any], fds: list[int], reports: list[int]) -> None:
    """Its streams, folder, limits and signals. Puts into `reports` where the pipe of the report is from now on."""
    for target, source in enumerate(streams_of(request, fds)):
        os.dup2(source, target)
    keep(reports[0], fds[int(request["watch"]["at"])] if "watch" in request else -1)
    reports[0] = 3
    os.chdir(request["cwd"])
    os.umask(0o022)
    set_limits(request["rlimits"])
    os.nice(request.get("nice", 0))
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def refuse(error: BaseException, status: int) -> None:
    """Ends with a report of what kept the command from being started."""
    os.write(status, json.dumps({"refused": str(error)[:MAX_REASON]}).encode() + b"\n")
    os._exit(REFUSED)


def execute(request: dict[str, Any]) -> None:
    """Becomes the program."""
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
    furnish(request["profile"])
    begun = None
    if "streams" in request:
        from toka.sandbox.streams import hand_on as begun  # no agent's command needs it

        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # until then
    return reap(lambda: run_command(request, fds, status), fds, begun)


def run_spare(profile: dict[str, Any], fds: list[int], status: int) -> dict[str, Any]:
    """The same for a command that is not known yet: its request comes over the descriptor."""
    for fd in open_fds():
        if fd > 2 and fd not in (status, *fds) and is_open(fd):
            os.close(fd)  # the host is to see at once when the zygote has died, whoever waits
    furnish(profile)
    return reap(lambda: run_command_to_come(profile, fds[0], status), fds)


def furnish(profile: dict[str, Any]) -> None:
    """Sets up the namespaces of a command, and gives up what it takes to do so."""
    # Read-only: as root outside, the files below /proc/sys would obey us without any capability.
    mount("proc", "/proc", "proc", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for target in profile["noexec"]:
        add_mount_flags(target, MS_NOEXEC)
    if profile["listed"]:
        mount(PROGRAMS, "/usr/bin", None, MS_BIND | MS_REC)
        for folder in profile["hidden"]:
            if os.path.isdir(folder):
                mount(NOTHING, folder, None, MS_BIND)
    for program in profile["masked"]:
        if os.path.lexists(program):  # it may be hidden with its folder
            mount("/dev/null", program, None, MS_BIND)
    drop_capabilities()


def reap(command: Callable[[], None], fds: list[int], begun: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Starts the command, calls `begun` with its pid, reaps until it has ended."""
    child = os.fork()
    if child == 0:
        command()
    for fd in fds:
        os.close(fd)
    if begun is not None:
        begun(child)
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


# ---- both


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
