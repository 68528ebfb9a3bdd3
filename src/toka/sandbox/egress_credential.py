"""Requests to which a key is added on the host, so that it is never inside the sandbox.

The client asks `http://host/path` in plain text through the proxy; the proxy asks the host over HTTPS with the key, and
hides the key in what comes back.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from toka.sandbox.egress_http import (
    FIELD_NAME,
    Fields,
    Inflow,
    Malformed,
    Request,
    Send,
    Stop,
    fields_of,
    framing_of,
    pour,
    values_of,
)

REPLY_HEAD_BYTES: Final = 32 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_WORD_CHARACTERS: Final = 8
_HOP: Final = frozenset(
    {"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)  # fmt: skip
_NOT_SENT: Final = _HOP | {"accept-encoding", "authorization", "cookie", "expect", "host", "if-range", "range"}
"""Ranges and encodings could bring an echoed key back in a form that the mask does not see."""
_NOT_RETURNED: Final = _HOP | {"alt-svc", "set-cookie"}


@dataclass(frozen=True, slots=True)
class Credential:
    """A key that is added on the host to requests for one host name.

    Attributes:
        value: the whole header value, such as `Bearer ghp_...`; the text form of a Credential does not show it.
        header: the name of the header field.
        port: where that host takes HTTPS.

    Raises:
        ValueError: header or value cannot stand in a header, or no word of the value has 8 characters (what is
            shorter could not be recognised in a reply). The message never holds the value.
    """

    value: str = field(repr=False)
    header: str = "Authorization"
    port: int = 443

    def __post_init__(self) -> None:
        """Validates."""
        if not FIELD_NAME.fullmatch(self.header.encode()) or self.header.lower() in _HOP | {"host"}:
            raise ValueError(f"{self.header!r} is not the name of a header field for a key")
        if not (self.value.isascii() and self.value.isprintable()) or not self.words():
            raise ValueError("a key is printable ASCII and has a word of at least 8 characters")

    def words(self) -> tuple[str, ...]:
        """What must not be seen: each long word of the value, a password inside Basic, and how they are escaped."""
        found = [w for w in self.value.split() if len(w) >= _WORD_CHARACTERS]
        if self.value.lower().startswith("basic "):
            try:
                decoded = base64.b64decode(self.value.split()[-1]).decode()
                found += [w for w in [decoded.partition(":")[2]] if len(w) >= _WORD_CHARACTERS]
            except (binascii.Error, UnicodeDecodeError):
                pass
        escaped = {e for w in found for e in (w, quote(w, safe=""), w.replace("/", r"\/"))}
        return tuple(sorted(escaped, key=lambda w: (-len(w), w)))


class Mask:
    """Replaces a key in passing bytes by as many asterisks, wherever the pieces are cut."""

    def __init__(self, credential: Credential) -> None:
        self._words = tuple(w.encode() for w in credential.words())
        self._pattern = re.compile(b"|".join(map(re.escape, self._words)))
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may go on of all bytes so far; what may be the beginning of a key is held back."""
        data = self.once(self._held + data)
        most = max(map(len, self._words)) - 1
        start = next((i for i in range(max(0, len(data) - most), len(data)) if self._begins(data[i:])), len(data))
        self._held = data[start:]
        return data[:start]

    def flush(self) -> bytes:
        """The bytes held back, which are no key: no more follow."""
        held, self._held = self._held, b""
        return held

    def once(self, data: bytes) -> bytes:
        """A whole piece, masked."""
        return self._pattern.sub(lambda m: b"*" * len(m[0]), data)

    def _begins(self, tail: bytes) -> bool:
        return any(w.startswith(tail) for w in self._words)


def outbound(request: Request, host: str, path: str, credential: Credential, body: bytes) -> bytes:
    """The request as it is sent to the host: without the client's credentials, with the key."""
    named = {n.strip().lower() for v in values_of(request.fields, "connection") for n in v.split(",")}
    dropped = _NOT_SENT | named | {credential.header.lower()}
    kept = [(n, v) for n, v in request.fields if n not in dropped and not n.startswith("proxy-")]
    place = host if credential.port == 443 else f"{host}:{credential.port}"
    sized = body or request.method in ("POST", "PUT", "PATCH")
    own = [("accept-encoding", "identity"), ("connection", "close"), (credential.header, credential.value)]
    own += [("content-length", str(len(body)))] if sized else []
    lines = [f"{request.method} {path} HTTP/1.1", f"host: {place}", *(f"{n}: {v}" for n, v in (*kept, *own))]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def relay(inflow: Inflow, request: Request, credential: Credential, limit: int, send: Send) -> int:
    """Passes the host's reply on: filtered, masked, redirects as they are.

    Args:
        inflow: the host's bytes.
        request: what was asked.
        credential: the key that must not come back.
        limit: bytes that the body may have.
        send: towards the client.

    Returns:
        The status.

    Raises:
        Malformed: the reply is not strict HTTP or ends too early.
        Stop: the body exceeds `limit`, or comes in a form in which the key could not be seen.
    """
    mask = Mask(credential)
    status, phrase, fields = await _reply_head(inflow, mask)
    framing = framing_of(fields)
    if any(v.lower() != "identity" for v in values_of(fields, "content-encoding")):
        raise Stop("the host answered in an encoding that was not asked for", 502)
    if isinstance(framing, int) and framing > limit:
        raise Stop(f"the reply exceeds {limit} bytes", 502)
    empty = request.method == "HEAD" or status in (204, 304)
    chunked = not empty and not isinstance(framing, int) and request.minor == 1
    kept = [(n, v) for n, v in fields if n not in _NOT_RETURNED and not n.startswith("proxy-")]
    kept += [("content-length", str(framing))] if isinstance(framing, int) else []
    kept += [("transfer-encoding", "chunked")] if chunked else []
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{n}: {v}" for n, v in kept), "connection: close", "", ""]
    await send("\r\n".join(lines).encode("latin-1"))
    passed = 0

    async def on(data: bytes) -> None:
        if data:
            await send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    async def masked(data: bytes) -> None:
        nonlocal passed
        passed += len(data)
        if passed > limit:
            raise Stop(f"the reply exceeds {limit} bytes", 502)
        await on(mask.feed(data))

    if not empty:
        await pour(inflow, "close" if framing is None else framing, masked)
        await on(mask.flush())
        if chunked:
            await send(b"0\r\n\r\n")
    return status


async def _reply_head(inflow: Inflow, mask: Mask) -> tuple[int, str, Fields]:
    """Status, phrase and fields of the final reply, masked; interim ones are dropped."""
    for _ in range(8):
        head = mask.once(await inflow.until(b"\r\n\r\n", REPLY_HEAD_BYTES))
        first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        match = _STATUS.fullmatch(first)
        if match is None:
            raise Malformed("the status line is malformed")
        if int(match[1]) >= 200:
            return int(match[1]), (match[2] or b"").decode("latin-1"), fields_of(lines)
    raise Malformed("too many interim replies")
