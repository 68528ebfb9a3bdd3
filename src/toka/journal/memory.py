"""A journal in memory: the same promises but durability. For tests, and for benchmarks of everything else."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toka.core.clock import Clock
from toka.core.ids import RunId
from toka.errors import JournalError, NotFound, RunBusy, StaleEpoch
from toka.events.event import Event
from toka.events.record import Record, decode, encode
from toka.journal.holder import this_holder
from toka.journal.journal import GENESIS, LEASE_S, Command, Lease, LeaseView, OnCommit, chain


class MemoryJournal:
    """See Journal. All holders are this process; a held lease is refused until it is released."""

    def __init__(self, clock: Clock) -> None:
        """An empty journal."""
        self._clock = clock
        self._rows: list[tuple[str, str, str, bytes]] = []
        self._heads: dict[tuple[str, str], tuple[int, bytes]] = {}
        self._epochs: dict[str, dict[str, int]] = {}
        self._tokens: dict[str, int] = {}
        self._held: dict[str, float] = {}
        self._commands: list[Command] = []
        self._blobs: dict[str, bytes] = {}
        self._publish: dict[str, OnCommit] = {}

    def runs(self) -> list[RunId]:
        """See Reader."""
        return [RunId(run) for run, stream in self._heads if not stream]

    def read(self, run: RunId, *, after: int = 0, stream: str | None = None, limit: int | None = None) -> list[Record]:
        """See Reader."""
        found = [
            decode(i, body)
            for i, (r, s, body, _) in enumerate(self._rows, 1)
            if r == run and i > after and stream in (None, s)
        ]
        return found[:limit]

    def last_of(self, run: RunId, stream: str, kind: str) -> Record | None:
        """See Reader."""
        return next((r for r in reversed(self.read(run, stream=stream)) if r.to_json()["kind"] == kind), None)

    def lease(self, run: RunId) -> LeaseView | None:
        """See Reader."""
        if run not in self._held:
            return None
        age = self._clock.boottime() - self._held[run]
        return LeaseView(this_holder(), self._held[run] + LEASE_S, age, alive=True)

    def commands(self, run: RunId, after: int = 0) -> list[Command]:
        """See Reader."""
        return [c for c in self._commands if c.run == run and c.id > after]

    def blob(self, digest: str) -> bytes:
        """See Reader."""
        if digest not in self._blobs:
            raise NotFound(f"no blob {digest}")
        return self._blobs[digest]

    def stored(self, run: RunId) -> Iterator[tuple[int, str, str, bytes]]:
        """See Reader."""
        rows = [(i, s, body, link) for i, (r, s, body, link) in enumerate(self._rows, 1) if r == run]
        yield from sorted(rows, key=lambda row: (row[1], row[0]))

    def heads(self, run: RunId) -> Mapping[str, tuple[int, bytes]]:
        """See Reader."""
        return {s: head for (r, s), head in self._heads.items() if r == run}

    def close(self) -> None:
        """See Reader."""

    async def acquire(self, run: RunId) -> Lease:
        """See Journal."""
        await asyncio.sleep(0)
        if run in self._held:
            raise RunBusy(f"run {run} is being executed by this process")
        self._held[run] = self._clock.boottime()
        self._tokens[run] = self._tokens.get(run, 0) + 1
        epochs = self._epochs.setdefault(run, {})
        for stream in epochs:
            epochs[stream] += 1
        return Lease(run, self._tokens[run], dict(epochs))

    def hurry(self, lease: Lease) -> None:
        """Nothing is ever waited for."""

    async def release(self, lease: Lease) -> None:
        """See Journal."""
        await asyncio.sleep(0)
        if self._tokens.get(lease.run) == lease.token:
            self._held.pop(lease.run, None)

    def holds(self, lease: Lease) -> bool:
        """See Journal."""
        return self._tokens.get(lease.run) == lease.token and lease.run in self._held

    async def bump(self, lease: Lease, stream: str) -> int:
        """See Journal."""
        await asyncio.sleep(0)
        self._fence(lease)
        if stream not in self._epochs[lease.run]:
            raise NotFound(f"run {lease.run} has no stream {stream!r}")
        self._epochs[lease.run][stream] += 1
        return self._epochs[lease.run][stream]

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        """See Journal."""
        records = self._append(lease, stream, epoch, events)
        await asyncio.sleep(0)
        return records

    def _append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        self._fence(lease)
        run = lease.run
        known = self._epochs[run].setdefault(stream, epoch)
        if known != epoch:
            raise StaleEpoch(f"agent {stream or '(run)'} of {run} is in epoch {known}, not {epoch}")
        seq, link = self._heads.get((run, stream), (0, GENESIS))
        at, rows = round(self._clock.now(), 6), list[tuple[str, str, str, bytes]]()
        for event in events:
            seq += 1
            try:
                body = encode(event, run, stream, seq, epoch, at)
            except (RecursionError, TypeError, ValueError) as e:
                raise JournalError(f"an event cannot be stored: {e}") from e
            link = chain(link, body)
            rows.append((run, stream, body, link))
        self._rows += rows
        records = [decode(i, row[2]) for i, row in enumerate(rows, len(self._rows) - len(rows) + 1)]
        self._heads[run, stream] = (seq, link)
        if publish := self._publish.get(run):
            publish(records)
        return records

    def _fence(self, lease: Lease) -> None:
        if self._tokens.get(lease.run) != lease.token or lease.run not in self._held:
            raise StaleEpoch(f"run {lease.run} was taken over; this process records nothing more of it")

    async def put_blob(self, data: bytes) -> str:
        """See Journal."""
        await asyncio.sleep(0)
        digest = hashlib.sha256(data).hexdigest()
        self._blobs[digest] = data
        return digest

    async def submit(
        self, run: RunId, verb: str, *, agent: str, arguments: Mapping[str, Any], by: tuple[str, str]
    ) -> int:
        """See Journal."""
        await asyncio.sleep(0)
        self._commands.append(Command(len(self._commands) + 1, run, verb, agent, dict(arguments), *by))
        return len(self._commands)

    def on_commit(self, run: RunId, callback: OnCommit | None) -> None:
        """See Journal."""
        if callback is None:
            self._publish.pop(run, None)
        else:
            self._publish[run] = callback

    async def aclose(self) -> None:
        """See Journal."""
