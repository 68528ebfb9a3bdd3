"""Ways to break the product on purpose: each must make the simulation find a broken rule."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Mutation:
    """One change of one function: `old` stands in its source exactly once.

    Attributes:
        place: `module:Class.function`, or `module:function`.
        rules: of which one at least is broken by it.
    """

    place: str
    old: str
    new: str
    rules: tuple[str, ...] = ()


MUTATIONS: Final = {
    "no-intent": Mutation(
        "toka.runtime.step:Steps.run",
        "        await self._recorder.record(self._agent, intent)\n",
        "        pass\n",
        ("intent-before-act",),
    ),
}


def mutate(name: str) -> None:
    """Breaks the product in this process."""
    mutation = MUTATIONS[name]
    module_name, _, path = mutation.place.partition(":")
    module: Any = importlib.import_module(module_name)
    owner: Any = module
    *classes, function = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    source = textwrap.dedent(inspect.getsource(inspect.getattr_static(owner, function)))
    old, new = textwrap.dedent(mutation.old), textwrap.dedent(mutation.new)
    wide = mutation.old if mutation.old in source else None
    if wide is None:
        count = source.count(old)
        assert count == 1, f"{mutation.place} has {count} times {old!r}"
        source = source.replace(old, new)
    else:
        assert source.count(wide) == 1, f"{mutation.place} has {source.count(wide)} times {wide!r}"
        source = source.replace(wide, mutation.new)
    space: dict[str, Any] = {}
    exec(compile(source, f"<mutated {mutation.place}>", "exec"), module.__dict__, space)  # noqa: S102
    setattr(owner, function, space[function])
