"""The http tool through real sandboxes and proxies, to servers on this machine's loopback and nowhere else."""

from __future__ import annotations

import ast
import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.core.capability import Capability, CapabilityError
from toka.core.effect import Effect
from toka.sandbox.egress_credential import Credential
from toka.tools import http as module
from toka.tools.http import BODY_BYTES, METHODS, RESERVED, HttpRequest, address
from toka.tools.tool import ToolContext, validate
from tools.conftest import Room, Watched
from tools.web import HOST, Web, certificate, reply

SECRET = "abcdefgh-the-key"
INSIDE = ("inside_http.py", "inside_psql.py")


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls") / "it")


@pytest.fixture
async def web(tls: Path) -> AsyncIterator[Web]:
    web = Web(tls, [reply(b"hello", content_type="text/plain")])
    await web.start()
    assert web.server is not None
    async with web.server:
        yield web


def reaching(room: Room, web: Web, monkeypatch: pytest.MonkeyPatch, workspace: Path, **more: Any) -> ToolContext:
    """A context whose sandbox may reach HOST at the web's port and trusts its certificate; no programs, no files."""
    (workspace / "cert").write_bytes((web.folder / "cert").read_bytes())
    keys = more.pop("credentials", None)
    granted = more.pop("granted", (Capability("network-access", hosts=(HOST,), ports=(str(web.port),)),))
    return room(
        reads=("cert",), network=granted, env={"SSL_CERT_FILE": "/workspace/cert"},
        around=web.around(monkeypatch, keys), **more,
    )  # fmt: skip


@pytest.fixture
def ctx(room: Room, web: Web, monkeypatch: pytest.MonkeyPatch, workspace: Path) -> ToolContext:
    return reaching(room, web, monkeypatch, workspace)


def at(web: Web, path: str = "/") -> str:
    return f"https://{HOST}:{web.port}{path}"


def test_a_call_needs_its_host_and_port() -> None:
    tool = HttpRequest()
    for url, host, port in (
        ("https://api.example.org/x?y=1", "api.example.org", "443"),
        ("https://API.Example.ORG:8443", "api.example.org", "8443"),
        ("HTTPS://api.example.org:/", "api.example.org", "443"),
    ):
        assert tool.needs({"url": url}) == (Capability("network-access", hosts=(host,), ports=(port,)),)


@pytest.mark.parametrize(
    "url",
    ["http://api.example.org/", "api.example.org", "ftp://api.example.org/", "https://", "https:///x", "//a.b/x",
     "https://localhost/", "https://127.0.0.1/", "https://0x7f.1/", "https://[::1]/", "https://2130706433/",
     "https://user@api.example.org/", "https://a.b:c@d.example.org/", "https://api.example.org\\@evil.example.org/",
     "https://api.example.org:0/", "https://api.example.org:99999/", "https://api.example.org:x/", "https://*.org/",
     "https://api.example.org/a b", "https://api.example.org/\r\nX: y", "https://\u00e4.example.org/", "https://a..b/",
     "https://api.example.org/\u00e4", "https://api.example.org./", "https://[api.example.org]/", "https://[::1", "-x"],
)  # fmt: skip
def test_what_is_no_address_of_a_public_host_is_refused(url: str) -> None:
    with pytest.raises(CapabilityError, match="write https://HOST/PATH"):
        HttpRequest().needs({"url": url})


@given(st.text(max_size=60))
def test_no_address_changes_the_request_line(tail: str) -> None:
    try:
        host, port, path = address(f"https://api.example.org{tail}")
    except CapabilityError:
        return
    assert path.startswith("/")
    assert path.isascii()
    assert path.isprintable()
    assert " " not in path
    assert 0 < port < 65536
    assert host == "api.example.org" or host.startswith("api.example.org")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "x"}, {"content-length": "1"}, {"Transfer-Encoding": "chunked"}, {"Connection": "x"}, {"A b": "x"},
     {"Proxy-Authorization": "x"}, {"Idempotency-Key": "x"}, {"X": "a\r\nY: b"}, {"X": "a\nb"}, {"X\r\nY": "b"},
     {"X": "a\0"}, {"X:": "a"}, {"": "a"}, {"X": "a" * 8000, "Y": "b" * 8000, "Z": "c" * 8000}],
)  # fmt: skip
def test_header_fields_that_would_change_the_request_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(CapabilityError, match="header field"):
        HttpRequest().needs({"url": "https://api.example.org/", "headers": headers})


def test_bodies_that_cannot_be_sent_are_refused() -> None:
    call = {"url": "https://api.example.org/", "method": "POST", "body": "ä" * (BODY_BYTES // 2 + 1)}
    with pytest.raises(CapabilityError, match="65538 bytes; 65536 can be sent"):
        HttpRequest().needs(call)
    for method in ({}, {"method": "GET"}, {"method": "HEAD"}):
        with pytest.raises(CapabilityError, match="takes no body"):
            HttpRequest().needs({"url": "https://api.example.org/", "body": "x", **method})


def test_the_schema_knows_the_methods() -> None:
    tool = HttpRequest()
    assert isinstance(validate(tool, '{"url": "x", "method": "CONNECT"}'), str)
    assert isinstance(validate(tool, '{"url": "x", "method": "get"}'), str)
    assert isinstance(validate(tool, '{"url": "x", "headers": {"a": 1}}'), str)


async def test_only_requests_that_change_nothing_are_made_again(ctx: ToolContext) -> None:
    tool = HttpRequest()
    assert tool.effect is Effect.CHECKABLE
    found = {}
    for method in METHODS:
        args = {"url": "https://api.example.org/", "method": method}
        found[method] = await tool.probe(args, await tool.evidence(args, ctx), ctx)
    assert [m for m, verdict in found.items() if verdict == "not-happened"] == ["GET", "HEAD"]
    assert set(found.values()) == {"not-happened", "unknown"}
    assert "lost" in tool.happened({}, {}).text


async def test_a_request_and_its_reply(ctx: ToolContext, web: Web) -> None:
    web.replies = [reply("grüß dich".encode(), content_type="text/plain; charset=utf-8", set_cookie="a=b")]
    args = {"url": at(web, "/a/b?c=%20d#e"), "headers": {"Accept": "text/plain", "X-Name": "ä"}}
    result = await HttpRequest().call(args, ctx)
    assert result.text == ("HTTP 200 OK\ncontent-length: 11\ncontent-type: text/plain; charset=utf-8\n\ngrüß dich")
    assert not result.failed
    assert result.data is not None
    assert (result.data["status"], result.data["bytes"]) == (200, 11)
    ((head, body),) = web.seen
    assert head.startswith("GET /a/b?c=%20d HTTP/1.1\r\n")
    assert f"\r\nHost: {HOST}:{web.port}\r\n" in head
    assert "\r\nX-Name: Ã¤\r\n" in head
    assert "dempotency" not in head
    assert body == b""


async def test_a_body_is_sent_with_the_key_of_the_step(ctx: ToolContext, web: Web) -> None:
    body = "ä" * (BODY_BYTES // 2)
    args = {"url": at(web), "method": "POST", "body": body, "headers": {"Content-Type": "text/plain"}}
    result = await HttpRequest().call(args, ctx)
    assert not result.failed, result.text
    ((head, sent),) = web.seen
    assert sent.decode() == body
    assert f"\r\nIdempotency-Key: {'k' * 32}\r\n" in head
    await HttpRequest().call({"url": at(web), "method": "POST"}, ctx)
    assert "\r\nContent-Length: 0\r\n" in web.seen[1][0]


async def test_redirects_and_errors_are_told(ctx: ToolContext, web: Web) -> None:
    web.replies = [reply(status="302 Found", location="https://elsewhere.example.org/"), reply(b"no", "404 Not Found")]
    moved = await HttpRequest().call({"url": at(web)}, ctx)
    assert moved.text == "HTTP 302 Found\ncontent-length: 0\nlocation: https://elsewhere.example.org/\n\n[no body]"
    assert not moved.failed
    missing = await HttpRequest().call({"url": at(web)}, ctx)
    assert missing.failed
    assert missing.text.endswith("\n\nno")
    assert web.looked_up == [HOST, HOST]


async def test_a_head_request(ctx: ToolContext, web: Web) -> None:
    web.replies = [b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"]
    result = await HttpRequest().call({"url": at(web), "method": "HEAD"}, ctx)
    assert result.text == "HTTP 200 OK\ncontent-length: 5000\n\n[no body]"


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (reply(b"\x89PNG\0\1", content_type="image/png"), "[a binary body of 6 bytes, image/png]"),
        (reply(b"\xff\xfe", content_type="application/x"), "[a binary body of 2 bytes, application/x]"),
        (reply(b"\xe4", content_type="text/plain; charset=latin-1"), "ä"),
        (reply(b"\xe4", content_type="text/plain; charset=nonsense"), "ä"),
        (reply(b"x" * 300), "x" * 200 + "\n[only the first 200 bytes of 300 are shown]"),
        (reply("ä".encode() * 150 + b"x"), "ä" * 100 + "\n[only the first 200 bytes of 301 are shown]"),
        (reply(b"x" + "ä".encode() * 150), "ä\n[only the first 200 bytes of 301 are shown]"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "abc\n[the connection broke off before the end]"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc", "[the connection broke off before the end]"),
    ],
)
async def test_bodies(ctx: ToolContext, web: Web, answer: bytes, ends: str) -> None:
    web.replies = [answer]
    result = await HttpRequest().call({"url": at(web)}, replace(ctx, output_limit=200))
    assert result.text.endswith(ends)
    assert not result.failed


async def test_a_flood_is_cut_where_it_comes_from(ctx: ToolContext, web: Web) -> None:
    web.replies = [b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000]
    result = await HttpRequest().call({"url": at(web)}, ctx)
    assert result.text.endswith("\n[only the first 20000 bytes are shown]")
    assert len(result.text) < 21_000


async def test_long_header_fields_do_not_flood(ctx: ToolContext, web: Web) -> None:
    web.replies = [reply(b"x", link="y" * 30_000, x_other="z" * 30_000)]
    result = await HttpRequest().call({"url": at(web)}, ctx)
    assert result.text == f"HTTP 200 OK\ncontent-length: 1\nlink: {'y' * 1000}\n\nx"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"nonsense\r\n\r\n", "no reply: nonsense"),
        (b"", "no reply: Remote end closed connection without response"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "no reply: got more than 100 headers"),
    ],
)
async def test_what_is_no_reply_is_said(ctx: ToolContext, web: Web, answer: bytes, says: str) -> None:
    web.replies = [answer]
    result = await HttpRequest().call({"url": at(web)}, ctx)
    assert (result.text.strip(), result.failed) == (says, True)


async def test_refusals_of_the_proxy_are_told_in_its_words(ctx: ToolContext, web: Web) -> None:
    for url, says in (
        (f"https://other.example.org:{web.port}/", "other.example.org is refused: this agent may reach"),
        (f"https://{HOST}:1/", f"port 1 of {HOST} is refused"),
    ):
        result = await HttpRequest().call({"url": url}, ctx)
        assert result.failed
        assert result.text.startswith(f"no reply: {says}")
    assert not web.seen


async def test_a_certificate_that_is_not_trusted_is_no_way(
    room: Room, web: Web, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    ctx = reaching(room, web, monkeypatch, workspace)
    hands = await ctx.hands()
    assert isinstance(hands, Watched)
    hands.env = {}
    result = await HttpRequest().call({"url": at(web)}, ctx)
    assert result.text == "no reply: the host's certificate is not trusted: self-signed certificate"
    assert not web.seen


async def test_a_host_that_does_not_answer_is_given_up(
    room: Room, web: Web, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    async def never(_: Web, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(Web, "_serve", never)
    silent = Web(web.folder, [b""])
    await silent.start(tls=False)
    assert silent.server is not None
    async with silent.server:
        ctx = reaching(room, silent, monkeypatch, workspace)
        await ctx.hands()
        result = await HttpRequest().call({"url": at(silent)}, replace(ctx, timeout_s=0.4))
    assert result.text in ("no reply: no answer in time", "no complete reply in time")
    assert result.failed


# --- keys


async def test_a_key_is_added_outside_and_never_inside(
    room: Room, web: Web, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    keys = {HOST: Credential(f"Bearer {SECRET}", port=web.port)}
    ctx = reaching(room, web, monkeypatch, workspace, credentials=keys)
    web.replies = [reply(f"you sent {SECRET}".encode(), content_type="text/plain")]
    args = {"url": at(web, "/user?x=1"), "method": "POST", "body": "b", "headers": {"Authorization": "Bearer mine"}}
    result = await HttpRequest({HOST: web.port}).call(args, ctx)
    assert result.text.endswith(f"you sent {'*' * len(SECRET)}")
    ((head, body),) = web.seen
    assert head.startswith("POST /user?x=1 HTTP/1.1\r\n")
    assert f"Bearer {SECRET}" in head
    assert "mine" not in head
    assert f"\r\nidempotency-key: {'k' * 32}\r\n" in head.lower()
    assert body == b"b"
    hands = await ctx.hands()
    assert isinstance(hands, Watched)
    assert SECRET not in str(hands.runs)
    await hands.sandbox.close()
    assert [a.allowed for a in web.attempts] == [True]
    assert SECRET not in str(web.attempts)


async def test_at_another_port_the_agent_speaks_with_the_host_itself(
    room: Room, web: Web, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    ctx = reaching(room, web, monkeypatch, workspace, credentials={HOST: Credential(f"Bearer {SECRET}", port=1)})
    result = await HttpRequest({HOST: 1}).call({"url": at(web)}, ctx)
    assert result.text.endswith("hello")
    assert SECRET not in str(web.seen)


async def test_a_key_that_the_proxy_does_not_have_is_said(ctx: ToolContext, web: Web) -> None:
    result = await HttpRequest({HOST: web.port}).call({"url": at(web)}, ctx)
    assert result.text == "no reply: only CONNECT is served, for https; plain http is not"
    assert not web.seen


# --- confinement


async def test_no_request_is_made_on_the_host(ctx: ToolContext, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    hands = await ctx.hands()
    assert isinstance(hands, Watched)
    await HttpRequest().call({"url": at(web)}, ctx)
    ((python, *options, _, program),) = hands.runs
    assert (python, options) == ("/usr/bin/python3", ["-I", "-S", "-B"])
    assert program == (Path(module.__file__).parent / "inside_http.py").read_text()


async def test_the_agent_needs_no_program_of_its_own_and_gets_none(ctx: ToolContext, web: Web) -> None:
    hands = await ctx.hands()
    assert (await hands.run(["/usr/bin/python3", "-c", "1"], timeout_s=5)).exit_code != 0
    assert not (await HttpRequest().call({"url": at(web)}, ctx)).failed
    source = "import os; os.execv('/bin/true', ['true'])"
    result = await hands.run(["/usr/bin/python3", "-I", "-c", source], timeout_s=5, chosen_by="tool")
    assert b"Permission denied" in result.output


async def test_files_of_the_workspace_have_no_say(
    room: Room, web: Web, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    for name in ("ssl.py", "json.py", "http.py", "sitecustomize.py"):
        (workspace / name).write_text("open('/workspace/owned', 'w')\n")
    (workspace / "cert").write_bytes((web.folder / "cert").read_bytes())
    ctx = room(
        writes=(".",), network=(Capability("network-access", hosts=(HOST,), ports=(str(web.port),)),),
        around=web.around(monkeypatch), env={"SSL_CERT_FILE": "/workspace/cert", "PYTHONPATH": "/workspace"},
    )  # fmt: skip
    assert not (await HttpRequest().call({"url": at(web)}, ctx)).failed
    assert not (workspace / "owned").exists()


def test_programs_that_run_inside_are_standalone() -> None:
    folder = Path(module.__file__).parent
    assert {path.name for path in folder.glob("inside_*.py")} == set(INSIDE)
    for name in INSIDE:
        text = (folder / name).read_text()
        assert len(text.encode()) < 16_000
        tree = ast.parse(text, feature_version=(3, 9))
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert {module.split(".")[0] for module in imported} <= sys.stdlib_module_names | {"typing"}


def test_reserved_fields_are_in_lower_case() -> None:
    assert all(name == name.lower() for name in RESERVED)
