"""Composition root: the only place that builds concrete classes."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from toka.config.secret import Secret
from toka.config.settings import ExecutionConfig, Settings, load_settings
from toka.config.settings_tables import ChannelSink, is_web_address
from toka.core.clock import Clock, SystemClock
from toka.core.ids import RunId
from toka.errors import MissingError, ModelUnavailable, UsageError
from toka.journal.journal import Journal
from toka.journal.poke import poke
from toka.journal.sqlite import SqliteJournal
from toka.llm.gateway import LlmGateway
from toka.llm.model import Model
from toka.llm.pricing import Price, PriceList
from toka.llm.redact import Redactor
from toka.llm.registry import ModelRegistry
from toka.llm.resolve import AUTO, endpoint_of, resolve_auto
from toka.runtime.context import Runtime
from toka.sandbox.egress_credential import Credential
from toka.sandbox.level import Level
from toka.sandbox.orphans import Ledger
from toka.sandbox.shield import Shield
from toka.tools.plugins import toolbox
from toka.tools.tool import Tool
from toka.workspace.checkpoint import Settings as KeepSettings
from toka.workspace.checkpoints import Checkpoints
from toka.workspace.stores import Stores

_REACH_S: Final = 3.0
"""How long a model server may take to accept a connection before a run is made, in seconds."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a caller brings instead of the real thing: tests bring fakes, programs their own models and tools.

    Attributes:
        journal: made in the running loop; None is SQLite in the state directory. Closed with the runtime.
        clock: None is the machine's.
        random: uniform in [0, 1); None is the operating system's.
        models: by model string; they go before all others.
        tools: beyond the built-in ones.
    """

    journal: Callable[[Path, Clock], Journal] | None = None
    clock: Clock | None = None
    random: Callable[[], float] | None = None
    models: Mapping[str, Model] = field(default_factory=dict[str, Model])
    tools: tuple[Tool, ...] = ()


def read_settings(
    flags: Mapping[str, object] | None = None,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of this process: flags, then TOKA_*, then the files. Raises ConfigError."""
    return load_settings(cwd or Path.cwd(), os.environ if environment is None else environment, flags)


async def submit_command(
    settings: Settings,
    run: RunId,
    verb: str,
    *,
    by: tuple[str, str],
    agent: str = "",
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """Leaves a request for the executor of a run, durable, and nudges it. Returns its number.

    Args:
        settings: where the run is recorded.
        run: the run.
        verb: what is asked: `resume`, `resolve`, `approve`, `deny`.
        by: (author, reason).
        agent: whom it concerns; empty means all.
        arguments: of the verb; None: it has none.

    Raises:
        JournalError: the request could not be written.
    """
    journal = SqliteJournal(settings.state, SystemClock())
    try:
        number = await journal.submit(run, verb, agent=agent, arguments=arguments or {}, by=by)
    finally:
        await journal.aclose()
    poke(settings.state, run)
    return number


@asynccontextmanager
async def open_runtime(
    settings: Settings | None = None, parts: Parts | None = None, *, environment: Mapping[str, str] | None = None
) -> AsyncGenerator[Runtime]:
    """Opens the runtime of a process; on leaving, agents still running are left resumable and everything is closed.

    Args:
        settings: None reads them as the command line does.
        parts: what to use instead of the real parts.
        environment: API keys and addresses; None is the process's.

    Raises:
        ConfigError: the settings are wrong.
        JournalError: the state directory cannot be used.
    """
    environ = dict(os.environ if environment is None else environment)
    settings = settings or read_settings(environment=environ)
    for name, secret in settings.keys.items():
        environ.setdefault(name, secret.reveal(environ))
    parts = parts or Parts()
    clock = parts.clock or SystemClock()
    jitter = parts.random or random.SystemRandom().random
    journal = parts.journal(settings.state, clock) if parts.journal else SqliteJournal(settings.state, clock)
    registry = ModelRegistry(environ, clock, settings.base_url, parts.models)
    gateway = LlmGateway(registry, clock, jitter, prices=_prices(settings, clock))
    channels = {name: replace(sink, webhook=_revealed(sink, environ)) for name, sink in settings.channels.items()}
    background = _Background()
    models = _Models(settings, environ, registry, frozenset(parts.models))
    stores = Stores(settings.state, clock)

    try:
        credentials = _credentials(settings, environ)
        level, trusting, ledger = settings.sandbox, settings.allow_unsandboxed, Ledger(settings.state)
        shield = Shield(clock, credentials, level=level, allow_unsandboxed=trusting, ledger=ledger)
        background.spawn(shield.sweep())
        known, unset = _secrets(settings, environ)
        words = (*(w for key in credentials.values() for w in key.words()), *known.values())
        redactor = Redactor(words, shapes=False)
        files = (*settings.secrets.values(), *(key.value for key in settings.credentials.values()))
        yield Runtime(
            state=settings.state,
            journal=journal,
            clock=clock,
            random=jitter,
            randbelow=secrets.randbelow,
            gateway=gateway,
            model=settings.model,
            resolve_model=models.resolve,
            start_sandbox=shield.start,
            tools=toolbox(settings, parts.tools),
            redact=redactor.value,
            mask=redactor.masked,
            secrets=known,
            unset_secrets=unset,
            secret_files=tuple(Path(secret.name) for secret in files if secret.kind == "file"),
            toolchains=settings.tools.toolchains,
            execution=settings.execution,
            capabilities=settings.capabilities,
            policy=settings.policy,
            run_limits=settings.run_limits,
            channels=channels,
            spawn=background.spawn,
            level=level,
            keep=partial(_kept, stores, level),
        )
    finally:
        await background.close()
        await stores.close()
        await gateway.aclose()
        await journal.aclose()


def _kept(stores: Stores, level: Level, workspace: Path, execution: ExecutionConfig) -> Checkpoints | None:
    """See KeepWorkspace."""
    if not execution.checkpoints:
        return None
    quota, longest = execution.checkpoint_quota_bytes, execution.checkpoint_timeout_s
    keep = KeepSettings(level, quota, ignored=execution.checkpoint_ignored, longest_s=longest)
    return stores.of(workspace, keep)


class _Background:
    """Coroutines that run until the runtime closes, and no longer."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, body: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts one."""
        task = asyncio.create_task(body)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancels what still runs, and waits for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Models:
    """Which model a spec's `model` means here. A server is tried once before its first call."""

    def __init__(
        self, settings: Settings, environment: Mapping[str, str], registry: ModelRegistry, given: frozenset[str]
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._registry = registry
        self._given = given
        self._reached: set[str] = set()

    async def resolve(self, chosen: str) -> str:
        """See ResolveModel."""
        if chosen == AUTO:
            return await resolve_auto(self._environment, self._settings.base_url)
        if chosen not in self._given:
            server = endpoint_of(chosen, self._environment, self._settings.base_url).base_url
            if server is not None and server not in self._reached:
                await _reach(server)
                self._reached.add(server)
        self._registry(chosen)
        return chosen


async def _reach(base_url: str) -> None:
    """Raises ModelUnavailable when nobody listens at a server's address."""
    address = urlsplit(base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_REACH_S):
            _, writer = await asyncio.open_connection(address.hostname, port)
        writer.close()
    except OSError as e:
        why = (
            "no answer in time"
            if isinstance(e, TimeoutError)
            else (os.strerror(e.errno) if e.errno else str(e)).lower()
        )
        raise ModelUnavailable(
            f"no model server answers at {base_url}: {why}",
            tried=[f"{address.hostname}:{port}: {why}"],
            hint="start it, or name another with --base-url (TOKA_BASE_URL)",
        ) from e


def _revealed(sink: ChannelSink, environment: Mapping[str, str]) -> str | None:
    """A sink's web address. Raises MissingError, ConfigError."""
    if not isinstance(sink.webhook, Secret):
        return sink.webhook
    address = sink.webhook.reveal(environment)
    if not is_web_address(address):
        raise UsageError(
            f"{sink.webhook} is no https address", hint="it is named by a channel's webhook in the settings"
        )
    return address


def _credentials(settings: Settings, environment: Mapping[str, str]) -> dict[str, Credential]:
    """Keys by host, as proxies add them. Raises MissingError, UsageError; no message holds any part of a key."""
    out: dict[str, Credential] = {}
    for host, key in settings.credentials.items():
        try:
            out[host] = Credential(key.prefix + key.value.reveal(environment), key.header, key.port)
        except ValueError as e:
            raise UsageError(f"{key.value}: {e}", hint=f'see [credentials."{host}"] in your settings') from None
    return out


def _secrets(settings: Settings, environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Secrets by name, and why the others are not there. No message holds any part of one."""
    known: dict[str, str] = {}
    unset: dict[str, str] = {}
    for name, secret in settings.secrets.items():
        try:
            known[name] = secret.reveal(environment)
        except MissingError as e:
            unset[name] = e.message
    return known, unset


def _prices(settings: Settings, clock: Clock) -> PriceList:
    overrides = {model: Price(p.input, p.output, p.cache_read, p.cache_write) for model, p in settings.pricing.items()}
    return PriceList(clock.now, overrides)
