"""Requests to which a key is added outside: the host sees the key, the sandbox never does."""

from __future__ import annotations

import base64
import itertools
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.test_egress import LOOPBACK, Host, Names, Proxy, Start, Upstream, connect, denial, rules, until
from sandbox.test_egress import nothing_leaves_the_machine as nothing_leaves_the_machine
from sandbox.test_egress import start as start
from toka.sandbox.egress import EgressCaps
from toka.sandbox.egress_credential import Credential, Mask

KEY = "ghp_0123456789abcdefABCDEF"
API = "api.github.com"
NO_REPLY = f"no proper reply from {API}"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a self-signed certificate for api.github.com, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={API}", "-addext", f"subjectAltName=DNS:{API}", "-keyout", "key", "-out", "cert"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (folder / "both").write_text((folder / "key").read_text() + (folder / "cert").read_text())
    return folder / "both"


@pytest.fixture
async def host(certificate: Path) -> AsyncIterator[Host]:
    """An HTTPS server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    started = await Host().start(ssl=context)
    yield started
    await started.stop()


def says(reply: bytes, *more: bytes, end: bool = True) -> Callable[[Upstream, bytes], object]:
    """Answers when the header of the request is complete; the pieces go out one by one."""

    def behave(upstream: Upstream, _: bytes) -> None:
        if b"\r\n\r\n" in upstream.heard and not upstream.ended:
            upstream.ended = True
            for piece in (reply, *more):
                upstream.transport.write(piece)
            if end:
                upstream.transport.close()

    return behave


@pytest.fixture
def keyed(start: Start, host: Host, certificate: Path) -> Callable[..., Proxy]:
    """A proxy that has a key for api.github.com and no rule for it."""

    def make(**options: object) -> Proxy:
        key = Credential(f"Bearer {KEY}", port=host.port)
        options = {"credentials": {API: key}, "tls": ssl.create_default_context(cafile=certificate), **options}
        return start(rules("x.org"), **options)

    return make


Keyed = Callable[..., Proxy]


def get(path: str = "/user", header: str = "", *, method: str = "GET", body: bytes = b"") -> bytes:
    return f"{method} http://{API}{path} HTTP/1.1\r\nHost: {API}\r\n{header}\r\n".encode() + body


def parts(message: bytes) -> tuple[str, dict[str, str], bytes]:
    """First line, header with names in lower case, and body of a message without repeated fields."""
    head, _, body = message.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({n.lower() for n, _ in pairs}) == len(pairs)
    return first, {n.lower(): v for n, v in pairs}, body


async def test_the_key_is_added_outside_and_what_the_client_sent_of_the_kind_is_removed(
    keyed: Keyed, host: Host
) -> None:
    host.behave = says(OK)
    proxy = keyed()
    header = (
        "Authorization: Bearer mine\r\nAUTHORIZATION: Basic x\r\nCookie: a=b\r\n"
        "Proxy-Authorization: p\r\nProxy-X: y\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
        "TE: trailers\r\nUpgrade: h2c\r\n"
        "Range: bytes=0-1\r\nAccept-Encoding: gzip\r\nExpect: 100-continue\r\nAccept: */*\r\nUser-Agent: me\r\n"
    )
    reply = await proxy.ask(get("/user?a=b%20c", header))
    assert parts(reply) == ("HTTP/1.1 200 OK", {"content-length": "2", "connection": "close"}, b"hi")
    first, fields, body = parts(bytes(host.seen[0].heard))
    assert first == "GET /user?a=b%20c HTTP/1.1"
    assert fields == {
        "host": f"{API}:{host.port}",
        "authorization": f"Bearer {KEY}",
        "accept": "*/*",
        "user-agent": "me",
        "accept-encoding": "identity",
        "connection": "close",
    }
    assert body == b""
    attempt = await proxy.attempt()
    assert (attempt.host, attempt.port, attempt.allowed, attempt.address) == (API, host.port, True, LOOPBACK)
    assert attempt.reason == "a key was added outside the sandbox; the host answered 200"
    assert (attempt.bytes_up, attempt.bytes_down) == (len(host.seen[0].heard), len(reply))
    assert KEY not in repr(proxy.attempts)


async def test_a_key_in_a_header_of_another_name(keyed: Keyed, host: Host) -> None:
    host.behave = says(OK)
    proxy = keyed(credentials={API: Credential(KEY, header="X-Api-Key", port=host.port)})
    await proxy.ask(get("/", "x-api-key: mine\r\nAuthorization: mine\r\n"))
    fields = parts(bytes(host.seen[0].heard))[1]
    assert fields["x-api-key"] == KEY
    assert "authorization" not in fields


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Length: 11\r\n", b"hello world"),
        ("Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n6; x=y\r\n world\r\n0\r\nTrailer: t\r\n\r\n"),
    ],
)
async def test_a_body_is_passed_on_with_its_length(keyed: Keyed, host: Host, header: str, body: bytes) -> None:
    host.behave = lambda up, data: up.heard.endswith(b"world") and says(OK)(up, data)
    proxy = keyed()
    assert (await proxy.ask(get("/gists", header, method="POST", body=body))).startswith(b"HTTP/1.1 200 OK\r\n")
    _, fields, sent = parts(bytes(host.seen[0].heard))
    assert (fields["content-length"], sent) == ("11", b"hello world")
    assert "transfer-encoding" not in fields


async def test_a_client_that_waits_before_its_body_is_told_to_go_on(keyed: Keyed, host: Host) -> None:
    host.behave = lambda up, data: up.heard.endswith(b"hello") and says(OK)(up, data)
    reader, writer = await keyed().dial(get("/", "Content-Length: 5\r\nExpect: 100-continue\r\n", method="PUT"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hello")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()


async def test_an_empty_post_says_so(keyed: Keyed, host: Host) -> None:
    host.behave = says(OK)
    await keyed().ask(get("/", method="POST"))
    assert parts(bytes(host.seen[0].heard))[1]["content-length"] == "0"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (get("/", "Content-Length: 5\r\nContent-Length: 6\r\n", method="POST", body=b"hello"), 400),
        (get("/", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", method="POST", body=b"0\r\n\r\n"), 400),
        (get("/", "Transfer-Encoding: gzip, chunked\r\n", method="POST", body=b"0\r\n\r\n"), 400),
        (get("/", "Transfer-Encoding: chunked\r\n", method="POST", body=b"zz\r\n"), 400),
        (get("/", "Content-Length: 1001\r\n", method="POST"), 413),
        (get("/", "Transfer-Encoding: chunked\r\n", method="POST", body=b"3e9\r\n" + bytes(1001)), 413),
        (get("/", method="TRACE"), 405),
        (get("/").replace(b"http:", b"https:"), 405),
        (get("/").replace(b"//", b"//evil.com@"), 405),
        (get("/").replace(API.encode() + b"/", API.encode() + b":443@evil.com/"), 405),
        (get("/").replace(API.encode() + b"/", API.encode() + b"./"), 405),
        (get("/").replace(API.encode() + b"/", API.encode() + b":22/"), 405),
        (get("/").replace(API.encode() + b"/", API.encode() + b".evil.com/"), 405),
        (get("/#frag"), 405),
        (get("/").replace(b"http://api.github.com/", b"/"), 405),
        (get("/a b"), 400),
        (get("/", "A : b\r\n"), 400),
        (connect(API, 443), 403),
    ],
)
async def test_what_could_be_read_in_two_ways_never_reaches_the_host(
    keyed: Keyed, host: Host, said: bytes, status: int
) -> None:
    proxy = keyed(caps=EgressCaps(request_bytes=1000))
    assert denial(await proxy.ask(said))[0] == status
    assert host.seen == []
    assert proxy.names.asked == []
    assert (await proxy.attempt()).allowed == (status in (400, 413) and b"/ HTTP" in said and b"A :" not in said)


async def test_a_redirect_is_passed_on_and_not_followed(keyed: Keyed, host: Host) -> None:
    host.behave = says(
        b"HTTP/1.1 302 Found\r\nLocation: https://evil.com/\r\nSet-Cookie: s=1\r\nContent-Length: 0\r\n\r\n"
    )
    proxy = keyed()
    first, fields, body = parts(await proxy.ask(get()))
    assert (first, body) == ("HTTP/1.1 302 Found", b"")
    assert fields == {"location": "https://evil.com/", "content-length": "0", "connection": "close"}
    assert proxy.names.asked == [API]


ECHO = f"your key: Bearer {KEY}!".encode()
HIDDEN = ECHO.replace(KEY.encode(), b"*" * len(KEY))


async def test_a_key_that_the_host_echoes_is_masked_in_every_part_of_the_reply(keyed: Keyed, host: Host) -> None:
    host.behave = says(
        f"HTTP/1.1 200 for {KEY}\r\nX-Echo: Bearer {KEY}\r\nX-{KEY}: y\r\nContent-Length: {len(ECHO)}\r\n\r\n".encode(),
        *(ECHO[i : i + 1] for i in range(len(ECHO))),
    )
    proxy = keyed()
    reply = await proxy.ask(get())
    assert KEY.lower().encode() not in reply.lower()
    first, fields, body = parts(reply)
    assert (first, body) == ("HTTP/1.1 200 for " + "*" * len(KEY), HIDDEN)
    assert fields["x-echo"] == "Bearer " + "*" * len(KEY)
    assert KEY not in repr(proxy.attempts)


async def test_a_key_split_over_chunks_is_masked(keyed: Keyed, host: Host) -> None:
    pieces = [ECHO[i : i + 5] for i in range(0, len(ECHO), 5)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces)
    host.behave = says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    reply = await keyed().ask(get())
    _, fields, body = parts(reply)
    assert fields == {"transfer-encoding": "chunked", "connection": "close"}
    whole, rest = b"", body
    while (size := int(rest.partition(b"\r\n")[0], 16)) > 0:
        rest = rest.partition(b"\r\n")[2]
        whole, rest = whole + rest[:size], rest[size + 2 :]
    assert whole == HIDDEN
    assert rest == b"0\r\n\r\n"


async def test_a_reply_that_ends_like_the_beginning_of_the_key_arrives_whole(keyed: Keyed, host: Host) -> None:
    host.behave = says(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", KEY[:7].encode())
    assert parts(await keyed().ask(get()))[2] == KEY[:7].encode()


async def test_a_reply_without_a_length_ends_with_the_connection(keyed: Keyed, host: Host) -> None:
    host.behave = says(b"HTTP/1.0 200 OK\r\n\r\nbody")
    assert (await keyed().ask(get().replace(b"HTTP/1.1", b"HTTP/1.0"))).endswith(b"close\r\n\r\nbody")


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_a_reply_without_a_body(keyed: Keyed, host: Host, method: str, reply: bytes) -> None:
    host.behave = says(reply, end=False)
    answer = await keyed().ask(get(method=method))
    assert answer.startswith(reply.split(b"\r\n\r\n")[-2].split(b"\r\n")[0])
    assert answer.endswith(b"connection: close\r\n\r\n")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", f"{NO_REPLY}: the status line is malformed"),
        (b"HTTP/1.1 200 OK\r\nA: b", f"{NO_REPLY}: the message ends too early"),
        (b"HTTP/1.1 200 OK\r\nA b\r\n\r\n", f"{NO_REPLY}: a header field is malformed"),
        (b"SSH-2.0\r\n\r\n", f"{NO_REPLY}: the status line is malformed"),
        (b"HTTP/1.1 101 Switching\r\n\r\n" * 9, f"{NO_REPLY}: too many interim replies"),
        (OK.replace(b"OK", b"OK\r\nContent-Encoding: br"), "the host answered in an encoding that was not asked for"),
        (OK.replace(b" 2\r\n", b" 2000\r\n"), "the reply exceeds 1000 bytes"),
        (OK.replace(b"OK", b"OK\r\nContent-Length: 3"), f"{NO_REPLY}: the length of the body is said twice"),
    ],
)
async def test_a_reply_in_which_a_key_could_hide_is_not_passed_on(
    keyed: Keyed, host: Host, reply: bytes, reason: str
) -> None:
    host.behave = says(reply)
    proxy = keyed(caps=EgressCaps(reply_bytes=1000))
    assert denial(await proxy.ask(get())) == (502, reason)
    attempt = await proxy.attempt()
    assert (attempt.allowed, attempt.reason) == (True, reason)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhi", f"no proper reply from {API}: the body ends too early"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1001), "the reply exceeds 1000 bytes"),
    ],
)
async def test_half_a_reply_never_looks_whole(keyed: Keyed, host: Host, reply: bytes, reason: str) -> None:
    host.behave = says(reply)
    proxy = keyed(caps=EgressCaps(reply_bytes=1000))
    with pytest.raises(ConnectionResetError):
        await proxy.ask(get())
    assert (await proxy.attempt()).reason == reason


async def test_the_key_is_sent_to_nobody_whose_certificate_is_not_trusted(keyed: Keyed, host: Host) -> None:
    proxy = keyed(tls=ssl.create_default_context())
    assert denial(await proxy.ask(get())) == (502, f"the certificate of {API} is not trusted")
    proxy = keyed(credentials={"other.github.com": Credential(KEY, port=host.port)})
    said = get().replace(API.encode(), b"other.github.com")
    assert denial(await proxy.ask(said)) == (502, "the certificate of other.github.com is not trusted")
    assert all(KEY.encode() not in upstream.heard for upstream in host.seen)


async def test_the_key_is_sent_to_nobody_without_tls(keyed: Keyed) -> None:
    plain = await Host(lambda up, _: up.transport.write(OK)).start()
    proxy = keyed(credentials={API: Credential(KEY, port=plain.port)})
    assert denial(await proxy.ask(get())) == (502, f"{API} does not speak TLS on port {plain.port}")
    assert all(KEY.encode() not in upstream.heard for upstream in plain.seen)
    await plain.stop()


async def test_the_addresses_of_a_host_with_a_key_are_checked_too(keyed: Keyed, host: Host) -> None:
    proxy = keyed(names=Names(api_github_com=[LOOPBACK, "10.0.0.1"]))
    code, reason = denial(await proxy.ask(get()))
    assert (code, reason) == (403, f"{API} is refused: it resolves to an address outside the public network")
    assert not (await proxy.attempt()).allowed
    assert host.seen == []


async def test_the_limits_hold_for_requests_with_a_key(keyed: Keyed, host: Host) -> None:
    host.behave = says(OK)
    proxy = keyed(max_bytes=300)
    assert (await proxy.ask(get())).endswith(b"hi")
    reason = "the network traffic of this agent has reached its limit of 300 bytes"
    assert denial(await proxy.ask(get())) == (403, reason)
    assert denial(await proxy.ask(get())) == (403, reason)
    assert proxy.egress.bytes_up + proxy.egress.bytes_down == 300
    await until(lambda: len(proxy.attempts) == 3)
    assert [a.allowed for a in proxy.attempts] == [True, True, False]


async def test_close_in_the_middle_of_an_exchange(keyed: Keyed, host: Host) -> None:
    host.behave = says(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhi", end=False)
    proxy = keyed()
    reader, writer = await proxy.dial(get())
    await reader.readuntil(b"\r\n\r\n")
    await proxy.egress.close()
    writer.close()
    await until(lambda: host.seen[0].lost)
    assert (await proxy.attempt()).reason == "ended with the sandbox"


# --- the key as a value ------------------------------------------------------------------------------------------


def test_the_text_of_a_credential_does_not_hold_the_key() -> None:
    assert KEY not in repr(Credential(KEY)) + str(Credential(KEY))


@pytest.mark.parametrize(
    ("value", "header"),
    [
        ("short", "A"), ("", "A"), (f"{KEY}\r\nX: y", "A"), (f"{KEY}\0", "A"), (f"{KEY}\u00e9", "A"),
        (KEY, "A b"), (KEY, "A:"), (KEY, ""), (KEY, "Host"), (KEY, "Content-Length"), (KEY, "Connection"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_key(value: str, header: str) -> None:
    with pytest.raises(ValueError, match="key") as caught:
        Credential(value, header=header)
    assert KEY not in str(caught.value)


async def test_a_credential_is_for_a_plain_host(keyed: Keyed) -> None:
    for name in ("*.github.com", "API.github.com", "127.0.0.1", "api.github.com:443"):
        with pytest.raises(ValueError, match="not a host name"):
            keyed(credentials={name: Credential(KEY)})


def test_a_password_inside_basic_is_masked_in_the_clear_too() -> None:
    encoded = base64.b64encode(b"user:p/ssw0rd-and+more").decode()
    mask = Mask(Credential(f"Basic {encoded}"))
    for shown in (encoded, "p/ssw0rd-and+more", "p%2Fssw0rd-and%2Bmore", r"p\/ssw0rd-and+more"):
        assert mask.once(f"<{shown}>".encode()) == b"<" + b"*" * len(shown) + b">"
    assert Credential("Basic not-base64!").words() == ("not-base64%21", "not-base64!")


@given(
    st.lists(st.sampled_from(["aaaaaaab", "aaaa", "a", "b", "Bearer ", "x", "aaaaaaa"]), max_size=12).map("".join),
    st.lists(st.integers(0, 100), max_size=10),
)
def test_the_mask_finds_the_key_however_the_bytes_are_cut(text: str, places: list[int]) -> None:
    data = text.encode()
    mask = Mask(Credential("Bearer aaaaaaab"))
    ends = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    out = b"".join(mask.feed(data[a:b]) for a, b in itertools.pairwise(ends)) + mask.flush()
    assert out == data.replace(b"aaaaaaab", b"********")
