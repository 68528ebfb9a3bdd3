from __future__ import annotations

import pytest

from toka.core.capability import Capability, Grant
from toka.core.catalogue import COMMAND_EXECUTION, FILESYSTEM_READ, FILESYSTEM_WRITE, GIT_ACCESS
from toka.core.decision import Decision
from toka.core.limits import Limits
from toka.core.message import Usage
from toka.core.operator import OperatorPolicy
from toka.errors import LimitExceeded
from toka.llm.model import Estimate
from toka.runtime.capability import CapabilityValidator
from toka.runtime.resource import CallMeter, ResourceManager, Scope

CALL = Estimate(90, 10, 1.0)


def nested(run: Limits, agent: Limits) -> tuple[Scope, Scope, Scope]:
    manager = ResourceManager(run)
    scope = manager.agent("fixer", agent, used=Usage(), cost_usd=0.0, tool_calls=0)
    return manager.run, scope, manager.task(scope, "fix")


def figures(scope: Scope) -> tuple[float, ...]:
    return (scope.tokens, scope.cost_usd, scope.model_calls, scope.tool_calls, scope.open_tokens, scope.open_cost)


@pytest.mark.parametrize(
    ("run", "agent", "text", "hint"),
    [
        (
            Limits(tokens=199), Limits(), "run: 0 of 199 tokens used",
            "100 are reserved for calls in flight; the refused call needs up to 100: raise max_tokens in the settings' "
            "[limits.run]",
        ),
        (
            Limits(), Limits(tokens=199), "agent fixer: 0 of 199 tokens used",
            "100 are reserved for calls in flight; the refused call needs up to 100: raise "
            "security.resource_limits.max_tokens",
        ),
        (
            Limits(cost_usd=1.5), Limits(), "run: 0 of 1.5 USD used",
            "1 are reserved for calls in flight; the refused call needs up to 1: raise max_cost in the settings' "
            "[limits.run]",
        ),
        (
            Limits(model_calls=1), Limits(model_calls=5), "run: 1 of 1 model calls used",
            "the refused call needs up to 1: raise max_model_calls in the settings' [limits.run]",
        ),
    ],
)  # fmt: skip
def test_a_call_is_reserved_in_all_scopes_or_in_none(run: Limits, agent: Limits, text: str, hint: str) -> None:
    scopes = nested(run, agent)
    scopes[2].reserve_call(CALL)
    before = [figures(s) for s in scopes]
    with pytest.raises(LimitExceeded) as error:
        scopes[2].reserve_call(CALL)
    assert (error.value.message, error.value.hint) == (text, hint)
    assert [figures(s) for s in scopes] == before == [(0, 0.0, 1, 0, 100, 1.0)] * 3


def test_what_was_reserved_is_replaced_by_what_was_used() -> None:
    scopes = nested(Limits(tokens=150), Limits())
    meter = CallMeter(scopes[2])
    meter.reserve(1, CALL)
    meter.settle(1, Usage(40, 5, calls=1), 0.25, None)
    assert [figures(s) for s in scopes] == [(45, 0.25, 1, 0, 0, 0.0)] * 3
    meter.reserve(2, CALL)
    meter.settle(2, Usage(20, 5, calls=1), None, "timeout")
    assert (meter.usage, meter.cost_usd) == (Usage(60, 10, calls=2), None), "one unknown price makes the sum unknown"
    with pytest.raises(LimitExceeded, match="run: 70 of 150 tokens used") as error:
        meter.reserve(3, CALL)
    assert (error.value.limit, error.value.used, error.value.unit) == (150, 70, "tokens")
    assert error.value.hint == "the refused call needs up to 100: raise max_tokens in the settings' [limits.run]"


def test_reservations_of_siblings_count_while_they_are_open() -> None:
    manager = ResourceManager(Limits(tokens=150))
    one, two = (manager.agent(n, Limits(), used=Usage(), cost_usd=None, tool_calls=0) for n in ("a", "b"))
    one.reserve_call(CALL)
    with pytest.raises(LimitExceeded, match="run: 0 of 150 tokens"):
        two.reserve_call(CALL)
    one.settle_call(CALL, Usage(10, 0, calls=1), 0.0)
    two.reserve_call(CALL)


def test_a_lost_call_is_charged_everywhere() -> None:
    scopes = nested(Limits(), Limits())
    scopes[2].charge(Usage(90, 10, calls=1), 1.0)
    scopes[2].charge(Usage(90, 10, calls=1), None)
    assert [figures(s) for s in scopes] == [(200, 1.0, 2, 0, 0, 0.0)] * 3


def test_tool_calls_are_counted_in_all_scopes_or_in_none() -> None:
    scopes = nested(Limits(tool_calls=1), Limits(tool_calls=2))
    scopes[2].count_tool_call()
    with pytest.raises(LimitExceeded, match="run: 1 of 1 tool calls used"):
        scopes[2].count_tool_call()
    assert [s.tool_calls for s in scopes] == [1, 1, 1]


def test_an_agent_starts_from_what_is_recorded_and_a_restart_counts_it_once() -> None:
    manager = ResourceManager(Limits(tokens=1000))
    for _ in range(3):
        scope = manager.agent("a", Limits(), used=Usage(100, 20, calls=3), cost_usd=0.5, tool_calls=7)
        assert figures(scope) == (120, 0.5, 3, 7, 0, 0.0) == figures(manager.run)
    manager.agent("b", Limits(), used=Usage(1, 1, calls=1), cost_usd=None, tool_calls=0)
    assert figures(manager.run) == (122, 0.5, 4, 7, 0, 0.0)


# --- the validator

READS = Capability(FILESYSTEM_READ, paths=("docs", "src"))
WRITES = Capability(FILESYSTEM_WRITE, paths=("src",))
VALIDATOR = CapabilityValidator(Grant((READS, WRITES)))


def test_what_is_granted_is_allowed_with_the_rule_that_did_it() -> None:
    need = (Capability(FILESYSTEM_READ, paths=("docs/a.txt",)), Capability(FILESYSTEM_WRITE, paths=("src/b",)))
    assert VALIDATOR.check(need) == Decision("allowed", f"{READS.text}; {WRITES.text}")
    assert VALIDATOR.check(()) == Decision("allowed", "needs nothing")


def test_the_first_uncovered_need_is_the_reason() -> None:
    need = (Capability(FILESYSTEM_READ, paths=("docs",)), Capability(FILESYSTEM_WRITE, paths=("docs/a",)))
    decision = VALIDATOR.check(need)
    assert not decision.allowed and decision.rule == WRITES.text
    assert decision.reason == f"docs/a is outside the granted {WRITES.text}"


def test_what_was_never_asked_for_is_denied_by_its_absence() -> None:
    decision = VALIDATOR.check((Capability(COMMAND_EXECUTION, programs=("make",)),))
    assert decision == Decision(
        "denied",
        "no command-execution",
        "this agent has no command-execution; its spec would have to ask for command-execution: make",
        patch="- command-execution: {programs: [make]}",
    )
    assert not CapabilityValidator(Grant(())).check((READS,)).allowed


def test_what_the_operator_took_out_is_denied_by_their_rule() -> None:
    policy = OperatorPolicy(allow=(Capability(FILESYSTEM_READ, paths=("docs",)),))
    asked = Grant((READS, Capability(GIT_ACCESS)))
    validator = CapabilityValidator(policy.bound(asked), policy, asked=asked)
    decision = validator.check((Capability(GIT_ACCESS),))
    assert decision == Decision(
        "denied",
        "policy: not among what is allowed",
        "the operator's settings do not allow git-access",
        "[policy] allow",
        "- git-access",
    )
    decision = validator.check((Capability(FILESYSTEM_READ, paths=("src/a",)),))
    assert decision.rule == "policy: allow only filesystem-read: docs"
    assert validator.check((Capability(FILESYSTEM_READ, paths=("etc",)),)).rule == "filesystem-read: docs"


def test_a_person_is_asked_about_what_is_granted_only() -> None:
    policy = OperatorPolicy(ask=(Capability(FILESYSTEM_READ),))
    validator = CapabilityValidator(Grant((READS,)), policy)
    assert validator.check((Capability(FILESYSTEM_READ, paths=("docs/a",)),)).outcome == "ask"
    assert validator.check((Capability(FILESYSTEM_READ, paths=("etc",)),)).outcome == "denied"
