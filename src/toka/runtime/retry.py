"""What a second try changes: tasks that failed begin anew, what was skipped because of them waits again. Pure."""

from __future__ import annotations

from toka.events.event import TaskStateChanged
from toka.events.lifecycle import TaskStatus, Trigger
from toka.events.state import AgentState


def reopened(agent: AgentState, by: Trigger) -> tuple[TaskStateChanged, ...]:
    """The changes of its tasks with which an agent that failed can be executed again; what succeeded stays done.

    Repairs stay as they ended: the checks are made again, and what they find is mended in rounds of its own.
    """
    out: list[TaskStateChanged] = []
    for task in agent.tasks.values():
        if task.id.startswith("repair-"):
            continue
        if task.status in (TaskStatus.FAILED, TaskStatus.CANCELLED):
            new = TaskStatus.RETRY_WAIT
        elif task.status is TaskStatus.SKIPPED:
            new = TaskStatus.QUEUED
        else:
            continue
        out.append(TaskStateChanged(task.id, new.value, task.attempt, task.reason, by=by.value))
    return tuple(out)
