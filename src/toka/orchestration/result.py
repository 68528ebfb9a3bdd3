"""How a run stands or ended, read off its state: the `done` record and the exit code. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toka.core.ids import RunId
from toka.events.lifecycle import AgentStatus, RunStatus, TaskStatus
from toka.events.state import AgentState, RunState
from toka.orchestration.schedule import BENIGN
from toka.runtime.values import template_of

EXIT_DONE, EXIT_FAILED, EXIT_MISSING, EXIT_LIMIT, EXIT_PERSON, EXIT_STOPPED = 0, 1, 4, 6, 7, 8


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run as it stands when its executor lets go of it.

    Attributes:
        run: the run.
        status: COMPLETED, FAILED, STOPPED, WAITING, or INTERRUPTED when it can be resumed.
        state: all that is recorded.
        reason: why, for people; empty when it completed.
    """

    run: RunId
    status: RunStatus
    state: RunState
    reason: str = ""

    @property
    def exit_code(self) -> int:
        """What `toka run` exits with; an interrupted run's code is the signal's, not this."""
        agents = self.state.agents.values()
        if self.status is RunStatus.STOPPED:
            return EXIT_STOPPED
        if self.status is RunStatus.WAITING:
            return EXIT_PERSON
        if agents and all(a.status is AgentStatus.SKIPPED and a.why == "no_model" for a in agents):
            return EXIT_MISSING
        if self.status is RunStatus.FAILED:
            return EXIT_LIMIT if any(a.why == "limit" for a in agents) else EXIT_FAILED
        return EXIT_DONE

    def to_json(self) -> dict[str, Any]:
        """The `done` record of `--json`."""
        return {
            "type": "done",
            "run_id": self.run,
            "state": self.status.value,
            "reason": self.reason,
            "sandbox": self.state.weakest,
            "agents": {name: _agent(agent) for name, agent in self.state.agents.items()},
        }


def verdict(state: RunState) -> tuple[RunStatus, str]:
    """What the ends of its agents make of a run, and why. While one waits for a person, the run has not ended."""
    agents = list(state.agents.values())
    waiting = [a for a in agents if not a.ended]
    if waiting:
        return RunStatus.WAITING, "; ".join(
            f"{a.name}: {_line(a.reason)}" for a in [a for a in waiting if a.reason][:5]
        )
    failed = [a for a in agents if a.status is AgentStatus.FAILED]
    if failed:
        whole = {a.name for a in failed if a.made is not None}  # its reason names its instances
        failed = [a for a in failed if template_of(a.name) not in whole]
        return RunStatus.FAILED, "; ".join(f"{a.name}: {_line(a.reason)}" for a in failed[:5])
    if any(a.status is AgentStatus.STOPPED for a in agents):
        denied = [a for a in agents if a.status is AgentStatus.STOPPED and a.why == "denied" and a.made is None]
        return RunStatus.STOPPED, "; ".join(f"{a.name}: {_line(a.reason)}" for a in denied[:5]) or "stopped by a person"
    unmet = [a for a in agents if a.status is AgentStatus.SKIPPED and a.why not in BENIGN]
    if unmet:
        return RunStatus.FAILED, "; ".join(f"{a.name}: {_line(a.reason)}" for a in unmet[:5])
    if agents and all(a.status is AgentStatus.SKIPPED and a.why == "no_model" for a in agents):
        return RunStatus.FAILED, f"nothing ran: {_line(agents[0].reason)}"
    return RunStatus.COMPLETED, ""


def _line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def _agent(agent: AgentState) -> dict[str, Any]:
    ended_badly = agent.status in (AgentStatus.FAILED, AgentStatus.SKIPPED, AgentStatus.STOPPED, AgentStatus.WAITING)
    return {
        "state": agent.status.value,
        "tasks": {t.id: t.status.value for t in agent.tasks.values()},
        "objectives": [
            {"number": o.number, "title": o.title, "state": o.status.value} for _, o in sorted(agent.objectives.items())
        ],
        "tokens": agent.usage.tokens,
        "cost_usd": None if agent.cost_usd is None else round(agent.cost_usd, 6),
        "denied": agent.denied,
        "error": agent.reason if ended_badly else None,
        "approvals": [a.id for a in agent.asking],
        "attention": [t.id for t in agent.tasks.values() if t.status is TaskStatus.NEEDS_ATTENTION],
    }
