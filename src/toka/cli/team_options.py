"""Options of the commands that read teams: the values of inputs, and the directory to work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from toka.cli.door import ANY_PATH
from toka.config.agent import AgentConfig
from toka.config.inputs import read_inputs
from toka.config.load import is_directory, label_of
from toka.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def workspace_option(command: F) -> F:
    """Adds `--workspace DIR`."""
    help_ = "The directory the agents work on. Default: what the team file says, else here."
    return click.option("--workspace", metavar="DIR", type=ANY_PATH, help=help_)(command)


def inputs_option(command: F) -> F:
    """Adds `--input NAME=VALUE` and `--inputs FILE`; the command gets both as `inputs`. Raises ConfigError."""

    @wraps(command)
    def told(*args: Any, given: Sequence[str], files: Sequence[Path], **options: Any) -> Any:
        return command(*args, inputs=read_inputs(given, files), **options)

    help_ = "The value of an input of the team. Repeatable."
    one = click.option("--input", "given", multiple=True, metavar="NAME=VALUE", help=help_)
    help_ = "A YAML or JSON file with values of inputs. --input wins. Repeatable."
    all_ = click.option("--inputs", "files", multiple=True, metavar="FILE", type=ANY_PATH, help=help_)
    return cast("F", one(all_(told)))


def folder_of(workspace: Path | None, configs: Iterable[AgentConfig] = ()) -> Path:
    """The workspace that is meant: the option's, else the one that the team file names, else the current directory.

    A team file names only what lies below it or below the current directory: whoever wrote it does not decide which
    other directory agents work on.

    Raises:
        UsageError: it is no directory, as a run would find; team files name several, or one that lies elsewhere.
    """
    folder = workspace or _named(configs) or Path.cwd()
    if not is_directory(folder):
        raise UsageError(f"workspace {label_of(folder)} is not a directory", hint="name one with --workspace DIR")
    return folder


def _named(configs: Iterable[AgentConfig]) -> Path | None:
    asked_for = (config.origin.workspace for config in configs)
    named = {asked.path.resolve(): asked for asked in asked_for if asked is not None}
    if not named:
        return None
    if len(named) > 1:
        files = ", ".join(sorted(label_of(each.file) for each in named.values()))
        message = f"{files} name different workspaces"
        raise UsageError(message, hint="say which one: --workspace DIR")
    ((folder, asked),) = named.items()
    homes = (asked.file.absolute().parent.resolve(), Path.cwd())
    if not any(folder.is_relative_to(home) for home in homes):
        message = f"the workspace of {label_of(asked.file)} is {label_of(folder)}, which is neither below it nor here"
        raise UsageError(message, hint=f"if that is meant: --workspace {label_of(folder)}")
    return asked.path
