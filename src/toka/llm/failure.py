"""Why a model call failed, as data: the kind, whether a repeat may help, and whether it may have been charged.

Adapters raise through `failed`, so that each kind has one error class and one rule everywhere. The classes are those of
`toka.errors`; what the gateway needs beyond them travels in `Failure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from toka.core.message import Usage
from toka.errors import ModelError, ModelRefused, ModelUnavailable

Kind = Literal[
    "timeout",
    "connect",
    "rate_limit",
    "server",
    "auth",
    "invalid_request",
    "context_length",
    "malformed",
    "too_large",
    "content_filter",
    "script",
]
"""What happened.

timeout: no reply in time · connect: no connection, or it broke · rate_limit: 429 or quota · server: 5xx · auth: key
rejected · invalid_request: request rejected · context_length: the conversation is too long for the model · malformed:
the reply cannot be read · too_large: the reply is too big · content_filter: the provider's filter · script: a script
has no reply for this call.
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known about a failed call.

    Attributes:
        kind: what happened.
        retryable: whether the same request may succeed later.
        billed: whether the provider may charge for it; True when that is unknown.
        retry_after_s: how long the provider asks to wait, in seconds; None when it says nothing usable.
        usage: what it used; None when unknown.
    """

    kind: Kind
    retryable: bool
    billed: bool
    retry_after_s: float | None = None
    usage: Usage | None = None


class CallUnavailable(ModelUnavailable):
    """The provider does not answer this call now."""

    def __init__(self, message: str, failure: Failure, *, hint: str | None = None) -> None:
        super().__init__(message, retryable=failure.retryable, hint=hint)
        self.kind = failure.kind
        self.failure = failure


class CallFailed(ModelError):
    """What came back is not a usable reply."""

    def __init__(self, message: str, failure: Failure, *, hint: str | None = None) -> None:
        super().__init__(message, kind=failure.kind, retryable=failure.retryable, hint=hint)
        self.failure = failure


class CallRefused(ModelRefused):
    """The provider rejects the request, whatever we repeat."""

    def __init__(self, message: str, failure: Failure, *, hint: str | None = None) -> None:
        super().__init__(message, kind=failure.kind, hint=hint)
        self.failure = failure


CallError = CallUnavailable | CallFailed | CallRefused

_RULES: Final[Mapping[Kind, tuple[type[CallError], bool, bool]]] = {
    "timeout": (CallUnavailable, True, True),
    "connect": (CallUnavailable, True, False),
    "rate_limit": (CallUnavailable, True, False),
    "server": (CallUnavailable, True, False),
    "auth": (CallRefused, False, False),
    "invalid_request": (CallRefused, False, False),
    "context_length": (CallRefused, False, False),
    "malformed": (CallFailed, True, True),
    "too_large": (CallFailed, False, True),
    "content_filter": (CallRefused, False, False),
    "script": (CallFailed, False, False),
}
"""Kind -> error class, retryable, billed."""

KINDS: Final[tuple[Kind, ...]] = tuple(_RULES)

_HINTS: Final[Mapping[Kind, str]] = {
    "connect": "check that the server runs and that its address is right; `toka models` shows what is found",
    "auth": "check the key in the environment and what it may use",
    "rate_limit": "wait, lower the number of agents that run at a time, or raise the limit at the provider",
    "context_length": "split the task, or use a model with a longer context",
    "script": "add the reply to the script",
}


def failed(
    kind: Kind,
    message: str,
    *,
    retryable: bool | None = None,
    billed: bool | None = None,
    retry_after_s: float | None = None,
    usage: Usage | None = None,
) -> CallError:
    """The error to raise for a failed call.

    Args:
        kind: what happened; decides the class.
        message: what and where, for people.
        retryable: None: the kind's rule. Ignored for kinds that are never retryable by class (ModelRefused).
        billed: None: the kind's rule.
        retry_after_s: seconds the provider asks to wait; None when unknown.
        usage: what the call used, when the provider told.
    """
    cls, may_retry, may_bill = _RULES[kind]
    if retryable is not None and cls is not CallRefused:
        may_retry = retryable
    failure = Failure(kind, may_retry, may_bill if billed is None else billed, retry_after_s, usage)
    return cls(message, failure, hint=_HINTS.get(kind))


def failure_of(error: BaseException) -> Failure | None:
    """What is known about `error`; None when it is not the failure of a model call.

    Model errors raised without a Failure (by a model of the user's own) count as billed, because nobody knows.
    """
    if isinstance(error, CallUnavailable | CallFailed | CallRefused):
        return error.failure
    if isinstance(error, ModelUnavailable):
        return Failure("server", error.retryable, billed=True)
    if isinstance(error, ModelError):
        return Failure(error.kind if error.kind in _RULES else "malformed", error.retryable, billed=True)
    return None
