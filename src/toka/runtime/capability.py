"""CapabilityValidator: a grant and a request give a decision. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from toka.core.capability import Capability, Grant
from toka.core.decision import Decision


class CapabilityValidator:
    """Decides whether an agent may do what a tool call asks for.

    The decision comes before the act and is recorded. It is the polite half of the boundary: what it allows still meets
    the sandbox's mounts and limits, which were compiled from the same grant.
    """

    def __init__(self, grant: Grant) -> None:
        """Decides under `grant`, which cannot change afterwards."""
        self.grant = grant

    def check(self, needs: Iterable[Capability]) -> Decision:
        """Allowed when every need is covered; else denied, with the first uncovered need in the reason."""
        rules: list[str] = []
        for need in needs:
            rule = self.grant.covering(need)
            if rule is None:
                return self._denied(need)
            rules.append(rule.text)
        return Decision("allowed", "; ".join(dict.fromkeys(rules)) or "needs nothing")

    def _denied(self, need: Capability) -> Decision:
        held = self.grant.named(need.name)
        if not held:
            return Decision(
                "denied",
                f"no {need.name}",
                f"this agent has no {need.name}; its spec would have to ask for {need.text}",
            )
        rule = "; ".join(c.text for c in held)
        wanted = need.text.partition(": ")[2] or "everything"
        return Decision("denied", rule, f"{wanted} is outside the granted {rule}")
