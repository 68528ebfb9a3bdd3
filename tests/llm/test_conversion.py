"""Our messages over the wire and back, seen from the server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from llm.conftest import TOOLS, FakeClock, ask
from llm.model_server import ModelServer, anthropic_body, openai_body, reply
from toka.core.message import Message, ToolCall, Usage
from toka.errors import ModelRefused
from toka.llm import wire_anthropic, wire_openai
from toka.llm.conversion import to_vendor
from toka.llm.models import VendorModel, VendorModels
from toka.llm.resolve import Endpoint
from toka.llm.wire_openai import COMPATIBLE

assert wire_anthropic, "imported here, so that no test pays for it"

Make = Callable[[str], VendorModel]

HISTORY = (
    Message("system", "Be brief."),
    Message("user", "Read a.txt."),
    Message("assistant", "Reading.", calls=(ToolCall("c1", "read_file", '{"path": "ä.txt"}'),)),
    Message("tool", "content", call_id="c1", name="read_file"),
    Message("user", "Go on."),
)


@pytest.fixture
async def make(server: ModelServer, clock: FakeClock) -> AsyncIterator[Make]:
    vendors = VendorModels(clock)

    def model(provider: str) -> VendorModel:
        wire: Any = "anthropic" if provider == "anthropic" else "openai"
        base = server.url if wire == "anthropic" else server.url + "/v1"
        return vendors.model(f"{provider}:m", Endpoint(provider, "m", wire, base, "key"))

    yield model
    await vendors.aclose()


async def test_openai_form(server: ModelServer, make: Make) -> None:
    server.will(reply(openai_body("ok")))
    await make("server").request(ask(*HISTORY))
    sent = server.received[0]
    assert sent.path == "/v1/chat/completions"
    assert [m["role"] for m in sent.json["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert sent.json["messages"][2] == {
        "role": "assistant",
        "content": "Reading.",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "read_file", "arguments": '{"path":"ä.txt"}'}}
        ],
    }
    assert sent.json["messages"][3] == {"role": "tool", "tool_call_id": "c1", "content": "content"}
    assert sent.json["tools"][0]["function"]["parameters"] == dict(TOOLS[0].parameters), "the schema is ours, unchanged"
    assert "strict" not in sent.json["tools"][0]["function"]
    assert sent.json["stream"] is False


async def test_anthropic_form(server: ModelServer, make: Make) -> None:
    server.will(reply(anthropic_body("ok")))
    await make("anthropic").request(ask(*HISTORY))
    sent = server.received[0]
    assert sent.path.startswith("/v1/messages")
    assert sent.json["system"] == "Be brief."
    roles = [(m["role"], [part["type"] for part in m["content"]]) for m in sent.json["messages"]]
    assert roles == [("user", ["text"]), ("assistant", ["text", "tool_use"]), ("user", ["tool_result", "text"])]
    assert sent.json["messages"][1]["content"][1]["input"] == {"path": "ä.txt"}
    assert sent.json["messages"][2]["content"][0]["is_error"] is False


@pytest.mark.parametrize("provider", ["server", "anthropic"])
async def test_a_failed_result_is_sent_as_one(server: ModelServer, make: Make, provider: str) -> None:
    server.will(reply(anthropic_body("ok") if provider == "anthropic" else openai_body("ok")))
    history = (*HISTORY[:3], Message("tool", "no such file", call_id="c1", name="read_file", failed=True))
    await make(provider).request(ask(*history))
    last = server.received[0].json["messages"][-1]
    if provider == "anthropic":
        assert last["content"][0]["is_error"] is True
    assert "no such file" in json.dumps(last)


async def test_signed_thinking_goes_back_unchanged_and_in_order(server: ModelServer, make: Make) -> None:
    content = [
        {"type": "thinking", "thinking": "First ü.", "signature": "sig-1"},
        {"type": "text", "text": "Let me see."},
        {"type": "redacted_thinking", "data": "b3BhcXVl"},
        {"type": "text", "text": " Now."},
        {"type": "tool_use", "id": "t1", "name": "read_file", "input": {"path": "a"}},
    ]
    server.will(reply(anthropic_body(content=content)), reply(anthropic_body("done")))
    model = make("anthropic")
    first = await model.request(ask())
    assert first.message.text == "Let me see. Now."
    stored = Message.from_json(json.loads(json.dumps(first.message.to_json())))
    assert stored == first.message
    answer = Message("tool", "x", call_id="t1", name="read_file")
    await model.request(ask(Message("user", "go"), stored, answer, call=2))
    assert server.received[1].json["messages"][1]["content"] == content


async def test_reasoning_of_openai_compatible_servers_goes_back(server: ModelServer, make: Make) -> None:
    server.will(reply(openai_body("42", message={"reasoning_content": "hm"})), reply(openai_body("done")))
    model = make("server")
    first = await model.request(ask())
    assert first.message.text == "42"
    assert first.message.opaque["parts"][0][0] == "thinking"
    await model.request(ask(Message("user", "go"), first.message, Message("user", "on"), call=2))
    assert server.received[1].json["messages"][1] == {"role": "assistant", "content": "42", "reasoning_content": "hm"}


async def test_opaque_parts_of_another_provider_stay_out(server: ModelServer, make: Make) -> None:
    foreign = {"system": "anthropic", "parts": [["thinking", {"content": "secret", "id": None, "signature": "s"}]]}
    server.will(reply(openai_body("ok")))
    said = Message("assistant", "hello", opaque=foreign)
    await make("server").request(ask(Message("user", "go"), said, Message("user", "on")))
    assert server.received[0].json["messages"][1] == {"role": "assistant", "content": "hello"}


async def test_cached_tokens_count_as_input(server: ModelServer, make: Make) -> None:
    server.will(
        reply(
            anthropic_body(
                "ok",
                usage={
                    "input_tokens": 100,
                    "output_tokens": 20,
                    "cache_read_input_tokens": 50,
                    "cache_creation_input_tokens": 7,
                },
            )
        )
    )
    assert (await make("anthropic").request(ask())).usage == Usage(157, 20, 50, 7, calls=1)
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 60}}
    server.will(reply(openai_body("ok", usage=usage)))
    assert (await make("server").request(ask())).usage == Usage(100, 20, 60, 0, calls=1)


@pytest.mark.parametrize("missing", ["id", "model", "created", "object"])
async def test_a_paid_answer_is_not_lost_to_a_missing_field(server: ModelServer, make: Make, missing: str) -> None:
    server.will(reply(openai_body("ok", **{missing: ...})))
    answer = await make("server").request(ask())
    assert answer.message.text == "ok"
    assert answer.model == ("m" if missing == "model" else "gpt-test-2026")


async def test_a_server_without_key_gets_a_placeholder(server: ModelServer, clock: FakeClock) -> None:
    server.will(reply(openai_body("ok")))
    vendors = VendorModels(clock)
    model = vendors.model("server:m", Endpoint("server", "m", "openai", server.url + "/v1", None))
    assert (await model.request(ask(tools=()))).message.text == "ok"
    await vendors.aclose()
    assert server.received[0].headers["authorization"] == "Bearer no-key"
    assert "tools" not in server.received[0].json


async def test_the_environment_of_the_sdk_stays_out(
    server: ModelServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.invalid")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "tok-secret")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://elsewhere.invalid")
    server.will(reply(openai_body("ok")), reply(anthropic_body("ok")))
    await make("server").request(ask())
    await make("anthropic").request(ask())
    assert "secret" not in str([r.headers for r in server.received])


async def test_leaving_out_the_engine_changes_nothing_that_a_server_goes_by(
    server: ModelServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same request by the SDK's own way, with its own transport."""
    server.will(reply(openai_body("ok")))
    await make("server").request(ask(*HISTORY))
    from pydantic_ai.direct import model_request

    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="key", max_retries=0) as stock:
        model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=stock), profile=COMPATIBLE)
        await model_request(
            model,
            to_vendor(HISTORY, "openai"),
            model_settings={"max_tokens": 500, "timeout": 10.0, "extra_headers": {"Idempotency-Key": "k"}},
            model_request_parameters=make("server")._tools.of(TOOLS),
        )
    ours, theirs = server.received
    assert ours.json == theirs.json
    ignored = {"host", "accept-encoding", "idempotency-key", "connection"}

    def told(headers: dict[str, str]) -> dict[str, str]:
        """Without what describes the client's machine."""
        return {k: v for k, v in headers.items() if k not in ignored and not k.startswith("x-stainless")}

    assert told(ours.headers) == told(theirs.headers)
    assert ours.headers["idempotency-key"]


async def test_tool_sets_are_converted_once(server: ModelServer, make: Make) -> None:
    server.will(reply(openai_body("ok")))
    model = make("server")
    await model.request(ask())
    first = model._tools.of(TOOLS)
    await model.request(ask())
    assert model._tools.of(TOOLS) is first
    for _ in range(1000):
        model._tools.of((*TOOLS,))
        model._tools.of([*TOOLS])
    assert len(model._tools._known) <= 256


async def test_text_that_cannot_be_recorded_is_made_so(server: ModelServer, make: Make) -> None:
    server.will(reply(openai_body("a\ud800b", [("c1", "read_file", '{"path": "\ud800"}')])))
    message = (await make("server").request(ask())).message
    assert message.text == "a?b"
    json.dumps(message.to_json(), ensure_ascii=False).encode()


async def test_text_that_cannot_be_sent_is_refused_without_a_charge(server: ModelServer, make: Make) -> None:
    with pytest.raises(ModelRefused) as caught:
        await make("server").request(ask(Message("user", "\ud800")))
    assert caught.value.kind == "invalid_request"
    assert server.received == []


async def test_openai_itself() -> None:
    """Its address, key and newer parameters, without sending anything to it."""
    seen: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json=openai_body("ok"))

    endpoint = Endpoint("openai", "gpt-5.4", "openai", None, "sk-x")
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http:
        model = wire_openai.model(endpoint, wire_openai.client(endpoint, http))
        vendor = VendorModel("openai:gpt-5.4", model, FakeClock())
        assert (await vendor.request(ask())).message.text == "ok"
    assert str(seen[0].url) == "https://api.openai.com/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer sk-x"
    body = json.loads(seen[0].content)
    assert body["max_completion_tokens"] == 500
    assert "max_tokens" not in body
