"""The tables of toka.toml: those whose keys are names of one's own, such as keys and limits, and lists of rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from toka.config.diagnostics import did_you_mean, one_of, quoted
from toka.config.fields import keys_of
from toka.config.options import OPTIONS, TABLES, as_written
from toka.config.parts import ResourceLimits
from toka.config.secret import Secret, parse_secret
from toka.config.settings_tools import ToolRules, read_tools
from toka.config.toml import TomlFile
from toka.core.capability import HOST, NUMERIC, Capability, CapabilityError
from toka.core.catalogue import known_names, resolve
from toka.core.ids import NAME
from toka.core.limits import Limits
from toka.core.operator import CallRule, OperatorPolicy, Rule, parse_rule
from toka.core.reference import VALUE_NAME

T = TypeVar("T")
MAX_SAID: Final = 120
"""Characters of what is said about one item."""
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
RULES: Final = ("allow", "ask", "deny")
PERSONAL: Final = frozenset({"keys", "secrets", "credentials", "tools"})
"""Tables that a toka.toml in the working directory may not have: it came with the files that somebody works on."""
MAX_PREFIX: Final = 100
"""Characters before a key."""
_FIELD: Final = re.compile(r"[A-Za-z0-9-]{1,100}")
PRICES: Final = ("input", "output", "cache_read", "cache_write")


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """US dollars per million tokens; None for the cache = as `input`."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None


@dataclass(frozen=True, slots=True)
class ChannelSink:
    """Where reports to a channel also go.

    Attributes:
        file: a path to append to, relative to the working directory; None = none.
        webhook: an https address, or a reference to one; None = none.
    """

    file: str | None = None
    webhook: str | Secret | None = None


@dataclass(frozen=True, slots=True)
class HostKey:
    """A key for one host, which the proxy of a sandbox adds to requests.

    Attributes:
        value: where the key is kept.
        header: the header field that carries it.
        prefix: what stands before it there.
        port: where the host takes HTTPS.
    """

    value: Secret
    header: str = "Authorization"
    prefix: str = ""
    port: int = 443


@dataclass(slots=True)
class Tables:
    """What was read, the file of higher precedence first for each name."""

    keys: dict[str, Secret] = field(default_factory=dict[str, Secret])
    secrets: dict[str, Secret] = field(default_factory=dict[str, Secret])
    run_limits: Limits = field(default_factory=Limits)
    day_limits: Limits = field(default_factory=Limits)
    pricing: dict[str, ModelPrice] = field(default_factory=dict[str, ModelPrice])
    capabilities: dict[str, tuple[Capability, ...]] = field(default_factory=dict[str, "tuple[Capability, ...]"])
    channels: dict[str, ChannelSink] = field(default_factory=dict[str, ChannelSink])
    policy: OperatorPolicy = field(default_factory=OperatorPolicy)
    credentials: dict[str, HostKey] = field(default_factory=dict[str, HostKey])
    tools: ToolRules = field(default_factory=ToolRules)


class _Wrong(Exception):
    """A value that is not accepted: what is wrong, what to write instead, and what stands beside it; `also` more."""

    def __init__(self, message: str, hint: str | None = None, code: str = "TK2011", label: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.label = label
        self.also: tuple[_Wrong, ...] = ()


def read_tables(files: list[TomlFile], origins: dict[str, str], home: str = "") -> Tables:
    """Reads the tables of all files, the first file going before the next, and reports what nobody knows.

    Args:
        files: in order of precedence; what is wrong becomes findings of their sources.
        origins: gets the file of each name that is set.
        home: what `~` stands for; empty = nothing.
    """
    out = Tables()
    limits: dict[str, Limits] = {}
    for file in files:
        _each(file, "keys", _key, out.keys, origins)
        _each(file, "secrets", _secret, out.secrets, origins)
        _each(file, "limits", _limits, limits, origins)
        _each(file, "pricing", _price, out.pricing, origins)
        _each(file, "capabilities", _capability, out.capabilities, origins)
        _each(file, "channels", _channel, out.channels, origins)
        _each(file, "credentials", _credential, out.credentials, origins)
        out.policy = out.policy.tighten(_policy(file, out.capabilities))
        out.tools = read_tools(file, _entries(file, "tools"), origins, home) or out.tools
        _left_over(file)
    out.run_limits = limits.get("run", Limits())
    out.day_limits = limits.get("day", Limits())
    return out


def _each(
    file: TomlFile, table: str, read: Callable[[str, object], T], into: dict[str, T], origins: dict[str, str]
) -> None:
    for name, value in _entries(file, table).items():
        try:
            found = read(name, value)
        except _Wrong as wrong:
            for one in (wrong, *wrong.also):
                file.source.add(one.code, f"{table}.{name}: {one.message}", label=one.label, help=one.hint)
            continue
        if name not in into:
            into[name] = found
            origins[f"{table}.{name}"] = file.source.file


def _entries(file: TomlFile, table: str) -> dict[str, object]:
    """A table; empty, and a finding, when this file may not have it."""
    entries = file.table(table)
    if table in PERSONAL and entries and not file.trusted:
        message = f"{table} cannot be set by a toka.toml in the working directory"
        file.source.add("TK2011", message, help="put them into your own config.toml")
        return {}
    return entries


def _left_over(file: TomlFile) -> None:
    """Reports what no setting took."""
    known = [option.key for option in OPTIONS]
    for name, value in file.data.items():
        if name == "execution" and not isinstance(value, dict):
            file.source.add("TK2011", "execution is a table", help="write [execution]")
        elif name == "execution":
            inner = [key.removeprefix("execution.") for key in known if key.startswith("execution.")]
            for key in cast("dict[str, object]", value):
                file.source.add(
                    "TK2010", f"unknown setting {quoted('execution.' + key)}", help=did_you_mean(key, inner)
                )
        else:
            names = [*TABLES, *(key for key in known if "." not in key)]
            file.source.add("TK2010", f"unknown setting {quoted(name)}", help=did_you_mean(name, names))


def _policy(file: TomlFile, custom: Mapping[str, tuple[Capability, ...]]) -> OperatorPolicy:
    """`[policy]`: lists of rules under `allow`, `ask` and `deny`. A file can only add rules to those of the others."""
    rules: dict[str, tuple[Rule, ...]] = {}
    for name, value in file.table("policy").items():
        if name not in RULES:
            file.source.add("TK2010", f"unknown setting {quoted('policy.' + name)}", help=did_you_mean(name, RULES))
            continue
        texts = cast("list[object]", value) if isinstance(value, list) else [value]
        found: list[Rule] = []
        for text in texts:
            try:
                if not isinstance(text, str):
                    raise CapabilityError(f"{as_written(text)} is no text")
                read = parse_rule(text, custom, takes_away=name != "allow")
                if name == "allow" and any(isinstance(rule, CallRule) for rule in read):
                    raise CapabilityError("calls are denied or asked about; what is allowed are capabilities")
                found += read
            except CapabilityError as error:
                file.source.add("TK2011", f"policy.{name}: {error}", help='write such as "filesystem-write: docs"')
        rules[name] = tuple(found)
    allow = rules.get("allow")
    return OperatorPolicy(
        None if allow is None else tuple(rule for rule in allow if isinstance(rule, Capability)),
        rules.get("deny", ()),
        rules.get("ask", ()),
    )


def _key(name: str, value: object) -> Secret:
    secret = parse_secret(value)
    if secret is None:
        raise _Wrong("a secret is written as a reference", f"write ${{env:{name}}} or ${{file:/path}}", "TK2012")
    return secret


def _secret(name: str, value: object) -> Secret:
    if not VALUE_NAME.fullmatch(name):
        raise _Wrong("this cannot be the name of a secret", "write letters, digits, '_' and '-'")
    return _key(name.upper().replace("-", "_"), value)


def _credential(name: str, value: object) -> HostKey:
    host = name.lower()
    if not (HOST.fullmatch(host) and "." in host and "*" not in host) or NUMERIC.fullmatch(host) or host != name:
        raise _Wrong("this is not the name of one host", 'write such as [credentials."api.example.org"]')
    table = _table(value, ("value", "header", "prefix", "port"))
    secret = parse_secret(table.get("value"))
    if secret is None:
        raise _Wrong("value is a reference to a secret", "write value = '${env:NAME}' or '${file:/path}'", "TK2012")
    header, port = table.get("header", "Authorization"), table.get("port", 443)
    if not isinstance(header, str) or not _FIELD.fullmatch(header):
        raise _Wrong("header is the name of a header field", 'write such as "X-Api-Key"')
    prefix = table.get("prefix", "Bearer " if header.lower() == "authorization" else "")
    if not isinstance(prefix, str) or not (prefix.isascii() and prefix.isprintable()) or len(prefix) > MAX_PREFIX:
        raise _Wrong("prefix is a short piece of text before the key", 'write such as "Bearer "')
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise _Wrong("port is a TCP port", "leave it out for 443")
    return HostKey(secret, header, prefix, port)


def _limits(name: str, value: object) -> Limits:
    if name not in ("run", "day"):
        raise _Wrong("unknown scope", "write [limits.run] or [limits.day]")
    table = _table(value, keys_of(ResourceLimits))
    odd = [
        key for key, amount in table.items() if isinstance(amount, bool) or not isinstance(amount, str | int | float)
    ]
    found = [_Wrong(f"{key}: {as_written(table[key])} is not a quantity") for key in odd]
    try:
        limits = ResourceLimits.model_validate({key: amount for key, amount in table.items() if key not in odd}).limits
    except ValidationError as error:
        found += [_refused(detail) for detail in error.errors(include_url=False)]
    else:
        if not found:
            return limits
    first, *more = found
    first.also = tuple(more)
    raise first


def _refused(detail: ErrorDetails) -> _Wrong:
    """What a model says of one limit, in its own words where it has some."""
    context: dict[str, Any] = detail.get("ctx") or {}
    told = str(context.get("message") or detail["msg"])
    if told.startswith(written := repr(detail["input"])):  # as Python writes it, in whatever length
        told = as_written(detail["input"]) + told.removeprefix(written)
    return _Wrong(f"{detail['loc'][0]}: {told}", context.get("help"), label=context.get("label") or "")


def _price(name: str, value: object) -> ModelPrice:
    table = _table(value, PRICES)
    prices = dict(_prices(table))
    if "input" not in prices or "output" not in prices:
        raise _Wrong("a price needs input and output", "dollars per million tokens")
    if ":" not in name:
        raise _Wrong("a model is written PROVIDER:MODEL")
    return ModelPrice(prices["input"], prices["output"], prices.get("cache_read"), prices.get("cache_write"))


def _prices(table: dict[str, object]) -> Iterator[tuple[str, float]]:
    for key, value in table.items():
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else -1.0
        if not (math.isfinite(number) and number >= 0):
            raise _Wrong(f"{key} is a number of dollars per million tokens")
        yield key, number


def _capability(name: str, value: object) -> tuple[Capability, ...]:
    """`[capabilities.NAME]` with a known capability per key, or a list of bare names."""
    hint = 'write such as filesystem-read = {paths = ["docs"]}'
    if not NAME.fullmatch(name):
        raise _Wrong("this cannot be a name")
    if name in known_names():
        raise _Wrong("a known capability cannot be redefined", "choose another name")
    table = value
    if isinstance(value, list):
        items = cast("list[object]", value)
        if not all(isinstance(item, str) for item in items):
            raise _Wrong("a list of capabilities holds their names, in quotes", hint)
        table = {str(item): cast("dict[str, object]", {}) for item in items}
    if not isinstance(table, dict):
        raise _Wrong(f"{as_written(cast('object', value))} is no table of capabilities", hint)
    if not table:
        raise _Wrong("no capability is named", hint)
    out: list[Capability] = []
    for inner, arguments in cast("dict[str, object]", table).items():
        try:
            found = resolve(inner, _arguments(arguments))
        except CapabilityError as error:
            said = str(error)  # with the item in it, which may be of any length
            short = said if len(said) <= MAX_SAID else f"{said[: MAX_SAID // 3]}…{said[-MAX_SAID // 2 :]}"
            raise _Wrong(f"{inner}: {short}") from None
        if not found.capabilities and inner not in known_names():
            raise _Wrong(f"nobody defines {quoted(inner)}", did_you_mean(inner, known_names()))
        if not found.capabilities:
            raise _Wrong(found.note)
        out += found.capabilities
    return tuple(out)


def _arguments(value: object) -> dict[str, tuple[str, ...]]:
    out: dict[str, tuple[str, ...]] = {}
    for key, items in _table(value, None).items():
        listed = cast("list[object]", items) if isinstance(items, list) else [items]
        if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in listed):
            raise _Wrong(f"{key} is a list of texts")
        out[key] = tuple(str(item) for item in listed)
    return out


def _channel(name: str, value: object) -> ChannelSink:
    table = _table(value, ("file", "webhook"))
    file, webhook = table.get("file"), table.get("webhook")
    if not isinstance(file, str | None) or not isinstance(webhook, str | None) or not (file or webhook):
        raise _Wrong("a channel goes to a file or a webhook", f'write [channels.{name}] file = "report.jsonl"')
    address = parse_secret(webhook) or webhook
    if isinstance(address, str) and not is_web_address(address):
        raise _Wrong("a webhook is an https address, or a reference to one")
    return ChannelSink(file, address)


def is_web_address(text: str) -> bool:
    """Whether reports may be sent there: by https, or by http to this very machine."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK))
    except ValueError:
        return False


def _table(value: object, known: tuple[str, ...] | None) -> dict[str, object]:
    """A table with known keys only (None: any)."""
    if not isinstance(value, dict):
        told = f"such as {{{', '.join(f'{key} = …' for key in known[:2])}}}" if known else 'such as {paths = ["docs"]}'
        raise _Wrong(f"{as_written(value)} is no table", f"write {told}")
    table = cast("dict[str, object]", value)
    unknown = next((key for key in table if known is not None and key not in known), None)
    if known is not None and unknown is not None:
        raise _Wrong(f"unknown key {quoted(unknown)}", did_you_mean(unknown, known) or f"known: {one_of(known)}")
    return table
