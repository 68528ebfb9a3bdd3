"""Questions that agents ask people: what is asked, what it is about, and the commands that answer. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, cast

from toka.cli.text import age, line_of, lines_of, moment
from toka.core.units import format_money
from toka.events.state import ApprovalState, RunState

ID: Final = 8
"""Digits of an id in commands that are shown for copying."""
SHOWN_LINES: Final = 6
"""Lines of each thing that a question is about, where other things are shown as well."""
DOUBTS: Final = 30
"""Commands that answer about steps in doubt that are listed."""
_WORDS: Final = {"cost_usd": "cost", "step": "in step"}


def questions_of(state: RunState) -> list[tuple[str, ApprovalState]]:
    """The open questions of a run: (agent, question), in the order of agents."""
    return [(agent.name, each) for agent in state.agents.values() for each in agent.asking]


def is_late(question: ApprovalState, now: float) -> bool:
    """Whether an open question takes no answer any more, though nobody has recorded that yet."""
    return not question.answer and question.expires_at is not None and now >= question.expires_at


def late_text(question: ApprovalState) -> str:
    """Why a question takes no answer any more: `nobody answered within 2h, until 2026-11-23 17:31:47`."""
    nobody = replace(question, answer="unanswered").in_words
    return f"{nobody}, until {moment(question.expires_at)}"


def commands(run: str, agent: str, question: ApprovalState, options: str = "") -> list[str]:
    """The commands that answer a question, bound to it by its id.

    Args:
        run: its run.
        agent: who asks.
        question: what is asked.
        options: what commands about the run need at their end: ` --state DIR`, or nothing.
    """
    rest = f'{line_of(run, 60)} {_word(agent)} --reason "..." --id {question.id[:ID]}{options}'
    return [f"toka {verb} {rest}" for verb in ("approve", "deny")]


def resolving(state: RunState, agent: str, task: str, options: str = "") -> str:
    """The command that answers whether a step in doubt happened; it names the agent where several ask.

    Args:
        state: its run.
        agent: who asks.
        task: the task that waits.
        options: see `commands`.
    """
    several = sum(1 for each in state.agents.values() if (t := each.tasks.get(task)) is not None and t.question) > 1
    whose = f" --agent {_word(agent)}" if several else ""
    answers = "--happened|--not-happened|--abandon"
    return f"toka resolve {line_of(state.id, 60)} {shlex.quote(line_of(task, 120))}{whose} {answers}{options}"


def doubt_lines(state: RunState, options: str = "") -> list[str]:
    """The tasks of a run that wait for an answer about a step in doubt, each with the command that gives it."""
    asked = [(agent.name, t.id) for agent in state.agents.values() for t in agent.tasks.values() if t.question]
    lines = [f"  {resolving(state, agent, task, options)}" for agent, task in asked[:DOUBTS]]
    more = [f"  and {len(asked) - DOUBTS} more: toka show {state.id}{options}"] if asked[DOUBTS:] else []
    return ["", "waits for an answer: did it happen?", *lines, *more] if lines else []


def question_lines(
    run: str, agent: str, question: ApprovalState, now: float, options: str = "", most: int | None = SHOWN_LINES
) -> list[str]:
    """A question with what it is about, since when and until when it waits, and the commands that answer it.

    Args:
        run: its run.
        agent: who asks.
        question: what is asked.
        now: wall-clock seconds.
        options: see `commands`.
        most: lines of each thing that it is about; None = all.
    """
    if is_late(question, now):
        return [f"{late_text(question)}; toka resume {line_of(run, 60)}{options} records that"]
    return [*about_lines(question, now, most), *commands(run, agent, question, options)]


def about_lines(question: ApprovalState, now: float, most: int | None = SHOWN_LINES) -> list[str]:
    """What a question is about, and since when and until when it waits."""
    rows = [*_rows(question.shown, most), ("asked", _since(question, now))]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def question_json(question: ApprovalState) -> dict[str, Any]:
    """A question as `toka show --json` prints it; `answer` is null while it is open."""
    return {
        "id": question.id,
        "task": question.task or None,
        "question": question.question,
        "shown": question.shown,
        "asked_at": question.asked_at,
        "expires_at": question.expires_at,
        "answer": question.answer or None,
        "author": question.author,
        "reason": question.reason,
    }


def _since(question: ApprovalState, now: float) -> str:
    until = "" if question.expires_at is None else f", until {moment(question.expires_at)}"
    return f"{age(now - question.asked_at)} ago{until}"


def _rows(shown: dict[str, Any], most: int | None) -> Iterator[tuple[str, str]]:
    for key, value in shown.items():
        name = line_of(_WORDS.get(key, key), 40)
        for line in lines_of("\n".join(_texts(key, value)), most, None if most is None else 400):
            yield name, line
            name = ""


def _texts(key: str, value: Any) -> Iterator[str]:
    """A part of what is shown, as lines."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from _texts("", each)
    elif isinstance(value, dict):
        parts = cast("dict[str, Any]", value)
        if parts.keys() == {"cut", "characters", "sha256"}:
            yield f"{parts['cut']}\n[... {parts['characters']} characters in all, SHA-256 {parts['sha256']}]"
            return
        for name, each in parts.items():
            yield f"{name}: " + "\n".join(_texts("", each))
    elif key == "cost_usd" and isinstance(value, int | float):
        yield f"at most {format_money(float(value))}"
    else:
        yield json.dumps(value, ensure_ascii=False)


def _word(agent: str) -> str:
    """An agent's name for a shell: the brackets of an instance are a pattern there."""
    name = line_of(agent, 120)
    return f"'{name}'" if "[" in name else name
