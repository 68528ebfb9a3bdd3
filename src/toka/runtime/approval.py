"""Questions to a person: before an agent's first task, and before a call that the operator wants to be asked about.

A question is recorded once, under an id that stands for the place and all that is shown. While it is open the agent
does not go on; what it does after the answer is decided by the answer alone, in this process or a later one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from toka.config.agent import TaskSpec
from toka.core.decision import Decision
from toka.core.ids import StepKey
from toka.events.flow import ApprovalAsked
from toka.events.state import AgentState, ApprovalState
from toka.runtime.act import StepFailure
from toka.runtime.context import AgentContext

SHOWN_CHARACTERS: Final = 16_384
"""Of one text or of a call's arguments; of a longer one its beginning, length and SHA-256 are shown."""
QUESTION_CHARACTERS: Final = 300
"""Of what a call is about, in its question."""


class AwaitsApproval(Exception):
    """A person has to answer first. `question` is for them."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


@dataclass(frozen=True, slots=True)
class Ask:
    """What a person is asked.

    Attributes:
        task: which waits; empty for the agent as a whole.
        question: for the person.
        shown: what the answer is about, as JSON. It holds all that the answer is bound to.
        within_s: after how long it counts as unanswered, in seconds; None = never.
    """

    task: str
    question: str
    shown: dict[str, Any]
    within_s: float | None

    def id(self, run: str, agent: str) -> str:
        """16 hex digits: the same for the same question in the same place."""
        bound = json.dumps([run, agent, self.task, self.question, self.shown], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(bound.encode("utf-8", "surrogatepass")).hexdigest()[:16]


async def answer_to(agent: AgentContext, ask: Ask) -> ApprovalState:
    """What was answered. A question that was never asked is recorded first.

    Raises:
        AwaitsApproval: nothing yet.
        JournalError: the record cannot be written.
    """
    recorder, id_ = agent.run.recorder, ask.id(agent.run.id, agent.name)
    state = recorder.state.agents.get(agent.name) or AgentState(agent.name)
    known = state.approvals.get(id_)
    if known is None:
        expires = None if ask.within_s is None else agent.run.runtime.clock.now() + ask.within_s
        asked = ApprovalAsked(id_, ask.task, ask.question, ask.shown, expires, ask.within_s)
        await recorder.record(agent.name, asked)
        raise AwaitsApproval(ask.question)
    if not known.answer:
        raise AwaitsApproval(ask.question)
    if (known.task, known.question, known.shown) != (ask.task, ask.question, ask.shown):
        return replace(known, answer="denied", author="", reason="the answer was given to another question")
    return known


async def consent(agent: AgentContext, key: StepKey, tool: str, arguments: Any, about: str, rule: Decision) -> Decision:
    """What a person decides about one call; the answer counts for this step and no other.

    Args:
        agent: who called.
        key: the step.
        tool: the tool's name.
        arguments: of the call.
        about: what the call is about, for the question.
        rule: the decision to ask.

    Raises:
        AwaitsApproval: nothing yet.
        StepFailure: nobody answered in time.
        JournalError: the record cannot be written.
    """
    shown = {"tool": tool, "arguments": _whole(arguments), "rule": rule.rule, "step": key.text}
    ask = Ask(key.task, f"{tool}: {_short(about)}?", shown, agent.run.execution.approval_timeout_s)
    known = await answer_to(agent, ask)
    if known.answer == "approved":
        return Decision("allowed", f"{rule.rule}, approved by {known.author or 'somebody'}")
    if known.answer == "denied":
        return replace(rule, outcome="denied", reason=known.in_words)
    raise StepFailure("unanswered", known.in_words, retryable=False)


def before_start(agent: AgentContext, tasks: Iterable[TaskSpec]) -> Ask | None:
    """What a person is asked before an agent's first task; None when its spec does not want that."""
    flow = agent.config.flow
    if flow is None or flow.approve is None:
        return None
    prose = agent.values.prose
    tasks = list(tasks)
    checks = [objective.check.run for objective in agent.config.objectives if objective.check is not None]
    commands = [*(task.run for task in tasks if task.run is not None), *checks]
    variables = {name: prose(text) for name, text in flow.env.items()}
    below = {**dict(agent.values.beside), **agent.values.beside_in([*commands, *flow.env.values()])}
    shown: dict[str, Any] = {
        "may": [capability.text for capability in agent.validator.grant.capabilities],
        "tasks": [_whole(task.description if task.run is None else f"run: {prose(task.run)}") for task in tasks],
        "checks": [_whole(prose(check)) for check in checks],
        "variables": {name: _whole(text) for name, text in sorted(variables.items())},
        "values": {key: _whole(text) for key, text in below.items()},
        "cost_usd": agent.scope.limits.cost_usd,
    }
    within = flow.approve.expires or agent.run.execution.approval_timeout_s
    return Ask("", prose(flow.approve.question), {k: v for k, v in shown.items() if v not in ([], {}, None)}, within)


def _whole(value: Any) -> Any:
    """A JSON value as it is, or what stands for a large one."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= SHOWN_CHARACTERS:
        return value
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"cut": text[: SHOWN_CHARACTERS // 2], "characters": len(text), "sha256": digest}


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= QUESTION_CHARACTERS else flat[: QUESTION_CHARACTERS - 1] + "…"
