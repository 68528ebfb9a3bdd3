"""`toka init`: writes a first team for the project in a directory, or a small one to start from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from toka.cli.detect import Found, detect, is_empty
from toka.cli.output import emit
from toka.cli.teams import project_team, starter_team
from toka.cli.text import clean
from toka.cli.writing import replace_file
from toka.config.load import spec_files
from toka.config.schema import schema_text
from toka.config.team_schema import team_schema
from toka.errors import UsageError

FOLDER: Final = "agents"
TEAM: Final = "team.yaml"
SCHEMA: Final = ".schema/team.json"
"""What the first line of the team file names, for editors."""


@click.command()
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
def init(directory: Path, *, force: bool) -> int:
    """Write a first team of agents for the project in DIR (default: here): agents/team.yaml.

    The team takes stock of the project, runs its tests and reports, without a model; one more agent explains what was
    found when a model answers. In an empty directory it is a small team to start from.
    """
    found: Found | None = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if empty := is_empty(directory, FOLDER):
            text = starter_team()
        else:
            found = detect(directory)
            text = project_team(found)
        schema = schema_text(team_schema()) + "\n"
        written = write(directory / FOLDER, {TEAM: text, SCHEMA: schema}, force=force)
    except OSError as e:
        raise UsageError(f"cannot write into {clean(str(directory))}: {e.strerror}") from e
    if not empty:
        emit(_finding(found))
    for path in written:
        emit(f"wrote {clean(str(path))}")
    for line in _next(directory, written):
        emit(line)
    return 0


def write(folder: Path, team: Mapping[str, str], *, force: bool) -> list[Path]:
    """Writes files into a folder, all of them or, when one is in the way, none.

    Args:
        folder: created when it is missing; neither it nor a folder in it may be a symbolic link.
        team: path in the folder -> text.
        force: replace files that are there.

    Raises:
        UsageError: files are there and `force` is not given, or the folder is a link or a file. Nothing was written.
        OSError: a file could not be written.
    """
    paths = {folder / name: text for name, text in team.items()}
    for place in dict.fromkeys([folder, *(path.parent for path in paths)]):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise UsageError(f"{clean(str(place))} is not a directory of its own; nothing was written")
    taken = [str(p) for p in paths if p.is_symlink() or p.exists()]
    if taken and not force:
        raise UsageError(
            f"{', '.join(clean(t) for t in taken)}: there already; nothing was written",
            hint="overwrite with --force, or name another directory",
        )
    for path, text in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    return list(paths)


def _finding(found: Found | None) -> str:
    if found is None:
        return "found no test command; the tester of agents/team.yaml has a place for yours"
    line = f"found `{found.command}` ({found.kind}), from {clean(found.source)}"
    return f"{line}\n  it cannot run in the sandbox yet: {found.missing}" if found.missing else line


def _next(directory: Path, written: list[Path]) -> list[str]:
    """The next two commands. What was there before is not part of the team."""
    folder = directory / FOLDER
    others = set(spec_files(folder)[0]) - set(written)
    paths = shlex.quote(str(folder / TEAM if others else folder))
    workspace = "" if directory == Path() else f" --workspace {shlex.quote(str(directory))}"
    return ["", "next", f"  toka plan {paths}", f"  toka run {paths}{workspace}"]
