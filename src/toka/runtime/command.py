"""Commands that a person wrote into a spec: `run:` tasks and `check:`s. They work in the agent's sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from toka.config.agent import AgentConfig
from toka.core.effect import Effect
from toka.core.ids import StepKey
from toka.core.reference import references, value_of
from toka.core.shellwords import ShellCommand, shell_command
from toka.errors import LimitExceeded, SandboxError
from toka.runtime.act import Act, Result, StepFailure
from toka.runtime.context import AgentContext
from toka.runtime.guard import cared_for
from toka.runtime.meter import Meter
from toka.sandbox.command import FLOOD_BYTES
from toka.sandbox.host import CommandResult, shell
from toka.sandbox.keeper import Exceeded
from toka.tools.tool import Mask, unmasked

UNBOUNDED_S = 365 * 86_400.0
"""The deadline of a command that has none, in seconds."""
BY_WORD = "(a person says that this happened; its output is lost)"
KEPT_CHARACTERS = 20_000
"""Of a command's output, in the record."""
SHOWN_CHARACTERS = 160
"""Of a command line, where its end is told."""
TAIL_CHARACTERS = 2_000
"""Of a command's output, in reports and evidence."""


async def run_line(
    agent: AgentContext, key: StepKey, line: str, declared: Effect | None, timeout_s: float | None
) -> Result:
    """Runs a command line as a journaled step; its effect is as `declared`, or that of a command (see `cared_for`).

    The result's value is {"exit": int or None, "ended", "output", "dropped", "wall_s", "cpu_s", "max_rss_bytes"}; it is
    `failed` unless the command ended by itself with 0.

    Raises:
        StepFailure, InDoubt: see Steps.run; StepFailure also when the sandbox cannot be had.
    """

    meter = Meter(agent.hands.sandbox, agent.run.recorder.check_lease)
    command = _with_values(agent, line)
    shown = {each.key: value_of(each, agent.values.known) for each in references(line)} if agent.config.flow else None
    apart = key.kind == "run" and leaves(agent.config, "stdout")

    async def do() -> Result:
        own = {"TOKA_IDEMPOTENCY_KEY": agent.steps.key(key), "TOKA_AGENT": agent.name, "TOKA_RUN": agent.run.id}
        try:
            sandbox = await meter.hands()
            ended = await sandbox.run(
                shell(command.line),
                env={**command.environment, **own},
                timeout_s=timeout_s or UNBOUNDED_S,
                chosen_by="person",
                apart=apart,
            )
        except SandboxError as e:
            raise StepFailure("sandbox", e.message) from e
        value = agent.run.runtime.redact(described(ended, agent.run.runtime.mask))
        lost = ended.ended == "lost" and ended.exceeded is None
        return Result(value, failed=ended.failed, limit=limit_met(value, agent.name), lost=lost)

    assumed = {"exit": 0, "ended": "exited", "output": BY_WORD, "dropped": 0}
    rule = "written by a person"
    care = cared_for(agent, key, declared)
    act = Act(
        key, care.effect, line, shown or None, rule,
        assumed=assumed, used=meter.used, within_s=timeout_s, guard=care.guard, turn=care.turn,
    )  # fmt: skip
    return await agent.steps.run(act, do)


def _with_values(agent: AgentContext, line: str) -> ShellCommand:
    if agent.config.flow is None:
        return ShellCommand(line, {})
    try:
        return shell_command(line, agent.values.known)
    except (KeyError, ValueError) as error:
        what = f"${{{error.args[0]}}} has no value" if isinstance(error, KeyError) else str(error)
        raise StepFailure("value", what, retryable=False) from None


def described(ended: CommandResult, mask: Mask = unmasked) -> dict[str, Any]:
    """A command's end as a JSON value, without the secrets that `mask` knows."""
    text = mask(ended.output.decode("utf-8", "replace"), ends_early=ended.dropped > 0)
    over = max(0, len(text) - KEPT_CHARACTERS)
    return {
        "exit": ended.exit_code,
        "ended": ended.ended,
        "output": text[-KEPT_CHARACTERS:],
        "dropped": ended.dropped + over,
        "wall_s": round(ended.wall_s, 3),
        "cpu_s": round(ended.cpu_s, 3),
        "max_rss_bytes": ended.max_rss_bytes,
        **({} if ended.stdout is None else {"stdout": mask(ended.stdout.decode("utf-8", "replace"))}),
        **({"stdout_missing": ended.stdout_missing} if ended.stdout_missing else {}),
        **ended.resources,
    }


def leaves(config: AgentConfig, source: str) -> bool:
    """Whether a spec declares an output that comes from there."""
    return config.flow is not None and any(output.source == source for output in config.flow.outputs.values())


def verdict(value: dict[str, Any], line: str, timeout_s: float | None) -> str:
    """How a command ended, in words and one line: `make test` exited with 2."""
    first, *rest = line.strip().splitlines() or [""]
    flat = " ".join(first.split())
    line = flat[: SHOWN_CHARACTERS - 1] + "…" if rest or len(flat) > SHOWN_CHARACTERS else flat
    if (over := met(value)) is not None and not over.of_command:
        killed = value["ended"] == "killed" or (over.kind == "memory" and not over.best_effort)
        how = "was killed" if killed else f"exited with {value['exit']}"
        return f"`{line}` {how}: {over.text}"
    match value["ended"]:
        case "exited":
            return f"`{line}` exited with {value['exit']}"
        case "timeout":
            return f"`{line}` was killed after {timeout_s or UNBOUNDED_S:g} s"
        case "flood":
            return f"`{line}` was killed: it wrote more than {FLOOD_BYTES // 1024**2} MiB"
        case _:
            return f"`{line}` was lost with its sandbox ({value['ended']})"


def met(value: Mapping[str, Any]) -> Exceeded | None:
    """The limit that a command's end, or a tool's data, tells of."""
    over = value.get("exceeded")
    return Exceeded(**cast("dict[str, Any]", over)) if isinstance(over, dict) else None


def limit_met(value: Mapping[str, Any], agent: str) -> LimitExceeded | None:
    """The same as the error that names the scope: the agent's, or that of one command."""
    over = met(value)
    if over is None:
        return None
    sure = " (best effort)" if over.best_effort else ""
    scope = f"{over.kind} of {'a command of ' if over.of_command else ''}agent {agent}{sure}"
    return LimitExceeded(scope, over.limit, over.used, over.unit)


def by_word(value: Mapping[str, Any]) -> bool:
    """Whether a command counts as done because a person said so."""
    return "wall_s" not in value and value.get("output") == BY_WORD


def tail(value: dict[str, Any]) -> str:
    """The end of a command's output."""
    return str(value["output"])[-TAIL_CHARACTERS:]
