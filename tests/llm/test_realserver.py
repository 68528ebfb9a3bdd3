"""Against llama.cpp's own server, when `xllamacpp`, `gguf` and `numpy` are installed. What it says is noise."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm.conftest import TOOLS, Ledger, ask
from llm.tiny_gguf import write_model
from toka.core.clock import SystemClock
from toka.core.message import Message, ToolCall, Usage
from toka.errors import ModelRefused, ModelUnavailable
from toka.llm.gateway import LlmGateway
from toka.llm.model import ModelReply
from toka.llm.registry import ModelRegistry
from toka.llm.resolve import resolve_auto

SAID = Message("assistant", "Reading.", calls=(ToolCall("c1", "read_file", '{"path": "a"}'),))

pytestmark = [pytest.mark.realserver, pytest.mark.slow]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    xllamacpp: Any = pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    pytest.importorskip("numpy")
    path: Path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(path)
    wanted = xllamacpp.CommonParams()
    wanted.model.path = str(path)
    wanted.model_alias = {"tiny"}
    wanted.hostnames = ["127.0.0.1"]
    wanted.port = 0
    wanted.n_ctx = 16384
    wanted.n_parallel = 2
    wanted.cpuparams.n_threads = 1
    wanted.cpuparams_batch.n_threads = 1
    wanted.use_jinja = True
    wanted.warmup = False
    server = xllamacpp.Server(wanted)
    yield server.listening_address + "/v1"
    del server


@pytest.fixture
async def gateway(url: str) -> AsyncIterator[LlmGateway]:
    clock = SystemClock()
    made = LlmGateway(ModelRegistry({}, clock, url), clock, random.random)
    yield made
    await made.aclose()


async def test_auto_finds_its_model(url: str) -> None:
    assert await resolve_auto({}, url) == "server:tiny"


async def test_text(gateway: LlmGateway) -> None:
    meter = Ledger()
    reply = await gateway.complete(ask(model="llama-server:tiny", tools=(), max_tokens=16), meter)
    assert reply.usage.input_tokens > 0
    assert reply.usage.output_tokens == 16
    assert reply.usage.input_tokens <= meter.reserved[0][1].input_tokens, "the bound holds for byte tokens"
    assert reply.finish == "length"
    assert reply.cost_usd == 0.0
    assert not reply.estimated


async def test_a_conversation_with_tools(gateway: LlmGateway) -> None:
    """Noise now and then breaks the server's own tool grammar: a 500 of its making. A 4xx would be of ours."""
    history = [Message("system", "Be brief."), Message("user", "hello")]
    called = 0
    for _ in range(4):
        request = ask(*history, model="server:tiny", tools=TOOLS, max_tokens=120)
        try:
            reply = await gateway.complete(request, Ledger())
        except ModelUnavailable as e:
            assert "does not match the expected" in str(e)
            reply = ModelReply(SAID, Usage(), "tiny", None, "tool_calls")
        called += len(reply.message.calls)
        history.append(reply.message)
        history += [Message("tool", "content", call_id=c.id, name=c.name) for c in reply.message.calls]
        history.append(Message("user", "go on"))
    assert called


async def test_cancelling(gateway: LlmGateway) -> None:
    meter = Ledger()
    call = asyncio.create_task(gateway.complete(ask(model="server:tiny", tools=(), max_tokens=8000), meter))
    await asyncio.sleep(0.1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert meter.settled[0][3] == "cancelled"


async def test_a_deadline(gateway: LlmGateway) -> None:
    with pytest.raises(ModelUnavailable):
        await gateway.complete(ask(model="server:tiny", tools=(), max_tokens=8000, timeout_s=0.1), Ledger())


async def test_a_conversation_that_is_too_long(gateway: LlmGateway) -> None:
    with pytest.raises(ModelRefused) as caught:
        await gateway.complete(ask(Message("user", "x" * 40_000), model="server:tiny", tools=()), Ledger())
    assert caught.value.kind == "context_length"
