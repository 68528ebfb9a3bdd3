"""What can be said of a model string without a network."""

from __future__ import annotations

import pytest

from toka.errors import UsageError
from toka.llm.names import AUTO, FAMILIES, PROVIDERS, check_base_url, check_name, split_name


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        ("opnai:gpt-4o", "did you mean 'openai:gpt-4o'?"),
        ("Anthropic:claude", "did you mean 'anthropic:claude'?"),
        ("anthropc", "did you mean 'anthropic:NAME'?"),
        ("aut", "did you mean 'auto'?"),
        ("AUTO", "did you mean 'auto'?"),
        ("auto:x", "did you mean 'auto'?"),
        ("gpt-4o", "did you mean 'openai:gpt-4o'?"),
        ("gpt:4", "did you mean 'openai:gpt-4'?"),
        ("o3-mini", "did you mean 'openai:o3-mini'?"),
        ("claude-sonnet-5-5", "did you mean 'anthropic:claude-sonnet-5-5'?"),
        ("gpt-oss:20b", "did you mean 'ollama:gpt-oss:20b'?"),
        ("llama3:8b", "did you mean 'ollama:llama3:8b'?"),
        ("llama-serve:m", "did you mean 'llama-server:m'?"),
        ("openai/gpt-4", "did you mean 'openai:gpt-4'?"),
        ("azure:gpt-4", "known: auto, openai:NAME"),
        ("openai:", "write openai:NAME"),
        ("openai", "write openai:NAME"),
        ("openai: ", "write openai:NAME"),
        ("openai: gpt", "write openai:gpt"),
        ("", "known: auto"),
    ],
)
def test_what_leads_nowhere_has_a_hint(model: str, hint: str) -> None:
    for look in (check_name, split_name):
        with pytest.raises(UsageError) as caught:
            look(model)
        assert (caught.value.hint or "").startswith(hint)
        assert repr(model) in caught.value.message


def test_nothing_near_is_not_guessed_at() -> None:
    for model in ("azure:gpt-4", "x", "mine:1"):
        with pytest.raises(UsageError) as caught:
            check_name(model)
        assert "did you mean" not in (caught.value.hint or "")


@pytest.mark.parametrize("model", ["auto", "openai:m", "ollama:qwen3:8b", "server:a b/c", "scripted:a b.yaml"])
def test_what_leads_somewhere(model: str) -> None:
    check_name(model)


def test_families_lead_to_providers() -> None:
    assert set(FAMILIES.values()) <= PROVIDERS.keys()


@pytest.mark.parametrize("models", [["ollama:m"], ["anthropic:m", "server:m"], [AUTO], ["scripted:s", "openai:m"], []])
def test_a_base_url_that_somebody_uses(models: list[str]) -> None:
    check_base_url("http://h:1", models)


@pytest.mark.parametrize(
    ("models", "said", "hint"),
    [
        (["anthropic:m", "anthropic:n"], ": anthropic does not", "set ANTHROPIC_BASE_URL"),
        (["scripted:s"], ": scripted does not", "leave --base-url out"),
        (["scripted:s", "anthropic:m"], ": scripted and anthropic do not", "set ANTHROPIC_BASE_URL"),
    ],
)
def test_a_base_url_that_nobody_uses(models: list[str], said: str, hint: str) -> None:
    with pytest.raises(UsageError, match="http://h:1 would be ignored") as caught:
        check_base_url("http://h:1", models)
    assert said in caught.value.message
    assert (caught.value.hint or "").startswith(hint)
    for provider, known in PROVIDERS.items():
        assert (f" {provider}," in (caught.value.hint or "").replace(" and", ",")) == known.base_url
