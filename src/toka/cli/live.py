"""How a run is shown while it runs: a view that is redrawn on a terminal, lines everywhere else.

Both are told of changes after these are durable, and read the run's state, which is frozen.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from toka.cli.output import coloured, say
from toka.cli.render_change import confinement
from toka.cli.rows import NAME_WIDTH, Row, event_line, event_text, heartbeat_line, rows_of
from toka.cli.tally import is_scripted
from toka.cli.text import clean, clock, money, span
from toka.events.lifecycle import AgentStatus
from toka.events.state import RunState
from toka.orchestration.session import RunSession
from toka.runtime.progress import ProgressEvent

HEARTBEAT_S: Final = 30.0
"""After how many seconds without a line one says that the run is alive."""
FRAMES_PER_S: Final = 5.0
RECENT: Final = 6
"""Events below the table."""
STYLES: Final = {
    AgentStatus.RUNNING: "cyan",
    AgentStatus.COMPLETED: "green",
    AgentStatus.FAILED: "bold red",
    AgentStatus.CRASH_LOOP: "bold red",
    AgentStatus.WAITING: "yellow",
    AgentStatus.PAUSED: "yellow",
    AgentStatus.BACKOFF: "yellow",
    AgentStatus.CONFIGURED: "dim",
    AgentStatus.SKIPPED: "dim",
}


class Tally:
    """Tasks ended and known, over all agents of a run; an agent that ended has no open ones."""

    def __init__(self, session: RunSession) -> None:
        self._session = session
        self.totals: dict[str, int] = {}
        self._done: dict[str, int] = {}
        for agent in session.plan.graph.order:
            self.update(agent)

    def update(self, agent: str) -> None:
        """Counts one agent anew."""
        progress = self._session.reporter.progress(agent)
        state = self._session.context.recorder.state.agents.get(agent)
        self.totals[agent] = progress.total
        self._done[agent] = progress.total if state is not None and state.ended else progress.done

    @property
    def figures(self) -> tuple[int, int]:
        """(ended, known)."""
        return sum(self._done.values()), sum(self.totals.values())


class Lines:
    """One line for each change; a heartbeat when nothing happens. For logs, pipes and CI."""

    def __init__(self, write: Callable[[str], None] = say) -> None:
        """`write` prints one line; it must not wait."""
        self._write = write
        self._session: RunSession | None = None
        self._tally: Tally | None = None
        self._width = 0
        self._heart: asyncio.Task[None] | None = None
        self._last = 0.0

    def start(self, session: RunSession) -> None:
        """The run begins. Needs the running loop."""
        self._session, self._tally = session, Tally(session)
        self._width = min(NAME_WIDTH, max(map(len, session.plan.graph.order), default=0))
        self._heart = asyncio.get_running_loop().create_task(self._beat(session))

    def stop(self) -> None:
        """Nothing more will happen."""
        if self._heart is not None:
            self._heart.cancel()

    def on_event(self, event: ProgressEvent) -> None:
        """Prints a change."""
        if self._session is None or self._tally is None or event.kind == "usage":
            return
        if event.agent:
            self._tally.update(event.agent)
        self._last = self._session.context.runtime.clock.monotonic()
        self._print(event_line(event, *self._tally.figures, self._width))

    def _print(self, line: str) -> None:
        with suppress(OSError):  # whoever read the lines went away; the run goes on
            self._write(line)

    async def _beat(self, session: RunSession) -> None:
        clock = session.context.runtime.clock
        self._last = clock.monotonic()
        while True:
            await clock.sleep(max(0.0, self._last + HEARTBEAT_S - clock.monotonic()))
            if clock.monotonic() - self._last >= HEARTBEAT_S and self._tally is not None:
                self._last = clock.monotonic()
                self._print(heartbeat_line(session.context.recorder.state, *self._tally.figures, clock.now()))


class LiveView:
    """The agents of a run as a table with the last events below it, redrawn in place on stderr.

    A thread draws: the event loop never waits for the terminal. What others print meanwhile appears above the table.
    """

    def __init__(self, console: Console | None = None) -> None:
        """`console` None: stderr."""
        self._console = console or Console(file=sys.stderr, no_color=not coloured(sys.stderr), highlight=False)
        self._live: Live | None = None
        self._recent: tuple[ProgressEvent, ...] = ()
        self._used: dict[str, str] = {}
        self._tally: Tally | None = None

    def start(self, session: RunSession) -> None:
        """The run begins."""
        tally = self._tally = Tally(session)
        before = {str(n): tuple(str(e.on) for e in session.plan.graph.before[n]) for n in session.plan.graph.order}
        scripted = is_scripted(session.models)

        def draw() -> RenderableType:
            state, height = session.context.recorder.state, self._console.height
            rows, left_out = rows_of(state, before, tally.totals, max(3, height - RECENT - 6))
            rows = [self._with_use(row) for row in rows]
            now = session.context.runtime.clock.now()
            head = headline(state, tally.figures, now, scripted=scripted)
            return view(head, rows, left_out, self._recent)

        self._live = Live(
            console=self._console,
            get_renderable=draw,
            refresh_per_second=FRAMES_PER_S,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)
        self._console.show_cursor(True)  # a process that is killed leaves the terminal as it was

    def _with_use(self, row: Row) -> Row:
        """An agent at work with nothing else to tell shows what it uses of the machine."""
        if row.note or row.status is not AgentStatus.RUNNING:
            return row
        return replace(row, note=self._used.get(row.agent, ""))

    def stop(self) -> None:
        """Nothing more will happen: the last picture stays."""
        shown, self._live = self._live, None
        if shown is not None:
            with suppress(OSError):  # the terminal is gone
                shown.stop()

    def on_event(self, event: ProgressEvent) -> None:
        """Takes note of a change; the next picture shows it."""
        if event.kind == "usage":
            self._used[event.agent] = event.text
            return
        if self._tally is not None and event.agent:
            self._tally.update(event.agent)
        self._recent = (*self._recent, event)[-RECENT:]


def headline(state: RunState, figures: tuple[int, int], now: float, *, scripted: bool = False) -> str:
    """The line above the table: a weaker confinement than usual, run, state, tasks, time, tokens, cost."""
    done, total = figures
    tokens = sum(a.usage.tokens for a in state.agents.values())
    costs = [a.cost_usd for a in state.agents.values()]
    cost = None if any(c is None for c in costs) else sum(c or 0.0 for c in costs)
    elapsed = max(0.0, (state.ended_at or now) - (state.started_at or now))
    weak = [confinement(state.weakest)] if state.weakest != "full" else []
    parts = [*weak, state.id, state.status.value, f"{done}/{total} tasks", span(elapsed), f"{tokens:,} tokens"]
    return "  ".join([*parts, "SCRIPTED model" if scripted else f"cost {money(cost)}"])


def view(head: str, rows: Sequence[Row], left_out: str, recent: Sequence[ProgressEvent]) -> Group:
    """The whole picture: headline, table, last events."""
    parts: list[RenderableType] = [Text(head, style="bold", no_wrap=True, overflow="ellipsis"), table(rows)]
    if left_out:
        parts.append(Text(left_out, style="dim", no_wrap=True, overflow="ellipsis"))
    parts.append(Text(""))
    parts += [_recent_line(event) for event in recent]
    return Group(*parts)


def _recent_line(event: ProgressEvent) -> Text:
    agent = f"{clean(event.agent, NAME_WIDTH)}  " if event.agent else ""
    return Text.assemble((f"{clock(event.at)}  ", "dim"), agent, event_text(event), no_wrap=True, overflow="ellipsis")


def table(rows: Sequence[Row]) -> Table:
    """The agents: state, tasks, what each does now, which attempt, tokens, what it waits for. One line each."""
    out = Table(box=None, pad_edge=False, expand=True, header_style="dim")
    for title in ("agent", "state", "tasks", "now", "try", "tokens", "note"):
        ratio = 3 if title in ("now", "note") else None
        justify = "right" if title in ("tasks", "try", "tokens") else "left"
        out.add_column(title, ratio=ratio, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in rows:
        out.add_row(
            Text(clean(row.agent, NAME_WIDTH)),
            Text(row.status.value, style=STYLES.get(row.status, "")),
            Text(f"{row.done}/{row.total}"),
            Text(row.task),
            Text(str(row.attempt) if row.attempt else ""),
            Text(f"{row.tokens:,}" if row.tokens else ""),
            Text(row.note),
        )
    return out
