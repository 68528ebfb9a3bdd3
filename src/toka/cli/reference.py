"""`toka schema`, `toka explain`, `toka completion` and `toka version`."""

from __future__ import annotations

import json
import textwrap

import click

from toka.cli.output import emit
from toka.cli.text import Cell, columns, json_line, line_of
from toka.config.codes import CODES, FAMILIES, Code
from toka.config.diagnostics import closest
from toka.errors import NotFound
from toka.version import __version__

WIDTH = 100


@click.command()
def schema() -> int:
    """Print the JSON Schema of a spec, for editors."""
    from toka.config.schema import spec_schema

    emit(json.dumps(spec_schema(), indent=2))
    return 0


@click.command()
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def explain(code: str | None, as_json: bool) -> int:  # noqa: FBT001 - click's way
    """Explain a finding's code, such as TK2004. A family (TK2) or nothing lists codes."""
    wanted = (code or "TK").upper()
    found = {c: CODES[c] for c in CODES if c == wanted} or {c: CODES[c] for c in CODES if c.startswith(wanted)}
    if not found:
        near = closest(wanted, CODES, cutoff=0.5)
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
