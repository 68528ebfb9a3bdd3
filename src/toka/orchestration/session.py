"""One run of a team in this process: starts what may start, notes what ended, applies what people ask for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.errors import JournalError, StaleEpoch
from toka.events.event import CommandApplied, HoldLifted, RunStateChanged, StepResolved
from toka.events.flow import InstancesMade
from toka.events.lifecycle import AgentStatus, RunStatus
from toka.events.state import AgentState, RunState
from toka.journal.journal import Command
from toka.journal.poke import Inbox
from toka.orchestration.approvals import VERBS, Approvals
from toka.orchestration.fan import Fan, is_template, outcome_of, together
from toka.orchestration.gates import Gates
from toka.orchestration.plan import Plan
from toka.orchestration.result import RunResult, verdict
from toka.orchestration.schedule import Blocked, Schedule, recovered
from toka.orchestration.sinks import ChannelSinks
from toka.runtime.context import RunContext
from toka.runtime.control import Closing
from toka.runtime.executor import AgentOutcome, agent_report
from toka.runtime.process import AgentExecution, AgentProcessManager
from toka.runtime.progress import ProgressReporter
from toka.runtime.values import template_of
from toka.sandbox.protect import tidy

SAMPLE_S: Final = 2.0
"""Seconds between two looks at what the agents' processes use."""
POLL_S: Final = 0.5
"""How often requests of other processes are looked for when nobody pokes, in seconds."""
SHUTDOWN_S: Final = 10.0
"""How long steps in flight may take to reach their end when the process shuts down, in seconds."""


class RunSession:
    """A run that this process executes. Use `run` once; `shutdown` may be called from anywhere in the loop.

    Attributes:
        lifting: what `lift_holds` is called with before anything starts; None = it is not.
    """

    def __init__(self, context: RunContext, plan: Plan, configs: Mapping[AgentName, AgentConfig]) -> None:
        self.context = context
        self.plan = plan
        self.manager = AgentProcessManager(context)
        self.reporter = ProgressReporter(context.recorder, configs, context.runtime.clock)
        self._configs: dict[AgentName, AgentConfig] = dict(configs)
        self._gates = Gates(context)
        self._approvals = Approvals(context)
        self._back: deque[AgentName] = deque()
        self._fans: dict[AgentName, Fan] = {}
        self._ended: asyncio.Queue[AgentName] = asyncio.Queue()
        self._running: dict[AgentName, AgentExecution] = {}
        self._stopped = {AgentName(a.name) for a in context.recorder.state.agents.values() if a.stop and not a.ended}
        self._again: set[AgentName] = set()
        self._launched: set[AgentName] = set()
        self._closing = False
        self._sinks: ChannelSinks | None = None
        self._lost: StaleEpoch | None = None
        self._applied = max(context.recorder.state.commands, default=0)
        self.lifting: tuple[str, str, str] | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The model strings that its agents were asked to use, `auto` where that is to be found out."""
        run = self.context
        asked = [c for c in self._configs.values() if any(t.run is None for t in c.task_list(run.enabled))]
        return tuple(dict.fromkeys(run.model or c.model or run.runtime.model for c in asked))

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong beside the agents, one sentence each: reports that could not be delivered."""
        return self._sinks.problems if self._sinks is not None else ()

    async def run(self) -> RunResult:
        """Executes the team to its end.

        Returns:
            COMPLETED, FAILED or STOPPED, recorded; WAITING, recorded, when only a person can let it go on; INTERRUPTED,
            not recorded, after `shutdown`.

        Raises:
            JournalError: the record could not be written any more; the run can be resumed.
        """
        recorder = self.context.recorder
        inbox: asyncio.Task[None] | None = None
        runtime = self.context.runtime
        sinks = self._sinks = ChannelSinks(self.context.id, runtime.channels, self.reporter, runtime.clock)
        try:
            await self._catch_up()
            if self.lifting is not None:  # who resumes a run comes after all that was asked before
                await self.lift_holds(*self.lifting)
            inbox = asyncio.create_task(self._watch())
            await self._execute()
            if self._lost is not None:
                raise self._lost
            if inbox.done():
                inbox.result()
            if self._closing:
                reason = "the process was asked to end; nothing recorded is lost"
                return RunResult(self.context.id, RunStatus.INTERRUPTED, recorder.state, reason)
            status, reason = verdict(recorder.state)
            await recorder.record("", RunStateChanged(status.value, reason))
            return RunResult(self.context.id, status, recorder.state, reason)
        finally:
            if inbox is not None:
                inbox.cancel()
                await asyncio.gather(inbox, return_exceptions=True)
            await self.manager.shutdown(0.0)
            self.reporter.close()
            await sinks.close()
            await asyncio.to_thread(tidy, self.context.workspace)

    async def shutdown(self, grace_s: float = SHUTDOWN_S) -> None:
        """Starts nothing more and leaves every agent resumable; `run` returns INTERRUPTED. Idempotent."""
        self._closing = True
        await self.manager.shutdown(grace_s)

    async def settle(self) -> RunState:
        """Takes up what was asked while nobody executed the run, and starts nothing: ends what is to be stopped.

        Raises:
            JournalError: the record could not be written any more.
        """
        recorder = self.context.recorder
        for name, config in list(self._configs.items()):
            made = self.manager.state(name).made
            if is_template(config) and made is not None:
                self._add_fan(config, made)
        await self._catch_up()
        for name in [n for n in self._configs if n in self._stopped and not self.manager.state(n).ended][::-1]:
            await self._end_stop(name)  # instances, which come last, before the agent whose they are
        _, blocked = self._recovered()
        await self._skip(blocked)
        if all(agent.ended for agent in recorder.state.agents.values()):
            await recorder.record("", RunStateChanged(*verdict(recorder.state)))
        return recorder.state

    async def lift_holds(self, author: str, reason: str, only: str = "") -> None:
        """What `resume` does to a run that nobody executes: holds of a person and of health are lifted.

        Args:
            author, reason: who asks for it, and why.
            only: the agent whose holds are meant, with its instances; empty: all.
        """
        state = self.context.recorder.state
        for hold in ("person", "health"):
            if hold in state.holds and not only:
                await self.context.recorder.record("", HoldLifted(hold, reason, author))
            for agent in state.agents.values():
                meant = not only or only in (agent.name, template_of(agent.name))
                if hold in agent.holds and not agent.ended and meant:
                    await self.context.recorder.record(agent.name, HoldLifted(hold, reason, author))

    async def _execute(self) -> None:
        schedule, blocked = self._recovered()
        await self._skip(blocked)
        limit = self.context.execution.max_concurrent_agents
        while True:
            while not self._closing and len(self._running) < limit and (name := self._next(schedule)) is not None:
                if name in self._stopped:
                    await self._end_stop(name)
                elif not await self._refused(name):
                    if is_template(self._configs[name]):
                        await self._fan_out(name)
                    else:
                        self._start(name)
                await self._note(schedule, name)
            if not self._running and self._ended.empty():
                return
            name = await self._ended.get()
            execution = self._running.get(name)
            if execution is not None and not execution.outcome.done():
                continue  # it was answered more than once, and goes on already
            self._running.pop(name, None)
            error = execution.outcome.exception() if execution else None
            if isinstance(error, Closing):
                continue
            if error is not None:
                raise error
            if name in self._stopped and not self.manager.state(name).ended:
                await self._end_stop(name)
            await self._note(schedule, name)
            if name in self._again and not self.manager.state(name).ended:
                self._queue_again(name)

    def _recovered(self) -> tuple[Schedule, list[Blocked]]:
        states = self.context.recorder.state.agents
        return recovered(self.plan.graph, {name: together(s, states) for name, s in states.items()})

    def _next(self, schedule: Schedule) -> AgentName | None:
        """Who may start now: an instance before another agent, one that was answered before one that never started."""
        for fan in self._fans.values():
            if (name := fan.next()) is not None:
                return name
        return self._back.popleft() if self._back else schedule.next()

    def _goes_on(self, name: AgentName) -> None:
        """A person settled something that an agent waits for, or is about to wait for."""
        if name in self._launched:  # else it starts here in its turn
            self._again.add(name)
            if name not in self._running:
                self._ended.put_nowait(name)

    def _queue_again(self, name: AgentName) -> None:
        self._again.discard(name)
        fan = self._fans.get(template_of(name))
        queue = self._back if fan is None else fan.waiting
        if name not in queue:
            queue.appendleft(name)

    async def _note(self, schedule: Schedule, name: AgentName) -> None:
        """Draws the conclusions from an agent's end, if it has ended."""
        states = self.context.recorder.state.agents
        fan = self._fans.get(name) or self._fans.get(template_of(name))
        if fan is not None:
            if name not in self._running:  # one that waits for a person takes nobody's place
                fan.running.discard(name)
            whole = fan.config.name
            if not self.manager.state(whole).ended and fan.over(states):
                await self.manager.settle(whole, outcome_of([states[one] for one in fan.instances]))
                name = whole
            if name != whole:
                return
        if (state := self.manager.state(name)).ended:
            await self._skip(schedule.ended(together(state, self.context.recorder.state.agents)))

    async def _refused(self, name: AgentName) -> bool:
        """Whether an agent's conditions keep it from starting; then it has ended."""
        config = self._configs[name]
        if self.manager.state(name).started_at is not None or self.manager.state(name).made is not None:
            return False
        outcome = await self._gates.look(config)
        if outcome is not None:
            await self.manager.settle(name, outcome)
        return outcome is not None

    async def _fan_out(self, name: AgentName) -> None:
        """Makes the instances of an agent, or finds those that an earlier process made."""
        config = self._configs[name]
        items = await self._gates.items(config, self.manager.state(name).made)
        if isinstance(items, AgentOutcome):
            await self.manager.settle(name, items)
            return
        await self.manager.gather(name, items)
        self._add_fan(config, items)

    def _add_fan(self, config: AgentConfig, made: InstancesMade) -> None:
        """The instances of an agent, from here on."""
        fan = Fan.of(config, self._gates.elements(made), self.context.recorder.state.agents)
        self._fans[config.name] = fan
        for one, spec in fan.instances.items():
            self._configs[one] = spec
            self.reporter.add(spec)

    def _start(self, name: AgentName) -> None:
        self._again.discard(name)
        self._launched.add(name)
        execution = self._running[name] = self.manager.launch(self._configs[name], self._results(name))
        execution.outcome.add_done_callback(lambda _: self._ended.put_nowait(name))

    def _results(self, name: AgentName) -> dict[str, tuple[str, str]]:
        """What the agents that `name` comes after reported."""
        out: dict[str, tuple[str, str]] = {}
        for edge in self.plan.graph.before[template_of(name) or name]:
            state: AgentState = self.manager.state(edge.on)
            out[edge.on] = (state.status.value.lower(), agent_report(state.tasks) or state.reason)
        return out

    async def _skip(self, blocked: list[Blocked]) -> None:
        for each in blocked:
            await self.manager.skip(each.agent, each.reason, each.why)

    async def _watch(self) -> None:
        """Applies requests in order, each once, to all their agents together; tells the reporter that time passes."""
        runtime = self.context.runtime
        sampled = runtime.clock.monotonic()
        with Inbox(runtime.state, self.context.id) as inbox:
            while True:
                try:
                    for command in runtime.journal.commands(self.context.id, self._applied):
                        await self._apply(command)
                    await self._expire()
                except StaleEpoch as e:
                    self._lost = e  # the agents may have ended before this task has
                    await self.manager.shutdown(0.0)  # another process owns the run; the agents hear it too
                    raise
                except JournalError:
                    pass  # the database cannot be read just now; the request waits
                self.reporter.tick()
                if runtime.clock.monotonic() - sampled >= SAMPLE_S:
                    sampled = runtime.clock.monotonic()
                    self.reporter.used(await asyncio.to_thread(self.context.resources.samples))
                await inbox.wait(POLL_S)

    async def _apply(self, command: Command) -> None:
        await self._answer(command)  # first: who dies between the two finds the request again
        event = CommandApplied(
            command.id, command.verb, command.agent, dict(command.arguments), command.author, command.reason
        )
        await self.context.recorder.record("", event)
        self._applied = command.id
        names = [AgentName(command.agent)] if command.agent else list(self.plan.graph.order)
        names = [one for name in names for one in (*self._instances(name), name)]
        await asyncio.gather(*(self._request(name, command) for name in names if name in self._configs))

    def _instances(self, name: AgentName) -> list[AgentName]:
        """Those of an agent that have not ended."""
        fan = self._fans.get(name)
        return [one for one in fan.instances if not self.manager.state(one).ended] if fan is not None else []

    async def _catch_up(self) -> None:
        """Takes up what was asked while nobody executed the run, in its order, before anything starts or asks again."""
        for command in self.context.runtime.journal.commands(self.context.id, self._applied):
            await self._apply(command)
        await self._expire()

    async def _answer(self, command: Command) -> None:
        """Records a person's answer to a question; an agent that waits for it goes on."""
        if command.verb == "resolve":
            await self._resolve(AgentName(command.agent), command)
        elif command.verb in VERBS and await self._approvals.answer(command):
            self._goes_on(AgentName(command.agent))

    async def _expire(self) -> None:
        for name in await self._approvals.expire():
            self._goes_on(name)

    async def _resolve(self, name: AgentName, command: Command) -> None:
        """Records a person's answer about a task in doubt; an agent that waits for it goes on."""
        task = self.manager.state(name).tasks.get(str(command.arguments.get("task")))
        if task is None or not task.question:
            return  # answered before, or never asked
        answer = str(command.arguments.get("answer"))
        for step in task.in_flight:
            await self.context.recorder.record(name, StepResolved(step, answer, command.author, command.reason))
        self._goes_on(name)

    async def _end_stop(self, name: AgentName) -> None:
        """Ends an agent that is to stop and is not being executed."""
        config = self._configs[name]
        if is_template(config):
            made = self.manager.state(name).made
            if made is not None and name not in self._fans:
                self._add_fan(config, made)
            for one in self._instances(name):
                if one in self.context.recorder.state.agents and one not in self._launched:
                    await self.manager.end_stop(self._configs[one])
            reason = self.manager.state(name).stop or "stopped by a person"
            await self.manager.settle(name, AgentOutcome(AgentStatus.STOPPED, reason, "stopped"))
        else:
            await self.manager.end_stop(config)

    async def _request(self, name: AgentName, command: Command) -> None:
        match command.verb:
            case "resume":
                await self.manager.resume(name, command.reason, command.author)
            case "pause":
                await self.manager.pause(name, command.reason, command.author)
            case "stop":
                self._stopped.add(name)
                if name in self._running and not self._running[name].outcome.done():
                    await self.manager.stop(name, command.reason, command.author)
                else:
                    self._ended.put_nowait(name)
            case _:
                pass  # an answer, which took effect before; a verb of a newer Toka: recorded as seen, without effect
