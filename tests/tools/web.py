"""A web of one host on the machine's own loopback, and sandboxes whose proxies find names there and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from toka.core.clock import SystemClock
from toka.sandbox import keeper
from toka.sandbox.egress import Egress
from toka.sandbox.egress_credential import Credential
from toka.sandbox.egress_dial import Dialer
from toka.sandbox.egress_link import Attempt
from toka.sandbox.egress_rules import IPAddress
from toka.sandbox.keeper import Surroundings

HOST = "api.example.org"
LOOPBACK = "127.0.0.1"
_really_connect = Dialer._connect


def certificate(folder: Path) -> Path:
    """Makes a certificate for HOST, `cert`, with its key."""
    folder.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", "key", "-out", "cert"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@dataclass
class Web:
    """A server that answers each request with the next of `replies`, the last one for ever.

    Attributes:
        replies: whole replies, as bytes.
        seen: each request: its head and its body.
    """

    folder: Path
    replies: list[bytes] = field(default_factory=list)
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)
    server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self.server is not None
        return self.server.sockets[0].getsockname()[1]

    async def start(self, *, tls: bool = True) -> None:
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.folder / "cert", self.folder / "key")
        self.server = await asyncio.start_server(self._serve, LOOPBACK, 0, ssl=context)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            sizes = [line.split(":")[1] for line in head.lower().splitlines() if line.startswith("content-length:")]
            self.seen.append((head, await reader.readexactly(int(sizes[0])) if sizes else b""))
            writer.write(self.replies.pop(0) if len(self.replies) > 1 else self.replies[0])
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def around(
        self, monkeypatch: pytest.MonkeyPatch, credentials: Mapping[str, Credential] | None = None
    ) -> Surroundings:
        """For sandboxes whose proxy finds HOST, and every name below example.org, on this machine."""

        async def resolve(name: str) -> Sequence[str]:
            self.looked_up.append(name)
            if not name.endswith("example.org"):
                raise socket.gaierror("unknown")
            return [LOOPBACK]

        async def connect(dialer: Dialer, address: IPAddress, port: int, seconds: float) -> socket.socket:
            assert address.is_loopback, f"{address} would be connected to"
            return await _really_connect(dialer, address, port, seconds)

        def local(address: IPAddress) -> bool:
            return str(address) == LOOPBACK

        monkeypatch.setattr(Dialer, "_connect", connect)
        tls = ssl.create_default_context(cafile=str(self.folder / "cert"))
        monkeypatch.setattr(keeper, "Egress", partial(Egress, resolve=resolve, reachable=local, tls=tls))
        return Surroundings(SystemClock(), report=self.attempts.append, credentials=credentials or {})


def reply(body: bytes = b"", status: str = "200 OK", **fields: str) -> bytes:
    """A whole reply; fields are written content_type="text/plain"."""
    named = {"content-length": str(len(body)), **{k.replace("_", "-"): v for k, v in fields.items()}}
    head = "".join(f"{k}: {v}\r\n" for k, v in named.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body
