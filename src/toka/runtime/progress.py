"""ProgressReporter: events out to whoever listens, and the meaning of a spec's `reporting:` section.

Records become progress events, one sentence each. An agent's declared `metrics` are gauges that its reports fill;
figures by other names stay in its state, and digests leave them out. Its `channels` are run-wide topics: whoever
subscribes to one gets a digest of each agent that names it, as often as that agent's `frequency` says and once more
when the agent ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from toka.config.agent import AgentConfig
from toka.core.clock import Clock
from toka.core.ids import AgentName
from toka.core.units import format_bytes
from toka.errors import LimitExceeded
from toka.events.event import (
    AgentStateChanged,
    Event,
    ObjectiveChanged,
    RunStateChanged,
    StepDenied,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    StepResolved,
    TaskStateChanged,
)
from toka.events.flow import ApprovalAnswered, ApprovalAsked
from toka.events.health import HealthChanged
from toka.events.lifecycle import AGENT_ENDS, TASK_ENDS, AgentStatus
from toka.events.record import Record
from toka.events.state import AgentState
from toka.events.steps import SETTLED, UNKEPT
from toka.journal.recorder import Recorder
from toka.sandbox.usage import Usage
from toka.workspace.cell import NO_GIT

PERIODS: Final[Mapping[str, float]] = {"hourly": 3_600.0, "daily": 86_400.0, "weekly": 604_800.0}
"""Seconds between digests of the frequencies that are periods."""
IDLE_CPU_S: Final = 0.01
"""Seconds of processor time between two samples below which nothing was done."""
KEPT_EVENTS: Final = 50
"""Events that a digest lists; older ones are only counted."""


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One thing that a person following a run wants to know.

    Attributes:
        kind: such as `task_started`, `tool_denied`, `check_failed`.
        agent: whom it concerns; empty for the run.
        task: which task; empty when it concerns none.
        text: one sentence, without the agent's name.
        at: wall-clock seconds.
    """

    kind: str
    agent: str
    task: str
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an agent is: tasks that ended out of all known ones, and where it stands."""

    agent: str
    status: str
    done: int
    total: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Digest:
    """What happened to one agent since the last digest on this channel.

    Attributes:
        channel: the topic.
        agent: about whom.
        cause: real-time, on-milestone, on-completion, hourly, daily or weekly; `end` for the last one.
        events: the latest events, oldest first; `left_out` earlier ones are not listed.
        progress: how far the agent is.
        metrics: the gauges that its spec declares, as far as they are filled.
    """

    channel: str
    agent: str
    cause: str
    events: tuple[ProgressEvent, ...]
    left_out: int
    progress: Progress
    metrics: Mapping[str, float]


@dataclass(slots=True)
class _Pending:
    since: float
    events: list[ProgressEvent] = field(default_factory=list[ProgressEvent])
    left_out: int = 0


Listener = Callable[[ProgressEvent], None]
ChannelListener = Callable[[Digest], None]


class ProgressReporter:
    """Tells listeners what happens in a run, after it is durable. Listeners must return at once."""

    def __init__(self, recorder: Recorder, configs: Mapping[AgentName, AgentConfig], clock: Clock) -> None:
        """Starts listening to the recorder."""
        self._recorder = recorder
        self._configs: dict[str, AgentConfig] = {str(name): config for name, config in configs.items()}
        self._clock = clock
        self._listeners: list[Listener] = []
        self._channels: dict[str, list[ChannelListener]] = {}
        self._pending: dict[str, _Pending] = {}
        self._used: dict[str, float] = {}
        self._unkept = NO_GIT  # of that the start of a run warns
        self._unsubscribe = recorder.subscribe(self._on_record)

    def add(self, config: AgentConfig) -> None:
        """Takes an agent that came up during the run."""
        self._configs[str(config.name)] = config

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Adds a listener to all events; returns the function that removes it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def subscribe_channel(self, channel: str, listener: ChannelListener) -> Callable[[], None]:
        """Adds a listener to a topic; returns the function that removes it."""
        listeners = self._channels.setdefault(channel, [])
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    def progress(self, agent: str) -> Progress:
        """How far an agent is."""
        state = self._recorder.state.agents.get(agent) or AgentState(agent)
        config = self._configs.get(agent)
        created = self._recorder.state.created
        planned = len(config.task_list(created.enabled if created else ())) if config else 0
        done = sum(1 for t in state.tasks.values() if t.status in TASK_ENDS)
        return Progress(agent, state.status.value, done, max(planned, len(state.tasks)), state.reason)

    def metrics(self, agent: str) -> Mapping[str, float]:
        """The gauges an agent declared, as far as its reports filled them."""
        state, config = self._recorder.state.agents.get(agent), self._configs.get(agent)
        if state is None or config is None:
            return {}
        return {m.name: state.metrics[m.name] for m in config.reporting.metrics if m.name in state.metrics}

    def tick(self) -> None:
        """Sends the digests whose period is over. Called when time passes without events."""
        now = self._clock.now()
        for agent, pending in list(self._pending.items()):
            config = self._configs.get(agent)
            period = PERIODS.get(config.reporting.frequency or "") if config else None
            if period is not None and now - pending.since >= period:
                self._send(agent, str(config.reporting.frequency) if config else "")

    def used(self, samples: Mapping[str, Usage]) -> None:
        """Tells what the agents' processes use, of each agent whose processes did something. Not part of the record."""
        for agent, use in samples.items():
            if use.cpu_s is not None and use.cpu_s > self._used.get(agent, 0.0) + IDLE_CPU_S:
                self._used[agent] = use.cpu_s
                event = ProgressEvent("usage", agent, "", _used(use), self._clock.now())
                for listener in tuple(self._listeners):
                    listener(event)

    def close(self) -> None:
        """Stops listening."""
        self._unsubscribe()

    def _on_record(self, record: Record) -> None:
        event = self._kept(record) or progress_event(record)
        if event is None:
            return
        for listener in tuple(self._listeners):
            listener(event)
        if event.agent and self._channels:
            self._note(record, event)

    def _kept(self, record: Record) -> ProgressEvent | None:
        """That the workspace is no longer kept, once for each reason."""
        why = record.event.unkept if isinstance(record.event, StepIntent) else ""
        if not why or why == self._unkept:
            return None
        self._unkept = why
        return ProgressEvent("workspace_unkept", "", "", UNKEPT.format(why=why), record.at)

    def _note(self, record: Record, event: ProgressEvent) -> None:
        config = self._configs.get(event.agent)
        if config is None or not config.reporting.channels:
            return
        pending = self._pending.setdefault(event.agent, _Pending(event.at))
        pending.events.append(event)
        if len(pending.events) > KEPT_EVENTS:
            pending.events.pop(0)
            pending.left_out += 1
        frequency = config.reporting.frequency or "on-completion"
        if _is_end(record.event):
            self._send(event.agent, "end")
        elif frequency == "real-time" or (frequency == "on-milestone" and _is_milestone(record.event)):
            self._send(event.agent, frequency)
        else:
            self.tick()

    def _send(self, agent: str, cause: str) -> None:
        pending = self._pending.pop(agent, None) or _Pending(self._clock.now())
        for channel in self._configs[agent].reporting.channels:
            digest = Digest(
                channel,
                agent,
                cause,
                tuple(pending.events),
                pending.left_out,
                self.progress(agent),
                self.metrics(agent),
            )
            for listener in tuple(self._channels.get(channel, ())):
                listener(digest)


def progress_event(record: Record) -> ProgressEvent | None:
    """What a record means to a person; None for the ones that are only of interest to the runtime."""
    event, agent, at = record.event, record.stream, record.at
    if isinstance(event, TaskStateChanged):
        kind, text = _task(event)
        return ProgressEvent(kind, agent, event.task, text, at) if kind else None
    if isinstance(event, AgentStateChanged):
        kind, text = _agent(event)
        return ProgressEvent(kind, agent, "", text, at) if kind else None
    if isinstance(event, StepDenied):
        return ProgressEvent("tool_denied", agent, _task_id(event.step), f"{event.what} denied: {event.reason}", at)
    if isinstance(event, StepDone | StepFailed) and event.limit is not None:
        over = LimitExceeded(**event.limit)
        return ProgressEvent("limit_exceeded", agent, _task_id(event.step), f"limit met: {over.message}", at)
    if isinstance(event, HealthChanged):
        return ProgressEvent("agent_health", agent, event.task, f"{event.health}: {event.seen} ({event.rung})", at)
    if isinstance(event, StepInDoubt):
        return ProgressEvent("step_in_doubt", agent, _task_id(event.step), event.question, at)
    if isinstance(event, StepResolved):
        who = f" by {event.author}" if event.author else ""
        return ProgressEvent("step_resolved", agent, _task_id(event.step), f"answered{who}: {event.answer}", at)
    if isinstance(event, ApprovalAsked):
        text = event.question if event.task else f"asks: {event.question}"
        return ProgressEvent("approval_asked", agent, event.task, text, at)
    if isinstance(event, ApprovalAnswered):
        by = f" by {event.author}" if event.author else ""
        why = f": {event.reason}" if event.reason else ""
        return ProgressEvent("approval_answered", agent, "", f"{event.answer}{by}{why}", at)
    if isinstance(event, ObjectiveChanged):
        kind = "check_failed" if event.state == "failed" else f"objective_{event.state}"
        word = "check failed" if event.state == "failed" else event.state
        return ProgressEvent(kind, agent, "", f"objective {event.objective} {word}: {event.title}", at)
    if isinstance(event, RunStateChanged):
        return ProgressEvent(f"run_{event.state.lower()}", "", "", event.reason or f"run {event.state.lower()}", at)
    return None


def _task(event: TaskStateChanged) -> tuple[str, str]:
    repair = event.task.startswith("repair-")
    match event.state:
        case "RUNNING" if event.why in SETTLED:
            return "", ""  # the answer was told before, and nothing is started
        case "RUNNING" if event.attempt > 1:
            return "task_retried", f"attempt {event.attempt}: {event.title or event.task}"
        case "RUNNING":
            return ("repair_started" if repair else "task_started"), event.title or event.task
        case "RETRY_WAIT":
            return "task_retrying", f"attempt {event.attempt} failed: {_first_line(event.reason)}"
        case "QUEUED" if event.reason:
            return "task_queued", f"waits again; it was skipped: {_first_line(event.reason)}"
        case "SUCCEEDED":
            summary = str((event.report or {}).get("summary", ""))
            return ("repair_succeeded" if repair else "task_succeeded"), _first_line(summary) or event.task
        case "AWAITING_APPROVAL":
            return "", ""  # the question was told before
        case "NEEDS_ATTENTION":
            return "task_needs_attention", event.reason
        case state:
            return f"task_{state.lower()}", _first_line(event.reason) or event.task


def _agent(event: AgentStateChanged) -> tuple[str, str]:
    if event.state in (AgentStatus.RUNNING, AgentStatus.READY):
        return "", ""
    kind = "agent_started" if event.state == AgentStatus.STARTING else f"agent_{event.state.lower()}"
    if event.why == "approval":
        return kind, "waits for the answer"
    word = kind.removeprefix("agent_").replace("_", " ")
    return kind, f"{word}: {event.reason}" if event.reason else word


def _used(use: Usage) -> str:
    """`1.4 s CPU, 45MB memory, 3 processes`."""
    parts = [f"{use.cpu_s or 0.0:.1f} s CPU"]
    if use.memory_bytes is not None:
        parts.append(f"{format_bytes(round(use.memory_bytes, -6) or use.memory_bytes)} memory")
    if use.processes is not None:
        parts.append("1 process" if use.processes == 1 else f"{use.processes} processes")
    return ", ".join(parts)


def _task_id(step: str) -> str:
    return step.partition("/")[0]


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def _is_end(event: Event) -> bool:
    return isinstance(event, AgentStateChanged) and event.state in AGENT_ENDS


def _is_milestone(event: Event) -> bool:
    return isinstance(event, ObjectiveChanged) or (isinstance(event, TaskStateChanged) and event.state in TASK_ENDS)
