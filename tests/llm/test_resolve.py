from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from llm.model_server import ModelServer, drip, hang, raw, reply
from toka.errors import ModelUnavailable, UsageError
from toka.llm import resolve
from toka.llm.pricing import PriceList
from toka.llm.resolve import describe, endpoint_of, list_models, resolve_auto

NOTHING: dict[str, str] = {}


def probe(answers: dict[str, Any]) -> Any:
    async def ask(url: str, key: str | None) -> Any:
        asked.append((url, key))
        return answers.get(url, "connection refused")

    asked: list[tuple[str, str | None]] = []
    ask.asked = asked  # type: ignore[attr-defined]
    return ask


async def test_keys_decide_first() -> None:
    silent = probe({})
    assert await resolve_auto({"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"}, probe=silent) == (
        f"anthropic:{resolve.ANTHROPIC_DEFAULT}"
    )
    assert await resolve_auto({"OPENAI_API_KEY": "k"}, probe=silent) == f"openai:{resolve.OPENAI_DEFAULT}"
    assert silent.asked == []


async def test_then_local_servers() -> None:
    ollama, llama = "http://127.0.0.1:11434/v1", "http://127.0.0.1:8080/v1"
    assert await resolve_auto(NOTHING, probe=probe({ollama: ["qwen3", "b"]})) == "ollama:qwen3"
    assert await resolve_auto(NOTHING, probe=probe({ollama: [], llama: ["tiny.gguf"]})) == "llama-server:tiny.gguf"
    elsewhere = probe({"http://10.0.0.7:11434/v1": ["m"]})
    assert await resolve_auto({"OLLAMA_HOST": "10.0.0.7"}, probe=elsewhere) == "ollama:m"


async def test_a_base_url_goes_before_everything() -> None:
    env = {"OPENAI_API_KEY": "k", "TOKA_BASE_URL": "http://env:1/v1"}
    server = probe({"http://flag:2/v1": ["a"], "http://env:1/v1": ["b"]})
    assert await resolve_auto(env, "http://flag:2", server) == "server:a"
    assert await resolve_auto(env | {"TOKA_API_KEY": "t"}, None, server) == "server:b"
    assert server.asked == [("http://flag:2/v1", None), ("http://env:1/v1", "t")], "a vendor's key stays at home"
    with pytest.raises(ModelUnavailable) as caught:
        await resolve_auto(env, "http://other:3", server)
    assert caught.value.tried == ("http://other:3: connection refused",)


async def test_nothing_found_says_what_was_tried() -> None:
    with pytest.raises(ModelUnavailable) as caught:
        await resolve_auto({"OPENAI_API_KEY": ""}, probe=probe({}))
    assert caught.value.tried == (
        "ANTHROPIC_API_KEY: not set",
        "OPENAI_API_KEY: not set",
        "Ollama at http://127.0.0.1:11434/v1: connection refused",
        "llama-server at http://127.0.0.1:8080/v1: connection refused",
    )
    assert caught.value.hint is not None
    assert "--base-url" in caught.value.hint
    assert not caught.value.retryable


async def test_listing_models_of_a_real_server(server: ModelServer) -> None:
    server.will(reply({"object": "list", "data": [{"id": "one"}, {"id": ""}, {}, {"id": "two"}]}))
    assert await list_models(server.url + "/v1", "k") == ["one", "two"]
    assert (server.received[0].path, server.received[0].headers["authorization"]) == ("/v1/models", "Bearer k")


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (reply(b"<html>", content_type="text/html"), "the answer is not a list of models"),
        (reply({"data": 7}), "the answer is not a list of models"),
        (reply([]), "the answer is not a list of models"),
        (raw(b"SSH-2.0\r\n\r\n", close=True), "the answer is not a list of models"),
        (reply({"error": "no"}, 401), "answers 401 (is its key set?)"),
        (reply(b"", 302, {"location": "http://127.0.0.1:1/"}), "answers 302"),
    ],
)
async def test_listing_models_of_odd_servers(server: ModelServer, behaviour: Any, expected: str) -> None:
    server.will(behaviour)
    assert await list_models(server.url + "/v1", None) == expected


async def test_listing_models_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        assert await list_models(url, None) == "connection refused"


@pytest.mark.parametrize("behaviour", [hang(), drip()])
async def test_listing_models_has_a_deadline(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, behaviour: Any
) -> None:
    monkeypatch.setattr(resolve, "PROBE_S", 0.1)
    server.will(behaviour)
    began = time.monotonic()
    assert await list_models(server.url, None) == "no answer in time"
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("model", "environment", "base_url", "expected"),
    [
        ("openai:gpt", {"OPENAI_API_KEY": "k"}, None, ("gpt", "openai", None, "k")),
        ("openai:gpt", NOTHING, "http://h:1", ("gpt", "openai", "http://h:1/v1", None)),
        ("openai:gpt", {"TOKA_BASE_URL": "https://h/api/"}, None, ("gpt", "openai", "https://h/api", None)),
        ("anthropic:c", {"ANTHROPIC_API_KEY": "k"}, "http://h:1", ("c", "anthropic", None, "k")),
        ("anthropic:c", {"ANTHROPIC_BASE_URL": "http://h:1"}, None, ("c", "anthropic", "http://h:1", None)),
        ("anthropic:c", {"ANTHROPIC_BASE_URL": "https://h/v1/"}, "http://o:1", ("c", "anthropic", "https://h", None)),
        ("ollama:qwen3:8b", NOTHING, None, ("qwen3:8b", "openai", "http://127.0.0.1:11434/v1", None)),
        ("ollama:m", {"OLLAMA_HOST": "h:99"}, "http://h:1", ("m", "openai", "http://h:1/v1", None)),
        ("ollama:m", {"TOKA_BASE_URL": "http://h:2"}, None, ("m", "openai", "http://h:2/v1", None)),
        ("ollama:m", {"OLLAMA_HOST": "[::1]:99"}, None, ("m", "openai", "http://[::1]:99/v1", None)),
        ("ollama:m", {"OLLAMA_HOST": "0.0.0.0:99"}, None, ("m", "openai", "http://127.0.0.1:99/v1", None)),
        ("ollama:m", {"OLLAMA_HOST": "https://o:5"}, None, ("m", "openai", "https://o:5/v1", None)),
        ("llama-server:m", NOTHING, None, ("m", "openai", "http://127.0.0.1:8080/v1", None)),
        ("llama-server:m", NOTHING, "http://h:1", ("m", "openai", "http://h:1/v1", None)),
        ("server:a/b", {"TOKA_API_KEY": "k"}, "http://h:1/v1", ("a/b", "openai", "http://h:1/v1", "k")),
        ("scripted:a/b.yaml", NOTHING, "http://h:1", ("a/b.yaml", "scripted", None, None)),
    ],
)
def test_where_strings_lead(model: str, environment: dict[str, str], base_url: str | None, expected: Any) -> None:
    endpoint = endpoint_of(model, environment, base_url)
    assert (endpoint.name, endpoint.wire, endpoint.base_url, endpoint.key) == expected


@pytest.mark.parametrize(
    "url",
    ["h:1", "ftp://h", "http://", "http://u:s3cret@h", "http://s3cret@h", "http://h/?key=s3cret", "http://h/#s3cret",
     "file:///x", "http://[::1", "http://h:s3cret", "http://h:99999"],
)  # fmt: skip
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="not the address") as caught:
        endpoint_of("server:m", NOTHING, url)
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("host", ["http://[::1", "h:port", "h:99999", "ftp://h"])
def test_addresses_of_a_provider_that_are_none_name_their_variable(host: str) -> None:
    with pytest.raises(UsageError, match=r"^OLLAMA_HOST is not"):
        endpoint_of("ollama:m", {"OLLAMA_HOST": host})
    with pytest.raises(UsageError, match=r"^ANTHROPIC_BASE_URL is not"):
        endpoint_of("anthropic:m", {"ANTHROPIC_BASE_URL": host})


@pytest.mark.parametrize(("model", "missing"), [("openai:m", "OPENAI_API_KEY"), ("anthropic:m", "ANTHROPIC_API_KEY")])
def test_missing_keys(model: str, missing: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        endpoint_of(model, NOTHING)
    assert missing in (caught.value.hint or "")
    assert caught.value.tried == (f"{missing}: not set",)
    description = describe(model, NOTHING)
    assert not description.ready
    assert missing in description.note


def test_descriptions() -> None:
    assert describe("auto", NOTHING).ready
    assert describe("ollama:m", NOTHING).server == "127.0.0.1:11434"
    assert describe("anthropic:m", {"ANTHROPIC_API_KEY": "k"}).server == "anthropic"
    assert describe("scripted:x.yaml", NOTHING).server == "x.yaml"
    assert not describe("server:m", NOTHING).ready


def test_keys_stay_out_of_representations() -> None:
    assert "sk-very" not in repr(endpoint_of("openai:m", {"OPENAI_API_KEY": "sk-very-secret"}))


def test_the_defaults_have_a_price() -> None:
    """What `auto` takes must be able to run under a cost limit."""
    prices = PriceList(time.time)
    assert prices.of(f"anthropic:{resolve.ANTHROPIC_DEFAULT}") is not None
    assert prices.of(f"openai:{resolve.OPENAI_DEFAULT}") is not None
