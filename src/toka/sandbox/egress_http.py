"""The HTTP that the egress proxy takes apart, and the words it refuses with.

Nothing here is lenient: a message that two programs could read in two ways is refused. No socket is touched: bytes
come from an `Inflow` and leave through a callable.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from toka.sandbox.egress_rules import plain_port

HEAD_BYTES: Final = 8 * 1024
"""Largest request line with header fields."""
_LINE_BYTES: Final = 256
_START: Final = re.compile(rb"([A-Z]{3,16}) ([\x21-\x7e]+) HTTP/1\.([01])")
FIELD_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t\x20-\x7e]*)?")
_BARE_LINE_END: Final = re.compile(rb"(?<!\r)\n")
_ABSOLUTE: Final = re.compile(r"http://([^/?#@]*)(/[^#]*|\?[^#]*)?", re.IGNORECASE)
_KEYED_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

Fields = tuple[tuple[str, str], ...]
"""Header fields in order, names in lower case."""
Framing = int | Literal["chunked", "close"]
"""Where a body ends: after so many bytes, after its last chunk, or with the connection."""
Send = Callable[[bytes], Awaitable[None]]


class Malformed(ValueError):
    """Bytes that are not strict HTTP; the message is one sentence without any of those bytes."""


class Stop(Exception):
    """Ends one connection.

    Attributes:
        reason: one sentence in one line of ASCII. It goes to the client and to the journal, so it never holds a key.
        status: of the answer, if nothing has been answered yet.
    """

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status

    @property
    def answer(self) -> bytes:
        """The whole reply. The reason stands in the status line too: many clients show nothing else."""
        body = f"{self.reason}\n"
        allow = "Allow: CONNECT\r\n" if self.status == 405 else ""
        return (
            f"HTTP/1.1 {self.status} {self.reason}\r\nX-Toka-Denied: {self.reason}\r\n{allow}"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
        ).encode("ascii", "replace")


class Inflow:
    """Bytes from one side, cut into the pieces that HTTP is made of. Holds at most one read beyond what was asked."""

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        """`read` returns some bytes, none at the end."""
        self._read = read
        self._held = bytearray()

    async def until(self, end: bytes, limit: int) -> bytes:
        """All up to and including `end`; nothing when the side ended before its first byte.

        Raises:
            Malformed: the side ended in between, a line does not end in CR LF, or the piece exceeds `limit` bytes.
        """
        seen = 0
        while (at := self._held.find(end, max(0, seen - len(end)))) < 0:
            if _BARE_LINE_END.search(self._held, max(0, seen - 1)):
                raise Malformed("a line does not end in CR LF")
            seen = len(self._held)
            if seen >= limit:
                break
            data = await self._read()
            if not data:
                if seen:
                    raise Malformed("the message ends too early")
                return b""
            self._held += data
        if at < 0 or at + len(end) > limit:
            raise Malformed(f"more than {limit} bytes before the end of the header")
        return self._cut(at + len(end))

    async def some(self, most: int) -> bytes:
        """At most `most` bytes; none at the end."""
        return self._cut(most) if self._held else self._over(await self._read(), most)

    def rest(self) -> bytes:
        """What was read and not yet asked for."""
        return self._cut(len(self._held))

    def _cut(self, size: int) -> bytes:
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    def _over(self, data: bytes, most: int) -> bytes:
        self._held += data[most:]
        return data[:most]


async def pour(inflow: Inflow, framing: Framing, sink: Send) -> None:
    """Hands a body to `sink`, without its framing. Trailers are dropped. Raises Malformed when it ends too early."""
    if framing == "chunked":
        while size := await _chunk_size(inflow):
            await pour(inflow, size, sink)
            await inflow.until(b"\r\n", 2)
        for _ in range(HEAD_BYTES // _LINE_BYTES):
            if await inflow.until(b"\r\n", _LINE_BYTES) == b"\r\n":
                return
        raise Malformed("too many trailers")
    left = framing if isinstance(framing, int) else None
    while left is None or left > 0:
        data = await inflow.some(65536 if left is None else min(left, 65536))
        if not data:
            if left is None:
                return
            raise Malformed("the body ends too early")
        left = None if left is None else left - len(data)
        await sink(data)


async def _chunk_size(inflow: Inflow) -> int:
    match = _CHUNK.fullmatch((await inflow.until(b"\r\n", _LINE_BYTES))[:-2])
    if match is None:
        raise Malformed("a chunk has no size")
    return int(match[1], 16)


def fields_of(lines: list[bytes]) -> Fields:
    """The fields of header lines without their ends. Raises Malformed."""
    out: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not (colon and FIELD_NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise Malformed("a header field is malformed")
        out.append((name.decode("ascii").lower(), value.decode("latin-1").strip(" \t")))
    return tuple(out)


def values_of(fields: Fields, name: str) -> list[str]:
    """The values of all fields of that name, which is in lower case."""
    return [v for n, v in fields if n == name]


def framing_of(fields: Fields) -> Framing | None:
    """How the header says the body ends; None when it says nothing. Raises Malformed when it says two things."""
    lengths, codings = values_of(fields, "content-length"), values_of(fields, "transfer-encoding")
    if not lengths and not codings:
        return None
    if len(lengths) + len(codings) > 1:
        raise Malformed("the length of the body is said twice")
    if codings:
        if codings[0].lower() != "chunked":
            raise Malformed("a transfer coding other than chunked")
        return "chunked"
    if not _LENGTH.fullmatch(lengths[0]):
        raise Malformed("the length of the body is not a number")
    return int(lengths[0])


@dataclass(frozen=True, slots=True)
class Request:
    """The head of one request.

    Attributes:
        method: in upper case, such as `CONNECT`.
        target: as written, printable ASCII.
        minor: 0 or 1, of HTTP/1.x.
        fields: the header.
    """

    method: str
    target: str
    minor: int
    fields: Fields = ()

    @staticmethod
    def parse(head: bytes) -> Request:
        """Takes all bytes up to and including the empty line. Raises Malformed."""
        first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        match = _START.fullmatch(first)
        if match is None:
            raise Malformed("the request line is malformed")
        return Request(match[1].decode("ascii"), match[2].decode("ascii"), int(match[3]), fields_of(lines))

    def authority(self) -> tuple[str, int]:
        """Host, as written, and port of a CONNECT. Raises Malformed."""
        host, _, digits = self.target.rpartition(":")
        port = plain_port(digits)
        if port is None or not host:
            raise Malformed("the target is not host:port")
        if framing_of(self.fields) not in (None, 0):
            raise Malformed("a CONNECT has no body")
        return host, port

    def absolute(self) -> tuple[str, str] | None:
        """Host in lower case and path with query of `http://host/path`; None for every other target."""
        match = _ABSOLUTE.fullmatch(self.target)
        if match is None or self.method not in _KEYED_METHODS:
            return None
        path = match[2] or "/"
        return match[1].lower().removesuffix(":80"), path if path.startswith("/") else f"/{path}"

    async def body(self, inflow: Inflow, limit: int, interim: Send) -> bytes:
        """The whole body, unchunked.

        Args:
            inflow: stands right behind the head.
            limit: bytes it may have.
            interim: is told to let the client go on where it waits to be told so.

        Raises:
            Malformed: it is framed wrongly or ends too early.
            Stop: it exceeds `limit`; status 413.
        """
        framing = framing_of(self.fields) or 0
        whole = bytearray()

        async def keep(data: bytes) -> None:
            whole.extend(data)
            if len(whole) > limit:
                raise Stop(f"the body of the request exceeds {limit} bytes", 413)

        if isinstance(framing, int) and framing > limit:
            await keep(bytes(limit + 1))
        if framing and [v.lower() for v in values_of(self.fields, "expect")] == ["100-continue"]:
            await interim(b"HTTP/1.1 100 Continue\r\n\r\n")
        await pour(inflow, framing, keep)
        return bytes(whole)
