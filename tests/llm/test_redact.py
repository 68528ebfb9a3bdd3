from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toka.llm.names import PROVIDERS
from toka.llm.redact import MASK, MIN_LENGTH, Redactor, secrets_of

SECRET = 'pä"ss wörd/+?key-12345'


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET).lower(),
        quote_plus(SECRET),
        json.dumps({"k": SECRET}),
        json.dumps({"k": SECRET}, ensure_ascii=False),
        json.dumps({"outer": json.dumps(SECRET)}),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
    ],
)
def test_a_known_secret_in_every_form(form: str) -> None:
    found = Redactor([SECRET]).text(f"before {form} after")
    assert MASK in found
    assert "key-12345" not in found
    assert found.startswith("before ")
    assert found.endswith(" after")


@given(st.binary(max_size=7), st.binary(max_size=7), st.text("abcXYZ0123456789+/-_", min_size=9, max_size=40))
def test_a_known_secret_inside_encoded_text(before: bytes, after: bytes, secret: str) -> None:
    encoded = base64.b64encode(before + secret.encode() + after).decode()
    assert MASK in Redactor([secret]).text(encoded)


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-abcdefghijkl0123456789",
        "sk-ant-api03-abcdefghijklmnop",
        "ghp_abcdefghijklmnopqrstuvwxyz0123",
        "github_pat_11ABCDEFG0abcdefghijkl_x",
        "glpat-abcdefghijklmnopqrst",
        "xoxb-1234567890-abcdef",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA-abcdefghijklmnopqrstuvwxyz01234",
        "hf_abcdefghijklmnopqrstuvwx",
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_shapes_of_keys(text: str) -> None:
    assert Redactor().text(f"see '{text}'.") == f"see '{MASK}'."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abcd1234", f"Authorization: Bearer {MASK}"),
        ('{"authorization": "Basic dXNlcjpwdw=="}', f'{{"authorization": "Basic {MASK}"}}'),
        ("x-api-key: abcdef", f"x-api-key: {MASK}"),
        ("https://user:pass@host/x", f"https://{MASK}@host/x"),
    ],
)
def test_headers_and_addresses_keep_their_names(text: str, expected: str) -> None:
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "the bearer of the ring",
        "basic training through Edinburgh",
        "sk-learn-pipeline-without-digits",
        "https://host:8080/path@x",
        "a" * 1000,
        "",
    ],
)
def test_ordinary_text_is_the_same_object(text: str) -> None:
    assert Redactor([SECRET]).text(text) is text


def test_values_in_depth() -> None:
    value = {"a": ["x", {SECRET: f"say {SECRET}"}], "n": 1, "b": None, "t": (SECRET,)}
    assert Redactor([SECRET]).value(value) == {"a": ["x", {MASK: f"say {MASK}"}], "n": 1, "b": None, "t": [MASK]}


def test_a_value_without_secrets_is_the_same_object() -> None:
    value = {"a": ["x", {"b": "c"}], "n": 1.5, "t": True}
    assert Redactor([SECRET]).value(value) is value


def test_short_values_are_not_secrets() -> None:
    assert Redactor(["", "on", "a" * (MIN_LENGTH - 1)]).text("on and on") == "on and on"


def test_the_longer_of_two_secrets_goes_first() -> None:
    assert Redactor(["secret", "secret-extended"]).text("secret-extended") == MASK


def test_secrets_of_an_environment_are_known_by_their_names() -> None:
    keys = {provider.key: f"value of {provider.key}" for provider in PROVIDERS.values() if provider.key}
    named = dict.fromkeys(("GH_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "CLIENT_SECRET", "MY_APIKEY"), "hidden")
    plain = {"PATH": "/usr/bin", "HOME": "/root", "TOKENS": "some", "KEYBOARD": "us", "SECRETARY": "Ann", "X_TOKEN": ""}
    assert set(secrets_of({**keys, **named, **plain})) == {*keys.values(), "hidden"}
