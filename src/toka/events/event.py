"""One frozen class per kind of event, and their stored form.

Fields are JSON values, so the stored form is the fields by name; those at their default are left out. The form has a
version: a reader ignores fields it does not know and keeps kinds it does not know as `Unknown`, so that the journal of
every released version can be read for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Final

VERSION: Final = 1
"""Of the stored form. It changes only when a reader of an older version would misread."""

RESERVED_KINDS: Final = frozenset({"message_sent", "message_delivered"})
"""Kinds kept for messages between agents: a delivery is one transaction on both streams."""

JSON = dict[str, Any]


def _json() -> JSON:
    return {}


@dataclass(frozen=True, slots=True)
class RunCreated:
    """A run exists: what was asked for.

    Attributes:
        agents: the names of its agents, in order of their files.
        specs: digest of the blob that holds the specs as JSON.
        workspace: absolute path of the directory the agents work on.
        enabled: conditional task groups that were switched on.
        model: the model asked for; None leaves it to each spec.
        options: execution settings that a resume must repeat.
        toka: the version that made the run.
    """

    KIND: ClassVar[str] = "run_created"
    agents: list[str]
    specs: str
    workspace: str
    enabled: list[str] = field(default_factory=list[str])
    model: str | None = None
    options: JSON = field(default_factory=_json)
    toka: str = ""


@dataclass(frozen=True, slots=True)
class ExecutorAttached:
    """A process took the run's lease and executes it from here."""

    KIND: ClassVar[str] = "executor_attached"
    host: str
    pid: int
    epoch: int


@dataclass(frozen=True, slots=True)
class RunStateChanged:
    """The run's status changed."""

    KIND: ClassVar[str] = "run_state"
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CommandApplied:
    """A request of a person or program took effect: applied once, under the command's id."""

    KIND: ClassVar[str] = "command_applied"
    command: int
    verb: str
    agent: str = ""
    arguments: JSON = field(default_factory=_json)
    author: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AgentStateChanged:
    """An agent's status changed.

    Attributes:
        state: the new status.
        reason: why, for people; empty when it goes without saying.
        why: the cause as a word for programs, such as `dependency`, `no_model`, `check_failed`.
    """

    KIND: ClassVar[str] = "agent_state"
    state: str
    reason: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class HoldPlaced:
    """Something keeps the agent (or, on the run's stream, all agents) from taking another step.

    Attributes:
        hold: `person`, `budget`, `health` or `approval`.
    """

    KIND: ClassVar[str] = "hold_placed"
    hold: str
    reason: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class HoldLifted:
    """A hold is gone."""

    KIND: ClassVar[str] = "hold_lifted"
    hold: str
    reason: str = ""
    author: str = ""


@dataclass(frozen=True, slots=True)
class SandboxReady:
    """The agent's sandbox runs: the policy that is in force, as the kernel was told it."""

    KIND: ClassVar[str] = "sandbox_ready"
    policy: JSON
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class TaskStateChanged:
    """A task's status changed.

    Attributes:
        task: its id.
        state: the new status.
        attempt: which try this is about, from 1; 0 before the first.
        reason: why; for a failure, the error.
        report: what the agent reported at the end: status, summary, artifacts, metrics.
        title: the task's description, on its first event.
        why: the cause as a word for programs: exit, timeout, limit, malformed ...
    """

    KIND: ClassVar[str] = "task_state"
    task: str
    state: str
    attempt: int = 0
    reason: str = ""
    report: JSON | None = None
    title: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class StepIntent:
    """An act is about to start.

    Attributes:
        step: the step's key as text.
        key: idempotency key, the same over restarts.
        effect: what a crash in flight means.
        what: the tool's name, the model, or the command line.
        arguments: the arguments; of large ones their beginning, their length and their SHA-256.
        rule: the policy rule that allowed it.
        messages: messages added to the conversation since the last recorded step, for a model call.
        evidence: what a probe needs after a crash, for a checkable act.
        reserved: what was reserved in the budgets: tokens, USD.
        again: how often this step was started before.
        lost: usage and cost charged for the start before, whose answer was lost: [five token counts, USD or None].
    """

    KIND: ClassVar[str] = "step_intent"
    step: str
    key: str
    effect: str
    what: str
    arguments: Any = None
    rule: str = ""
    messages: list[JSON] | None = None
    evidence: JSON | None = None
    reserved: list[float] | None = None
    again: int = 0
    lost: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class StepDone:
    """An act ended and its result is known.

    Attributes:
        result: what a replay returns in place of the act: a JSON value, or {"blob": digest} for a large one.
        usage: tokens of a model call: [input, output, cache read, cache write, calls].
        cost_usd: what it cost; None when the price is unknown.
        model: the model that answered.
        wall_s: how long the act took.
        failed: the act ended, and its answer is an error (a tool's, a command's).
    """

    KIND: ClassVar[str] = "step_done"
    step: str
    result: Any = None
    usage: list[int] | None = None
    cost_usd: float | None = None
    model: str = ""
    wall_s: float = 0.0
    failed: bool = False


@dataclass(frozen=True, slots=True)
class StepFailed:
    """An act could not be carried through; a replay raises the same failure.

    Attributes:
        error: the cause as a word: timeout, rate_limit, malformed ...
        message: for people.
        retryable: whether trying again may help.
        usage, cost_usd: what was charged all the same.
    """

    KIND: ClassVar[str] = "step_failed"
    step: str
    error: str
    message: str
    retryable: bool = True
    usage: list[int] | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class StepDenied:
    """A tool call was refused before it started; the model gets the reason as its answer."""

    KIND: ClassVar[str] = "step_denied"
    step: str
    what: str
    rule: str
    reason: str
    arguments: Any = None


@dataclass(frozen=True, slots=True)
class StepInDoubt:
    """The process died while an act that must not run twice was in flight. A person answers the question."""

    KIND: ClassVar[str] = "step_in_doubt"
    step: str
    question: str


@dataclass(frozen=True, slots=True)
class StepResolved:
    """A person answered whether a step in doubt happened.

    Attributes:
        answer: `happened`, `not-happened` (it runs again) or `abandon` (it counts as failed).
    """

    KIND: ClassVar[str] = "step_resolved"
    step: str
    answer: str
    author: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ObjectiveChanged:
    """What is known of an objective changed.

    Attributes:
        objective: its number, from 1.
        state: pending, claimed, verified or failed.
        round: the repair round it was checked in, 0 before the first repair.
        evidence: exit code, command and the end of its output.
    """

    KIND: ClassVar[str] = "objective"
    objective: int
    state: str
    title: str = ""
    round: int = 0
    evidence: JSON | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """An event of a kind that this version does not know: kept, shown, and without effect on any state."""

    KIND: ClassVar[str] = "unknown"
    kind: str
    data: JSON


Event = (
    RunCreated
    | ExecutorAttached
    | RunStateChanged
    | CommandApplied
    | AgentStateChanged
    | HoldPlaced
    | HoldLifted
    | SandboxReady
    | TaskStateChanged
    | StepIntent
    | StepDone
    | StepFailed
    | StepDenied
    | StepInDoubt
    | StepResolved
    | ObjectiveChanged
    | Unknown
)

KINDS: Final[Mapping[str, type[Any]]] = {
    c.KIND: c
    for c in (
        RunCreated, ExecutorAttached, RunStateChanged, CommandApplied, AgentStateChanged, HoldPlaced, HoldLifted,
        SandboxReady, TaskStateChanged, StepIntent, StepDone, StepFailed, StepDenied, StepInDoubt, StepResolved,
        ObjectiveChanged,
    )
}  # fmt: skip

_MISSING: Final = object()


def _default(f: Any) -> Any:
    if f.default is not MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not MISSING else _MISSING


_FIELDS: Final[Mapping[type[Any], tuple[tuple[str, Any], ...]]] = {
    c: tuple((f.name, _default(f)) for f in fields(c)) for c in KINDS.values()
}


@dataclass(frozen=True, slots=True)
class Record:
    """An event in its place in the journal.

    Attributes:
        id: position in the whole journal, growing, from 1.
        run: the run.
        stream: the agent's name; empty for the run's own stream.
        seq: position in the stream, from 1 without gaps.
        epoch: the executor's epoch when it was written.
        at: wall-clock time of the append, seconds since the epoch.
        event: what happened.
    """

    id: int
    run: str
    stream: str
    seq: int
    epoch: int
    at: float
    event: Event

    def to_json(self) -> JSON:
        """The form that `--json` prints: {"type": "event", "id", "run", "agent"?, "seq", "at", "kind", ...fields}."""
        out: JSON = {"type": "event", "id": self.id, "run_id": self.run, "seq": self.seq, "at": round(self.at, 3)}
        if self.stream:
            out["agent"] = self.stream
        kind, data = payload(self.event)
        out["kind"] = kind
        out.update((k, v) for k, v in data.items() if k not in out)
        return out


def payload(event: Event) -> tuple[str, JSON]:
    """The kind and the fields that differ from their defaults."""
    if isinstance(event, Unknown):
        return event.kind, dict(event.data)
    out: JSON = {}
    for name, default in _FIELDS[type(event)]:
        value = getattr(event, name)
        if value != default:
            out[name] = value
    return event.KIND, out


def encode(event: Event, run: str, stream: str, seq: int, epoch: int, at: float) -> str:
    """The bytes to store, as text: one JSON object that names its own place, so that it cannot be moved unnoticed."""
    kind, data = payload(event)
    head: JSON = {"v": VERSION, "run": run, "stream": stream, "seq": seq, "epoch": epoch, "at": at, "kind": kind}
    head["data"] = data
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as models and programs send it: stored as its escape
        text = json.dumps(head, separators=(",", ":"))
    return text


def decode(id_: int, body: str) -> Record:
    """The inverse of `encode`.

    Raises:
        ValueError: the text is not a stored event.
    """
    raw: JSON = json.loads(body)
    try:
        kind, data = raw["kind"], raw["data"]
        cls = KINDS.get(kind)
        event: Event
        if cls is None:
            event = Unknown(kind, data)
        else:
            event = cls(**{name: data[name] for name, _ in _FIELDS[cls] if name in data})
        return Record(id_, raw["run"], raw["stream"], raw["seq"], raw["epoch"], raw["at"], event)
    except (KeyError, TypeError) as e:
        raise ValueError(f"record {id_} is not a stored event: {e}") from e
