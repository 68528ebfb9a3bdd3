"""What a run left, and whether two runs left the same."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from toka.cli.crash_life import STATE, WORK
from toka.core.clock import SystemClock
from toka.core.effect import Effect
from toka.core.ids import RunId
from toka.events.event import StepDone, StepFailed, StepIntent
from toka.events.fold import fold_all
from toka.events.lifecycle import RUN_ENDS, RunStatus, TaskStatus
from toka.events.record import Record
from toka.events.state import RunState
from toka.journal.sqlite import SqliteReader

SKIPPED: Final = frozenset({".git", "__pycache__"})
"""Folders that are not compared: commits and compiled files hold the time at which they were made."""
_TOOK: Final = re.compile(rb"\b\d+(\.\d+)? ?(s|ms|us|seconds?)\b")
ASKING: Final = frozenset({Effect.ONCE.value, Effect.CHECKABLE.value, Effect.WORKSPACE.value})
"""Effects of which a person may be asked after a crash."""


@dataclass(frozen=True, slots=True)
class Left:
    """What a run left.

    Attributes:
        status: of the run; None when it was killed before it began.
        facts: what is compared: `agent fixer` -> COMPLETED, `objective 1 of fixer` -> verified, `file a.txt` ->
            its mode and hash.
        open: agents that have not ended.
        flying: steps that were in flight: (agent, task) -> effect.
        asked: tasks that wait for an answer about a step in doubt, as (agent, task).
        ended: keys of steps whose end is recorded.
        once: keys of steps that must not run twice.
    """

    status: RunStatus | None
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    open: frozenset[str] = frozenset()
    flying: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    asked: frozenset[tuple[str, str]] = frozenset()
    ended: frozenset[str] = frozenset()
    once: frozenset[str] = frozenset()

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.status in RUN_ENDS


def left_in(folder: Path) -> Left:
    """What the run of a folder left there. Raises JournalError."""
    if not (folder / STATE).is_dir():
        return Left(None)
    with closing(SqliteReader(folder / STATE, SystemClock())) as reader:
        runs = reader.runs()
        if not runs:
            return Left(None)
        records = reader.read(runs[0])
        state = fold_all(runs[0], records)
        facts = {**dict(_facts(state, reader)), **dict(_files(folder / WORK))}
    return _left(runs[0], state, records, facts)


def _left(run: RunId, state: RunState, records: Sequence[Record], facts: Mapping[str, str]) -> Left:
    assert state.id == run
    intents = {(r.stream, r.event.step): r.event for r in records if isinstance(r.event, StepIntent)}
    ends = {(r.stream, r.event.step) for r in records if isinstance(r.event, StepDone | StepFailed)}
    flying = {
        (agent.name, task.id): intents[agent.name, step].effect
        for agent in state.agents.values()
        for task in agent.tasks.values()
        for step in task.in_flight
        if (agent.name, step) in intents
    }
    asked = {
        (agent.name, task.id)
        for agent in state.agents.values()
        for task in agent.tasks.values()
        if task.status is TaskStatus.NEEDS_ATTENTION and task.question
    }
    return Left(
        state.status,
        facts,
        frozenset(agent.name for agent in state.agents.values() if not agent.ended),
        flying,
        frozenset(asked),
        frozenset(intents[place].key for place in ends if place in intents),
        frozenset(intent.key for intent in intents.values() if intent.effect == Effect.ONCE.value),
    )


def _facts(state: RunState, reader: SqliteReader) -> Iterator[tuple[str, str]]:
    yield "the run", state.status.value
    for agent in state.agents.values():
        name = agent.name
        yield f"agent {name}", agent.status.value
        for task in agent.tasks.values():
            yield f"task {task.id} of {name}", task.status.value
        for objective in agent.objectives.values():
            yield f"objective {objective.number} of {name}", objective.status.value
        if agent.outputs is not None:
            values: dict[str, Any] = (
                json.loads(reader.blob(agent.outputs.blob)) if agent.outputs.blob else agent.outputs.values
            )
            for output, value in values.items():
                yield f"output {output} of {name}", json.dumps(value, sort_keys=True, ensure_ascii=False)


def agent_of(fact: str) -> str:
    """Whose fact it is: the agent's name; empty for the run and for files."""
    kind, _, rest = fact.partition(" ")
    if kind == "agent":
        return rest
    return rest.rpartition(" of ")[2] if kind in ("task", "objective", "output") else ""


def _files(work: Path) -> Iterator[tuple[str, str]]:
    """Each file of a workspace: its mode, and a hash of what is in it or where it leads."""
    for folder, names, files in os.walk(work):
        names[:] = sorted(set(names) - SKIPPED)
        for name in sorted([*files, *names]):
            path = Path(folder, name)
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                content = f"-> {os.readlink(path)}"  # noqa: PTH115 - as it is written
            elif stat.S_ISREG(found.st_mode):
                content = _hash(path)
            else:
                content = ""
            yield f"file {path.relative_to(work)}", f"{stat.filemode(found.st_mode)} {content}"


def _hash(path: Path) -> str:
    """Of what is in a file; how long something took, as test programs print it, counts as the same."""
    try:
        return hashlib.sha256(_TOOK.sub(b"", path.read_bytes())).hexdigest()
    except OSError as e:
        return f"cannot be read: {e.strerror}"


def differences(whole: Left, left: Left, loose: frozenset[str]) -> list[str]:
    """How a run that was killed and resumed ended otherwise than one that was not, one sentence each.

    Args:
        whole: the one that was not.
        left: the other one. Of its agents that wait, or wait for those, nothing is demanded but that.
        loose: facts that differ between two runs that nobody disturbed.
    """
    waits = bool(left.asked)
    out: list[str] = []
    for fact in sorted({*whole.facts, *left.facts} - loose):
        whose = agent_of(fact)
        if waits and (not whose or whose in left.open):  # what an agent that waits has not done yet, is not there
            continue
        was, now = whole.facts.get(fact), left.facts.get(fact)
        if was != now:
            out.append(_difference(fact, was, now))
    if waits and left.status is not RunStatus.WAITING:
        out.append(f"the run is {left.status} although a person must answer")
    return out


def _difference(fact: str, was: str | None, now: str | None) -> str:
    if fact.startswith("file "):
        word = "is missing" if now is None else "is there" if was is None else "differs"
        return f"{fact} {word}"
    return f"{fact} is {now or 'not there'}, undisturbed {was or 'not there'}"
