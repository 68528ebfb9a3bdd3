"""From what a spec asks for to what its agent gets: the grant, the limits and the sandbox they compile to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from toka.config.agent import AgentConfig, Presets
from toka.config.settings import ExecutionConfig
from toka.core.capability import Grant
from toka.core.limits import Limits
from toka.core.operator import OperatorPolicy
from toka.sandbox.policy import NOWHERE, Place, SandboxPolicy, compile_policy
from toka.sandbox.trusted import named_trusted


@dataclass(frozen=True, slots=True)
class Effective:
    """What an agent gets, in the three forms in which a run uses it."""

    grant: Grant
    limits: Limits
    policy: SandboxPolicy


def bounds(config: AgentConfig, execution: ExecutionConfig) -> Limits:
    """What an agent may use in a run: of each kind the least that its spec and the settings say."""
    return config.limits.tighten(Limits(wall_s=execution.workstream_timeout_s, output_bytes=execution.output_bytes))


def compile_agent(
    config: AgentConfig,
    presets: Presets,
    operator: OperatorPolicy,
    execution: ExecutionConfig,
    place: Place = NOWHERE,
) -> Effective:
    """The grant under the operator's rules, the limits under the settings', and the sandbox that both compile to.

    Args:
        config: the spec.
        presets: capabilities that the settings define.
        operator: the operator's rules.
        execution: for the limits that it sets for every agent.
        place: what the place of the run adds.
    """
    grant = operator.bound(config.grant(presets))
    limits = bounds(config, execution)
    place = replace(place, named=named_trusted(config.named_writes(presets)))
    policy = compile_policy(grant, limits, denied=operator.denied, place=place)
    return Effective(grant, limits, policy)
