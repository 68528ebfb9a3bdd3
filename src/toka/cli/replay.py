"""`toka replay`: whether the same decisions follow from what was recorded."""

from __future__ import annotations

from pathlib import Path

import click

from toka.cli.door import open_run, read_settings, standing, state_option, unreadable
from toka.cli.output import emit, emit_json, say
from toka.cli.render_change import MALFORMED
from toka.cli.render_replay import replay_json, replay_lines
from toka.events.event import ExecutorAttached, RunCreated
from toka.orchestration.replay import Terms, replay
from toka.tools.plugins import toolbox
from toka.version import __version__


@click.command("replay")
@click.argument("run_id", metavar="RUN")
@state_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay_command(run_id: str, state: Path | None, *, as_json: bool) -> int:
    """Decide a recorded run once more, and say whether the same follows.

    Models, tools and people are answered from the record: nothing is called, run, changed or waited for. RUN is an id,
    the beginning of one, or @last. Exits 0 when the same decisions follow, else 1.
    """
    settings = read_settings(state)
    terms = Terms(toolbox(settings, ()), settings.policy, settings.run_limits, settings.state)
    with open_run(state, run_id) as (reader, run):
        lease = reader.lease(run)
        records = reader.read(run)
        try:
            found = replay(records, reader.blob, terms)
        except MALFORMED as e:
            raise unreadable(run, e) from e
    status = standing(found.state.status, lease)
    if as_json:
        emit_json(replay_json(found, status))
    else:
        emit("\n".join(replay_lines(found, status)))
    if not found.same and not as_json:
        created = records[0].event
        if isinstance(created, RunCreated) and created.toka != __version__:
            say(f"toka: the run was made by Toka {created.toka or '(unknown)'}, and this is {__version__}")
        if any(isinstance(r.event, ExecutorAttached) and not r.event.rules for r in records):
            say("toka: the record does not say under which [policy] and [limits.run]; these settings' were taken")
    return 0 if found.same else 1
