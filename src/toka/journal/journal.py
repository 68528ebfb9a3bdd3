"""What a journal is, whatever keeps it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from toka.core.ids import RunId
from toka.events.event import Event
from toka.events.record import Record

LEASE_S: Final = 15.0
"""How long a lease lasts without renewal, in seconds of boot time."""
RENEW_S: Final = 5.0
"""How often it is renewed."""
STALL_S: Final = 30.0
"""How long a write waits for a database that takes nothing just now: locked by another process, or its disk is full."""
QUEUE_EVENTS: Final = 10_000
"""Events that may wait for their commit; appenders beyond that wait for room."""

GENESIS: Final = bytes(32)
"""The hash before a stream's first record."""


def chain(previous: bytes, body: str) -> bytes:
    """The next link of a stream's hash chain: SHA-256 over the previous link and the stored bytes."""
    return hashlib.sha256(previous + body.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things last, in seconds; see LEASE_S, RENEW_S and STALL_S. All processes of a directory use the same."""

    lease_s: float = LEASE_S
    renew_s: float = RENEW_S
    stall_s: float = STALL_S


@dataclass(frozen=True, slots=True)
class Holder:
    """Which process executes a run.

    Attributes:
        host: its machine's name.
        boot: the machine's boot id; another one means that the process is gone.
        pidns: identity of its pid namespace; pids of another one say nothing here.
        pid: its process id.
        started: its start time in clock ticks since boot: tells a recycled pid.
    """

    host: str
    boot: str
    pidns: str
    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to append to a run's streams.

    Attributes:
        run: the run.
        token: grows with every takeover; the fence compares it inside each append's transaction.
        epochs: the epoch of each stream that exists, already raised by one for this holder.
    """

    run: RunId
    token: int
    epochs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A lease as others see it: who, until when (seconds of boot time), and whether the holder still lives."""

    holder: Holder
    until: float
    age_s: float
    alive: bool


@dataclass(frozen=True, slots=True)
class Command:
    """A request to the executor of a run, made by another process.

    Attributes:
        id: grows; applied in this order, each once.
        run, agent: whom it concerns; an empty agent means all.
        verb: resume, pause, stop, retry, resolve, approve, deny, raise.
        arguments: of the verb.
        author: the login name of who asked.
        reason: in their words.
    """

    id: int
    run: RunId
    verb: str
    agent: str
    arguments: Mapping[str, Any]
    author: str
    reason: str


OnCommit = Callable[[Sequence[Record]], None]
"""Called in the event loop with the records of one commit, in commit order, before their appenders wake."""


class Reader(Protocol):
    """Reading needs no lease and disturbs no writer."""

    def runs(self) -> list[RunId]:
        """All runs, oldest first."""
        ...

    def read(self, run: RunId, *, after: int = 0, stream: str | None = None, limit: int | None = None) -> list[Record]:
        """Records of a run with an id above `after`, in order; of one stream ("" is the run's own) or of all."""
        ...

    def last_of(self, run: RunId, stream: str, kind: str) -> Record | None:
        """The newest record of a kind in a stream."""
        ...

    def lease(self, run: RunId) -> LeaseView | None:
        """Who executes the run; None when nobody holds a lease."""
        ...

    def commands(self, run: RunId, after: int = 0) -> list[Command]:
        """Requests with an id above `after`, in order."""
        ...

    def blob(self, digest: str) -> bytes:
        """The bytes stored under a digest. Raises NotFound, or JournalCorrupt when they are others by now."""
        ...

    def stored(self, run: RunId) -> Iterator[tuple[int, str, str, bytes]]:
        """(id, stream, body, hash) as stored, unparsed: for the audit."""
        ...

    def heads(self, run: RunId) -> Mapping[str, tuple[int, bytes]]:
        """Per stream the sequence number and hash of its last record, as the streams table has them, in its order."""
        ...

    def close(self) -> None:
        """Releases what reading holds."""
        ...


class Journal(Reader, Protocol):
    """Reading and writing. Methods that write belong to one event loop."""

    async def acquire(self, run: RunId) -> Lease:
        """Takes the run's lease, raising its token and all its streams' epochs by one.

        A holder that is dead for certain loses it at once, another one when it ran out. But while this process could
        not reach the record, a holder may have been unable to renew for the same reason: so when that lasted longer
        than a lease, one that ran out is left alone for another LEASE_S, and this waits.

        Raises:
            RunBusy: a live process holds it.
        """
        ...

    def hurry(self, lease: Lease) -> None:
        """From here what cannot be written under this lease at once is refused, not waited for."""
        ...

    async def release(self, lease: Lease) -> None:
        """Gives the lease back. Does nothing when it was lost before."""
        ...

    def holds(self, lease: Lease) -> bool:
        """Whether the lease is still this process's by its own clock: asked before each act, since fences guard only
        commits. A process that was frozen for longer than a lease finds out here.
        """
        ...

    async def bump(self, lease: Lease, stream: str) -> int:
        """Raises a stream's epoch: whoever holds the old one can append no more. Returns the new epoch.

        Raises:
            StaleEpoch: the lease is no longer the latest.
            NotFound: the run has no such stream.
        """
        ...

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        """Appends events to one stream in one transaction and returns when they are durable.

        Cancelling the caller cancels only its wait: the events are written all the same.

        Raises:
            StaleEpoch: the lease or the epoch is no longer the latest; nothing was written.
            JournalError: the write failed; nothing was written. A full disk and a locked database are waited for, up
                to STALL_S since the last write that succeeded.
        """
        ...

    async def put_blob(self, data: bytes) -> str:
        """Stores bytes under their SHA-256 (64 hex digits) and returns it, durable."""
        ...

    async def submit(
        self, run: RunId, verb: str, *, agent: str, arguments: Mapping[str, Any], by: tuple[str, str]
    ) -> int:
        """Leaves a request for the executor of a run; `by` is (author, reason). Returns its id, durable."""
        ...

    def on_commit(self, run: RunId, callback: OnCommit | None) -> None:
        """Sets who folds and publishes the commits of a run."""
        ...

    async def aclose(self) -> None:
        """Writes what is queued, then releases everything."""
        ...
