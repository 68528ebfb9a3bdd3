"""`toka retry`: agents that failed, or are held for their health, are tried again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import click

from toka.app import read_settings, submit_command
from toka.cli.attach import Display, author, reason_of
from toka.cli.door import ANY_PATH, again, folded, open_run
from toka.cli.ids import match_name
from toka.cli.output import say
from toka.cli.run import NO_SANDBOX_OPTION, as_recorded, go_on
from toka.cli.steer import Verb, effect, lines, meant, request_json
from toka.core.units import format_duration
from toka.errors import UsageError
from toka.events.lifecycle import RETRIED, AgentStatus
from toka.events.state import AgentState, RunState, with_unbegun
from toka.orchestration.settled import recorded_execution

RETRY: Final = Verb("retry", lambda agent: agent.retry is None, "tried again", named=lambda _: True)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("agent", required=False)
@click.option("--state", type=ANY_PATH, help="Where runs are recorded.")
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print only errors and the end.")
@NO_SANDBOX_OPTION
def retry(run_id: str, agent: str | None, state: Path | None, reason: str, **flags: bool) -> int:
    """Give an agent, or all of a run that failed, another try.

    What succeeded stays done; a failed task begins anew, and what was skipped because of it waits again. An agent that
    waits to be restarted starts now. When no process executes the run, it goes on here, as with `toka resume`.
    """
    settings = read_settings({"state": None if state is None else str(state)})
    by = (author(), reason_of(reason))
    shown = Display(flags["as_json"], flags["quiet"], again(state))
    with open_run(state, run_id) as (reader, run):
        recorded = with_unbegun(folded(run, reader.read(run)), agent or "")
        only = match_name(recorded.agents, agent) if agent is not None else ""
        _check(recorded, only)
        failed = {a.name for a in recorded.agents.values() if a.status in RETRIED}
        number = asyncio.run(submit_command(settings, run, RETRY.name, agent=only, by=by))
        lease = reader.lease(run)
        if lease is not None and lease.alive:
            pid, recorded = effect(reader, run, RETRY, only, number)
            if number in recorded.commands:
                about = [a for a in meant(recorded, only) if a.name in failed]
                if shown.as_json:
                    request_json(RETRY, recorded, about, (by, pid, None))
                else:
                    for line in lines(RETRY, about, pid):
                        say(line)
                return 0
    code = asyncio.run(go_on(as_recorded(settings, recorded), run, (reason, only, flags["no_sandbox"]), shown))
    if code is None:
        say(f"noted: another process executes run {run}")
    return code or 0


def _check(run: RunState, only: str) -> None:
    """Raises UsageError when there is nothing to try again, or no time for it."""
    limit = recorded_execution(run.created).run_timeout_s if run.created is not None else None
    if limit is not None and run.started_at is not None and run.started_at + limit <= time.time():
        told = f"run {run.id} had {format_duration(limit)}, and they are over; another try would end at once"
        raise UsageError(told, hint="start a new run; give it more time with --deadline")
    if not only:
        if not any(agent.status in RETRIED for agent in run.agents.values()):
            raise UsageError(f"no agent of run {run.id} has failed; there is nothing to retry")
        return
    if any(agent.status in RETRIED for agent in meant(run, only)):
        return
    told, hint = _refusal(run.agents[only])
    raise UsageError(told, hint=hint)


def _refusal(agent: AgentState) -> tuple[str, str | None]:
    """Why an agent cannot be tried again, and what can be done."""
    match agent.status:
        case AgentStatus.COMPLETED:
            return f"agent {agent.name} has COMPLETED; there is nothing to retry", None
        case AgentStatus.STOPPED:
            return f"agent {agent.name} was stopped for good ({agent.reason}); start a new run", None
        case AgentStatus.SKIPPED:
            return f"agent {agent.name} was skipped: {agent.reason}", "retry what it needs, and it waits for that again"
        case status:
            told = f"agent {agent.name} is {status.value}"
            return f"{told}; only one that failed, or is held for its health, is tried again", None
