"""`toka ps`, `toka show` and `toka logs`: what runs are doing and did, read from the journal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from toka.cli.door import (
    again,
    agents_of,
    folded,
    open_journal,
    open_run,
    read_settings,
    standing,
    state_option,
    unreadable,
)
from toka.cli.follow import Follower, end_text
from toka.cli.ids import match_name
from toka.cli.output import coloured, emit, say
from toka.cli.render_change import MALFORMED
from toka.cli.render_log import Transcript
from toka.cli.render_run import Declared, gauges_json, list_json, list_lines, run_lines
from toka.cli.resources import resource_lines, resources_json, uses_of
from toka.cli.run_json import run_json
from toka.cli.tally import is_scripted, tally
from toka.cli.text import json_line, painter, some
from toka.cli.view import RunView, denials_of, is_meant, items_of, models_of, planned_of, unkept_of, values_of
from toka.config.parts import Reporting
from toka.core.clock import SystemClock
from toka.core.ids import RunId
from toka.errors import JournalError, NotFound
from toka.events.event import NetworkAttempted, SandboxReady
from toka.events.record import Record
from toka.journal.sqlite import SqliteReader

NEWEST = 20
"""Runs that `ps` lists without `--all`."""


@click.command()
@state_option
@click.option("--all", "every", is_flag=True, help=f"List every run, not only the newest {NEWEST}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def ps(state: Path | None, every: bool, as_json: bool) -> int:  # noqa: FBT001 - click's way
    """List runs, newest first."""
    settings = read_settings(state)
    now = SystemClock().now()
    with open_journal(settings) as reader:
        runs = reader.runs()[::-1] if reader is not None else []
        lines = tally(reader, runs if every else runs[:NEWEST]) if reader is not None else []
    if as_json:
        if lines:
            emit("\n".join(json_line(list_json(line, now, again(state))) for line in lines))
    elif lines:
        emit("\n".join(list_lines(lines, now, painter(coloured()), again(state))))
    else:
        emit(f"No runs in {settings.state}. Two ways to start one:\n  toka demo\n  toka run SPEC.yaml")
    if len(runs) > len(lines):
        say(f"{some(len(runs) - len(lines), 'older run')}: toka ps --all{again(state)}")
    return 0


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("agent", required=False)
@state_option
@click.option("--resources", is_flag=True, help="Show what each command used of the machine instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(run_id: str, agent: str | None, state: Path | None, resources: bool, as_json: bool) -> int:  # noqa: FBT001
    """Show a run: agents, tasks, objectives, refused calls, metrics, sandboxes, and why something waits or failed.

    RUN is an id, the beginning of one, or @last.
    """
    with open_run(state, run_id) as (reader, run):
        view, records = _read(reader, run, again(state))
        declared = _declared(reader, view)
        uses = uses_of(records, reader.blob) if resources else ()
    only = match_name(view.state.agents, agent) if agent is not None else None
    try:
        if resources:
            shown = [use for use in uses if is_meant(only, use.agent)]
            text = json_line(resources_json(run, shown)) if as_json else "\n".join(resource_lines(run, shown))
        elif as_json:
            text = json_line(_show_json(view, only, declared, records))
        else:
            sandboxes, refused = sandboxes_of(records), refused_of(records)
            text = "\n".join(run_lines(view, only, painter(coloured()), declared, sandboxes, refused))
    except MALFORMED as e:
        raise unreadable(run, e) from e
    emit(text)
    return 0


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("agent", required=False)
@state_option
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended or nobody executes it.")
@click.option("--full", is_flag=True, help="Print system prompts, and texts without cuts.")
def logs(run_id: str, agent: str | None, state: Path | None, follow: bool, full: bool) -> int:  # noqa: FBT001
    """Print what agents were asked, said, called and got, in the order in which it happened.

    RUN is an id, the beginning of one, or @last.
    """
    with open_run(state, run_id) as (reader, run):
        names, asked = agents_of(reader, run)
        only = match_name(names, agent) if agent is not None else None
        transcript = Transcript(reader.blob, names, full=full, paint=painter(coloured()))
        follower = Follower(reader, run)
        scripted = False
        for page in follower.follow() if follow else follower.page():
            if not scripted and is_scripted(models_of(asked, page)):
                scripted = True
                emit("SCRIPTED: a script answered in place of a model")
            _print(transcript, page, only)
        if follow:
            say(end_text(run, follower, again(state)))
        return JournalError.exit_code if follower.end == "gone" else 0


def _read(reader: SqliteReader, run: RunId, options: str) -> tuple[RunView, list[Record]]:
    """Everything about a run, and its records. Raises JournalError."""
    lease = reader.lease(run)  # before the records, so that a run that ends meanwhile does not look interrupted
    asked = reader.commands(run)  # likewise
    records = reader.read(run)
    state = folded(run, records)
    created = state.created
    try:
        planned = planned_of(reader.blob(created.specs), created.enabled) if created else {}
    except NotFound:
        planned = {}
    view = RunView(
        state=state,
        status=standing(state.status, lease),
        now=SystemClock().now(),
        lease=lease,
        planned=planned,
        models=models_of(created.model if created else None, records),
        denials=denials_of(records),
        options=options,
        values=values_of(state, reader.blob),
        items=items_of(state, reader.blob),
        unkept=unkept_of(records),
        noted=() if state.ended else tuple(each for each in asked if each.id not in state.commands),
    )
    return view, records


def sandboxes_of(records: Iterable[Record]) -> dict[str, SandboxReady]:
    """The latest sandbox of each agent that had one."""
    return {record.stream: record.event for record in records if isinstance(record.event, SandboxReady)}


def refused_of(records: Iterable[Record]) -> dict[str, list[NetworkAttempted]]:
    """What each agent asked of the network and did not get, in order."""
    out: dict[str, list[NetworkAttempted]] = {}
    for record in records:
        if isinstance(record.event, NetworkAttempted) and not record.event.allowed:
            out.setdefault(record.stream, []).append(record.event)
    return out


def _declared(reader: SqliteReader, view: RunView) -> Declared:
    """The metrics that the run's specs declare; empty when this version cannot read the specs. Raises JournalError."""
    created = view.state.created
    try:
        records = json.loads(reader.blob(created.specs)) if created else ()
        specs = [record["spec"] for record in records]
        return {s["metadata"]["name"]: Reporting.model_validate(s.get("reporting", {})).metrics for s in specs}
    except (NotFound, ValueError, TypeError, LookupError, AttributeError):
        return {}


def _show_json(view: RunView, only: str | None, declared: Declared, records: Sequence[Record]) -> dict[str, Any]:
    document = run_json(view, only)
    sandboxes, refused = sandboxes_of(records), refused_of(records)
    for name, shown in document["agents"].items():
        shown["metrics"] = gauges_json(view.state.agents[name], declared)
        sandbox = sandboxes.get(name)
        shown["sandbox"] = {"test": sandbox.test, "notes": sandbox.notes} if sandbox is not None else None
        shown["network_refused"] = [
            {"host": e.host, "port": e.port, "reason": e.reason, "rule": e.rule, "place": e.place, "patch": e.patch}
            for e in refused.get(name, ())
        ]
    return document


def _print(transcript: Transcript, page: list[Record], only: str | None) -> None:
    lines = [line for record in page if is_meant(only, record.stream) for line in transcript.lines(record)]
    if lines:
        emit("\n".join(lines))
