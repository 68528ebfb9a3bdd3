"""The invariants, asserted from outside: after each record, at each act, and at each end.

`RULES` names them and the place in ARCHITECTURE.md or RELIABILITY.md that each comes from.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from toka.core.ids import AgentName, RunId, StepKey, idempotency_key
from toka.events.event import (
    AgentStateChanged,
    CommandApplied,
    ExecutorAttached,
    HoldLifted,
    HoldPlaced,
    RunStateChanged,
    StepDenied,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    StepResolved,
    TaskStateChanged,
)
from toka.events.fold import fold_all
from toka.events.lifecycle import AGENT_ENDS, RUN_ENDS, AgentStatus, RunStatus, TaskStatus, Trigger, agent_may, task_may
from toka.events.record import Record
from toka.events.state import AgentState, RunState
from toka.journal.audit import verify
from toka.journal.journal import Lease
from toka.llm.model import ModelRequest
from toka.orchestration.result import verdict
from toka.runtime.values import template_of
from torture.simulation.bills import Bills

if TYPE_CHECKING:
    from torture.simulation.world import Life, World

RULES: Final = {
    "legal-agent-transition": "Lifecycle: the transition table of agents",
    "legal-task-transition": "Lifecycle: the transition table of tasks",
    "ends-are-final": "Lifecycle: `Ends are final`",
    "nothing-after-the-end": "Lifecycle: `Ends are final`, for the run's record as a whole",
    "intent-before-act": "Steps and effects: `intent`, durable, before the act",
    "key-of-the-step": "Steps and effects: idempotency key = H(run, agent, StepKey), the same over restarts",
    "recorded-never-again": "Steps and effects: a recorded step never runs again",
    "one-act-an-intent": "Steps and effects: intent -> the act -> done",
    "reply-before-its-calls": "Steps and effects: a model's reply is stored before its tool calls start",
    "once-acts-once": "Steps and effects: `once` never runs again unless a person says that it did not happen",
    "doubt-needs-attention": "Steps and effects: `once` in flight at a crash -> IN_DOUBT, task NEEDS_ATTENTION",
    "approved-first": "Steps and effects: a call that a person must approve acts only after that",
    "no-step-under-a-hold": "Lifecycle: *Pause* = no new step starts; survives restarts",
    "pause-within-a-second": "Issue: effective within 1 s",
    "no-step-after-stop": "Lifecycle: *Stop* is final; within grace + 2 s nothing of the agent exists",
    "no-stale-commit": "Journal: a stale epoch is refused; R6: 0 commits by a worker that was frozen",
    "no-act-without-the-lease": "Journal: the executor also checks its own lease deadline before each act",
    "one-executor": "Journal: executing a run that a live process holds is refused",
    "agents-at-one-time": "Settings: max_concurrent_agents",
    "tasks-at-one-time": "Settings: max_concurrent_tasks",
    "dependencies-first": "Lifecycle: a dependent starts when the required agent is COMPLETED",
    "command-applied-once": "Journal: commands are applied in order, once",
    "ends-with-its-verdict": "Lifecycle: the run ends as its agents did",
    "waits-for-a-reason": "Lifecycle: WAITING only when a person can let it go on",
    "state-is-the-fold": "Idea 2: state is a fold over the journal",
    "chains-verify": "Journal: hash chain per stream",
    "billed-is-counted": "Budgets: every attempt is reserved and settled; R7: every billed attempt is charged",
    "lost-is-charged": "Steps and effects: the lost attempt is charged at its reservation",
    "calls-are-counted": "Budgets: kinds",
    "within-its-limits": "Budgets: a call that cannot be reserved is not made",
    "ends-leave-no-flight": "Lifecycle: *Stop*: steps in flight are written `failed` or IN_DOUBT and settled",
    "no-unhandled-error": "STYLE: errors",
    "no-crash": "STYLE: a process ends with a result or a TokaError that says why",
    "no-deadlock": "Every run ends or waits for a stated reason",
}


def _by(event: AgentStateChanged | TaskStateChanged) -> Trigger | None:
    """What brought a change about, where that is told."""
    return Trigger(event.by) if event.by else None


@dataclass
class StepSeen:
    """What the record and the ledger say of one step."""

    agent: str
    step: str
    key: str
    effect: str
    what: str
    intents: list[Record] = field(default_factory=list[Record])
    begun: int = 0
    happened: int = 0
    ended: bool = False
    doubt: bool = False
    answers: list[str] = field(default_factory=list[str])


@dataclass(eq=False)
class Act:
    """One act outside: an attempt at a model call, a call of a tool, a command."""

    life: Life
    kind: str
    seen: StepSeen
    over: bool = False
    outcome: str = ""
    request: ModelRequest | None = None
    usage: Any = None
    failure: Any = None


class Rules:
    """Watches one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[str, StepSeen] = {}
        self._by_step: dict[tuple[str, str], StepSeen] = {}
        self._acting: dict[str, set[Act]] = defaultdict(set)
        self._owner: Life | None = None
        self._attached = 0
        self._epochs: dict[str, int] = {}
        self._holds: dict[str, dict[str, tuple[float, Life | None]]] = defaultdict(dict)
        self._stops: dict[str, float] = {}
        self._closed: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._commands = 0
        self._approved: set[str] = set()
        self.bills = Bills(world)
        self.limit = 1
        self.tasks = 1
        self.grace = 10.0
        self.required: dict[str, tuple[str, ...]] = {}
        self.optional: dict[str, tuple[str, ...]] = {}

    def check(self, rule: str, holds: object, text: str) -> None:
        """Ends the world when something does not hold."""
        assert rule in RULES, rule
        if not holds:
            self._world.broken(rule, text)

    # --- acts --------------------------------------------------------------------------------------------------------

    def begins(self, life: Life, kind: str, key: str, *, again: bool = False) -> Act:
        """An act begins, outside; `again` when it is a further attempt of one."""
        seen = self._seen.get(key)
        self._world.note(f"p{life.number} act {kind} {seen.agent + ' ' + seen.step if seen else key}")
        self.check("intent-before-act", seen is not None, f"{kind} with key {key}, which no durable intent has")
        if seen is None:
            return Act(life, kind, StepSeen("", "", key, "", ""))
        act = Act(life, kind, seen)
        who = f"{seen.step} of {seen.agent}"
        if not again:
            seen.begun += 1
            self.check("one-act-an-intent", seen.begun <= len(seen.intents), f"{who}: act {seen.begun}")
            lease = self._world.store.leases.get(self._world.run)
            mine = lease is not None and lease.life is life and lease.until > self._world.loop.time()
            self.check("no-act-without-the-lease", mine, f"{who} by process {life.number}")
        self.check("recorded-never-again", not seen.ended, f"{who} acts although its end is recorded")
        if seen.effect == "once" and not again:
            allowed = 1 + seen.answers.count("not-happened")
            self.check("once-acts-once", seen.begun <= allowed, f"{who} acts for the {seen.begun}. time")
        if "/tool/" in seen.step:
            reply = StepKey.parse(seen.step)
            asked = self._by_step.get((seen.agent, StepKey(reply.task, reply.attempt, reply.turn, "model").text))
            self.check("reply-before-its-calls", asked is not None and asked.ended, who)
        if seen.what == "careful":
            self.check("approved-first", f"{seen.agent}/{seen.step}" in self._approved, who)
        agent = self._world.state.agents.get(seen.agent)
        self.check("ends-are-final", agent is not None and not agent.ended, f"{who} acts after the agent's end")
        if seen.agent in self._stops and not life.troubled > self._stops[seen.agent]:
            late = self._world.loop.time() - self._stops[seen.agent] - self.grace - 2.0 - self.slack
            self.check("no-step-after-stop", late <= 0, f"{who} acts {late:.1f} s too late")
        self._acting[seen.agent].add(act)
        self.bills.begun(act)
        self._crowd(life)
        return act

    @property
    def slack(self) -> float:
        """Seconds that a slow disk may cost."""
        return 30.0 if self._world.faults.slow_commit else 1.0

    def _crowd(self, life: Life) -> None:
        mine = {agent: {a for a in acts if a.life is life} for agent, acts in self._acting.items()}
        busy = sorted(agent for agent, acts in mine.items() if acts)
        self.check("agents-at-one-time", len(busy) <= self.limit, f"{busy} act, at most {self.limit} may")
        for agent in busy:
            tasks = sorted({a.seen.step.partition("/")[0] for a in mine[agent]})
            self.check("tasks-at-one-time", len(tasks) <= self.tasks, f"{tasks} of {agent}, at most {self.tasks} may")

    def happened(self, act: Act) -> None:
        """Its effect is there."""
        act.seen.happened += 1
        self._world.note(f"effect of {act.seen.agent} {act.seen.step}")
        if act.seen.effect == "once":
            allowed = 1 + act.seen.answers.count("not-happened")
            self.check("once-acts-once", act.seen.happened <= allowed, f"{act.seen.step}: {act.seen.happened} effects")

    def effects(self, key: str) -> int:
        """How often an act with this key took effect."""
        seen = self._seen.get(key)
        return seen.happened if seen is not None else 0

    def ends(self, act: Act) -> None:
        """An act is over, however it ended."""
        if not act.over:
            act.over = True
            self._acting[act.seen.agent].discard(act)

    def died(self, life: Life) -> None:
        """A process was killed: its acts are over, whatever came of them."""
        for acts in tuple(self._acting.values()):
            for act in [a for a in acts if a.life is life]:
                act.outcome = act.outcome or "lost"
                self.ends(act)

    # --- leases and epochs -------------------------------------------------------------------------------------------

    def taken(self, life: Life, lease: Lease) -> None:
        """A process has the lease."""
        old = self._owner
        if old is not None and old is not life and old.executes:
            self._world.takeovers += 1
        self._owner = life
        for stream in self._epochs:
            self._epochs[stream] += 1

    def bumped(self, stream: str, epoch: int) -> None:
        """A stream's epoch was raised."""
        self._epochs[stream] = self._epochs.get(stream, 1) + 1
        self.check("no-stale-commit", epoch == self._epochs[stream], f"epoch of {stream} is {epoch}")

    # --- records -----------------------------------------------------------------------------------------------------

    def recorded(self, life: Life, record: Record, before: RunState, after: RunState) -> None:
        """A record is durable."""
        event, stream = record.event, record.stream
        known = self._epochs.setdefault(stream, record.epoch)
        self.check("no-stale-commit", life is self._owner, f"record {record.id} by process {life.number}")
        self.check("no-stale-commit", record.epoch == known, f"record {record.id} in epoch {record.epoch}, not {known}")
        self.check("nothing-after-the-end", before.status not in RUN_ENDS, f"record {record.id}: {event}")
        agent = before.agents.get(stream)
        again = isinstance(event, AgentStateChanged) and event.state == AgentStatus.READY
        late = agent is not None and agent.ended and not isinstance(event, HoldLifted) and not again
        self.check("ends-are-final", not late, f"record {record.id} of {stream}, which has ended: {event}")
        match event:
            case AgentStateChanged():
                self._agent_changed(stream, event, before, after)
            case TaskStateChanged():
                self._task_changed(stream, event, before)
            case StepIntent():
                self._intent(life, record, event)
            case StepDone() | StepFailed() | StepDenied():
                self._step_ended(life, stream, event)
            case StepInDoubt():
                self._by_step[stream, event.step].doubt = True
            case StepResolved():
                self._by_step[stream, event.step].answers.append(event.answer)
            case HoldPlaced():
                self._hold(stream, event.hold, 0.0, None)
            case HoldLifted():
                for each in self._concerned(stream):
                    self._holds[each].pop(event.hold, None)
            case CommandApplied():
                self._command(life, event)
            case ExecutorAttached():
                self._attached = record.id
            case RunStateChanged():
                self._run_changed(event, before)
            case _:
                self._answered(event, stream)

    def _answered(self, event: Any, stream: str) -> None:
        if type(event).__name__ == "ApprovalAnswered" and event.answer == "approved":
            asked = self._world.state.agents[stream].approvals[event.approval]
            self._approved.add(f"{stream}/{asked.shown.get('step')}")

    def _agent_changed(self, name: str, event: AgentStateChanged, before: RunState, after: RunState) -> None:
        old = before.agents.get(name) or AgentState(name)
        new = AgentStatus(event.state)
        self.check("legal-agent-transition", agent_may(old.status, new, _by(event)), f"{name}: {old.status} -> {new}")
        if new is AgentStatus.STARTING:
            whole = template_of(name) or name
            states = before.agents
            ended = whole in states and states[whole].status is AgentStatus.STOPPED
            self.check("no-step-after-stop", not ended, f"{name} starts although {whole} is STOPPED")
            for other in self.required.get(whole, ()):
                done = other in states and states[other].status is AgentStatus.COMPLETED
                self.check("dependencies-first", done, f"{name} starts before {other} is COMPLETED")
            for other in self.optional.get(whole, ()):
                first = old.started_at is None and (whole not in states or states[whole].started_at is None)
                over = other in states and states[other].ended  # later a person may have it tried again,
                over = over or self._world.loop.time() - self._ended.get(other, -9.0) < 1.0  # or in the same moment
                self.check("dependencies-first", over or not first, f"{name} before {other}")
        if new is AgentStatus.READY:
            self._closed.pop(name, None)
            self._stops.pop(name, None)
        if new is AgentStatus.STOPPING:
            self._closed.setdefault(name, self._world.loop.time())
        if new in AGENT_ENDS:
            self._agent_ended(after.agents[name])

    def _agent_ended(self, agent: AgentState) -> None:
        self._ended[agent.name] = self._world.loop.time()
        for task in agent.tasks.values():
            left = [s for s in task.in_flight if not self._by_step[agent.name, s].doubt]
            self.check("ends-leave-no-flight", not left, f"{agent.name} ended {agent.status}, in flight: {left}")
        self.bills.agent_ended(agent)

    def _task_changed(self, name: str, event: TaskStateChanged, before: RunState) -> None:
        agent = before.agents.get(name) or AgentState(name)
        known = agent.tasks.get(event.task)
        old, new = known.status if known else TaskStatus.QUEUED, TaskStatus(event.state)
        self.check("legal-task-transition", task_may(old, new, _by(event)), f"{name} {event.task}: {old} -> {new}")
        if new is TaskStatus.SUCCEEDED and known is not None:
            for step in known.in_flight:
                rule = "doubt-needs-attention" if self._by_step[name, step].doubt else "ends-leave-no-flight"
                self.check(rule, holds=False, text=f"{event.task} of {name} SUCCEEDED, and {step} has no end")

    def _intent(self, life: Life, record: Record, event: StepIntent) -> None:
        self._world.steps += 1
        name, who = record.stream, f"{event.step} of {record.stream}"
        key = idempotency_key(RunId(record.run), AgentName(name), StepKey.parse(event.step))
        self.check("key-of-the-step", event.key == key, f"{who} has key {event.key}")
        seen = self._by_step.get((name, event.step))
        if seen is None:
            seen = StepSeen(name, event.step, event.key, event.effect, event.what)
            self._seen[event.key] = self._by_step[name, event.step] = seen
        self.check("recorded-never-again", not seen.ended, f"{who} begins although its end is recorded")
        if seen.intents and seen.effect == "once":
            allowed = 1 + seen.answers.count("not-happened")
            self.check("doubt-needs-attention", len(seen.intents) < allowed, f"{who} begins again unasked")
        seen.doubt = False
        seen.intents.append(record)
        self.bills.intent(seen, event, life)
        now = self._world.loop.time()
        closed = self._closed.get(name, now)
        trouble = life.troubled >= closed
        self.check("no-step-after-stop", now - closed <= self.slack or trouble, f"{who} begins after STOPPING")
        for hold, (since, by) in self._holds[name].items():
            self.check("no-step-under-a-hold", by is not None and by is life, f"{who} begins under the hold {hold!r}")
            late = now - since - 1.0 - (self.slack if self._world.faults.slow_commit else 0.0)
            trouble = life.troubled >= since
            self.check("pause-within-a-second", late <= 0 or trouble, f"{who} begins {now - since:.2f} s after")

    def _step_ended(self, life: Life, name: str, event: StepDone | StepFailed | StepDenied) -> None:
        seen = self._by_step.get((name, event.step))
        if seen is None:
            self._world.steps += 1
            kind = "denied" if isinstance(event, StepDenied) else "answered without an act"
            seen = self._by_step[name, event.step] = StepSeen(name, event.step, "", "", kind)
        self.check("recorded-never-again", not seen.ended, f"{event.step} of {name} ends twice")
        seen.ended = True
        if not isinstance(event, StepDenied):
            self.bills.ended(seen, event, life)

    def _concerned(self, stream: str) -> list[str]:
        names = list(self._world.state.agents)
        return [n for n in names if not stream or n == stream or template_of(n) == stream] + [stream]

    def _hold(self, stream: str, hold: str, since: float, by: Life | None) -> None:
        agents = self._world.state.agents
        for each in self._concerned(stream):
            if each in agents and agents[each].ended:
                continue
            known = self._holds[each].get(hold)
            if known is None or by is None:
                self._holds[each][hold] = (since or self._world.loop.time(), by)

    def _command(self, life: Life, event: CommandApplied) -> None:
        self.check("command-applied-once", event.command > self._commands, f"request {event.command} again, or late")
        self._commands = event.command
        if event.verb == "pause":
            self._hold(event.agent, "person", 0.0, life)
        elif event.verb == "resume":
            for each in self._concerned(event.agent):
                for hold in ("person", "health"):
                    self._holds[each].pop(hold, None)
        elif event.verb == "stop":
            for each in self._concerned(event.agent):
                self._stops.setdefault(each, self._world.loop.time())

    def _run_changed(self, event: RunStateChanged, before: RunState) -> None:
        status = RunStatus(event.state)
        if status is RunStatus.RUNNING:
            return
        said = verdict(before)
        self.check("ends-with-its-verdict", said == (status, event.reason), f"{status}, the verdict is {said}")
        agents = before.agents.values()
        self.check("ends-with-its-verdict", (status in RUN_ENDS) == all(a.ended for a in agents), f"{status}")
        if status is RunStatus.COMPLETED:
            bad = [a.name for a in agents if a.status not in (AgentStatus.COMPLETED, AgentStatus.SKIPPED)]
            self.check("ends-with-its-verdict", not bad, f"COMPLETED, and {bad} are not")
        if status is RunStatus.WAITING:
            self._waits(before)

    def _waits(self, state: RunState) -> None:
        waiting = {a.name for a in state.agents.values() if not a.ended}
        for name in sorted(waiting):
            agent = state.agents[name]
            asked = agent.asking or any(t.question for t in agent.tasks.values())
            before = {*self.required.get(name, ()), *self.optional.get(name, ())} & waiting
            parts = {n for n in waiting if template_of(n) == name}
            why = asked or before or agent.holds or parts or self._commands < len(self._world.store.memory._commands)
            self.check("waits-for-a-reason", why, f"{name} is {agent.status} and nobody is asked: {agent}")

    # --- ends --------------------------------------------------------------------------------------------------------

    def fold_is_state(self) -> None:
        """The fold of all that is stored is the state that was folded record by record."""
        run = self._world.run
        fresh = fold_all(run, self._world.store.memory.read(RunId(run)))
        self.check("state-is-the-fold", fresh == self._world.states[run], "the stored records fold to another state")

    def forget(self) -> None:
        """Lets go of all acts."""
        self._acting.clear()
        self.bills.forget()

    def life_over(self, life: Life) -> None:
        """A process has ended by itself."""
        if not self._world.run:
            return
        mine = sorted(a for a, acts in self._acting.items() for act in acts if act.life is life)
        self.check("ends-are-final", not mine, f"process {life.number} is over and {mine} act")
        mine = life.session.context.recorder.state if life.session is not None else None
        if mine is not None and mine.last == self._world.state.last:
            self.check("state-is-the-fold", mine == self._world.state, f"process {life.number} has another state")

    def world_over(self) -> None:
        """The run has ended."""
        memory, run = self._world.store.memory, self._world.run
        found = verify(memory, RunId(run))
        self.check("chains-verify", not found.problems, f"{found.problems}")
        self.fold_is_state()
        self.bills.world_over(self._world.state)
