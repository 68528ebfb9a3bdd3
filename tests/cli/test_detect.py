"""What kind of project a directory holds."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from toka.cli import detect as detection
from toka.cli.detect import Found, detect, is_empty, read_head

UNITTEST = "import unittest\n\n\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertTrue(True)\n"
PYTEST = "def test_a():\n    assert True\n"


def fill(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def found(folder: Path) -> Found:
    result = detect(folder)
    assert result is not None
    return result


def test_command_that_the_sandbox_can_run_goes_before_one_that_it_cannot(tmp_path: Path) -> None:
    fill(tmp_path, {"mix.exs": "", "test_a.py": UNITTEST})
    assert found(tmp_path).command == "python3 -m unittest"
    fill(tmp_path, {"Makefile": "test:\n"})
    assert found(tmp_path).source == "Makefile"


@pytest.mark.parametrize(
    "files",
    [
        {"Makefile": "all:\ntest := 1\nlatest:\n\ttest: no\n"},
        {"package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'},
        {"package.json": '{"scripts": ["test"]}'},
        {"package.json": '{"scripts": {"test": 7'},
        {"package.json": "[" * 100_000},
        {"notes.md": "run the tests with make test"},
        {"test.py": "print('no tests')"},
    ],
)
def test_what_only_looks_like_a_test_command_is_none(tmp_path: Path, files: Mapping[str, str]) -> None:
    fill(tmp_path, files)
    assert detect(tmp_path) is None


@pytest.mark.parametrize("name", ["pytest.ini", "conftest.py", "setup.cfg", "tox.ini", "pyproject.toml"])
def test_pytest_is_recognised_by_its_configuration(tmp_path: Path, name: str) -> None:
    text = {"setup.cfg": "[tool:pytest]", "tox.ini": "[testenv]\ncommands = pytest", "pyproject.toml": "[tool.pytest]"}
    fill(tmp_path, {name: text.get(name, "")})
    assert (found(tmp_path).kind, found(tmp_path).source) == ("Python, pytest", name)


def test_environment_inside_the_project_is_used_when_it_rests_on_the_systems_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection, "PYTHON", "/bin/false")
    fill(tmp_path, {"test_a.py": PYTEST, ".venv/lib/python3.11/site-packages/pytest/__init__.py": ""})
    (tmp_path / ".venv/bin").mkdir()
    (tmp_path / ".venv/bin/python").symlink_to("/opt/elsewhere/python3")
    assert found(tmp_path).missing
    (tmp_path / ".venv/bin/python").unlink()
    (tmp_path / ".venv/bin/python").symlink_to("/usr/bin/env")
    assert found(tmp_path).command == ".venv/bin/python -m pytest -q -p no:cacheprovider"
    assert not found(tmp_path).missing


def test_links_and_pipes_are_not_read(tmp_path: Path) -> None:
    fill(tmp_path / "outside", {"Makefile": "test:\n", "tests/test_a.py": UNITTEST})
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "Makefile").symlink_to("../outside/Makefile")
    (inside / "tests").symlink_to("../outside/tests")
    subprocess.run(["mkfifo", str(inside / "package.json")], check=True)
    assert detect(inside) is None
    assert read_head(inside / "package.json") is None


def test_large_files_and_directories_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"Makefile": "x" * detection.MAX_BYTES + "\ntest:\n"})
    assert detect(tmp_path) is None
    monkeypatch.setattr(detection, "MAX_ENTRIES", 5)
    fill(tmp_path, {f"a{n}.txt": "" for n in range(20)})
    assert len(detection._names(tmp_path)) <= 5


@pytest.mark.parametrize(
    ("file", "command", "tool"),
    [
        ("Cargo.toml", "cargo test --offline", "cargo"),
        ("go.mod", "go test ./...", "go"),
        ("pom.xml", "mvn -o -q test", "mvn"),
        ("build.gradle", "gradle --offline test", "gradle"),
        ("build.gradle.kts", "gradle --offline test", "gradle"),
        ("mix.exs", "mix test", "mix"),
        ("Rakefile", "rake test", "rake"),
    ],
)
def test_one_file_is_enough_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, command: str, tool: str
) -> None:
    fill(tmp_path / "project", {file: ""})
    monkeypatch.setattr(detection, "SANDBOX_PATH", f"/nowhere:{tmp_path}")
    result = found(tmp_path / "project")
    assert (result.command, result.source, result.writes) == (command, file, True)
    assert result.there == f"command -v {tool} > /dev/null"
    assert result.missing == f"the sandbox has no {tool}; it looks in /nowhere, {tmp_path}"
    (tmp_path / tool).write_text("#!/bin/sh\n")
    (tmp_path / tool).chmod(0o755)
    assert found(tmp_path / "project").missing == ""


@pytest.mark.parametrize(
    ("files", "command", "source"),
    [
        ({"tests/test_a.py": UNITTEST}, "python3 -m unittest discover -s tests", "tests/test_a.py"),
        (
            {"test/test_b.py": UNITTEST, "test/test_a.py": UNITTEST},
            "python3 -m unittest discover -s test",
            "test/test_a.py",
        ),
        (
            {"tests/test_a.py": UNITTEST, "tests/__init__.py": "", "src/it/__init__.py": ""},
            "PYTHONPATH=src python3 -m unittest discover -s tests -t .",
            "tests/test_a.py",
        ),
        ({"test_a.py": UNITTEST, "src/__init__.py": ""}, "python3 -m unittest", "test_a.py"),
    ],
)
def test_unittest_is_called_for_where_its_files_are(
    tmp_path: Path, files: Mapping[str, str], command: str, source: str
) -> None:
    fill(tmp_path, files)
    result = found(tmp_path)
    assert (result.command, result.source, result.writes) == (command, source, False)


@pytest.mark.parametrize(
    "text", [PYTEST, "import pytest\n" + UNITTEST, "    from pytest import mark\nimport unittest\n"]
)
def test_a_file_that_unittest_would_not_run_is_pytests(tmp_path: Path, text: str) -> None:
    fill(tmp_path, {"tests/test_a.py": text, "src/it.py": ""})
    result = found(tmp_path)
    assert result.kind == "Python, pytest"
    assert result.command.startswith("PYTHONPATH=src ")


def test_a_python_without_pytest_is_said_to_lack_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detection, "PYTHON", str(tmp_path / "no-python"))
    fill(tmp_path, {"pytest.ini": ""})
    assert found(tmp_path).missing == f"the Python of the sandbox, {tmp_path / 'no-python'}, has no pytest"


def test_nothing_of_the_project_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(
        tmp_path, {"pytest.py": "open('imported', 'w')", "sitecustomize.py": "open('imported', 'w')", "pytest.ini": ""}
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found(tmp_path)
    assert not (tmp_path / "imported").exists()


def test_a_directory_that_cannot_be_read_holds_nothing(tmp_path: Path) -> None:
    assert detect(tmp_path / "nowhere") is None
    assert read_head(tmp_path) is None
    assert read_head(tmp_path / "nowhere") is None
    assert read_head(Path("/proc/self/mem")) is None, "it opens, and cannot be read from its beginning"


def test_directories_with_the_names_of_files_are_no_project(tmp_path: Path) -> None:
    for name in ("Makefile", "package.json", "conftest.py", "Cargo.toml", "test_a.py"):
        (tmp_path / name).mkdir()
    assert detect(tmp_path) is None


def test_what_counts_as_empty(tmp_path: Path) -> None:
    fill(tmp_path, {".git/config": "", ".hidden": ""})
    assert is_empty(tmp_path)
    fill(tmp_path, {"agents/a.yaml": ""})
    assert not is_empty(tmp_path)
    assert is_empty(tmp_path, "agents")
    with pytest.raises(FileNotFoundError):
        is_empty(tmp_path / "nowhere")
