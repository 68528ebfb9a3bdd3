"""What kind of project a directory holds, and the command that runs its tests there, inside the sandbox.

Only files with known names are read, each up to a bound, none through a symbolic link; a directory is listed up to a
bound. Nothing is executed but the system's Python, which is asked whether it has pytest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from toka.sandbox.idmap import PYTHON

MAX_BYTES: Final = 256 * 1024
"""Read of one file."""
MAX_ENTRIES: Final = 2_000
"""Looked at in one directory."""
MAX_TESTS: Final = 20
"""Test files whose beginning is read."""
SANDBOX_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""Where the sandbox looks for programs."""
TEST_FOLDERS: Final = (".", "tests", "test")
NOT_SET: Final = "no test specified"
"""In the test script that npm writes into a new package.json."""


@dataclass(frozen=True, slots=True)
class Found:
    """A test command.

    Attributes:
        command: a shell command.
        source: the file that it comes from, relative to the directory.
        kind: what sort of project that is, in a word or two.
        there: a shell condition that tells inside the sandbox whether it can run.
        missing: why the sandbox cannot run it; empty when it can, as far as this machine tells.
        writes: whether running the tests writes into the project, as builds do.
    """

    command: str
    source: str
    kind: str
    there: str
    missing: str = ""
    writes: bool = True


Rule = Callable[[Path], Found | None]


def detect(directory: Path) -> Found | None:
    """The test command of a project: the first that the sandbox can run, else the first at all; None without any."""
    found = [f for rule in RULES if (f := rule(directory)) is not None]
    return next((f for f in found if not f.missing), found[0] if found else None)


def is_empty(directory: Path, besides: str = "") -> bool:
    """Whether a directory holds nothing but names that start with a dot, and `besides`. Raises OSError."""
    with os.scandir(directory) as entries:
        return all(entry.name.startswith(".") or entry.name == besides for entry in entries)


def read_head(path: Path) -> str | None:
    """The beginning of a regular file as text; None when there is none, it is a link, or it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def _make(directory: Path) -> Found | None:
    for name in ("GNUmakefile", "makefile", "Makefile"):
        text = read_head(directory / name)
        for target in ("test", "check") if text else ():
            if re.search(rf"^{target}\s*:(?!=)", text or "", re.MULTILINE):
                return _found(f"make {target}", name, "make", "make")
    return None


def _node(directory: Path) -> Found | None:
    text = read_head(directory / "package.json")
    try:
        package: Any = json.loads(text or "null")
        scripts: Any = cast("dict[str, Any]", package).get("scripts") if isinstance(package, dict) else None
        script: Any = cast("dict[str, Any]", scripts).get("test") if isinstance(scripts, dict) else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(script, str) or not script or NOT_SET in script:
        return None
    return _found("npm test", "package.json", "Node.js", "npm")


def _python(directory: Path) -> Found | None:
    source, tests = _pytest_source(directory), _python_tests(directory)
    if source is None and tests is None:
        return None
    folder, file, uses_pytest = tests or (".", "", True)
    path = "PYTHONPATH=src " if (directory / "src").is_dir() and not (directory / "src/__init__.py").exists() else ""
    if source is not None or uses_pytest:
        return _pytest(directory, source or file, path)
    command = f"{path}python3 -m unittest"
    if folder != ".":
        top = "" if read_head(directory / folder / "__init__.py") is None else " -t ."
        command += f" discover -s {folder}{top}"
    return replace(_found(command, file, "Python, unittest", "python3"), writes=False)


def _pytest(directory: Path, source: str, path: str) -> Found:
    """With the system's Python when it has pytest, else with the project's own environment when that rests on it."""
    python, missing = "python3", ""
    if not _has_pytest():
        own = _environment(directory)
        python, missing = own or python, "" if own else f"the Python of the sandbox, {PYTHON}, has no pytest"
    command = f"{path}{python} -m pytest -q -p no:cacheprovider"
    there = f"{python} -c 'import pytest' 2> /dev/null"
    return Found(command, source, "Python, pytest", there, missing, writes=False)


def _environment(directory: Path) -> str | None:
    """The interpreter of a virtual environment inside the project that has pytest and runs on a Python below /usr."""
    for name in (".venv", "venv"):
        python = directory / name / "bin" / "python"
        if (directory / name).is_symlink() or not os.path.realpath(python).startswith("/usr/"):
            continue
        if next((directory / name).glob("lib/python3*/site-packages/pytest/__init__.py"), None) is not None:
            return f"{name}/bin/python"
    return None


def _pytest_source(directory: Path) -> str | None:
    """The file that says that the tests are pytest's."""
    marks = {"pytest.ini": "", "pyproject.toml": "[tool.pytest", "setup.cfg": "[tool:pytest]", "tox.ini": "pytest"}
    for name, mark in {**marks, "conftest.py": "", "tests/conftest.py": "pytest"}.items():
        if name.startswith("tests/") and (directory / "tests").is_symlink():
            continue
        text = read_head(directory / name)
        if text is not None and mark in text:
            return name
    return None


def _python_tests(directory: Path) -> tuple[str, str, bool] | None:
    """The folder of test_*.py files, the first of them, and whether they import pytest; None without any."""
    for folder in TEST_FOLDERS:
        path = directory / folder
        if path.is_symlink():
            continue
        names = [n for n in _names(path) if n.startswith("test") and n.endswith(".py") and n != "test.py"]
        texts = [read_head(path / n) or "" for n in names[:MAX_TESTS]]
        if texts:
            pytest = any(re.search(r"^\s*(import|from) pytest\b", t, re.MULTILINE) for t in texts)
            unittest = any("unittest" in t for t in texts)
            return folder, names[0] if folder == "." else f"{folder}/{names[0]}", pytest or not unittest
    return None


def _names(directory: Path) -> list[str]:
    """File names of a directory, sorted, at most MAX_ENTRIES of them; empty when it cannot be read."""
    names: list[str] = []
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_ENTRIES:
                    break
                if entry.is_file(follow_symlinks=False):
                    names.append(entry.name)
    except OSError:
        return []
    return sorted(names)


def _by_file(name: str, command: str, kind: str, tool: str) -> Rule:
    """A project that is known by one file and always tested by the same command."""

    def rule(directory: Path) -> Found | None:
        return _found(command, name, kind, tool) if read_head(directory / name) is not None else None

    return rule


def _found(command: str, source: str, kind: str, tool: str) -> Found:
    """A command that needs one program."""
    missing = ""
    if shutil.which(tool, path=SANDBOX_PATH) is None:
        missing = f"the sandbox has no {tool}; it looks in {SANDBOX_PATH.replace(':', ', ')}"
    return Found(command, source, kind, f"command -v {tool} > /dev/null", missing)


def _has_pytest() -> bool:
    """Whether the system's Python has pytest, asked in isolated mode: nothing of the project is imported."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('pytest') is None)"
    try:
        return subprocess.run([PYTHON, "-I", "-c", code], capture_output=True, check=False, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


RULES: Final[tuple[Rule, ...]] = (
    _make,
    _python,
    _node,
    _by_file("Cargo.toml", "cargo test --offline", "Rust", "cargo"),
    _by_file("go.mod", "go test ./...", "Go", "go"),
    _by_file("pom.xml", "mvn -o -q test", "Java, Maven", "mvn"),
    _by_file("build.gradle", "gradle --offline test", "Java, Gradle", "gradle"),
    _by_file("build.gradle.kts", "gradle --offline test", "Java, Gradle", "gradle"),
    _by_file("mix.exs", "mix test", "Elixir", "mix"),
    _by_file("Rakefile", "rake test", "Ruby", "rake"),
)
"""In the order in which they are asked."""
