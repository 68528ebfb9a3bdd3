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
from toka.cli.team_options import folder_of, inputs_option, workspace_option
from toka.cli.text import json_line, line_of, painter, some
from toka.config.agent import AgentConfig
from toka.config.check import check_paths
from toka.config.diagnostics import Finding, Position, in_order
from toka.config.emit import to_yaml
from toka.config.inputs import Inputs
from toka.config.load import is_directory, spec_files
from toka.config.settings import Settings
from toka.config.written import spec_data
from toka.core.ids import AgentName
from toka.errors import ConfigError, MissingError, UsageError
from toka.orchestration.compiled import Compiled, compile_here
from toka.orchestration.enforce import machine, strict_refusal, unenforced
from toka.orchestration.plan import make_plan, mermaid
from toka.orchestration.request import check_groups
from toka.orchestration.rights import Terms, rights_of
from toka.orchestration.unmet import inside, place_findings, secret_findings, spec_findings, spec_places
from toka.tools.builtin import Toolbox
from toka.tools.plugins import find_plugins, toolbox

NEWLINE = "\n"
_paths = click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=ANY_PATH)
_json = click.option("--json", "as_json_", is_flag=True, help="The same as --format json.")


@click.command()
@_paths
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "github", "sarif"]), default="text", show_default=True,
    help="How to print findings.",
)  # fmt: skip
@_json
@inputs_option
@click.option("--strict", is_flag=True, help="Warnings are errors.")
def validate(
    paths: Sequence[Path],
    form: str,
    as_json_: bool,  # noqa: FBT001 - click's way
    strict: bool,  # noqa: FBT001 - click's way
    inputs: Inputs,
) -> int:
    """Check team files, specs and directories of them and print every finding, in one pass.

    Exits 0 when there is no error, else 3.
    """
    settings = warned_settings()
    configs, findings = check_specs(paths, settings, inputs)
    specs = count_specs(paths)
    summary = counted(specs, findings, len(configs))
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
@workspace_option
@inputs_option
@click.option("--expanded", "form", flag_value="expanded", help="Print the agents as specs, one YAML document each.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "mermaid", "expanded"]), default="text", show_default=True,
    help="How to print the plan.",
)  # fmt: skip
@_json
def plan(
    paths: Sequence[Path],
    enable: Sequence[str],
    workspace: Path | None,
    form: str,
    as_json_: bool,  # noqa: FBT001 - click's way
    inputs: Inputs,
) -> int:
    """Show what would run: order, tasks, grants, limits, warnings. Nothing is started.

    Exits 3 with all findings when a spec has an error, or asks for what the workspace or this machine does not have,
    and 4 when one wants strict limits that can only be best effort here.
    """
    settings = warned_settings()
    form = "json" if as_json_ else form
    configs, findings = check_specs(paths, settings, inputs)
    folder = folder_of(workspace, configs)
    if form == "expanded" and not any(f.severity == "error" for f in findings):
        _emit_lines([f"---\n{to_yaml(spec_data(config)).removesuffix(NEWLINE)}" for config in configs])
        return 0
    terms = terms_of(settings, configs, folder)
    placed = (*place_findings(configs, terms, folder), *secret_findings(configs, secret_gaps(settings)))
    wrong = any(f.severity == "error" for f in findings)
    findings = in_order((*findings, *placed))
    if wrong:
        if form == "json":
            emit(json_line({"waves": [], "critical_path": [], "agents": {}, **as_json(findings)}))
        else:
            for finding in findings:
                say(f"{finding.render()}\n")
        say(f"toka: {counted(count_specs(paths), findings)}; there is no plan")
        return ConfigError.exit_code
    check_groups(configs, enable)
    made = make_plan(configs, enabled=enable, terms=terms, machine=machine())
    match form:
        case "json":
            emit(json_line(plan_json(made, configs, findings, compiled_of(configs, terms, folder))))
        case "mermaid":
            emit(mermaid(made))
        case _:
            compiled = compiled_of(configs, terms, folder)
            _emit_lines(plan_lines(made, configs, findings, compiled, settings.model, painter(coloured())))
            for note in find_plugins(settings.tools, {tool.name for tool in Toolbox()}).notes:
                say(f"toka: {note}")
    refused = [f for f in placed if f.severity == "error"]
    for finding in refused if form == "text" else ():
        say(f"{finding.render()}\n")
    loose = [
        strict_refusal(config, gaps)
        for config in configs
        if config.security.enforcement == "strict" and (gaps := unenforced(config, level=terms.level))
    ]
    for error in () if refused else loose:
        say(f"toka: {error.message}\n  help: {error.hint}")
    if refused or loose:
        say(f"toka: {some(len(refused) or len(loose), 'error')}; no run would start in {line_of(str(folder))}")
    return ConfigError.exit_code if refused else MissingError.exit_code if loose else 0


def secret_gaps(settings: Settings) -> dict[str, str]:
    """The secrets of the settings, and why each is not there; empty for those that are."""
    out: dict[str, str] = {}
    for name, secret in settings.secrets.items():
        try:
            secret.reveal(os.environ)
            out[name] = ""
        except MissingError as e:
            out[name] = e.message
    return out


def compiled_of(configs: Sequence[AgentConfig], terms: Terms, workspace: Path) -> dict[AgentName, Compiled]:
    """What each agent's grant comes to on this machine."""
    return {config.name: compile_here(rights_of(config, terms), workspace) for config in configs}


def terms_of(settings: Settings, configs: Sequence[AgentConfig], workspace: Path) -> Terms:
    """What these settings and a workspace add to specs."""
    sources = list(dict.fromkeys(file for config in configs for file in config.origin.files))
    return Terms(
        settings.capabilities,
        settings.policy,
        settings.execution,
        protected=inside(workspace, spec_places(sources)),
        hidden=inside(workspace, [settings.state]),
        tools=toolbox(settings),
        toolchains=settings.tools.toolchains,
        level=settings.sandbox,
        allow_unsandboxed=settings.allow_unsandboxed,
    )


def check_specs(
    paths: Sequence[Path], settings: Settings, inputs: Inputs | None = None
) -> tuple[tuple[AgentConfig, ...], tuple[Finding, ...]]:
    """Reads specs and finds all that can be said of them without a network and without keys, in one pass.

    Args:
        paths: files and directories.
        settings: capabilities that they define; a default model that cannot be one is a finding, too.
        inputs: values for the inputs of team files; None = their defaults.

    Returns:
        The specs that could be read, sorted by name, and all findings. When one is an error, nothing must be run.
    """
    configs, drafts, found = check_paths(paths, settings.capabilities, inputs)
    specs = (*configs, *drafts)
    findings = [*found, *spec_findings(specs, settings.capabilities)]
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


def warned_settings() -> Settings:
    """The settings of this process; what is wrong with them, short of an error, is printed."""
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
