"""One run of a team in this process: executes it to its end, and applies what people ask for meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from toka.config.agent import AgentConfig
from toka.core.ids import AgentName
from toka.core.units import format_duration
from toka.errors import JournalError, StaleEpoch
from toka.events.event import CommandApplied, HoldLifted, RunStateChanged, StepResolved
from toka.events.lifecycle import AgentStatus, RunStatus
from toka.events.state import RunState, with_unbegun
from toka.journal.journal import Command
from toka.journal.poke import Inbox
from toka.orchestration.approvals import VERBS, Approvals
from toka.orchestration.plan import Plan
from toka.orchestration.result import RunResult, verdict
from toka.orchestration.sinks import ChannelSinks
from toka.orchestration.team import TeamExecution
from toka.runtime.context import RunContext
from toka.runtime.guard import forget_old, put_back_all
from toka.runtime.process import AgentProcessManager
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
        due: whether the time is over that ends then, in wall-clock seconds: the clock says so.
    """

    def __init__(self, context: RunContext, plan: Plan, configs: Mapping[AgentName, AgentConfig]) -> None:
        self.context = context
        self.plan = plan
        self.manager = AgentProcessManager(context)
        self.reporter = ProgressReporter(context.recorder, configs, context.runtime.clock)
        self.team = TeamExecution(context, plan, configs, self.manager, self.reporter)
        self._approvals = Approvals(context)
        self._closing = False
        self._applying = asyncio.Lock()
        self._over = False
        self._sinks: ChannelSinks | None = None
        self._lost: StaleEpoch | None = None
        self._applied = max(context.recorder.state.commands, default=0)
        self.lifting: tuple[str, str, str] | None = None
        self.due: Callable[[float], bool] = lambda end: context.runtime.clock.now() >= end

    @property
    def models(self) -> tuple[str, ...]:
        """The model strings that its agents were asked to use, `auto` where that is to be found out."""
        run = self.context
        asked = [c for c in self.team.configs.values() if any(t.run is None for t in c.task_list(run.enabled))]
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
        runtime = self.context.runtime
        sinks = self._sinks = ChannelSinks(self.context.id, runtime.channels, self.reporter, runtime.clock)
        try:
            await self._catch_up()
            if self.lifting is not None:  # who resumes a run comes after all that was asked before
                await self.lift_holds(*self.lifting)
            await self._reopen()
            await put_back_all(self.context)
            await asyncio.to_thread(_tidy, self.context)  # whoever dies at the end of the run leaves nothing, too
            while (result := await self._round()) is None:
                pass
            if result.status is not RunStatus.INTERRUPTED:
                await forget_old(self.context)
            return result
        finally:
            await self.manager.shutdown(0.0)
            self.reporter.close()
            await sinks.close()
            await asyncio.to_thread(_tidy, self.context)

    async def _round(self) -> RunResult | None:
        """Executes the team until nothing goes on; None: something was asked meanwhile that lets it go on."""
        recorder, run = self.context.recorder, self.context.id
        inbox = asyncio.create_task(self._watch())
        try:
            await self.team.execute()
        finally:  # from here nobody applies requests: none may come between the verdict and its record
            try:
                async with self._applying:  # one that is half applied would be applied again
                    inbox.cancel()
            finally:  # also for whoever does not wait for that
                inbox.cancel()
                await asyncio.gather(inbox, return_exceptions=True)
        if self._lost is not None:
            raise self._lost
        if not inbox.cancelled() and (error := inbox.exception()) is not None:
            raise error
        if self._closing:
            reason = "the process was asked to end; nothing recorded is lost"
            return RunResult(run, RunStatus.INTERRUPTED, recorder.state, reason)
        if await self._catch_up() or self.team.pending:  # the latter: it was applied after the last look
            return None
        status, reason = verdict(recorder.state)
        await recorder.record("", RunStateChanged(status.value, reason))
        asked = self.context.runtime.journal.commands(run, self._applied) if status is RunStatus.WAITING else ()
        if asked:  # it came while this was written, from somebody who saw a living process
            await recorder.record("", RunStateChanged(RunStatus.RUNNING.value))
            return None
        return RunResult(run, status, recorder.state, reason)

    async def shutdown(self, grace_s: float = SHUTDOWN_S) -> None:
        """Starts nothing more and leaves every agent resumable; `run` returns INTERRUPTED. Idempotent."""
        self._closing = True
        self.team.close()
        await self.manager.shutdown(grace_s)

    async def settle(self) -> RunState:
        """Takes up what was asked while nobody executed the run, and starts nothing: ends what is to be stopped.

        Raises:
            JournalError: the record could not be written any more.
        """
        recorder = self.context.recorder
        await self._catch_up()
        await self.team.settle()
        await asyncio.to_thread(_tidy, self.context)
        if all(agent.ended for agent in recorder.state.agents.values()):
            await recorder.record("", RunStateChanged(*verdict(recorder.state)))
        return recorder.state

    async def lift_holds(self, author: str, reason: str, only: str = "") -> None:
        """What `resume` does to a run that nobody executes: holds of a person and of health are lifted.

        Args:
            author, reason: who asks for it, and why.
            only: the agent whose holds are meant, with its instances; empty: all.
        """
        state = with_unbegun(self.context.recorder.state, only)
        whole = state.agents.get(template_of(only)) if only else None
        for hold in ("person", "health"):
            if hold in state.holds and not only:
                await self.context.recorder.record("", HoldLifted(hold, reason, author))
            for agent in state.agents.values():
                meant = not only or only in (agent.name, template_of(agent.name))
                with_all = whole is not None and hold in whole.holds and not agent.let_go
                if (hold in agent.holds or with_all) and not agent.ended and meant:
                    await self.context.recorder.record(agent.name, HoldLifted(hold, reason, author))

    async def _reopen(self) -> None:
        """Takes up what an earlier process was asked to try again and did not live to reopen."""
        asked = [a for a in self.context.recorder.state.agents.values() if a.retry is not None]
        for agent in asked:
            await self.team.try_again([AgentName(agent.name)], agent.retry or "", "")
        await self.team.reopen_skipped()

    async def _watch(self) -> None:
        """Applies requests in order, each once, to all their agents together; tells the reporter that time passes."""
        runtime = self.context.runtime
        sampled = runtime.clock.monotonic()
        with Inbox(runtime.state, self.context.id) as inbox:
            while True:
                try:
                    self.context.recorder.check_taken()
                    async with self._applying:
                        for command in runtime.journal.commands(self.context.id, self._applied):
                            await self._apply(command)
                        await self._expire()
                        await self._end_at_deadline()
                except StaleEpoch as e:
                    self._lost = e  # the agents may have ended before this task has
                    await self.manager.shutdown(0.0)  # another process owns the run; the agents hear it too
                    raise
                except JournalError:
                    pass  # the database cannot be read just now; the request waits
                self.manager.watch()
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
        meant = [AgentName(command.agent)] if command.agent else list(self.plan.graph.order)
        if command.verb == "retry":
            names = [one for name in meant for one in self.team.all_of(name)]
            await self.team.try_again(names, command.reason, command.author)
            return
        names = [one for name in meant for one in (*self.team.instances(name), name)]
        if command.verb == "stop":
            self.team.stop(names)  # also instances that are not made here yet
        await asyncio.gather(*(self._request(name, command) for name in names if name in self.team.configs))

    async def _catch_up(self) -> bool:
        """Takes up what was asked while nobody looked, in its order, before anything starts or asks again.

        Returns whether there was anything.
        """
        commands = self.context.runtime.journal.commands(self.context.id, self._applied)
        for command in commands:
            await self._apply(command)
        return await self._expire() or bool(commands)

    async def _answer(self, command: Command) -> None:
        """Records a person's answer to a question; an agent that waits for it goes on."""
        if command.verb == "resolve":
            await self._resolve(AgentName(command.agent), command)
        elif command.verb in VERBS and await self._approvals.answer(command):
            self.team.goes_on(AgentName(command.agent))

    async def _expire(self) -> bool:
        expired = await self._approvals.expire()
        for name in expired:
            self.team.goes_on(name)
        return bool(expired)

    async def _resolve(self, name: AgentName, command: Command) -> None:
        """Records a person's answer about a task in doubt; an agent that waits for it goes on."""
        task = self.manager.state(name).tasks.get(str(command.arguments.get("task")))
        if task is None or not task.question:
            return  # answered before, or never asked
        answer = str(command.arguments.get("answer"))
        for step in task.in_flight:
            await self.context.recorder.record(name, StepResolved(step, answer, command.author, command.reason))
        self.team.goes_on(name)

    async def _end_at_deadline(self) -> None:
        """Ends the run when its time is over."""
        limit, began = self.context.execution.run_timeout_s, self.context.recorder.state.started_at
        if limit is None or began is None or self._over or not self.due(began + limit):
            return
        self._over = True
        await self.team.expire(too_long(limit))

    async def _request(self, name: AgentName, command: Command) -> None:
        match command.verb:
            case "resume":
                await self.manager.resume(name, command.reason, command.author)
                if self.manager.state(name).status is AgentStatus.READY:
                    self.team.goes_on(name)
            case "pause":
                now = command.arguments.get("now") is True
                await self.manager.pause(name, command.reason, command.author, now=now)
            case "stop":
                if self.team.executes(name):
                    await self.manager.stop(name, command.reason, command.author)
                else:
                    self.team.look_at(name)
            case _:
                pass  # an answer, which took effect before; a verb of a newer Toka: recorded as seen, without effect


def too_long(limit: float) -> str:
    """Why agents are ended when the run took longer than `limit` seconds."""
    return f"the run took longer than {format_duration(limit)}"


def _tidy(run: RunContext) -> None:
    """Removes what dead processes put into the folders that agents worked in, to protect something."""
    own = {Path(agent.private.path) for agent in run.recorder.state.agents.values() if agent.private is not None}
    for folder in (run.workspace, *own):
        tidy(folder)
