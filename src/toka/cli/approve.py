"""`toka approve` and `toka deny`: a person answers an agent's question."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from toka.app import submit_command
from toka.cli.attach import author, reason_of
from toka.cli.door import again, folded, open_run, read_settings, state_option
from toka.cli.ids import match_name
from toka.cli.output import emit_json, say
from toka.cli.questions import ID, about_lines, is_late, late_text, question_json, questions_of
from toka.cli.text import line_of, moment, some
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import NotFound, UsageError
from toka.events.event import ExecutorAttached
from toka.events.flow import ApprovalAnswered
from toka.events.state import AgentState, ApprovalState, RunState
from toka.journal.journal import Command
from toka.journal.sqlite import SqliteReader
from toka.orchestration.approvals import VERBS

TAKEN_S: Final = 5.0
"""How long a living executor is waited for until it has taken the answer up, in seconds."""
LOOK_S: Final = 0.05

Question = tuple[str, ApprovalState]
"""An agent's name and what it asks."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What the command line says: the answer, and which question it is for."""

    verb: str
    agent: str | None
    id: str
    reason: str


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)
    command = click.option(
        "--id", "id_", default="", metavar="ID", help="This question only: its id or how it begins."
    )(command)
    return click.argument("run_id", metavar="RUN")(click.argument("agent", required=False)(state_option(command)))


@click.command()
@_options
@click.option("--reason", default="", help="Why, for the record.")
def approve(run_id: str, agent: str | None, id_: str, reason: str, state: Path | None, as_json: bool) -> int:  # noqa: FBT001
    """Agree to what an agent asks. AGENT can be left out when one question waits.

    `toka show RUN` prints the questions. The answer is recorded with your name and counts for this question alone; the
    run takes it up at once when it is being executed, else with `toka resume`.
    """
    return _answer(_Said("approve", agent, id_, reason), run_id, state, as_json=as_json)


@click.command()
@_options
@click.option("--reason", required=True, help="Why, for the record and for the agent.")
def deny(run_id: str, agent: str | None, id_: str, reason: str, state: Path | None, as_json: bool) -> int:  # noqa: FBT001
    """Refuse what an agent asks. AGENT can be left out when one question waits.

    An agent that asked before it starts is stopped; one that asked about a call is told, and goes on without it.
    """
    if not reason.strip():
        raise UsageError("--reason is empty", hint="say why: the agent is told")
    return _answer(_Said("deny", agent, id_, reason), run_id, state, as_json=as_json)


def _answer(said: _Said, run_id: str, state: Path | None, *, as_json: bool) -> int:
    settings = read_settings(state)
    reason_of(said.reason)
    with open_run(state, run_id) as (reader, run):
        recorded = folded(run, reader.read(run))
        now = SystemClock().now()
        name, question = _find(recorded, said, _given(reader.commands(run), recorded), now)
        if not as_json:
            say(f"{line_of(name, 120)} asks: {line_of(question.question)}")
            for line in about_lines(question, now, None):
                say(f"  {line}")
        arguments = {"approvals": [question.id], "at": now}
        by = (author(), said.reason)
        number = asyncio.run(submit_command(settings, run, said.verb, agent=name, arguments=arguments, by=by))
        first = _given(reader.commands(run), recorded)[question.id]
        if first.id != number:
            raise _answered_already(name, _as_answered(question, first))
        pid = _taken_up(reader, run, (name, question), recorded.last)
    resume = f"toka resume {run}{again(state)}"
    answer = VERBS[said.verb]
    if as_json:
        emit_json(
            {
                "type": "answer",
                "run_id": run,
                "agent": name,
                "answer": answer,
                "author": by[0],
                "reason": said.reason,
                "question": question_json(question),
                "executor": pid,
                "next": None if pid else resume,
            }
        )
    elif pid:
        say(f"{answer}: process {pid} goes on with it")
    else:
        say(f"noted: {answer}. Go on with: {resume}")
    return 0


def _taken_up(reader: SqliteReader, run: RunId, asked: Question, after: int) -> int | None:
    """The process that took the answer up; None when there is none, or it did not in time."""
    name, question = asked
    end = time.monotonic() + TAKEN_S
    while True:
        lease = reader.lease(run)  # before the records, so that an end is not taken for a death
        events = [record.event for record in reader.read(run, after=after, stream=name)]
        if any(isinstance(e, ApprovalAnswered) and e.approval == question.id for e in events):
            last = reader.last_of(run, "", ExecutorAttached.KIND)
            return last.event.pid if last is not None and isinstance(last.event, ExecutorAttached) else None
        if lease is None or not lease.alive or time.monotonic() > end:
            return None
        time.sleep(LOOK_S)


def _given(commands: list[Command], run: RunState) -> dict[str, Command]:
    """The first answer to each question of those that no executor has taken up yet."""
    out: dict[str, Command] = {}
    for command in commands:
        if command.verb in VERBS and command.id not in run.commands:
            for id_ in command.arguments.get("approvals", ()):
                out.setdefault(str(id_), command)
    return out


def _find(run: RunState, said: _Said, given: dict[str, Command], now: float) -> Question:
    """The question that is to be answered. Raises NotFound, UsageError."""
    only = match_name(run.agents, said.agent) if said.agent is not None else None
    asked = [
        (name, each)
        for name, each in questions_of(run)
        if only in (None, name) and (not said.id or each.id.startswith(said.id))
    ]
    found = [(n, q) for n, q in asked if q.id not in given and not is_late(q, now)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "; ".join(f"{n} --id {q.id[:ID]}: {line_of(q.question, 80)}" for n, q in found)
        raise UsageError(f"{some(len(found), 'question')} wait for an answer", hint=f"say which one: {listed}")
    for name, question in asked:
        if question.id in given:
            raise _answered_already(name, _as_answered(question, given[question.id]))
    if asked:
        name, question = asked[-1]
        raise _too_late(name, late_text(question))
    raise _none(run, only, said.id)


def _none(run: RunState, only: str | None, id_: str) -> Exception:
    """Why there is nothing to answer."""
    settled = [
        (agent.name, each)
        for agent in run.agents.values()
        for each in agent.approvals.values()
        if each.answer and only in (None, agent.name) and each.id.startswith(id_)
    ]
    if settled and (only is not None or id_):
        name, question = settled[-1]
        if question.answer == "unanswered":
            return _too_late(name, f"{question.in_words}, until {moment(question.expires_at)}")
        return _answered_already(name, question)
    waiting = "; ".join(f"{name}: {line_of(each.question, 80)}" for name, each in questions_of(run)[:8])
    hint = f"these wait: {waiting}" if waiting else None
    if only is None:
        which = f" with the id {line_of(id_, 40)}" if id_ else ""
        return NotFound(f"no question of run {run.id}{which} waits for an answer", hint=hint)
    state = run.agents.get(only) or AgentState(only)
    return NotFound(f"agent {only} asks nothing; it is {state.status.value}", hint=hint)


def _as_answered(question: ApprovalState, command: Command) -> ApprovalState:
    answer, author_ = VERBS[command.verb], command.author
    return ApprovalState(question.id, question.task, question.question, answer=answer, author=author_,
                         reason=command.reason)  # fmt: skip


def _answered_already(name: str, question: ApprovalState) -> UsageError:
    said = f"the question of {line_of(name, 120)} was answered already: {line_of(question.in_words)}"
    return UsageError(said, hint="the first answer counts")


def _too_late(name: str, why: str) -> UsageError:
    said = f"the question of {line_of(name, 120)} takes no answer any more: {why}"
    return UsageError(said, hint="it counts as unanswered, not as denied")
