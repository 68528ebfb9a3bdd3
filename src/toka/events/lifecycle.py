"""The two transition tables, as data: which status may follow which.

Statuses are written by the process manager (agents) and the agent executor (tasks); everybody else reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class RunStatus(StrEnum):
    """How a run stands. INTERRUPTED is never written: it is RUNNING without a live executor."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    INTERRUPTED = "INTERRUPTED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class AgentStatus(StrEnum):
    """How an agent stands."""

    CONFIGURED = "CONFIGURED"
    READY = "READY"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    BACKOFF = "BACKOFF"
    CRASH_LOOP = "CRASH_LOOP"
    QUARANTINED = "QUARANTINED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    STOPPED = "STOPPED"


class TaskStatus(StrEnum):
    """How a task stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    RETRY_WAIT = "RETRY_WAIT"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    NEEDS_ATTENTION = "NEEDS_ATTENTION"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"


class ObjectiveStatus(StrEnum):
    """How far an objective is known to be met."""

    PENDING = "pending"
    CLAIMED = "claimed"
    VERIFIED = "verified"
    FAILED = "failed"


RUN_ENDS: Final = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.STOPPED})
AGENT_ENDS: Final = frozenset({AgentStatus.COMPLETED, AgentStatus.FAILED, AgentStatus.SKIPPED, AgentStatus.STOPPED})
TASK_ENDS: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.CANCELLED})

_A = AgentStatus
AGENT_TRANSITIONS: Final[Mapping[AgentStatus, frozenset[AgentStatus]]] = {
    _A.CONFIGURED: frozenset({_A.READY, _A.WAITING, _A.STARTING, _A.PAUSED, _A.STOPPED, _A.SKIPPED}),
    _A.READY: frozenset({_A.STARTING, _A.WAITING, _A.PAUSED, _A.STOPPED, _A.SKIPPED}),
    _A.STARTING: frozenset({_A.RUNNING, _A.BACKOFF, _A.PAUSING, _A.STOPPING, _A.FAILED, _A.SKIPPED}),
    _A.RUNNING: frozenset(
        {_A.WAITING, _A.PAUSING, _A.STOPPING, _A.BACKOFF, _A.QUARANTINED, _A.COMPLETED, _A.FAILED, _A.SKIPPED}
    ),
    _A.WAITING: frozenset({_A.READY, _A.STARTING, _A.RUNNING, _A.PAUSING, _A.PAUSED, _A.STOPPING, _A.STOPPED,
                           _A.SKIPPED, _A.FAILED}),
    _A.PAUSING: frozenset({_A.PAUSED, _A.RUNNING, _A.WAITING, _A.STOPPING, _A.BACKOFF, _A.COMPLETED, _A.FAILED,
                           _A.SKIPPED}),
    _A.PAUSED: frozenset({_A.READY, _A.STARTING, _A.RUNNING, _A.STOPPING, _A.STOPPED, _A.SKIPPED}),
    _A.STOPPING: frozenset({_A.STOPPED}),
    _A.BACKOFF: frozenset({_A.STARTING, _A.CRASH_LOOP, _A.PAUSED, _A.STOPPED, _A.FAILED, _A.SKIPPED}),
    _A.CRASH_LOOP: frozenset({_A.STARTING, _A.FAILED, _A.STOPPED}),
    _A.QUARANTINED: frozenset({_A.STARTING, _A.FAILED, _A.STOPPED}),
    _A.COMPLETED: frozenset(),
    _A.FAILED: frozenset(),
    _A.SKIPPED: frozenset(),
    _A.STOPPED: frozenset(),
}  # fmt: skip
"""From each status, the ones that may follow. After a takeover STARTING may follow any status that is not an end."""

_T = TaskStatus
_OPEN = frozenset({_T.SUCCEEDED, _T.FAILED, _T.CANCELLED})
TASK_TRANSITIONS: Final[Mapping[TaskStatus, frozenset[TaskStatus]]] = {
    _T.QUEUED: frozenset({_T.RUNNING, _T.SKIPPED, _T.CANCELLED}),
    _T.RUNNING: _OPEN | {_T.WAITING, _T.RETRY_WAIT, _T.AWAITING_APPROVAL, _T.NEEDS_ATTENTION, _T.CANCELLING},
    _T.WAITING: _OPEN | {_T.RUNNING, _T.CANCELLING},
    _T.RETRY_WAIT: frozenset({_T.RUNNING, _T.FAILED, _T.CANCELLING, _T.CANCELLED}),
    _T.AWAITING_APPROVAL: _OPEN | {_T.RUNNING, _T.CANCELLING},
    _T.NEEDS_ATTENTION: _OPEN | {_T.RUNNING, _T.CANCELLING},
    _T.CANCELLING: frozenset({_T.CANCELLED, _T.FAILED}),
    _T.SUCCEEDED: frozenset(),
    _T.FAILED: frozenset(),
    _T.SKIPPED: frozenset(),
    _T.CANCELLED: frozenset(),
}


def agent_may(old: AgentStatus, new: AgentStatus) -> bool:
    """Whether an agent may go from `old` to `new`. An executor that took the agent over starts it again."""
    return new in AGENT_TRANSITIONS[old] or (new is AgentStatus.STARTING and old not in AGENT_ENDS)


def task_may(old: TaskStatus, new: TaskStatus) -> bool:
    """Whether a task may go from `old` to `new`."""
    return new in TASK_TRANSITIONS[old]
