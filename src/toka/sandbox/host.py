"""A sandbox as the rest of Toka uses it: run a command, work on files, close."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from toka.core.stopwatch import Stopwatch
from toka.errors import SandboxError
from toka.sandbox.command import CommandResult, Lifeline
from toka.sandbox.environment import environment_of
from toka.sandbox.execution import Commands
from toka.sandbox.filework import FileDesk
from toka.sandbox.keeper import Keeper, Surroundings
from toka.sandbox.launch import Zygote, start_zygote, to_the_end
from toka.sandbox.measure import Told, refused, unheard
from toka.sandbox.mounts import Granted
from toka.sandbox.orphans import with_room
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import Kind
from toka.sandbox.request import bounds_of, check_command
from toka.sandbox.terminal import Streams
from toka.sandbox.usage import Usage, children_of

LEAVE_S: Final = 5.0
"""Seconds in which the zygote must say whether an idle sandbox is left."""


def shell(command: str) -> list[str]:
    """A person's command line as an argument vector."""
    return ["/bin/sh", "-c", command]


class Sandbox:
    """One agent's hands: an operating-system sandbox with its workspace, no network and no key.

    Any number of commands run at once; file operations run one after the other. A sandbox that dies is started anew by
    the next use; /tmp is empty then, and what was running is reported as lost. Leaving `close` out leaves a process.

    The process that started it must keep the thread alive that did: the kernel kills the sandbox with that thread.
    """

    def __init__(
        self, workspace: Path, policy: SandboxPolicy, around: Surroundings, keeper: Keeper | None = None
    ) -> None:
        self._workspace = workspace.absolute()  # the thread that starts it may be in another folder
        self._policy = policy
        self._clock = around.clock
        self._watch = Stopwatch(around.clock)
        self._idle_s = around.idle_s
        self._keeper = keeper or Keeper(policy, around)
        self._environment = {**around.variables, **environment_of(policy)}
        self._zygote: Zygote | None = None
        self._desk = FileDesk(self._alive, self._send, self._end, policy, self._watch)
        self._commands = Commands(self._keeper, self._clock, self._watch, self._send, self._end)
        self._starting = asyncio.Lock()
        self._turning = asyncio.Lock()
        self._closed = False
        self._busy = 0
        self._still_since: float | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Task[None] | None = None

    @staticmethod
    async def start(workspace: Path, policy: SandboxPolicy, around: Surroundings) -> Sandbox:
        """Starts a sandbox and returns when it can be used.

        Args:
            workspace: the agent's folder on the host; mounted at /workspace as far as the policy grants it.
            policy: what it lets through.
            around: the clock, whose sandbox it is, who hears of its attempts to reach the network.

        Raises:
            SandboxUnavailable: this machine cannot run one; nothing runs outside instead.
            SandboxError: the workspace is missing, or was tampered with during the start.
        """
        sandbox = Sandbox(workspace, policy, around)
        await sandbox._alive()
        return sandbox

    @property
    def policy(self) -> SandboxPolicy:
        """What it lets through."""
        return self._policy

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from the policy: granted paths that were missing and left out, or created."""
        return (*self.granted.notes, *self._keeper.notes)

    @property
    def keeper(self) -> Keeper:
        """What holds its limits: figures, and how each limit is enforced."""
        return self._keeper

    async def _alive(self) -> Zygote:
        """A zygote that takes requests; while the sandbox stands still, nobody gets one."""
        while True:
            await self._watch.wait_going()
            async with self._starting:
                if self._closed:
                    raise SandboxError("the sandbox is closed")
                if self._watch.held:
                    continue
                zygote = self._zygote
                if zygote is None or not zygote.alive or self._is_stale(zygote):
                    if zygote is not None:
                        await zygote.end()
                    zygote = self._zygote = await with_room(self._start, self._clock)
                return zygote

    def _is_stale(self, zygote: Zygote) -> bool:
        """Whether it is to be replaced, although it lives: what it mounted is not what lies there now."""
        return self._busy <= 1 and zygote.granted.replaced(self._workspace)

    async def _start(self) -> Zygote:
        zygote = await start_zygote(self._workspace, self._policy, self._keeper.join)
        self._keeper.open(zygote.listener)
        return zygote

    async def probe(self, kind: Kind, wanted: Mapping[str, Any]) -> CommandResult:
        """Runs the self-test's tries, locked up as one kind of process; see `probe.py` for `wanted` and the output.

        Raises:
            SandboxUnavailable, SandboxError: the sandbox had died and could not be started again.
        """
        request = self._request(["probe"], ".", {}, 3600.0)
        with self._working():
            request |= {"op": "probe", "profile": kind, "wanted": wanted}
            await self._alive()
            return await self._commands.run(request, self._policy.output_bytes, self._clock.monotonic(), unheard)

    def processes(self) -> list[int]:
        """The ids on the host of the zygote and its children: the file worker, each command's init, one that waits."""
        zygote = self._zygote.inner if self._zygote is not None and self._zygote.alive else 0
        return [zygote, *children_of(zygote)] if zygote else []

    def usage(self) -> Usage:
        """What its processes used until now, and use; nothing before the first start."""
        return self._keeper.usage()

    def host_uid(self) -> int:
        """The user id of its processes on the host; -1 when none runs."""
        if self._zygote is None or not self._zygote.alive:
            return -1
        return self._zygote.uid()

    @property
    def granted(self) -> Granted:
        """What is mounted of the workspace."""
        return self._zygote.granted if self._zygote else Granted()

    @contextlib.contextmanager
    def _working(self) -> Generator[None]:
        """Around each use: the sandbox is not stopped during it, and a while after the last one it may be."""
        self._busy += 1
        if self._idle is not None:
            self._idle.cancel()
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy and not self._closed and not self._watch.held:
                self._rest()

    def _rest(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._begin_leave)

    def _begin_leave(self) -> None:
        self._leaving = asyncio.ensure_future(self._leave())

    async def _leave(self) -> None:
        """Stops a sandbox that nobody uses, if commands left nothing in it; the next use starts a new one."""
        async with self._starting:
            zygote = self._zygote
            if self._busy or self._closed or zygote is None or not zygote.alive:
                return
            with contextlib.closing(Lifeline()) as lifeline:
                try:
                    await zygote.send({"op": "leave"}, (lifeline.theirs.fileno(), lifeline.theirs.fileno()))
                except OSError:
                    return
                lifeline.theirs.close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LEAVE_S):
                        if not (await lifeline.report()).get("left", True):
                            await zygote.end()

    async def run(  # noqa: PLR0913 - by name, and most have a default
        self,
        argv: Sequence[str],
        *,
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        timeout_s: float,
        output_limit: int | None = None,
        chosen_by: Literal["person", "agent"] = "agent",
        apart: bool = False,
        told: Told = unheard,
    ) -> CommandResult:
        """Runs one command to its end. A command that fails is a result, not an exception.

        Cancelling kills it and all it started, and the cancellation goes on when they are dead.

        Args:
            argv: the program (looked up in PATH) and its arguments; `shell` makes one of a command line.
            cwd: a folder relative to the workspace.
            env: variables added to those of `environment_of`.
            timeout_s: seconds after which the command and all it started are killed.
            output_limit: bytes of output to keep; None: the policy's figure.
            chosen_by: a command that a person wrote into the spec may run any program, one that the agent chose only
                those of the policy.
            apart: whether to keep standard output by itself, too.
            told: called with how it ended (without its output), also when the caller is cancelled.

        Raises:
            SandboxUnavailable, SandboxError: the sandbox had died and could not be started again.
        """
        started = self._clock.monotonic()
        try:
            request = {**self._request(argv, cwd, env or {}, timeout_s), "profile": chosen_by, "apart": apart}
        except ValueError as error:
            return refused(str(error), 0.0)
        with self._working():
            await self._alive()
            limit = self._policy.output_bytes if output_limit is None else output_limit
            return await self._commands.run(request, limit, started, told, apart=apart)

    async def attach(
        self, argv: Sequence[str], streams: Streams, *, env: Mapping[str, str] | None = None, timeout_s: float
    ) -> CommandResult:
        """Runs one command on a person's streams, locked up as one that an agent chose. See `run` for the rest.

        Returns when everything inside is dead; the output may still be on its way then, see `Streams.finish`.
        """
        started = self._clock.monotonic()
        try:
            request = {**self._request(argv, ".", env or {}, timeout_s), "profile": "agent", **streams.request}
        except ValueError as error:
            return refused(str(error), 0.0)
        with self._working():
            await self._alive()
            return await self._commands.measured(request, streams.lifeline, streams, started, unheard)

    def _request(self, argv: Sequence[str], cwd: str, env: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
        """Raises ValueError for what cannot be run at all."""
        asked = {"op": "run", **check_command(argv, cwd, env, timeout_s), "env": {**self._environment, **env}}
        return asked | bounds_of(self._policy, self._keeper.holds, timeout_s)

    async def _send(self, request: dict[str, Any], fds: Sequence[int]) -> Zygote:
        """Hands a request to a zygote that lives. A zygote found dead got nothing, so a new one may get it."""
        while True:
            zygote = await self._alive()
            try:
                await zygote.send(request, fds)
            except OSError:
                await zygote.end()
                continue
            return zygote

    async def _end(self, zygote: Zygote) -> None:
        """Kills a whole sandbox, one that stands still too, and returns when nothing of it is left."""
        if self._watch.held:
            await asyncio.to_thread(self._keeper.kill)  # what is frozen does not die of SIGKILL alone
        await zygote.end(at_once=True)

    async def file(self, op: str, *, timeout_s: float = 30.0, body: bytes = b"", **args: Any) -> dict[str, Any]:
        """Works on files of the workspace as the sandbox sees it; see `worker.py` for operations and arguments.

        Args:
            op: `read`, `list`, `search`, `hash`, `write` or `edit`.
            timeout_s: seconds after which the worker is killed; a write may have happened then.
            body: the new contents, for `write`.
            args: the operation's arguments; paths are relative to the workspace.

        Returns:
            The operation's result, with the contents as `body` (bytes); or `error` (a code) and `message`. Codes
            `timeout` and `lost` say that the operation may or may not have happened; `limit`, that it did not.

        Raises:
            SandboxUnavailable, SandboxError: the sandbox had died and could not be started again.
        """
        writes = op in ("write", "edit")
        if writes and (over := self._keeper.disk()) is not None:
            return {"error": "limit", "message": f"{over.text}; nothing more may be written"}
        with self._working():
            answer = await self._desk.file({"op": op, **args}, body, timeout_s)
        if writes and "error" not in answer:
            self._keeper.wrote(answer.get("size", 0))
        return answer

    async def freeze(self) -> None:
        """Holds everything inside still: commands, the file worker, what they started. Returns when nothing runs.

        Deadlines, idle time and the figures of time stand still, too. Who asks for something meanwhile waits until
        `thaw`, or gets "the sandbox is closed" after `close`; cancelling a command kills the whole sandbox. Processes
        that had stopped by themselves stay so after `thaw`. Idempotent; does nothing after `close`.

        Raises:
            SandboxError: not all stood still within 2 seconds; then they run on.
        """
        async with self._turning, self._starting:
            if self._closed or self._watch.held:
                return
            self._watch.hold()
            freezing = asyncio.ensure_future(asyncio.to_thread(self._keeper.freeze))
            try:
                await asyncio.shield(freezing)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    with contextlib.suppress(SandboxError):
                        await to_the_end(freezing)
                await to_the_end(self._go_on())
                raise
            self._still_since = time.monotonic()
            if self._idle is not None:
                self._idle.cancel()

    async def thaw(self) -> None:
        """Lets everything go on, with the time that it had left. Idempotent.

        Raises:
            SandboxError: the kernel refuses; then nothing goes on.
        """
        async with self._turning:
            if self._watch.held and not self._closed:
                await to_the_end(self._go_on())

    async def _go_on(self) -> None:
        if self._still_since is not None and self._zygote is not None:
            self._zygote.tell_stood(self._still_since, time.monotonic())  # heard before any deadline is looked at
        await asyncio.to_thread(self._keeper.thaw)
        stood = 0.0 if self._still_since is None else time.monotonic() - self._still_since
        for command in self._keeper.running:
            command.later(stood)
        self._still_since = None
        self._watch.go_on()
        if not self._busy:
            self._rest()

    async def close(self) -> None:
        """Ends everything inside and returns when it is gone. Commands still running end as `lost`. Idempotent."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
        async with self._turning, self._starting:
            zygote, self._zygote = self._zygote, None
            if zygote is not None:
                await to_the_end(self._end(zygote) if self._watch.held else zygote.end())
            self._desk.close()
            self._watch.go_on()
            await to_the_end(self._keeper.close())
