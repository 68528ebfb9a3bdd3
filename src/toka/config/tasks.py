"""The tasks of an agent: as written, and resolved to an ordered list with ids."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pydantic import Field

from toka.config.fields import (
    MAX_ITEMS,
    Duration,
    EffectWord,
    Line,
    Name,
    Part,
    Priority,
    PriorityWord,
    Prose,
    SmallCount,
)
from toka.core.effect import Effect
from toka.core.ids import TaskId


class TaskEntry(Part):
    """One task as the spec writes it."""

    id: Name | None = Field(default=None, description="Its id. Without it: task-N by its place, GROUP-N in a group.")
    description: Prose | None = Field(default=None, description="What to do, in prose.")
    priority: PriorityWord = Field(default=Priority.MEDIUM, description="How urgent it is.")
    run: Prose | None = Field(default=None, description="A shell command that is the whole task; no model is asked.")
    depends_on: tuple[Name, ...] = Field(
        default=(), max_length=MAX_ITEMS, description="Ids of tasks that must be done first."
    )
    timeout: Duration | None = Field(default=None, description="How long it may take. Else the settings decide.")
    retries: SmallCount | None = Field(
        default=None, description="How often it is tried again. Else the settings decide."
    )
    effect: EffectWord | None = Field(default=None, description="What a crash in the middle of its command means.")
    estimated_duration: Line | None = Field(default=None, description="A person's estimate; shown, not enforced.")


class Tasks(Part):
    """What the agent does, in order."""

    default: tuple[TaskEntry, ...] = Field(default=(), max_length=MAX_ITEMS, description="Tasks that are always done.")
    conditional: dict[Name, tuple[TaskEntry, ...]] = Field(
        default={}, max_length=MAX_ITEMS, description="Groups of tasks that are done when the group is enabled."
    )


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task, resolved.

    Attributes:
        id: unique among the tasks of the agent.
        description: what to do; of a task that only has a command, the command.
        priority: how urgent it is.
        run: a shell command that is the whole task; None when a model does it.
        depends_on: tasks that must have succeeded before.
        timeout_s: seconds it may take; None = the settings' value.
        retries: how often it is tried again; None = the settings' value.
        effect: what a crash in the middle of `run` means; None = the default of a command.
        group: the conditional group it belongs to; None = a default task.
        estimated_duration: as written; None when not given.
    """

    id: TaskId
    description: str
    priority: Priority = Priority.MEDIUM
    run: str | None = None
    depends_on: tuple[TaskId, ...] = ()
    timeout_s: float | None = None
    retries: int | None = None
    effect: Effect | None = None
    group: str | None = None
    estimated_duration: str | None = None


def resolve_tasks(tasks: Tasks, enabled: Collection[str] | None) -> tuple[TaskSpec, ...]:
    """The default tasks, then those of the enabled groups, in the order of the spec.

    Args:
        tasks: the section as written.
        enabled: names of groups; names that do not exist are ignored. None = all groups.
    """
    out = [_resolved(entry, "task", None, n) for n, entry in enumerate(tasks.default, 1)]
    for group, entries in tasks.conditional.items():
        if enabled is None or group in enabled:
            out += [_resolved(entry, group, group, n) for n, entry in enumerate(entries, 1)]
    return tuple(out)


def _resolved(entry: TaskEntry, prefix: str, group: str | None, number: int) -> TaskSpec:
    return TaskSpec(
        id=TaskId(entry.id or f"{prefix}-{number}"),
        description=entry.description or entry.run or "",
        priority=entry.priority,
        run=entry.run,
        depends_on=tuple(TaskId(t) for t in entry.depends_on),
        timeout_s=entry.timeout,
        retries=entry.retries,
        effect=entry.effect,
        group=group,
        estimated_duration=entry.estimated_duration,
    )
