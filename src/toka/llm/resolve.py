"""Where model strings lead: which server `provider:name` means (see `names`), and what `auto` means on this machine.

The environment is a mapping that is passed in. Nothing here imports an SDK.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from toka.errors import ModelUnavailable, UsageError
from toka.llm.names import AUTO, PROVIDERS, Wire, split_name

ANTHROPIC_DEFAULT: Final = "claude-sonnet-5-5"
"""The model that `auto` takes when ANTHROPIC_API_KEY is set."""
OPENAI_DEFAULT: Final = "gpt-6.1-terra"
"""The model that `auto` takes when OPENAI_API_KEY is set."""
OLLAMA_ADDRESS: Final = "http://127.0.0.1:11434"
LLAMA_SERVER_ADDRESS: Final = "http://127.0.0.1:8080"
PROBE_S: Final = 1.0
"""How long a local server may take to list its models, in seconds."""
PROBE_BYTES: Final = 4 * 1024 * 1024
SLOW: Final = "no answer in time"
"""What is said of a server that took longer."""
NO_LIST: Final = "the answer is not a list of models"
HINT: Final = (
    "set ANTHROPIC_API_KEY or OPENAI_API_KEY, start Ollama or llama-server, or name a server with --base-url"
    " (TOKA_BASE_URL); `--model scripted:FILE` needs no model"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model string leads.

    Attributes:
        provider: the prefix.
        name: the model's name at the provider; of `scripted` the file.
        wire: the protocol.
        base_url: the server; None: the provider's own. With the OpenAI protocol up to and including `/v1`.
        key: the API key; None: none is set, and the server needs none. Not part of `repr`.
    """

    provider: str
    name: str
    wire: Wire
    base_url: str | None
    key: str | None

    def __repr__(self) -> str:
        """Without the key."""
        return f"Endpoint({self.provider}:{self.name}, base_url={self.base_url}, key={'set' if self.key else 'none'})"


@dataclass(frozen=True, slots=True)
class Description:
    """A model string in words, for `toka models` and the plan.

    Attributes:
        model: the string.
        provider: its prefix.
        name: the model's name.
        server: host and port, or the provider's own; of a script the file.
        ready: whether what it needs is set (nothing is contacted).
        note: what is missing, or empty.
    """

    model: str
    provider: str
    name: str
    server: str
    ready: bool
    note: str


def endpoint_of(model: str, environment: Mapping[str, str], base_url: str | None = None) -> Endpoint:
    """Where a model string other than `auto` leads.

    Args:
        model: `provider:name`.
        environment: keys and addresses.
        base_url: the server of the settings, environment or command line; None: TOKA_BASE_URL, else the provider's own.

    Raises:
        UsageError: no such provider, no name, or a base URL that is not one.
        ModelUnavailable: what the provider needs is not set.
    """
    provider, name = split_name(model)
    known = PROVIDERS[provider]
    if known.wire == "scripted":
        return Endpoint(provider, name, "scripted", None, None)
    given = base_url or environment.get("TOKA_BASE_URL") or None if known.base_url else None
    url = checked_url(given) if given else _own_url(provider, environment)
    key = environment.get(known.key) or None
    if provider == "server" and url is None:
        raise ModelUnavailable(f"{model} needs the address of a server", hint="set --base-url or TOKA_BASE_URL")
    if provider in ("openai", "anthropic") and url is None and key is None:
        raise ModelUnavailable(f"{model} needs a key", tried=(f"{known.key}: not set",), hint=f"set {known.key}")
    return Endpoint(provider, name, known.wire, url, key)


def describe(model: str, environment: Mapping[str, str], base_url: str | None = None) -> Description:
    """A model string in words; contacts nobody.

    Raises:
        UsageError: no such provider.
    """
    if model == AUTO:
        return Description(model, AUTO, "", "", ready=True, note="chosen when a run starts")
    provider, name = split_name(model)
    try:
        endpoint = endpoint_of(model, environment, base_url)
    except ModelUnavailable as e:
        return Description(model, provider, name, "", ready=False, note=e.hint or e.message)
    server = name if endpoint.wire == "scripted" else urlsplit(endpoint.base_url or "").netloc or provider
    return Description(model, provider, name, server, ready=True, note="")


Probe = Callable[[str, str | None], Awaitable[list[str] | str]]
"""(base URL, key) -> names of its models, or why there are none."""


async def resolve_auto(environment: Mapping[str, str], base_url: str | None = None, probe: Probe | None = None) -> str:
    """The model string that `auto` means now.

    In this order: the first model of the server at the base URL (asked with TOKA_API_KEY; then nothing else is tried);
    Anthropic or OpenAI, when their key is set; the first model of Ollama; the first model of llama-server.

    Args:
        environment: keys and addresses.
        base_url: see `endpoint_of`.
        probe: lists a server's models; None: asks it, within `PROBE_S` seconds.

    Raises:
        ModelUnavailable: there is none; `tried` says what was tried, in order.
        UsageError: the base URL is not one.
    """
    probe = probe or list_models
    url = base_url or environment.get("TOKA_BASE_URL") or None
    if url is not None:
        found = await probe(checked_url(url), environment.get("TOKA_API_KEY") or None)
        if isinstance(found, list) and found:
            return f"server:{found[0]}"
        raise _none((f"{url}: {found if isinstance(found, str) else 'lists no model'}",))
    if environment.get("ANTHROPIC_API_KEY"):
        return f"anthropic:{ANTHROPIC_DEFAULT}"
    if environment.get("OPENAI_API_KEY"):
        return f"openai:{OPENAI_DEFAULT}"
    tried = ["ANTHROPIC_API_KEY: not set", "OPENAI_API_KEY: not set"]
    for provider, title in (("ollama", "Ollama"), ("llama-server", "llama-server")):
        address = _own_url(provider, environment) or ""
        found = await probe(address, environment.get(PROVIDERS[provider].key) or None)
        if isinstance(found, list) and found:
            return f"{provider}:{found[0]}"
        tried.append(f"{title} at {address}: {found if isinstance(found, str) else 'lists no model'}")
    raise _none(tuple(tried))


async def list_models(base_url: str, key: str | None) -> list[str] | str:
    """The names of a server's models in its order (GET `base_url`/models), or why there are none. Never raises."""
    import aiohttp  # 0.2 s to import

    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    limit = aiohttp.ClientTimeout(total=PROBE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=limit, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(f"{base_url}/models", headers=headers, allow_redirects=False) as reply,
        ):
            if reply.status != 200:
                return f"answers {reply.status}" + (" (is its key set?)" if reply.status in (401, 403) else "")
            body = bytearray()
            async for chunk in reply.content.iter_any():
                body += chunk
                if len(body) > PROBE_BYTES:
                    return NO_LIST
            data: Any = json.loads(body)
    except TimeoutError:
        return SLOW
    except aiohttp.ClientConnectorError as e:
        return (os.strerror(e.errno) if e.errno and e.errno > 0 else str(e.strerror)).lower()
    except (aiohttp.ClientError, ValueError, OSError):
        return NO_LIST
    entries: Any = cast("dict[str, Any]", data).get("data") if isinstance(data, dict) else None
    if not isinstance(entries, list):
        return NO_LIST
    names = [cast("dict[str, Any]", e).get("id") for e in cast("list[Any]", entries) if isinstance(e, dict)]
    return [name for name in names if isinstance(name, str) and name]


def checked_url(url: str, name: str = "") -> str:
    """A base URL without a slash at its end; `/v1` is added when it has no path.

    Args:
        url: as given. What may be a password in it is not repeated in the error.
        name: the variable that holds it, for the error; empty: unknown.

    Raises:
        UsageError: it is not an http(s) address, or holds a user name, a query or a fragment.
    """
    try:
        parts = urlsplit(url.strip())
        secretive = parts.username is not None or parts.query or parts.fragment
        if parts.scheme in ("http", "https") and parts.hostname and not secretive and parts.port != 0:
            path = parts.path.rstrip("/")
            return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
    except ValueError:  # an address that cannot be taken apart, or a port that is none
        secretive = True
    shown = name or ("the base URL" if secretive else repr(url))
    raise UsageError(
        f"{shown} is not the address of a model server",
        hint="write https://HOST:PORT/v1, without user, password, query or fragment",
    )


def _own_url(provider: str, environment: Mapping[str, str]) -> str | None:
    """The address of a provider that runs on this machine, or that its own variable names; None for the others.

    Raises:
        UsageError: the variable holds no address.
    """
    if provider == "anthropic":
        url = environment.get("ANTHROPIC_BASE_URL", "").strip()
        return checked_url(url, "ANTHROPIC_BASE_URL").removesuffix("/v1") if url else None  # its SDK adds that itself
    if provider == "ollama":
        host = environment.get("OLLAMA_HOST", "").strip()
        if not host:
            return checked_url(OLLAMA_ADDRESS)
        try:
            parts = urlsplit(host if "://" in host else f"http://{host}")
            port = parts.port or 11434
        except ValueError:
            raise UsageError(
                "OLLAMA_HOST is not an address", hint="write HOST, HOST:PORT or http://HOST:PORT"
            ) from None
        name = "127.0.0.1" if parts.hostname in ("0.0.0.0", None) else parts.hostname
        return checked_url(f"{parts.scheme}://{f'[{name}]' if ':' in name else name}:{port}", "OLLAMA_HOST")
    return checked_url(LLAMA_SERVER_ADDRESS) if provider == "llama-server" else None


def _none(tried: tuple[str, ...]) -> ModelUnavailable:
    return ModelUnavailable("no model found", tried=tried, hint=HINT)
