"""`toka learn`: the least that a run would have needed, as text for its specs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from toka.cli.door import open_run, read_settings, state_option, unreadable
from toka.cli.ids import match_name
from toka.cli.output import emit
from toka.cli.render_change import MALFORMED
from toka.cli.text import json_line, line_of, some
from toka.core.capability import ARGUMENTS, Capability
from toka.core.ids import RunId
from toka.errors import TokaError
from toka.journal.sqlite import SqliteReader
from toka.orchestration.learn import Lesson, Refusal, lessons_of
from toka.tools.plugins import toolbox
from toka.tools.tool import Tool

WIDTH: Final = 200
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*|\.|\.[a-z_][A-Za-z0-9_./+-]*")
_WORDS: Final = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n", ".inf", ".nan"))
"""What other readers of YAML take for something else than text."""


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("agent", required=False)
@state_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def learn(run_id: str, agent: str | None, state: Path | None, as_json: bool) -> int:  # noqa: FBT001 - click's way
    """Propose the least set of capabilities that a run used, for the specs of its agents.

    What was refused, what was granted and not used, and what the record cannot tell is listed beside it.
    RUN is an id, the beginning of one, or @last.
    """
    with open_run(state, run_id) as (reader, run):
        try:
            lessons = lessons_of(reader.read(run), lambda digest: _loaded(reader, digest), _tools(state))
        except MALFORMED as e:
            raise unreadable(run, e) from e
    if agent is not None:
        name = match_name(lessons, agent)
        lessons = {name: lessons[name]}
    emit(json_line(lessons_json(run, lessons)) if as_json else "\n".join(lesson_lines(run, lessons)))
    return 0


def _tools(state: Path | None) -> Iterable[Tool]:
    """All that the settings allow now; only the built-in ones where these are at fault, which is no matter here."""
    try:
        return toolbox(read_settings(state))
    except TokaError:
        return ()


def _loaded(reader: SqliteReader, digest: str) -> Any:
    try:
        return json.loads(reader.blob(digest))
    except (TokaError, ValueError):
        return None


def lessons_json(run: RunId, lessons: Mapping[str, Lesson]) -> dict[str, Any]:
    """The object that `toka learn --json` prints."""
    return {
        "type": "lessons",
        "run_id": run,
        "agents": {
            name: {
                "calls": lesson.calls,
                "capabilities_required": [_asked(c) for c in lesson.capabilities],
                "unused": list(lesson.unused),
                "refused": [
                    {"what": r.what, "rule": r.rule, "patch": r.patch, "count": r.count} for r in lesson.refused
                ],
                "unreached": list(lesson.unreached),
                "unseen": list(lesson.unseen),
            }
            for name, lesson in lessons.items()
        },
    }


def lesson_lines(run: RunId, lessons: Mapping[str, Lesson]) -> list[str]:
    """The same as YAML: a mapping of agents; what is no proposal stands in comments."""
    out = [f"# the least that each agent of run {run} would have needed"]
    for name, lesson in lessons.items():
        out += _agent(name, lesson)
    return out


def _agent(name: str, lesson: Lesson) -> Iterator[str]:
    if not lesson.calls:
        yield f"{_scalar(name)}: {{}}  # it called no tool and ran no command"
    else:
        yield f"{_scalar(name)}:  # {some(lesson.calls, 'call or command', 'calls and commands')}"
        yield f"  capabilities_required:{'' if lesson.capabilities else ' []'}"
        yield from (f"    - {_line(capability)}" for capability in lesson.capabilities)
    for title, lines in (
        ("granted and not used", lesson.unused),
        ("asked for and refused", [_refusal(refusal) for refusal in lesson.refused]),
        ("allowed, and not reached", lesson.unreached),
        ("not in the record", lesson.unseen),
    ):
        if lines:
            yield f"  # {title}:"
            yield from (f"  #   {line_of(line, WIDTH)}" for line in lines)


def _refusal(refusal: Refusal) -> str:
    times = f", {refusal.count} times" if refusal.count > 1 else ""
    asked = refusal.patch.startswith(("- ", "grants: "))
    patch = f"; it would need: {refusal.patch.removeprefix('- ')}" if asked else ""
    return f"{refusal.what}{times}: {refusal.rule}{patch}"


def _asked(capability: Capability) -> Any:
    """As a spec asks for it: a bare name, or a name with its arguments."""
    arguments = {a: list(v) for a in ARGUMENTS if (v := getattr(capability, a)) is not None and (a, v) != _USUAL}
    return {capability.name: arguments} if arguments else capability.name


_USUAL: Final = ("ports", ("443",))


def _line(capability: Capability) -> str:
    asked = _asked(capability)
    if isinstance(asked, str):
        return asked
    arguments: dict[str, list[str]] = asked[capability.name]
    inner = ", ".join(f"{name}: [{', '.join(map(_scalar, items))}]" for name, items in arguments.items())
    return f"{capability.name}: {{{inner}}}"


def _scalar(text: str) -> str:
    """Text as YAML: bare where every reader takes it for text, else in quotes."""
    bare = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return text if bare else json.dumps(text, ensure_ascii=not text.isprintable())
