"""The pinned dependencies fit pyproject.toml, carry hashes, and are accounted for in docs/dependencies.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


COMPANIONS = {"pydantic-core": "pydantic", "yarl": "aiohttp"}
"""Distributions that are part of another one's public interface and come with it."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def name_and_extras(requirement: str) -> list[str]:
    """``pydantic-ai-slim[openai,anthropic]>=2`` gives the distribution, then its extras."""
    found = re.match(r"([\w.-]+)(?:\[([^\]]*)\])?", requirement)
    assert found is not None
    return [normal(found[1]), *(extra.strip() for extra in (found[2] or "").split(",") if extra)]


def declared(group: str) -> set[str]:
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    wanted = pyproject["project"]["dependencies"] if group == "runtime" else pyproject["dependency-groups"][group]
    return {name_and_extras(requirement)[0] for requirement in wanted}


def declared_extras() -> set[str]:
    """``openai`` and ``anthropic`` of ``pydantic-ai-slim[openai,anthropic]``: each is named like what it brings."""
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    return {extra for r in pyproject["project"]["dependencies"] for extra in name_and_extras(r)[1:]}


def pins(group: str) -> dict[str, str]:
    """The pinned version of each distribution; asserts that every entry has the one form that is allowed."""
    versions: dict[str, str] = {}
    text = (PROJECT / "requirements" / f"{group}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if not line.strip().startswith("#"):
            entry = re.fullmatch(r"([a-z0-9-]+)==(\S+)(?: ; [^#]+?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
            assert entry is not None, f"requirements/{group}.txt: not pinned by version and hash: {line[:80]}"
            versions[entry[1]] = entry[2]
    return versions


def test_everything_declared_is_pinned() -> None:
    assert declared("runtime") <= pins("runtime").keys()
    assert declared("runtime") | declared("dev") <= pins("dev").keys()
    assert pins("bootstrap").keys() == {"uv"}


def imported() -> dict[str, str]:
    """Third-party packages that the source imports, each with a place where it does. The demo's project is not ours."""
    package = PROJECT / "src" / "toka"
    places: dict[str, str] = {}
    for path in (path for path in package.rglob("*.py") if not path.is_relative_to(package / "demo")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                top = name.partition(".")[0]
                if top != "toka" and top not in sys.stdlib_module_names:
                    places[top] = f"{path.relative_to(PROJECT)}:{getattr(node, 'lineno', 0)}"
    return places


def test_everything_imported_is_declared() -> None:
    """What comes along with another package may go with its next release."""
    allowed = declared("runtime") | declared_extras()
    allowed |= {companion for companion, owner in COMPANIONS.items() if owner in allowed}
    providers = packages_distributions()
    missing = [
        f"{place}: {name} is not in pyproject.toml"
        for name, place in imported().items()
        if not allowed.intersection(map(normal, providers.get(name, [])))
    ]
    assert not missing


def test_everything_declared_is_imported() -> None:
    providers = packages_distributions()
    used = {normal(distribution) for name in imported() for distribution in providers.get(name, [])}
    assert declared("runtime") <= used


def test_development_and_runtime_pin_the_same_versions() -> None:
    assert pins("runtime").items() <= pins("dev").items()


def test_installed_versions_are_the_pinned_ones_and_fit_together() -> None:
    """`uv pip check` compares what is installed, the project included, with what each distribution asks for."""
    uv = Path(sys.executable).with_name("uv")
    checked = subprocess.run(
        [uv, "pip", "check", "--python", sys.executable], cwd=PROJECT, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    frozen = subprocess.run(
        [uv, "pip", "freeze", "--python", sys.executable], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    installed = dict(line.split("==") for line in frozen.stdout.splitlines() if "==" in line)
    allowed = pins("dev") | pins("bootstrap")
    assert {name: installed[name] for name in installed.keys() & allowed.keys()}.items() <= allowed.items()
    assert declared("runtime") | declared("dev") <= installed.keys()


@pytest.mark.parametrize("group", ["runtime", "dev"])
def test_every_dependency_is_accounted_for(group: str) -> None:
    page = (PROJECT / "docs" / "dependencies.md").read_text()
    rows = {normal(row) for row in re.findall(r"^\| ([\w.-]+)[^|]* \|", page, re.MULTILINE)}
    assert declared(group) <= rows


def test_no_row_for_what_is_not_used() -> None:
    page = (PROJECT / "docs" / "dependencies.md").read_text()
    ours = page.partition("## From the system")[0]
    rows = {normal(row) for row in re.findall(r"^\| ([\w.-]+)[^|]* \|", ours, re.MULTILINE)} - {"package"}
    used = declared("runtime") | declared("dev") | declared_extras() | pins("bootstrap").keys()
    assert {row for row in rows if row.strip("-")} <= used
