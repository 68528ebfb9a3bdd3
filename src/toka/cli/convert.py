"""`toka convert`: specs as a team file, and a team file as specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from toka.cli.check import warned_settings
from toka.cli.door import ANY_PATH
from toka.cli.output import emit, say
from toka.cli.team_options import inputs_option
from toka.cli.text import clean, some
from toka.cli.writing import replace_file
from toka.config.check import check_paths
from toka.config.convert import spec_text, team_text
from toka.config.inputs import Inputs
from toka.errors import ConfigError, UsageError

ELSEWHERE = ("TK3001", "TK3002")
"""Findings about agents that are not among these; they may be elsewhere."""


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=ANY_PATH)
@click.option(
    "--to", "form", type=click.Choice(["team", "specs"]), default="team", show_default=True, help="What to make."
)
@click.option("-o", "--output", metavar="FILE|DIR", type=ANY_PATH, help="Where to. Default for a team: stdout.")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@inputs_option
def convert(paths: Sequence[Path], form: str, output: Path | None, inputs: Inputs, *, force: bool) -> int:
    """Write specs as one team file, or the agents of a team file as specs, one file each.

    Both ways nothing of the agents is lost but comments: what is written is read again and compared first. Of a team
    file's head its name, description and workspace are left out. What inputs decide in a team file, such as grants and
    limits, is written with the values that they have now, and so are all inputs in specs.
    """
    configs, _, findings = check_paths(paths, warned_settings().capabilities, inputs)
    if inputs.known:
        named = ", ".join(sorted(inputs.known))
        say(f"toka: grants, limits and whatever else is settled first have the values that inputs have now: {named}")
    wrong = [f for f in findings if f.severity == "error" and f.code not in ELSEWHERE]
    if wrong:
        raise ConfigError(f"{some(len(wrong), 'error')}; nothing was written", tuple(wrong))
    if form == "team":
        text = team_text(configs)
        if output is None:
            emit(text.removesuffix("\n"))
            return 0
        write({output: text}, force=force)
    elif output is None:
        raise UsageError("specs are several files", hint="say where to: -o DIR")
    else:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"cannot write into {clean(str(output))}: {e.strerror}") from e
        write({output / f"{config.name}.yaml": spec_text(config) for config in configs}, force=force)
    return 0


def write(files: Mapping[Path, str], *, force: bool) -> None:
    """Writes all files, or none when one is in the way. Raises UsageError."""
    taken = [clean(str(path)) for path in files if path.is_symlink() or path.exists()]
    if taken and not force:
        hint = "overwrite with --force, or name another place"
        raise UsageError(f"{', '.join(taken)}: there already; nothing was written", hint=hint)
    try:
        for path, text in files.items():
            replace_file(path, text)
            say(f"wrote {clean(str(path))}")
    except OSError as e:
        raise UsageError(f"cannot write: {e.strerror}") from e
