from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from journal.conftest import RUN, event
from toka.core.clock import SystemClock
from toka.errors import StaleEpoch
from toka.events.event import AgentStateChanged, ExecutorAttached, RunCreated, RunStateChanged
from toka.events.fold import fold_all
from toka.events.record import Record
from toka.journal.journal import LEASE_S, Journal
from toka.journal.recorder import Recorder
from toka.journal.sqlite import SqliteJournal
from toka.testing import MemoryJournal


@pytest.fixture
async def recorder(journal: Journal) -> Recorder:
    return Recorder(journal, await journal.acquire(RUN))


async def test_state_is_folded_before_anybody_is_told_and_both_before_the_appender_goes_on(recorder: Recorder) -> None:
    order: list[str] = []

    def listen(record: Record) -> None:
        assert recorder.state.last == record.id
        order.append(f"told {record.seq}")

    recorder.subscribe(listen)
    await recorder.record("", RunCreated(["a"], "", "/w"), RunStateChanged("RUNNING"))
    order.append("went on")
    assert order == ["told 1", "told 2", "went on"]
    assert recorder.state.status == "RUNNING" and list(recorder.state.agents) == ["a"]


async def test_the_state_is_the_fold_of_what_is_durable(recorder: Recorder, journal: Journal) -> None:
    await recorder.record("", RunCreated(["a", "b"], "", "/w"))
    await asyncio.gather(*(recorder.record(s, AgentStateChanged("STARTING"), event(s)) for s in ("a", "b", "a")))
    assert recorder.state == fold_all(RUN, journal.read(RUN))
    assert recorder.history("a") == journal.read(RUN, stream="a")


async def test_who_takes_over_starts_from_the_same_state(recorder: Recorder, journal: Journal) -> None:
    await recorder.record("", RunCreated(["a"], "", "/w"))
    await recorder.record("a", AgentStateChanged("STARTING"))
    await recorder.close()
    again = Recorder(journal, await journal.acquire(RUN))
    assert again.state == recorder.state
    (record,) = await again.record("a", AgentStateChanged("RUNNING"))
    assert (record.seq, record.epoch) == (2, 2)
    with pytest.raises(StaleEpoch):
        await recorder.record("a", AgentStateChanged("FAILED"))
    with pytest.raises(StaleEpoch, match=r"lost run .* could not renew"):
        recorder.check_lease()
    again.check_lease()
    assert recorder.state.agents["a"].status == "STARTING", "it hears of nothing any more"


async def test_after_a_raised_epoch_this_recorder_goes_on_and_older_writers_cannot(recorder: Recorder) -> None:
    await recorder.record("a", event())
    assert await recorder.bump("a") == 2
    (record,) = await recorder.record("a", event())
    assert record.epoch == 2


async def test_a_listener_that_fails_disturbs_neither_the_state_nor_the_others(recorder: Recorder) -> None:
    told: list[int] = []
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def fails(record: Record) -> None:
        raise BrokenPipeError(f"cannot print {record.seq}")

    recorder.subscribe(fails)
    recorder.subscribe(lambda record: told.append(record.seq))
    await asyncio.wait_for(recorder.record("a", event(), event()), 5)
    assert told == [1, 2] and recorder.state.last == 2
    assert [str(c["exception"]) for c in reported] == ["cannot print 1", "cannot print 2"]


async def test_a_listener_can_leave_while_it_is_told(recorder: Recorder) -> None:
    told: list[int] = []

    def once(record: Record) -> None:
        told.append(record.seq)
        leave()

    leave = recorder.subscribe(once)
    await recorder.record("a", event(), event())
    assert told == [1]


async def test_large_values_go_to_blobs_and_come_back(recorder: Recorder) -> None:
    digest = await recorder.put_blob(b"x" * 100_000)
    assert recorder.blob(digest) == b"x" * 100_000


async def test_nothing_is_published_that_is_not_durable() -> None:
    class Tracing(MemoryJournal):
        """Checks each record that it publishes against what it would give a reader."""

        def on_commit(self, run: Any, callback: Any) -> None:
            def checked(records: Sequence[Record]) -> None:
                assert list(records) == self.read(run)[-len(records) :]
                callback(records)

            super().on_commit(run, checked if callback else None)

    journal = Tracing(SystemClock())
    recorder = Recorder(journal, await journal.acquire(RUN))
    await asyncio.gather(*(recorder.record("a", event(str(n))) for n in range(10)))
    assert recorder.state.last == 10


class Lapsed(SystemClock):
    """The machine's clock, with boot time ahead by `ahead` seconds."""

    ahead = 0.0

    def boottime(self) -> float:
        return super().boottime() + self.ahead


@pytest.mark.parametrize("taken", [False, True])
async def test_who_could_not_renew_in_time_may_not_act_and_is_told_who_has_the_run(state: Path, taken: bool) -> None:
    clock = Lapsed()
    frozen = SqliteJournal(state, clock)
    recorder = Recorder(frozen, await frozen.acquire(RUN))
    await recorder.record("", ExecutorAttached("here", 11, recorder.lease.token))
    recorder.check_lease()
    clock.ahead = LEASE_S + 1.0
    other = SqliteJournal(state, clock)
    if taken:
        late = Recorder(other, await other.acquire(RUN))
        await late.record("", ExecutorAttached("there", 22, late.lease.token))
        late.check_lease()
    with pytest.raises(StaleEpoch, match=f"lost run {RUN}: it could not renew its lease in time") as error:
        recorder.check_lease()
    assert error.value.message.endswith(", and process 22 on there took it over") == taken
    await frozen.aclose()
    await other.aclose()
