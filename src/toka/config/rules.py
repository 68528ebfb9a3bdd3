"""Rules that one spec must keep and that the shape of its sections cannot say (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from toka.config.codes import Severity
from toka.config.diagnostics import closest, did_you_mean, one_of, quoted
from toka.config.faults import place_of
from toka.config.graph import cycle_text, find_cycles
from toka.config.nodes import Node
from toka.config.parts import Reporting, Security
from toka.config.source import Source
from toka.config.tasks import Tasks, TaskSpec, resolve_tasks
from toka.core.capability import ARGUMENTS, Capability, CapabilityError
from toka.core.units import format_duration

FREQUENCIES: Final = ("real-time", "hourly", "daily", "weekly", "on-milestone", "on-completion")
METRIC_TYPES: Final = ("gauge", "counter", "histogram")


@dataclass(frozen=True, slots=True)
class Problem:
    """What a rule found, by the path in the canonical spec.

    `severity` None = the code's own. `text` is the piece of the value that is meant, after `skip` others like it;
    empty = all of it.
    """

    code: str
    message: str
    path: tuple[str | int, ...]
    label: str = ""
    help: str | None = None
    severity: Severity | None = None
    text: str = ""
    skip: int = 0

    def add_to(self, source: Source, root: Node | None) -> None:
        """Records this as a finding of the source. `root` gives the place; None = unknown."""
        at = place_of(root, self.path)
        at = source.within(at, self.text, self.skip) if self.text else at
        source.add(self.code, self.message, at, label=self.label, help=self.help, severity=self.severity)


REQUESTS: Final = ("security", "capabilities_required")
"""Where the requested capabilities are; every problem below this path is an error."""
RESERVED: Final = re.compile(r"(repair|objective)-[0-9]+")
"""Ids under which the runtime records repairs and the checks of objectives (fullmatch)."""


def task_problems(tasks: Tasks, limit_s: float | None) -> Iterator[Problem]:
    """Tasks that are missing, say nothing, share an id, wait in vain or for themselves, or outlast their agent.

    Args:
        tasks: the section.
        limit_s: seconds the agent may run; None = no limit of its own.
    """
    specs = resolve_tasks(tasks, None)
    paths = _task_paths(tasks)
    if not tasks.default:
        help_text = "add one to tasks.default; in a team file: goal, run or tasks"
        said = "the agent has nothing to do" + (" unless a group is enabled" if tasks.conditional else "")
        yield Problem("TK2009", said, ("tasks",), help=help_text)
    groups: dict[str, str | None] = {}
    entries = (*tasks.default, *(entry for group in tasks.conditional.values() for entry in group))
    for entry, path in zip(entries, paths, strict=True):
        if entry.description is None and entry.run is None:
            yield Problem("TK2001", "a task needs a description or a command to run", path)
    for spec, path in zip(specs, paths, strict=True):
        if spec.id in groups:
            help_text = "ids that are not given are task-N by place, GROUP-N in a group"
            yield Problem("TK2007", f"two tasks have the id {quoted(spec.id)}", (*path, "id"), help=help_text)
        if RESERVED.fullmatch(spec.id):
            help_text = "repairs and checks are recorded under such names; choose another id or group"
            yield Problem("TK2013", f"the task id {quoted(spec.id)} is reserved", (*path, "id"), help=help_text)
        groups.setdefault(spec.id, spec.group)
    for spec, path in zip(specs, paths, strict=True):
        yield from _edge_problems(spec, path, groups)
        if limit_s is not None and spec.timeout_s is not None and spec.timeout_s > limit_s:
            message = f"the task may take {format_duration(spec.timeout_s)}, its agent {format_duration(limit_s)}"
            yield Problem("TK5002", message, (*path, "timeout"))
    by_id = {spec.id: (spec, path) for spec, path in zip(specs, paths, strict=True)}
    for cycle in find_cycles({s.id: s.depends_on for s in specs}):
        first, path = by_id[cycle[0]]
        place = (*path, "depends_on", first.depends_on.index(cycle[1]))
        yield Problem("TK3005", f"circular tasks: {cycle_text(cycle)}", place)


def _edge_problems(spec: TaskSpec, path: tuple[str | int, ...], groups: dict[str, str | None]) -> Iterator[Problem]:
    for index, target in enumerate(spec.depends_on):
        place = (*path, "depends_on", index)
        if target not in groups:
            message = f"task {quoted(spec.id)} depends on {quoted(target)}, which does not exist"
            yield Problem("TK3004", message, place, help=did_you_mean(target, groups))
        elif groups[target] not in (None, spec.group):
            message = f"task {quoted(target)} exists only when the group {quoted(groups[target] or '')} is enabled"
            yield Problem("TK3007", message, place)


def _task_paths(tasks: Tasks) -> list[tuple[str | int, ...]]:
    """The path of each task, in the order of `resolve_tasks`."""
    out: list[tuple[str | int, ...]] = [("tasks", "default", n) for n in range(len(tasks.default))]
    for group, entries in tasks.conditional.items():
        out += [("tasks", "conditional", group, n) for n in range(len(entries))]
    return out


def security_problems(security: Security) -> Iterator[Problem]:
    """Arguments of capabilities that are malformed, and a sandbox that is not asked for."""
    for index, request in enumerate(security.capabilities_required):
        for argument, items in request.arguments.items():
            if argument not in ARGUMENTS:
                path = (*REQUESTS, index, "arguments", argument)
                near = closest(argument, ARGUMENTS, 0.6)
                told = f'did you mean "{near}"?' if near else f"known: {one_of(ARGUMENTS)}"
                yield Problem("TK2003", f"unknown argument {quoted(argument)}", path, help=told)
                continue
            for place, item in enumerate(items):
                try:
                    Capability(request.name, **{argument: (item,)})
                except CapabilityError as error:
                    path = (*REQUESTS, index, "arguments", argument, place)
                    yield Problem("TK4003", str(error), path)
    if not security.sandbox:
        message = "the agent asks to run without a sandbox; it gets one unless the settings allow that"
        told = "remove it; or set allow_unsandboxed in your own config.toml"
        yield Problem("TK4005", message, ("security", "sandbox"), help=told)


def reporting_problems(reporting: Reporting) -> Iterator[Problem]:
    """Words of `reporting` that drive nothing."""
    if reporting.frequency is not None and reporting.frequency not in FREQUENCIES:
        yield _unknown("frequency", reporting.frequency, FREQUENCIES, ("reporting", "frequency"))
    for index, metric in enumerate(reporting.metrics):
        if metric.type not in METRIC_TYPES:
            yield _unknown("metric type", metric.type, METRIC_TYPES, ("reporting", "metrics", index, "type"))


def model_problems(model: str | None) -> Iterator[Problem]:
    """A model name that cannot be one."""
    if model is not None and (not model.isprintable() or model != model.strip() or not model):
        yield Problem(
            "TK6001", f"{quoted(model)} is no model name", ("model",), label="expected PROVIDER:MODEL or auto"
        )


def _unknown(kind: str, word: str, words: tuple[str, ...], path: tuple[str | int, ...]) -> Problem:
    message = f"unknown {kind} {quoted(word)}; it has no effect"
    return Problem("TK2004", message, path, f"expected {one_of(words)}", did_you_mean(word, words), "warning")
