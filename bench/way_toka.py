"""Toka: one run with an agent for each task, every step in the SQLite journal before the next one starts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from task import MODEL, PROMPT, SCHEMA, Execute, Options, fact
from toka.app import Parts, open_runtime, read_settings
from toka.config.agent import AgentConfig
from toka.core.capability import Capability
from toka.core.effect import Effect
from toka.events.lifecycle import AgentStatus
from toka.orchestration.engine import OrchestrationEngine
from toka.orchestration.request import RunRequest
from toka.tools.tool import Arguments, ToolContext, ToolResult

SPEC = """
metadata: {{name: agent-{number:05d}, version: v1}}
spec: {{name: Agent {number}, domain: testing, priority: medium}}
tasks:
  default:
    - {{description: {prompt!r}}}
"""


class GetFact:
    """The tool, as a program that embeds Toka brings its own."""

    name = "get_fact"
    description = "Look up a fact."
    parameters: Mapping[str, Any] = SCHEMA
    effect = Effect.PURE

    def needs(self, args: Arguments) -> tuple[Capability, ...]:  # noqa: ARG002 - Tool's signature
        """Nothing."""
        return ()

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:  # noqa: ARG002 - Tool's signature
        """See Tool."""
        return ToolResult(fact(**args))


def specs(count: int) -> list[AgentConfig]:
    """Agents with one task each."""
    return [
        AgentConfig.parse(SPEC.format(number=number, prompt=PROMPT), f"agent-{number:05d}.yaml")
        for number in range(count)
    ]


@asynccontextmanager
async def opened(options: Options) -> AsyncGenerator[Execute]:
    """A runtime. Parsing the specs is not part of what is measured; planning and recording the run are."""
    workspace = options.state / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    flags = {
        "state": str(options.state / "state"),
        "model": f"openai:{MODEL}",
        "base_url": options.url,
        "execution.max_concurrent_agents": options.concurrency,
        "execution.model_timeout": "600s",
    }
    made = specs(options.tasks)
    settings = read_settings(flags, cwd=workspace, environment={"HOME": str(options.state)})
    keys = {"OPENAI_API_KEY": "sk-bench"}
    async with open_runtime(settings, Parts(tools=(GetFact(),)), environment=keys) as runtime:
        engine = OrchestrationEngine(runtime)

        async def execute(tasks: int) -> int:
            result = await engine.run(RunRequest(made[:tasks], workspace))
            return sum(a.status is AgentStatus.COMPLETED for a in result.state.agents.values())

        yield execute
