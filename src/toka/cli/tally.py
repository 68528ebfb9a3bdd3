"""What `toka ps` says of a run, without folding its events: the last status of everybody, and sums made by SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from toka.cli.door import standing, wrong_in_record
from toka.core.ids import RunId
from toka.errors import JournalError
from toka.events.event import AgentStateChanged, ExecutorAttached, RunCreated, RunStateChanged, SandboxReady
from toka.events.lifecycle import AGENT_ENDS, RUN_ENDS, RunStatus
from toka.events.state import LEVELS, weaker
from toka.journal.database import connect, failure
from toka.journal.journal import LeaseView
from toka.journal.sqlite import SqliteReader

SCRIPTED = "scripted:"

_SUMS = """
SELECT coalesce(sum(u0), 0) + coalesce(sum(u1), 0), coalesce(sum(cost), 0.0), sum(cost IS NULL) FROM (
  SELECT json_extract(e.body, '$.data.usage[0]') AS u0, json_extract(e.body, '$.data.usage[1]') AS u1,
         json_extract(e.body, '$.data.cost_usd') AS cost
  FROM streams s JOIN events e ON e.stream = s.id
  WHERE s.run = ?1 AND e.kind IN ('step_done', 'step_failed') AND instr(e.body, '"usage":[') AND u0 IS NOT NULL
  UNION ALL
  SELECT json_extract(e.body, '$.data.lost[0]') AS u0, json_extract(e.body, '$.data.lost[1]'),
         json_extract(e.body, '$.data.lost[5]')
  FROM streams s JOIN events e ON e.stream = s.id
  WHERE s.run = ?1 AND e.kind = 'step_intent' AND instr(e.body, '"lost":[') AND u0 IS NOT NULL)
"""
_ASKED = """
SELECT s.name, json_extract(a.body, '$.data.question') FROM streams s JOIN events a ON a.stream = s.id
WHERE s.run = ?1 AND a.kind = 'approval_asked' AND NOT EXISTS (
  SELECT 1 FROM events b WHERE b.stream = s.id AND b.kind = 'approval_answered'
  AND json_extract(b.body, '$.data.approval') = json_extract(a.body, '$.data.approval'))
ORDER BY a.id
"""
_LEVELS = """
SELECT DISTINCT CASE e.kind WHEN ?2 THEN json_extract(e.body, '$.data.sandbox')
                            ELSE json_extract(e.body, '$.data.test.level') END
FROM streams s JOIN events e ON e.stream = s.id WHERE s.run = ?1 AND e.kind IN (?2, ?3)
"""
_MODEL = """
SELECT json_extract(body, '$.data.what') FROM events
WHERE stream = ? AND kind = 'step_intent' AND instr(body, '/model/')
  AND json_extract(body, '$.data.step') LIKE '%/model/%'
ORDER BY seq LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run in a list.

    Attributes:
        run: its id.
        status: how it stands; None when its record cannot be read.
        reason: why, for people.
        done, total: agents that have ended, of all.
        started_at, ended_at: wall-clock seconds; `ended_at` is None while it may go on.
        changed_at: when its last event was written.
        tokens, cost_usd: as `AgentState` has them, over all agents.
        workspace: the directory.
        models: model strings, as asked for and as used.
        level: the weakest confinement that an agent of it had; see LEVELS.
        asks: the open questions to a person: (agent, question).
        executor: (pid, host) of the living process that executes it.
    """

    run: RunId
    status: RunStatus | None
    reason: str = ""
    done: int = 0
    total: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    changed_at: float | None = None
    tokens: int = 0
    cost_usd: float | None = 0.0
    workspace: str = ""
    models: tuple[str, ...] = ()
    level: str = LEVELS[0]
    executor: tuple[int, str] | None = None
    asks: tuple[tuple[str, str], ...] = ()

    @property
    def scripted(self) -> bool:
        """Whether a script answered in place of a model."""
        return is_scripted(self.models)

    def duration(self, now: float) -> float:
        """Seconds from its start to its end, or to now, or to its last sign of life when nobody executes it."""
        until = self.ended_at or (now if self.executor else self.changed_at) or now
        return max(0.0, until - (self.started_at or until))


def is_script(model: str | None) -> bool:
    """Whether a model string names a script."""
    return (model or "").startswith(SCRIPTED)


def is_scripted(models: Sequence[str]) -> bool:
    """Whether one of the models is a script."""
    return any(map(is_script, models))


def tally(reader: SqliteReader, runs: Sequence[RunId]) -> list[RunLine]:
    """One line for each run, in the order given. A run that cannot be read has a line that says so.

    Raises:
        JournalError: the database itself cannot be read.
    """
    with closing(connect(reader.path, readonly=True)) as db:
        db.execute("PRAGMA cache_size=-65536")
        return [_line(reader, db, run) for run in runs]


def _line(reader: SqliteReader, db: sqlite3.Connection, run: RunId) -> RunLine:
    try:
        return _read(reader, db, run)
    except sqlite3.Error as e:
        return RunLine(run, None, str(failure(e, reader.path)))
    except (JournalError, AttributeError, LookupError, TypeError, ValueError) as e:
        return RunLine(run, None, f"its record cannot be read ({wrong_in_record(e)}); toka audit verify {run}")


def _read(reader: SqliteReader, db: sqlite3.Connection, run: RunId) -> RunLine:
    lease = reader.lease(run)  # before the status, so that a run that ends meanwhile does not look interrupted
    first = reader.last_of(run, "", RunCreated.KIND)
    last = reader.last_of(run, "", RunStateChanged.KIND)
    created = first.event if first and isinstance(first.event, RunCreated) else None
    stood = last.event if last and isinstance(last.event, RunStateChanged) else None
    recorded = RunStatus(stood.state) if stood else RunStatus.CREATED
    streams = db.execute("SELECT id, name, head_seq FROM streams WHERE run=? ORDER BY id", (run,)).fetchall()
    names = [name for _, name, _ in streams if name]
    levels = db.execute(_LEVELS, (run, ExecutorAttached.KIND, SandboxReady.KIND)).fetchall()
    tokens, cost, unpriced = db.execute(_SUMS, (run,)).fetchone()
    return RunLine(
        run=run,
        status=standing(recorded, lease),
        reason=str(stood.reason) if stood else "",
        done=sum(_ended(reader, run, name) for name in names),
        total=len({*(created.agents if created else ()), *names}),
        started_at=first.at if first else None,
        ended_at=last.at if last and recorded in RUN_ENDS else None,
        changed_at=max((_at(db, id_, seq) for id_, _, seq in streams), default=None),
        tokens=int(tokens),
        cost_usd=None if unpriced else float(cost),
        workspace=str(created.workspace) if created else "",
        models=_models(db, created.model if created else None, [id_ for id_, name, _ in streams if name]),
        level=weaker(LEVELS[0], *(str(level) for (level,) in levels if level)),
        executor=None if recorded in RUN_ENDS else _executor(lease),
        asks=() if recorded in RUN_ENDS else _asked(reader, db, run),
    )


def _asked(reader: SqliteReader, db: sqlite3.Connection, run: RunId) -> tuple[tuple[str, str], ...]:
    asked = [(str(name), str(question)) for name, question in db.execute(_ASKED, (run,)).fetchall()]
    return tuple((name, question) for name, question in asked if not _ended(reader, run, name))


def _ended(reader: SqliteReader, run: RunId, agent: str) -> bool:
    record = reader.last_of(run, agent, AgentStateChanged.KIND)
    return record is not None and isinstance(record.event, AgentStateChanged) and record.event.state in AGENT_ENDS


def _at(db: sqlite3.Connection, stream: int, seq: int) -> float:
    row = db.execute("SELECT body FROM events WHERE stream=? AND seq=?", (stream, seq)).fetchone()
    return float(json.loads(row[0])["at"]) if row else 0.0


def _models(db: sqlite3.Connection, asked: str | None, streams: Sequence[int]) -> tuple[str, ...]:
    """The model asked for, unless a step says what was used; then those."""
    rows: list[tuple[Any, ...]] = [row for id_ in streams for row in db.execute(_MODEL, (id_,)).fetchall()]
    used = dict.fromkeys(str(what) for (what,) in rows)
    return tuple(used) or ((str(asked),) if asked else ())


def _executor(lease: LeaseView | None) -> tuple[int, str] | None:
    return (lease.holder.pid, lease.holder.host) if lease is not None and lease.alive else None
