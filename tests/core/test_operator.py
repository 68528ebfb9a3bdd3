"""The operator's rules: never wider than the grant, deny first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.core.capability import Capability, CapabilityError, Grant
from toka.core.operator import CallRule, OperatorPolicy, Rule, parse_rule

READ, WRITE, RUN, NET = "filesystem-read", "filesystem-write", "command-execution", "network-access"


def rules(*texts: str) -> tuple[Rule, ...]:
    return tuple(rule for text in texts for rule in parse_rule(text))


def capabilities(*texts: str) -> tuple[Capability, ...]:
    return tuple(rule for rule in rules(*texts) if isinstance(rule, Capability))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("filesystem-write: docs, src", (Capability(WRITE, paths=("docs", "src")),)),
        ("file-system-write", (Capability(WRITE),)),
        ("command-execution: git", (Capability(RUN, programs=("git",)),)),
        ("network-access: *.example.org", (Capability(NET, hosts=("*.example.org",)),)),
        ("network-access: example.org:8443", (Capability(NET, hosts=("example.org",), ports=("8443",)),)),
        ("python-execution", (Capability(RUN, programs=("python", "python3")),)),
        ("git-access", (Capability("git-access"),)),
        ("run_command(git push*)", (CallRule("run_command", "git push*"),)),
        ("write_file(src/(a).py)", (CallRule("write_file", "src/(a).py"),)),
    ],
)
def test_rules_are_written_as_capabilities_are(text: str, expected: tuple[Rule, ...]) -> None:
    assert parse_rule(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "telepathy", "telepathy: x", "git-access: x", "filesystem-read: ../x", "network-access: a b", ":", "x("],
)
def test_malformed_rules_are_errors(text: str) -> None:
    with pytest.raises(CapabilityError):
        parse_rule(text)


def test_without_rules_the_spec_gets_what_it_asks() -> None:
    grant = Grant(capabilities("filesystem-write: src", "network-access"))
    assert OperatorPolicy().bound(grant) == grant
    assert OperatorPolicy().decide(grant.capabilities, "run_command", "rm -rf /") is None


def test_allow_is_the_most_that_anyone_gets() -> None:
    grant = Grant(capabilities("filesystem-write: src, docs", "network-access", "git-access"))
    policy = OperatorPolicy(allow=capabilities("filesystem-write: docs", "network-access: *.example.org"))
    expected = Grant(capabilities("filesystem-write: docs", "network-access: *.example.org"))
    assert policy.bound(grant) == expected
    assert OperatorPolicy(allow=()).bound(grant) == Grant()


def test_deny_takes_out_what_it_covers() -> None:
    grant = Grant(capabilities("command-execution: git, rm, python3", "network-access", "filesystem-write: src, docs"))
    policy = OperatorPolicy(deny=rules("command-execution: rm", "network-access", "filesystem-write: docs"))
    assert policy.bound(grant) == Grant(capabilities("command-execution: git, python3", "filesystem-write: src"))


def test_a_part_of_everything_stays_for_the_sandbox_to_take_out() -> None:
    grant = Grant(capabilities("filesystem-write", "command-execution"))
    policy = OperatorPolicy(deny=rules("filesystem-write: src/secret", "command-execution: rm"))
    assert policy.bound(grant) == grant
    assert policy.denied == capabilities("filesystem-write: src/secret", "command-execution: rm")
    inside = Capability(WRITE, paths=("src/secret/key",))
    decision = policy.decide([inside])
    assert decision is not None
    assert (decision.outcome, decision.rule) == ("denied", "policy: deny filesystem-write: src/secret")
    assert policy.decide([Capability(WRITE, paths=("src",))]) is None


def test_deny_goes_before_ask() -> None:
    policy = OperatorPolicy(
        deny=rules("run_command(git push*)"), ask=rules("command-execution: git", "write_file(*.lock)")
    )
    needs = [Capability(RUN, programs=("git",))]
    outcomes = [
        (policy.decide(needs, "run_command", "git  push --force"), "denied"),
        (policy.decide(needs, "run_command", "git status"), "ask"),
        (policy.decide([Capability(WRITE, paths=("a.lock",))], "write_file", "a.lock"), "ask"),
    ]
    assert all(decision is not None and decision.outcome == outcome for decision, outcome in outcomes)
    assert policy.decide([], "run_command", "make test") is None


ITEMS = st.sampled_from(["src", "src/a", "docs", "."])
NAMES = st.sampled_from([READ, WRITE])
CAPABILITIES = st.builds(
    lambda name, paths: Capability(name, paths=tuple(paths) if paths else None), NAMES, st.lists(ITEMS, max_size=3)
)


@given(
    st.lists(CAPABILITIES, max_size=4),
    st.none() | st.lists(CAPABILITIES, max_size=3),
    st.lists(CAPABILITIES, max_size=3),
)
def test_no_policy_widens_a_grant(
    held: list[Capability], allowed: list[Capability] | None, denied: list[Capability]
) -> None:
    grant = Grant(tuple(held))
    policy = OperatorPolicy(None if allowed is None else tuple(allowed), tuple(denied))
    bound = policy.bound(grant)
    assert all(grant.covering(c) for c in bound.capabilities)
    assert policy.bound(bound) == bound
    if allowed is not None:
        assert all(Grant(tuple(allowed)).covering(c) for c in bound.capabilities)
    assert not any(rule.covers(c) for rule in denied for c in bound.capabilities)
    assert OperatorPolicy.from_json(policy.to_json()) == policy
