"""Settings: flags, TOKA_* variables and toka.toml -> one frozen value that knows where each part came from.

A flag goes before a TOKA_* variable, that before ./toka.toml, that before $XDG_CONFIG_HOME/toka/config.toml, that
before the default. Environment, working directory and flags are passed in; nothing is read at import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, cast

from toka.config.diagnostics import Finding, closest, in_order, summary
from toka.config.load import label_of
from toka.config.options import OPTIONS, Option, is_local
from toka.config.secret import Secret
from toka.config.settings_tables import ChannelSink, HostKey, ModelPrice, Tables, read_tables
from toka.config.settings_tools import ToolRules, misplaced
from toka.config.source import Source
from toka.config.toml import TomlFile, read_toml
from toka.core.capability import Capability
from toka.core.limits import Limits
from toka.core.operator import OperatorPolicy
from toka.errors import ConfigError

OTHER_VARIABLES: Final = frozenset({"TOKA_API_KEY", "TOKA_DEBUG"})
"""Variables that other rooms read themselves."""


@dataclass(frozen=True, slots=True)
class ExecutionConfig:
    """How agents are executed. Times are in seconds.

    Attributes:
        max_concurrent_agents: agents that run at one time.
        max_concurrent_tasks: tasks of one agent that run at one time.
        task_retries: how often a failed task is tried again.
        task_timeout_s: how long a task may take; None = no bound of its own.
        agent_spawn_timeout_s: how long an agent may take until it runs; None = no bound.
        workstream_timeout_s: how long an agent may run in all, rests left out; None = no bound of its own.
        run_timeout_s: how long a run may take from its beginning, interruptions included; None = no bound.
        model_timeout_s: how long one model call may take, from its start to its last byte.
        command_timeout_s: how long a command or a check may take.
        repair_rounds: how often an agent may repair what a check found.
        grace_s: how long a stop waits before it kills.
        pause_timeout_s: how long a pause waits for a model call in flight.
        approval_timeout_s: how long a question to a person waits before it counts as unanswered; None = for ever.
        retry_base_s: the first wait before a retry; it doubles each time.
        retry_cap_s: the longest wait before a retry.
        max_turns: model calls in one attempt of a task.
        max_output_tokens: tokens of one reply.
        restart: whether an agent is started again: never, on_failure (after a crash), always (also when it failed).
        max_restarts: restarts in a row without a newly completed step.
        run_restarts: restarts of all agents of a run together, for each agent that it has; 0 = no bound.
        health_nudges: how often the model of a task is told that it gets nowhere, before it is restarted.
        health_restarts: how often it is restarted from where it last got somewhere, before it is held.
        output_bytes: output kept of one command.
        checkpoints: whether the workspace is kept before commands that may change it.
        checkpoint_ignored: whether files that .gitignore files name are kept, too.
        checkpoint_quota_bytes: what the checkpoints of one workspace may take.
        checkpoint_timeout_s: how long one may take; past that, no more are made in this process.
        checkpoint_keep_s: how long those of a run are kept after its end.
    """

    max_concurrent_agents: int = 8
    max_concurrent_tasks: int = 1
    task_retries: int = 2
    task_timeout_s: float | None = 1800.0
    agent_spawn_timeout_s: float | None = 60.0
    workstream_timeout_s: float | None = None
    run_timeout_s: float | None = None
    model_timeout_s: float = 120.0
    command_timeout_s: float = 600.0
    repair_rounds: int = 2
    grace_s: float = 10.0
    pause_timeout_s: float = 30.0
    approval_timeout_s: float | None = 604_800.0
    retry_base_s: float = 1.0
    retry_cap_s: float = 60.0
    max_turns: int = 50
    max_output_tokens: int = 8192
    restart: Literal["never", "on_failure", "always"] = "on_failure"
    max_restarts: int = 5
    run_restarts: int = 10
    health_nudges: int = 2
    health_restarts: int = 1
    output_bytes: int = 1024**2
    checkpoints: bool = True
    checkpoint_ignored: bool = True
    checkpoint_quota_bytes: int = 10 * 1024**3
    checkpoint_timeout_s: float = 120.0
    checkpoint_keep_s: float = 14 * 86_400.0


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one command.

    Attributes:
        state: the state directory, absolute; it need not exist.
        execution: concurrency, retries, timeouts.
        model: the default model, `auto` or PROVIDER:MODEL.
        base_url: a server that speaks the provider's protocol; None = the provider's own.
        sandbox: how strongly agents are confined; `none` comes from a person's command only, never from a setting.
        allow_unsandboxed: whether `sandbox: false` in a spec is honoured.
        keys: API keys as references, by the name of the variable they stand in for.
        run_limits, day_limits: limits around all agents of a run, and of a day.
        pricing: dollars per million tokens by model string.
        capabilities: what names of one's own stand for.
        channels: where reports to a channel also go.
        policy: the operator's rules over what specs ask.
        secrets: what `${secret:NAME}` stands for in the variables of a spec, as references.
        credentials: keys that proxies add outside the sandbox, by host.
        tools: whose tools agents get beyond the built-in ones, and folders of programs that their sandboxes show.
        origins: for each key that is set, where its value comes from: `flag`, `TOKA_MODEL`, or a file. A key that is
            not in it has its default.
        findings: warnings and notes.
    """

    state: Path
    execution: ExecutionConfig = ExecutionConfig()
    model: str = "auto"
    base_url: str | None = None
    sandbox: Literal["full", "reduced", "none"] = "full"
    allow_unsandboxed: bool = False
    keys: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))
    secrets: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))
    run_limits: Limits = Limits()  # noqa: RUF009 - frozen
    day_limits: Limits = Limits()  # noqa: RUF009 - frozen
    pricing: Mapping[str, ModelPrice] = field(default_factory=lambda: MappingProxyType({}))
    capabilities: Mapping[str, tuple[Capability, ...]] = field(default_factory=lambda: MappingProxyType({}))
    channels: Mapping[str, ChannelSink] = field(default_factory=lambda: MappingProxyType({}))
    policy: OperatorPolicy = field(default_factory=OperatorPolicy)
    credentials: Mapping[str, HostKey] = field(default_factory=lambda: MappingProxyType({}))
    tools: ToolRules = field(default_factory=ToolRules)
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    findings: tuple[Finding, ...] = ()

    def shown(self) -> tuple[tuple[str, str, str], ...]:
        """Key, value and origin of every setting, for `toka config show`. Secrets appear as references."""
        rows: list[tuple[str, str, str]] = []
        for option in OPTIONS:
            holder = self.execution if option.key.startswith("execution.") else self
            rows.append((option.key, _text(getattr(holder, option.field)), self.origins.get(option.key, "default")))
        tables: dict[str, Mapping[str, object]] = {
            "keys": self.keys,
            "secrets": self.secrets,
            "pricing": self.pricing,
            "capabilities": self.capabilities,
            "channels": self.channels,
            "limits": {"run": self.run_limits, "day": self.day_limits},
            "credentials": self.credentials,
            "tools": {
                "allow": ", ".join(self.tools.allow),
                "host": ", ".join(f"{n}=={pin.version} sha256:{pin.sha256}" for n, pin in self.tools.host.items()),
                "toolchains": ", ".join(toolchain.path for toolchain in self.tools.toolchains),
            },
        }
        for table, entries in tables.items():
            for name, value in entries.items():
                origin = self.origins.get(f"{table}.{name}")
                if origin is not None:
                    rows.append((f"{table}.{name}", _text(value), origin))
        return tuple(rows)


def load_settings(cwd: Path, environment: Mapping[str, str], flags: Mapping[str, object] | None = None) -> Settings:
    """Reads all settings.

    Args:
        cwd: the working directory, absolute; its `toka.toml` is read when there is one.
        environment: the variables: TOKA_*, XDG_CONFIG_HOME, XDG_STATE_HOME, HOME.
        flags: values of the command line by key (`model`, `execution.task_retries`); None = not given.

    Returns:
        The settings; warnings are in `findings`.

    Raises:
        ConfigError: a file cannot be read or a value is wrong; it holds all findings.
    """
    files = [_read_file(cwd / "toka.toml", label_of(Path("toka.toml")), trusted=False)]
    if (own := personal_file(environment)) is not None:
        files.append(_read_file(own, label_of(own), trusted=True))
    reader = _Reader(environment, flags or {}, files)
    values = {option.field: reader.value(option) for option in OPTIONS}
    reader.unknown_variables()
    home = environment.get("HOME", "")
    tables = read_tables(files, reader.origins, home)
    state = _state(values["state"], cwd, environment)
    named = (*tables.keys.values(), *tables.secrets.values())
    secrets = (*named, *(key.value for key in tables.credentials.values()))
    guarded = [state, *([own.parent] if own else []), *(Path(s.name) for s in secrets if s.kind == "file")]
    sources = (*reader.sources, *(file.source for file in files))
    found = (f for source in sources for f in source.findings)
    findings = in_order((*found, *misplaced(tables.tools.toolchains, home, guarded)))
    if any(f.severity == "error" for f in findings):
        raise ConfigError(summary(findings), findings)
    return _settings(values, tables, reader.origins, findings, state)


class _Reader:
    """Finds each simple setting in the order of precedence."""

    def __init__(self, environment: Mapping[str, str], flags: Mapping[str, object], files: list[TomlFile]) -> None:
        self.environment = environment
        self.flags = flags
        self.files = files
        self.flag_source = Source("command line")
        self.variable_source = Source("environment")
        self.origins: dict[str, str] = {}

    @property
    def sources(self) -> tuple[Source, Source]:
        """What was found about flags and variables."""
        return self.flag_source, self.variable_source

    def value(self, option: Option) -> Any:
        """The value of a setting. Every place that sets it is checked; the first in the order counts."""
        found: list[tuple[Any, str]] = []
        if (flag := self.flags.get(option.key)) is not None:
            found += self._read(option, flag, self.flag_source, "flag", option.key)
        if text := self.environment.get(option.variable):
            found += self._read(option, text, self.variable_source, option.variable, option.variable)
        for file in self.files:
            if (raw := file.take(option.key)) is not None:
                if option.personal and not file.trusted and not _harmless(option, raw):
                    message = f"{option.key} cannot be set by a toka.toml in the working directory"
                    help_text = f"set {option.variable}, or put it into your own config.toml"
                    file.source.add("TK2011", message, help=help_text)
                    continue
                found += self._read(option, raw, file.source, file.source.file, option.key)
        if not found:
            return option.default
        self.origins[option.key] = found[0][1]
        return found[0][0]

    def _read(self, option: Option, raw: object, source: Source, origin: str, name: str) -> list[tuple[Any, str]]:
        try:
            return [(option.read(raw), origin)]
        except ValueError as error:
            source.add("TK2011", f"{name}: {error}")  # what was written may hold a password, so it is not repeated
        return []

    def unknown_variables(self) -> None:
        """Warns of TOKA_* variables that nobody reads: a misspelled one would silently do nothing."""
        known = {option.variable for option in OPTIONS} | OTHER_VARIABLES
        for name in sorted(self.environment):
            if name.startswith("TOKA_") and name not in known:
                near = closest(name, known)
                told = f"did you mean {near}?" if near else None
                self.variable_source.add("TK2010", f"{name} is no setting", help=told, severity="warning")


def _read_file(path: Path, label: str, *, trusted: bool) -> TomlFile:
    """As `read_toml`; a number that Python does not take apart is a finding, too."""
    try:
        return read_toml(path, label, trusted=trusted)
    except ValueError:
        broken = TomlFile(Source(label), {}, trusted=trusted)
        broken.source.add("TK1001", "not valid TOML: a number has too many digits")
        return broken


def _harmless(option: Option, raw: object) -> bool:
    """A server on this machine may be set by anybody: no key leaves the machine."""
    return option.key == "base_url" and isinstance(raw, str) and is_local(raw)


def _settings(
    values: dict[str, Any], tables: Tables, origins: dict[str, str], findings: tuple[Finding, ...], state: Path
) -> Settings:
    execution = ExecutionConfig(**{f.name: values[f.name] for f in fields(ExecutionConfig)})
    return Settings(
        state=state,
        execution=execution,
        model=values["model"],
        base_url=values["base_url"],
        sandbox=values["sandbox"],
        allow_unsandboxed=values["allow_unsandboxed"],
        keys=MappingProxyType(tables.keys),
        secrets=MappingProxyType(tables.secrets),
        run_limits=tables.run_limits,
        day_limits=tables.day_limits,
        pricing=MappingProxyType(tables.pricing),
        capabilities=MappingProxyType(tables.capabilities),
        channels=MappingProxyType(tables.channels),
        policy=tables.policy,
        credentials=MappingProxyType(tables.credentials),
        tools=tables.tools,
        origins=MappingProxyType(origins),
        findings=findings,
    )


def _directory(environment: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """A directory of the XDG base directory specification, which ignores relative paths; None without a home."""
    named = environment.get(variable, "")
    if named.startswith("/"):
        return Path(named)
    home = environment.get("HOME", "")
    return Path(home) / below_home if home.startswith("/") else None


def personal_file(environment: Mapping[str, str]) -> Path | None:
    """Where a person's own settings are, or would be; None without a home."""
    personal = _directory(environment, "XDG_CONFIG_HOME", ".config")
    return None if personal is None else personal / "toka" / "config.toml"


def _state(chosen: str | None, cwd: Path, environment: Mapping[str, str]) -> Path:
    """The state directory; without a setting and a home, `.toka` in the working directory."""
    if chosen is not None:
        return cwd / chosen
    base = _directory(environment, "XDG_STATE_HOME", ".local/state")
    return base / "toka" if base else cwd / ".toka"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "; ".join(c.text for c in cast("tuple[Capability, ...]", value))
    if isinstance(value, Limits | ChannelSink | ModelPrice | HostKey):
        set_ = {f.name: getattr(value, f.name) for f in fields(value)}
        return ", ".join(f"{name} = {v}" for name, v in set_.items() if v is not None) or "none"
    return "none" if value is None else str(value)
