"""The egress proxy over real sockets, all of them on 127.0.0.1; names come from a resolver of the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest

from sandbox.conftest import open_fds
from toka.core.capability import Capability
from toka.core.clock import Clock, SystemClock
from toka.errors import SandboxError
from toka.sandbox import egress_dial
from toka.sandbox.egress import Attempt, Egress, EgressCaps
from toka.sandbox.egress_dial import Dialer, SystemResolver, is_this_machine
from toka.sandbox.egress_link import Link
from toka.sandbox.egress_meter import Meter
from toka.sandbox.egress_rules import EgressRules, IPAddress, is_public
from toka.testing import ManualClock, settle

Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]
LOOPBACK = "127.0.0.1"


async def until(true: Callable[[], object], what: str = "it") -> None:
    """Lets sockets do their work until a condition holds."""
    for _ in range(5000):
        if true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{what} did not happen")


class Upstream(asyncio.Protocol):
    """One connection at a host. It keeps what it hears; `behave` decides what it says."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.heard = bytearray()
        self.ended = self.lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        self.host.seen.append(self)

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if self.host.behave:
            self.host.behave(self, data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.host.at_end:
            self.host.at_end(self)
        return self.host.at_end is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


@dataclass
class Host:
    """A server on loopback."""

    behave: Callable[[Upstream, bytes], object] | None = None
    at_end: Callable[[Upstream], object] | None = None
    port: int = 0
    seen: list[Upstream] = field(default_factory=list)
    server: Any = None

    async def start(self, **options: Any) -> Host:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Upstream(self), LOOPBACK, 0, **options)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self.server.close()
        for upstream in self.seen:
            upstream.transport.abort()
        await self.server.wait_closed()
        await until(lambda: all(u.lost for u in self.seen), "the end of the host's connections")


def echo(upstream: Upstream, data: bytes) -> None:
    upstream.transport.write(data)


class Names:
    """A name service that knows what it was told, and every other name as 127.0.0.1."""

    def __init__(self, **known: Sequence[str]) -> None:
        self.known = {name.replace("_", "."): addresses for name, addresses in known.items()}
        self.asked: list[str] = []
        self.gate: asyncio.Event | None = None

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if self.gate:
            await self.gate.wait()
        found = self.known.get(host, (LOOPBACK,))
        if not found:
            raise socket.gaierror("unknown")
        return found


def local(address: IPAddress) -> bool:
    return str(address) == LOOPBACK or is_public(address)


@dataclass
class Proxy:
    """An egress that serves on loopback, and what it reported."""

    egress: Egress
    place: tuple[str, int]
    names: Names
    attempts: list[Attempt]

    async def dial(self, said: bytes = b"") -> Wire:
        reader, writer = await asyncio.open_connection(*self.place)
        writer.write(said)
        return reader, writer

    async def ask(self, said: bytes) -> bytes:
        """What comes back until the proxy closes."""
        reader, writer = await self.dial(said)
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()

    async def tunnel(self, host: str, port: int) -> Wire:
        reader, writer = await self.dial(connect(host, port))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        return reader, writer

    async def attempt(self) -> Attempt:
        await until(lambda: self.attempts, "a report")
        [only] = self.attempts
        return only


def connect(host: str | bytes, port: int | str, *, header: str = "") -> bytes:
    name = host if isinstance(host, bytes) else host.encode()
    return b"CONNECT %b:%b HTTP/1.1\r\n%b\r\n" % (name, str(port).encode(), header.encode())


def denial(reply: bytes) -> tuple[int, str]:
    """Status and reason of a refusal, which stands in three places."""
    head, _, body = reply.decode("ascii").partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    _, code, phrase = status.split(" ", 2)
    assert f"X-Toka-Denied: {phrase}" in fields
    assert body == f"{phrase}\n"
    return int(code), phrase


def rules(*hosts: str, ports: Sequence[int | str] = (443,)) -> EgressRules:
    return EgressRules((Capability("network-access", hosts=hosts or None, ports=tuple(map(str, ports))),))


@pytest.fixture(autouse=True)
def nothing_leaves_the_machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A guard that fails must fail the test, not reach out."""
    escaped: list[IPAddress] = []
    real = Dialer._connect

    async def guarded(self: Dialer, address: IPAddress, port: int, seconds: float) -> socket.socket:
        if not address.is_loopback:
            escaped.append(address)
            raise OSError("not in a test")
        return await real(self, address, port, seconds)

    monkeypatch.setattr(Dialer, "_connect", guarded)
    yield
    assert not escaped


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """A server that echoes until told otherwise."""
    started = await Host(echo).start()
    yield started
    await started.stop()


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Proxy]]:
    """Starts proxies; afterwards each is closed and leaves neither task nor descriptor."""
    before = asyncio.all_tasks()
    proxies: list[Proxy] = []

    def make(allowed: EgressRules, *, clock: Clock | None = None, names: Names | None = None, **options: Any) -> Proxy:
        attempts: list[Attempt] = []
        names = names or Names()
        options = {"reachable": local, "resolve": names, **options}
        egress = Egress(allowed, clock=clock or SystemClock(), report=attempts.append, **options)
        listener = socket.create_server((LOOPBACK, 0))
        place = listener.getsockname()
        egress.serve(listener)
        proxies.append(Proxy(egress, place, names, attempts))
        return proxies[-1]

    yield make
    for proxy in proxies:
        await asyncio.wait_for(proxy.egress.close(), 5)
    await settle()
    assert {t for t in asyncio.all_tasks() - before if "Egress" in repr(t) or "Link" in repr(t)} == set()


Start = Callable[..., Proxy]


# --- what passes -------------------------------------------------------------------------------------------------


async def test_a_tunnel_carries_bytes_both_ways_and_is_reported_when_it_ends(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]))
    reader, writer = await proxy.tunnel("X.org", host.port)
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    assert proxy.attempts == []
    writer.close()
    attempt = await proxy.attempt()
    assert (attempt.host, attempt.port, attempt.allowed, attempt.address) == ("x.org", host.port, True, LOOPBACK)
    assert (attempt.bytes_up, attempt.bytes_down) == (5, 5) == (proxy.egress.bytes_up, proxy.egress.bytes_down)
    assert attempt.reason == f"network-access: x.org:{host.port}"
    assert 0 < attempt.wall_s < 5
    assert proxy.names.asked == ["x.org"]


async def test_bytes_sent_together_with_the_request_are_not_lost(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]))
    reader, writer = await proxy.dial(connect("x.org", host.port) + b"early" * 1000)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(5000) == b"early" * 1000
    writer.close()


async def test_a_header_that_arrives_byte_by_byte_is_understood(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]))
    reader, writer = await proxy.dial()
    for byte in connect("x.org", host.port, header="Host: x.org\r\nProxy-Connection: keep-alive\r\n"):
        writer.write(bytes([byte]))
        await writer.drain()
        await settle(2)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_the_end_of_the_client_reaches_the_host_which_may_still_answer(start: Start, host: Host) -> None:
    host.behave = None
    host.at_end = lambda up: (up.transport.write(b"you said %d" % len(up.heard)), up.transport.close())
    proxy = start(rules("x.org", ports=[host.port]))
    reader, writer = await proxy.tunnel("x.org", host.port)
    writer.write(b"x" * 300_000)
    writer.write_eof()
    assert await reader.read() == b"you said 300000"
    writer.close()
    assert (await proxy.attempt()).bytes_up == 300_000


async def test_the_end_of_the_host_reaches_the_client_which_may_go_on(start: Start, host: Host) -> None:
    host.behave = lambda up, data: data == b"end" and up.transport.write_eof()
    proxy = start(rules("x.org", ports=[host.port]))
    reader, writer = await proxy.tunnel("x.org", host.port)
    writer.write(b"end")
    assert await reader.read() == b""
    writer.write(b" and more")
    writer.write_eof()
    await until(lambda: host.seen[0].heard == b"end and more" and host.seen[0].ended)
    writer.close()


async def test_large_transfers_arrive_whole(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]))
    reader, writer = await proxy.tunnel("x.org", host.port)
    sent = bytes(range(256)) * 8192
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent
    writer.close()


async def test_a_host_that_breaks_off_is_seen_as_broken_off(start: Start, host: Host) -> None:
    host.behave = lambda up, data: up.transport.abort()
    proxy = start(rules("x.org", ports=[host.port]))
    reader, writer = await proxy.tunnel("x.org", host.port)
    server = host.seen[0].transport.get_extra_info("socket")
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.write(b"x")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert (await proxy.attempt()).reason == "one side broke the connection off"


async def test_a_slow_reader_slows_the_sender(start: Start, host: Host) -> None:
    host.behave = None
    proxy = start(rules("x.org", ports=[host.port]))
    _, writer = await proxy.tunnel("x.org", host.port)
    host.seen[0].transport.pause_reading()
    raw: socket.socket = writer.get_extra_info("socket")
    sent, still = 0, 0
    while still < 50 and sent < 64 * 1024 * 1024:
        try:
            sent += socket.socket.send(raw._sock, bytes(65536))  # type: ignore[attr-defined]
            still = 0
        except BlockingIOError:
            still += 1
            await asyncio.sleep(0.002)
    assert sent < 48 * 1024 * 1024, "the proxy keeps what the host does not take"
    writer.transport.abort()


async def test_two_fast_sides_leave_the_loop_to_others(start: Start) -> None:
    proxy = start(rules("x.org"))
    (source, full), (sink, out) = socket.socketpair(), socket.socketpair()
    for each in (source, full, sink, out):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    full.sendall(bytes(150_000))
    full.shutdown(socket.SHUT_WR)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    link = Link(source, proxy.egress._terms, crowded=False)
    await link._pump(source, sink, b"", up=True)
    task.cancel()
    link.close()
    assert turns >= 3
    for each in (full, sink, out):
        each.close()


# --- what is refused by its form or its name ---------------------------------------------------------------------

TRICKS: dict[str, tuple[bytes, int]] = {
    "NUL in the host": (connect(b"evil.com\0.allowed.org", 443), 400),
    "NUL behind the host": (connect(b"allowed.org\0", 443), 400),
    "user part": (connect("evil.com@allowed.org", 443), 403),
    "user part with port": (connect("allowed.org:443@evil.com", 443), 403),
    "dot at the end": (connect("allowed.org.", 443), 403),
    "two ports": (connect("allowed.org:443", 80), 403),
    "two ports, the first odd": (connect("evil.com:80", 443), 403),
    "full-width dot": (connect("allowed\uff0eorg", 443), 400),
    "ideographic dot": (connect("evil.com\u3002allowed.org", 443), 400),
    "international name": (connect("\u0430llowed.org", 443), 400),
    "Kelvin sign": (connect("\u212a.allowed.org", 443), 400),
    "hexadecimal address": (connect("0x7f000001", 443), 403),
    "hexadecimal parts": (connect("0x7f.0.0.1", 443), 403),
    "decimal address": (connect("2130706433", 443), 403),
    "octal address": (connect("0177.0.0.1", 443), 403),
    "short address": (connect("127.1", 443), 403),
    "address": (connect("127.0.0.1", 443), 403),
    "IPv6 address": (connect("[::1]", 443), 403),
    "IPv6 address, bare": (connect("::1", 443), 403),
    "IPv6 with a zone": (connect("[fe80::1%25eth0]", 443), 403),
    "localhost": (connect("localhost", 443), 403),
    "name without a dot": (connect("metadata", 443), 403),
    "percent": (connect("evil.com%2eallowed.org", 443), 403),
    "percent NUL": (connect("evil.com%00.allowed.org", 443), 403),
    "star": (connect("*.allowed.org", 443), 403),
    "empty host": (connect("", 443), 400),
    "empty label": (connect("a..allowed.org", 443), 403),
    "label too long": (connect("a" * 64 + ".allowed.org", 443), 403),
    "slash": (connect("evil.com/.allowed.org", 443), 403),
    "backslash": (connect("evil.com\\.allowed.org", 443), 403),
    "fragment": (connect("evil.com#.allowed.org", 443), 403),
    "query": (connect("evil.com?.allowed.org", 443), 403),
    "space in the host": (connect("evil.com allowed.org", 443), 400),
    "tab before the host": (b"CONNECT\tallowed.org:443 HTTP/1.1\r\n\r\n", 400),
    "two spaces": (b"CONNECT  allowed.org:443 HTTP/1.1\r\n\r\n", 400),
    "scheme": (connect("https://allowed.org", 443), 403),
    "no port": (b"CONNECT allowed.org HTTP/1.1\r\n\r\n", 400),
    "port 0": (connect("allowed.org", 0), 400),
    "port with zeros": (connect("allowed.org", "0443"), 400),
    "port too large": (connect("allowed.org", 65979), 400),
    "port with a sign": (connect("allowed.org", "+443"), 400),
    "port outside the list": (connect("allowed.org", 22), 403),
    "HTTP/0.9": (b"CONNECT allowed.org:443\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "method in lower case": (b"connect allowed.org:443 HTTP/1.1\r\n\r\n", 400),
    "plain GET": (b"GET http://allowed.org/ HTTP/1.1\r\nHost: allowed.org\r\n\r\n", 405),
    "plain GET, https": (b"GET https://allowed.org/ HTTP/1.1\r\n\r\n", 405),
    "GET as to a server": (b"GET / HTTP/1.1\r\nHost: allowed.org\r\n\r\n", 405),
    "two request lines": (connect("allowed.org", 443, header="CONNECT evil.com:443 HTTP/1.1\r\n"), 400),
    "a bare LF hides a line": (b"CONNECT allowed.org:443 HTTP/1.1\nCONNECT evil.com:443 HTTP/1.1\r\n\r\n", 400),
    "only LF": (b"CONNECT allowed.org:443 HTTP/1.1\n\n", 400),
    "a bare CR hides a line": (connect("allowed.org", 443, header="A: b\rC: d\r\n"), 400),
    "folded field": (connect("allowed.org", 443, header="A: b\r\n c\r\n"), 400),
    "space before the colon": (connect("allowed.org", 443, header="Host : evil.com\r\n"), 400),
    "a body": (connect("allowed.org", 443, header="Content-Length: 5\r\n") + b"hello", 400),
    "a chunked body": (connect("allowed.org", 443, header="Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", 400),
    "header too large": (connect("allowed.org", 443, header=f"A: {'b' * 9000}\r\n"), 400),
    "endless header": (b"CONNECT allowed.org:443 HTTP/1.1\r\n" + b"A: b\r\n" * 50_000, 400),
    "endless line": (b"CONNECT " + b"a" * 100_000, 400),
    "SOCKS 5": (b"\x05\x01\x00\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
}  # fmt: skip


@pytest.mark.parametrize(("said", "status"), TRICKS.values(), ids=TRICKS.keys())
async def test_a_trick_is_refused_before_any_name_is_looked_up(start: Start, said: bytes, status: int) -> None:
    """Even for an agent that may reach every public host, and with a resolver to which every name is fine."""
    proxy = start(rules(), reachable=lambda _: True)
    code, reason = denial(await proxy.ask(said))
    assert code == status
    assert proxy.names.asked == []
    attempt = await proxy.attempt()
    assert (attempt.allowed, attempt.address, attempt.reason) == (False, None, reason)
    assert (attempt.bytes_up, attempt.bytes_down) == (0, 0)
    assert (attempt.host + attempt.reason).isascii()


@pytest.mark.parametrize(
    "name",
    [
        "notallowed.org",
        "allowed.org.evil.com",
        "evil.com",
        "allowed.com",
        "xn--llowed-4nf.org",
        "a.b.allowed.org.uk",
        "other.org",
    ],
)
async def test_another_name_is_refused_with_what_is_allowed(start: Start, name: str) -> None:
    proxy = start(rules("allowed.org", "*.allowed.org"))
    assert denial(await proxy.ask(connect(name, 443))) == (
        403,
        f"{name} is refused: this agent may reach *.allowed.org, allowed.org",
    )
    assert proxy.names.asked == []
    assert (await proxy.attempt()).host == name


async def test_a_star_does_not_cover_the_name_itself(start: Start) -> None:
    proxy = start(rules("*.allowed.org"))
    assert denial(await proxy.ask(connect("allowed.org", 443)))[0] == 403


async def test_bytes_after_a_request_are_never_a_second_request(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]))
    second = connect("evil.com", host.port)
    reader, writer = await proxy.dial(connect("x.org", host.port) + second)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(len(second)) == second
    writer.close()
    assert (await proxy.attempt()).host == "x.org"
    assert proxy.names.asked == ["x.org"]


async def test_a_silent_connection_is_no_attempt(start: Start) -> None:
    proxy = start(rules("x.org"))
    _, writer = await proxy.dial()
    await until(lambda: proxy.egress._open == 1)
    writer.close()
    await until(lambda: proxy.egress._open == 0)
    assert proxy.attempts == []


# --- what is refused by its address ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "addresses",
    [
        ["169.254.169.254"], ["10.1.2.3"], ["192.168.0.1"], ["100.64.0.1"], ["0.0.0.0"], ["127.0.0.2"],
        ["224.0.0.1"], ["::1"], ["::"],
        ["::ffff:127.0.0.1"], ["::ffff:7f00:1"], ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["2001:0:1::1"],
        ["fe80::1%1"], ["fd00::1"],
        [LOOPBACK, "10.0.0.1"], [LOOPBACK, LOOPBACK, "::1"], ["10.0.0.1", LOOPBACK], [*[LOOPBACK] * 9, "10.0.0.1"],
    ],
)  # fmt: skip
async def test_a_host_with_any_address_that_is_not_public_is_refused(
    start: Start, host: Host, addresses: list[str]
) -> None:
    """127.0.0.1 stands for a public address here."""
    proxy = start(rules("x.org", ports=[host.port]), names=Names(x_org=addresses))
    code, reason = denial(await proxy.ask(connect("x.org", host.port)))
    assert (code, reason) == (403, "x.org is refused: it resolves to an address outside the public network")
    assert host.seen == []
    assert not (await proxy.attempt()).allowed


async def test_loopback_is_refused_unless_a_test_says_otherwise(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]), reachable=is_public)
    assert denial(await proxy.ask(connect("x.org", host.port)))[0] == 403
    assert host.seen == []


async def test_a_public_address_of_this_machine_is_refused(
    start: Start, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_dial, "is_this_machine", lambda address: str(address) == "8.8.8.8")
    proxy = start(rules("x.org", ports=[host.port]), names=Names(x_org=["8.8.8.8"]))
    assert denial(await proxy.ask(connect("x.org", host.port)))[0] == 403


def test_the_kernel_says_which_addresses_are_this_machine() -> None:
    assert is_this_machine(ip_address(LOOPBACK))
    assert not is_this_machine(ip_address("8.8.8.8"))
    assert not is_this_machine(ip_address("2606:4700::1111"))


async def test_a_name_is_resolved_once_and_never_again(start: Start, host: Host) -> None:
    """The second answer would be inside: DNS rebinding."""
    answers = iter([[LOOPBACK], ["10.0.0.1"]])

    async def rebinding(_: str) -> Sequence[str]:
        return next(answers)

    proxy = start(rules("x.org", ports=[host.port]), resolve=rebinding)
    _, writer = await proxy.tunnel("x.org", host.port)
    writer.close()
    assert (await proxy.attempt()).address == LOOPBACK
    assert denial(await proxy.ask(connect("x.org", host.port)))[0] == 403


async def test_the_next_address_is_tried_when_one_does_not_accept(start: Start, host: Host) -> None:
    proxy = start(
        rules("x.org", ports=[host.port]), names=Names(x_org=["127.0.0.3", LOOPBACK]), reachable=lambda _: True
    )
    _, writer = await proxy.tunnel("x.org", host.port)
    writer.close()
    assert (await proxy.attempt()).address == LOOPBACK


@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        ([], "x.org has no address"),
        (["x"], "x.org has no address"),
        ([LOOPBACK], "x.org does not accept connections to port 1"),
    ],
)
async def test_a_host_that_cannot_be_reached_is_not_a_refusal_of_policy(
    start: Start, addresses: list[str], reason: str
) -> None:
    proxy = start(rules("x.org", ports=[1]), names=Names(x_org=addresses))
    assert denial(await proxy.ask(connect("x.org", 1))) == (502, reason)
    attempt = await proxy.attempt()
    assert (attempt.allowed, attempt.address, attempt.reason) == (True, None, reason)


async def test_the_system_resolver_gives_each_address_once_and_stops_at_close() -> None:
    resolver = SystemResolver()
    assert list(await resolver("127.0.0.1")) == [LOOPBACK]  # no name, so nobody is asked
    resolver.close()
    with pytest.raises(RuntimeError):
        await resolver("127.0.0.1")


# --- time --------------------------------------------------------------------------------------------------------


async def test_a_client_that_does_not_finish_its_header_is_dropped(start: Start) -> None:
    clock = ManualClock()
    proxy = start(rules("x.org"), clock=clock)
    reader, writer = await proxy.dial(b"CONNECT x.org:443 HTTP/1.1\r\n")
    for second in range(9):
        writer.write(b"X-%d: a\r\n" % second)
        await until(lambda: proxy.egress._open == 1)
        await asyncio.sleep(0.005)
        await clock.advance(1)
    assert proxy.attempts == []
    await clock.advance(1.1)
    assert denial(await asyncio.wait_for(reader.read(), 5)) == (408, "the request was not complete within 10 s")
    writer.close()
    assert (await proxy.attempt()).host == ""


async def test_name_service_and_host_have_deadlines(start: Start, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    names = Names()
    names.gate = asyncio.Event()
    proxy = start(rules("x.org", ports=[host.port]), clock=clock, names=names)
    asked = asyncio.create_task(proxy.ask(connect("x.org", host.port)))
    await until(lambda: names.asked)
    await clock.advance(5)
    assert denial(await asked) == (504, "the address of x.org was not found within 5 s")
    names.gate.set()

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", never)
    proxy.names.known["x.org"] = [LOOPBACK, LOOPBACK]
    with socket.create_connection(proxy.place) as client:
        client.setblocking(False)
        client.sendall(connect("x.org", host.port))
        await until(lambda: len(names.asked) == 2)
        await settle()
        await clock.advance(5)
        assert len(proxy.attempts) == 1
        await clock.advance(5)
        reply = await asyncio.get_running_loop().sock_recv(client, 4096)
    assert denial(reply) == (504, f"x.org did not accept a connection to port {host.port} within 10 s")


async def test_an_idle_connection_is_cut_and_a_busy_one_is_not(start: Start, host: Host) -> None:
    clock = ManualClock()
    proxy = start(rules("x.org", ports=[host.port]), clock=clock)
    reader, writer = await proxy.tunnel("x.org", host.port)
    for _ in range(3):
        await clock.advance(200)
        writer.write(b"x")
        await reader.readexactly(1)
    await clock.advance(299)
    assert proxy.attempts == []
    await clock.advance(2)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    attempt = await proxy.attempt()
    assert (attempt.allowed, attempt.reason) == (True, "cut after 300 s without a byte")
    await until(lambda: host.seen[0].lost)


async def test_a_busy_connection_is_cut_in_the_end(start: Start, host: Host) -> None:
    clock = ManualClock()
    proxy = start(rules("x.org", ports=[host.port]), clock=clock, caps=EgressCaps(idle_s=50, total_s=100))
    reader, writer = await proxy.tunnel("x.org", host.port)
    for _ in range(3):
        await clock.advance(30)
        writer.write(b"x")
        await reader.readexactly(1)
    await clock.advance(11)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert (await proxy.attempt()).reason == "cut after 100 s"


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [{"rate_bps": 0}, {"max_bytes": 0}, {"rate_bps": -8}])
async def test_a_limit_is_positive(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Egress(rules(), clock=SystemClock(), report=lambda _: None, **wrong)  # type: ignore[arg-type]


async def test_the_bucket_holds_one_second_and_serves_in_order() -> None:
    clock = ManualClock()
    meter = Meter(clock, 8000, None)
    order: list[str] = []

    async def take(name: str, size: int) -> None:
        await meter.admit(size, up=True)
        order.append(name)

    await clock.advance(60)  # a long rest earns no more than one second
    tasks = [asyncio.create_task(take(n, s)) for n, s in [("a", 900), ("b", 600), ("c", 1), ("d", 1500)]]
    await settle()
    assert order == ["a"]
    await clock.advance(0.49)
    assert order == ["a"]
    await clock.advance(0.0101)
    assert order == ["a", "b"]
    await clock.advance(0.0011)
    assert order == ["a", "b", "c"]
    await clock.advance(1.49)
    assert order == ["a", "b", "c"]
    await clock.advance(0.02)
    assert order == ["a", "b", "c", "d"]
    await asyncio.gather(*tasks)


@pytest.mark.slow
async def test_the_rate_holds_for_both_directions_of_all_connections_together(start: Start, host: Host) -> None:
    clock = ManualClock()
    proxy = start(rules("x.org", ports=[host.port]), clock=clock, rate_bps=80_000)
    wires = [await proxy.tunnel("x.org", host.port) for _ in range(3)]
    for _, writer in wires:
        writer.write(bytes(10_000))

    def moved() -> int:

        return sum(len(u.heard) for u in host.seen) + sum(len(r._buffer) for r, _ in wires)  # type: ignore[attr-defined],

    for second in range(5):
        await until(lambda allowed=10_000 * (second + 1): moved() > allowed - 6 * 2500, "steady progress")
        await asyncio.sleep(0.02)
        assert moved() <= 10_000 * (second + 1)
        for _ in range(20):
            await clock.advance(0.05)
            await asyncio.sleep(0.002)
    await clock.advance(0.2)
    await until(lambda: moved() == 60_000)
    for _, writer in wires:
        writer.close()


async def test_the_byte_limit_lets_pass_exactly_its_bytes_and_then_nothing(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]), max_bytes=1000)
    reader, writer = await proxy.tunnel("x.org", host.port)
    writer.write(bytes(300))
    assert await reader.readexactly(300) == bytes(300)
    host.behave = None
    writer.write(bytes(500))
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    attempt = await proxy.attempt()
    reason = "the network traffic of this agent has reached its limit of 1000 bytes"
    assert (attempt.allowed, attempt.reason, attempt.bytes_up, attempt.bytes_down) == (True, reason, 700, 300)
    assert (proxy.egress.bytes_up, proxy.egress.bytes_down) == (700, 300)
    assert denial(await proxy.ask(connect("x.org", host.port))) == (403, reason)
    await until(lambda: [a.allowed for a in proxy.attempts] == [True, False])


async def test_more_connections_than_the_cap_are_told_so_and_still_more_wait(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]))
    wires = [await proxy.tunnel("x.org", host.port) for _ in range(64)]
    reason = "64 connections are open, which is the limit: close one first"
    assert denial(await proxy.ask(connect("x.org", host.port))) == (503, reason)
    assert len(host.seen) == 64
    silent = [await proxy.dial() for _ in range(64)]
    await until(lambda: proxy.egress._open == 128)
    silent.append(await proxy.dial(connect("x.org", host.port)))
    await settle()
    assert proxy.egress._open == 128
    wires[0][1].close()
    assert denial(await silent[-1][0].read())[0] == 503
    for _, writer in silent:
        writer.close()
    await until(lambda: proxy.egress._open == 63)
    wires.append(await proxy.tunnel("x.org", host.port))
    for _, writer in wires:
        writer.close()


# --- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock()], ids=["system", "manual"])
async def test_close_ends_every_connection_and_leaves_neither_task_nor_descriptor(
    start: Start, host: Host, clock: Clock
) -> None:
    fds, tasks = open_fds(), asyncio.all_tasks()
    names = Names()
    proxy = start(rules("x.org", "slow.org", ports=[host.port]), names=names, clock=clock, rate_bps=10**6)
    wires = [await proxy.tunnel("x.org", host.port) for _ in range(5)]
    for _, writer in wires[:3]:
        writer.write(bytes(10**6))
    wires += [await proxy.dial(b"CONNECT x.org") for _ in range(3)]
    names.gate = asyncio.Event()
    wires += [await proxy.dial(connect("slow.org", host.port)) for _ in range(2)]
    await until(lambda: names.asked.count("slow.org") == 2)
    wires.append(await proxy.dial(b"GET / HTTP/1.1\r\n\r\n"))  # told, and waited for
    await until(lambda: len(proxy.attempts) or proxy.egress._open == 11)
    await asyncio.wait_for(proxy.egress.close(), 5)
    assert asyncio.all_tasks() == tasks
    for _, writer in wires:
        writer.transport.abort()
    await until(lambda: all(u.lost for u in host.seen))
    await settle()
    assert open_fds() == fds
    reasons = [a.reason for a in proxy.attempts]
    assert reasons.count("ended with the sandbox") == 7
    await proxy.egress.close()


async def test_close_right_after_accepting_closes_what_was_accepted(start: Start) -> None:
    fds = open_fds()
    proxy = start(rules("x.org"))
    clients = [socket.create_connection(proxy.place) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await proxy.egress.close()
    for client in clients:
        client.close()
    assert open_fds() == fds


async def test_after_close_nothing_is_served(start: Start) -> None:
    proxy = start(rules("x.org"))
    await proxy.egress.close()
    with pytest.raises(ConnectionRefusedError):
        await proxy.dial()
    listener = socket.create_server((LOOPBACK, 0))
    with pytest.raises(SandboxError, match="closed"):
        proxy.egress.serve(listener)
    assert listener.fileno() == -1


async def test_a_new_listener_replaces_the_old_one_and_the_counters_go_on(start: Start, host: Host) -> None:
    proxy = start(rules("x.org", ports=[host.port]), max_bytes=100)
    reader, writer = await proxy.tunnel("x.org", host.port)
    writer.write(bytes(30))
    await reader.readexactly(30)
    old, listener = proxy.place, socket.create_server((LOOPBACK, 0))
    proxy.place = listener.getsockname()
    proxy.egress.serve(listener)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*old)
    reader, writer = await proxy.tunnel("x.org", host.port)
    writer.write(bytes(25))
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(26)
    writer.close()
    assert proxy.egress.bytes_up + proxy.egress.bytes_down <= 100


async def test_a_report_that_fails_closes_the_way_out_and_is_not_hidden(start: Start) -> None:
    proxy = start(rules("x.org"))

    def broken(_: Attempt) -> None:
        raise RuntimeError("the journal is gone")

    listener = socket.create_server((LOOPBACK, 0))
    egress = Egress(rules(), clock=SystemClock(), report=broken, resolve=proxy.names)
    proxy.place = listener.getsockname()
    egress.serve(listener)
    await proxy.ask(connect("localhost", 443))
    await until(lambda: listener.fileno() == -1, "the end of the listener")
    with pytest.raises(ExceptionGroup) as caught:
        await egress.close()
    assert caught.group_contains(RuntimeError, match="the journal is gone")
