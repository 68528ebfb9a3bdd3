"""A journal over a finished record: nothing is there yet, and each append must be what was recorded at its place."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toka.core.ids import RunId
from toka.errors import StaleEpoch
from toka.events.event import AgentStateChanged, CommandApplied, Event, RunCreated, StepResolved
from toka.events.flow import ApprovalAnswered
from toka.events.lifecycle import AgentStatus
from toka.events.record import Record
from toka.journal.journal import Command, Lease, LeaseView, OnCommit
from toka.orchestration.decisions import (
    OUTSIDE,
    Divergence,
    alike,
    differing,
    is_asked,
    is_end,
    is_life,
    is_step,
)
from toka.orchestration.idle import RecordedClock
from toka.orchestration.lives import Over, goes_on_at_once, is_halted_next, rests, rests_first, too_late


@dataclass(slots=True, eq=False)
class Attempt:
    """Events that somebody wants to append, and waits for.

    Attributes:
        stream: where to.
        events: all of them.
        done: how many have come to their place.
        future: what the appender waits for.
    """

    stream: str
    events: Sequence[Event]
    future: asyncio.Future[None]
    done: int = 0

    @property
    def next(self) -> Event:
        """The event whose place is to come."""
        return self.events[self.done]


class RecordCursor:
    """See Journal. Holds the beginning of a record, up to a place that moves on one record at a time.

    Invariant: a record is there once everything recorded before it is, and once somebody wanted to append an event that
    decides the same; what was found outside is there when its place comes. What is read is the recorded event, with
    its time.

    Attributes:
        diverged: streams that took another way; none of them is followed further.
        found: where they did, the first place of each.
        unreached: streams of which nothing follows any more since another one took another way.
        served: steps of the life at hand whose result is the record's, as (stream, step).
        steps: those that were taken again, as (stream, step).
        requested: whether a request was applied in the life at hand.
        over: where agents are ended in the life at hand since the time of the run is over; None = nowhere.
        let_go: whether the life at hand ended because there was nothing left to do, and not with its process.
    """

    def __init__(self, records: Sequence[Record], blob: Callable[[str], bytes], clock: RecordedClock) -> None:
        """`records` are all of a run, `blob` gives its large values; `workspace` stands in for the real one."""
        self._records = records
        self._blob = blob
        self._clock = clock
        self._blobs: dict[str, bytes] = {}
        self._there: list[Record] = []
        self._begin = 0
        self._head = 0
        self._end = 0
        self._token = 0
        self._dead = False
        self._looked = False
        self._epochs: dict[str, int] = {}
        self._pending: dict[str, list[Attempt]] = {}
        self._late: list[Attempt] = []
        self._publish: OnCommit | None = None
        self.diverged: set[str] = set()
        self.found: list[Divergence] = []
        self.unreached: set[str] = set()
        self.served: set[tuple[str, str]] = set()
        self.steps: set[tuple[str, str]] = set()
        self.requested = False
        self.let_go = False
        self.over: Over | None = None

    # --- lives: from one process that executed the run to the next -------------------------------------------------

    @property
    def at(self) -> int:
        """The place: how many records lie before it."""
        return self._head

    @property
    def last(self) -> int:
        """Id of the record that came last; 0 before the first."""
        return self._there[-1].id if self._there else 0

    @property
    def head(self) -> Record | None:
        """The record whose place has come; None when the life is over."""
        return self._records[self._head] if self._head < self._end else None

    @property
    def life(self) -> Sequence[Record]:
        """The records of the life at hand that are still to come."""
        return self._records[self._head : self._end]

    @property
    def came(self) -> Sequence[Record]:
        """The records of the life at hand whose place has come, the last one first."""
        return self._records[self._begin : self._head][::-1]

    def begin(self, workspace: str) -> None:
        """Takes in what no process decides: that the run was asked for, with another place to work in."""
        first = self._records[0]
        assert isinstance(first.event, RunCreated)
        self._there.append(replace(first, event=replace(first.event, workspace=workspace)))
        self._head = 1

    def next_life(self) -> bool:
        """Goes on to the next process that executed the run; False when there is none."""
        self._head = self._end or self._head
        later = (n for n in range(self._head + 1, len(self._records)) if is_life(self._records[n].event))
        self._end = next(later, len(self._records))
        self.requested = False
        self.let_go = any(is_end(r.event) for r in self.life)
        self._pending.clear()
        self._late.clear()
        self.served.clear()
        self._dead = False
        self._looked = False
        self._begin, self.over = self._head, None
        return self._head < self._end

    def die(self) -> None:
        """The process is gone: nothing can be appended any more."""
        self._dead = True
        for attempt in (*(a for each in self._pending.values() for a in each), *self._late):
            if not attempt.future.done():
                attempt.future.set_exception(_gone())

    # --- moving on --------------------------------------------------------------------------------------------------

    def move(self) -> bool:
        """Takes in the record whose place has come, if it is wanted; False when it is not, or there is none."""
        record = self.head
        if record is None:
            return False
        if record.stream in self.diverged or record.stream in self.unreached:
            self._head += 1
            return True
        if isinstance(record.event, OUTSIDE):
            self._take(record)
            return True
        wanted = [a for a in self._pending.get(record.stream, ()) if self._is(record, a.next)]
        attempt = next((a for a in wanted if not a.future.done()), wanted[0] if wanted else None)
        if attempt is None:
            return False
        if rests_first(record, self.life[1:]) and self.let_on(record.stream):
            return True
        self._take(record)
        if is_step(record.event):
            self.steps.add((record.stream, getattr(record.event, "step", "")))
        attempt.done += 1
        if attempt.done == len(attempt.events):
            self._pending[attempt.stream].remove(attempt)
            self._answer(attempt)
        return True

    def let_on(self, stream: str | None = None) -> bool:
        """Lets an agent go on that was kept from its next step since it will be asked not to take it.

        Args:
            stream: whose; None: anybody's.
        """
        for attempt in self._late:
            if stream is None or attempt.stream in ("", stream):  # "": a request to all of them
                self._late.remove(attempt)
                _wake(attempt)
                return True
        return False

    def diverge(self) -> None:
        """The record whose place has come does not follow: notes it, and leaves its stream."""
        record = self.head
        assert record is not None
        stream = record.stream
        mine = [a for a in self._pending.get(stream, ()) if not a.future.done()]
        about = next((a for a in mine if alike(a.next, record.event)), mine[0] if mine else None)
        others = (a for each in self._pending.values() for a in each if a.stream not in ("", stream))
        other = next((a for a in others if a.stream not in self.diverged and not a.future.done()), None)
        if about is None and self.diverged:
            self.unreached.add(stream)
            return
        now = None if about is None else about.next
        served = (stream, getattr(record.event, "step", "")) in self.served
        fields = differing(record.event, now, served=served) if now is not None else ()
        instead = None if about is not None or other is None else (other.stream, other.next)
        self.found.append(Divergence(stream, record, now, fields, instead))
        self.diverged.add(stream)

    def left(self) -> None:
        """Notes what would follow now after a life in which there was nothing left to do."""
        for stream, attempts in self._pending.items():
            more = next((a for a in attempts if not a.future.done()), None)
            if more is not None and stream not in self.diverged and stream not in self.unreached:
                self.found.append(Divergence(stream, None, more.next))
                self.diverged.add(stream)

    def _is(self, record: Record, event: Event) -> bool:
        served = (record.stream, getattr(event, "step", "")) in self.served
        return not differing(record.event, event, served=served)

    def _take(self, record: Record) -> None:
        self._head += 1
        self._clock.at = record.at
        self._there.append(record)
        self.requested = self.requested or isinstance(record.event, CommandApplied)
        if self._publish is not None:
            self._publish([record])

    def _answer(self, attempt: Attempt) -> None:
        """Wakes an appender; later, when its agent is going to be halted before its next step.

        Whoever stops an agent shuts its gate a moment after that was recorded: the agent may take a step meanwhile.
        """
        event = attempt.events[-1]
        if isinstance(event, CommandApplied) and too_late(event, self.life):
            attempt.stream = event.agent
            self._late.append(attempt)
            return
        stops = isinstance(event, AgentStateChanged) and event.state == AgentStatus.STOPPING.value
        halted = is_halted_next(attempt.stream, self.life, None if rests(event) else self.over)
        late = not halted if stops else halted and not is_asked(event)
        if attempt.stream and (late or goes_on_at_once(attempt.stream, event, self.life)):
            self._late.append(attempt)
        else:
            _wake(attempt)

    # --- Journal ----------------------------------------------------------------------------------------------------

    async def append(self, lease: Lease, stream: str, epoch: int, events: Sequence[Event]) -> list[Record]:
        """See Journal. Returns when the places of all these events have come."""
        if self._dead or lease.token != self._token or epoch < self._epochs.get(stream, 1):
            raise _gone()
        wanted = [event for event in events if not isinstance(event, OUTSIDE)]
        if wanted:
            attempt = Attempt(stream, wanted, asyncio.get_running_loop().create_future())
            self._pending.setdefault(stream, []).append(attempt)
            await attempt.future
        return []

    async def acquire(self, run: RunId) -> Lease:
        """See Journal."""
        self._token += 1
        for record in self._there:
            self._epochs[record.stream] = self._token
        return Lease(run, self._token, dict(self._epochs))

    async def bump(self, lease: Lease, stream: str) -> int:  # noqa: ARG002
        """See Journal."""
        self._epochs[stream] = self._epochs.get(stream, 1) + 1
        return self._epochs[stream]

    async def put_blob(self, data: bytes) -> str:
        """See Journal. Kept in memory."""
        digest = hashlib.sha256(data).hexdigest()
        self._blobs[digest] = data
        return digest

    def holds(self, lease: Lease) -> bool:
        """See Journal."""
        return not self._dead and lease.token == self._token

    def on_commit(self, run: RunId, callback: OnCommit | None) -> None:  # noqa: ARG002
        """See Journal."""
        self._publish = callback

    def read(self, run: RunId, *, after: int = 0, stream: str | None = None, limit: int | None = None) -> list[Record]:  # noqa: ARG002
        """See Reader."""
        return [r for r in self._there if r.id > after and stream in (None, r.stream)][:limit]

    def commands(self, run: RunId, after: int = 0) -> list[Command]:
        """The requests whose place has come: those that the next records tell of, without anything between.

        When a process begins, it takes up all there are before anything else. Later it takes them beside what its
        agents do, and what they do may be recorded between an answer and the word that it was taken up.
        """
        head = self.head
        if head is not None and is_life(head.event):  # it only wants to know whether there is anything to go on for
            return [
                c for r in self._records[self._head :] if (c := _command(run, r.event)) is not None and c.id > after
            ]
        beside, self._looked = self._looked, True
        applied = self._answered_by() if beside else None
        out: list[Command] = []
        for place, record in enumerate(self.life if applied is None else (applied,), 1):
            if not beside and too_late(record.event, self.life[place:]):
                break  # somebody was at work before it was taken up
            command = _command(run, record.event)
            if command is not None and command.id > after:
                out.append(command)
            elif not is_asked(record.event):
                break
        return out

    def _answered_by(self) -> Record | None:
        """The record that an answer was applied, when the record whose place has come is that answer."""
        head = self.head
        if head is None or not isinstance(head.event, ApprovalAnswered | StepResolved) or not is_asked(head.event):
            return None
        verbs = ("resolve",) if isinstance(head.event, StepResolved) else ("approve", "deny")
        for record in self._records[self._head :]:
            event = record.event
            if isinstance(event, CommandApplied) and event.verb in verbs and event.agent == head.stream:
                return record
        return None

    def blob(self, digest: str) -> bytes:
        """See Reader."""
        return self._blobs[digest] if digest in self._blobs else self._blob(digest)

    def runs(self) -> list[RunId]:
        """See Reader."""
        return [RunId(r.run) for r in self._there[:1]]

    def last_of(self, run: RunId, stream: str, kind: str) -> Record | None:  # noqa: ARG002
        """See Reader."""
        return next((r for r in reversed(self._there) if r.stream == stream and kind == r.event.KIND), None)

    def lease(self, run: RunId) -> LeaseView | None:  # noqa: ARG002
        """See Reader."""
        return None

    def stored(self, run: RunId) -> Iterator[tuple[int, str, str, bytes]]:  # noqa: ARG002
        """See Reader. Nothing is stored."""
        return iter(())

    def heads(self, run: RunId) -> Mapping[str, tuple[int, bytes]]:  # noqa: ARG002
        """See Reader. Nothing is chained."""
        return {}

    def close(self) -> None:
        """See Reader."""

    def hurry(self, lease: Lease) -> None:
        """Nothing is ever waited for."""

    async def release(self, lease: Lease) -> None:
        """See Journal."""

    async def submit(
        self,
        run: RunId,  # noqa: ARG002
        verb: str,  # noqa: ARG002
        *,
        agent: str,  # noqa: ARG002
        arguments: Mapping[str, Any],  # noqa: ARG002
        by: tuple[str, str],  # noqa: ARG002
    ) -> int:
        """Refused: nobody asks anything of a run that is over."""
        raise _gone()

    async def aclose(self) -> None:
        """See Journal."""


def _command(run: RunId, event: Event) -> Command | None:
    """The request that an event tells of; None when it tells of none."""
    if not isinstance(event, CommandApplied):
        return None
    return Command(event.command, run, event.verb, event.agent, event.arguments, event.author, event.reason)


def _wake(attempt: Attempt) -> None:
    if not attempt.future.done():
        attempt.future.set_result(None)


def _gone() -> StaleEpoch:
    return StaleEpoch("the process whose record this is ended here")
