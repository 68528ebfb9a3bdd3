"""`toka`: finds the command, and turns every error into a message and an exit code.

Commands are imported when they are called: `toka --help` reads only the table below.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from toka.cli.output import EXIT_BROKEN_PIPE, ReaderGone, fail, internal, say
from toka.errors import TokaError, UsageError
from toka.version import __version__

E = TypeVar("E", bound=Exception)
_HOMELESS: Final = "the current directory is no longer there"
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("toka.cli.init:init", "Write a first team for the project in this directory."),
    "validate": ("toka.cli.check:validate", "Check specs and print every finding."),
    "plan": ("toka.cli.check:plan", "Show what would run: order, grants, limits, warnings."),
    "convert": ("toka.cli.convert:convert", "Write specs as a team file, or a team file as specs."),
    "run": ("toka.cli.run:run", "Run a team of agents."),
    "resume": ("toka.cli.run:resume", "Go on with an interrupted run, or lift a pause."),
    "pause": ("toka.cli.steer:pause", "Let an agent, or a whole run, take no further step."),
    "retry": ("toka.cli.retry:retry", "Give what failed another try."),
    "stop": ("toka.cli.steer:stop", "End an agent, or a whole run, for good."),
    "approve": ("toka.cli.approve:approve", "Agree to what an agent asks."),
    "deny": ("toka.cli.approve:deny", "Refuse what an agent asks."),
    "resolve": ("toka.cli.resolve:resolve", "Answer whether a step in doubt happened."),
    "demo": ("toka.cli.demo:demo", "Run four agents on a small project that comes with Toka."),
    "jail": ("toka.cli.jail:jail", "Run a command in the sandbox that agents get."),
    "ps": ("toka.cli.look:ps", "List runs."),
    "show": ("toka.cli.look:show", "Show one run: agents, tasks, objectives, why something waits."),
    "logs": ("toka.cli.look:logs", "Print what agents said, called and got."),
    "diff": ("toka.cli.changes:diff", "Show what a run changed in the workspace."),
    "rollback": ("toka.cli.changes:rollback", "Put back what an agent changed."),
    "learn": ("toka.cli.learn:learn", "Propose the least set of capabilities that a run used."),
    "events": ("toka.cli.record:events", "Print the recorded events of a run, and follow them."),
    "replay": ("toka.cli.replay:replay_command", "Decide a recorded run once more; say whether the same follows."),
    "crash-test": ("toka.cli.crash:crash_test", "Kill a team at each write of its record, and compare the ends."),
    "audit": ("toka.cli.record:audit", "Verify a run's record."),
    "doctor": ("toka.cli.machine:doctor", "Check what this machine offers: sandbox, models, state directory."),
    "models": ("toka.cli.machine:models", "Show which model would answer, and what was tried."),
    "config": ("toka.cli.machine:config", "Show settings and where each comes from."),
    "schema": ("toka.cli.reference:schema", "Print the JSON Schema of a spec."),
    "explain": ("toka.cli.reference:explain", "Explain a finding's code, what happens without something, or a grant."),
    "completion": ("toka.cli.reference:completion", "Print the completion script of a shell."),
    "version": ("toka.cli.reference:version", "Print the version."),
}


class Lazy(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Imports one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry[0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, with a suggestion for a misspelled command."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="toka %(version)s")
def cli() -> None:
    """Run teams of LLM agents declared in YAML: confined, limited, verified, recorded."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Exits the process.

    Exit codes: 0 done, 1 run failed, 2 usage, 3 invalid spec, 4 something missing, 5 denied by policy, 6 limit,
    7 waiting for a person, 8 stopped by a person, 9 not found, 70 internal, 75 try again, 130 and 143 signals.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets its number
    try:
        code: Any = cli.main(arguments, prog_name="toka", standalone_mode=False)
    except click.exceptions.Exit as e:
        code = e.exit_code
    except click.ClickException as e:
        e.show()
        code = 2
    except click.Abort:
        code = 130
    except TokaError as e:
        code = _told(fail, e)
    except KeyboardInterrupt:
        code = 130
    except ReaderGone:
        code = EXIT_BROKEN_PIPE
    except Exception as e:  # noqa: BLE001 - the last edge: a defect is reported as one, with a code of its own
        code = (
            _told(fail, UsageError(_HOMELESS, hint="change to one that is"))
            if isinstance(e, FileNotFoundError) and not _at_home()
            else _told(internal, e)
        )
    sys.exit(code if isinstance(code, int) else 0)


def _at_home() -> bool:
    """Whether the current directory is still there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _told(tell: Callable[[E], int], error: E) -> int:
    """What `tell` returns; what it prints on stderr goes out without the secrets of this process's environment.

    Models' failures hold none. This is for whatever else an error may quote, and for tracebacks.
    """
    from toka.llm.redact import Redactor, secrets_of

    with redirect_stderr(io.StringIO()) as said:
        code = tell(error)
    say(Redactor(secrets_of(os.environ)).text(said.getvalue()).removesuffix("\n"))
    return code
