"""AgentProcessManager: starts, pauses, resumes, stops and restarts agents, and is the only writer of their status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.errors import (
    ConfigError,
    JournalError,
    LimitExceeded,
    ModelUnavailable,
    NotFound,
    SandboxUnavailable,
    UsageError,
)
from toka.events.event import AgentStateChanged, HoldLifted, HoldPlaced
from toka.events.flow import InstancesMade
from toka.events.lifecycle import AGENT_ENDS, AgentStatus, TaskStatus, agent_may
from toka.events.state import AgentState
from toka.runtime.agent import PreparedAgent, prepare
from toka.runtime.context import RunContext
from toka.runtime.control import AgentControl, Closing
from toka.runtime.effective import bounds
from toka.runtime.executor import AgentExecutor, AgentOutcome
from toka.runtime.values import ValueMissing, template_of

RESTART_CAP_S: Final = 300.0
"""The longest wait before a restart, in seconds."""


@dataclass(slots=True)
class AgentExecution:
    """One agent that is being executed in this process."""

    name: AgentName
    config: AgentConfig
    control: AgentControl
    task: asyncio.Task[None]
    stopping: str | None = None
    restarts: int = 0
    steps_at_crash: int = -1
    outcome: asyncio.Future[AgentOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    async def wait(self) -> AgentOutcome:
        """How it ended, or WAITING when only a person can let it go on.

        Raises:
            JournalError: the record could not be written any more; the agent can be resumed.
            Closing: the process is shutting down; the agent can be resumed.
        """
        return await asyncio.shield(self.outcome)


class AgentProcessManager:
    """The agents of one run in this process.

    Every change of an agent's status is one event, legal by the transition table. `shutdown` writes none: an agent
    that this process merely leaves can be resumed by the next one.
    """

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._executions: dict[AgentName, AgentExecution] = {}
        self._running: dict[AgentName, asyncio.Event] = {}
        self._started: set[AgentName] = set()
        self._turns: dict[AgentName, asyncio.Lock] = {}
        self._closings: set[asyncio.Task[None]] = set()
        self._closing = False

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
        if name in self._executions and not self._executions[name].task.done():
            raise UsageError(f"agent {name} is running already")
        if state.ended:
            raise UsageError(f"agent {name} has ended ({state.status.value}); start a new run")
        control = AgentControl(lambda: self._rested(name), lambda: self._went_on(name))
        of_all = self.state(template_of(name) or name).holds
        control.holds.update({**self._run.recorder.state.holds, **of_all, **state.holds})
        task = asyncio.create_task(self._supervise(name, dict(results or {})), name=f"agent {name}")
        execution = self._executions[name] = AgentExecution(name, config, control, task)
        return execution

    def running(self, name: AgentName) -> asyncio.Event:
        """Set once the agent runs in this process."""
        event = self._running.setdefault(name, asyncio.Event())
        if name in self._started:
            event.set()
        return event

    async def skip(self, name: AgentName, reason: str, why: str) -> None:
        """Ends an agent that can never start."""
        await self._change(name, AgentStatus.SKIPPED, reason, why)

    async def gather(self, name: AgentName, made: InstancesMade) -> None:
        """Begins an agent that is one instance for each element: what the elements are is recorded first."""
        state = self.state(name)
        if state.made is None:
            await self._run.recorder.record(name, made)
        for status in (AgentStatus.STARTING, AgentStatus.RUNNING):
            if self.state(name).status is not AgentStatus.RUNNING:
                await self._change(name, status)

    async def settle(self, name: AgentName, outcome: AgentOutcome) -> None:
        """Ends an agent that takes no step itself: one with instances, or one that cannot start."""
        if outcome.status is AgentStatus.FAILED and not agent_may(self.state(name).status, AgentStatus.FAILED):
            await self._change(name, AgentStatus.STARTING)
        await self._end(name, outcome)

    async def pause(self, name: AgentName, reason: str = "", author: str = "") -> None:
        """No new step starts; what is in flight is finished and recorded. Idempotent; survives a restart."""
        execution = self._live(name)
        if execution is None:
            if not self.state(name).ended and "person" not in self.state(name).holds:
                await self._run.recorder.record(name, HoldPlaced("person", reason, author))
            return
        if "person" in execution.control.holds or execution.stopping is not None:
            return
        execution.control.hold("person", reason)
        async with self._turn(name):
            await self._run.recorder.record(name, HoldPlaced("person", reason, author))
            if not execution.control.resting and agent_may(self.state(name).status, AgentStatus.PAUSING):
                await self._run.recorder.record(name, AgentStateChanged(AgentStatus.PAUSING.value, reason))

    async def resume(self, name: AgentName, reason: str = "", author: str = "") -> None:
        """Lifts the holds that a person may lift: person and health. Idempotent."""
        execution = self._live(name)
        for hold in ("person", "health"):
            if hold in (execution.control.holds if execution else self.state(name).holds):
                await self._run.recorder.record(name, HoldLifted(hold, reason, author))
                if execution is not None:
                    execution.control.lift(hold)
        if execution is None:
            return
        async with self._turn(name):
            control, status = execution.control, self.state(name).status
            if status is AgentStatus.PAUSING and not control.holds and not control.resting:
                await self._run.recorder.record(name, AgentStateChanged(AgentStatus.RUNNING.value))

    async def stop(self, name: AgentName, reason: str = "", author: str = "") -> None:
        """Ends an agent for good: a step in flight gets the grace period, then it is cancelled. Idempotent.

        Returns when the agent is STOPPED (or had ended before) and nothing of it runs any more. An agent that is not
        being executed is STOPPED at once.
        """
        execution = self._live(name)
        if execution is None:
            await self._end(name, AgentOutcome(AgentStatus.STOPPED, reason or "stopped by a person", "stopped"))
            return
        if execution.stopping is None:
            execution.stopping = reason or "stopped by a person"
            if agent_may(self.state(name).status, AgentStatus.STOPPING):
                text = f"{execution.stopping} ({author})" if author else execution.stopping
                await self._change(name, AgentStatus.STOPPING, text)
            execution.control.close()
        if self.state(name).status is not AgentStatus.BACKOFF:
            await asyncio.wait({execution.task}, timeout=self._run.execution.grace_s)
        execution.task.cancel()
        await asyncio.wait({execution.task})

    async def end_stop(self, config: AgentConfig) -> None:
        """Ends an agent whose stop an earlier process was asked for and did not live to finish.

        What was in flight then is settled as by that process: failed, or in doubt. Idempotent.
        """
        name = config.name
        state = self.state(name)
        if state.ended:
            return
        if state.started_at is not None:
            prepared = await prepare(self._run, config, self._refuse, resumed=True, ending=True)
            try:
                async with self._turn(name):
                    await self._run.recorder.bump(name)
                await AgentExecutor(prepared.context, {}).cancelled(TaskStatus.CANCELLED, state.stop)
            finally:
                await prepared.close()
        await self._end(name, AgentOutcome(AgentStatus.STOPPED, state.stop, "stopped"))

    async def _refuse(self) -> None:
        raise Closing

    async def shutdown(self, grace_s: float) -> None:
        """Leaves all agents resumable: steps reach their boundary within `grace_s` seconds, then are cancelled."""
        self._closing = True
        live = [e for e in self._executions.values() if not e.task.done()]
        for execution in live:
            execution.control.close()
        if live:
            await asyncio.wait([e.task for e in live], timeout=grace_s)
        for execution in live:
            execution.task.cancel()
        if live:
            await asyncio.wait([e.task for e in live])
        if self._closings:
            await asyncio.wait(self._closings)

    def state(self, name: AgentName) -> AgentState:
        """The agent's state as recorded."""
        return self._run.recorder.state.agents.get(name) or AgentState(name)

    def _live(self, name: AgentName) -> AgentExecution | None:
        """The agent's execution; None when it is not being executed now. Raises NotFound: the run has no such agent."""
        known = self._run.recorder.state.agents
        if name not in known and template_of(name) not in known:
            raise NotFound(f"run {self._run.id} has no agent {name}")
        execution = self._executions.get(name)
        return None if execution is None or execution.task.done() else execution

    async def _supervise(self, name: AgentName, results: Mapping[str, tuple[str, str]]) -> None:
        """Executes an agent until it ends, restarting it after a crash. Delivers its outcome, whatever happens."""
        execution = self._executions[name]
        try:
            outcome = None
            while outcome is None:
                outcome = await self._once(execution, results)
        except (asyncio.CancelledError, Closing):
            if execution.stopping is None or self._closing:
                self._fail(execution, Closing())
                return
            execution.outcome.set_result(await self._end(name, AgentOutcome(AgentStatus.STOPPED, execution.stopping)))
        except JournalError as e:
            self._fail(execution, e)
        except Exception as e:  # noqa: BLE001 - a defect here must not leave anybody waiting for this agent
            self._fail(execution, e)
        else:
            execution.outcome.set_result(outcome)

    def _fail(self, execution: AgentExecution, error: Exception) -> None:
        if not execution.outcome.done():
            execution.outcome.set_exception(error)
            execution.outcome.exception()  # nobody has to be waiting

    async def _once(self, execution: AgentExecution, results: Mapping[str, tuple[str, str]]) -> AgentOutcome | None:
        """One execution. None: it crashed and is to be started again."""
        name, config = execution.name, execution.config
        resumed = self.state(name).started_at is not None
        try:
            prepared = await prepare(self._run, config, execution.control.gate, resumed=resumed)
        except ModelUnavailable as e:
            if resumed:
                raise  # it has worked already: it stays resumable until there is a model again
            return await self._end(name, AgentOutcome(AgentStatus.SKIPPED, f"no model: {e.message}", "no_model"))
        except (ConfigError, UsageError) as e:
            await self._change(name, AgentStatus.STARTING)
            return await self._end(name, AgentOutcome(AgentStatus.FAILED, e.message, "config"))
        except ValueMissing as e:
            await self._change(name, AgentStatus.STARTING)
            return await self._end(name, AgentOutcome(AgentStatus.FAILED, str(e), "value"))
        try:
            executor = AgentExecutor(prepared.context, results)
            async with self._turn(name):
                await self._run.recorder.record(
                    name, AgentStateChanged(AgentStatus.STARTING.value), AgentStateChanged(AgentStatus.RUNNING.value)
                )
            self._started.add(name)
            if name in self._running:  # somebody waits for it; most agents nobody waits for
                self._running[name].set()
            return await self._execute(execution, prepared, executor)
        finally:
            await self._to_the_end(prepared.close())

    async def _execute(
        self, execution: AgentExecution, prepared: PreparedAgent, executor: AgentExecutor
    ) -> AgentOutcome | None:
        name, wall = execution.name, bounds(execution.config, self._run.execution).wall_s
        left = None if wall is None else max(0.0, wall - self.state(name).active_s)
        try:
            async with self._run.runtime.clock.timeout(left):
                outcome = await executor.run()
        except TimeoutError:
            reason, most = f"timed out after {wall:g} s", wall or 0
            await prepared.close()
            over = LimitExceeded(f"time of agent {name}", most, most, "seconds")
            await executor.cancelled(TaskStatus.FAILED, reason, over)
            return await self._end(name, AgentOutcome(AgentStatus.FAILED, reason, "limit"))
        except (asyncio.CancelledError, Closing):
            if execution.stopping is None or self._closing:
                with contextlib.suppress(JournalError):  # then nobody may write any more
                    await self._to_the_end(prepared.context.steps.leave())
                raise
            return await self._stopped(execution, prepared, executor)
        except JournalError:
            raise
        except SandboxUnavailable as e:
            await executor.cancelled(TaskStatus.FAILED, e.message)
            return await self._end(name, AgentOutcome(AgentStatus.FAILED, e.message, "sandbox"))
        except Exception as e:  # noqa: BLE001 - whatever broke, this agent is restarted and its siblings go on
            await prepared.close()
            if execution.stopping is not None:
                return await self._stopped(execution, prepared, executor)
            return await self._crashed(execution, executor, e)
        if outcome.status is AgentStatus.WAITING and execution.stopping is not None:
            return await self._stopped(execution, prepared, executor)
        return await self._end(name, outcome)

    async def _stopped(
        self, execution: AgentExecution, prepared: PreparedAgent, executor: AgentExecutor
    ) -> AgentOutcome:
        reason = execution.stopping or ""
        await prepared.close()
        async with self._turn(execution.name):
            await self._run.recorder.bump(execution.name)
        await executor.cancelled(TaskStatus.CANCELLED, reason)
        return await self._end(execution.name, AgentOutcome(AgentStatus.STOPPED, reason, "stopped"))

    async def _crashed(
        self, execution: AgentExecution, executor: AgentExecutor, error: Exception
    ) -> AgentOutcome | None:
        """Backs off and asks for another start, or gives up after too many without a newly completed step."""
        name = execution.name
        done = self.state(name).steps
        execution.restarts = 1 if done > execution.steps_at_crash else execution.restarts + 1
        execution.steps_at_crash = done
        reason = f"{type(error).__name__}: {error}"
        if execution.restarts > self._run.execution.max_restarts:
            await self._change(name, AgentStatus.BACKOFF, reason)
            await self._change(name, AgentStatus.CRASH_LOOP, reason)
            await executor.cancelled(TaskStatus.FAILED, reason)
            return await self._end(name, AgentOutcome(AgentStatus.FAILED, f"crash loop: {reason}", "crash_loop"))
        await self._change(name, AgentStatus.BACKOFF, reason)
        async with self._turn(name):
            await self._run.recorder.bump(name)  # whatever of the crashed execution still runs can record nothing
        runtime = self._run.runtime
        wait = min(RESTART_CAP_S, 2.0 ** (execution.restarts - 1))
        await runtime.clock.sleep(wait / 2 + wait / 2 * runtime.random())
        return None

    async def _end(self, name: AgentName, outcome: AgentOutcome) -> AgentOutcome:
        if outcome.status is AgentStatus.STOPPED and not agent_may(self.state(name).status, AgentStatus.STOPPED):
            await self._change(name, AgentStatus.STOPPING, outcome.reason)
        await self._change(name, outcome.status, outcome.reason, outcome.why)
        ended = self.state(name)
        return AgentOutcome(ended.status, ended.reason, ended.why)

    async def _rested(self, name: AgentName) -> None:
        async with self._turn(name):
            state, record = self.state(name), self._run.recorder.record
            if state.status is AgentStatus.RUNNING:
                await record(
                    name, AgentStateChanged(AgentStatus.PAUSING.value), AgentStateChanged(AgentStatus.PAUSED.value)
                )
            elif agent_may(state.status, AgentStatus.PAUSED):
                await record(name, AgentStateChanged(AgentStatus.PAUSED.value, state.reason))

    async def _went_on(self, name: AgentName) -> None:
        if self.state(name).status is AgentStatus.PAUSED:
            await self._change(name, AgentStatus.RUNNING)

    async def _change(self, name: AgentName, status: AgentStatus, reason: str = "", why: str = "") -> None:
        async with self._turn(name):
            old = self.state(name).status
            if old is status or old in AGENT_ENDS:
                return
            if old is AgentStatus.STOPPING and status is not AgentStatus.STOPPED:  # the stop came first: it wins
                status, reason, why = AgentStatus.STOPPED, self.state(name).reason, "stopped"
            if not agent_may(old, status):
                raise AssertionError(f"agent {name}: {old.value} -> {status.value} is no legal transition")
            await self._run.recorder.record(name, AgentStateChanged(status.value, reason, why))

    async def _to_the_end(self, act: Coroutine[Any, Any, None]) -> None:
        """Finishes an act although the caller is cancelled; `shutdown` waits for it."""
        task = asyncio.create_task(act)
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)
        await asyncio.shield(task)

    def _turn(self, name: AgentName) -> asyncio.Lock:
        """Held from reading an agent's status until its change is recorded: requests and the agent itself do both."""
        return self._turns.setdefault(name, asyncio.Lock())
