"""The private store of a workspace's checkpoints: a bare git repository that nobody but us writes or configures.

Its folder is the working folder of the process. Objects and refs are written here, in git's own formats; git itself is
called to read, to compare and to clean up, with nothing but what stands in this file to configure it.
Standard library only: it runs inside the sandbox, under the system's Python (>= 3.9).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import subprocess

from toka.workspace.packs import BLOCK, FOLDER, Full, Pack, names_in, object_id, sync_folder, used

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

CONFIG = """[core]
	repositoryformatversion = 0
	filemode = true
	bare = true
	hooksPath = /dev/null
	fsmonitor = false
	logAllRefUpdates = false
	attributesFile = /dev/null
	excludesFile = /dev/null
	pager = cat
	bigFileThreshold = 32m
[diff]
	external =
	renames = false
[gc]
	auto = 0
[maintenance]
	auto = false
[pack]
	threads = 1
	windowMemory = 64m
[repack]
	writeBitmaps = false
"""
FILES = {
    "HEAD": "ref: refs/heads/none\n",
    "config": CONFIG,
    "info/attributes": "* -text -filter -ident -working-tree-encoding\n",
}
"""What makes a folder a repository, and what git may think of its contents: nothing."""
VARIABLES = {
    "GIT_DIR": ".", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_COUNT": "0", "GIT_ATTR_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1", "GIT_NO_LAZY_FETCH": "1", "GIT_PAGER": "cat", "PAGER": "cat", "GIT_EDITOR": "false",
    "GIT_ALLOW_PROTOCOL": "none", "GIT_LITERAL_PATHSPECS": "1", "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "LC_ALL": "C",
}  # fmt: skip
"""All that git finds in its environment."""
LOCK, GENERATION, PLAN = "toka-lock", "toka-generation", "toka-plan-"
RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
REFS = "refs/toka"
ID = re.compile(r"[0-9a-f]{40}")


class Refused(Exception):
    """Something that cannot be done, with a code for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Store:
    """The repository in the working folder.

    Args:
        git: the program.
        quota: bytes that the store may have; None = no bound.
    """

    def __init__(self, git: str, quota: int | None) -> None:
        self._git = git
        self._quota = quota
        self._reader: subprocess.Popen[bytes] | None = None
        self._generation = ""
        self.known: set[bytes] = set()
        """The names of all objects that lie in it."""
        self.pack: Pack | None = None

    def prepare(self) -> None:
        """Makes what is missing of the repository."""
        for folder in (FOLDER, "objects/info", "info", REFS):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        for name, text in FILES.items():
            if not os.path.exists(name) or read_text(name) != text:
                write_file(name, text.encode())

    # ---- writing

    @contextlib.contextmanager
    def shared(self) -> Generator[bool, None, None]:
        """Around each use: nothing is cleaned away meanwhile. Gives whether something was, since the last use."""
        with locked(fcntl.LOCK_SH):
            now = read_text(GENERATION) if os.path.exists(GENERATION) else "0"
            fresh = now != self._generation
            if fresh:
                self._generation = now
                self.load()
            yield fresh

    def load(self) -> None:
        """Learns which objects there are."""
        self.close()  # it may hold packs that are gone
        self.known = set()
        for name in os.listdir(FOLDER):
            if name.endswith(".idx"):
                self.known.update(names_in(f"{FOLDER}/{name}"))

    @contextlib.contextmanager
    def writing(self) -> Generator[Pack, None, None]:
        """Around what adds objects: all of them are in the store, on disk, at its end, or none is.

        Raises:
            Refused: the quota does not allow it, or the disk has no room.
        """
        room = 1 << 62 if self._quota is None else self._quota - used()
        pack = self.pack = Pack(room)
        try:
            yield pack
            pack.seal()
            self.known.update(pack.entries)
        except Full:
            raise Refused(
                "quota", f"the checkpoint does not fit: its store may have {self._quota} bytes, {used()} are used"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise Refused("disk", f"the checkpoint does not fit: {error.strerror}") from None
            raise
        finally:
            self.pack = None
            pack.abandon()

    def add(self, kind: int, data: bytes) -> bytes:
        """Adds an object, if it is new, within `writing`; its name."""
        name = object_id(kind, data)
        assert self.pack is not None
        if name not in self.known and name not in self.pack.entries:
            self.pack.add(name, kind, data)
        return name

    def packs(self) -> int:
        """How many packs there are; the fewer, the faster git finds something."""
        return sum(name.endswith(".pack") for name in os.listdir(FOLDER))

    def refer(self, run: str, commit: str) -> None:
        """Keeps a commit for a run, until `forget`."""
        if not RUN.fullmatch(run) or ".." in run or run.endswith((".lock", ".")):
            raise Refused("bad-run", f"{run!r} cannot be the name of a run")
        folder = f"{REFS}/{run}"
        if not os.path.exists(f"{folder}/{commit}"):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            write_file(f"{folder}/{commit}", commit.encode() + b"\n")
            sync_folder(folder)

    def references(self, run: str | None = None) -> list[tuple[str, str]]:
        """(run, commit) of all that is kept."""
        found: list[tuple[str, str]] = []
        for name in sorted(os.listdir(REFS)) if run is None else [run]:
            folder = f"{REFS}/{name}"
            if RUN.fullmatch(name) and os.path.isdir(folder):
                found += [(name, commit) for commit in sorted(os.listdir(folder)) if ID.fullmatch(commit)]
        return found

    def forget(self, runs: list[str]) -> tuple[int, int]:
        """Drops what is kept for some runs, and all that nobody keeps then; how many references, and bytes freed."""
        with locked(fcntl.LOCK_EX):
            before, dropped = used(), 0
            for run, commit in [pair for name in runs for pair in self.references(name)]:
                os.unlink(f"{REFS}/{run}/{commit}")
                dropped += 1
                with contextlib.suppress(OSError):
                    os.rmdir(f"{REFS}/{run}")
            for name in os.listdir("."):
                if name.startswith(PLAN):
                    os.unlink(name)
            # First, so that whoever finds packs gone after a kill also finds that something was cleaned.
            write_file(GENERATION, os.urandom(8).hex().encode())
            self.close()
            for name in os.listdir(FOLDER):
                if name.startswith("tmp_"):
                    os.unlink(f"{FOLDER}/{name}")
            self.git("repack", "-a", "-d", "-q")
            if not self.references():
                for name in os.listdir(FOLDER):
                    os.unlink(f"{FOLDER}/{name}")
            self.git("prune", "--expire=now")
            return dropped, max(0, before - used())

    # ---- reading

    def git(self, *args: str, given: bytes = b"", also: dict[str, str] | None = None, fine: int = 0) -> bytes:
        """Runs one git command; what it says. Exit codes up to `fine` are no failure."""
        done = subprocess.run(
            [self._git, *args], input=given, capture_output=True, env={**VARIABLES, **(also or {})}, check=False
        )
        if not 0 <= done.returncode <= fine:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise Refused("damaged", f"git {args[0]} failed in the store of checkpoints: {said}")
        return done.stdout

    def _ask(self, name: str) -> tuple[str, int]:
        """Asks the resident reader for an object: kind and size; its contents come next."""
        if self._reader is None:
            self._reader = subprocess.Popen(
                [self._git, "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=VARIABLES,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        stdin, stdout = self._reader.stdin, self._reader.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(name.encode() + b"\n")
        stdin.flush()
        words = stdout.readline().split()
        if len(words) != 3:
            raise Refused("damaged" if words else "lost", f"the store of checkpoints has no object {name}")
        return words[1].decode(), int(words[2])

    def read(self, name: bytes | str, kind: str) -> bytes:
        """An object's contents.

        Raises:
            Refused: it is not there, or of another kind.
        """
        text = name if isinstance(name, str) else name.hex()
        found, size = self._ask(text)
        assert self._reader is not None
        assert self._reader.stdout is not None
        data = self._reader.stdout.read(size + 1)[:-1]
        if found != kind or len(data) != size:
            raise Refused("damaged", f"the store of checkpoints has a damaged object {text}")
        return data

    def copy(self, name: str, fd: int) -> None:
        """Writes a blob to a file."""
        found, size = self._ask(name)
        assert self._reader is not None
        out = self._reader.stdout
        assert out is not None
        left = size
        while left:
            block = out.read(min(left, BLOCK))
            if not block or found != "blob":
                raise Refused("damaged", f"the store of checkpoints has a damaged object {name}")
            left -= len(block)
            view = memoryview(block)
            while view:
                view = view[os.write(fd, view) :]
        out.read(1)

    def close(self) -> None:
        """Ends the resident reader."""
        reader, self._reader = self._reader, None
        if reader is not None:
            for pipe in (reader.stdin, reader.stdout):
                assert pipe is not None
                pipe.close()
            reader.wait()


@contextlib.contextmanager
def locked(how: int) -> Generator[None, None, None]:
    """Holds the store's own lock: for sharing by those who use it, alone by whoever cleans it."""
    try:
        fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # the store is read-only here
        fd = os.open(LOCK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def read_text(path: str) -> str:
    """A small file of ours."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def write_file(path: str, data: bytes) -> None:
    """Replaces a file of ours, whole or not at all, on disk when it returns."""
    beside = f"{path}.{os.urandom(4).hex()}.tmp"
    with open(beside, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, path)


def commit_text(tree: bytes, note: dict[str, Any], seconds: int) -> bytes:
    """A commit without parents whose message carries a note as trailers: `Toka-Run: ...`."""
    who = b"Toka <toka@localhost> %d +0000" % seconds
    lines = [f"Toka-{key.capitalize()}: {_line(str(value))}" for key, value in note.items()]
    message = "checkpoint\n\n" + "\n".join(lines) + "\n"
    head = b"tree " + tree.hex().encode() + b"\nauthor " + who + b"\ncommitter " + who + b"\n\n"
    return head + message.encode("utf-8", "replace")


def _line(text: str) -> str:
    """On one line, whatever was in it; JSON when that takes something else than the text itself."""
    return text if text.isprintable() and not text.startswith('"') and text.strip() == text else json.dumps(text)


def read_commit(data: bytes) -> tuple[str, dict[str, str]]:
    """The tree and the note of a commit of ours."""
    head, _, message = data.partition(b"\n\n")
    tree = head.split(b"\n", 1)[0].split(b" ")[1].decode()
    note: dict[str, str] = {}
    for line in message.decode("utf-8", "replace").splitlines():
        key, colon, value = line.partition(": ")
        if colon and key.startswith("Toka-"):
            note[key[5:].lower()] = json.loads(value) if value.startswith('"') else value
    return tree, note
