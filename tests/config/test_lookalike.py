"""Keys that are not what they look like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.config.lookalike import problem_of


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sec\u200burity", "invisible"),
        ("sec\u00adurity", "invisible"),
        ("name\u202e", "invisible"),
        ("name\ufe0f", "invisible"),
        ("na\u034fme", "invisible"),
        ("\ufeffname", "invisible"),
        ("na\U000e0041me", "invisible"),
        ("cafe\u0301", "NFC"),
        ("ｎame", "compatibility"),
        ("ﬁle", "compatibility"),
        ("nаme", "Cyrillic"),
        ("nοte", "Greek"),
        ("яοк", "Cyrillic and Greek"),
        ("ѕсоре", "look like Latin"),
    ],
)
def test_tricks_are_named(key: str, words: str) -> None:
    assert words in (problem_of(key) or "")


@pytest.mark.parametrize("key", ["name", "max_memory", "größe", "日本語", "имя", "ключ", "naïve", "العربية", "a.b-c/d"])
def test_honest_keys_pass(key: str) -> None:
    assert problem_of(key) is None


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_letters_always_pass(key: str) -> None:
    assert problem_of(key) is None
