"""Every broken spec ends as findings with a code and a place, within a second, and never as anything else."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from toka.config.agent import AgentConfig
from toka.config.diagnostics import Finding
from toka.errors import ConfigError

HEAD = "metadata: {name: one}\nspec: {name: One}\ntasks: [Do it]\n"
GOOD = HEAD.encode()


@dataclass(frozen=True)
class Broken:
    """A broken file: its bytes, and the finding that must be there."""

    name: str
    data: bytes
    code: str
    line: int
    column: int


def text(name: str, body: str, code: str, line: int, column: int) -> Broken:
    return Broken(name, body.encode(), code, line, column)


def added(name: str, body: str, code: str, line: int, column: int) -> Broken:
    """A sound spec of three lines, then `body`."""
    return Broken(name, GOOD + body.encode(), code, 3 + line, column)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
QUIET_BOMB = "big: &big " + "y" * 900_000 + "\nall: [" + "*big, " * 1000 + "]\n"
DEEP = 100_000

CORPUS = [
    added("alias bomb", BOMB, "TK1010", 5, 50),
    added("alias bomb of one long text", QUIET_BOMB, "TK1010", 2, 7),
    added("alias that contains itself", "a: &a [*a]\n", "TK1010", 1, 8),
    added("alias of nothing", "a: *b\n", "TK1010", 1, 4),
    added("alias as a key", "a: &a b\n*a : c\n", "TK1014", 2, 1),
    added("alias that nests deeper each time", "".join(
        f"d{n}: &d{n} [[[[[[[[{'x' if n == 0 else f'*d{n - 1}'}]]]]]]]]\n" for n in range(12)
    ), "TK1005", 8, 17),
    text("flow lists 100,000 deep", "[" * DEEP, "TK1005", 1, 65),
    text("flow lists 100,000 deep and closed", "[" * DEEP + "]" * DEEP, "TK1005", 1, 65),
    text("flow mappings 100,000 deep", "{a: " * DEEP, "TK1005", 1, 257),
    text("block lists 100,000 deep", "- " * DEEP, "TK1005", 1, 129),
    text("complex keys 100,000 deep", "? " * DEEP, "TK1005", 1, 129),
    text("block mappings 1,000 deep", "".join(" " * n + "a:\n" for n in range(1000)), "TK1005", 65, 65),
    added("duplicate section", "tasks: [x]\n", "TK1006", 1, 1),
    added("duplicate key in security", "security:\n  sandbox: true\n  sandbox: false\n", "TK1006", 3, 3),
    added("duplicate after an escape", '"tas\\u006bs": [x]\n', "TK1006", 1, 1),
    added("no is not false", "security: {sandbox: no}\n", "TK2002", 1, 21),
    added("on is not true", "security: {sandbox: on}\n", "TK2002", 1, 21),
    added("1:30 is no number of seconds", "security: {resource_limits: {timeout: 1:30}}\n", "TK5001", 1, 39),
    added("a bare number is no duration", "security: {resource_limits: {timeout: 90}}\n", "TK5001", 1, 39),
    added("Cyrillic letter in security", "ѕecurity: {sandbox: true}\n", "TK1007", 1, 1),
    added("zero-width space in security", "secu\u200brity: {sandbox: true}\n", "TK1007", 1, 1),
    added("soft hyphen in a key", "security: {sand\u00adbox: false}\n", "TK1007", 1, 12),
    added("full-width letters", "ｓecurity: {sandbox: true}\n", "TK1007", 1, 1),
    added("key in a decomposed spelling", "cafe\u0301: 1\n", "TK1007", 1, 1),
    added("key of letters that only look Latin", "notes: {хор: 1}\n", "TK1007", 1, 9),
    added("two keys that look the same", "notes: {\u00e6o: 1, \u00e6\u043e: 2}\n", "TK1007", 1, 16),
    added("merge key widens a grant",
          "x: &x {capabilities_required: [git-access]}\nsecurity:\n  <<: *x\n", "TK1008", 3, 3),
    added("merge key at the top", "x: &x {security: {sandbox: false}}\n<<: *x\n", "TK1008", 2, 1),
    added("python tag", "x: !!python/object/apply:os.system [id]\n", "TK1009", 1, 4),
    added("no tag", "x: ! grep -q bad file\n", "TK1009", 1, 4),
    added("own tag", "x: !secret y\n", "TK1009", 1, 4),
    added("tag on a mapping", "x: !!map {a: b}\n", "TK1009", 1, 4),
    text("tag directive", "%TAG ! tag:x,2000:\n---\na: 1\n", "TK1009", 1, 1),
    text("50,000 directives", "".join(f"%TAG !a{n}! tag:x\n" for n in range(50_000)) + "--- a\n", "TK1009", 1, 1),
    added("second document", "---\nmetadata: {name: two}\n", "TK1011", 1, 1),
    added("document after an end", "...\n---\na: 1\n", "TK1011", 2, 1),
    Broken("NUL", GOOD + b"x: a\0b\n", "TK1003", 4, 5),
    Broken("escape character", GOOD + b"x: \x1b[2J\n", "TK1003", 4, 4),
    Broken("lone carriage return", GOOD + b"# note\rsecurity: {sandbox: false}\n", "TK1003", 4, 7),
    added("line separator in a comment", "# note\u2028security: {sandbox: false}\n", "TK1003", 1, 7),
    added("next line in a comment", "# note\u0085security: {sandbox: false}\n", "TK1003", 1, 7),
    Broken("UTF-16, little end first", HEAD.encode("utf-16"), "TK1002", 1, 1),
    Broken("UTF-16, big end first", b"\xfe\xff" + HEAD.encode("utf-16-be"), "TK1002", 1, 1),
    Broken("UTF-16 without a mark", HEAD.encode("utf-16-le"), "TK1002", 1, 1),
    Broken("UTF-32", HEAD.encode("utf-32"), "TK1002", 1, 1),
    Broken("Latin-1", GOOD + "x: é\n".encode("latin-1"), "TK1002", 4, 4),
    Broken("half a character at the end", GOOD + b"x: \xc3", "TK1002", 4, 4),
    Broken("binary garbage", bytes(range(256)) * 100, "TK1003", 1, 1),
    Broken("program", b"\x7fELF\x02\x01\x01" + bytes(1000), "TK1003", 1, 1),
    Broken("gzip", bytes.fromhex("1f8b0800000000000003") + bytes(100), "TK1002", 1, 2),
    Broken("empty", b"", "TK1012", 1, 1),
    Broken("one space", b" ", "TK1012", 1, 1),
    Broken("only comments", b"# one\n# two\n", "TK1012", 1, 1),
    Broken("only a document start", b"---\n", "TK1012", 1, 1),
    Broken("null", b"null\n", "TK1012", 1, 1),
    text("list at the top", "- a\n- b\n", "TK2002", 1, 1),
    text("text at the top", "hello\n", "TK2002", 1, 1),
    Broken("2 MB", GOOD + b"x: " + b"y" * 2_000_000, "TK1004", 1, 1),
    added("1 MB of empty lists", "x: [" + "[]," * 300_000 + "]\n", "TK1004", 1, 149_969),
    added("1 MB of keys", "x: {" + "".join(f"k{n}: 1," for n in range(90_000)) + "}\n", "TK1004", 1, 238_835),
    Broken("comment of 1 MB", b"#" * 1_000_000, "TK1012", 1, 1),
    Broken("900,000 line ends", b"\n" * 900_000, "TK1012", 1, 1),
    added("900,000 spaces before a colon", "x" + " " * 900_000 + ": y\n", "TK1001", 1, 900_002),
    added("tab as indentation", "security:\n\tsandbox: true\n", "TK1001", 2, 1),
    added("bracket never closed", "x: [a, b\n", "TK1001", 2, 1),
    added("quote never closed", 'x: "a\n', "TK1001", 2, 1),
    added("colon in bare text", "x: a: b\n", "TK1001", 1, 5),
    added("indentation that does not line up", "x:\n    a: 1\n  b: 2\n", "TK1001", 3, 3),
    added("list as a key", "? [a]\n: b\n", "TK1014", 1, 3),
    added("empty key", '"": b\n', "TK1014", 1, 1),
    added("unknown key in security", "security: {sandbx: true}\n", "TK2003", 1, 12),
    added("unknown limit", "security: {resource_limits: {max_memmory: 1GB}}\n", "TK2003", 1, 30),
    added("unknown argument", "security: {capabilities_required: [filesystem-read: {path: [src]}]}\n", "TK2003", 1, 54),
    added("misspelled section", "securty: {sandbox: true}\n", "TK2003", 1, 1),
    added("misspelled section in other case", "Security: {sandbox: true}\n", "TK2003", 1, 1),
    added("unknown key in an objective's check", "objectives: [{description: a, check: {rnu: b}}]\n", "TK2003", 1, 39),
    added("misspelled check", "objectives: [{description: a, chek: b}]\n", "TK2003", 1, 31),
    text("unknown key in a task", "metadata: {name: a}\nspec: {}\ntasks: [{run: a, dependson: b}]\n", "TK2003", 3, 18),
    text("metadata without a name", "metadata: {version: '1'}\nspec: {}\ntasks: [a]\n", "TK2001", 1, 1),
    text("no metadata", "spec: {}\ntasks: [a]\n", "TK2001", 1, 1),
    text("no tasks", "metadata: {name: a}\nspec: {}\n", "TK2009", 1, 1),
    text("name with a slash", "metadata: {name: ../a}\nspec: {}\ntasks: [a]\n", "TK2005", 1, 18),
    text("name of another script", "metadata: {name: аgent}\nspec: {}\ntasks: [a]\n", "TK2005", 1, 18),
    text("list of lists of tasks", "metadata: {name: a}\nspec: {}\ntasks: [[a]]\n", "TK2002", 3, 9),
    added("path out of the workspace",
          "security: {capabilities_required: [filesystem-read: {paths: [../x]}]}\n", "TK4003", 1, 62),
    added("half a capability", "security: {capabilities_required: [filesystem-write: ]}\n", "TK2002", 1, 54),
    added("memory of nothing", "security: {resource_limits: {max_memory: 0}}\n", "TK5003", 1, 42),
    added("number too long for Python",
          "security: {resource_limits: {max_tokens: " + "9" * 5000 + "}}\n", "TK5001", 1, 42),
]  # fmt: skip


@pytest.mark.parametrize("case", CORPUS, ids=lambda c: c.name.replace(" ", "-"))
def test_a_broken_spec_is_reported_with_its_place(case: Broken, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(case.data)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        AgentConfig.load_from_file(path)
    assert time.process_time() - started < 1.0
    found = [(f.code, f.line, f.column) for f in caught.value.findings if isinstance(f, Finding)]
    assert (case.code, case.line, case.column) in found
    assert all(f.text.startswith(str(path)) for f in caught.value.findings)
    assert len(caught.value.findings) <= 51


def test_values_that_other_readers_twist_stay_as_they_are() -> None:
    config = AgentConfig.parse(
        HEAD + "x: {a: no, b: 1:30, c: 0o17, d: 010, e: 1_000, f: 2026-01-02, g: .inf, h: ~, i: 0x1F, j: 1e3, k: yes}\n"
    )
    assert config.extensions["x"] == {
        "a": "no", "b": "1:30", "c": 15, "d": 10, "e": "1_000", "f": "2026-01-02",
        "g": ".inf", "h": None, "i": 31, "j": 1000.0, "k": "yes",
    }  # fmt: skip


def test_a_file_of_100_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 1024**2)
    started = time.process_time()
    with pytest.raises(ConfigError, match="TK1004"):
        AgentConfig.load_from_file(path)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "/proc/self/mem", "/", "/nowhere/x.yaml", "a\0b", "x" * 5000]
)
def test_what_is_no_file_is_refused_at_once(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AgentConfig.load_from_file(path)
    assert caught.value.findings[0].code == "TK1013"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        AgentConfig.load_from_file(tmp_path / "pipe.yaml")


def test_several_mistakes_are_reported_in_one_pass() -> None:
    broken = (
        "metadata: {name: a b, versoin: 1}\nspec: {priority: hgih}\ntasks:\n- {descripton: x}\n- [y]\n"
        "security: {sandbox: no, sandbx: 1, resource_limits: {timeout: 2 hours}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        AgentConfig.parse(broken)
    codes = sorted(f.code for f in caught.value.findings)
    assert codes == ["TK2001", "TK2002", "TK2002", "TK2003", "TK2003", "TK2003", "TK2004", "TK2005", "TK5001"]
