"""`toka diff` and `toka rollback`: what a run changed in its workspace, and the way back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from toka.app import open_runtime, submit_command
from toka.cli.attach import author, reason_of
from toka.cli.door import again, folded, open_run, read_settings, state_option
from toka.cli.ids import match_name
from toka.cli.kept import Kept, after, kept_steps, named
from toka.cli.output import emit, emit_json, say
from toka.cli.text import line_of, moment, some
from toka.config.settings import Settings
from toka.core.ids import AgentName, RunId
from toka.errors import NotFound, UsageError
from toka.events.event import CommandApplied
from toka.events.state import RunState
from toka.events.steps import StepPutBack
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.settled import recorded_execution
from toka.workspace.checkpoint import Diff, Restored
from toka.workspace.checkpoints import Checkpoints, shown
from toka.workspace.claims import Note

SHOWN = 20
"""Paths that are named."""


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("agent", required=False)
@click.option("--step", metavar="STEP", help="What one step changed: its number, key, or checkpoint.")
@click.option("--steps", "listed", is_flag=True, help="List the steps before which the workspace was kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@state_option
def diff(run_id: str, agent: str | None, step: str | None, state: Path | None, *, listed: bool, as_json: bool) -> int:
    """Show what a run, an agent or a step changed in the workspace.

    Compared is the state before the first step, or before the one that is named, with the state before the next that
    could write to the same paths, or with the workspace as it is now. What people changed meanwhile is in it, too.
    """
    with open_run(state, run_id) as (reader, run):
        records = reader.read(run)
        recorded = folded(run, records)
    steps = _of_agent(recorded, kept_steps(records), agent)
    if listed:
        _list(steps, as_json=as_json)
        return 0
    if not steps:
        raise NotFound(_nothing(recorded, agent))
    chosen = named(steps, step) if step is not None else None
    steps = [chosen] if chosen is not None else _of_one_workspace(recorded, steps, agent)
    last, scope = steps[-1], sorted({path for each in steps for path in each.scope})
    workspace = _workspace(recorded, last.agent)
    every = [each for each in kept_steps(records) if _workspace(recorded, each.agent) == workspace]
    old, new = steps[0].checkpoint, after(every, last) if agent or chosen else None
    found = asyncio.run(_diff(read_settings(state), recorded, workspace, (old, new, tuple(scope))))
    if as_json:
        changes = [{"status": c.status, "path": shown(c.path)} for c in found.changes]
        emit_json({"type": "diff", "run_id": run, "from": old, "to": new, "changes": changes, "cut": found.cut})
        return 0
    sys.stdout.flush()
    sys.stdout.buffer.write(found.text)
    sys.stdout.buffer.flush()
    say(_counted([change.path for change in found.changes]))
    return 0


def _counted(paths: Sequence[str]) -> str:
    own = sum(".git" in path.split("/")[:-1] for path in paths)
    if own == len(paths):
        return "nothing changed" if not own else f"nothing changed but files of git's own: {own}"
    return f"{some(len(paths) - own, 'path')} changed" + (f", and files of git's own: {own}" if own else "")


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("agent")
@click.option("--to", "step", required=True, metavar="STEP", help="Its number, key, or checkpoint.")
@click.option("--reason", default="", help="Why, for the record.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@state_option
def rollback(run_id: str, agent: str, step: str, reason: str, state: Path | None, *, as_json: bool) -> int:
    """Put what an AGENT could write back to the state before a STEP.

    The agent must have ended. What is in the workspace now is kept first, so that this can be undone, too.
    """
    settings = read_settings(state)
    reason_of(reason)
    with open_run(state, run_id) as (reader, run):
        records = reader.read(run)
        recorded = folded(run, records)
        name = match_name(recorded.agents, agent)
        lease = reader.lease(run)
        if lease is not None and lease.alive:
            hint = f"stop it first: toka stop {run}{again(state)}"
            raise UsageError(f"run {run} is being executed by process {lease.holder.pid}", hint=hint)
        if not recorded.agents[name].ended:
            hint = f"end it first: toka stop {run} {name}{again(state)}"
            raise UsageError(
                f"agent {name} has not ended: it would go on as if its changes were still there", hint=hint
            )
    steps = _of_agent(recorded, kept_steps(records), name)
    if not steps:
        raise NotFound(_nothing(recorded, name))
    chosen = named(steps, step)
    done = asyncio.run(_rolled_back(settings, recorded, chosen, reason))
    undo = f"toka rollback {run} {name} --to {done.kept[:12]}{again(state)}"
    if as_json:
        emit_json(
            {"type": "rollback", "run_id": run, "agent": name, "step": chosen.step, "checkpoint": chosen.checkpoint,
             "kept": done.kept, "changed": list(done.changed), "left": list(done.left), "undo": undo}
        )  # fmt: skip
        return 0
    say(f"{name} is back to before step {chosen.number}: {some(len(done.changed), 'path')} changed")
    for path in done.changed[:SHOWN]:
        say(f"  {line_of(path, 200)}")
    if len(done.changed) > SHOWN:
        say(f"  and {len(done.changed) - SHOWN} more")
    for left in done.left:
        say(f"not put back: {line_of(left, 300)}")
    say(f"what was there is kept; to undo this: {undo}")
    return 0


def _of_agent(run: RunState, steps: Sequence[Kept], agent: str | None) -> list[Kept]:
    if agent is None:
        return list(steps)
    name = match_name(run.agents, agent)
    return [each for each in steps if each.agent == name or each.agent.startswith(f"{name}[")]


def _of_one_workspace(run: RunState, steps: Sequence[Kept], agent: str | None) -> list[Kept]:
    """Those that are compared with one another: of the whole run those in its own workspace."""
    hint = "name one that worked in a workspace of its own: toka diff RUN AGENT; list them with --steps"
    if agent is None:
        shared = [each for each in steps if _workspace(run, each.agent) == _workspace(run, "")]
        if not shared:
            raise UsageError("all agents of this run worked in workspaces of their own", hint=hint)
        return shared
    if len({_workspace(run, each.agent) for each in steps}) > 1:
        raise UsageError(f"the instances of {agent} worked in workspaces of their own", hint=hint)
    return list(steps)


def _nothing(run: RunState, agent: str | None) -> str:
    return f"no step of {f'agent {agent}' if agent else f'run {run.id}'} could change the workspace and was kept before"


def _list(steps: Sequence[Kept], *, as_json: bool) -> None:
    for each in steps:
        if as_json:
            emit_json({"type": "step", "number": each.number, "agent": each.agent, "step": each.step, "what": each.what,
                       "at": round(each.at, 3), "checkpoint": each.checkpoint, "scope": list(each.scope)})  # fmt: skip
        else:
            what = line_of(each.what.strip().partition("\n")[0], 80)
            emit(f"{each.number:>4}  {moment(each.at)}  {line_of(each.agent, 40)}  {each.step}  {what}")
    if not steps and not as_json:
        say("there is none")


def _workspace(run: RunState, agent: str) -> Path:
    """Where an agent of a run worked."""
    assert run.created is not None
    state = run.agents.get(agent)
    return Path(state.private.path if state is not None and state.private is not None else run.created.workspace)


def _checkpoints(runtime: Any, run: RunState, workspace: Path) -> Checkpoints:
    assert run.created is not None
    if not workspace.is_dir():
        raise UsageError(f"the workspace {workspace} is gone", hint="put a folder there, empty if need be")
    found = runtime.keep(workspace, recorded_execution(run.created))
    if found is None:
        raise UsageError("checkpoints are switched off", hint="execution.checkpoints, TOKA_CHECKPOINTS")
    return found


async def _diff(
    settings: Settings, run: RunState, workspace: Path, what: tuple[str, str | None, tuple[str, ...]]
) -> Diff:
    old, new, paths = what
    async with open_runtime(settings) as runtime:
        return await _checkpoints(runtime, run, workspace).diff(old, new, () if "." in paths else paths)


async def _rolled_back(settings: Settings, run: RunState, step: Kept, reason: str) -> Restored:
    arguments = {"step": step.step, "checkpoint": step.checkpoint}
    async with open_runtime(settings) as runtime:
        checkpoints = _checkpoints(runtime, run, _workspace(run, step.agent))
        note = Note(run.id, step.agent, "", "rollback")
        async with checkpoints.lock(note, step.scope):
            done = await checkpoints.restore(step.checkpoint, note, step.scope)
        by = (author(), reason)
        number = await submit_command(settings, RunId(run.id), "rollback", agent=step.agent, arguments=arguments, by=by)
        recorder = await OrchestrationEngine(runtime).reopened(RunId(run.id))
        try:
            applied = CommandApplied(number, "rollback", step.agent, arguments, *by)
            await recorder.record("", applied)
            back = StepPutBack(step.step, step.checkpoint, done.kept, len(done.changed))
            await recorder.record(AgentName(step.agent), back)
        finally:
            await recorder.close()
        return done
