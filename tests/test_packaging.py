"""What is published: wheel and sdist hold what they should and no more, and the wheel works away from the checkout."""

from __future__ import annotations

import configparser
import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import toka

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "src" / "toka"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100
    )
    assert done.returncode == 0, f"{command} gave {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def build(project: Path, target: str, into: Path) -> Path:
    """Builds with the hatchling that is installed: no isolated environment, hence no network."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", into, cwd=project)
    (built,) = into.iterdir()
    return built


def listed(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {name for name in wheel.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as sdist:
        return {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(PROJECT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(PROJECT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> dict[str, str]:
    """The files of the wheel's dist-info folder, by name."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" in name]
        return {name.partition(".dist-info/")[2]: archive.read(name).decode() for name in names}


def package_files() -> set[str]:
    """All files of the package as the wheel names them, without what Python leaves behind."""
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    return {path.relative_to(PACKAGE.parent).as_posix() for path in files}


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    packed = {name for name in listed(wheel) if ".dist-info/" not in name}
    assert packed == package_files()
    assert "toka/py.typed" in packed


def test_wheel_names_its_licence_its_command_and_no_development_tool(metadata: dict[str, str]) -> None:
    assert "Apache License" in metadata["licenses/LICENSE"]
    scripts = configparser.ConfigParser()
    scripts.read_string(metadata["entry_points.txt"])
    assert dict(scripts["console_scripts"]) == {"toka": "toka.cli.main:main"}
    header = email.message_from_string(metadata["METADATA"])
    assert header["Requires-Python"] == ">=3.11"
    assert header["Name"] == "toka-agent-runtime"
    required = " ".join(header.get_all("Requires-Dist", []))
    assert "pydantic" in required
    assert not any(tool in required for tool in ("pytest", "ruff", "pyright", "hatchling"))


def test_sdist_holds_files_of_the_repository_only(sdist: Path) -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True
    )
    if listing.returncode != 0:
        pytest.skip(f"not a git checkout: {listing.stderr.decode().strip()}")
    assert listed(sdist) - {"PKG-INFO"} <= set(listing.stdout.decode().split("\0"))


def test_sdist_is_enough_to_build_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    run("tar", "-xf", sdist, cwd=tmp_path)
    (unpacked,) = tmp_path.iterdir()
    again = build(unpacked, "wheel", tmp_path / "dist")
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_sdist_is_enough_to_run_the_tests(sdist: Path) -> None:
    needed = {
        "Makefile",
        "scripts/setup",
        "scripts/test",
        "examples/.schema/team.json",
        "examples/log-triage/workspace/logs/shop.log",
        "requirements/dev.txt",
        "requirements/bootstrap.txt",
        "tests/test_packaging.py",
    }
    assert needed <= listed(sdist)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment outside the checkout that holds the wheel.

    The wheel's dependencies come from the environment that runs the tests, through a .pth file: that folder's own .pth
    files are not followed, so the editable install of the checkout stays out of sight.
    """
    venv = tmp_path_factory.mktemp("machine") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    run(uv, "pip", "install", "--offline", "--no-deps", "--python", python, wheel, cwd=venv.parent)
    (site,) = venv.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv


def outside(venv: Path, *arguments: str, home: Path) -> str:
    """Runs a program of the environment in an empty folder, with an empty home and next to no environment variables."""
    environment = {"PATH": f"{venv / 'bin'}{os.pathsep}/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
    return run(venv / "bin" / arguments[0], *arguments[1:], cwd=home, env=environment).stdout


def test_installed_package_is_the_wheel_and_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = outside(installed, "python", "-c", "import toka; print(toka.__file__)", home=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)


def test_every_module_of_the_installed_package_imports(installed: Path, tmp_path: Path) -> None:
    program = (
        "import importlib, pkgutil, toka\n"
        "names = [m.name for m in pkgutil.walk_packages(toka.__path__, 'toka.') if not m.name.endswith('__main__')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))"
    )
    assert int(outside(installed, "python", "-c", program, home=tmp_path)) > 5


def test_installed_command_tells_the_version(installed: Path, tmp_path: Path) -> None:
    assert toka.__version__ in outside(installed, "toka", "--version", home=tmp_path)


def test_installed_demo_runs(installed: Path, tmp_path: Path) -> None:
    outside(installed, "toka", "demo", home=tmp_path)
