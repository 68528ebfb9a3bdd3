"""The agents of one run in this process: who may start now, who goes on, and what follows from an end."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from typing import Final

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.events.flow import InstancesMade
from toka.events.lifecycle import AGENT_ENDS, RETRIED, AgentStatus, Trigger
from toka.events.state import AgentState
from toka.orchestration.fan import Fan, is_template, outcome_of, together
from toka.orchestration.gates import Gates
from toka.orchestration.plan import Plan
from toka.orchestration.schedule import Blocked, Schedule, recovered, satisfied
from toka.runtime.context import RunContext
from toka.runtime.control import Closing
from toka.runtime.executor import AgentOutcome, agent_report
from toka.runtime.process import AgentExecution, AgentProcessManager
from toka.runtime.progress import ProgressReporter
from toka.runtime.values import instance_name, template_of

_LOOK: Final = AgentName("")
"""In the queue of ends: nobody ended, but somebody may start."""


class TeamExecution:
    """Starts agents as their dependencies and the places allow, and draws the conclusions from their ends.

    Attributes:
        configs: the specs by name, those of instances included.
        stopped: agents that are to end for good.
    """

    def __init__(
        self,
        context: RunContext,
        plan: Plan,
        configs: Mapping[AgentName, AgentConfig],
        manager: AgentProcessManager,
        reporter: ProgressReporter,
    ) -> None:
        self._context = context
        self._plan = plan
        self._manager = manager
        self._reporter = reporter
        self._gates = Gates(context)
        self._back: deque[AgentName] = deque()
        self._fans: dict[AgentName, Fan] = {}
        self._ended: asyncio.Queue[AgentName] = asyncio.Queue()
        self._running: dict[AgentName, AgentExecution] = {}
        self._again: set[AgentName] = set()
        self._launched: set[AgentName] = set()
        self._schedule: Schedule | None = None
        self._closing = False
        self._expired = ""
        self.configs: dict[AgentName, AgentConfig] = dict(configs)
        self.stopped = {AgentName(a.name) for a in context.recorder.state.agents.values() if a.stop and not a.ended}
        manager.places.on_free = lambda: self._ended.put_nowait(_LOOK)

    async def execute(self) -> None:
        """Executes the agents until nothing goes on any more.

        Raises:
            JournalError: the record could not be written any more.
        """
        await self._skip(self._plan_anew())
        while True:
            while not self._closing and self._manager.places.free and (name := self._next()) is not None:
                await self._begin(name)
                await self._note(name)
            self._manager.places.hand_out()
            if not self._running and self._ended.empty():
                return
            name = await self._ended.get()
            if name == _LOOK:
                continue
            execution = self._running.get(name)
            if execution is not None and not execution.outcome.done():
                continue  # it was answered more than once, and goes on already
            self._running.pop(name, None)
            error = execution.outcome.exception() if execution else None
            if isinstance(error, Closing):
                continue
            if error is not None:
                raise error
            if name in self.stopped and not self._manager.state(name).ended:
                await self.end_stop(name)
            await self._note(name)
            if name in self._again and not self._manager.state(name).ended:
                self._queue_again(name)

    @property
    def pending(self) -> bool:
        """Whether something was noted since `execute` returned, so that it has to look again."""
        return not self._ended.empty()

    def close(self) -> None:
        """Nothing more is started."""
        self._closing = True

    async def settle(self) -> None:
        """Ends what is to be stopped, and skips what can never start because of it; starts nothing."""
        for name, config in list(self.configs.items()):
            made = self._manager.state(name).made
            if is_template(config) and made is not None:
                self._add_fan(config, made)
        for name in [n for n in self.configs if n in self.stopped and not self._manager.state(n).ended][::-1]:
            await self.end_stop(name)  # instances, which come last, before the agent whose they are
        await self._skip(self._recovered()[1])

    def stop(self, names: Collection[AgentName]) -> None:
        """Notes that agents are to end for good, unless they have ended."""
        states = self._context.recorder.state.agents
        self.stopped.update(name for name in names if name not in states or not states[name].ended)

    def executes(self, name: AgentName) -> bool:
        """Whether an agent is being executed."""
        return name in self._running and not self._running[name].outcome.done()

    def look_at(self, name: AgentName) -> None:
        """Something about an agent that nobody executes has changed."""
        self._ended.put_nowait(name)

    def goes_on(self, name: AgentName) -> None:
        """A person settled something that an agent waits for, or is about to wait for."""
        if name in self._launched:  # else it starts here in its turn
            self._again.add(name)
            if name not in self._running:
                self._ended.put_nowait(name)

    def instances(self, name: AgentName) -> list[AgentName]:
        """Those of an agent that have not ended."""
        fan = self._fans.get(name)
        return [one for one in fan.instances if not self._manager.state(one).ended] if fan is not None else []

    def all_of(self, name: AgentName) -> list[AgentName]:
        """An agent's instances that are recorded, and itself, last."""
        made = self._manager.state(name).made
        numbers = range(1, made.count + 1) if made is not None else ()
        return [*(instance_name(name, n) for n in numbers), name]

    async def try_again(self, names: Collection[AgentName], reason: str, author: str) -> None:
        """Reopens agents that failed, and with them what was skipped because of them; they start in their turn."""
        again: list[AgentName] = []
        for name in names:
            whole = template_of(name)
            status = self._manager.state(whole or name).status
            if status is AgentStatus.STOPPED:
                continue
            if whole and status is AgentStatus.FAILED and self._manager.state(name).status in RETRIED:
                await self._manager.reopen(whole, Trigger.PERSON, reason)  # first: else who dies now leaves it alone
                self._fans.pop(whole, None)
                self._launched.discard(whole)
            if await self._manager.retry(name, reason, author):
                again.append(name)
                self._launched.discard(name)
                if (fan := self._fans.get(whole)) is not None and name not in fan.waiting:
                    fan.waiting.append(name)
        if again and self._schedule is not None:
            await self.reopen_skipped()
            await self._skip(self._plan_anew())
            self._ended.put_nowait(_LOOK)

    async def reopen_skipped(self) -> None:
        """Lets agents wait again that were skipped because of one that is to be done again."""
        for name in self._plan.graph.order:
            state, states = self._manager.state(name), self._context.recorder.state.agents
            if state.status is AgentStatus.SKIPPED and state.why == "dependency":
                needed = [e for e in self._plan.graph.before[name] if e.required]
                if all(e.on not in states or satisfied(e, together(states[e.on], states)) for e in needed):
                    await self._manager.reopen(name, Trigger.SCHEDULE, "what it needs is tried again")

    async def _begin(self, name: AgentName) -> None:
        state = self._manager.state(name)
        if state.ended:
            return
        if name in self.stopped:
            await self.end_stop(name)
        elif "health" in state.holds:  # it would not get past its gate
            self._launched.add(name)
        elif not await self._refused(name):
            if is_template(self.configs[name]):
                await self._fan_out(name)
            elif not self._closing:
                self._start(name)

    def _recovered(self) -> tuple[Schedule, list[Blocked]]:
        states = self._context.recorder.state.agents
        return recovered(self._plan.graph, {name: together(s, states) for name, s in states.items()})

    def _plan_anew(self) -> list[Blocked]:
        """The schedule from what is recorded, without what this process takes care of already."""
        self._schedule, blocked = self._recovered()
        self._schedule.forget(self._launched | self._fans.keys())
        return blocked

    def _next(self) -> AgentName | None:
        """Who may start now: an instance before another agent, one that was answered before one that never started."""
        for fan in self._fans.values():
            if (name := fan.next()) is not None:
                return name
        if self._back:
            return self._back.popleft()
        return self._schedule.next() if self._schedule is not None else None

    def _queue_again(self, name: AgentName) -> None:
        self._again.discard(name)
        fan = self._fans.get(template_of(name))
        queue = self._back if fan is None else fan.waiting
        if name not in queue:
            queue.appendleft(name)

    async def _note(self, name: AgentName) -> None:
        """Draws the conclusions from an agent's end, if it has ended."""
        states = self._context.recorder.state.agents
        fan = self._fans.get(name) or self._fans.get(template_of(name))
        if fan is not None:
            if name not in self._running:  # one that waits for a person takes nobody's place
                fan.running.discard(name)
            whole = fan.config.name
            if not self._manager.state(whole).ended and fan.over(states):
                await self._manager.settle(whole, outcome_of([states[one] for one in fan.instances]))
                name = whole
            if name != whole:
                return
        if (state := self._manager.state(name)).ended and self._schedule is not None:
            await self._skip(self._schedule.ended(together(state, self._context.recorder.state.agents)))

    async def _refused(self, name: AgentName) -> bool:
        """Whether an agent's conditions keep it from starting; then it has ended."""
        config = self.configs[name]
        if self._manager.state(name).started_at is not None or self._manager.state(name).made is not None:
            return False
        outcome = await self._gates.look(config)
        if outcome is not None:
            await self._manager.settle(name, outcome)
        return outcome is not None

    async def _fan_out(self, name: AgentName) -> None:
        """Makes the instances of an agent, or finds those that an earlier process made."""
        config = self.configs[name]
        items = await self._gates.items(config, self._manager.state(name).made)
        if isinstance(items, AgentOutcome):
            await self._manager.settle(name, items)
            return
        await self._manager.gather(name, items)
        self._add_fan(config, items)
        if self._expired:  # meanwhile: nobody knew of these instances
            await self.expire(self._expired)

    def _add_fan(self, config: AgentConfig, made: InstancesMade) -> None:
        """The instances of an agent, from here on."""
        fan = Fan.of(config, self._gates.elements(made), self._context.recorder.state.agents)
        self._fans[config.name] = fan
        for one, spec in fan.instances.items():
            if one not in self.configs:
                self._reporter.add(spec)
            self.configs[one] = spec

    def _start(self, name: AgentName) -> None:
        self._again.discard(name)
        self._launched.add(name)
        execution = self._running[name] = self._manager.launch(self.configs[name], self._results(name))
        execution.outcome.add_done_callback(lambda _: self._ended.put_nowait(name))

    def _results(self, name: AgentName) -> dict[str, tuple[str, str]]:
        """What the agents that `name` comes after reported."""
        out: dict[str, tuple[str, str]] = {}
        for edge in self._plan.graph.before[template_of(name) or name]:
            state: AgentState = self._manager.state(edge.on)
            out[edge.on] = (state.status.value.lower(), agent_report(state.tasks) or state.reason)
        return out

    async def _skip(self, blocked: list[Blocked]) -> None:
        for each in blocked:
            await self._manager.skip(each.agent, each.reason, each.why)

    async def end_stop(self, name: AgentName) -> None:
        """Ends an agent that is to stop and is not being executed."""
        config = self.configs[name]
        if is_template(config):
            made = self._manager.state(name).made
            if made is not None and name not in self._fans:
                self._add_fan(config, made)
            for one in self.instances(name):  # also those that have not begun: they must not later
                self.stopped.add(one)
                if not self.executes(one):
                    await self._manager.end_stop(self.configs[one])
            fan = self._fans.get(name)
            if fan is not None and any(self.executes(one) for one in fan.instances):
                return  # it ends with the last of them
            reason = self._manager.state(name).stop or "stopped by a person"
            await self._manager.settle(name, AgentOutcome(AgentStatus.STOPPED, reason, "stopped"))
        else:
            await self._manager.end_stop(config)

    async def expire(self, reason: str) -> None:
        """Ends all agents: the time of the run is over."""
        self.close()
        self._expired = reason
        left = [c for n, c in self.configs.items() if self._manager.state(n).status not in AGENT_ENDS]
        await asyncio.gather(*(self._manager.expire(c, reason) for c in left if not is_template(c)))
        for config in left:
            if is_template(config):
                await self._manager.expire(config, reason)
            self._ended.put_nowait(config.name)
