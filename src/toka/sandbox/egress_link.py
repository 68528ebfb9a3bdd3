"""One connection through an agent's egress proxy, from its first byte to its Attempt."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from toka.core.clock import Clock
from toka.sandbox.egress_credential import Credential, outbound, relay
from toka.sandbox.egress_dial import Dialer
from toka.sandbox.egress_http import HEAD_BYTES, Inflow, Malformed, Request, Stop
from toka.sandbox.egress_meter import BLOCK, Meter
from toka.sandbox.egress_rules import EgressRules

_LINGER_S: Final = 1.0
_LINGER_BYTES: Final = 256 * 1024
_SHOWN: Final = 253
_RESET: Final = struct.pack("ii", 1, 0)
_CONNECTED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_AUTHORITY: Final = re.compile(r"[A-Za-z]+://(?:[^/?#]*@)?([^/?#]*)")


@dataclass(frozen=True, slots=True)
class EgressCaps:
    """Bounds of one agent's connections; times in seconds.

    Attributes:
        connections: at one time. As many again are told that there are too many, further ones wait in the kernel.
        head_s: until the request line and header are complete.
        resolve_s: for finding the addresses of a host.
        connect_s: for trying its addresses, and again for TLS where a key is added.
        idle_s: without a byte in either direction.
        total_s: of one connection.
        request_bytes: body of a request to which a key is added.
        reply_bytes: body of the reply to it.
    """

    connections: int = 64
    head_s: float = 10.0
    resolve_s: float = 5.0
    connect_s: float = 10.0
    idle_s: float = 300.0
    total_s: float = 3600.0
    request_bytes: int = 1024 * 1024
    reply_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Attempt:
    """One connection on which a client inside asked something, or sent what could not be understood.

    It holds no key, no path and nothing of what was transferred.

    Attributes:
        host: as asked for, in lower case, shortened where it is no host name; empty when none was understood.
        port: TCP port; 0 when none was understood.
        allowed: whether the rules, the addresses of the host and the limits let it out.
        reason: one line of ASCII: the rule that allowed it, or why it was refused or cut.
        address: what was connected to; None when nothing was.
        bytes_up: let through from the sandbox to the host.
        bytes_down: let through from the host to the sandbox.
        wall_s: seconds from accepting the connection to its end.
    """

    host: str
    port: int
    allowed: bool
    reason: str
    address: str | None
    bytes_up: int
    bytes_down: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What all connections of one agent share; see Egress for the meaning of each."""

    rules: EgressRules
    clock: Clock
    report: Callable[[Attempt], None]
    dialer: Dialer
    meter: Meter
    credentials: Mapping[str, Credential]
    caps: EgressCaps


class Link:
    """One accepted connection. `run` once, then `close`, which is also right when `run` was never begun."""

    def __init__(self, client: socket.socket, terms: Terms, *, crowded: bool) -> None:
        """Takes over the client's non-blocking socket. `crowded`: it is only told that there are too many."""
        self._client = client
        self._terms = terms
        self._crowded = crowded
        self._loop = asyncio.get_running_loop()
        self._since = self._active = terms.clock.monotonic()
        self._host, self._port, self._allowed, self._reason = "", 0, False, ""
        self._address: str | None = None
        self._up = self._down = 0
        self._answered = False
        """Part of a reply has gone out, so that a refusal can no longer be told."""
        self._whole = False
        """It came to a proper end. Otherwise both sides see a reset: never a clean end of half the data."""

    def close(self) -> None:
        """Closes the client's socket."""
        _end(self._client, whole=self._whole)

    async def run(self) -> None:
        """Serves the connection to its end and reports it, unless not one byte was said."""
        try:
            await self._serve()
            self._whole = True
        except Stop as stop:
            self._reason = stop.reason
            if not self._answered:
                self._allowed = self._allowed and (stop.status != 403 or self._address is not None)
                await self._refuse(stop)
        except OSError:
            self._reason = self._host and "the client broke the connection off"
        except asyncio.CancelledError:
            self._reason = self._host and "ended with the sandbox"
            raise
        finally:
            if self._reason:
                self._terms.report(self._attempt())

    def _attempt(self) -> Attempt:
        wall_s = self._terms.clock.monotonic() - self._since
        counts = self._address, self._up, self._down, wall_s
        return Attempt(self._host, self._port, self._allowed, self._reason, *counts)

    async def _serve(self) -> None:
        inflow = Inflow(partial(self._loop.sock_recv, self._client, BLOCK))
        request = await self._request(inflow)
        if request is None:
            return
        self._terms.meter.check()
        if self._crowded:
            most = self._terms.caps.connections
            raise Stop(f"{most} connections are open, which is the limit: close one first", 503)
        if request.method == "CONNECT":
            await self._connect(request, inflow)
            return
        asked = request.absolute()
        credential = self._terms.credentials.get(asked[0]) if asked else None
        if asked is None or credential is None:
            raise Stop("only CONNECT is served, for https; plain http is not", 405)
        self._host, self._port, self._allowed = asked[0], credential.port, True
        await self._watched(self._exchange(request, inflow, asked[1], credential))

    async def _request(self, inflow: Inflow) -> Request | None:
        """The head; None when the client ended without a byte."""
        caps = self._terms.caps
        try:
            async with self._terms.clock.timeout(caps.head_s):
                head = await inflow.until(b"\r\n\r\n", HEAD_BYTES)
            if not head:
                return None
            request = Request.parse(head)
        except TimeoutError:
            raise Stop(f"the request was not complete within {caps.head_s:g} s", 408) from None
        except Malformed as e:
            raise Stop(f"the request is refused: {e}", 400) from None
        place = _AUTHORITY.match(request.target)
        self._host = (place[1] if place else request.target if request.method == "CONNECT" else "")[:_SHOWN].lower()
        return request

    async def _connect(self, request: Request, inflow: Inflow) -> None:
        try:
            host, port = request.authority()
        except Malformed as e:
            raise Stop(f"the request is refused: {e}", 400) from None
        self._host, self._port = host[:_SHOWN].lower(), port
        verdict = self._terms.rules.decide(host, port)
        if not verdict.allowed:
            raise Stop(verdict.reason, 403)
        self._allowed, self._reason = True, verdict.reason
        upstream, self._address = await self._terms.dialer.dial(host.lower(), port)
        whole = False
        try:
            self._answered = True
            await self._loop.sock_sendall(self._client, _CONNECTED)
            await self._watched(
                self._pump(self._client, upstream, inflow.rest(), up=True),
                self._pump(upstream, self._client, b"", up=False),
            )
            whole = True
        finally:
            _end(upstream, whole=whole)

    async def _pump(self, source: socket.socket, sink: socket.socket, first: bytes, *, up: bool) -> None:
        """Moves bytes until the source ends, then says so to the sink. A slow sink slows the source."""
        send = partial(self._loop.sock_sendall, sink)
        try:
            await self._forward(first, send, up=up)
            block = memoryview(bytearray(self._terms.meter.block))
            while size := await self._loop.sock_recv_into(source, block):
                await self._forward(block[:size], send, up=up)
                await asyncio.sleep(0)  # two fast sides never wait for each other, and all others would
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            raise Stop("one side broke the connection off", 502) from None

    async def _forward(
        self, data: bytes | memoryview, send: Callable[[memoryview], Awaitable[None]], *, up: bool
    ) -> None:
        """Sends within the limits of the agent. Raises Stop when they are reached, having sent what fits."""
        meter, clock = self._terms.meter, self._terms.clock
        left = memoryview(data)
        while left:
            self._active = clock.monotonic()
            asked = min(len(left), meter.block)
            passed = await meter.admit(asked, up=up)
            if up:
                self._up += passed
            else:
                self._down += passed
            await send(left[:passed])
            self._active = clock.monotonic()
            if passed < asked:
                meter.check()
            left = left[passed:]

    async def _exchange(self, request: Request, inflow: Inflow, path: str, credential: Credential) -> None:
        """A request to which the key is added, and its reply."""
        caps, host = self._terms.caps, self._host
        self._reason = "a key was added outside the sandbox"
        try:
            body = await request.body(inflow, caps.request_bytes, partial(self._loop.sock_sendall, self._client))
        except Malformed as e:
            raise Stop(f"the request is refused: {e}", 400) from None
        upstream = await self._terms.dialer.dial_tls(host, credential.port)
        self._address = upstream.address
        try:
            await self._forward(outbound(request, host, path, credential, body), upstream.send, up=True)
            status = await relay(Inflow(upstream.read), request, credential, caps.reply_bytes, self._reply)
        except (Malformed, OSError) as e:
            what = str(e) if isinstance(e, Malformed) else "the connection broke off"
            raise Stop(f"no proper reply from {host}: {what}", 502) from None
        finally:
            await upstream.close()
        self._reason += f"; the host answered {status}"

    async def _reply(self, data: bytes) -> None:
        self._answered = True
        try:
            await self._forward(data, partial(self._loop.sock_sendall, self._client), up=False)
        except OSError:
            raise Stop("the client broke the connection off", 502) from None

    async def _watched(self, *work: Coroutine[Any, Any, None]) -> None:
        """Runs all of `work` at once, within the time caps. The first Stop ends the rest and is raised."""
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                await asyncio.wait([group.create_task(w) for w in work])
                watch.cancel()
        except ExceptionGroup as group:
            stops, others = group.split(Stop)
            if stops is None or others is not None:
                raise
            raise stops.exceptions[0] from None

    async def _watch(self) -> None:
        caps, clock = self._terms.caps, self._terms.clock
        while True:
            now = clock.monotonic()
            idle, total = self._active + caps.idle_s - now, self._since + caps.total_s - now
            if idle <= 0:
                raise Stop(f"cut after {caps.idle_s:g} s without a byte", 504)
            if total <= 0:
                raise Stop(f"cut after {caps.total_s:g} s", 504)
            await clock.sleep(min(idle, total))

    async def _refuse(self, stop: Stop) -> None:
        """Answers, then waits a moment for the client to read it: closing at once would destroy the answer."""
        try:
            async with self._terms.clock.timeout(_LINGER_S):
                await self._loop.sock_sendall(self._client, stop.answer)
                self._client.shutdown(socket.SHUT_WR)
                left = _LINGER_BYTES
                while left > 0 and (data := await self._loop.sock_recv(self._client, BLOCK)):
                    left -= len(data)
            self._whole = True
        except OSError:  # it does not listen, or went away
            pass


def _end(side: socket.socket, *, whole: bool) -> None:
    if not whole:
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    side.close()
