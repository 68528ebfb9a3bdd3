"""File operations inside a sandbox. Standalone, standard library only, loaded by the zygote into its file worker.

The worker's root folder holds the workspace and nothing else, and it has no capabilities: wherever a link leads, it
stays inside, and the mounts decide what can be written. Every operation is bounded; the host ends one that takes too
long by killing the worker.

A frame is: length of the header and of the body (two 32-bit big-endian numbers), header (a JSON object), body (bytes).
A request's header is {"op", ...arguments}; the answer's is the result, or {"error": code, "message"}.
"""

# ruff: noqa: PTH103, PTH104, PTH108, PTH112, PTH114, PTH116, PTH118, PTH120, PTH123, BLE001
# Paths stay text as they came, pathlib would cost a third of the start, and no request may end the worker.

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
import re
import socket
import stat
import struct

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Answer = tuple[dict[str, Any], bytes]
    """The header and the body of an answer."""
    Entry = os.DirEntry[str]

MAX_FILE = 16 * 1024 * 1024
MAX_ENTRIES = 5_000
MAX_SEARCHED_FILES = 20_000
MAX_SEARCHED_BYTES = 256 * 1024 * 1024
MAX_LINE = 400
SKIPPED_FOLDERS = (".git", "node_modules", "__pycache__", ".venv", "target")


class Refused(Exception):
    """An answer that is an error: a code for programs and a message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


ERRORS = {
    errno.ENOENT: ("not-found", "does not exist"),
    errno.ENOTDIR: ("not-found", "a parent of it is not a folder"),
    errno.EISDIR: ("folder", "is a folder"),
    errno.EACCES: ("denied", "permission denied"),
    errno.EPERM: ("denied", "permission denied"),
    errno.EROFS: ("read-only", "is not writable here"),
    errno.ELOOP: ("bad-link", "is a chain of symbolic links without end"),
    errno.ENXIO: ("not-a-file", "is not a regular file"),
    errno.ENAMETOOLONG: ("bad-path", "has a name that is too long"),
    errno.ENOSPC: ("no-space", "no space left"),
    errno.EDQUOT: ("no-space", "the quota is used up"),
    errno.EFBIG: ("no-space", "is larger than a file may be here"),
}


def explain(path: str, error: OSError) -> Refused:
    """An operating system's error in the words of an answer."""
    code, text = ERRORS.get(error.errno or 0, ("failed", error.strerror or str(error)))
    if code == "not-found" and os.path.islink(path):
        code, text = "bad-link", "is a symbolic link to nothing in the workspace"
    elif code == "read-only" and (real := os.path.relpath(os.path.realpath(path))) != os.path.normpath(path):
        text = f"leads to {real}, which is not writable here"
    return Refused(code, f"{path} {text}")


def need_regular(path: str, status: os.stat_result) -> None:
    """Refuses whatever is not a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise Refused("folder", f"{path} is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise Refused("not-a-file", f"{path} is not a regular file")


def open_file(path: str, flags: int) -> int:
    """Opens a regular file; never waits for a pipe's other end."""
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        need_regular(path, os.fstat(fd))
    except Refused:
        os.close(fd)
        raise
    return fd


def contents(path: str) -> tuple[bytes, os.stat_result]:
    """All of a file of bounded size, with its status."""
    with open(open_file(path, os.O_RDONLY), "rb") as file:
        status = os.fstat(file.fileno())
        data = file.read(MAX_FILE + 1) if status.st_size <= MAX_FILE else b""
    if status.st_size > MAX_FILE or len(data) > MAX_FILE:
        raise Refused("too-large", f"{path} has {status.st_size} bytes; more than {MAX_FILE} are not read at once")
    return data, status


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def shown(name: str) -> str:
    """A file name as valid text: bytes that are no UTF-8 become replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")


# ---- reading


def read(args: dict[str, Any]) -> Answer:
    """Lines from `start` (counted from 1), `lines` many (None: all), as many as fit into `limit` bytes.

    The body is the text; `cut` says that it is only the beginning of one long line.
    """
    data, status = contents(args["path"])
    header: dict[str, Any] = {"size": len(data), "mode": stat.S_IMODE(status.st_mode), "binary": b"\0" in data[:8192]}
    if header["binary"]:
        return header, b""
    rows = data.split(b"\n")
    if not rows[-1]:
        rows.pop()
    first = max(1, args["start"])
    chosen = rows[first - 1 : None if args["lines"] is None else first - 1 + args["lines"]]
    body = b"\n".join(chosen)
    if first - 1 + len(chosen) < len(rows) or (chosen and data.endswith(b"\n")):
        body += b"\n"
    count, cut = len(chosen), len(body) > args["limit"]
    if cut:
        whole = body.rfind(b"\n", 0, args["limit"]) + 1
        cut = not whole  # not even one line fits
        body = body[: whole or args["limit"]]
        count = max(1, body.count(b"\n"))
    header.update(first=first, count=count, total=len(rows), cut=cut)
    return header, body


def walk(top: str, depth: int, skip: tuple[str, ...]) -> Iterator[tuple[str, Entry]]:
    """The entries below a folder, by name, each with its path relative to `top`. Follows no link."""
    pending = [("", iter(entries(top)))]
    while pending:
        prefix, rest = pending[-1]
        entry = next(rest, None)
        if entry is None:
            pending.pop()
            continue
        name = prefix + entry.name
        yield name, entry
        if len(pending) < depth and entry.name not in skip and entry.is_dir(follow_symlinks=False):
            try:
                pending.append((name + "/", iter(entries(entry.path))))
            except OSError:  # gone or closed to us since it was listed
                pass


def entries(folder: str) -> list[Entry]:
    """A folder's entries sorted by name."""
    with os.scandir(folder) as found:
        return sorted(found, key=lambda e: e.name)


def kind_of(entry: Entry) -> str:
    """`file`, `folder`, `link` or `other`."""
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def list_folder(args: dict[str, Any]) -> Answer:
    """[path, kind, size or None] for each entry, `depth` levels deep."""
    rows: list[list[Any]] = []
    limit = min(args["limit"], MAX_ENTRIES)
    for name, entry in walk(args["path"], args["depth"], SKIPPED_FOLDERS):
        if len(rows) == limit:
            return {"entries": rows, "more": True}, b""
        kind = kind_of(entry)
        try:
            size = entry.stat(follow_symlinks=False).st_size if kind == "file" else None
        except OSError:
            continue
        rows.append([shown(name), kind, size])
    return {"entries": rows, "more": False}, b""


def searched(top: str, glob: str | None) -> Iterator[tuple[str, str]]:
    """(path to show, path to open) of each file to search; `top` may be a single file."""
    if not os.path.isdir(top):
        yield top, top
        return
    for name, entry in walk(top, 40, SKIPPED_FOLDERS):
        wanted = glob is None or fnmatch.fnmatch(name, glob) or fnmatch.fnmatch(entry.name, glob)
        if wanted and entry.is_file(follow_symlinks=False):
            yield (name if top == "." else f"{top}/{name}"), entry.path


def search(args: dict[str, Any]) -> Answer:
    """[path, line number, line] for each match, at most `limit`; `stopped` says why a search is incomplete."""
    try:
        flags = re.IGNORECASE if args["ignore_case"] else 0
        pattern = re.compile(args["pattern"] if args["regex"] else re.escape(args["pattern"]), flags)
    except (re.error, RecursionError, OverflowError) as error:
        raise Refused("bad-pattern", f"the pattern is not a regular expression: {error}") from None
    hits: list[list[Any]] = []
    files = size = 0
    os.stat(args["path"])  # a missing start is an error, a file that vanishes later is not
    for name, path in searched(args["path"], args["glob"]):
        if files >= MAX_SEARCHED_FILES or size >= MAX_SEARCHED_BYTES:
            return {"matches": hits, "files": files, "stopped": "too much to search"}, b""
        try:
            data, _ = contents(path)
        except (OSError, Refused):
            continue
        files, size = files + 1, size + len(data)
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
            if pattern.search(line):
                hits.append([shown(name), number, line[:MAX_LINE]])
                if len(hits) >= args["limit"]:
                    return {"matches": hits, "files": files, "stopped": "the limit of matches"}, b""
    return {"matches": hits, "files": files, "stopped": ""}, b""


def hash_file(args: dict[str, Any]) -> Answer:
    """SHA-256 and size of a file of any size; `exists` is False when there is nothing at the path."""
    try:
        fd = open_file(args["path"], os.O_RDONLY)
    except FileNotFoundError:
        return {"exists": False, "sha256": None, "size": 0}, b""
    sha, size = hashlib.sha256(), 0
    with open(fd, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
            size += len(block)
    return {"exists": True, "sha256": sha.hexdigest(), "size": size}, b""


# ---- writing


def put(path: str, data: bytes, token: str) -> bool:
    """Writes a file whole or not at all; True when it is new. Keeps an existing file's mode, follows a link to a file.

    `token` names the file that is made beside it meanwhile. A write that is killed leaves that file, and the same write
    with the same token, made again, takes it away.

    A file that is a mount of its own, or lies in a folder where nothing may be created, cannot be replaced and is
    written in place: a kill in the middle leaves part of it.
    """
    target = os.path.realpath(path)
    try:
        old = os.stat(target)
    except FileNotFoundError:
        old = None
    if old is not None:
        need_regular(path, old)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        replace(target, data, 0o644 if old is None else stat.S_IMODE(old.st_mode) & 0o777, token)
    except OSError as error:
        if old is None or error.errno not in (errno.EBUSY, errno.EXDEV, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        fd = open_file(target, os.O_WRONLY | os.O_NOFOLLOW)
        with open(fd, "wb") as file:
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(fd)
    return old is None


def replace(target: str, data: bytes, mode: int, token: str) -> None:
    """Writes beside the target, makes it durable, and renames."""
    name = hashlib.sha256(token.encode()).hexdigest()[:16] if token else os.urandom(8).hex()
    beside = os.path.join(os.path.dirname(target), f".toka-{name}")
    try:
        os.unlink(beside)  # of the same write, killed earlier
    except FileNotFoundError:
        pass
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        os.rename(beside, target)
    except BaseException:
        os.unlink(beside)
        raise


def write(args: dict[str, Any]) -> Answer:
    """Makes the body the contents of a file, creating missing parent folders."""
    data = args["body"]
    if len(data) > MAX_FILE:
        raise Refused("too-large", f"{args['path']}: more than {MAX_FILE} bytes are not written at once")
    created = put(args["path"], data, str(args.get("token", "")))
    return {"created": created, "size": len(data), "sha256": digest(data)}, b""


def edit(args: dict[str, Any]) -> Answer:
    """Replaces `old`, which must occur exactly `count` times, by `new`; `dry` only tells what would be."""
    path, old, new = args["path"], args["old"].encode(), args["new"].encode()
    data, _ = contents(path)
    found = data.count(old) if old else 0
    if not found:
        raise Refused("no-match", f"{path} does not contain the old text; it must match exactly, white space included")
    if found != args["count"]:
        raise Refused("ambiguous", f"{path} contains the old text {found} times, not {args['count']}")
    result = data.replace(old, new)
    if len(result) > MAX_FILE:
        raise Refused("too-large", f"{path}: more than {MAX_FILE} bytes are not written at once")
    if not args["dry"]:
        put(path, result, str(args.get("token", "")))
    return {"count": found, "size": len(result), "before": digest(data), "after": digest(result)}, b""


# ---- serving

OPERATIONS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "read": read, "list": list_folder, "search": search, "hash": hash_file, "write": write, "edit": edit,
}  # fmt: skip


def answer(args: dict[str, Any]) -> Answer:
    """The answer to one request; never raises for what a request or a file can cause."""
    path = args.get("path", "?")
    try:
        return OPERATIONS[args["op"]](args)
    except Refused as error:
        return {"error": error.code, "message": str(error)}, b""
    except OSError as error:
        refused = explain(path, error)
        return {"error": refused.code, "message": str(refused)}, b""
    except Exception as error:
        return {"error": "failed", "message": f"{path}: {type(error).__name__}: {error}"}, b""


def exactly(connection: socket.socket, size: int) -> bytes:
    """`size` bytes; raises EOFError when the other side is gone."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = connection.recv_into(view[got:])
        if not count:
            raise EOFError
        got += count
    return bytes(data)


def serve(connection: socket.socket) -> None:
    """One request after the other until the host closes the connection."""
    try:
        while True:
            head, tail = struct.unpack("!II", exactly(connection, 8))
            args = json.loads(exactly(connection, head))
            args["body"] = exactly(connection, tail)
            header, body = answer(args)
            text = json.dumps(header).encode()
            connection.sendall(struct.pack("!II", len(text), len(body)) + text + body)
    except (EOFError, ConnectionError):
        return
