"""Model strings: the providers there are, and all that can be said of a name without a network. Pure.

| string | what answers |
| --- | --- |
| `openai:NAME` | OpenAI (Chat Completions), or the server at the base URL when one is set |
| `anthropic:NAME` | Anthropic, or the server at ANTHROPIC_BASE_URL; never the base URL, which is no place for its key |
| `server:NAME` | any server with the OpenAI protocol; needs a base URL |
| `ollama:NAME` | Ollama, at the base URL, OLLAMA_HOST or 127.0.0.1:11434 |
| `llama-server:NAME` | llama.cpp's server, at the base URL or 127.0.0.1:8080 |
| `scripted:FILE` | a script (`toka.llm.scripted`) |
| `auto` | see `resolve.resolve_auto` |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from toka.errors import UsageError

AUTO: Final = "auto"
SCRIPTED: Final = "scripted"
Wire = Literal["openai", "anthropic", "scripted"]


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known about a prefix.

    Attributes:
        wire: the protocol.
        key: the variable of its API key; empty: it has none.
        base_url: whether a base URL of the settings is for it.
    """

    wire: Wire
    key: str = ""
    base_url: bool = False


PROVIDERS: Final[Mapping[str, Provider]] = {
    "openai": Provider("openai", "OPENAI_API_KEY", base_url=True),
    "anthropic": Provider("anthropic", "ANTHROPIC_API_KEY"),
    "server": Provider("openai", "TOKA_API_KEY", base_url=True),
    "ollama": Provider("openai", "OLLAMA_API_KEY", base_url=True),
    "llama-server": Provider("openai", "LLAMA_API_KEY", base_url=True),
    SCRIPTED: Provider("scripted"),
}
FAMILIES: Final[Mapping[str, str]] = {
    "gpt-oss": "ollama",
    **dict.fromkeys(("gpt", "chatgpt", "o1", "o3", "o4"), "openai"),
    "claude": "anthropic",
    **dict.fromkeys(("llama", "qwen", "mistral", "mixtral", "gemma", "phi", "deepseek", "codellama"), "ollama"),
}
"""How well-known models' names begin -> who is likely meant by one that stands without a provider."""


def check_name(model: str) -> None:
    """Raises UsageError when a model string can lead nowhere. Reads no environment and no file, contacts nobody."""
    if model != AUTO:
        split_name(model)


def check_base_url(base_url: str, models: Iterable[str]) -> None:
    """Refuses a base URL that was asked for and that no model would use.

    Args:
        base_url: as given, for the message.
        models: the model strings of a run, of which at least one must take a base URL; `auto` does.

    Raises:
        UsageError: none of them does, or one is no model string.
    """
    providers = [AUTO if model == AUTO else split_name(model)[0] for model in models]
    if not providers or any(p == AUTO or PROVIDERS[p].base_url for p in providers):
        return
    takers = ", ".join(p for p, known in PROVIDERS.items() if known.base_url)
    hint = "set ANTHROPIC_BASE_URL instead" if "anthropic" in providers else "leave --base-url out"
    named = list(dict.fromkeys(providers))
    raise UsageError(
        f"--base-url {base_url} would be ignored: {' and '.join(named)} {'do' if named[1:] else 'does'} not take one",
        hint=f"{hint}; it is for {takers} and {AUTO}",
    )


def split_name(model: str) -> tuple[str, str]:
    """The provider and the name of a model string other than `auto`.

    Raises:
        UsageError: there is no such provider, or no name; the hint says what may be meant.
    """
    provider, colon, name = model.partition(":")
    if provider in PROVIDERS and name.strip():
        if name != name.strip():
            raise UsageError(f"model {model!r} has spaces around its name", hint=f"write {provider}:{name.strip()}")
        return provider, name
    if provider in PROVIDERS:
        raise UsageError(f"model {model!r} lacks a name after {provider!r}", hint=f"write {provider}:NAME")
    meant = _meant(model)
    known = [f"{p}:FILE" if p == SCRIPTED else f"{p}:NAME" for p in PROVIDERS]
    hint = f"did you mean {meant!r}?" if meant else f"known: {', '.join((AUTO, *known))}"
    if not colon:
        raise UsageError(f"model {model!r} does not name its provider", hint=hint)
    raise UsageError(f"model {model!r}: there is no provider {provider!r}", hint=hint)


def _meant(model: str) -> str | None:
    """What a model string that leads nowhere was likely meant to be; None when nothing is near."""
    provider, colon, name = model.partition(":")
    maker, slash, rest = model.partition("/")
    if slash and maker.lower() in PROVIDERS and rest:
        return f"{maker.lower()}:{rest}"
    near = difflib.get_close_matches(provider.lower(), [*PROVIDERS, AUTO], n=1, cutoff=0.8)
    family = next((to for begin, to in FAMILIES.items() if provider.lower().startswith(begin)), None)
    if family is not None and near != ["llama-server"]:
        return f"{family}:{model if family == 'ollama' else model.replace(':', '-')}"
    if near and (near[0] == AUTO or not colon):
        return near[0] if near[0] == AUTO else f"{near[0]}:NAME"
    return f"{near[0]}:{name or 'NAME'}" if near else None
