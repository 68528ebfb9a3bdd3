"""`toka doctor`, `toka models` and `toka config`: what this machine offers, and how Toka is set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from toka.cli.check import check_server, warn_of
from toka.cli.door import read_settings, state_option
from toka.cli.output import coloured, emit, say
from toka.cli.probes import Answer, Layer, ask_models, examine
from toka.cli.text import Cell, Paint, clean, columns, json_line, line_of, painter
from toka.config.load import label_of
from toka.config.settings import Settings, personal_file
from toka.errors import MissingError
from toka.sandbox.doctor import LIMITS, level_of
from toka.sandbox.level import Level

SHOWN = 60
"""Characters of what was found that fit into the table."""
BESIDE = ("state", "git", "model", "egress", "toolchains")
"""Layers that say nothing of how strongly agents can be confined."""


@click.command()
@state_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(state: Path | None, as_json: bool) -> int:  # noqa: FBT001 - click's way
    """Check what this machine offers: the sandbox layer by layer, state directory, git, models.

    `self-test` starts the real sandbox and lets it test itself. Exits 4 when something is missing without which agents
    cannot run at the level that the settings ask for.
    """
    settings = read_settings(state)
    found = examine(settings, environment_of(settings))
    missing = [layer for layer in found if layer.needed and not layer.check.ok]
    beside = BESIDE if settings.sandbox == "full" else (*BESIDE, "self-test")
    level = level_of([layer.check for layer in found if layer.check.layer not in beside])
    if as_json:
        rows = [
            {"layer": f.check.layer, "wanted": f.check.wanted, "got": f.check.got, "ok": f.check.ok,
             "needed": f.needed, "why": f.check.why, "fix": f.check.fix}
            for f in found
        ]  # fmt: skip
        emit(json_line({"ok": not missing, "level": level, "asked": settings.sandbox, "layers": rows}))
        return MissingError.exit_code if missing else 0
    paint = painter(coloured())
    head: list[Cell] = [(h, "dim") for h in ("", "LAYER", "WANTED", "GOT", "WHY")]
    rows_: list[list[Cell]] = [head]
    for f in found:
        word = ("ok", "good") if f.check.ok else ("MISSING", "bad") if f.needed else ("without", "warn")
        rows_.append([word, f.check.layer, line_of(f.check.wanted), clean(f.check.got, SHOWN), f.check.why])
    first, *lines = columns(rows_, paint=paint)
    emit(first)
    for f, line in zip(found, lines, strict=True):
        emit(line)
        if len(f.check.got) > SHOWN:
            emit(f"         got: {line_of(f.check.got)}")
        if f.check.fix and not f.check.ok:
            emit(f"         fix: {line_of(f.check.fix)}")
    say(f"toka: level {settings.sandbox}: {_verdict(level, settings.sandbox, found)}")
    return MissingError.exit_code if missing else 0


def _verdict(level: Level, asked: Level, found: Sequence[Layer]) -> str:
    """What the table comes to, in a sentence: the level that can be had, the one that is asked for, what is missing."""
    missing = [f.check.layer for f in found if f.needed and not f.check.ok]
    if missing:
        could = 'the level reduced could be had: sandbox = "reduced" in your own config.toml'
        weaker = f"; {could}; nothing falls back to it by itself" if level == "reduced" and asked == "full" else ""
        return f"agents cannot run here; missing: {', '.join(missing)}{weaker}"
    loose = [LIMITS[f.check.layer] for f in found if f.check.layer in LIMITS and not f.check.ok]
    return f"agents can run here; best effort: limits of {', '.join(loose)}" if loose else "agents can run here"


@click.command()
@click.option("--model", metavar="MODEL", help="PROVIDER:MODEL or auto. Default: the setting.")
@click.option("--base-url", metavar="URL", help="A server that speaks the provider's protocol.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models(model: str | None, base_url: str | None, as_json: bool) -> int:  # noqa: FBT001 - click's way
    """Show which model would answer; when there is none, what was tried.

    Exits 4 when no model answers.
    """
    settings = read_settings(None, {"model": model, "base_url": base_url})
    check_server(settings, model=settings.model)
    answer = ask_models(settings, environment_of(settings))
    if as_json:
        emit(json_line(answer.to_json()))
    else:
        _print_answer(answer, painter(coloured()))
    return 0 if answer.ready else MissingError.exit_code


def _print_answer(answer: Answer, paint: Paint) -> None:
    if not answer.ready:
        say(f"toka: no model answers for {line_of(answer.asked, 120)}")
        for tried in answer.tried:
            say(f"  tried: {line_of(tried)}")
        if answer.hint:
            say(f"  help: {answer.hint}")
        return
    rows: list[list[Cell]] = [
        [("model", "dim"), (line_of(answer.model, 120), "bold")],
        [("asked", "dim"), line_of(answer.asked, 120)],
        [("server", "dim"), line_of(answer.server, 120)],
    ]
    if answer.note:
        rows.append([("note", "dim"), line_of(answer.note)])
    emit("\n".join(columns(rows, paint=paint)))


@click.group()
def config() -> None:
    """Show settings and where each comes from."""


@config.command("show")
@state_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def config_show(state: Path | None, as_json: bool) -> int:  # noqa: FBT001 - click's way
    """Print every setting with its value and origin. Secrets appear as references."""
    settings = read_settings(state)
    rows = settings.shown()
    if as_json:
        shown = [{"key": k, "value": v, "origin": o} for k, v, o in rows]
        emit(json_line({"settings": shown, "findings": [f.to_json() for f in settings.findings]}))
        return 0
    warn_of(settings.findings)
    cells: list[list[Cell]] = [[(h, "dim") for h in ("SETTING", "VALUE", "FROM")]]
    cells += [[k, line_of(v, 120), ("default", "dim") if o == "default" else line_of(o, 120)] for k, v, o in rows]
    emit("\n".join(columns(cells, paint=painter(coloured()))))
    own = personal_file(os.environ)
    if own is not None:
        there = "" if own.exists() else ", which is not there"
        emit(f"\nRead from toka.toml of this directory, the environment, and {line_of(label_of(own), 200)}{there}.")
    return 0


def environment_of(settings: Settings) -> dict[str, str]:
    """The process's environment, with the keys that the settings refer to. Raises MissingError."""
    environment = dict(os.environ)
    for name, secret in settings.keys.items():
        if not environment.get(name):
            environment[name] = secret.reveal(environment)
    return environment
