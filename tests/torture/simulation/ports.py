"""The faulty ports: a provider, tools and a sandbox, each of which tells the world's ledger what it does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from toka.core.capability import Capability
from toka.core.effect import Effect
from toka.core.message import Message, ToolCall, Usage
from toka.errors import SandboxError
from toka.llm.failure import KINDS, failed, failure_of
from toka.llm.model import ModelReply, ModelRequest
from toka.sandbox.command import CommandResult
from toka.tools.tool import Arguments, Probed, ToolContext, ToolResult

if TYPE_CHECKING:
    from torture.simulation.world import Life, World

MODEL = "scripted:simulated"
TOOLS = ("look", "look", "look", "put", "put", "mark", "send", "careful", "shell", "breaks", "missing")


class SimModel:
    """A provider. What it bills is written down in the ledger when the answer leaves it."""

    name = MODEL

    def __init__(self, world: World, life: Life) -> None:
        self._world = world
        self._life = life

    async def request(self, request: ModelRequest) -> ModelReply:
        world = self._world
        act = world.rules.begins(self._life, "model", request.key, again=request.attempt > 1)
        act.request = request
        try:
            return await self._answer(request, act)
        except asyncio.CancelledError:
            act.outcome = "cancelled"
            raise
        finally:
            world.rules.ends(act)

    async def _answer(self, request: ModelRequest, act: Any) -> ModelReply:
        world, rng = self._world, self._world.rng
        delay = rng.choice((0.02, 0.3, 1.0, 2.0)) * rng.random()
        fault = world.hits(world.faults.model)
        if fault and rng.random() < 0.2:
            delay = rng.choice((20.0, 500.0))
        await asyncio.sleep(delay)
        usage = Usage(rng.randint(1, 200), rng.randint(1, 400), calls=1)
        if fault and rng.random() < 0.6:
            kind = rng.choice(KINDS)
            told = usage if rng.random() < 0.3 else None
            retry = rng.choice((None, None, 3.0))
            error = failed(kind, f"simulated {kind}", usage=told, retry_after_s=retry)
            act.outcome, act.failure = "failed", failure_of(error)
            raise error
        if fault and rng.random() < 0.1:
            act.outcome = "broke"
            raise RuntimeError("a simulated defect of the model")
        message = self._message(request)
        finish: Any = "tool_calls" if message.calls else "stop"
        if fault and rng.random() < 0.3:
            finish = rng.choice(("length", "refused"))
        act.outcome, act.usage = "replied", usage
        return ModelReply(message, usage, self.name, None, finish)

    def _message(self, request: ModelRequest) -> Message:
        rng, offered = self._world.rng, len(request.messages)
        if self._world.hits(0.04):
            return Message("assistant", "I think that I am done.")
        if rng.random() < 0.15 + 0.02 * offered:
            status = rng.choice(("succeeded",) * 18 + ("failed", "blocked"))
            return Message("assistant", "", calls=(_call("r", "report", {"status": status, "summary": "s"}),))
        calls = [self._tool_call(f"c{offered}-{n}") for n in range(rng.choice((1, 1, 1, 2, 3)))]
        if len(calls) > 1 and self._world.hits(0.1):
            calls[1] = ToolCall(calls[0].id, calls[1].name, calls[1].arguments)
        return Message("assistant", "", calls=tuple(calls))

    def _tool_call(self, id_: str) -> ToolCall:
        rng, world = self._world.rng, self._world
        if world.hits(0.03):
            return ToolCall(id_, "look", rng.choice(('{"n": "x"}', "{not json", "[]", '{"n": 1, "m": 2}')))
        if world.hits(0.02):
            return _call(id_, "nobody_knows", {})
        name = rng.choice(TOOLS)
        if name in ("breaks", "missing") and (world.calm or rng.random() < 0.85):
            name = "look"
        return _call(id_, name, {"n": rng.randrange(1000)})

    async def aclose(self) -> None:
        pass


def _call(id_: str, name: str, arguments: Mapping[str, Any]) -> ToolCall:
    return ToolCall(id_, name, json.dumps(dict(arguments)))


class SimTool:
    """A tool that takes a while, may fail, and leaves its effect in the ledger."""

    description = "A simulated tool."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }

    def __init__(self, world: World, life: Life, name: str, effect: Effect) -> None:
        self.name = name
        self.effect = effect
        self._world = world
        self._life = life

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        return ()

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        world, rng = self._world, self._world.rng
        act = world.rules.begins(self._life, "tool", ctx.key)
        try:
            if self.name == "shell":
                hands = await ctx.hands()
                ended = await hands.run(["shell"], env={"KEY": ctx.key}, timeout_s=ctx.timeout_s)
                return ToolResult(ended.ended, failed=ended.failed)
            await asyncio.sleep(rng.random() * rng.choice((0.001, 0.1, 1.0)))
            if self.name == "breaks" and not world.calm:
                raise RuntimeError("a simulated defect of a tool")
            fault = world.hits(world.faults.tool)
            if fault and rng.random() < 0.5:
                return ToolResult("nothing happened", failed=True)
            world.rules.happened(act)
            if fault:
                if rng.random() < 0.3:
                    raise OSError("a simulated failure after the effect")
                await asyncio.sleep(1000.0)
            await asyncio.sleep(rng.random() * 0.05)
            return ToolResult("done")
        finally:
            world.rules.ends(act)


class SimCheckable(SimTool):
    """One whose effect can be seen."""

    async def evidence(self, args: Arguments, ctx: ToolContext) -> dict[str, Any]:
        await asyncio.sleep(self._world.rng.random() * 0.01)
        return {"seen": self._world.rules.effects(ctx.key)}

    async def probe(self, args: Arguments, evidence: dict[str, Any], ctx: ToolContext) -> Probed:
        await asyncio.sleep(self._world.rng.random() * 0.01)
        if self._world.hits(0.2):
            return "unknown"
        return "happened" if self._world.rules.effects(ctx.key) > evidence["seen"] else "not-happened"

    def happened(self, args: Arguments, evidence: dict[str, Any]) -> ToolResult:
        return ToolResult("done")


def tools_of(world: World, life: Life) -> tuple[Any, ...]:
    """The tools of one process."""
    kinds = {
        "look": Effect.PURE,
        "put": Effect.IDEMPOTENT,
        "send": Effect.ONCE,
        "careful": Effect.ONCE,
        "shell": Effect.IDEMPOTENT,
        "breaks": Effect.IDEMPOTENT,
    }
    simple = tuple(SimTool(world, life, name, effect) for name, effect in kinds.items())
    return (*simple, SimCheckable(world, life, "mark", Effect.CHECKABLE))


class Command:
    """A command in a sandbox: it runs on while its executor is frozen, and dies with it."""

    def __init__(self, world: World, life: Life, act: Any, timeout_s: float) -> None:
        rng = world.rng
        self._world, self._life, self._act = world, life, act
        self._began = world.loop.time()
        self.ended: asyncio.Future[CommandResult] = world.loop.create_future()
        takes = rng.random() * rng.choice((0.01, 0.5, 2.0))
        fault = world.hits(world.faults.tool)
        if fault and rng.random() < 0.3:
            takes = 400.0
        how: tuple[str, int | None] = ("exited", 0 if rng.random() < 0.93 else 1)
        if fault and rng.random() < 0.3:
            how = ("lost", None)
        if takes > timeout_s:
            takes, how = timeout_s, ("timeout", None)
        at = takes * rng.random()
        context = world.outside()
        self._timers = [
            world.loop.call_later(at, self._effect, context=context),
            world.loop.call_later(takes, self._end, *how, context=context),
        ]
        life.commands.add(self)

    def _effect(self) -> None:
        if self._act is not None:
            self._world.rules.happened(self._act)

    def _end(self, ended: Any, code: int | None) -> None:
        self._life.commands.discard(self)
        if self._act is not None:
            self._world.rules.ends(self._act)
        wall = self._world.loop.time() - self._began
        if not self.ended.done():
            self.ended.set_result(CommandResult(code, b"output", 0, ended, wall, 0.01, 1000, stdout=b"output"))

    def kill(self) -> None:
        """Ends it without a word."""
        for timer in self._timers:
            timer.cancel()
        self._life.commands.discard(self)
        if self._act is not None:
            self._world.rules.ends(self._act)


class SimSandbox:
    """See Sandbox: what runtime and tools use of it."""

    notes: tuple[str, ...] = ()

    def __init__(self, world: World, life: Life) -> None:
        self._world = world
        self._life = life
        self._commands: set[Command] = set()

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        timeout_s: float,
        output_limit: int | None = None,
        chosen_by: Any = "agent",
        apart: bool = False,
        told: Callable[[CommandResult], None] | None = None,
    ) -> CommandResult:
        world = self._world
        if world.hits(world.faults.tool * 0.2):
            raise SandboxError("the simulated sandbox is gone")
        act = None
        if chosen_by == "person":
            act = world.rules.begins(self._life, "command", (env or {})["TOKA_IDEMPOTENCY_KEY"])
        command = Command(world, self._life, act, timeout_s)
        try:
            result = await command.ended
        except asyncio.CancelledError:
            command.kill()
            raise
        if told is not None:
            told(result)
        return result

    async def file(self, op: str, **args: Any) -> dict[str, Any]:
        raise SandboxError("no simulated tool works with files")

    def usage(self) -> None:
        return None

    async def close(self) -> None:
        await asyncio.sleep(self._world.rng.random() * 0.02)


async def start_sandbox(world: World) -> None:
    """Takes as long as it takes."""
    await asyncio.sleep(0.01 + world.rng.random() * 0.1)
    if world.hits(world.faults.tool * 0.1):
        raise SandboxError("the simulated sandbox does not start")
