"""What must be there before a run is made, so that nothing is half-started: a system, a sandbox, a model."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding, Position
from toka.config.flow_rules import references_of
from toka.config.rules import Problem
from toka.config.settings_tools import Toolchain, misplaced
from toka.core.effect import Effect
from toka.errors import ConfigError, MissingError, ModelUnavailable, UsageError
from toka.llm.names import AUTO, SCRIPTED, check_name, split_name
from toka.llm.redact import MIN_LENGTH
from toka.llm.resolve import SLOW
from toka.llm.script_file import read_script
from toka.orchestration.enforce import best_effort, limits_of, machine, strict_refusal, why_not
from toka.orchestration.request import RunRequest
from toka.orchestration.rights import Terms
from toka.orchestration.unmet import ELSEWHERE, inside, named_secret, place_findings, spec_findings, spec_places
from toka.runtime.context import Runtime
from toka.runtime.effective import Effective, compile_agent
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import find_program
from toka.sandbox.shield import Order

WITHOUT_GIT: Final = (
    "git is not installed: the workspace is not kept before commands; after a crash in the middle of one a person is "
    "asked"
)


async def preflight(runtime: Runtime, request: RunRequest, started: Collection[str] = ()) -> list[str]:
    """Checks what a team needs of this machine and its workspace.

    Args:
        runtime: the process's ports.
        request: the agents that are to run.
        started: those of them that have worked already: without a model they are not skipped, the run waits.

    Returns:
        Warnings: granted paths that are links, agents that will be skipped because no model answers, and commands
        before which the workspace cannot be kept.

    Raises:
        MissingError: this is no Linux, or an agent asks for strict limits that can only be best effort here.
        SandboxUnavailable: there is no working sandbox.
        ModelUnavailable: no model answers, and no agent can do without one; or a named model cannot be had.
        ConfigError: a spec asks for what the workspace or this machine does not have.
        UsageError, ConfigError: a model string or script is wrong, or a key's file lies inside the workspace.
    """
    if not sys.platform.startswith("linux"):
        raise MissingError(
            f"agents run on Linux; this is {sys.platform}",
            hint="run Toka in a Linux machine: Lima on macOS, WSL2 on Windows, or a devcontainer; "
            "validate, plan, ps, show and events work here",
        )
    for file in runtime.secret_files:
        if file.resolve().is_relative_to(request.workspace.resolve()):
            raise UsageError(
                f"{file} holds a key or secret and lies inside the workspace, where agents could read it",
                hint="move it out of the workspace, and say where in your settings",
            )
    warnings = [*_inputs(runtime, request, started), *_secrets(runtime, request)]
    working = [config for config in request.configs if _has_hands(runtime, config, request.enabled)]
    toolchains = tuple(toolchain.path for toolchain in _toolchains(runtime, request))
    policies = [_compiled(runtime, config).policy for config in working]
    seen = (".",) if any(policy.reads or policy.writes for policy in policies) else ()
    for asks in {config.security.sandbox for config in working}:
        policy = SandboxPolicy(reads=seen, toolchains=toolchains)  # where the workspace cannot be mounted, that shows
        order = Order(request.workspace, policy, test=False, unsandboxed=not asks)
        trial, _ = await runtime.start_sandbox(order)
        await trial.close()
    await _strict(runtime, request)
    return [*warnings, *_unkept(runtime, request), *await _models(runtime, request, started)]


def _inputs(runtime: Runtime, request: RunRequest, started: Collection[str]) -> list[str]:
    """Warnings about what specs ask of the workspace. Raises ConfigError with all findings when one is an error."""
    sources = dict.fromkeys(file for config in request.configs for file in config.origin.files)
    terms = Terms(
        runtime.capabilities,
        runtime.policy,
        protected=inside(request.workspace, spec_places(sources)),
        hidden=inside(request.workspace, [runtime.state] if runtime.state else []),
        toolchains=_toolchains(runtime, request),
        level=runtime.level,
    )
    guarded = [*([runtime.state] if runtime.state else []), *runtime.secret_files]
    found = [
        *misplaced(terms.toolchains, "", guarded),  # those of a run may have been chosen under other settings
        *spec_findings(request.configs, runtime.capabilities),
        *place_findings(request.configs, terms, request.workspace, started),
    ]
    errors = [f for f in found if f.severity == "error"]
    if errors:
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise ConfigError(f"{count}; nothing was started", [f for f in found if f.severity != "note"])
    return [f.text for f in found if f.severity == "warning"]


def _secrets(runtime: Runtime, request: RunRequest) -> list[str]:
    """Warnings about secrets too short to be masked. Raises MissingError for one that a spec names and nobody has."""
    short: dict[str, None] = {}
    for config in request.configs:
        for text, reference in references_of(config):
            if reference.kind != "secret":
                continue
            if len(runtime.secrets.get(reference.name, "")) < MIN_LENGTH:
                short[reference.name] = None
            if reference.name not in runtime.secrets:
                why = runtime.unset_secrets.get(reference.name)
                missing = f"{config.position(*text.path).text}: {reference.text} is not there"
                raise MissingError(
                    f"{missing}: {why or 'no settings name it'}",
                    hint=ELSEWHERE if why else named_secret(reference.name),
                )
    return [f"the secret {name} has fewer than {MIN_LENGTH} characters: it is not masked in records" for name in short]


def _toolchains(runtime: Runtime, request: RunRequest) -> tuple[Toolchain, ...]:
    """Those of the settings, or of the run as it was made, then at the lines where the settings still have them."""
    if request.toolchains is None:
        return runtime.toolchains
    written = {toolchain.path: toolchain for toolchain in runtime.toolchains}
    return tuple(written.get(path, Toolchain(path)) for path in request.toolchains)


async def _strict(runtime: Runtime, request: RunRequest) -> None:
    """Tries the limits of agents that want them strict in real sandboxes, each set of limits once.

    Raises:
        MissingError: one of them can only be best effort.
    """
    wanted: dict[SandboxPolicy, AgentConfig] = {}
    for config in request.configs:
        if config.security.enforcement == "strict":
            wanted.setdefault(limits_of(config), config)
    for policy, config in wanted.items():
        trial, _ = await runtime.start_sandbox(Order(request.workspace, policy, test=False))
        try:
            loose, notes = [e for e in trial.keeper.enforced if not e.strict], trial.keeper.notes
        finally:
            await trial.close()
        if loose:
            said = (next((n for n in notes if n.startswith(f"no cgroup for {e.limit}")), "") for e in loose)
            gaps = [best_effort(policy, e, why or why_not(e, machine())) for e, why in zip(loose, said, strict=True)]
            raise strict_refusal(config, gaps)


def _compiled(runtime: Runtime, config: AgentConfig) -> Effective:
    """What an agent gets, but for what the place of its run adds."""
    return compile_agent(config, runtime.capabilities, runtime.policy, runtime.execution)


def _unkept(runtime: Runtime, request: RunRequest) -> list[str]:
    """A warning when git is missing and the workspace would be kept before something that an agent does."""
    if not runtime.execution.checkpoints or find_program("git") is not None:
        return []
    users = [c.name for c in request.configs if c.grant(runtime.capabilities).named("git-access")]
    lost = [f"git is not installed: {name} has git-access and cannot use it" for name in sorted(users)]
    return [WITHOUT_GIT, *lost] if any(_keeps(runtime, c, request.enabled) for c in request.configs) else lost


def _keeps(runtime: Runtime, config: AgentConfig, enabled: Sequence[str]) -> bool:
    """Whether the workspace is to be kept before a command or a tool of an agent: see `guarded`."""
    made = _compiled(runtime, config)
    if not made.policy.changeable:
        return False
    tasks, alone = config.task_list(enabled), not made.policy.network
    if any(t.effect is Effect.WORKSPACE or (alone and t.effect is None) for t in tasks if t.run is not None):
        return True
    tools = runtime.tools.offered(made.grant) if alone and any(t.run is None for t in tasks) else ()
    return any(tool.effect is Effect.WORKSPACE for tool in tools)


def _has_hands(runtime: Runtime, config: AgentConfig, enabled: Sequence[str]) -> bool:
    """Whether an agent can come to need a sandbox."""
    commands = any(t.run is not None for t in config.task_list(enabled)) or any(o.check for o in config.objectives)
    return commands or bool(runtime.tools.offered(config.grant(runtime.capabilities)))


def model_findings(configs: Sequence[AgentConfig]) -> tuple[Finding, ...]:
    """All that is wrong with the models that specs name, as far as that shows without a network and without keys.

    Contacts nobody. A script is read, as a run would.

    Args:
        configs: specs, and drafts of those with errors.

    Returns:
        TK6001 at each name that leads nowhere, and TK6101 for each mistake of a script, once.
    """
    by_model: dict[str, list[AgentConfig]] = {}
    for config in configs:
        if config.model is not None and all(f.code != "TK6001" for f in config.findings):
            by_model.setdefault(config.model, []).append(config)
    out: list[Finding] = []
    for model, named in by_model.items():
        try:
            out += _mistakes(model)
        except UsageError as e:
            out += _misnamed(named, e)
    return tuple(out)


def _mistakes(model: str) -> list[Finding]:
    """What is wrong with the script that a model string names. Raises UsageError when the string leads nowhere."""
    check_name(model)
    if model == AUTO or (parts := split_name(model))[0] != SCRIPTED:
        return []
    path = Path(parts[1])
    try:
        read_script(path)
    except ConfigError as e:
        return [Finding(f.code, f.text.removeprefix(f"{path}: "), Position(str(path))) for f in e.findings]
    return []


def _misnamed(configs: Sequence[AgentConfig], error: UsageError) -> list[Finding]:
    """A model that specs name and that cannot be one, as findings with their places."""
    problem = Problem("TK6001", error.message, ("model",), help=error.hint)
    return [finding for config in configs for finding in config.report(problem)]


def _unpriced(found: Sequence[tuple[AgentConfig, str]]) -> ConfigError:
    """A cost limit that cannot be held, because nobody knows what the model costs."""
    path = ("security", "resource_limits", "max_cost")
    findings = [
        finding
        for config, model in found
        for finding in config.report(
            Problem(
                "TK6002",
                f"max_cost cannot be held: the price of {model} is unknown",
                path,
                help=f'give it in toka.toml: [pricing."{model}"] input and output, in dollars per million tokens',
            )
        )
    ]
    return ConfigError("a cost limit meets a model of unknown price; nothing was started", findings)


async def _models(runtime: Runtime, request: RunRequest, started: Collection[str]) -> list[str]:
    wanted: dict[str, list[AgentConfig]] = {}
    for config in request.configs:
        if any(task.run is None for task in config.task_list(request.enabled)):
            wanted.setdefault(request.model or config.model or runtime.model, []).append(config)
    skipped: list[str] = []
    unpriced: list[tuple[AgentConfig, str]] = []
    misnamed: list[Finding] = []
    missing: ModelUnavailable | None = None
    for model, configs in wanted.items():
        try:
            found = await runtime.resolve_model(model)
        except UsageError as e:
            if model in (request.model, runtime.model):
                raise
            misnamed += _misnamed(configs, e)
        except ModelUnavailable as e:
            if model != AUTO or any(c.name in started for c in configs):
                raise
            missing = e
            skipped += [c.name for c in configs]
        else:
            if runtime.gateway.price(found) is None:
                unpriced += [(config, found) for config in configs if config.limits.cost_usd is not None]
    if misnamed:
        raise ConfigError("a spec names a model that does not exist; nothing was started", misnamed)
    if unpriced:
        raise _unpriced(unpriced)
    if missing is not None and len(skipped) == len(request.configs):
        raise missing
    slow = missing is not None and any(each.endswith(SLOW) for each in missing.tried)
    told = "no model answered in time: {} will be skipped unless one does when it starts" if slow else ""
    return [(told or "no model: {} will be skipped").format(name) for name in sorted(skipped)]
