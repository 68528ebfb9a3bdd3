"""`toka resolve`: a person answers whether a step in doubt happened."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from toka.app import submit_command
from toka.cli.attach import author, reason_of
from toka.cli.door import again, folded, open_run, read_settings, state_option
from toka.cli.output import say
from toka.cli.text import line_of
from toka.cli.view import is_meant
from toka.errors import ConfigError, NotFound, UsageError
from toka.events.event import StepResolved
from toka.events.record import Record
from toka.events.state import AgentState, RunState
from toka.journal.journal import Command, Reader

ANSWERS = ("happened", "not-happened", "abandon")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task")
@click.option("--happened", is_flag=True, help="It happened: go on without running it again.")
@click.option("--not-happened", is_flag=True, help="It did not happen: run it again.")
@click.option("--abandon", is_flag=True, help="Nobody can tell: the task has failed.")
@click.option("--agent", default=None, help="Whose task, when several agents ask about one of that name.")
@click.option("--reason", default="", help="Why, for the record.")
@state_option
def resolve(run_id: str, task: str, agent: str | None, reason: str, state: Path | None, **said: bool) -> int:
    """Answer the question of a TASK that waits because Toka was killed while a step of it ran.

    `toka show RUN` prints the question. The answer is recorded with your name; the run takes it up at once when it is
    being executed, else with `toka resume`.
    """
    answer = _one_of(said)
    by = (author(), reason_of(reason))
    settings = read_settings(state)
    with open_run(state, run_id) as (reader, run):
        records = reader.read(run)
        recorded = folded(run, records)
        asking = _asking(recorded, task, agent, records)
        if (before := _noted(reader.commands(run), recorded, asking, task)) is not None:
            raise _answered_already(asking, task, before)
        if answer == "happened" and (lost := _printed(reader, recorded, asking, task)):
            raise UsageError(
                f"{line_of(asking, 120)} leaves {lost} from what task {line_of(task, 120)} printed, and that is lost",
                hint="--not-happened runs it again; --abandon lets the task fail",
            )
        arguments = {"task": task, "answer": answer}
        number = asyncio.run(submit_command(settings, run, "resolve", agent=asking, arguments=arguments, by=by))
        first = _noted(reader.commands(run), recorded, asking, task)
        if first is not None and first.number != number:
            raise _answered_already(asking, task, first)
        lease = reader.lease(run)
    if lease is None or not lease.alive:
        say(f"noted: {asking}, task {task}: {answer}. Go on with: toka resume {run}{again(state)}")
    else:
        say(f"noted: {asking}, task {task}: {answer}. Process {lease.holder.pid} goes on with it")
    return 0


def _one_of(said: Mapping[str, bool]) -> str:
    """The answer that the command line gives. Raises UsageError."""
    given = [each for each in ANSWERS if said[each.replace("-", "_")]]
    if not given:
        raise UsageError("which answer?", hint="add --happened, --not-happened or --abandon")
    if len(given) > 1:
        raise UsageError(f"{' and '.join(f'--{each}' for each in given)} do not go together", hint="say one of them")
    return given[0]


@dataclass(frozen=True, slots=True)
class _Answer:
    """Who answered what, and why; `number` of the request, 0 when it was taken up."""

    answer: str
    author: str
    reason: str
    number: int = 0


def _noted(commands: Iterable[Command], run: RunState, agent: str, task: str) -> _Answer | None:
    """The first answer to an open question that no executor has taken up yet."""
    for command in commands:
        mine = command.verb == "resolve" and command.agent == agent and command.arguments.get("task") == task
        if mine and command.id not in run.commands:
            return _Answer(str(command.arguments.get("answer")), command.author, command.reason, command.id)
    return None


def _taken_up(records: Iterable[Record], task: str, agent: str | None) -> tuple[str, _Answer] | None:
    """The last answer about a task that was recorded, and whose task it is."""
    found = None
    for record in records:
        event = record.event
        if isinstance(event, StepResolved) and event.step.partition("/")[0] == task and is_meant(agent, record.stream):
            found = record.stream, _Answer(event.answer, event.author, event.reason)
    return found


def _printed(reader: Reader, run: RunState, agent: str, task: str) -> str:
    """The outputs that come from what a task prints; empty when none does, or this version cannot read the specs."""
    from toka.config.agent import AgentConfig  # only here

    created = run.created
    try:
        specs: list[dict[str, Any]] = json.loads(reader.blob(created.specs)) if created else []
        config = next(c for c in map(AgentConfig.from_json, specs) if c.name == agent.partition("[")[0])
    except (ConfigError, NotFound, StopIteration, ValueError, TypeError, AttributeError):
        return ""
    commands = [t.id for t in config.task_list(created.enabled if created else ()) if t.run is not None]
    if config.flow is None or not commands or commands[-1] != task:
        return ""
    return ", ".join(name for name, output in config.flow.outputs.items() if output.source == "stdout")


def _answered_already(agent: str, task: str, first: _Answer) -> UsageError:
    why = f": {first.reason}" if first.reason else ""
    said = f"{agent}, task {task}, was answered already: {first.answer} by {first.author or 'nobody'}{why}"
    return UsageError(line_of(said), hint="the first answer counts")


def _asking(run: RunState, task: str, agent: str | None, records: Sequence[Record]) -> str:
    """The agent whose task asks. Raises NotFound, UsageError."""
    asked = {name: state for name, state in run.agents.items() if _questions(state)}
    found = [name for name, state in asked.items() if task in _questions(state) and is_meant(agent, name)]
    if not found and (before := _taken_up(records, task, agent)) is not None:
        raise _answered_already(before[0], task, before[1])
    if not asked:
        flying = any(task in each.tasks and each.tasks[task].in_flight for each in run.agents.values())
        hint = f"it was in the middle of a step: if its process is gone, toka resume {run.id} asks first"
        raise NotFound(f"no task of run {run.id} waits for an answer", hint=hint if flying else None)
    if not found:
        listed = "; ".join(f"{name}: {', '.join(_questions(state))}" for name, state in asked.items())
        raise NotFound(f"task {task} of run {run.id} does not wait for an answer", hint=f"these do: {listed}")
    if len(found) > 1:
        raise UsageError(f"several agents ask about {task}: {', '.join(found)}", hint="say which one: --agent NAME")
    return found[0]


def _questions(agent: AgentState) -> list[str]:
    return [t.id for t in agent.tasks.values() if t.question]
