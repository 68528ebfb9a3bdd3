"""What the record of a run comes to: the states of the run, its agents, their tasks and objectives. Frozen values.

`fold` is what makes them, and nothing else changes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from toka.core.message import Usage
from toka.core.units import format_duration
from toka.events.event import RunCreated
from toka.events.flow import InstancesMade, OutputsMade
from toka.events.health import Health, HealthChanged
from toka.events.lifecycle import AGENT_ENDS, RUN_ENDS, AgentStatus, ObjectiveStatus, RunStatus, TaskStatus
from toka.events.workspace import BranchReturned, WorkspaceMade

JSON = dict[str, Any]
HEALTHY_S: Final = 600.0
"""An agent that ran as long as this, in seconds, has no crash behind it."""
LEVELS: Final = ("full", "reduced", "none")
"""How strongly agents can be confined, from the strongest."""


def weaker(*levels: str) -> str:
    """The weakest of these; one that nobody knows counts as `none`."""
    return LEVELS[max(LEVELS.index(level) if level in LEVELS else len(LEVELS) - 1 for level in levels)]


@dataclass(frozen=True, slots=True)
class TaskState:
    """One task as far as the journal tells.

    Attributes:
        id: its id.
        title: its description.
        status: where it stands.
        attempt: the current try, from 1; 0 before the first.
        reason: of the last change; for a failed task its error.
        why: the cause as a word for programs.
        report: what the agent reported at the end.
        began_s: how long the agent had been executed when the task began, in seconds; None before that.
        in_flight: steps with an intent and no end: step key -> what.
        waits: for whose turn to write to the workspace it waits; empty when it does not.
        question: of a step in doubt: what a person must answer; empty otherwise.
        usage: tokens of its model calls.
        tool_calls: tool calls that were started.
        denied: tool calls that were refused.
        fresh: the attempts before it was tried again on a person's word: they count as no retries.
        nudges, restarts: the steps after which its model was told that it gets nowhere, or was started again.
        spared: how many of each a person has let pass: they count no more.
        burnt: whether its model was told that a budget is nearly used up.
    """

    id: str
    title: str = ""
    status: TaskStatus = TaskStatus.QUEUED
    attempt: int = 0
    reason: str = ""
    why: str = ""
    report: JSON | None = None
    began_s: float | None = None
    in_flight: Mapping[str, str] = field(default_factory=dict[str, str])
    waits: str = ""
    question: str = ""
    usage: Usage = field(default_factory=Usage)
    tool_calls: int = 0
    denied: int = 0
    fresh: int = 0
    nudges: tuple[str, ...] = ()
    restarts: tuple[str, ...] = ()
    spared: tuple[int, int] = (0, 0)
    burnt: bool = False


@dataclass(frozen=True, slots=True)
class ObjectiveState:
    """One objective: claimed means that the agent says so, verified that its check passed."""

    number: int
    title: str = ""
    status: ObjectiveStatus = ObjectiveStatus.PENDING
    round: int = 0
    evidence: JSON | None = None


@dataclass(frozen=True, slots=True)
class ApprovalState:
    """One question to a person.

    Attributes:
        id: its id.
        task: the task that waits; empty when the agent itself does.
        question: for the person.
        shown: what the answer is about; see ApprovalAsked.
        asked_at: wall-clock seconds.
        expires_at: wall-clock seconds after which it counts as unanswered; None = never.
        within_s: how long that is after it was asked, in seconds; None = never.
        answer: `approved`, `denied` or `unanswered`; empty while it is open.
        author, reason: of the answer.
    """

    id: str
    task: str
    question: str
    shown: JSON = field(default_factory=dict[str, Any])
    asked_at: float = 0.0
    expires_at: float | None = None
    within_s: float | None = None
    answer: str = ""
    author: str = ""
    reason: str = ""

    @property
    def in_words(self) -> str:
        """How it was settled, for reasons: `denied by ada: not today`, `nobody answered within 2h`."""
        if self.answer == "unanswered":
            return "nobody answered" + (f" within {format_duration(self.within_s)}" if self.within_s else "")
        by = f"{self.answer} by {self.author or 'nobody'}"
        return f"{by}: {self.reason}" if self.reason else by


@dataclass(frozen=True, slots=True)
class AgentState:
    """One agent as far as the journal tells.

    Attributes:
        name: its name.
        status: where it stands.
        reason: of the last change of status; for a failed agent its error.
        why: the cause as a word for programs.
        holds: what keeps it from taking steps: hold -> reason.
        stop: why it is to end, when that was asked for; empty when nobody has.
        tasks: by id, in the order in which they appeared.
        objectives: by number.
        metrics: the latest figure that its reports gave by each name, whether its spec declares the name or not.
        approvals: questions to a person, by id, in the order in which they were asked.
        outputs: the values that it left; None before it left any.
        made: the elements for which an agent with `for_each` is there; None before that.
        let_go: whether a person let it go on since one last held it: an instance then does not rest with its agent.
        usage: tokens of its model calls, tasks and repairs together.
        cost_usd: None when a call of unknown price was made.
        steps: how many of its steps were completed.
        started_at, ended_at: wall-clock seconds; None before that.
        active_s: seconds it was being executed, without the time between a crash and its resumption.
        stint_at: when the current executor started it; None before that.
        changed_at: when its last event was written.
        level: the weakest confinement that a sandbox of it had; see LEVELS.
        retry: why it is to be tried again, when that was asked for and has not begun; None when nobody has.
        tries: how often it was tried again on a person's word.
        fresh_s: `active_s` when that was last.
        health: how it fares.
        found: what was found when it last fared badly: what was seen, and what was done.
        crashes: how often in a row it crashed without a newly completed step.
        restarts: how often it was started again after a crash or a failure; one that it waits for counts.
        crashed_at: `steps` at its last crash.
        failures: how often in a row its work failed and was to be tried again, without a newly completed task.
        failed_at: how many of its tasks had succeeded when that was last.
        until: of BACKOFF, wall-clock seconds at which it is started again; None = that is not known.
        private: the workspace that it has to itself; None = it has none, or none yet.
        returned: what became of its branch; None before it is done.
    """

    name: str
    status: AgentStatus = AgentStatus.CONFIGURED
    reason: str = ""
    why: str = ""
    holds: Mapping[str, str] = field(default_factory=dict[str, str])
    stop: str = ""
    tasks: Mapping[str, TaskState] = field(default_factory=dict[str, TaskState])
    objectives: Mapping[int, ObjectiveState] = field(default_factory=dict[int, ObjectiveState])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    approvals: Mapping[str, ApprovalState] = field(default_factory=dict[str, ApprovalState])
    outputs: OutputsMade | None = None
    made: InstancesMade | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    tool_calls: int = 0
    denied: int = 0
    steps: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    active_s: float = 0.0
    stint_at: float | None = None
    changed_at: float = 0.0
    level: str = LEVELS[0]
    retry: str | None = None
    tries: int = 0
    fresh_s: float = 0.0
    health: Health = Health.HEALTHY
    found: HealthChanged | None = None
    crashes: int = 0
    restarts: int = 0
    crashed_at: int = -1
    failures: int = 0
    failed_at: int = -1
    until: float | None = None
    private: WorkspaceMade | None = None
    returned: BranchReturned | None = None
    let_go: bool = False

    def crashes_at(self, now: float) -> int:
        """How many crashes in a row one at `now`, in wall-clock seconds, would make."""
        healthy = self.stint_at is not None and now - self.stint_at >= HEALTHY_S
        return 1 if self.steps > self.crashed_at or healthy else self.crashes + 1

    @property
    def succeeded(self) -> int:
        """How many of its tasks succeeded. A repair is none: it shows in the check that follows it."""
        return sum(t.status is TaskStatus.SUCCEEDED and not t.id.startswith("repair-") for t in self.tasks.values())

    @property
    def failures_now(self) -> int:
        """How many failures in a row one more would make."""
        return 1 if self.succeeded > self.failed_at else self.failures + 1

    @property
    def ended(self) -> bool:
        """Whether it can change no more."""
        return self.status in AGENT_ENDS

    @property
    def asking(self) -> tuple[ApprovalState, ...]:
        """The questions that wait for an answer; none once it has ended."""
        return () if self.ended else tuple(each for each in self.approvals.values() if not each.answer)


@dataclass(frozen=True, slots=True)
class RunState:
    """One run as far as the journal tells.

    Attributes:
        id: the run.
        status: where it stands (RUNNING also when its executor is dead; readers look at the lease).
        created: what was asked for; None until that is read.
        agents: by name.
        holds: what holds all agents: hold -> reason.
        commands: ids of the commands that took effect.
        epoch: of the latest executor.
        level: the weakest confinement that an executor gave its agents; see `weakest`.
        last: id of the last record folded in.
    """

    id: str
    status: RunStatus = RunStatus.CREATED
    reason: str = ""
    created: RunCreated | None = None
    agents: Mapping[str, AgentState] = field(default_factory=dict[str, AgentState])
    holds: Mapping[str, str] = field(default_factory=dict[str, str])
    commands: frozenset[int] = frozenset()
    epoch: int = 0
    level: str = LEVELS[0]
    started_at: float | None = None
    ended_at: float | None = None
    changed_at: float = 0.0
    last: int = 0

    @property
    def weakest(self) -> str:
        """The weakest confinement of anything in this run: that of its executors, or of a single agent."""
        return weaker(self.level, *(agent.level for agent in self.agents.values()))

    @property
    def ended(self) -> bool:
        """Whether it can change no more."""
        return self.status in RUN_ENDS


def with_unbegun(run: RunState, name: str) -> RunState:
    """The same with an instance that is made and of which nothing is recorded yet, if `name` is that of one."""
    template, _, number = name.removesuffix("]").partition("[")
    whole = run.agents.get(template)
    made = whole.made if whole is not None and name not in run.agents else None
    if made is None or not number.isdecimal() or name != f"{template}[{int(number)}]":
        return run
    return replace(run, agents={**run.agents, name: AgentState(name)}) if 0 < int(number) <= made.count else run
