"""Secrets are references until the one place that needs the value asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from toka.config.secret import Secret, parse_secret
from toka.errors import MissingError


def test_references_are_read() -> None:
    assert parse_secret("${env:MY_KEY}") == Secret("env", "MY_KEY")
    assert parse_secret("${file:/run/secrets/x}") == Secret("file", "/run/secrets/x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sk-123",
        "$MY_KEY",
        "${MY_KEY}",
        "${env:}",
        "${env:A B}",
        "${file:relative}",
        "x${env:A}",
        "${env:A}x",
        3,
        None,
    ],
)
def test_everything_else_is_no_reference(text: object) -> None:
    assert parse_secret(text) is None


def test_values_are_revealed_on_demand_only(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("  hunter2\n")
    held = Secret("file", str(tmp_path / "key"))
    assert held.reveal({}) == "hunter2"
    assert Secret("env", "A").reveal({"A": "hunter3"}) == "hunter3"
    assert "hunter" not in repr(held) + str(held)


@pytest.mark.parametrize("secret", [Secret("env", "A"), Secret("file", "/nowhere/x"), Secret("file", "/dev/zero")])
def test_a_missing_secret_names_its_reference(secret: Secret) -> None:
    with pytest.raises(MissingError) as caught:
        secret.reveal({"A": "", "B": "other"})
    assert str(secret) in str(caught.value)
    assert caught.value.exit_code == 4
