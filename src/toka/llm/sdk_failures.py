"""What a vendor SDK's exception means: our kinds, whether a repeat may help, whether it may have been charged.

Works on the chain of causes that the SDKs keep, by what an error carries (a status and a reply, or one of our
transport's exceptions), so it serves every SDK that stands on the transport.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

import httpx2
from pydantic import ValidationError

from toka.llm.failure import CallError, Kind, failed
from toka.llm.transport import BodyTooLarge, NotJson

Redact = Callable[[str], str]
"""Text -> the same without secrets. Applied before a text is shortened: half a key would not be known any more."""
LONGEST_TEXT: Final = 400
"""Most characters of a provider's own words in a message."""
MOST_READ: Final = 64 * 1024
"""Bytes of an error's body that is not JSON which are looked at."""
_QUOTA: Final = (
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_error",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
)
"""Codes and types that say the account is out of money: waiting does not help."""
_CONTEXT: Final = (
    "context_length_exceeded",
    "maximum context length",
    "prompt is too long",
    "exceeds the available context",
)
_FILTER: Final = ("content_filter", "content_policy_violation")
_TRY_AGAIN: Final = frozenset({408, 409, 425})
_MAYBE_BILLED: Final = frozenset({408, 502, 504, 520, 522, 524})
"""Statuses that something between us and the provider may have sent, while the provider worked."""


def call_error(error: BaseException, model: str, now: float, redact: Redact = str) -> CallError:
    """The error to raise for what an SDK raised.

    Args:
        error: what was caught, with its causes.
        model: the model string, for the message.
        now: wall-clock time, seconds since the epoch, for a Retry-After that is a date.
        redact: takes secrets out of what came from elsewhere.
    """
    for cause in _chain(error):
        if isinstance(cause, httpx2.TransportError):
            return _of_transport(cause, f"{model}: {redact(str(cause))}")
        status = getattr(cause, "status_code", None)
        reply = getattr(cause, "response", None)
        if isinstance(status, int) and isinstance(reply, httpx2.Response):
            return _of_status(status, reply, model, now, redact)
    return failed("malformed", f"{model}: the reply cannot be read: {_short(redact(_unreadable(error)))}")


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a reply asks to wait; None when it says nothing usable (negative, not finite, not a time).

    `retry-after-ms` goes before `Retry-After`, which is a number of seconds or an HTTP date.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            try:
                seconds = max(0.0, parsedate_to_datetime(text).timestamp() - now)
            except (ValueError, TypeError, OverflowError):
                continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = 0
    current: BaseException | None = error
    while current is not None and seen < 10:
        yield current
        current = current.__cause__ or current.__context__
        seen += 1


def _of_transport(error: httpx2.TransportError, text: str) -> CallError:
    if isinstance(error, BodyTooLarge):
        return failed("too_large", text)
    if isinstance(error, NotJson):
        return failed("malformed", f"{text}; is the base URL right?", retryable=False, billed=False)
    if isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return failed("timeout", text, billed=False)
    if isinstance(error, httpx2.TimeoutException):
        return failed("timeout", text)
    if isinstance(error, httpx2.ConnectError | httpx2.UnsupportedProtocol | httpx2.ProxyError):
        return failed("connect", text)
    if isinstance(error, httpx2.ProtocolError):
        return failed("malformed", text)
    return failed("connect", text, billed=True)


def _of_status(status: int, reply: httpx2.Response, model: str, now: float, redact: Redact) -> CallError:
    words, codes = _provider_words(reply)
    words = redact(words)
    text = f"{model}: the provider answered {status}" + (f": {_short(words)}" if words else "")
    kind = _kind(status, words.lower(), codes)
    if kind == "rate_limit" and (codes & set(_QUOTA) or status == 402 or "credit balance" in words.lower()):
        return failed("rate_limit", f"{text} (the account's quota is used up)", retryable=False)
    return failed(kind, text, billed=status in _MAYBE_BILLED or None, retry_after_s=retry_after_s(reply.headers, now))


def _kind(status: int, words: str, codes: set[str]) -> Kind:
    if status in (402, 429) or codes & set(_QUOTA) or "credit balance is too low" in words:
        return "rate_limit"
    if status in (401, 403):
        return "auth"
    if status >= 500 or status in _TRY_AGAIN:
        return "server"
    if codes & set(_FILTER):
        return "content_filter"
    if codes & set(_CONTEXT) or any(phrase in words for phrase in _CONTEXT):
        return "context_length"
    return "invalid_request"


def _provider_words(reply: httpx2.Response) -> tuple[str, set[str]]:
    """The provider's message, and its error codes and types; the body as it is when it is not JSON."""
    if 300 <= reply.status_code < 400:
        return "a redirect, which is not followed; is the base URL right?", set()
    try:
        body: Any = json.loads(reply.content)
    except ValueError:
        return reply.content[:MOST_READ].decode("utf-8", "replace"), set()
    error: Any = cast("dict[str, Any]", body).get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error), set()
    fields = cast("dict[str, Any]", error)
    codes = {str(fields[name]) for name in ("code", "type") if fields.get(name)}
    return str(fields.get("message") or ""), codes


def _unreadable(error: BaseException) -> str:
    """What is wrong with a reply, in words of ours where Python's own would show its types."""
    for cause in _chain(error):
        if isinstance(cause, json.JSONDecodeError):
            return f"it is not JSON (line {cause.lineno}, column {cause.colno})"
        if isinstance(cause, RecursionError):
            return "it is nested too deep"
        if isinstance(cause, ValidationError):
            first = cause.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            return f"{place}{': ' if place else ''}{first['msg'][:1].lower()}{first['msg'][1:]}"
    if isinstance(error, LookupError | TypeError | AttributeError | AssertionError) or not str(error):
        return "it does not have the form of its protocol"
    return str(error)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST_TEXT else flat[: LONGEST_TEXT - 1] + "…"
