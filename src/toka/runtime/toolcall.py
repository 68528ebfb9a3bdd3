"""One tool call of a model: parse, decide, record, run. Whatever goes wrong becomes an answer to the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeGuard

from toka.core.capability import CapabilityError
from toka.core.catalogue import FILESYSTEM_READ, FILESYSTEM_WRITE, NETWORK_ACCESS
from toka.core.decision import Decision
from toka.core.effect import Effect
from toka.core.ids import StepKey
from toka.core.message import Message, ToolCall, Usage
from toka.errors import LimitExceeded, SandboxError
from toka.llm.prompts import bad_arguments, tool_error, tool_result, unknown_tool
from toka.runtime.act import Act, Result, StepFailure
from toka.runtime.approval import consent
from toka.runtime.command import limit_met, met
from toka.runtime.context import AgentContext
from toka.runtime.guard import cared_for
from toka.runtime.meter import Meter
from toka.tools.tool import CheckableTool, Tool, ToolContext, ToolResult, validate

BEYOND: Final = "nothing can grant this"
"""The rule of a denial for what no capability stands for: a path outside the workspace, a shell beside a list."""
_PLAIN: Final = frozenset({FILESYSTEM_READ, FILESYSTEM_WRITE, NETWORK_ACCESS})
"""What a call needs that runs no program: it changes no other paths than it names."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call came to.

    Attributes:
        message: the tool message for the model.
        invalid: why the call could not be run (it named no tool, or its arguments were malformed); empty when it was.
    """

    message: Message
    invalid: str = ""


async def answer_call(agent: AgentContext, key: StepKey, call: ToolCall) -> Answer:
    """Answers one tool call.

    Raises:
        LimitExceeded: the tool calls of a scope are used up.
        AwaitsApproval: the operator wants a person to be asked, and nobody has answered yet.
        StepFailure: nobody answered in time.
        InDoubt, JournalError: see Steps.run.
    """
    if (known := agent.steps.recorded(key)) is not None:
        return _answer(call, known)
    tool = _find(agent, call.name)
    if tool is None:
        return await _reject(
            agent, key, call, unknown_tool(call.name, [*agent.tools, "report"]), f"no tool {call.name!r}"
        )
    arguments = validate(tool, call.arguments)
    if isinstance(arguments, str):
        return await _reject(agent, key, call, bad_arguments(call.name, arguments), arguments)
    if agent.steps.unanswered(key) is None:  # one that was in flight at a crash was counted when it started
        agent.scope.count_tool_call()
    try:
        decision = agent.validator.check(tool.needs(arguments), tool.name, subject(arguments))
    except CapabilityError as e:
        decision = Decision("denied", BEYOND, str(e))
    if decision.outcome == "ask":
        decision = await consent(agent, key, tool.name, arguments, subject(arguments), decision)
    if not decision.allowed:
        return _answer(call, await agent.steps.deny(key, call.name, decision, arguments))
    return await _run(agent, key, call, tool, arguments, decision.rule)


async def answer_repeated(agent: AgentContext, key: StepKey, call: ToolCall, times: int) -> Answer:
    """Answers a call whose id other calls of the same reply have as well: none of them is run.

    Args:
        agent: who called.
        key: the step.
        call: the call, under an id of its own.
        times: how many calls came under the one id.

    Raises:
        JournalError: see Steps.answer.
    """
    why = f"{times} calls of one reply have the same id, so that their results could not be told apart"
    hint = "None of them was run. Make them again, one in a reply if need be."
    return await _reject(agent, key, call, tool_error(call.name, why, hint), why)


async def _run(
    agent: AgentContext, key: StepKey, call: ToolCall, tool: Tool, arguments: dict[str, Any], rule: str
) -> Answer:
    execution = agent.run.execution
    meter = Meter(agent.hands.sandbox, agent.run.recorder.check_lease)
    context = ToolContext(
        hands=meter.hands,
        key=agent.steps.key(key),
        timeout_s=execution.command_timeout_s,
        output_limit=execution.output_bytes,
        agent=agent.name,
        mask=agent.run.runtime.mask,
    )

    within = execution.command_timeout_s + execution.grace_s

    async def do() -> Result:
        try:
            async with agent.control.timeout(within):
                result = await tool.call(arguments, context)
        except TimeoutError:
            result = ToolResult(f"timed out after {execution.command_timeout_s:g} s", failed=True)
        except SandboxError as e:
            result = ToolResult(f"the sandbox failed: {e}", failed=True)
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as e:
            result = ToolResult(f"{type(e).__name__}: {e}", failed=True)  # a custom tool's own defect: told, not raised
        used = meter.used() or {}
        over = met(used)
        if over is not None and not over.of_command and over.text not in result.text:
            result = replace(result, text=f"{result.text}\n[{over.text}]")
        value = agent.run.runtime.redact(_value(tool.name, result))
        lost = result.data is not None and result.data.get("ended") == "lost" and over is None
        return Result(value, failed=result.failed, limit=limit_met(used, agent.name), lost=lost)

    assumed = _value(tool.name, ToolResult("this call was made before a crash; a person says that it happened"))
    declared = None if tool.effect is Effect.WORKSPACE else tool.effect  # a tool's word is no person's
    care = cared_for(agent, key, declared, _written(tool, arguments))
    act = Act(
        key, care.effect, tool.name, arguments, rule,
        assumed=assumed, used=meter.used, within_s=within, guard=care.guard, turn=care.turn,
    )  # fmt: skip
    if _is_checkable(tool):
        checkable = tool

        async def evidence() -> dict[str, Any]:
            return await checkable.evidence(arguments, context)

        async def probe(noted: dict[str, Any]) -> tuple[Literal["happened", "not-happened", "unknown"], Any]:
            outcome = await checkable.probe(arguments, noted, context)
            return outcome, _value(tool.name, checkable.happened(arguments, noted)) if outcome == "happened" else None

        act = replace(act, evidence=evidence, probe=probe)
    return _answer(call, await agent.steps.run(act, do))


def _written(tool: Tool, arguments: dict[str, Any]) -> tuple[str, ...] | None:
    """The paths that a call may change; None = all that its agent may."""
    needs = tool.needs(arguments)
    named, writes = {need.name for need in needs}, [need for need in needs if need.name == FILESYSTEM_WRITE]
    if not named or not named <= _PLAIN or any(need.paths is None for need in writes):
        return None
    return tuple(path for need in writes for path in need.paths or ())


def subject(arguments: Mapping[str, Any]) -> str:
    """What a call is about, for rules over calls: its command, address or path, else all its arguments as JSON."""
    for name in ("command", "url", "path"):
        if isinstance(value := arguments.get(name), str):
            return value
    return json.dumps(arguments, ensure_ascii=False, sort_keys=True)


def _is_checkable(tool: Tool) -> TypeGuard[CheckableTool]:
    """As isinstance, which walks over all members of the protocol each time."""
    return hasattr(tool, "evidence") and hasattr(tool, "probe") and hasattr(tool, "happened")


def _find(agent: AgentContext, name: str) -> Tool | None:
    """The agent's tool, or one it was not granted: asking for that one is denied with the reason."""
    return agent.tools.get(name) or agent.run.runtime.tools.find(name)


def _value(name: str, result: ToolResult) -> dict[str, Any]:
    text = tool_error(name, result.text) if result.failed else tool_result(name, result.text)
    return {"text": text, "data": result.data} if result.data else {"text": text}


async def _reject(agent: AgentContext, key: StepKey, call: ToolCall, text: str, why: str) -> Answer:
    """Answers a call that cannot be run: `text` for the model, `why` for the record and the next attempt."""
    return _answer(call, await agent.steps.answer(key, {"text": text, "invalid": why}))


def _answer(call: ToolCall, result: Result) -> Answer:
    value: dict[str, Any] = result.value
    text = value["text"]
    if "denied" in value:
        text = tool_error(call.name, text if text.startswith("denied by ") else f"denied: {text}")
    message = Message("tool", text, call_id=call.id, name=call.name, failed=result.failed)
    return Answer(message, invalid=str(value.get("invalid") or ""))


def used_up(error: LimitExceeded, usage: Usage | None = None, cost_usd: float | None = 0.0) -> StepFailure:
    """A limit that ran out, as a failure that no retry mends: what was used, what the call needed, what to raise.

    Args:
        error: the refusal.
        usage, cost_usd: what was charged before it.
    """
    text = "; ".join(filter(None, (error.message, error.hint)))
    return StepFailure("limit", text, retryable=False, usage=usage, cost_usd=cost_usd)
