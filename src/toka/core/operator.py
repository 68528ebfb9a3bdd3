"""What the operator of a machine lets agents do, whatever their specs ask: deny before ask, ask before allow (pure).

A rule is written as a capability is: `filesystem-write: docs, src`, `network-access: *.example.org`, or the bare name
for all of it. A rule about a tool's calls is written `run_command(git push*)`: `*` and `?` match within its text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final

from toka.core.capability import Capability, CapabilityError, Grant
from toka.core.catalogue import ALIASES, PRIMITIVES, resolve
from toka.core.decision import Decision

_CALL: Final = re.compile(r"([a-z][a-z0-9_-]{0,99})\((.{0,1000})\)", re.DOTALL)
_PORT: Final = re.compile(r"(.+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class CallRule:
    """Calls of one tool whose text matches a pattern.

    Attributes:
        tool: the tool's name.
        pattern: what the call's text must match as a whole; `*` is any text, `?` any one character.
    """

    tool: str
    pattern: str

    @property
    def text(self) -> str:
        """As it is written."""
        return f"{self.tool}({self.pattern})"

    def matches(self, tool: str, text: str) -> bool:
        """Whether a call is meant: by its text as it is, or with every run of blanks as one."""
        return tool == self.tool and any(
            fnmatchcase(spelling, self.pattern) for spelling in (text, " ".join(text.split()))
        )


Rule = Capability | CallRule


@dataclass(frozen=True, slots=True)
class OperatorPolicy:
    """Rules over what specs ask for.

    Attributes:
        allow: the most that any agent gets; None = what its spec asks.
        deny: what no agent gets.
        ask: what an agent gets only when a person agrees.
    """

    allow: tuple[Capability, ...] | None = None
    deny: tuple[Rule, ...] = ()
    ask: tuple[Rule, ...] = ()

    @property
    def denied(self) -> tuple[Capability, ...]:
        """The capabilities among `deny`: what the sandbox takes out of a wider grant."""
        return tuple(rule for rule in self.deny if isinstance(rule, Capability))

    def bound(self, grant: Grant) -> Grant:
        """The grant as far as this policy allows it. Never wider.

        Of a capability that is denied in part, listed items are dropped; a part of everything stays in the grant, and
        the sandbox takes it out.
        """
        if self.allow is not None:
            grant = grant.intersect(Grant(self.allow))
        kept = (_without(capability, self.denied) for capability in grant.capabilities)
        return Grant(tuple(capability for capability in kept if capability is not None))

    def tighten(self, other: OperatorPolicy) -> OperatorPolicy:
        """Both policies together: what either denies is denied, what both allow is allowed."""
        allow = self.allow if other.allow is None else other.allow
        if self.allow is not None and other.allow is not None:
            allow = Grant(self.allow).intersect(Grant(other.allow)).capabilities
        return OperatorPolicy(
            allow, tuple(dict.fromkeys((*self.deny, *other.deny))), tuple(dict.fromkeys((*self.ask, *other.ask)))
        )

    def decide(self, needs: Iterable[Capability], tool: str = "", text: str = "") -> Decision | None:
        """What the rules say to one call: denied or ask; None when they have nothing against it.

        Args:
            needs: what the call needs to be granted.
            tool: its name.
            text: what rules about calls are compared with: the command, the path, the address.
        """
        needs = tuple(needs)
        for outcome, rules in (("denied", self.deny), ("ask", self.ask)):
            for rule in rules:
                if isinstance(rule, CallRule):
                    hit = rule.matches(tool, text)
                else:
                    hit = any(rule.covers(need) for need in needs)
                if hit and outcome == "denied":
                    rule_text, reason = f"policy: deny {rule.text}", f"the operator denies {rule.text}"
                    return Decision("denied", rule_text, reason, "[policy] deny")
                if hit:
                    reason = f"the operator wants to be asked about {rule.text}"
                    return Decision("ask", f"policy: ask {rule.text}", reason, "[policy] ask")
        return None

    def to_json(self) -> dict[str, Any]:
        """Rules as texts; keys that say nothing are left out."""
        lists: dict[str, Sequence[Rule] | None] = {"allow": self.allow, "deny": self.deny, "ask": self.ask}
        return {
            name: [rule.text if isinstance(rule, CallRule) else rule.to_json() for rule in rules]
            for name, rules in lists.items()
            if rules is not None and (rules or name == "allow")
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> OperatorPolicy:
        """The inverse of `to_json`."""

        def read(name: str) -> tuple[Rule, ...]:
            return tuple(
                parse_rule(r)[0] if isinstance(r, str) else Capability.from_json(r) for r in data.get(name, ())
            )

        allow = tuple(r for r in read("allow") if isinstance(r, Capability)) if "allow" in data else None
        return OperatorPolicy(allow, read("deny"), read("ask"))

    @property
    def version(self) -> str:
        """16 hex digits that change with the rules."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def parse_rule(
    text: str, custom: Mapping[str, tuple[Capability, ...]] | None = None, *, takes_away: bool = True
) -> tuple[Rule, ...]:
    """Reads one rule: a call rule, or a capability's name with items after a colon.

    Args:
        text: such as `filesystem-write: docs`, `network-access: example.org:8443`, `python-execution`,
            `run_command(rm *)`.
        custom: further presets, from settings.
        takes_away: whether the rule denies or asks. Then a host without a port means all of its ports (else 443),
            and a rule about writing says nothing about reading (else writing includes it).

    Returns:
        One rule, or the primitives that a preset stands for.

    Raises:
        CapabilityError: nobody knows the name, or an item is malformed.
    """
    if call := _CALL.fullmatch(text.strip()):
        return (CallRule(call[1], call[2]),)
    name, _, rest = text.partition(":")
    name, items = name.strip(), tuple(item.strip() for item in rest.split(",") if item.strip())
    whole = resolve(name, {}, custom).capabilities
    if not whole:
        raise CapabilityError(resolve(name, {}, custom).note)
    taken = PRIMITIVES[whole[0].name]
    if items and not taken:
        raise CapabilityError(f"{name} takes no items")
    arguments: dict[str, tuple[str, ...]] = {taken[0]: items} if items else {}
    if items and taken[0] == "hosts":
        pairs = [found.groups() if (found := _PORT.fullmatch(item)) else (item, "") for item in items]
        arguments = {"hosts": tuple(h for h, _ in pairs)}
        if ports := tuple(port for _, port in pairs if port):
            arguments["ports"] = ports
    found = resolve(name, arguments, custom)
    if not found.capabilities:
        raise CapabilityError(found.note)
    if not takes_away:
        return found.capabilities
    asked = ALIASES.get(name, name)
    kept = tuple(c for c in found.capabilities if asked not in PRIMITIVES or c.name == asked)
    return kept if "ports" in arguments else tuple(replace(c, ports=None) for c in kept)


def _without(capability: Capability, denied: Sequence[Capability]) -> Capability | None:
    """The capability without the items that a rule denies; None when nothing is left."""
    if any(rule.covers(capability) for rule in denied):
        return None
    for argument in PRIMITIVES.get(capability.name, ()):
        items: tuple[str, ...] | None = getattr(capability, argument)
        if items is None:
            continue
        kept = tuple(i for i in items if not any(rule.covers(_only(capability, argument, i)) for rule in denied))
        capability = _only(capability, argument, *kept)
    return None if capability.empty else capability


def _only(capability: Capability, argument: str, *items: str) -> Capability:
    values = {a: getattr(capability, a) for a in ("paths", "hosts", "programs", "ports")}
    return Capability(capability.name, **{**values, argument: items})
