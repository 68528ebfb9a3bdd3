"""Executes one agent to its end: starts it, restarts it after a crash, and delivers how it ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.errors import ConfigError, JournalError, LimitExceeded, ModelUnavailable, SandboxUnavailable, UsageError
from toka.events.event import AgentStateChanged, HoldPlaced
from toka.events.health import Health, HealthChanged, Rung
from toka.events.lifecycle import AGENT_ENDS, AgentStatus, TaskStatus, Trigger
from toka.runtime.agent import PreparedAgent, prepare
from toka.runtime.context import RunContext
from toka.runtime.control import AgentControl, Closing, Interrupted, Interruptible
from toka.runtime.effective import bounds
from toka.runtime.executor import AgentExecutor, AgentOutcome
from toka.runtime.places import Places
from toka.runtime.private import bring_back, settle_in
from toka.runtime.restart import Pace, delay, in_a_row, policy_of, refusal
from toka.runtime.retry import reopened
from toka.runtime.status import Statuses
from toka.runtime.values import ValueMissing

TRIED_AGAIN: Final = ("task_failed", "check_failed", "exit", "timeout", "failed", "blocked", "output")
"""Causes of a failure after which the policy `always` starts an agent again: its work's, not its spec's."""


@dataclass(slots=True)
class AgentExecution:
    """One agent that is being executed in this process.

    Attributes:
        name, config: the agent.
        control: its gate.
        task: supervises it.
        stopping: why it is to end for good; None while it is not.
        prepared: what it works with at this moment; None between two starts.
        call: its work at this moment, which may be broken off.
        frozen: whether its processes were made to stand still.
        unwell: why its work was broken off; empty when it was not.
        expired: why its time is over; empty while it is not.
        waiting: wakes it when it waits for its restart; None = it does not yet, or not any more.
        woken: whether it is to start without a wait.
        outcome: how it ended.
    """

    name: AgentName
    config: AgentConfig
    control: AgentControl
    task: asyncio.Task[None]
    stopping: str | None = None
    prepared: PreparedAgent | None = None
    call: Interruptible | None = None
    frozen: bool = False
    unwell: str = ""
    expired: str = ""
    waiting: asyncio.Event | None = None
    woken: bool = False
    outcome: asyncio.Future[AgentOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def live(self) -> bool:
        """Whether it is still being executed."""
        return not self.task.done()

    async def wait(self) -> AgentOutcome:
        """How it ended, or CRASH_LOOP, QUARANTINED or WAITING when only a person can let it go on.

        Raises:
            JournalError: the record could not be written any more; the agent can be resumed.
            Closing: the process is shutting down; the agent can be resumed.
        """
        return await asyncio.shield(self.outcome)

    def wake(self) -> None:
        """Ends its wait for a restart."""
        self.woken = True
        if self.waiting is not None:
            self.waiting.set()

    def break_off(self, why: str) -> None:
        """Ends its work as a crash does; the policy decides whether it is started again."""
        self.unwell = why
        if self.call is not None:
            self.call.end()


class Supervisor:
    """Executes the agents of one run.

    Attributes:
        closing: the process is to end: what is cancelled stays resumable.
        started: agents that ran in this process, by name; set when they do.
    """

    def __init__(self, run: RunContext, statuses: Statuses, places: Places) -> None:
        self._run = run
        self._statuses = statuses
        self._places = places
        self._pace = Pace(run.runtime.clock)
        self._closings: set[asyncio.Task[None]] = set()
        self.closing = False
        self.started: dict[AgentName, asyncio.Event] = {}

    async def supervise(self, execution: AgentExecution, results: Mapping[str, tuple[str, str]]) -> None:
        """Executes an agent until it ends, restarting it after a crash. Delivers its outcome, whatever happens."""
        try:
            outcome = await self._waited(execution)
            while outcome is None:
                outcome = await self._once(execution, results)
        except (asyncio.CancelledError, Closing):
            while not execution.outcome.done():
                with contextlib.suppress(asyncio.CancelledError):  # it may be asked for twice
                    await self._broken_off(execution)
        except Exception as e:  # noqa: BLE001 - a defect here must not leave anybody waiting for this agent
            _fail(execution, e)
        else:
            execution.outcome.set_result(outcome)
        finally:
            self._places.leave(execution.name)

    async def _broken_off(self, execution: AgentExecution) -> None:
        """Ends an agent that was not at work when it was to end; or leaves it resumable, when only the process is."""
        if self.closing or (execution.stopping is None and not execution.expired):
            _fail(execution, Closing())
            return
        status, outcome = TaskStatus.CANCELLED, AgentOutcome(AgentStatus.STOPPED, execution.stopping or "", "stopped")
        by = Trigger.PERSON
        if execution.expired:
            status, outcome = TaskStatus.FAILED, AgentOutcome(AgentStatus.FAILED, execution.expired, "limit")
            by = Trigger.LIMIT
        try:
            execution.outcome.set_result(await self.end_idle(execution.config, status, outcome, by))
        except Exception as e:  # noqa: BLE001 - as above
            _fail(execution, e)

    async def end_idle(self, config: AgentConfig, task: TaskStatus, outcome: AgentOutcome, by: Trigger) -> AgentOutcome:
        """Ends an agent that is not at work, and its tasks.

        Args:
            config: its spec.
            task: how the tasks end that had begun.
            outcome: how it ends.
            by: what brings that about.
        """
        name, state = config.name, self._statuses.state(config.name)
        if not state.ended and state.started_at is not None and state.made is None:
            control = AgentControl(self._run.runtime.clock, _nothing, _never)
            control.close()
            prepared = await prepare(self._run, config, control, resumed=True, ending=True)
            try:
                async with self._statuses.turn(name):
                    await self._run.recorder.bump(name)
                await AgentExecutor(prepared.context, {}).cancelled(task, outcome.reason)
            finally:
                await prepared.close()
        return await self._statuses.end(name, outcome, by)

    async def to_the_end(self, act: Coroutine[Any, Any, None]) -> None:
        """Finishes an act although the caller is cancelled; `settled` waits for it."""
        task = asyncio.create_task(act)
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)
        await asyncio.shield(task)

    async def settled(self) -> None:
        """Returns when nothing that must be finished is under way."""
        if self._closings:
            await asyncio.wait(self._closings)

    async def _waited(self, execution: AgentExecution) -> AgentOutcome | None:
        """Waits until an agent that an earlier process left in BACKOFF may start."""
        state = self._statuses.state(execution.name)
        if state.status is AgentStatus.BACKOFF and state.until is not None and state.retry is None:
            left = min(state.until - self._run.runtime.clock.now(), delay(max(1, state.crashes, state.failures), 1.0))
            if left > 0:
                await self._pause(execution, left)
        return None

    async def _once(self, execution: AgentExecution, results: Mapping[str, tuple[str, str]]) -> AgentOutcome | None:
        """One execution. None: it crashed and is to be started again."""
        name, config = execution.name, execution.config
        await self._pace.wait()
        resumed = self._statuses.state(name).started_at is not None
        spawn = self._run.execution.agent_spawn_timeout_s
        try:
            await settle_in(self._run, config)
        except UsageError as e:
            return await self._refused(name, AgentOutcome(AgentStatus.FAILED, e.message, "workspace"))
        try:
            async with self._run.runtime.clock.timeout(spawn):
                prepared = await prepare(self._run, config, execution.control, resumed=resumed)
        except TimeoutError:
            await self._statuses.change(name, self._statuses.starter(name), AgentStatus.STARTING)
            return await self._crashed(execution, f"did not start within {spawn or 0:g} s", Trigger.LIMIT)
        except ModelUnavailable as e:
            if resumed:
                raise  # it has worked already: it stays resumable until there is a model again
            return await self._refused(name, AgentOutcome(AgentStatus.SKIPPED, f"no model: {e.message}", "no_model"))
        except (ConfigError, UsageError) as e:
            return await self._refused(name, AgentOutcome(AgentStatus.FAILED, e.message, "config"))
        except ValueMissing as e:
            return await self._refused(name, AgentOutcome(AgentStatus.FAILED, str(e), "value"))
        execution.prepared = prepared
        try:
            executor = AgentExecutor(prepared.context, results)
            if not await self._statuses.begin(name):  # a stop was quicker
                state = self._statuses.state(name)
                return AgentOutcome(state.status, state.reason, state.why)
            self.started.setdefault(name, asyncio.Event()).set()
            return await self._execute(execution, prepared, executor)
        finally:
            execution.prepared = None
            await self.to_the_end(prepared.close())

    async def _refused(self, name: AgentName, outcome: AgentOutcome) -> AgentOutcome:
        await self._statuses.change(name, self._statuses.starter(name), AgentStatus.STARTING)
        return await self._statuses.end(name, outcome)

    async def _execute(
        self, execution: AgentExecution, prepared: PreparedAgent, executor: AgentExecutor
    ) -> AgentOutcome | None:
        name, wall = execution.name, bounds(execution.config, self._run.execution).wall_s
        state = self._statuses.state(name)
        left = None if wall is None else max(0.0, wall - (state.active_s - state.fresh_s))
        execution.call = Interruptible(set())
        try:
            async with execution.control.timeout(left):
                try:
                    with execution.call:
                        outcome = await executor.run()
                finally:
                    execution.call = None  # whatever follows is not its work
        except TimeoutError:
            return await self._timed_out(execution, prepared, executor, f"timed out after {wall or 0:g} s", wall)
        except (asyncio.CancelledError, Closing):
            if execution.expired and not self.closing:
                return await self._timed_out(execution, prepared, executor, execution.expired)
            if execution.stopping is None or self.closing:
                with contextlib.suppress(JournalError):  # then nobody may write any more
                    await self.to_the_end(prepared.context.steps.leave())
                raise
            return await self._stopped(execution, prepared, executor)
        except JournalError:
            raise
        except SandboxUnavailable as e:
            await executor.cancelled(TaskStatus.FAILED, e.message)
            return await self._statuses.end(name, AgentOutcome(AgentStatus.FAILED, e.message, "sandbox"))
        except Exception as e:  # noqa: BLE001 - whatever broke, this agent is restarted and its siblings go on
            await prepared.close()
            if execution.stopping is not None:
                return await self._stopped(execution, prepared, executor)
            by, execution.unwell, unwell = Trigger.CRASH, "", execution.unwell
            reason = f"{type(e).__name__}: {e}"
            if isinstance(e, Interrupted):
                by, reason = Trigger.HEALTH, unwell
            return await self._crashed(execution, reason, by, executor)
        return await self._came_to(execution, prepared, executor, outcome)

    async def _came_to(
        self, execution: AgentExecution, prepared: PreparedAgent, executor: AgentExecutor, outcome: AgentOutcome
    ) -> AgentOutcome | None:
        name = execution.name
        if outcome.status not in AGENT_ENDS and execution.stopping is not None:
            return await self._stopped(execution, prepared, executor)
        if outcome.status is AgentStatus.QUARANTINED:
            hold = HoldPlaced("health", outcome.reason)
            await self._statuses.change(
                name, Trigger.HEALTH, AgentStatus.QUARANTINED, reason=outcome.reason, why=outcome.why, also=(hold,)
            )
            return outcome
        again = policy_of(execution.config, self._run.execution) == "always" and outcome.why in TRIED_AGAIN
        if outcome.status is AgentStatus.FAILED and again and execution.stopping is None:
            await prepared.close()
            return await self._crashed(execution, outcome.reason, Trigger.WORK, executor, why=outcome.why)
        private = self._statuses.state(name).private is not None
        if private and outcome.status is AgentStatus.COMPLETED and execution.stopping is None:
            await prepared.close()
            await bring_back(self._run, name)
        return await self._statuses.end(name, outcome)

    async def _timed_out(
        self,
        execution: AgentExecution,
        prepared: PreparedAgent,
        executor: AgentExecutor,
        reason: str,
        wall: float | None = None,
    ) -> AgentOutcome:
        await self._cut_off(execution.name, prepared)
        over = None if wall is None else LimitExceeded(f"time of agent {execution.name}", wall, wall, "seconds")
        await executor.cancelled(TaskStatus.FAILED, reason, over)
        outcome = AgentOutcome(AgentStatus.FAILED, reason, "limit")
        return await self._statuses.end(execution.name, outcome, Trigger.LIMIT)

    async def _stopped(
        self, execution: AgentExecution, prepared: PreparedAgent, executor: AgentExecutor
    ) -> AgentOutcome:
        reason = execution.stopping or ""
        await self._cut_off(execution.name, prepared)
        await executor.cancelled(TaskStatus.CANCELLED, reason)
        return await self._statuses.end(execution.name, AgentOutcome(AgentStatus.STOPPED, reason, "stopped"))

    async def _cut_off(self, name: AgentName, prepared: PreparedAgent) -> None:
        """Returns when nothing of an execution runs any more, and what it recorded last is there."""
        await prepared.close()
        async with self._statuses.turn(name):
            await self._run.recorder.bump(name)

    async def _crashed(
        self,
        execution: AgentExecution,
        reason: str,
        by: Trigger,
        executor: AgentExecutor | None = None,
        why: str = "crash",
    ) -> AgentOutcome | None:
        """Backs off and asks for another start; or ends the agent, or has it wait for a person, as its policy says."""
        name, run, recorder = execution.name, self._run, self._run.recorder
        self._pace.crashed()
        state, now = self._statuses.state(name), run.runtime.clock.now()
        if policy_of(execution.config, run.execution) == "never":
            if executor is not None:
                await executor.cancelled(TaskStatus.FAILED, reason)
            return await self._statuses.end(name, AgentOutcome(AgentStatus.FAILED, f"crashed: {reason}", "crash"), by)
        failed = by is Trigger.WORK
        refused, looping = refusal(state, now, recorder.state.agents, run.execution, failed=failed) or (None, False)
        if refused is not None and failed and not looping:
            return await self._statuses.end(name, AgentOutcome(AgentStatus.FAILED, f"{reason}; {refused}", why))
        async with self._statuses.turn(name):
            if self._statuses.state(name).status is AgentStatus.STOPPING:
                raise Closing
            wait = delay(in_a_row(state, now, failed=failed), run.runtime.random())
            until = None if refused is not None else now + wait
            events: list[Any] = [AgentStateChanged(AgentStatus.BACKOFF.value, reason, why, by.value, until)]
            if by is Trigger.HEALTH:
                events.insert(0, HealthChanged(Health.STALLED.value, Rung.RESTART.value, reason=reason))
            if failed:
                events += reopened(state, Trigger.CRASH)
            if refused is not None:
                told = f"{refused}: {reason}"
                loop = AgentStateChanged(AgentStatus.CRASH_LOOP.value, told, "crash_loop", Trigger.CRASH.value)
                events += [loop, HoldPlaced("health", told)]
            await recorder.record(name, *events)
            await recorder.bump(name)  # whatever of the crashed execution still runs can record nothing
        if refused is not None:
            ended = self._statuses.state(name)
            return AgentOutcome(ended.status, ended.reason, ended.why)
        await self._pause(execution, wait)
        return None

    async def _pause(self, execution: AgentExecution, seconds: float) -> None:
        """Waits for the time of a restart, without a place among the agents that act; a retry ends the wait."""
        self._places.leave(execution.name)
        execution.waiting = woken = asyncio.Event()
        if execution.woken:
            woken.set()
        sleep = asyncio.ensure_future(self._run.runtime.clock.sleep(seconds))
        wake = asyncio.ensure_future(woken.wait())
        try:
            await asyncio.wait({sleep, wake}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            execution.waiting, execution.woken = None, False
            for each in (sleep, wake):
                each.cancel()
            await asyncio.gather(sleep, wake, return_exceptions=True)
        while not await self._places.come_back(execution.name, int(execution.config.priority), behind=True):
            if execution.control.closing:
                raise Closing


def _fail(execution: AgentExecution, error: BaseException) -> None:
    if not execution.outcome.done():
        execution.outcome.set_exception(error)
        execution.outcome.exception()  # nobody has to be waiting


async def _nothing() -> None:
    """Nobody rests at a gate that is closed."""


async def _never() -> bool:
    return False
