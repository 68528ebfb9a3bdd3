"""Events of what passes between agents: instances, outputs, and questions to a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

JSON = dict[str, Any]


def _json() -> JSON:
    return {}


def _list() -> list[Any]:
    return []


@dataclass(frozen=True, slots=True)
class InstancesMade:
    """An agent with `for_each` became one agent for each element: `NAME[1]`, `NAME[2]` and so on.

    Attributes:
        items: the elements, JSON values in order; empty when they are in `blob`.
        count: how many there are.
        blob: digest of the elements as a JSON list when they are large; else empty.
    """

    KIND: ClassVar[str] = "instances_made"
    items: list[Any] = field(default_factory=_list)
    count: int = 0
    blob: str = ""


@dataclass(frozen=True, slots=True)
class OutputsMade:
    """An agent left its outputs, the last thing it did before it completed.

    Attributes:
        values: by name, JSON values of their types; empty when they are in `blob`.
        blob: digest of the values as a JSON object when they are large; else empty.
    """

    KIND: ClassVar[str] = "outputs_made"
    values: JSON = field(default_factory=_json)
    blob: str = ""


@dataclass(frozen=True, slots=True)
class ApprovalAsked:
    """A person is asked. Until the answer the agent starts no step.

    Attributes:
        approval: its id, the same for the same question in the same place: 16 hex digits of what is shown.
        task: the task that waits; empty when the agent itself does, before its first task.
        question: for the person.
        shown: what the answer is about, as JSON: the tool and its arguments and rule, or what the agent may do.
        expires_at: wall-clock seconds after which the question counts as unanswered; None = never.
        within_s: how long that is after it was asked, in seconds; None = never.
    """

    KIND: ClassVar[str] = "approval_asked"
    approval: str
    task: str
    question: str
    shown: JSON = field(default_factory=_json)
    expires_at: float | None = None
    within_s: float | None = None


@dataclass(frozen=True, slots=True)
class ApprovalAnswered:
    """A question to a person is settled.

    Attributes:
        approval: which.
        answer: `approved`, `denied`, or `unanswered` when its time ran out: nobody said no.
        author, reason: of the person; empty when nobody answered.
    """

    KIND: ClassVar[str] = "approval_answered"
    approval: str
    answer: str
    author: str = ""
    reason: str = ""
