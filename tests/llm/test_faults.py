"""What a model server can do to us, in both wire formats: each ends as a reply or a typed failure, in time, charged."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from llm.conftest import FakeClock, Ledger, ask
from llm.model_server import (
    Behaviour,
    ModelServer,
    anthropic_body,
    bomb,
    drip,
    error,
    gzipped,
    hang,
    huge,
    openai_body,
    raw,
    reply,
    reset,
)
from toka.core.message import Usage
from toka.errors import ModelError, ModelRefused, ModelUnavailable
from toka.llm.failure import CallError, failure_of
from toka.llm.gateway import LlmGateway, RetrySettings
from toka.llm.model import ModelReply
from toka.llm.models import VendorModels
from toka.llm.resolve import Endpoint
from toka.llm.transport import TransportSettings

MIB = 1024 * 1024
PYTHONS_OWN = re.compile(
    r"Error\b|NoneType|object has no|not iterable|mapping, not|out of range|recursion|codec|input_value|https://|ssl:|\(\d"
)
"""What Python and its libraries say about a reply, and what our messages do not."""


def memory_mb(name: str) -> float:
    """Resident memory now (VmRSS, which also begins a new measurement of the peak) or its peak since (VmHWM)."""
    if name == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


@dataclass
class Line:
    """A gateway over one vendor's adapter, connected to the server."""

    wire: str
    gateway: LlmGateway
    server: ModelServer
    clock: FakeClock
    meter: Ledger

    async def call(self, **changes: Any) -> ModelReply:
        return await self.gateway.complete(ask(model=f"{self.wire}:m", **changes), self.meter)

    async def fail(self, **changes: Any) -> CallError:
        with pytest.raises((ModelError, ModelUnavailable)) as caught:
            await self.call(**changes)
        assert isinstance(caught.value, CallError)
        return caught.value

    def body(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return (anthropic_body if self.wire == "anthropic" else openai_body)(*args, **kwargs)


@pytest.fixture(params=["openai", "anthropic"])
async def line(request: pytest.FixtureRequest, server: ModelServer, clock: FakeClock) -> AsyncIterator[Line]:
    wire: Any = request.param
    vendors = VendorModels(clock, TransportSettings(connections=10, body_bytes=4 * MIB))
    base = server.url if wire == "anthropic" else server.url + "/v1"
    model = vendors.model(f"{wire}:m", Endpoint(wire, "m", wire, base, "sk-test-key-12345"))
    gateway = LlmGateway(lambda _: model, clock, lambda: 0.5, RetrySettings(attempts=3))
    yield Line(wire, gateway, server, clock, Ledger())
    await vendors.aclose()


async def test_500_then_success(line: Line) -> None:
    line.server.will(error(500), reply(line.body("fine")))
    assert (await line.call()).message.text == "fine"
    assert [s[3] for s in line.meter.settled] == ["server", None]
    assert line.meter.settled[0][1] == Usage()
    assert line.clock.slept == [pytest.approx(0.375)]


async def test_500_for_ever(line: Line) -> None:
    line.server.will(error(500, "on fire"))
    failure = await line.fail()
    assert isinstance(failure, ModelUnavailable)
    assert "on fire" in str(failure)
    assert len(line.server.received) == 3


@pytest.mark.parametrize(
    ("header", "waits"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": formatdate(1_800_000_030, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(1_700_000_000, usegmt=True)}, 0.0),
        ({"retry-after": "100000000000"}, 60.0),
        ({"retry-after": "-5"}, 0.375),
        ({"retry-after": "inf"}, 0.375),
        ({"retry-after": "soon"}, 0.375),
        ({}, 0.375),
    ],
)
async def test_429_waits_as_asked(line: Line, header: dict[str, str], waits: float) -> None:
    line.server.will(error(429, "slow down", header), reply(line.body("fine")))
    assert (await line.call(timeout_s=600.0)).message.text == "fine"
    assert line.clock.slept == [pytest.approx(waits)]


async def test_429_that_does_not_fit_into_the_deadline(line: Line) -> None:
    line.server.will(error(429, "slow down", {"retry-after": "30"}))
    failure = await line.fail(timeout_s=10.0)
    assert failure.failure.kind == "rate_limit"
    assert failure.failure.retry_after_s == 30.0
    assert line.clock.slept == []


async def test_a_used_up_quota_is_not_asked_again(line: Line) -> None:
    line.server.will(error(429, "pay first", type="billing_error", code="insufficient_quota"))
    failure = await line.fail()
    assert (failure.failure.kind, failure.retryable) == ("rate_limit", False)
    assert len(line.server.received) == 1


async def test_truncated_json(line: Line) -> None:
    line.server.will(reply(b'{"id":"x","choices":[{"mess'))
    failure = await line.fail()
    assert failure.failure.kind == "malformed"
    assert [s[3] for s in line.meter.settled] == ["malformed"] * 3
    assert all(s[1].output_tokens == 500 for s in line.meter.settled), "a lost reply is charged at its reservation"


@pytest.mark.parametrize(
    "behaviour",
    [
        reply(b"<html>proxy login</html>", content_type="text/html"),
        reply(b"hello", content_type="text/plain"),
        reply(b"{}", content_type=None),
    ],
)
async def test_success_that_is_not_json(line: Line, behaviour: Behaviour) -> None:
    line.server.will(behaviour)
    failure = await line.fail()
    assert (failure.failure.kind, failure.retryable) == ("malformed", False)
    assert "base URL" in str(failure)
    assert len(line.server.received) == 1


@pytest.mark.parametrize(
    "body",
    ["null", "[]", "7", '"x"', "{}", '{"choices":[]}', '{"content":null}', '{"error":{}}', "[" * 100_000, "\0", ""],
)
async def test_json_of_another_form(line: Line, body: str) -> None:
    line.server.will(reply(body.encode()))
    failure = await line.fail()
    assert failure.failure.kind == "malformed"
    assert not PYTHONS_OWN.search(str(failure))


@pytest.mark.parametrize(
    "changes",
    [
        {"choices": [{}], "content": None}, {"choices": [3], "content": [{"type": "text", "text": 5}]},
        {"choices": [{"message": None}], "content": [None]}, {"choices": None, "content": 5},
        {"choices": [{"message": {"content": 5}}], "content": [5]}, {"created": "x", "content": [{"type": "text"}]},
        {"choices": [{"message": {"role": "assistant", "tool_calls": 5}}], "content": [{"type": "tool_use"}]},
    ],
)  # fmt: skip
async def test_replies_with_one_wrong_part(line: Line, changes: dict[str, Any]) -> None:
    line.server.will(reply({**line.body("fine"), **changes}))
    failure = await line.fail()
    assert failure.failure.kind == "malformed"
    assert not PYTHONS_OWN.search(str(failure))


async def test_reset_in_the_body(line: Line) -> None:
    line.server.will(reset())
    failure = await line.fail()
    assert (failure.failure.kind, failure.retryable, failure.failure.billed) == ("connect", True, True)
    assert line.server.connections == 3


async def test_one_byte_at_a_time(line: Line) -> None:
    line.server.will(drip())
    began = time.monotonic()
    failure = await line.fail(timeout_s=0.2)
    assert failure.failure.kind == "timeout"
    assert time.monotonic() - began < 0.5
    await asyncio.wait_for(line.server.closed_by_client.wait(), 1)


async def test_hang(line: Line) -> None:
    line.server.will(hang())
    began = time.monotonic()
    failure = await line.fail(timeout_s=0.2)
    assert failure.failure.kind == "timeout"
    assert failure.retryable
    assert time.monotonic() - began < 0.5
    assert line.meter.settled == [(1, Usage(line.meter.reserved[0][1].input_tokens, 500, calls=1), None, "timeout")]
    await asyncio.wait_for(line.server.closed_by_client.wait(), 1)


async def test_cancelling_closes_the_connection_and_charges_the_reservation(line: Line) -> None:
    line.server.will(hang())
    call = asyncio.create_task(line.call())
    await line.server.arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(line.server.closed_by_client.wait(), 1)
    assert [(s[0], s[3]) for s in line.meter.settled] == [(1, "cancelled")]
    assert line.meter.settled[0][1].output_tokens == 500


@pytest.mark.parametrize("announced", [True, False])
async def test_50_mb(line: Line, announced: bool) -> None:
    line.server.will(reply(line.body("small")), huge(50 * MIB, announced=announced))
    await line.call()
    before = memory_mb("VmRSS")
    failure = await line.fail()
    grown = memory_mb("VmHWM") - before
    assert (failure.failure.kind, failure.retryable) == ("too_large", False)
    assert grown < 32, f"{grown:.0f} MB"
    await asyncio.wait_for(line.server.closed_by_client.wait(), 1)
    assert line.server.sent < 12 * MIB, "the rest is never read"
    assert ("announces" in str(failure)) is announced


async def test_gzip_bomb(line: Line) -> None:
    line.server.will(reply(line.body("small")), bomb(100 * MIB))
    await line.call()
    before = memory_mb("VmRSS")
    failure = await line.fail()
    grown = memory_mb("VmHWM") - before
    assert failure.failure.kind == "too_large"
    assert grown < 32, f"{grown:.0f} MB"


async def test_an_honest_gzip_reply(line: Line) -> None:
    line.server.will(gzipped(line.body("fine")))
    assert (await line.call()).message.text == "fine"


async def test_a_redirect_is_not_followed(line: Line) -> None:
    line.server.will(reply(b"", 307, {"location": line.server.url + "/elsewhere"}))
    failure = await line.fail()
    assert isinstance(failure, ModelRefused)
    assert "redirect" in str(failure)
    assert len(line.server.received) == 1


async def test_not_http(line: Line) -> None:
    line.server.will(raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", close=True))
    failure = await line.fail()
    assert failure.failure.kind in ("malformed", "connect")
    assert str(failure).endswith("what answers does not speak HTTP")


async def test_nobody_listens(line: Line) -> None:
    line.server._server.close()
    await line.server._server.wait_closed()
    failure = await line.fail()
    assert (failure.failure.kind, failure.retryable, failure.failure.billed) == ("connect", True, False)
    assert failure.hint
    assert str(failure).endswith(f"127.0.0.1:{line.server.port}: connection refused")
    assert len(line.meter.settled) == 3


async def test_an_unknown_host(line: Line, clock: FakeClock) -> None:
    wire: Any = line.wire
    vendors = VendorModels(clock)
    model = vendors.model("x:m", Endpoint(wire, "m", wire, "http://no-such-host.invalid/v1", "k"))
    gateway = LlmGateway(lambda _: model, clock, lambda: 0.5, RetrySettings(attempts=1))
    with pytest.raises(ModelUnavailable) as caught:
        await gateway.complete(ask(), Ledger())
    await vendors.aclose()
    failure = failure_of(caught.value)
    assert failure is not None
    assert failure.kind == "connect"


async def test_malformed_arguments_and_an_unknown_tool_are_the_callers_business(line: Line) -> None:
    line.server.will(reply(line.body(None, [("c1", "no_such_tool", "{not json")])))
    answer = await line.call()
    assert [(c.name, c.arguments) for c in answer.message.calls] == [("no_such_tool", "{not json")]


async def test_two_calls_with_one_id_are_the_callers_business(line: Line) -> None:
    line.server.will(reply(line.body(None, [("c1", "read_file", "{}"), ("c1", "read_file", '{"path":"b"}')])))
    answer = await line.call()
    assert [(c.id, json.loads(c.arguments)) for c in answer.message.calls] == [("c1", {}), ("c1", {"path": "b"})]
    assert line.meter.settled[0][1] == Usage(100, 20, calls=1)


@pytest.mark.parametrize(
    "usage",
    [..., None, {}, {"prompt_tokens": -5, "completion_tokens": -1, "input_tokens": -5, "output_tokens": -1}],
)
async def test_no_usable_usage_is_charged_at_the_bound(line: Line, usage: Any) -> None:
    line.server.will(reply(line.body("fine", usage=usage)))
    answer = await line.call()
    assert answer.estimated
    bound = line.meter.reserved[0][1].input_tokens
    assert answer.usage == line.meter.settled[0][1] == Usage(bound, answer.usage.output_tokens, calls=1)
    assert 0 < answer.usage.output_tokens <= 500


async def test_absurd_usage_is_charged_as_told(line: Line) -> None:
    """Whoever keeps the budget sees a bill above its reservation."""
    many = {"prompt_tokens": 10**12, "completion_tokens": 5, "input_tokens": 10**12, "output_tokens": 5}
    line.server.will(reply(line.body("fine", usage=many)))
    answer = await line.call()
    assert not answer.estimated
    assert line.meter.settled[0][1].input_tokens == 10**12 > line.meter.reserved[0][1].input_tokens


async def test_an_unknown_finish_reason(line: Line) -> None:
    changes: dict[str, Any] = (
        {"stop_reason": "meditating"} if line.wire == "anthropic" else {"choice": {"finish_reason": "meditating"}}
    )
    line.server.will(reply(line.body("fine", **changes)))
    assert (await line.call()).finish == "stop"


async def test_a_refusal(line: Line) -> None:
    changes: dict[str, Any] = (
        {"stop_reason": "refusal"} if line.wire == "anthropic" else {"message": {"refusal": "I will not."}}
    )
    line.server.will(reply(line.body("I will not.", **changes)))
    answer = await line.call()
    assert (answer.finish, answer.message.text) == ("refused", "I will not.")


async def test_an_empty_reply(line: Line) -> None:
    line.server.will(reply(line.body(None)))
    answer = await line.call()
    assert (answer.message.text, answer.message.calls, answer.finish) == ("", (), "stop")


async def test_a_conversation_that_is_too_long(line: Line) -> None:
    line.server.will(error(400, "prompt is too long: 300000 tokens", type="invalid_request_error"))
    failure = await line.fail()
    assert isinstance(failure, ModelRefused)
    assert failure.failure.kind == "context_length"


async def test_an_error_page_is_quoted_briefly_and_without_the_key(line: Line) -> None:
    line.server.will(reply(b"<html>" + b"x" * 100_000, 502, content_type="text/html"))
    failure = await line.fail()
    assert failure.failure.kind == "server"
    assert len(str(failure)) < 600
    assert "sk-test-key" not in str(failure)
    assert failure.failure.billed, "who sent it is unknown"


async def test_what_goes_over_the_wire(line: Line) -> None:
    line.server.will(reply(line.body("fine"), headers={"set-cookie": "a=b"}))
    await line.call()
    await line.call()
    first, second = line.server.received
    assert first.headers["idempotency-key"] == "0123456789abcdef"
    assert "sk-test-key-12345" in first.headers.get("authorization", "") + first.headers.get("x-api-key", "")
    assert "cookie" not in second.headers
    assert first.json["max_tokens"] == 500
    assert line.server.connections == 1, "the connection is used again"
    tools = first.json["tools"][0]
    schema = tools["input_schema"] if line.wire == "anthropic" else tools["function"]["parameters"]
    assert schema["properties"] == {"path": {"type": "string"}}
    assert schema["required"] == ["path"]
