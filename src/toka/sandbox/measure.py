"""What one command used, and which limit it met: read before it begins and when all of it is dead, whoever ended it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from toka.core.clock import Clock
from toka.sandbox.command import FLOOD_BYTES, CommandResult, Ended, Lifeline, Output
from toka.sandbox.keeper import Exceeded, Keeper, Spent
from toka.sandbox.usage import Usage

NEAR: Final = 0.9
"""The part of its bound from which a process that failed probably failed of it."""
ROUGHLY: Final = 0.75
"""The same for seconds of processor time, which the kernel bounds by its ticks and tells as it measured them."""
OUT_OF_TIME: Final = (-signal.SIGKILL, -signal.SIGXCPU, 128 + signal.SIGKILL, 128 + signal.SIGXCPU)
"""Exit codes of a command, and of a shell around it, whose seconds of processor time are used up."""
LAST_LOOK_S: Final = 0.03
"""Seconds before a deadline at which figures are read that nobody can read after it."""
LONGEST_S: Final = 1e6
"""Deadlines further away than these seconds get no such look."""


Told = Callable[[CommandResult], None]
"""Hears how a command ended."""


def unheard(_: CommandResult) -> None:
    """Nobody wants to know beside the caller."""


class Measure:
    """Figures of one command in one sandbox, begun before it starts.

    What a cgroup counts is exact while no other command runs in the sandbox. Of a killed tree without a cgroup the
    kernel keeps no figures, so they are read a moment before the kill; the result says which are the least.
    """

    def __init__(
        self, keeper: Keeper, clock: Clock, request: Mapping[str, Any], lifeline: Lifeline, began: float
    ) -> None:
        self._keeper = keeper
        self._clock = clock
        self._request = request
        self._lifeline = lifeline
        self._began = began
        self._before: Usage | None = None  # nothing was sent
        self._network = keeper.network
        self._killed_for: Exceeded | None = None
        self._noted: Exceeded | None = None
        self.alone = True
        """Whether no other command ran in the sandbox meanwhile."""
        for other in (running := keeper.running):
            other.alone = self.alone = False
        running.add(self)
        lifeline.before_cut = keeper.look
        self._stood = 0.0
        self._last_look: asyncio.TimerHandle | None = None
        if (deadline := float(request["timeout"])) < LONGEST_S:
            wait = max(0.0, deadline - LAST_LOOK_S)
            self._last_look = asyncio.get_running_loop().call_later(wait, keeper.look)

    def sent(self) -> None:
        """The request is on its way: what was used until now is read while the inside makes the command's namespaces.

        It takes the zygote milliseconds until the command itself begins, and the reading a fraction of one.
        """
        self._before = self._keeper.usage()

    def later(self, seconds: float) -> None:
        """Its deadline is put off: it stood still for so long."""
        self._stood += seconds
        if (timer := self._last_look) is not None:
            timer.cancel()
            loop = asyncio.get_running_loop()
            self._last_look = loop.call_at(max(loop.time(), timer.when() + seconds), self._keeper.look)

    def kill(self, exceeded: Exceeded) -> None:
        """Ends the command for a limit."""
        self._killed_for = self._killed_for or exceeded
        self._lifeline.cut()

    def note(self, exceeded: Exceeded) -> None:
        """A limit was seen to be reached that ends nothing by itself."""
        self._noted = exceeded

    def over(self) -> None:
        """The command has ended. Idempotent."""
        if self._last_look is not None:
            self._last_look.cancel()
        self._keeper.running.discard(self)

    def result(self, report: Mapping[str, Any], output: object) -> CommandResult:
        """How it ended, without its output.

        Args:
            report: the zygote's; empty when the sandbox died.
            output: where its output went.
        """
        self.over()
        keeper = self._keeper
        keeper.wrote(report.get("written", 0))
        now = keeper.usage()
        before = self._before or now
        result = _plain(report, self._clock.monotonic() - self._began)
        spent = self._bounded(keeper.spent(before, now, self._network), result, report.get("written"))
        if self.alone and result.ended != "exited":
            keeper.settle()
        exceeded = self._killed_for or keeper.met(before, now) or self._noted or self._own_bound(result)
        if isinstance(output, Output) and output.flooded and result.ended == "killed":
            result = replace(result, ended="flood")
            exceeded = Exceeded("output", FLOOD_BYTES, output.size)
        if result.ended == "timeout" and (exceeded is None or exceeded.kind == "processes"):
            limit: float = self._request["timeout"]
            exceeded = Exceeded("time", limit, max(limit, result.wall_s - self._stood), "seconds")
        return replace(result, cpu_s=spent.cpu_s or 0.0, exceeded=exceeded, spent=spent)

    def _bounded(self, spent: Spent, result: CommandResult, written: int | None) -> Spent:
        """The best figures there are, and which of them are the least it can have been."""
        keeper, at_least = self._keeper, list[str]()
        by_itself = result.ended in ("exited", "refused")
        if not (keeper.counts("cpu_s") and self.alone):
            seen = spent.cpu_s if self.alone and spent.cpu_s is not None else 0.0
            spent = replace(spent, cpu_s=max(result.cpu_s, seen))
            at_least += [] if by_itself else ["cpu_s"]
        if written and not keeper.counts("written_bytes"):  # /proc hides it from an ordinary user; the inside tells
            spent = replace(spent, written_bytes=max(spent.written_bytes or 0, written))
        # Samples may miss the highest point; the kernel saw it of one process.
        if result.ended != "refused" and not keeper.counts("memory_peak_bytes"):
            spent = replace(spent, memory_peak_bytes=max(spent.memory_peak_bytes or 0, result.max_rss_bytes))
            at_least.append("memory_peak_bytes")
        if not by_itself and not keeper.counts("written_bytes"):
            at_least += [n for n in ("read_bytes", "written_bytes") if getattr(spent, n) is not None]
        return replace(spent, at_least=tuple(at_least))

    def _own_bound(self, result: CommandResult) -> Exceeded | None:
        """A bound of each process, if the command ended badly close to it: nothing tells that it met it."""
        bounds: Mapping[str, int] = self._request["rlimits"]
        memory, seconds = bounds.get("DATA"), bounds.get("CPU")
        if result.ended != "exited" or not result.exit_code:
            return None
        if memory is not None and result.max_rss_bytes >= NEAR * memory:
            return Exceeded("memory", memory, result.max_rss_bytes, best_effort=True)
        if seconds is not None and result.exit_code in OUT_OF_TIME and result.cpu_s >= ROUGHLY * seconds:
            return Exceeded("cpu", seconds, round(result.cpu_s, 3), "seconds", best_effort=True)
        return None


def refused(reason: str, wall_s: float) -> CommandResult:
    """Of a command that was not run."""
    return CommandResult(126, b"", 0, "refused", wall_s, 0.0, 0, reason)


def _plain(report: Mapping[str, Any], wall_s: float) -> CommandResult:
    ended: Ended = report.get("ended", "lost")
    return CommandResult(
        exit_code={"exited": report.get("code"), "refused": 126}.get(ended),
        output=b"",
        dropped=0,
        ended=ended,
        wall_s=wall_s,
        cpu_s=report.get("cpu", 0.0),
        max_rss_bytes=report.get("rss", 0),
        reason=report.get("refused", ""),
    )
