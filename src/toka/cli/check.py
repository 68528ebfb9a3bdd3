"""`toka validate` and `toka plan`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from toka.cli.door import ANY_PATH, read_settings
from toka.cli.output import coloured, emit, say
from toka.cli.render_findings import as_json, counted, github, sarif
from toka.cli.render_plan import plan_json, plan_lines
from toka.cli.text import json_line, painter
from toka.config.check import check_paths
from toka.config.diagnostics import Finding
from toka.config.load import is_directory, spec_files
from toka.config.settings import Settings

EXIT_INVALID = 3

_paths = click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=ANY_PATH)
_json = click.option("--json", "as_json_", is_flag=True, help="The same as --format json.")


@click.command()
@_paths
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "github", "sarif"]), default="text", show_default=True,
    help="How to print findings.",
)  # fmt: skip
@_json
@click.option("--strict", is_flag=True, help="Warnings are errors.")
def validate(paths: Sequence[Path], form: str, as_json_: bool, strict: bool) -> int:  # noqa: FBT001 - click's way
    """Check spec files and directories and print every finding, in one pass.

    Exits 0 when there is no error, else 3.
    """
    settings = _settings()
    _, findings = check_paths(paths, settings.capabilities)
    specs = count_specs(paths)
    summary = counted(specs, findings)
    match "json" if as_json_ else form:
        case "json":
            emit(json_line({**as_json(findings), "specs": specs}))
        case "sarif":
            emit(sarif(findings))
        case "github":
            _emit_lines(github(findings))
            say(summary)
        case _:
            _emit_lines([f"{finding.render()}\n" for finding in findings])
            emit(summary)
    bad = ("error", "warning") if strict else ("error",)
    return EXIT_INVALID if any(f.severity in bad for f in findings) else 0


@click.command()
@_paths
@click.option("--enable", multiple=True, metavar="NAME", help="Switch on a conditional task group. Repeatable.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "mermaid"]), default="text", show_default=True,
    help="How to print the plan.",
)  # fmt: skip
@_json
def plan(paths: Sequence[Path], enable: Sequence[str], form: str, as_json_: bool) -> int:  # noqa: FBT001 - click's way
    """Show what would run: order, tasks, grants, limits, warnings. Nothing is started.

    Exits 3 with all findings when a spec has an error.
    """
    from toka.orchestration.plan import make_plan, mermaid
    from toka.orchestration.request import check_groups

    settings = _settings()
    form = "json" if as_json_ else form
    configs, findings = check_paths(paths, settings.capabilities)
    if any(f.severity == "error" for f in findings):
        if form == "json":
            emit(json_line({"waves": [], "critical_path": [], "agents": {}, **as_json(findings)}))
        else:
            for finding in findings:
                say(f"{finding.render()}\n")
        say(f"toka: {counted(count_specs(paths), findings)}; there is no plan")
        return EXIT_INVALID
    check_groups(configs, enable)
    made = make_plan(configs, enabled=enable, capabilities=settings.capabilities, root=os.geteuid() == 0)
    match form:
        case "json":
            emit(json_line(plan_json(made, configs, findings)))
        case "mermaid":
            emit(mermaid(made))
        case _:
            _emit_lines(plan_lines(made, configs, findings, settings.model, painter(coloured())))
    return 0


def count_specs(paths: Sequence[Path]) -> int:
    """How many files a check of these paths looks at, each once; what does not exist is none."""
    seen: set[Path] = set()
    for path in paths:
        files = spec_files(path)[0] if is_directory(path) else (path,)
        seen.update(f.absolute() for f in files if _exists(f))
    return len(seen)


def _settings() -> Settings:
    settings = read_settings()
    warn_of(settings.findings)
    return settings


def warn_of(findings: Sequence[Finding]) -> None:
    """Prints what was found about the settings themselves."""
    for finding in findings:
        if finding.severity != "note":
            say(f"{finding.text}; {finding.help}" if finding.help else finding.text)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def _emit_lines(lines: Sequence[str]) -> None:
    if lines:
        emit("\n".join(lines))
