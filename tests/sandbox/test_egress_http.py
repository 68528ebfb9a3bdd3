"""Taking HTTP apart: whole messages only, whatever the pieces in which they arrive."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.sandbox.egress_http import Framing, Inflow, Malformed, Request, Stop, framing_of, pour


def inflow(*pieces: bytes) -> Inflow:
    left = [p for p in pieces if p]

    async def read() -> bytes:
        return left.pop(0) if left else b""

    return Inflow(read)


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


async def body(flow: Inflow, framing: Framing) -> bytes:
    out = bytearray()

    async def keep(data: bytes) -> None:
        out.extend(data)

    await pour(flow, framing, keep)
    return bytes(out)


cuts = st.lists(st.integers(0, 10_000), max_size=8)


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_malformed(data: bytes) -> None:
    try:
        request = Request.parse(data + b"\r\n\r\n")
    except Malformed as e:
        assert str(e).isascii()
    else:
        assert request.target.isprintable()
        assert not {"\r", "\n", "\0"} & set("".join(v for _, v in request.fields))


def test_a_request_is_taken_apart() -> None:
    request = Request.parse(b"GET http://X.org/a?b HTTP/1.0\r\nHost:  x.org\t\r\nX-A: b: c\r\n\r\n")
    assert request == Request("GET", "http://X.org/a?b", 0, (("host", "x.org"), ("x-a", "b: c")))


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), cuts, st.booleans())
def test_a_chunked_body_is_put_together_again(parts: list[bytes], places: list[int], trailer: bool) -> None:
    data = b"".join(b"%X;x=y\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n"
    data += b"Trailer: x\r\n\r\n" if trailer else b"\r\n"
    flow = inflow(*cut(data + b"next", places))
    assert asyncio.run(body(flow, "chunked")) == b"".join(parts)
    assert b"next".startswith(flow.rest())


@given(st.binary(min_size=1, max_size=60), cuts, st.sampled_from([0, 1, 2]))
def test_a_body_of_known_length_ends_there(data: bytes, places: list[int], kind: int) -> None:
    flow = inflow(*cut(data, places))
    if kind == 0:
        assert asyncio.run(body(flow, len(data))) == data
    elif kind == 1:
        assert asyncio.run(body(flow, "close")) == data
    else:
        with pytest.raises(Malformed, match="too early"):
            asyncio.run(body(flow, len(data) + 1))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"5\r\nhello", b"5\r\nhello\r\n", b"5\r\nhelloX\r\n0\r\n\r\n", b"-1\r\n", b"0x5\r\nhello\r\n0\r\n\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n", b"fffffffff\r\n", b"5\nhello\n0\n\n", b"\r\n", b"0\r\n",
        b"0\r\n" + b"a: b\r\n" * 500 + b"\r\n", b"5" + b"0" * 300 + b"\r\n",
    ],
)  # fmt: skip
async def test_chunks_that_are_not_strict_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        await body(inflow(data), "chunked")


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        ((), None),
        ((("content-length", "12"),), 12),
        ((("transfer-encoding", "Chunked"),), "chunked"),
    ],
)
def test_the_header_says_how_the_body_ends(fields: tuple[tuple[str, str], ...], framing: Framing | None) -> None:
    assert framing_of(fields) == framing


@pytest.mark.parametrize(
    "fields",
    [
        (("content-length", "1"), ("content-length", "1")),
        (("content-length", "1"), ("transfer-encoding", "chunked")),
        (("transfer-encoding", "chunked"), ("transfer-encoding", "identity")),
        (("transfer-encoding", "gzip, chunked"),),
        (("transfer-encoding", "xchunked"),),
        (("content-length", "1, 1"),),
        (("content-length", "+1"),),
        (("content-length", "0x1"),),
        (("content-length", "\u0661"),),
        (("content-length", "-1"),),
        (("content-length", ""),),
    ],
)
def test_a_body_that_could_end_in_two_places_is_malformed(fields: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(Malformed):
        framing_of(fields)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("http://X.org/a?b=c", ("x.org", "/a?b=c")),
        ("HTTP://x.org", ("x.org", "/")),
        ("http://x.org?q", ("x.org", "/?q")),
        ("http://x.org:80/", ("x.org", "/")),
        ("http://x.org:443/", ("x.org:443", "/")),
        ("http://x.org//y.org/", ("x.org", "//y.org/")),
        ("http://a@x.org/", None),
        ("http://x.org/#a", None),
        ("https://x.org/", None),
        ("x.org/", None),
        ("/", None),
        ("*", None),
    ],
)
def test_an_absolute_target(target: str, found: tuple[str, str] | None) -> None:
    assert Request("GET", target, 1).absolute() == found


def test_methods_that_echo_or_tunnel_are_no_requests_for_a_key() -> None:
    assert Request("TRACE", "http://x.org/", 1).absolute() is None
    assert Request("CONNECT", "http://x.org/", 1).absolute() is None


async def test_a_piece_has_a_limit() -> None:
    assert await inflow(b"abc\r\n").until(b"\r\n", 5) == b"abc\r\n"
    with pytest.raises(Malformed, match="more than 4 bytes"):
        await inflow(b"abc\r\n").until(b"\r\n", 4)
    with pytest.raises(Malformed, match="more than 4 bytes"):
        await inflow(b"ab", b"cd", b"ef").until(b"\r\n", 4)


def test_a_refusal_says_its_reason_in_three_places() -> None:
    assert Stop("x.org is refused", 403).answer == (
        b"HTTP/1.1 403 x.org is refused\r\nX-Toka-Denied: x.org is refused\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 17\r\nConnection: close\r\n\r\nx.org is refused\n"
    )
    assert b"\r\nAllow: CONNECT\r\n" in Stop("no", 405).answer
