"""What keeps one agent within its limits for as long as the agent lives: its cgroup, its watchdog, its way out.

The processes of a sandbox come and go; the keeper stays, so that figures and bounds count for the agent as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Final, Protocol, TypeVar

from toka.core.clock import Clock
from toka.core.units import format_bytes
from toka.errors import SandboxError
from toka.sandbox.cgroup import Cgroup, CgroupLimits
from toka.sandbox.cgroup_find import Hierarchies, owned_name
from toka.sandbox.egress import Egress
from toka.sandbox.egress_credential import Credential
from toka.sandbox.egress_link import Attempt
from toka.sandbox.egress_rules import EgressRules
from toka.sandbox.enforcement import Enforcement, enforcements
from toka.sandbox.level import Level
from toka.sandbox.orphans import Ledger
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.standstill import Tree, go_on, stop
from toka.sandbox.usage import Sampler, Usage

N = TypeVar("N", int, float)
WATCH_S: Final = 0.05
"""Seconds between two looks at what is not held by a cgroup, while something runs."""
OWN_PROCESSES: Final = 3
"""The zygote, the file worker, and the init of a command: not the agent's own."""
_NUMBERS: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A limit that was met.

    Attributes:
        kind: `memory`, `cpu`, `processes`, `disk`, `network`, of the agent; `output`, `time`, of one command.
        limit: in `unit`.
        used: in `unit`; at least the limit, unless `best_effort`.
        unit: `bytes`, `seconds` or `processes`.
        best_effort: nothing counted it: a command failed after it had come close to the limit.
    """

    kind: str
    limit: float
    used: float
    unit: str = "bytes"
    best_effort: bool = False

    @property
    def text(self) -> str:
        """`memory limit of 512MB reached`."""
        figure = format_bytes(int(self.limit)) if self.unit == "bytes" else f"{self.limit:g}"
        figure += " s" if self.unit == "seconds" else ""
        return f"{self.kind} limit of {figure} {'probably ' if self.best_effort else ''}reached"

    def to_json(self) -> dict[str, Any]:
        """{"kind", "limit", "used", "unit"}, and "best_effort" when it is."""
        out = asdict(self)
        return out if self.best_effort else {k: v for k, v in out.items() if k != "best_effort"}

    @property
    def of_command(self) -> bool:
        """Whether it bounds one command; others bound the agent as a whole."""
        return self.kind in ("output", "time")


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used between two moments; None is what cannot be read here.

    Attributes:
        cpu_s: seconds of processor time.
        throttled_s: seconds of waiting because the limit on processor time was used up.
        memory_peak_bytes: the most memory there was until now.
        read_bytes, written_bytes: of storage.
        network_up, network_down: bytes through the proxy.
        at_least: the fields of which this is the least it can have been.
    """

    cpu_s: float | None = None
    throttled_s: float | None = None
    memory_peak_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    network_up: int = 0
    network_down: int = 0
    at_least: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a sandbox is given beside its policy.

    Attributes:
        clock: for durations and deadlines.
        idle_s: seconds without use after which its processes end, if nothing is in /tmp; the next use starts them.
        name: whose it is, such as ("toka", run, agent): found again in the name of its cgroup.
        report: takes each attempt to reach the network.
        credentials: keys that the proxy adds, by host name, to requests to hosts that the policy lets through.
        hierarchies: where cgroups are; None = as this machine has them.
        variables: of all commands, beside those of `environment_of`.
        ledger: where to note it, so that it is found should this process be killed; None = nowhere.
    """

    clock: Clock
    idle_s: float = 60.0
    name: tuple[str, ...] = ("toka",)
    report: Callable[[Attempt], None] = field(default=lambda _: None)
    credentials: Mapping[str, Credential] = field(default_factory=dict[str, Credential])
    hierarchies: Hierarchies | None = None
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    ledger: Ledger | None = None


@cache
def machine() -> Hierarchies:
    """The cgroups of this machine, looked for once."""
    return Hierarchies.find()


class Running(Protocol):
    """A command that runs."""

    alone: bool

    def later(self, seconds: float) -> None:
        """Its deadline is put off: it stood still for so long."""
        ...


class Keeper:
    """Limits and figures of one agent.

    Attributes:
        running: the measures of commands that run now.
        level: how strongly the sandbox confines.
        counted_alone: whether the limit on processes counts all of this sandbox and nothing else.
    """

    level: Level = "full"
    counted_alone = True

    def __init__(self, policy: SandboxPolicy, around: Surroundings) -> None:
        self._policy = policy
        self._around = around
        self._cgroup: Cgroup | None = None
        self._sampler: Sampler | None = None
        self._past = Usage(cpu_s=0.0, read_bytes=0, written_bytes=0)
        self._note = around.ledger.open() if around.ledger is not None else None
        self._root = 0
        self._stopped: Tree = {}
        self._told = 0
        self._counted: frozenset[str] = frozenset()
        self.running: set[Running] = set()
        self._egress: Egress | None = None
        if policy.network:
            rules = EgressRules(policy.network, policy.refused)
            self._egress = Egress(
                rules,
                clock=around.clock,
                report=around.report,
                rate_bps=policy.network_bps,
                max_bytes=policy.network_bytes,
                credentials={h: c for h, c in around.credentials.items() if rules.decide(h, c.port).allowed},
            )

    def join(self, pid: int) -> None:
        """Puts a zygote under the limits, and notes it, before it starts anything.

        Raises:
            SandboxError: the kernel refuses, or the state directory does.
        """
        if self._cgroup is None:
            limits = CgroupLimits(
                self._policy.memory_bytes, self._policy.cpu_cores, self._policy.processes + OWN_PROCESSES
            )
            name = owned_name(*self._around.name, str(next(_NUMBERS)))
            self._cgroup = Cgroup.make(self._around.hierarchies or machine(), name, limits)
            counted = self._cgroup.usage()
            self._counted = frozenset(f for f in Usage.__dataclass_fields__ if getattr(counted, f) is not None)
        self._cgroup.add(pid)
        if self._note is not None:
            self._note.write(pid, self._cgroup.name, self._cgroup.directories)
        if self._sampler is not None:
            self._past = _sum(self._past, self._sampler.sample())
        self._sampler = Sampler(pid)
        self._root = pid

    def freeze(self) -> None:
        """Holds all processes still: by the cgroup, where it can, else one by one. May wait, so call it in a thread.

        Raises:
            SandboxError: they did not all stand still in time; then they run on.
        """
        if self._cgroup is not None and self._cgroup.can_freeze:
            self._cgroup.freeze()
        elif self._root:
            self._stopped = stop(self._root)

    def thaw(self) -> None:
        """Lets them go on; nothing happens where none is held. Raises SandboxError: the kernel refuses."""
        if self._cgroup is not None:
            self._cgroup.thaw()
        stopped, self._stopped = self._stopped, {}
        go_on(stopped)

    def kill(self) -> None:
        """Kills all that the cgroup holds, frozen or not; what is only stopped dies with its zygote, too."""
        if self._cgroup is not None:
            with contextlib.suppress(SandboxError):
                self._cgroup.kill()

    def open(self, listener: socket.socket | None) -> None:
        """Begins to serve a zygote's way out."""
        if listener is not None and self._egress is not None:
            self._egress.serve(listener)

    def holds(self, kind: str) -> bool:
        """Whether the kernel holds `memory`, `cpu` or `pids` for all processes together."""
        return self._cgroup is not None and kind in self._cgroup.enforced

    def counts(self, name: str) -> bool:
        """Whether a field of `Usage` is what the kernel counts for all processes together, not what was seen."""
        return name in self._counted

    def look(self) -> None:
        """Takes a sample of what still runs, before it is killed: afterwards /proc tells nothing of it."""
        if self._sampler is not None:
            self._sampler.sample(exact_from=1 << 62)

    def settle(self) -> None:
        """After a command was killed that ran alone: see `Sampler.settle`."""
        if self._sampler is not None:
            self._sampler.settle()

    @property
    def enforced(self) -> tuple[Enforcement, ...]:
        """How each limit that is set is held; only known after `join`."""
        held: Mapping[str, str] = self._cgroup.enforced if self._cgroup is not None else {}
        return enforcements(self._policy, held, self.level)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the control group, and why a limit is only best effort."""
        if self._cgroup is None:
            return ()
        missing = (f"no cgroup for {k}: {why}" for k, why in self._cgroup.missing.items() if k != "pids")
        return (*self._cgroup.notes, *missing)

    def usage(self) -> Usage:
        """What the agent used until now: as the cgroup counts it, where it does not as the processes show it."""
        counted = self._cgroup.usage() if self._cgroup is not None else Usage()
        missing = [name for name in Usage.__dataclass_fields__ if getattr(counted, name) is None]
        if self._sampler is None or not missing:
            return counted
        seen = _sum(self._past, self._sampler.sample(exact_from=self._policy.memory_bytes or 1 << 62))
        return replace(counted, **{name: getattr(seen, name) for name in missing})

    def spent(self, before: Usage, now: Usage, network: tuple[int, int]) -> Spent:
        """What was used between two readings of `usage`, and since one of `network`."""
        up, down = self.network
        return Spent(
            _less(now.cpu_s, before.cpu_s),
            _less(now.throttled_s, before.throttled_s),
            now.memory_peak_bytes,
            _less(now.read_bytes, before.read_bytes),
            _less(now.written_bytes, before.written_bytes),
            up - network[0],
            down - network[1],
        )

    @property
    def network(self) -> tuple[int, int]:
        """Bytes sent and received through the proxy until now."""
        return (self._egress.bytes_up, self._egress.bytes_down) if self._egress is not None else (0, 0)

    def wrote(self, size: int) -> None:
        """Counts bytes written that the inside tells of when a command or a file operation has ended."""
        self._told += size

    def disk(self) -> Exceeded | None:
        """The bound on bytes written, if more were written until now."""
        limit = self._policy.disk_bytes
        if limit is None:
            return None
        seen = self._sampler.sample(exact_from=1 << 62).written_bytes if self._sampler is not None else None
        written = max(self._told, (self._past.written_bytes or 0) + (seen or 0))
        return Exceeded("disk", limit, written) if written > limit else None

    def met(self, before: Usage, now: Usage) -> Exceeded | None:
        """What ran out between two readings of `usage`.

        Memory that the kernel killed for, bytes of disk or network, processes that it refused to start.
        """
        limit, network = self._policy.memory_bytes, self._policy.network_bytes
        if limit is not None and (now.oom_kills or 0) > (before.oom_kills or 0):
            return Exceeded("memory", limit, max(limit, now.memory_peak_bytes or 0))
        if network is not None and sum(self.network) >= network:
            return Exceeded("network", network, sum(self.network))
        if (over := self.disk()) is not None or (now.refused_forks or 0) <= (before.refused_forks or 0):
            return over
        return self._crowd(self._policy.processes)

    def _crowd(self, seen: int) -> Exceeded:
        return Exceeded("processes", self._policy.processes, max(seen, self._policy.processes), "processes")

    @contextlib.contextmanager
    def watching(self, kill: Callable[[Exceeded], None], note: Callable[[Exceeded], None]) -> Generator[None]:
        """Around a command: looks at what no cgroup holds.

        Args:
            kill: called when there is too much memory, or too much was written; to end the command.
            note: called when as many processes were seen as there may be: no more can be started.
        """
        policy = self._policy
        memory = None if self.holds("memory") else policy.memory_bytes
        if memory is None and policy.disk_bytes is None and self.holds("pids"):
            yield
            return
        watch = asyncio.ensure_future(self._watch(memory, kill, note))
        try:
            yield
        finally:
            watch.cancel()

    async def _watch(
        self, memory: int | None, kill: Callable[[Exceeded], None], note: Callable[[Exceeded], None]
    ) -> None:
        assert self._sampler is not None
        sampler, disk = self._sampler, self._policy.disk_bytes
        others = 0 if self.counted_alone else sampler.sample(exact_from=1 << 62).processes or 0
        most = 1 << 62 if self.holds("pids") else self._policy.processes + others
        while True:
            await self._around.clock.sleep(WATCH_S)
            seen = await asyncio.to_thread(sampler.sample, exact_from=memory or 1 << 62)
            written = (self._past.written_bytes or 0) + (seen.written_bytes or 0)
            if memory is not None and (seen.memory_bytes or 0) > memory:
                kill(Exceeded("memory", memory, seen.memory_bytes or 0))
            elif disk is not None and written > disk:
                kill(Exceeded("disk", disk, written))
            elif (seen.processes or 0) >= most:
                note(self._crowd((seen.processes or 0) - others))

    async def close(self) -> None:
        """Ends the way out and the cgroup, and what may be left in it."""
        if self._egress is not None:
            await self._egress.close()
        try:
            if self._cgroup is not None:
                await asyncio.to_thread(self._cgroup.end)
        except SandboxError:
            return  # the next one who starts finds it by the note
        if self._note is not None:
            self._note.remove()


def _sum(one: Usage, two: Usage) -> Usage:
    """Two lives of a sandbox after one another: what is used up adds, what is there now is the later one's."""
    peaks = [p for p in (one.memory_peak_bytes, two.memory_peak_bytes) if p is not None]
    return replace(
        two,
        memory_peak_bytes=max(peaks, default=None),
        cpu_s=_plus(one.cpu_s, two.cpu_s),
        read_bytes=_plus(one.read_bytes, two.read_bytes),
        written_bytes=_plus(one.written_bytes, two.written_bytes),
    )


def _plus(one: N | None, two: N | None) -> N | None:
    return None if one is None or two is None else one + two


def _less(now: N | None, before: N | None) -> N | None:
    return None if now is None or before is None else max(now - before, now * 0)
