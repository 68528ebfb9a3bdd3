"""Commands in one sandbox, seen from the host: each sent, measured, and waited for until all of it is dead."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from toka.core.clock import Clock
from toka.core.stopwatch import Stopwatch
from toka.sandbox.command import CommandResult, Lifeline, Output
from toka.sandbox.keeper import Keeper
from toka.sandbox.launch import Zygote, to_the_end
from toka.sandbox.measure import Measure, Told, refused
from toka.sandbox.terminal import Streams

GRACE_S: Final = 5.0
"""Seconds past a deadline, or after a kill, in which the zygote must report; then the whole sandbox is killed."""
TERM_S: Final = 1.0
"""Seconds between SIGTERM and SIGKILL for a command whose caller is cancelled."""


@dataclass(frozen=True, slots=True)
class Commands:
    """Runs commands, any number at once.

    Attributes:
        keeper: holds the limits, and measures.
        clock: for how long each took.
        watch: counts the seconds of deadlines; held while the sandbox stands still.
        send: hands a request and its descriptors to a zygote that lives, and gives that zygote.
        end: kills a whole sandbox.
    """

    keeper: Keeper
    clock: Clock
    watch: Stopwatch
    send: Callable[[dict[str, Any], Sequence[int]], Awaitable[Zygote]]
    end: Callable[[Zygote], Awaitable[None]]

    async def run(
        self, request: dict[str, Any], limit: int, started: float, told: Told, *, apart: bool = False
    ) -> CommandResult:
        """One command with its output; see `Sandbox.run`.

        Args:
            request: for the zygote.
            limit: bytes of output to keep.
            started: when it was asked for, of the clock's monotonic time.
            told: called with how it ended, also when the caller is cancelled.
            apart: whether to keep standard output by itself, too.
        """
        lifeline = Lifeline()
        output = Output(limit, lifeline, apart=apart)
        try:
            result = await self.measured(request, lifeline, output, started, told)
        finally:
            output.drain()
            output.close()
            lifeline.close()
        return output.added_to(result)

    async def measured(
        self, request: dict[str, Any], lifeline: Lifeline, output: Output | Streams, started: float, told: Told
    ) -> CommandResult:
        """One command whose output goes somewhere; how it ended, without that."""
        measure = Measure(self.keeper, self.clock, request, lifeline, started)
        report: dict[str, Any] = {}
        try:
            with self.keeper.watching(measure.kill, measure.note):
                await self._command(request, lifeline, output, report, measure.sent)
        except ValueError as error:
            return refused(str(error), self.clock.monotonic() - started)
        except asyncio.CancelledError:
            told(measure.result(report, output))
            raise
        finally:
            measure.over()
        result = measure.result(report, output)
        told(result)
        return result

    async def _command(
        self,
        request: dict[str, Any],
        lifeline: Lifeline,
        output: Output | Streams,
        report: dict[str, Any],
        sent: Callable[[], None],
    ) -> None:
        """Sends the request and waits for the end, also when cancelled. Fills the report, unless the zygote died."""
        handed = output.theirs
        zygote = await self.send(request, (*handed, lifeline.theirs.fileno()))
        sent()
        output.sent()
        lifeline.theirs.close()
        try:
            async with self.watch.timeout(request["timeout"] + GRACE_S):
                report.update(await self._report(zygote, lifeline))
        except TimeoutError:
            await self.end(zygote)
            report["ended"] = "timeout"
        except asyncio.CancelledError:
            report.update(await to_the_end(self._kill(zygote, lifeline)) | {"ended": "killed"})
            raise

    async def _kill(self, zygote: Zygote, lifeline: Lifeline) -> dict[str, Any]:
        """Ends one command: SIGTERM to its process group, SIGKILL to all of it, if need be the whole sandbox.

        Of a sandbox that stands still, nothing gets to run once more: the whole of it is killed.
        """
        report = asyncio.ensure_future(self._report(zygote, lifeline))
        if not self.watch.held:
            lifeline.before_cut()
            lifeline.signal(signal.SIGTERM)
            await asyncio.wait({report}, timeout=TERM_S)
            lifeline.cut()
            await asyncio.wait({report}, timeout=GRACE_S)
        if not report.done():
            await self.end(zygote)
        return await report

    async def _report(self, zygote: Zygote, lifeline: Lifeline) -> dict[str, Any]:
        """How one process inside ended, when all that it started is dead; empty when the zygote died first."""
        report = await lifeline.report()
        if not report:
            await zygote.end()
        return report
