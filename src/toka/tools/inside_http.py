"""One HTTP request through the agent's proxy. Runs inside the sandbox: `python3 -c THIS`, the request in TOKA_REQUEST.

Prints one line of JSON about the reply, then the reply's body as it came. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BLOCK = 64 * 1024
DENIED = "X-Toka-Denied"
"""The header in which the proxy says why it refuses."""


def connection(ask: dict[str, Any]) -> http.client.HTTPConnection:
    """To the proxy; with TLS to the host through it, unless the proxy itself speaks TLS there and adds a key."""
    proxy, port = ask["proxy"]
    if ask["keyed"]:
        return http.client.HTTPConnection(proxy, port, timeout=ask["timeout"])
    tls = ssl.create_default_context()
    tunnel = http.client.HTTPSConnection(proxy, port, timeout=ask["timeout"], context=tls)
    tunnel.set_tunnel(ask["host"], ask["port"])
    return tunnel


def send(link: http.client.HTTPConnection, ask: dict[str, Any]) -> http.client.HTTPResponse:
    """Sends the request; its reply, of which the body is not read yet."""
    body = None if ask["body"] is None else base64.b64decode(ask["body"])
    target = ("http://" + ask["host"] if ask["keyed"] else "") + ask["path"]
    link.putrequest(ask["method"], target, skip_host=True, skip_accept_encoding=True)
    link.putheader("Host", ask["host"] if ask["port"] == 443 else f"{ask['host']}:{ask['port']}")
    for name, value in ask["headers"]:
        link.putheader(name, value.encode("utf-8"))
    if body is not None or ask["method"] in ("POST", "PUT", "PATCH"):
        link.putheader("Content-Length", str(len(body or b"")))
    link.endheaders(body)
    return link.getresponse()


def body_of(reply: http.client.HTTPResponse, limit: int) -> tuple[bytes, str]:
    """The body up to a limit, and what is the matter with it: `cut`, `broken`, or nothing."""
    kept = bytearray()
    try:
        while len(kept) <= limit:
            block = reply.read(min(BLOCK, limit + 1 - len(kept)))
            if not block:
                return bytes(kept), "broken" if reply.length else ""
            kept += block
    except (http.client.HTTPException, OSError):
        return bytes(kept[:limit]), "broken"
    return bytes(kept[:limit]), "cut"


def exchange(ask: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The request and its reply."""
    link = connection(ask)
    try:
        reply = send(link, ask)
        denied = reply.getheader(DENIED)
        if ask["keyed"] and denied:
            return {"error": denied}, b""
        body, matter = body_of(reply, ask["limit"])
        headers = [[name.lower(), value] for name, value in reply.getheaders()]
        return {"status": reply.status, "phrase": reply.reason, "headers": headers, "matter": matter}, body
    finally:
        link.close()


def why(error: Exception) -> str:
    """What went wrong, in the words of whoever knew."""
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the host's certificate is not trusted: " + error.verify_message
    text = str(error) or type(error).__name__
    _, tunnel, refused = text.partition("Tunnel connection failed: ")
    return refused.partition(" ")[2] or refused if tunnel else text


def main() -> None:
    """Asks and tells."""
    ask = json.loads(os.environ["TOKA_REQUEST"])
    host, _, port = os.environ["HTTPS_PROXY"].rpartition("/")[2].rpartition(":")
    ask["proxy"] = (host, int(port))
    body = b""
    try:
        told, body = exchange(ask)
    except (http.client.HTTPException, OSError, ValueError) as error:
        told = {"error": why(error)}
    sys.stdout.buffer.write(json.dumps(told).encode("ascii") + b"\n" + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
