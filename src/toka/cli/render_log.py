"""A run's records as a transcript: what agents were asked, said, called and got. Pure, given the blobs.

Whatever agents, tools and commands wrote is shown with its control characters replaced, and cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any, Final, cast

from toka.cli.render_change import MALFORMED, change_lines
from toka.cli.text import LINE, Paint, clock, compact, executed, line_of, lines_of, money, needed, plain, some, span
from toka.errors import TokaError
from toka.events.event import StepDenied, StepDone, StepFailed, StepIntent, StepLeft
from toka.events.record import Record

ASKED_LINES: Final = 12
SAID_LINES: Final = 60
RESULT_LINES: Final = 12
_MATERIAL: Final = re.compile(r"<material ([0-9a-f]{16}) \([^)\n]*\)>\n(.*)\n</material \1>(\n.*)?", re.DOTALL)
_TOOL_FAILED: Final = re.compile(r"The call of [^\n]* failed; nothing is known beyond this\.\n")

JSON = dict[str, Any]


class Transcript:
    """Turns records, in the order of their ids, into lines.

    It remembers what models asked for, so that a call that was rejected before it became a step can be shown.
    """

    def __init__(
        self, blob: Callable[[str], bytes], agents: Collection[str], *, full: bool = False, paint: Paint = plain
    ) -> None:
        """`blob` loads large results; `agents` are the names to align; `full` cuts nothing."""
        self._blob = blob
        self._full = full
        self._paint = paint
        self._width = min(24, max((len(name) for name in agents), default=3))
        self._calls: dict[tuple[str, str], tuple[str, str]] = {}
        self._open: set[tuple[str, str]] = set()

    def lines(self, record: Record) -> list[str]:
        """The lines of one record; none when it says nothing to people."""
        try:
            body = self._body(record)
        except MALFORMED as e:
            body = [f"record {record.id} cannot be shown: {line_of(str(e), 200)}"]
        name = line_of(record.stream or "run", 60).ljust(self._width)
        margin = " " * (9 + len(name))
        head = f"{self._paint(clock(record.at), 'dim')} {self._paint(name, 'bold')}"
        return [f"{head if i == 0 else margin} {line}".rstrip() for i, line in enumerate(body)]

    def _body(self, record: Record) -> list[str]:
        match record.event:
            case StepIntent() as event:
                return self._intent(record, event)
            case StepDone() as event:
                return self._done(record, event)
            case StepFailed() as event:
                return self._failed(event)
            case StepLeft() as event:
                return [self._paint(f"killed after {span(event.wall_s)}, as Toka was to end", "warn")]
            case StepDenied() as event:
                return self._denied(event)
            case event:
                return change_lines(event, self._paint)

    def _block(self, text: str, most: int) -> list[str]:
        kept, limit = (None, None) if self._full else (most, LINE)
        return [f"  | {line}" for line in lines_of(text, kept, limit)]

    def _loaded(self, result: Any) -> Any:
        """A step's result; what cannot be loaded is said in its place."""
        digest: object = cast(JSON, result).get("blob") if isinstance(result, dict) else None
        if not isinstance(digest, str):
            return cast(Any, result)
        try:
            return json.loads(self._blob(digest).decode("utf-8", "surrogatepass"))
        except (TokaError, ValueError) as e:
            return {"text": f"(cannot be shown: {e})"}

    def _intent(self, record: Record, event: StepIntent) -> list[str]:
        self._open.add((record.stream, event.step))
        again = " (again, after a crash)" if event.again else ""
        kind = _kind(event.step)
        if kind == "model":
            return self._asked(event, again)
        if kind in ("run", "check"):
            first, *rest = lines_of(executed(event.what, event.arguments), None if self._full else ASKED_LINES)
            return [f"$ {first}{again}", *(f"  {line}" for line in rest)]
        return [f"> {self._call(event.what, event.arguments)}{again}   allowed by {line_of(event.rule or '-', 120)}"]

    def _asked(self, event: StepIntent, again: str) -> list[str]:
        out: list[str] = []
        for message in event.messages or []:
            role, text = str(message.get("role", "")), str(message.get("text", ""))
            if role == "system" and not self._full:
                out.append(f"system prompt, {some(len(text), 'character')} (--full shows it)")
            else:
                out += [f"asked ({line_of(role, 20)}):", *self._block(text, ASKED_LINES)]
        return [*out, f"asks {line_of(event.what, 120)} again: the answer was lost in a crash"] if again else out

    def _done(self, record: Record, event: StepDone) -> list[str]:
        value = self._loaded(event.result)
        kind = _kind(event.step)
        if kind == "model":
            return self._said(record, event, value)
        if kind in ("run", "check"):
            return self._ran(event, value)
        text = str(cast(JSON, value).get("text", "")) if isinstance(value, dict) else compact(value)
        block = self._block(material(text), RESULT_LINES)
        if (record.stream, event.step) in self._open:
            return [self._paint("error:", "bad"), *block] if event.failed else (block or ["  | (no output)"])
        name, arguments = self._calls.get((record.stream, event.step), ("a call", ""))
        return [f"> {self._call(name, arguments)}   {self._paint('rejected', 'warn')}, nothing was run", *block]

    def _said(self, record: Record, event: StepDone, value: Any) -> list[str]:
        message: JSON = cast(JSON, value) if isinstance(value, dict) else {}
        out = ["says:", *self._block(text, SAID_LINES)] if (text := str(message.get("text", ""))) else []
        task, attempt, turn = event.step.split("/")[:3] if event.step.count("/") == 4 else (event.step, "", "")
        for index, (_, name, arguments) in enumerate(message.get("calls") or []):
            self._calls[record.stream, f"{task}/{attempt}/{turn}/tool/{index}"] = (name, arguments)
            if name == "report":
                out.append(f"reports {compact(arguments, 10**6 if self._full else LINE)}")
        usage = event.usage or [0, 0]
        cost = f", {money(event.cost_usd)}" if event.cost_usd != 0 else ""
        model = f"{line_of(event.model, 80)}, " if event.model else ""
        wall = span(event.wall_s)
        out += (
            [self._paint("cut off: the reply had no room to end", "warn")] if message.get("finish") == "length" else []
        )
        return [*out, self._paint(f"({model}{usage[0]:,} tokens in, {usage[1]:,} out{cost}, {wall})", "dim")]

    def _ran(self, event: StepDone, value: Any) -> list[str]:
        result: JSON = cast(JSON, value) if isinstance(value, dict) else {}
        output = self._block(str(result.get("output", "")), RESULT_LINES)
        exit_ = f"exited with {result.get('exit')}" if result.get("ended") == "exited" else result.get("ended", "?")
        dropped = f", {result['dropped']} bytes of output not kept" if result.get("dropped") else ""
        met = f", limit met: {line_of(str(event.limit['scope']), 120)}" if event.limit else ""
        return [*output, self._paint(f"{line_of(str(exit_), 60)} in {span(event.wall_s)}{dropped}{met}", "dim")]

    def _failed(self, event: StepFailed) -> list[str]:
        first, *rest = lines_of(event.message, 10) or [""]
        return [f"{self._paint('failed', 'bad')} ({line_of(event.error, 40)}): {first}", *(f"  {t}" for t in rest)]

    def _denied(self, event: StepDenied) -> list[str]:
        call = self._call(event.what, event.arguments)
        verdict = f"{self._paint('denied', 'bad')} by rule: {line_of(event.rule, 120)}"
        fix = needed(event.place, event.patch)
        return [f"> {call}   {verdict}", f"  {line_of(event.reason)}", *([f"  {line_of(fix)}"] if fix else [])]

    def _call(self, name: str, arguments: Any) -> str:
        shown = "" if arguments is None else compact(arguments, 10**6 if self._full else 200)
        return f"{line_of(name, 60)} {shown}".rstrip()


def material(text: str) -> str:
    """A tool's result without the fence that tells the model what is data."""
    text = _TOOL_FAILED.sub("", text, count=1)
    found = _MATERIAL.fullmatch(text)
    return f"{found[2]}{found[3] or ''}" if found else text


def _kind(step: str) -> str:
    return step.split("/")[3] if step.count("/") == 4 else ""
