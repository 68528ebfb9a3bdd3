"""What every journal promises. Each test runs over all of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import pytest

from journal.conftest import OTHER, RUN, event
from toka.errors import JournalError, NotFound, RunBusy, StaleEpoch
from toka.events.event import HoldPlaced, RunStateChanged, Unknown
from toka.events.record import Record
from toka.journal.audit import verify
from toka.journal.journal import Journal


async def test_records_come_back_as_they_were_written(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    first = await journal.append(lease, "a", 1, [event("one"), event("two")])
    second = await journal.append(lease, "", 1, [RunStateChanged("RUNNING"), Unknown("later", {"x": [1]})])
    assert [(r.run, r.stream, r.seq, r.epoch) for r in first + second] == [
        (RUN, "a", 1, 1), (RUN, "a", 2, 1), (RUN, "", 1, 1), (RUN, "", 2, 1),
    ]  # fmt: skip
    assert journal.read(RUN) == first + second
    assert journal.read(RUN, after=first[1].id) == second
    assert journal.read(RUN, stream="a") == first
    assert journal.read(RUN, stream="", limit=1) == second[:1]
    assert journal.read(OTHER) == []


async def test_ids_grow_over_all_runs_and_sequence_numbers_have_no_gaps(journal: Journal) -> None:
    one, two = await journal.acquire(RUN), await journal.acquire(OTHER)
    for _ in range(3):
        await journal.append(one, "a", 1, [event(), event()])
        await journal.append(two, "a", 1, [event()])
    ids = [r.id for run in (RUN, OTHER) for r in journal.read(run)]
    assert sorted(ids) == list(range(ids[0], ids[0] + 9))
    assert [r.seq for r in journal.read(RUN)] == [1, 2, 3, 4, 5, 6]
    assert [r.seq for r in journal.read(OTHER)] == [1, 2, 3]


async def test_any_text_survives(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    words = ["", "\0", "\ud800", "\udcff half", "ü 漢 \U0001f600", 'quote " \\ \n\r\u2028']
    await journal.append(lease, "a", 1, [event(w) for w in words])
    assert [r.event.reason for r in journal.read(RUN) if isinstance(r.event, HoldPlaced)] == words
    assert verify(journal, RUN).problems == ()


async def test_a_commit_is_published_before_its_appender_wakes(journal: Journal) -> None:
    seen: list[str] = []
    journal.on_commit(RUN, lambda records: seen.extend(f"published {r.seq}" for r in records))
    lease = await journal.acquire(RUN)

    async def append(name: str) -> None:
        (record,) = await journal.append(lease, "a", 1, [event()])
        assert f"published {record.seq}" in seen
        seen.append(f"{name} woke")

    await asyncio.gather(*(append(str(n)) for n in range(20)))
    published = [s for s in seen if s.startswith("published")]
    assert published == [f"published {n}" for n in range(1, 21)]


async def test_concurrent_appenders_are_written_in_the_order_they_came(journal: Journal) -> None:
    published: list[Record] = []
    journal.on_commit(RUN, published.extend)
    lease = await journal.acquire(RUN)
    tasks = [asyncio.create_task(journal.append(lease, f"s{n % 7}", 1, [event(str(n))])) for n in range(300)]
    await asyncio.gather(*tasks)
    order = [r.event.reason for r in published if isinstance(r.event, HoldPlaced)]
    assert order == [str(n) for n in range(300)]
    assert published == journal.read(RUN)


async def test_nobody_is_told_of_another_runs_commits(journal: Journal) -> None:
    published: list[Record] = []
    journal.on_commit(RUN, published.extend)
    one, two = await journal.acquire(RUN), await journal.acquire(OTHER)
    await asyncio.gather(journal.append(one, "a", 1, [event()]), journal.append(two, "a", 1, [event()]))
    assert {r.run for r in published} == {RUN}
    journal.on_commit(RUN, None)
    await journal.append(one, "a", 1, [event()])
    assert len(published) == 1


async def test_cancelling_an_appender_cancels_only_its_wait(journal: Journal) -> None:
    published: list[Record] = []
    journal.on_commit(RUN, published.extend)
    lease = await journal.acquire(RUN)
    task = asyncio.create_task(journal.append(lease, "a", 1, [event("cancelled")]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await journal.append(lease, "a", 1, [event("next")])
    assert [r.event.reason for r in published if isinstance(r.event, HoldPlaced)] == ["cancelled", "next"]


class Unstorable:
    pass


@pytest.mark.parametrize("bad", [Unstorable(), {1, 2}, b"bytes", {("a", "b"): 1}], ids=type)
async def test_what_cannot_be_stored_is_refused_whole_and_alone(journal: Journal, bad: object) -> None:
    lease = await journal.acquire(RUN)
    guilty = [event("before"), Unknown("odd", {"value": bad}), event("after")]
    outcomes = await asyncio.gather(
        journal.append(lease, "a", 1, [event("first")]),
        journal.append(lease, "a", 1, guilty),
        journal.append(lease, "b", 1, [event("second")]),
        journal.append(lease, "a", 1, [event("third")]),
        return_exceptions=True,
    )
    assert [type(o) for o in outcomes] == [list, JournalError, list, list]
    assert "cannot be stored" in str(outcomes[1])
    assert [(r.stream, r.seq) for r in journal.read(RUN)] == [("a", 1), ("b", 1), ("a", 2)]
    assert verify(journal, RUN).problems == ()
    assert (await journal.append(lease, "a", 1, [event("fourth")]))[0].seq == 3, "the journal goes on"


async def test_a_held_run_cannot_be_taken(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    with pytest.raises(RunBusy, match=RUN):
        await journal.acquire(RUN)
    await journal.append(lease, "a", 1, [event()])
    assert journal.holds(lease)
    assert (seen := journal.lease(RUN)) is not None and seen.alive and seen.age_s >= 0


async def test_releasing_and_taking_again_raises_the_token_and_every_epoch(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    await journal.append(lease, "a", 1, [event()])
    await journal.append(lease, "b", 1, [event()])
    await journal.release(lease)
    again = await journal.acquire(RUN)
    assert again.token > lease.token
    assert dict(again.epochs) == {"a": 2, "b": 2}
    (record,) = await journal.append(again, "a", 2, [event()])
    assert (record.seq, record.epoch) == (2, 2)


async def test_a_released_lease_can_write_nothing(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    await journal.append(lease, "a", 1, [event()])
    await journal.release(lease)
    assert not journal.holds(lease)
    with pytest.raises(StaleEpoch):
        await journal.append(lease, "a", 1, [event()])
    with pytest.raises(StaleEpoch):
        await journal.bump(lease, "a")
    await journal.acquire(RUN)
    await journal.release(lease)  # it was given back before: does nothing
    assert (seen := journal.lease(RUN)) and seen.alive
    with pytest.raises(StaleEpoch):
        await journal.append(lease, "a", 2, [event()])
    with pytest.raises(StaleEpoch):
        await journal.bump(lease, "a")
    assert len(journal.read(RUN)) == 1


async def test_an_old_epoch_can_write_nothing(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    await journal.append(lease, "a", 1, [event()])
    await journal.append(lease, "b", 1, [event()])
    assert await journal.bump(lease, "a") == 2
    outcomes = await asyncio.gather(
        journal.append(lease, "a", 1, [event("old")]),
        journal.append(lease, "b", 1, [event("b")]),
        journal.append(lease, "a", 2, [event("new")]),
        return_exceptions=True,
    )
    assert [type(o) for o in outcomes] == [StaleEpoch, list, list]
    assert [(r.stream, r.seq, r.epoch) for r in journal.read(RUN)] == [
        ("a", 1, 1), ("b", 1, 1), ("b", 2, 1), ("a", 2, 2),
    ]  # fmt: skip


async def test_a_stream_that_is_not_there_has_no_epoch_to_raise(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    with pytest.raises(NotFound, match="nobody"):
        await journal.bump(lease, "nobody")


async def test_the_newest_record_of_a_kind_is_found(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    await journal.append(lease, "", 1, [RunStateChanged("RUNNING"), RunStateChanged("WAITING"), Unknown("odd", {})])
    found = journal.last_of(RUN, "", "run_state")
    assert found is not None and found.event == RunStateChanged("WAITING")
    assert (odd := journal.last_of(RUN, "", "odd")) is not None and odd.seq == 3
    assert journal.last_of(RUN, "", "hold_placed") is None
    assert journal.last_of(RUN, "a", "run_state") is None


async def test_runs_are_those_whose_own_stream_has_begun_oldest_first(journal: Journal) -> None:
    later, first = await journal.acquire(RUN), await journal.acquire(OTHER)
    assert journal.runs() == []
    await journal.append(first, "", 1, [RunStateChanged("RUNNING")])
    await journal.append(later, "a", 1, [event()])
    assert journal.runs() == [OTHER]
    await journal.append(later, "", 1, [RunStateChanged("RUNNING")])
    assert journal.runs() == [OTHER, RUN]


async def test_blobs_are_found_by_their_hash(journal: Journal) -> None:
    data = bytes(range(256)) * 100
    digest = await journal.put_blob(data)
    assert digest == hashlib.sha256(data).hexdigest() == await journal.put_blob(data)
    assert journal.blob(digest) == data
    assert journal.blob(await journal.put_blob(b"")) == b""
    with pytest.raises(NotFound):
        journal.blob("0" * 64)


async def test_requests_need_no_lease_and_are_read_in_order(journal: Journal) -> None:
    first = await journal.submit(RUN, "pause", agent="a", arguments={}, by=("ada", "lunch"))
    await journal.submit(OTHER, "stop", agent="", arguments={}, by=("bob", ""))
    second = await journal.submit(RUN, "raise", agent="", arguments={"cost": "$5"}, by=("ada", ""))
    assert [(c.id, c.verb, c.agent, dict(c.arguments), c.author, c.reason) for c in journal.commands(RUN)] == [
        (first, "pause", "a", {}, "ada", "lunch"),
        (second, "raise", "", {"cost": "$5"}, "ada", ""),
    ]
    assert [c.id for c in journal.commands(RUN, after=first)] == [second]


async def test_heads_are_the_ends_of_the_chains(journal: Journal) -> None:
    lease = await journal.acquire(RUN)
    for _ in range(3):
        await asyncio.gather(*(journal.append(lease, s, 1, [event(), event()]) for s in ("a", "b", "")))
    verdict = verify(journal, RUN)
    assert (verdict.problems, verdict.records) == ((), 18)
    assert {s: (6, link) for s, link in verdict.heads.items()} == {
        s: (seq, link.hex()) for s, (seq, link) in journal.heads(RUN).items()
    }


async def test_nothing_is_published_twice_or_lost_under_load(journal: Journal) -> None:
    published: list[Record] = []
    journal.on_commit(RUN, published.extend)
    lease = await journal.acquire(RUN)

    async def worker(stream: str) -> Sequence[Record]:
        out: list[Record] = []
        for n in range(20):
            out += await journal.append(lease, stream, 1, [event(f"{n}")] * (n % 3 + 1))
        return out

    written = [r for rows in await asyncio.gather(*(worker(f"s{n}") for n in range(20))) for r in rows]
    assert sorted(written, key=lambda r: r.id) == published == journal.read(RUN)
    assert verify(journal, RUN).problems == ()
