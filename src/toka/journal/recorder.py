"""The only writer of a run: append, then fold, then publish, in that order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from toka.errors import StaleEpoch
from toka.events.event import Event, ExecutorAttached
from toka.events.fold import fold, fold_all
from toka.events.record import Record
from toka.events.state import RunState
from toka.journal.journal import Journal, Lease

Listener = Callable[[Record], None]
"""Called in the event loop for every record, in commit order. It must return at once and raise nothing."""


class Recorder:
    """Holds a run's state and its lease.

    Invariant: `state` is the fold of exactly the records that are durable; nobody is told of a record before it is
    folded in, and no appender goes on before its record was published.
    """

    def __init__(self, journal: Journal, lease: Lease) -> None:
        """Reads what the run's journal holds and takes over publishing its commits."""
        self._journal = journal
        self._lease = lease
        self._epochs = dict(lease.epochs)
        self._listeners: list[Listener] = []
        self.state: RunState = fold_all(lease.run, journal.read(lease.run))
        journal.on_commit(lease.run, self._committed)

    @property
    def lease(self) -> Lease:
        """The lease under which this recorder writes."""
        return self._lease

    async def record(self, stream: str, *events: Event) -> list[Record]:
        """Appends events to a stream ("" is the run's own); returns once they are durable, folded and published.

        Raises:
            StaleEpoch: another executor owns the run.
            JournalError: the write failed.
        """
        return await self._journal.append(self._lease, stream, self._epochs.setdefault(stream, 1), events)

    def check_lease(self) -> None:
        """Raises StaleEpoch when the lease has run out by this process's own clock. Called before each act."""
        if self._journal.holds(self._lease):
            return
        self.check_taken()
        hint = f"see who executes it: toka ps; go on with: toka resume {self._lease.run}"
        raise StaleEpoch(f"this process lost run {self._lease.run}: it could not renew its lease in time", hint=hint)

    def check_taken(self) -> None:
        """Raises StaleEpoch when another process has taken the run over: who only rests would never hear of it."""
        if self._journal.holds(self._lease):
            return
        run = self._lease.run
        last = self._journal.last_of(run, "", ExecutorAttached.KIND)
        if last is not None and isinstance(last.event, ExecutorAttached) and last.event.epoch > self._lease.token:
            lost = f"this process lost run {run}: it could not renew its lease in time"
            other = f"process {last.event.pid} on {last.event.host}"
            raise StaleEpoch(f"{lost}, and {other} took it over", hint=f"follow it: toka events {run} --follow")

    async def bump(self, stream: str) -> int:
        """Raises a stream's epoch, for this recorder too."""
        epoch = self._epochs[stream] = await self._journal.bump(self._lease, stream)
        return epoch

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Adds a listener; returns the function that removes it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def history(self, stream: str) -> list[Record]:
        """All records of one stream, from the journal."""
        return self._journal.read(self._lease.run, stream=stream)

    def blob(self, digest: str) -> bytes:
        """See Reader.blob."""
        return self._journal.blob(digest)

    async def put_blob(self, data: bytes) -> str:
        """See Journal.put_blob."""
        return await self._journal.put_blob(data)

    def hurry(self) -> None:
        """From here what cannot be recorded at once is refused: the process is to end, whatever the disk says."""
        self._journal.hurry(self._lease)

    async def close(self) -> None:
        """Gives the lease back and stops publishing."""
        self._journal.on_commit(self._lease.run, None)
        await self._journal.release(self._lease)

    def _committed(self, records: Sequence[Record]) -> None:
        for record in records:
            self.state = fold(self.state, record)
            for listener in tuple(self._listeners):
                try:
                    listener(record)
                except Exception as e:  # noqa: BLE001 - a listener's defect must neither stop the fold nor its siblings
                    asyncio.get_running_loop().call_exception_handler(
                        {"message": f"a listener failed at record {record.id}", "exception": e}
                    )
