"""The process that makes checkpoints: alone in a sandbox without network, with a workspace and the private store.

It runs no command of an agent, and none that anything in the workspace names: git is the only program that it can
start, with the store's settings. Two kinds exist: one reads the workspace and writes the store, one writes (a part of)
the workspace and reads the store. It serves one request after the other until the host closes the control socket.

Standard library and our own files only: it runs under the system's Python (>= 3.9), from an archive in memory.
"""

from __future__ import annotations

import gc
import hashlib
import json
import marshal
import os
import signal
import socket
import struct
import sys

from toka.sandbox import kernel
from toka.sandbox.groundwork import check_mounts
from toka.workspace.operations import Operations
from toka.workspace.store import Refused, Store, write_file

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from typing import Any

MAX_MESSAGE = 256 * 1024
CACHE = "toka-seen"
DEPTH = 20_000
"""Frames of the interpreter: three for each folder that lies in another."""


def lock_down(config: dict[str, Any]) -> None:
    """Everything that cannot be undone, before the first look at the workspace."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.set_limits({"CORE": 0, "NOFILE": 4096})
    os.umask(0o077)
    check_mounts(config["mounts"])
    kernel.landlock(config["landlock"])
    if config["seccomp"]:
        kernel.seccomp(bytes.fromhex(config["seccomp"]))


def remember(operations: Operations) -> None:
    """Leaves what was seen of the workspace for the next process, so that it need not read everything again."""
    data = marshal.dumps(operations.seen())
    write_file(CACHE, hashlib.sha256(data).digest() + data)


def recall(operations: Operations) -> None:
    """Takes over what an earlier process saw; whatever is wrong with it, everything is read again."""
    try:
        with open(CACHE, "rb") as file:
            data = file.read()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            operations.recall(marshal.loads(data[32:]))
    except (OSError, ValueError, EOFError, TypeError, KeyError):
        pass


def serve(control: socket.socket, operations: Operations) -> None:
    """One request after the other, each answered on the socket that came with it."""
    while True:
        data, fds, _, _ = socket.recv_fds(control, MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        body = b""
        try:
            answer, body = operations.answer(json.loads(data))
        except Refused as error:
            answer = {"error": error.code, "message": str(error)}
        except Exception as error:
            answer = {"error": "failed", "message": f"{type(error).__name__}: {error}"}
        text = json.dumps(answer).encode()
        with socket.socket(fileno=fds[0]) as reply:
            try:
                reply.sendall(struct.pack("!I", len(text)) + text + body)
            except OSError:  # nobody waits for it any more
                pass
        gc.collect(0)


def main() -> None:
    """Locks itself down, says ready, serves."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.send(b'{"hello": true}')
    config = json.loads(control.recv(MAX_MESSAGE))
    try:
        lock_down(config)
        store = Store(config["git"], config["quota"])
        if config["writable"]:
            store.prepare()
        operations = Operations(store, config)
        if config["writable"]:
            recall(operations)
    except Exception as error:
        control.send(json.dumps({"error": str(error)}).encode())
        return
    sys.setrecursionlimit(DEPTH)
    gc.disable()  # what is remembered is much, and has no circles
    gc.freeze()
    control.send(b'{"ready": true}')
    serve(control, operations)
    store.close()
    if config["writable"]:
        remember(operations)
