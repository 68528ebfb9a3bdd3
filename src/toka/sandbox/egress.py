"""The way out of one agent's sandbox: a proxy on the host that connects to what the agent's rules allow.

The zygote listens on 127.0.0.1:3128 of the sandbox's own empty network namespace and hands that socket to the host. So
the listening socket is the agent's identity: nothing else can reach it, and it leads nowhere else. Clients say
`CONNECT host:port`; for hosts with a `Credential` they may also ask `http://host/path`, and the key is added out here.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from toka.core.clock import Clock
from toka.errors import SandboxError
from toka.sandbox.egress_credential import Credential
from toka.sandbox.egress_dial import Dialer, Resolve, SystemResolver
from toka.sandbox.egress_link import Attempt, EgressCaps, Link, Terms
from toka.sandbox.egress_meter import Meter
from toka.sandbox.egress_rules import EgressRules, IPAddress, is_public, plain_host

_PAUSE_S: Final = 0.2
_NO_CREDENTIALS: Final[Mapping[str, Credential]] = MappingProxyType({})


class Egress:
    """The proxy of one agent. Its rules never change; its counters outlive restarts of the sandbox.

    All that it starts runs in the event loop in which `serve` is called, and has ended when `close` returns.
    """

    def __init__(  # noqa: PLR0913 - by name, and all but three have a default
        self,
        rules: EgressRules,
        *,
        clock: Clock,
        report: Callable[[Attempt], None],
        resolve: Resolve | None = None,
        reachable: Callable[[IPAddress], bool] = is_public,
        rate_bps: int | None = None,
        max_bytes: int | None = None,
        credentials: Mapping[str, Credential] = _NO_CREDENTIALS,
        caps: EgressCaps | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Opens nothing yet.

        Args:
            rules: which hosts and ports.
            clock: all waiting and all deadlines.
            report: takes each Attempt when it has ended; must neither block nor raise.
            resolve: host name to addresses; None = the machine's name service.
            reachable: whether an address may be connected to; every address of a host must be.
            rate_bps: bits per second of all connections, both directions together; None = no limit.
            max_bytes: bytes of all connections, both directions together, ever; None = no limit.
            credentials: keys by host name in lower case.
            caps: time and size limits; None = the defaults.
            tls: how hosts with a key are verified; None = by the certificates of the system.

        Raises:
            ValueError: a limit is not positive, or a credential is for something that is no host name.
        """
        if wrong := [host for host in credentials if plain_host(host) != host]:
            raise ValueError(f"{wrong[0]!r} is not a host name in lower case")
        caps = caps or EgressCaps()
        self._resolver = SystemResolver()
        dialer = Dialer(clock, resolve or self._resolver, reachable, caps.resolve_s, caps.connect_s, tls)
        self._meter = Meter(clock, rate_bps, max_bytes)
        self._terms = Terms(rules, clock, report, dialer, self._meter, dict(credentials), caps)
        self._open = 0
        self._runners: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def bytes_up(self) -> int:
        """Bytes let through to hosts, all connections together."""
        return self._meter.up

    @property
    def bytes_down(self) -> int:
        """Bytes let through to the sandbox, all connections together."""
        return self._meter.down

    def serve(self, listener: socket.socket) -> None:
        """Begins to accept. A further call, after a restart of the sandbox, ends the earlier listener's connections.

        Args:
            listener: a listening TCP socket. It belongs to the Egress from now on, whatever happens.

        Raises:
            SandboxError: the Egress is closed.
        """
        if self._closed:
            listener.close()
            raise SandboxError("the egress of this agent is closed")
        listener.setblocking(False)
        self._runners = [runner for runner in self._runners if not runner.cancelled()]
        for runner in self._runners:
            runner.cancel()
        runner = asyncio.get_running_loop().create_task(self._run(listener))
        runner.add_done_callback(lambda _: listener.close())
        self._runners.append(runner)

    async def close(self) -> None:
        """Ends every connection and returns when all are gone. Later calls do nothing.

        Raises:
            Exception: what `report` raised, or what broke the listener; all had ended by then.
        """
        self._closed = True
        self._resolver.close()
        runners, self._runners = self._runners, []
        for runner in runners:
            runner.cancel()
        if runners:
            await asyncio.wait(runners)
        for runner in runners:
            if not runner.cancelled():
                runner.result()

    async def _run(self, listener: socket.socket) -> None:
        most = self._terms.caps.connections
        room = asyncio.Semaphore(2 * most)
        async with asyncio.TaskGroup() as group:
            while True:
                await room.acquire()
                link = Link(await self._accept(listener), self._terms, crowded=self._open >= most)

                def ended(_: asyncio.Task[None], link: Link = link) -> None:
                    link.close()
                    self._open -= 1
                    room.release()

                self._open += 1
                group.create_task(link.run()).add_done_callback(ended)

    async def _accept(self, listener: socket.socket) -> socket.socket:
        """The next connection. It waits and accepts in two steps, so that cancelling never loses a socket."""
        while True:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                await _readable(listener)
            except OSError as e:
                if e.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    raise SandboxError(f"the egress cannot accept connections: {e.strerror}") from e
                await self._terms.clock.sleep(_PAUSE_S)  # no descriptors left, most likely; some will be closed
            else:
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return client


async def _readable(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(listener, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(listener)
