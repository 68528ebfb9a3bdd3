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
from toka.config.agent import AgentConfig
from toka.config.check import check_paths
from toka.config.diagnostics import Finding, Position, in_order
from toka.config.load import is_directory, spec_files
from toka.config.settings import Settings
from toka.errors import ConfigError, UsageError

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
    _, findings = check_specs(paths, settings)
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
    return ConfigError.exit_code if any(f.severity in bad for f in findings) else 0


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
    configs, findings = check_specs(paths, settings)
    if any(f.severity == "error" for f in findings):
        if form == "json":
            emit(json_line({"waves": [], "critical_path": [], "agents": {}, **as_json(findings)}))
        else:
            for finding in findings:
                say(f"{finding.render()}\n")
        say(f"toka: {counted(count_specs(paths), findings)}; there is no plan")
        return ConfigError.exit_code
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


def check_specs(paths: Sequence[Path], settings: Settings) -> tuple[tuple[AgentConfig, ...], tuple[Finding, ...]]:
    """Reads specs and finds all that can be said of them without a network and without keys, in one pass.

    Args:
        paths: files and directories.
        settings: capabilities that they define; a default model that cannot be one is a finding, too.

    Returns:
        The specs that could be read, sorted by name, and all findings. When one is an error, nothing must be run.
    """
    configs, drafts, found = check_paths(paths, settings.capabilities)
    findings = [*found]
    specs = (*configs, *drafts)
    if "model" in settings.origins or any(spec.model for spec in specs):
        from toka.orchestration.preflight import model_findings  # the usual case needs nothing that knows models

        findings += [*_default_model(settings), *model_findings(specs)]
    return configs, in_order(findings)


def _default_model(settings: Settings) -> tuple[Finding, ...]:
    """What is wrong with the model of the settings. One of the command line is left to the command."""
    from toka.llm.names import check_name

    origin = settings.origins.get("model", "")
    if origin == "flag":
        return ()
    try:
        check_name(settings.model)
    except UsageError as e:
        variable = origin.startswith("TOKA_")
        key, file = (origin, "environment") if variable else ("model", origin)
        return (Finding("TK2011", f"{key}: {e.message}", Position(file), help=e.hint),)
    return ()


def check_server(settings: Settings, configs: Sequence[AgentConfig] = (), model: str | None = None) -> None:
    """Refuses a `--base-url` that nobody would use: silently ignored, it would leave people with another server.

    A base URL of a variable or a file is a default for whichever model takes one, and is not refused.

    Args:
        settings: of this command.
        configs: the team; those that need no model do not count.
        model: overrides the specs' models; None does not.

    Raises:
        UsageError: no model takes a base URL.
    """
    if settings.base_url is None or settings.origins.get("base_url") != "flag":
        return
    from toka.llm.names import check_base_url

    thinking = [c for c in configs if any(task.run is None for task in c.task_list(tuple(c.tasks.conditional)))]
    check_base_url(settings.base_url, [model] if model else [c.model or settings.model for c in thinking])


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
