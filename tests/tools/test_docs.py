"""docs/tools.md says what is: its tables are compared with the tools, and its example is a tool."""

from __future__ import annotations

import re
from pathlib import Path

from toka.config.secret import Secret
from toka.config.settings_tables import HostKey
from toka.core.catalogue import PRESETS
from toka.tools.builtin import builtin_tools
from toka.tools.script import read_tool
from tools.conftest import Room

TEXT = (Path(__file__).parents[2] / "docs/tools.md").read_text()


def rows(head: str) -> list[list[str]]:
    """The cells of the table under a line."""
    _, _, rest = TEXT.partition(f"{head}\n")
    lines = rest.splitlines()[1:]
    table = lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_table_of_tools() -> None:
    table = rows("| tool | arguments | grant needed | effect | gives |")
    told = {words(name)[0]: (words(arguments), effect) for name, arguments, _, effect, _ in table}
    assert told == {tool.name: (list(tool.parameters["properties"]), tool.effect.value) for tool in builtin_tools()}


def test_the_table_of_presets() -> None:
    told = {name: programs for names, programs, _ in rows("| preset | programs | hosts |") for name in words(names)}
    assert told.keys() == PRESETS.keys()


def test_the_key_and_its_defaults() -> None:
    key = HostKey(Secret("env", "GITHUB_TOKEN"), prefix="Bearer ")
    for name in ("value", "header", "prefix", "port"):
        assert re.search(rf'^{name} = "?{re.escape(str(getattr(key, name)))}"? ', TEXT, re.MULTILINE), name


async def test_the_example_works(room: Room) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (manifest,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    tool = read_tool("count_lines", script, manifest)
    assert (await tool.call({"path": "src/a.py"}, room(reads=("src",)))).text == "3 lines"
