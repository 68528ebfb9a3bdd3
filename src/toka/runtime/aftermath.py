"""What the record says of steps in which a process died, and what people are asked and answered about them. Pure."""

from __future__ import annotations

from typing import Any, Final

from toka.core.effect import Effect
from toka.events.event import AgentStateChanged, StepDenied, StepDone, StepFailed, StepInDoubt, StepIntent, StepResolved
from toka.events.lifecycle import AgentStatus
from toka.events.steps import StepLeft, StepPutBack
from toka.runtime.payload import shortened

POISON: Final = 3
"""As often as a step was in flight when its process died, before a person is asked about it."""


class Aftermath:
    """Of the steps of one agent, from the records of its stream in their order.

    Attributes:
        put_back: what came of putting back what the last start of a step left.
        doubts: by step the question for a person.
        answers: by step what a person answered.
    """

    def __init__(self) -> None:
        self.put_back: dict[str, StepPutBack] = {}
        self.doubts: dict[str, str] = {}
        self.answers: dict[str, str] = {}
        self._deaths: dict[str, int] = {}

    def read(self, event: Any) -> None:
        """Takes the next record's event."""
        if isinstance(event, StepIntent):
            self._deaths[event.step] = self._deaths.get(event.step, 0) + 1
            self.put_back.pop(event.step, None)
            self.doubts.pop(event.step, None)  # it was started again: an answer was about the start before
            self.answers.pop(event.step, None)
        elif isinstance(event, StepDone | StepFailed | StepDenied):
            self._deaths.pop(event.step, None)
        elif isinstance(event, StepLeft):
            self._survived(event.step)
        elif isinstance(event, StepPutBack):
            self.put_back[event.step] = event
        elif isinstance(event, AgentStateChanged):
            if event.state == AgentStatus.BACKOFF:  # the agent crashed, and the process lived on
                for step in tuple(self._deaths):
                    self._survived(step)
        elif isinstance(event, StepInDoubt):
            self.doubts[event.step] = event.question
            self.answers.pop(event.step, None)  # of the question before
        elif isinstance(event, StepResolved):
            self.answers[event.step] = event.answer
            self._deaths.pop(event.step, None)

    def _survived(self, step: str) -> None:
        """The last start of a step ended without the death of its process."""
        if self._deaths.get(step):
            self._deaths[step] -= 1

    def deaths(self, step: str) -> int:
        """How often in a row a step was in flight when its process died, since a person last answered."""
        return self._deaths.get(step, 0)

    def stays(self, step: str) -> bool:
        """Whether what a step left in the workspace stays: a person is to say first whether it happened, or said so."""
        answer = self.answers.get(step)
        if answer is None:
            return step in self.doubts or self.deaths(step) >= POISON
        return answer != "not-happened"

    def last_answer(self, task: str) -> str:
        """What a person last answered about a step of a task; empty when nobody did."""
        answers = [answer for step, answer in self.answers.items() if step.startswith(f"{task}/")]
        return answers[-1] if answers else ""

    def question(self, intent: StepIntent) -> str:
        """What a person is asked about a step whose process died in it."""
        deaths, back, left = self.deaths(intent.step), self.put_back.get(intent.step), ""
        if back is not None and back.problem:
            left = f" The workspace is as it was left: {back.problem}."
        elif back is None and intent.effect == Effect.WORKSPACE and (intent.evidence or {}).get("scope"):
            left = " What it last did in the workspace is still there; only if it did not happen, that is put back."
        if deaths < POISON:
            return f"{named(intent)} was started and Toka ended before it did.{left} Did it happen?"
        return (
            f"{named(intent)} was started {deaths} times, and each time Toka died before it ended.{left} Did it happen?"
        )


def named(intent: StepIntent) -> str:
    """What a step was to do, in a question about it."""
    return f"{intent.what} {shortened(intent.arguments)}".strip()
