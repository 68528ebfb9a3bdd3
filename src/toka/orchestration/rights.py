"""What an agent effectively gets: what its spec asks for, as far as the operator allows it, compiled. Pure.

`toka plan` and `toka explain grant` show it. `effective` is the arithmetic that a run does before it starts a sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from toka.config.agent import AgentConfig, CapabilityRequest, Presets
from toka.config.settings import ExecutionConfig
from toka.config.settings_tools import Toolchain
from toka.core.capability import Capability, Grant
from toka.core.catalogue import resolve
from toka.core.ids import AgentName
from toka.core.limits import KINDS, Limits
from toka.core.operator import CallRule, OperatorPolicy
from toka.core.taken import Taken, taken_json, taken_out
from toka.runtime.effective import Effective, compile_agent
from toka.sandbox.environment import environment_of
from toka.sandbox.level import Level
from toka.sandbox.policy import Place, SandboxPolicy
from toka.tools.builtin import Toolbox, needed_names
from toka.tools.tool import Tool

Outcome = Literal["allowed", "ask", "denied"]
GIVEN: Final[Mapping[str, str]] = {
    "TOKA_IDEMPOTENCY_KEY": "the step's key",
    "TOKA_AGENT": "the agent, for `run:` and `check:`",
    "TOKA_RUN": "the run, for `run:` and `check:`",
}
"""Variables that differ from command to command, with what they hold."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What settings and the place of a run add to a spec.

    Attributes:
        presets: capabilities that the settings define.
        policy: the operator's rules.
        execution: for the limits that it sets for every agent.
        protected: files of the workspace that no agent changes: the specs.
        hidden: folders of the workspace that no agent sees: Toka's own state.
        tools: all there are.
        toolchains: folders of programs that sandboxes show.
        level: how strongly sandboxes confine.
        allow_unsandboxed: whether `sandbox: false` in a spec counts.
    """

    presets: Presets = field(default_factory=dict[str, tuple[Capability, ...]])
    policy: OperatorPolicy = field(default_factory=OperatorPolicy)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    protected: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    tools: Toolbox = field(default_factory=Toolbox)
    toolchains: tuple[Toolchain, ...] = ()
    level: Level = "full"
    allow_unsandboxed: bool = False


def effective(config: AgentConfig, terms: Terms) -> Effective:
    """What an agent gets under these terms."""
    place = Place(terms.protected, terms.hidden, tuple(toolchain.path for toolchain in terms.toolchains))
    return compile_agent(config, terms.presets, terms.policy, terms.execution, place)


@dataclass(frozen=True, slots=True)
class Asked:
    """One capability that a spec asks for, and what became of it.

    Attributes:
        text: as it was asked for.
        place: `agents/a.yaml:12`; the file alone when the line is not known.
        granted: what it gives in the end.
        taken: what the operator took out.
        note: why it gives nothing, or what else there is to know.
    """

    text: str
    place: str
    granted: tuple[Capability, ...]
    taken: tuple[Taken, ...]
    note: str


@dataclass(frozen=True, slots=True)
class ToolRight:
    """Whether an agent may use one tool.

    Attributes:
        tool: its name.
        needs: the capabilities that a call needs, by name; empty when that depends on the call.
        outcome: of a call that nothing else speaks against.
        rule: what decides.
        but: rules under which single calls are decided otherwise.
    """

    tool: str
    needs: tuple[str, ...]
    outcome: Outcome
    rule: str
    but: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rights:
    """All that an agent gets.

    Attributes:
        agent: its name.
        grant, limits, policy: see Effective.
        tools: what its model is offered.
        table: every tool there is, offered or not.
        environment: the variables of each command; further ones are in GIVEN.
        asked: what its spec asks for, in order.
        taken: what the operator took out, each once.
        level: how strongly its sandbox confines.
    """

    agent: AgentName
    grant: Grant
    limits: Limits
    policy: SandboxPolicy
    tools: tuple[Tool, ...]
    table: tuple[ToolRight, ...]
    environment: Mapping[str, str]
    asked: tuple[Asked, ...]
    taken: tuple[Taken, ...]
    level: Level = "full"

    def to_json(self) -> dict[str, Any]:
        """The part of `toka explain grant --json` that is the same on every machine."""
        return {
            "agent": self.agent,
            "asked": [
                {
                    "text": a.text,
                    "place": a.place,
                    "granted": [c.to_json() for c in a.granted],
                    "taken_out": taken_json(a.taken),
                    "note": a.note,
                }
                for a in self.asked
            ],
            "grant": [c.to_json() for c in self.grant.capabilities],
            "taken_out": taken_json(self.taken),
            "tools": [
                {"tool": t.tool, "needs": list(t.needs), "outcome": t.outcome, "rule": t.rule, "but": list(t.but)}
                for t in self.table
            ],
            "sandbox": self.policy.to_json(),
            "limits": limits_json(self.limits),
            "environment": {**self.environment, **dict.fromkeys(GIVEN)},
        }


def rights_of(config: AgentConfig, terms: Terms) -> Rights:
    """All that an agent gets under these terms."""
    got = effective(config, terms)
    requested = config.grant(terms.presets)
    taken = tuple(taken_out(requested, terms.policy))
    tools = terms.tools.offered(got.grant)
    offered = {tool.name: tool for tool in tools}
    return Rights(
        agent=config.name,
        grant=got.grant,
        limits=got.limits,
        policy=got.policy,
        tools=tools,
        table=tuple(
            ToolRight(tool.name, needed_names(tool), "denied", _missing(needed_names(tool), taken, got.grant))
            if tool.name not in offered
            else _tool_right(tool.name, needed_names(offered[tool.name]), got.grant, terms.policy)
            for tool in terms.tools
        ),
        environment=environment_of(got.policy),
        asked=tuple(_asked(request, terms) for request in config.security.capabilities_required),
        taken=taken,
        level="none" if terms.allow_unsandboxed and not config.security.sandbox else terms.level,
    )


def limits_json(limits: Limits) -> dict[str, Any]:
    """The limits that are set, as JSON."""
    return {kind: value for kind in KINDS if (value := getattr(limits, kind)) is not None}


def _asked(request: CapabilityRequest, terms: Terms) -> Asked:
    found = resolve(request.name, request.arguments, terms.presets)
    whole = Grant(found.capabilities)
    taken = tuple(taken_out(whole, terms.policy))
    at = request.position
    items = [item for values in request.arguments.values() for item in values]
    return Asked(
        text=f"{request.name}: {', '.join(items)}" if items else request.name,
        place="" if at is None else f"{at.file}:{at.line}" if at.line else at.file,
        granted=terms.policy.bound(whole).capabilities,
        taken=taken,
        note=found.note,
    )


def _missing(needs: Sequence[str], taken: Sequence[Taken], grant: Grant) -> str:
    """The rule by which a tool is not offered."""
    rules = dict.fromkeys(t.rule for t in taken if t.what.name in needs)
    held = [c.text for name in needs for c in grant.named(name)]
    return "; ".join(rules or held) or f"no {' or '.join(needs) or 'grant'}"


def _tool_right(tool: str, needs: tuple[str, ...], grant: Grant, policy: OperatorPolicy) -> ToolRight:
    """How calls of a tool that is offered are decided."""
    held = tuple(c for name in needs for c in grant.named(name))
    asks = [r for r in policy.ask if isinstance(r, Capability) and held and all(r.covers(c) for c in held)]
    if asks:
        return ToolRight(tool, needs, "ask", "; ".join(f"policy: ask {rule.text}" for rule in asks))
    but = [
        f"{outcome} {rule.text}"
        for outcome, rules in (("deny", policy.deny), ("ask", policy.ask))
        for rule in rules
        if (rule.tool == tool if isinstance(rule, CallRule) else any(c.intersect(rule) for c in held))
    ]
    return ToolRight(tool, needs, "allowed", "; ".join(c.text for c in held) or "its grant", tuple(but))
