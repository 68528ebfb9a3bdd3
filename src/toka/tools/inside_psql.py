"""psql with a way to its server. Runs inside the sandbox: `python3 -c THIS HOSTS PSQL ARGUMENT...`.

psql speaks to its server directly and knows no proxy. So this listens on a loopback address that belongs to nobody
else, hands what comes there through the agent's proxy to the one host that is meant, and tells psql to connect there.
HOSTS is JSON: [[host names, `*.` for all below one], [ports]] for each right. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import threading

BLOCK = 64 * 1024
HEAD = 8 * 1024


def named(rules: list[list[list[str]]], words: list[str]) -> dict[str, list[str]]:
    """The granted hosts that the arguments name, with their ports; the only one there is, where they name none."""
    found: dict[str, list[str]] = {}
    for hosts, ports in rules:
        for host in hosts:
            name = re.escape(host).replace(r"\*", r"[a-z0-9-]+(?:\.[a-z0-9-]+)*")
            for word in words:
                for match in re.finditer(rf"(?<![\w.-])({name})(?![\w.-])", word.lower()):
                    found[match[1]] = ports
    every = [(host, ports) for hosts, ports in rules for host in hosts]
    if not found and len(every) == 1 and "*" not in every[0][0]:
        return dict(every)
    return found


def listen(ports: list[str]) -> tuple[str, list[socket.socket]]:
    """An address of this machine's own that nobody uses, and a listener for each port there."""
    address = ".".join(["127", *(str(random.randrange(1, 255)) for _ in range(3))])
    return address, [socket.create_server((address, int(port))) for port in ports]


def serve(listener: socket.socket, host: str) -> None:
    """Takes connections for as long as the process lives."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=carry, args=(client, host, listener.getsockname()[1]), daemon=True).start()


def carry(client: socket.socket, host: str, port: int) -> None:
    """One connection, through the proxy to the host."""
    name, _, number = os.environ["HTTPS_PROXY"].rpartition("/")[2].rpartition(":")
    server = socket.create_connection((name, int(number)))
    server.sendall(b"CONNECT %s:%d HTTP/1.1\r\n\r\n" % (host.encode("ascii"), port))
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD:
        more = server.recv(1)
        if not more:
            break
        head += more
    status, _, reason = head.partition(b"\r\n")[0].partition(b" ")[2].partition(b" ")
    if status != b"200":
        sys.stderr.write(f"psql: {reason.decode('ascii', 'replace') or 'the proxy does not answer'}\n")
        sys.stderr.flush()
        client.close()
        return
    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client)


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Moves bytes until one side ends."""
    try:
        while True:
            data = source.recv(BLOCK)
            if not data:
                break
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def main() -> int:
    """Runs psql to its end; its exit code."""
    rules, (program, *words) = json.loads(sys.argv[1]), sys.argv[2:]
    found = named(rules, words)
    if len(found) > 1:
        sys.stderr.write(f"psql: name one of these hosts: {', '.join(sorted(found))}\n")
        return 2
    environment = dict(os.environ)
    for host, ports in found.items():
        address, listeners = listen(ports)
        for listener in listeners:
            threading.Thread(target=serve, args=(listener, host), daemon=True).start()
        environment.update(PGHOST=host, PGHOSTADDR=address, PGPORT=ports[0])
    return subprocess.run([program, *words], env=environment, check=False).returncode


if __name__ == "__main__":
    code = main()
    sys.exit(code if code >= 0 else 128 - code)
