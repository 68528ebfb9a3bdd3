"""What an operator's rules take out of what a spec asks for, and which rule does (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toka.core.capability import ARGUMENTS, Capability, Grant
from toka.core.operator import OperatorPolicy


@dataclass(frozen=True, slots=True)
class Taken:
    """What the operator takes out of what a spec asks for, and the rule that does: `policy: deny git-access`."""

    what: Capability
    rule: str

    @property
    def text(self) -> str:
        """`filesystem-write: secret (policy: deny filesystem-write: secret)`."""
        return f"{self.what.text} ({self.rule})"


def taken_out(asked: Grant, policy: OperatorPolicy) -> Iterator[Taken]:
    """What is asked for and not given, or given with an exception."""
    for capability in asked.capabilities:
        left = (capability,)
        if policy.allow is not None:
            left = Grant(left).intersect(Grant(policy.allow)).capabilities
            yield from _beyond(capability, left)
        for rule in policy.denied:
            met = (part.intersect(rule) for part in left)
            yield from (Taken(part, f"policy: deny {rule.text}") for part in met if part is not None)


def _beyond(capability: Capability, allowed: Sequence[Capability]) -> Iterator[Taken]:
    """What of a capability the operator's list of allowed ones does not include."""
    if not allowed:
        yield Taken(capability, "policy: not among what is allowed")
    elif not any(each.covers(capability) for each in allowed):
        argument = next((a for a in ARGUMENTS if getattr(capability, a) is not None), None)
        items: tuple[str, ...] = getattr(capability, argument) if argument else ()
        alone = {item: replace(capability, **{argument: (item,)}) for item in items} if argument else {}
        lost = tuple(i for i, one in alone.items() if not any(each.covers(one) for each in allowed))
        what = replace(capability, **{argument: lost}) if argument and lost else capability
        yield Taken(what, f"policy: allow only {'; '.join(c.text for c in allowed)}")


def taken_json(taken: Sequence[Taken]) -> list[dict[str, Any]]:
    """What was taken out, as JSON."""
    return [{**t.what.to_json(), "rule": t.rule} for t in taken]
