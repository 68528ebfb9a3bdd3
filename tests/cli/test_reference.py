from __future__ import annotations

import json
import subprocess

import pytest

from cli.records import COMMAND, Toka
from toka.config.codes import CODES
from toka.version import __version__


def test_version(toka: Toka) -> None:
    assert toka("version").out == f"toka {__version__}\n" == toka("--version").out


def test_the_schema_is_one(toka: Toka) -> None:
    schema = toka("schema").json
    assert schema["$schema"].endswith("2020-12/schema")
    assert "metadata" in schema["$defs"]["Spec"]["required"]
    assert "toka" in schema["$defs"]["Team"]["required"]


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(toka: Toka, code: str) -> None:
    done = toka("explain", code.lower())
    assert done.code == 0
    assert done.lines[0].startswith(f"{code}: {CODES[code].title} ({CODES[code].severity}, ")
    assert max(map(len, done.lines)) <= 120


def test_families_are_listed(toka: Toka) -> None:
    assert [line.split()[0] for line in toka("explain", "TK3").lines] == [c for c in CODES if c.startswith("TK3")]
    assert len(toka("explain").lines) == len(CODES)
    assert json.loads(toka("explain", "TK3", "--json").lines[0])["code"] == "TK3001"


def test_an_unknown_code_has_a_suggestion(toka: Toka) -> None:
    done = toka("explain", "TK2O04")
    assert done.code == 9
    assert "did you mean TK2004?" in done.err
    assert toka("explain", "\x1b[2J").code == 9


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(toka: Toka, shell: str) -> None:
    done = toka("completion", shell)
    assert done.code == 0
    assert f"_TOKA_COMPLETE={shell}_complete" in done.out


def test_no_such_shell(toka: Toka) -> None:
    assert toka("completion", "tcsh").code == 2


@pytest.mark.slow
def test_completion_completes() -> None:
    environment = {"_TOKA_COMPLETE": "bash_complete", "COMP_WORDS": "toka vali", "COMP_CWORD": "1", "PATH": "/usr/bin"}
    done = subprocess.run([*COMMAND], env=environment, capture_output=True, text=True)
    assert done.stdout == "plain,validate\n"
