"""From a spec to an agent that can be executed: its grant compiled, its steps read, its model resolved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from toka.config.agent import AgentConfig
from toka.core.capability import Capability
from toka.core.catalogue import ALIASES
from toka.core.decision import Decision
from toka.events.state import AgentState
from toka.llm.prompts import system_prompt
from toka.runtime.brief import brief
from toka.runtime.capability import CapabilityValidator
from toka.runtime.context import AgentContext, RunContext, StartSandbox
from toka.runtime.control import AgentControl
from toka.runtime.effective import Effective, compile_agent
from toka.runtime.hands import LazyHands
from toka.runtime.private import checkpoints_of, site_of
from toka.runtime.step import Steps
from toka.runtime.values import Values, in_words, values_for, variables_of
from toka.sandbox.gitconfig import obeyed
from toka.sandbox.policy import Place
from toka.sandbox.shield import Order
from toka.sandbox.trusted import decide, find_protected


@dataclass(frozen=True, slots=True)
class PreparedAgent:
    """An agent ready to be executed, and what must be closed after it."""

    context: AgentContext
    hands: LazyHands

    async def close(self) -> None:
        """Ends the agent's sandbox. Safe to call twice."""
        self.context.run.resources.unwatch(self.context.name)
        await self.hands.close()


def place_of_request(config: AgentConfig, name: str) -> str:
    """Where a spec asks for a capability, or would: `agents/a.yaml:12`; empty when its file is not known."""
    requests = config.security.capabilities_required
    index = next((n for n, r in enumerate(requests) if ALIASES.get(r.name, r.name) == name), None)
    found = requests[index].position if index is not None else None
    place = found or config.position("security", "capabilities_required")
    return f"{place.file}:{place.line}" if place.line else ""


def _validator(run: RunContext, config: AgentConfig, got: Effective, workspace: Path) -> CapabilityValidator:
    def origin(name: str) -> str:
        return place_of_request(config, name)

    def guard(need: Capability) -> Decision | None:
        found = find_protected(got.policy, need, obeyed(workspace))
        return None if found is None else decide(found, need, origin, asking)

    asking, asked = config.origin.asking, config.grant(run.capabilities)
    return CapabilityValidator(got.grant, run.runtime.policy, origin, guard, asked, asking)


def _unsandboxed(start: StartSandbox) -> StartSandbox:
    """For a spec with `sandbox: false`, which the operator's settings decide about."""
    return lambda order: start(replace(order, unsandboxed=True))


async def prepare(
    run: RunContext,
    config: AgentConfig,
    control: AgentControl,
    *,
    resumed: bool,
    ending: bool = False,
) -> PreparedAgent:
    """Builds an agent's context.

    Args:
        run: its run.
        config: its spec.
        control: each of its steps passes it.
        resumed: an earlier execution left records to go on from.
        ending: it will take no step any more, so it needs no model.

    Raises:
        ModelUnavailable: a task of it needs a model and there is none.
        ValueMissing: a value or secret that its spec names is not there.
    """
    recorder, runtime = run.recorder, run.runtime
    values = Values() if ending else values_for(config, recorder.state.agents, recorder.blob)
    config = config if ending else in_words(config, values)
    state = recorder.state.agents.get(config.name) or AgentState(config.name)
    site = site_of(run, state)
    place = Place(run.protected, site.hidden, run.toolchains)
    got = compile_agent(config, run.capabilities, runtime.policy, run.execution, place)
    got = replace(got, policy=replace(got.policy, shown=site.shown))
    needs_model = not ending and any(task.run is None for task in config.task_list(run.enabled))
    model = await runtime.resolve_model(run.model or config.model or runtime.model) if needs_model else None
    tools = {t.name: t for t in runtime.tools.offered(got.grant)}
    start = runtime.start_sandbox if config.security.sandbox else _unsandboxed(runtime.start_sandbox)
    validator = _validator(run, config, got, site.workspace)
    variables = {} if ending else variables_of(config, values, runtime.secrets)
    order = Order(site.workspace, got.policy, variables=variables)
    hands = LazyHands(config.name, order, start, recorder, validator, run.runtime.mask)
    run.resources.watch(config.name, hands.usage)
    history = recorder.history(config.name) if resumed else ()
    scope = run.resources.agent(
        config.name,
        got.limits,
        used=state.usage,
        cost_usd=state.cost_usd,
        tool_calls=state.tool_calls + state.denied,
    )
    context = AgentContext(
        run=run,
        name=config.name,
        config=config,
        validator=validator,
        steps=Steps(run.id, config.name, recorder, runtime.clock, control, history),
        control=control,
        policy=got.policy,
        scope=scope,
        hands=hands,
        tools=tools,
        model=model,
        system=system_prompt(brief(config, got.grant, tools.values())) if needs_model else "",
        values=values,
        checkpoints=checkpoints_of(run, site.workspace),
    )
    return PreparedAgent(context, hands)
