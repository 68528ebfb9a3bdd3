"""`toka resolve`: a person answers whether a step in doubt happened."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from toka.app import submit_command
from toka.cli.attach import author, reason_of
from toka.cli.door import again, folded, open_run, read_settings, state_option
from toka.cli.output import say
from toka.errors import NotFound, UsageError
from toka.events.state import AgentState, RunState

ANSWERS = ("happened", "not-happened", "abandon")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("task")
@click.option("--happened", "answer", flag_value="happened", help="It happened: go on without running it again.")
@click.option("--not-happened", "answer", flag_value="not-happened", help="It did not happen: run it again.")
@click.option("--abandon", "answer", flag_value="abandon", help="Nobody can tell: the task has failed.")
@click.option("--agent", default=None, help="Whose task, when several agents ask about one of that name.")
@click.option("--reason", default="", help="Why, for the record.")
@state_option
def resolve(run_id: str, task: str, answer: str | None, agent: str | None, reason: str, state: Path | None) -> int:
    """Answer the question of a TASK that waits because Toka was killed while a step of it ran.

    `toka show RUN` prints the question. The answer is recorded with your name; the run takes it up at once when it is
    being executed, else with `toka resume`.
    """
    if answer is None:
        raise UsageError("which answer?", hint="add --happened, --not-happened or --abandon")
    reason_of(reason)
    with open_run(state, run_id) as (reader, run):
        recorded = folded(run, reader.read(run))
        asking = _asking(recorded, task, agent)
        lease = reader.lease(run)
    arguments = {"task": task, "answer": answer}
    settings = read_settings(state)
    asyncio.run(submit_command(settings, run, "resolve", agent=asking, arguments=arguments, by=(author(), reason)))
    if lease is None or not lease.alive:
        say(f"noted: {asking}, task {task}: {answer}. Go on with: toka resume {run}{again(state)}")
    else:
        say(f"noted: {asking}, task {task}: {answer}. Process {lease.holder.pid} goes on with it")
    return 0


def _asking(run: RunState, task: str, agent: str | None) -> str:
    """The agent whose task asks. Raises NotFound, UsageError."""
    asked = {name: state for name, state in run.agents.items() if _questions(state)}
    if not asked:
        raise NotFound(f"no task of run {run.id} waits for an answer")
    found = [name for name, state in asked.items() if task in _questions(state) and agent in (None, name)]
    if not found:
        listed = "; ".join(f"{name}: {', '.join(_questions(state))}" for name, state in asked.items())
        raise NotFound(f"task {task} of run {run.id} does not wait for an answer", hint=f"these do: {listed}")
    if len(found) > 1:
        raise UsageError(f"several agents ask about {task}: {', '.join(found)}", hint="say which one: --agent NAME")
    return found[0]


def _questions(agent: AgentState) -> list[str]:
    return [t.id for t in agent.tasks.values() if t.question]
