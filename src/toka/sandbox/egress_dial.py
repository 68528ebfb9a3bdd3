"""From a host name to a connected socket: resolved once, every address checked, only checked addresses connected to."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import IPv4Address, ip_address
from typing import Final

from toka.core.clock import Clock
from toka.sandbox.egress_http import Stop
from toka.sandbox.egress_rules import IPAddress

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Takes a DNS name, returns its addresses as text, the best first. Raises OSError when it has none."""
_THREADS: Final = 4
_TRIED: Final = 6
"""Addresses of one host that are connected to at most."""
_ANY_PORT: Final = 9
_BUFFER: Final = 64 * 1024


class SystemResolver:
    """The machine's own name service. Its threads are its own: names that never resolve delay nobody else."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, "toka-egress-dns")

    async def __call__(self, host: str) -> Sequence[str]:
        """See Resolve."""
        found = await asyncio.get_running_loop().run_in_executor(self._pool, _lookup, host)
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Takes no more names. A thread that waits for a name server ends when that answers."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _lookup(host: str) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def is_this_machine(address: IPAddress) -> bool:
    """Whether the kernel routes an address back to this machine, as it does for its own public address. Sends nothing.

    A service may listen there that is closed to the network.
    """
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _ANY_PORT))
            return ip_address(probe.getsockname()[0]) == address
    except OSError:  # no route, or no such family
        return False


class SecureStream:
    """A TLS connection to a host whose certificate was verified."""

    def __init__(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.address = address
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """Some bytes; none at the end. Raises OSError."""
        return await self._reader.read(_BUFFER)

    async def send(self, data: memoryview) -> None:
        """Returns when the bytes are on their way or few. Raises OSError."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """Breaks the connection off and returns when its descriptor is closed."""
        self._writer.transport.abort()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass


class Dialer:
    """Connects to hosts by name. What it connects to has passed `reachable`, whatever the name resolves to later."""

    def __init__(
        self,
        clock: Clock,
        resolve: Resolve,
        reachable: Callable[[IPAddress], bool],
        resolve_s: float,
        connect_s: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Takes the deadlines, in seconds, of finding the addresses and of trying them all; see Egress for the rest."""
        self._clock = clock
        self._resolve = resolve
        self._reachable = reachable
        self._resolve_s = resolve_s
        self._connect_s = connect_s
        self._tls = tls

    async def dial(self, host: str, port: int) -> tuple[socket.socket, str]:
        """A connected non-blocking socket, which the caller closes, and the address it is connected to.

        Raises:
            Stop: 403 when any address of the host is not reachable by the rules; 502 when it has no address or none
                accepts; 504 when that takes too long.
        """
        addresses = await self._addresses(host)
        if not all(map(self._permitted, addresses)):
            raise Stop(f"{host} is refused: it resolves to an address outside the public network", 403)
        addresses = addresses[:_TRIED]
        deadline = self._clock.monotonic() + self._connect_s
        late = False
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                share = (deadline - self._clock.monotonic()) / left
                return await self._connect(address, port, share), str(address)
            except TimeoutError:
                late = True
            except OSError:
                continue
        if late:
            raise Stop(f"{host} did not accept a connection to port {port} within {self._connect_s:g} s", 504)
        raise Stop(f"{host} does not accept connections to port {port}", 502)

    async def dial_tls(self, host: str, port: int) -> SecureStream:
        """The same with TLS on top, the certificate verified for the host; the caller closes it.

        Raises:
            Stop: as `dial`; 502 also when the certificate is not trusted or TLS fails.
        """
        if self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        raw, address = await self.dial(host, port)
        try:
            with ExitStack() as on_failure:
                on_failure.callback(raw.close)
                async with self._clock.timeout(self._connect_s):
                    streams = await asyncio.open_connection(sock=raw, ssl=self._tls, server_hostname=host)
                on_failure.pop_all()
            return SecureStream(address, *streams)
        except TimeoutError:
            raise Stop(f"{host} did not set up TLS within {self._connect_s:g} s", 504) from None
        except ssl.SSLCertVerificationError:
            raise Stop(f"the certificate of {host} is not trusted", 502) from None
        except OSError:
            raise Stop(f"{host} does not speak TLS on port {port}", 502) from None

    async def _addresses(self, host: str) -> list[IPAddress]:
        try:
            async with self._clock.timeout(self._resolve_s):
                found = [ip_address(text) for text in await self._resolve(host)]
        except TimeoutError:
            raise Stop(f"the address of {host} was not found within {self._resolve_s:g} s", 504) from None
        except (OSError, ValueError):
            found = []
        if not found:
            raise Stop(f"{host} has no address", 502)
        return found

    def _permitted(self, address: IPAddress) -> bool:
        # loopback is left to `reachable`, which refuses it unless a test says otherwise
        return self._reachable(address) and (address.is_loopback or not is_this_machine(address))

    async def _connect(self, address: IPAddress, port: int, seconds: float) -> socket.socket:
        family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
        upstream = socket.socket(family, socket.SOCK_STREAM)
        try:
            upstream.setblocking(False)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with self._clock.timeout(seconds):
                await asyncio.get_running_loop().sock_connect(upstream, (str(address), port))
        except BaseException:
            upstream.close()
            raise
        return upstream
