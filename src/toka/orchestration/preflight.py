"""What must be there before a run is made, so that nothing is half-started: a system, a sandbox, a model."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from toka.config.agent import AgentConfig
from toka.config.rules import Problem
from toka.errors import ConfigError, MissingError, ModelUnavailable, UsageError
from toka.llm.resolve import AUTO
from toka.orchestration.request import RunRequest
from toka.runtime.context import Runtime
from toka.sandbox.policy import SandboxPolicy
from toka.tools.builtin import tools_for


async def preflight(runtime: Runtime, request: RunRequest, started: Collection[str] = ()) -> list[str]:
    """Checks what a team needs of this machine.

    Args:
        runtime: the process's ports.
        request: the agents that are to run.
        started: those of them that have worked already: without a model they are not skipped, the run waits.

    Returns:
        Warnings: agents that will be skipped because no model answers.

    Raises:
        MissingError: this is no Linux.
        SandboxUnavailable: there is no working sandbox.
        ModelUnavailable: no model answers, and no agent can do without one; or a named model cannot be had.
        UsageError, ConfigError: a model string or script is wrong.
    """
    if not sys.platform.startswith("linux"):
        raise MissingError(
            f"agents run on Linux; this is {sys.platform}",
            hint="run Toka in a Linux machine: Lima on macOS, WSL2 on Windows, or a devcontainer; "
            "validate, plan, ps, show and events work here",
        )
    if any(_has_hands(runtime, config, request.enabled) for config in request.configs):
        trial = await runtime.start_sandbox(request.workspace, SandboxPolicy())
        await trial.close()
    return await _models(runtime, request, started)


def _has_hands(runtime: Runtime, config: AgentConfig, enabled: Sequence[str]) -> bool:
    """Whether an agent can come to need a sandbox."""
    commands = any(t.run is not None for t in config.task_list(enabled)) or any(o.check for o in config.objectives)
    return commands or bool(tools_for(config.grant(runtime.capabilities)))


def _misnamed(configs: Sequence[AgentConfig], error: UsageError) -> ConfigError:
    """A model that specs name and that cannot be one, as findings with their places."""
    findings = [
        finding
        for config in configs
        for finding in config.report(Problem("TK6001", error.message, ("model",), help=error.hint))
    ]
    return ConfigError("a spec names a model that does not exist; nothing was started", findings)


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
    missing: ModelUnavailable | None = None
    for model, configs in wanted.items():
        try:
            found = await runtime.resolve_model(model)
        except UsageError as e:
            if model in (request.model, runtime.model):
                raise
            raise _misnamed(configs, e) from e
        except ModelUnavailable as e:
            if model != AUTO or any(c.name in started for c in configs):
                raise
            missing = e
            skipped += [c.name for c in configs]
        else:
            if runtime.gateway.price(found) is None:
                unpriced += [(config, found) for config in configs if config.limits.cost_usd is not None]
    if unpriced:
        raise _unpriced(unpriced)
    if missing is not None and len(skipped) == len(request.configs):
        raise missing
    return [f"no model: {name} will be skipped" for name in sorted(skipped)]
