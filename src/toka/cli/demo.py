"""`toka demo`: four agents on a small project that comes with the package.

Only the model is scripted, and the demo says so; planning, sandboxes, tools, denials, checks and the record are those
of every run. With `--model` a real model works under the same specs.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import click

from toka.app import read_settings
from toka.cli.attach import Display
from toka.cli.check import check_server
from toka.cli.crash import Plan, crash
from toka.cli.crash_life import Target
from toka.cli.output import say
from toka.cli.run import execute, read_team
from toka.cli.tally import is_script
from toka.config.settings import Settings
from toka.errors import ConfigError, MissingError, UsageError
from toka.orchestration.request import RunRequest
from toka.sandbox.spawn import find_bwrap

SCRIPT: Final = "script.yaml"
KILLS: Final = 61
"""How often `--kill` kills it."""


@click.command()
@click.option("--model", help="PROVIDER:MODEL or auto: a real model instead of the script.")
@click.option("--base-url", help="A server that speaks the provider's protocol.")
@click.option("--state", type=click.Path(path_type=Path), help="Where runs are recorded.")
@click.option("--workspace", type=click.Path(path_type=Path), help="An empty or new directory for the project's copy.")
@click.option("--kill", is_flag=True, help="Kill it again and again while it runs, resume it, and compare the ends.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def demo(model: str | None, base_url: str | None, state: Path | None, workspace: Path | None, **flags: bool) -> int:
    """Run four agents on a small project that comes with Toka.

    A surveyor runs the failing tests, a fixer repairs the code until its check passes, a documenter is denied what it
    may not touch, and a reviewer checks the rest. No key and no account are needed: the model is scripted, everything
    else is real, in a copy of the project.
    """
    if flags["kill"]:
        if any(option is not None for option in (model, base_url, state, workspace)):
            raise UsageError("--kill takes no other option than --json: it works in scratch directories of its own")
        return _kill(as_json=flags["as_json"])
    settings = read_settings({"state": None if state is None else str(state), "model": model, "base_url": base_url})
    check_server(settings, model=model or f"scripted:{SCRIPT}")
    find_bwrap()  # without it nothing is written
    kept = workspace is not None and _is_empty(workspace)
    home = _fresh(settings.state)
    project = workspace or home / "project"
    try:
        request = _prepare(settings, home, project, model)
        shown = Display(flags["as_json"], quiet=False, options=f" --state {state}" if state else "")
        return asyncio.run(execute(settings, request, shown))
    except (MissingError, UsageError, ConfigError):  # raised before a run is made, never after
        _discard(project, kept=kept)
        _discard(home)
        raise


def _kill(*, as_json: bool) -> int:
    """Kills the demo at a sample of the writes of its record; see `toka crash-test`."""
    settings = read_settings()
    find_bwrap()
    with tempfile.TemporaryDirectory(prefix="toka-demo-") as scratch:
        home = Path(scratch)
        _copy_demo(home, home / "project")
        say("demo: four agents repair a copy of a small Python project, and are killed; the model is SCRIPTED")
        target = Target((home / "agents",), home / "project", settings, home / SCRIPT)
        return crash(target, Plan(KILLS, 0, as_json))


def _copy_demo(home: Path, project: Path) -> None:
    """Copies project, specs and script. Raises UsageError."""
    package = files("toka") / "demo"
    try:
        for name, target in (("project", project), ("agents", home / "agents"), (SCRIPT, home / SCRIPT)):
            copy(package / name, target)
    except OSError as e:
        raise UsageError(f"cannot write {e.filename}: {e.strerror}") from e


def _prepare(settings: Settings, home: Path, project: Path, model: str | None) -> RunRequest:
    """Copies project, specs and script, and says where they are."""
    _copy_demo(home, project)
    chosen = model or f"scripted:{home / SCRIPT}"
    kind = "the model is SCRIPTED, everything else is real" if is_script(chosen) else f"the model is {chosen}"
    say(f"demo: four agents repair a copy of a small Python project; {kind}")
    say(f"specs {home / 'agents'}")
    options = {"base_url": settings.base_url} if settings.base_url else {}
    return RunRequest(read_team([home / "agents"], settings), project, model=chosen, options=options)


def _fresh(state: Path) -> Path:
    """A new directory below the state directory, with the next free number. Raises UsageError."""
    folder = state / "demo"
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        number = max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)
        while True:
            number += 1
            try:
                (folder / str(number)).mkdir(mode=0o700)
            except FileExistsError:
                continue  # another demo took it
            return folder / str(number)
    except OSError as e:
        raise UsageError(f"cannot write to {folder}: {e.strerror}", hint="choose another directory: --state DIR") from e


def _is_empty(folder: Path) -> bool:
    """True for an empty directory, False when there is none yet. Raises UsageError for all else."""
    try:
        if next(folder.iterdir(), None) is None:
            return True
        problem = "is not empty"
    except FileNotFoundError:
        return False
    except OSError as e:
        problem = f"cannot be used: {e.strerror}"
    raise UsageError(f"workspace {folder} {problem}", hint="name a new directory: --workspace DIR")


def _discard(folder: Path, *, kept: bool = False) -> None:
    """Removes a folder; with `kept` only what is in it."""
    for entry in list(folder.iterdir()) if folder.is_dir() else ():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if not kept and folder.is_dir():
        folder.rmdir()


def copy(source: Traversable, target: Path) -> None:
    """Copies a file or folder of the package; folders may exist, files must not. Raises OSError."""
    if source.is_file():
        with target.open("xb") as file:
            file.write(source.read_bytes())
        return
    target.mkdir(parents=True, exist_ok=True)
    for entry in source.iterdir():
        if entry.name != "__pycache__":
            copy(entry, target / entry.name)
