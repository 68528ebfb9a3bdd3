"""ResourceManager: what may be used, what was used, and which scope ran out.

Scopes nest: a task's use counts in its agent and in the run. Before an act everything it can use at worst is reserved
in all scopes or in none; afterwards the reservation is replaced by what was used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from toka.core.limits import UNITS, Limits
from toka.core.message import Usage
from toka.errors import LimitExceeded
from toka.llm.model import Estimate
from toka.sandbox.usage import Usage as Machine

_KEYS: Final = {
    "tokens": "max_tokens",
    "cost_usd": "max_cost",
    "model_calls": "max_model_calls",
    "tool_calls": "max_tool_calls",
}
"""How specs and settings call each kind."""


@dataclass(slots=True)
class Scope:
    """One bearer of limits: the run, an agent or a task.

    Attributes:
        name: as messages give it: "run", "agent fixer", "task fix-sum".
        limits: what this scope may use.
        parent: the scope around it; None for the outermost.
        tokens, cost_usd, model_calls, tool_calls: used so far.
        open_tokens, open_cost: reserved and not settled.
    """

    name: str
    limits: Limits
    parent: Scope | None = None
    tokens: int = 0
    cost_usd: float = 0.0
    model_calls: int = 0
    tool_calls: int = 0
    open_tokens: int = 0
    open_cost: float = 0.0

    def reserve_call(self, estimate: Estimate) -> None:
        """Reserves one model call at its worst case, in all scopes or in none.

        Raises:
            LimitExceeded: it does not fit into a scope; innermost first.
        """
        tokens, cost = estimate.input_tokens + estimate.max_tokens, estimate.cost_usd or 0.0
        for scope in self._outwards():
            scope.check("model_calls", scope.model_calls, 1)
            scope.check("tokens", scope.tokens, tokens, scope.open_tokens)
            scope.check("cost_usd", scope.cost_usd, cost, scope.open_cost)
        for scope in self._outwards():
            scope.open_tokens += tokens
            scope.open_cost += cost
            scope.model_calls += 1

    def settle_call(self, estimate: Estimate, usage: Usage, cost: float | None) -> None:
        """Replaces a reservation by what was used."""
        tokens, reserved = estimate.input_tokens + estimate.max_tokens, estimate.cost_usd or 0.0
        for scope in self._outwards():
            scope.open_tokens -= tokens
            scope.open_cost -= reserved
            scope.tokens += usage.tokens
            scope.cost_usd += cost or 0.0

    def count_tool_call(self) -> None:
        """Counts one tool call in all scopes.

        Raises:
            LimitExceeded: a scope allows no more.
        """
        for scope in self._outwards():
            scope.check("tool_calls", scope.tool_calls, 1)
        for scope in self._outwards():
            scope.tool_calls += 1

    def charge(self, usage: Usage, cost: float | None) -> None:
        """Counts a use that was not reserved by this process: an attempt whose answer was lost in a crash."""
        for scope in self._outwards():
            scope.tokens += usage.tokens
            scope.cost_usd += cost or 0.0
            scope.model_calls += usage.calls

    def check(self, kind: str, used: float, needed: float, reserved: float = 0) -> None:
        """Refuses what does not fit into this scope's own limit.

        Args:
            kind: a field of Limits; its unit is that of the figures.
            used: what was used before.
            needed: what one more call can use at worst.
            reserved: what calls in flight can still use.

        Raises:
            LimitExceeded: the three together are above the limit.
        """
        limit = getattr(self.limits, kind)
        if limit is None or used + reserved + needed <= limit:
            return
        flying = f"{reserved:.10g} are reserved for calls in flight; " if reserved else ""
        key = (
            f"security.resource_limits.{_KEYS[kind]}" if self.parent else f"{_KEYS[kind]} in the settings' [limits.run]"
        )
        hint = f"{flying}the refused call needs up to {needed:.10g}: raise {key}"
        raise LimitExceeded(self.name, limit, used, UNITS[kind], hint=hint)

    def _outwards(self) -> list[Scope]:
        out: list[Scope] = []
        scope: Scope | None = self
        while scope is not None:
            out.append(scope)
            scope = scope.parent
        return out


def _unchecked() -> None:
    """Nothing keeps an attempt from being made."""


@dataclass(slots=True)
class CallMeter:
    """Meter of one model call: charges its attempts to a scope and adds them up for the record.

    Attributes:
        scope: who pays.
        check: called before each attempt, as before each act; what it raises keeps the attempt from being made.
        usage: all attempts together.
        cost_usd: None when an attempt of unknown price was made.
    """

    scope: Scope
    check: Callable[[], None] = _unchecked
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    _open: dict[int, Estimate] = field(default_factory=dict[int, Estimate])

    def reserve(self, attempt: int, estimate: Estimate, /) -> None:
        """See Meter."""
        self.check()
        self.scope.reserve_call(estimate)
        self._open[attempt] = estimate

    def settle(self, attempt: int, usage: Usage, cost_usd: float | None, error: str | None, /) -> None:  # noqa: ARG002
        """See Meter."""
        self.scope.settle_call(self._open.pop(attempt), usage, cost_usd)
        self.usage = self.usage + usage
        self.cost_usd = None if cost_usd is None or self.cost_usd is None else self.cost_usd + cost_usd

    @property
    def charged(self) -> tuple[Usage | None, float | None]:
        """Usage and cost for the record; the usage is None when no attempt was charged."""
        return self.usage if self.usage.calls else None, self.cost_usd


class ResourceManager:
    """The scopes of one run."""

    def __init__(self, limits: Limits | None = None) -> None:
        """`limits` bound the run as a whole; None sets none."""
        self.run = Scope("run", limits or Limits())
        self._agents: dict[str, Scope] = {}
        self._watched: dict[str, Callable[[], Machine | None]] = {}

    def agent(self, name: str, limits: Limits, *, used: Usage, cost_usd: float | None, tool_calls: int) -> Scope:
        """An agent's scope, starting from what the record says it used already.

        The scope of an earlier start in this process, if there was one, counts no more.
        """
        scope = Scope(f"agent {name}", limits, self.run, used.tokens, cost_usd or 0.0, used.calls, tool_calls)
        earlier = self._agents.get(name) or Scope("", limits)
        self._agents[name] = scope
        self.run.tokens += scope.tokens - earlier.tokens
        self.run.cost_usd += scope.cost_usd - earlier.cost_usd
        self.run.model_calls += scope.model_calls - earlier.model_calls
        self.run.tool_calls += scope.tool_calls - earlier.tool_calls
        return scope

    def watch(self, agent: str, sample: Callable[[], Machine | None]) -> None:
        """From now on `samples` asks `sample` what the agent's processes use; None while it has none."""
        self._watched[agent] = sample

    def unwatch(self, agent: str) -> None:
        """The agent has no processes any more."""
        self._watched.pop(agent, None)

    def samples(self) -> dict[str, Machine]:
        """What the processes of each agent used until now, and use: cgroup files are read, else /proc."""
        found = {agent: sample() for agent, sample in tuple(self._watched.items())}
        return {agent: use for agent, use in found.items() if use is not None}

    def task(self, agent: Scope, task: str) -> Scope:
        """A task's scope inside its agent's."""
        return Scope(f"task {task}", Limits(), agent)
