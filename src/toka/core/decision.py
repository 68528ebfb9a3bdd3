"""The answer of a policy to one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Decision:
    """One policy decision.

    Attributes:
        outcome: `allowed`, `ask` (a person decides) or `denied`.
        rule: the rule that decided: a capability ("filesystem-write: src/"), or the absence of one.
        reason: one sentence for the model and the person; empty when allowed.
        place: where the spec says or would have to say otherwise: `agents/a.yaml:12`; empty when that is not known.
        patch: the smallest change that would allow it, as a line of a spec or of the settings; empty when none would.
    """

    outcome: Literal["allowed", "ask", "denied"]
    rule: str
    reason: str = ""
    place: str = ""
    patch: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the act may start."""
        return self.outcome == "allowed"
