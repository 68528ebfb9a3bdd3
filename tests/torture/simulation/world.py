"""One world: a seed, a loop, a disk, and the processes that execute its run one after the other, or side by side."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toka.core.clock import Clock
from toka.events.event import RunCreated
from toka.events.fold import fold
from toka.events.record import Record
from toka.events.state import RunState
from toka.orchestration.session import RunSession
from toka.testing import MemoryJournal
from torture.simulation.journal import SimJournal, Store
from torture.simulation.loop import PROCESS, VirtualClock, VirtualLoop

KEPT_LINES = 40
FOLDED_EVERY = 400
"""Records after which the state is folded anew from what is stored."""


class Broken(Exception):
    """An invariant does not hold."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


@dataclass
class Faults:
    """How often what goes wrong: probabilities, and seconds of virtual time between events (0: never)."""

    write_fails: float = 0.0
    read_fails: float = 0.0
    slow_commit: float = 0.0
    die_at_write: float = 0.0
    freeze_at_write: float = 0.0
    kill_every: float = 0.0
    freeze_every: float = 0.0
    shutdown_every: float = 0.0
    people_every: float = 0.0
    model: float = 0.1
    tool: float = 0.1


@dataclass
class Life:
    """One simulated process.

    Attributes:
        number: counts from 1.
        die_at: the number of the write at which it dies; 0: none.
        session: once it has one.
        over: how its life ended; empty while it lives.
    """

    world: World
    number: int
    die_at: int = 0
    die_before: bool = False
    freeze_at: int = 0
    dead: bool = False
    frozen: bool = False
    over: str = ""
    parked: list[asyncio.Handle] = field(default_factory=list[asyncio.Handle])
    tasks: list[asyncio.Task[Any]] = field(default_factory=list[asyncio.Task[Any]])
    session: RunSession | None = None
    main: asyncio.Task[None] | None = None
    commands: set[Any] = field(default_factory=set[Any])
    frozen_until: float = 0.0
    troubled: float = -1.0
    gone: bool = False

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def executes(self) -> bool:
        return not self.over and not self.dead

    def dies(self, write: int, *, before: bool) -> bool:
        """Whether this is the write at which it dies; then it is dead now. It may also be one at which it freezes."""
        if write == self.freeze_at and not before:
            self.world.freeze(self, self.world.rng.choice((1.0, 16.0, 30.0)))
        if not self.dead and write == self.die_at and before is self.die_before:
            self.world.kill(self, f"at write {write}, {'before' if before else 'after'} it")
        return self.dead

    def spawn(self, coro: Any) -> asyncio.Task[Any]:
        """Starts a task that belongs to this process."""
        context = contextvars.Context()
        context.run(PROCESS.set, self)
        return self.world.loop.create_task(coro, context=context)


class World:
    """What is outside of all processes: time, the disk, the provider, the machine, people.

    Attributes:
        steps: steps that were begun, denied or answered without an act.
        state: the fold of all that is durable.
        calm: from here nothing fails any more and people answer everything.
    """

    def __init__(self, seed: str, folder: Path, *, verbose: bool = False) -> None:
        from torture.simulation.rules import Rules

        self.seed = seed
        self.folder = folder
        self.rng = random.Random(seed)
        self.shuffled = self.rng.random() < 0.7
        self.loop = VirtualLoop(random.Random(self.rng.random()), shuffled=self.shuffled)
        self.clock: Clock = VirtualClock(self.loop)
        self.store = Store(MemoryJournal(self.clock))
        self.faults = Faults()
        self._outside = contextvars.Context()
        self.lives: list[Life] = []
        self.records: dict[str, list[Record]] = {}
        self.states: dict[str, RunState] = {}
        self.run = ""
        self.state = RunState("")
        self.calm = False
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.hash = hashlib.sha256()
        self.verbose = verbose
        self.failure: Broken | None = None
        self.ended: asyncio.Event = asyncio.Event()
        self.steps = 0
        self.kills = 0
        self.takeovers = 0
        self.changed_at = 0.0
        self.execution: Any = None
        self.run_tokens: int | None = None
        self.limits: dict[str, Any] = {}
        self._told: set[str] = set()
        self.rules = Rules(self)
        self.loop.set_exception_handler(self._unhandled)

    # --- chance ------------------------------------------------------------------------------------------------------

    def hits(self, probability: float) -> bool:
        """Whether something with this probability happens now; nothing does once all is calm."""
        return not self.calm and probability > 0 and self.rng.random() < probability

    def hits_once(self, what: str) -> bool:
        """Whether nobody asked for this before."""
        fresh = what not in self._told
        self._told.add(what)
        return fresh

    def commit_delay(self) -> float:
        if self.hits(self.faults.slow_commit):
            return self.rng.random() * 3.0
        return 0.0002 + self.rng.random() * 0.003

    def outside(self) -> contextvars.Context:
        """For callbacks that belong to no process."""
        return self._outside

    # --- the trace ---------------------------------------------------------------------------------------------------

    def note(self, text: str, more: str = "") -> None:
        """One line of the trace; `more` goes into its hash only."""
        line = f"{self.loop.time():12.6f} {text}"
        self.lines.append(line)
        self.hash.update(f"{line}\n{more}\n".encode("utf-8", "surrogatepass"))
        if self.verbose:
            print(line)

    def broken(self, rule: str, text: str) -> None:
        """An invariant does not hold: the world ends here."""
        if self.failure is None:
            self.failure = Broken(rule, text)
            self.note(f"BROKEN {rule}: {text}")
            self.ended.set()

    def _unhandled(self, loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.broken("no-unhandled-error", f"{context.get('message')}: {type(error).__name__}: {error}")

    # --- processes ---------------------------------------------------------------------------------------------------

    def born(self) -> Life:
        life = Life(self, len(self.lives) + 1)
        if self.hits(self.faults.die_at_write):
            life.die_at = 1 + int(self.rng.expovariate(1 / 40))
            life.die_before = self.rng.random() < 0.5
        if self.hits(self.faults.freeze_at_write):
            life.freeze_at = 1 + int(self.rng.expovariate(1 / 25))
        self.lives.append(life)
        return life

    def journal_of(self, life: Life) -> SimJournal:
        return SimJournal(self, life)

    def kill(self, life: Life, how: str) -> None:
        """kill -9: nothing of it runs any more, and its commands die with it."""
        if life.dead or life.over:
            return
        life.dead, life.over = True, "killed"
        life.parked.clear()
        self.kills += 1
        self.note(f"p{life.number} killed {how}")
        for task in life.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        for command in tuple(life.commands):
            command.kill()
        self.rules.died(life)

    def freeze(self, life: Life, seconds: float) -> None:
        """SIGSTOP, for so long."""
        if not life.executes or life.frozen:
            return
        life.frozen, life.frozen_until = True, self.loop.time() + seconds
        self.note(f"p{life.number} frozen for {seconds:.1f} s")
        self.loop.call_later(seconds, self._thaw, life, context=self._outside)

    def _thaw(self, life: Life) -> None:
        if not life.dead:
            self.note(f"p{life.number} thawed")
            life.troubled = self.loop.time()
            self.loop.thaw(life)

    # --- the disk ----------------------------------------------------------------------------------------------------

    def committed(self, life: Life, records: Sequence[Record]) -> None:
        """Records are durable, by this process."""
        for record in records:
            run = record.run
            if run not in self.states:
                self.states[run], self.records[run] = RunState(run), []
                self.run = run
            made = isinstance(record.event, RunCreated)  # it names the folder, which is never the same
            shown = "" if made else str(self.store.memory._rows[record.id - 1][2])
            event = f"RunCreated({record.event.agents})" if isinstance(record.event, RunCreated) else str(record.event)
            self.note(f"p{life.number} #{record.id} {record.stream or '(run)'} e{record.epoch} {event[:230]}", shown)
            before = self.states[run]
            after = fold(before, record)
            self.states[run] = after
            self.records[run].append(record)
            self.rules.recorded(life, record, before, after)
            if run == self.run:
                self.state = after
        self.changed_at = self.loop.time()
        if records[-1].id // FOLDED_EVERY > (records[0].id - 1) // FOLDED_EVERY:
            self.rules.fold_is_state()

    def read(self, run: str, *, after: int = 0, stream: str | None = None, limit: int | None = None) -> list[Record]:
        found = self.records.get(run, [])
        if after or stream is not None:
            found = [r for r in found if r.id > after and stream in (None, r.stream)]
        return found[:limit]

    def submit(self, verb: str, agent: str = "", author: str = "eve", **arguments: Any) -> None:
        """A request from another terminal."""
        from torture.simulation.journal import at_once

        if not self.run:
            return
        journal = self.store.memory
        number = at_once(journal.submit(self.run, verb, agent=agent, arguments=arguments, by=(author, "why not")))  # type: ignore[arg-type]
        self.note(f"people: {verb} {agent or '(all)'} {arguments or ''} is request {number}")
