"""Ports that act on nothing: models, tools and sandboxes that give what was recorded, and refuse everything else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn, cast

from toka.config.agent import AgentConfig
from toka.config.flow import Output
from toka.core.capability import Capability, Grant
from toka.core.effect import Effect
from toka.core.ids import AgentName
from toka.core.message import Message, Usage
from toka.errors import SandboxError, SandboxUnavailable
from toka.events.event import StepDone, StepFailed
from toka.llm.estimate import Bounds
from toka.llm.failure import CallFailed, Failure
from toka.llm.gateway import CANCELLED, DEFAULT_MAX_TOKENS, LlmGateway
from toka.llm.model import Estimate, Finish, Meter, Model, ModelReply, ModelRequest
from toka.orchestration.idle import RecordedClock
from toka.orchestration.moments import Moments, breaks
from toka.orchestration.recorded import Ended, Recorded
from toka.sandbox.command import CommandResult
from toka.sandbox.host import Sandbox
from toka.sandbox.selftest import SelfTest
from toka.sandbox.shield import Order
from toka.tools.builtin import Toolbox
from toka.tools.tool import Arguments, CheckableTool, Probed, Tool, ToolContext, ToolResult

_MARK: Final = "\0recorded:"
"""Before a step's key: stands for a result until `Served.redact` puts the recorded one in its place."""


class Served:
    """Hands out what is recorded, and notes for which steps it did."""

    def __init__(self, recorded: Recorded, served: set[tuple[str, str]]) -> None:
        """`served` takes (agent, step) of each result that was handed out."""
        self.recorded = recorded
        self._served = served
        self.moments = Moments()
        self.closings = Moments()

    def redact(self, value: Any) -> Any:
        """Puts the recorded result in the place of what stands for it; anything else is as it is."""
        if isinstance(value, dict):
            for name in ("text", "output"):
                text = cast("dict[str, Any]", value).get(name)
                if isinstance(text, str) and _MARK in text:
                    key = text.partition(_MARK)[2][:32]
                    event = self.recorded.ended(key).event
                    assert isinstance(event, StepDone)
                    return self.recorded.value(event.result)
        return cast(object, value)

    async def act(self, key: str) -> StepDone | StepFailed:
        """The recorded end of a step.

        Never returns when the step was cut off: whoever cut it off, does so again.

        Raises:
            SandboxError, SandboxUnavailable: as then.
            Exception: of the name and the text with which the agent crashed then.
        """
        ended: Ended = self.recorded.ended(key)
        match ended.how:
            case "done" | "failed":
                known = self.recorded.intent(key)
                assert known is not None and ended.event is not None
                if ended.how == "done":
                    self._served.add((known[0], known[1].step))
                return ended.event
            case "sandbox":
                raise SandboxError(ended.message)
            case "no_sandbox":
                await self._its_moment(key)
                raise SandboxUnavailable(ended.message)
            case "crash":
                await self._its_moment(key)
                name, _, text = ended.message.partition(": ")
                raise type(name, (Exception,), {})(text)
            case "cut_off" | "lost":
                return await asyncio.get_running_loop().create_future()

    async def _its_moment(self, key: str) -> None:
        """Returns when what broke an agent is to break it: others of its steps may end before."""
        known = self.recorded.intent(key)
        assert known is not None
        await self.moments.until(known[0], breaks)


class RecordedGateway(LlmGateway):
    """Answers with the recorded replies. Limits are asked as they were then, with the recorded figures."""

    def __init__(self, served: Served, clock: RecordedClock) -> None:
        """Asks no model and knows no price."""
        super().__init__(_no_model, clock, lambda: 0.0)
        self._served_by = served
        self._sizes = Bounds()

    def estimate(self, request: ModelRequest) -> Estimate:
        """The tokens that this request can come to, at the price of then."""
        known = self._served_by.recorded.intent(request.key)
        reserved = known[1].reserved if known is not None else None
        most = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        cost = reserved[2] if reserved is not None and len(reserved) > 2 else None
        return Estimate(self._sizes.input(request.messages, request.tools), most, cost)

    async def complete(self, request: ModelRequest, meter: Meter) -> ModelReply:
        """See LlmGateway."""
        estimate = self.estimate(request)
        if (outcome := meter.reserve(1, estimate)) is not None:
            await outcome
        try:
            end = await self._served_by.act(request.key)
        except asyncio.CancelledError:
            meter.settle(1, *self._lost(request.key, estimate), CANCELLED)
            raise
        usage = Usage.from_json(end.usage) if end.usage else Usage()
        if (settled := meter.settle(1, usage, end.cost_usd, None)) is not None:
            await settled
        if isinstance(end, StepFailed):
            failure = Failure(cast("Any", end.error), end.retryable, billed=usage.calls > 0)
            raise CallFailed(end.message, failure)
        value = self._served_by.recorded.value(end.result)
        message = Message.from_json(value)
        finish: Finish = value.get("finish") or ("tool_calls" if message.calls else "stop")
        if "cut_at" in value:
            usage = Usage(usage.input_tokens, int(value["cut_at"]), calls=usage.calls)
        return ModelReply(message, usage, end.model, end.cost_usd, finish)

    def _lost(self, key: str, estimate: Estimate) -> tuple[Usage, float | None]:
        """What a call is charged with that was ended: what was recorded of it, else all that was reserved."""
        lost = self._served_by.recorded.lost(key)
        if lost is None:
            return Usage(estimate.input_tokens, estimate.max_tokens, calls=1), estimate.cost_usd
        return (Usage.from_json(lost), lost[5]) if lost else (Usage(), 0.0)


def _no_model(model: str) -> Model:
    raise AssertionError(f"a replay asks no model, and not {model}")


class RecordedTool:
    """A tool that decides as it does, and acts on nothing."""

    def __init__(self, tool: Tool, served: Served) -> None:
        """Stands for `tool`."""
        self._tool = tool
        self._served = served

    @property
    def name(self) -> str:
        """See Tool."""
        return self._tool.name

    @property
    def description(self) -> str:
        """See Tool."""
        return self._tool.description

    @property
    def parameters(self) -> Mapping[str, Any]:
        """See Tool."""
        return self._tool.parameters

    @property
    def effect(self) -> Effect:
        """See Tool."""
        return self._tool.effect

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """See Tool."""
        return self._tool.needs(args)

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:  # noqa: ARG002
        """See Tool."""
        known = self._served.recorded.intent(ctx.key)
        if known is not None and self._served.recorded.has_sandbox(known[0]):
            await ctx.hands()  # what follows from its end comes as late as then
        if self._served.recorded.ended(ctx.key).how == "lost":
            return ToolResult("", failed=True, data={"ended": "lost"})
        end = await self._served.act(ctx.key)
        return ToolResult(_MARK + ctx.key, failed=isinstance(end, StepDone) and end.failed)


class RecordedCheckable(RecordedTool):
    """The same for a tool whose act leaves a trace."""

    def __init__(self, tool: CheckableTool, served: Served) -> None:
        """Stands for `tool`."""
        super().__init__(tool, served)
        self._checkable = tool

    async def evidence(self, args: Arguments, ctx: ToolContext) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: what was found then is recorded, and comes with it."""
        return {}

    async def probe(self, args: Arguments, evidence: dict[str, Any], ctx: ToolContext) -> Probed:  # noqa: ARG002
        """What was found then."""
        return self._served.recorded.probe(ctx.key)

    def happened(self, args: Arguments, evidence: dict[str, Any]) -> ToolResult:
        """See CheckableTool."""
        return self._checkable.happened(args, evidence)


class RecordedTools:
    """The tools of a process, none of which acts. See Toolbox."""

    def __init__(self, tools: Toolbox, served: Served) -> None:
        """Stands for `tools`."""
        self._tools = tools
        self._served = served

    def __iter__(self) -> Iterator[Tool]:
        """See Toolbox."""
        return (self._of(tool) for tool in self._tools)

    def find(self, name: str) -> Tool | None:
        """See Toolbox."""
        found = self._tools.find(name)
        return None if found is None else self._of(found)

    def offered(self, grant: Grant) -> tuple[Tool, ...]:
        """See Toolbox."""
        return tuple(self._of(tool) for tool in self._tools.offered(grant))

    def _of(self, tool: Tool) -> Tool:
        return (
            RecordedCheckable(tool, self._served)
            if isinstance(tool, CheckableTool)
            else RecordedTool(tool, self._served)
        )


class RecordedSandbox:
    """What an agent's commands and files gave then. See Sandbox."""

    notes: tuple[str, ...] = ()

    def __init__(self, agent: str, config: AgentConfig | None, served: Served) -> None:
        """`config` is the agent's spec."""
        self._agent = agent
        self._served = served
        outputs = config.flow.outputs if config is not None and config.flow is not None else {}
        self._files = iter([(name, output) for name, output in outputs.items() if output.source == "file"])

    async def run(
        self,
        argv: Sequence[str],  # noqa: ARG002
        *,
        env: Mapping[str, str] | None = None,
        told: Callable[[CommandResult], None] | None = None,  # noqa: ARG002
        **_: Any,
    ) -> CommandResult:
        """See Sandbox. The command is known by its idempotency key."""
        key = (env or {}).get("TOKA_IDEMPOTENCY_KEY", "")
        if self._served.recorded.ended(key).how == "lost":
            return CommandResult(None, b"", 0, "lost", 0.0, 0.0, 0)
        end = await self._served.act(key)
        code = 1 if isinstance(end, StepDone) and end.failed else 0
        return CommandResult(code, (_MARK + key).encode(), 0, "exited", 0.0, 0.0, 0)

    async def file(self, op: str, **_: Any) -> dict[str, Any]:
        """The file of the output that comes next, as it must have been. Nothing else is read here."""
        assert op == "read", "only outputs are read by Toka itself"
        name, output = next(self._files)
        found = self._served.recorded.outputs(self._agent)
        if isinstance(found, str):
            return _why_not(found, name, output)
        text = _written(output.type, found[name]) if name in found else ""
        return {"binary": False, "size": 0, "body": text.encode("utf-8", "surrogatepass")}

    async def freeze(self) -> None:
        """Nothing runs that could stand still."""

    async def thaw(self) -> None:
        """See `freeze`."""

    def usage(self) -> None:
        """Nothing is used."""

    async def close(self) -> None:
        """There is nothing to end, but that took its time then: what follows from it comes after all else."""
        await self._served.closings.until("", lambda _: False)


def start_recorded(configs: Mapping[AgentName, AgentConfig], served: Served) -> Callable[[Order], Any]:
    """A StartSandbox that starts none."""

    async def start(order: Order) -> tuple[Sandbox, SelfTest | None]:
        agent = order.owner[1]
        config = configs.get(AgentName(agent)) or configs.get(AgentName(agent.partition("[")[0]))
        return cast("Sandbox", RecordedSandbox(agent, config, served)), None

    return start


class RecordedSecrets(Mapping[str, str]):
    """Every secret that was there then, without its value: nothing that is decided depends on that."""

    def __init__(self, recorded: Recorded) -> None:
        """Asks the record which ones were missing."""
        self._recorded = recorded

    def __getitem__(self, name: str) -> str:
        """A word in its place. Raises KeyError."""
        if self._recorded.missing_secret(name):
            raise KeyError(name)
        return "(a secret)"

    def __iter__(self) -> Iterator[str]:
        """Nobody knows them all."""
        return iter(())

    def __len__(self) -> int:
        """As many as `iter` gives."""
        return 0


def refuse(*_: Any) -> NoReturn:
    """For what a replay has no use for."""
    raise AssertionError("a replay starts nothing")


def _written(kind: str, value: Any) -> str:
    """A text that reads as this value."""
    if kind == "text":
        return f"{value}\n"
    if kind == "lines":
        return "".join(f"{line}\n" for line in value)
    return json.dumps(value, ensure_ascii=False)


def _why_not(reason: str, name: str, output: Output) -> dict[str, Any]:
    """What a look at a file must have shown, by how its agent failed of it."""
    said = reason.removeprefix(f"the output {name} ")
    if said == reason:  # it failed of a later one
        plain = "[]" if output.type in ("list", "json") else "false" if output.type == "boolean" else "0"
        return {"binary": False, "size": 0, "body": b"" if output.type in ("text", "lines") else plain.encode()}
    if said.startswith("is not there: "):
        return {"error": "not_found", "message": said.removeprefix("is not there: ")}
    if said.startswith("could not be read from "):
        raise SandboxError(said.rpartition(": ")[2])
    if said.startswith("is no text: "):
        return {"binary": True, "size": 0, "body": b""}
    if said.startswith("has ") and " bytes in " in said:
        return {"binary": False, "size": int(said.split()[1]), "body": b""}
    if said.startswith("has ") and " entries;" in said:
        count = int(said.split()[1])
        text = "x\n" * count if output.type == "lines" else json.dumps([0] * count)
        return {"binary": False, "size": 0, "body": text.encode()}
    shown = "" if said.startswith("is empty") else said.partition(": ")[2]
    return {"binary": False, "size": 0, "body": shown.encode("utf-8", "surrogatepass")}
