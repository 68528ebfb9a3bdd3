"""Decides a recorded run once more, against what was recorded of the world, and says where it would go another way.

The engine, sessions, agents and tasks are the real ones. What they ask of models, tools, sandboxes and people is
answered from the record, at the place where it was recorded; nothing acts, waits or is written. Where a process died,
this one's agents are left as they stand, and the next life begins as a resumption does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName, RunId
from toka.core.limits import Limits
from toka.core.operator import OperatorPolicy
from toka.errors import JournalCorrupt, ModelUnavailable, StaleEpoch
from toka.events.event import (
    AgentStateChanged,
    ExecutorAttached,
    HoldLifted,
    HoldPlaced,
    RunCreated,
)
from toka.events.fold import fold_all
from toka.events.lifecycle import AgentStatus, Trigger
from toka.events.record import Record
from toka.events.state import RunState
from toka.llm.names import AUTO
from toka.orchestration.cursor import RecordCursor
from toka.orchestration.decisions import Divergence, is_asked, is_halt
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.idle import IdleLoop, RecordedClock
from toka.orchestration.lives import is_start, lifting, lives_of, may_settle, over_at, starts_next, starts_no_more
from toka.orchestration.recorded import Recorded
from toka.orchestration.served import (
    RecordedGateway,
    RecordedSecrets,
    RecordedTools,
    Served,
    refuse,
    start_recorded,
)
from toka.orchestration.served_workspace import RecordedWorkspaces, keep_recorded, like_workspace, state_within
from toka.orchestration.session import RunSession, too_long
from toka.orchestration.settled import recorded_execution
from toka.runtime.context import Runtime
from toka.tools.builtin import Toolbox

SLACK_S: Final = 1.0
"""How much later than by the record's times a limit of time may have been met, in seconds."""
TICKS: Final = 4
"""How often a session gets the time to look for requests before nobody is asking."""
GRACE_TICKS: Final = 60
"""The same before nobody is about to be cancelled, beyond the grace that the run's settings give."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the record of a run does not hold, or older ones did not.

    Attributes:
        tools: all there are here.
        policy: the operator's rules, for runs that recorded none.
        run_limits: bounds of the run as a whole, likewise.
        state: the state directory, which agents are not shown.
    """

    tools: Toolbox = field(default_factory=Toolbox)
    policy: OperatorPolicy = field(default_factory=OperatorPolicy)
    run_limits: Limits = field(default_factory=Limits)
    state: Path | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it.

    Attributes:
        run: the run.
        state: how it stands, as recorded.
        steps: how many steps were decided as then.
        agents: of how many agents.
        lives: how many processes executed it.
        last: id of the last record.
        divergences: the first of each agent that goes another way, in the order of the record.
        unreached: agents of which nothing follows since another one went another way.
    """

    run: RunId
    state: RunState
    steps: int
    agents: int
    lives: int
    last: int
    divergences: tuple[Divergence, ...]
    unreached: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether the same decisions follow."""
        return not self.divergences


def replay(records: Sequence[Record], blob: Callable[[str], bytes], terms: Terms) -> Replayed:
    """Decides a run once more. Not to be called in a running event loop.

    Args:
        records: all of a run, in order.
        blob: its large values, by digest.
        terms: what the record does not hold.

    Raises:
        JournalCorrupt: the record does not begin as one of a run, or cannot be read.
        ConfigError: this version cannot plan the recorded specs.
    """
    first = records[0].event if records else None
    if not isinstance(first, RunCreated):
        raise JournalCorrupt("the run has no first record", hint="see which record is missing: toka audit verify RUN")
    found = _replayed(records, first, blob, terms, settles=True)
    if not found.same and any(may_settle(life) for life in lives_of(records)):
        other = _replayed(records, first, blob, terms, settles=False)
        return other if other.same else found
    return found


def _replayed(
    records: Sequence[Record], first: RunCreated, blob: Callable[[str], bytes], terms: Terms, *, settles: bool
) -> Replayed:
    """One replay. `settles`: processes that may only have carried out a stop did no more than that."""
    with tempfile.TemporaryDirectory(prefix="toka-replay-") as folder:
        like_workspace(Path(folder), records)
        world = _World(records, first, blob, terms, Path(folder))
        world.settles = settles
        with asyncio.Runner(loop_factory=lambda: IdleLoop(world.idle)) as runner:
            runner.run(world.lives())
    return world.result()


class _World:
    """One replay: the record, the ports that serve it, and what happens next."""

    def __init__(
        self, records: Sequence[Record], created: RunCreated, blob: Callable[[str], bytes], terms: Terms, folder: Path
    ) -> None:
        self._records = records
        self._folder = folder
        self._run = RunId(records[0].run)
        self._count = 0
        self._clock = RecordedClock(self._starts)
        self._cursor = RecordCursor(records, blob, self._clock)
        configs = _configs(created, blob)
        self._recorded = Recorded(records, blob, configs, lambda: self._cursor.last)
        self._served = Served(self._recorded, self._cursor.served)
        runtime = _runtime(created, terms, configs, self._served, self._cursor, self._clock)
        self._runtime = replace(runtime, state=state_within(created, terms.state, folder))
        self._grace = GRACE_TICKS + int(2 * self._runtime.execution.grace_s)
        self._tried = (0, 0)
        self._session: asyncio.Task[Any] | None = None
        self._ending = False
        self.settles = True
        self._current: RunSession | None = None
        self._asked = 0
        self._stops: set[AgentName] = set()
        self._asking: set[asyncio.Task[None]] = set()

    async def lives(self) -> None:
        """One process after the other."""
        self._cursor.begin(str(self._folder))
        while self._cursor.next_life():
            self._count += 1
            self._recorded.life(self._cursor.life)
            await self._live()

    async def _live(self) -> None:
        cursor = self._cursor
        engine = OrchestrationEngine(_under(self._runtime, cursor.head))
        life, before = cursor.life, fold_all(self._run, cursor.read(self._run))
        opening = asyncio.create_task(engine.resume(self._run, agent=None))
        self._session = opening
        session: RunSession | None = None
        self._ending = False
        self._stops.clear()
        try:
            session = self._current = await opening
            session.lifting, session.due = lifting(life, before), self._due
            limit = session.context.execution.run_timeout_s
            cursor.over = over_at(life, too_long(limit)) if limit is not None else None
            body = session.settle() if self.settles and may_settle(life) else session.run()
            self._session = asyncio.create_task(body)
            with contextlib.suppress(StaleEpoch, asyncio.CancelledError):
                await self._session
        except (StaleEpoch, asyncio.CancelledError):
            pass
        finally:
            self._session = self._current = None
            for task in tuple(self._asking):
                task.cancel()
            if session is not None:
                await session.context.recorder.close()

    async def _starts(self) -> None:
        """Keeps an agent that is about to start from doing so before its place: until then requests come first."""
        name, cursor = _asking(), self._cursor
        starts = starts_next(name, cursor.life) and not self._recorded.hangs(name)
        if starts or starts_no_more(name, cursor.came, cursor.life, cursor.over):
            await self._served.moments.until(name, is_start)

    def _due(self, end: float) -> bool:
        """Whether the time of the run is over: where the record first tells of it; if it never does, after a while."""
        cursor = self._cursor
        if cursor.over is None:
            return self._clock.at >= max(end, cursor.came[-1].at if cursor.came else end) + SLACK_S
        return cursor.head is cursor.over.first and cursor.over.first.at >= end

    def idle(self, timers: bool) -> bool:  # noqa: FBT001 - as IdleLoop calls it
        """Makes the next thing happen; see IdleLoop."""
        cursor = self._cursor
        if cursor.move():
            return True
        ticks = self._ticks()
        if cursor.head is None:
            return self._over(ticks, timers)
        head = cursor.head
        if (is_asked(head.event) or (cursor.over and head is cursor.over.first)) and ticks < TICKS and timers:
            return False  # the session looks for requests, and at the time, now and then
        if (is_asked(head.event) or is_halt(head.event)) and self._ask(head):
            return True
        served = self._served
        if served.moments.come(head) or (is_start(head.event) and served.closings.first()):
            return True  # who starts takes the place of one that ended
        if cursor.let_on(head.stream) or served.closings.first() or self._clock.wake():
            return True
        self._clock.at = max(self._clock.at, head.at)  # who looks at the time now, sees that of the record
        if ticks < 2 * TICKS and timers:
            return False
        if self._clock.run_out(head.at + SLACK_S) or cursor.let_on():
            return True
        if ticks < self._grace and timers:
            return False  # whoever stops an agent gives it some time
        if served.moments.come(None):
            return True
        cursor.diverge()
        return True

    def _ask(self, head: Record) -> bool:
        """Asks what a program asked of an agent without leaving a request; False when nothing of that was recorded."""
        if self._current is None or not head.stream or self._asked == head.id or self._cursor.requested:
            return False
        self._asked = head.id
        manager, name, event = self._current.manager, AgentName(head.stream), head.event
        match event:
            case HoldPlaced(hold="person"):
                body = manager.pause(name, event.reason, event.author)
            case HoldLifted(hold="person" | "health") if self._current.lifting is None:
                body = manager.resume(name, event.reason, event.author)
            case AgentStateChanged(state=AgentStatus.STOPPING.value) if not manager.state(name).stop:
                reason, _, author = event.reason.removesuffix(")").rpartition(" (")
                body = manager.stop(name, reason or event.reason, author if reason else "")
            case _ if (reason := self._stopped(head)) and not manager.state(name).stop and name not in self._stops:
                self._stops.add(name)
                body = manager.stop(name, reason)
            case _:
                return False
        task = asyncio.get_running_loop().create_task(body)
        self._asking.add(task)
        task.add_done_callback(self._answered)
        return True

    def _stopped(self, head: Record) -> str:
        """Why an agent was stopped that was not at work then: nothing else tells of that; empty when it was not."""
        if not is_halt(head.event) or getattr(head.event, "by", Trigger.PERSON.value) != Trigger.PERSON.value:
            return ""
        own = (r.event for r in self._cursor.life if r.stream == head.stream)
        end = next((e for e in own if isinstance(e, AgentStateChanged)), None)
        return end.reason if end is not None and end.state == AgentStatus.STOPPED.value else ""

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()  # what did not follow from it is told where it was recorded

    def _ticks(self) -> int:
        """How often nothing happened since the last record came to its place."""
        at, ticks = self._tried
        ticks = ticks + 1 if at == self._cursor.at else 0
        self._tried = (self._cursor.at, ticks)
        return ticks

    def _over(self, ticks: int, timers: bool) -> bool:  # noqa: FBT001 - as above
        """The record of this life is over: whoever still runs, runs no more."""
        cursor = self._cursor
        if cursor.let_on() or self._served.closings.come(None):
            return True
        if ticks < TICKS and timers:
            return False
        if self._session is None or self._session.done() or self._ending:
            return False
        self._ending = True
        if cursor.let_go:
            cursor.left()
        cursor.die()
        self._session.cancel()
        return True

    def result(self) -> Replayed:
        """What came of it."""
        cursor = self._cursor
        steps = {(stream, step) for stream, step in cursor.steps}
        state = fold_all(self._run, self._records)
        order = {r.stream: n for n, r in reversed(list(enumerate(self._records)))}
        found = sorted(cursor.found, key=lambda d: d.record.id if d.record is not None else self._records[-1].id + 1)
        return Replayed(
            self._run,
            state,
            len(steps),
            len({stream for stream, _ in steps}),
            self._count,
            self._records[-1].id,
            tuple(found),
            tuple(sorted(cursor.unreached - {""}, key=lambda name: order.get(name, 0))),
        )


def _configs(created: RunCreated, blob: Callable[[str], bytes]) -> dict[AgentName, AgentConfig]:
    specs = json.loads(blob(created.specs))
    return {config.name: config for config in (AgentConfig.from_json(spec) for spec in specs)}


def _runtime(
    created: RunCreated,
    terms: Terms,
    configs: Mapping[AgentName, AgentConfig],
    served: Served,
    cursor: RecordCursor,
    clock: RecordedClock,
) -> Runtime:
    """The ports of a process in which nothing can happen but what is recorded."""
    recorded = served.recorded

    async def resolve(chosen: str) -> str:
        if recorded.hangs(_asking()):
            await asyncio.get_running_loop().create_future()
        model, why = recorded.model(chosen, AUTO, created.model)
        if not model:
            raise ModelUnavailable(why)
        return model

    return Runtime(
        state=None,
        journal=cursor,
        clock=clock,
        random=lambda: 0.0,
        randbelow=refuse,
        gateway=RecordedGateway(served, clock),
        model=AUTO,
        resolve_model=resolve,
        start_sandbox=start_recorded(configs, served),
        tools=cast("Toolbox", RecordedTools(terms.tools, served)),
        execution=recorded_execution(created),
        capabilities={},
        policy=terms.policy,
        run_limits=terms.run_limits,
        channels={},
        spawn=refuse,
        secrets=RecordedSecrets(recorded),
        redact=served.redact,
        keep=keep_recorded(created, recorded),
        private=RecordedWorkspaces(recorded),
    )


def _asking() -> str:
    """The agent in whose execution this is called; its task has its name."""
    task = asyncio.current_task()
    return task.get_name().removeprefix("agent ") if task is not None else ""


def _under(runtime: Runtime, first: Record | None) -> Runtime:
    """The same ports, under the rules of the process that this record begins, as far as it says which they were."""
    if first is None or not isinstance(first.event, ExecutorAttached) or not first.event.rules:
        return runtime
    rules = first.event.rules
    return replace(runtime, policy=OperatorPolicy.from_json(rules["policy"]), run_limits=Limits(**rules["limits"]))
