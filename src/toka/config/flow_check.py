"""References from one agent to another: whether there is such a value, a way to it, and the right type."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Final

from toka.config.agent import AgentConfig
from toka.config.diagnostics import Nearest, did_you_mean, one_of, quoted
from toka.config.flow import BUILT_IN
from toka.config.flow_rules import Text, before, condition, references_of
from toka.config.rules import Problem
from toka.core.ids import AgentName
from toka.core.reference import Reference, only_reference

TEXT_BUILT_IN: Final = ("status", "report")
"""Built-in values that are text; the others are integers."""
MAX_NAMES: Final = 20
"""Outputs that are told, or compared with a misspelled one."""
_LISTS: Final = ("lines", "list", "json")
_TRUTHS: Final = ("boolean", "json")


class Upstream:
    """The agents that one waits for, directly and through others; each is found out once.

    Attributes:
        near: what the name of an unknown agent may be meant to be.
    """

    def __init__(self, known: Mapping[AgentName, AgentConfig]) -> None:
        self._known = known
        self.near = Nearest(known)
        self._found: dict[AgentName, frozenset[AgentName]] = {}

    def of(self, name: AgentName) -> frozenset[AgentName]:
        """Their names; circles are followed once."""
        if name not in self._found:
            seen: set[AgentName] = set()
            front = [name]
            while front:
                current = front.pop()
                config = self._known.get(current)
                if config is None:
                    continue
                if current in self._found:
                    seen |= self._found[current]
                    continue
                edges = (*config.dependencies.required, *config.dependencies.optional)
                fresh = [AgentName(t) for t in edges if t not in seen]
                seen.update(fresh)
                front += fresh
            self._found[name] = frozenset(seen)
        return self._found[name]


def reference_problems(
    config: AgentConfig, known: Mapping[AgentName, AgentConfig], upstream: Upstream, *, complete: bool
) -> Iterator[Problem]:
    """What is wrong with the references of an agent to others.

    Args:
        config: the agent.
        known: all agents, drafts too.
        upstream: which agents come before which.
        complete: False when further agents exist whose names are not known.
    """
    if config.flow is None:
        return
    for text, reference in references_of(config):
        if reference.kind != "output":
            continue
        problem = _problem(config, text, reference, known, upstream)
        if problem is not None and (complete or problem.code != "TK3008"):
            yield replace(problem, skip=before(text.text, reference))


def _problem(
    config: AgentConfig,
    text: Text,
    reference: Reference,
    known: Mapping[AgentName, AgentConfig],
    upstream: Upstream,
) -> Problem | None:
    target = known.get(AgentName(reference.agent))
    told = quoted(reference.agent)
    if reference.agent == config.name:
        message = f"{reference.text} is a value of this agent itself, which has none before it ends"
        return Problem("TK3010", message, text.path, text=reference.text)
    if target is None and reference.agent in config.dependencies.required:
        return None  # the dependency says it
    if target is None:
        near = upstream.near.to(reference.agent)
        return Problem("TK3008", f"there is no agent {told} in this team", text.path, text=reference.text, help=near)
    kind = type_of(target, reference.name)
    if kind is None:
        if target.lacks("flow"):
            return None
        names = (*(target.flow.outputs if target.flow else ()), *BUILT_IN)
        near = did_you_mean(reference.name, names[:MAX_NAMES]) or f"it has {one_of(names[:MAX_NAMES])}"
        message = f"{told} has no output {quoted(reference.name)}"
        return Problem("TK3009", message, text.path, text=reference.text, help=near)
    if target.name not in upstream.of(config.name) and not config.lacks("dependencies"):
        message = f"{reference.text} is of an agent that this one does not wait for"
        return Problem("TK3010", message, text.path, text=reference.text, help=f"add it to needs: {reference.agent}")
    return _wrong_type(text, reference, kind)


def type_of(target: AgentConfig, name: str) -> str | None:
    """The type of `${target.name}`; None when there is no such value. An agent of many instances has a list of each."""
    if name in BUILT_IN:
        return "text" if name in TEXT_BUILT_IN else "integer"
    output = target.flow.outputs.get(name) if target.flow else None
    if output is None or target.flow is None:
        return None
    return "list" if target.flow.for_each is not None else output.type


def _wrong_type(text: Text, reference: Reference, kind: str) -> Problem | None:
    wanted: Collection[str] = ()
    if text.use == "for_each" and only_reference(text.text):
        wanted = _LISTS
    elif text.use == "when" and condition(text.text):
        wanted = _TRUTHS
    if not wanted or kind in wanted:
        return None
    use = "for_each needs a list" if text.use == "for_each" else "when needs true or false"
    message = f"{reference.text} is of type {kind}, and {use}"
    help_ = None if reference.name in BUILT_IN else f"declare the output with as: {one_of(wanted)}"
    return Problem("TK2016", message, text.path, text=reference.text, help=help_)
