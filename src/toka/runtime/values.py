"""What the references of an agent stand for: its inputs, its element, and what the agents it needs left."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from toka.config.agent import AgentConfig, Objective, Tasks
from toka.config.flow_rules import NOT, references_of
from toka.core.ids import AgentName
from toka.core.reference import ITEM, Reference, as_text, references, substitute, value_of
from toka.events.lifecycle import AgentStatus, ObjectiveStatus
from toka.events.state import AgentState

MAX_INLINE: Final = 300
"""Characters of a value that stands within a sentence; a longer one, or one of several lines, is shown beside it."""

MAX_VARIABLE: Final = 100_000
"""Characters of a variable."""

_BESIDE: Final = "(the value {}, given below)"

Load = Callable[[str], bytes]
"""A blob by its digest."""


class ValueMissing(Exception):
    """A value that an agent needs is not there, or is not what it must be. The message says which and why."""


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one agent's references.

    Attributes:
        known: by key: `survey.failing`, `inputs.area`, `item`.
        beside: those that are too large for a sentence, as text, for the prompt.
    """

    known: Mapping[str, Any] = field(default_factory=dict[str, Any])
    beside: tuple[tuple[str, str], ...] = ()

    def prose(self, text: str) -> str:
        """A text with its references replaced by what stands within a sentence."""
        return substitute(text, lambda each: _inline(each, self.known))

    def beside_in(self, texts: Iterable[str]) -> dict[str, str]:
        """The values of references in these texts that `prose` does not hold, by name."""
        found = (each for text in texts for each in references(text) if each.kind != "secret")
        shown = ((each.key, as_text(_value(each, self.known))) for each in found)
        return {key: text for key, text in shown if not _fits(text)}

    def given_below(self, text: str) -> list[tuple[str, str]]:
        """The values that a text from `prose` refers to and does not hold, by name."""
        return [(key, value) for key, value in self.beside if _BESIDE.format(key) in text]

    def command(self, text: str) -> str:
        """A command line with its references replaced by quoted values, for people: what was run in effect."""
        if not self.known:
            return text
        return substitute(text, lambda each: each.text if each.kind == "secret" else _quoted(each, self.known))


def instance_name(template: str, number: int) -> AgentName:
    """`fix[3]`: the name of an instance; numbers start at 1."""
    return AgentName(f"{template}[{number}]")


def template_of(name: str) -> AgentName:
    """`fix` of `fix[3]`; empty when the name is not that of an instance."""
    head, bracket, _ = name.partition("[")
    return AgentName(head if bracket else "")


def values_for(config: AgentConfig, agents: Mapping[str, AgentState], load: Load) -> Values:
    """The values that a spec's references name.

    Args:
        config: the spec, or an instance of one.
        agents: what the record says of all agents.
        load: for large values.

    Raises:
        ValueMissing: one is not there.
    """
    if config.flow is None:
        return Values()
    known = config.flow.inputs_by_key
    beside: dict[str, str] = {}
    for text, reference in references_of(config):
        if reference.kind == "secret":
            continue
        if reference.kind == "output" and reference.key not in known:
            known[reference.key] = output_of(reference, agents, load)
        if text.use == "text" and not _fits(shown := as_text(_value(reference, known))):
            beside[reference.key] = shown
    return Values(known, tuple(beside.items()))


def value_at(config: AgentConfig, reference: Reference, agents: Mapping[str, AgentState], load: Load) -> Any:
    """The value of one reference of a spec. Raises ValueMissing."""
    if reference.kind == "output":
        return output_of(reference, agents, load)
    return _value(reference, config.flow.inputs_by_key if config.flow is not None else {})


def output_of(reference: Reference, agents: Mapping[str, AgentState], load: Load) -> Any:
    """The value of `${agent.name}`: declared, or one that every agent has.

    Raises:
        ValueMissing: the agent did not leave it.
    """
    name, agent = reference.name, AgentName(reference.agent)
    state = agents.get(agent) or AgentState(agent)
    instances: list[AgentState] | None = None
    if state.made is not None:
        names = (instance_name(agent, number + 1) for number in range(state.made.count))
        instances = [agents.get(one) or AgentState(one) for one in names]
    if name in _BUILT_IN:
        return _BUILT_IN[name](state, [state] if instances is None else instances)
    if instances is None:
        return _declared(state, name, load)
    return [_declared(one, name, load) for one in instances]


def holds(text: str, reference: Reference, value: Any) -> bool:
    """Whether a condition of `when` holds: a reference whose value this is, perhaps after `not`.

    Raises:
        ValueMissing: the value is no boolean.
    """
    if not isinstance(value, bool):
        raise ValueMissing(f"when: {reference.text} is {_short(value)}, which is neither true nor false")
    return value is not bool(NOT.match(text.strip()))


def elements_of(config: AgentConfig, agents: Mapping[str, AgentState], load: Load) -> list[Any]:
    """The elements for which an agent with `for_each` is to be there.

    Raises:
        ValueMissing: the value is not there, or is no list.
    """
    given = config.flow.for_each if config.flow is not None else None
    if not isinstance(given, str):
        return list(given or ())
    reference = next(r for text, r in references_of(config) if text.use == "for_each")
    value = value_at(config, reference, agents, load)
    if not isinstance(value, list):
        raise ValueMissing(f"for_each: {reference.text} is {_short(value)}, which is no list")
    return cast("list[Any]", value)


def variables_of(config: AgentConfig, values: Values, secrets: Mapping[str, str]) -> dict[str, str]:
    """The variables of an agent's commands, with their values.

    Args:
        config: the spec.
        values: what its references stand for.
        secrets: what `${secret:NAME}` stands for, by name.

    Raises:
        ValueMissing: a secret is not known, or a value cannot be that of a variable.
    """
    out: dict[str, str] = {}

    def given(reference: Reference) -> str:
        if reference.kind != "secret":
            return as_text(_value(reference, values.known))
        if reference.name not in secrets:
            raise ValueMissing(f"there is no secret {reference.name}; name it under [secrets] in your own config.toml")
        return secrets[reference.name]

    for name, text in config.flow.env.items() if config.flow is not None else ():
        value = substitute(text, given)
        if "\0" in value or len(value) > MAX_VARIABLE:
            raise ValueMissing(
                f"the variable {name} would hold a NUL character, or more than {MAX_VARIABLE} characters"
            )
        out[name] = value
    return out


def in_words(config: AgentConfig, values: Values) -> AgentConfig:
    """A spec whose sentences hold the values; its commands, variables and conditions keep their references."""
    if config.flow is None:
        return config
    prose = values.prose
    tasks = Tasks(
        default=tuple(_task(entry, prose) for entry in config.tasks.default),
        conditional={
            group: tuple(_task(entry, prose) for entry in entries)
            for group, entries in config.tasks.conditional.items()
        },
    )
    objectives = tuple(_objective(each, prose) for each in config.objectives)
    return config.model_copy(update={"tasks": tasks, "objectives": objectives})


def _task(entry: Any, prose: Callable[[str], str]) -> Any:
    said = entry.description
    return entry if said is None else entry.model_copy(update={"description": prose(said)})


def _objective(objective: Objective, prose: Callable[[str], str]) -> Objective:
    return objective.model_copy(update={"description": prose(objective.description)})


def _value(reference: Reference, known: Mapping[str, Any]) -> Any:
    try:
        return value_of(reference, known)
    except KeyError:
        raise ValueMissing(f"{reference.text} has no value: the element is {_short(known.get(ITEM))}") from None


def _declared(state: AgentState, name: str, load: Load) -> Any:
    left = state.outputs
    values: dict[str, Any] = {} if left is None else json.loads(load(left.blob)) if left.blob else left.values
    if name not in values:
        raise ValueMissing(f"{state.name} left no value {name}; it is {state.status.value}")
    return values[name]


def _verified(state: AgentState) -> bool:
    known = state.objectives.values()
    return state.status is AgentStatus.COMPLETED and any(o.status is ObjectiveStatus.VERIFIED for o in known) and all(
        o.status in (ObjectiveStatus.VERIFIED, ObjectiveStatus.CLAIMED) for o in known
    )  # fmt: skip


def _count(of: Callable[[AgentState], bool]) -> Callable[[AgentState, Iterable[AgentState]], int]:
    return lambda _, instances: sum(map(of, instances))


def _reports(_: AgentState, instances: Iterable[AgentState]) -> str:
    said = [str(task.report.get("summary", "")) for one in instances for task in one.tasks.values() if task.report]
    return "\n".join(said)


_BUILT_IN: Final[Mapping[str, Callable[[AgentState, list[AgentState]], Any]]] = {
    "status": lambda state, _: state.status.value.lower(),
    "verified": _count(_verified),
    "completed": _count(lambda one: one.status is AgentStatus.COMPLETED),
    "failed": _count(lambda one: one.status is AgentStatus.FAILED),
    "total": lambda _, instances: len(instances),
    "report": _reports,
}


def _fits(text: str) -> bool:
    return len(text) <= MAX_INLINE and "\n" not in text and "\r" not in text


def _inline(reference: Reference, known: Mapping[str, Any]) -> str:
    if reference.kind == "secret":
        return reference.text
    text = as_text(_value(reference, known))
    return text if _fits(text) else _BESIDE.format(reference.key)


def _quoted(reference: Reference, known: Mapping[str, Any]) -> str:
    try:
        text = as_text(_value(reference, known))
    except ValueMissing:
        return reference.text
    return shlex.quote(text if len(text) <= MAX_INLINE else text[: MAX_INLINE - 1] + "…")


def _short(value: object) -> str:
    text = as_text(value)
    return text if len(text) <= 80 else text[:79] + "…"


def branch_of(config: AgentConfig, run: str) -> str:
    """The branch of an agent with a worktree: the one that its spec names, with its number where it is an instance."""
    template = template_of(config.name)
    number = config.name.removeprefix(f"{template}[").removesuffix("]") if template else ""
    if config.metadata.branch is not None:
        return f"{config.metadata.branch}-{number}" if number else config.metadata.branch
    return f"toka/{run}/{template}/{number}" if number else f"toka/{run}/{config.name}"
