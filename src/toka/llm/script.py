"""Scripts of scripted models: their values and their validation. The format is described in `toka.llm.scripted`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast, get_args

from toka.core.message import Message
from toka.core.units import UnitError, parse_duration
from toka.errors import ConfigError
from toka.llm.failure import KINDS
from toka.llm.model import Finish

VERSION: Final = 1
ANY: Final = "*"
FINDING_CODE: Final = "TK6101"

ErrorName = Literal["unavailable", "refused"]
ERRORS: Final = (*get_args(ErrorName), *KINDS)
_FIELDS: Final = (
    "say", "calls", "raw_calls", "report", "error", "times", "usage", "cost", "delay", "finish", "repeat",
)  # fmt: skip
_USAGE: Final = ("input", "output", "cache_read", "cache_write")


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """One reply of a script.

    Attributes:
        say: the text.
        calls: (tool name, arguments as JSON text) in order.
        error: raise this failure instead; None: reply.
        times: only the first so many attempts of the call fail; None: all.
        usage: (input, output, cache_read, cache_write) tokens; empty: by the length of the texts.
        cost_usd: US dollars; None: left to the gateway.
        delay_s: seconds before the reply.
        finish: why the reply ended; None: by its calls.
        repeat: it also answers all later calls.
        message: the whole message, instead of `say` and `calls`; only from Python.
    """

    say: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    error: str | None = None
    times: int | None = None
    usage: tuple[int, ...] = ()
    cost_usd: float | None = None
    delay_s: float = 0.0
    finish: Finish | None = None
    repeat: bool = False
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """Replies by agent and task.

    Attributes:
        agents: agent or `*` -> task or `*` -> replies, one per call.
        default: replies when nothing matches; None when there are none.
    """

    agents: Mapping[str, Mapping[str, tuple[ScriptedReply, ...]]]
    default: tuple[ScriptedReply, ...] | None = None

    def replies(self, agent: str, task: str) -> tuple[ScriptedReply, ...] | None:
        """The list for an agent's task; None when there is none. For `fix[3]`, what is there for `fix` stands in."""
        for who in (agent, agent.partition("[")[0], ANY):
            tasks = self.agents.get(who)
            if tasks is not None:
                for name in (task, ANY):
                    if name in tasks:
                        return tasks[name]
        return self.default


@dataclass(frozen=True, slots=True)
class ScriptFinding:
    """What is wrong at one place of a script: `text` is one line, file, place and message."""

    text: str
    code: str = FINDING_CODE

    def render(self) -> str:
        """The same text: a script is not shown line by line."""
        return self.text


@dataclass(slots=True)
class _Reader:
    """Collects findings while it reads; `file` names the source in them."""

    file: str
    findings: list[ScriptFinding] = field(default_factory=list[ScriptFinding])

    def wrong(self, where: str, what: str) -> None:
        self.findings.append(ScriptFinding(f"{self.file}: {where}: {what}" if where else f"{self.file}: {what}"))

    def mapping(self, value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            self.wrong(where, f"expected a mapping, found {_kind(value)}")
            return {}
        out: dict[str, Any] = {}
        for key, item in cast("Mapping[object, Any]", value).items():
            if isinstance(key, str):
                out[key] = item
            else:
                self.wrong(where, f"the key {key!r} is {_kind(key)}; put it in quotes")
        return out

    def items(self, value: object, where: str) -> list[Any]:
        if isinstance(value, list | tuple):
            return list(cast("list[Any]", value))
        self.wrong(where, f"expected a list, found {_kind(value)}")
        return []


def script_of(document: object, file: str) -> Script:
    """Validates a script given as a mapping.

    Args:
        document: the parsed file; `script` may be left out.
        file: how messages name it.

    Raises:
        ConfigError: it is not a script; carries every finding.
    """
    reader = _Reader(file)
    top = reader.mapping(document, "")
    if top.get("script", VERSION) != VERSION:
        reader.wrong("script", f"version {top['script']!r} is not known; write `script: {VERSION}`")
    _unknown(reader, top, ("script", "agents", "default"), "")
    if not reader.findings and "agents" not in top and "default" not in top:
        reader.wrong("", "neither `agents` nor `default` is there")
    agents = {
        agent: {
            task: _replies(reader, replies, f"agents.{agent}.{task}")
            for task, replies in reader.mapping(tasks, f"agents.{agent}").items()
        }
        for agent, tasks in reader.mapping(top.get("agents", {}), "agents").items()
    }
    default = _replies(reader, top["default"], "default") if "default" in top else None
    if reader.findings:
        count = len(reader.findings)
        text = reader.findings[0].text + (f" (and {count - 1} more)" if count > 1 else "")
        raise ConfigError(f"not a script: {text}", tuple(reader.findings))
    return Script(agents, default)


def _replies(reader: _Reader, value: object, where: str) -> tuple[ScriptedReply, ...]:
    items = reader.items(value, where)
    replies = tuple(_reply(reader, item, f"{where}[{n}]") for n, item in enumerate(items, 1))
    for n, reply in enumerate(replies[:-1], 1):
        if reply.repeat:
            reader.wrong(f"{where}[{n}]", "`repeat: true` belongs to the last reply of a list")
    return replies


def _reply(reader: _Reader, value: object, where: str) -> ScriptedReply:
    item = reader.mapping(value, where)
    _unknown(reader, item, _FIELDS, where)
    error = item.get("error")
    if error is not None and error not in ERRORS:
        reader.wrong(where, f"unknown error {error!r}; known: {', '.join(dict.fromkeys(ERRORS))}")
    times = item.get("times")
    if times is not None and (error is None or not _whole(times) or times < 1):
        reader.wrong(where, "`times` is a whole number above zero beside `error`")
    if not any(k in item for k in ("say", "calls", "raw_calls", "report", "error")):
        reader.wrong(where, "a reply needs one of say, calls, raw_calls, report, error")
    say = item.get("say", "")
    if not isinstance(say, str):
        reader.wrong(where, f"`say` is text, found {_kind(say)}")
    if not isinstance(repeat := item.get("repeat", False), bool):
        reader.wrong(where, "`repeat` is true or false")
    finish = item.get("finish")
    if finish is not None and finish not in get_args(Finish):
        reader.wrong(where, f"unknown finish {finish!r}; known: {', '.join(get_args(Finish))}")
    return ScriptedReply(
        say=say if isinstance(say, str) else "",
        calls=_calls(reader, item, where),
        error=error,
        times=times if _whole(times) else None,
        usage=_usage(reader, item.get("usage"), f"{where}.usage"),
        cost_usd=_cost(reader, item.get("cost"), where),
        delay_s=_delay(reader, item.get("delay"), where),
        finish=finish,
        repeat=repeat is True,
    )


def _calls(reader: _Reader, item: Mapping[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    out: list[tuple[str, str]] = []
    for call in reader.items(item.get("calls", ()), f"{where}.calls"):
        pairs = reader.mapping(call, f"{where}.calls")
        if len(pairs) != 1:
            reader.wrong(f"{where}.calls", "a call is a mapping with one key, the tool's name: {read_file: {path: a}}")
        out.extend((name, _arguments(reader, value, f"{where}.calls.{name}")) for name, value in pairs.items())
    for call in reader.items(item.get("raw_calls", ()), f"{where}.raw_calls"):
        raw = reader.mapping(call, f"{where}.raw_calls")
        name, arguments = raw.get("name"), raw.get("arguments")
        if set(raw) == {"name", "arguments"} and isinstance(name, str) and isinstance(arguments, str):
            out.append((name, arguments))
        else:
            reader.wrong(f"{where}.raw_calls", 'a raw call is {name: text, arguments: "text"}')
    if "report" in item:
        out.append(("report", _arguments(reader, item["report"], f"{where}.report")))
    return tuple(out)


def _arguments(reader: _Reader, value: object, where: str) -> str:
    arguments = {} if value is None else reader.mapping(value, where)
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError):
        reader.wrong(where, "this cannot be written as JSON; put dates in quotes")
        return "{}"


def _usage(reader: _Reader, value: object, where: str) -> tuple[int, ...]:
    if value is None:
        return ()
    usage = reader.mapping(value, where)
    _unknown(reader, usage, _USAGE, where)
    counts = [usage.get(name, 0) for name in _USAGE]
    if not all(_whole(count) for count in counts):
        reader.wrong(where, "tokens are whole numbers, zero or more")
        return ()
    return tuple(counts)


def _cost(reader: _Reader, value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    reader.wrong(where, f"`cost` is a number of US dollars, found {value!r}")
    return None


def _delay(reader: _Reader, value: object, where: str) -> float:
    if value is None:
        return 0.0
    try:
        return parse_duration(cast(str, value))
    except UnitError as e:
        reader.wrong(where, f"`delay`: {e}")
        return 0.0


def _unknown(reader: _Reader, item: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in item:
        if key not in known:
            reader.wrong(where, f"unknown key {key!r}; known: {', '.join(known)}")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    names = {"dict": "a mapping", "list": "a list", "str": "text", "bool": "true or false", "int": "a number"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")
