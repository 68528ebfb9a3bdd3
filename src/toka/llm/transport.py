"""The HTTP transport under every vendor SDK: aiohttp below, hardened.

What it guarantees for each request, whatever the server does:

- a total deadline: connecting, sending, waiting and reading the whole body; one byte a second does not outlast it;
- a cap on the body, counted after decompression, so that neither a huge reply nor a compressed one fills the memory;
- a successful reply is JSON, or it is refused before its body is read;
- redirects are not followed: a key never travels to another host;
- TLS certificates are verified, and proxies in the environment are ignored unless asked for.

Failures are httpx2 exceptions, which the SDKs understand.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
from yarl import URL

MIB: Final = 1024 * 1024
_DROPPED: Final = frozenset((b"host", b"content-length", b"accept-encoding", b"connection"))
"""Request headers that aiohttp sets by itself."""
_KEPT: Final = frozenset(
    ("content-type", "retry-after", "retry-after-ms", "request-id", "x-request-id", "x-should-retry")
)
"""Reply headers that the SDKs or we look at; the others (cookies above all) are dropped."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """Bounds of one transport.

    Attributes:
        connections: most connections at a time, over all hosts; further requests wait, inside their deadline. 0: no
            bound.
        connect_s: seconds to get a connection, TLS included, at most; the deadline may be shorter.
        deadline_s: seconds for a request that sets no timeout of its own.
        body_bytes: largest body, in bytes, after decompression.
        proxies_from_environment: whether HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY count.
    """

    connections: int = 1000
    connect_s: float = 20.0
    deadline_s: float = 600.0
    body_bytes: int = 32 * MIB
    proxies_from_environment: bool = False


class BodyTooLarge(httpx2.TransportError):
    """The body is larger than the cap. The connection was closed; what came was thrown away."""


class NotJson(httpx2.TransportError):
    """A reply with status 2xx is not JSON: no model API answers at this address, or something in between does."""


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends httpx2 requests through one aiohttp session.

    Bound to the event loop of its first request. Replies to requests that ask for JSON are read whole before they are
    returned, so no connection is ever left to the caller.
    """

    def __init__(self, settings: TransportSettings | None = None) -> None:
        self._settings = settings or TransportSettings()
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Makes one request.

        The deadline is the request's read timeout, taken as the total (httpx2 has no total of its own).

        Raises:
            httpx2.TimeoutException: the deadline passed, or no connection came in time.
            httpx2.ConnectError: no connection (name, address, TLS).
            httpx2.ReadError: the connection broke after the request was sent.
            httpx2.RemoteProtocolError: what came is not HTTP.
            BodyTooLarge: see the class.
            NotJson: see the class.
        """
        session = self._session or self._open()
        total = _deadline(request, self._settings.deadline_s)
        timeout = aiohttp.ClientTimeout(
            total=total, connect=None, sock_connect=min(self._settings.connect_s, total), ceil_threshold=30
        )
        body = request.content if hasattr(request, "_content") else await request.aread()
        headers = [(_decoded(k), _decoded(v)) for k, v in request.headers.raw if k.lower() not in _DROPPED]
        url = URL(str(request.url), encoded=True)
        try:
            async with session.request(
                request.method,
                url,
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                proxy=self._proxy(request.url) if self._settings.proxies_from_environment else None,
            ) as reply:
                content = await self._body(reply)
                return httpx2.Response(reply.status, headers=_kept(reply), content=content, request=request)
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            raise _mapped(e, total, request) from e

    async def _body(self, reply: aiohttp.ClientResponse) -> bytes:
        """The whole body; leaving the reply's context early closes its connection."""
        status = reply.status
        if 200 <= status < 300 and not _is_json(reply.headers.get("content-type", "")):
            reply.close()
            raise NotJson(f"status {status} with content type {reply.headers.get('content-type', 'none')!r}, not JSON")
        cap = self._settings.body_bytes
        length = reply.content_length
        if length is not None and length > cap:
            reply.close()
            raise BodyTooLarge(f"the reply announces {length} bytes; at most {cap} are read")
        chunks: list[bytes] = []
        size = 0
        async for chunk in reply.content.iter_any():
            size += len(chunk)
            if size > cap:
                chunks.clear()
                reply.close()
                raise BodyTooLarge(f"the reply is larger than {cap} bytes")
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _proxy(self, url: httpx2.URL) -> str | None:
        if proxy_bypass(f"{url.host}:{url.port}" if url.port else url.host):
            return None
        proxies = getproxies()
        return proxies.get(url.scheme) or proxies.get("all")

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=self._settings.connections, limit_per_host=0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # it would also read ~/.netrc
            headers={"Accept-Encoding": "identity"},
        )
        return self._session

    async def aclose(self) -> None:
        """Closes all connections. Safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # lets closed sockets leave the loop


@lru_cache(maxsize=256)
def _decoded(text: bytes) -> str:
    """A header's name or value: nearly all requests have the same ones, and they live as long as the wait."""
    return text.decode("latin-1")


def _deadline(request: httpx2.Request, default: float) -> float:
    timeout = request.extensions.get("timeout")
    read = timeout.get("read") if timeout else None
    return default if read is None else min(default, read)


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


def _kept(reply: aiohttp.ClientResponse) -> list[tuple[str, str]]:
    return [(k, v) for k, v in reply.headers.items() if k.lower() in _KEPT]


def _mapped(error: Exception, total: float, request: httpx2.Request) -> httpx2.TransportError:
    """The httpx2 exception for a failure of aiohttp."""
    where = f"{request.url.host}:{request.url.port or ''}".rstrip(":")
    text = f"{where}: {_why(error)}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return httpx2.ConnectTimeout(f"{where}: no connection in time", request=request)
    if isinstance(error, TimeoutError):
        return httpx2.ReadTimeout(f"{where}: no complete reply within {total:g} s", request=request)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL | aiohttp.ClientProxyConnectionError):
        return httpx2.ConnectError(text, request=request)
    if isinstance(error, aiohttp.ClientResponseError):
        return httpx2.RemoteProtocolError(text, request=request)
    return httpx2.ReadError(text, request=request)


def _why(error: Exception) -> str:
    """A failure of aiohttp in words of ours, where its own show Python's values."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "")
        return "the server's certificate is not accepted" + (f": {reason}" if reason else "")
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return (os.strerror(number) if number and number > 0 else error.os_error.strerror or "no connection").lower()
    if isinstance(error, aiohttp.ClientResponseError):
        return "what answers does not speak HTTP"
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error) or "the connection broke"
