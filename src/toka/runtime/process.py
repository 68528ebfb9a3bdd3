"""AgentProcessManager: starts, pauses, resumes, stops and retries the agents of one run in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from toka.config.agent import AgentConfig
from toka.config.settings import ExecutionConfig
from toka.core.ids import AgentName
from toka.errors import NotFound, SandboxError, UsageError
from toka.events.event import AgentStateChanged, Event, HoldLifted, HoldPlaced
from toka.events.flow import InstancesMade
from toka.events.lifecycle import RETRIED, AgentStatus, TaskStatus, Trigger, agent_may
from toka.events.state import AgentState
from toka.runtime.context import RunContext
from toka.runtime.control import AgentControl
from toka.runtime.executor import AgentOutcome
from toka.runtime.places import Places
from toka.runtime.retry import reopened
from toka.runtime.status import Statuses
from toka.runtime.supervisor import AgentExecution, Supervisor
from toka.runtime.values import template_of

LIFTED: Final = ("person", "health")
"""The holds that a person's `resume` lifts."""
STALLED: Final = 2.0
"""As often the time that its step may take, an agent may be without the end of one."""


class AgentProcessManager:
    """The agents of one run in this process.

    Every change of an agent's status is one event, legal by the transition table. `shutdown` writes none: an agent
    that this process merely leaves can be resumed by the next one.

    Attributes:
        places: how many agents act at one time.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._statuses = Statuses(run.recorder)
        self.places = Places(run.execution.max_concurrent_agents)
        self._supervisor = Supervisor(run, self._statuses, self.places)
        self._executions: dict[AgentName, AgentExecution] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def start(self, config: AgentConfig, results: Mapping[str, tuple[str, str]] | None = None) -> AgentExecution:
        """Starts an agent, or goes on with one that an earlier process left; returns once it is running, or ended.

        Args and errors: see `launch`.
        """
        execution = self.launch(config, results)
        started = asyncio.create_task(self.running(config.name).wait())
        await asyncio.wait({started, execution.task}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        return execution

    def launch(self, config: AgentConfig, results: Mapping[str, tuple[str, str]] | None = None) -> AgentExecution:
        """As `start`, without waiting until it is running.

        Args:
            config: its spec.
            results: what the agents it depends on reported: name -> (status, text).

        Raises:
            UsageError: it runs already, or has ended.
        """
        name = config.name
        state = self.state(name)
        if self._live(name) is not None:
            raise UsageError(f"agent {name} is running already")
        if state.ended:
            raise UsageError(f"agent {name} has ended ({state.status.value}); start a new run")
        control = AgentControl(
            self._run.runtime.clock, lambda: self._rested(name), lambda: self._went_on(name, int(config.priority))
        )
        of_all: Mapping[str, str] = {} if state.let_go else self.state(template_of(name) or name).holds
        control.holds.update({**self._run.recorder.state.holds, **of_all, **state.holds})
        self.places.enter(name)
        task = asyncio.create_task(self._supervise(name, dict(results or {})), name=f"agent {name}")
        execution = self._executions[name] = AgentExecution(name, config, control, task)
        return execution

    async def _supervise(self, name: AgentName, results: Mapping[str, tuple[str, str]]) -> None:
        await self._supervisor.supervise(self._executions[name], results)

    def running(self, name: AgentName) -> asyncio.Event:
        """Set once the agent runs in this process."""
        return self._supervisor.started.setdefault(name, asyncio.Event())

    async def skip(self, name: AgentName, reason: str, why: str) -> None:
        """Ends an agent that can never start."""
        by = Trigger.LIMIT if why == "limit" else Trigger.SCHEDULE
        await self._statuses.change(name, by, AgentStatus.SKIPPED, reason=reason, why=why)

    async def gather(self, name: AgentName, made: InstancesMade) -> None:
        """Begins an agent that is one instance for each element: what the elements are is recorded first."""
        state = self.state(name)
        if state.made is None:
            await self._run.recorder.record(name, made)
        if state.status is not AgentStatus.RUNNING:
            await self._statuses.begin(name)

    async def settle(self, name: AgentName, outcome: AgentOutcome) -> None:
        """Ends an agent that takes no step itself: one with instances, or one that cannot start."""
        status = self.state(name).status
        worked = outcome.status in (AgentStatus.COMPLETED, AgentStatus.FAILED)
        if worked and not agent_may(status, outcome.status, Trigger.WORK):
            if outcome.status is AgentStatus.COMPLETED:
                await self._statuses.begin(name)
            else:
                await self._statuses.change(name, self._statuses.starter(name), AgentStatus.STARTING)
        by = Trigger.SCHEDULE if outcome.status is AgentStatus.SKIPPED else Trigger.WORK
        if not agent_may(self.state(name).status, outcome.status, by):
            by = Trigger.WORK
        await self._statuses.end(name, outcome, by)

    async def pause(self, name: AgentName, reason: str = "", author: str = "", *, now: bool = False) -> None:
        """No new step starts; what is in flight is finished and recorded. Idempotent; survives a restart.

        A model call is waited for as long as the settings say; then it is ended, and counts as used.

        Args:
            name: the agent.
            reason, author: why, and who asks.
            now: what runs in its sandbox stands still until it is resumed.
        """
        execution = self._live(name)
        if execution is None:
            async with self._statuses.turn(name):
                if not self.state(name).ended and "person" not in self.state(name).holds:
                    await self._run.recorder.record(name, HoldPlaced("person", reason, author))
            return
        if execution.stopping is not None:
            return
        if "person" not in execution.control.holds:
            execution.control.hold("person", reason)
            self.places.give_up(name)
            async with self._statuses.turn(name):
                if self.state(name).ended:
                    return
                await self._run.recorder.record(name, HoldPlaced("person", reason, author))
                if not execution.control.resting and agent_may(self.state(name).status, AgentStatus.PAUSING):
                    pausing = AgentStateChanged(AgentStatus.PAUSING.value, reason, by=Trigger.PERSON.value)
                    await self._run.recorder.record(name, pausing)
            self._spawn(self._hurry(execution))
        if now and not execution.frozen:
            await self._freeze(execution, reason)

    async def _hurry(self, execution: AgentExecution) -> None:
        """Ends the model calls that a pause has waited for long enough."""
        await self._run.runtime.clock.sleep(self._run.execution.pause_timeout_s)
        if execution.live and execution.control.holds and not execution.control.resting:
            execution.control.interrupt()

    async def _freeze(self, execution: AgentExecution, reason: str) -> None:
        prepared = execution.prepared
        if prepared is None or execution.control.resting:
            return
        execution.frozen = True
        execution.control.stand_still()
        try:
            await prepared.hands.freeze()
        except SandboxError:  # then it ends by itself, as with a pause that is not for now
            execution.frozen = False
            execution.control.go_on()
            return
        if not prepared.context.steps.flying("model"):
            await self._statuses.change(execution.name, Trigger.PERSON, AgentStatus.PAUSED, reason=reason)
            self.places.leave(execution.name)

    async def resume(self, name: AgentName, reason: str = "", author: str = "") -> None:
        """Lifts the holds that a person may lift: person and health. Idempotent.

        An agent in CRASH_LOOP or QUARANTINED is READY to be launched again.
        """
        execution = self._live(name)
        for hold in LIFTED:
            if hold in (execution.control.holds if execution else self.state(name).holds):
                await self._run.recorder.record(name, HoldLifted(hold, reason, author))
                if execution is not None:
                    execution.control.lift(hold)
        if execution is not None and execution.frozen and not execution.control.holds:
            self._spawn(self._thaw(execution))
            return
        if execution is not None:
            async with self._statuses.turn(name):
                control, status = execution.control, self.state(name).status
                if status is AgentStatus.PAUSING and not control.holds and not control.resting:
                    running = AgentStateChanged(AgentStatus.RUNNING.value, by=Trigger.PERSON.value)
                    await self._run.recorder.record(name, running)
        state = self.state(name)  # it may have come to this while it was resumed
        if state.status in (AgentStatus.CRASH_LOOP, AgentStatus.QUARANTINED) and "health" not in state.holds:
            await self._statuses.change(name, Trigger.PERSON, AgentStatus.READY, reason=reason)

    async def _thaw(self, execution: AgentExecution) -> None:
        """Lets what stood still go on, once there is a place for the agent."""
        name = execution.name
        back = await self.places.come_back(name, int(execution.config.priority))
        if not back or not execution.frozen or execution.control.holds:
            if back and execution.frozen:
                self.places.leave(name)
            return
        if not execution.control.resting:
            await self._statuses.change(name, Trigger.PERSON, AgentStatus.RUNNING)
        await self._unfreeze(execution)

    async def _unfreeze(self, execution: AgentExecution) -> None:
        if execution.frozen:
            execution.frozen = False
            if execution.prepared is not None:
                await execution.prepared.hands.thaw()
            execution.control.go_on()

    async def retry(self, name: AgentName, reason: str = "", author: str = "") -> bool:
        """Gives an agent another try that failed, waits to be restarted, or is held for its health. Idempotent.

        What succeeded stays done; failed tasks begin anew with all their retries. Returns whether it is to be launched.
        """
        execution, state = self._live(name), self.state(name)
        if state.status not in RETRIED:
            return False
        if state.status is AgentStatus.BACKOFF:  # it is started again anyhow, and now at once
            if execution is not None:
                execution.wake()
            return False
        if execution is not None:  # its end is recorded, and it lets go of what it had
            await asyncio.wait({execution.task})
        told = f"{reason or 'tried again'} ({author})" if author else reason or "tried again"
        await self.reopen(name, Trigger.PERSON, told)
        return True

    async def reopen(self, name: AgentName, by: Trigger, reason: str) -> None:
        """Makes an agent READY that had ended, or is held for its health, with its failed tasks to be done anew."""
        state = self.state(name)
        lifted: list[Event] = [HoldLifted(hold, reason) for hold in LIFTED if hold in state.holds]
        await self._statuses.change(name, by, AgentStatus.READY, reason=reason, also=[*reopened(state, by), *lifted])

    async def stop(self, name: AgentName, reason: str = "", author: str = "") -> None:
        """Ends an agent for good: a step in flight gets the grace period, then it is cancelled. Idempotent.

        Returns when the agent is STOPPED (or had ended before) and nothing of it runs any more. An agent that is not
        being executed is STOPPED at once.
        """
        execution = self._live(name)
        if execution is None:
            reason = reason or "stopped by a person"
            await self._statuses.end(name, AgentOutcome(AgentStatus.STOPPED, reason, "stopped"))
            return
        if execution.stopping is None:
            execution.stopping = reason or "stopped by a person"
            text = f"{execution.stopping} ({author})" if author else execution.stopping
            async with self._statuses.turn(name):
                self._close(execution)  # before it is recorded: no step begins after that
                if agent_may(self.state(name).status, AgentStatus.STOPPING):
                    await self._statuses.change_now(name, Trigger.PERSON, AgentStatus.STOPPING, reason=text)
        if self.state(name).status is not AgentStatus.BACKOFF and not execution.frozen:
            await asyncio.wait({execution.task}, timeout=self._run.execution.grace_s)
        execution.task.cancel()
        await asyncio.wait({execution.task})

    def _close(self, execution: AgentExecution) -> None:
        execution.control.close()
        self.places.give_up(execution.name)

    async def end_stop(self, config: AgentConfig) -> None:
        """Ends an agent whose stop an earlier process was asked for and did not live to finish.

        What was in flight then is settled as by that process: failed, or in doubt. Idempotent.
        """
        state = self.state(config.name)
        await self._supervisor.end_idle(
            config, TaskStatus.CANCELLED, AgentOutcome(AgentStatus.STOPPED, state.stop, "stopped"), Trigger.PERSON
        )

    async def expire(self, config: AgentConfig, reason: str) -> None:
        """Ends an agent for which the time of the run is over; one with instances after them."""
        name = config.name
        execution = self._live(name)
        if execution is not None:
            execution.expired = reason
            self._close(execution)
            execution.task.cancel()
            await asyncio.wait({execution.task})
        else:
            by = Trigger.LIMIT if self.state(name).made is None else Trigger.WORK
            outcome = AgentOutcome(AgentStatus.FAILED, reason, "limit")
            await self._supervisor.end_idle(config, TaskStatus.FAILED, outcome, by)

    def watch(self) -> None:
        """Breaks off the work of agents that stalled: no step of theirs ended within twice the time it may take."""
        for execution in self._executions.values():
            prepared, control = execution.prepared, execution.control
            if prepared is None or execution.call is None or control.held or execution.unwell:
                continue
            why = prepared.context.steps.stalled(STALLED, STALLED * _between(self._run.execution))
            if why:
                execution.break_off(why)

    async def shutdown(self, grace_s: float) -> None:
        """Leaves all agents resumable: steps reach their boundary within `grace_s` seconds, then are cancelled."""
        self._supervisor.closing = True
        live = [e for e in self._executions.values() if e.live]
        for execution in live:
            self._close(execution)
        moving = [e.task for e in live if not e.frozen and e.waiting is None]
        if moving:
            await asyncio.wait(moving, timeout=grace_s)
        self._run.recorder.hurry()
        for execution in live:
            execution.task.cancel()
        for task in tuple(self._background):
            task.cancel()
        if live or self._background:
            await asyncio.wait([*(e.task for e in live), *self._background])
        await self._supervisor.settled()

    def state(self, name: AgentName) -> AgentState:
        """The agent's state as recorded."""
        return self._statuses.state(name)

    def _live(self, name: AgentName) -> AgentExecution | None:
        """The agent's execution; None when it is not being executed now. Raises NotFound: the run has no such agent."""
        known = self._run.recorder.state.agents
        if name not in known and template_of(name) not in known:
            raise NotFound(f"run {self._run.id} has no agent {name}")
        execution = self._executions.get(name)
        return execution if execution is not None and execution.live else None

    async def _rested(self, name: AgentName) -> None:
        async with self._statuses.turn(name):
            status = self.state(name).status
            path = [AgentStatus.PAUSING] if status is AgentStatus.RUNNING else []
            reason = self.state(name).reason if status is AgentStatus.PAUSING else ""
            for new in (*path, AgentStatus.PAUSED):
                by = Trigger.PERSON if new is AgentStatus.PAUSING else Trigger.WORK
                if agent_may(self.state(name).status, new, by):
                    await self._statuses.change_now(name, by, new, reason=reason)
        self.places.leave(name)

    async def _went_on(self, name: AgentName, urgency: int) -> bool:
        if not await self.places.come_back(name, urgency):
            return False
        if self.state(name).status is AgentStatus.PAUSED:
            await self._statuses.change(name, Trigger.PERSON, AgentStatus.RUNNING)
        return True

    def _spawn(self, act: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(act)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _between(execution: ExecutionConfig) -> float:
    """How long an agent may be between two acts, in seconds: nothing takes longer there than a wait for a retry."""
    return execution.model_timeout_s + execution.retry_cap_s
