"""What a record tells of the world outside: how acts ended, which model answered, what was missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from toka.config.agent import AgentConfig
from toka.config.flow_rules import AVAILABLE, NOT
from toka.core.ids import AgentName
from toka.events.event import (
    AgentStateChanged,
    ObjectiveChanged,
    SandboxReady,
    StepDone,
    StepFailed,
    StepInDoubt,
    StepIntent,
    StepPutBack,
    TaskStateChanged,
)
from toka.events.flow import OutputsMade
from toka.events.lifecycle import AgentStatus, Trigger
from toka.events.record import Record
from toka.events.workspace import BranchReturned, WorkspaceMade

_CUT_OFF: Final = frozenset({"cancelled", "failed"})
"""What a step failed of that was ended from outside."""

How = Literal["done", "failed", "cut_off", "lost", "sandbox", "no_sandbox", "crash"]


@dataclass(frozen=True, slots=True)
class Ended:
    """How an act ended, as far as a process lived to tell.

    Attributes:
        how: `done` and `failed` with `event`; `cut_off`: it was ended from outside, or with its process; `sandbox`,
            `no_sandbox` and `crash` with `message`; `lost`: its sandbox died, and a person was asked.
        event: what was recorded.
        message: of the error; of a crash `NAME: TEXT`.
    """

    how: How
    event: StepDone | StepFailed | None = None
    message: str = ""


class Recorded:
    """Looks things up in the records of one life of a run; see `RecordCursor`."""

    def __init__(
        self,
        records: Sequence[Record],
        blob: Callable[[str], bytes],
        configs: Mapping[AgentName, AgentConfig],
        there: Callable[[], int],
    ) -> None:
        """`records` are all of the run; `life` says which count from here on, `there` the id of the last that came."""
        self._there = there
        self._records = records
        self._blob = blob
        self._configs = configs
        self._streams: dict[str, list[Record]] = {}
        self._keys: dict[str, tuple[str, StepIntent]] = {}
        intents = ((r.stream, r.event) for r in records if isinstance(r.event, StepIntent))
        self._started = {intent.key: (stream, intent.step) for stream, intent in intents}

    def life(self, records: Sequence[Record]) -> None:
        """From here on only these records, of one life, are looked at."""
        self._streams.clear()
        self._keys.clear()
        for record in records:
            self._streams.setdefault(record.stream, []).append(record)
            if isinstance(record.event, StepIntent):
                self._keys[record.event.key] = (record.stream, record.event)

    def intent(self, key: str) -> tuple[str, StepIntent] | None:
        """The agent and the intent of a step, by its idempotency key; None when it was not started in this life."""
        return self._keys.get(key)

    def ended(self, key: str) -> Ended:
        """How a step ended that is under way now."""
        known = self._keys.get(key)
        if known is None:
            return Ended("cut_off")
        stream, step = known[0], known[1].step
        after = self._after(stream, step)
        for event in after:
            if isinstance(event, AgentStateChanged) and event.state == AgentStatus.BACKOFF.value:
                break
            if isinstance(event, StepIntent) and event.step == step:  # a pause ended it, and it began again
                return Ended("cut_off")
            if isinstance(event, StepInDoubt) and event.step == step:
                return Ended("lost")
            if isinstance(event, StepDone) and event.step == step:
                return Ended("done", event)
            if isinstance(event, StepFailed) and event.step == step:
                return _cause(event, after) or self._failed(event)
        return self._broken(step, after)

    def _failed(self, end: StepFailed) -> Ended:
        if "/model/" not in end.step:
            return Ended("sandbox", message=end.message) if end.error == "sandbox" else Ended("cut_off")
        return Ended("cut_off") if end.error in _CUT_OFF or end.limit is not None else Ended("failed", end)

    def _after(self, stream: str, step: str) -> list[Any]:
        """What an agent's stream holds after the latest start of a step that has come to its place."""
        records, there = self._streams.get(stream, []), self._there()
        starts = (
            n
            for n, r in enumerate(records)
            if isinstance(r.event, StepIntent) and r.event.step == step and r.id <= there
        )
        return [r.event for r in records[max(starts, default=-1) + 1 :]]

    def lost(self, key: str) -> list[Any] | None:
        """What the next start of a step was charged with for the one under way; None when none follows.

        Empty when it was charged with nothing.
        """
        stream, step = self._keys[key][0], self._keys[key][1].step
        again = (e for e in self._after(stream, step) if isinstance(e, StepIntent) and e.step == step)
        intent = next(again, None)
        return None if intent is None else intent.lost or []

    def checkpoint(self, agent: str, step: str) -> tuple[str, str, Sequence[str]]:
        """What was kept before a step: the checkpoint, or why there is none, and what it does not hold."""
        for record in self._streams.get(agent, ()):
            event = record.event
            if isinstance(event, StepIntent) and event.step == step and record.id > self._there():
                noted: dict[str, Any] = event.evidence or {}
                return noted.get("checkpoint") or "", str(noted.get("why", "")), noted.get("uncovered") or ()
        return "", "", ()

    def private(self, agent: str) -> WorkspaceMade | str | None:
        """An agent's private workspace as it was made next, or why it was not there; None = it was."""
        for event in self._coming(agent):
            if isinstance(event, WorkspaceMade):
                return event
            if isinstance(event, AgentStateChanged):
                if event.why == "workspace":
                    return event.reason
                if event.state != AgentStatus.STARTING.value:
                    return None
        return None

    def has_sandbox(self, agent: str) -> bool:
        """Whether an agent had a sandbox at its tools' hands in this life."""
        return any(isinstance(r.event, SandboxReady) for r in self._streams.get(agent, ()))

    def hangs(self, agent: str) -> bool:
        """Whether an agent's next start took too long."""
        coming = (e for e in self._coming(agent) if isinstance(e, AgentStateChanged))
        starting, then = next(coming, None), next(coming, None)
        return (
            starting is not None
            and then is not None
            and starting.state == AgentStatus.STARTING.value
            and then.by == Trigger.LIMIT.value
            and "did not start within " in then.reason
        )

    def returned(self, agent: str, branch: str) -> BranchReturned:
        """What became of an agent's branch."""
        found = (event for event in self._coming(agent) if isinstance(event, BranchReturned))
        return next(found, BranchReturned(branch))

    def _coming(self, stream: str) -> Iterator[Any]:
        """What an agent's stream holds behind the place that was come to."""
        return (record.event for record in self._streams.get(stream, ()) if record.id > self._there())

    def put_back(self, agent: str, step: str) -> StepPutBack:
        """What came of putting back what a step left when its process died."""
        for record in self._streams.get(agent, ()):
            event = record.event
            if isinstance(event, StepPutBack) and event.step == step and record.id > self._there():
                return event
        return StepPutBack(step)

    def _broken(self, step: str, after: Sequence[Any]) -> Ended:
        """Why a step has no end: its sandbox broke, its agent crashed, or its process was gone."""
        task = step.partition("/")[0]
        for event in after:
            if isinstance(event, AgentStateChanged):
                if event.state == AgentStatus.BACKOFF.value:
                    return Ended("crash", message=event.reason)
                if event.why == "sandbox":
                    return Ended("no_sandbox", message=event.reason)
            if isinstance(event, TaskStateChanged) and event.task == task and "/run/" in step and event.reason:
                return Ended("sandbox", message=event.reason)
            if isinstance(event, ObjectiveChanged) and f"objective-{event.objective}" == task:
                return Ended("sandbox", message=str((event.evidence or {}).get("output", "")))
        return Ended("cut_off")

    def value(self, stored: Any) -> Any:
        """A stored result as it was handed on."""
        if isinstance(stored, dict) and "blob" in stored:
            return json.loads(self._blob(str(cast("dict[str, Any]", stored)["blob"])).decode("utf-8", "surrogatepass"))
        return cast(object, stored)

    def probe(self, key: str) -> Literal["happened", "not-happened", "unknown"]:
        """What a look at the world said of a step that was in flight when an earlier process died."""
        stream, step = self._started[key]
        for record in self._streams.get(stream, ()):
            event = record.event
            if isinstance(event, StepDone) and event.step == step:
                return "happened"
            if isinstance(event, StepInDoubt) and event.step == step:
                return "unknown"
            if isinstance(event, StepIntent) and event.step == step:
                return "not-happened"
        return "not-happened"  # this process died before it noted what it found

    def model(self, chosen: str, default: str, asked: str | None) -> tuple[str, str]:
        """Which model answered for a model string of the specs, or why none did.

        Args:
            chosen: as it was asked for.
            default: the one for specs that name none.
            asked: the one of the command line; None when there was none.

        Returns:
            (model, ""), or ("", why there was none).
        """
        meant = [name for name, c in self._configs.items() if (asked or c.model or default) == chosen]
        records = [r for r in self._records if AgentName(r.stream.partition("[")[0]) in meant]
        for record in records:
            event = record.event
            if isinstance(event, StepIntent) and "/model/" in event.step:
                return event.what, ""
        for record in records:
            event = record.event
            if not isinstance(event, AgentStateChanged):
                continue
            if event.why == "no_model" and event.reason.startswith("no model: "):
                return "", event.reason.removeprefix("no model: ")
            said = event.reason.removeprefix("when: ")
            if event.why == "when" and AVAILABLE in said and not NOT.match(said.strip()):
                return "", "no model answered then"
        return chosen, ""

    def missing_secret(self, name: str) -> bool:
        """Whether an agent could not begin since there was no such secret."""
        said = f"there is no secret {name};"
        events = (r.event for r in self._records)
        return any(isinstance(e, AgentStateChanged) and e.why == "value" and e.reason.startswith(said) for e in events)

    def outputs(self, agent: str) -> Mapping[str, Any] | str:
        """The values that an agent left in this life, by name; or why it left none."""
        why = ""
        for record in self._streams.get(agent, ()):
            event = record.event
            if isinstance(event, OutputsMade):
                return json.loads(self._blob(event.blob)) if event.blob else event.values
            if isinstance(event, AgentStateChanged) and event.why == "output":
                why = event.reason
        return why


def _cause(end: StepFailed, after: Sequence[Any]) -> Ended | None:
    """What broke in a step so that its agent failed at once; None: nothing did."""
    last = next((e for e in after if isinstance(e, AgentStateChanged)), None)
    if end.error != "failed" or last is None or last.state != AgentStatus.FAILED.value:
        return None
    if last.why == "sandbox" and last.reason == end.message:
        return Ended("no_sandbox", message=end.message)
    if last.by == Trigger.CRASH.value and last.reason == f"crashed: {end.message}":
        return Ended("crash", message=end.message)
    return None
