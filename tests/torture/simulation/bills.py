"""What the provider billed, and whether the record counts it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toka.core.message import Usage
from toka.events.event import StepDone, StepFailed, StepIntent
from toka.events.state import AgentState, RunState
from toka.llm.pricing import Price

if TYPE_CHECKING:
    from torture.simulation.rules import Act, StepSeen
    from torture.simulation.world import Life, World

PRICE = Price(3.0, 15.0)
"""Dollars per million tokens of the simulated model."""
_BROKEN_OFF = frozenset({"timeout", "failed", "cancelled"})
"""Errors of steps that something else ended: in the moment of its answer, what the answer cost is not known."""


@dataclass
class Execution:
    """One start of a model step.

    Attributes:
        life: by which process.
        reserved: tokens in, tokens out and dollars.
        attempts: what became of each attempt.
        charged: what the record says; None before that.
    """

    life: Life
    reserved: list[float]
    attempts: list[Act] = field(default_factory=list["Act"])
    charged: Usage | None = None
    lost: bool = False

    @property
    def worst(self) -> Usage:
        """One attempt at its reservation."""
        return Usage(int(self.reserved[0]), int(self.reserved[1]), calls=1)


class Bills:
    """Watches the model calls of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._executions: dict[tuple[str, str], list[Execution]] = defaultdict(list)
        self._tools: dict[str, int] = defaultdict(int)

    def intent(self, seen: StepSeen, event: StepIntent, life: Life) -> None:
        """A step is about to be taken."""
        if "/tool/" in seen.step and len(seen.intents) == 1:
            self._tools[seen.agent] += 1
        if "/model/" not in seen.step:
            return
        before = self._executions[seen.agent, seen.step]
        if before:
            last = before[-1]
            told = Usage.from_json(event.lost) if event.lost else Usage()
            owed = {last.worst} | ({_owed(last)} if last.life is life else set())  # a pause may end a call, too
            text = f"{seen.step} of {seen.agent}: reserved {last.reserved}, charged {event.lost}, not one of {owed}"
            self._world.rules.check("lost-is-charged", told in owed, text)
            last.charged, last.lost = told, told == last.worst
        before.append(Execution(life, list(event.reserved or ())))

    def begun(self, act: Act) -> None:
        """An attempt at a model call is made."""
        executions = self._executions.get((act.seen.agent, act.seen.step)) if act.kind == "model" else None
        if executions:
            executions[-1].attempts.append(act)

    def ended(self, seen: StepSeen, event: StepDone | StepFailed, life: Life) -> None:
        """A step's end is recorded."""
        if "/model/" not in seen.step:
            return
        execution = self._executions[seen.agent, seen.step][-1]
        charged = Usage.from_json(event.usage) if event.usage else Usage()
        execution.charged = charged
        who = f"{seen.step} of {seen.agent}: {event}"
        owed, last = _owed(execution), execution.attempts[-1].outcome if execution.attempts else ""
        late = isinstance(event, StepFailed) and event.error in _BROKEN_OFF  # as its answer came
        if life is not execution.life:
            execution.lost, owed = True, execution.worst
        elif charged != owed and (
            last in ("cancelled", "lost", "broke", "") or late
        ):  # cut off, and charged as a whole
            self._world.rules.check(
                "billed-is-counted", _covers(charged, _bill(execution)), f"{who}, {_bill(execution)}"
            )
            return
        self._world.rules.check("billed-is-counted", charged == owed, f"{who}; owed is {owed}")
        cost = (owed.input_tokens * PRICE.input + owed.output_tokens * PRICE.output) / 1e6
        told = event.cost_usd or 0.0
        self._world.rules.check("billed-is-counted", abs(told - cost) < 1e-9, f"{who}; the cost is {cost}")

    def agent_ended(self, agent: AgentState) -> None:
        """The agent's counters are final."""
        total = Usage()
        for (name, step), executions in self._executions.items():
            for execution in executions if name == agent.name else ():
                text = f"{step} of {name} was reserved at {execution.reserved} and never charged"
                self._world.rules.check("lost-is-charged", execution.charged is not None, text)
                total = total + (execution.charged or Usage())
        self._world.rules.check("billed-is-counted", agent.usage == total, f"{agent.name}: {agent.usage}, not {total}")
        count = self._tools[agent.name]
        self._world.rules.check(
            "calls-are-counted", agent.tool_calls == count, f"{agent.name}: {agent.tool_calls}, {count}"
        )
        self._within(agent)

    def _within(self, agent: AgentState) -> None:
        limits: Any = self._world.limits.get(agent.name.partition("[")[0])
        if limits is None:
            return
        bill = self._bill(agent.name)
        used = {"model_calls": bill.calls, "tokens": bill.tokens, "tool_calls": agent.tool_calls}
        for kind, value in used.items():
            most = getattr(limits, kind)
            self._world.rules.check("within-its-limits", most is None or value <= most, f"{agent.name}: {value} {kind}")

    def _bill(self, agent: str) -> Usage:
        """What the provider surely billed for an agent. The record may count more, never less."""
        bill = Usage()
        for (name, _), executions in self._executions.items():
            for execution in executions if name == agent else ():
                bill = bill + _bill(execution)
        return bill

    def forget(self) -> None:
        """Lets go of all acts."""
        self._executions.clear()

    def world_over(self, state: RunState) -> None:
        """The run's limits held."""
        most = self._world.run_tokens
        used = sum(self._bill(name).tokens for name in state.agents)
        self._world.rules.check("within-its-limits", most is None or used <= most, f"run: {used} tokens of {most}")


def _bill(execution: Execution) -> Usage:
    """What the provider surely billed."""
    bill = Usage()
    for act in execution.attempts[-1:] if execution.lost else execution.attempts:  # a lost one counts as one attempt
        if act.outcome == "replied":
            bill = bill + act.usage
        elif act.failure is not None and act.failure.usage is not None:
            bill = bill + act.failure.usage
    return bill


def _covers(charged: Usage, bill: Usage) -> bool:
    return charged.input_tokens >= bill.input_tokens and charged.output_tokens >= bill.output_tokens


def _owed(execution: Execution) -> Usage:
    """What the settled attempts come to: a bill that is not known counts at its reservation."""
    owed = Usage()
    for act in execution.attempts:
        if act.outcome == "replied":
            owed = owed + act.usage
        elif act.failure is not None and act.failure.usage is not None:
            owed = owed + act.failure.usage
        elif act.failure is None or act.failure.billed:
            owed = owed + Usage(int(execution.reserved[0]), int(execution.reserved[1]), calls=1)
    return owed
