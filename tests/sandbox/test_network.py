"""The way out, from inside real sandboxes: to servers of the test on 127.0.0.1 of the machine, and nowhere else.

Names come from a resolver of the test. No test sends anything to an address that is not loopback: what must be refused
is refused by name, by port, or by an address that was only resolved.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sandbox.test_confinement import said
from toka.core.capability import Capability
from toka.core.clock import SystemClock
from toka.sandbox import keeper, profile
from toka.sandbox.egress import Egress
from toka.sandbox.egress_dial import Dialer
from toka.sandbox.egress_link import Attempt
from toka.sandbox.egress_rules import IPAddress, is_public
from toka.sandbox.environment import PROXIED
from toka.sandbox.host import Sandbox
from toka.sandbox.keeper import Surroundings
from toka.sandbox.landlock import abi
from toka.sandbox.policy import SandboxPolicy
from toka.sandbox.profile import PROXY_PORT

HOST = "api.example.org"
LOOPBACK = "127.0.0.1"
NAMES: dict[str, Sequence[str]] = {
    HOST: (LOOPBACK,), "metadata.example.org": ("169.254.169.254",), "lan.example.org": ("10.0.0.1",),
    "six.example.org": ("fd00::1",), "mixed.example.org": (LOOPBACK, "192.168.0.1"),
}  # fmt: skip
MIB = 1 << 20

TOOLS = f"""
import errno, http.client, json, os, socket, ssl, sys, urllib.error, urllib.request
found = {{}}
def tried(act, *args):
    try:
        act(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "did"
def asked(said):
    "The proxy's answer to some bytes: status, reason."
    with socket.create_connection(("127.0.0.1", {PROXY_PORT}), 5) as proxy:
        proxy.sendall(said)
        head = b""
        while b"\\r\\n\\r\\n" not in head and (more := proxy.recv(4096)):
            head += more
    return head.decode("latin-1").split("\\r\\n")[0].split(" ", 2)[1:]
def connect(target):
    return asked(b"CONNECT " + target + b" HTTP/1.1\\r\\n\\r\\n")
"""


@dataclass
class Upstream:
    """A server on the machine's own loopback; with TLS for HOST, or echoing bytes."""

    server: asyncio.Server
    seen: list[bytes] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.sockets[0].getsockname()[1]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for HOST and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", "key", "-out", "cert"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
async def web(certificate: Path) -> AsyncIterator[Upstream]:
    """Answers every HTTPS request with what was asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        body = b"you asked " + head.split(b"\r\n")[0]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, LOOPBACK, 0, ssl=context) as server:
        yield Upstream(server, seen)


@pytest.fixture
async def plain() -> AsyncIterator[Upstream]:
    """Echoes bytes, and keeps them."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(b"")
        while data := await reader.read(65536):
            seen[-1] += data
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, LOOPBACK, 0) as server:
        yield Upstream(server, seen)


@dataclass
class Connected:
    """A sandbox with a way out, what its proxy reported, and the names that were looked up."""

    sandbox: Sandbox
    attempts: list[Attempt]
    looked_up: list[str]

    async def python(self, body: str) -> dict[str, Any]:
        """What a program found out: it runs after TOOLS and fills `found`."""
        source = f"{TOOLS}\n{textwrap.dedent(body)}\nprint(json.dumps(found))"
        result = await self.sandbox.run(["/usr/bin/python3", "-I", "-S", "-c", source], timeout_s=20)
        assert result.exit_code == 0, result
        return json.loads(result.output)


Reach = Callable[..., Awaitable[Connected]]
really_connect = Dialer._connect


async def only_loopback(dialer: Dialer, address: IPAddress, port: int, seconds: float) -> socket.socket:
    """Whatever a change breaks, no test sends anything to the network."""
    assert address.is_loopback, f"{address} would be connected to"
    return await really_connect(dialer, address, port, seconds)


@pytest.fixture
async def reach(workspace: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reach]:
    """Starts sandboxes that may reach HOST at some ports; their proxies find names in NAMES."""
    started: list[Sandbox] = []
    shutil.copy(certificate / "cert", workspace / "docs/cert")

    async def start(*ports: int, loopback: bool = True, hosts: tuple[str, ...] = (HOST,), **limits: Any) -> Connected:
        attempts: list[Attempt] = []
        looked_up: list[str] = []

        async def resolve(name: str) -> Sequence[str]:
            looked_up.append(name)
            if name not in NAMES:
                raise socket.gaierror("unknown")
            return NAMES[name]

        def local(address: IPAddress) -> bool:
            return str(address) == LOOPBACK

        monkeypatch.setattr(Dialer, "_connect", only_loopback)
        rules = {"resolve": resolve, "reachable": local if loopback else is_public}
        monkeypatch.setattr(keeper, "Egress", partial(Egress, **rules))
        granted = Capability("network-access", hosts=hosts, ports=tuple(map(str, ports or (443,))))
        policy = SandboxPolicy(("docs",), ("src",), None, network=(granted,), **limits)
        sandbox = await Sandbox.start(workspace, policy, Surroundings(SystemClock(), report=attempts.append))
        started.append(sandbox)
        return Connected(sandbox, attempts, looked_up)

    yield start
    for sandbox in started:
        await sandbox.close()


# ---- what is granted works


URLLIB = """
context = ssl.create_default_context(cafile='docs/cert')
open = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context)).open
try:
    found['answer'] = open('https://{host}:{port}/some/where', timeout=10).read().decode()
except (OSError, urllib.error.URLError) as error:
    found['answer'] = str(error)
"""


async def test_python_reaches_a_granted_host_and_it_is_reported(reach: Reach, web: Upstream) -> None:
    connected = await reach(web.port)
    found = await connected.python(URLLIB.format(host=HOST, port=web.port))
    assert found == {"answer": "you asked GET /some/where HTTP/1.1"}
    await connected.sandbox.close()
    (attempt,) = connected.attempts
    assert (attempt.host, attempt.port, attempt.allowed, attempt.address) == (HOST, web.port, True, LOOPBACK)
    assert attempt.bytes_up > 200
    assert attempt.bytes_down > 500
    assert connected.looked_up == [HOST]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_curl_reaches_a_granted_host_and_shows_why_another_is_refused(reach: Reach, web: Upstream) -> None:
    connected = await reach(web.port)
    command = "curl -sS --cacert docs/cert --max-time 10"
    assert await said(connected.sandbox, f"{command} https://{HOST}:{web.port}/x") == "you asked GET /x HTTP/1.1"
    refused = await said(connected.sandbox, f"{command} -v https://other.example.org:{web.port}/ 2>&1; true")
    assert "403 other.example.org is refused: this agent may reach api.example.org" in refused
    assert f"port 1 of {HOST} is refused" in await said(connected.sandbox, f"{command} -v https://{HOST}:1/ 2>&1; true")
    assert len(web.seen) == 1


async def test_a_refusal_reaches_programs_and_the_report_with_its_reason(reach: Reach, web: Upstream) -> None:
    connected = await reach(web.port)
    found = await connected.python(URLLIB.format(host="other.example.org", port=web.port))
    assert "403 other.example.org is refused: this agent may reach api.example.org" in found["answer"]
    await connected.sandbox.close()
    (attempt,) = connected.attempts
    assert (attempt.host, attempt.allowed, attempt.address) == ("other.example.org", False, None)
    assert attempt.reason in found["answer"]
    assert connected.looked_up == []


async def test_bytes_through_the_proxy_are_counted_per_command(reach: Reach, plain: Upstream) -> None:
    connected = await reach(plain.port)
    source = f"""{TOOLS}
with socket.create_connection(("127.0.0.1", {PROXY_PORT})) as proxy:
    proxy.sendall(b"CONNECT {HOST}:{plain.port} HTTP/1.1\\r\\n\\r\\n")
    proxy.recv(4096)
    proxy.sendall(bytes(100_000))
    proxy.shutdown(socket.SHUT_WR)
    size = 0
    while more := proxy.recv(65536):
        size += len(more)
print(size)
"""
    result = await connected.sandbox.run(["/usr/bin/python3", "-c", source], timeout_s=10)
    assert result.output == b"100000\n"
    assert (result.spent.network_up, result.spent.network_down) == (100_000, 100_000)
    assert plain.seen == [bytes(100_000)]
    quiet = await connected.sandbox.run(["true"], timeout_s=5)
    assert (quiet.spent.network_up, quiet.spent.network_down) == (0, 0)
    (attempt,) = connected.attempts
    assert attempt.reason.startswith("network-access"), "which rule allowed it"


async def test_the_way_out_is_told_by_environment_and_only_where_there_is_one(reach: Reach, workspace: Path) -> None:
    connected = await reach()
    assert set(PROXIED) <= {line.split("=")[0] for line in (await said(connected.sandbox, "env")).splitlines()}
    without = await Sandbox.start(workspace, SandboxPolicy(programs=None), Surroundings(SystemClock()))
    try:
        assert "proxy" not in (await said(without, "env")).lower()
    finally:
        await without.close()


# ---- what is not granted


async def test_tricks_with_the_host_are_refused(reach: Reach, plain: Upstream) -> None:
    """Among them the NUL byte with which a SOCKS host slipped through the filter of Claude Code."""
    port = plain.port
    connected = await reach(port)
    tricks = [
        f"{HOST}\0.evil.example:{port}", f"evil.example\0{HOST}:{port}", f"{HOST}%00.evil.example:{port}",
        f"user@{HOST}:{port}", f"evil.example#@{HOST}:{port}", f"{HOST}.:{port}", f"{HOST}:{port}:443",
        f"127.0.0.1:{port}", f"127.1:{port}", f"2130706433:{port}", f"0x7f000001:{port}", f"0177.0.0.1:{port}",
        f"[::1]:{port}", f"[::ffff:127.0.0.1]:{port}", f"localhost:{port}", f"localhost.localdomain:{port}",
        f"{HOST}.evil.example:{port}", f"evil-{HOST}:{port}", f"x.{HOST}:{port}", f"api.example.org\u3002:{port}",
        f"169.254.169.254:{port}", f"{HOST}:0{port}", f"{HOST}:{port + 65536}", f"{HOST}", f":{port}", f"*:{port}",
        f"{HOST}:{port} HTTP/1.1\r\nX: y",
    ]  # fmt: skip
    found = await connected.python(
        f"for trick in {tricks!r}:\n    found[trick] = connect(trick.encode())[0]\n"
        f"found['plain'] = connect(b'{HOST.upper()}:{port}')[0]"
    )
    assert found.pop("plain") == "200", "any case of the granted name is the granted name"
    allowed = {f"{HOST}:{port} HTTP/1.1\r\nX: y"}  # the host is the granted one; what follows is a header field
    assert {trick for trick, status in found.items() if status == "200"} <= allowed
    assert set(found.values()) <= {"200", "400", "403"}
    assert set(connected.looked_up) == {HOST}
    await connected.sandbox.close()
    assert len(connected.attempts) == len(tricks) + 1
    assert sum(attempt.allowed for attempt in connected.attempts) <= 2


@pytest.mark.parametrize(
    "name", ["metadata.example.org", "lan.example.org", "six.example.org", "mixed.example.org", HOST]
)
async def test_a_granted_name_that_leads_inwards_is_refused(reach: Reach, plain: Upstream, name: str) -> None:
    """The metadata address, a private network, a local IPv6 address, one of two, and this machine itself."""
    connected = await reach(plain.port, loopback=False, hosts=("*.example.org",))
    found = await connected.python(f"found['answer'] = connect(b'{name}:{plain.port}')")
    assert found["answer"][0] == "403"
    assert "resolves to an address outside the public network" in found["answer"][1]
    assert plain.seen == []


async def test_only_connect_is_served(reach: Reach, plain: Upstream) -> None:
    connected = await reach(plain.port)
    said_ = [
        f"GET http://{HOST}:{plain.port}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        f"POST http://{HOST}:{plain.port}/ HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", "\x05\x01\x00\r\n\r\n",
        f"CONNECT {HOST}:{plain.port} HTTP/2.0\r\n\r\n", f"connect {HOST}:{plain.port} HTTP/1.1\r\n\r\n",
        f"CONNECT {HOST}:{plain.port} HTTP/1.1\n\n", f"\x04\x01\x01\xbb{HOST}\0\r\n\r\n",
    ]  # fmt: skip
    found = await connected.python(f"for said in {said_!r}:\n    found[said] = asked(said.encode('latin-1'))[0]")
    assert set(found.values()) <= {"400", "405"}
    assert plain.seen == []


async def test_nothing_inside_changes_the_rules(reach: Reach, plain: Upstream, workspace: Path) -> None:
    """Claude Code: the filter was off after an edit of settings. These rules are a value that nobody reads again."""
    connected = await reach(plain.port)
    for path in ("src/toka.toml", "src/agent.yaml", "src/.env"):
        (workspace / path).write_text("capabilities: [network-access]\nhosts: ['*']\n")
    (workspace / "toka.toml").write_text('[policy]\nnetwork = "all"\n')
    env = {"HTTPS_PROXY": "", "NO_PROXY": "*", "TOKA_NETWORK": "all", "ALL_PROXY": ""}
    for _ in range(2):
        source = f"{TOOLS}\nprint(connect(b'other.example.org:443')[0], connect(b'{HOST}:444')[0])"
        result = await connected.sandbox.run(["/usr/bin/python3", "-c", source], env=env, timeout_s=10)
        assert result.output == b"403 403\n"
        assert connected.sandbox._zygote is not None
        await connected.sandbox._zygote.end()  # and in the sandbox that is started next


# ---- no other way


async def test_there_is_no_other_interface_route_or_name_service(reach: Reach) -> None:
    found = await (await reach()).python(
        """
        found['interfaces'] = [l.split(':')[0].strip() for l in open('/proc/self/net/dev').readlines()[2:]]
        found['routes'] = open('/proc/self/net/route').readlines()[1:]
        found['routes of IPv6'] = sorted({l.split()[-1] for l in open('/proc/self/net/ipv6_route')}
                                         if os.path.exists('/proc/self/net/ipv6_route') else [])
        found['addresses'] = sorted({l.split()[-1] for l in open('/proc/self/net/if_inet6')}
                                    if os.path.exists('/proc/self/net/if_inet6') else [])
        found['resolver'] = os.path.exists('/etc/resolv.conf')
        for name in ('api.example.org', 'localhost.example.org'):
            try:
                socket.getaddrinfo(name, 443)
                found[name] = 'did'
            except OSError as error:
                found[name] = 'refused'
        """
    )
    assert found["interfaces"] == ["lo"]
    assert found["routes"] == []
    assert set(found["routes of IPv6"]) <= {"lo"}
    assert set(found["addresses"]) <= {"lo"}
    assert not found["resolver"]
    assert found["api.example.org"] == found["localhost.example.org"] == "refused"


async def test_no_server_of_the_machine_can_be_connected_to(reach: Reach, plain: Upstream) -> None:
    """Not although it is on loopback too: that is another loopback."""
    with closing(socket.create_server((LOOPBACK, 0))) as server:
        server.setblocking(False)
        connected = await reach(plain.port)
        found = await connected.python(
            f"""
            for port in ({plain.port}, {server.getsockname()[1]}, 22, 53, 80, 443, 631, 2375):
                for address in ('127.0.0.1', '127.0.0.2', '0.0.0.0', '::1', '::ffff:127.0.0.1'):
                    found[f'{{address}} {{port}}'] = tried(socket.create_connection, (address, port), 2)
            """
        )
        assert "did" not in found.values()
        if abi() >= 4:
            assert set(found.values()) == {"EACCES"}
        assert plain.seen == []
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_no_datagram_and_no_raw_packet_leaves(reach: Reach) -> None:
    """UDP and so DNS and QUIC, ICMP, and the packets of other protocols, of IPv4 and IPv6."""
    found = await (await reach()).python(
        """
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, 4, 6):
                for protocol in (0, 1, 6, 17, 58, 132, 255):
                    found[f'{family} {kind} {protocol}'] = tried(socket.socket, family, kind, protocol)
        for family in (socket.AF_PACKET, socket.AF_NETLINK, 40, socket.AF_UNIX):
            found[f'{family}'] = tried(socket.socket, family, socket.SOCK_DGRAM)
        """
    )
    assert set(found.values()) == {"EAFNOSUPPORT"}


async def test_only_the_proxys_port_can_be_connected_to_even_in_its_own_network(reach: Reach) -> None:
    """A second mechanism: should another socket appear there, Landlock keeps commands from it."""
    found = await (await reach()).python(
        f"""
        server = socket.socket()
        server.listen()  # the kernel picks a port
        port = server.getsockname()[1]
        found['other port'] = tried(socket.create_connection, ('127.0.0.1', port), 2)
        found['bind'] = tried(socket.socket().bind, ('127.0.0.1', 4000))
        found['proxy'] = tried(socket.create_connection, ('127.0.0.1', {PROXY_PORT}), 2)
        found['IPv6'] = tried(socket.create_connection, ('::1', {PROXY_PORT}), 2)
        found['another address'] = tried(socket.create_connection, ('127.9.9.9', {PROXY_PORT}), 2)
        """
    )
    assert found.pop("proxy") == "did"
    if abi() >= 4:
        assert found.pop("other port") == found.pop("bind") == "EACCES"
        assert "did" not in found.values()
    assert found["another address"] == "ECONNREFUSED"


async def test_no_other_protocol_goes_around_the_port_rule(reach: Reach) -> None:
    """Multipath TCP (262) is a stream socket, and Landlock's rules are about TCP only."""
    found = await (await reach()).python(
        """
        for protocol in (132, 262, 33, 136):
            for family in (socket.AF_INET, socket.AF_INET6):
                found[f'{family} {protocol}'] = tried(socket.socket, family, socket.SOCK_STREAM, protocol)
        """
    )
    assert "did" not in found.values()


# ---- the listening socket

STEAL = f"""
for name, options in (('plainly', ()), ('address', (socket.SO_REUSEADDR,)), ('port', (socket.SO_REUSEPORT,)),
                      ('both', (socket.SO_REUSEADDR, socket.SO_REUSEPORT))):
    for address in ('127.0.0.1', '0.0.0.0', '::'):
        def steal():
            with socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET) as thief:
                for option in options:
                    thief.setsockopt(socket.SOL_SOCKET, option, 1)
                thief.bind((address, {PROXY_PORT}))
                thief.listen()
        found[f'{{name}} {{address}}'] = tried(steal)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", sorted({0, abi()}), ids=lambda version: f"Landlock {version}")
async def test_the_socket_of_the_proxy_cannot_be_taken_not_even_after_a_restart(
    reach: Reach, plain: Upstream, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Landlock no port can be bound at all; on an older kernel this one is taken, by every trick, for ever."""
    monkeypatch.setattr(profile, "abi", lambda: version)
    connected = await reach(plain.port)
    for round_ in range(3):
        found = await connected.python(f"{STEAL}\nfound['proxy'] = connect(b'{HOST}:{plain.port}')[0]")
        assert found.pop("proxy") == "200"
        if not version:
            found = {how: what for how, what in found.items() if not how.endswith("::")}
        assert "did" not in found.values()
        assert connected.sandbox._zygote is not None
        if round_:
            await connected.sandbox._zygote.end()
        else:
            connected.sandbox._zygote.kill()
            await connected.sandbox._zygote.gone
    await connected.sandbox.close()
    assert [a.allowed for a in connected.attempts] == [True] * 3


async def test_a_connection_ends_with_its_sandbox(reach: Reach, plain: Upstream) -> None:
    connected = await reach(plain.port)
    source = f"""{TOOLS}
proxy = socket.create_connection(("127.0.0.1", {PROXY_PORT}))
proxy.sendall(b"CONNECT {HOST}:{plain.port} HTTP/1.1\\r\\n\\r\\n")
proxy.recv(4096)
proxy.sendall(b"one")
proxy.recv(3)
proxy.recv(3)
"""
    running = asyncio.create_task(connected.sandbox.run(["/usr/bin/python3", "-c", source], timeout_s=20))
    while plain.seen != [b"one"]:
        await asyncio.sleep(0.01)
    await connected.sandbox.close()
    assert (await running).ended == "lost"
    (attempt,) = connected.attempts
    assert (attempt.allowed, attempt.bytes_up, attempt.bytes_down) == (True, 3, 3)


async def test_agents_have_ways_out_of_their_own(reach: Reach, plain: Upstream, web: Upstream) -> None:
    one, two = await reach(plain.port), await reach(web.port)
    asks = f"found['plain'] = connect(b'{HOST}:{plain.port}')[0]\nfound['web'] = connect(b'{HOST}:{web.port}')[0]"
    first, second = await asyncio.gather(one.python(asks), two.python(asks))
    assert first == {"plain": "200", "web": "403"}
    assert second == {"plain": "403", "web": "200"}


@pytest.mark.slow
async def test_a_rate_is_held_for_all_commands_together(reach: Reach, plain: Upstream) -> None:
    """The first second's worth may pass at once."""
    connected = await reach(plain.port, network_bps=8 * 50_000)
    source = f"""{TOOLS}
import time
with socket.create_connection(("127.0.0.1", {PROXY_PORT})) as proxy:
    proxy.sendall(b"CONNECT {HOST}:{plain.port} HTTP/1.1\\r\\n\\r\\n")
    proxy.recv(4096)
    began = time.monotonic()
    proxy.sendall(bytes(50_000))
    got = 0
    while got < 50_000:
        got += len(proxy.recv(65536))
print(time.monotonic() - began)
"""
    result = await connected.sandbox.run(["/usr/bin/python3", "-c", source], timeout_s=15)
    assert 0.8 < float(result.output) < 5


async def test_an_agent_without_the_grant_has_no_sockets_and_no_proxy(workspace: Path) -> None:
    sandbox = await Sandbox.start(workspace, SandboxPolicy(programs=None), Surroundings(SystemClock()))
    try:
        source = f"{TOOLS}\nprint(tried(socket.socket), tried(socket.create_connection, ('127.0.0.1', {PROXY_PORT})))"
        result = await sandbox.run(["/usr/bin/python3", "-c", source], timeout_s=10)
        assert result.output == b"EAFNOSUPPORT EAFNOSUPPORT\n"
        assert await said(sandbox, "tail -n +2 /proc/self/net/tcp") == "", "nobody listens there"
    finally:
        await sandbox.close()
