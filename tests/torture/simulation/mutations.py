"""Ways to break the product on purpose: each must make the simulation find a broken rule."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Mutation:
    """One change of one function, `module:Class.function`: `old` stands in its source exactly once."""

    place: str
    old: str
    new: str


STEPS = "toka.runtime.step:Steps"
MEMORY = "toka.journal.memory:MemoryJournal"

MUTATIONS: Final[Mapping[str, Mutation | tuple[Mutation, ...]]] = {
    "no-intent": Mutation(f"{STEPS}._act", "await self._recorder.record(self._agent, intent)", "pass"),
    "no-lease-check": Mutation(
        "toka.journal.recorder:Recorder.check_lease", "if self._journal.holds(self._lease)", "if True"
    ),
    "no-fence": (
        Mutation(f"{MEMORY}._fence", "if self._tokens", "if False and self._tokens"),
        Mutation(f"{MEMORY}._append", "if known != epoch", "if False"),
    ),
    "hold-ignored": Mutation("toka.runtime.control:AgentControl.held", "bool(self.holds)", "False"),
    "hold-forgotten-by-the-next-process": Mutation(
        "toka.runtime.process:AgentProcessManager.launch", "control.holds.update(", "dict().update("
    ),
    "once-runs-again": Mutation(f"{STEPS}._after_crash", "(Effect.PURE, Effect.IDEMPOTENT)", "tuple(Effect)"),
    "recorded-runs-again": Mutation(f"{STEPS}.recorded", "if end is None", 'if end is None or "/tool/" in step.text'),
    "key-of-the-attempt": Mutation(
        f"{STEPS}.key",
        "return idempotency_key(self._run, self._agent, step)",
        "return idempotency_key(self._run, self._agent, step)[::-1 if self._started.get(step.text) else 1]",
    ),
    "too-many-agents": Mutation(
        "toka.runtime.process:AgentProcessManager.__init__",
        "run.execution.max_concurrent_agents",
        "run.execution.max_concurrent_agents + 1",
    ),
    "too-many-tasks": Mutation(
        "toka.runtime.executor:AgentExecutor._run_tasks",
        "limit = self._agent.run.execution.max_concurrent_tasks",
        "limit = self._agent.run.execution.max_concurrent_tasks + 1",
    ),
    "dependency-forgotten": Mutation(
        "toka.orchestration.schedule:Schedule.__init__",
        "{e.on for e in graph.before[n]}",
        "{e.on for e in graph.before[n][1:]}",
    ),
    "verdict-ignores-failures": Mutation(
        "toka.orchestration.session:RunSession._round", "= verdict(recorder.state)", '= (RunStatus.COMPLETED, "")'
    ),
    "fold-differs": Mutation(
        "toka.journal.recorder:Recorder._committed",
        "self.state = fold(self.state, record)",
        "self.state = fold(self.state, record) if record.id % 7 else self.state",
    ),
    "chain-broken": Mutation(
        f"{MEMORY}._append", "link = chain(link, body)", "link = chain(link, body) if seq % 50 else link"
    ),
    "lost-call-is-free": Mutation(
        "toka.runtime.conversation:Conversation._charge_lost", "if intent is None or", "if True or"
    ),
    "billed-twice": Mutation(
        "toka.runtime.resource:CallMeter.settle", "self.usage + usage", "self.usage + usage + usage"
    ),
    "failure-is-free": Mutation(
        "toka.llm.gateway:LlmGateway._settle_failure", "elif failure is None or failure.billed", "elif False"
    ),
    "limit-ignored": Mutation("toka.runtime.resource:Scope.check", "if limit is None or", "if True or"),
    "limit-of-the-run-starts-anew": Mutation(
        "toka.orchestration.engine:OrchestrationEngine._context", "recorder.state.agents.values()", "()"
    ),
    "answers-run-before-the-reply-is-stored": Mutation(
        f"{STEPS}._record_done",
        "await self._recorder.record(self._agent, done)",
        'asyncio.ensure_future(self._recorder.record(self._agent, done)) if "/model/" in text'
        " else await self._recorder.record(self._agent, done)",
    ),
    "unapproved-is-allowed": Mutation(
        "toka.runtime.approval:consent",
        "known = await answer_to(agent, ask)",
        'return replace(rule, outcome="allowed")',
    ),
    "denied-is-allowed": Mutation("toka.runtime.approval:consent", 'known.answer == "approved"', "known.answer"),
    "lost-wake-up": Mutation("toka.runtime.control:AgentControl.lift", "self._notify()", "pass"),
    "request-applied-twice": Mutation(
        "toka.orchestration.session:RunSession._apply", "self._applied = command.id", "pass"
    ),
    "requests-are-never-applied": Mutation("toka.journal.memory:MemoryJournal.commands", "c.run == run", "False"),
    "stop-lets-go-on": Mutation("toka.runtime.control:AgentControl.close", "self.closing = True", "pass"),
    "end-is-not-final": Mutation(
        "toka.runtime.status:Statuses.change_now", "(old in AGENT_ENDS and goal is not AgentStatus.READY)", "False"
    ),
    "transition-unchecked": Mutation("toka.runtime.executor:AgentExecutor._give_up", "not in WAITS:", "not in ():"),
    "steps-in-flight-forgotten": Mutation(f"{STEPS}.abandon", "in self._left if", "in () if"),
    "command-after-the-lease": Mutation("toka.runtime.meter:Meter.hands", "self._check()", "pass"),
    "attempt-after-the-lease": Mutation("toka.runtime.resource:CallMeter.reserve", "self.check()", "pass"),
    "refused-call-forgets-the-bill": Mutation(
        "toka.runtime.conversation:Conversation._request", "used_up(e, *meter.charged)", "used_up(e)"
    ),
    "second-executor": Mutation(
        "torture.simulation.journal:SimJournal._take", "not row.life.dead and row.until > now", "False"
    ),
    "ended-agent-starts-again": Mutation(
        "toka.orchestration.schedule:Schedule.forget", "self._known |= set(names)", "pass"
    ),
    "doubt-is-retried": Mutation(
        "toka.runtime.task:TaskExecutor._attempts", "TaskStatus.NEEDS_ATTENTION, None", "TaskStatus.SUCCEEDED, None"
    ),
}


def check() -> None:
    """Raises AssertionError when a mutation fits the product no more."""
    for found in MUTATIONS.values():
        for mutation in found if isinstance(found, tuple) else (found,):
            _source(mutation)


def mutate(name: str) -> None:
    """Breaks the product in this process."""
    found = MUTATIONS[name]
    for mutation in found if isinstance(found, tuple) else (found,):
        _change(mutation)


def _place(mutation: Mutation) -> tuple[Any, Any, str]:
    """The module, whose the function is, and its name."""
    module_name, _, path = mutation.place.partition(":")
    module: Any = importlib.import_module(module_name)
    owner: Any = module
    *classes, function = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return module, owner, function


def _source(mutation: Mutation) -> str:
    """The changed source of the function."""
    _, owner, function = _place(mutation)
    before = inspect.getattr_static(owner, function)
    source = textwrap.dedent(inspect.getsource(before.fget if isinstance(before, property) else before))
    count = source.count(mutation.old)
    assert count == 1, f"{mutation.place} has {count} times {mutation.old!r}"
    return source.replace(mutation.old, mutation.new)


def _change(mutation: Mutation) -> None:
    module, owner, function = _place(mutation)
    before = inspect.getattr_static(owner, function)
    space: dict[str, Any] = {}
    changed = compile(_source(mutation), f"<mutated {mutation.place}>", "exec")
    exec(changed, module.__dict__, space)
    setattr(owner, function, space[function])
    if owner is module:  # whoever imported it by its name
        for other in [m for n, m in sys.modules.items() if n.startswith("toka.")]:
            if getattr(other, function, None) is before:
                setattr(other, function, space[function])
