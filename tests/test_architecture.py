"""The rooms and floors of ``src/toka``, and the rules that keep them apart.

``FLOORS`` is the table of the architecture. A module imports only from lower floors or from its own room; imports under
``if TYPE_CHECKING``, inside functions and by ``import_module("toka...")`` count too. First comes the checker, then its
use on the project, last the checker's own tests: small trees with one fault each.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "src" / "toka"

FLOORS: Mapping[str, int] = {
    "errors": 0,
    "version": 0,
    "core": 1,
    "config": 2,
    "events": 2,
    "llm": 2,
    "sandbox": 2,
    "journal": 3,
    "tools": 3,
    "workspace": 3,
    "runtime": 4,
    "orchestration": 5,
    "app": 6,
    "testing": 7,
    "api": 7,
    "cli": 8,
    "": 9,  # toka/__init__.py: re-exports a few names, lazily
    "__main__": 9,
}

DATA_FOLDERS = {"demo"}
"""Folders of the package that hold files and no modules of ours."""

TEST_FOLDERS = {"bench", "fixtures", "torture"}
"""Folders under tests/ that belong to no single room."""

VENDORS = {"toka.llm.models", "toka.llm.conversion", "toka.llm.wire_anthropic", "toka.llm.wire_openai"}
"""Modules that may import a vendor's packages, which takes a second; others import these modules inside functions."""

FENCED: Mapping[str, set[str]] = {"pydantic_ai": VENDORS, "openai": VENDORS, "anthropic": VENDORS}
"""Distributions that only the modules named may import."""

STANDALONE = {
    f"toka.sandbox.{name}"
    for name in ("groundwork", "kernel", "listener", "probe", "roles", "streams", "worker", "zygote")
} | {
    f"toka.workspace.{name}"
    for name in ("ignored", "inside", "operations", "packs", "putback", "store", "trees", "walk")
}
"""Modules that run inside the sandbox, under the system's Python: standard library only, syntax of Python 3.9."""

COMPOSED = {"SqliteJournal", "PostgresJournal", "MemoryJournal", "LlmGateway"}
"""What stands behind the ports: built by the composition root, and by ``toka.testing`` for tests."""

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc"}

MODULE_LINES = 400
FUNCTION_LINES = 60
"""Without the docstring."""

LONG: Mapping[str, int] = {}
"""Modules and functions that were longer when the limits came, with their length: ``src/toka/x.py`` or
``src/toka/x.py:Class.method``. The number follows the code down and never up; at the limit the entry goes."""


# --- the checker -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    name: str
    path: str
    """Relative to the project, as it is shown in findings."""
    source: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return room_of(self.name)

    @property
    def is_package(self) -> bool:
        return self.path.endswith("__init__.py")


@dataclass(frozen=True)
class Import:
    line: int
    target: str
    """The module imported: ``toka.core.ids`` for ``from toka.core.ids import RunId``."""


Rule = Callable[[Mapping[str, Module]], Iterator[str]]
"""Takes the modules by name, yields findings: ``file:line: what is wrong``."""


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def read_tree(package: Path) -> dict[str, Module]:
    """All modules below ``package``, by dotted name; folders named in DATA_FOLDERS are left out."""
    modules: dict[str, Module] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] in DATA_FOLDERS and not (package / parts[0] / "__init__.py").exists():
            continue
        name = ".".join(["toka", *(parts[:-1] if parts[-1] == "__init__" else parts)])
        source = path.read_text(encoding="utf-8")
        shown = path.relative_to(package.parents[1]).as_posix()
        modules[name] = Module(name, shown, source, ast.parse(source, shown))
    return modules


def imports_of(module: Module, known: Mapping[str, Module]) -> Iterator[Import]:
    """Every import of a module, wherever it stands."""
    package = module.name if module.is_package else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from (Import(node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                origin = ".".join([*parents, *([source] if source else [])])
                for alias in names:
                    full = f"{origin}.{alias.name}"
                    yield Import(node.lineno, full if full in known else origin)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, name)
            case _:
                pass


def is_ours(target: str) -> bool:
    return target == "toka" or target.startswith("toka.")


def check_floors(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.room not in FLOORS:
            yield f"{module.path}:1: room {module.room!r} is not in the table of floors"
            continue
        for found in imports_of(module, modules):
            room = room_of(found.target)
            if not is_ours(found.target) or room == module.room:
                continue
            if room not in FLOORS:
                yield f"{module.path}:{found.line}: {found.target} is in no room of the table"
            elif FLOORS[room] >= FLOORS[module.room]:
                yield (
                    f"{module.path}:{found.line}: {module.room} (floor {FLOORS[module.room]}) imports {found.target} "
                    f"(floor {FLOORS[room]})"
                )


def check_circles(modules: Mapping[str, Module]) -> Iterator[str]:
    edges = {
        name: {i.target: i.line for i in imports_of(module, modules) if i.target in modules}
        for name, module in modules.items()
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1][::-1]  # graphlib lists each module after the one that it imports
        steps = [f"{modules[here].path}:{edges[here][there]}: imports {there}" for here, there in pairwise(circle)]
        yield "a circle of imports:\n    " + "\n    ".join(steps)


def check_fences(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.name in STANDALONE:
            try:
                ast.parse(module.source, feature_version=(3, 9))
            except SyntaxError as error:
                yield f"{module.path}:{error.lineno}: {module.name} must be valid in Python 3.9: {error.msg}"
        for found in imports_of(module, modules):
            top = found.target.partition(".")[0]
            if top in FENCED and module.name not in FENCED[top]:
                yield f"{module.path}:{found.line}: only {', '.join(sorted(FENCED[top]))} may import {top}"
            alone = module.name in STANDALONE and found.target not in STANDALONE
            if alone and top not in sys.stdlib_module_names:
                yield f"{module.path}:{found.line}: {module.name} runs alone and may import the standard library only"


def check_names(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        vague = VAGUE_NAMES.intersection(part.strip("_") for part in module.name.split("."))
        if vague:
            yield f"{module.path}:1: a module called {vague.pop()!r} says nothing about what is in it"
        if module.is_package and module.name != "toka":
            body = module.tree.body
            if len(body) != 1 or ast.get_docstring(module.tree) is None:
                line = body[1].lineno if len(body) > 1 else 1
                yield f"{module.path}:{line}: an __init__.py holds a docstring and nothing else"
        parent = module.name.rpartition(".")[0]
        if parent and parent not in modules:
            yield f"{module.path}:1: its folder has no __init__.py"


def check_composition(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.room in {"app", "testing"}:
            continue
        own = {node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)}
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Name(id=name)):
                    pass
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name))) if name in COMPOSED:
                    pass
                case ast.Call(func=ast.Attribute(attr=name)):
                    pass
                case _:
                    continue
            if name in COMPOSED - own:
                yield f"{module.path}:{node.lineno}: only toka.app builds a {name}; take it as an argument"


def lengths(module: Module) -> Iterator[tuple[str, int, int, int]]:
    """Module and functions as (name, line, length, limit); nested functions count in the one around them."""
    yield module.path, 1, len(module.source.splitlines()), MODULE_LINES

    def functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, int, int, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from functions(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (child.end_lineno or child.lineno) - child.lineno + 1
                if ast.get_docstring(child) is not None:
                    doc = child.body[0]
                    length -= (doc.end_lineno or doc.lineno) - doc.lineno + 1
                yield f"{module.path}:{prefix}{child.name}", child.lineno, length, FUNCTION_LINES
            else:
                yield from functions(child, prefix)

    yield from functions(module.tree, "")


def check_lengths(modules: Mapping[str, Module], long: Mapping[str, int] = LONG) -> Iterator[str]:
    seen: set[str] = set()
    for module in modules.values():
        for name, line, length, limit in lengths(module):
            seen.add(name)
            place = f"{module.path}:{line}: {name.rpartition(':')[2]}"
            if length > long.get(name, limit):
                yield f"{place} has {length} lines, {long.get(name, limit)} are allowed"
            elif name in long and length <= limit:
                yield f"{place} has {length} lines: take it off the list LONG"
            elif name in long and length < long[name]:
                yield f"{place} has {length} lines: lower its number in LONG"
    yield from (f"{name}: is in LONG and does not exist" for name in long if name not in seen)


RULES = [check_floors, check_circles, check_fences, check_names, check_composition, check_lengths]


# --- the project -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toka() -> dict[str, Module]:
    return read_tree(PACKAGE)


def report(findings: Iterator[str]) -> None:
    found = sorted(set(findings))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", RULES)
def test_project_keeps(rule: Rule, toka: dict[str, Module]) -> None:
    report(rule(toka))


def test_every_module_was_read(toka: dict[str, Module]) -> None:
    assert {"toka", "toka.errors", "toka.core", "toka.core.ids"} <= toka.keys()


@pytest.mark.slow
def test_the_rest_imports_no_vendor_package(toka: dict[str, Module]) -> None:
    """Not even by way of another module: `toka --help` must not take a second."""
    rest = sorted(toka.keys() - VENDORS - {"toka.__main__"})
    program = (
        "import importlib, sys\n"
        f"for name in {rest!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = {set(FENCED)!r} & sys.modules.keys()\n"
        "    if loaded: sys.exit(f'importing {name} imports {loaded}')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_composed_class_exists(toka: dict[str, Module]) -> None:
    """A renamed class must not slip out of the rule above."""
    if "toka.app" not in toka:
        pytest.skip("toka.app is not there yet")
    classes = {node.name for m in toka.values() for node in ast.walk(m.tree) if isinstance(node, ast.ClassDef)}
    assert classes >= COMPOSED - {"PostgresJournal"}


def test_every_test_folder_mirrors_a_room() -> None:
    folders = {path.parent.relative_to(PROJECT / "tests").parts[:1] for path in (PROJECT / "tests").rglob("*.py")}
    names = {parts[0] for parts in folders if parts}
    assert names <= FLOORS.keys() - {""} | TEST_FOLDERS


def project_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True
    )
    if listing.returncode != 0:
        pytest.skip(f"not a git checkout: {listing.stderr.decode().strip()}")
    paths = (PROJECT / name for name in listing.stdout.decode().split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def names_this_checkout(text: str) -> bool:
    """Whether a line holds the path of this checkout."""
    return f"{PROJECT}/" in text


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    found = [
        f"{path.relative_to(PROJECT)}:{number}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if names_this_checkout(line)
    ]
    assert not found


# --- the checker itself ------------------------------------------------------------------------------------------


def findings(rule: Rule, tmp_path: Path, files: Mapping[str, str]) -> list[str]:
    package = tmp_path / "src" / "toka"
    for name, text in {"__init__.py": '"""Root."""\n__version__ = "0"\n', **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        room = path.parent / "__init__.py"
        if not room.exists():
            room.write_text('"""A room."""\n')
    return list(rule(read_tree(package)))


TYPE_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "

FAULTS: list[tuple[Rule, dict[str, str], str]] = [
    (check_floors, {"core/a.py": "import os\nimport toka.llm.b\n"}, "src/toka/core/a.py:2: core (floor 1)"),
    (check_floors, {"core/a.py": "def f():\n    from toka.cli import b\n", "cli/b.py": ""}, "src/toka/core/a.py:2:"),
    (check_floors, {"config/a.py": f"{TYPE_ONLY}from toka.app import X\n", "app.py": ""}, "src/toka/config/a.py:3:"),
    (check_floors, {"config/a.py": "from toka import events\n", "events/b.py": ""}, "src/toka/config/a.py:1:"),
    (check_floors, {"config/a.py": "from ..events.b import X\n", "events/b.py": ""}, "src/toka/config/a.py:1:"),
    (check_floors, {"config/a.py": "from .. import events\n", "events/b.py": ""}, "src/toka/config/a.py:1:"),
    (
        check_floors,
        {"core/a.py": "import importlib\nimportlib.import_module('toka.api.b')\n"},
        "src/toka/core/a.py:2: core (floor 1) imports toka.api.b",
    ),
    (check_floors, {"cli/a.py": "from toka import open_runtime\n"}, "src/toka/cli/a.py:1: cli (floor 8) imports toka"),
    (check_floors, {"api/a.py": "import toka.testing\n", "testing.py": ""}, "src/toka/api/a.py:1:"),
    (check_floors, {"cli/a.py": "import toka.kitchen\n"}, "src/toka/cli/a.py:1: toka.kitchen is in no room"),
    (check_floors, {"kitchen.py": ""}, "src/toka/kitchen.py:1: room 'kitchen'"),
    (
        check_circles,
        {"core/a.py": f"{TYPE_ONLY}from toka.core import b\n", "core/b.py": "def f():\n    import toka.core.a\n"},
        "src/toka/core/a.py:3: imports toka.core.b",
    ),
    (check_circles, {"core/a.py": "\nimport toka.core.a\n"}, "src/toka/core/a.py:2: imports toka.core.a"),
    (
        check_fences,
        {"llm/a.py": "from pydantic_ai.direct import x\n"},
        "src/toka/llm/a.py:1: only toka.llm.conversion,",
    ),
    (check_fences, {"sandbox/zygote.py": "import os\nimport toka.errors\n"}, "src/toka/sandbox/zygote.py:2:"),
    (
        check_fences,
        {"sandbox/zygote.py": "import os\nmatch os.name:\n    case _: ...\n"},
        "src/toka/sandbox/zygote.py:3:",
    ),
    (check_names, {"core/utils.py": ""}, "src/toka/core/utils.py:1: a module called 'utils'"),
    (check_names, {"core/_base.py": ""}, "src/toka/core/_base.py:1: a module called 'base'"),
    (check_names, {"core/__init__.py": '"""Doc."""\nimport os\n'}, "src/toka/core/__init__.py:2: an __init__.py"),
    (check_names, {"core/__init__.py": ""}, "src/toka/core/__init__.py:1: an __init__.py"),
    (check_composition, {"cli/a.py": "x = 1\nj = SqliteJournal(x)\n"}, "src/toka/cli/a.py:2: only toka.app builds"),
    (check_composition, {"cli/a.py": "j = sqlite.SqliteJournal()\n"}, "src/toka/cli/a.py:1: only toka.app builds"),
    (check_composition, {"cli/a.py": "j = SqliteJournal.open()\n"}, "src/toka/cli/a.py:1: only toka.app builds"),
    (check_lengths, {"core/a.py": "x = 1\n" * 401}, "src/toka/core/a.py:1: src/toka/core/a.py has 401 lines"),
    (
        check_lengths,
        {"core/a.py": "class A:\n    async def f():\n" + "        x = 1\n" * 60},
        "src/toka/core/a.py:2: A.f has 61 lines, 60 are allowed",
    ),
]


@pytest.mark.parametrize(("rule", "files", "expected"), FAULTS)
def test_checker_names_file_and_line(rule: Rule, files: dict[str, str], expected: str, tmp_path: Path) -> None:
    found = findings(rule, tmp_path, files)
    assert len(found) == 1
    assert expected in found[0]


SOUND = {
    "errors.py": "class TokaError(Exception): ...\n",
    "core/ids.py": "from toka import errors\nfrom toka.errors import TokaError\n",
    "core/a.py": "from toka.core import ids\nfrom . import ids as again\n",
    "llm/models.py": "import pydantic_ai\n",
    "sandbox/zygote.py": "import os\nfrom os import path\n",
    "journal/sqlite.py": "class SqliteJournal:\n    def copy(self):\n        return SqliteJournal()\n",
    "app.py": "from toka.journal.sqlite import SqliteJournal\nj = SqliteJournal()\n" + "x = 1\n" * 398,
    "cli/main.py": 'import toka.app\n\ndef f():\n    """One.\n\n    Two.\n    """\n' + "    x = 1\n" * 59,
}


@pytest.mark.parametrize("rule", RULES)
def test_checker_accepts_a_sound_tree(rule: Rule, tmp_path: Path) -> None:
    assert findings(rule, tmp_path, SOUND) == []


def test_checker_reports_a_folder_without_init(tmp_path: Path) -> None:
    findings(check_names, tmp_path, {"core/a.py": ""})
    (tmp_path / "src/toka/core/__init__.py").unlink()
    assert list(check_names(read_tree(tmp_path / "src/toka"))) == [
        "src/toka/core/a.py:1: its folder has no __init__.py"
    ]


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (450, []),
        (449, ["src/toka/core/a.py:1: src/toka/core/a.py has 450 lines, 449 are allowed"]),
        (451, ["src/toka/core/a.py:1: src/toka/core/a.py has 450 lines: lower its number in LONG"]),
    ],
)
def test_the_list_of_long_modules_only_shrinks(allowed: int, expected: list[str], tmp_path: Path) -> None:
    name = "src/toka/core/a.py"
    assert (
        findings(lambda tree: check_lengths(tree, {name: allowed}), tmp_path, {"core/a.py": "x = 1\n" * 450})
        == expected
    )


def test_the_list_of_long_modules_loses_what_is_short_or_gone(tmp_path: Path) -> None:
    long = {"src/toka/core/a.py": 500, "src/toka/core/gone.py": 500}
    found = findings(lambda tree: check_lengths(tree, long), tmp_path, {"core/a.py": "x = 1\n"})
    assert len(found) == 2
    assert "take it off the list" in found[0]
    assert "does not exist" in found[1]


def test_workshop_folders_are_recognised() -> None:
    assert names_this_checkout(f"see {PROJECT}/docs")
    assert not names_this_checkout("see docs/")
