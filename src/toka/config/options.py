"""Every simple setting as data: its key, what it may be, its default and what it means.

One table drives reading, `toka config show`, the reference in the manual, and the tests that hold the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from toka.config.diagnostics import quoted
from toka.core import units

T = TypeVar("T")
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
MAX_TEXT: Final = 1_000
RESTARTS: Final = ("never", "on_failure", "always")
URL_FORMS: Final = "write http://HOST:PORT or https://HOST, without user, password, query or fragment"
Read = Callable[[object], Any]
"""A value as written -> the value used. Raises ValueError with what is accepted."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting.

    Attributes:
        key: as it stands in toka.toml, with its table in front: `execution.task_timeout`.
        field: the attribute of `Settings` or, in the table `execution`, of `ExecutionConfig`.
        read: checks and converts a value.
        default: the value used when nobody sets one.
        help: one sentence.
        personal: True when a `toka.toml` in the working directory may not set it: whoever wrote the files there would
            decide where keys are sent or whether agents are confined.
    """

    key: str
    field: str
    read: Read
    default: Any
    help: str
    personal: bool = False

    @property
    def variable(self) -> str:
        """The environment variable: `TOKA_TASK_TIMEOUT`."""
        return "TOKA_" + self.key.rpartition(".")[2].upper()


def as_written(value: object) -> str:
    """A value as a message names it, in the words of TOML: text in quotes, a number as it is, else its kind."""
    if isinstance(value, str):
        return quoted(value, 40)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return "a number of that size" if 1e15 <= abs(value) < math.inf else str(value)
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, list) else "a date or time"


def _read_quantity(parse: Callable[[Any], T], value: object) -> T:
    """Raises ValueError in our words, where the parser would show Python's form of the value."""
    try:
        return parse(value)
    except units.UnitError as error:
        raise ValueError(f"{as_written(value)} is not accepted; write {error.forms}") from None


def _whole(low: int, high: int) -> Read:
    def read(value: object) -> int:
        number = _read_quantity(units.parse_count, value)
        if not low <= number <= high:
            raise ValueError(f"{as_written(value)} is not between {low:,} and {high:,}")
        return number

    return read


def _seconds(value: object) -> float:
    return _read_quantity(units.parse_duration, value)


def _optional_seconds(value: object) -> float | None:
    """A duration, or the word `none` for no bound."""
    try:
        return None if value == "none" else _seconds(value)
    except ValueError as error:
        raise ValueError(f'{error}; or "none"') from None


def _patience(value: object) -> float | None:
    """A duration; 0 for no bound."""
    if value == "0" or (value == 0 and not isinstance(value, bool)):
        return None
    try:
        return _seconds(value)
    except ValueError as error:
        raise ValueError(f"{error}; or 0 for ever") from None


def _size(value: object) -> int:
    size = _read_quantity(units.parse_bytes, value)
    if not 1024 <= size <= 1024**3:
        raise ValueError(f"{as_written(value)} is not between 1KB and 1GB")
    return size


def _store(value: object) -> int:
    size = _read_quantity(units.parse_bytes, value)
    if size < 1024**2:
        raise ValueError(f"{as_written(value)} is less than 1MB")
    return size


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{as_written(value)} is not accepted; write text in quotes")
    if not value or not value.isprintable() or len(value) > MAX_TEXT:
        raise ValueError(f"write one line of text, of at most {MAX_TEXT:,} characters")
    return value


def _flag(value: object) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in words:
        return words[value]
    raise ValueError("write true or false")


def _restart(value: object) -> str:
    if value not in RESTARTS:
        raise ValueError(f"{as_written(value)} is not accepted; write never, on_failure or always")
    return value


def _level(value: object) -> str:
    if value in ("full", "reduced"):
        return str(value)
    if value == "none":
        raise ValueError('write "full" or "reduced"; without any, only a person can run, each time anew: '
                         "toka run --dangerously-no-sandbox")  # fmt: skip
    raise ValueError(f'{as_written(value)} is not accepted; write "full" or "reduced"')


def _url(value: object) -> str:
    url = _text(value)
    try:
        parts = urlsplit(url)
        secretive = parts.username is not None or parts.query or parts.fragment
        fine = parts.scheme in ("http", "https") and parts.hostname and not secretive and parts.port != 0
    except ValueError:  # brackets that do not match, a port that is none
        raise ValueError(URL_FORMS) from None
    if not fine or " " in url:
        raise ValueError(URL_FORMS)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError("write https:// for a server that is not on this machine")
    return url


def is_local(url: str) -> bool:
    """Whether an address leads to this machine, whatever else is wrong with it."""
    try:
        parts = urlsplit(url)
        return parts.hostname in LOOPBACK and parts.username is None
    except ValueError:
        return False


OPTIONS: Final = (
    Option("model", "model", _text, "auto", "Which model answers: PROVIDER:MODEL, or auto."),
    Option("base_url", "base_url", _url, None, "A server that speaks the provider's protocol.", personal=True),
    Option("state", "state", _text, None, "Where runs are recorded; default: toka in $XDG_STATE_HOME.", personal=True),
    Option("sandbox", "sandbox", _level, "full", "How strongly agents are confined: full or reduced.", personal=True),
    Option(
        "allow_unsandboxed", "allow_unsandboxed", _flag, False,
        "Whether `sandbox: false` in a spec is honoured.", personal=True,
    ),
    Option("execution.max_concurrent_agents", "max_concurrent_agents", _whole(1, 10_000), 8, "Agents at one time."),
    Option("execution.max_concurrent_tasks", "max_concurrent_tasks", _whole(1, 100), 1, "Tasks of one agent at once."),
    Option("execution.task_retries", "task_retries", _whole(0, 100), 2, "How often a failed task is tried again."),
    Option("execution.task_timeout", "task_timeout_s", _optional_seconds, 1800.0, "How long a task may take."),
    Option(
        "execution.agent_spawn_timeout", "agent_spawn_timeout_s", _optional_seconds, 60.0,
        "How long an agent may take until it runs.",
    ),
    Option(
        "execution.workstream_timeout", "workstream_timeout_s", _optional_seconds, None,
        "How long an agent may run in all.",
    ),
    Option("execution.run_timeout", "run_timeout_s", _optional_seconds, None, "How long a run may take in all."),
    Option("execution.model_timeout", "model_timeout_s", _seconds, 120.0, "How long a model call may take in all."),
    Option("execution.command_timeout", "command_timeout_s", _seconds, 600.0, "How long a command or check may take."),
    Option("execution.repair_rounds", "repair_rounds", _whole(0, 20), 2, "How often failing checks are repaired."),
    Option("execution.grace", "grace_s", _seconds, 10.0, "How long a stop waits before it kills."),
    Option("execution.pause_timeout", "pause_timeout_s", _seconds, 30.0, "How long a pause waits for a model call."),
    Option(
        "execution.approval_timeout", "approval_timeout_s", _patience, 604_800.0,
        "How long a question to a person waits for its answer; 0 = for ever.",
    ),
    Option("execution.retry_base", "retry_base_s", _seconds, 1.0, "The first wait before a retry; it doubles."),
    Option("execution.retry_cap", "retry_cap_s", _seconds, 60.0, "The longest wait before a retry."),
    Option("execution.max_turns", "max_turns", _whole(1, 10_000), 50, "Model calls in one attempt of a task."),
    Option("execution.max_output_tokens", "max_output_tokens", _whole(16, 1_000_000), 8192, "Tokens of one reply."),
    Option(
        "execution.restart", "restart", _restart, "on_failure",
        "Whether an agent is started again: never, on_failure (after a crash) or always (also when it failed).",
    ),
    Option("execution.max_restarts", "max_restarts", _whole(0, 1_000), 5, "Restarts in a row without a new step."),
    Option("execution.run_restarts", "run_restarts", _whole(0, 1_000), 10, "Restarts in a run, per agent; 0 = any."),
    Option("execution.health_nudges", "health_nudges", _whole(0, 20), 2, "Hints to a model that gets nowhere."),
    Option("execution.health_restarts", "health_restarts", _whole(0, 20), 1, "Its restarts before a person is asked."),
    Option("execution.output_bytes", "output_bytes", _size, 1024**2, "Output that is kept of one command."),
    Option("execution.checkpoints", "checkpoints", _flag, True, "Whether the workspace is kept before commands."),
    Option("execution.checkpoint_ignored", "checkpoint_ignored", _flag, True, "Whether ignored files are kept, too."),
    Option(
        "execution.checkpoint_quota", "checkpoint_quota_bytes", _store, 10 * 1024**3,
        "What the checkpoints of one workspace may take.",
    ),
    Option("execution.checkpoint_timeout", "checkpoint_timeout_s", _seconds, 120.0, "How long one may take."),
    Option(
        "execution.checkpoint_keep", "checkpoint_keep_s", _seconds, 14 * 86_400.0,
        "How long those of a run are kept after its end.",
    ),
)  # fmt: skip
"""Every setting that is one value. Tables with names of their own are read by `settings`."""

TABLES: Final[dict[str, str]] = {
    "execution": "Concurrency, retries and timeouts.",
    "keys": "API keys by the name of their variable, each a reference: ${env:NAME} or ${file:/path}.",
    "secrets": "What ${secret:NAME} stands for in the variables of a spec: ${env:NAME} or ${file:/path}.",
    "limits": "[limits.run] and [limits.day]: limits around all agents, with the keys of a spec's resource_limits.",
    "pricing": '[pricing."PROVIDER:MODEL"]: input, output, cache_read and cache_write in dollars per million tokens.',
    "capabilities": "[capabilities.NAME]: the capabilities that a name of your own stands for.",
    "channels": "[channels.NAME]: where reports to a channel also go: file or webhook.",
    "policy": "[policy]: deny, ask and allow: lists of rules over what specs ask, deny first.",
    "credentials": '[credentials."HOST"]: value (a reference), header, prefix: a key added outside the sandbox.',
    "tools": "[tools]: allow and host: distributions whose tools agents get, in the sandbox and, pinned, outside it; "
    "toolchains: folders of programs that sandboxes show.",
}
"""The tables of toka.toml and what they hold."""
