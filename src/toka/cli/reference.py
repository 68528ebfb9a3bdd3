"""`toka schema`, `toka explain` (of codes and of what is missing), `toka completion` and `toka version`."""

from __future__ import annotations

import textwrap
from dataclasses import asdict

import click

from toka.cli.output import emit
from toka.cli.text import Cell, columns, json_line, line_of
from toka.config.codes import CODES, FAMILIES, Code
from toka.config.diagnostics import closest
from toka.errors import NotFound
from toka.version import __version__

WIDTH = 100
GRANT = "grant"
CODE = "code"
DEGRADATION = "degradation"
LOOK_ALIKE = str.maketrans("OIL", "011")


@click.command()
@click.option("--team", "form", flag_value="team", help="Of team files alone.")
@click.option("--spec", "form", flag_value="spec", help="Of specs of one agent alone.")
@click.option(
    "--draft", type=click.Choice(["2020-12", "7"]), default="2020-12", show_default=True, help="Of JSON Schema."
)
@click.option("--markdown", is_flag=True, help="Print the manual of both forms instead.")
def schema(form: str | None, draft: str, *, markdown: bool) -> int:
    """Print the JSON Schema of team files and specs, for editors; which of them a file is, its key `toka` says.

    An editor that speaks YAML's language server reads it from the first line of a file:
    # yaml-language-server: $schema=team.schema.json
    """
    from toka.config.manual import manual
    from toka.config.schema import schema_text, spec_schema
    from toka.config.team_schema import as_draft_7, both_schema, team_schema

    if markdown:
        emit(manual().removesuffix("\n"))
        return 0
    made = {"team": team_schema, "spec": spec_schema}.get(form or "", both_schema)()
    emit(schema_text(as_draft_7(made) if draft == "7" else made))
    return 0


class _Explain(click.Group):
    """Codes are explained directly; other things by a word of their own, whose module is imported when it is used."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click, with a code, an option of codes, or nothing meaning the command for codes."""
        if not args or args[0] not in (GRANT, DEGRADATION, *ctx.help_option_names):
            args = [CODE, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The one for grants; the one for codes needs no word."""
        return [*super().list_commands(ctx), GRANT]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command for grants."""
        if cmd_name == GRANT:
            from toka.cli.grant import grant

            return grant
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Explain, subcommand_metavar="[CODE] | degradation | grant AGENT SPEC...")
def explain() -> None:
    """Explain a finding's code, such as TK2004, what happens when something is missing, or what an agent is granted.

    A family (TK2) or nothing lists codes. `toka explain grant` shows what an agent's spec comes to: see its --help.
    """


@explain.command(CODE, hidden=True)
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def explain_code(code: str | None, as_json: bool) -> int:  # noqa: FBT001 - click's way
    """Explain a finding's code, such as TK2004. A family (TK2) or nothing lists codes."""
    wanted = (code or "TK").upper()
    found = {c: CODES[c] for c in CODES if c == wanted} or {c: CODES[c] for c in CODES if c.startswith(wanted)}
    if not found:
        near = closest(wanted[:2] + wanted[2:].translate(LOOK_ALIKE), CODES, cutoff=0.5)
        hint = f"did you mean {near}?" if near else "toka explain lists all codes"
        raise NotFound(f"no code {line_of(code or '', 40)!r}", hint=hint)
    if as_json:
        emit("\n".join(json_line(_object(c, entry)) for c, entry in found.items()))
    elif wanted in found:
        emit(_page(wanted, found[wanted]))
    else:
        rows: list[list[Cell]] = [[c, entry.severity, entry.title] for c, entry in found.items()]
        emit("\n".join(columns(rows)))
    return 0


@explain.command(DEGRADATION)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print docs/degradation.md.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def explain_degradation(as_markdown: bool, as_json: bool) -> int:  # noqa: FBT001 - click's way
    """Show what happens when git, a model, a cgroup, the disk and the like are missing."""
    from toka.cli.degradation import ROWS, markdown, text

    if as_json:
        emit("\n".join(json_line(asdict(row)) for row in ROWS))
    else:
        emit((markdown() if as_markdown else text()).removesuffix("\n"))
    return 0


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the completion script of a shell.

    bash: eval "$(toka completion bash)" in ~/.bashrc. zsh: the same in ~/.zshrc. fish: toka completion fish | source
    """
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    kinds = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
    complete = kinds[shell](ctx.find_root().command, {}, "toka", "_TOKA_COMPLETE")
    emit(complete.source_template % complete.source_vars())
    return 0


@click.command()
def version() -> int:
    """Print the version."""
    emit(f"toka {__version__}")
    return 0


def _page(code: str, entry: Code) -> str:
    family = FAMILIES.get(code[:3], "")
    text = textwrap.fill(entry.explanation, WIDTH, break_long_words=False, break_on_hyphens=False)
    return f"{code}: {entry.title} ({entry.severity}, {family})\n\n{text}"


def _object(code: str, entry: Code) -> dict[str, str]:
    return {"code": code, "title": entry.title, "severity": entry.severity, "explanation": entry.explanation}
