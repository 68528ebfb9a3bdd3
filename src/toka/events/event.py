"""One frozen class per kind of event. Fields are JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from toka.events.flow import ApprovalAnswered, ApprovalAsked, InstancesMade, OutputsMade
from toka.events.health import HealthChanged
from toka.events.steps import (
    StepDenied,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    StepLeft,
    StepPutBack,
    StepResolved,
    StepWaits,
)
from toka.events.workspace import BranchReturned, WorkspaceMade

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
    """A process took the run's lease and executes it from here.

    Attributes:
        host, pid: the process.
        epoch: of the lease.
        sandbox: how strongly it confines agents: full, reduced or none.
        rules: what its settings say of every run: {"policy", "limits"}, the operator's rules and the bounds of a run;
            empty in records of versions that noted none.
    """

    KIND: ClassVar[str] = "executor_attached"
    host: str
    pid: int
    epoch: int
    sandbox: str = "full"
    rules: JSON = field(default_factory=_json)


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
        by: what brought it about; see Trigger. Empty in records of older versions.
        until: of BACKOFF: wall-clock seconds at which it is started again; None = that is not known.
    """

    KIND: ClassVar[str] = "agent_state"
    state: str
    reason: str = ""
    why: str = ""
    by: str = ""
    until: float | None = None


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
    """The agent's sandbox runs.

    Attributes:
        policy: what it lets through, as the kernel was told it.
        notes: what differs from the spec, one sentence each.
        test: the self-test it passed: layers, Landlock's version, uid, how each limit is held.
    """

    KIND: ClassVar[str] = "sandbox_ready"
    policy: JSON
    notes: list[str] = field(default_factory=list[str])
    test: JSON = field(default_factory=_json)


@dataclass(frozen=True, slots=True)
class NetworkAttempted:
    """The agent tried to reach a host for the first time, or with a new outcome.

    Attributes:
        host: as asked for.
        port: TCP port; 0 when none was understood.
        allowed: whether it was let out.
        reason: the rule that allowed it, or why it was refused.
        address: what was connected to; empty when nothing was.
        bytes_up, bytes_down: of this first connection.
        rule: what of the grant or of the operator's rules refused it; empty when something else did.
        place: where the spec or the settings say so: `agents/a.yaml:12`; empty when it is not known.
        patch: the smallest change that would allow it; empty when none is known.
    """

    KIND: ClassVar[str] = "network"
    host: str
    port: int
    allowed: bool
    reason: str
    address: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
    rule: str = ""
    place: str = ""
    patch: str = ""


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
        why: the cause as a word for programs: exit, timeout, limit, malformed ...; of a task that goes on after a
            question about a step in doubt, the answer.
        by: what brought it about; see Trigger. Empty in records of older versions.
    """

    KIND: ClassVar[str] = "task_state"
    task: str
    state: str
    attempt: int = 0
    reason: str = ""
    report: JSON | None = None
    title: str = ""
    why: str = ""
    by: str = ""


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
    | NetworkAttempted
    | TaskStateChanged
    | StepWaits
    | StepIntent
    | StepDone
    | StepFailed
    | StepLeft
    | StepPutBack
    | StepDenied
    | StepInDoubt
    | StepResolved
    | ObjectiveChanged
    | HealthChanged
    | WorkspaceMade
    | BranchReturned
    | InstancesMade
    | OutputsMade
    | ApprovalAsked
    | ApprovalAnswered
    | Unknown
)

KINDS: Final[Mapping[str, type[Any]]] = {
    c.KIND: c
    for c in (
        RunCreated, ExecutorAttached, RunStateChanged, CommandApplied, AgentStateChanged, HoldPlaced, HoldLifted,
        SandboxReady, NetworkAttempted, TaskStateChanged, StepIntent, StepDone, StepFailed, StepLeft, StepDenied,
        StepInDoubt, StepPutBack, StepResolved, ObjectiveChanged, HealthChanged, InstancesMade, OutputsMade,
        ApprovalAsked, ApprovalAnswered, WorkspaceMade, BranchReturned, StepWaits,
    )
}  # fmt: skip
