"""CapabilityValidator: a grant and a request give a decision. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from toka.core.capability import Capability, Grant, request_line
from toka.core.decision import Decision
from toka.core.operator import OperatorPolicy
from toka.core.taken import taken_out

NO_POLICY: Final = OperatorPolicy()


def _nowhere(_: str) -> str:
    return ""


def _nothing(_: Capability) -> Decision | None:
    return None


class CapabilityValidator:
    """Decides whether an agent may do what a tool call asks for.

    The decision comes before the act and is recorded. It is the polite half of the boundary: what it allows still meets
    the sandbox's mounts and limits, which were compiled from the same grant.
    """

    def __init__(
        self,
        grant: Grant,
        policy: OperatorPolicy = NO_POLICY,
        origin: Callable[[str], str] = _nowhere,
        guard: Callable[[Capability], Decision | None] = _nothing,
        asked: Grant | None = None,
        asking: Callable[[Capability], str] = request_line,
    ) -> None:
        """Decides under rules that cannot change afterwards.

        Args:
            grant: what the spec asks for, as far as the operator allows it.
            policy: the operator's rules, for what they say about single calls.
            origin: where the spec asks for a capability, by its name: `agents/a.yaml:12`; empty when it is not known.
            guard: what speaks against a need whatever is granted: it touches what is protected.
            asked: what the spec asks for, before the operator's rules; None = what is granted.
            asking: what the spec would say to ask for a capability.
        """
        self._asking = asking
        self._asked = asked or grant
        self.grant = grant
        self._policy = policy
        self._origin = origin
        self._guard = guard

    def check(self, needs: Sequence[Capability], tool: str = "", text: str = "") -> Decision:
        """Allowed when no rule of the operator is against it and every need is covered; else what decided, and why.

        Args:
            needs: what the call needs to be granted.
            tool: its name.
            text: what it is about: the command, the path, the address.
        """
        decided = self._policy.decide(needs, tool, text)
        if decided is not None and decided.outcome == "denied":
            return decided
        rules: list[str] = []
        for need in needs:
            if (decision := self._guard(need)) is not None:
                return decision
            rule = self.grant.covering(need)
            if rule is None:
                return self._denied(need)
            rules.append(rule.text)
        if decided is not None:  # a person is asked about what is granted, not about what is not
            return decided
        return Decision("allowed", "; ".join(dict.fromkeys(rules)) or "needs nothing")

    def _denied(self, need: Capability) -> Decision:
        held = self.grant.named(need.name)
        if (asked := self._asked.covering(need)) is not None:
            taken = (t for t in taken_out(Grant((asked,)), self._policy) if t.what.intersect(need) is not None)
            rules = "; ".join(dict.fromkeys(t.rule for t in taken)) or "policy"
            reason = f"the operator's settings do not allow {need.text}"
            return Decision("denied", rules, reason, "[policy] allow", f"- {need.text}")
        if not held:
            rule = f"no {need.name}"
            reason = f"this agent has no {need.name}; its spec would have to ask for {need.text}"
        else:
            rule = "; ".join(c.text for c in held)
            reason = f"{need.text.partition(': ')[2] or 'everything'} is outside the granted {rule}"
        return Decision("denied", rule, reason, self._origin(need.name), self._asking(need))
