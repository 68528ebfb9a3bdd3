"""Names of things: runs, agents, tasks, steps."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NewType

RunId = NewType("RunId", str)
"""`YYYYMMDD-HHMMSS-xxxxxx` (UTC start and six random letters or digits): sorts by time."""

AgentName = NewType("AgentName", str)
"""`metadata.name` of a spec: letters, digits, `.`, `_` and `-`, at most 100 characters."""

TaskId = NewType("TaskId", str)
"""Unique inside its agent: `tasks[].id`, else `task-N` in order of appearance (`GROUP-N` in a conditional group)."""

StepKind = Literal["model", "tool", "run", "check", "wait"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What an agent name or task id may look like (fullmatch)."""

_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def new_run_id(now: float, randbelow: Callable[[int], int]) -> RunId:
    """Makes a run id.

    Args:
        now: wall-clock time, seconds since the epoch.
        randbelow: returns a random integer in [0, n); `secrets.randbelow` outside tests.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return RunId(stamp + "-" + "".join(_ALPHABET[randbelow(len(_ALPHABET))] for _ in range(6)))


@dataclass(frozen=True, slots=True)
class StepKey:
    """Which step of an agent: computed from the recorded transcript, never from the order of execution.

    Attributes:
        task: the task it belongs to; objectives use `objective-N`.
        attempt: 1 for the first try of the task.
        turn: 1 for the first model call of the attempt; a tool call has the turn of the reply that asked for it.
        kind: what the step does.
        index: position among the calls of one reply, or among the checks of one round; 0 for a model call.
    """

    task: TaskId
    attempt: int
    turn: int
    kind: StepKind
    index: int = 0

    @property
    def text(self) -> str:
        """`task/attempt/turn/kind/index`; task ids cannot contain a slash."""
        return f"{self.task}/{self.attempt}/{self.turn}/{self.kind}/{self.index}"

    @staticmethod
    def parse(text: str) -> StepKey:
        """The inverse of `text`.

        Raises:
            ValueError: the text is not a step key.
        """
        task, attempt, turn, kind, index = text.split("/")
        if kind not in ("model", "tool", "run", "check", "wait"):
            raise ValueError(f"unknown step kind {kind!r}")
        return StepKey(TaskId(task), int(attempt), int(turn), kind, int(index))


def idempotency_key(run: RunId, agent: AgentName, step: StepKey) -> str:
    """H(run, agent, step): 32 hex digits, the same over restarts."""
    return hashlib.sha256(f"{run}\0{agent}\0{step.text}".encode()).hexdigest()[:32]
