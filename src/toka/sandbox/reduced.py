"""The sandbox without namespaces (level `reduced`), and no sandbox at all (level `none`), with the use of the full one.

The workspace is at its real path. Landlock cannot take a path out of a wider rule, so a folder that holds protected
paths gets rules on what lies beside them: nothing can be created, renamed or removed in that folder itself.

The rules are bound to files and folders as they were when the sandbox started, whatever is put in their place later.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from toka.core.clock import Clock
from toka.errors import SandboxError, SandboxUnavailable
from toka.sandbox import landlock
from toka.sandbox.host import Sandbox
from toka.sandbox.idmap import PYTHON, agent_uid
from toka.sandbox.keeper import Keeper, Surroundings
from toka.sandbox.landlock import EXECUTE, READ, WRITE
from toka.sandbox.launch import Zygote, to_the_end
from toka.sandbox.level import (
    NO_SANDBOX,
    Level,
    check,
    path_rules,
    reduced_notes,
    ruleset,
    second_filter,
    system_rules,
)
from toka.sandbox.mounts import INSIDE, WORKSPACE, Granted, open_granted
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import BUILDERS, Kind
from toka.sandbox.seccomp import Syscalls, compile_filter
from toka.sandbox.selftest import LONGEST_S, SelfTest
from toka.sandbox.spawn import PYTHON_HINT, Spawned
from toka.sandbox.toolchain import bin_folders, closed_hint
from toka.sandbox.usage import children_of

LAYERS: Final = (
    "user", "capabilities", "no new privileges", "Landlock", "system calls", "sockets", "network", "signals",
)  # fmt: skip
"""What a passed test has shown to hold, in words."""
OUTSIDE: Final = (
    "/root", "/home", "/run", "/var", "/sys", "/boot", "/srv", "/tmp", "/etc/shadow", "/etc/ssh", "/proc/1",
)  # fmt: skip
"""What must not be readable; the workspace may lie below one of these."""
READ_ONLY: Final = ("/", "/usr", "/etc", "/tmp", "/dev/shm", "/proc/self/comm")
"""What must not be writable."""
KINDS: Final[tuple[Kind, ...]] = ("person", "agent", "tool", "git", "files")
PASSES: Final = 20
"""How often a whole tree is killed before the process that would adopt the rest is."""
_BOOT: Final = "import sys; sys.path.insert(0, sys.argv.pop()); from toka.sandbox.reduced_child import main; main()"


# ---- starting


@dataclass(frozen=True, slots=True)
class Plan:
    """What a start needs.

    Attributes:
        workspace: the folder, at its real path.
        policy: what the sandbox lets through.
        level: `reduced` or `none`.
        home: the agent's own temporary folder.
        uid: the user id of its processes.
        port: where its proxy listens; 0 = there is none.
    """

    workspace: Path
    policy: SandboxPolicy
    level: Level
    home: str
    uid: int
    port: int

    @property
    def own_user(self) -> bool:
        """Whether the user id owns nothing but what is made for it."""
        return self.uid != os.geteuid()


def _profiles(plan: Plan, granted: Granted, stack: ExitStack) -> tuple[dict[Kind, dict[str, Any]], list[str]]:
    """What each kind of process is locked into, with descriptors that the stack closes; and notes."""
    policy, machine = plan.policy, os.uname().machine
    kinds: dict[Kind, tuple[Sequence[str] | None, bool]] = {
        "person": (None, True), "agent": (policy.programs, True), "tool": (("python3", "psql"), True),
        "git": (("git",), False), "files": ((), False),
    }  # fmt: skip
    profiles: dict[Kind, dict[str, Any]] = {}
    notes: list[str] = []
    for kind, (programs, online) in kinds.items():
        port = plan.port if online else 0
        free = programs is None or (kind == "agent" and not BUILDERS.isdisjoint(programs))
        more = EXECUTE if free else 0
        opened, notes, held = path_rules(granted, {"read": READ | more, "write": WRITE | more})
        with held:
            refused = policy.refused_programs if kind == "agent" else ()
            toolchains = policy.toolchains if kind in ("person", "agent") else ()
            home = {plan.home: WRITE | more} | ({} if kind == "files" else dict.fromkeys(policy.shown, READ))
            rules = ruleset({} if kind == "files" else system_rules(programs, refused, toolchains) | home, opened)
        stack.callback(os.close, rules)
        calls = Syscalls((socket.AF_INET,) if port else (), memfd=programs is None, spawn=kind != "files")
        second = second_filter(machine, landlock.abi(), own_user=plan.own_user)
        profiles[kind] = {"rules": rules, "filters": [compile_filter(machine, calls).hex(), second.hex()], "port": port}
    return profiles, notes


def _spawn(plan: Plan) -> tuple[Spawned, dict[str, Any]]:
    """Starts the trusted process; it and its configuration."""
    if not os.access(PYTHON, os.X_OK):
        raise SandboxUnavailable(f"{PYTHON} is missing; it runs inside every sandbox", hint=PYTHON_HINT)
    with ExitStack() as stack, ExitStack() as held:
        granted = open_granted(plan.workspace, plan.policy, stack, held)
        if plan.level == "none":
            profiles: dict[Kind, dict[str, Any]] = {kind: {"rules": -1, "filters": [], "port": 0} for kind in KINDS}
            granted = Granted(notes=(NO_SANDBOX,))
        else:
            profiles, notes = _profiles(plan, granted, stack)
            listed = plan.policy.programs is not None
            told = reduced_notes(landlock.abi(), own_user=plan.own_user, network=bool(plan.port), programs=listed)
            granted = replace(granted, notes=(*told, *notes, *granted.notes))
        config = {
            "level": plan.level, "workspace": str(plan.workspace), "home": plan.home, "uid": plan.uid,
            "profiles": profiles, "open": [str(plan.workspace), *bin_folders(plan.policy.toolchains)],
            "writable": [str(plan.workspace / p) for p in plan.policy.writes if (plan.workspace / p).exists()],
        }  # fmt: skip
        rules = [profile["rules"] for profile in profiles.values() if profile["rules"] >= 0]
        process, control, errors, info = _started(plan, rules, stack)
        return Spawned(process, control, errors, info, granted, "", held.pop_all()), config


def _started(
    plan: Plan, fds: Sequence[int], stack: ExitStack
) -> tuple[subprocess.Popen[bytes], socket.socket, int, int]:
    """The process, our end of the control socket, its standard error, and the file with its pid."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stack.callback(theirs.close)
    control.setblocking(False)
    errors, errors_w = os.pipe2(os.O_CLOEXEC)
    stack.callback(os.close, errors_w)
    os.set_blocking(errors, False)
    code = _in_memory(_archive())
    stack.callback(os.close, code)
    user = plan.uid if plan.own_user and plan.level == "reduced" else None
    argv = [PYTHON, "-I", "-S", "-B", "-c", _BOOT, str(theirs.fileno()), f"/proc/self/fd/{code}"]
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors_w, env={}, cwd="/",
            pass_fds=(*fds, theirs.fileno(), code), start_new_session=True,
            user=user, group=user, extra_groups=None if user is None else [],
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        control.close()
        os.close(errors)
        raise SandboxUnavailable(f"the sandbox did not start: {error}") from None
    return process, control, errors, _in_memory(json.dumps({"child-pid": process.pid}).encode())


def _archive() -> bytes:
    """The code that runs inside, as a file that Python imports from: it may lie where the agent's user may not read."""
    packed = io.BytesIO()
    here = Path(__file__).parent
    with zipfile.ZipFile(packed, "w") as archive:
        for name in (*INSIDE, "reduced_child.py"):
            archive.writestr(f"toka/sandbox/{name}", (here / name).read_bytes())
        for name in ("toka/__init__.py", "toka/sandbox/__init__.py"):
            archive.writestr(name, b"")
    return packed.getvalue()


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("toka", os.MFD_CLOEXEC)
    with open(os.dup(fd), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
    return fd


class Tree(Zygote):
    """The trusted process, seen from the host."""

    def kill(self) -> None:
        """SIGKILL to all below the trusted process, again and again as far as something is left, then to itself."""
        for _ in range(PASSES):
            todo = [] if self.gone.done() else children_of(self.inner)
            if not todo:
                break
            while todo:
                pid = todo.pop()
                todo += children_of(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        super().kill()


class TreeKeeper(Keeper):
    """The limits of an agent whose processes are counted with all of the same user."""

    counted_alone = False


class ReducedSandbox(Sandbox):
    """A `Sandbox` without namespaces; at the level `none` without confinement, too.

    Attributes:
        home: the agent's own temporary folder; empty before the first start.
        port: where its proxy listens; 0 = there is none.
    """

    def __init__(self, workspace: Path, policy: SandboxPolicy, around: Surroundings, level: Level) -> None:
        online = policy if level == "reduced" else replace(policy, network=())
        # Anybody on this machine can reach the proxy, so it has no keys to add.
        keeper = TreeKeeper(online, replace(around, credentials={}))
        keeper.level = level
        super().__init__(workspace.resolve(), replace(policy, network=()), around, keeper)
        self._policy = policy
        self._level: Level = level
        self.home = ""
        self.port = 0

    @staticmethod
    async def open(workspace: Path, policy: SandboxPolicy, around: Surroundings, level: Level) -> ReducedSandbox:
        """Starts a sandbox and returns when it can be used; see `Sandbox.start`.

        Args:
            workspace: the agent's folder, also as its commands see it.
            policy: what it lets through.
            around: see `Surroundings`; credentials are not used.
            level: `reduced` or `none`.

        Raises:
            SandboxUnavailable: this machine cannot run one.
            SandboxError: the workspace is missing, or not the agent's to write.
        """
        sandbox = ReducedSandbox(workspace, policy, around, level)
        try:
            await sandbox._alive()
        except BaseException:
            await sandbox.close()
            raise
        return sandbox

    @property
    def level(self) -> Level:
        """`reduced` or `none`."""
        return self._level

    def _is_stale(self, zygote: Zygote) -> bool:  # noqa: ARG002 - nothing is mounted
        return False

    async def _start(self) -> Zygote:
        reduced = self._level == "reduced"
        if reduced:
            check(self._policy)
        uid = agent_uid() if reduced and os.geteuid() == 0 else os.geteuid()
        if not self.home:
            self.home = tempfile.mkdtemp(prefix="toka-")
            os.chown(self.home, uid, -1)
        policy = self._policy if reduced else SandboxPolicy()
        listener = socket.create_server(("127.0.0.1", 0)) if reduced and self._policy.network else None
        self.port = listener.getsockname()[1] if listener else 0
        plan = Plan(self._workspace, policy, self._level, self.home, uid, self.port)
        starting = asyncio.get_running_loop().run_in_executor(None, _spawn, plan)
        tree: Tree | None = None
        try:
            spawned, config = await to_the_end(starting)
            tree = Tree(spawned)
            await tree.ready(config, self._keeper.join)
        except BaseException as error:
            if tree is not None:
                await to_the_end(tree.end())
            if listener is not None:
                listener.close()
            if isinstance(error, SandboxUnavailable):
                raise SandboxUnavailable(error.message, hint=error.hint if tree is None else None) from None
            if isinstance(error, SandboxError) and "user id" in error.message and plan.own_user:
                give = f"give it away: `chown -R {uid} {self._workspace}`; or run toka as an ordinary user"
                raise SandboxError(error.message, hint=closed_hint(error.message, policy.toolchains) or give) from None
            raise
        self._keeper.open(listener)
        return tree

    def _request(self, argv: Sequence[str], cwd: str, env: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
        request = super()._request(argv, cwd, env, timeout_s)
        request["cwd"] = str(self._workspace) + request["cwd"][len(WORKSPACE) :]
        own = {**request["env"], "HOME": self.home, "TMPDIR": self.home}
        if self.port:
            proxy = f"http://127.0.0.1:{self.port}"
            own |= dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), proxy)
        request["env"] = {**own, **env}
        limits = request["rlimits"]
        if self._keeper.holds("pids") or self._level == "none":
            del limits["NPROC"]
        else:
            limits["NPROC"] += _threads_of(self.host_uid())
        return request

    def wanted(self) -> dict[str, Any]:
        """What the self-test must find closed: what is not granted, and nothing on the way to what is."""
        shown = {str(self._workspace / o.rule.path): o.rule.access for o in self.granted.opened}
        own = [self.home, *(path for path, access in shown.items() if access != "hide")]
        read = [path for path in OUTSIDE if path not in own and not any(path.startswith(o + "/") for o in own)]
        kept = [path for path, access in shown.items() if access != "write"]
        return {
            "network": bool(self.port),
            "write": [*READ_ONLY, *self._policy.toolchains, *self._policy.shown, *kept],
            "read": [*read, *(path for path, access in shown.items() if access == "hide")],
        }

    async def close(self) -> None:
        """See Sandbox. Takes the agent's temporary folder away, too."""
        await super().close()
        home, self.home = self.home, ""
        if home:
            await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


def _threads_of(uid: int) -> int:
    """Processes and threads of a user on this machine."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):
            count += len(list(folder.iterdir())) if folder.stat().st_uid == uid else 0
    return count


# ---- the self-test


async def reduced_test(sandbox: ReducedSandbox, clock: Clock) -> SelfTest:
    """Tests a reduced sandbox that has just been started; at the level `none` there is nothing to test.

    Raises:
        SandboxError: something succeeded that must fail, so nothing may run in it; or the test did not end.
    """
    began = clock.monotonic()
    limits = tuple((e.limit, e.how, e.strict) for e in sandbox.keeper.enforced)
    if sandbox.level == "none":
        return SelfTest((), 0, sandbox.host_uid(), limits, clock.monotonic() - began, "none")
    problems: list[str] = []
    for kind in ("person", "agent"):
        try:
            async with asyncio.timeout(LONGEST_S):  # the machine's time: a test's clock says nothing about a probe
                result = await sandbox.probe(kind, sandbox.wanted())
        except TimeoutError:
            raise SandboxError(f"the self-test of the sandbox did not end within {LONGEST_S:g} s") from None
        if result.ended != "exited" or result.exit_code:
            said = result.reason or result.output.decode("utf-8", "replace")[-300:] or result.ended
            raise SandboxError(f"the self-test of the sandbox did not come to its end: {said}")
        problems += [f"{layer}: {why}" for layer, why in json.loads(result.output).items()]
    if problems:
        raise SandboxError(
            f"the sandbox does not hold: {'; '.join(dict.fromkeys(problems))}", hint="nothing was run in this sandbox"
        )
    return SelfTest(LAYERS, landlock.abi(), sandbox.host_uid(), limits, clock.monotonic() - began, "reduced")
