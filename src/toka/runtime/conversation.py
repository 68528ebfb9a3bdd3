"""One attempt at a task with a model: ask, run the calls, ask again, until a report ends it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from toka.core.effect import Effect
from toka.core.ids import StepKey, TaskId
from toka.core.message import Message, ToolCall, ToolSpec, Usage
from toka.errors import LimitExceeded, ModelError, ModelRefused, ModelUnavailable
from toka.events.health import Health, HealthChanged, Rung
from toka.events.state import TaskState
from toka.llm.failure import failure_of
from toka.llm.model import ModelRequest
from toka.llm.prompts import REPORT_TOOL, bad_arguments, nudge_on, nudge_to_report, nudge_to_save, set_back
from toka.runtime.act import Act, Result, StepFailure
from toka.runtime.context import AgentContext
from toka.runtime.control import Interrupted
from toka.runtime.health import Finding, Stuck, Watch, burning, rung, stuck
from toka.runtime.resource import CallMeter, Scope
from toka.runtime.toolcall import answer_call, answer_repeated, used_up
from toka.tools.tool import validate

NUDGES: Final = 2
"""Replies without a tool call that are answered with a reminder before the attempt fails."""
INVALID_IN_A_ROW: Final = 2
"""Replies with malformed calls, in a row, that fail the attempt: one error to learn from, no more."""
CUT: Final = (
    "Your last reply was cut off at {tokens} tokens: what came after that is lost, and a call at its end may be"
    " incomplete. Be brief, and do large work in several smaller calls."
)
"""What a model is told after a reply that had no room to end."""


@dataclass(frozen=True, slots=True)
class Report:
    """How the agent says a task ended.

    Attributes:
        status: succeeded, failed or blocked.
        data: the whole report as a JSON value: status, summary, artifacts, metrics.
    """

    status: str
    data: dict[str, Any]

    @property
    def summary(self) -> str:
        """The agent's own sentence."""
        return str(self.data.get("summary", ""))


class Conversation:
    """The model and tool loop of one attempt. Replays what is recorded and goes on from there."""

    def __init__(
        self,
        agent: AgentContext,
        task: TaskId,
        attempt: int,
        scope: Scope,
        tools: tuple[ToolSpec, ...],
        report: ToolSpec = REPORT_TOOL,
    ) -> None:
        self._agent = agent
        self._task = task
        self._attempt = attempt
        self._scope = scope
        self._tools = (*tools, report)
        self._report_tool = report
        self._messages: list[Message] = []
        self._nudges = 0
        self._invalid = 0
        self._wrong = ""
        self._right = False
        self._cut = 0
        self._watch = Watch()
        self._before = 0
        self._ids: set[str] = set()
        self._earlier_calls = agent.steps.model_calls(task, attempt)

    async def run(self, opening: list[Message]) -> Report:
        """Talks until the agent reports.

        Args:
            opening: system prompt and task, unless an earlier process recorded what it sent.

        Raises:
            StepFailure: the attempt failed: no report, malformed calls, a model's failure, a limit.
            Stuck: it gets nowhere, and what was done about that did not help.
            InDoubt, JournalError: see Steps.run.
            AwaitsApproval: see answer_call.
        """
        news = opening
        for turn in range(1, self._agent.run.execution.max_turns + 1):
            reply = await self._ask(turn, news)
            self._wrong, self._right = "", False
            if report := await self._answer(turn, reply):
                return report
            self._count_invalid()
            news = await self._tend(turn, self._advice(reply))
        raise StepFailure("turns", f"no report after {self._agent.run.execution.max_turns} turns")

    async def _ask(self, turn: int, news: list[Message]) -> Message:
        """One model call: a step whose intent holds the messages that are new since the last one."""
        agent, steps = self._agent, self._agent.steps
        key = StepKey(self._task, self._attempt, turn, "model")
        recorded = steps.recorded_messages(key)
        if recorded is not None:
            news = [Message.from_json(m) for m in recorded]
        self._messages += news
        request = ModelRequest(
            model=agent.model or "",
            messages=tuple(self._messages),
            tools=self._tools,
            max_tokens=agent.run.execution.max_output_tokens,
            agent=agent.name,
            task=self._task,
            call=self._earlier_calls + turn,
            key=steps.key(key),
            timeout_s=agent.run.execution.model_timeout_s,
        )

        result, lost = None, self._charge_lost(key)
        while result is None:
            meter = CallMeter(self._scope, agent.run.recorder.check_lease)
            act = Act(
                key,
                Effect.IDEMPOTENT,
                request.model,
                messages=[m.to_json() for m in news],
                reserved=self._reservation(request),
                lost=lost,
                within_s=request.timeout_s,
            )
            try:
                result = await steps.run(act, partial(self._request, request, meter))
            except Interrupted:  # its scope was charged when the gateway gave it up
                lost = (meter.usage, meter.cost_usd) if meter.usage.calls else None
        reply = Message.from_json(result.value)
        finish = result.value.get("finish")
        if finish == "refused":
            raise StepFailure("refused", f"the model declined: {reply.text[:500]}", retryable=False)
        self._cut = (result.value.get("cut_at") or request.max_tokens or 0) if finish == "length" else 0
        return reply

    async def _request(self, request: ModelRequest, meter: CallMeter) -> Result:
        try:
            reply = await self._agent.run.gateway.complete(request, meter)
        except LimitExceeded as e:  # attempts before the one that was refused are charged all the same
            raise used_up(e, *meter.charged) from e
        except (ModelUnavailable, ModelError) as e:
            failure = failure_of(e)
            kind = failure.kind if failure else "model"
            retryable = e.retryable and not isinstance(e, ModelRefused)
            usage, cost = meter.charged
            raise StepFailure(kind, e.message, retryable=retryable, usage=usage, cost_usd=cost) from e
        value = self._agent.run.runtime.redact(reply.message.to_json())
        if reply.finish not in ("stop", "tool_calls"):
            value["finish"] = reply.finish
        if reply.finish == "length" and reply.usage.output_tokens:
            value["cut_at"] = reply.usage.output_tokens
        return Result(value, usage=meter.usage, cost_usd=meter.cost_usd, model=reply.model)

    def _reservation(self, request: ModelRequest) -> list[float]:
        estimate = self._agent.run.gateway.estimate(request)
        return [estimate.input_tokens, estimate.max_tokens, *([] if estimate.cost_usd is None else [estimate.cost_usd])]

    def _charge_lost(self, key: StepKey) -> tuple[Usage, float | None] | None:
        """A call that was in flight when its process died may have been paid for: it is charged at its reservation."""
        intent = self._agent.steps.unanswered(key)
        if intent is None or not intent.reserved:
            return None
        usage = Usage(int(intent.reserved[0]), int(intent.reserved[1]), calls=1)
        cost = intent.reserved[2] if len(intent.reserved) > 2 else None
        self._scope.charge(usage, cost)
        return usage, cost

    async def _answer(self, turn: int, reply: Message) -> Report | None:
        """Takes a reply into the conversation and answers its calls in order; returns the report that ends the attempt.

        In the conversation, which goes back to the provider, no two calls have the same id.
        """
        self._before = len(self._messages)
        calls = tuple(replace(call, id=self._own_id(call.id)) for call in reply.calls)
        self._messages.append(replace(reply, calls=calls))
        counts = Counter(call.id for call in reply.calls)
        for index, call in enumerate(calls):
            times = counts[reply.calls[index].id]
            if call.name != REPORT_TOOL.name or times > 1:
                await self._call(turn, index, call, times)
            elif report := await self._report(turn, index, call):
                return report
        return None

    def _own_id(self, id_: str) -> str:
        """The id, or one made from it when an earlier call of the conversation has it."""
        own, number = id_, 1
        while own in self._ids:
            number += 1
            own = f"{id_}-{number}"
        self._ids.add(own)
        return own

    async def _call(self, turn: int, index: int, call: ToolCall, times: int) -> None:
        """Answers a call whose id `times` calls of the reply have."""
        key = StepKey(self._task, self._attempt, turn, "tool", index)
        try:
            if times > 1:
                answer = await answer_repeated(self._agent, key, call, times)
            else:
                answer = await answer_call(self._agent, key, call)
        except LimitExceeded as e:
            raise used_up(e) from e
        self._watch.saw(call, answer.message.text, failed=answer.message.failed, at=self._before)
        self._messages.append(answer.message)
        if answer.invalid:
            self._wrong = answer.invalid
        else:
            self._right = True

    async def _report(self, turn: int, index: int, call: ToolCall) -> Report | None:
        """The report, or None after a malformed one was answered."""
        arguments = validate(self._report_tool, call.arguments)
        if not isinstance(arguments, str) and arguments["status"] == "succeeded":
            arguments = self._with_outputs(arguments)
        if not isinstance(arguments, str):
            return Report(str(arguments["status"]), arguments)
        key = StepKey(self._task, self._attempt, turn, "tool", index)
        text = bad_arguments(REPORT_TOOL.name, arguments)
        await self._agent.steps.answer(key, {"text": text, "invalid": arguments})
        self._messages.append(Message("tool", text, call_id=call.id, name=call.name, failed=True))
        self._wrong = arguments
        return None

    def _with_outputs(self, arguments: dict[str, Any]) -> dict[str, Any] | str:
        """A report of success, or what it lacks."""
        outputs = self._report_tool.parameters["properties"].get("outputs", {}).get("properties", {})
        lacking = [name for name in outputs if name not in arguments.get("outputs", {})]
        if not lacking:
            return arguments
        return f"{REPORT_TOOL.name}: outputs lacks {', '.join(lacking)}; a report of success gives every output"

    def _count_invalid(self) -> None:
        """One reply is one chance to learn: it counts once, and not at all when one of its calls was well-formed."""
        self._invalid = self._invalid + 1 if self._wrong and not self._right else 0
        if self._invalid >= INVALID_IN_A_ROW:
            what = f"{self._invalid} malformed tool calls in a row, a reply each: {self._wrong}"
            raise StepFailure("malformed", what + self._cut_note())

    async def _tend(self, turn: int, news: list[Message]) -> list[Message]:
        """What the next turn begins with, after a look at whether the conversation gets anywhere.

        Raises:
            Stuck: it does not, and a person has to look at it.
            JournalError: the record cannot be written.
        """
        agent = self._agent
        steps, step = agent.steps, StepKey(self._task, self._attempt, turn, "model").text
        told = steps.recorded_messages(StepKey(self._task, self._attempt, turn + 1, "model"))
        state = agent.run.recorder.state.agents.get(agent.name)
        task = (state.tasks.get(self._task) if state else None) or TaskState(self._task)
        found = self._watch.look()
        if found is None and told is None and not task.burnt and (reason := burning(agent.scope)):
            found = Finding(Health.BURNING, reason, len(self._messages))
        if found is None or (told is not None and step not in task.restarts):
            return news
        what = Rung.RESTART if step in task.restarts else rung(task, found.health, agent.run.execution)
        reason = found.reason if what is not Rung.HOLD else stuck(task, found)
        if told is None and step not in (*task.nudges, *task.restarts):
            event = HealthChanged(found.health.value, what.value, self._task, step, reason)
            await agent.run.recorder.record(agent.name, event)
        if what is Rung.HOLD:
            raise Stuck(reason)
        if what is Rung.RESTART:
            del self._messages[found.good :]
            return [Message("user", set_back(reason))]
        text = nudge_to_save(reason) if found.health is Health.BURNING else nudge_on(reason)
        return [Message("user", "\n".join([*(m.text for m in news), text]))]

    def _advice(self, reply: Message) -> list[Message]:
        """What the next turn begins with when the reply was cut off, or called nothing; empty when all is well."""
        told = [CUT.format(tokens=self._cut)] if self._cut else []
        if not reply.calls:
            self._nudges += 1
            if self._nudges > NUDGES:
                what = f"{self._nudges} replies without a tool call or a report"
                raise StepFailure("no_report", what + self._cut_note())
            told.append(nudge_to_report())
        return [Message("user", "\n".join(told))] if told else []

    def _cut_note(self) -> str:
        """For the end of an error: that the last reply had no room to end; empty when it had."""
        if not self._cut:
            return ""
        most = self._agent.run.execution.max_output_tokens
        return f"; the last reply was cut off at {self._cut} tokens (execution.max_output_tokens is {most})"


def opening_messages(system: str, prompt: str) -> list[Message]:
    """How an attempt begins."""
    return [Message("system", system), Message("user", prompt)]


def report_text(report: dict[str, Any]) -> str:
    """A report as the next task or agent is told it: the summary, then artifacts and metrics where there are any."""
    extra = {k: report[k] for k in ("artifacts", "metrics") if report.get(k)}
    summary = str(report.get("summary", ""))
    return f"{summary}\n{json.dumps(extra, ensure_ascii=False)}" if extra else summary
