"""`toka pause`, `toka stop` and `toka retry`: a person steers the agents of a run from another terminal."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click

from toka.app import open_runtime, submit_command
from toka.cli.attach import author, reason_of
from toka.cli.door import again, folded, open_run, read_settings, state_option
from toka.cli.explain_state import in_flight
from toka.cli.ids import match_name
from toka.cli.output import emit_json, say
from toka.cli.text import line_of, some
from toka.config.settings import Settings
from toka.core.ids import RunId
from toka.errors import RunBusy, UsageError
from toka.events.fold import fold_all
from toka.events.lifecycle import AgentStatus, RunStatus
from toka.events.state import AgentState, RunState, with_unbegun
from toka.journal.sqlite import SqliteReader
from toka.orchestration.engine import OrchestrationEngine

TAKEN_S: Final = 5.0
"""How long a living executor is waited for until the request has its effect, in seconds."""
STOP_S: Final = 15.0
"""The same for a stop: a step in flight has ten seconds to end by itself."""
LOOK_S: Final = 0.05
SHOWN: Final = 8
"""Agents that are named."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A request.

    Attributes:
        name: as it is submitted.
        done: whether an agent is where the request wants it.
        past: what is said of such an agent.
        within_s: how long to wait for it.
        arguments: of the request.
        named: whether an agent that is there is named; the others had ended before.
    """

    name: str
    done: Callable[[AgentState], bool]
    past: str
    within_s: float = TAKEN_S
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    named: Callable[[AgentState], bool] = lambda agent: not agent.ended


_AT_WORK: Final = (AgentStatus.STARTING, AgentStatus.RUNNING, AgentStatus.PAUSING)


def _rests(agent: AgentState) -> bool:
    """Whether it takes no step; one with instances takes none itself."""
    return agent.ended or ("person" in agent.holds and (agent.made is not None or agent.status not in _AT_WORK))


PAUSE: Final = Verb("pause", _rests, "paused")
STOP: Final = Verb("stop", lambda a: a.ended, "stopped", STOP_S, named=lambda a: a.status is AgentStatus.STOPPED)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)
    command = click.option("--reason", default="", help="Why, for the record.")(command)
    return click.argument("run_id", metavar="RUN")(click.argument("agent", required=False)(state_option(command)))


@click.command()
@click.option("--now", is_flag=True, help="Hold what is in flight, too: commands stand still.")
@_options
def pause(run_id: str, agent: str | None, reason: str, state: Path | None, *, now: bool, as_json: bool) -> int:
    """Let an agent, or all of a run, take no further step until `toka resume`.

    What is in flight is finished and recorded first; with --now its commands stand still where they are. A pause
    survives the process: it counts until it is lifted.
    """
    verb = replace(PAUSE, arguments={"now": True}) if now else PAUSE
    return _steer(verb, run_id, agent, reason, state, as_json=as_json)


@click.command()
@_options
def stop(run_id: str, agent: str | None, reason: str, state: Path | None, *, as_json: bool) -> int:
    """End an agent, or all of a run, for good.

    A step in flight has ten seconds to end by itself, then it is cancelled. What needs a stopped agent is skipped.
    """
    return _steer(STOP, run_id, agent, reason, state, as_json=as_json)


def _steer(verb: Verb, run_id: str, agent: str | None, reason: str, state: Path | None, *, as_json: bool) -> int:
    settings = read_settings(state)
    by = (author(), reason_of(reason))
    with open_run(state, run_id) as (reader, run):
        recorded = with_unbegun(folded(run, reader.read(run)), agent or "")
        only = match_name(recorded.agents, agent) if agent is not None else ""
        said, pid, taken = _nothing_to_do(verb, recorded, only), None, True
        if said is None:
            number = asyncio.run(submit_command(settings, run, verb.name, by=by, agent=only, arguments=verb.arguments))
            pid, recorded = effect(reader, run, verb, only, number)
            taken = number in recorded.commands
            if pid is None and verb is STOP and not recorded.ended:  # nobody executes it: it is brought to its end here
                recorded = asyncio.run(_settled(settings, run)) or recorded
    whom = f" {shlex.quote(only)}" if only and verb is not STOP else ""
    resume = None if recorded.ended else f"toka resume {run}{whom}{again(state)}"
    about = meant(recorded, only)
    if as_json:
        request_json(verb, recorded, about, (by, pid, resume))
        return 0
    for line in [said] if said is not None else lines(verb, about, pid, taken=taken):
        say(line)
    if resume is not None and (verb is not STOP or pid is None):
        say(f"go on with: {resume}")
    return 0


def request_json(
    verb: Verb, run: RunState, about: Sequence[AgentState], how: tuple[tuple[str, str], int | None, str | None]
) -> None:
    """Prints what became of a request; `how` is (author, reason), the executor's process id, and how to go on."""
    (author_, reason), pid, resume = how
    emit_json(
        {"type": "request", "verb": verb.name, "run_id": run.id, "state": run.status.value, "author": author_,
         "reason": reason, "agents": {a.name: a.status.value for a in about}, "executor": pid, "next": resume}
    )  # fmt: skip


def _nothing_to_do(verb: Verb, run: RunState, only: str) -> str | None:
    """What is said when everything is as it was asked for already. Raises UsageError where it never can be."""
    if only and run.agents[only].ended:
        status = run.agents[only].status
        if verb is STOP and status is AgentStatus.STOPPED:
            return f"{only} is stopped already"
        raise UsageError(f"agent {only} has ended ({status.value}); there is nothing to {verb.name}")
    if run.ended:
        if verb is STOP and run.status is RunStatus.STOPPED:
            return f"run {run.id} is stopped already"
        raise UsageError(f"run {run.id} has ended ({run.status.value}); there is nothing to {verb.name}")
    if all(verb.done(agent) for agent in meant(run, only)):
        return f"{only or f'run {run.id}'} is {verb.past} already"
    return None


def meant(run: RunState, only: str) -> list[AgentState]:
    """The agents that a request is about: one with its instances, or all."""
    return [agent for name, agent in run.agents.items() if not only or name == only or name.startswith(f"{only}[")]


def effect(reader: SqliteReader, run: RunId, verb: Verb, only: str, number: int) -> tuple[int | None, RunState]:
    """Waits until a living executor has done what was asked. Its process id, None when there is none; the run then."""
    end = time.monotonic() + verb.within_s
    pid: int | None = None
    while True:
        lease = reader.lease(run)  # before the records, so that an end is not taken for a death
        state = fold_all(run, reader.read(run))
        if (alive := lease is not None and lease.alive) and lease is not None:
            pid = lease.holder.pid
        taken = number in state.commands and all(verb.done(agent) for agent in meant(state, only))
        if taken or state.ended or time.monotonic() > end:
            return pid, state
        if not alive:
            return None, state
        time.sleep(LOOK_S)


def lines(verb: Verb, about: Sequence[AgentState], pid: int | None, *, taken: bool = True) -> Iterator[str]:
    """What became of the agents that were meant; `taken`: a process has seen the request."""
    left = [a for a in about if not verb.done(a)]
    done = [a for a in about if a not in left and verb.named(a)]
    if done:
        more = f" and {len(done) - SHOWN} more" if done[SHOWN:] else ""
        yield f"{verb.past}: {', '.join(line_of(a.name, 60) for a in done[:SHOWN])}{more}"
    if left and pid is None:
        yield f"noted for {some(len(left), 'agent')}: no process executes the run"
    elif left and not taken:
        yield (
            f"noted for {some(len(left), 'agent')}: process {pid} has the run and did not answer within "
            f"{verb.within_s:g} s; it takes this up when it goes on, else whoever resumes the run does"
        )
    else:
        for agent in left:
            flying = ", ".join(in_flight(agent))
            yield f"{line_of(agent.name, 60)} is {agent.status.value}" + (f"; first ends {flying}" if flying else "")
    if not done and not left:
        for agent in about[:SHOWN]:
            yield f"{line_of(agent.name, 60)} had ended before ({agent.status.value})"


async def _settled(settings: Settings, run: RunId) -> RunState | None:
    """Ends what is to be stopped of a run that nobody executes; None when another process was faster."""
    async with open_runtime(settings) as runtime:
        try:
            session = await OrchestrationEngine(runtime).resume(run, agent=None)
        except RunBusy:
            return None
        try:
            return await session.settle()
        finally:
            await session.context.recorder.close()
