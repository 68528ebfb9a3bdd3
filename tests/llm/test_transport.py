from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from harness import eventually
from llm.model_server import ModelServer, drip, hang, reply
from toka.llm.transport import AiohttpTransport, BodyTooLarge, NotJson, TransportSettings


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    transport = AiohttpTransport(TransportSettings(connections=2, deadline_s=5.0, body_bytes=1000))
    async with httpx2.AsyncClient(transport=transport) as client:
        yield client


async def test_a_reply(server: ModelServer, http: httpx2.AsyncClient) -> None:
    server.will(reply({"a": 1}, headers={"x-request-id": "r1", "set-cookie": "c=1", "retry-after": "3"}))
    got = await http.post(server.url + "/v1/x?a=%20b", json={"q": "ä"}, headers={"X-Mine": "1"})
    assert (got.status_code, got.json()) == (200, {"a": 1})
    kept = {"content-type": "application/json", "x-request-id": "r1", "retry-after": "3", "content-length": "8"}
    assert dict(got.headers) == kept, "no cookies above all"
    sent = server.received[0]
    assert (sent.method, sent.path, sent.json, sent.headers["x-mine"]) == ("POST", "/v1/x?a=%20b", {"q": "ä"}, "1")
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["host"] == f"127.0.0.1:{server.port}"


async def test_cookies_do_not_come_back(server: ModelServer) -> None:
    server.will(reply({}, headers={"set-cookie": "c=1"}))
    url = f"http://localhost:{server.port}/"
    async with httpx2.AsyncClient(transport=AiohttpTransport()) as client:
        await client.get(url)
        await client.get(url)
    assert "cookie" not in server.received[1].headers


async def test_a_body_at_the_cap_and_above(server: ModelServer, http: httpx2.AsyncClient) -> None:
    server.will(reply(b"x" * 1000), reply(b"x" * 1001))
    assert len((await http.get(server.url)).content) == 1000
    with pytest.raises(BodyTooLarge):
        await http.get(server.url)


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "Application/JSON", "application/problem+json"])
async def test_kinds_of_json(server: ModelServer, http: httpx2.AsyncClient, media: str) -> None:
    server.will(reply({}, content_type=media))
    assert (await http.get(server.url)).json() == {}


@pytest.mark.parametrize("media", ["text/html", "text/event-stream", "application/jsonp", "application/octet-stream"])
async def test_other_kinds(server: ModelServer, http: httpx2.AsyncClient, media: str) -> None:
    server.will(reply({}, content_type=media))
    with pytest.raises(NotJson, match=media):
        await http.get(server.url)


async def test_an_error_may_have_any_form(server: ModelServer, http: httpx2.AsyncClient) -> None:
    server.will(reply(b"<html>", 503, content_type="text/html"))
    assert (await http.get(server.url)).status_code == 503


async def test_the_pool_is_bounded_and_waiting_counts(server: ModelServer, http: httpx2.AsyncClient) -> None:
    server.will(hang())
    held = [asyncio.create_task(http.get(server.url, timeout=60)) for _ in range(2)]
    await eventually(lambda: server.connections == 2)
    began = time.monotonic()
    late = await asyncio.gather(*(http.get(server.url, timeout=0.15) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(r, httpx2.TimeoutException) for r in late)
    assert 0.15 <= time.monotonic() - began < 30, "waiting for a connection counts, and has an end"
    assert server.connections == 2
    for request in held:
        request.cancel()


async def test_the_read_timeout_is_the_total(server: ModelServer) -> None:
    server.will(drip(0.01))
    began = time.monotonic()
    async with httpx2.AsyncClient(transport=AiohttpTransport()) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(server.url, timeout=httpx2.Timeout(60, read=0.15))
    assert time.monotonic() - began < 0.4


async def test_proxies_of_the_environment_count_only_when_asked(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, server.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "direct.invalid")
    server.will(reply({"proxied": True}))
    asked = AiohttpTransport(TransportSettings(proxies_from_environment=True))
    async with httpx2.AsyncClient(transport=asked) as client:
        assert (await client.get("http://model.invalid/v1")).json() == {"proxied": True}
        assert server.received[0].path == "http://model.invalid/v1"
        with pytest.raises(httpx2.ConnectError):
            await client.get("http://direct.invalid/v1")
    async with httpx2.AsyncClient(transport=AiohttpTransport()) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get("http://model.invalid/v1")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_a_certificate_that_nobody_vouches_for(http: httpx2.AsyncClient, tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with ModelServer(tls=context) as server:
        server.will(reply({}))
        with pytest.raises(httpx2.ConnectError, match=r"(?i)certificate"):
            await http.get(f"https://127.0.0.1:{server.port}/", timeout=2.0)
        assert server.received == []


async def test_closing_twice_and_using_again(server: ModelServer) -> None:
    server.will(reply({}))
    transport = AiohttpTransport()
    client = httpx2.AsyncClient(transport=transport)
    await client.get(server.url)
    await transport.aclose()
    await transport.aclose()
    assert (await client.get(server.url)).status_code == 200
    await client.aclose()
