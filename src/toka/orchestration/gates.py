"""What lets an agent start or not, once what it waits for has ended: its conditions, and the elements it is for."""

from __future__ import annotations

import json
from typing import Any, Final

from toka.config.agent import AgentConfig
from toka.config.flow import MAX_INSTANCES
from toka.config.flow_rules import AVAILABLE, NOT, condition
from toka.errors import ConfigError, ModelUnavailable, UsageError
from toka.events.flow import InstancesMade
from toka.events.lifecycle import AgentStatus
from toka.runtime.context import RunContext
from toka.runtime.executor import AgentOutcome
from toka.runtime.values import ValueMissing, elements_of, holds, value_at

INLINE_BYTES: Final = 16_384
"""Elements above this size together go to a blob."""


class Gates:
    """Looks at the conditions of one run's agents."""

    def __init__(self, run: RunContext) -> None:
        """Looks at what the run's record says."""
        self._run = run

    async def look(self, config: AgentConfig) -> AgentOutcome | None:
        """How an agent ends that may not start; None when it may."""
        flow = config.flow
        for text in flow.when if flow is not None else ():
            try:
                met = await self._met(config, text)
            except ValueMissing as problem:
                return AgentOutcome(AgentStatus.FAILED, str(problem), "value")
            if not met:
                return AgentOutcome(AgentStatus.SKIPPED, f"when: {text} does not hold", "when")
        return None

    async def items(self, config: AgentConfig, made: InstancesMade | None) -> InstancesMade | AgentOutcome:
        """The elements that an agent is for, or how it ends when it cannot be there for them.

        Args:
            config: an agent with `for_each`.
            made: what is recorded of them; None = nothing yet.
        """
        if made is not None:
            return made
        recorder = self._run.recorder
        try:
            found = elements_of(config, recorder.state.agents, recorder.blob)
        except ValueMissing as problem:
            return AgentOutcome(AgentStatus.FAILED, str(problem), "value")
        if not found:
            return AgentOutcome(AgentStatus.SKIPPED, f"for_each: {self._source(config)} is empty", "empty")
        if len(found) > MAX_INSTANCES:
            said = f"for_each: {self._source(config)} has {len(found)} elements; at most {MAX_INSTANCES} are taken"
            return AgentOutcome(AgentStatus.FAILED, said, "value")
        text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
        if len(text) <= INLINE_BYTES:
            return InstancesMade(found, len(found))
        return InstancesMade(count=len(found), blob=await recorder.put_blob(text.encode("utf-8", "surrogatepass")))

    def elements(self, made: InstancesMade) -> list[Any]:
        """The elements that are recorded."""
        return json.loads(self._run.recorder.blob(made.blob)) if made.blob else made.items

    async def _met(self, config: AgentConfig, text: str) -> bool:
        if (reference := condition(text)) is not None:
            recorder = self._run.recorder
            return holds(text, reference, value_at(config, reference, recorder.state.agents, recorder.blob))
        assert AVAILABLE in text, "the rules of specs let nothing else through"
        return await self._available(config) is not bool(NOT.match(text.strip()))

    async def _available(self, config: AgentConfig) -> bool:
        runtime = self._run.runtime
        try:
            await runtime.resolve_model(self._run.model or config.model or runtime.model)
        except (ModelUnavailable, ConfigError, UsageError):
            return False
        return True

    @staticmethod
    def _source(config: AgentConfig) -> str:
        given = config.flow.for_each if config.flow is not None else None
        return given if isinstance(given, str) else "the list"
