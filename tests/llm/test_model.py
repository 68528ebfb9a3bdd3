"""One contract for everything that is a Model: the scripted one and the vendor adapters, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from llm.conftest import FakeClock, ask
from llm.model_server import ModelServer, anthropic_body, error, hang, openai_body, reply
from toka.core.message import Message, ToolCall, Usage
from toka.errors import ModelError, ModelRefused, ModelUnavailable
from toka.llm.failure import failure_of
from toka.llm.model import Model
from toka.llm.models import VendorModels
from toka.llm.resolve import endpoint_of
from toka.llm.scripted import ScriptedModel

ENVIRONMENT = {"OPENAI_API_KEY": "sk-test", "ANTHROPIC_API_KEY": "sk-ant-test"}


@dataclass
class Subject:
    """A model and how to make it behave; each `will` sets the reply to the next request."""

    kind: str
    model: Model
    script: list[dict[str, Any]]
    server: ModelServer

    def will_say(self, text: str, calls: list[tuple[str, str, str]] | None = None, *, cut: bool = False) -> None:
        calls = calls or []
        if self.kind == "scripted":
            entry: dict[str, Any] = {"say": text, "raw_calls": [{"name": n, "arguments": a} for _, n, a in calls]}
            entry |= {"usage": {"input": 100, "output": 20}} | ({"finish": "length"} if cut else {})
            self.script.append(entry)
        elif self.kind == "anthropic":
            changes = {"stop_reason": "max_tokens"} if cut else {}
            self.server.will(reply(anthropic_body(text, calls, **changes)))
        else:
            self.server.will(reply(openai_body(text, calls, choice={"finish_reason": "length"} if cut else {})))

    def will_fail(self, status: int, name: str) -> None:
        self.script.append({"error": name})
        self.server.will(error(status, "no"))

    def will_hang(self) -> None:
        self.script.append({"say": "too late", "delay": "1h"})
        self.server.will(hang())


class _RealSleep(FakeClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture(params=["scripted", "openai", "anthropic", "ollama"])
async def subject(request: pytest.FixtureRequest, server: ModelServer) -> AsyncIterator[Subject]:
    kind: str = request.param
    script: list[dict[str, Any]] = []
    if kind == "scripted":

        def answer(asked: Any) -> Any:
            return ScriptedModel({"default": script})._answer(asked)

        made = ScriptedModel(answer, clock=_RealSleep())
        yield Subject(kind, made, script, server)
        await made.aclose()
        return
    vendors = VendorModels(FakeClock())
    string = f"{kind}:some-model"
    endpoint = endpoint_of(string, ENVIRONMENT | {"OLLAMA_HOST": server.url}, server.url)
    if kind == "anthropic":
        from dataclasses import replace

        endpoint = replace(endpoint, base_url=server.url)
    yield Subject(kind, vendors.model(string, endpoint), script, server)
    await vendors.aclose()


async def test_text(subject: Subject) -> None:
    subject.will_say("All is well.")
    reply = await subject.model.request(ask())
    assert reply.message == Message("assistant", text="All is well.")
    assert reply.finish == "stop"
    assert reply.usage == Usage(input_tokens=100, output_tokens=20, calls=1)
    assert not reply.estimated
    assert reply.cost_usd is None
    assert reply.model


async def test_tool_calls_keep_order_names_and_arguments(subject: Subject) -> None:
    subject.will_say("Reading.", [("c1", "read_file", '{"path": "a.txt"}'), ("c2", "no_such_tool", "{}")])
    reply = await subject.model.request(ask())
    assert reply.message.text == "Reading."
    assert [(c.name, c.arguments) for c in reply.message.calls] == [
        ("read_file", '{"path": "a.txt"}'),
        ("no_such_tool", "{}"),
    ]
    assert len({c.id for c in reply.message.calls}) == 2
    assert reply.finish == "tool_calls"


async def test_malformed_arguments_come_back_as_they_are(subject: Subject) -> None:
    subject.will_say("", [("c1", "read_file", "{not json")])
    reply = await subject.model.request(ask())
    assert reply.message.calls[0].arguments == "{not json"


async def test_a_reply_cut_off(subject: Subject) -> None:
    subject.will_say("All is", cut=True)
    reply = await subject.model.request(ask())
    assert reply.finish == "length"


async def test_a_whole_conversation_goes_round(subject: Subject) -> None:
    """What a model said goes back in, with results good and bad, and malformed calls."""
    subject.will_say("", [("c1", "read_file", '{"path": "a.txt"}'), ("c2", "read_file", "{not json")])
    first = await subject.model.request(ask())
    subject.will_say("Done.")
    history = (
        Message("system", "Be brief."),
        Message("user", "Read a.txt."),
        first.message,
        Message("tool", "content of a", call_id=first.message.calls[0].id, name="read_file"),
        Message("tool", "not JSON", call_id=first.message.calls[1].id, name="read_file", failed=True),
        Message("user", "Go on."),
    )
    again = tuple(Message.from_json(m.to_json()) for m in history)
    second = await subject.model.request(ask(*again, call=2))
    assert second.message.text == "Done."


@pytest.mark.parametrize(
    ("status", "name", "kind", "kind_of_error", "retryable"),
    [
        (429, "rate_limit", "rate_limit", ModelUnavailable, True),
        (500, "server", "server", ModelUnavailable, True),
        (503, "unavailable", "server", ModelUnavailable, True),
        (400, "refused", "invalid_request", ModelRefused, False),
        (401, "auth", "auth", ModelRefused, False),
    ],
)
async def test_failures_are_typed(
    subject: Subject, status: int, name: str, kind: str, kind_of_error: type[Exception], retryable: bool
) -> None:
    subject.will_fail(status, name)
    with pytest.raises(kind_of_error) as caught:
        await subject.model.request(ask())
    failure = failure_of(caught.value)
    assert failure is not None
    assert (failure.kind, failure.retryable, failure.billed) == (kind, retryable, False)
    assert caught.value.retryable is retryable  # type: ignore[attr-defined]
    assert isinstance(caught.value, ModelError | ModelUnavailable)


async def test_cancelling_ends_the_call(subject: Subject) -> None:
    subject.will_hang()
    call = asyncio.create_task(subject.model.request(ask()))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_calls_run_side_by_side(subject: Subject) -> None:
    for _ in range(20):
        subject.will_say("hello")
    replies = await asyncio.gather(
        *(subject.model.request(ask(call=1 if subject.kind != "scripted" else n)) for n in range(1, 21))
    )
    assert {r.message.text for r in replies} == {"hello"}


async def test_closing_twice(subject: Subject) -> None:
    await subject.model.aclose()
    await subject.model.aclose()


async def test_it_has_a_name(subject: Subject) -> None:
    assert ":" in subject.model.name


def test_messages_of_the_contract_are_plain() -> None:
    """The round trip above proves nothing if messages were not equal after it."""
    message = Message("assistant", calls=(ToolCall("c", "t", "{"),))
    assert Message.from_json(message.to_json()) == message
