"""Any sequence of requests, crashes, answers and restarts is legal by the tables, and can be brought to its end."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from harness import Team, agent, call, fail, illegal, memory, succeed
from toka.core.capability import Capability
from toka.core.effect import Effect
from toka.core.ids import AgentName
from toka.events.fold import fold_all
from toka.llm.model import ModelRequest
from toka.llm.script import script_of
from toka.llm.scripted import Answer
from toka.orchestration.session import RunSession
from toka.runtime.context import Runtime
from toka.tools.tool import Arguments, ToolContext, ToolResult
from torture.simulation.loop import VirtualClock, VirtualLoop

NAMES = st.sampled_from(("one", "two"))
SETTLED_S = 0.1
"""Virtual seconds after which everything waits again."""
LONGEST_S = 20_000
"""Virtual seconds within which every run can be brought to its end."""


class Turnstile:
    """A tool whose calls wait until somebody decides about them."""

    name = "turnstile"
    description = "Waits."
    parameters: ClassVar[dict[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
    effect = Effect.IDEMPOTENT

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[str]] = []
        self.wide_open = False

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        return ()

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        if self.wide_open:
            return ToolResult("through")
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        try:
            how = await future
        finally:
            self.waiting.remove(future)
        if how == "breaks":
            raise RuntimeError("the turnstile broke")
        return ToolResult(how, failed=how == "fails")


class Lifecycle(RuleBasedStateMachine):
    """Two agents, the second after the first, over the real session and manager, with a clock that is told to move."""

    seen: ClassVar[set[tuple[str, str]]] = set()

    def __init__(self) -> None:
        super().__init__()
        illegal.clear()
        self.loop = VirtualLoop(random.Random(1), shuffled=False)
        self.folder = Path(tempfile.mkdtemp())
        self.tool = Turnstile()
        self.bad = False
        execution = {"grace_s": 3.0, "max_restarts": 2, "task_timeout_s": 900.0, "task_retries": 1}
        self.team = Team(self.folder, self._script, VirtualClock(self.loop), execution, memory, (self.tool,))
        self.runtime: Runtime = self.run(self._open())
        second = agent("two", ["c"], dependencies={"optional": {"one": {}}})
        self.session: RunSession = self.run(self.team.start(self.runtime, agent("one", ["a", "b"]), second))
        self.legal = illegal[-1]
        self._begin()

    async def _open(self) -> Runtime:
        self.opened = self.team.open()
        return await self.opened.__aenter__()

    def _script(self, request: ModelRequest) -> Answer:
        turn = sum(m.role == "assistant" for m in request.messages)
        reply = call("turnstile") if turn < 2 else fail() if self.bad else succeed()
        return script_of({"default": [reply]}, "machine").default[0]  # type: ignore[index]

    def run(self, act: Coroutine[Any, Any, Any]) -> Any:
        """Runs something, and what follows from it until everything waits."""

        async def and_settle() -> Any:
            async with asyncio.timeout(LONGEST_S):
                result = await act
            await asyncio.sleep(SETTLED_S)
            return result

        return self.loop.run_until_complete(and_settle())

    def _begin(self) -> None:
        async def begin() -> None:
            self.running = asyncio.create_task(self.session.run())

        self.run(begin())

    @property
    def over(self) -> bool:
        """Whether nobody executes the run now."""
        return self.running.done()

    @rule(name=NAMES)
    @precondition(lambda self: not self.over)
    def pause(self, name: str) -> None:
        self.run(self.session.manager.pause(AgentName(name), "lunch", "ada"))

    @rule(name=NAMES)
    @precondition(lambda self: not self.over)
    def resume(self, name: str) -> None:
        self.run(self.session.manager.resume(AgentName(name), "back", "ada"))

    @rule(name=NAMES)
    @precondition(lambda self: not self.over)
    def stop(self, name: str) -> None:
        async def stop() -> None:
            self.session.team.stopped.add(AgentName(name))
            if self.session.team.executes(AgentName(name)):
                await self.session.manager.stop(AgentName(name), "enough", "ada")
            else:
                self.session.team.look_at(AgentName(name))

        self.run(stop())

    @rule(name=NAMES)
    @precondition(lambda self: not self.over)
    def retry(self, name: str) -> None:
        self.run(self.session.team.try_again([AgentName(name)], "once more", "ada"))

    @rule(how=st.sampled_from(("through", "through", "fails", "breaks")))
    @precondition(lambda self: self.tool.waiting)
    def answer(self, how: str) -> None:
        async def answer() -> None:
            self.tool.waiting[0].set_result(how)

        self.run(answer())

    @rule(bad=st.booleans())
    def change_the_models_mind(self, bad: bool) -> None:
        self.bad = bad

    @rule(seconds=st.sampled_from((0.6, 5.0, 70.0, 1000.0)))
    def let_time_pass(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule()
    def end_the_process_and_go_on(self) -> None:
        async def again() -> None:
            await self.session.shutdown(0.0)
            await asyncio.wait({self.running})
            await self.session.context.recorder.close()

        self.run(again())
        if not self.session.context.recorder.state.ended:
            self.session = self.run(self.team.resume(self.runtime, self.session.context.id))
            self._begin()

    @invariant()
    def every_change_was_legal(self) -> None:
        broken = [text for watcher in illegal for text in watcher.broken]
        assert not broken, "; ".join(broken)

    @invariant()
    def the_run_has_not_broken(self) -> None:
        if self.running.done():
            self.running.result()

    @invariant()
    def the_state_is_the_fold_of_the_record(self) -> None:
        run = self.session.context.id
        assert self.session.context.recorder.state == fold_all(run, self.runtime.journal.read(run))

    def teardown(self) -> None:
        """Everything is let go: then the run ends, whatever happened before."""
        try:
            self._to_the_end()
            self.every_change_was_legal()
            self._note_what_was_seen()
        finally:
            self.loop.run_until_complete(self._close())
            self.loop.close()
            shutil.rmtree(self.folder)

    def _to_the_end(self) -> None:
        self.tool.wide_open, self.bad = True, False
        passed = 0.0
        while not self.session.context.recorder.state.ended:
            if self.over:
                self.end_the_process_and_go_on()
            for name in ("one", "two"):
                if not self.over:
                    self.resume(name)
            while self.tool.waiting:
                self.answer("through")
            self.let_time_pass(50.0)
            passed += 50.0
            assert passed < LONGEST_S, f"the run does not end: {self.session.context.recorder.state}"

    def _note_what_was_seen(self) -> None:
        states = [r for r in self.team.records if type(r.event).__name__ == "AgentStateChanged"]
        for name in ("one", "two"):
            said = ["CONFIGURED", *(r.event.state for r in states if r.stream == name)]  # type: ignore[union-attr]
            self.seen.update(pairwise(said))

    async def _close(self) -> None:
        await self.session.shutdown(0.0)
        await asyncio.wait({self.running})
        await self.opened.__aexit__(None, None, None)


def check(examples: int, steps: int) -> None:
    """Tries so many sequences, none longer than `steps`."""
    every = list(HealthCheck)
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=every,
        database=None,
        derandomize=examples < 1000,
        print_blob=False,
    )
    run_state_machine_as_test(Lifecycle, settings=profile)
    illegal.clear()


@pytest.mark.slow
def test_any_sequence_is_legal_and_can_be_brought_to_its_end() -> None:
    check(40, 12)


@pytest.mark.torture
@pytest.mark.timeout(1700)
def test_ten_thousand_sequences_are_legal_and_can_be_brought_to_their_end() -> None:
    Lifecycle.seen.clear()
    check(10_000, 20)
    for old, new in sorted(Lifecycle.seen):
        print(f"  {old} -> {new}")
