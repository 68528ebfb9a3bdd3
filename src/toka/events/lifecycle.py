"""The two transition tables, as data: which status may follow which, and what may bring it about.

Statuses are written by the process manager (agents) and the task executor (tasks); everybody else reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Trigger(StrEnum):
    """What brings a change of status about."""

    SCHEDULE = "schedule"
    """The plan, and how other agents ended."""
    WORK = "work"
    """What its own steps came to."""
    PERSON = "person"
    """A request or an answer."""
    CRASH = "crash"
    """An error that is no result of its work."""
    HEALTH = "health"
    """It works and gets nowhere."""
    LIMIT = "limit"
    """A bound on time."""
    RECOVERY = "recovery"
    """A process that took the run over."""


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
    RETRY_WAIT = "RETRY_WAIT"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    NEEDS_ATTENTION = "NEEDS_ATTENTION"
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

RETRIED: Final = frozenset({AgentStatus.FAILED, AgentStatus.BACKOFF, AgentStatus.CRASH_LOOP, AgentStatus.QUARANTINED})
"""How an agent stands that a person can have tried again."""

_A = AgentStatus
_P, _W, _S, _C, _H, _L = (
    Trigger.PERSON, Trigger.WORK, Trigger.SCHEDULE, Trigger.CRASH, Trigger.HEALTH, Trigger.LIMIT
)  # fmt: skip
_ONLY = {trigger: frozenset({trigger}) for trigger in Trigger}
_WORKED = frozenset({_W, _L, _C, _H})
AGENT_TRANSITIONS: Final[Mapping[AgentStatus, Mapping[AgentStatus, frozenset[Trigger]]]] = {
    _A.CONFIGURED: {_A.STARTING: _ONLY[_S], _A.SKIPPED: frozenset({_S, _L}), _A.STOPPED: _ONLY[_P]},
    _A.READY: {_A.STARTING: _ONLY[_S], _A.SKIPPED: frozenset({_S, _L}), _A.STOPPED: _ONLY[_P]},
    _A.STARTING: {
        _A.RUNNING: _ONLY[_W], _A.SKIPPED: _ONLY[_W], _A.FAILED: _WORKED, _A.BACKOFF: frozenset({_C, _L}),
        _A.STOPPING: _ONLY[_P],
    },
    _A.RUNNING: {
        _A.COMPLETED: _ONLY[_W], _A.FAILED: _WORKED, _A.SKIPPED: _ONLY[_W], _A.WAITING: _ONLY[_W],
        _A.PAUSING: _ONLY[_P], _A.BACKOFF: frozenset({_C, _H, _W}), _A.QUARANTINED: _ONLY[_H], _A.STOPPING: _ONLY[_P],
    },
    _A.WAITING: {_A.STARTING: _ONLY[_S], _A.FAILED: _ONLY[_L], _A.STOPPING: _ONLY[_P]},
    _A.PAUSING: {
        _A.PAUSED: frozenset({_W, _P}), _A.RUNNING: _ONLY[_P], _A.WAITING: _ONLY[_W], _A.COMPLETED: _ONLY[_W],
        _A.FAILED: _WORKED, _A.BACKOFF: frozenset({_C, _H, _W}), _A.QUARANTINED: _ONLY[_H], _A.STOPPING: _ONLY[_P],
    },
    _A.PAUSED: {_A.RUNNING: _ONLY[_P], _A.FAILED: _ONLY[_L], _A.BACKOFF: _ONLY[_C], _A.STOPPING: _ONLY[_P]},
    _A.STOPPING: {_A.STOPPED: frozenset({_P, _W})},
    _A.BACKOFF: {
        _A.STARTING: _ONLY[_S], _A.CRASH_LOOP: _ONLY[_C], _A.FAILED: frozenset({_C, _L}), _A.STOPPED: _ONLY[_P],
    },
    _A.CRASH_LOOP: {_A.READY: _ONLY[_P], _A.FAILED: _ONLY[_L], _A.STOPPED: _ONLY[_P]},
    _A.QUARANTINED: {_A.READY: _ONLY[_P], _A.FAILED: _ONLY[_L], _A.STOPPED: _ONLY[_P]},
    _A.COMPLETED: {},
    _A.FAILED: {_A.READY: _ONLY[_P]},
    _A.SKIPPED: {_A.READY: frozenset({_P, _S})},
    _A.STOPPED: {},
}  # fmt: skip
"""From each status the ones that may follow, and who may bring each about. An end is left by a person's retry only, and
with it by the agents that were skipped because of it. After a takeover STARTING follows any status that is no end."""

_T = TaskStatus
_AGAIN = frozenset({_P, _W})
_CANCEL = {_T.CANCELLED: frozenset({_P, _W}), _T.FAILED: _WORKED}
TASK_TRANSITIONS: Final[Mapping[TaskStatus, Mapping[TaskStatus, frozenset[Trigger]]]] = {
    _T.QUEUED: {_T.RUNNING: _ONLY[_W], _T.SKIPPED: frozenset({_P, _W, _L})},
    _T.RUNNING: {
        _T.SUCCEEDED: _ONLY[_W], _T.RETRY_WAIT: frozenset({_W, _H}), _T.AWAITING_APPROVAL: _ONLY[_W],
        _T.NEEDS_ATTENTION: _ONLY[_W], **_CANCEL,
    },
    _T.RETRY_WAIT: {_T.RUNNING: _ONLY[_W], **_CANCEL},
    _T.AWAITING_APPROVAL: {_T.RUNNING: _AGAIN, _T.SUCCEEDED: _ONLY[_W], _T.NEEDS_ATTENTION: _ONLY[_W], **_CANCEL},
    _T.NEEDS_ATTENTION: {_T.RUNNING: _AGAIN, _T.SUCCEEDED: _ONLY[_W], _T.AWAITING_APPROVAL: _ONLY[_W], **_CANCEL},
    _T.SUCCEEDED: {},
    _T.FAILED: {_T.RETRY_WAIT: frozenset({_P, _C})},
    _T.SKIPPED: {_T.QUEUED: frozenset({_P, _C})},
    _T.CANCELLED: {_T.RETRY_WAIT: frozenset({_P, _C})},
}  # fmt: skip
"""As above, for tasks: their ends are left when their agent is tried again."""


def agent_may(old: AgentStatus, new: AgentStatus, by: Trigger | None = None) -> bool:
    """Whether an agent may go from `old` to `new`, brought about by `by`; None = by anything.

    An executor that took the agent over starts it again, wherever it was.
    """
    if new is AgentStatus.STARTING and old not in AGENT_ENDS and by in (None, Trigger.RECOVERY):
        return True
    return _may(AGENT_TRANSITIONS[old].get(new), by)


def task_may(old: TaskStatus, new: TaskStatus, by: Trigger | None = None) -> bool:
    """Whether a task may go from `old` to `new`, brought about by `by`; None = by anything."""
    return _may(TASK_TRANSITIONS[old].get(new), by)


def _may(triggers: frozenset[Trigger] | None, by: Trigger | None) -> bool:
    return triggers is not None and (by is None or by in triggers)
